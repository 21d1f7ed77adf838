r"""A generator corrected by classifier weights, as a nuisance: :math:`p_b(x; \nu) = p_\mathrm{gen}(x) w(x)^\nu / Z(\nu)`.

:math:`Z(\nu) = \langle w^\nu \rangle_\mathrm{gen}`; nu = 0 is the generator, nu = 1 the generator corrected by its weights
w = p_data / p_gen. With a standard-normal constraint the fit may move along what the classifier found, smoothly and with a density that is
positive and normalised for every nu. It is exact for Gaussians that differ by a shift.

It complements `gbistat.likelihood.tilt`: that nuisance has the direction of the signal and a size that is put in, this one has direction and
size of a measured difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import EventsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gbistat.data.events import Events
    from gbistat.likelihood.components import PreparedFactor
    from gbistat.typing import FloatArray

__all__ = ["WeightTilt", "tilt_normalisation"]


def tilt_normalisation(log_weight: FloatArray, nu: float, own: FloatArray | None = None) -> tuple[float, float, float]:
    """``ln Z(nu)`` with its first two derivatives, from generated events.

    Parameters
    ----------
    log_weight : array of shape (n,)
        ln w of generated events.
    nu : float
        Exponent.
    own : array of shape (n,), optional
        Shares of the events that sum to 1, where they are weighted.

    Returns
    -------
    float, float, float
        ``ln Z``, the tilted mean of ln w, and its tilted variance.
    """
    exponent = nu * log_weight
    top = float(exponent.max())
    share = np.exp(exponent - top) * (1.0 / log_weight.size if own is None else own)
    total = float(share.sum())
    share /= total
    mean = float(np.einsum("i,i->", share, log_weight))
    variance = float(np.einsum("i,i->", share, (log_weight - mean) ** 2))
    return top + float(np.log(total)), mean, variance


@dataclass(frozen=True, eq=False)
class _PreparedWeightTilt:
    log_weight: FloatArray
    reference: FloatArray
    share: FloatArray | None

    def log_prob(self, values: FloatArray) -> FloatArray:
        nu = float(values[0])
        result: FloatArray = nu * self.log_weight - tilt_normalisation(self.reference, nu, self.share)[0]
        return result

    def derivatives(self, values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        nu = float(values[0])
        log_norm, mean, variance = tilt_normalisation(self.reference, nu, self.share)
        log = nu * self.log_weight - log_norm
        return log, (self.log_weight - mean)[None], np.full((1, 1, self.log_weight.size), -variance)


@dataclass(frozen=True, eq=False)
class WeightTilt:
    """Factor of a background density; see the head of this module.

    Parameters
    ----------
    parameter : str
        Name of nu; give it a standard-normal constraint.
    log_weight : callable
        Events to their ln w, shape (n,): the ``log_ratio`` of an exported classifier of data against generated events.
    reference : array of shape (n,)
        ln w of generated events in the window, for Z.
    share : array of shape (n,), optional
        Shares of these events, where they are weighted; made to sum to 1.

    Raises
    ------
    EventsError
        If the reference values are not finite, or all equal: such a tilt does nothing.
    """

    parameter: str
    log_weight: Callable[[Events], FloatArray]
    reference: FloatArray
    share: FloatArray | None = None

    def __post_init__(self) -> None:
        if self.share is not None:
            object.__setattr__(self, "share", self.share / float(self.share.sum()))
        bad = int(np.sum(~np.isfinite(self.reference)))
        if bad:
            raise EventsError(
                f"{bad} of {self.reference.size} generated events have weight 0 or infinity; no power exists"
            )
        if self.reference.size < 2 or float(np.ptp(self.reference)) == 0.0:
            raise EventsError("all generated events have the same weight: a tilt along it does nothing")

    @property
    def parameters(self) -> tuple[str, ...]:
        """The one parameter."""
        return (self.parameter,)

    def prepare(self, events: Events) -> PreparedFactor:
        """ln w at these events.

        Raises
        ------
        EventsError
            If a weight is 0 or infinite.
        """
        values = np.asarray(self.log_weight(events), dtype=np.float64)
        bad = int(np.sum(~np.isfinite(values)))
        if bad:
            raise EventsError(f"{bad} of {values.size} events have weight 0 or infinity; they cannot be tilted")
        return _PreparedWeightTilt(values, self.reference, self.share)
