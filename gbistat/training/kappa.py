r"""Normalisation of a ratio: ln kappa such that E_b[kappa o] = 1, from held-out events, in two ways.

A classifier gives odds :math:`o = e^l` that are proportional to the density ratio. The constant follows from background
alone,

.. math::

    \kappa^{-1} = \sum_b w \, o,

or, with less variance, from signal and background together: for any function :math:`\alpha` of the events
:math:`E_b[\alpha r] = E_s[\alpha]`, and :math:`\alpha = 1 / ((1 - f) + f r)` gives

.. math::

    \sum_b w \frac{\kappa o}{(1 - f) + f \kappa o} = \sum_s w \frac{1}{(1 - f) + f \kappa o},

the bridge estimator (C. H. Bennett, J. Comput. Phys. 22 (1976) 245, eq. 12; X.-L. Meng and W. H. Wong, Statistica
Sinica 6 (1996) 831), which for f = 1/2 is the intercept of a logistic regression with equal class weights. f = 0 is the
mean over the background. All agree within their errors if the odds are proportional to the true ratio; where they do
not, the odds are miscalibrated, and the difference belongs into the uncertainty.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import chi2

from gbistat.errors import OptionError

if TYPE_CHECKING:
    from gbistat.typing import FloatArray

__all__ = [
    "KappaEstimate",
    "KappaStudy",
    "bridge_log_kappa",
    "effective_size",
    "expected_mean_error",
    "mean_log_kappa",
    "study_log_kappa",
]

NEWTON_STEPS = 60
BRIDGE_FRACTION = 0.5
AGREEMENT = 2.0  # standard deviations
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class KappaEstimate:
    """A value of ln kappa and its standard deviation, from the bootstrap."""

    value: float
    sigma: float


@dataclass(frozen=True)
class KappaStudy:
    """Both estimates and what they say together.

    Parameters
    ----------
    bridge, mean : KappaEstimate
        The two estimates.
    difference : KappaEstimate
        Bridge minus mean, with an error that knows their correlation.
    scatter : float
        Standard deviation of ln kappa between mass bins beyond its statistical error; 0 unless it is significant.
    scatter_p_value : float
        Of the chi-square of the bins against one ln kappa.
    sigma : float
        Error to use with ``bridge.value``: its own, the scatter, and by how much the difference exceeds twice its error,
        in quadrature.
    effective_size : float
        (sum w o)^2 / sum (w o)^2 over the background: how many events the mean rests on.
    """

    bridge: KappaEstimate
    mean: KappaEstimate
    difference: KappaEstimate
    scatter: float
    scatter_p_value: float
    sigma: float
    effective_size: float

    @property
    def agree(self) -> bool:
        """Whether the two estimates agree within twice the standard deviation of their difference."""
        return abs(self.difference.value) <= AGREEMENT * self.difference.sigma


def mean_log_kappa(log_odds: FloatArray, weights: FloatArray) -> float:
    """Minus the log of the mean odds over background events.

    Parameters
    ----------
    log_odds, weights : array of shape (n,)
        ln o of background events and their weights.
    """
    return -_log_sum(log_odds, weights) + math.log(float(np.sum(weights)))


def bridge_log_kappa(
    signal: tuple[FloatArray, FloatArray],
    background: tuple[FloatArray, FloatArray],
    *,
    fraction: float = BRIDGE_FRACTION,
) -> float:
    """Bridge estimate of ln kappa.

    Parameters
    ----------
    signal, background : (array, array)
        ln o of the events of each class and their weights, each of shape (n,). Each class is normalised by its sum of
        weights.
    fraction : float, default 0.5
        f of the formula, between 0 and 1: the share of signal in the sample for which the variance is least.

    Raises
    ------
    OptionError
        If `fraction` is not between 0 and 1.

    Notes
    -----
    The difference of the two sides rises with ln kappa, so that Newton steps inside a bracket find the one root.
    """
    if not 0 < fraction < 1:
        raise OptionError(f"fraction {fraction:g} of the bridge estimator: give a number between 0 and 1")
    shift = math.log(fraction / (1 - fraction))
    (log_s, w_s), (log_b, w_b) = signal, background
    w_s, w_b = w_s / (np.sum(w_s) * (1 - fraction)), w_b / (np.sum(w_b) * fraction)
    low, high = _bracket(log_s, log_b, shift)
    x = 0.5 * (low + high)
    for _ in range(NEWTON_STEPS):
        c_s, c_b = _logistic(log_s + (x + shift)), _logistic(log_b + (x + shift))
        excess = float(np.dot(w_b, c_b) - np.dot(w_s, 1.0 - c_s))
        low, high = (low, x) if excess > 0 else (x, high)
        slope = float(np.dot(w_b, c_b * (1.0 - c_b)) + np.dot(w_s, c_s * (1.0 - c_s)))
        step = x - excess / slope if slope > 0 else math.nan
        new = step if low < step < high else 0.5 * (low + high)
        if abs(new - x) < 1e-12 * (1.0 + abs(x)):
            return new
        x = new
    return x


def study_log_kappa(
    signal: tuple[FloatArray, FloatArray, FloatArray],
    background: tuple[FloatArray, FloatArray, FloatArray],
    edges: FloatArray,
    *,
    replicas: int,
    rng: np.random.Generator,
) -> KappaStudy:
    """Both estimates of ln kappa with their errors.

    Parameters
    ----------
    signal, background : (array, array, array)
        ln o, weights and masses of held-out events, each of shape (n,); the weights give both classes one distribution
        of the mass.
    edges : array of shape (number of bins + 1,)
        Mass bins for the scatter.
    replicas : int
        Replicas of the Poisson bootstrap that gives the error of the bridge estimate.
    rng : numpy.random.Generator
        Source of randomness.

    Notes
    -----
    The variance of the mean is (E_b[r^2] - 1) / n, and E_b[r^2] = E_s[r] is taken from signal. A bootstrap of the
    background would understate it: the few events at the largest r that carry the mean are often not in the sample, and
    what is not in the sample is not resampled. The bridge weights are bounded, and its bootstrap is sound. Event weights
    are not computed anew in each replica. Errors in mass bins and the covariance are to first order in 1 / n.
    """
    toys = [bridge_log_kappa(_resampled(signal, rng), _resampled(background, rng)) for _ in range(replicas)]
    bridge = KappaEstimate(bridge_log_kappa(signal[:2], background[:2]), float(np.std(toys, ddof=1)))
    of_signal, of_background = (log_odds + bridge.value for log_odds in (signal[0], background[0]))
    mean = KappaEstimate(mean_log_kappa(*background[:2]), expected_mean_error(of_signal, signal[1], background[1]))
    covariance = _covariance((of_signal, signal[1]), (of_background, background[1]))
    difference = KappaEstimate(
        bridge.value - mean.value, math.sqrt(max(mean.sigma**2 + bridge.sigma**2 - 2.0 * covariance, 0.0))
    )
    pairs = zip(_in_bins(signal, edges), _in_bins(background, edges), strict=True)
    bins = [_estimate(s[:2], b[:2]) for s, b in pairs if s[0].size and b[0].size]
    scatter, p_value = _scatter(np.array([item.value for item in bins]), np.array([item.sigma for item in bins]))
    excess = max(0.0, abs(difference.value) - AGREEMENT * difference.sigma)
    return KappaStudy(
        bridge=bridge,
        mean=mean,
        difference=difference,
        scatter=scatter,
        scatter_p_value=p_value,
        sigma=math.sqrt(bridge.sigma**2 + excess**2 + scatter**2),
        effective_size=effective_size(background[0], background[1]),
    )


def expected_mean_error(log_ratio: FloatArray, weights: FloatArray, background_weights: FloatArray) -> float:
    """Standard deviation of the weighted mean of r over background events, from signal: E_b[r^2] = E_s[r].

    Parameters
    ----------
    log_ratio, weights : array of shape (n,)
        ln r of signal events and their weights.
    background_weights : array of shape (n_b,)
        Weights of the background events that the mean is taken over.
    """
    second_moment = math.exp(_log_sum(log_ratio, weights)) / float(np.sum(weights))
    return math.sqrt(max(second_moment - 1.0, 0.0) / _events(background_weights))


def effective_size(log_odds: FloatArray, weights: FloatArray) -> float:
    """(sum w o)^2 / sum (w o)^2, a number of events."""
    return math.exp(2.0 * _log_sum(log_odds, weights) - _log_sum(2.0 * log_odds, weights**2))


def _resampled(
    events: tuple[FloatArray, FloatArray, FloatArray], rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    counts = rng.poisson(1.0, size=events[0].size)
    kept = counts > 0
    return events[0][kept], events[1][kept] * counts[kept]


def _in_bins(
    events: tuple[FloatArray, FloatArray, FloatArray], edges: FloatArray
) -> list[tuple[FloatArray, FloatArray, FloatArray]]:
    log_odds, weights, mass = events
    inside = [(mass >= low) & (mass < high) for low, high in itertools.pairwise(edges)]
    return [(log_odds[mask], weights[mask], mass[mask]) for mask in inside]


def _estimate(signal: tuple[FloatArray, FloatArray], background: tuple[FloatArray, FloatArray]) -> KappaEstimate:
    """Bridge estimate with its error to first order."""
    value = bridge_log_kappa(signal, background)
    of_signal, of_background = (log_odds + value for log_odds, _ in (signal, background))
    g_s, g_b = 2.0 * _logistic(-of_signal), 2.0 * _logistic(of_background)
    variance = sum(
        np.average((g - np.average(g, weights=w)) ** 2, weights=w) / _events(w)
        for g, w in ((g_s, signal[1]), (g_b, background[1]))
    )
    slope = _slope((of_signal, signal[1]), (of_background, background[1]))
    return KappaEstimate(value, math.sqrt(float(variance)) / slope)


def _covariance(signal: tuple[FloatArray, FloatArray], background: tuple[FloatArray, FloatArray]) -> float:
    """Covariance of the bridge estimate and the mean, to first order; arguments are ln r and weights.

    A background event moves the first by -g / (n S), with g = r / ((1 + r) / 2), and the second by -(r - 1) / n. Moments
    of g r over the background are taken from signal.
    """
    g_s, g_b = (2.0 * _logistic(log_ratio) for log_ratio, _ in (signal, background))
    product = np.average(g_s, weights=signal[1]) - np.average(g_b, weights=background[1])
    return float(product) / (_slope(signal, background) * _events(background[1]))


def _slope(signal: tuple[FloatArray, FloatArray], background: tuple[FloatArray, FloatArray]) -> float:
    """Derivative S in ln kappa of the left minus the right side of the bridge equation, for f = 1/2."""
    terms = []
    for log_ratio, weights in (signal, background):
        c = _logistic(log_ratio)
        terms.append(2.0 * float(np.average(c * (1.0 - c), weights=weights)))
    return sum(terms)


def _events(weights: FloatArray) -> float:
    """Number of events of weight 1 with the same statistical error."""
    return float(np.sum(weights)) ** 2 / float(np.sum(weights**2))


def _scatter(values: FloatArray, errors: FloatArray) -> tuple[float, float]:
    """Standard deviation between bins beyond the statistical one, and the p-value of there being none.

    The method of moments of R. DerSimonian and N. Laird, Controlled Clinical Trials 7 (1986) 177, eq. (8).
    """
    if values.size < 2:
        return 0.0, 1.0
    inverse = 1.0 / errors**2
    q = float(np.sum(inverse * (values - np.average(values, weights=inverse)) ** 2))
    degrees = values.size - 1
    p_value = float(chi2.sf(q, degrees))
    if p_value > SIGNIFICANT:
        return 0.0, p_value
    scale = float(np.sum(inverse) - np.sum(inverse**2) / np.sum(inverse))
    return math.sqrt(max(0.0, (q - degrees) / scale)), p_value


def _bracket(log_s: FloatArray, log_b: FloatArray, shift: float) -> tuple[float, float]:
    """Interval with the root: outside it every term of one side is nearly 1 and of the other nearly 0."""
    margin = 60.0 + abs(shift)
    high = margin - min(float(np.min(log_s)), float(np.min(log_b)))
    low = -margin - max(float(np.max(log_s)), float(np.max(log_b)))
    return low, high


def _logistic(x: FloatArray) -> FloatArray:
    result: FloatArray = 0.5 * (1.0 + np.tanh(0.5 * x))
    return result


def _log_sum(log_values: FloatArray, weights: FloatArray) -> float:
    top = float(np.max(log_values))
    return top + math.log(float(np.dot(weights, np.exp(log_values - top))))
