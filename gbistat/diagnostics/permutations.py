"""Null distribution of the statistics of a frozen classifier: labels of test events permuted, scores kept.

If data and generated test events are exchangeable and the classifier has seen neither, every permutation of the labels is as
probable as the observed one, so ``p = (1 + #{T* >= T}) / (B + 1)`` is exact. The family of statistics is judged by the
largest of them in units of their null widths (Westfall and Young): the correlation between them is in the permutations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtri
from scipy.stats import rankdata

from gbistat.errors import EventsError, OptionError

if TYPE_CHECKING:
    from gbistat.diagnostics.weights import Scores
    from gbistat.typing import BoolArray, FloatArray, IntArray, Json

__all__ = ["FAMILY", "PermutationTest", "Statistic", "permutation_labels", "permutation_test"]

FAMILY = ("log_score", "auc", "high_tail", "low_tail", "weight_bins")
TAIL = 0.01
BINS = 20
BATCH = 64


@dataclass(frozen=True)
class Statistic:
    """One statistic of the family.

    Parameters
    ----------
    name : str
        One of `FAMILY`.
    value : float
        On the data.
    null_mean, null_width : float
        Over the permutations.
    p_value : float
        Of this statistic alone.
    z_null : float
        Distance to the null mean in units of the null width; no significance, since the null is no Gaussian.
    """

    name: str
    value: float
    null_mean: float
    null_width: float
    p_value: float
    z_null: float

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "value": self.value,
            "p_perm": self.p_value,
            "z_perm": self.z_null,
            "null": {"mean": self.null_mean, "std": self.null_width},
        }


@dataclass(frozen=True, eq=False)
class PermutationTest:
    """Family of statistics with one p-value.

    Parameters
    ----------
    statistics : tuple of Statistic
        Each alone.
    p_global : float
        That the largest of them is as large by chance.
    n_permutations : int
        Of the labels.
    null : array of shape (n_permutations, number of statistics)
        Statistics of permuted labels.
    """

    statistics: tuple[Statistic, ...]
    p_global: float
    n_permutations: int
    null: FloatArray

    def __getitem__(self, name: str) -> Statistic:
        for statistic in self.statistics:
            if statistic.name == name:
                return statistic
        raise KeyError(name)

    @property
    def z_ceiling(self) -> float:
        """Largest significance that so many permutations can show."""
        return float(ndtri(self.n_permutations / (self.n_permutations + 1.0)))

    @property
    def z_global(self) -> float:
        """Significance of `p_global`; at `z_ceiling` it is a lower bound."""
        return float(-ndtri(self.p_global)) if self.p_global < 1.0 else -math.inf


def permutation_labels(
    is_data: BoolArray, fold: IntArray, count: int, *, rng: np.random.Generator, pair: IntArray | None = None
) -> BoolArray:
    """Permuted labels, shape (count, n): within folds, or swapped within pairs.

    Parameters
    ----------
    is_data : bool array of shape (n,)
        Labels.
    fold : int array of shape (n,)
        Folds.
    count : int
        Permutations.
    rng : numpy.random.Generator
        Permutes.
    pair : int array of shape (n,), optional
        Number of the pair of each event; each pair has one data and one generated event, both in the same fold.

    Raises
    ------
    EventsError
        If a pair has not one event of each kind.
    """
    labels = np.empty((count, is_data.size), dtype=bool)
    if pair is not None:
        unique, index = np.unique(pair, return_inverse=True)
        if not (np.bincount(index[is_data], minlength=unique.size) == 1).all() or is_data.size != 2 * unique.size:
            raise EventsError("every pair must have one data and one generated event")
        swap = rng.integers(2, size=(count, unique.size), dtype=np.int8).astype(bool)
        np.not_equal(is_data[None], swap[:, index], out=labels)
        return labels
    groups = [np.flatnonzero(fold == k) for k in np.unique(fold)]
    for row in labels:
        for rows in groups:
            row[rows] = rng.permutation(is_data[rows])
    return labels


def permutation_test(
    scores: Scores, *, rng: np.random.Generator, permutations: int = 999, pair: IntArray | None = None
) -> PermutationTest:
    """Judge log-score, area under the ROC curve, both tails and the bins of the weights together.

    Parameters
    ----------
    scores : Scores
        Of test events, from classifiers that saw none of them.
    rng : numpy.random.Generator
        Permutes, and breaks ties.
    permutations : int, default 999
        Number of permutations; the smallest p-value is one over it plus one.
    pair : int array of shape (n,), optional
        Pairs of a data and a generated event, whose labels are swapped instead: right where generated events were made at
        the masses of the data.

    Raises
    ------
    OptionError
        If there are fewer than 19 permutations, which cannot give 0.05.
    """
    if permutations < 19:
        raise OptionError(f"permutations = {permutations} cannot give a p-value of 0.05; take 19 or more")
    family = _Family(scores, rng)
    observed = family(scores.is_data[None])[0]
    null = np.concatenate(
        [
            family(
                permutation_labels(scores.is_data, scores.fold, min(BATCH, permutations - start), rng=rng, pair=pair)
            )
            for start in range(0, permutations, BATCH)
        ]
    )
    pooled = np.concatenate([observed[None], null])
    # The observed statistic is one of the exchangeable ones, so it enters mean and width as the others do.
    mean, width = pooled.mean(axis=0), pooled.std(axis=0)
    scaled = np.divide(pooled - mean, width, out=np.zeros_like(pooled), where=width > 0)
    largest = scaled.max(axis=1)
    own_mean, own_width = null.mean(axis=0), null.std(axis=0)
    statistics = tuple(
        Statistic(
            name,
            float(observed[j]),
            float(own_mean[j]),
            float(own_width[j]),
            _p_value(observed[j], null[:, j]),
            float((observed[j] - own_mean[j]) / own_width[j]) if own_width[j] > 0 else 0.0,
        )
        for j, name in enumerate(FAMILY)
    )
    return PermutationTest(statistics, _p_value(largest[0], largest[1:]), permutations, null)


def _p_value(observed: float, null: FloatArray) -> float:
    """Ties count for the null; rounding of sums in another order must not break them."""
    margin = 1e-9 * max(1.0, abs(float(observed)))
    return float((1 + np.sum(null >= observed - margin)) / (1 + null.size))


class _Family:
    """The statistics as sums over labels, prepared once: what a permutation costs is one matrix product."""

    def __init__(self, scores: Scores, rng: np.random.Generator) -> None:
        n = scores.logit.size
        self.n_data = int(scores.is_data.sum())
        self.n_generated = n - self.n_data
        log_weight = scores.log_weight
        # ln 2C for data and ln 2(1 - C) for generated events; infinite weights are cut where a float can still add them.
        bounded = np.clip(log_weight, -500.0, 500.0)
        self.if_data = math.log(2.0) - np.logaddexp(0.0, -bounded)
        self.if_generated = math.log(2.0) - np.logaddexp(0.0, bounded)
        self.rank = np.empty(n)
        self.rank_offset = 0.0
        self.high, self.low = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
        self.bin = np.empty(n, dtype=np.int64)
        for k in np.unique(scores.fold):
            rows = np.flatnonzero(scores.fold == k)
            n1 = int(scores.is_data[rows].sum())
            n0 = rows.size - n1
            share = rows.size / n
            self.rank[rows] = share * rankdata(log_weight[rows]) / (n1 * n0)
            self.rank_offset += share * (0.5 * (n1 + 1) / n0 + 0.5)
            order = rows[np.lexsort((rng.random(rows.size), log_weight[rows]))]
            tail = max(1, round(TAIL * rows.size))
            self.low[order[:tail]] = self.high[order[-tail:]] = True
            self.bin[order] = np.arange(rows.size) * BINS // rows.size
        self.sizes = np.bincount(self.bin, minlength=BINS)
        self.difference = self.if_data - self.if_generated

    def __call__(self, labels: BoolArray) -> FloatArray:
        """Statistics, each larger for a worse generator, shape (number of labellings, number of statistics)."""
        return np.stack([self._statistics(label) for label in labels])

    def _statistics(self, label: BoolArray) -> FloatArray:
        n1, n0 = self.n_data, self.n_generated
        data = np.flatnonzero(label)
        of_data = float(self.if_data[data].sum())
        of_generated = float(self.if_generated.sum()) - of_data + float(self.difference[data].sum())
        share = n1 / (n1 + n0)
        counts = np.bincount(self.bin[data], minlength=BINS)
        pulls = (counts - share * self.sizes) / np.sqrt(np.maximum(self.sizes, 1) * share * (1 - share))
        return np.array(
            [
                0.5 * (of_data / n1 + of_generated / n0),
                abs(float(self.rank[data].sum()) - self.rank_offset),
                np.count_nonzero(self.high[data]),
                np.count_nonzero(self.low) - np.count_nonzero(self.low[data]),
                np.abs(pulls).max(),
            ]
        )
