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

__all__ = ["LogDirections", "direction_moments"]


@dataclass(frozen=True, eq=False)
class LogDirections:
    r"""Log factor ``w . f(x) - ln Z(w)``: an ensemble of log ratios whose weights are fitted together with all else.

    With :math:`\ln r = \sum_k w_k f_k(x)` and the covariance of the weights as a :class:`NormalConstraint`, the error of a
    learned ratio is profiled (the w_i f_i ensembles of arXiv:2506.00113). Write the mean ratio as a :class:`LogRatio` and the
    deviations from it here, with weights around 0.

    The product with the signal's density stays normalised: with mean m and covariance C of f over signal events,

    .. math:: \ln Z(w) = \ln E_s[e^{w \cdot f}] = w \cdot m + \tfrac{1}{2} w^T C w + O(w^3).

    Without that a fit could call all events signal by raising their ratio.

    Parameters
    ----------
    names : tuple of str
        Names of the k weights.
    values : array of shape (k, n)
        ``f_k`` of each event, in the order of the events.
    mean, covariance : arrays of shape (k,) and (k, k)
        Moments of f over signal events; see :func:`direction_moments`.

    Raises
    ------
    ModelError
        If shapes do not match or a value is not finite.

    Notes
    -----
    The normalisation is good to second order in ``w . f``: weights must be known well enough that ``w . f`` is well below 1
    for the events that matter.
    """

    names: tuple[str, ...]
    values: FloatArray
    mean: FloatArray
    covariance: FloatArray

    def __post_init__(self) -> None:
        values = np.array(self.values, dtype=np.float64)
        mean, covariance = np.array(self.mean, dtype=np.float64), np.array(self.covariance, dtype=np.float64)
        k = len(self.names)
        if values.ndim != 2 or values.shape[0] != k or mean.shape != (k,) or covariance.shape != (k, k):
            raise ModelError(
                f"directions of shape {values.shape} with moments of shapes {mean.shape} and {covariance.shape} for {k} "
                "weight(s); they must be (k, n), (k,) and (k, k)"
            )
        bad = int((~np.isfinite(values)).any(axis=0).sum())
        if bad or not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise ModelError(f"directions are NaN or infinite for {bad} of {values.shape[1]} events; leave these out")
        for name, array in (("values", values), ("mean", mean), ("covariance", covariance)):
            array.setflags(write=False)
            object.__setattr__(self, name, array)

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
        return _Directions(self.values - self.mean[:, None], self.covariance)


@dataclass(frozen=True, eq=False)
class _Directions:
    values: FloatArray
    covariance: FloatArray
    normalised = True

    def log_prob(self, values: FloatArray) -> FloatArray:
        return values @ self.values - 0.5 * float(values @ self.covariance @ values)

    def derivatives(self, values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        slope = self.values - (self.covariance @ values)[:, None]
        return self.log_prob(values), slope, -self.covariance[:, :, None]


def direction_moments(values: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean (k,) and covariance (k, k) of directions over signal events.

    Parameters
    ----------
    values : array of shape (k, m)
        ``f_k`` of reference events.
    weights : array of shape (m,)
        Signal weights of these: 1 for signal events, ``r`` for background events.

    Raises
    ------
    ModelError
        If the weights do not add up to something positive.
    """
    total = float(np.sum(weights))
    if not total > 0:
        raise ModelError(f"signal weights of the reference events add up to {total:g}; they must be positive")
    share = np.asarray(weights, dtype=np.float64) / total
    mean = values @ share
    centred = values - mean[:, None]
    return mean, (centred * share) @ centred.T
