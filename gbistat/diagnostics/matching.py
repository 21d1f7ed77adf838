"""Data and generated events at the same masses: a classifier must not tell them apart by a spectrum that nobody generated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import EventsError

if TYPE_CHECKING:
    from gbistat.typing import FloatArray, IntArray

__all__ = ["CAP", "accept", "match_masses", "unweight"]

CAP = 0.999
"""Quantile at which weights are cut off before events are accepted by them: one huge weight would leave no events."""
IN_BIN = 40


def match_masses(data: FloatArray, generated: FloatArray, *, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """Pair events of nearly equal mass, as many as there are.

    Parameters
    ----------
    data, generated : array of shape (n,), (m,)
        Masses.
    rng : numpy.random.Generator
        Chooses events where one sample has more.

    Returns
    -------
    int array, int array of shape (k,)
        Rows of both samples; row i of both is a pair.

    Raises
    ------
    EventsError
        If fewer than 20 pairs can be made.

    Notes
    -----
    In bins of about 40 events, as many are drawn from each sample as the smaller one has there, and paired in the
    order of their masses. Both samples keep the same spectrum; events are not used twice.
    """
    pool = np.sort(np.concatenate([data, generated]))
    edges = np.unique(pool[IN_BIN::IN_BIN])
    code, other = (np.searchsorted(edges, mass, side="right") for mass in (data, generated))
    order, other_order = rng.permutation(data.size), rng.permutation(generated.size)
    rows, other_rows = _by_bin(code, order, edges.size + 1), _by_bin(other, other_order, edges.size + 1)
    first, second = [], []
    for a, b in zip(rows, other_rows, strict=True):
        k = min(a.size, b.size)
        first.append(a[:k][np.argsort(data[a[:k]], kind="stable")])
        second.append(b[:k][np.argsort(generated[b[:k]], kind="stable")])
    chosen, partners = np.concatenate(first), np.concatenate(second)
    if chosen.size < 20:
        raise EventsError(
            f"only {chosen.size} pairs of equal mass among {data.size} data and {generated.size} generated events; their "
            "masses hardly overlap: generate events at the masses of the data"
        )
    return chosen, partners


def unweight(weights: FloatArray, *, rng: np.random.Generator) -> IntArray:
    """Rows kept when events are accepted with probability weight / largest weight: what remains has weight 1.

    Parameters
    ----------
    weights : array of shape (n,)
        Weights of 0 or more.
    rng : numpy.random.Generator
        Decides.

    Raises
    ------
    EventsError
        If a weight is negative or not finite, or all are 0.
    """
    if not np.all(np.isfinite(weights)) or np.any(weights < 0):
        raise EventsError(
            f"{int(np.sum(~(weights >= 0)))} of {weights.size} weights are negative or NaN: no unweighting"
        )
    largest = float(weights.max(initial=0.0))
    if largest == 0.0:
        raise EventsError(f"the {weights.size} weights sum to 0")
    return np.flatnonzero(rng.random(weights.size) * largest < weights)


def accept(log_weight: FloatArray, *, rng: np.random.Generator) -> IntArray:
    """Rows kept by `unweight` with weights of these logs, finite, cut off at their quantile `CAP`."""
    capped = np.minimum(log_weight, np.quantile(log_weight, CAP))
    return unweight(np.exp(capped - capped.max()), rng=rng)


def _by_bin(code: IntArray, order: IntArray, count: int) -> list[IntArray]:
    """Rows of each bin, in the given order."""
    ranked = order[np.argsort(code[order], kind="stable")]
    ends = np.cumsum(np.bincount(code, minlength=count))
    return np.split(ranked, ends[:-1])
