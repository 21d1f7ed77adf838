r"""Weights of a classifier that tells data (label 1) from generated events (label 0).

With an output C and priors :math:`\pi_1, \pi_0` of the training sample (counts or sums of weights),

.. math::

    w(x) = \frac{C(x)}{1 - C(x)} \frac{\pi_0}{\pi_1} \approx \frac{p_\mathrm{data}(x)}{p_\mathrm{gen}(x)}

(arXiv:2305.16774, Eq. 1). Everything here works on :math:`\ln w`, the logit plus a constant: a probability in single
precision saturates at 1 where the weight is still finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import EventsError, OptionError

if TYPE_CHECKING:
    from gbistat.typing import BoolArray, FloatArray, IntArray, Json

__all__ = ["Estimate", "Scores", "WeightMoments", "scores_from_probabilities", "weight_moments"]

SATURATED = 6e-8
"""Distance to 0 or 1 below which a probability in single precision no longer says what the weight is."""
HEAVY = 0.02
"""Relative error of the mean of w^2 above which the variance of the weights is not known."""


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error."""

    value: float
    error: float

    def to_list(self) -> list[float]:
        """``[value, error]``, for JSON."""
        return [self.value, self.error]


@dataclass(frozen=True, eq=False)
class Scores:
    """Outputs of a frozen classifier on test events.

    Parameters
    ----------
    logit : array of shape (n,)
        Logit of the probability to be data. Infinite values are allowed: they are weights 0 and infinity.
    is_data : bool array of shape (n,)
        Whether an event is data.
    log_prior : float, default 0
        ``ln(pi_0 / pi_1)`` of the training sample.
    fold : int array of shape (n,), optional
        Which classifier gave an output, where the events were cross-fitted: outputs of different classifiers are not
        compared with each other.
    saturated : float, default 0
        Share of outputs that came as probabilities too close to 0 or 1.

    Raises
    ------
    EventsError
        If shapes do not match, an output is NaN, or a class is missing (in a fold).
    """

    logit: FloatArray
    is_data: BoolArray
    log_prior: float = 0.0
    fold: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    saturated: float = 0.0

    def __post_init__(self) -> None:
        logit = np.asarray(self.logit, dtype=np.float64)
        label = np.asarray(self.is_data, dtype=bool)
        fold = np.asarray(self.fold, dtype=np.int64)
        if fold.size == 0:
            fold = np.zeros(logit.size, dtype=np.int64)
        if logit.ndim != 1 or label.shape != logit.shape or fold.shape != logit.shape:
            raise EventsError(f"scores {logit.shape}, labels {label.shape} and folds {fold.shape} differ in shape")
        bad = int(np.isnan(logit).sum())
        if bad:
            raise EventsError(f"{bad} of {logit.size} classifier outputs are NaN; check the features of these events")
        if not math.isfinite(self.log_prior):
            raise OptionError(
                f"log prior ratio {self.log_prior} is not finite; give ln of two positive numbers of events"
            )
        for name, value in (("logit", logit), ("is_data", label), ("fold", fold)):
            object.__setattr__(self, name, value)
        for k in np.unique(fold):
            of_fold = label[fold == k]
            n_data = int(of_fold.sum())
            if n_data in (0, of_fold.size):
                missing = "data" if n_data == 0 else "generated"
                where = "" if np.unique(fold).size == 1 else f" in fold {k}"
                raise EventsError(f"no {missing} events{where} among {of_fold.size}; a comparison needs both")
        if logit.size == 0:
            raise EventsError("no classifier outputs; a comparison needs data and generated events")

    @property
    def log_weight(self) -> FloatArray:
        """``ln w`` of every event, shape (n,)."""
        result: FloatArray = self.logit + self.log_prior
        return result

    @property
    def data(self) -> FloatArray:
        """``ln w`` of the data events."""
        return self.log_weight[self.is_data]

    @property
    def generated(self) -> FloatArray:
        """``ln w`` of the generated events."""
        return self.log_weight[~self.is_data]

    @property
    def constant(self) -> bool:
        """Whether the classifier gives all events of every fold the same output: it learned nothing."""
        return all(np.ptp(self.logit[self.fold == k]) == 0 for k in np.unique(self.fold))

    def select(self, mask: BoolArray) -> Scores:
        """Scores of some of the events."""
        return replace(self, logit=self.logit[mask], is_data=self.is_data[mask], fold=self.fold[mask])


def scores_from_probabilities(
    probability: FloatArray, is_data: BoolArray, *, log_prior: float = 0.0, fold: IntArray | None = None
) -> Scores:
    """Scores of a classifier of which only probabilities are kept.

    Parameters
    ----------
    probability : array of shape (n,)
        Outputs in [0, 1].
    is_data : bool array of shape (n,)
        Whether an event is data.
    log_prior : float, default 0
        ``ln(pi_0 / pi_1)`` of the training sample.
    fold : int array of shape (n,), optional
        Which classifier gave an output.

    Returns
    -------
    Scores
        With `Scores.saturated` set.

    Raises
    ------
    EventsError
        If an output is outside [0, 1], or as for `Scores`.
    """
    c = np.asarray(probability, dtype=np.float64)
    outside = int(np.sum((c < 0) | (c > 1)))
    if outside:
        raise EventsError(f"{outside} of {c.size} probabilities are outside [0, 1]; give logits to Scores instead")
    with np.errstate(divide="ignore"):
        logit = np.log(c) - np.log1p(-c)
    saturated = float(np.mean((c < SATURATED) | (c > 1 - SATURATED))) if c.size else 0.0
    return Scores(logit, is_data, log_prior, np.zeros(0, dtype=np.int64) if fold is None else fold, saturated)


@dataclass(frozen=True)
class WeightMoments:
    """Moments of the weights.

    Parameters
    ----------
    mean_generated : Estimate
        Mean of w over generated events: the share of data where the generator has any, if w is right.
    mean_inverse_data : Estimate
        Mean of 1/w over data: the share of generated events where there are data.
    variance : float
        Variance of w over generated events, the chi-squared divergence.
    effective_fraction : float
        ``(sum w)^2 / (n sum w^2)`` over generated events.
    spread, skewness : float
        Standard deviation and skewness of ln w over all events with a finite one.
    heavy_tail : bool
        Whether the mean of w^2 has a relative error above 2 %, because few events carry it: its true value may be infinite.
    n_infinite : int
        Events with weight 0 or infinity.
    """

    mean_generated: Estimate
    mean_inverse_data: Estimate
    variance: float
    effective_fraction: float
    spread: float
    skewness: float
    heavy_tail: bool
    n_infinite: int

    @property
    def missing_mass(self) -> Estimate:
        """Share of data where the generator gives nothing."""
        return Estimate(1.0 - self.mean_generated.value, self.mean_generated.error)

    @property
    def spurious_mass(self) -> Estimate:
        """Share of generated events where there are no data."""
        return Estimate(1.0 - self.mean_inverse_data.value, self.mean_inverse_data.error)

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "mean_gen_w": self.mean_generated.to_list(),
            "mean_data_1_over_w": self.mean_inverse_data.to_list(),
            "missing_mass": self.missing_mass.to_list(),
            "spurious_mass": self.spurious_mass.to_list(),
            "var_gen_w": self.variance,
            "ess": self.effective_fraction,
            "std_lnw": self.spread,
            "skew_lnw": self.skewness,
            "heavy_tail": self.heavy_tail,
            "n_infinite": self.n_infinite,
        }


def weight_moments(scores: Scores) -> WeightMoments:
    """Missing and spurious mass, effective sample size, width and skewness of the weights.

    Parameters
    ----------
    scores : Scores
        Of test events.

    Raises
    ------
    EventsError
        If all weights of the generated events are 0.

    Notes
    -----
    Missing mass is only as good as the classifier: one that does not find the missing part gives 0, and one that
    learned noise a positive number with an error that does not know about it. Look at the calibration beside it.
    """
    with np.errstate(over="ignore"):
        w, inverse = np.exp(scores.generated), np.exp(-scores.data)
    finite = w[np.isfinite(w)]
    square = float(np.sum(finite**2))
    if not np.any(w > 0):
        raise EventsError(f"all {w.size} generated events have weight 0: the classifier calls none of them data")
    log_weight = scores.log_weight
    usable = log_weight[np.isfinite(log_weight)]
    spread = float(np.std(usable)) if usable.size else 0.0
    skewness = float(np.mean((usable - usable.mean()) ** 3)) / spread**3 if spread > 1e-12 else 0.0
    error = float(np.std(finite**2)) / math.sqrt(w.size)
    return WeightMoments(
        mean_generated=_mean(w),
        mean_inverse_data=_mean(inverse),
        variance=float(np.var(w)) if finite.size == w.size else math.inf,
        effective_fraction=float(np.sum(finite)) ** 2 / (w.size * square) if square > 0 else 0.0,
        spread=spread,
        skewness=skewness,
        heavy_tail=error > HEAVY * square / w.size,
        n_infinite=int(np.sum(~np.isfinite(log_weight))),
    )


def _mean(values: FloatArray) -> Estimate:
    if not np.all(np.isfinite(values)):
        return Estimate(math.inf, math.inf)
    return Estimate(float(np.mean(values)), float(np.std(values) / math.sqrt(values.size)))
