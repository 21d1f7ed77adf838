"""Expected counts after a fit, by sample, with errors: what a plot of bins shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbistat.fit.minimize import fit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gbistat.binned.binning import AnyBinning
    from gbistat.binned.load import LoadedWorkspace
    from gbistat.fit.result import FitResult
    from gbistat.typing import FloatArray, Json

__all__ = ["PostFit", "post_fit"]


@dataclass(frozen=True, eq=False)
class PostFit:
    """Bins of one channel after a fit.

    Parameters
    ----------
    channel : str
        Name of the channel: the observable.
    edges : array of shape (nb + 1,) or None
        Edges of the bins, ``None`` where bins have numbers only.
    unit : str or None
        Unit of the edges.
    observed : array of shape (nb,)
        Observed counts.
    samples : dict of str to array of shape (nb,)
        Fitted counts of each sample.
    error : array of shape (nb,)
        Error of their sum, from the covariance of the fit.
    open_ended : bool
        Whether the outer bins hold what lies beyond all edges, too.
    """

    channel: str
    edges: FloatArray | None
    unit: str | None
    observed: FloatArray
    samples: Mapping[str, FloatArray]
    error: FloatArray
    open_ended: bool = False

    @property
    def total(self) -> FloatArray:
        """Fitted counts of all samples, shape (nb,)."""
        result: FloatArray = np.sum(list(self.samples.values()), axis=0)
        return result

    @property
    def pulls(self) -> FloatArray:
        """Observed less fitted counts, in Poisson errors of the fitted ones, shape (nb,)."""
        total = self.total
        return (self.observed - total) / np.sqrt(np.where(total > 0, total, 1.0))

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "channel": self.channel,
            "edges": None if self.edges is None else self.edges.tolist(),
            "observed": self.observed.tolist(),
            "samples": {name: counts.tolist() for name, counts in self.samples.items()},
            "error": self.error.tolist(),
            "pulls": self.pulls.tolist(),
        }


def post_fit(
    loaded: LoadedWorkspace, channel: str, binning: AnyBinning | None = None, best: FitResult | None = None
) -> PostFit:
    """Fitted counts of a channel.

    Parameters
    ----------
    loaded : LoadedWorkspace
        A workspace.
    channel : str
        Which channel.
    binning : Binning, optional
        Its bins, for the axis.
    best : FitResult, optional
        The fit, if it is at hand.

    Raises
    ------
    ModelError
        If there is no such channel.
    FitFailed
        If the fit is not valid.
    """
    nll, term = loaded.nll, loaded.term
    result = best or fit(nll).raise_if_invalid()
    place = np.array([nll.names.index(name) for name in term.names])
    theta = result.values[place]
    expected = loaded.expected(theta, channel)
    part = loaded.channels[channel]
    cells = term.expectation.cells(theta[None])[0]
    where = term.expectation.tables.cell_bin
    samples = {}
    for (owner, sample), rows in loaded.samples.items():
        if owner == channel:
            counts = np.zeros(expected.size)
            counts[where[rows] - part.start] = cells[rows]
            samples[sample] = counts
    # One-sided steps inside the ranges are enough for an error.
    jacobian = np.empty((expected.size, theta.size))
    for k in range(theta.size):
        step = 1e-4 * max(float(result.errors[place[k]]), 1e-6)
        moved = np.tile(theta, (2, 1))
        moved[:, k] += [-step, step]
        low, high = term.expectation.counts(moved)[:, part]
        jacobian[:, k] = (high - low) / (2.0 * step)
    covariance = result.covariance[np.ix_(place, place)]
    error = np.sqrt(np.maximum(np.einsum("bi,ij,bj->b", jacobian, covariance, jacobian), 0.0))
    edges = getattr(binning, "edges", None)
    return PostFit(
        channel,
        edges,
        getattr(binning, "unit", None),
        term.observed[part],
        samples,
        error,
        bool(getattr(binning, "open_ended", False)),
    )
