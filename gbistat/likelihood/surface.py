r"""Log ratios that depend on parameters of the signal, such as its masses: a network evaluated once on a grid, then splines.

A parametrised classifier gives :math:`\ln r(x; \theta)` for any :math:`\theta` (Baldi, Cranmer, Faucett, Sadowski, Whiteson,
arXiv:1601.07913). In a fit :math:`\theta` moves and the events do not, so each event has its own smooth function of
:math:`\theta`: a tensor product of cubic splines through the values at the nodes of a grid,

.. math:: \ln r_i(\theta) = \sum_{ab} c_{iab} B_a(\theta_1) B_b(\theta_2),

of which 4 terms an axis do not vanish. Value, gradient and Hessian cost one small matrix product, and never call the network.
Where more is wanted than the nodes of the plane can give, a patch of finer nodes adds what the splines miss there
(:mod:`gbistat.likelihood.lattice`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

import numpy as np
from scipy.interpolate import BSpline

from gbistat.errors import ModelError, ParameterError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gbistat.data.events import Events
    from gbistat.typing import FloatArray, IntArray

__all__ = [
    "ParametrisedRatio",
    "PreparedSurface",
    "RatioSurface",
    "SurfacePatch",
    "ThetaGrid",
    "exchangeable",
    "grid_of",
    "node_values",
]

DEGREE = 3
DEFAULT_PIECES = 22
PROBED = 200
BLOCK = 8192
"""Events at a time: small matrix products, for which linear-algebra libraries start no threads."""


class ParametrisedRatio(Protocol):
    """A ratio of densities that depends on parameters, such as an exported parametrised classifier."""

    def log_ratio(self, events: Events, /, **theta: float) -> FloatArray:
        """Natural log of the ratio at each event, shape (n,)."""
        ...


@dataclass(frozen=True, eq=False)
class ThetaGrid:
    """Nodes at which a ratio is evaluated.

    Parameters
    ----------
    names : tuple of str
        Names of the d parameters.
    axes : tuple of d arrays
        Rising nodes of each, at least 4.

    Raises
    ------
    ModelError
        If names and axes do not match, or an axis does not rise, is not finite or is too short.
    """

    names: tuple[str, ...]
    axes: tuple[FloatArray, ...]

    def __post_init__(self) -> None:
        axes = tuple(np.array(axis, dtype=np.float64) for axis in self.axes)
        if len(axes) != len(self.names) or not axes:
            raise ModelError(f"{len(axes)} axes for the parameters {', '.join(self.names) or 'none'}; give one each")
        for name, axis in zip(self.names, axes, strict=True):
            if axis.ndim != 1 or axis.size <= DEGREE or not (np.isfinite(axis).all() and (np.diff(axis) > 0).all()):
                raise ModelError(
                    f"the nodes of {name} must be {DEGREE + 1} or more rising numbers, not {np.array2string(axis, threshold=6)}"
                )
        object.__setattr__(self, "axes", axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of nodes of each axis."""
        return tuple(axis.size for axis in self.axes)

    @property
    def nodes(self) -> FloatArray:
        """All nodes, shape (g, d); the last parameter runs fastest."""
        mesh = np.meshgrid(*self.axes, indexing="ij")
        return np.stack([axis.ravel() for axis in mesh], axis=1)

    def named(self, node: FloatArray) -> dict[str, float]:
        """One node by the names of its parameters."""
        return {name: float(value) for name, value in zip(self.names, node, strict=True)}

    def coefficients(self, values: FloatArray) -> FloatArray:
        """Coefficients of the splines through values of shape (*shape, n); of the same shape."""
        result: FloatArray = np.asarray(values, dtype=np.float64)
        for number, axis in enumerate(self._splines):
            moved = np.moveaxis(result, number, 0)
            product = axis.inverse @ moved.reshape(moved.shape[0], -1)
            result = np.ascontiguousarray(np.moveaxis(product.reshape(moved.shape), 0, number))
        return result

    @cached_property
    def _splines(self) -> tuple[_AxisSplines, ...]:
        return tuple(_AxisSplines.on(axis) for axis in self.axes)

    def covers(self, theta: FloatArray) -> bool:
        """Whether a point is on the grid."""
        return all(axis[0] <= value <= axis[-1] for axis, value in zip(self.axes, theta, strict=True))

    def weights(self, theta: FloatArray) -> tuple[tuple[slice, ...], FloatArray]:
        """Terms that do not vanish at a point, and their weights for the value, the gradient and the Hessian.

        Returns
        -------
        tuple of d slices, array of shape (1 + d + d * (d + 1) / 2, 4**d)
            Where these coefficients are; rows are the value, d first and the upper triangle of second derivatives.

        Raises
        ------
        ParameterError
            If the point is outside the grid.
        """
        places, local = [], []
        for name, axis, splines, value in zip(self.names, self.axes, self._splines, theta, strict=True):
            slack = 1e-9 * (axis[-1] - axis[0])
            if not axis[0] - slack <= value <= axis[-1] + slack:
                raise ParameterError(
                    f"{name} = {value:g} is outside {axis[0]:g} to {axis[-1]:g}, where its ratio was evaluated"
                )
            first, table = splines.at(min(max(float(value), axis[0]), axis[-1]))
            places.append(slice(first, first + DEGREE + 1))
            local.append(table)
        d = len(local)
        orders = [np.zeros(d, dtype=int), *np.eye(d, dtype=int)]
        for a in range(d):
            for b in range(a, d):
                order = np.zeros(d, dtype=int)
                order[a] += 1
                order[b] += 1
                orders.append(order)
        rows = []
        for order in orders:
            row = np.ones(1)
            for table, derivative in zip(local, order, strict=True):
                row = np.multiply.outer(row, table[derivative]).ravel()
            rows.append(row)
        return tuple(places), np.array(rows)


@dataclass(frozen=True, eq=False)
class _AxisSplines:
    """Cubic B-splines of one axis, not-a-knot at its ends.

    Parameters
    ----------
    inverse : array of shape (n, n)
        From values at the nodes to coefficients.
    breaks : array of shape (n - 3,)
        Where the polynomial pieces begin.
    pieces : array of shape (n - 3, 4, 4)
        Of each piece, the coefficients of the powers (first) of the four splines (second) that do not vanish.
    """

    inverse: FloatArray
    breaks: FloatArray
    pieces: FloatArray

    @classmethod
    def on(cls, axis: FloatArray) -> _AxisSplines:
        knots = np.r_[[axis[0]] * (DEGREE + 1), axis[2:-2], [axis[-1]] * (DEGREE + 1)]
        splines = BSpline(knots, np.eye(axis.size), DEGREE)
        breaks = np.r_[axis[0], axis[2:-2]]
        powers = np.stack([splines(breaks, nu) / math.factorial(nu) for nu in range(DEGREE + 1)], axis=1)
        pieces = np.stack([powers[k, :, k : k + DEGREE + 1] for k in range(breaks.size)])
        inverse: FloatArray = np.linalg.inv(np.asarray(splines(axis), dtype=np.float64))
        return cls(inverse, breaks, pieces)

    def at(self, value: float) -> tuple[int, FloatArray]:
        """Number of the first spline that does not vanish, and the four of them with two derivatives, shape (3, 4)."""
        first = max(int(np.searchsorted(self.breaks, value, side="right")) - 1, 0)
        u = value - float(self.breaks[first])
        powers = np.array([[1.0, u, u * u, u**3], [0.0, 1.0, 2.0 * u, 3.0 * u * u], [0.0, 0.0, 2.0, 6.0 * u]])
        return first, powers @ self.pieces[first]


@dataclass(frozen=True, eq=False)
class SurfacePatch:
    """What the splines of a coarse grid miss in a part of the plane, as splines on finer nodes.

    Parameters
    ----------
    grid : ThetaGrid
        Fine nodes; outside of them nothing is added.
    rows : int array of shape (m,)
        Events that it is known for.
    coefficients : array of shape (*grid.shape, m)
        Of the splines.
    """

    grid: ThetaGrid
    rows: IntArray
    coefficients: FloatArray


@dataclass(frozen=True, eq=False)
class RatioSurface:
    """Log factor ``ln r(x; theta)`` with theta free in the fit.

    Parameters
    ----------
    term : ParametrisedRatio
        Evaluated at the nodes, once for each set of events.
    grid : ThetaGrid
        The nodes.
    log_kappa : array of the grid's shape
        Added to the log ratio.

    Raises
    ------
    ModelError
        If `log_kappa` has another shape or is not finite.
    """

    term: ParametrisedRatio
    grid: ThetaGrid
    log_kappa: FloatArray
    _known: WeakKeyDictionary[Events, PreparedSurface] = field(default_factory=WeakKeyDictionary, repr=False)

    def __post_init__(self) -> None:
        if self.log_kappa.shape != self.grid.shape or not np.isfinite(self.log_kappa).all():
            raise ModelError(f"kappa of shape {self.log_kappa.shape} for a grid of shape {self.grid.shape}")

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the d parameters."""
        return self.grid.names

    def remember(self, events: Events, values: FloatArray) -> PreparedSurface:
        """Take values at the nodes, shape (*grid.shape, n), without kappa: these events need not be evaluated again."""
        prepared = PreparedSurface(self.grid, self.grid.coefficients(values + self.log_kappa[..., None]))
        self._known[events] = prepared
        return prepared

    def select(self, events: Events, whole: Events, rows: IntArray) -> None:
        """Take the splines of known events for a selection of them: toys need no evaluation and no interpolation."""
        self._known[events] = PreparedSurface(self.grid, np.take(self.prepare(whole).coefficients, rows, axis=-1))

    def refine(self, events: Events, patches: Sequence[SurfacePatch]) -> PreparedSurface:
        """Take patches for events whose coarse splines are known; what was prepared from them before stays as it is."""
        prepared = replace(self.prepare(events), patches=tuple(patches))
        self._known[events] = prepared
        return prepared

    def log_kappa_at(self, theta: FloatArray) -> float:
        """Smooth ln kappa at a point of the plane."""
        return float(PreparedSurface(self.grid, self._kappa_coefficients).log_prob(theta)[0])

    @cached_property
    def _kappa_coefficients(self) -> FloatArray:
        return self.grid.coefficients(self.log_kappa[..., None])

    def prepare(self, events: Events) -> PreparedSurface:
        """Splines through the values at the nodes; the term is evaluated if these events are new.

        Raises
        ------
        TermError, EventsError, UnitsError
            Whatever the term says of these events.
        """
        known = self._known.get(events)
        return known if known is not None else self.remember(events, node_values(self.term, self.grid, events))


@dataclass(frozen=True, eq=False)
class PreparedSurface:
    """Splines of n events.

    Parameters
    ----------
    grid : ThetaGrid
        Where the nodes are.
    coefficients : array of shape (*grid.shape, n)
        Of the splines.
    patches : tuple of SurfacePatch
        Finer splines in parts of the plane that do not overlap.
    """

    grid: ThetaGrid
    coefficients: FloatArray
    patches: tuple[SurfacePatch, ...] = ()

    def log_prob(self, values: FloatArray) -> FloatArray:
        """Log ratio, shape (n,)."""
        row: FloatArray = self._products(values, 1)[0]
        return row

    def derivatives(self, values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Log ratio (n,), gradient (d, n), Hessian (d, d, n)."""
        d = len(self.grid.names)
        rows = self._products(values, None)
        hessian = np.empty((d, d, rows.shape[1]))
        triangle = iter(rows[1 + d :])
        for a in range(d):
            for b in range(a, d):
                hessian[a, b] = hessian[b, a] = next(triangle)
        return rows[0], rows[1 : 1 + d], hessian

    def _products(self, theta: FloatArray, count: int | None) -> FloatArray:
        point = np.asarray(theta, dtype=np.float64)
        result = _spline_rows(self.grid, self.coefficients, point, count)
        for patch in self.patches:
            if patch.grid.covers(point):
                result[:, patch.rows] += _spline_rows(patch.grid, patch.coefficients, point, count)
        return result


def _spline_rows(grid: ThetaGrid, coefficients: FloatArray, theta: FloatArray, count: int | None) -> FloatArray:
    """Value, gradient and second derivatives (the first `count` of them) of each event's splines, shape (rows, n)."""
    places, weights = grid.weights(theta)
    weights = weights[:count]
    local = coefficients[places]
    n = local.shape[-1]
    result = np.empty((weights.shape[0], n))
    for begin in range(0, n, BLOCK):
        columns = slice(begin, min(begin + BLOCK, n))
        result[:, columns] = weights @ local[..., columns].reshape(weights.shape[1], -1)
    return result


def node_values(term: ParametrisedRatio, grid: ThetaGrid, events: Events) -> FloatArray:
    """Log ratio at every node, shape (*grid.shape, n)."""
    values = np.empty((*grid.shape, len(events)))
    mirrored = exchangeable(term, grid, events)
    for place in np.ndindex(grid.shape):
        if mirrored and place[0] < place[1]:
            continue
        node = np.array([axis[k] for axis, k in zip(grid.axes, place, strict=True)])
        values[place] = term.log_ratio(events, **grid.named(node))
        if mirrored:
            values[place[::-1]] = values[place]
    return values


def exchangeable(term: ParametrisedRatio, grid: ThetaGrid, events: Events) -> bool:
    """Whether two parameters with the same nodes can be exchanged: asked of the term itself, at three pairs of nodes.

    A network of two jets ordered by their masses knows no first and second resonance; half of the evaluations are enough then.
    """
    if len(grid.axes) != 2 or not np.array_equal(*grid.axes):
        return False
    axis = grid.axes[0]
    some = events.select(np.arange(len(events)) < PROBED)
    for a, b in ((0, -1), (axis.size // 3, axis.size // 2), (1, 2 * axis.size // 3)):
        there, back = (
            term.log_ratio(some, **grid.named(np.array(pair))) for pair in ((axis[a], axis[b]), (axis[b], axis[a]))
        )
        if not np.array_equal(there, back):
            return False
    return True


def grid_of(ranges: Mapping[str, tuple[float, float]], steps: Mapping[str, float] | None = None) -> ThetaGrid:
    """Grid over the ranges of parameters.

    Parameters
    ----------
    ranges : mapping of str to (low, high)
        Ranges by parameter.
    steps : mapping of str to float, optional
        Largest distance of nodes by parameter; by default 1/22 of the range.

    Raises
    ------
    ModelError
        If a range is open or empty, or a step belongs to no parameter.
    """
    steps = steps or {}
    for name in steps:
        if name not in ranges:
            raise ModelError(
                f"a step of the grid is given for {name!r}, which no ratio depends on; {nearest(name, ranges)}"
            )
    axes = []
    for name, (low, high) in ranges.items():
        step = steps.get(name, (high - low) / DEFAULT_PIECES)
        if not (math.isfinite(low) and math.isfinite(high) and low < high and step > 0):
            raise ModelError(
                f"no grid for {name} from {low:g} to {high:g} in steps of {step:g}; both ends must be finite"
            )
        axes.append(np.linspace(low, high, max(math.ceil((high - low) / step - 1e-9) + 1, DEGREE + 1)))
    return ThetaGrid(tuple(ranges), tuple(axes))
