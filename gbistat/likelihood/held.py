"""A ratio whose masses are held: the network itself at these masses, in place of splines."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from gbistat.errors import ParameterError
from gbistat.likelihood.modes import DecayModes
from gbistat.likelihood.surface import RatioSurface

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gbistat.data.events import Events
    from gbistat.likelihood.components import Factor, PreparedFactor
    from gbistat.likelihood.model import Model
    from gbistat.typing import FloatArray

__all__ = ["HeldRatio", "with_held_ratios"]


@dataclass(frozen=True, eq=False)
class HeldRatio:
    """Log ratio at fixed masses, evaluated once for a set of events; its parameters are there, and must not move.

    Parameters
    ----------
    surface : RatioSurface
        The ratio and its ln kappa; where the masses are nodes its values are taken.
    theta : array of shape (d,)
        The masses.
    """

    surface: RatioSurface
    theta: FloatArray
    _known: WeakKeyDictionary[Events, _PreparedHeld] = field(default_factory=WeakKeyDictionary, repr=False)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the d masses."""
        return self.surface.parameters

    def prepare(self, events: Events) -> PreparedFactor:
        """Evaluate the ratio at these events."""
        known = self._known.get(events)
        if known is None:
            known = self._known[events] = _PreparedHeld(self.theta, self._values(events))
        return known

    def _values(self, events: Events) -> FloatArray:
        grid = self.surface.grid
        if all((np.abs(axis - value) < 1e-9).any() for axis, value in zip(grid.axes, self.theta, strict=True)):
            return self.surface.prepare(events).log_prob(self.theta)
        values = self.surface.term.log_ratio(events, **grid.named(self.theta))
        return values + self.surface.log_kappa_at(self.theta)


@dataclass(frozen=True, eq=False)
class _PreparedHeld:
    theta: FloatArray
    values: FloatArray

    def log_prob(self, values: FloatArray) -> FloatArray:
        if not np.allclose(values, self.theta, rtol=0.0, atol=1e-9):
            raise ParameterError(f"a ratio held at {self.theta.tolist()} is asked for at {np.asarray(values).tolist()}")
        return self.values

    def derivatives(self, values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        d = self.theta.size
        return self.log_prob(values), np.zeros((d, self.values.size)), np.zeros((d, d, 1))


def with_held_ratios(model: Model, values: Mapping[str, float]) -> Model:
    """Model whose ratios with free masses are held at some; the parameters themselves stay as they are."""

    def held(factor: Factor) -> Factor:
        if isinstance(factor, RatioSurface):
            return HeldRatio(factor, np.array([values[name] for name in factor.parameters]))
        if isinstance(factor, DecayModes):
            return dataclasses.replace(factor, first=held(factor.first), second=held(factor.second))
        return factor

    components = tuple(
        dataclasses.replace(c, factors=tuple(held(f) for f in c.factors)) if c.name == model.signal else c
        for c in model.components
    )
    return dataclasses.replace(model, components=components)
