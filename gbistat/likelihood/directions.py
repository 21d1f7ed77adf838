"""Directions of a log ratio that an ensemble of networks leaves open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import ModelError

if TYPE_CHECKING:
    from gbistat.data.events import Events
    from gbistat.likelihood.components import PreparedFactor
    from gbistat.typing import FloatArray

__all__ = ["LogDirections"]


@dataclass(frozen=True, eq=False)
class LogDirections:
    """Log factor ``sum_k w_k f_k(x)``: an ensemble of log ratios whose weights are fitted together with all else.

    With ``ln r = sum_k w_k f_k(x)`` and the covariance of the weights as a :class:`NormalConstraint`, the error of a learned
    ratio is profiled (the w_i f_i ensembles of arXiv:2506.00113). Write the mean ratio as a :class:`LogRatio` and the
    deviations from it here, with weights around 0.

    Parameters
    ----------
    names : tuple of str
        Names of the k weights.
    values : array of shape (k, n)
        ``f_k`` of each event, in the order of the events.

    Raises
    ------
    ModelError
        If shapes do not match or a value is not finite.

    Notes
    -----
    The product with a density is normalised at the weights where its normalisation was made, not elsewhere. Subtract from
    each ``f_k`` its mean over signal events: then the normalisation does not change to first order.
    """

    names: tuple[str, ...]
    values: FloatArray

    def __post_init__(self) -> None:
        values = np.array(self.values, dtype=np.float64)
        if values.ndim != 2 or values.shape[0] != len(self.names):
            raise ModelError(f"directions of shape {values.shape} for {len(self.names)} weight(s); they must be (k, n)")
        bad = int((~np.isfinite(values)).any(axis=0).sum())
        if bad:
            raise ModelError(f"directions are NaN or infinite for {bad} of {values.shape[1]} events; leave these out")
        values.setflags(write=False)
        object.__setattr__(self, "values", values)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the weights."""
        return self.names

    def prepare(self, events: Events) -> PreparedFactor:
        """Return the factor for these events.

        Raises
        ------
        ModelError
            If the number of events differs.
        """
        if len(events) != self.values.shape[1]:
            raise ModelError(f"directions of {self.values.shape[1]} events for {len(events)} events")
        return _Directions(self.values)


@dataclass(frozen=True, eq=False)
class _Directions:
    values: FloatArray

    def log_prob(self, values: FloatArray) -> FloatArray:
        return values @ self.values

    def derivatives(self, values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        k = self.values.shape[0]
        return values @ self.values, self.values, np.zeros((k, k, 1))
