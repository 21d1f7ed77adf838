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

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import OptionError

if TYPE_CHECKING:
    from gbistat.typing import FloatArray

__all__ = ["KappaEstimate", "KappaStudy", "bridge_log_kappa", "effective_size", "mean_log_kappa", "study_log_kappa"]

NEWTON_STEPS = 60
BRIDGE_FRACTION = 0.5


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
        Bridge minus mean; its error knows their correlation.
    scatter : float
        Standard deviation of ln kappa between mass bins beyond its statistical error, 0 if there is none.
    sigma : float
        Error to use with ``bridge.value``: its own, the scatter, and what the difference exceeds its error by, in
        quadrature.
    effective_size : float
        (sum w o)^2 / sum (w o)^2 over the background: how many events the mean rests on.
    """

    bridge: KappaEstimate
    mean: KappaEstimate
    difference: KappaEstimate
    scatter: float
    sigma: float
    effective_size: float

    @property
    def agree(self) -> bool:
        """Whether the two estimates agree within one standard deviation of their difference."""
        return abs(self.difference.value) <= self.difference.sigma


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
    """Both estimates of ln kappa with errors from a Poisson bootstrap of the held-out events.

    Parameters
    ----------
    signal, background : (array, array, array)
        ln o, weights and masses of held-out events, each of shape (n,); the weights give both classes one distribution
        of the mass.
    edges : array of shape (number of bins + 1,)
        Mass bins for the scatter.
    replicas : int
        Bootstrap replicas.
    rng : numpy.random.Generator
        Source of randomness.

    Notes
    -----
    The bootstrap understates the error of the mean where a few events carry it, as `effective_size` shows: what is
    not in the sample cannot be resampled. The weights are not computed anew in each replica.
    """
    binned = [_in_bins(events, edges) for events in (signal, background)]
    in_bins = [(s, b) for s, b in zip(*binned, strict=True) if s[0].size and b[0].size]
    estimates = np.array(
        [_all_estimates(_resampled(signal, rng), _resampled(background, rng)) for _ in range(replicas)]
    )
    bridge, mean = _all_estimates(signal[:2], background[:2])
    errors = np.std(estimates, axis=0, ddof=1)
    difference = KappaEstimate(bridge - mean, float(np.std(estimates[:, 0] - estimates[:, 1], ddof=1)))
    scatter = _scatter(in_bins, replicas, rng)
    excess = math.sqrt(max(0.0, difference.value**2 - difference.sigma**2))
    return KappaStudy(
        bridge=KappaEstimate(bridge, float(errors[0])),
        mean=KappaEstimate(mean, float(errors[1])),
        difference=difference,
        scatter=scatter,
        sigma=math.sqrt(float(errors[0]) ** 2 + excess**2 + scatter**2),
        effective_size=effective_size(background[0], background[1]),
    )


def effective_size(log_odds: FloatArray, weights: FloatArray) -> float:
    """(sum w o)^2 / sum (w o)^2, a number of events."""
    return math.exp(2.0 * _log_sum(log_odds, weights) - _log_sum(2.0 * log_odds, weights**2))


def _all_estimates(
    signal: tuple[FloatArray, FloatArray], background: tuple[FloatArray, FloatArray]
) -> tuple[float, float]:
    return bridge_log_kappa(signal, background), mean_log_kappa(*background)


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
    inside = [(mass >= low) & (mass < high) for low, high in zip(edges, edges[1:], strict=False)]
    return [(log_odds[mask], weights[mask], mass[mask]) for mask in inside]


def _scatter(
    in_bins: list[tuple[tuple[FloatArray, FloatArray, FloatArray], tuple[FloatArray, FloatArray, FloatArray]]],
    replicas: int,
    rng: np.random.Generator,
) -> float:
    """Standard deviation between bins beyond the statistical one (method of moments)."""
    if len(in_bins) < 2:
        return 0.0
    values = np.array([bridge_log_kappa(s[:2], b[:2]) for s, b in in_bins])
    toys = np.array(
        [
            [bridge_log_kappa(_resampled(s, rng), _resampled(b, rng)) for s, b in in_bins]
            for _ in range(max(2, replicas // 4))
        ]
    )
    return math.sqrt(max(0.0, float(np.var(values, ddof=1) - np.mean(np.var(toys, axis=0, ddof=1)))))


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
