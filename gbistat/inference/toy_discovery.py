"""Local significance of a signal from toys."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from scipy.special import betaincinv

from gbistat.errors import FitFailed
from gbistat.inference.asymptotics import p_from_q0, z_from_p
from gbistat.inference.toy_limit_results import ToyBudget, ToyPValue, exceeding, failure_notes, fraction
from gbistat.inference.toy_results import TestSpec, concatenate_toys
from gbistat.inference.toys import data_statistics, toy_statistics

if TYPE_CHECKING:
    import numpy as np

    from gbistat.inference.toy_results import ToyResults
    from gbistat.inference.toys import ToyModel

__all__ = ["toy_p0"]


def toy_p0(model: ToyModel, *, budget: ToyBudget | None = None, rng: np.random.Generator) -> ToyPValue:
    """Local p-value of background only: fraction of background-only toys whose q0 is at least that of the data.

    Parameters
    ----------
    model : ToyModel
        With the likelihood of the observed data.
    budget : ToyBudget, optional
        Toys are added until the relative error of p is below `precision`, or there are `max_toys`.
    rng : numpy.random.Generator
        Source of randomness.

    Raises
    ------
    FitFailed
        If a fit to the data fails, or all toys fail.

    Notes
    -----
    The toys are thrown at the nuisance parameters that fit the data best without signal. Data with a negative estimate
    have q0 = 0, and p = 1: every toy is at least as extreme. The asymptotic formula gives 1/2 there.
    """
    plan = budget or ToyBudget()
    test = TestSpec("q0")
    observed = float(data_statistics(model, [test])[0])
    truth = model.profiled(0.0)
    parts: list[ToyResults] = []
    while True:
        thrown = sum(map(len, parts))
        more = plan.min_toys if not thrown else min(thrown, plan.max_toys - thrown)
        parts.append(toy_statistics(model, truth, [test], more, rng=rng))
        toys = concatenate_toys(parts)
        above, n = exceeding(toys.statistic(test), observed)
        if n == 0:
            raise FitFailed(f"all {len(toys)} background-only toys failed: {dict(toys.counts_by_status())}")
        p, error = fraction(above, n, toys.n_failed)
        if len(toys) >= plan.max_toys or (above > 0 and error <= plan.precision * p):
            break
    asymptotic = p_from_q0(observed) if observed > 0 else 0.5
    # Posterior quantile for a flat prior: never 0, and 3 / n where no toy is as extreme.
    highest = float(betaincinv(above + 1.0, n - above + 1e-9, 0.95)) if above < n else 1.0
    z = z_from_p(p) if p > 0 else math.inf
    slope = math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi) if p > 0 else 0.0
    result = ToyPValue(
        p, error, z, error / slope if slope > 0 else math.inf, z_from_p(highest), len(toys), toys.n_failed, observed, asymptotic
    )  # fmt: skip
    notes = failure_notes(toys.n_failed, len(toys))
    if observed > 0 and not result.agrees:
        notes.append(
            f"the asymptotic p-value {asymptotic:.3g} does not agree with the toys: use {p:.3g} +- {error:.2g}"
        )
    if above == 0:
        notes.append(f"none of {n} toys is as extreme as the data: p is below {highest:.2g} at 95 % confidence")
    return replace(result, notes=tuple(notes))
