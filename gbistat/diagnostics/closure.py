"""Reweighting closure: do generated events times w look like data, in every observable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import chdtrc

from gbistat.diagnostics.matching import CAP
from gbistat.errors import EventsError, OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gbistat.diagnostics.weights import Scores
    from gbistat.typing import FloatArray, Json

__all__ = ["Closure", "reweighting_closure"]


@dataclass(frozen=True, eq=False)
class Closure:
    """One observable before and after reweighting.

    Parameters
    ----------
    observable : str
        Name.
    edges : array of shape (bins + 1,)
        Of bins with equal numbers of data; the first and last are open.
    data, generated, reweighted : arrays of shape (bins,)
        Counts, and sums of w of generated events scaled to the number of data.
    variance : array of shape (bins,)
        Of the reweighted counts.
    chi2_before, chi2_after : float
        Data against generated and against reweighted events.
    n_degrees : int
        Bins minus one.
    cap_effect : float
        Largest relative change of a bin when weights are cut at their 99.9 % quantile.
    """

    observable: str
    edges: FloatArray
    data: FloatArray
    generated: FloatArray
    reweighted: FloatArray
    variance: FloatArray
    chi2_before: float
    chi2_after: float
    n_degrees: int
    cap_effect: float

    @property
    def p_after(self) -> float:
        """Of the chi-square after reweighting."""
        return float(chdtrc(self.n_degrees, self.chi2_after))

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "obs": self.observable,
            "chi2_before": self.chi2_before,
            "chi2_after": self.chi2_after,
            "ndf": self.n_degrees,
            "p_after": self.p_after,
            "cap_effect": self.cap_effect,
        }


def reweighting_closure(
    observables: Mapping[str, FloatArray], scores: Scores, *, n_bins: int = 20
) -> tuple[Closure, ...]:
    """Reweight generated events with w and compare them with data, one observable after the other.

    Parameters
    ----------
    observables : mapping of str to array of shape (n,)
        Values, in the order of the scores.
    scores : Scores
        Of test events.
    n_bins : int, default 20
        Number of bins.

    Raises
    ------
    EventsError
        If the weights of the generated events sum to 0 or are infinite, or an observable does not fit the scores.
    OptionError
        If there are fewer than two bins.

    Notes
    -----
    Reweighting cannot fill phase space where the generator gives nothing: the missing mass says how much that is.
    """
    if n_bins < 2:
        raise OptionError(f"n_bins = {n_bins} must be at least 2")
    label = scores.is_data
    with np.errstate(over="ignore"):
        w = np.exp(scores.generated)
    if not np.all(np.isfinite(w)):
        raise EventsError(
            f"{int(np.sum(~np.isfinite(w)))} generated events have infinite weight; they cannot be reweighted"
        )
    if not w.sum() > 0:
        raise EventsError(f"the weights of the {w.size} generated events sum to 0: there is nothing to reweight")
    capped = np.minimum(w, np.quantile(w, CAP))
    results = []
    for name, values in observables.items():
        if np.shape(values) != label.shape:
            raise EventsError(f"observable {name!r} has shape {np.shape(values)}, the scores {label.shape}")
        edges = np.unique(np.quantile(values[label], np.linspace(0, 1, n_bins + 1)[1:-1]))
        code = np.searchsorted(edges, values, side="right")
        size = edges.size + 1
        data = np.bincount(code[label], minlength=size).astype(np.float64)
        own = code[~label]
        generated = np.bincount(own, minlength=size).astype(np.float64)
        sums, squares = (np.bincount(own, weights=power, minlength=size) for power in (w, w**2))
        cut = np.bincount(own, weights=capped, minlength=size)
        scale, scale_before = data.sum() / sums.sum(), data.sum() / generated.sum()
        before = _chi2(data, scale_before * generated, data + scale_before**2 * generated)
        after = _chi2(data, scale * sums, data + scale**2 * squares)
        change = np.abs(cut * data.sum() / cut.sum() - scale * sums) / np.maximum(scale * sums, 1e-12)
        results.append(
            Closure(
                name,
                edges,
                data,
                generated,
                scale * sums,
                scale**2 * squares,
                before,
                after,
                size - 1,
                float(change.max()),
            )
        )
    return tuple(results)


def _chi2(data: FloatArray, expected: FloatArray, variance: FloatArray) -> float:
    used = variance > 0
    return float(np.sum((data[used] - expected[used]) ** 2 / variance[used]))
