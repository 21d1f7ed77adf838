r"""Confidence belts in closed form: Feldman and Cousins, arXiv:physics/9711021, without toys.

A value of the parameter is in the interval if the outcomes that rank above the observed one have less than the wanted
probability. Outcomes are ranked by the likelihood ratio of Eq. (4.3), with the best physically allowed parameter in the
denominator. For a count n with signal mean mu and known background b,

    ln R(n) = n ln(lambda / beta_n) + beta_n - lambda,      lambda = mu + b,  beta_n = max(n, b).

With the convex function ``phi(n) = n ln beta_n - beta_n``, a count m > n ranks above n where lambda exceeds

    lambda_nm = exp( [phi(m) - phi(n)] / (m - n) ),

and a count m < n where lambda is below it. So the set of better counts changes at known points, between which the summed
probability is a difference of incomplete gamma functions: ends are found to machine precision, without a grid in mu.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import brentq
from scipy.special import gammaincc, gammaln, ndtr, ndtri

from gbistat.errors import OptionError
from gbistat.inference.results import IntervalResult

if TYPE_CHECKING:
    from collections.abc import Callable

    from gbistat.typing import FloatArray, IntArray

__all__ = [
    "gaussian_interval",
    "gaussian_tmu_cdf",
    "poisson_acceptance",
    "poisson_interval",
    "poisson_sensitivity",
    "poisson_upper_ends",
]

METHOD = "feldman-cousins-exact"
TABLE_STEP, TABLE_END = 0.001, 25.0
"""Grid of backgrounds that the published tables were made monotonic on (section IV B of the paper)."""


def poisson_interval(n: int, background: float, *, cl: float = 0.90, published: bool = False) -> IntervalResult:
    """Feldman-Cousins interval for the mean of a Poisson signal over a known background.

    Parameters
    ----------
    n : int
        Observed count.
    background : float
        Expected background events, 0 or more.
    cl : float, default 0.90
        Confidence level.
    published : bool, default False
        Give what the paper's Tables II to IX print: the hull of the set, and an upper end that does not rise when the
        background does (the largest that any background above this one gives).

    Returns
    -------
    IntervalResult
        Of the signal mean. Without `published` these are the exact segments of the construction.

    Raises
    ------
    OptionError
        If the count or the background is negative, or `cl` is not between 0 and 1.

    Notes
    -----
    Counts are discrete, so the intervals cover more often than `cl` for most means, and never less often. The monotonic
    adjustment lengthens some of them: 0.95 becomes 1.08 for n = 0, b = 3 at 90 %.

    Examples
    --------
    >>> [round(end, 2) for end in poisson_interval(4, 0.0).segments[0]]
    [1.47, 8.6]
    >>> poisson_interval(0, 3.0).high < poisson_interval(0, 3.0, published=True).high
    True
    """
    _check(n, background, cl)
    segments = _poisson_segments(n, background, cl)
    notes: tuple[str, ...] = ()
    if published:
        high = segments[-1][1]
        if background < TABLE_END:
            grid = np.arange(background, TABLE_END + 0.5 * TABLE_STEP, TABLE_STEP)
            high = max(high, float(poisson_upper_ends(n, grid, cl=cl).max()))
        segments = [(segments[0][0], high)]
        notes = ("hull of the set, with an upper end that does not rise with the background, as published",)
    elif len(segments) > 1:
        notes = (f"the set has {len(segments)} pieces: the count is discrete",)
    return IntervalResult("mu", cl, tuple(segments), max(0.0, n - background), math.nan, METHOD, notes)


def poisson_upper_ends(n: int, backgrounds: FloatArray, *, cl: float = 0.90) -> FloatArray:
    """Upper ends of the plain construction for one count and many backgrounds at once.

    Parameters
    ----------
    n : int
        Observed count.
    backgrounds : array of shape (k,)
        Expected background events.
    cl : float, default 0.90
        Confidence level.

    Returns
    -------
    array of shape (k,)
        Upper ends, without the adjustment of the published tables: they are not monotonic.

    Raises
    ------
    OptionError
        If the count or a background is negative, or `cl` is not between 0 and 1.
    """
    b = np.atleast_1d(np.asarray(backgrounds, dtype=np.float64))
    _check(n, float(b.min()), cl)
    log_b = np.log(np.maximum(b, 1e-300))
    own = _phi(n, b, log_b)
    right = np.exp(_phi(n + 1, b, log_b) - own)
    best = right
    m = n + 1
    while True:
        left, right = right, np.exp((_phi(m + 1, b, log_b) - own) / (m + 1 - n))
        rises, falls = _crossings(n, m, cl)
        ends_inside = (right < rises) | (right > falls)
        begins_inside = (left < rises) & ~ends_inside
        best = np.where(ends_inside, right, np.where(begins_inside, rises, best))
        if _beyond(n, m, left, right, cl):
            return np.maximum(best - b, 0.0)
        m += 1


def poisson_acceptance(mu: float, background: float, *, cl: float = 0.90) -> tuple[int, int]:
    """Counts accepted at a signal mean: the horizontal line of the confidence belt.

    Parameters
    ----------
    mu, background : float
        Means of signal and background, 0 or more.
    cl : float, default 0.90
        Confidence level.

    Returns
    -------
    tuple of 2 int
        Smallest and largest accepted count. Their probability is at least `cl`.

    Raises
    ------
    OptionError
        If a mean is negative or `cl` is not between 0 and 1.

    Examples
    --------
    >>> poisson_acceptance(0.5, 3.0)  # Table I of the paper
    (0, 6)
    """
    _check(0, min(mu, background), cl)
    mean, b = mu + background, np.array(background)
    n = np.arange(int(mean + 12.0 * math.sqrt(mean + 1.0) + 20.0))
    ratio = (
        n * math.log(mean) - mean - _phi(n, b, np.log(np.maximum(b, 1e-300)))
        if mean > 0
        else np.where(n == 0, 0.0, -np.inf)
    )
    mass = np.exp(n * math.log(mean) - mean - gammaln(n + 1.0)) if mean > 0 else np.where(n == 0, 1.0, 0.0)
    order = np.argsort(-ratio, kind="stable")
    before = np.cumsum(mass[order]) - mass[order]
    accepted = order[before < cl]
    return int(accepted.min()), int(accepted.max())


def poisson_sensitivity(background: float, *, cl: float = 0.90, published: bool = True) -> float:
    """Mean upper end over an ensemble of experiments without signal, Table XII of arXiv:physics/9711021.

    Parameters
    ----------
    background : float
        Expected background events, 0 or more.
    cl : float, default 0.90
        Confidence level.
    published : bool, default True
        With the monotonic adjustment of the published tables.

    Raises
    ------
    OptionError
        If the background is negative or `cl` is not between 0 and 1.

    Examples
    --------
    >>> round(poisson_sensitivity(0.0), 2)
    2.44
    """
    _check(0, background, cl)
    n = np.arange(int(background + 9.0 * math.sqrt(background) + 2.0)) if background > 0 else np.arange(1)
    mass = np.exp(n * math.log(background) - background - gammaln(n + 1.0)) if background > 0 else np.ones(1)
    ends = [poisson_interval(int(k), background, cl=cl, published=published).high for k in n]
    return float(sum(p * end for p, end in zip(mass, ends, strict=True) if end is not None))


def gaussian_tmu_cdf(t: float, mu: float) -> float:
    """Probability that ``-2 ln R`` of a Gaussian of unit width with mean ``mu >= 0`` is below a value.

    With the best fit held at 0 or above the statistic is ``(x - mu)^2`` for ``x >= 0`` and ``mu^2 - 2 x mu`` below: the
    distribution of Eq. (43) of arXiv:1007.1727, and what a likelihood-ratio ordering tends to in large samples.

    Parameters
    ----------
    t : float
        Value of the statistic.
    mu : float
        Mean in units of the width.
    """
    if t <= 0:
        return 0.0
    root = math.sqrt(t)
    if root <= mu:
        return float(ndtr(root) - ndtr(-root))
    return float(ndtr(root) - (ndtr(-0.5 * (t + mu * mu) / mu) if mu > 0 else 0.0))


def gaussian_interval(x: float, *, sigma: float = 1.0, cl: float = 0.90) -> IntervalResult:
    """Feldman-Cousins interval for a mean that cannot be negative, measured with a Gaussian error.

    Parameters
    ----------
    x : float
        Measured value.
    sigma : float, default 1
        Its standard deviation.
    cl : float, default 0.90
        Confidence level.

    Returns
    -------
    IntervalResult
        Of the mean, in the units of `x`: Table X of arXiv:physics/9711021 for ``sigma = 1``.

    Raises
    ------
    OptionError
        If a number is not finite, `sigma` not above 0, or `cl` not between 0 and 1.

    Examples
    --------
    >>> [round(end, 2) for end in gaussian_interval(2.0).segments[0]]
    [0.58, 3.64]
    """
    if not (math.isfinite(x) and math.isfinite(sigma) and sigma > 0):
        raise OptionError(f"measured value {x:g} and sigma {sigma:g} must be finite, sigma above 0")
    _check(0, 0.0, cl)
    x0 = x / sigma
    quantile = float(ndtri(0.5 * (1.0 + cl)))

    def excess(mu: float) -> float:
        t = (x0 - mu) ** 2 if x0 >= 0 else mu * (mu - 2.0 * x0)
        return gaussian_tmu_cdf(t, mu) - cl

    # Above the measured value the better outcomes are symmetric about mu, unless the value is negative.
    high = x0 + quantile if x0 >= 0 else _root(excess, 0.0, quantile)
    low = _root(excess, 0.0, x0) if x0 > 0 and ndtr(x0) >= cl else 0.0
    return IntervalResult("mu", cl, ((low * sigma, high * sigma),), max(0.0, x), math.nan, METHOD)


def _check(n: int, background: float, cl: float) -> None:
    if not 0.0 < cl < 1.0:
        raise OptionError(f"confidence level {cl:g} must lie between 0 and 1, for example 0.90")
    if n != int(n) or n < 0:
        raise OptionError(f"observed count {n!r} must be a whole number of 0 or more")
    if not (math.isfinite(background) and background >= 0):
        raise OptionError(f"expected events {background:g} must be finite and 0 or more")


def _phi(n: FloatArray | IntArray | int, background: FloatArray, log_background: FloatArray) -> FloatArray:
    """``n ln max(n, b) - max(n, b)``, convex in n."""
    count = np.asarray(n, dtype=np.float64)
    above = count * np.log(np.maximum(count, 1e-300)) - count
    result: FloatArray = np.where(background > count, count * log_background - background, above)
    return result


def _switch(n: int, m: int, background: float) -> float:
    """Mean of the count at which n and m rank alike."""
    b = np.array(background)
    log_b = np.log(np.maximum(b, 1e-300))
    return math.exp(float(_phi(m, b, log_b) - _phi(n, b, log_b)) / (m - n))


def _between(n: FloatArray | int, m: FloatArray | int, mean: FloatArray) -> FloatArray:
    """Probability of the counts n + 1 ... m; n may be -1."""
    above = np.asarray(n, dtype=np.float64)
    below = np.where(above >= 0, gammaincc(np.maximum(above, 0.0) + 1.0, mean), 0.0)
    result: FloatArray = gammaincc(np.asarray(m, dtype=np.float64) + 1.0, mean) - below
    return result


@lru_cache(maxsize=4096)
def _crossings(n: int, m: int, level: float) -> tuple[float, float]:
    """Means between which the counts n + 1 ... m have at least a probability, which has one maximum."""
    # d/dmean P(n + 1 ... m) = P(n) - P(m), which vanishes at the geometric mean of n + 1 ... m.
    peak = math.exp(float(gammaln(m + 1.0) - gammaln(n + 1.0)) / (m - n)) if n >= 0 else 0.0

    def excess(mean: float) -> float:
        return float(_between(n, m, np.array(mean))) - level

    if excess(peak) < 0:
        return math.inf, math.inf
    far = m + 1.0
    while excess(far) > 0:
        far *= 2.0
    rises = 0.0 if n < 0 else _root(excess, 0.0, peak)
    return rises, _root(excess, peak, far)


def _beyond(n: int, m: int, left: FloatArray, right: FloatArray, cl: float) -> bool:
    """Whether no mean beyond a piece accepts n: what ranks above n has much more than the wanted probability.

    Both tails left out shrink from piece to piece as the mean grows, so one piece with a margin is enough.
    """
    rises, falls = _crossings(n, m, 1.0 - 0.1 * (1.0 - cl))
    return bool(np.all((left > rises) & (right < falls)))


def _root(function: Callable[[float], float], inside: float, outside: float) -> float:
    return float(brentq(function, inside, outside, xtol=1e-12, rtol=1e-14))


def _pieces(n: int, background: float, cl: float) -> list[tuple[int, int, float, float]]:
    """Ranges of the mean with the counts ``first + 1 ... last`` that rank above n, from the smallest mean on."""
    pieces = []
    left = background
    for k in range(n):
        right = max(_switch(k, n, background), background)
        if right > left:
            pieces.append((k - 1, n - 1, left, right))
        left = right
    right = max(_switch(n, n + 1, background), background)
    pieces.append((n, n, left, right))
    m = n + 1
    while True:
        left, right = right, _switch(n, m + 1, background)
        pieces.append((n, m, left, right))
        if _beyond(n, m, np.array(left), np.array(right), cl):
            return pieces
        m += 1


def _poisson_segments(n: int, background: float, cl: float) -> list[tuple[float, float]]:
    """All means of the signal that accept n, as separate segments."""
    found: list[tuple[float, float]] = []
    for first, last, left, right in _pieces(n, background, cl):
        for low, high in _accepted(first, last, left, right, cl):
            if found and low <= found[-1][1] + 1e-12:
                found[-1] = (found[-1][0], high)
            else:
                found.append((low, high))
    return [(max(low - background, 0.0), max(high - background, 0.0)) for low, high in found]


def _accepted(first: int, last: int, left: float, right: float, cl: float) -> list[tuple[float, float]]:
    """Parts of one piece where the counts first + 1 ... last, which rank higher, have less than the wanted probability."""
    if last == first:
        return [(left, right)]
    rises, falls = _crossings(first, last, cl)
    parts = [(left, min(right, rises)), (max(left, falls), right)]
    return [(low, high) for low, high in parts if low < high]
