"""Where in phase space large and small weights lie, for any observable, also ones that the classifier never saw.

The slice of small weights is taken from generated events and that of large weights from data, since there each is enriched
(arXiv:2305.16774, section 2). A slice that differs from the rest of its class says only that the weight depends on the
observable, which is true of an overfitted classifier too: look at slices where the test as a whole rejects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.stats import ks_2samp

from gbistat.errors import EventsError, OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gbistat.diagnostics.weights import Scores
    from gbistat.typing import BoolArray, FloatArray, Json

__all__ = ["SHARES", "Slice", "benjamini_hochberg", "slice_mask", "slice_scan", "wasserstein"]

SHARES = (0.01, 0.05)
SMALLEST = 20


@dataclass(frozen=True)
class Slice:
    """One observable in one slice of the weights.

    Parameters
    ----------
    observable : str
        Name.
    side : {"small", "large"}
        Small weights (generated events) or large ones (data).
    share : float
        Share of the class in the slice.
    n_events : int
        Events in it.
    effect : float
        Wasserstein distance between slice and rest of the class, in units of the rest's interquartile range.
    quantiles : (float, float, float)
        Median, and shares below the first and above the third quartile of the rest: where the slice lies.
    p_value : float
        Kolmogorov-Smirnov, slice against rest.
    q_value : float
        After Benjamini and Hochberg over observables and slices.
    """

    observable: str
    side: Literal["small", "large"]
    share: float
    n_events: int
    effect: float
    quantiles: tuple[float, float, float]
    p_value: float
    q_value: float

    @property
    def position(self) -> str:
        """Where the slice lies: "low", "high", "both ends", "middle" or "everywhere"."""
        _, below, above = self.quantiles
        if below > 0.35 and above > 0.35:
            return "both ends"
        if below + above < 0.25:
            return "middle"
        if below > 0.5 or above > 0.5:
            return "low" if below > above else "high"
        return "everywhere"

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "obs": self.observable,
            "slice": f"{self.side} weights, {100 * self.share:g} %",
            "n": self.n_events,
            "effect": self.effect,
            "position": self.position,
            "p": self.p_value,
            "q_bh": self.q_value,
        }


def wasserstein(first: FloatArray, second: FloatArray) -> float:
    """Wasserstein distance of order 1 between two samples in one dimension.

    Examples
    --------
    >>> wasserstein(np.array([0.0, 1.0]), np.array([2.0, 3.0]))
    2.0
    """
    a, b = np.sort(first), np.sort(second)
    points = np.concatenate([a, b])
    points.sort(kind="stable")
    shares = (
        np.searchsorted(a, points[:-1], side="right") / a.size - np.searchsorted(b, points[:-1], side="right") / b.size
    )
    return float(np.sum(np.abs(shares) * np.diff(points)))


def slice_mask(scores: Scores, side: Literal["small", "large"], share: float) -> BoolArray:
    """Events of a slice, shape (n,): a share of one class within each fold.

    Parameters
    ----------
    scores : Scores
        Of test events.
    side : {"small", "large"}
        Smallest weights of generated events, or largest of data.
    share : float
        Of the class, in (0, 1).

    Raises
    ------
    OptionError
        If the share is outside (0, 1).
    """
    if not 0.0 < share < 1.0:
        raise OptionError(f"share {share} of a slice must be between 0 and 1")
    mask = np.zeros(scores.logit.size, dtype=bool)
    for fold in np.unique(scores.fold):
        rows = np.flatnonzero((scores.fold == fold) & (scores.is_data == (side == "large")))
        order = rows[np.argsort(scores.log_weight[rows], kind="stable")]
        k = max(1, round(share * rows.size))
        mask[order[:k] if side == "small" else order[-k:]] = True
    return mask


def slice_scan(
    observables: Mapping[str, FloatArray], scores: Scores, *, shares: tuple[float, ...] = SHARES
) -> tuple[Slice, ...]:
    """Compare every slice with the rest of its class in every observable.

    Parameters
    ----------
    observables : mapping of str to array of shape (n,)
        Values, in the order of the scores; NaN where an observable does not exist for an event.
    scores : Scores
        Of test events.
    shares : tuple of float
        Of the class.

    Returns
    -------
    tuple of Slice
        The largest effect first.

    Raises
    ------
    EventsError
        If an observable has another number of events.

    Notes
    -----
    Exploratory: the p-values say where to look and enter no verdict.
    """
    found: list[Slice] = []
    sides: tuple[Literal["small", "large"], ...] = ("small", "large")
    for side in sides:
        own = scores.is_data == (side == "large")
        for share in shares:
            mask = slice_mask(scores, side, share)
            for name, values in observables.items():
                if np.shape(values) != mask.shape:
                    raise EventsError(f"observable {name!r} has shape {np.shape(values)}, the scores {mask.shape}")
                inside, rest = values[mask & np.isfinite(values)], values[own & ~mask & np.isfinite(values)]
                if min(inside.size, rest.size) < SMALLEST:
                    continue
                found.append(_compare(name, side, share, inside, rest))
    q = benjamini_hochberg(np.array([item.p_value for item in found]))
    ranked = [
        Slice(s.observable, s.side, s.share, s.n_events, s.effect, s.quantiles, s.p_value, float(value))
        for s, value in zip(found, q, strict=True)
    ]
    return tuple(sorted(ranked, key=lambda item: -item.effect))


def benjamini_hochberg(p_values: FloatArray) -> FloatArray:
    """Smallest false-discovery rate at which each hypothesis would be rejected (Benjamini and Hochberg 1995).

    Examples
    --------
    >>> benjamini_hochberg(np.array([0.01, 0.5, 0.02])).round(3).tolist()
    [0.03, 0.5, 0.03]
    """
    order = np.argsort(p_values)
    n = p_values.size
    scaled = p_values[order] * n / np.arange(1, n + 1)
    result = np.empty(n)
    result[order] = np.minimum(1.0, np.minimum.accumulate(scaled[::-1])[::-1])
    return result


def _compare(name: str, side: Literal["small", "large"], share: float, inside: FloatArray, rest: FloatArray) -> Slice:
    low, high = np.quantile(rest, [0.25, 0.75])
    width = high - low
    effect = wasserstein(inside, rest) / width if width > 0 else 0.0
    p = float(ks_2samp(inside, rest, method="asymp").pvalue)
    where = (float(np.median(inside)), float(np.mean(inside < low)), float(np.mean(inside > high)))
    return Slice(name, side, share, inside.size, float(effect), where, p, p)
