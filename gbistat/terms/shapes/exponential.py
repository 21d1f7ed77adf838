"""Falling (or rising) exponential."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from gbistat.terms.protocols import ShapeParameter
from gbistat.terms.shapes.families import ExponentialShape

if TYPE_CHECKING:
    from gbistat.typing import FloatArray

__all__ = ["Exponential"]


@dataclass(frozen=True)
class Exponential(ExponentialShape):
    r"""Exponential :math:`e^{-\lambda m}` with the parameter ``rate`` = :math:`\lambda`.

    The rate, in inverse units of mass, is used and not the scale :math:`1/\lambda`, because it makes the shape
    an exponential family: the likelihood is concave in it, a rate of 0 is flat, and a negative one rises.

    Examples
    --------
    >>> Exponential().log_shape(np.array([0.0, 2.0]), np.array([0.5])).tolist()
    [0.0, -1.0]
    """

    name: ClassVar[str] = "exponential"

    @property
    def parameters(self) -> tuple[ShapeParameter, ...]:
        """``rate``."""
        return (ShapeParameter("rate", 0.0, mass_power=-1),)

    @property
    def support(self) -> tuple[float, float]:
        """All masses."""
        return (-math.inf, math.inf)

    def statistics(self, mass: FloatArray) -> FloatArray:
        """-m, shape (1, n)."""
        statistics: FloatArray = -np.asarray(mass)[np.newaxis]
        return statistics
