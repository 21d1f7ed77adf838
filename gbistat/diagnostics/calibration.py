r"""Is a weight the ratio of densities: calibration in weight space, and logistic recalibration.

An exact weight obeys dN_1/dw = w dN_0/dw (arXiv:2305.16774, Eqs. 10-11). In a bin of finite width the number of data events is
compared with the sum of the calibrated outputs C of all events in it, variance sum C(1 - C): the mean of w over the
pooled events of a wide bin would be dominated by its tail.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import chdtrc, expit

from gbistat.diagnostics.weights import Estimate
from gbistat.errors import OptionError

if TYPE_CHECKING:
    from gbistat.diagnostics.weights import Scores
    from gbistat.typing import FloatArray, Json

__all__ = ["Calibration", "CalibrationBin", "calibrate", "recalibration"]

NARROW = 0.05
"""Standard deviation of ln w below which the slope is not determined."""
SLOPE_RANGE = (0.7, 1.3)
ITERATIONS = 50


@dataclass(frozen=True)
class CalibrationBin:
    """Events in a bin of ln w.

    Parameters
    ----------
    low, high : float
        Smallest and largest ln w.
    n_data, n_generated : int
        Counts.
    expected : float
        Data events that the weights predict.
    sigma : float
        Its standard deviation.
    mean_weight : float
        Mean of w over the generated events, which ``n_data / n_generated`` estimates (for equal classes).
    """

    low: float
    high: float
    n_data: int
    n_generated: int
    expected: float
    sigma: float
    mean_weight: float


@dataclass(frozen=True)
class Calibration:
    """Calibration of the weights.

    Parameters
    ----------
    chi2, n_degrees, p_value : float
        Of the bins. The number of data is fixed, which takes nearly one degree of freedom from a weak classifier: the
        expectation of the chi-square stands here, bins - 1 + (n_1 Var_1 C + n_0 Var_0 C) / sum C(1 - C).
    intercept, slope : Estimate
        Of ``logit P(data) = ln(n_1 / n_0) + a + b ln w``: 0 and 1 for a right weight; b < 1 for one too extreme.
    estimable : bool
        Whether ln w varies enough for a slope; not so for a nearly perfect generator, which is no failure.
    bins : tuple of CalibrationBin
        From the smallest weight.
    """

    chi2: float
    n_degrees: float
    p_value: float
    intercept: Estimate
    slope: Estimate
    estimable: bool
    bins: tuple[CalibrationBin, ...]

    @property
    def failed(self) -> bool:
        """Whether the weights are no ratio of densities: p below 1e-3 and a slope significantly outside 0.7-1.3."""
        low, high = SLOPE_RANGE
        slope = self.slope
        outside = slope.value + 3 * slope.error < low or slope.value - 3 * slope.error > high
        return self.estimable and self.p_value < 1e-3 and outside

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "chi2": self.chi2,
            "ndf": self.n_degrees,
            "p": self.p_value,
            "slope": self.slope.to_list(),
            "intercept": self.intercept.to_list(),
            "estimable": self.estimable,
        }


def calibrate(scores: Scores, *, n_bins: int = 20) -> Calibration:
    """Compare observed with predicted data events in bins of equal population, and fit slope and intercept.

    Parameters
    ----------
    scores : Scores
        Of test events.
    n_bins : int, default 20
        Number of bins.

    Raises
    ------
    OptionError
        If there are fewer than five events a bin.
    """
    log_weight, label = scores.log_weight, scores.is_data
    if n_bins < 1 or log_weight.size < 5 * n_bins:
        raise OptionError(f"{n_bins} bins of {log_weight.size} events: give at least 1 bin and 5 events a bin")
    n_data = int(label.sum())
    log_odds = math.log(n_data / (label.size - n_data))
    probability = expit(log_weight + log_odds)
    # Edges between values, not places in an order: trees give many events the same output.
    edges = np.unique(np.sort(log_weight)[np.arange(1, n_bins) * log_weight.size // n_bins])
    code = np.searchsorted(edges, log_weight, side="right")
    bins = []
    chi2 = 0.0
    for rows in (np.flatnonzero(code == b) for b in range(edges.size + 1)):
        if not rows.size:
            continue
        own, data = probability[rows], label[rows]
        expected, variance = float(own.sum()), float(np.sum(own * (1.0 - own)))
        observed = int(data.sum())
        if variance > 0:
            chi2 += (observed - expected) ** 2 / variance
        elif observed != round(expected):
            chi2 = math.inf
        generated = log_weight[rows][~data]
        with np.errstate(over="ignore"):
            mean = float(np.mean(np.exp(generated))) if generated.size else math.nan
        ends = float(log_weight[rows].min()), float(log_weight[rows].max())
        bins.append(CalibrationBin(*ends, observed, int(generated.size), expected, math.sqrt(variance), mean))
    finite = log_weight[np.isfinite(log_weight)]
    estimable = bool(finite.size > 10 and np.std(finite) > NARROW)
    intercept, slope = Estimate(math.nan, math.nan), Estimate(math.nan, math.nan)
    if estimable:
        intercept, slope = recalibration(scores)
    within = float(np.sum(probability * (1 - probability)))
    free = sum(float(np.var(probability[side])) * int(side.sum()) for side in (label, ~label)) / within if within else 1
    degrees = max(len(bins) - 1 + min(free, 1.0), 0.1)
    return Calibration(chi2, degrees, float(chdtrc(degrees, chi2)), intercept, slope, estimable, tuple(bins))


def recalibration(scores: Scores) -> tuple[Estimate, Estimate]:
    """Intercept a and slope b of ``logit P(data) = ln(n_1/n_0) + a + b ln w``, by maximum likelihood.

    Parameters
    ----------
    scores : Scores
        Of test events; those with weight 0 or infinity are left out.

    Notes
    -----
    For distorted weights ``c w^k`` they are ``-ln(c)/k`` and ``1/k``.
    """
    usable = np.isfinite(scores.log_weight)
    x, label = scores.log_weight[usable], scores.is_data[usable].astype(np.float64)
    offset = math.log(max(label.sum(), 0.5) / max(label.size - label.sum(), 0.5))
    design = np.column_stack([np.ones(x.size), x])
    beta = np.array([0.0, 0.0])
    hessian = np.eye(2)
    for _ in range(ITERATIONS):
        probability = expit(offset + design @ beta)
        hessian = (design * (probability * (1 - probability))[:, None]).T @ design + 1e-12 * np.eye(2)
        step = np.linalg.solve(hessian, design.T @ (label - probability))
        # Far from the optimum of a nearly separable sample a full step can overshoot.
        step *= min(1.0, 2.0 / max(float(np.max(np.abs(step))), 1e-300))
        beta = beta + step
        if float(np.max(np.abs(step))) < 1e-10:
            break
    errors: FloatArray = np.sqrt(np.diag(np.linalg.inv(hessian)))
    return Estimate(float(beta[0]), float(errors[0])), Estimate(float(beta[1]), float(errors[1]))
