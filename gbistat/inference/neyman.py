"""Neyman construction with likelihood-ratio ordering, by toys: intervals that hold the truth as often as they say.

A value mu is in the interval if the test statistic of the data is not among the largest ``1 - cl`` of toys thrown at mu:
G. J. Feldman and R. D. Cousins, arXiv:physics/9711021, section IV, with a profile likelihood ratio where there are nuisance
parameters. Toys are thrown at the nuisances that fit the data best at that mu (the profile construction), and if asked also at
others, of which the worst counts. Ends are where the observed statistic crosses the critical value; toys go to where they
decide something.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import brentq

from gbistat.errors import OptionError
from gbistat.inference.neyman_ends import DECISIVE, find_end
from gbistat.inference.neyman_points import Thrower
from gbistat.inference.neyman_results import NeymanOptions, NeymanPoint, ToyInterval
from gbistat.inference.profile import threshold

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from gbistat.inference.neyman_ends import End
    from gbistat.inference.neyman_problem import NeymanProblem
    from gbistat.inference.results import Segment
    from gbistat.typing import FloatArray

__all__ = ["NeymanScan", "neyman_interval"]

DISAGREEMENT = 0.05
"""Distance of asymptotic ends, as a share of the distance to the estimate, that is worth a note."""


class NeymanScan:
    """Neyman construction for one data set, whose toys serve every confidence level.

    Parameters
    ----------
    problem : NeymanProblem
        Data, test statistic and source of toys.
    rng : numpy.random.Generator
        Source of randomness; the result depends on it and on the order of the questions, not on the number of workers.
    options : NeymanOptions, optional
        How toys are spent.
    nuisances : callable or array of shape (s, p), optional
        Further true parameters to throw toys at, of which the worst counts: a function of the tested value that returns
        (s, p), or a fixed array whose entries for the parameter of interest are replaced by it.
    mapper : callable
        ``map``, or the ``map`` of an executor.
    """

    def __init__(
        self,
        problem: NeymanProblem,
        *,
        rng: np.random.Generator,
        options: NeymanOptions | None = None,
        nuisances: Callable[[float], FloatArray] | FloatArray | None = None,
        mapper: Callable[..., Iterable[FloatArray]] = map,
    ) -> None:
        self.problem = problem
        self.options = options or NeymanOptions()
        self.nuisances = nuisances
        self._intervals: dict[float, ToyInterval] = {}
        known: dict[float, float] = {}

        def observed(value: float) -> float:
            if value not in known:
                known[value] = problem.observed(value)
            return known[value]

        self.observed = observed
        self.thrower = Thrower(
            problem.statistics,
            observed,
            self._settings,
            best=problem.best,
            low=problem.low,
            high=problem.high,
            rng=rng,
            mapper=mapper,
        )

    def _settings(self, value: float) -> list[FloatArray]:
        """True parameters for toys at a value."""
        profiled = self.problem.profiled(value)
        if self.nuisances is None:
            return [profiled]
        if callable(self.nuisances):
            return [profiled, *np.atleast_2d(self.nuisances(value))]
        others = np.atleast_2d(np.array(self.nuisances, dtype=np.float64))
        if others.shape[1] != profiled.size:
            raise OptionError(f"nuisance settings of shape {others.shape} for {profiled.size} parameters")
        others[:, self.problem.index] = value
        return [profiled, *others]

    def _level(self, cl: float) -> float:
        threshold(cl)
        level = cl + self.options.gamma
        if level >= 1.0:
            raise OptionError(f"gamma {self.options.gamma:g} leaves nothing of 1 - cl = {1.0 - cl:g}")
        return level

    def _first(self, level: float) -> int:
        return max(self.options.min_toys, math.ceil(20.0 / (1.0 - level)))

    def test(self, value: float, *, cl: float = 0.95) -> NeymanPoint:
        """Test one value: throw toys until it is clear whether the interval holds it.

        Parameters
        ----------
        value : float
            Of the parameter of interest.
        cl : float, default 0.95
            Confidence level.

        Raises
        ------
        OptionError
            If `cl` is not between 0 and 1 or the value is outside the allowed range.
        FitFailed
            If all toys failed.
        """
        if not self.problem.low <= value <= self.problem.high:
            raise OptionError(
                f"{self.problem.poi} = {value:g} is outside {self.problem.low:g} to {self.problem.high:g}"
            )
        level = self._level(cl)
        self._settle([value], level, most=self.options.max_toys)
        return self._summary(value, level)

    def interval(self, *, cl: float = 0.95) -> ToyInterval:
        """Interval at one confidence level; toys thrown for other levels are used again, and asking twice costs nothing.

        Raises
        ------
        OptionError
            If `cl` is not between 0 and 1.
        FitFailed
            If a fit to the data is not valid, or all toys at a value failed.
        """
        level = self._level(cl)
        if cl not in self._intervals:
            self._intervals[cl] = self._find(cl, level)
        return self._intervals[cl]

    def _find(self, cl: float, level: float) -> ToyInterval:
        before = self.thrower.n_toys
        first = self._first(level)
        values = self._grid(level)
        self._settle(values, level, most=4 * first)
        if self.thrower.points[values[0]].discrete:
            self._settle(values, level, most=DECISIVE * first)
        values = self._extend(values, level, first)
        for value in (values[0], values[-1]):
            if value in (self.problem.low, self.problem.high):
                self._settle([value], level, most=max(self.options.max_toys // 8, first))
        segments, errors, settled = self._segments(values, level, limit=before + self.options.max_toys)
        asymptotic = self._asymptotic(values, level)
        notes = self._notes(cl, segments, errors, asymptotic, settled)
        return ToyInterval(
            self.problem.poi,
            cl,
            segments,
            self.problem.best,
            math.nan,
            self.problem.method,
            notes,
            errors=errors,
            asymptotic=asymptotic,
            points=tuple(self._summary(value, level) for value in sorted(self.thrower.points)),
            n_toys=self.thrower.n_toys,
            n_failed=self.thrower.n_failed,
        )

    def _summary(self, value: float, level: float) -> NeymanPoint:
        point = self.thrower.points[value]
        return NeymanPoint(
            value, point.t_observed, *point.critical(level), *point.p_value(), point.n_toys, point.n_failed
        )

    def _settle(self, values: Sequence[float], level: float, *, most: int) -> None:
        """Throw the least number of toys at each value, and more where the answer is not clear yet."""
        first = self._first(level)
        fresh = {v: first - self.thrower.point(v).spent for v in values if self.thrower.point(v).spent < first}
        self.thrower.throw(fresh)
        while True:
            open_ones = {
                v: min(self.thrower.points[v].spent, most - self.thrower.points[v].spent)
                for v in values
                if not self.thrower.points[v].decided(level) and self.thrower.points[v].spent < most
            }
            if not open_ones:
                return
            self.thrower.throw(open_ones)

    def _reach(self, level: float, direction: int) -> float:
        """Value half a standard deviation beyond the asymptotic end, or the edge of the range."""
        problem = self.problem
        goal = (math.sqrt(threshold(level)) + 0.5) ** 2
        wall = problem.high if direction > 0 else problem.low
        inside, step = problem.best, problem.scale
        for _ in range(60):
            outside = self.thrower.within(inside + direction * step)
            if self.observed(outside) > goal:
                break
            if outside == wall:
                return wall
            inside, step = outside, 1.6 * step
        for _ in range(5):
            middle = 0.5 * (inside + outside)
            inside, outside = (middle, outside) if self.observed(middle) < goal else (inside, middle)
        return outside

    def _grid(self, level: float) -> list[float]:
        low, high = self._reach(level, -1), self._reach(level, +1)
        if not low < high:
            raise OptionError(f"the range of {self.problem.poi} is empty around its estimate {self.problem.best:g}")
        return sorted({*np.linspace(low, high, self.options.n_points).tolist(), self.problem.best})

    def _extend(self, values: list[float], level: float, first: int) -> list[float]:
        """Add values beyond the grid until the outermost are rejected or lie at the edge of the range."""
        step = (values[-1] - values[0]) / self.options.n_points
        for side, wall in ((0, self.problem.low), (-1, self.problem.high)):
            stride = step
            while values[side] != wall and self.thrower.points[values[side]].accepted(level):
                new = self.thrower.within(values[side] + (stride if side else -stride))
                self._settle([new], level, most=4 * first)
                values = sorted([*values, new])
                stride *= 1.5
        return values

    def _segments(
        self, values: list[float], level: float, *, limit: int
    ) -> tuple[tuple[Segment, ...], tuple[Segment, ...], bool]:
        """Pieces of the interval, errors of their ends, and whether those are as small as wanted."""
        accepted = [self.thrower.points[value].accepted(level) for value in values]
        ends: list[tuple[float, float]] = []
        settled = True
        for (a, inside_a), (b, inside_b) in zip(
            zip(values, accepted, strict=True), list(zip(values, accepted, strict=True))[1:], strict=False
        ):
            if inside_a == inside_b:
                continue
            end = self._end(*((a, b) if inside_a else (b, a)), level, limit)
            settled &= end.settled
            ends.append((end.value, end.error))
        low: Segment = (values[0], 0.0) if values[0] == self.problem.low_edge else (None, None)
        high: Segment = (values[-1], 0.0) if values[-1] == self.problem.high_edge else (None, None)
        marks: list[Segment] = [low] if accepted[0] else []
        marks += ends
        marks += [high] if accepted[-1] else []
        pieces = [(marks[k], marks[k + 1]) for k in range(0, len(marks), 2)]
        return (
            tuple((begin[0], end[0]) for begin, end in pieces),
            tuple((begin[1], end[1]) for begin, end in pieces),
            settled,
        )

    def _end(self, inside: float, outside: float, level: float, limit: int) -> End:
        distance = max(abs(0.5 * (inside + outside) - self.problem.best), 0.5 * abs(outside - inside))
        return find_end(
            self.thrower,
            inside,
            outside,
            level,
            target=self.options.precision * distance,
            first=self._first(level),
            limit=limit,
        )

    def _asymptotic(self, values: list[float], level: float) -> Segment:
        """Ends that asymptotic critical values give, as far as they lie in the tested range."""
        critical = self.problem.asymptotic
        if critical is None:
            return None, None

        def excess(value: float) -> float:
            return self.observed(value) - critical(value, level)

        ends: list[float | None] = []
        for side, edge in ((values[0], self.problem.low_edge), (values[-1], self.problem.high_edge)):
            if side != self.problem.best and excess(side) > 0:
                ends.append(float(brentq(excess, self.problem.best, side, xtol=1e-6 * self.problem.scale)))
            else:
                ends.append(side if side == edge else None)
        return ends[0], ends[1]

    def _notes(
        self,
        cl: float,
        segments: tuple[Segment, ...],
        errors: tuple[Segment, ...],
        asymptotic: Segment,
        settled: bool,
    ) -> tuple[str, ...]:
        problem, notes = self.problem, []
        if segments[0][0] is None:
            notes.append(f"the {cl:.4g} interval of {problem.poi} has no lower end: {problem.low_reason}")
        if segments[-1][1] is None:
            notes.append(
                f"the {cl:.4g} interval of {problem.poi} has no upper end in its range, up to {problem.high:g}"
            )
        if problem.low_edge is not None and segments[0][0] == problem.low_edge:
            notes.append(f"{problem.poi} = {problem.low_edge:g}, the edge of the allowed range, is in the interval")
            if not self.thrower.points[problem.low].decided(cl + self.options.gamma):
                notes.append("whether the edge is in the interval is not settled by this many toys")
        if not settled:
            worst = max(error for pair in errors for error in pair if error is not None)
            notes.append(
                f"an end has a Monte Carlo error of {worst:.2g} after {self.thrower.n_toys} toys, more than asked for; "
                "raise max_toys or precision"
            )
        if self.thrower.n_failed:
            notes.append(
                f"{self.thrower.n_failed} of {self.thrower.n_failed + self.thrower.n_toys} toys had no valid fit and are left out"
            )
        if problem.asymptotic is not None:
            notes.append(
                _agreement(problem.best, (segments[0][0], segments[-1][1]), (errors[0][0], errors[-1][1]), asymptotic)
            )
        return tuple(notes)


def _agreement(best: float, toys: Segment, errors: Segment, asymptotic: Segment) -> str:
    """One sentence on asymptotic ends."""
    names = []
    for name, end, error, other in zip(("lower", "upper"), toys, errors, asymptotic, strict=True):
        if end is None or other is None or error is None:
            differs = end is not other
        else:
            differs = abs(end - other) > max(3.0 * error, DISAGREEMENT * abs(end - best))
        if differs:
            names.append(f"{name} end {'none' if other is None else format(other, '.4g')}")
    if not names:
        return "asymptotic critical values give the same ends within the Monte Carlo errors or 5 %"
    return f"asymptotic critical values disagree: {', '.join(names)}"


def neyman_interval(
    problem: NeymanProblem,
    *,
    cl: float = 0.95,
    rng: np.random.Generator,
    options: NeymanOptions | None = None,
    nuisances: Callable[[float], FloatArray] | FloatArray | None = None,
    mapper: Callable[..., Iterable[FloatArray]] = map,
) -> ToyInterval:
    """Neyman interval with likelihood-ratio ordering, by toys; see :class:`NeymanScan` for several levels from the same toys.

    Parameters
    ----------
    problem : NeymanProblem
        Data, test statistic and source of toys.
    cl : float, default 0.95
        Confidence level.
    rng : numpy.random.Generator
        Source of randomness.
    options : NeymanOptions, optional
        How toys are spent.
    nuisances : callable or array of shape (s, p), optional
        Further true parameters, of which the worst counts.
    mapper : callable
        ``map``, or the ``map`` of an executor.

    Returns
    -------
    ToyInterval
        Segments, Monte Carlo errors of their ends, critical values and p-values.

    Raises
    ------
    OptionError
        If `cl` is not between 0 and 1.
    FitFailed
        If a fit to the data is not valid, or all toys at a value failed.

    Notes
    -----
    Without nuisance parameters the interval covers exactly, up to the Monte Carlo error and over-coverage where outcomes are
    discrete. With them, toys at the profiled values make it approximate, as a rule very well; a worst case over a set of
    nuisances makes it conservative.
    """
    scan = NeymanScan(problem, rng=rng, options=options, nuisances=nuisances, mapper=mapper)
    return scan.interval(cl=cl)
