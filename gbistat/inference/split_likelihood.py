"""Evidence for a signal whose density was learned from the same data: e-values by split likelihoods.

The data of each fold k are judged with a density q_k = (1 - w) p_b + w p_s^(k) that is a function of *other* folds only. Under
"background only" with density p_b

    T_k = prod_{i in fold k} q_k(x_i) / p_b(x_i)

has expectation 1 given the other folds (Wasserman, Ramdas and Balakrishnan, arXiv:1912.11436), whatever the networks learned:
an e-value, and ``P(T_k >= 1/alpha) <= alpha`` by Markov's inequality for every number of events.

Two ways to use all folds are valid:

``average``
    Networks of fold k saw all folds but k. The T_k depend on each other through the networks, and of dependent e-values only
    averages are e-values. ``ln`` of the average is about that of the best fold: the evidence of one fold.
``product``
    Networks of fold k saw folds 0 ... k-1 only (prequential; Dawid 1984). Then ``E[T_k | folds before] = 1`` and the running
    product is a martingale: its value after all folds is an e-value that adds up the evidence of all folds but the first. With
    networks that saw *later* folds too this product is **not** an e-value: T_k and T_l both profit from fluctuations that fold k
    and fold l share, and its expectation exceeds 1.

The fraction w in q_k is averaged over a prior: an average of e-values again. A composite null, a set of densities
p_b^(1) ... p_b^(B) and all their mixtures, divides by the largest likelihood of that set instead of by that of p_b. That maximum is
bounded from above with a certificate (`gbistat.inference.mixture_weights`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.special import logsumexp, ndtri, ndtri_exp

from gbistat.errors import EventsError, OptionError
from gbistat.inference.mixture_weights import maximise_mixture

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.typing import FloatArray, Json

__all__ = [
    "DEFAULT_PRIOR",
    "DiscoveryEvidence",
    "FoldRatios",
    "FractionPrior",
    "Scheme",
    "discovery_evidence",
    "log_sum_over_prior",
    "z_of_log_e",
]

Scheme = Literal["average", "product"]


@dataclass(frozen=True, eq=False)
class FractionPrior:
    """Weights of signal fractions in the alternative; each alone gives an e-value, and so does their average.

    Parameters
    ----------
    fractions : array of shape (G,)
        Fractions w, above 0 and below 1.
    probabilities : array of shape (G,), optional
        Their weights, with sum 1; equal by default.

    Raises
    ------
    OptionError
        If a fraction or a weight is outside its range.

    Notes
    -----
    An average over G fractions costs at most ln G against the best of them, which nobody knows before.
    """

    fractions: FloatArray
    probabilities: FloatArray = field(default_factory=lambda: np.empty(0))

    def __post_init__(self) -> None:
        w = np.atleast_1d(np.asarray(self.fractions, dtype=np.float64))
        given = np.atleast_1d(np.asarray(self.probabilities, dtype=np.float64))
        p = given if given.size else np.full(w.size, 1.0 / max(w.size, 1))
        if w.ndim != 1 or w.size == 0 or not np.all((w > 0) & (w < 1)):
            raise OptionError(f"fractions of a prior {w.tolist()} must lie above 0 and below 1")
        if p.shape != w.shape or not np.all(p >= 0) or abs(float(p.sum()) - 1.0) > 1e-9:
            raise OptionError(
                f"{p.size} probabilities with sum {p.sum():.6g} for {w.size} fractions; they must have sum 1"
            )
        object.__setattr__(self, "fractions", w)
        object.__setattr__(self, "probabilities", p)


DEFAULT_PRIOR = FractionPrior(np.geomspace(3e-4, 0.1, 11))
"""Eleven fractions from 0.03 to 10 %, evenly in their logs."""


@dataclass(frozen=True, eq=False)
class FoldRatios:
    """Events of one fold, as log ratios to the background density p_b.

    Parameters
    ----------
    log_ratio : array of shape (M, n)
        ln p_s / p_b by each of M networks that did not see this fold; -inf where a network says 0.
    log_background : array of shape (B, n), optional
        ln p_b^(j) / p_b of the densities whose mixtures are the null; p_b alone by default.
    alternative : array of shape (n,), optional
        ln p_b* / p_b of the background of the alternative, a density chosen without this fold; p_b by default.

    Raises
    ------
    EventsError
        If there are no events, shapes differ, or values are NaN or +inf (events that p_b cannot make).
    """

    log_ratio: FloatArray
    log_background: FloatArray = field(default_factory=lambda: np.empty((0, 0)))
    alternative: FloatArray = field(default_factory=lambda: np.empty(0))

    def __post_init__(self) -> None:
        ratio = np.atleast_2d(np.asarray(self.log_ratio, dtype=np.float64))
        n = ratio.shape[1]
        if ratio.ndim != 2 or ratio.size == 0:
            raise EventsError(
                f"a fold has log ratios of shape {ratio.shape}: it needs at least one event and one network; use fewer folds"
            )
        null = np.asarray(self.log_background, dtype=np.float64)
        null = np.zeros((1, n)) if null.size == 0 else np.atleast_2d(null)
        other = np.asarray(self.alternative, dtype=np.float64)
        other = np.zeros(n) if other.size == 0 else other
        if null.shape[1] != n or other.shape != (n,):
            raise EventsError(f"log ratios of {n} events with backgrounds of shape {null.shape} and {other.shape}")
        for what, values in (("signal", ratio), ("null", null), ("alternative background", other)):
            bad = int(np.sum((np.isnan(values) | np.isposinf(values)).reshape(-1, n).any(axis=0)))
            if bad:
                raise EventsError(
                    f"{bad} of {n} events have a log ratio of the {what} that is NaN or infinite: the background cannot "
                    "make them; leave out events outside its range"
                )
        object.__setattr__(self, "log_ratio", ratio)
        object.__setattr__(self, "log_background", null)
        object.__setattr__(self, "alternative", other)

    @property
    def n_events(self) -> int:
        """Number of events n."""
        return int(self.log_ratio.shape[1])

    @property
    def mixed(self) -> FloatArray:
        """ln of the mean of the networks' densities over p_b, shape (n,)."""
        result: FloatArray = logsumexp(self.log_ratio, axis=0) - math.log(len(self.log_ratio))
        return result

    def log_alternatives(self, fractions: FloatArray) -> FloatArray:
        """ln q(x_i) / p_b(x_i) for fractions of shape (G,): shape (G, n)."""
        w = np.asarray(fractions, dtype=np.float64)[:, None]
        with np.errstate(divide="ignore"):
            result: FloatArray = np.logaddexp(np.log1p(-w) + self.alternative, np.log(w) + self.mixed)
        return result


@dataclass(frozen=True, eq=False)
class DiscoveryEvidence:
    """An e-value against "background only".

    Parameters
    ----------
    log_e : float
        Its natural log; ``p <= min(1, 1/e)``.
    scheme : {"average", "product"}
        How folds were put together.
    log_e_folds : tuple of float
        ln T_k of each fold, each against the null's maximum in that fold.
    null_weights : tuple of array
        Weights of the null's densities at the maximum: one array a fold, or one for all in a product.
    null_gains : tuple of float
        How much the null's maximum lies above ln L of p_b itself, in ln L.
    n_events : int
        Events that were judged.
    """

    log_e: float
    scheme: Scheme
    log_e_folds: tuple[float, ...]
    null_weights: tuple[FloatArray, ...]
    null_gains: tuple[float, ...]
    n_events: int

    @property
    def p_at_most(self) -> float:
        """Upper bound of the p-value, by Markov's inequality."""
        return math.exp(-max(self.log_e, 0.0))

    @property
    def z_at_least(self) -> float:
        """One-sided Gaussian significance of that p-value; 0 where it is a half or more."""
        return z_of_log_e(self.log_e)

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "log_e": self.log_e,
            "p_at_most": self.p_at_most,
            "z_at_least": self.z_at_least,
            "scheme": self.scheme,
            "log_e_folds": list(self.log_e_folds),
            "null_weights": [weights.tolist() for weights in self.null_weights],
            "null_gains": list(self.null_gains),
            "n_events": self.n_events,
        }


def z_of_log_e(log_e: float) -> float:
    """Significance whose one-sided p-value is 1/e, 0 for e below 2; right for any size of e.

    Examples
    --------
    >>> round(z_of_log_e(math.log(1 / 2.866515719e-07)), 6), z_of_log_e(0.3)
    (5.0, 0.0)
    """
    if log_e <= math.log(2.0):
        return 0.0
    return float(-ndtri(math.exp(-log_e)) if log_e < 700.0 else -ndtri_exp(-log_e))


def log_sum_over_prior(log_terms: FloatArray, prior: FractionPrior) -> float:
    """ln of the average over a prior of e-values given as logs, shape (G,)."""
    return float(logsumexp(log_terms, b=prior.probabilities))


def discovery_evidence(
    folds: Sequence[FoldRatios],
    *,
    scheme: Scheme = "average",
    prior: FractionPrior | Sequence[FractionPrior] = DEFAULT_PRIOR,
) -> DiscoveryEvidence:
    """Evidence against "background only", whatever the number of events and however the networks were trained.

    Parameters
    ----------
    folds : sequence of FoldRatios
        Each judged by networks that did not see it; for a product, by networks that saw earlier folds alone.
    scheme : {"average", "product"}
        See the head of this module.
    prior : FractionPrior, or one a fold
        Fractions of the alternative, chosen without the fold. One a fold needs ``scheme="average"``.

    Returns
    -------
    DiscoveryEvidence
        With ``p <= 1 / e``.

    Raises
    ------
    OptionError
        If there are no folds, or priors do not fit.
    EventsError
        If the null cannot make an event.

    Notes
    -----
    ``E[e] <= 1`` if the data are drawn from a mixture of the null's densities. Nothing is said if they are not: a background
    that is wrong in a way that no density of the null has is evidence against the null, and looks like a signal.

    Examples
    --------
    >>> fold = FoldRatios(np.log([[0.5, 30.0, 0.1, 25.0]]))
    >>> evidence = discovery_evidence([fold], prior=FractionPrior(np.array([0.2])))
    >>> round(evidence.log_e, 3), round(evidence.p_at_most, 3)
    (3.371, 0.034)
    """
    priors = _priors(folds, scheme, prior)
    numerators = [fold.log_alternatives(p.fractions).sum(axis=1) for fold, p in zip(folds, priors, strict=True)]
    best = [maximise_mixture(fold.log_background) for fold in folds]
    logs = [
        log_sum_over_prior(top, p) - null.upper_bound for top, p, null in zip(numerators, priors, best, strict=True)
    ]
    if scheme == "average":
        log_e = float(logsumexp(logs)) - math.log(len(logs))
    else:
        best = [maximise_mixture(np.concatenate([fold.log_background for fold in folds], axis=1))]
        log_e = log_sum_over_prior(np.sum(numerators, axis=0), priors[0]) - best[0].upper_bound
    return DiscoveryEvidence(
        log_e,
        scheme,
        tuple(logs),
        tuple(null.weights for null in best),
        tuple(null.value for null in best),
        sum(fold.n_events for fold in folds),
    )


def _priors(
    folds: Sequence[FoldRatios], scheme: Scheme, prior: FractionPrior | Sequence[FractionPrior]
) -> list[FractionPrior]:
    if not folds:
        raise OptionError("there are no folds; give at least one")
    if scheme not in ("average", "product"):
        raise OptionError(f"scheme {scheme!r} is neither 'average' nor 'product'")
    if isinstance(prior, FractionPrior):
        return [prior] * len(folds)
    given = list(prior)
    if len(given) != len(folds):
        raise OptionError(f"{len(given)} priors for {len(folds)} folds; give one for all, or one a fold")
    if scheme == "product":
        raise OptionError("a product over folds needs one prior for all of them")
    return given


def common_backgrounds(folds: Sequence[FoldRatios]) -> int:
    """Number of null densities, which all folds must share.

    Raises
    ------
    EventsError
        If they differ.
    """
    sizes = {len(fold.log_background) for fold in folds}
    if len(sizes) != 1:
        raise EventsError(f"folds have {sorted(sizes)} null densities; all folds need the same")
    return sizes.pop()
