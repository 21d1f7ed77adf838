r"""How strongly events speak against a generator: held-out log-score, tails of the weights, paired e-values.

The log-score, for balanced classes,

.. math::

    \bar S = \frac12 \left[ \langle \ln 2 C \rangle_\mathrm{data} + \langle \ln 2 (1 - C) \rangle_\mathrm{gen} \right]

estimates the Jensen-Shannon divergence in nats where C is right, and is negative on average where the classifier learned noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.special import logsumexp
from scipy.stats import hypergeom

from gbistat.diagnostics.weights import Estimate
from gbistat.errors import OptionError

if TYPE_CHECKING:
    from gbistat.diagnostics.weights import Scores
    from gbistat.typing import FloatArray, Json

__all__ = ["PairedEvidence", "TailTest", "log_score", "paired_evidence", "tail_test", "tail_tests"]

DETECTED = math.log(20.0)
SHARES = (0.001, 0.01, 0.05)


def log_score(scores: Scores) -> Estimate:
    """Balanced held-out log-score in nats, and its standard error.

    Parameters
    ----------
    scores : Scores
        Of test events.
    """
    of_data = math.log(2.0) - np.logaddexp(0.0, -scores.data)
    of_generated = math.log(2.0) - np.logaddexp(0.0, scores.generated)
    value = 0.5 * (float(np.mean(of_data)) + float(np.mean(of_generated)))
    if not math.isfinite(value):
        return Estimate(value, math.inf)
    variance = float(np.var(of_data)) / of_data.size + float(np.var(of_generated)) / of_generated.size
    return Estimate(value, 0.5 * math.sqrt(variance))


@dataclass(frozen=True)
class TailTest:
    """Exact test of one end of the weights.

    Parameters
    ----------
    side : {"high", "low"}
        Large weights, among which data are counted, or small ones, among which generated events are.
    k : int
        Events at that end.
    observed : int
        How many of them are of the class that gathers there.
    expected : float
        How many would be if the classes were exchangeable.
    p_value : float
        Probability of as many or more.
    """

    side: Literal["high", "low"]
    k: int
    observed: int
    expected: float
    p_value: float

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "side": self.side,
            "k": self.k,
            "n_obs": self.observed,
            "n_exp": self.expected,
            "p_hypergeom": self.p_value,
        }


def tail_test(scores: Scores, side: Literal["high", "low"], share: float, *, rng: np.random.Generator) -> TailTest:
    """Count data among the largest weights, or generated events among the smallest.

    For a frozen classifier and exchangeable classes the count is hypergeometric; of several folds, a sum of such.

    Parameters
    ----------
    scores : Scores
        Of test events.
    side : {"high", "low"}
        Which end.
    share : float
        Share of all events that is the end, in (0, 1).
    rng : numpy.random.Generator
        Breaks ties.

    Raises
    ------
    OptionError
        If the share is outside (0, 1).
    """
    if not 0.0 < share < 1.0:
        raise OptionError(f"share {share} of events in the tail must be between 0 and 1")
    observed = total = 0
    expected = 0.0
    distribution = np.ones(1)
    for fold in np.unique(scores.fold):
        rows = scores.fold == fold
        values = scores.log_weight[rows] if side == "low" else -scores.log_weight[rows]
        wanted = scores.is_data[rows] == (side == "high")
        k = max(1, round(share * values.size))
        chosen = np.lexsort((rng.random(values.size), values))[:k]
        observed += int(wanted[chosen].sum())
        total += k
        own = hypergeom(values.size, int(wanted.sum()), k)
        expected += float(own.mean())
        if np.unique(scores.fold).size == 1:
            return TailTest(side, k, observed, expected, float(own.sf(observed - 1)))
        distribution = np.convolve(distribution, own.pmf(np.arange(k + 1)))
    return TailTest(side, total, observed, expected, float(min(1.0, distribution[observed:].sum())))


def tail_tests(scores: Scores, *, rng: np.random.Generator, shares: tuple[float, ...] = SHARES) -> tuple[TailTest, ...]:
    """Both ends at 0.1, 1 and 5 % of the events, or other shares.

    Parameters
    ----------
    scores : Scores
        Of test events.
    rng : numpy.random.Generator
        Breaks ties.
    shares : tuple of float
        Shares of all events.
    """
    sides: tuple[Literal["high", "low"], ...] = ("high", "low")
    return tuple(tail_test(scores, side, share, rng=rng) for side in sides for share in shares)


@dataclass(frozen=True)
class PairedEvidence:
    """Evidence from random pairs of one data and one generated event.

    Parameters
    ----------
    log_e : float
        Natural log of the e-value: over 20, data and generated events are told apart at 5 %, whenever one looks.
    n_pairs : int
        Pairs.
    mean : Estimate
        Log evidence of one pair.
    """

    log_e: float
    n_pairs: int
    mean: Estimate

    @property
    def n_needed(self) -> float:
        """Pairs that evidence 20:1 takes; infinite where pairs do not speak against the generator."""
        return DETECTED / self.mean.value if self.mean.value > 0 else math.inf

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "log10_e_paired": self.log_e / math.log(10.0),
            "n_pairs": self.n_pairs,
            "mean_log_e": self.mean.to_list(),
            "n_det": self.n_needed,
        }


def paired_evidence(scores: Scores, *, rng: np.random.Generator) -> PairedEvidence:
    r"""Paired e-value :math:`\prod_i 2 w(d_i) / (w(d_i) + w(g_i))`; of several folds, the mean of theirs.

    Under exchange within a pair each factor has mean 1, so that the e-value is at least 1/alpha with probability at most
    alpha, also when more events are added until it is. The mean of e-values is one, however they depend on each other.

    Parameters
    ----------
    scores : Scores
        Of test events.
    rng : numpy.random.Generator
        Makes the pairs.
    """
    logs: list[float] = []
    all_pairs: list[FloatArray] = []
    for fold in np.unique(scores.fold):
        rows = scores.fold == fold
        data = rng.permutation(scores.log_weight[rows & scores.is_data])
        generated = rng.permutation(scores.log_weight[rows & ~scores.is_data])
        n = min(data.size, generated.size)
        same = data[:n] == generated[:n]  # also where both are infinite
        difference = np.where(same, 0.0, data[:n] - np.where(same, 0.0, generated[:n]))
        pairs = math.log(2.0) - np.logaddexp(0.0, -difference)
        pairs[same] = 0.0
        logs.append(float(pairs.sum()))
        all_pairs.append(pairs)
    values = np.concatenate(all_pairs)
    # A data event with weight 0 makes its pair, and the product, 0.
    error = float(values.std() / math.sqrt(values.size)) if np.all(np.isfinite(values)) else math.inf
    mean = Estimate(float(values.mean()), error)
    return PairedEvidence(float(logsumexp(logs) - math.log(len(logs))), values.size, mean)
