"""What can be said about the fraction w of a signal with unknown density: a lower limit.

If (w, p_s) describes data, so does any larger w with a p_s that has absorbed background. Only a *lower* limit on w exists
without saying what the signal looks like. Two are computed, both from e-values of ``H(w)``, and both are the lower end
of ``{w : e(w) < 1/alpha}``:

`unrestricted_lower_limit`
    H(w) = all densities (1 - w) p_b + w f with **any** f (`gbistat.inference.bounded_evidence`). At w = 0 e is the e-value of
    `gbistat.inference.split_likelihood`: the limit is above 0 only where that reaches 1/alpha, for
    every mixture of a composite null.

`class_interval`
    H(w) = mixtures (1 - w) sum_j a_j p_b^(j) + sum_m b_m s_m with sum b = w over the networks' densities s_m: universal
    inference (arXiv:1912.11436), whose supremum is a concave programme. It has an upper end too. Both ends are right **for signals that
    are mixtures of the s_m only**.

`cross_fit_estimate` is the maximum of the likelihood with p_s held: a number for this p_s, not for w.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import brentq
from scipy.special import logsumexp

from gbistat.errors import FitFailed, OptionError
from gbistat.inference.bounded_evidence import BoundedEvidence
from gbistat.inference.mixture_weights import maximise_mixture
from gbistat.inference.split_likelihood import (
    DEFAULT_PRIOR,
    common_backgrounds,
    discovery_evidence,
    log_sum_over_prior,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gbistat.inference.bounded_evidence import RatioReference
    from gbistat.inference.split_likelihood import FoldRatios, FractionPrior, Scheme
    from gbistat.typing import FloatArray, Json

__all__ = [
    "ClassInterval",
    "CrossFitEstimate",
    "LowerLimit",
    "class_interval",
    "cross_fit_estimate",
    "unrestricted_lower_limit",
]

SMALLEST = 1e-6
"""Where the search for a limit begins."""
STEPS = 60
"""Points between there and 1, evenly in the log."""


@dataclass(frozen=True, eq=False)
class LowerLimit:
    """One-sided limit on the fraction of signal, whatever the signal's density is.

    Parameters
    ----------
    low : float
        The limit; 0 where the data do not exclude "no signal".
    cl : float
        Confidence level.
    scheme : str
        "average" or "product" over folds.
    n_events : int
        Events that were judged; all events of the folds.
    """

    low: float
    cl: float
    scheme: str
    n_events: int

    @property
    def events(self) -> float:
        """The limit as a number of events among those of all folds."""
        return self.low * self.n_events

    def to_dict(self) -> Json:
        """Plain numbers, for JSON; the upper end is open."""
        return {"low": self.low, "high": None, "cl": self.cl, "scheme": self.scheme, "n_events": self.n_events}


@dataclass(frozen=True, eq=False)
class ClassInterval:
    """Confidence interval of the fraction if the signal is a mixture of the networks' densities.

    Parameters
    ----------
    low, high : float
        Ends; 0 and 1 where the set reaches them.
    empty : bool
        Whether no fraction is accepted: the class does not describe the data.
    cl : float
        Confidence level.
    n_densities : int
        Signal densities of each fold.
    """

    low: float
    high: float
    empty: bool
    cl: float
    n_densities: int

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "low": None if self.empty else self.low,
            "high": None if self.empty else self.high,
            "empty": self.empty,
            "cl": self.cl,
            "n_densities": self.n_densities,
            "valid_for": "signals that are mixtures of the learned densities of a fold",
        }


@dataclass(frozen=True, eq=False)
class CrossFitEstimate:
    """Best fraction for the learned signal density, held fixed.

    Parameters
    ----------
    value : float
        Maximum of the sum of the folds' log likelihoods; may be negative.
    error : float
        Sandwich standard deviation, sqrt(J) / H.
    at_wall : bool
        Whether the maximum lies where a density becomes negative or at 1.
    """

    value: float
    error: float
    at_wall: bool

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "value": self.value,
            "error": self.error,
            "at_wall": self.at_wall,
            "valid_for": "the learned signal density",
        }


def unrestricted_lower_limit(
    folds: Sequence[FoldRatios],
    references: Sequence[RatioReference],
    *,
    cl: float = 0.95,
    scheme: Scheme = "average",
    prior: FractionPrior = DEFAULT_PRIOR,
) -> LowerLimit:
    """Lower limit on the fraction that holds for every signal density.

    Parameters
    ----------
    folds : sequence of FoldRatios
        As `gbistat.inference.split_likelihood.discovery_evidence` takes them.
    references : sequence of RatioReference
        One a fold.
    cl : float, default 0.95
        Confidence level, 1 - alpha.
    scheme, prior
        As for the evidence.

    Returns
    -------
    LowerLimit
        ``P(low > w) <= 1 - cl`` for every number of events.

    Raises
    ------
    OptionError
        If the confidence level is not between 0 and 1, or references do not fit.

    Notes
    -----
    w is the fraction in a decomposition ``(1 - w) p_b + w f``. Where signal and background overlap, a part of the signal can be
    called background, and the limit is on what cannot.

    With several null densities p_b may be any mixture of them. That the limit is 0 where some mixture describes the data without
    signal is certain (the bound of `gbistat.inference.mixture_weights`). Above 0 the limit is the lowest of those against the mixture
    that is most likely without signal and against each density alone: for another mixture it may be too high.
    """
    alpha = _alpha(cl)
    if len(references) != len(folds):
        raise OptionError(f"{len(references)} references for {len(folds)} folds; give one a fold")
    n_nulls = common_backgrounds(folds)
    evidence = discovery_evidence(folds, scheme=scheme, prior=prior)
    n_events = evidence.n_events
    if evidence.log_e + math.log(alpha) < 0.0:
        return LowerLimit(0.0, cl, scheme, n_events)

    def bounded(weights: Sequence[FloatArray]) -> list[BoundedEvidence]:
        return [BoundedEvidence.of(*parts, prior) for parts in zip(folds, references, weights, strict=True)]

    def excess(null: list[BoundedEvidence], w: float) -> float:
        return _combine([part.log_e(w) for part in null], prior, scheme) + math.log(alpha)

    likely = evidence.null_weights if scheme == "average" else evidence.null_weights * len(folds)
    nulls = [bounded(likely)]
    if n_nulls > 1:
        nulls += [bounded([corner] * len(folds)) for corner in np.eye(n_nulls)]
    low = 1.0
    for number, null in enumerate(nulls):
        # Another background may still be accepted at this limit; then its own limit is lower.
        if low > 0.0 and (number == 0 or excess(null, low) < 0.0):
            low = min(low, _first_crossing(partial(excess, null)))
    return LowerLimit(low, cl, scheme, n_events)


def class_interval(
    folds: Sequence[FoldRatios],
    *,
    cl: float = 0.95,
    scheme: Scheme = "average",
    prior: FractionPrior = DEFAULT_PRIOR,
) -> ClassInterval:
    """Interval of the fraction for signals that are mixtures of the networks' densities, by universal inference.

    Parameters
    ----------
    folds : sequence of FoldRatios
        As for the evidence.
    cl, scheme, prior
        As `unrestricted_lower_limit`.

    Returns
    -------
    ClassInterval
        With two ends; see `ClassInterval.to_dict` for what they hold for.

    Raises
    ------
    OptionError
        If the confidence level is not between 0 and 1.
    """
    alpha = _alpha(cl)
    common_backgrounds(folds)
    tops = [fold.log_alternatives(prior.fractions).sum(axis=1) for fold in folds]
    starts: list[FloatArray | None] = [None] * len(folds)

    def excess(w: float) -> float:
        logs = []
        for k, (fold, top) in enumerate(zip(folds, tops, strict=True)):
            sizes = len(fold.log_background), len(fold.log_ratio)
            groups = np.repeat([0, 1], sizes)
            columns = np.vstack([fold.log_background, fold.log_ratio])
            best = maximise_mixture(columns, (1.0 - w, w), groups, start=starts[k])
            starts[k] = best.weights
            logs.append(top - best.upper_bound)
        return _combine(logs, prior, scheme) + math.log(alpha)

    grid = np.r_[0.0, np.geomspace(1e-5, 0.999, 25)]
    values = np.array([excess(float(w)) for w in grid])
    inside = np.flatnonzero(values < 0.0)
    if inside.size == 0:
        # The excess is convex in w: between the neighbours of the lowest point it may still dip below 0.
        middle = int(np.argmin(values))
        around = np.linspace(grid[max(middle - 1, 0)], grid[min(middle + 1, len(grid) - 1)], 41)
        finer = np.array([excess(float(w)) for w in around])
        grid, values, inside = around, finer, np.flatnonzero(finer < 0.0)
    if inside.size == 0:
        return ClassInterval(math.nan, math.nan, True, cl, len(folds[0].log_ratio))
    first, last = int(inside[0]), int(inside[-1])
    low = float(grid[0]) if first == 0 else float(brentq(excess, grid[first - 1], grid[first], xtol=1e-7))
    high = 1.0 if last == len(grid) - 1 else float(brentq(excess, grid[last], grid[last + 1], xtol=1e-7))
    return ClassInterval(low, high, False, cl, len(folds[0].log_ratio))


def cross_fit_estimate(folds: Sequence[FoldRatios]) -> CrossFitEstimate:
    """Fraction that fits best with the learned densities held, each fold judged by the networks that did not see it.

    Parameters
    ----------
    folds : sequence of FoldRatios
        All folds enter one sum of log likelihoods.

    Returns
    -------
    CrossFitEstimate
        With sandwich error. It has no claim on the fraction of a signal of unknown density: see the head of this module.

    Raises
    ------
    FitFailed
        If all ratios are 1.

    Notes
    -----
    Given the networks the terms of a fold are independent, and the usual theory of M-estimators holds for the fraction at which
    the expected likelihood of *this* density is largest. Folds share training events, which that error does not know.
    """
    ratio = np.exp(np.concatenate([fold.mixed for fold in folds])) - 1.0
    if not np.any(ratio):
        raise FitFailed("signal and background are the same density in all events: no fraction can be fitted")
    low, high = -1.0 / max(float(ratio.max()), 1.0), 1.0 - 1e-9
    low *= 1.0 - 1e-6

    def slope(w: float) -> float:
        return float((ratio / (1.0 + w * ratio)).sum())

    wall = None
    if slope(low) <= 0.0:
        wall = low
    elif slope(high) >= 0.0:
        wall = high
    w = float(brentq(slope, low, high, xtol=1e-12)) if wall is None else wall
    scores = ratio / (1.0 + w * ratio)
    information = float((scores**2).sum())
    # H = J for a mixture that is linear in w, so that the sandwich is 1 / sqrt(J - mean^2) up to the spread between folds.
    spread = float(((scores - scores.mean()) ** 2).sum())
    return CrossFitEstimate(w, math.sqrt(spread) / information, wall is not None)


def _combine(logs: Sequence[FloatArray], prior: FractionPrior, scheme: Scheme) -> float:
    """ln e of all folds from those of each fold and fraction."""
    if scheme == "product":
        return log_sum_over_prior(np.sum(logs, axis=0), prior)
    return float(logsumexp([log_sum_over_prior(log, prior) for log in logs])) - math.log(len(logs))


def _alpha(cl: float) -> float:
    if not 0.0 < cl < 1.0:
        raise OptionError(f"confidence level {cl:g} must lie between 0 and 1, for example 0.95")
    return 1.0 - cl


def _first_crossing(excess: Callable[[float], float]) -> float:
    """First w, from 0 on, at which e(w) falls below 1/alpha: the lower end of the accepted set; 0 if that begins at 0."""
    before = SMALLEST
    if excess(before) < 0.0:
        return 0.0
    for w in np.geomspace(SMALLEST, 0.999, STEPS)[1:]:
        if excess(float(w)) < 0.0:
            return float(brentq(excess, before, float(w), xtol=1e-8, rtol=1e-6))
        before = float(w)
    return before
