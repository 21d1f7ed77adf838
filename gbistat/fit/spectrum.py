"""The mass spectrum with a fit on it, as numbers ready to draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import ParameterError

if TYPE_CHECKING:
    from gbistat.data.events import Events
    from gbistat.data.window import MassWindow
    from gbistat.fit.sidebands import GoodnessOfFit, SidebandFit
    from gbistat.terms.density import MassDensity
    from gbistat.typing import FloatArray, Json

__all__ = ["MassSpectrum", "mass_spectrum"]


@dataclass(frozen=True, eq=False)
class MassSpectrum:
    """Counts of a mass spectrum beside what a fit expects.

    Parameters
    ----------
    edges : array of shape (n + 1,)
        Bins, in `unit`.
    counts : array of shape (n,)
        Observed events (sums of weights).
    background : array of shape (n,)
        Expected background: the smooth fit to the sidebands.
    background_error : array of shape (n,)
        Its standard deviation from the statistics of the sidebands.
    signal : array of shape (n,)
        Fitted signal (may be negative).
    window : MassWindow
        Where the signal was fitted.
    mass_name, unit : str
        For the axis.
    goodness : GoodnessOfFit or None
        Of the sideband fit.
    variances : array of shape (n,) or None
        Sums of squared weights, where events are weighted.
    """

    edges: FloatArray
    counts: FloatArray
    background: FloatArray
    background_error: FloatArray
    signal: FloatArray
    window: MassWindow
    mass_name: str
    unit: str
    goodness: GoodnessOfFit | None = None
    variances: FloatArray | None = None

    @property
    def pulls(self) -> FloatArray:
        """``(counts - background) / sqrt(background + error^2)``, shape (n,); 0 where nothing is expected.

        For weighted events the sum of squared weights stands in place of the expected background.
        """
        statistical = self.background if self.variances is None else self.variances
        variance = statistical + self.background_error**2
        pulls: FloatArray = np.where(
            variance > 0, (self.counts - self.background) / np.sqrt(np.maximum(variance, 1e-12)), 0.0
        )
        return pulls

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "edges": self.edges.tolist(),
            "counts": self.counts.tolist(),
            "background": self.background.tolist(),
            "background_error": self.background_error.tolist(),
            "signal": self.signal.tolist(),
        }


def mass_spectrum(
    events: Events, sidebands: SidebandFit, signal: MassDensity | None, n_signal: float, *, n_bins: int = 60
) -> MassSpectrum:
    """Compare events with the sideband fit and a fitted signal, over the fit range.

    Parameters
    ----------
    events : Events
        The whole spectrum.
    sidebands : SidebandFit
        Smooth background.
    signal : MassDensity or None
        Density of the signal in the window, without free parameters.
    n_signal : float
        Fitted signal events in the window.
    n_bins : int, default 60
        Bins of equal ratio; the edges of the window are among them.

    Returns
    -------
    MassSpectrum
        Numbers to draw.
    """
    window, fit_range = sidebands.window, sidebands.fit_range
    edges = _edges(window, fit_range, n_bins)
    counts, _ = np.histogram(events.mass, bins=edges, weights=events.weights)
    variances = None
    if events.weights is not None:
        variances = np.histogram(events.mass, bins=edges, weights=events.weights**2)[0].astype(np.float64)
    background = sidebands.spectrum(edges)
    shape = np.zeros(edges.size - 1)
    if signal is not None:
        shape = signal.on((fit_range.edges,)).probabilities(edges, np.empty(0))
        inside = signal.on((fit_range.edges,)).probabilities(np.array(window.edges), np.empty(0))[0]
        shape = shape * (n_signal / inside)
    return MassSpectrum(
        edges=edges,
        counts=counts.astype(np.float64),
        background=background,
        background_error=_background_error(sidebands, edges, background),
        signal=shape,
        window=window,
        mass_name=events.mass_name,
        unit=events.unit,
        goodness=sidebands.goodness,
        variances=variances,
    )


def _edges(window: MassWindow, fit_range: MassWindow, n_bins: int) -> FloatArray:
    """Bins over the fit range, about equally many a unit of mass, with the window's edges among them."""
    pieces = [(fit_range.low, window.low), window.edges, (window.high, fit_range.high)]
    width = (fit_range.high - fit_range.low) / n_bins
    parts = [np.linspace(low, high, max(2, round((high - low) / width) + 1))[:-1] for low, high in pieces]
    edges: FloatArray = np.append(np.concatenate(parts), fit_range.high)
    return edges


def _background_error(sidebands: SidebandFit, edges: FloatArray, background: FloatArray) -> FloatArray:
    """Propagate the covariance of the sideband fit by steps of one standard deviation in each nuisance.

    A step may leave the parameters for which the shape is a density (a coefficient of a polynomial near 0): the other side
    alone is taken then, and where both leave, the direction adds nothing.
    """
    variance: FloatArray = background**2 / float(sidebands.fit.values[0])
    for column in sidebands.rotation.T:
        moved = [_moved_spectrum(sidebands, sign * column, edges) for sign in (+1.0, -1.0)]
        steps = [spectrum - background for spectrum in moved if spectrum is not None]
        if len(steps) == 2:
            variance += (0.5 * (steps[0] - steps[1])) ** 2
        elif steps:
            variance += steps[0] ** 2
    error: FloatArray = np.sqrt(variance)
    return error


def _moved_spectrum(sidebands: SidebandFit, step: FloatArray, edges: FloatArray) -> FloatArray | None:
    """Spectrum for other parameters; ``None`` where they give no density."""
    try:
        return sidebands.shifted(sidebands.theta + step).spectrum(edges)
    except ParameterError:
        return None
