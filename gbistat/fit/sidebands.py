"""The background of the mass from its sidebands: fit, goodness of fit, and what it predicts in the window.

The extended likelihood of the sidebands factorises into the number of events there and the shape, so that the prediction

    n_bkg = n_sb * I_W(theta) / I_SB(theta),     I_A(theta) = integral over A of exp(u(m; theta))

has relative variance ``1 / n_sb + d^T V d`` with ``d = d ln(I_W / I_SB) / d theta`` and V the covariance of the shape. In the
window the shape's parameters are written as ``theta = theta^ + L nu`` with independent standard-normal nuisances nu,
rotated so that the first one matters most for the shape in the window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import chdtrc

from gbistat.errors import EventsError, FitFailed
from gbistat.fit.minimize import fit
from gbistat.likelihood.components import Component, MassFactor, Yield
from gbistat.likelihood.constraints import NormalConstraint
from gbistat.likelihood.model import Model
from gbistat.likelihood.nll import ExtendedUnbinnedNLL
from gbistat.likelihood.parameters import Parameter
from gbistat.terms.density import MassDensity

if TYPE_CHECKING:
    from gbistat.data.events import Events
    from gbistat.data.window import MassWindow
    from gbistat.fit.result import FitResult
    from gbistat.terms.protocols import Shape
    from gbistat.typing import FloatArray, Json

__all__ = ["GoodnessOfFit", "SidebandFit", "fit_sidebands"]

YIELD = "n_sideband"
SMALLEST_BIN = 10.0
"""Expected events that a bin of the goodness of fit has at least."""


@dataclass(frozen=True)
class GoodnessOfFit:
    """Pearson's chi2 of a binned comparison.

    Parameters
    ----------
    chi2 : float
        Sum of squared pulls.
    ndof : int
        Bins minus fitted parameters.
    p_value : float
        Upper tail probability.
    """

    chi2: float
    ndof: int
    p_value: float


@dataclass(frozen=True, eq=False)
class SidebandFit:
    """Smooth background, fitted in the sidebands of one window.

    Parameters
    ----------
    shape : Shape
        What was fitted.
    window, fit_range : MassWindow
        Window left out, and the range whose rest was fitted.
    fit : FitResult
        Number of sideband events, then the shape's parameters.
    expected : float
        Background events predicted in the window.
    expected_error : float
        Its standard deviation.
    goodness : GoodnessOfFit
        In bins of the sidebands.
    rotation : array of shape (p, p)
        The matrix L: ``theta = theta^ + L nu``.
    yield_correlation : array of shape (p,)
        Change of the predicted yield, in events, by one unit of each nuisance.
    """

    shape: Shape
    window: MassWindow
    fit_range: MassWindow
    fit: FitResult
    expected: float
    expected_error: float
    goodness: GoodnessOfFit
    rotation: FloatArray
    yield_correlation: FloatArray

    @property
    def theta(self) -> FloatArray:
        """Fitted parameters of the shape, shape (p,)."""
        theta: FloatArray = self.fit.values[1:]
        return theta

    @property
    def nuisances(self) -> tuple[str, ...]:
        """Names of the shape's nuisances in the window."""
        return tuple(f"bkg_shape_{k + 1}" for k in range(self.theta.size))

    def density(self) -> MassDensity:
        """Density in the window, with the nuisances as its parameters."""
        return MassDensity(self.shape, (self.window.edges,), self.nuisances, self.theta, self.rotation)

    def on_fit_range(self) -> MassDensity:
        """Density over the whole fit range at the fitted parameters, for plots."""
        return MassDensity.fixed(self.shape, (self.fit_range.edges,), self.theta)

    def spectrum(self, edges: FloatArray) -> FloatArray:
        """Expected background in bins anywhere in the fit range, shape (number of edges - 1,)."""
        density = self.on_fit_range()
        sidebands = self.window.sidebands(self.fit_range)
        share = np.logaddexp.reduce([density.log_integral(side, ()) for side in sidebands])
        scale = math.exp(density.log_integral(self.fit_range.edges, ()) - share)
        counts: FloatArray = density.probabilities(edges, ()) * (self.fit.values[0] * scale)
        return counts

    def shifted(self, theta: FloatArray) -> SidebandFit:
        """Same fit with other parameters of the shape, for error propagation."""
        return replace(self, fit=replace(self.fit, values=np.r_[self.fit.values[0], theta]))

    def constraint(self, yield_name: str = "n_bkg") -> NormalConstraint:
        """Joint constraint on the background yield and the nuisances, with their correlation."""
        p = self.theta.size
        matrix = np.eye(p + 1)
        matrix[0, 0] = self.expected_error**2
        matrix[0, 1:] = matrix[1:, 0] = self.yield_correlation
        return NormalConstraint((yield_name, *self.nuisances), np.r_[self.expected, np.zeros(p)], matrix)

    def shape_constraint(self) -> NormalConstraint | None:
        """Constraint on the nuisances alone; ``None`` for a shape without parameters."""
        if self.theta.size == 0:
            return None
        return NormalConstraint(self.nuisances, np.zeros(self.theta.size), np.ones(self.theta.size))

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "fit_range": list(self.fit_range.edges),
            "n_sideband": float(self.fit.values[0]),
            "shape": self.shape.name,
            "parameters": {p.name: float(v) for p, v in zip(self.shape.parameters, self.theta, strict=True)},
            "covariance": self.fit.covariance[1:, 1:].tolist(),
            "expected": self.expected,
            "expected_error": self.expected_error,
            "chi2": self.goodness.chi2,
            "ndof": self.goodness.ndof,
            "p_value": self.goodness.p_value,
        }


def fit_sidebands(events: Events, window: MassWindow, fit_range: MassWindow, shape: Shape) -> SidebandFit:
    """Fit a smooth shape to the sidebands of a window, unbinned.

    Parameters
    ----------
    events : Events
        Events of the whole spectrum; those in the window and outside the fit range are not used.
    window : MassWindow
        What is left out.
    fit_range : MassWindow
        Where the shape is fitted; must stick out of the window on both sides.
    shape : Shape
        What is fitted.

    Returns
    -------
    SidebandFit
        Shape, covariance, goodness of fit and the prediction in the window.

    Raises
    ------
    WindowError
        If a side has no sideband.
    EventsError
        If a sideband has no events, or there are fewer events than parameters.
    FitFailed
        If the fit is singular or did not converge.

    Notes
    -----
    The error covers the statistics of the sidebands, not a wrong shape: that is what the spurious-signal nuisance is for.
    """
    sidebands = window.sidebands(fit_range)
    sides = [(events.mass >= low) & (events.mass < high) for low, high in sidebands]
    for (low, high), inside in zip(sidebands, sides, strict=True):
        if not inside.any():
            raise EventsError(
                f"no event in the sideband {low:g}-{high:g} {window.unit} of the window {window}: a one-sided fit cannot "
                "be interpolated; change fit_range or the window"
            )
    selected = events.select(np.logical_or.reduce(sides))
    p = len(shape.parameters)
    if len(selected) <= p + 1:
        raise EventsError(f"{len(selected)} sideband events for a shape of {p} parameters; use a simpler shape")
    density = MassDensity.free(shape, sidebands)
    parameters = [Parameter(YIELD, selected.sum_of_weights, 0.0)]
    parameters += [Parameter(q.name, q.start, q.low, q.high) for q in shape.parameters]
    model = Model(
        components=(Component("background", Yield({YIELD: 1.0}), (MassFactor(density),)),),
        parameters=tuple(parameters),
        poi=YIELD,
        signal="background",
    )
    result = fit(ExtendedUnbinnedNLL(model, selected))
    if not result.valid or result.at_bound:
        reason = result.message or f"{', '.join(result.at_bound)} ended at a wall of its range"
        raise FitFailed(
            f"the sideband fit of {shape.name} around the window {window} failed: {reason}; "
            "use a shape with fewer parameters or a wider fit_range"
        )
    theta, matrix = result.values[1:], result.covariance[1:, 1:]
    ratio = math.exp(
        density.log_integral(window.edges, theta)
        - np.logaddexp.reduce([density.log_integral(side, theta) for side in sidebands])
    )
    expected = float(result.values[0]) * ratio
    slope = density.mean_score(window.edges, theta) - density.normalisation(theta).gradient
    relative_variance = 1.0 / float(result.values[0]) + float(slope @ matrix @ slope)
    rotation = _rotation(density.on((window.edges,)), theta, matrix, expected)
    return SidebandFit(
        shape=shape,
        window=window,
        fit_range=fit_range,
        fit=result,
        expected=expected,
        expected_error=expected * math.sqrt(relative_variance),
        goodness=_goodness(density, selected, result, sidebands),
        rotation=rotation,
        yield_correlation=expected * (slope @ rotation),
    )


def _rotation(density: MassDensity, theta: FloatArray, matrix: FloatArray, expected: float) -> FloatArray:
    """Matrix L with ``L L^T`` the covariance, columns ordered by what they do to the shape in the window."""
    if theta.size == 0:
        return np.empty((0, 0))
    scale = np.sqrt(np.diag(matrix))
    root = scale[:, None] * np.linalg.cholesky(matrix / np.outer(scale, scale))
    mass, weight = density.nodes(200)
    log, gradient, _ = density.derivatives(mass, theta)
    information = (gradient * (weight * np.exp(log) * expected)) @ gradient.T
    _, vectors = np.linalg.eigh(root.T @ information @ root)
    rotated: FloatArray = root @ vectors[:, ::-1]
    # A sign that does not depend on the linear-algebra library: the first parameter grows with the nuisance.
    signs = np.where(rotated[np.argmax(np.abs(rotated), axis=0), np.arange(theta.size)] < 0, -1.0, 1.0)
    return rotated * signs


def _goodness(
    density: MassDensity, events: Events, result: FitResult, sidebands: tuple[tuple[float, float], ...]
) -> GoodnessOfFit:
    """Pearson chi2 in bins that hold at least ten expected events, about forty in all."""
    chi2, bins = 0.0, 0
    total = float(result.values[0])
    for low, high in sidebands:
        fine = np.linspace(low, high, 401)
        fine_expected = total * density.probabilities(fine, result.values[1:])
        target = max(SMALLEST_BIN, total / 40.0)
        edges, content = [low], 0.0
        for edge, more in zip(fine[1:], fine_expected, strict=True):
            content += more
            if content >= target:
                edges.append(float(edge))
                content = 0.0
        if len(edges) == 1:
            edges.append(high)
        else:
            edges[-1] = high
        grid = np.array(edges)
        expected = total * density.probabilities(grid, result.values[1:])
        counts, _ = np.histogram(events.mass, bins=grid, weights=events.weights)
        variance = expected
        if events.weights is not None:
            squares, _ = np.histogram(events.mass, bins=grid, weights=events.weights**2)
            variance = np.where(squares > 0, squares, expected)
        chi2 += float((((counts - expected) ** 2) / variance).sum())
        bins += expected.size
    ndof = max(bins - result.values.size, 1)
    return GoodnessOfFit(chi2, ndof, float(chdtrc(ndof, chi2)))
