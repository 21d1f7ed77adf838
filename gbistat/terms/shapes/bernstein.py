"""Bernstein polynomial."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from gbistat.terms.protocols import ShapeParameter
from gbistat.terms.shapes.families import PolynomialShape

if TYPE_CHECKING:
    from gbistat.typing import FloatArray

__all__ = ["Bernstein"]


@dataclass(frozen=True)
class Bernstein(PolynomialShape):
    r"""Bernstein polynomial :math:`\sum_{i=0}^{d} c_i {d \choose i} t^i (1 - t)^{d - i}` with t from 0 to 1 on the support.

    The first coefficient is fixed, :math:`c_0 = 1`, since the shape is normalised elsewhere; ``c1`` ... ``cd`` are
    the parameters. Coefficients of 0 or more suffice for a polynomial that is not negative, but are not needed for one:
    their lower bound of 0 makes a fit safe at the price of some positive polynomials.

    Parameters
    ----------
    degree : int
        The degree d, 1 to 20.
    support : (float, float)
        The interval of mass on which t runs from 0 to 1.

    Raises
    ------
    ModelError
        If an option is outside its range.

    Examples
    --------
    >>> shape = Bernstein(degree=2, support=(100.0, 200.0))
    >>> np.exp(shape.log_shape(np.array([100.0, 150.0, 200.0]), np.array([0.5, 0.25]))).round(4).tolist()
    [1.0, 0.5625, 0.25]
    """

    name: ClassVar[str] = "bernstein"

    @property
    def parameters(self) -> tuple[ShapeParameter, ...]:
        """``c1``, ``c2``, ..., all 1 (a flat density) to start from."""
        return tuple(ShapeParameter(f"c{i}", 1.0, low=0.0) for i in range(1, self.degree + 1))

    def basis(self, mass: FloatArray) -> FloatArray:
        """Bernstein polynomials of the degree, shape (degree + 1, n)."""
        low, high = self.support
        t = (np.asarray(mass) - low) / (high - low)
        return np.stack([comb(self.degree, i) * t**i * (1.0 - t) ** (self.degree - i) for i in range(self.degree + 1)])
