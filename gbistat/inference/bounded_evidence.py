"""Likelihood ratios bounded so that they are evidence against a signal fraction whatever the signal is.

The growth-optimal e-value against ``{(1 - w) p_b + w f : any density f}``, for an alternative q that was learned on other events,
with r = q / p_b, is a product over events of

    g(x) = min{ r(x) / (1 - w), c },     c such that E_b[max(1 - w, r / c)] = 1:

q over its reverse information projection on that set (Larsson, Ramdas and Ruf, arXiv:2402.18810; Gruenwald, de Heide and Koolen,
arXiv:1906.07801). The projection puts f where r is largest. ``E[g] = (1 - w) E_b[g] + w E_f[g] <= 1`` for every f, since
g <= c and ``(1 - w) E_b[g] + w c = E_b[r] = 1``. The sets grow with w, so that a fraction below w is excluded too.

The equation for c is ``E_q[(1 - c (1 - w) / r)_+] = w c``, solved with reference events.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import brentq
from scipy.special import logsumexp

from gbistat.errors import EventsError, OptionError

if TYPE_CHECKING:
    from gbistat.inference.split_likelihood import FoldRatios, FractionPrior
    from gbistat.typing import FloatArray

__all__ = ["BoundedEvidence", "RatioReference", "RatioTail"]

CAUTION = 2.0
"""Standard deviations of the Monte Carlo integral by which the cap c is lowered."""


@dataclass(frozen=True, eq=False)
class RatioReference:
    """Events with which one fold's integrals over p_b and p_s are done; no data among them.

    Parameters
    ----------
    background : array of shape (M, n_b)
        ln p_s / p_b by the fold's networks, of events drawn from p_b.
    signal : array of shape (M, n_s)
        The same, of events drawn from the mean of the networks' p_s.
    background_nulls, signal_nulls : array of shape (B, n), optional
        ln p_b^(j) / p_b of the null's densities; p_b alone by default.
    """

    background: FloatArray
    signal: FloatArray
    background_nulls: FloatArray | None = None
    signal_nulls: FloatArray | None = None

    def __post_init__(self) -> None:
        for name in ("background", "signal"):
            values = np.atleast_2d(np.asarray(getattr(self, name), dtype=np.float64))
            if values.size == 0 or np.isnan(values).any() or np.isposinf(values).any():
                raise EventsError(f"reference log ratios of the {name} are missing, NaN or infinite")
            mixed = logsumexp(values, axis=0) - math.log(len(values))
            nulls = getattr(self, f"{name}_nulls")
            null = np.zeros((1, mixed.size)) if nulls is None else np.atleast_2d(np.asarray(nulls, dtype=np.float64))
            if null.shape[1] != mixed.size:
                raise EventsError(f"{mixed.size} reference events of the {name} with nulls of shape {null.shape}")
            object.__setattr__(self, name, mixed)
            object.__setattr__(self, f"{name}_nulls", null)

    @property
    def plain(self) -> RatioReference:
        """The same events with p_b alone as the null."""
        return RatioReference(self.background, self.signal)


@dataclass(frozen=True, eq=False)
class BoundedEvidence:
    """Bounded e-values of one fold against one background and any signal.

    Parameters
    ----------
    log_r : array of shape (G, n)
        ln q / p_b^(j) of the events, for each fraction of the prior.
    fractions : array of shape (G,)
        These fractions.
    tails : tuple of RatioTail
        Integrals, for each of them.
    """

    log_r: FloatArray
    fractions: FloatArray
    tails: tuple[RatioTail, ...]

    @classmethod
    def of(
        cls, fold: FoldRatios, reference: RatioReference, weights: FloatArray, prior: FractionPrior
    ) -> BoundedEvidence:
        """Evidence of a fold against one mixture of its null densities, with weights of shape (B,).

        Raises
        ------
        OptionError
            If the alternative has a background of its own, or the reference lacks a null density.
        """
        if np.any(fold.alternative):
            raise OptionError("the unrestricted limit needs an alternative with the background p_b itself")
        w = prior.fractions
        log_r = fold.log_alternatives(w) - mixed_null(fold.log_background, weights)
        tails = tuple(RatioTail.of(float(x), reference, weights) for x in w)
        return cls(log_r, w, tails)

    def log_e(self, w: float) -> FloatArray:
        """ln e for each fraction of the prior, shape (G,); 0 for those that H(w) contains."""
        result = np.zeros(self.fractions.size)
        for g, tail in enumerate(self.tails):
            cap = tail.cap(w)
            if cap > 1.0:
                result[g] = float(np.minimum(self.log_r[g] - math.log1p(-w), math.log(cap)).sum())
        return result


def mixed_null(log_nulls: FloatArray, weights: FloatArray) -> FloatArray:
    """ln of a mixture of null densities, shape (n,), of their logs (B, n) and weights (B,)."""
    used = np.flatnonzero(weights)
    result: FloatArray = logsumexp(log_nulls[used], axis=0, b=np.asarray(weights)[used, None])
    return result


@dataclass(frozen=True, eq=False)
class RatioTail:
    """``E_q[(1 - t / r)_+]`` for every t, from reference events of both kinds together.

    An event of the pool stands for q with weight ``q / (a p_b + (1 - a) p_s)``, a the share of background events in the pool:
    the tail, where r is large, is filled by the events of the signal.
    """

    size: int
    log_r: FloatArray
    sums: FloatArray
    """Cumulated sums over events with larger r: the weight over r^0 and r^1, and its square over r^0, r^1 and r^2."""

    @classmethod
    def of(cls, w: float, reference: RatioReference, weights: FloatArray) -> RatioTail:
        """For the alternative with fraction w and a mixture of the null densities, with weights of shape (B,).

        Raises
        ------
        OptionError
            If the reference has other null densities.
        """
        nulls_b, nulls_s = reference.background_nulls, reference.signal_nulls
        if nulls_b is None or nulls_s is None or {len(nulls_b), len(nulls_s)} != {len(weights)}:
            raise OptionError(f"the references do not have {len(weights)} null densities, as the folds do")
        ratio = np.concatenate([reference.background, reference.signal])
        share = reference.background.size / ratio.size
        log_q = np.logaddexp(math.log1p(-w), math.log(w) + ratio)
        log_r = log_q - np.concatenate([mixed_null(nulls_b, weights), mixed_null(nulls_s, weights)])
        weight = np.exp(log_q - np.logaddexp(math.log(share), math.log1p(-share) + ratio))
        order = np.argsort(-log_r)
        log_r, weight = log_r[order], weight[order]
        inverse = np.exp(-log_r)
        terms = [weight, weight * inverse, weight**2, weight**2 * inverse, (weight * inverse) ** 2]
        return cls(ratio.size, log_r, np.cumsum(terms, axis=1))

    def above(self, t: float) -> tuple[float, float]:
        """The expectation and its Monte Carlo standard deviation."""
        k = int(np.searchsorted(-self.log_r, -math.log(t), side="right"))
        if k == 0:
            return 0.0, 1.0 / self.size
        one, first, square, mixed, second = (float(x) for x in self.sums[:, k - 1] / self.size)
        mean = one - t * first
        variance = square - 2.0 * t * mixed + t**2 * second - mean**2
        return mean, math.sqrt(max(variance / self.size, 0.0)) + 1.0 / self.size**1.5

    def cap(self, w: float) -> float:
        """The c of the head of this module, lowered by the Monte Carlo error; 1 at least, where nothing can be gained."""

        def surplus(c: float) -> float:
            value, error = self.above(c * (1.0 - w))
            return value - CAUTION * error - w * c

        if surplus(1.0) <= 0.0:
            return 1.0
        # (1 - w) E_b[g] + w c <= 1 leaves no c above 1 / w.
        top = math.exp(min(float(self.log_r[0]) - math.log1p(-w), -math.log(w)))
        return float(brentq(surplus, 1.0, top, xtol=1e-9, rtol=1e-9)) if surplus(top) < 0.0 else top
