r"""ROC curve and the area under it from weights (arXiv:2305.16774, Eq. 6).

The area is the probability that a data event has a larger weight than a generated one, ties counted half: the
Mann-Whitney statistic. Without its null width it says nothing: a missing tail of 1.3 % leaves it at 0.506.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import rankdata

from gbistat.errors import EventsError

if TYPE_CHECKING:
    from gbistat.diagnostics.weights import Scores
    from gbistat.typing import FloatArray, Json

__all__ = ["AreaUnderCurve", "RocCurve", "area_under_roc", "null_width", "roc_curve", "weighted_area"]

KS_95 = 1.3581
"""95 % quantile of the Kolmogorov distribution."""


@dataclass(frozen=True)
class AreaUnderCurve:
    """Area under the ROC curve.

    Parameters
    ----------
    value : float
        The area, 0.5 if the classifier tells nothing.
    null_width : float
        Its standard deviation if data and generated events are alike.
    error : float
        Its standard error as an estimate of this classifier's area (DeLong's).
    """

    value: float
    null_width: float
    error: float

    @property
    def pull(self) -> float:
        """Distance to 1/2 in units of the null width."""
        return (self.value - 0.5) / self.null_width

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "value": self.value,
            "se_null": self.null_width,
            "pull": self.pull,
            "ci95": [self.value - 1.96 * self.error, self.value + 1.96 * self.error],
        }


def null_width(n_data: int, n_generated: int) -> float:
    """Standard deviation of the area for exchangeable events without ties.

    Examples
    --------
    >>> round(null_width(50_000, 50_000), 5)
    0.00183
    """
    return math.sqrt((n_data + n_generated + 1) / (12.0 * n_data * n_generated))


def area_under_roc(scores: Scores) -> AreaUnderCurve:
    """Area under the ROC curve; over several folds, the mean of their areas.

    Parameters
    ----------
    scores : Scores
        Of test events.
    """
    values, nulls, variances, shares = [], [], [], []
    for k in np.unique(scores.fold):
        rows = scores.fold == k
        data, generated = scores.log_weight[rows & scores.is_data], scores.log_weight[rows & ~scores.is_data]
        value, variance = _delong(data, generated)
        values.append(value)
        variances.append(variance)
        nulls.append(null_width(data.size, generated.size) ** 2)
        shares.append(rows.mean())
    square = np.square(shares)
    return AreaUnderCurve(
        float(np.dot(shares, values)),
        math.sqrt(float(np.dot(square, nulls))),
        math.sqrt(float(np.dot(square, variances))),
    )


def weighted_area(
    data: FloatArray, generated: FloatArray, data_weights: FloatArray, generated_weights: FloatArray
) -> float:
    """Area under the ROC curve of events that have weights of their own.

    Parameters
    ----------
    data, generated : array of shape (n,)
        Scores.
    data_weights, generated_weights : array of shape (n,)
        Event weights.

    Raises
    ------
    EventsError
        If the weights of a class sum to 0 or less.
    """
    totals = float(data_weights.sum()), float(generated_weights.sum())
    for name, total in zip(("data", "generated"), totals, strict=True):
        if not total > 0:
            raise EventsError(f"the weights of the {name} events sum to {total:g}; they must sum to a positive number")
    order = np.argsort(generated, kind="stable")
    cumulative = np.concatenate([[0.0], np.cumsum(generated_weights[order])])
    below = cumulative[np.searchsorted(generated[order], data, side="left")]
    upto = cumulative[np.searchsorted(generated[order], data, side="right")]
    return float(np.sum(data_weights * 0.5 * (below + upto))) / (totals[0] * totals[1])


@dataclass(frozen=True, eq=False)
class RocCurve:
    """Share of data above a weight against the share of generated events above it.

    Parameters
    ----------
    generated, data : array of shape (n,)
        Shares, both from 0 to 1.
    band : float
        Half-width in which 95 % of curves of exchangeable events lie everywhere (Kolmogorov and Smirnov).
    """

    generated: FloatArray
    data: FloatArray
    band: float


def roc_curve(scores: Scores, *, points: int = 500) -> RocCurve:
    """ROC curve at evenly spread shares of generated events, averaged over folds.

    Parameters
    ----------
    scores : Scores
        Of test events.
    points : int, default 500
        Number of points.
    """
    grid = np.linspace(0.0, 1.0, points)
    curve = np.zeros(points)
    for k in np.unique(scores.fold):
        rows = scores.fold == k
        weight, label = scores.log_weight[rows], scores.is_data[rows]
        # One point a value, ties together: between two of them the curve is straight.
        _, code = np.unique(-weight, return_inverse=True)
        above = [
            np.concatenate([[0.0], np.cumsum(np.bincount(code[side], minlength=code.max() + 1))])
            for side in (label, ~label)
        ]
        curve += rows.mean() * np.interp(grid, above[1] / above[1][-1], above[0] / above[0][-1])
    n1, n0 = int(scores.is_data.sum()), int((~scores.is_data).sum())
    return RocCurve(grid, curve, KS_95 * math.sqrt((n1 + n0) / (n1 * n0)))


def _delong(data: FloatArray, generated: FloatArray) -> tuple[float, float]:
    """Area and the variance of its estimate (DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988) 837)."""
    pooled = rankdata(np.concatenate([data, generated]))
    n1, n0 = data.size, generated.size
    placed = (pooled[:n1] - rankdata(data)) / n0
    other = 1.0 - (pooled[n1:] - rankdata(generated)) / n1
    variance = (np.var(placed) / n1 if n1 > 1 else 0.0) + (np.var(other) / n0 if n0 > 1 else 0.0)
    return float(placed.mean()), float(variance)
