"""Campaigns of toys of a model: one set of toys at each of several true values, with the tests that intervals and limits need.

At each value of the parameter of interest the toys answer ``tmu_tilde`` (Feldman-Cousins ordering; ``tmu`` below 0),
``qmu_tilde`` (CLs and CLs+b) and ``q0`` at that value; those at 0 answer ``qmu_tilde`` at every other value too, which is what
CLb and expected bands are made of.
"""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat.errors import OptionError, ToyFileError
from gbistat.fit.minimize import fit
from gbistat.inference.campaign import CHUNK_SIZE, CampaignPlan, Columns
from gbistat.inference.parallel import one_thread
from gbistat.inference.toy_moments import may_compile
from gbistat.inference.toy_results import TestSpec, ToyResults
from gbistat.inference.toys import ToyModel, toy_statistics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gbistat.inference.campaign import Campaign
    from gbistat.typing import FloatArray, Json

__all__ = ["WORK", "ToyWork", "campaign_toys", "plan_toys", "standard_tests", "true_parameters"]

WORK = "toy-statistics/1"
ROWS = ("n_events", "estimates", "errors", "values", "status")
FINENESS = 1e-4
"""Step, in errors of a parameter, to which true values are rounded."""


@dataclass(frozen=True, eq=False)
class ToyWork:
    """Work of a campaign: toys of a model at a point, and the tests that belong to the point.

    Parameters
    ----------
    model : ToyModel
        What is drawn and fitted.
    tests : mapping of bytes to tuple of TestSpec
        Tests by the bytes of the point.
    """

    model: ToyModel
    tests: Mapping[bytes, tuple[TestSpec, ...]]

    def __call__(self, point: FloatArray, n_toys: int, *, rng: np.random.Generator) -> Columns:
        """Throw and evaluate toys."""
        tests = self.tests[point.tobytes()]
        results = toy_statistics(self.model, point, tests, n_toys, rng=rng)
        columns: Columns = {name: getattr(results, name) for name in ROWS}
        return columns | {_statistics(len(tests)): results.statistics}


def _statistics(count: int) -> str:
    """Column of the statistics: points with other numbers of tests have other columns."""
    return f"statistics_{count}"


def standard_tests(values: Sequence[float]) -> list[tuple[TestSpec, ...]]:
    """Tests for toys thrown at each of these values of the parameter of interest.

    Parameters
    ----------
    values : sequence of float
        True values.

    Returns
    -------
    list of tuple of TestSpec
        For each value; see the beginning of this module.
    """
    tests = []
    for value in values:
        own = [TestSpec("tmu", value)] if value < 0 else [TestSpec("tmu_tilde", value), TestSpec("qmu_tilde", value)]
        own.append(TestSpec("q0"))
        if value == 0.0:
            own += [TestSpec("qmu_tilde", other) for other in values if other > 0]
        tests.append(tuple(own))
    return tests


def true_parameters(model: ToyModel, value: float) -> FloatArray:
    """Parameters for toys at a value of the one of interest: nuisances fitted to the data there, rounded, shape (p,).

    They are rounded to a ten-thousandth of their errors, so that jobs on different processors agree on them to the last digit.

    Raises
    ------
    ParameterError
        If the value is outside the parameter's range.
    FitFailed
        If the fit is not valid.
    """
    parameters = model.nll.parameters
    parameters[model.poi_index].check(value)
    with one_thread():
        found = fit(model.nll, fixed={model.poi: value}).raise_if_invalid()
    theta = found.values.copy()
    for i, parameter in enumerate(parameters):
        error = found.error(parameter.name)
        if i != model.poi_index and not parameter.fixed and math.isfinite(error) and error > 0:
            digits = -math.floor(math.log10(FINENESS * error))
            theta[i] = np.clip(round(float(theta[i]), digits), parameter.low, parameter.high)
    theta[model.poi_index] = value
    return theta


def plan_toys(
    model: ToyModel,
    values: Sequence[float],
    n_toys: int,
    *,
    seed: int,
    model_sha256: str,
    tests: Sequence[tuple[TestSpec, ...]] | None = None,
    chunk_size: int = CHUNK_SIZE,
    settings: Json | None = None,
) -> tuple[CampaignPlan, ToyWork]:
    """Plan of a campaign of toys, and its work.

    Parameters
    ----------
    model : ToyModel
        What is drawn and fitted.
    values : sequence of float
        True values of the parameter of interest; nuisances are fitted to the data at each.
    n_toys : int
        Toys at each value.
    seed : int
        Of all random numbers.
    model_sha256 : str
        Hash of the model.
    tests : sequence of tuple of TestSpec, optional
        For each value; :func:`standard_tests` by default.
    chunk_size : int, default 1000
        Toys in a task.
    settings : mapping, optional
        What else the toys depend on: the window, a hash of the events.

    Returns
    -------
    CampaignPlan, ToyWork
        For :func:`gbistat.inference.campaign_run.run_campaign`.

    Raises
    ------
    OptionError
        If there are no values or toys, a value is there twice, or the tests do not fit.
    ParameterError
        If a value is outside the range of the parameter.
    EventsError
        If the pool is too small for the lowest or the highest value.
    FitFailed
        If a fit to the data fails.
    """
    if len(set(values)) < len(values) or not values:
        raise OptionError(f"values {list(values)} of {model.poi}: give each once, and at least one")
    asked = standard_tests(values) if tests is None else list(tests)
    if len(asked) != len(values) or len({tuple(dict.fromkeys(t.fixed for t in several)) for several in asked}) > 1:
        raise OptionError("tests must be given for each value, and hold the same parameters at all of them")
    points = np.array([true_parameters(model, float(value)) for value in values]) + 0.0
    with one_thread():
        for point in (points[0], points[-1]):
            model.pool_reports(point)
    compiled = model.options.form == "exact" and may_compile(model.options.compiled)
    options = replace(model.options, compiled=compiled)
    plan = CampaignPlan(
        WORK,
        model_sha256,
        model.names,
        points,
        (n_toys,) * len(points),
        seed,
        chunk_size,
        {
            **(settings or {}),
            "poi": model.poi,
            "form": options.form,
            "information_loss": options.information_loss,
            "max_cells": options.max_cells,
            "compiled": options.compiled,
            "tests": [[_test_to_json(test) for test in several] for several in asked],
        },
    )
    # A fresh copy, as workers have it: nothing in it was computed with more than one thread.
    fresh: ToyModel = pickle.loads(pickle.dumps(ToyModel(model.nll, model.references, options)))
    return plan, ToyWork(fresh, {point.tobytes(): several for point, several in zip(plan.points, asked, strict=True)})


def campaign_toys(campaign: Campaign, point: int) -> ToyResults:
    """Toys done at one point of a campaign, as :func:`gbistat.inference.toys.toy_statistics` returns them.

    Raises
    ------
    CampaignError
        If none is done there.
    ToyFileError
        If the campaign is not one of :func:`plan_toys`.
    """
    plan = campaign.plan
    if plan.work != WORK:
        raise ToyFileError(f"these are results of {plan.work!r}, not of {WORK!r}: no toys of a model")
    tests = tuple(_test_from_json(test) for test in plan.settings["tests"][point])
    columns: dict[str, Any] = {name: campaign.column(name, point) for name in ROWS}
    return ToyResults(
        names=plan.parameters,
        poi=plan.settings["poi"],
        theta_true=plan.points[point],
        tests=tests,
        statistics=campaign.column(_statistics(len(tests)), point),
        form=plan.settings["form"],
        **columns,
    )


def _test_to_json(test: TestSpec) -> Json:
    data: Json = {"statistic": test.statistic, "value": test.value}
    return data | {"fixed": [list(pair) for pair in test.fixed]} if test.fixed else data


def _test_from_json(data: Json) -> TestSpec:
    fixed = tuple((str(name), float(value)) for name, value in data.get("fixed", ()))
    return TestSpec(data["statistic"], data["value"], fixed)
