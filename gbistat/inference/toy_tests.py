"""Test statistics of many toys, from their free and conditional fits (arXiv:1007.1727, section 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from gbistat.inference.toy_fits import FAILED, FITTED, UNBOUNDED
from gbistat.inference.toy_results import FAILED_CONDITIONAL, FAILED_FREE, OK, RUNAWAY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.inference.toy_fits import BatchFit
    from gbistat.inference.toy_results import TestSpec
    from gbistat.typing import BoolArray, FloatArray, IntArray

__all__ = ["Answers", "Toys", "answer"]

BETTER = 1e-6
"""How far (in nll) below the free fit a conditional fit may fall before the free fit is done again from there."""


class Toys(Protocol):
    """Likelihoods of n toys that can be fitted."""

    def fit(self, start: FloatArray, free: BoolArray, *, column: int | None, rows: IntArray | None) -> BatchFit:
        """Fit some of the toys (all for None) from a start of shape (n, p)."""


@dataclass(frozen=True, eq=False)
class Answers:
    """Statistics (n, t), free fits (n, p), errors of the parameter of interest (n,) and status codes (n,)."""

    statistics: FloatArray
    theta: FloatArray
    error: FloatArray
    status: IntArray


def answer(toys: Toys, tests: Sequence[TestSpec], start: FloatArray, free: BoolArray, poi: int, count: int) -> Answers:
    """Evaluate tests that share one signal hypothesis on all toys.

    Parameters
    ----------
    toys : Toys
        Of `count` toys.
    tests : sequence of TestSpec
        The t tests.
    start : array of shape (p,)
        Where fits begin; parameters that are not free keep these values.
    free : array of bool, shape (p,)
        Parameters of the free fit.
    poi : int
        Position of the parameter of interest.
    count : int
        Number of toys.

    Returns
    -------
    Answers
        NaN statistics where a fit failed.
    """
    best = toys.fit(np.tile(start, (count, 1)), free, column=poi, rows=None)
    theta, value, column = best.theta, best.value, best.covariance_column
    held = free.copy()
    held[poi] = False
    conditional: dict[float, FloatArray] = {}
    for tested in sorted({x for test in tests for x in _values(test)}):
        estimate = _estimate(theta, best.status, poi)
        rows = np.flatnonzero(_needed(tests, tested, estimate) & (best.status != FAILED))
        conditional[tested] = np.full(count, np.nan)
        if rows.size == 0:
            continue
        begin = _begin(theta[rows], column[rows], best.status[rows], start, tested, poi, held)
        fitted = toys.fit(begin, held, column=None, rows=rows)
        result = conditional[tested]
        result[rows] = np.where(fitted.status == FITTED, fitted.value, np.nan)
        lower = np.flatnonzero((result[rows] < value[rows] - BETTER) & (best.status[rows] == FITTED))
        if lower.size:
            again = toys.fit(fitted.theta[lower], free, column=poi, rows=rows[lower])
            found = (again.status == FITTED) & (again.value < value[rows[lower]])
            place = rows[lower[found]]
            theta[place], value[place], column[place] = (
                again.theta[found],
                again.value[found],
                again.covariance_column[found],
            )
    estimate = _estimate(theta, best.status, poi)
    statistics = np.empty((count, len(tests)))
    for position, test in enumerate(tests):
        statistics[:, position] = _statistic(test, estimate, value, conditional)
    statistics[best.status == FAILED] = np.nan
    theta[best.status == FAILED] = np.nan
    status = np.full(count, OK, dtype=np.int64)
    status[best.status == UNBOUNDED] = RUNAWAY
    status[np.isnan(statistics).any(axis=1)] = FAILED_CONDITIONAL
    status[best.status == FAILED] = FAILED_FREE
    error = np.sqrt(np.maximum(column[:, poi], 0.0))
    error[best.status != FITTED] = np.nan
    theta[best.status == UNBOUNDED, poi] = -np.inf
    return Answers(statistics, theta, error, status)


def _estimate(theta: FloatArray, status: IntArray, poi: int) -> FloatArray:
    return np.where(status == UNBOUNDED, -np.inf, theta[:, poi])


def _values(test: TestSpec) -> tuple[float, ...]:
    return (test.value, 0.0) if test.statistic.endswith("tilde") else (test.value,)


def _needed(tests: Sequence[TestSpec], tested: float, estimate: FloatArray) -> BoolArray:
    """Toys whose statistics need the conditional fit at a value."""
    needed = np.zeros(estimate.size, dtype=bool)
    for test in tests:
        if test.value == tested:
            if test.statistic in ("qmu", "qmu_tilde"):
                needed |= estimate <= tested
            elif test.statistic == "q0":
                needed |= estimate >= 0.0
            else:
                needed |= True
        if tested == 0.0 and test.statistic.endswith("tilde"):
            needed |= estimate < 0.0
    return needed


def _begin(
    theta: FloatArray,
    column: FloatArray,
    status: IntArray,
    start: FloatArray,
    tested: float,
    poi: int,
    free: BoolArray,
) -> FloatArray:
    """Start of conditional fits: the free fit, moved along the ridge of the likelihood."""
    begin = theta.copy()
    variance = column[:, poi]
    good = (status == FITTED) & (variance > 0)
    slope = np.where(good, tested - theta[:, poi], 0.0) / np.where(good, variance, 1.0)
    begin[:, free] += column[:, free] * slope[:, None]
    begin[~good] = start
    begin[:, poi] = tested
    return begin


def _statistic(
    test: TestSpec, estimate: FloatArray, best: FloatArray, conditional: dict[float, FloatArray]
) -> FloatArray:
    at = conditional[test.value]
    with np.errstate(invalid="ignore"):
        base = np.where(estimate < 0.0, conditional[0.0], best) if test.statistic.endswith("tilde") else best
        q = np.maximum(2.0 * (at - base), 0.0)
    if test.statistic in ("qmu", "qmu_tilde"):
        return np.where(estimate > test.value, 0.0, q)
    if test.statistic == "q0":
        return np.where(estimate < 0.0, 0.0, q)
    return q
