"""Did the classifier learn the difference or the noise: scores on its own training events beside scores on others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbistat.diagnostics.evidence import log_score
from gbistat.diagnostics.roc import area_under_roc
from gbistat.errors import EventsError, OptionError

if TYPE_CHECKING:
    from gbistat.diagnostics.weights import Estimate, Scores
    from gbistat.typing import FloatArray, Json

__all__ = ["EnsembleStability", "Overfitting", "compare_with_training", "ensemble_stability"]

STABLE = 0.3


@dataclass(frozen=True)
class Overfitting:
    """Training events beside test events.

    Parameters
    ----------
    log_score_train, log_score_test : Estimate
        Held-out log-score and the same on training events.
    auc_train, auc_test : float
        Areas under the ROC curve.
    width_train, width_test : float
        Standard deviations of ln w.
    """

    log_score_train: Estimate
    log_score_test: Estimate
    auc_train: float
    auc_test: float
    width_train: float
    width_test: float

    @property
    def overfit(self) -> bool:
        """Whether the classifier does well on what it saw and worse than a coin on what it did not."""
        train, test = self.log_score_train, self.log_score_test
        return test.value < -3 * test.error and train.value > 3 * train.error

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "S_train": self.log_score_train.to_list(),
            "S_test": self.log_score_test.to_list(),
            "auc_train": self.auc_train,
            "auc_test": self.auc_test,
            "std_lnw_train": self.width_train,
            "std_lnw_test": self.width_test,
            "overfit": self.overfit,
        }


def compare_with_training(train: Scores, test: Scores) -> Overfitting:
    """Log-score, area and width of the weights on training events and on test events.

    Parameters
    ----------
    train, test : Scores
        Of the same classifier.
    """
    return Overfitting(
        log_score(train),
        log_score(test),
        area_under_roc(train).value,
        area_under_roc(test).value,
        _width(train.log_weight),
        _width(test.log_weight),
    )


@dataclass(frozen=True)
class EnsembleStability:
    """Agreement of two halves of an ensemble of classifiers.

    Parameters
    ----------
    correlation : float
        Of ln w.
    rms_ratio : float
        Root mean square difference of the halves, in units of the standard deviation of ln w.
    mean_error : float
        Mean standard error of ln w, from the scatter of the seeds.
    """

    correlation: float
    rms_ratio: float
    mean_error: float

    @property
    def stable(self) -> bool:
        """Whether shapes of the weights may be read: the halves differ by less than 0.3 of what they show."""
        return self.rms_ratio < STABLE

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "correlation": self.correlation,
            "rms_ratio": self.rms_ratio,
            "mean_error": self.mean_error,
            "stable": self.stable,
        }


def ensemble_stability(log_weights: FloatArray) -> EnsembleStability:
    """Compare disjoint halves of an ensemble.

    Parameters
    ----------
    log_weights : array of shape (seeds, n)
        ln w of every seed (epochs of one seed averaged before: they are not independent).

    Raises
    ------
    OptionError
        If there are fewer than two seeds.
    EventsError
        If a value is not finite.
    """
    members = np.asarray(log_weights, dtype=np.float64)
    if members.ndim != 2 or len(members) < 2:
        raise OptionError(f"ln w of an ensemble has shape {members.shape}; give (seeds, n) with at least two seeds")
    if not np.all(np.isfinite(members)):
        raise EventsError("ln w of an ensemble has infinite or NaN values; leave these events out")
    half = len(members) // 2
    first, second = members[:half].mean(axis=0), members[half:].mean(axis=0)
    spread = float(members.mean(axis=0).std())
    constant = min(float(first.std()), float(second.std())) == 0.0
    correlation = 0.0 if constant else float(np.corrcoef(first, second)[0, 1])
    rms = float(np.sqrt(np.mean((first - second) ** 2)))
    error = float(np.mean(members.std(axis=0, ddof=1))) / np.sqrt(len(members))
    return EnsembleStability(correlation, rms / spread if spread > 0 else np.inf, float(error))


def _width(values: FloatArray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.std()) if finite.size else 0.0
