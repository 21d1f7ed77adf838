"""Power law."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from gbistat.terms.protocols import ShapeParameter
from gbistat.terms.shapes.families import ExponentialShape

if TYPE_CHECKING:
    from gbistat.typing import FloatArray

__all__ = ["PowerLaw"]


@dataclass(frozen=True)
class PowerLaw(ExponentialShape):
    r"""Power law :math:`m^{-a}` with the parameter ``exponent`` = a, which is positive for a falling spectrum.

    Examples
    --------
    >>> PowerLaw().log_shape(np.array([np.e, np.e**2]), np.array([2.0])).round(6).tolist()
    [-2.0, -4.0]
    """

    name: ClassVar[str] = "power_law"

    @property
    def parameters(self) -> tuple[ShapeParameter, ...]:
        """``exponent``."""
        return (ShapeParameter("exponent", 1.0),)

    @property
    def support(self) -> tuple[float, float]:
        """Masses from 0; an exponent of 1 or more cannot be normalised down to 0 itself."""
        return (0.0, math.inf)

    def statistics(self, mass: FloatArray) -> FloatArray:
        """-ln m, shape (1, n)."""
        with np.errstate(divide="ignore"):
            return -np.log(np.asarray(mass))[np.newaxis]
