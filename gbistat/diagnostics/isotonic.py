"""Isotonic recalibration: weights made right on average at every size, with events that do not judge them.

A monotone function of ln w is fitted to the labels (pool adjacent violators) on all folds but one and applied to that one. The order of
the events within a fold stays, and with it the ROC curve.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import isotonic_regression

from gbistat.errors import OptionError

if TYPE_CHECKING:
    from gbistat.diagnostics.weights import Scores
    from gbistat.typing import BoolArray, FloatArray, IntArray

__all__ = ["recalibrated"]

OUTERMOST = 50
"""Events at either end whose mean level bounds the weights: a few events of one class would give weights 0 and infinity."""


def recalibrated(scores: Scores, *, rng: np.random.Generator, fold: IntArray | None = None) -> Scores:
    """Weights after isotonic recalibration, cross-fitted.

    Parameters
    ----------
    scores : Scores
        Of test events.
    rng : numpy.random.Generator
        Makes two halves where there are no folds.
    fold : int array of shape (n,), optional
        Folds: a weight is recalibrated with events of other folds. By default those of the scores if there are several,
        or else two random halves.

    Returns
    -------
    Scores
        The same events with other weights, in the folds that were used; with a log prior of 0.

    Raises
    ------
    OptionError
        If `fold` has one value only.
    """
    if fold is None:
        several = np.unique(scores.fold).size > 1
        fold = scores.fold if several else rng.permutation(scores.logit.size) % 2
    folds = np.unique(fold)
    if folds.size < 2:
        raise OptionError("one fold leaves no events to recalibrate with; give two or more")
    x, label = scores.log_weight, scores.is_data
    result: FloatArray = np.empty(x.size)
    for k in folds:
        other = fold != k
        order = np.argsort(x[other], kind="stable")
        known = x[other][order]
        n_data = int(label[other].sum())
        # Classes count equally: the fit is to the probability of equal priors.
        own = np.where(label[other][order], 0.5 / n_data, 0.5 / (known.size - n_data))
        fitted = isotonic_regression(label[other][order].astype(np.float64), weights=own).x
        # Where no event is, the level of the nearest one below; beyond the ends that of the end.
        place = np.clip(np.searchsorted(known, x[~other], side="right") - 1, 0, known.size - 1)
        log_prior = np.log((known.size - n_data) / n_data)
        ends = [
            _log_odds(label[other][order][rows]) + log_prior for rows in (slice(OUTERMOST), slice(-OUTERMOST, None))
        ]
        with np.errstate(divide="ignore"):
            values = np.log(fitted[place]) - np.log1p(-fitted[place])
        result[~other] = np.clip(values, min(ends), max(ends))
    return replace(scores, logit=result, log_prior=0.0, fold=fold, saturated=0.0)


def _log_odds(label: BoolArray) -> float:
    """Log odds of data among some events, half an event of each class added."""
    n_data = float(label.sum())
    return float(np.log(n_data + 0.5) - np.log(label.size - n_data + 0.5))
