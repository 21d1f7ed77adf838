"""Minimisation of a negative log-likelihood: Newton's method on exact derivatives, and iminuit's MIGRAD.

For fixed densities the nll of a mixture is convex in the yields, so a handful of Newton steps reach the minimum to machine
precision; MIGRAD takes over where they fail, and can be asked for by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from iminuit import Minuit
from scipy.linalg.lapack import dposv

from gbistat.errors import FitFailed
from gbistat.fit.result import FitOptions, FitResult
from gbistat.likelihood.parameters import index_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gbistat.likelihood.mixture import Evaluation
    from gbistat.likelihood.nll import NLL
    from gbistat.typing import BoolArray, FloatArray

__all__ = ["covariance", "fit", "to_minuit"]

_DEFAULT = FitOptions()
LOWER = 1e-3
"""How far (in nll) below Newton's minimum MIGRAD must end to be believed."""
SMALLEST_BEND = 0.2
"""Curvature of the nll, in units of that of each parameter alone, that a step assumes at least where the nll does not bend up."""
LONGEST = 0.1
"""Longest step where the nll does not bend up, relative to the range of a parameter."""
SMALLEST_FALL = 1e-6
"""Fall of the nll that makes it worth to leave a saddle."""
FAR = 1e12
"""Size of a parameter, in units of its start or of 1, at which the nll is taken to fall without end."""


def fit(
    nll: NLL,
    *,
    fixed: Mapping[str, float] | None = None,
    start: FloatArray | None = None,
    options: FitOptions = _DEFAULT,
) -> FitResult:
    """Minimise a negative log-likelihood.

    Parameters
    ----------
    nll : NLL
        What to minimise.
    fixed : mapping of str to float, optional
        Parameters to hold, at which values. Parameters declared fixed are held at their start values.
    start : array of shape (p,), optional
        Where to begin; the start values of the parameters by default.
    options : FitOptions
        Minimiser and tolerances.

    Returns
    -------
    FitResult
        With ``valid = False`` and a message where no minimum was found: look, or call ``raise_if_invalid``.

    Raises
    ------
    ParameterError
        If a name in `fixed` is unknown or its value outside its range.
    FitFailed
        If the likelihood is not finite anywhere along the way, so that there is nothing to return.

    Examples
    --------
    >>> from gbistat.likelihood.nll import ExtendedUnbinnedNLL
    >>> nll = ExtendedUnbinnedNLL.from_log_ratio(np.log([0.5, 0.1, 40.0, 30.0, 0.3]))
    >>> result = fit(nll)
    >>> round(result.value("mu") + result.value("n_bkg"), 6)  # an extended fit returns the number of events
    5.0
    """
    fixed = dict(fixed or {})
    theta = nll.start_vector() if start is None else np.array(start, dtype=np.float64)
    free = np.array([not parameter.fixed for parameter in nll.parameters])
    for name, value in fixed.items():
        index = index_of(name, nll.parameters)
        theta[index] = nll.parameters[index].check(float(value))
        free[index] = False
    search = _Newton(nll, free, options)
    theta = search.run(theta)
    if not search.converged and not np.isfinite(nll.value(theta)):
        theta = search.run(_feasible(nll, theta, free))
    if not (search.converged or search.escaped):
        theta = search.run(_populated(nll, theta, free))
    calls = search.calls
    if options.minimizer == "migrad" or not (search.converged or search.escaped):
        trial, more = _migrad(nll, theta, free, options)
        trial = trial if np.isfinite(trial).all() else theta
        calls += more
        # Where Newton's steps have ended in a minimum, MIGRAD only has a say if it finds a lower one: next to the
        # wall where a density turns negative it may run away.
        if not search.converged or nll.value(trial) < nll.value(theta) - LOWER:
            polish = _Newton(nll, free, options)
            theta = polish.run(trial)
            calls += polish.calls
    return _result(nll, theta, free, calls, conditional=bool(fixed))


def _feasible(nll: NLL, theta: FloatArray, free: BoolArray) -> FloatArray:
    """Return a point where the likelihood is finite, for one where it is not: larger backgrounds make it so."""
    safe = np.where(free, nll.start_vector(), theta)
    for scale in (1.0, 10.0, 100.0, 1e3, 1e4):
        trial = safe.copy()
        for index, parameter in enumerate(nll.parameters):
            if free[index] and parameter.low == 0.0:
                trial[index] = min(parameter.high, max(safe[index] * scale, theta[index] * scale, scale))
        if np.isfinite(nll.value(trial)):
            return trial
    held = ", ".join(f"{n} = {v:g}" for n, v, f in zip(nll.names, theta, free, strict=True) if not f)
    raise FitFailed(
        f"-ln L is not finite at the start of the fit{' with ' + held if held else ''}: the density of some event is not "
        "positive there; start elsewhere, or test a value nearer to the estimate"
    )


def _populated(nll: NLL, theta: FloatArray, free: BoolArray) -> FloatArray:
    """Return a point where every yield has a tenth of the events: from 0, a ratio of 1e100 takes hundreds of steps."""
    trial = theta.copy()
    for index, parameter in enumerate(nll.parameters):
        if not free[index] or parameter.name not in nll.convex:
            continue
        size = nll.event_size(parameter.name, theta)
        events = sum(float(m.size if m.weights is None else m.weights.sum()) for m in nll.mixtures)
        if size > 0:
            trial[index] = min(max(trial[index], 0.1 * events * size), parameter.high)
    return trial


class _Newton:
    """Damped Newton steps inside a box, with an active set at its walls."""

    def __init__(self, nll: NLL, free: BoolArray, options: FitOptions) -> None:
        self.nll = nll
        self.options = options
        self.free = free
        self.low = np.array([parameter.low for parameter in nll.parameters])
        self.high = np.array([parameter.high for parameter in nll.parameters])
        self.span = self.high - self.low
        self.far = FAR * (1.0 + np.abs(nll.start_vector()))
        self.calls = 0
        self.converged = False
        self.escaped = False
        self._known: tuple[Evaluation, tuple[FloatArray, float, bool]] | None = None

    def run(self, theta: FloatArray) -> FloatArray:
        """Step until the estimated distance to the minimum is below ``options.edm``."""
        theta = self._within(theta)
        state = self._evaluate(theta)
        for _ in range(self.options.max_iterations):
            if not _usable(state, self.free):
                return theta
            if (np.abs(theta) > self.far)[self.free].any():
                self.escaped = True
                return theta
            active = self._active(theta, state)
            if not active.any():
                self.converged = True
                return theta
            step, edm, downhill = self._step(state, active)
            if edm < self.options.edm and downhill:
                self.converged = True
                # The last, tiny step costs nothing more and squares the distance that is left.
                return self._within(theta + step)
            if edm < self.options.edm:
                left = self._leave_saddle(theta, state, active)
                if left is None:
                    return theta
                theta, state = left
                continue
            moved = self._full_step(theta, step, edm) if downhill else None
            if moved is None:
                moved = self._line_search(theta, state, step)
            if moved is None:
                # Rounding of the value hides the decrease long before the gradient is exhausted.
                self.converged = edm < 1e3 * self.options.edm
                return theta
            theta, state = moved
        return theta

    def _evaluate(self, theta: FloatArray) -> Evaluation:
        self.calls += 1
        return self.nll.evaluate(theta, with_value=False, free=self.free)

    def _within(self, theta: FloatArray) -> FloatArray:
        return np.clip(theta, self.low, self.high)

    def _active(self, theta: FloatArray, state: Evaluation) -> BoolArray:
        """Free parameters that can move: neither held at a wall by the gradient nor without any effect."""
        gradient = state.gradient
        held = ((theta <= self.low) & (gradient > 0)) | ((theta >= self.high) & (gradient < 0))
        mask: BoolArray = self.free & ~held & ~_idle(state, self.free)
        return mask

    def _step(self, state: Evaluation, active: BoolArray) -> tuple[FloatArray, float, bool]:
        """Newton step over the active parameters, the edm it predicts, and whether the Hessian there bends up."""
        if self._known is not None and self._known[0] is state:
            return self._known[1]
        gradient = state.gradient[active]
        hessian = state.hessian[active][:, active]
        diagonal = np.abs(np.diag(hessian))
        scale = 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
        scaled = hessian * (scale[:, None] * scale)
        right = scale * gradient
        _, solution, failed = dposv(scaled, right, lower=1)
        if failed:
            # Directions that bend down or not at all are followed downhill as if they bent up: no step becomes huge.
            values, vectors = np.linalg.eigh(scaled)
            solution = vectors @ ((vectors.T @ right) / np.maximum(np.abs(values), SMALLEST_BEND))
        direction = -scale * solution
        if failed:
            # Where the nll does not bend up the quadratic says nothing about how far to go: a tenth of a range at most, or a line search
            # would halve its way back from the walls.
            with np.errstate(divide="ignore", invalid="ignore"):
                share = np.abs(direction) / (LONGEST * self.span[active])
            direction = direction / max(1.0, float(np.nanmax(share)))
        step = np.zeros_like(state.gradient)
        step[active] = direction
        self._known = (state, (step, -0.5 * float(gradient @ direction), not failed))
        return self._known[1]

    def _full_step(self, theta: FloatArray, step: FloatArray, edm: float) -> tuple[FloatArray, Evaluation] | None:
        """Take the whole step if the edm falls enough: no logarithm is needed to know that it is a good one."""
        trial = self._within(theta + step)
        state = self._evaluate(trial)
        if not _usable(state, self.free):
            return None
        active = self._active(trial, state)
        if not active.any():
            return trial, state
        _, left, downhill = self._step(state, active)
        return (trial, state) if downhill and left < 0.5 * edm else None

    def _leave_saddle(
        self, theta: FloatArray, state: Evaluation, active: BoolArray
    ) -> tuple[FloatArray, Evaluation] | None:
        """Go where the nll bends down from a point without a slope, such as one where two masses that can be exchanged are equal."""
        hessian = state.hessian[active][:, active]
        diagonal = np.abs(np.diag(hessian))
        scale = 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
        values, vectors = np.linalg.eigh(hessian * (scale[:, None] * scale))
        if values[0] >= 0.0:
            return None
        begin = self.nll.value(theta)
        step = np.zeros_like(theta)
        step[active] = scale * vectors[:, 0] / np.sqrt(-values[0])
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.abs(step[active]) / (LONGEST * self.span[active])
        step /= max(1.0, float(np.nanmax(share)))
        for length in (1.0, 0.3, 0.1, 0.03):
            for sign in (1.0, -1.0):
                trial = self._within(theta + sign * length * step)
                value = self.nll.value(trial)
                self.calls += 1
                if np.isfinite(value) and value < begin - SMALLEST_FALL:
                    return trial, self._evaluate(trial)
        return None

    def _line_search(
        self, theta: FloatArray, state: Evaluation, step: FloatArray
    ) -> tuple[FloatArray, Evaluation] | None:
        """Shorten the step until the value falls enough; stops at walls by projection."""
        begin = self.nll.value(theta)
        length = 1.0
        for _ in range(40):
            trial = self._within(theta + length * step)
            value = self.nll.value(trial)
            self.calls += 1
            slope = float(state.gradient @ (trial - theta))
            if np.isfinite(value) and value <= begin + 1e-4 * min(slope, 0.0):
                return trial, self._evaluate(trial)
            length *= 0.5 if np.isfinite(value) else 0.3
        return None


def _usable(state: Evaluation, free: BoolArray) -> bool:
    """Whether the derivatives are finite (a ratio above 1e154 overflows when squared)."""
    return bool(np.isfinite(state.gradient[free]).all() and np.isfinite(state.hessian[free][:, free]).all())


def _idle(state: Evaluation, free: BoolArray) -> BoolArray:
    """Free parameters that change nothing here: the mass of a signal of zero events, for example."""
    mask: BoolArray = free & (state.gradient == 0.0) & (state.hessian[:, free] == 0.0).all(axis=1)
    return mask


def to_minuit(nll: NLL, theta: FloatArray | None = None) -> Minuit:
    """Minimiser of iminuit for a likelihood, with its gradient, ranges and fixed parameters set.

    Parameters
    ----------
    nll : NLL
        What to minimise.
    theta : array of shape (p,), optional
        Where to begin.

    Returns
    -------
    iminuit.Minuit
        Ready for ``migrad``, ``minos``, ``mnprofile``.
    """
    minuit = Minuit(nll, *(nll.start_vector() if theta is None else theta), name=nll.names, grad=nll.grad)
    for parameter in nll.parameters:
        minuit.limits[parameter.name] = parameter.limits
        minuit.fixed[parameter.name] = parameter.fixed
    return minuit


def _migrad(nll: NLL, theta: FloatArray, free: BoolArray, options: FitOptions) -> tuple[FloatArray, int]:
    minuit = to_minuit(nll, theta)
    minuit.strategy = options.strategy
    for name, is_free in zip(nll.names, free, strict=True):
        minuit.fixed[name] = not is_free
    variances = np.diag(covariance(nll.evaluate(theta, with_value=False).hessian, free)[0])
    for name, variance in zip(nll.names, variances, strict=True):
        if variance > 0:
            minuit.errors[name] = float(np.sqrt(variance))
    minuit.migrad()
    return np.array(minuit.values, dtype=np.float64), int(minuit.nfcn + minuit.ngrad)


def covariance(hessian: FloatArray, free: BoolArray, names: Sequence[str] | None = None) -> tuple[FloatArray, str]:
    """Inverse of the Hessian over the free parameters, and a message if that is not a covariance.

    Parameters
    ----------
    hessian : array of shape (p, p)
        Second derivatives of the nll.
    free : array of bool, shape (p,)
        Parameters to invert over; the others get zero rows.
    names : sequence of str, optional
        Names of the p parameters, for the message.

    Returns
    -------
    array of shape (p, p), str
        Covariance, and an empty string or the reason why it cannot be one.
    """
    result = np.zeros_like(hessian)
    block = hessian[np.ix_(free, free)]
    if block.size == 0:
        return result, ""
    if not np.isfinite(block).all():
        return result, "the Hessian is not finite"
    diagonal = np.diag(block)
    labels = [str(i) if names is None else names[i] for i in map(int, np.flatnonzero(free))]
    if not (diagonal > 0).all():
        flat = labels[int(np.argmin(diagonal))]
        return result, (
            f"-ln L is flat or bends down in {flat}: the data do not determine it; fix it or narrow its range"
        )
    if diagonal.size == 1:
        result[np.ix_(free, free)] = 1.0 / block
        return result, ""
    scale = 1.0 / np.sqrt(diagonal)
    scaled = block * np.outer(scale, scale)
    values, vectors = np.linalg.eigh(scaled)
    if values[0] < 1e-13 * values[-1]:
        involved = ", ".join(label for label, part in zip(labels, vectors[:, 0], strict=True) if abs(part) > 0.2)
        return result, (
            f"the Hessian is singular (eigenvalue {values[0]:.1e} of its scaled form): "
            f"some combination of {involved} does not change -ln L, or bends it down; fix or constrain one of them"
        )
    result[np.ix_(free, free)] = np.linalg.inv(scaled) * np.outer(scale, scale)
    return result, ""


def _result(nll: NLL, theta: FloatArray, free: BoolArray, calls: int, *, conditional: bool) -> FitResult:
    low = np.array([parameter.low for parameter in nll.parameters])
    high = np.array([parameter.high for parameter in nll.parameters])
    width = np.minimum(high - low, 1.0 + np.abs(theta))
    at_low, at_high = free & ((theta - low) < 1e-10 * width), free & ((high - theta) < 1e-10 * width)
    wall = at_low | at_high
    theta = np.where(at_low, low, np.where(at_high, high, theta))
    state = nll.evaluate(theta, free=free)
    # A parameter may lose all meaning where another one is held or at its wall (a mass at mu = 0): the minimum is still one.
    idle = _idle(state, free & ~wall)
    if not conditional:
        # Away from that wall it would mean something: their mixed derivative is not 0. One that never did is not determined.
        idle &= (state.hessian[:, wall] != 0.0).any(axis=1)
    inner = free & ~wall & ~idle
    matrix, message = covariance(state.hessian, inner, nll.names)
    gradient = state.gradient[inner]
    edm = 0.5 * float(gradient @ matrix[np.ix_(inner, inner)] @ gradient)
    outward = ((theta - low) < (high - theta)) & (state.gradient < 0) | ((theta - low) >= (high - theta)) & (
        state.gradient > 0
    )
    escaped = np.where(free, np.abs(theta), 0.0) / (FAR * (1.0 + np.abs(nll.start_vector())))
    if escaped.max() > 1.0:
        farthest = int(np.argmax(escaped))
        message = (
            f"-ln L keeps falling towards {nll.names[farthest]} = {theta[farthest]:.1g}: the data do not bound it; "
            "narrow its range"
        )
    elif not np.isfinite(state.value):
        message = "-ln L is not finite at the end of the fit"
    elif not message and edm > 1e-3:
        message = f"the minimum was not reached: estimated distance {edm:.2g} in -ln L"
    elif not message and (wall & outward).any():
        message = "the fit stopped at a wall that it could have left"
    return FitResult(
        names=nll.names,
        values=theta,
        errors=np.where(idle & (not conditional), np.inf, np.sqrt(np.maximum(np.diag(matrix), 0.0))),
        covariance=matrix,
        nll=state.value,
        valid=not message,
        message=message,
        fixed=tuple(name for name, f in zip(nll.names, free, strict=True) if not f),
        at_bound=tuple(name for name, w in zip(nll.names, wall, strict=True) if w),
        n_calls=calls + 1,
        edm=edm,
    )
