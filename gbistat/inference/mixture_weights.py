"""Weights of a mixture of known densities that make data most likely, with a proof of how good they are.

For columns ``A_ij = p_j(x_i) / p_0(x_i)`` in groups g of given total weight m_g,

    F(b) = sum_i ln sum_j A_ij b_j,     b >= 0,  sum_{j in g} b_j = m_g

is concave. With ``G_j = dF / db_j`` any feasible b' has ``F(b') - F(b) <= sum_g m_g max_{j in g} G_j - n``: the duality
gap, which is 0 at the maximum. F(b) plus the gap is therefore an upper bound of the supremum, whether or not the iteration
has converged, and that bound is what a test against a composite hypothesis may divide by.

Steps are those of sequential quadratic programming (Kim, Carbonetto, Stephens, Anitescu, arXiv:1806.01412), each quadratic
programme solved with an active set; where a step does not go up, some of expectation maximisation do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import EventsError, FitFailed, OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.typing import BoolArray, FloatArray, IntArray

__all__ = ["MixtureOptimum", "maximise_mixture"]

RIDGE = 1e-10
"""Added to the diagonal of the scaled Hessian: densities that are nearly the same make it singular."""


@dataclass(frozen=True, eq=False)
class MixtureOptimum:
    """Maximum of the log likelihood over the weights of a mixture.

    Parameters
    ----------
    weights : array of shape (J,)
        The weights b.
    value : float
        F(b), the log likelihood relative to p_0.
    gap : float
        Upper bound of what F could still gain.
    slopes : array of shape (J,)
        dF / db.
    iterations : int
        Steps taken.
    """

    weights: FloatArray
    value: float
    gap: float
    slopes: FloatArray
    iterations: int

    @property
    def upper_bound(self) -> float:
        """No weights have a larger log likelihood than this."""
        return self.value + self.gap


def maximise_mixture(
    log_columns: FloatArray,
    totals: Sequence[float] = (1.0,),
    groups: IntArray | None = None,
    *,
    start: FloatArray | None = None,
    tolerance: float = 1e-4,
    max_iterations: int = 200,
) -> MixtureOptimum:
    """Maximise the likelihood of a mixture over its weights.

    Parameters
    ----------
    log_columns : array of shape (J, n)
        ln p_j(x_i) / p_0(x_i); -inf where a density is 0.
    totals : sequence of float
        Total weight m_g of each group.
    groups : array of int, shape (J,), optional
        Group of each column; one group by default.
    start : array of shape (J,), optional
        Where to begin; even within groups by default.
    tolerance : float, default 1e-4
        Duality gap, in ln L, at which to stop.
    max_iterations : int, default 200
        Most steps.

    Returns
    -------
    MixtureOptimum
        Weights and gap.

    Raises
    ------
    EventsError
        If there are no events, a column has NaN or +inf, or no column with weight can produce some event.
    OptionError
        If groups and totals do not fit.
    FitFailed
        If the gap stays above 1 after `max_iterations`.
    """
    logs = np.atleast_2d(np.asarray(log_columns, dtype=np.float64))
    mass = np.asarray(totals, dtype=np.float64)
    member = np.zeros(len(logs), dtype=np.int64) if groups is None else np.asarray(groups, dtype=np.int64)
    used = _checked(logs, mass, member)
    columns, shift = _scaled(logs[used])
    problem = _Problem(columns, mass, member[used], shift)
    b = problem.even() if start is None else problem.feasible(np.asarray(start, dtype=np.float64)[used])
    b = problem.expectation_maximisation(b, steps=5)
    value, step = problem.value(b), 0
    slopes = problem.slopes(b)
    gap = problem.gap(slopes)
    while gap > tolerance and step < max_iterations:
        b, value = problem.step(b, value, slopes)
        slopes = problem.slopes(b)
        gap, step = problem.gap(slopes), step + 1
    if gap > 1.0:
        raise FitFailed(
            f"the weights of a mixture of {len(logs)} densities are not found: ln L may still gain {gap:.3g} after {step} steps; "
            "leave out densities that are nearly the same"
        )
    weights, gradient = np.zeros(len(logs)), np.zeros(len(logs))
    weights[used], gradient[used] = b, slopes
    return MixtureOptimum(weights, value, max(gap, 0.0), gradient, step)


class _Problem:
    """One concave programme; rows are scaled so that the largest of each is 1."""

    def __init__(self, columns: FloatArray, totals: FloatArray, groups: IntArray, shift: float) -> None:
        self.columns, self.shift = columns, float(shift)
        self.indicator = (groups[None, :] == np.unique(groups)[:, None]).astype(np.float64)
        self.totals = totals[np.unique(groups)]
        self.n = int(columns.shape[1])

    def even(self) -> FloatArray:
        return self.feasible(np.ones(len(self.columns)))

    def feasible(self, b: FloatArray) -> FloatArray:
        """Weights moved inside and scaled to the totals."""
        floor = 1e-6 * (self.totals / self.indicator.sum(axis=1)) @ self.indicator
        return self.scaled(np.maximum(b, floor))

    def scaled(self, b: FloatArray) -> FloatArray:
        result: FloatArray = b * ((self.totals / (self.indicator @ b)) @ self.indicator)
        return result

    def value(self, b: FloatArray) -> float:
        with np.errstate(divide="ignore"):
            total: float = np.log(b @ self.columns).sum()
        return float(total + self.shift)

    def slopes(self, b: FloatArray) -> FloatArray:
        result: FloatArray = self.columns @ (1.0 / (b @ self.columns))
        return result

    def gap(self, slopes: FloatArray) -> float:
        highest = np.where(self.indicator > 0, slopes, -np.inf).max(axis=1)
        return float(self.totals @ highest) - self.n

    def expectation_maximisation(self, b: FloatArray, *, steps: int) -> FloatArray:
        for _ in range(steps):
            b = self.scaled(b * self.slopes(b))
        return b

    def step(self, b: FloatArray, value: float, slopes: FloatArray) -> tuple[FloatArray, float]:
        """One step up: Newton's if it goes up, otherwise that of expectation maximisation."""
        goal = self.newton_goal(b, slopes)
        if goal is not None:
            rise = float(slopes @ (goal - b))
            length = 1.0
            while rise > 0 and length > 1e-4:
                trial = b + length * (goal - b)
                reached = self.value(trial)
                if reached >= value + 1e-3 * length * rise:
                    return trial, reached
                length *= 0.5
        up = self.expectation_maximisation(self.feasible(b), steps=10)
        return up, self.value(up)

    def newton_goal(self, b: FloatArray, slopes: FloatArray) -> FloatArray | None:
        """Maximum of the quadratic model over the feasible set; None if its active set is not found."""
        rows = self.columns / (b @ self.columns)
        hessian = rows @ rows.T
        scale = np.sqrt(np.diag(hessian))
        curvature = hessian / np.outer(scale, scale) + RIDGE * np.eye(len(b))
        goal = _quadratic_goal(curvature, slopes / scale, b * scale, self.indicator / scale, scale)
        return None if goal is None else self.scaled(goal)


def _quadratic_goal(
    hessian: FloatArray, slopes: FloatArray, start: FloatArray, equalities: FloatArray, scale: FloatArray
) -> FloatArray | None:
    """Maximise ``slopes @ d - d @ hessian @ d / 2`` with ``equalities @ d = 0`` and ``start + d >= 0``, by a primal active set.

    Nocedal and Wright, Numerical Optimization (2006), algorithm 16.3. Returns ``(start + d) / scale``.
    """
    x, free = start.copy(), start > 0
    for _ in range(10 * len(x)):
        index = np.flatnonzero(free)
        residual = slopes - hessian @ (x - start)
        c = equalities[:, index]
        size = len(index)
        matrix = np.zeros((size + len(c), size + len(c)))
        matrix[:size, :size], matrix[:size, size:], matrix[size:, :size] = hessian[np.ix_(index, index)], c.T, c
        try:
            solution = np.linalg.solve(matrix, np.r_[residual[index], np.zeros(len(c))])
        except np.linalg.LinAlgError:
            return None
        step, multipliers = solution[:size], solution[size:]
        falling = step < 0
        ratios = np.where(falling, x[index] / np.where(falling, -step, 1.0), np.inf)
        length = min(1.0, float(ratios.min(initial=np.inf)))
        x[index] += length * step
        if length < 1.0:
            blocking = index[int(np.argmin(ratios))]
            x[blocking], free[blocking] = 0.0, False
            continue
        reduced = slopes - hessian @ (x - start) - multipliers @ equalities
        reduced[free] = -np.inf
        best = int(np.argmax(reduced))
        if free.all() or reduced[best] <= 1e-9 * max(1.0, float(np.abs(slopes).max())):
            goal: FloatArray = np.maximum(x, 0.0) / scale
            return goal
        free[best] = True
    return None


def _checked(logs: FloatArray, totals: FloatArray, groups: IntArray) -> BoolArray:
    """Columns whose group has weight, as a mask."""
    if logs.ndim != 2 or logs.shape[1] == 0:
        raise EventsError(f"densities of shape {logs.shape}: there are no events to fit weights to")
    if groups.shape != (len(logs),) or groups.min() < 0 or groups.max() >= totals.size:
        raise OptionError(f"{len(logs)} densities need a group each, below the {totals.size} totals that are given")
    if not np.all(np.isfinite(totals)) or np.any(totals < 0) or totals.sum() <= 0:
        raise OptionError(f"totals {totals.tolist()} must not be negative, and some must be above 0")
    if np.isnan(logs).any() or np.isposinf(logs).any():
        raise EventsError("a density is NaN or infinite relative to the background; leave out events outside its range")
    used = totals[groups] > 0
    missing = [g for g in range(totals.size) if totals[g] > 0 and not np.any(groups == g)]
    if missing:
        raise OptionError(f"group {missing[0]} has weight {totals[missing[0]]:g} and no density")
    empty = int(np.sum(np.isneginf(logs[used].max(axis=0))))
    if empty:
        raise EventsError(
            f"{empty} of {logs.shape[1]} events have density 0 in every component; they belong to no mixture"
        )
    mask: BoolArray = used
    return mask


def _scaled(logs: FloatArray) -> tuple[FloatArray, float]:
    """Columns with the largest of each event at 1, and the sum of the logs taken out."""
    top = logs.max(axis=0)
    return np.exp(logs - top), math.fsum(top)
