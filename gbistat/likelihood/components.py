"""Components: a yield times a density, the density a product of factors.

A component contributes ``n(theta) f(event; theta)`` with ``ln f`` a sum of log factors: the mass density, the log ratio of a
network, an offset ln kappa. All components of a model share one reference measure: where the background is
``p_b(m) p_b(x|m)`` and the signal ``p_s(m) r_x(x|m) p_b(x|m)``, the common ``p_b(x|m)`` is left out of both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

import numpy as np

from gbistat.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gbistat.data.events import Events
    from gbistat.terms.density import MassDensity
    from gbistat.terms.protocols import DensityRatio
    from gbistat.typing import FloatArray

__all__ = [
    "Component",
    "Factor",
    "LogArray",
    "LogOffset",
    "LogRatio",
    "MassFactor",
    "PreparedFactor",
    "Yield",
]


class PreparedFactor(Protocol):
    """A log factor on a fixed set of events."""

    def log_prob(self, values: FloatArray) -> FloatArray:
        """Log factor, shape (n,)."""

    def derivatives(self, values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Log factor (n,), its gradient (k, n), its Hessian, which broadcasts to (k, k, n)."""


class Factor(Protocol):
    """A log factor of a density."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of its k parameters."""

    def prepare(self, events: Events) -> PreparedFactor:
        """Evaluate all that does not depend on parameters, once for a set of events."""


@dataclass(frozen=True, eq=False)
class _Constant:
    values: FloatArray

    def log_prob(self, values: FloatArray) -> FloatArray:
        return self.values

    def derivatives(self, values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        return self.values, np.empty((0, self.values.size)), np.empty((0, 0, 1))


@dataclass(frozen=True, eq=False)
class _Offset:
    size: int

    def log_prob(self, values: FloatArray) -> FloatArray:
        return np.full(self.size, values[0])

    def derivatives(self, values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        return np.full(self.size, values[0]), np.ones((1, self.size)), np.zeros((1, 1, 1))


@dataclass(frozen=True)
class MassFactor:
    """Log density of the mass."""

    density: MassDensity

    @property
    def parameters(self) -> tuple[str, ...]:
        """Parameters of the density."""
        return self.density.parameters

    def prepare(self, events: Events) -> PreparedFactor:
        """Density at the masses of these events."""
        return self.density.prepare(events.mass)


@dataclass(frozen=True)
class LogRatio:
    """Log ratio that depends on no parameter: evaluated once for a set of events."""

    term: DensityRatio

    @property
    def parameters(self) -> tuple[str, ...]:
        """None."""
        return ()

    def prepare(self, events: Events) -> PreparedFactor:
        """Ratio at these events."""
        return _Constant(self.term.log_ratio(events))


@dataclass(frozen=True, eq=False)
class LogArray:
    """Log values known beforehand, one an event, in the order of the events."""

    values: FloatArray

    @property
    def parameters(self) -> tuple[str, ...]:
        """None."""
        return ()

    def prepare(self, events: Events) -> PreparedFactor:
        """Return the values themselves.

        Raises
        ------
        ModelError
            If the number of events differs.
        """
        if len(events) != self.values.size:
            raise ModelError(f"{self.values.size} log values for {len(events)} events")
        return _Constant(np.asarray(self.values, dtype=np.float64))


@dataclass(frozen=True)
class LogOffset:
    """Shift of a log factor by one parameter.

    Notes
    -----
    Wrong for the uncertain normalisation of a density or ratio: a likelihood is only valid for densities that are
    normalised at every value of their parameters. See :mod:`gbistat.likelihood.tilt` for what takes its place.
    """

    parameter: str

    @property
    def parameters(self) -> tuple[str, ...]:
        """The one parameter."""
        return (self.parameter,)

    def prepare(self, events: Events) -> PreparedFactor:
        """Shift for as many events."""
        return _Offset(len(events))


@dataclass(frozen=True)
class Yield:
    """Expected number of events: ``(constant + sum_k c_k theta_k) * exp(sum_j s_j theta_j)``.

    Parameters
    ----------
    linear : mapping of str to float
        Coefficients c_k: ``{"mu": S}`` for a signal of nominal yield S.
    constant : float, default 0
        Part that depends on nothing.
    log_scales : mapping of str to float
        Coefficients s_j: a relative uncertainty of 5 % is ``{"efficiency": 0.05}`` with a standard-normal
        constraint on ``efficiency``.
    """

    linear: Mapping[str, float] = field(default_factory=dict)
    constant: float = 0.0
    log_scales: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "linear", MappingProxyType(dict(self.linear)))
        object.__setattr__(self, "log_scales", MappingProxyType(dict(self.log_scales)))
        if not self.linear and self.constant == 0:
            raise ModelError("a yield of 0 that depends on no parameter: the component can be left out")

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names it depends on."""
        return tuple(dict.fromkeys((*self.linear, *self.log_scales)))


@dataclass(frozen=True)
class Component:
    """One process.

    Parameters
    ----------
    name : str
        For messages and plots.
    rate : Yield
        Expected number of events.
    factors : tuple of Factor
        Log factors of its density.
    """

    name: str
    rate: Yield
    factors: tuple[Factor, ...]

    @property
    def parameters(self) -> tuple[str, ...]:
        """All names it depends on, yields first."""
        return tuple(dict.fromkeys((*self.rate.parameters, *(n for f in self.factors for n in f.parameters))))
