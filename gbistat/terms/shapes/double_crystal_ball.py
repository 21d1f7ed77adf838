"""Gaussian peak with a power-law tail on either side."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from gbistat.terms.protocols import ShapeParameter

if TYPE_CHECKING:
    from gbistat.typing import FloatArray, IntArray

__all__ = ["DoubleCrystalBall"]

CORE_SPLITS = (-6.0, -3.0, 0.0, 3.0, 6.0)  # standard deviations
TAIL_SPLITS = (1.0, 4.0, 16.0, 64.0)  # multiples of the length n / alpha over which a tail falls


class _Tail(NamedTuple):
    """Derivatives of the tail's u in s = |m - mean| / sigma, alpha and n; each of shape (n,)."""

    u: FloatArray
    s: FloatArray
    alpha: FloatArray
    n: FloatArray
    ss: FloatArray
    s_alpha: FloatArray
    s_n: FloatArray
    alpha_alpha: FloatArray
    alpha_n: FloatArray
    n_n: FloatArray


@dataclass(frozen=True)
class DoubleCrystalBall:
    r"""Double-sided Crystal Ball function.

    With :math:`t = (m - \mu) / \sigma`,

    .. math::

        f = \begin{cases}
            e^{-t^2 / 2} & -\alpha_L \le t \le \alpha_H \\
            e^{-\alpha_L^2 / 2} \left[ 1 + \frac{\alpha_L}{n_L} (-t - \alpha_L) \right]^{-n_L} & t < -\alpha_L \\
            e^{-\alpha_H^2 / 2} \left[ 1 + \frac{\alpha_H}{n_H} (t - \alpha_H) \right]^{-n_H} & t > \alpha_H
        \end{cases}

    The value and the first derivative are continuous where a tail joins the core; f is 1 at the mean. One tail of it is
    the function of T. Skwarnicki, DESY F31-86-02 (1986), appendix E, with
    :math:`(n / |\alpha|)^n (n / |\alpha| - |\alpha| - t)^{-n}` written so that it does not overflow for a large n.

    Parameters are ``mean``, ``sigma``, ``alpha_low``, ``n_low``, ``alpha_high`` and ``n_high``; all but the mean
    are positive.

    Examples
    --------
    >>> shape = DoubleCrystalBall()
    >>> theta = np.array([100.0, 10.0, 1.0, 2.0, 1.0, 2.0])
    >>> np.exp(shape.log_shape(np.array([70.0, 90.0, 100.0]), theta)).round(4).tolist()
    [0.1516, 0.6065, 1.0]
    """

    name: ClassVar[str] = "double_crystal_ball"

    @property
    def parameters(self) -> tuple[ShapeParameter, ...]:
        """The six parameters; ``mean`` and ``sigma`` have no natural starting values."""
        return (
            ShapeParameter("mean", math.nan, mass_power=1),
            ShapeParameter("sigma", math.nan, low=0.0, mass_power=1),
            ShapeParameter("alpha_low", 1.5, low=0.0),
            ShapeParameter("n_low", 5.0, low=0.0),
            ShapeParameter("alpha_high", 1.5, low=0.0),
            ShapeParameter("n_high", 5.0, low=0.0),
        )

    @property
    def support(self) -> tuple[float, float]:
        """All masses."""
        return (-math.inf, math.inf)

    def log_shape(self, mass: FloatArray, theta: FloatArray) -> FloatArray:
        """u, shape (n,); -inf if a parameter that must be positive is not."""
        mean, sigma, alpha_low, n_low, alpha_high, n_high = theta
        if not np.all(theta[1:] > 0):
            return np.full(np.shape(mass), -np.inf)
        t = (mass - mean) * (1.0 / sigma)
        u: FloatArray = -0.5 * np.square(np.clip(t, -alpha_low, alpha_high))
        for distance, alpha, n in ((-t, alpha_low, n_low), (t, alpha_high, n_high)):
            tail = np.flatnonzero(distance > alpha)
            u[tail] -= n * np.log1p((distance[tail] - alpha) * (alpha / n))
        return u

    def derivatives(self, mass: FloatArray, theta: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """u (n,), gradient (6, n) and Hessian (6, 6, n)."""
        mean, sigma, alpha_low, n_low, alpha_high, n_high = theta
        t = (mass - mean) * (1.0 / sigma)
        u = -0.5 * t * t
        gradient, hessian = np.zeros((6, t.size)), np.zeros((6, 6, t.size))
        gradient[0] = t / sigma
        gradient[1] = t * gradient[0]
        hessian[0, 0] = -1.0 / sigma**2
        hessian[0, 1] = hessian[1, 0] = gradient[0] * (-2.0 / sigma)
        hessian[1, 1] = gradient[1] * (-3.0 / sigma)
        for sign, alpha, n, first in ((-1.0, alpha_low, n_low, 2), (1.0, alpha_high, n_high, 4)):
            distance = sign * t
            where = np.flatnonzero(distance > alpha)
            if where.size:
                s = distance[where]
                tail = _tail(s, alpha, n)
                u[where] = tail.u
                _set_tail(gradient, hessian, where, tail, s, sign, sigma, first)
        return u, gradient, hessian

    def breakpoints(self, theta: FloatArray) -> tuple[float, ...]:
        """The joins of core and tails, and pieces of either over which it does not fall by too much."""
        if not np.all(theta[1:] > 0):
            return ()
        mean, sigma, alpha_low, n_low, alpha_high, n_high = (float(value) for value in theta)
        t = {split for split in CORE_SPLITS if -alpha_low < split < alpha_high}
        for sign, alpha, n in ((-1.0, alpha_low, n_low), (1.0, alpha_high, n_high)):
            t.update(sign * (alpha + split * n / alpha) for split in (0.0, *TAIL_SPLITS))
        return tuple(mean + sigma * split for split in sorted(t))


def _tail(s: FloatArray, alpha: float, n: float) -> _Tail:
    """u = -alpha^2 / 2 - n ln(1 + q) with q = alpha (s - alpha) / n, and its derivatives."""
    q = (s - alpha) * (alpha / n)
    inverse = 1.0 / (1.0 + q)
    lever = (s - 2.0 * alpha) * inverse  # n dq/dalpha / (1 + q)
    share = q * inverse
    log = np.log1p(q)
    return _Tail(
        u=-0.5 * alpha**2 - n * log,
        s=-alpha * inverse,
        alpha=-alpha - lever,
        n=share - log,
        ss=inverse**2 * (alpha**2 / n),
        s_alpha=-inverse + lever * inverse * (alpha / n),
        s_n=share * inverse * (-alpha / n),
        alpha_alpha=-1.0 + 2.0 * inverse + lever**2 / n,
        alpha_n=-lever * share / n,
        n_n=share**2 / n,
    )


def _set_tail(
    gradient: FloatArray,
    hessian: FloatArray,
    where: IntArray,
    tail: _Tail,
    s: FloatArray,
    sign: float,
    sigma: float,
    first: int,
) -> None:
    """Chain rule from (s, alpha, n) to (mean, sigma, alpha, n), with s = sign (m - mean) / sigma."""
    s_mean, s_sigma = -sign / sigma, -s / sigma
    alpha, n = first, first + 1
    gradient[0, where] = tail.s * s_mean
    gradient[1, where] = tail.s * s_sigma
    gradient[alpha, where] = tail.alpha
    gradient[n, where] = tail.n
    second = {
        (0, 0): tail.ss * s_mean**2,
        (0, 1): tail.ss * s_mean * s_sigma + tail.s * (sign / sigma**2),
        (1, 1): tail.ss * s_sigma**2 + tail.s * s * (2.0 / sigma**2),
        (0, alpha): tail.s_alpha * s_mean,
        (1, alpha): tail.s_alpha * s_sigma,
        (0, n): tail.s_n * s_mean,
        (1, n): tail.s_n * s_sigma,
        (alpha, alpha): tail.alpha_alpha,
        (alpha, n): tail.alpha_n,
        (n, n): tail.n_n,
    }
    for (row, column), values in second.items():
        hessian[row, column, where] = values
        hessian[column, row, where] = values
