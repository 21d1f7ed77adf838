r"""Integrals of exp(u) over intervals of the mass, with their derivatives, in the log domain.

Composite Gauss-Legendre quadrature, split at the shape's breakpoints. A panel is halved until the last coefficients of
the integrand's Legendre series on it are negligible, so a narrow peak in a wide window costs a few more panels and
a smooth spectrum none. With :math:`\langle\cdot\rangle` the mean under exp(u) / Z,

.. math::

    \ln Z = \ln \int e^{u} dm, \quad \partial_a \ln Z = \langle \partial_a u \rangle, \quad
    \partial_a \partial_b \ln Z = \langle \partial_a \partial_b u \rangle + \mathrm{Cov}(\partial_a u, \partial_b u).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.polynomial import legendre

from gbistat.terms.tables import tabulate

if TYPE_CHECKING:
    from gbistat.terms.protocols import Shape
    from gbistat.terms.tables import Table
    from gbistat.typing import BoolArray, FloatArray, IntArray

__all__ = ["Moments", "Quadrature", "gauss_legendre"]

ORDER = 16
PANELS = 8
HALVINGS = 50
TOLERANCE = 1e-6  # of the last Legendre coefficients; the error of the integral is about the square of that
_NODES, _WEIGHTS = legendre.leggauss(ORDER)
# Maps values at the nodes to the last three coefficients of their Legendre series.
_TAIL = (legendre.legvander(_NODES, ORDER - 1) * _WEIGHTS[:, np.newaxis] * (np.arange(ORDER) + 0.5))[:, -3:]


class Moments(NamedTuple):
    """ln Z with its gradient (k,) and Hessian (k, k); -inf and NaN where the parameters give no density."""

    log_integral: float
    gradient: FloatArray
    hessian: FloatArray


def gauss_legendre(low: FloatArray, high: FloatArray, count: int = ORDER) -> tuple[FloatArray, FloatArray]:
    """Nodes and weights on P panels.

    Parameters
    ----------
    low, high : array of shape (P,)
        Edges of the panels.
    count : int
        Nodes a panel.

    Returns
    -------
    nodes, weights : array of shape (P, count)
        Both in the unit of the mass.
    """
    nodes, weights = (_NODES, _WEIGHTS) if count == ORDER else legendre.leggauss(count)
    half = 0.5 * (high - low)[:, np.newaxis]
    return (0.5 * (low + high))[:, np.newaxis] + half * nodes, half * weights


@dataclass(frozen=True, eq=False)
class _Grid:
    """Panels, the interval each belongs to, and the shape at their nodes."""

    low: FloatArray
    high: FloatArray
    owner: IntArray
    mass: FloatArray
    weights: FloatArray
    table: Table

    def unresolved(self, u: FloatArray) -> BoolArray:
        """Panels that need halving, shape (P,)."""
        f = np.exp(u - np.max(u)).reshape(-1, ORDER)
        total = float(np.vdot(f, self.weights))
        tail = np.abs(f @ _TAIL).max(axis=1) * (self.high - self.low)
        bad: BoolArray = tail > TOLERANCE * total
        return bad

    def halved(self, bad: BoolArray) -> tuple[FloatArray, FloatArray, IntArray]:
        """Panels with the bad ones cut in two."""
        middle = 0.5 * (self.low[bad] + self.high[bad])
        low = np.concatenate([self.low, middle])
        high = np.concatenate([np.where(bad, 0.5 * (self.low + self.high), self.high), self.high[bad]])
        order = np.argsort(low)
        return low[order], high[order], np.concatenate([self.owner, self.owner[bad]])[order]


class Quadrature:
    """Integrals of one shape over fixed intervals as a function of the model's parameters.

    Parameters
    ----------
    shape : Shape
        A shape with p parameters.
    offset : array of shape (p,)
        See `tabulate`.
    matrix : array of shape (p, k)
        See `tabulate`.
    intervals : sequence of (low, high)
        In order of mass and without overlap.
    panels : int
        Panels an interval to start from where it contains no breakpoint.
    """

    def __init__(
        self,
        shape: Shape,
        offset: FloatArray,
        matrix: FloatArray,
        intervals: tuple[tuple[float, float], ...],
        *,
        panels: int = PANELS,
    ) -> None:
        self._shape, self._offset, self._matrix = shape, offset, matrix
        self._edges = np.array(intervals, dtype=np.float64).reshape(-1, 2)
        self._panels = panels
        self._cached: tuple[tuple[float, ...], _Grid] | None = None
        self._constant: Moments | None = None

    def log_integral(self, values: FloatArray) -> float:
        """ln Z; -inf where the parameters give no density."""
        if values.size == 0:
            return self.moments(values).log_integral
        resolved = self.resolve(values)
        return -math.inf if resolved is None else _log_sum(resolved[1], resolved[0].weights)

    def moments(self, values: FloatArray) -> Moments:
        """ln Z with its derivatives in the k values."""
        if self._constant is not None:
            return self._constant
        k = values.size
        resolved = self.resolve(values)
        if resolved is None:
            moments = Moments(-math.inf, np.full(k, np.nan), np.full((k, k), np.nan))
        else:
            moments = _moments(resolved[0], resolved[1], values)
        if k == 0:
            self._constant = moments
        return moments

    def integrals(self, values: FloatArray) -> tuple[float, FloatArray] | None:
        """Integral over each interval divided by exp(shift): ``(shift, array of shape (number of intervals,))``."""
        resolved = self.resolve(values)
        if resolved is None:
            return None
        grid, u = resolved
        shift = float(np.max(u))
        panels = np.sum((np.exp(u - shift) * grid.weights).reshape(-1, ORDER), axis=1)
        integrals = np.zeros(len(self._edges))
        np.add.at(integrals, grid.owner, panels)
        return shift, integrals

    def resolve(self, values: FloatArray) -> tuple[_Grid, FloatArray] | None:
        """Grid fine enough for these parameters, and u at its nodes; None where they give no density."""
        grid = self._start(self._offset + self._matrix @ values)
        for _ in range(HALVINGS):
            u = grid.table.log_shape(values)
            if not self._positive(u):
                return None
            bad = grid.unresolved(u)
            if not bad.any():
                return grid, u
            grid = self._grid(*grid.halved(bad))
        return None

    def _positive(self, u: FloatArray) -> bool:
        if np.isfinite(u).all():
            return True
        # A histogram may have empty bins; a function that is zero or negative somewhere is not a density.
        return self._offset.size == 0 and bool((u < np.inf).all() and (u > -np.inf).any())

    def _start(self, theta: FloatArray) -> _Grid:
        breaks = self._shape.breakpoints(theta)
        if self._cached is None or self._cached[0] != breaks:
            self._cached = (breaks, self._grid(*_panels(self._edges, breaks, self._panels)))
        return self._cached[1]

    def _grid(self, low: FloatArray, high: FloatArray, owner: IntArray) -> _Grid:
        nodes, weights = gauss_legendre(low, high)
        mass = nodes.ravel()
        table = tabulate(self._shape, mass, self._offset, self._matrix)
        return _Grid(low, high, owner, mass, weights.ravel(), table)


def _panels(edges: FloatArray, breaks: tuple[float, ...], count: int) -> tuple[FloatArray, FloatArray, IntArray]:
    inner = np.array(breaks)
    cuts = [edges.ravel(), inner]
    for low, high in edges if count > 1 else ():
        if not np.any((inner > low) & (inner < high)):
            cuts.append(np.linspace(low, high, count + 1)[1:-1])
    grid = np.unique(np.concatenate(cuts))
    low, high = grid[:-1], grid[1:]
    middle = 0.5 * (low + high)
    owner = np.searchsorted(edges[:, 0], middle, side="right") - 1
    inside = (owner >= 0) & (middle < edges[owner, 1])
    return low[inside], high[inside], owner[inside]


def _log_sum(u: FloatArray, weights: FloatArray) -> float:
    shift = float(np.max(u))
    return shift + math.log(float(np.exp(u - shift) @ weights))


def _moments(grid: _Grid, u: FloatArray, values: FloatArray) -> Moments:
    log_integral = _log_sum(u, grid.weights)
    if values.size == 0:
        return Moments(log_integral, np.zeros(0), np.zeros((0, 0)))
    _, gradient, hessian = grid.table.derivatives(values)
    probability = grid.weights * np.exp(u - log_integral)
    mean = gradient @ probability
    centred = gradient - mean[:, np.newaxis]
    curvature = (centred * probability) @ centred.T
    if hessian.shape[2] == 1:
        curvature += hessian[:, :, 0]
    else:
        curvature += hessian @ probability
    return Moments(log_integral, mean, curvature)
