r"""Spurious signal: a tilt of the background along the direction in which an error of it looks like signal.

A background that is not quite the modelled one, or a ratio whose normalisation is off, ``E_b[r] = 1 + delta``, shifts the fitted signal
fraction by ``delta / I`` with the Fisher information of one event

    I(f) = E_b[ (r - 1)^2 / (1 + f (r - 1)) ].

To profile that error the background density is multiplied by

    w(nu tau s) / E_b[w(nu tau s)],     w(x) = x + sqrt(1 + x^2),     s = (r - 1) / (1 + f (r - 1)),

with a standard-normal nuisance nu and the score s of the signal fraction at a fraction f, which is bounded by 1/f. For small and for
positive x, w(x) adds signal in proportion to x; it stays positive for negative x, ``w(-x) = 1/w(x)``, ``ln w(x) = asinh(x)``. The density
is positive and normalised for every nu; one standard deviation shifts E_b[s] by ``tau J``, ``J = Var_b[s]``, as a signal fraction
``tau J / I`` would. f is the fraction that is two standard deviations, ``f = 2 / sqrt(N I(f))``: the size of the signals
that a search is about. (A signal of another size is shifted a little less or more, since I depends on f.)

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

__all__ = ["Tilt", "log_density_ratio", "spurious_signal_tilt"]


@dataclass(frozen=True, eq=False)
class _PreparedTilt:
    """``ln w(nu tau s) - ln E_b[w(nu tau s)]`` at fixed events."""

    slope: FloatArray
    reference: FloatArray
    share: FloatArray

    def log_prob(self, values: FloatArray) -> FloatArray:
        nu = float(values[0])
        result: FloatArray = np.arcsinh(nu * self.slope) - self._normalisation(nu)[0]
        return result

    def derivatives(self, values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        nu = float(values[0])
        log_norm, first, second = self._normalisation(nu)
        log, gradient, hessian = _asinh(nu, self.slope)
        return log - log_norm, (gradient - first)[None], (hessian - second)[None, None]

    def _normalisation(self, nu: float) -> tuple[float, float, float]:
        """``ln E_b[w]`` and its first two derivatives in nu."""
        log, gradient, hessian = _asinh(nu, self.reference)
        weight = self.share * np.exp(log)
        total = float(weight.sum())
        weight /= total
        mean = _mean(weight, gradient)
        return float(np.log(total)), mean, _mean(weight, hessian + (gradient - mean) ** 2)


def _mean(share: FloatArray, values: FloatArray) -> float:
    """Weighted mean; a dot product of this size would start the threads of the linear-algebra library."""
    return float(np.einsum("i,i->", share, values))


def _asinh(nu: float, slope: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """``asinh(nu a)`` and its first two derivatives in nu."""
    x = nu * slope
    root = np.sqrt(1.0 + x * x)
    gradient = slope / root
    return np.arcsinh(x), gradient, -x * gradient**2 / root


@dataclass(frozen=True, eq=False)
class Tilt:
    """Factor of a background density that makes signal of it; see the head of this module.

    Parameters
    ----------
    parameter : str
        Name of nu, which a standard-normal constraint holds.
    signal, background : Component
        Components whose densities, at the start values, form the ratio r.
    start : mapping of str to float
        Those start values.
    fraction : float
        The f in s.
    scale : float
        tau.
    log_norm : float
        ``ln E_b[r]`` of the reference events: r is divided by it.
    reference, share : arrays of shape (n,)
        ``tau s`` of the reference events, and their weights, which sum to 1.
    """

    parameter: str
    signal: Component
    background: Component
    start: dict[str, float]
    fraction: float
    scale: float
    log_norm: float
    reference: FloatArray
    share: FloatArray

    @property
    def parameters(self) -> tuple[str, ...]:
        """The one parameter."""
        return (self.parameter,)

    def prepare(self, events: Events) -> PreparedFactor:
        """``tau s`` at these events."""
        log_ratio = _log_ratio(self.signal, self.background, self.start, events) - self.log_norm
        return _PreparedTilt(self.scale * _score(log_ratio, self.fraction), self.reference, self.share)


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
    log_norm = float(np.log(_mean(share, np.exp(log_ratio - log_ratio.max()))) + log_ratio.max())
    log_ratio = log_ratio - log_norm
    ratio = np.exp(log_ratio)
    n_background = background.rate.constant + sum(c * start[name] for name, c in background.rate.linear.items())
    fraction = 0.0
    for _ in range(30):
        information = _mean(share, (ratio - 1.0) ** 2 / (1.0 + fraction * (ratio - 1.0)))
        if not information > 1e-12:  # rounding leaves 1e-32 where the ratio is 1 everywhere
            raise ModelError("signal and background have the same density: there is nothing to fit")
        fraction = min(0.5, 2.0 / math.sqrt(max(n_background, 1.0) * information))
    score = _score(log_ratio, fraction)
    variance = _mean(share, (score - _mean(share, score)) ** 2)
    size = math.hypot(n_background * kappa / information, spurious)
    scale = size / max(n_background, 1.0) * information / variance
    return Tilt(parameter, signal, background, start, fraction, scale, log_norm, scale * score, share), size


def log_density_ratio(model: Model, events: Events) -> FloatArray:
    """Log ratio of the densities of signal and background at the start values, shape (n,)."""
    signal = model.component(model.signal)
    (background,) = (component for component in model.components if component is not signal)
    return _log_ratio(signal, background, {p.name: p.start for p in model.parameters}, events)


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
