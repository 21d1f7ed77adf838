r"""Newton's method as an optimiser of pyhf: many nuisances cost little more than few.

pyhf's numpy backend has no derivatives, so MINUIT spends of the order of p^2 calls on a fit of p parameters (a ``staterror`` in
each of 30 bins: about 2000). A model of pyhf can be evaluated at many points in one call, though: the expected counts
:math:`\lambda_b` and constraint terms at :math:`\theta \pm h_j e_j` give the gradient of pyhf's own ``-2 ln L``, and

.. math::

    H_{jk} = 2 \sum_b \frac{n_b}{\lambda_b^2} \frac{\partial \lambda_b}{\partial \theta_j} \frac{\partial \lambda_b}{\partial \theta_k}
    + 2\, \delta_{jk} / \sigma_j^2

is its Hessian but for the curvature of :math:`\lambda_b`, which vanishes on average. Half a dozen steps reach the
minimum that pyhf's function has; MINUIT takes over where they do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.optimize import OptimizeResult

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gbistat.typing import BoolArray, FloatArray

__all__ = ["NewtonOptimizer"]

STEP = 1e-4  # of finite differences, for parameters that are of order 1


@dataclass(frozen=True, eq=False)
class _State:
    value: float
    gradient: FloatArray
    hessian: FloatArray


class NewtonOptimizer:
    """Optimiser for ``pyhf.set_backend("numpy", NewtonOptimizer(fallback))``.

    Parameters
    ----------
    pyhf : module
        pyhf, imported by the caller.
    tolerance : float, default 1e-8
        Estimated vertical distance to the minimum, in units of ``-2 ln L``, at which the steps stop.
    max_iterations : int, default 50
        Steps before MINUIT takes over.

    Notes
    -----
    One object serves one model after the other and keeps the last one's vectorised form.
    """

    name = "gbistat_newton"

    def __init__(self, pyhf: Any, *, tolerance: float = 1e-8, max_iterations: int = 50) -> None:
        self._pyhf = pyhf
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        self.fallbacks = 0
        self._function: _Function | None = None

    def minimize(
        self,
        objective: Callable[..., Any],
        data: Any,
        pdf: Any,
        init_pars: Sequence[float],
        par_bounds: Sequence[Sequence[float]],
        fixed_vals: Sequence[tuple[int, float]] | None = None,
        return_fitted_val: bool = False,
        return_result_obj: bool = False,
        return_uncertainties: bool = False,
        return_correlations: bool = False,
        do_grad: bool | None = None,
        do_stitch: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Find the parameters that minimise ``-2 ln L``: the interface of pyhf's optimisers.

        Raises
        ------
        pyhf.exceptions.FailedMinimization
            If MINUIT does not converge either.
        """
        theta = np.array(init_pars, dtype=np.float64)
        free = np.ones(theta.size, dtype=np.bool_)
        for index, value in fixed_vals or ():
            theta[index], free[index] = value, False
        low, high = np.array(par_bounds, dtype=np.float64).T
        function = self._of(pdf, np.asarray(data, dtype=np.float64))
        theta, converged = self._run(function, theta, free, low, high)
        if not converged:
            self.fallbacks += 1
            minuit = self._pyhf.optimize.minuit_optimizer(strategy=1, tolerance=1e-3)
            start = [float(min(max(x, a), b)) for x, a, b in zip(init_pars, low, high, strict=True)]
            with np.errstate(all="ignore"):  # it may try counts below 0
                theta = np.asarray(minuit.minimize(objective, data, pdf, start, par_bounds, list(fixed_vals or ())))
        errors = correlations = None
        if return_uncertainties or return_correlations:
            errors, correlations = function.errors(theta, free & (theta > low) & (theta < high))
        fitted = theta if errors is None or not return_uncertainties else np.stack([theta, errors], axis=1)
        lowest = np.asarray(objective(theta, data, pdf)[0])
        results: list[Any] = [fitted]
        if return_correlations:
            results.append(correlations)
        if return_fitted_val:
            results.append(lowest)
        if return_result_obj:
            summary: Any = OptimizeResult()
            summary.update(x=fitted, fun=lowest, unc=errors, corr=correlations, success=True)
            results.append(summary)
        return tuple(results) if len(results) > 1 else results[0]

    def _of(self, pdf: Any, data: FloatArray) -> _Function:
        if self._function is None or self._function.pdf is not pdf:
            self._function = _Function(self._pyhf, pdf)
        self._function.data = data
        return self._function

    def _run(
        self, function: _Function, theta: FloatArray, free: BoolArray, low: FloatArray, high: FloatArray
    ) -> tuple[FloatArray, bool]:
        theta = np.where(free, np.clip(theta, low, high), theta)
        state = function.evaluate(theta)
        for _ in range(self.max_iterations):
            held = ((theta <= low) & (state.gradient > 0)) | ((theta >= high) & (state.gradient < 0))
            active = free & ~held
            if not np.isfinite(state.value) or not np.isfinite(state.gradient).all():
                return theta, False
            if not active.any():
                return theta, True
            try:
                factor = cho_factor(state.hessian[np.ix_(active, active)])
            except LinAlgError:
                return theta, False
            step = np.zeros_like(theta)
            step[active] = -cho_solve(factor, state.gradient[active])
            if -0.5 * float(state.gradient @ step) < self.tolerance:
                return np.where(free, np.clip(theta + step, low, high), theta), True
            moved = self._advance(function, theta, state, step, low, high)
            if moved is None:
                return theta, False
            theta, state = moved
        return theta, False

    def _advance(
        self,
        function: _Function,
        theta: FloatArray,
        state: _State,
        step: FloatArray,
        low: FloatArray,
        high: FloatArray,
    ) -> tuple[FloatArray, _State] | None:
        """Go the whole step, or half of it, ... until the value falls."""
        length = 1.0
        for _ in range(30):
            trial = np.where(step != 0, np.clip(theta + length * step, low, high), theta)
            new = function.evaluate(trial)
            expected = float(state.gradient @ (trial - theta))
            if new.value <= state.value + 1e-4 * min(expected, 0.0) + 1e-11 * abs(state.value):
                return trial, new
            length *= 0.5
        return None


class _Function:
    """``-2 ln L`` of one pyhf model, with derivatives, up to a constant that depends on the data."""

    def __init__(self, pyhf: Any, pdf: Any) -> None:
        self.pdf = pdf
        self.data: FloatArray = np.empty(0)
        self.n_main = int(pdf.config.nmaindata)
        self.n_pars = int(pdf.config.npars)
        self._batch = 2 * self.n_pars + 1
        self._model = pyhf.Model(
            pdf.spec,
            batch_size=self._batch,
            validate=False,
            poi_name=pdf.config.poi_name,
            modifier_settings=pdf.config.modifier_settings,
        )
        self._constrained = bool(pdf.config.auxdata)
        self._penalty = np.zeros(self.n_pars)
        for name in pdf.config.par_order:
            parameter = pdf.config.param_set(name)
            if parameter.constrained:
                self._penalty[pdf.config.par_slice(name)] = 2.0 / np.asarray(parameter.width()) ** 2

    def evaluate(self, theta: FloatArray) -> _State:
        """Value, gradient and approximate Hessian; an infinite value where some expected count is not positive."""
        steps = STEP * np.maximum(1.0, np.abs(theta))
        points = np.tile(theta, (self._batch, 1))
        rows = np.arange(self.n_pars)
        points[rows, rows] += steps
        points[self.n_pars + rows, rows] -= steps
        distribution = self._model.make_pdf(points)
        counts = np.asarray(distribution[0].expected_data())
        observed = self.data[: self.n_main]
        centre = counts[-1]
        if not (centre > 0).all():
            return _State(float("inf"), np.full(self.n_pars, np.nan), np.diag(np.ones(self.n_pars)))
        jacobian = (counts[: self.n_pars] - counts[self.n_pars : -1]) / (2.0 * steps[:, None])
        ratio = observed / centre
        value = 2.0 * float((centre - observed * np.log(centre)).sum())
        gradient = 2.0 * jacobian @ (1.0 - ratio)
        # Empty bins have no curvature; a little of what they expect keeps the matrix positive definite.
        weight = np.maximum(ratio, 0.01) / centre
        hessian = 2.0 * (jacobian * weight) @ jacobian.T + np.diag(self._penalty)
        if self._constrained:
            auxiliary = np.tile(self.data[self.n_main :], (self._batch, 1))
            penalty = -2.0 * np.asarray(distribution[1].log_prob(auxiliary))
            value += float(penalty[-1])
            gradient += (penalty[: self.n_pars] - penalty[self.n_pars : -1]) / (2.0 * steps)
        return _State(value, gradient, hessian)

    def errors(self, theta: FloatArray, free: BoolArray) -> tuple[FloatArray, FloatArray]:
        """Errors (p,) and correlations (p, p) from the Hessian, by differences of the gradient."""
        steps = STEP * np.maximum(1.0, np.abs(theta))
        index = np.flatnonzero(free)
        hessian = np.zeros((index.size, index.size))
        for row, j in enumerate(index):
            up, down = theta.copy(), theta.copy()
            up[j] += steps[j]
            down[j] -= steps[j]
            hessian[row] = (self.evaluate(up).gradient - self.evaluate(down).gradient)[index] / (2.0 * steps[j])
        covariance = np.zeros((theta.size, theta.size))
        covariance[np.ix_(index, index)] = 2.0 * np.linalg.inv(0.5 * (hessian + hessian.T))
        errors = np.sqrt(np.maximum(np.diag(covariance), 0.0))
        size = np.where(errors > 0, errors, 1.0)
        return errors, covariance / np.outer(size, size)
