r"""Exact toys of many events: power sums of ``r = p_s / p_b`` in narrow cells, and the few events where that is not enough.

Events are drawn one by one, but a fit does not go through them again: with ``r_i = c_k + d_i`` in cell k,

.. math:: \sum_{i \in k} \ln(n_b + n_s r_i) = N_k \ln \lambda_k + \sum_p \frac{(-1)^{p+1}}{p} x_k^p \sum_{i \in k} d_i^p,
          \qquad \lambda_k = n_b + n_s c_k, \quad x_k = n_s / \lambda_k,

which sums of ``d^p`` up to p = 4 give to the last digits wherever ``|x d|`` is below 0.005. Points for which it may be
larger (the few with the largest ratios) are "hot": their events are kept one by one. So a fit costs as much as that of
a few hundred bins, and agrees with that of the single events. Where the fitted parameters leave the region in which the
sums hold, the toy counts as one that the batch could not fit, and is drawn again from its seed and fitted event by event.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat.errors import MissingExtra
from gbistat.extras import numba
from gbistat.inference.toy_compiled import Points, moment_loop
from gbistat.inference.toy_terms import chain_yields

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from gbistat.inference.toy_basis import BatchYields
    from gbistat.typing import BoolArray, FloatArray, IntArray

__all__ = ["MomentDraw", "MomentSampler", "MomentStream", "MomentTerm", "MomentToys", "compiled_loops", "may_compile"]

ORDER = 4
"""Highest power of the sums."""

NARROW = 0.005
"""Largest ``|x d|`` of a cold point at the largest plausible signal."""

TRUSTED = 0.02
"""Largest ``|x d|`` at the fitted parameters for which the sums are trusted: the error is below its fifth power."""

CELLS = 256
"""About so many cells of points."""

TOGETHER = 16
"""Toys that go through the cells together, so that the points of a cell are fetched from memory once for all of them."""

GROUP = 0.05
"""Relative spread of the expected counts of the points in one cell."""


@dataclass(frozen=True, eq=False)
class MomentToys:
    """Draws of n toys.

    Parameters
    ----------
    counts : array of shape (n, K)
        Events in cold cells.
    sums : array of shape (n, P, K)
        Power sums there.
    hot, present : arrays of shape (n, H)
        Ratios of the events in hot cells, and 1 where there is one.
    n_events : int array of shape (n,)
        All events.
    """

    counts: FloatArray
    sums: FloatArray
    hot: FloatArray
    present: FloatArray
    n_events: IntArray

    def take(self, rows: IntArray) -> MomentToys:
        """Some of the toys."""
        return MomentToys(self.counts[rows], self.sums[rows], self.hot[rows], self.present[rows], self.n_events[rows])


class MomentStream:
    """Random numbers of toys: numbers of proposals from one generator, what becomes of them from the bits of another.

    So the toys are the same however many are drawn at a time.

    Parameters
    ----------
    rng : numpy.random.Generator
        Its child of numbers; SFC64, the fastest of numpy's bit generators, is seeded by a child of it.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.numbers, other = rng.spawn(2)
        self.bits = np.random.SFC64(other.bit_generator.seed_seq)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class MomentDraw:
    """What it takes to draw the events of some toys again: proposals (n, K), first bits (n,), states of groups of toys."""

    proposed: IntArray
    first: IntArray
    states: tuple[Any, ...]


class MomentSampler:
    """Draws toys from points with a ratio, as power sums.

    Parameters
    ----------
    counts : array of shape (n,)
        Expected count of each point.
    ratio : array of shape (n,)
        ``p_s / p_b``, finite.
    largest_slope : float
        Largest plausible ``n_s / n_b`` of a fit, in size.
    compiled : bool
        Whether to use compiled loops.
    """

    def __init__(self, counts: FloatArray, ratio: FloatArray, largest_slope: float, *, compiled: bool) -> None:
        points = np.flatnonzero(counts > 0)
        # Points of equal weight next to each other, so that nearly every proposal is kept, and of equal ratio among them.
        group = np.floor(np.log(counts[points]) / GROUP)
        self.order: IntArray = points[np.lexsort((ratio[points], group))]
        weight, values = counts[self.order], ratio[self.order]
        group = np.sort(group)
        length = max(2048, -(-points.size // CELLS))
        edges = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), points.size]
        begin = np.array([i for low, high in pairwise(edges) for i in range(low, high, length)], dtype=np.int64)
        size = np.diff(np.r_[begin, points.size])
        centre = np.add.reduceat(values, begin) / size
        deviation = values - np.repeat(centre, size)
        self.width: FloatArray = np.maximum.reduceat(np.abs(deviation), begin)
        self.points = Points(
            begin,
            size,
            np.maximum.reduceat(weight, begin),
            np.minimum.reduceat(weight, begin),
            weight,
            # Single precision is enough for a deviation: its error is far below anything that a fit can see.
            deviation.astype(np.float32),
            centre,
            self.width * largest_slope > NARROW,
        )
        self._loop = compiled_loops() if compiled else _loop

    @property
    def row(self) -> float:
        """Numbers that a toy takes in memory."""
        hot: BoolArray = self.points.is_hot
        events: FloatArray = (self.points.size * self.points.largest)[hot]
        return float(events.sum()) + (1 + ORDER) * hot.size

    def draw(self, count: int, stream: MomentStream) -> tuple[MomentToys, MomentDraw]:
        """Draw toys, and what it takes to draw their events again."""
        points = self.points
        cells = points.begin.size
        mean = points.size * points.largest
        proposed = np.stack([stream.numbers.poisson(mean) for _ in range(count)])
        totals = proposed.sum(axis=1)
        # Whole words of 64 bits for each toy, two proposals a word.
        first = np.r_[0, np.cumsum(totals + totals % 2)]
        states = []
        counts, sums = np.zeros((count, cells)), np.zeros((count, ORDER, cells))
        hot = np.zeros((count, int(proposed[:, points.is_hot].sum(axis=1).max(initial=0))))
        used = np.zeros(count, dtype=np.int64)
        for begin in range(0, count, TOGETHER):
            some = slice(begin, begin + TOGETHER)
            states.append(stream.bits.state)
            bits = stream.bits.random_raw(int(first[min(begin + TOGETHER, count)] - first[begin]) // 2).view(np.uint32)
            place = first[:-1][some] - first[begin]
            self._loop(proposed[some], place, bits, points, counts[some], sums[some], hot[some], used[some])
        present = (np.arange(hot.shape[1]) < used[:, None]).astype(np.float64)
        toys = MomentToys(counts, sums, hot, present, counts.sum(axis=1).astype(np.int64) + used)
        return toys, MomentDraw(proposed, first, tuple(states))

    def redraw(self, drawn: MomentDraw, toy: int) -> IntArray:
        """Rows of the pool that one toy's events are."""
        again = np.random.SFC64(0)
        again.state = drawn.states[toy // TOGETHER]
        proposed = drawn.proposed[toy]
        begin, total = int(drawn.first[toy] - drawn.first[toy - toy % TOGETHER]), int(proposed.sum())
        bits = again.random_raw((begin + total + 1) // 2).view(np.uint32)[begin : begin + total]
        offset, refused = _choose(proposed, bits, self.points)
        return self.order[np.delete(offset, refused)]


def _choose(proposed: IntArray, bits: NDArray[np.uint32], points: Points) -> tuple[IntArray, IntArray]:
    """Positions of one toy's proposals, and which proposals are refused: 32 bits decide on both."""
    product = bits * np.repeat(points.size.astype(np.uint64), proposed)
    offset = (product >> np.uint64(32)).view(np.int64) + np.repeat(points.begin, proposed)
    product &= np.uint64(0xFFFFFFFF)
    # The fraction of its weight at which a proposal is refused; most cells hold points of nearly the same weight.
    sure = (points.smallest / points.largest * 2.0**32).astype(np.uint64)
    doubtful = np.flatnonzero(product >= np.repeat(sure, proposed))
    top = np.repeat(points.largest * 2.0**-32, proposed)[doubtful]
    return offset, doubtful[product[doubtful] * top >= points.weight[offset[doubtful]]]


def _loop(
    proposed: IntArray,
    place: IntArray,
    bits: NDArray[np.uint32],
    points: Points,
    counts: FloatArray,
    sums: FloatArray,
    hot: FloatArray,
    used: IntArray,
) -> None:
    """Power sums of some toys, with numpy."""
    cells = points.begin.size
    for toy, number in enumerate(proposed):
        begin = int(place[toy])
        offset, refused = _choose(number, bits[begin : begin + int(number.sum())], points)
        d = points.deviation[offset].astype(np.float64)
        d[refused] = 0.0
        last = np.cumsum(number)
        counts[toy] = number - np.bincount(np.searchsorted(last, refused, side="right"), minlength=cells)
        if points.is_hot.any():
            burning = np.repeat(points.is_hot, number)
            burning[refused] = False
            found = d[burning] + np.repeat(points.centre, number)[burning]
            hot[toy, : found.size] = found
            used[toy] = found.size
            counts[toy, points.is_hot] = 0.0
            d[burning] = 0.0
        some = np.flatnonzero(number)
        if some.size:
            first = (last - number)[some]
            power = d.copy()
            for p in range(ORDER):
                sums[toy, p, some] = np.add.reduceat(power, first)
                power *= d


_COMPILED: dict[str, Callable[..., None]] = {}


def compiled_loops() -> Callable[..., None]:
    """Return the same loop, compiled by numba.

    Raises
    ------
    MissingExtra
        If numba is not installed.
    """
    if "loop" not in _COMPILED:
        _COMPILED["loop"] = numba().njit(moment_loop)
    return _COMPILED["loop"]


def may_compile(wanted: bool | None) -> bool:
    """Whether compiled loops are used: as wanted, or where numba is installed.

    Raises
    ------
    MissingExtra
        If they are wanted and numba is not installed.
    """
    if wanted is None:
        try:
            numba()
        except MissingExtra:
            return False
        return True
    if wanted:
        numba()
    return wanted


@dataclass(frozen=True, eq=False)
class MomentTerm:
    """Data term of n exact toys with two components, as power sums.

    Parameters
    ----------
    yields : BatchYields
        Of two components.
    signal : int
        Which of the two has density ``r``; the other has 1.
    centre, width : arrays of shape (K,)
        Centres of the cells and largest deviation in each; 0 for hot cells.
    toys : MomentToys
        What was drawn.
    scale : float
        Size of the background yield, which keeps logarithms small.
    """

    yields: BatchYields
    signal: int
    centre: FloatArray
    width: FloatArray
    toys: MomentToys
    scale: float

    @property
    def convex(self) -> bool:
        """Whether it is self-concordant in the parameters."""
        return not self.yields.log_scales.any()

    def take(self, rows: IntArray) -> MomentTerm:
        """Some of the toys."""
        return replace(self, toys=self.toys.take(rows))

    def value(self, theta: FloatArray) -> FloatArray:
        """The nll, shape (n,), up to a constant of each toy."""
        yields = self.yields.at(theta)
        x, intensity, warm, allowed = self._at(yields)
        t = self.toys
        total = np.einsum("nk,nk->n", t.counts, np.log(intensity)) + np.einsum("nh,nh->n", t.present, np.log(warm))
        power = x
        for p in range(ORDER):
            total += ((-1.0) ** p / (p + 1)) * np.einsum("nk,nk->n", power, t.sums[:, p])
            power = power * x
        value: FloatArray = yields.sum(axis=1) - total
        return np.where(allowed, value, np.inf)

    def derivatives(self, theta: FloatArray) -> tuple[FloatArray, FloatArray, BoolArray | None]:
        """Gradient (n, p), Hessian (n, p, p), and which toys have a density at all their events."""
        yields, jacobian, second = self.yields.derivatives(theta)
        x, intensity, warm, allowed = self._at(yields)
        t = self.toys
        inverse = 1.0 / (intensity * self.scale)
        # first[m] = sum of d^m / lambda, second[m] = sum of d^m / lambda^2, of the events of each cell.
        powers = [np.ones_like(x), -x]
        for _ in range(ORDER - 1):
            powers.append(powers[-1] * -x)
        counts = [t.counts, *(t.sums[:, p] for p in range(ORDER))]
        first = [sum(powers[p] * counts[p + m] for p in range(ORDER + 1 - m)) * inverse for m in range(2)]
        square = [sum((p + 1) * powers[p] * counts[p + m] for p in range(ORDER + 1 - m)) * inverse**2 for m in range(3)]
        c = self.centre
        single = np.empty((theta.shape[0], 2))
        double = np.empty((theta.shape[0], 2, 2))
        b, s = 1 - self.signal, self.signal
        hot = t.present / (warm * self.scale)
        hot_square = hot / (warm * self.scale)
        single[:, b] = first[0].sum(axis=1) + hot.sum(axis=1)
        single[:, s] = first[0] @ c + first[1].sum(axis=1) + (hot * t.hot).sum(axis=1)
        double[:, b, b] = square[0].sum(axis=1) + hot_square.sum(axis=1)
        cross = square[0] @ c + square[1].sum(axis=1) + (hot_square * t.hot).sum(axis=1)
        double[:, b, s] = double[:, s, b] = cross
        double[:, s, s] = (
            square[0] @ c**2 + 2.0 * (square[1] @ c) + square[2].sum(axis=1) + (hot_square * t.hot**2).sum(axis=1)
        )
        gradient, hessian = chain_yields(1.0 - single, double, jacobian, second)
        return gradient, hessian, allowed

    def _at(self, yields: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, BoolArray]:
        """``x_k``, intensities of cells and of hot events over the scale, and toys for which the sums hold."""
        background, signal = yields[:, 1 - self.signal, None] / self.scale, yields[:, self.signal, None] / self.scale
        intensity = background + signal * self.centre
        warm = background + signal * self.toys.hot
        bad = (intensity <= 0) & (self.toys.counts > 0)
        burnt = (warm <= 0) & (self.toys.present > 0)
        allowed = np.logical_not(np.logical_or(bad.any(axis=1), burnt.any(axis=1)))
        intensity = np.where(intensity > 0, intensity, 1.0)
        warm = np.where(self.toys.present > 0, np.where(warm > 0, warm, 1.0), 1.0)
        x = signal / intensity
        far = (np.abs(x) * self.width > TRUSTED) & (self.toys.counts > 0)
        allowed &= np.logical_not(far.any(axis=1))
        return x, intensity, warm, allowed
