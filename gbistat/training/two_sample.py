r"""Are these samples the events? A boosted classifier asked about folds after those that it was trained on.

Each event is paired with one sample at the same mass. If the generator is right the members of a pair are exchangeable, and
a pair is never split over folds, so swapping labels within pairs gives the null distribution of any statistic of a
fold's frozen classifier. The classifier of a fold is trained on the folds before it: whatever came before, the pairs of a fold are
exchangeable, and the statistics of the folds are uncorrelated (`gbistat.training.classifiers`). The statistic is the log-score

.. math::

    \bar S = \frac{1}{2n} \sum_i \left[ 2 \ln 2 + \ln C(x_i) + \ln(1 - C(x'_i)) \right],

an estimate of the Jensen-Shannon divergence that is negative for a classifier that learned noise. Where the difference is a
small tail it sees what the area under the ROC curve does not. Swapping the labels of pair i changes 2n S by
:math:`\ell'_i - \ell_i`, the difference of the logits, so that a permutation costs one sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import EventsError, OptionError
from gbistat.terms.generator_quality import TwoSampleTest
from gbistat.training.checks import area_under_curve
from gbistat.training.classifiers import ClassifierOptions, forward_fit

if TYPE_CHECKING:
    from gbistat.typing import FloatArray, IntArray

__all__ = ["TwoSampleOptions", "classify_pairs", "two_sample_test"]

PERMUTED_AT_ONCE = 100


@dataclass(frozen=True)
class TwoSampleOptions:
    """Classifier and null distribution.

    Parameters
    ----------
    folds : int
        A classifier is trained on the folds before one, and asked about that one; the first only trains.
    permutations : int
        Random swaps of the labels within pairs.
    trees, leaves, smallest_leaf : int
        Most trees of a classifier, leaves of a tree, events in a leaf.
    learning_rate : float
        Of the boosting.
    """

    folds: int = 5
    permutations: int = 999
    trees: int = 200
    leaves: int = 16
    smallest_leaf: int = 40
    learning_rate: float = 0.05

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise OptionError(f"folds = {self.folds} must be at least 2")
        if self.permutations < 19:
            raise OptionError(f"permutations = {self.permutations} cannot give a p-value of 0.05; take 19 or more")

    @property
    def classifier(self) -> ClassifierOptions:
        """Classifier of a fold."""
        return ClassifierOptions(
            members=1,
            trees=self.trees,
            leaves=self.leaves,
            smallest_leaf=self.smallest_leaf,
            learning_rate=self.learning_rate,
            validation=0.15,
            patience=15,
        )


def two_sample_test(
    events: FloatArray,
    samples: FloatArray,
    mass: FloatArray,
    *,
    rng: np.random.Generator,
    options: TwoSampleOptions | None = None,
) -> TwoSampleTest:
    """Tell events from samples.

    Parameters
    ----------
    events, samples : array of shape (n, d)
        Features; row i of both has the same mass.
    mass : array of shape (n,)
        Masses, which the classifier is given too.
    rng : numpy.random.Generator
        Folds, classifiers, permutations.
    options : TwoSampleOptions, optional
        Classifier and null distribution.

    Returns
    -------
    TwoSampleTest
        AUC and log-score with their nulls.

    Raises
    ------
    EventsError
        If shapes do not match, values are not finite, or there are too few pairs.
    MissingExtra
        If scikit-learn is not installed.

    Notes
    -----
    The pairs of the first fold train and are not tested: `TwoSampleTest.n_pairs` counts the others.
    """
    options = options or TwoSampleOptions()
    of_events, of_samples, fold = classify_pairs(events, samples, mass, rng=rng, options=options)
    n = of_events.size
    score = float(2.0 * math.log(2.0) - np.mean(np.logaddexp(0.0, -of_events) + np.logaddexp(0.0, of_samples))) / 2.0
    # Swapping pair i replaces ln C(x) + ln(1 - C(x')) by ln C(x') + ln(1 - C(x)): a change of l' - l.
    difference = (of_samples - of_events) / (2.0 * n)
    permuted = score + _random_subset_sums(difference, options.permutations, rng)
    aucs = [area_under_curve(of_events[fold == k], of_samples[fold == k]) for k in range(1, options.folds)]
    sizes = np.bincount(fold, minlength=options.folds)[1:]
    variances = (2 * sizes + 1) / (12.0 * sizes**2)
    return TwoSampleTest(
        n_pairs=int(n),
        auc=float(np.mean(aucs)),
        auc_error=float(np.sqrt(np.sum(variances)) / len(aucs)),
        log_score=score,
        null_mean=score + 0.5 * float(np.sum(difference)),
        null_error=0.5 * float(np.sqrt(np.sum(difference**2))),
        # Ties count against the generator's critic: a constant classifier has p = 1.
        p_value=float((1 + np.sum(permuted >= score - 1e-15)) / (1 + options.permutations)),
    )


def classify_pairs(
    events: FloatArray, samples: FloatArray, mass: FloatArray, *, rng: np.random.Generator, options: TwoSampleOptions
) -> tuple[FloatArray, FloatArray, IntArray]:
    """Logits of the events and samples of all folds but the first, by classifiers of earlier folds, and the fold of each pair."""
    x, g, m = (np.asarray(array, dtype=np.float64) for array in (events, samples, mass))
    if x.shape != g.shape or x.ndim != 2 or m.shape != (len(x),):
        raise EventsError(
            f"events {x.shape}, samples {g.shape} and masses {m.shape} do not pair: give (n, d) twice and (n,)"
        )
    if len(x) < 20 * options.folds:
        raise EventsError(
            f"{len(x)} pairs are too few for a classifier test in {options.folds} folds; give 100 or more"
        )
    for what, array in (("events", x), ("samples", g)):
        bad = int(np.sum(~np.isfinite(array).all(axis=1)))
        if bad:
            raise EventsError(f"{bad} of {len(array)} {what} are NaN or infinite; remove these events")
    fold = rng.permutation(len(x)) % options.folds
    inputs = np.concatenate([np.column_stack([x, m]), np.column_stack([g, m])])
    fitted = forward_fit(inputs, np.arange(len(inputs)) < len(x), np.tile(fold, 2), rng=rng, options=options.classifier)
    of_events, of_samples = np.split(fitted.logit, 2)
    return of_events, of_samples, fold[fold > 0]


def _random_subset_sums(values: FloatArray, count: int, rng: np.random.Generator) -> FloatArray:
    """Sums over random subsets, each element in with probability one half, shape (count,)."""
    sums = np.empty(count)
    for start in range(0, count, PERMUTED_AT_ONCE):
        size = min(PERMUTED_AT_ONCE, count - start)
        packed = rng.integers(256, size=(size, (values.size + 7) // 8), dtype=np.uint8)
        chosen = np.unpackbits(packed, axis=1, count=values.size)
        sums[start : start + size] = chosen.astype(np.float32) @ values.astype(np.float32)
    return sums
