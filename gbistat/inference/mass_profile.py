r"""Profile likelihood where the masses of the signal are free: many local minima, so each conditional fit is searched for.

Fits that only follow their neighbours stay in one basin: the mirror image of two exchanged masses, or a fluctuation somewhere else
in the plane, goes unseen, and an interval that should have two pieces has one. Here each conditional fit also starts from the maxima
that the map of :mod:`gbistat.fit.plane` has at the tested value, and the lowest minimum counts.

Where the minima that matter are known beforehand, each in a box (:mod:`gbistat.fit.basins`), a fit in each box that holds the tested value is enough; outside of
all boxes q is far above what intervals ask for, and is read off the map.

A network finds a signal of mass m at m' beside it, by an error of known size sigma that more data do not make smaller. m' is then what the ratio
knows, and m is what intervals are about:

.. math:: q(m) = \min_{m'} \left[ q'(m') + \frac{(m' - m)^2}{\sigma^2(m)} \right],

one fit with m' free and a Gaussian constraint on it, as for any nuisance parameter with an auxiliary measurement.
"""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import FitFailed
from gbistat.fit.basins import within
from gbistat.fit.minimize import fit
from gbistat.fit.plane import WORTH, PlaneSearch
from gbistat.inference.profile import Profile
from gbistat.likelihood.constraints import NormalConstraint
from gbistat.likelihood.nll import NLL
from gbistat.likelihood.parameters import index_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.fit.basins import Basin
    from gbistat.fit.result import FitResult
    from gbistat.terms.signal_spec import MassScaleSpec
    from gbistat.typing import FloatArray

__all__ = ["MirroredProfile", "SearchedProfile"]

LITTLE = 0.02
"""Gain of nll by a signal below which no fit moves its masses."""
CLEAR = 3.0
"""Gain of the nearest fit from which the next one moves its masses at once."""
SURE = 15.0
"""``2 Delta nll`` on the map from which a value is outside of every interval that anybody asks for."""
MINIMA = 12
"""Maxima of the map from which full fits look for further minima at most."""
ROW_STARTS = 3
"""Maxima of a row of the map that a conditional fit starts from at most."""
BEYOND = 5.0
"""Errors of the mass scale beyond a box up to which its fits answer for a mass."""


class SearchedProfile(Profile):
    """Profile of one parameter, global in the masses.

    Parameters
    ----------
    nll : NLL
        Likelihood whose signal depends on the masses of `search`.
    poi : str
        Parameter: a mass, the signal strength, or any other.
    search : PlaneSearch
        Map over the masses.
    best : FitResult, optional
        The global fit (:func:`gbistat.fit.plane.global_fit`).
    basins : sequence of Basin
        Minima that matter; empty if they are to be looked for.
    scale : MassScaleSpec, optional
        Error of the network on this mass. It needs boxes; without any, no signal is seen, and intervals are far wider than it.
    """

    def __init__(
        self,
        nll: NLL,
        poi: str,
        search: PlaneSearch,
        best: FitResult | None = None,
        basins: Sequence[Basin] = (),
        scale: MassScaleSpec | None = None,
    ) -> None:
        self.search = search
        self._hints: tuple[float, ...] | None = None
        self._boxes = [_Box(nll, poi, search.names, basin, scale) for basin in basins]
        self._mass_indices = [index_of(name, nll.parameters) for name in search.names]
        super().__init__(nll, poi, best)

    def conditional(self, value: float) -> FitResult:
        """Lowest of the fits with the parameter held at a value.

        Raises
        ------
        FitFailed
            If none is valid.
        """
        if value in self._points:
            return self._points[value]
        if self.poi == self.nll.poi and value == 0.0:
            # Without signal the masses mean nothing; they are held where they are best.
            held = {name: self.best.value(name) for name in self.search.names}
            self._points[value] = fit(self.nll, fixed={self.poi: 0.0, **held}).raise_if_invalid()
            return self._points[value]
        if self._boxes:
            self._points[value] = self._in_boxes(value)
            return self._points[value]
        found: list[FitResult] = []
        # Where there is no signal at the tested value the other masses are not determined: such a fit is not valid.
        with suppress(FitFailed):
            found.append(super().conditional(value))
        for start in self._starts(value):
            if any(self._near(result.values, start) for result in found):
                continue
            try:
                result = fit(self.nll, fixed={self.poi: value}, start=start)
            except FitFailed:
                continue
            if result.valid:
                found.append(result)
        if not found:
            found.append(self._held(value))
        self._points[value] = min(found, key=lambda result: result.nll)
        return self._points[value]

    def _in_boxes(self, value: float) -> FitResult:
        """Lowest of the fits in all boxes that hold a value."""
        found = [result for box in self._boxes if box.holds(value) for result in (box.conditional(value),) if result]
        if not found:
            raise FitFailed(f"no fit with {self.poi} held at {value:g} is valid")
        return min(found, key=lambda result: result.nll)

    def _held(self, value: float) -> FitResult:
        """Fit with all masses held, the others at the best node of the map: convex, and never better than with them free."""
        starts = self._starts(value)
        theta = starts[0] if starts else self.best.values.copy()
        held = {name: float(theta[i]) for name, i in zip(self.search.names, self._mass_indices, strict=True)}
        return fit(self.nll, fixed={**held, self.poi: value}, start=theta).raise_if_invalid()

    def hints(self) -> tuple[float, ...]:
        """Values of the parameter at all minima that full fits find from the map: narrow pieces of an interval lie there."""
        if self._hints is None:
            found = [box.begin[box.index] for box in self._boxes]
            for place in () if self._boxes else self.search.starts(SURE, MINIMA):
                theta = self.best.values.copy()
                self.search.put(theta, place, self.nll)
                try:
                    result = fit(self.nll, start=theta)
                except FitFailed:
                    continue
                if result.valid:
                    found.append(result.value(self.poi))
            self._hints = tuple(found)
        return self._hints

    def q(self, value: float) -> float:
        """As of any profile; far from all that the map allows it is taken from the map, without a fit."""
        if self.poi in self.search.names and value not in self._points:
            far = self._far(value)
            if self._boxes and not any(box.holds(value) for box in self._boxes):
                return far
            if far > SURE and not self._boxes:
                return far
            if self._boxes and not any(box.encloses(value) for box in self._boxes):
                return min(far, super().q(value))
        return super().q(value)

    def _far(self, value: float) -> float:
        """``2 Delta nll`` of the best node of a row next to a value: what a fit there would find, within a few units."""
        number = self.search.names.index(self.poi)
        others = tuple(k for k in range(len(self.search.names)) if k != number)
        q0, top = self._outside
        rows = q0.max(axis=others) if others else q0
        axis = self.search.axes[number]
        right = int(np.clip(np.searchsorted(axis, value), 1, axis.size - 1))
        return float(top - max(rows[right - 1], rows[right]))

    @cached_property
    def _outside(self) -> tuple[FloatArray, float]:
        """Map without the nodes inside boxes, where fits tell more, and the highest value that is known."""
        q0, top = self.search.q0.copy(), float(self.search.q0.max())
        mesh = np.meshgrid(*self.search.axes, indexing="ij")
        for box in self._boxes:
            ends = zip(mesh, box.basin.low, box.basin.high, strict=True)
            q0[np.all([(x >= low) & (x <= high) for x, low, high in ends], axis=0)] = -np.inf
            top = max(top, 2.0 * (self.search.null.nll - box.basin.best.nll))
        return q0, top

    def _starts(self, value: float) -> list[FloatArray]:
        """Points from the maxima of the map at this value: of a row where the parameter is a mass, else of the plane."""
        search = self.search
        places: list[tuple[int, ...]]
        if self.poi in search.names and len(search.names) > 1:
            number = search.names.index(self.poi)
            axis = search.axes[number]
            nearest = int(np.abs(axis - value).argmin())
            rest = [k for k in range(len(search.names)) if k != number]
            row = PlaneSearch(
                tuple(search.names[k] for k in rest),
                tuple(search.axes[k] for k in rest),
                np.take(search.q0, nearest, axis=number),
                np.take(search.strength, nearest, axis=number),
                search.null,
            )
            places = [(*place[:number], nearest, *place[number:]) for place in row.starts(WORTH, ROW_STARTS)]
        elif self.poi in search.names:
            places = []
        else:
            places = search.starts()
        starts = []
        for place in places:
            theta = self.best.values.copy()
            search.put(theta, place, self.nll)
            theta[index_of(self.poi, self.nll.parameters)] = value
            starts.append(theta)
        return starts

    def _near(self, values: FloatArray, start: FloatArray) -> bool:
        """Whether a fit ended within a node and a half of a start: it would end there again."""
        return all(
            abs(values[index] - start[index]) <= 1.5 * float(np.diff(axis).max())
            for index, axis in zip(self._mass_indices, self.search.axes, strict=True)
        )


class _Box:
    """Conditional fits inside the box of one basin, each begun at the nearest one made before."""

    def __init__(
        self, nll: NLL, poi: str, names: Sequence[str], basin: Basin, scale: MassScaleSpec | None = None
    ) -> None:
        self.nll = within(nll, names, basin.low, basin.high)
        self.poi = poi
        self.index = index_of(poi, nll.parameters)
        self.number = names.index(poi) if poi in names else None
        self.scale = scale if self.number is not None else None
        self.basin = basin
        self.names = tuple(names)
        self._without: float | None = None
        self.begin = nll.start_vector()
        # Nuisances that came after the basin was found begin at their starts.
        for name, value in basin.best.as_dict().items():
            self.begin[index_of(name, nll.parameters)] = value
        self._points: dict[float, FloatArray] = {}
        self._gains: dict[float, float] = {}

    def sigma(self, value: float) -> float:
        """Error of the mass scale at a value of the parameter."""
        return 0.0 if self.scale is None else self.scale.sigma(value)

    def encloses(self, value: float) -> bool:
        """Whether a value is inside the box; of a parameter that is no mass, whether the box is no mirror image."""
        if self.number is None:
            return self.basin.mirror is None
        return self.basin.covers(self.number, value)

    def holds(self, value: float) -> bool:
        """Whether a fit here may answer for a value."""
        if self.number is None:
            return self.encloses(value)
        reach = BEYOND * self.sigma(value)
        return bool(self.basin.low[self.number] - reach <= value <= self.basin.high[self.number] + reach)

    def conditional(self, value: float) -> FitResult | None:
        """Fit with the parameter held, or within the error of its scale; ``None`` if it is not valid."""
        begin = self._guess(value)
        sigma = self.sigma(value)
        nll = self._constrained(value, sigma) if sigma > 0 else self.nll
        fixed = {} if sigma > 0 else {self.poi: value}
        held = {name: float(begin[index_of(name, self.nll.parameters)]) for name in self.names}
        found = self._fit(fixed, begin, nll) if self._clear(value) else None
        # Where hardly any signal is left the masses are not determined, and a fit that moves them goes nowhere.
        if found is None or self._null() - found.nll < LITTLE:
            found = self._fit({**held, **fixed}, begin, nll)
            if found is None or self._null() - found.nll > LITTLE:
                free = self._fit(fixed, begin if found is None else found.values, nll)
                found = free or found
        if found is None:
            return None
        self._points[value] = found.values
        self._gains[value] = self._null() - found.nll
        if not fixed:
            values = found.values.copy()
            values[self.index] = value
            found = dataclasses.replace(found, values=values, fixed=(*found.fixed, self.poi))
        return found

    def _clear(self, value: float) -> bool:
        """Whether the nearest fit says that there is a signal whose masses can be moved."""
        nearest = min(self._gains, key=lambda x: abs(x - value), default=None)
        return nearest is not None and self._gains[nearest] > CLEAR

    def _constrained(self, value: float, sigma: float) -> NLL:
        """Likelihood in which the ratio's mass is a measurement of the parameter."""
        constraints = (*self.nll.constraints, NormalConstraint(self.poi, value, sigma))
        return NLL(
            self.nll.parameters, self.nll.mixtures, constraints, poi=self.nll.poi, convex=self.nll.convex - {self.poi}
        )

    def _fit(self, fixed: dict[str, float], begin: FloatArray, nll: NLL | None = None) -> FitResult | None:
        with suppress(FitFailed):
            result = fit(self.nll if nll is None else nll, fixed=fixed, start=begin)
            return result if result.valid else None
        return None

    def _null(self) -> float:
        """Value of the fit without signal."""
        if self._without is None:
            held = {name: float(self.begin[index_of(name, self.nll.parameters)]) for name in self.names}
            result = self._fit({**held, self.nll.poi: 0.0}, self.begin)
            self._without = float("inf") if result is None else result.nll
        return self._without

    def _guess(self, value: float) -> FloatArray:
        """Line through the two nearest fits, or the nearest one."""
        near = sorted(self._points, key=lambda x: abs(x - value))[:2]
        if not near:
            return self.begin
        first = self._points[near[0]]
        if len(near) == 1 or abs(near[0] - value) > abs(near[0] - near[1]):
            return first
        share = (value - near[0]) / (near[1] - near[0])
        guess = first + share * (self._points[near[1]] - first)
        low, high = (np.array([getattr(p, end) for p in self.nll.parameters]) for end in ("low", "high"))
        return np.clip(guess, low, high)


class MirroredProfile(Profile):
    """Profile of the other of two masses that can be exchanged: the fits of the first, which need not be made again.

    Parameters
    ----------
    first : Profile
        Profile of one mass.
    poi : str
        The other.
    """

    def __init__(self, first: Profile, poi: str) -> None:
        self.first = first
        super().__init__(first.nll, poi, first.best)

    def conditional(self, value: float) -> FitResult:
        """Fit of the first mass at this value, with both exchanged."""
        result = self.first.conditional(value)
        one, other = (index_of(name, self.nll.parameters) for name in (self.first.poi, self.poi))
        order = np.arange(result.values.size)
        order[[one, other]] = other, one
        return dataclasses.replace(
            result,
            values=result.values[order],
            errors=result.errors[order],
            covariance=result.covariance[np.ix_(order, order)],
            fixed=tuple(self.poi if name == self.first.poi else name for name in result.fixed),
        )

    def q(self, value: float) -> float:
        """As of the first mass at this value."""
        result = self.first.q(value)
        self.best, self.restarts = self.first.best, self.first.restarts
        return result

    def hints(self) -> tuple[float, ...]:
        """As of the first mass."""
        return self.first.hints()
