"""What the shapes of one family share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import ModelError

if TYPE_CHECKING:
    from gbistat.typing import FloatArray

__all__ = ["ExponentialShape", "PolynomialShape"]

LARGEST_DEGREE = 20  # more coefficients than any spectrum determines


class ExponentialShape(ABC):
    """u = theta @ T(m), smooth on all of its support."""

    @abstractmethod
    def statistics(self, mass: FloatArray) -> FloatArray:
        """T(m), shape (p, n)."""

    def log_shape(self, mass: FloatArray, theta: FloatArray) -> FloatArray:
        """u, shape (n,)."""
        u: FloatArray = theta @ self.statistics(mass)
        return u

    def derivatives(self, mass: FloatArray, theta: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """u (n,), gradient (p, n), and a Hessian of zeros (p, p, 1)."""
        statistics = self.statistics(mass)
        return theta @ statistics, statistics, np.zeros((theta.size, theta.size, 1))

    def breakpoints(self, theta: FloatArray) -> tuple[float, ...]:
        """None."""
        return ()


@dataclass(frozen=True)
class PolynomialShape(ABC):
    """exp(u) = B_0(m) + theta @ B(m), with polynomials B of one degree on an interval.

    Parameters
    ----------
    degree : int
        Degree of the polynomial, which is the number of parameters; 1 to 20.
    support : (float, float)
        The interval, in the unit of the mass: the range of a fit.

    Raises
    ------
    ModelError
        If an option is outside its range.
    """

    degree: int
    support: tuple[float, float]

    def __post_init__(self) -> None:
        name = type(self).__name__.lower()
        if self.degree not in range(1, LARGEST_DEGREE + 1):
            raise ModelError(f"{name} with degree = {self.degree!r}: give an integer from 1 to {LARGEST_DEGREE}")
        try:
            low, high = (float(edge) for edge in self.support)
        except (TypeError, ValueError):
            raise ModelError(
                f"{name} with support = {self.support!r}: give the interval of mass, (low, high)"
            ) from None
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ModelError(f"{name} with support = ({low:g}, {high:g}): low must be below high, and both finite")
        object.__setattr__(self, "support", (low, high))

    @abstractmethod
    def basis(self, mass: FloatArray) -> FloatArray:
        """B_0, B_1, ... at the masses, shape (p + 1, n)."""

    def log_shape(self, mass: FloatArray, theta: FloatArray) -> FloatArray:
        """u, shape (n,); -inf where the polynomial is not positive."""
        basis = self.basis(mass)
        f = basis[0] + theta @ basis[1:]
        u: FloatArray = np.where(f > 0, np.log(np.where(f > 0, f, 1.0)), -np.inf)
        return u

    def derivatives(self, mass: FloatArray, theta: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """u (n,), gradient (p, n) and Hessian (p, p, n); the derivatives are 0 where u is -inf."""
        basis = self.basis(mass)
        f = basis[0] + theta @ basis[1:]
        gradient = basis[1:] / np.where(f > 0, f, np.inf)
        u = np.where(f > 0, np.log(np.where(f > 0, f, 1.0)), -np.inf)
        return u, gradient, -(gradient[:, np.newaxis] * gradient[np.newaxis])

    def breakpoints(self, theta: FloatArray) -> tuple[float, ...]:
        """None."""
        return ()
