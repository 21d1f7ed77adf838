"""What is measured about a trained ratio on events that trained nothing: numbers that its metadata carries."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import brentq
from scipy.stats import rankdata

from gbistat.errors import OptionError
from gbistat.training.kappa import effective_size, expected_mean_error

if TYPE_CHECKING:
    from gbistat.typing import FloatArray, Json

__all__ = ["Closure", "area_under_curve", "calibration", "closure", "mean_ratio_in_bins", "significance_improvement"]

LARGEST_FRACTION = 0.9


def area_under_curve(signal: FloatArray, background: FloatArray) -> float:
    """Probability that a signal event has the larger score, ties counted half (the area under the ROC curve).

    Parameters
    ----------
    signal, background : array of shape (n,)
        Scores.
    """
    ranks = rankdata(np.concatenate([signal, background]))
    n = signal.size
    return float((np.sum(ranks[:n]) - 0.5 * n * (n + 1)) / (n * background.size))


def significance_improvement(signal: FloatArray, background: FloatArray, *, false_positive_rate: float) -> Json:
    """Significance improvement TPR / sqrt(FPR) at a false positive rate, with its statistical error.

    Parameters
    ----------
    signal, background : array of shape (n,)
        Scores.
    false_positive_rate : float
        Wanted share of background; the score of the nearest larger whole number of background events is the cut.

    Returns
    -------
    dict
        ``false_positive_rate`` and ``true_positive_rate`` at the cut, ``value`` and ``sigma``, and
        ``background_events``, the number of background events above the cut.

    Raises
    ------
    OptionError
        If there are too few background events for the rate.
    """
    passing = math.ceil(false_positive_rate * background.size)
    if not 0 < passing < background.size:
        raise OptionError(
            f"a false positive rate of {false_positive_rate:g} needs more than {1 / false_positive_rate:g} background "
            f"events; there are {background.size}"
        )
    cut = np.sort(background)[-passing]
    true_rate, false_rate = float(np.mean(signal >= cut)), float(np.mean(background >= cut))
    value = true_rate / math.sqrt(false_rate)
    relative = math.hypot(
        math.sqrt((1 - true_rate) / max(true_rate * signal.size, 1.0)), 0.5 / math.sqrt(false_rate * background.size)
    )
    return {
        "false_positive_rate": false_rate,
        "true_positive_rate": true_rate,
        "value": value,
        "sigma": value * relative,
        "background_events": passing,
    }


def mean_ratio_in_bins(
    signal: tuple[FloatArray, FloatArray], background: tuple[FloatArray, FloatArray], edges: FloatArray
) -> list[Json]:
    """E_b[r] in bins of the mass: 1 in each for a conditional ratio.

    Parameters
    ----------
    signal, background : (array, array)
        ln r and mass of the events of each class, each of shape (n,).
    edges : array of shape (number of bins + 1,)
        Edges.

    Returns
    -------
    list of dict
        ``low``, ``high``, ``n_events``, ``mean``, ``sigma`` (expected error of the mean, from the signal in the bin: see
        `gbistat.training.kappa`) and ``effective_size``. Bins without events of either class are left out.
    """
    rows: list[Json] = []
    for low, high in itertools.pairwise(edges):
        of_signal, of_background = (
            log_ratio[(mass >= low) & (mass < high)] for log_ratio, mass in (signal, background)
        )
        if not of_signal.size or not of_background.size:
            continue
        ones = [np.ones(values.size) for values in (of_signal, of_background)]
        rows.append(
            {
                "low": float(low),
                "high": float(high),
                "n_events": int(of_background.size),
                "mean": float(np.mean(np.exp(of_background))),
                "sigma": expected_mean_error(of_signal, *ones),
                "effective_size": effective_size(of_background, ones[1]),
            }
        )
    return rows


def calibration(
    signal: tuple[FloatArray, FloatArray], background: tuple[FloatArray, FloatArray], edges: FloatArray
) -> list[Json]:
    """Observed share of signal against the predicted one, c = r / (1 + r), in bins of c.

    Parameters
    ----------
    signal, background : (array, array)
        ln r and weights of the events of each class, each of shape (n,); the classes count equally.
    edges : array of shape (number of bins + 1,)
        Edges in c.

    Returns
    -------
    list of dict
        ``low``, ``high``, ``n_signal``, ``n_background``, ``predicted`` (mean c), ``observed`` and its ``sigma``.
        Bins without events of either class are left out.
    """
    classes = []
    for log_ratio, weights in (signal, background):
        classes.append((0.5 * (1.0 + np.tanh(0.5 * log_ratio)), weights / np.sum(weights)))
    rows: list[Json] = []
    for low, high in itertools.pairwise(edges):
        inside = [(c >= low) & ((c < high) | (high >= 1)) for c, _ in classes]
        counts = [int(np.sum(mask)) for mask in inside]
        if 0 in counts:
            continue
        sums = [float(np.sum(w[mask])) for (_, w), mask in zip(classes, inside, strict=True)]
        squares = [float(np.sum(w[mask] ** 2)) for (_, w), mask in zip(classes, inside, strict=True)]
        weighted = [float(np.sum((c * w)[mask])) for (c, w), mask in zip(classes, inside, strict=True)]
        total = sum(sums)
        sigma = math.sqrt(sums[1] ** 2 * squares[0] + sums[0] ** 2 * squares[1]) / total**2
        rows.append(
            {
                "low": float(low),
                "high": float(high),
                "n_signal": counts[0],
                "n_background": counts[1],
                "predicted": sum(weighted) / total,
                "observed": sums[0] / total,
                "sigma": sigma,
            }
        )
    return rows


@dataclass(frozen=True)
class Closure:
    """Fraction that a shape fit finds in a mixture of known composition.

    Parameters
    ----------
    fraction : float
        Share of signal in the mixture.
    ratio : float
        Fitted over true fraction.
    sigma : float
        Its standard deviation for the finite number of held-out events.
    """

    fraction: float
    ratio: float
    sigma: float


def closure(signal: FloatArray, background: FloatArray, *, fraction: float) -> Closure:
    """Fit the signal fraction f of a mixture of held-out events with the term's own ratio.

    Parameters
    ----------
    signal, background : array of shape (n,)
        ln r of the events of each class, with everything that belongs to r.
    fraction : float
        Share of signal in the mixture: signal events get the weight f / n_s, background events (1 - f) / n_b.

    Notes
    -----
    The estimate solves sum w s(t) = 0 for t, with the score s(t) = (r - 1) / (1 + t (r - 1)). It is unbiased if r is the
    ratio of the densities; how far it is off is what a wrong ratio does to a measured fraction of that size.

    Its variance, for the finite number of held-out events and a right ratio, is
    [ (1 - f)^2 Var_b(s) / n_b + f^2 Var_s(s) / n_s ] / I^2 at t = f, with I = E[s^2] in the mixture. The moments are
    taken over both samples, with the weights 1 / (n_b + n_s r) for the background and r times that for the signal:
    background events at the largest r are too few to estimate them.
    """
    parts = ((np.expm1(signal), fraction), (np.expm1(background), 1.0 - fraction))

    def score(t: float) -> float:
        return float(sum(share * np.mean(excess / (1.0 + t * excess)) for excess, share in parts))

    largest = max(float(np.max(excess)) for excess, _ in parts)
    # Left of -1/largest the density of some event is negative.
    found = float(brentq(score, -(1.0 - 1e-9) / largest, LARGEST_FRACTION, xtol=1e-12))
    return Closure(fraction, found / fraction, _closure_error(signal, background, fraction) / fraction)


def _closure_error(signal: FloatArray, background: FloatArray, fraction: float) -> float:
    excess = np.expm1(np.concatenate([signal, background]))
    of_background = 1.0 / (background.size + signal.size * (1.0 + excess))
    of_signal = of_background * (1.0 + excess)
    s = excess / (1.0 + fraction * excess)
    moments = [
        (float(np.average(s, weights=weights)), float(np.average(s**2, weights=weights)))
        for weights in (of_signal, of_background)
    ]
    (mean_s, square_s), (mean_b, square_b) = moments
    information = fraction * square_s + (1 - fraction) * square_b
    variance = (1 - fraction) ** 2 * (square_b - mean_b**2) / background.size
    variance += fraction**2 * (square_s - mean_s**2) / signal.size
    return math.sqrt(variance) / information
