"""Intervals on the parameter of interest by a named method; see :mod:`gbistat.inference.method_options`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import OptionError
from gbistat.inference.limits import AsymptoticCLs
from gbistat.inference.neyman import NeymanScan
from gbistat.inference.neyman_problem import problem_of_toys
from gbistat.inference.neyman_results import ToyInterval
from gbistat.inference.parallel import mapping
from gbistat.inference.results import IntervalResult
from gbistat.inference.toy_discovery import toy_p0
from gbistat.inference.toy_limit_results import ToyBudget
from gbistat.inference.toy_limits import ToyCLs
from gbistat.inference.toys import ToyModel, ToyOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.fit.build import Analysis
    from gbistat.fit.result import FitResult
    from gbistat.inference.method_options import MethodOptions
    from gbistat.inference.pools import PoolReport
    from gbistat.inference.toy_limit_results import ToyLimit, ToyPValue
    from gbistat.likelihood.reference import Reference
    from gbistat.typing import Json

__all__ = ["MethodResult", "intervals_by_method"]


@dataclass(frozen=True, eq=False)
class MethodResult:
    """Intervals on the parameter of interest by one method, and what its toys say beside.

    Parameters
    ----------
    options : MethodOptions
        The method.
    intervals : tuple of IntervalResult
        One a level, in the order asked for; of type ToyInterval from the Neyman construction.
    limit : ToyLimit or None
        Of ``cls-toys`` at the highest level.
    p0 : ToyPValue or None
        Local p-value of background only by toys.
    pools : tuple of PoolReport
        What the pools are worth, one a data term; empty without toys.
    notes : tuple of str
        What a reader must know.
    """

    options: MethodOptions
    intervals: tuple[IntervalResult, ...]
    limit: ToyLimit | None = None
    p0: ToyPValue | None = None
    pools: tuple[PoolReport, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def n_toys(self) -> int:
        """Toys behind intervals, limit and p-value."""
        scans = [interval.n_toys for interval in self.intervals if isinstance(interval, ToyInterval)]
        others = [part.n_toys for part in (self.limit, self.p0) if part is not None]
        return max(scans, default=0) + sum(others)

    def to_dict(self) -> Json:
        """Plain numbers, for JSON: enough to repeat and to judge the toys."""
        return {
            "method": self.options.name,
            "seed": self.options.seed,
            "form": self.options.form,
            "precision": self.options.precision,
            "n_toys": self.n_toys,
            "intervals": [interval.to_dict() for interval in self.intervals],
            "notes": list(self.notes),
            "limit": None if self.limit is None else self.limit.to_dict(),
            "significance": None if self.p0 is None else self.p0.to_dict(),
            "pools": [
                {"kind": pool.kind, "n_points": pool.n_points, "effective_size": pool.background_size, "shift": pool.shift,
                 "error": pool.error}
                for pool in self.pools
            ],
        }  # fmt: skip


def intervals_by_method(
    analysis: Analysis,
    levels: Sequence[float],
    options: MethodOptions,
    *,
    best: FitResult | None = None,
    references: tuple[Reference, ...] | None = None,
    significance: bool = True,
) -> MethodResult:
    """Intervals on the parameter of interest of an analysis, by a method other than the profile likelihood.

    Parameters
    ----------
    analysis : Analysis
        Likelihood of a window.
    levels : sequence of float
        Confidence levels.
    options : MethodOptions
        Which method, and how many toys.
    best : FitResult, optional
        The free fit, if it is at hand.
    references : tuple of Reference, optional
        For Asimov data of ``cls``; by default that of the analysis.
    significance : bool, default True
        Whether methods by toys also give the local p-value by toys.

    Raises
    ------
    OptionError
        If the method is "profile" (:func:`gbistat.inference.profile.profile_interval`).
    ModelError
        If there are no reference events to draw toys from, or the compressed form does not suit the model.
    FitFailed, ScanRangeError
        As :class:`gbistat.inference.neyman.NeymanScan`, :class:`gbistat.inference.toy_limits.ToyCLs` and
        :class:`gbistat.inference.limits.AsymptoticCLs`.

    Notes
    -----
    CLs intervals begin at 0 by construction and hold the truth more often than their level says where the data cannot tell a
    signal from none (A. L. Read, J. Phys. G 28 (2002) 2693): that is their purpose.
    """
    if options.name == "profile":
        raise OptionError("profile intervals need no toys; use gbistat.profile_interval")
    if options.name == "cls":
        return _asymptotic(analysis, levels, options, best, references)
    model = ToyModel.from_analysis(analysis, options=ToyOptions(form=options.form))
    first, second = np.random.default_rng(options.seed).spawn(2)
    intervals: tuple[IntervalResult, ...]
    limit = None
    if options.name == "cls-toys":
        limits = _toy_limits(model, levels, options, rng=first)
        intervals = tuple(_up_to(found.observed, model.poi, found.cl, "cls-toys", found.notes) for found in limits)
        limit = max(limits, key=lambda found: found.cl)
    else:
        intervals = _construction(model, levels, options, rng=first)
    p0 = toy_p0(model, budget=ToyBudget(precision=max(options.precision, 0.02)), rng=second) if significance else None
    estimate = intervals[0].best if math.isfinite(intervals[0].best) else 0.0
    pools = model.pool_reports(model.profiled(max(estimate, 0.0)))
    notes = [note for interval in intervals for note in interval.notes] + list(p0.notes if p0 else ())
    return MethodResult(options, intervals, limit, p0, pools, tuple(dict.fromkeys(notes)))


def _construction(
    model: ToyModel, levels: Sequence[float], options: MethodOptions, *, rng: np.random.Generator
) -> tuple[IntervalResult, ...]:
    problem = problem_of_toys(model, statistic="tmu_tilde" if options.name == "feldman-cousins" else "tmu")
    with mapping(options.jobs) as mapper:
        scan = NeymanScan(problem, rng=rng, options=options.neyman_options(), mapper=mapper)
        return tuple(scan.interval(cl=level) for level in levels)


def _toy_limits(
    model: ToyModel, levels: Sequence[float], options: MethodOptions, *, rng: np.random.Generator
) -> list[ToyLimit]:
    budget = options.budget()
    with mapping(options.jobs) as mapper:
        cls = ToyCLs(model, rng=rng, mapper=mapper)
        # Precision is for the limit that is quoted; a lower level makes do with the least number of toys.
        rough = replace(budget, max_toys=budget.min_toys)
        return [cls.limit(cl=level, budget=budget if level == max(levels) else rough) for level in levels]


def _asymptotic(
    analysis: Analysis,
    levels: Sequence[float],
    options: MethodOptions,
    best: FitResult | None,
    references: tuple[Reference, ...] | None,
) -> MethodResult:
    if references is None:
        if analysis.reference is None:
            raise OptionError(
                "CLs needs Asimov data, and there are no reference events in the window; give the references"
            )
        references = (analysis.reference,)
    cls = AsymptoticCLs(analysis.nll, references, best=best)
    limits = [cls.limit(cl=level) for level in levels]
    intervals = tuple(_up_to(found.observed, found.poi, found.cl, "cls", found.notes) for found in limits)
    return MethodResult(options, intervals, notes=tuple(dict.fromkeys(n for found in limits for n in found.notes)))


def _up_to(limit: float, poi: str, cl: float, method: str, notes: tuple[str, ...]) -> IntervalResult:
    """Limit as an interval: qmu_tilde tests values of 0 and above."""
    return IntervalResult(poi, cl, ((0.0, limit),), math.nan, math.nan, method, notes)
