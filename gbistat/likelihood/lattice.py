r"""What splines through coarse nodes miss: a ratio asked of its network on a finer lattice, for the events that matter there.

At nodes :math:`\theta_{ab}` of the lattice

.. math:: d_i(\theta_{ab}) = \ln r_i(\theta_{ab}) - \sum_{cd} c_{icd} B_c B_d(\theta_{ab})

is evaluated, once, for events whose coarse log ratio is not small; splines through :math:`d_i` are added to the coarse ones in a box.
Events of small ratio keep the coarse splines: they enter the likelihood as a sum in which single errors average out. What that and the
lattice leave is measured afterwards, against the network at points that are no nodes (:func:`gbistat.fit.interpolation.interpolation_error`).
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from gbistat.likelihood.surface import PreparedSurface, SurfacePatch, exchangeable
from gbistat.likelihood.theta_grid import DEGREE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.data.events import Events
    from gbistat.likelihood.surface import RatioSurface
    from gbistat.likelihood.theta_grid import ThetaGrid
    from gbistat.typing import FloatArray, IntArray

__all__ = ["Lattice"]

SMALL = 0.1
"""Ratio of the whole densities below which the coarse splines do."""
MARGIN = 1
"""Nodes of a patch beyond the box that it is for: splines are less good at their ends."""


class Lattice:
    """Differences between a ratio and its coarse splines, node by node, evaluated when they are first asked for.

    Parameters
    ----------
    surface : RatioSurface
        The ratio on its coarse grid.
    events : Events
        n events.
    log_base : array of shape (n,), optional
        ln of all else in the ratio of the densities (the masses'), for the choice of events that matter.
    small : float
        Ratio below which events are left out at a node.
    """

    def __init__(
        self, surface: RatioSurface, events: Events, log_base: FloatArray | None = None, *, small: float = SMALL
    ) -> None:
        self.surface = surface
        self.events = events
        self.coarse = PreparedSurface(surface.grid, surface.prepare(events).coefficients)
        self.log_base: FloatArray = np.zeros(len(events)) if log_base is None else log_base
        self.small = small
        self.mirrored = exchangeable(surface.term, surface.grid, events)
        self.evaluations = 0
        self._cells: dict[tuple[tuple[float, float], ...], FloatArray] = {}
        self._known: dict[tuple[float, ...], tuple[IntArray, FloatArray]] = {}

    def axis(self, number: int, step: float, low: float, high: float) -> FloatArray:
        """Nodes of one axis, at most `step` apart, of which the second to last ones enclose an interval.

        They belong to one lattice over the whole range of the parameter, so that boxes share nodes.
        """
        begin, end = (float(x) for x in self.surface.grid.axes[number][[0, -1]])
        pieces = max(round((end - begin) / step), DEGREE)
        nodes = np.linspace(begin, end, pieces + 1)
        first = max(int(np.searchsorted(nodes, low, side="right")) - 1 - MARGIN, 0)
        last = min(int(np.searchsorted(nodes, high, side="left")) + MARGIN, pieces)
        while last - first < DEGREE:
            first, last = max(first - 1, 0), min(last + 1, pieces)
        return nodes[first : last + 1]

    def core(self, grid: ThetaGrid) -> tuple[FloatArray, FloatArray]:
        """Corners of the box that a patch on a grid is for."""
        low, high = [], []
        for axis, whole in zip(grid.axes, self.surface.grid.axes, strict=True):
            low.append(axis[0] if axis[0] <= whole[0] else axis[MARGIN])
            high.append(axis[-1] if axis[-1] >= whole[-1] else axis[-1 - MARGIN])
        return np.array(low), np.array(high)

    def difference(self, node: Sequence[float]) -> tuple[IntArray, FloatArray]:
        """Events that matter at a node, and their differences there."""
        key = tuple(round(float(x), 6) for x in node)
        if self.mirrored and key[0] < key[1]:
            key = key[::-1]
        if key not in self._known:
            theta = np.array(key)
            log = self.coarse.log_prob(theta)
            rows = np.flatnonzero(np.maximum(log, self._around(theta)) + self.log_base > np.log(self.small))
            values = np.empty(0)
            if rows.size:
                exact = self.surface.term.log_ratio(self.events.select(rows), **self.surface.grid.named(theta))
                values = exact + self.surface.log_kappa_at(theta) - log[rows]
            self.evaluations += rows.size
            self._known[key] = (rows, values)
        return self._known[key]

    def _around(self, theta: FloatArray) -> FloatArray:
        """Largest log ratio at the nodes of the coarse grid around a point: between nodes its splines may be far too low."""
        ends = []
        for axis, value in zip(self.coarse.grid.axes, theta, strict=True):
            right = int(np.clip(np.searchsorted(axis, value), 1, axis.size - 1))
            ends.append((float(axis[right - 1]), float(axis[right])))
        key = tuple(ends)
        if key not in self._cells:
            corners = [self.coarse.log_prob(np.array(corner)) for corner in product(*ends)]
            self._cells[key] = np.max(corners, axis=0)
        return self._cells[key]

    def patch(self, grid: ThetaGrid) -> SurfacePatch:
        """Splines through the differences on a grid; they end with a step, where fits do not go."""
        found = [self.difference(node) for node in grid.nodes]
        rows = np.unique(np.concatenate([rows for rows, _ in found]))
        values = np.zeros((len(found), rows.size))
        for line, (own, difference) in zip(values, found, strict=True):
            line[np.searchsorted(rows, own)] = difference
        values = values.reshape(*grid.shape, rows.size)
        return SurfacePatch(grid, rows, grid.coefficients(values))
