r"""Discovery statistics of background-only toys at every node of a plane of masses, all nodes on the same toys.

At a node the ratios r of signal to background density of a pool of background events are known once and for all. A toy is a Poisson count
:math:`c_i` of each event, and with the background held at its fit without signal, :math:`b`, as in :mod:`gbistat.fit.plane`,

.. math:: q_0 = \max_{\mu \ge 0} 2 \Big[ \sum_i c_i \ln(1 + \mu r_i / b) - \mu \Big].

Only few events have ratios that matter; for the rest the logarithm is a polynomial of fourth degree in :math:`\mu / b`, whose coefficients
are sums of powers of r: matrix products for all toys and nodes. A thousand toys of a plane of 300 nodes cost seconds, and no network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gbistat.typing import FloatArray

__all__ = ["NullYield", "null_maps"]

BATCH = 200
"""Toys at a time."""
BLOCK = 64
"""Nodes at a time."""
REACH = 8.0
"""Strengths up to this many standard deviations have ratios split so that the polynomial is good to `SMALL`**5 / 5 an event."""
SMALL = 0.1
MAX_STEPS = 60
TOLERANCE = 1e-6


@dataclass(frozen=True)
class NullYield:
    """Background yield of toys without signal.

    Parameters
    ----------
    expected : float
        True mean number of events.
    sigma : float
        Standard deviation of an auxiliary measurement of it: 0 for a known yield, infinite for a free one.

    Raises
    ------
    OptionError
        If `expected` is not above 0, or `sigma` negative.
    """

    expected: float
    sigma: float = math.inf

    def __post_init__(self) -> None:
        if not self.expected > 0 or not self.sigma >= 0:
            raise OptionError(f"background of {self.expected:g} +- {self.sigma:g} events: no toys can be drawn")

    def fitted(self, counts: FloatArray, rng: np.random.Generator) -> FloatArray:
        """Yield that fits best without signal, for total counts (n,), with the measurement drawn again."""
        if math.isinf(self.sigma):
            return np.maximum(counts, 1.0)
        if self.sigma == 0.0:
            return np.full(counts.shape, self.expected)
        measured = rng.normal(self.expected, self.sigma, counts.size)
        # The root of 1 - N / b + (b - measured) / sigma^2.
        half = 0.5 * (measured - self.sigma**2)
        return half + np.sqrt(half**2 + counts * self.sigma**2)


def null_maps(
    ratio: FloatArray,
    share: FloatArray,
    background: NullYield,
    n_toys: int,
    *,
    rng: np.random.Generator,
    progress: Callable[[int, int], None] | None = None,
) -> FloatArray:
    """q0 of background-only toys at g nodes.

    Parameters
    ----------
    ratio : array of shape (g, n)
        Ratio of signal to background density of each pool event at each node. It is normalised on the pool: without that an error
        of its mean would shift all toys of a node.
    share : array of shape (n,)
        Background probability of each pool event.
    background : NullYield
        How many events a toy has.
    n_toys : int
        How many toys.
    rng : numpy.random.Generator
        Source of randomness.
    progress : callable, optional
        Told how many toys of how many are done.

    Returns
    -------
    array of shape (n_toys, g)
        The statistic, 0 where no signal fits better than none.

    Raises
    ------
    OptionError
        If shapes do not fit, a share is negative, a ratio vanishes everywhere, or `n_toys` is below 1.
    """
    ratio, share = np.asarray(ratio, dtype=np.float64), np.asarray(share, dtype=np.float64)
    if ratio.ndim != 2 or share.shape != ratio.shape[1:]:
        raise OptionError(f"ratios of shape {ratio.shape} for {share.size} pool events")
    if n_toys < 1:
        raise OptionError(f"{n_toys} toys: at least one is needed")
    if (share < 0).any() or not share.sum() > 0:
        raise OptionError("the shares of pool events must be 0 or more, and not all 0: they are probabilities")
    share = share / share.sum()
    means = ratio @ share
    if not (np.isfinite(means).all() and (means > 0).all()):
        raise OptionError("the ratio vanishes or is not finite over the whole pool at some node")
    nodes = _Nodes(ratio / means[:, None], share, background.expected)
    result = np.empty((n_toys, ratio.shape[0]))
    for begin in range(0, n_toys, BATCH):
        size = min(BATCH, n_toys - begin)
        counts = rng.poisson(background.expected * share, (size, share.size)).astype(np.float64)
        result[begin : begin + size] = nodes.statistics(counts, background.fitted(counts.sum(axis=1), rng))
        if progress is not None:
            progress(begin + size, n_toys)
    return result


class _Nodes:
    """Ratios of all nodes, split into few large and many small ones."""

    def __init__(self, ratio: FloatArray, share: FloatArray, expected: float) -> None:
        sigma = np.sqrt(expected / (ratio**2 @ share))
        self.limit: FloatArray = SMALL * expected / (REACH * sigma)
        self.ratio = ratio
        self.large = [np.flatnonzero(row > limit) for row, limit in zip(ratio, self.limit, strict=True)]

    def statistics(self, counts: FloatArray, background: FloatArray) -> FloatArray:
        """q0, shape (toys, g), for counts (toys, n) and backgrounds (toys,)."""
        result = np.empty((counts.shape[0], self.ratio.shape[0]))
        for begin in range(0, self.ratio.shape[0], BLOCK):
            block = slice(begin, begin + BLOCK)
            moments = self._moments(counts, block)
            for k, column in enumerate(moments.transpose(2, 0, 1), start=begin):
                result[:, k] = self._node(k, column, counts, background)
        return result

    def _moments(self, counts: FloatArray, block: slice) -> FloatArray:
        """Sums of the first four powers of the small ratios, shape (4, toys, nodes of the block)."""
        small = np.where(self.ratio[block] > self.limit[block, None], 0.0, self.ratio[block])
        power, sums = small, []
        for _ in range(4):
            sums.append(counts @ power.T)
            power = power * small
        return np.stack(sums)

    def _node(self, k: int, moments: FloatArray, counts: FloatArray, background: FloatArray) -> FloatArray:
        """q0 of each toy at one node."""
        places = self.large[k]
        # In units of the background: y = mu / b.
        y, q = _maximise(moments, counts[:, places], self.ratio[k, places], background)
        far = np.flatnonzero(y * self.limit[k] > 2.0 * SMALL)
        if far.size:
            none = np.zeros((4, far.size))
            q[far] = _maximise(none, counts[far], self.ratio[k], background[far])[1]
        return q


def _maximise(
    moments: FloatArray, weights: FloatArray, ratio: FloatArray, background: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Strength over background and q0 of each toy, from moments (4, t) of small ratios and weights (t, h) of large ones."""
    y, q = np.zeros(background.size), np.zeros(background.size)
    slope = moments[0] + weights @ ratio - background
    rows = np.flatnonzero(slope > 0.0)
    for _ in range(MAX_STEPS):
        if rows.size == 0:
            break
        at = y[rows]
        one, two, three, four = moments[:, rows]
        share = ratio / (1.0 + at[:, None] * ratio)
        weighted = weights[rows] * share
        slope = one - at * two + at**2 * three - at**3 * four + weighted.sum(axis=1) - background[rows]
        bend = two - 2.0 * at * three + 3.0 * at**2 * four + np.einsum("ij,ij->i", weighted, share)
        # The slope is convex and falling: Newton from below never passes the root.
        step = slope / bend
        y[rows] = np.maximum(at + step, 0.0)
        rows = rows[np.abs(step) > TOLERANCE * y[rows]]
    found = y > 0.0
    at = y[found]
    one, two, three, four = moments[:, found]
    logs = np.einsum("ij,ij->i", weights[found], np.log1p(at[:, None] * ratio))
    q[found] = 2.0 * (
        at * one - at**2 * two / 2.0 + at**3 * three / 3.0 - at**4 * four / 4.0 + logs - at * background[found]
    )
    return y, np.maximum(q, 0.0)
