r"""What an ensemble or a Bayesian generator says about its own error, against the weights (arXiv:2305.16774, Eqs. 5 and 9).

Of K densities of each generated event, mu is the median and sigma half the width of the central 68.27 %. The pull is

.. math::

    t = \mu (1 - w) / \sigma .

A width below 1 is what correlated errors of the densities give, and is information, not a failure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtr
from scipy.stats import kstest, spearmanr

from gbistat.errors import EventsError, OptionError

if TYPE_CHECKING:
    from gbistat.typing import FloatArray, Json

__all__ = ["BinErrors", "Pulls", "bin_errors", "generator_pulls"]

QUANTILES = (0.15865, 0.5, 0.84135)


@dataclass(frozen=True, eq=False)
class Pulls:
    """Pulls of generated events.

    Parameters
    ----------
    pulls : array of shape (n,)
        t of every event.
    relative_error : array of shape (n,)
        sigma / mu.
    mean, width : float
        Median of t, and half the width of its central 68.27 %.
    ks_p_value : float
        That t is standard normal.
    outside : float
        Share with abs(t) > 3; 0.0027 for a standard normal.
    correlation, correlation_p : float
        Spearman's rho of abs(ln w) with sigma / mu, and its p-value.
    by_weight : array of shape (bins, 4)
        Bins of equal population of ln w: median ln w; 15.9 %, 50 % and 84.1 % quantiles of sigma / mu.
    """

    pulls: FloatArray
    relative_error: FloatArray
    mean: float
    width: float
    ks_p_value: float
    outside: float
    correlation: float
    correlation_p: float
    by_weight: FloatArray

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "mean": self.mean,
            "width": self.width,
            "p_normal": self.ks_p_value,
            "outside_3": self.outside,
            "spearman": [self.correlation, self.correlation_p],
        }


def generator_pulls(log_density: FloatArray, log_weight: FloatArray, *, n_bins: int = 10) -> Pulls:
    """Pulls of an ensemble of densities against classifier weights.

    Parameters
    ----------
    log_density : array of shape (K, n)
        ln p of every member, or posterior draw, at every generated event.
    log_weight : array of shape (n,)
        ln w of these events.
    n_bins : int, default 10
        Bins of ln w for sigma / mu.

    Raises
    ------
    OptionError
        If there are fewer than three members: no width can be had.
    EventsError
        If shapes do not fit, a value is not finite, or all members agree.
    """
    log_p = np.asarray(log_density, dtype=np.float64)
    if log_p.ndim != 2 or log_p.shape[0] < 3:
        raise OptionError(f"log densities have shape {log_p.shape}; give (K, n) with at least three members")
    if log_weight.shape != log_p.shape[1:]:
        raise EventsError(f"log densities {log_p.shape} and log weights {log_weight.shape} do not fit")
    if not (np.all(np.isfinite(log_p)) and np.all(np.isfinite(log_weight))):
        raise EventsError("log densities or log weights are not finite; leave these events out")
    scaled = np.exp(log_p - np.median(log_p, axis=0))
    low, middle, high = np.quantile(scaled, QUANTILES, axis=0)
    relative = 0.5 * (high - low) / middle
    if not np.all(relative > 0):
        raise EventsError(
            f"{int(np.sum(relative <= 0))} events have the same density in all members; there is no error"
        )
    t = -np.expm1(log_weight) / relative
    left, center, right = np.quantile(t, QUANTILES)
    rho, rho_p = 0.0, 1.0
    if np.ptp(relative) > 1e-12 * relative.max() and np.ptp(np.abs(log_weight)) > 0:
        rho, rho_p = map(float, spearmanr(np.abs(log_weight), relative))
    order = np.argsort(log_weight, kind="stable")
    rows = [
        [float(np.median(log_weight[part])), *np.quantile(relative[part], QUANTILES)]
        for part in np.array_split(order, n_bins)
        if part.size
    ]
    return Pulls(
        t,
        relative,
        float(center),
        float(0.5 * (right - left)),
        float(kstest(t, ndtr).pvalue),
        float(np.mean(np.abs(t) > 3)),
        rho,
        rho_p,
        np.array(rows),
    )


@dataclass(frozen=True, eq=False)
class BinErrors:
    """Histogram of generated events with the error that an ensemble gives it.

    Parameters
    ----------
    edges : array of shape (bins + 1,)
        Edges.
    low, median, high : array of shape (bins,)
        15.9 %, 50 % and 84.1 % quantiles over the members.
    """

    edges: FloatArray
    low: FloatArray
    median: FloatArray
    high: FloatArray


def bin_errors(log_density: FloatArray, values: FloatArray, edges: FloatArray) -> BinErrors:
    """Reweight generated events to every member and histogram them.

    Parameters
    ----------
    log_density : array of shape (K, n)
        ln p of every member at every generated event; the events are drawn from the members' mean density.
    values : array of shape (n,)
        Observable.
    edges : array of shape (bins + 1,)
        Increasing edges.

    Raises
    ------
    OptionError
        If the edges do not increase.
    """
    if edges.ndim != 1 or edges.size < 2 or np.any(np.diff(edges) <= 0):
        raise OptionError(f"edges {edges.tolist()[:5]} must be two or more increasing numbers")
    top = log_density.max(axis=0)
    ratio = np.exp(log_density - top)
    ratio /= ratio.mean(axis=0)
    histograms = np.stack([np.histogram(values, edges, weights=row)[0] for row in ratio])
    low, middle, high = np.quantile(histograms, QUANTILES, axis=0)
    return BinErrors(edges, low, middle, high)
