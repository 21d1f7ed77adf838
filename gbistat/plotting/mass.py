"""The mass spectrum with its fit, and the pulls below it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import gammaincinv

from gbistat.plotting.figure import figure_file
from gbistat.plotting.labels import mass_label, p_value_text
from gbistat.plotting.layout import fit_label, place_legend
from gbistat.plotting.style import BACKGROUND, BARS, GUIDE, SIGNAL, WINDOW, Artists

if TYPE_CHECKING:
    from os import PathLike

    from matplotlib.axes import Axes

    from gbistat.fit.spectrum import MassSpectrum
    from gbistat.typing import FloatArray

__all__ = ["draw_spectrum", "garwood_errors", "nominal_width", "save_spectrum"]

TAIL = 0.15865525393145707
"""Probability beyond one standard deviation on one side."""
SHOWN_EMPTY = 0.5
"""Expected events from which an empty bin is worth an error bar."""
SMALLEST_FRACTION = 0.15
"""Lower end of the y axis, as a fraction of the smallest content that is not zero."""
LARGEST_PULL = 8.0
"""Where the pull axis ends at most; larger pulls run out of it."""
CHI2 = r"$\chi^\mathrm{2}$"


def draw_spectrum(spectrum: MassSpectrum, ax_main: Axes, ax_pulls: Axes) -> Artists:
    """Draw counts, sideband fit and fitted signal, and below them the pulls.

    Parameters
    ----------
    spectrum : MassSpectrum
        What to draw.
    ax_main, ax_pulls : Axes
        Upper and lower panel.

    Returns
    -------
    dict
        ``data`` (errorbar), ``background`` (stairs), ``band`` (stairs), ``total`` (stairs over the window; None if no bin
        lies in it), ``window`` (one span a panel), ``pulls`` and ``signal_pulls`` (stairs), ``legend``.

    Notes
    -----
    Contents are scaled to bins of one width, the median one, which the axis label names. The line in the lower panel is
    the fitted signal in the pulls' own unit.

    The error bars are central Poisson intervals; an empty bin has one where half an event or more was expected. Weighted
    events get none: the spectrum does not hold the sums of squared weights that they would need.
    """
    artists: Artists = {
        "window": [
            ax.axvspan(*spectrum.window.edges, facecolor=WINDOW, alpha=0.22, edgecolor="none", linewidth=0, zorder=0)
            for ax in (ax_main, ax_pulls)
        ]
    }
    artists |= _draw_contents(spectrum, ax_main)
    artists |= _draw_pulls(spectrum, ax_pulls)
    for ax in (ax_main, ax_pulls):
        ax.set_xlim(spectrum.edges[0], spectrum.edges[-1])
    width = nominal_width(spectrum.edges)
    ax_main.set_ylabel(f"Events / {spectrum.unit}" if width == 1.0 else f"Events / {width:g} {spectrum.unit}")
    ax_main.tick_params(axis="x", which="both", labelbottom=False)
    ax_pulls.set_xlabel(mass_label(spectrum.mass_name, spectrum.unit))
    outline = _outline(spectrum)
    _set_counts_range(spectrum, float(outline[1].max()), ax_main)
    handles, labels = _legend_entries(spectrum, artists)
    artists["legend"] = place_legend(ax_main, handles, labels, *outline, sides=("right", "left"))
    return artists


def save_spectrum(spectrum: MassSpectrum, path: str | PathLike[str]) -> Path:
    """Write the mass spectrum with its fit and pulls; see `draw_spectrum`.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    with figure_file(path, size=(7.0, 6.4), rows=(2.8, 1.0)) as (main, pulls):
        draw_spectrum(spectrum, main, pulls)
    return Path(path)


def garwood_errors(counts: FloatArray) -> FloatArray:
    """Distances from Poisson counts to the ends of their central 68.27 % intervals.

    Parameters
    ----------
    counts : array of shape (n,)
        Not negative; zero has no lower error.

    Returns
    -------
    array of shape (2, n)
        Downwards and upwards.

    Notes
    -----
    F. Garwood, Biometrika 28 (1936) 437: the ends are quantiles of gamma distributions with shapes n and n + 1.
    """
    low = np.where(counts > 0, gammaincinv(np.maximum(counts, 1.0), TAIL), 0.0)
    high = gammaincinv(counts + 1.0, 1.0 - TAIL)
    return np.stack([counts - low, high - counts])


def nominal_width(edges: FloatArray) -> float:
    """Width that contents are scaled to: the median bin, to two digits unless three are exact."""
    median = float(np.median(np.diff(edges)))
    short = float(f"{median:.3g}")
    return short if np.allclose(np.diff(edges), short, rtol=1e-6) else float(f"{median:.2g}")


def _scale(spectrum: MassSpectrum) -> FloatArray:
    """Factor from a content to what is drawn, shape (n,)."""
    scale: FloatArray = nominal_width(spectrum.edges) / np.diff(spectrum.edges)
    return scale


def _errors(spectrum: MassSpectrum) -> FloatArray:
    """Error bars, shape (2, n): Poisson intervals of counts, sums of squared weights of weighted events."""
    if spectrum.variances is not None:
        return np.tile(np.sqrt(spectrum.variances), (2, 1))
    return garwood_errors(spectrum.counts)


def _inside(spectrum: MassSpectrum) -> slice:
    """Bins of the window."""
    centres = 0.5 * (spectrum.edges[:-1] + spectrum.edges[1:])
    inside = np.flatnonzero((centres > spectrum.window.low) & (centres < spectrum.window.high))
    return slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else slice(0, 0)


def _draw_contents(spectrum: MassSpectrum, ax: Axes) -> Artists:
    # Stairs and error bars are matplotlib's own: mplhep.histplot reads every setting, which makes matplotlib choose a
    # backend for the whole process.
    edges, scale = spectrum.edges, _scale(spectrum)
    ax.set_yscale("log")
    upper, lower = (spectrum.background + sign * spectrum.background_error for sign in (1.0, -1.0))
    fill: dict[str, Any] = {"fill": True, "color": BACKGROUND, "alpha": 0.3, "linewidth": 0, "zorder": 1}
    shown = (spectrum.counts > 0) | (spectrum.background >= SHOWN_EMPTY)
    return {
        "band": ax.stairs(upper * scale, edges, baseline=_positive(lower * scale), **fill),
        "background": ax.stairs(
            _positive(spectrum.background * scale), edges, baseline=None, color=BACKGROUND, linewidth=1.2, zorder=2
        ),
        "total": _stairs_inside(spectrum, _positive((spectrum.background + spectrum.signal) * scale), ax),
        "data": ax.errorbar(
            0.5 * (edges[1:] + edges[:-1]),
            np.where(shown, spectrum.counts * scale, np.nan),
            yerr=_errors(spectrum) * scale,
            color="black",
            marker="o",
            markersize=3.6,
            elinewidth=1.0,
            linestyle="none",
            zorder=4,
        ),
    }


def _draw_pulls(spectrum: MassSpectrum, ax: Axes) -> Artists:
    pulls = spectrum.pulls
    # The same formula with the fitted expectation in place of the counts: the signal in units of the pulls.
    signal = replace(spectrum, counts=spectrum.background + spectrum.signal).pulls
    largest = float(np.abs(np.r_[pulls, signal[_inside(spectrum)]]).max())
    span = 1.15 * min(LARGEST_PULL, max(3.0, largest))
    ax.set_ylim(-span, span)
    ax.axhline(0.0, color="black", linewidth=1.0, zorder=2)
    for level in (-2.0, 2.0):
        ax.axhline(level, color=GUIDE, linewidth=0.8, linestyle=":", zorder=1)
    bars = ax.stairs(pulls, spectrum.edges, fill=True, color=BARS, linewidth=0, zorder=1)
    ax.set_ylabel(r"(data $-$ bkg.) / $\sigma$")
    fit_label(ax, ax.yaxis.label, "y")
    return {"pulls": bars, "signal_pulls": _stairs_inside(spectrum, signal, ax)}


def _stairs_inside(spectrum: MassSpectrum, values: FloatArray, ax: Axes) -> Any:
    """Signal over the bins of the window, or None if there are none."""
    inside = _inside(spectrum)
    if inside.start == inside.stop:
        return None
    edges = spectrum.edges[inside.start : inside.stop + 1]
    return ax.stairs(values[inside], edges, baseline=None, color=SIGNAL, linewidth=1.8, zorder=3)


def _set_counts_range(spectrum: MassSpectrum, top: float, ax: Axes) -> None:
    """At least one decade, from below the smallest content."""
    counts, background = spectrum.counts * _scale(spectrum), spectrum.background * _scale(spectrum)
    positive = np.r_[counts, background]
    positive = positive[positive > 0]
    if positive.size == 0:
        ax.set_ylim(0.1, 10.0)
        return
    smallest = float(counts[counts > 0].min(initial=np.inf))
    bottom = 0.5 * float(positive.min())
    if np.isfinite(smallest):
        bottom = max(bottom, SMALLEST_FRACTION * smallest)
    ax.set_ylim(min(bottom, 0.1 * top), 1.4 * top)


def _outline(spectrum: MassSpectrum) -> tuple[FloatArray, FloatArray]:
    """Edges of bins and the highest of what is drawn there."""
    drawn = (
        spectrum.counts + np.nan_to_num(_errors(spectrum)[1]),
        spectrum.background + spectrum.background_error,
        spectrum.background + spectrum.signal,
    )
    x = np.stack([spectrum.edges[:-1], spectrum.edges[1:]], axis=1).ravel()
    return x, np.repeat(np.max(drawn, axis=0) * _scale(spectrum), 2)


def _legend_entries(spectrum: MassSpectrum, artists: Artists) -> tuple[list[Any], list[str]]:
    fit = "sideband fit"
    if spectrum.goodness is not None:
        goodness = spectrum.goodness
        fit += f"\n{CHI2}/ndof = {goodness.chi2:.1f}/{goodness.ndof}, {p_value_text(goodness.p_value)}"
    handles, labels = [artists["data"], (artists["band"], artists["background"])], ["data", fit]
    if artists["total"] is not None:
        handles.append(artists["total"])
        labels.append("sideband fit + fitted signal")
    window = spectrum.window
    handles.append(artists["window"][0])
    labels.append(f"window {window.low:g}–{window.high:g} {window.unit}")
    return handles, labels


def _positive(values: FloatArray) -> FloatArray:
    """Replace what a logarithmic axis cannot show by something below it."""
    return np.maximum(values, 1e-300)
