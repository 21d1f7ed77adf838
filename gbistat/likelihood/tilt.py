r"""Spurious signal: a tilt of the background along the direction in which an error of it looks like signal.

A background that is not quite the modelled one, or a ratio whose normalisation is off, ``E_b[r] = 1 + delta``, shifts the fitted signal
fraction by ``delta / I`` with the Fisher information of one event

    I(f) = E_b[ (r - 1)^2 / (1 + f (r - 1)) ].

To profile that error the background density is multiplied by ``1 + nu tau h``, with a standard-normal nuisance nu and the
score of the signal fraction at a fraction f,

    h = s - E_b[s],     s = (r - 1) / (1 + f (r - 1)),

which is bounded by 1/f. The density stays normalised for every nu, since ``E_b[h] = 0``; one standard deviation shifts
E_b[s] by ``tau J``, ``J = E_b[h^2]``, as a signal fraction ``tau J / I`` would. f is the fraction that is two standard deviations,
``f = 2 / sqrt(N I(f))``: the size of the signals that a search is about.

Floating ``ln kappa`` itself, with a Gaussian constraint, would be wrong: for any kappa but the true one the signal
density is not normalised, and n_sig signal events pull ln kappa up by ``sigma^2 n_sig``, whatever is true.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import ModelError

if TYPE_CHECKING:
    from gbistat.data.events import Events
    from gbistat.likelihood.components import Component, PreparedFactor
    from gbistat.likelihood.model import Model
    from gbistat.typing import FloatArray

__all__ = ["Tilt", "spurious_signal_tilt"]


@dataclass(frozen=True, eq=False)
class _PreparedTilt:
    """``ln(1 + nu tau h)`` at fixed events."""

    slope: FloatArray

    def log_prob(self, values: FloatArray) -> FloatArray:
        argument = 1.0 + values[0] * self.slope
        if argument.size and argument.min() <= 0.0:
            return np.full(argument.size, -np.inf)
        result: FloatArray = np.log(argument)
        return result

    def derivatives(self, values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        argument = 1.0 + values[0] * self.slope
        if argument.size and argument.min() <= 0.0:
            empty = np.full((1, argument.size), np.nan)
            return np.full(argument.size, -np.inf), empty, empty[None]
        gradient = self.slope / argument
        return np.log(argument), gradient[None], -(gradient**2)[None, None]


@dataclass(frozen=True, eq=False)
class Tilt:
    """Factor ``1 + nu tau h`` of a background density; see the head of this module.

    Parameters
    ----------
    parameter : str
        Name of nu, which a standard-normal constraint holds.
    signal, background : Component
        Components whose densities, at the start values, form the ratio r.
    start : mapping of str to float
        Those start values.
    fraction : float
        The f in h.
    mean : float
        ``E_b[s]``.
    scale : float
        tau.
    log_norm : float
        ``ln E_b[r]`` of the reference events: r is divided by it.
    """

    parameter: str
    signal: Component
    background: Component
    start: dict[str, float]
    fraction: float
    mean: float
    scale: float
    log_norm: float

    @property
    def parameters(self) -> tuple[str, ...]:
        """The one parameter."""
        return (self.parameter,)

    def prepare(self, events: Events) -> PreparedFactor:
        """Slope ``tau h`` at these events."""
        log_ratio = _log_ratio(self.signal, self.background, self.start, events) - self.log_norm
        return _PreparedTilt(self.scale * (_score(log_ratio, self.fraction) - self.mean))


def spurious_signal_tilt(
    model: Model, parameter: str, events: Events, *, kappa: float = 0.0, spurious: float = 0.0
) -> tuple[Tilt, float]:
    """Tilt of a model's background that stands for a spurious signal of a given size.

    Parameters
    ----------
    model : Model
        One signal and one background.
    parameter : str
        Name for nu.
    events : Events
        Background events in the window, for the expectations; data will do, since signal in them is a small part.
    kappa : float, default 0
        Standard deviation of the log normalisation of the ratio.
    spurious : float, default 0
        Standard deviation of a spurious signal from other sources, in events.

    Returns
    -------
    Tilt, float
        The factor, and the standard deviation of the whole spurious signal in events.

    Raises
    ------
    ModelError
        If both standard deviations are 0, or the ratio does not vary over the events.
    """
    if kappa == 0.0 and spurious == 0.0:
        raise ModelError("a spurious signal of size 0 needs no tilt")
    signal = model.component(model.signal)
    (background,) = (component for component in model.components if component is not signal)
    start = {p.name: p.start for p in model.parameters}
    log_ratio = _log_ratio(signal, background, start, events)
    own = np.ones(len(events)) if events.weights is None else events.weights
    share = own / own.sum()
    log_norm = float(np.log(share @ np.exp(log_ratio - log_ratio.max())) + log_ratio.max())
    log_ratio = log_ratio - log_norm
    ratio = np.exp(log_ratio)
    n_background = background.rate.constant + sum(c * start[name] for name, c in background.rate.linear.items())
    fraction = 0.0
    for _ in range(60):
        information = float(share @ ((ratio - 1.0) ** 2 / (1.0 + fraction * (ratio - 1.0))))
        if not information > 1e-12:  # rounding leaves 1e-32 where the ratio is 1 everywhere
            raise ModelError("signal and background have the same density: there is nothing to fit")
        fraction = min(0.5, 2.0 / math.sqrt(max(n_background, 1.0) * information))
    score = _score(log_ratio, fraction)
    mean = float(share @ score)
    variance = float(share @ (score - mean) ** 2)
    size = math.hypot(n_background * kappa / information, spurious)
    scale = size / max(n_background, 1.0) * information / variance
    return Tilt(parameter, signal, background, start, fraction, mean, scale, log_norm), size


def _score(log_ratio: FloatArray, fraction: float) -> FloatArray:
    """``(r - 1) / (1 + f (r - 1))``, in a form that a huge ratio does not spoil."""
    growth = np.expm1(np.minimum(log_ratio, 600.0))
    result: FloatArray = growth / (1.0 + fraction * growth)
    return result


def _log_ratio(signal: Component, background: Component, start: dict[str, float], events: Events) -> FloatArray:
    """Log ratio of two densities at the start values, shape (n,)."""
    total = np.zeros(len(events))
    for component, sign in ((signal, 1.0), (background, -1.0)):
        for factor in component.factors:
            values = np.array([start[name] for name in factor.parameters])
            total += sign * factor.prepare(events).log_prob(values)
    return total
