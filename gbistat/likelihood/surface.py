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

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

import numpy as np

from gbistat.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gbistat.data.events import Events
    from gbistat.likelihood.theta_grid import ThetaGrid
    from gbistat.typing import FloatArray, IntArray

__all__ = [
    "ParametrisedRatio",
    "PreparedSurface",
    "RatioSurface",
    "SurfacePatch",
    "exchangeable",
    "node_values",
]

PROBED = 200
BLOCK = 8192
"""Events at a time: small matrix products, for which linear-algebra libraries start no threads."""


class ParametrisedRatio(Protocol):
    """A ratio of densities that depends on parameters, such as an exported parametrised classifier."""

    def log_ratio(self, events: Events, /, **theta: float) -> FloatArray:
        """Natural log of the ratio at each event, shape (n,)."""
        ...


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
    kappa_function : callable, optional
        ln kappa between the nodes; by default splines.

    Raises
    ------
    ModelError
        If `log_kappa` has another shape or is not finite.
    """

    term: ParametrisedRatio
    grid: ThetaGrid
    log_kappa: FloatArray
    kappa_function: Callable[[FloatArray], float] | None = None
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
        if self.kappa_function is not None:
            return self.kappa_function(theta)
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
    if weights.shape[0] == 1:
        return _spline_values(local, weights[0], n)
    result = np.empty((weights.shape[0], n))
    for begin in range(0, n, BLOCK):
        columns = slice(begin, min(begin + BLOCK, n))
        result[:, columns] = weights @ local[..., columns].reshape(weights.shape[1], -1)
    return result


def _spline_values(local: FloatArray, weights: FloatArray, n: int) -> FloatArray:
    """Value of each event's splines, shape (1, n): rows of coefficients in place, which a matrix of all of them would copy."""
    rows = local.shape[-2]
    weights = weights.reshape(-1, rows)
    result = np.zeros((1, n))
    for begin in range(0, n, BLOCK):
        columns = slice(begin, min(begin + BLOCK, n))
        for number, lead in enumerate(np.ndindex(local.shape[:-2])):
            result[0, columns] += weights[number] @ local[lead][:, columns]
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
