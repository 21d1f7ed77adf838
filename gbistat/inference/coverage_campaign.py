"""Campaigns of coverage: at each true value, toys of the user's own model and whether each method's interval holds the truth.

An interval holds a value if the method does not reject it there, so that one test at the truth answers what is asked, and no
ends are searched for. Two ways lead there:

- methods that compare ``tmu`` with a fixed number ("profile", and "ln2", the rule ``Delta ln L = ln 2`` that was quoted as
  95 %) are answered in batches by :func:`gbistat.inference.toys.toy_statistics`;
- any other method sees one toy after the other as a data set of its own, and does with it what it does with data: Asimov sets at
  the toy's own nuisances for "cls", toys at them for "feldman-cousins", "neyman" and "cls-toys". As soon as one such method
  is asked for, all methods see these data sets.
"""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import GbistatError, OptionError, ToyFileError, nearest
from gbistat.inference.campaign import CampaignPlan, Columns
from gbistat.inference.coverage import CoverageResult, coverage_of_flags
from gbistat.inference.limits import AsymptoticCLs
from gbistat.inference.neyman import NeymanScan
from gbistat.inference.neyman_problem import problem_of_toys
from gbistat.inference.neyman_results import NeymanOptions
from gbistat.inference.parallel import one_thread
from gbistat.inference.profile import threshold
from gbistat.inference.qstats import TestStatistics
from gbistat.inference.toy_campaign import true_parameters
from gbistat.inference.toy_information import hypothesis
from gbistat.inference.toy_limits import ToyCLs
from gbistat.inference.toy_results import TestSpec
from gbistat.inference.toy_singles import toy_mixture
from gbistat.inference.toys import ToyModel, toy_statistics

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gbistat.inference.campaign import Campaign
    from gbistat.inference.neyman_problem import Ordering
    from gbistat.likelihood.nll import NLL
    from gbistat.typing import FloatArray, Json

__all__ = ["METHODS", "CoverageWork", "coverage_results", "draw_likelihood", "plan_coverage"]

WORK = "coverage/1"
BATCHED = ("profile", "ln2")
LN2_CLAIM = 0.95
"""Level that the rule ``Delta ln L = ln 2`` was quoted for; it holds for 76.1 %."""

CHUNK_BATCHED, CHUNK_SINGLE = 1000, 20
"""Toys in a task: either takes seconds."""


def draw_likelihood(model: ToyModel, truth: FloatArray, *, rng: np.random.Generator) -> NLL:
    """Likelihood of one toy data set: events drawn from the pools, auxiliary measurements drawn too.

    Parameters
    ----------
    model : ToyModel
        Pools, parameters, constraints.
    truth : array of shape (p,)
        True parameters.
    rng : numpy.random.Generator
        Source of randomness.

    Raises
    ------
    ParameterError
        If the density is negative somewhere.
    """
    at = hypothesis(model, (), truth)
    mixtures = []
    for pool, reference in zip(model.pools, model.references, strict=True):
        rows = np.repeat(np.arange(pool.size), rng.poisson(pool.expected(truth)))
        mass = None if reference.events is None else reference.events.mass
        mixtures.append(toy_mixture(pool, rows, model.names, at.theta, truth, mass))
    constraints = []
    for constraint in model.nll.constraints:
        index = [model.names.index(name) for name in constraint.names]
        constraints.append(constraint.fluctuate(truth[index], rng=rng))
    return model.nll.replaced(mixtures, constraints)


class _Toy:
    """One toy data set, and what several methods share of its fits.

    Parameters
    ----------
    model : ToyModel
        Pools and options.
    nll : NLL
        Likelihood of the toy.
    value : float
        True value of the parameter of interest.
    options : NeymanOptions
        Toys that methods throw for this toy.
    rng : numpy.random.Generator
        Its source of randomness for these.
    """

    def __init__(
        self, model: ToyModel, nll: NLL, value: float, options: NeymanOptions, rng: np.random.Generator
    ) -> None:
        self.model, self.nll, self.value, self.options = model, nll, value, options
        # One child a method, at its place: another method beside it changes nothing.
        self._rngs = dict(zip(METHODS, rng.spawn(len(METHODS)), strict=True))
        self._scans: dict[Ordering, NeymanScan] = {}

    @cached_property
    def statistics(self) -> TestStatistics:
        """Fits to the toy."""
        return TestStatistics(self.nll, self.model.poi)

    @cached_property
    def asymptotic(self) -> AsymptoticCLs:
        """Asymptotic CLs of the toy."""
        return AsymptoticCLs(self.nll, self.model.references, best=self.statistics.profile.best)

    @cached_property
    def own_model(self) -> ToyModel:
        """Toys with this toy as data."""
        return ToyModel.from_nll(self.nll, self.model.references, options=self.model.options)

    @cached_property
    def toy_cls(self) -> ToyCLs:
        """CLs by toys of the toy."""
        return ToyCLs(self.own_model, rng=self._rngs["cls-toys"])

    def neyman(self, ordering: Ordering, method: str) -> NeymanScan:
        """Neyman construction for the toy."""
        if ordering not in self._scans:
            problem = problem_of_toys(self.own_model, statistic=ordering, best=self.statistics.profile.best)
            self._scans[ordering] = NeymanScan(problem, rng=self._rngs[method], options=self.options)
        return self._scans[ordering]


def _profile(toy: _Toy, cl: float) -> bool:
    return toy.statistics.tmu(toy.value) <= threshold(cl)


def _ln2(toy: _Toy, cl: float) -> bool:
    return toy.statistics.tmu(toy.value) <= 2.0 * math.log(2.0)


def _cls(toy: _Toy, cl: float) -> bool:
    return toy.asymptotic.point(toy.value).observed >= 1.0 - cl


def _cls_toys(toy: _Toy, cl: float) -> bool:
    return toy.toy_cls.scan([toy.value], toy.options.min_toys)[0].observed >= 1.0 - cl


def _feldman_cousins(toy: _Toy, cl: float) -> bool:
    return toy.neyman("tmu_tilde", "feldman-cousins").test(toy.value, cl=cl).p_value > 1.0 - cl


def _neyman(toy: _Toy, cl: float) -> bool:
    return toy.neyman("tmu", "neyman").test(toy.value, cl=cl).p_value > 1.0 - cl


METHODS: dict[str, Callable[[_Toy, float], bool]] = {
    "profile": _profile,
    "ln2": _ln2,
    "cls": _cls,
    "feldman-cousins": _feldman_cousins,
    "neyman": _neyman,
    "cls-toys": _cls_toys,
}
"""Methods by name: whether their interval or limit at a level holds the true value. New ones go to the end."""


@dataclass(frozen=True, eq=False)
class CoverageWork:
    """Work of a campaign of coverage.

    Parameters
    ----------
    model : ToyModel
        What is drawn and fitted.
    questions : tuple of (method, level)
        What is asked of each toy.
    options : NeymanOptions
        Toys that methods throw for each toy.
    """

    model: ToyModel
    questions: tuple[tuple[str, float], ...]
    options: NeymanOptions

    @property
    def batched(self) -> bool:
        """Whether all methods compare one statistic with numbers."""
        return all(method in BATCHED for method, _ in self.questions)

    def __call__(self, point: FloatArray, n_toys: int, *, rng: np.random.Generator) -> Columns:
        """Throw toys at a point.

        ``held`` has a column for each question: 1 if the truth was held, 0 if not, -1 if the method failed.
        """
        return self._batch(point, n_toys, rng) if self.batched else self._singly(point, n_toys, rng)

    def _batch(self, point: FloatArray, n_toys: int, rng: np.random.Generator) -> Columns:
        value = float(point[self.model.poi_index])
        results = toy_statistics(self.model, point, [TestSpec("tmu", value)], n_toys, rng=rng)
        q = results.statistics[:, :1]
        limits = [2.0 * math.log(2.0) if method == "ln2" else threshold(cl) for method, cl in self.questions]
        held = np.where(np.isnan(q), -1, q <= np.array(limits)).astype(np.int8)
        return {"held": held, "estimate": results.estimate}

    def _singly(self, point: FloatArray, n_toys: int, rng: np.random.Generator) -> Columns:
        held = np.empty((n_toys, len(self.questions)), dtype=np.int8)
        estimate = np.full(n_toys, np.nan)
        for row, child in enumerate(rng.spawn(n_toys)):
            data, own = child.spawn(2)
            nll = draw_likelihood(self.model, point, rng=data)
            toy = _Toy(self.model, nll, float(point[self.model.poi_index]), self.options, own)
            for column, (method, cl) in enumerate(self.questions):
                try:
                    held[row, column] = METHODS[method](toy, cl)
                except GbistatError:
                    held[row, column] = -1
            try:
                estimate[row] = toy.statistics.estimate
            except GbistatError:
                continue
        return {"held": held, "estimate": estimate}


def plan_coverage(
    model: ToyModel,
    values: Sequence[float],
    n_toys: int,
    methods: Sequence[str],
    cls: Sequence[float],
    *,
    seed: int,
    model_sha256: str,
    inner_toys: int = 1000,
    settings: Json | None = None,
) -> tuple[CampaignPlan, CoverageWork]:
    """Plan of a campaign of coverage, and its work.

    Parameters
    ----------
    model : ToyModel
        What is drawn and fitted.
    values : sequence of float
        True values of the parameter of interest; the true nuisances are those that fit the data there.
    n_toys : int
        Toys at each.
    methods : sequence of str
        Names in `METHODS`.
    cls : sequence of float
        Confidence levels.
    seed : int
        Of all random numbers.
    model_sha256 : str
        Hash of the model.
    inner_toys : int, default 1000
        Toys that a method by toys throws for each toy; ten times as many where the answer is not clear.
    settings : mapping, optional
        What else the toys depend on.

    Returns
    -------
    CampaignPlan, CoverageWork
        For :func:`gbistat.inference.campaign_run.run_campaign`.

    Raises
    ------
    OptionError
        If a method is unknown, a level not between 0 and 1, a value not finite, negative where a method does not allow it, or
        there twice.
    ParameterError, EventsError, FitFailed
        As :func:`gbistat.inference.toy_campaign.plan_toys`.
    """
    for method in methods:
        if method not in METHODS:
            raise OptionError(f"method {method!r} is unknown; {nearest(method, METHODS)}")
        if method not in ("profile", "ln2", "neyman") and min(values, default=0.0) < 0:
            raise OptionError(f"{method} tests values of 0 and above, not {min(values):g}")
    for cl in cls:
        threshold(cl)
    if not (methods and cls and values) or len(set(values)) < len(values):
        raise OptionError(
            f"methods {list(methods)}, levels {list(cls)}, values {list(values)}: give each at least once"
        )
    questions = [
        (method, float(cl)) for method in dict.fromkeys(methods) for cl in dict.fromkeys(cls) if method != "ln2"
    ]
    questions += [("ln2", LN2_CLAIM)] if "ln2" in methods else []
    points = np.array([true_parameters(model, float(value)) for value in values]) + 0.0
    with one_thread():
        for point in (points[0], points[-1]):
            model.pool_reports(point)
    # A fresh copy, as workers have it.
    fresh: ToyModel = pickle.loads(pickle.dumps(ToyModel(model.nll, model.references, replace(model.options))))
    options = NeymanOptions(min_toys=inner_toys, max_toys=10 * inner_toys)
    work = CoverageWork(fresh, tuple(questions), options)
    plan = CampaignPlan(
        WORK,
        model_sha256,
        model.names,
        points,
        (n_toys,) * len(points),
        seed,
        CHUNK_BATCHED if work.batched else CHUNK_SINGLE,
        {
            **(settings or {}),
            "poi": model.poi,
            "form": model.options.form,
            "inner_toys": inner_toys,
            "questions": [list(question) for question in questions],
        },
    )
    return plan, work


def coverage_results(campaign: Campaign) -> tuple[CoverageResult, ...]:
    """Coverage at each point of a campaign that has toys.

    Raises
    ------
    ToyFileError
        If the campaign is not one of :func:`plan_coverage`.
    """
    plan = campaign.plan
    if plan.work != WORK:
        raise ToyFileError(f"these are results of {plan.work!r}, not of {WORK!r}: no coverage")
    index = plan.parameters.index(plan.settings["poi"])
    results = []
    for point in range(plan.n_points):
        if not campaign.n_done(point):
            continue
        truth = float(plan.points[point, index])
        held, estimate = campaign.column("held", point), campaign.column("estimate", point)
        rows = []
        for column, (method, cl) in enumerate(plan.settings["questions"]):
            answered = held[:, column] >= 0
            failed = int((~answered).sum())
            flags = held[answered, column] == 1
            rows.append(coverage_of_flags(method, cl, truth, flags, estimates=estimate, n_failed=failed))
        results.append(CoverageResult(truth, tuple(rows)))
    return tuple(results)
