"""Chebyshev polynomial."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.polynomial import chebyshev

from gbistat.terms.protocols import ShapeParameter
from gbistat.terms.shapes.families import PolynomialShape

if TYPE_CHECKING:
    from gbistat.typing import FloatArray

__all__ = ["Chebyshev"]


@dataclass(frozen=True)
class Chebyshev(PolynomialShape):
    r"""Polynomial :math:`1 + \sum_{i=1}^{d} a_i T_i(x)` with x from -1 to 1 on the support.

    The first coefficient is fixed to 1, since the shape is normalised elsewhere; ``a1`` ... ``ad`` are the parameters.
    Where the sum is not positive the log density is -inf; a density whose polynomial is not positive on all of
    its domain is refused as a whole.

    Parameters
    ----------
    degree : int
        The degree d, 1 to 20.
    support : (float, float)
        The interval of mass on which x runs from -1 to 1.

    Raises
    ------
    ModelError
        If an option is outside its range.

    Examples
    --------
    >>> shape = Chebyshev(degree=1, support=(100.0, 200.0))
    >>> np.exp(shape.log_shape(np.array([100.0, 150.0, 200.0]), np.array([-0.5]))).round(4).tolist()
    [1.5, 1.0, 0.5]
    """

    name: ClassVar[str] = "chebyshev"

    @property
    def parameters(self) -> tuple[ShapeParameter, ...]:
        """``a1``, ``a2``, ..., all 0 (a flat density) to start from."""
        return tuple(ShapeParameter(f"a{i}", 0.0) for i in range(1, self.degree + 1))

    def basis(self, mass: FloatArray) -> FloatArray:
        """T_0 ... T_degree, shape (degree + 1, n)."""
        low, high = self.support
        x = (2.0 * np.asarray(mass) - (low + high)) / (high - low)
        return np.ascontiguousarray(chebyshev.chebvander(x, self.degree).T)
