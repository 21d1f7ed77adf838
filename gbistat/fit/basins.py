"""Minima of a likelihood over the masses of its signal, each in a box where the ratio is known to a small part of an error.

Splines through the nodes of the whole plane find the minima, and move them: by half an error to a whole one where nodes are 25 GeV apart. So around
each minimum that matters for intervals the ratio is evaluated on a finer lattice (:mod:`gbistat.likelihood.lattice`), the fit is done again, and
what the splines still miss is measured with the network itself (:mod:`gbistat.fit.interpolation`). The lattice is made finer until that is
below 1 % of an error.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import FitFailed
from gbistat.fit.interpolation import Interpolation, interpolation_error
from gbistat.fit.minimize import fit
from gbistat.fit.plane import Strength
from gbistat.likelihood.nll import NLL, ExtendedUnbinnedNLL
from gbistat.likelihood.parameters import index_of
from gbistat.likelihood.theta_grid import ThetaGrid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.data.events import Events
    from gbistat.fit.plane import PlaneSearch
    from gbistat.fit.result import FitResult
    from gbistat.likelihood.lattice import Lattice
    from gbistat.likelihood.model import Model
    from gbistat.typing import FloatArray

__all__ = ["Basin", "refine_minima", "within"]

REACH = 12.0
"""``2 Delta nll`` above the lowest up to which minima matter for intervals."""
COARSE = 0.05
"""What coarse splines may be wrong by beside that, as a share of ``2 [nll(0) - nll]``: such minima are refined too."""
EDGE = 7.0
"""``2 Delta nll`` that the edge of a box shall have at least: 95 % intervals end well inside."""
MOST = 4
"""Minima that are refined at most; of two that are mirror images one counts."""
SIGMAS = 3.3
TARGET = 0.01
"""Error of the interpolation that is aimed at, in units of the statistical one."""
WIDER = (1.0, 1.6, 2.5)
"""Widths that a box is given, one after the other, as long as its edges are too low."""
MOVES = 8
"""Times that boxes are made wider, or moved to a minimum on their edge."""
FIRST, LAST = 8, 16
"""Lattice nodes in one step of the coarse grid: at first, and at most."""
NODES = 300
"""Nodes of a box at most: a wider one, of a signal that is hardly there, takes larger steps."""


@dataclass(frozen=True, eq=False)
class Basin:
    """A minimum, and a box around it.

    Parameters
    ----------
    low, high : arrays of shape (d,)
        Corners.
    best : FitResult
        Minimum inside, before nuisance parameters that depend on the masses.
    mirror : int or None
        Number of the basin that this one is the image of, with the masses exchanged.
    """

    low: FloatArray
    high: FloatArray
    best: FitResult
    mirror: int | None = None

    def covers(self, number: int, value: float) -> bool:
        """Whether a value of one mass is inside."""
        return bool(self.low[number] <= value <= self.high[number])


def within(nll: NLL, names: Sequence[str], low: FloatArray, high: FloatArray) -> NLL:
    """Same likelihood with the ranges of some parameters narrowed to a box."""
    ends = dict(zip(names, zip(low.tolist(), high.tolist(), strict=True), strict=True))
    parameters = []
    for p in nll.parameters:
        if p.name in ends and not p.fixed:
            a, b = ends[p.name]
            p = dataclasses.replace(p, low=max(a, p.low), high=min(b, p.high), start=min(max(p.start, a), b))
        parameters.append(p)
    return NLL(parameters, nll.mixtures, nll.constraints, poi=nll.poi, convex=nll.convex)


def refine_minima(
    model: Model, events: Events, search: PlaneSearch, lattices: Sequence[Lattice]
) -> tuple[tuple[Basin, ...], Interpolation | None]:
    """Minima that the map shows, with a fine lattice around each; the surfaces take the patches.

    Parameters
    ----------
    model : Model
        Signal with free masses and background, before nuisances that depend on the masses.
    events : Events
        Data in the window.
    search : PlaneSearch
        Map from the coarse splines of these events.
    lattices : sequence of Lattice
        One of each surface in the signal: the ratio's, or those of two decay modes, over one grid.

    Returns
    -------
    tuple of Basin, Interpolation or None
        The lowest first; empty where no signal is seen or no mass is free. What the splines do to the lowest.
    """
    names = search.names
    nll: NLL = ExtendedUnbinnedNLL(model, events)
    indices = [index_of(name, nll.parameters) for name in names]
    if any(nll.parameters[i].fixed for i in indices):
        return (), None
    lattice = lattices[0]
    mirrored = all(one.mirrored for one in lattices)
    minima = _coarse_minima(nll, search, indices, mirrored)
    if not minima:
        return (), None
    before: dict[str, float] = {}
    factor = FIRST
    while True:
        boxes = [_box(lattice, minimum, names, factor) for minimum in minima]
        nll, boxes, minima = _refined(model, events, search, lattices, boxes, minima, factor)
        keep = [k for k, minimum in enumerate(minima) if 2.0 * (minimum.nll - minima[0].nll) < REACH]
        boxes, minima = [boxes[k] for k in keep], [minima[k] for k in keep]
        basins = _basins(lattice, boxes, minima, indices, mirrored)
        steps = {name: float(np.diff(axis).max()) for name, axis in zip(names, boxes[0].axes, strict=True)}
        shifts, delta = interpolation_error(
            nll, [one.surface for one in lattices], events, minima[0], search, list(steps.values())
        )
        found = Interpolation(steps, shifts, delta, sum(one.evaluations for one in lattices))
        if found.worst < TARGET or factor >= LAST or minima[0].at_bound or steps == before:
            return basins, found
        factor, before = 2 * factor, steps


def _coarse_minima(nll: NLL, search: PlaneSearch, indices: list[int], mirrored: bool) -> list[FitResult]:
    """Full fits from the highest maxima of the map, each minimum once."""
    found: list[FitResult] = []
    for place in search.starts(REACH + COARSE * float(search.q0.max()), 3 * MOST):
        if mirrored and place[0] < place[1]:
            continue
        theta = search.null.values.copy()
        search.put(theta, place, nll)
        try:
            result = fit(nll, start=theta)
        except FitFailed:
            continue
        errors = result.errors[indices]
        if not result.valid or result.nll >= search.null.nll or not ((errors > 0) & (errors < np.inf)).all():
            continue
        if mirrored and result.values[indices[0]] < result.values[indices[1]]:
            continue
        if any(_same(result, other, indices) for other in found):
            continue
        found.append(result)
    found.sort(key=lambda result: result.nll)
    if not found:
        return []
    reach = REACH + COARSE * 2.0 * (search.null.nll - found[0].nll)
    return [result for result in found if 2.0 * (result.nll - found[0].nll) < reach][:MOST]


def _same(one: FitResult, other: FitResult, indices: list[int]) -> bool:
    return bool((np.abs(one.values - other.values)[indices] < 0.5 * other.errors[indices]).all())


def _box(lattice: Lattice, minimum: FitResult, names: Sequence[str], factor: int, wider: float = 1.0) -> ThetaGrid:
    """Fine nodes a few errors around a minimum."""
    while True:
        axes: list[FloatArray] = []
        for number, (name, coarse) in enumerate(zip(names, lattice.surface.grid.axes, strict=True)):
            step = float(np.diff(coarse).max()) / factor
            reach = max(wider * SIGMAS * minimum.error(name), step)
            reach = min(reach, 0.5 * float(coarse[-1] - coarse[0]))
            value = minimum.value(name)
            axes.append(lattice.axis(number, step, value - reach, value + reach))
        if factor <= 1 or np.prod([axis.size for axis in axes]) <= NODES:
            return ThetaGrid(tuple(names), tuple(axes))
        factor //= 2


def _refined(
    model: Model,
    events: Events,
    search: PlaneSearch,
    lattices: Sequence[Lattice],
    boxes: list[ThetaGrid],
    minima: list[FitResult],
    factor: int,
) -> tuple[NLL, list[ThetaGrid], list[FitResult]]:
    """Fits with fine splines in the boxes; boxes that end too low are made wider, and those that touch joined."""
    lattice, mirrored = lattices[0], all(one.mirrored for one in lattices)
    stage = 0
    for left in reversed(range(MOVES)):
        boxes, minima = _joined(lattice, boxes, minima, mirrored)
        images = [_mirrored(box) for box in boxes] if mirrored else []
        grids = [*boxes, *(image for box, image in zip(boxes, images, strict=False) if not _overlap(box, image))]
        for one in lattices:
            one.surface.refine(events, [one.patch(grid) for grid in grids])
        nll = ExtendedUnbinnedNLL(model, events)
        again, centres, moved = [], [], []
        for box, minimum in zip(boxes, minima, strict=True):
            low, high = lattice.core(box)
            try:
                result = fit(within(nll, search.names, low, high), start=minimum.values).raise_if_invalid()
            except FitFailed:
                result = minimum
            again.append(result)
            moved.append(_at_edge(result, nll, search.names, low, high))
            centres.append(_centre(result, minimum, search.names) if moved[-1] else result)
        order = np.argsort([result.nll for result in again], kind="stable")
        boxes, again, centres, moved = ([part[k] for k in order] for part in (boxes, again, centres, moved))
        open_ = _too_low(nll, search, lattice, boxes, again)
        stage += not any(moved)
        # The boxes that are handed back are those that the last fits were made in.
        if not left or stage == len(WIDER) or not any(moved + open_):
            break
        boxes = [
            _box(lattice, centre, search.names, factor, WIDER[stage]) if is_open or has_moved else box
            for box, centre, is_open, has_moved in zip(boxes, centres, open_, moved, strict=True)
        ]
        minima = centres
    return nll, boxes, again


def _at_edge(result: FitResult, nll: NLL, names: Sequence[str], low: FloatArray, high: FloatArray) -> bool:
    """Whether a minimum lies on an edge of its box that is no end of the parameter's own range."""
    for name, a, b in zip(names, low, high, strict=True):
        own, value = nll.parameters[index_of(name, nll.parameters)], result.value(name)
        near = 1e-6 * (b - a)
        if (value - a < near and a > own.low + near) or (b - value < near and b < own.high - near):
            return True
    return False


def _centre(result: FitResult, before: FitResult, names: Sequence[str]) -> FitResult:
    """The minimum on an edge, with the errors that it had before where it has none there: for the next box."""
    errors = result.errors.copy()
    for name in names:
        place = result.names.index(name)
        if errors[place] <= 0.0:
            errors[place] = before.error(name)
    return dataclasses.replace(result, errors=errors)


def _too_low(
    nll: NLL, search: PlaneSearch, lattice: Lattice, boxes: list[ThetaGrid], minima: list[FitResult]
) -> list[bool]:
    """Whether the map on the edge of a box is nearer to the best fit than intervals allow."""
    strength = Strength(nll, search.null.values, search.fraction)
    indices = [index_of(name, nll.parameters) for name in search.names]
    best = 2.0 * (search.null.nll - minima[0].nll)
    result = []
    for box in boxes:
        low, high = lattice.core(box)
        axes = [axis[(axis >= a - 1e-9) & (axis <= b + 1e-9)] for axis, a, b in zip(box.axes, low, high, strict=True)]
        top = -np.inf
        for place in np.ndindex(*(axis.size for axis in axes)):
            if not any(
                (k == 0 and axis[0] > whole[0]) or (k == axis.size - 1 and axis[-1] < whole[-1])
                for k, axis, whole in zip(place, axes, lattice.surface.grid.axes, strict=True)
            ):
                continue
            theta = search.null.values.copy()
            theta[indices] = [axis[k] for axis, k in zip(axes, place, strict=True)]
            top = max(top, strength(theta).gain)
        result.append(best - top < EDGE)
    return result


def _overlap(one: ThetaGrid, other: ThetaGrid) -> bool:
    return all(a[0] <= b[-1] and b[0] <= a[-1] for a, b in zip(one.axes, other.axes, strict=True))


def _mirrored(grid: ThetaGrid) -> ThetaGrid:
    return ThetaGrid(grid.names, grid.axes[::-1])


def _union(lattice: Lattice, one: ThetaGrid, other: ThetaGrid) -> ThetaGrid:
    axes = []
    for number, (a, b) in enumerate(zip(one.axes, other.axes, strict=True)):
        step = min(float(np.diff(a).max()), float(np.diff(b).max()))
        axes.append(lattice.axis(number, step, min(a[0], b[0]), max(a[-1], b[-1])))
    return ThetaGrid(one.names, tuple(axes))


def _joined(
    lattice: Lattice, boxes: list[ThetaGrid], minima: list[FitResult], mirrored: bool
) -> tuple[list[ThetaGrid], list[FitResult]]:
    """One box of those that overlap, with the lower minimum; a box that meets its own image becomes symmetric."""
    boxes, minima = list(boxes), list(minima)
    j = 0
    while j < len(boxes):
        if mirrored and _overlap(boxes[j], _mirrored(boxes[j])):
            boxes[j] = _union(lattice, boxes[j], _mirrored(boxes[j]))
        for k in range(j):
            image = _mirrored(boxes[k]) if mirrored else boxes[k]
            other = boxes[k] if _overlap(boxes[k], boxes[j]) else image
            if _overlap(other, boxes[j]):
                break
        else:
            j += 1
            continue
        boxes[k] = _union(lattice, other, boxes[j])
        minima[k] = min(minima[k], minima[j], key=lambda result: result.nll)
        del boxes[j], minima[j]
        j = 0
    return boxes, minima


def _basins(
    lattice: Lattice, boxes: list[ThetaGrid], minima: list[FitResult], indices: list[int], mirrored: bool
) -> tuple[Basin, ...]:
    basins = [Basin(*lattice.core(box), best) for box, best in zip(boxes, minima, strict=True)]
    if mirrored:
        for k, box in enumerate(boxes):
            if _overlap(box, _mirrored(box)):
                continue
            swapped = minima[k].values.copy()
            swapped[indices] = swapped[indices[::-1]]
            best = dataclasses.replace(minima[k], values=swapped)
            basins.append(Basin(basins[k].low[::-1], basins[k].high[::-1], best, k))
    return tuple(basins)
