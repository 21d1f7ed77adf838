"""What a likelihood needs of a term: a density or a ratio of events, or a shape of the mass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np

    from gbistat.data.events import Events
    from gbistat.typing import FloatArray

__all__ = [
    "ConditionalDensity",
    "Density",
    "DensityRatio",
    "ExponentialFamily",
    "LinearFamily",
    "Shape",
    "ShapeParameter",
]


@runtime_checkable
class Density(Protocol):
    """Normalised density of events, such as an exported flow."""

    def log_prob(self, events: Events, /, **theta: float) -> FloatArray:
        """Natural log of the density at each event, shape (n,)."""
        ...

    def sample(self, n: int, /, *, rng: np.random.Generator, **theta: float) -> Events:
        """Draw `n` events from the density."""
        ...


@runtime_checkable
class ConditionalDensity(Protocol):
    """Normalised density of the features at given mass, such as a sideband generator."""

    def log_prob(self, features: FloatArray, mass: FloatArray, /) -> FloatArray:
        """Natural log of p(features | mass), shape (n,), for features of shape (n, d) and masses of shape (n,)."""
        ...

    def sample(self, mass: FloatArray, /, *, rng: np.random.Generator) -> FloatArray:
        """Draw features at each of n masses, shape (n, d)."""
        ...


@runtime_checkable
class DensityRatio(Protocol):
    """Ratio of two densities, such as an exported classifier."""

    def log_ratio(self, events: Events, /, **theta: float) -> FloatArray:
        """Natural log of the ratio at each event, shape (n,)."""
        ...


@dataclass(frozen=True)
class ShapeParameter:
    """One parameter of a shape.

    Parameters
    ----------
    name : str
        Name from the literature, such as ``"sigma"``.
    start : float
        Where a fit may begin; NaN where only the problem can say (the mean of a peak).
    low, high : float
        Range outside which the shape is not a density.
    mass_power : int, default 0
        Power of the unit of mass that the parameter carries: 1 for a mean, -1 for a rate, 0 for a number.
    """

    name: str
    start: float
    low: float = -math.inf
    high: float = math.inf
    mass_power: int = 0

    @property
    def is_mass(self) -> bool:
        """Whether the parameter is a mass and scales with its unit."""
        return self.mass_power == 1


@runtime_checkable
class Shape(Protocol):
    """Logarithm u(m; theta) of a density of the mass, without its normalisation.

    With p parameters and n masses, every method takes `theta` of shape (p,) and `mass` of shape (n,).
    """

    @property
    def name(self) -> str:
        """Name in the registry."""
        ...

    @property
    def parameters(self) -> tuple[ShapeParameter, ...]:
        """The p parameters, in the order of `theta`."""
        ...

    @property
    def support(self) -> tuple[float, float]:
        """Interval of mass on which the shape is defined."""
        ...

    def log_shape(self, mass: FloatArray, theta: FloatArray) -> FloatArray:
        """u, shape (n,); -inf where the shape is not positive."""
        ...

    def derivatives(self, mass: FloatArray, theta: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """u (n,), its gradient (p, n) and its Hessian, (p, p, n) or (p, p, 1), in `theta`; new arrays."""
        ...

    def breakpoints(self, theta: FloatArray) -> tuple[float, ...]:
        """Kinks of u, and edges of narrow structure, where quadrature has to split."""
        ...


@runtime_checkable
class ExponentialFamily(Shape, Protocol):
    """A shape with u = theta @ T(m): its derivatives do not depend on `theta`."""

    def statistics(self, mass: FloatArray) -> FloatArray:
        """T(m), shape (p, n)."""
        ...


@runtime_checkable
class LinearFamily(Shape, Protocol):
    """A shape with exp(u) = B_0(m) + theta @ B(m), such as a polynomial."""

    def basis(self, mass: FloatArray) -> FloatArray:
        """B_0(m) and the p functions B(m), shape (p + 1, n)."""
        ...
