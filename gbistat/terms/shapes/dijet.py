"""The function that dijet searches fit to the invariant mass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from gbistat.errors import ModelError
from gbistat.terms.protocols import ShapeParameter
from gbistat.terms.shapes.families import ExponentialShape

if TYPE_CHECKING:
    from gbistat.typing import FloatArray

__all__ = ["Dijet"]

STARTS = (10.0, 5.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Dijet(ExponentialShape):
    r"""Dijet function of the hadron-collider experiments.

    .. math::

        \frac{dN}{dm} = p_0 (1 - z)^{p_1} z^{-(p_2 + p_3 \ln z + p_4 \ln^2 z + ...)}, \qquad z = m / \sqrt{s}

    With three parameters it is the function of the fit method of CMS, arXiv:1911.03947, and of ATLAS,
    arXiv:1703.09127; those searches add or drop the highest power of ln z as the data ask. :math:`p_0` is the
    normalisation, so it is not a parameter here.

    Parameters
    ----------
    n_parameters : int, default 3
        How many of p1, p2, p3, p4, p5 there are, at least 2.
    sqrt_s : float, default 13000
        Energy of the collisions, in the unit of the mass.

    Raises
    ------
    ModelError
        If an option is outside its range.

    Examples
    --------
    >>> [parameter.name for parameter in Dijet().parameters]
    ['p1', 'p2', 'p3']
    """

    n_parameters: int = 3
    sqrt_s: float = 13000.0
    name: ClassVar[str] = "dijet"

    def __post_init__(self) -> None:
        if self.n_parameters not in range(2, len(STARTS) + 1):
            raise ModelError(f"dijet with n_parameters = {self.n_parameters}: choose from 2 to {len(STARTS)}")
        try:
            positive = 0 < float(self.sqrt_s) < np.inf
        except (TypeError, ValueError):
            positive = False
        if not positive:
            raise ModelError(f"dijet with sqrt_s = {self.sqrt_s!r}: give a positive energy in the unit of the mass")

    @property
    def parameters(self) -> tuple[ShapeParameter, ...]:
        """``p1``, ``p2``, ..."""
        return tuple(ShapeParameter(f"p{i + 1}", STARTS[i]) for i in range(self.n_parameters))

    @property
    def support(self) -> tuple[float, float]:
        """From 0 to the energy of the collisions."""
        return (0.0, self.sqrt_s)

    def statistics(self, mass: FloatArray) -> FloatArray:
        """ln(1 - z), -ln z, -ln^2 z, ..., shape (p, n)."""
        z = np.asarray(mass) / self.sqrt_s
        with np.errstate(divide="ignore"):
            log_z = np.log(z)
            powers = [-(log_z**power) for power in range(1, self.n_parameters)]
            return np.stack([np.log1p(-z), *powers])
