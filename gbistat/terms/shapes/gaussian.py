"""Gaussian peak."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from gbistat.terms.protocols import ShapeParameter

if TYPE_CHECKING:
    from gbistat.typing import FloatArray

__all__ = ["Gaussian"]

SPLITS = (-8.5, -6.0, -3.0, 0.0, 3.0, 6.0, 8.5)  # standard deviations: 16 nodes on each piece reach full precision


@dataclass(frozen=True)
class Gaussian:
    r"""Gaussian :math:`e^{-(m - \mu)^2 / 2 \sigma^2}` with parameters ``mean`` and ``sigma``; it is 1 at the mean.

    Examples
    --------
    >>> Gaussian().log_shape(np.array([91.0, 92.0]), np.array([91.0, 1.0])).round(6).tolist()
    [-0.0, -0.5]
    """

    name: ClassVar[str] = "gaussian"

    @property
    def parameters(self) -> tuple[ShapeParameter, ...]:
        """``mean`` and ``sigma`` > 0, which have no natural starting values."""
        return (
            ShapeParameter("mean", math.nan, mass_power=1),
            ShapeParameter("sigma", math.nan, low=0.0, mass_power=1),
        )

    @property
    def support(self) -> tuple[float, float]:
        """All masses."""
        return (-math.inf, math.inf)

    def log_shape(self, mass: FloatArray, theta: FloatArray) -> FloatArray:
        """-(m - mean)^2 / (2 sigma^2), shape (n,)."""
        mean, sigma = theta
        if sigma <= 0:
            return np.full(np.shape(mass), -np.inf)
        t: FloatArray = (mass - mean) * (math.sqrt(0.5) / sigma)
        return -t * t

    def derivatives(self, mass: FloatArray, theta: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """u (n,), gradient (2, n) and Hessian (2, 2, n)."""
        mean, sigma = theta
        gradient, hessian = np.empty((2, np.size(mass))), np.empty((2, 2, np.size(mass)))
        t = (mass - mean) / sigma
        np.multiply(t, 1.0 / sigma, out=gradient[0])
        np.multiply(t, gradient[0], out=gradient[1])
        hessian[0, 0] = -1.0 / sigma**2
        np.multiply(gradient[0], -2.0 / sigma, out=hessian[0, 1])
        hessian[1, 0] = hessian[0, 1]
        np.multiply(gradient[1], -3.0 / sigma, out=hessian[1, 1])
        return gradient[1] * (-0.5 * sigma), gradient, hessian

    def breakpoints(self, theta: FloatArray) -> tuple[float, ...]:
        """Some standard deviations around the mean."""
        mean, sigma = theta
        return tuple(float(mean + split * sigma) for split in SPLITS) if sigma > 0 else ()
