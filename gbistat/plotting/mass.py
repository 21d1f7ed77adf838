"""The mass spectrum with its fit, and the pulls below it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import gammaincinv
from scipy.stats import norm

from gbistat import extras
from gbistat.plotting.labels import mass_label
from gbistat.plotting.layout import fit_label, place_legend
from gbistat.plotting.style import BACKGROUND, GUIDE, SIGNAL, WINDOW, Artists

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from gbistat.fit.spectrum import MassSpectrum
    from gbistat.typing import FloatArray

__all__ = ["draw_spectrum", "garwood_errors", "nominal_width"]

SMALLEST_FRACTION = 0.15
"""Lower end of the y axis, as a fraction of the smallest content that is not zero."""
LARGEST_PULL = 8.0
"""Where the pull axis ends at most; pulls beyond are drawn as arrows at its edge."""


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
        ``data`` (errorbar), ``background`` (stairs), ``band`` (stairs), ``total`` (stairs over the window), ``window``
        (one span a panel), ``pulls`` (errorbar), ``signal_pulls`` (stairs), ``legend``.

    Notes
    -----
    Contents are scaled to bins of one width, the median one, which the axis label names. The error bars are central
    Poisson intervals; for weighted events they are only a sketch, since a spectrum holds no sum of squared weights.
    The line in the lower panel is the fitted signal in the pulls' own unit.
    """
    artists = {"window": [_shade(ax, spectrum) for ax in (ax_main, ax_pulls)]}
    artists |= _draw_contents(spectrum, ax_main)
    artists |= _draw_pulls(spectrum, ax_pulls)
    for ax in (ax_main, ax_pulls):
        ax.set_xlim(spectrum.edges[0], spectrum.edges[-1])
    ax_main.tick_params(axis="x", which="both", labelbottom=False)
    ax_pulls.set_xlabel(mass_label(spectrum.mass_name, spectrum.unit))
    _set_counts_range(spectrum, ax_main)
    artists["legend"] = _legend(spectrum, artists, ax_main)
    return artists


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
    tail = float(norm.sf(1.0))
    low = np.where(counts > 0, gammaincinv(np.maximum(counts, 1e-12), tail), 0.0)
    high = gammaincinv(counts + 1.0, 1.0 - tail)
    return np.stack([counts - low, high - counts])


def nominal_width(edges: FloatArray) -> float:
    """Width that contents are scaled to: the median of the bins, to two digits unless all bins are equal."""
    widths = np.diff(edges)
    median = float(np.median(widths))
    equal = np.allclose(widths, median, rtol=1e-6)
    return float(f"{median:.6g}" if equal else f"{median:.2g}")


def _shade(ax: Axes, spectrum: MassSpectrum) -> object:
    return ax.axvspan(*spectrum.window.edges, facecolor=WINDOW, alpha=0.22, edgecolor="none", linewidth=0, zorder=0)


def _inside(spectrum: MassSpectrum) -> slice:
    """Bins of the window."""
    centres = 0.5 * (spectrum.edges[:-1] + spectrum.edges[1:])
    inside = np.flatnonzero((centres > spectrum.window.low) & (centres < spectrum.window.high))
    return slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else slice(0, 0)


def _draw_contents(spectrum: MassSpectrum, ax: Axes) -> Artists:
    mplhep = extras.mplhep()
    edges, scale = spectrum.edges, nominal_width(spectrum.edges) / np.diff(spectrum.edges)
    upper, lower = (spectrum.background + sign * spectrum.background_error for sign in (1.0, -1.0))
    ax.set_yscale("log")
    band = ax.stairs(
        upper * scale,
        edges,
        baseline=np.maximum(lower * scale, 1e-300),
        fill=True,
        color=BACKGROUND,
        alpha=0.3,
        linewidth=0,
        zorder=1,
    )
    (background,) = mplhep.histplot(
        spectrum.background * scale, edges, ax=ax, histtype="step", edges=False, color=BACKGROUND, zorder=2, flow="none"
    )
    inside = _inside(spectrum)
    total = None
    if inside.stop > inside.start:
        total = ax.stairs(
            np.maximum((spectrum.background + spectrum.signal) * scale, 1e-300)[inside],
            edges[inside.start : inside.stop + 1],
            baseline=None,
            color=SIGNAL,
            linewidth=1.8,
            zorder=3,
        )
    (data,) = mplhep.histplot(
        spectrum.counts * scale,
        edges,
        ax=ax,
        histtype="errorbar",
        yerr=garwood_errors(spectrum.counts) * scale,
        color="black",
        marker="o",
        markersize=3.6,
        elinewidth=1.0,
        zorder=4,
        flow="none",
    )
    ax.set_xlabel("")
    width = nominal_width(edges)
    ax.set_ylabel(f"Events / {width:g} {spectrum.unit}" if width != 1 else f"Events / {spectrum.unit}")
    return {"data": data.errorbar, "background": background.stairs, "band": band, "total": total}


def _draw_pulls(spectrum: MassSpectrum, ax: Axes) -> Artists:
    pulls = spectrum.pulls
    # The same formula with the fitted expectation in place of the counts: the signal in units of the pulls.
    signal = replace(spectrum, counts=spectrum.background + spectrum.signal).pulls
    inside = _inside(spectrum)
    span = float(min(LARGEST_PULL, max(3.0, np.abs(pulls).max(initial=0.0), np.abs(signal[inside]).max(initial=0.0))))
    ax.set_ylim(-1.15 * span, 1.15 * span)
    ax.axhline(0.0, color=BACKGROUND, linewidth=1.2, zorder=1)
    for level in (-2.0, 2.0):
        ax.axhline(level, color=GUIDE, linewidth=0.8, linestyle=":", zorder=1)
    centres = 0.5 * (spectrum.edges[:-1] + spectrum.edges[1:])
    points = ax.errorbar(
        centres, pulls, yerr=np.ones(pulls.size), color="black", marker="o", markersize=3.6, elinewidth=1.0, linestyle="none",
        zorder=3,
    )  # fmt: skip
    line = None
    if inside.stop > inside.start:
        line = ax.stairs(
            signal[inside], spectrum.edges[inside.start : inside.stop + 1], baseline=None, color=SIGNAL, zorder=2
        )
    artists: Artists = {"pulls": points, "signal_pulls": line, "beyond": []}
    for sign, marker in ((1.0, "^"), (-1.0, "v")):
        beyond = sign * pulls > 1.15 * span
        if beyond.any():
            at = np.full(int(beyond.sum()), sign * 1.05 * span)
            artists["beyond"] += ax.plot(centres[beyond], at, marker=marker, linestyle="none", color="black", zorder=4)
    ax.set_ylabel(r"(data $-$ bkg.) / $\sigma$")
    fit_label(ax, ax.yaxis.label, "y")
    return artists


def _set_counts_range(spectrum: MassSpectrum, ax: Axes) -> None:
    """At least one decade, from below the smallest content to above the highest error bar."""
    scale = nominal_width(spectrum.edges) / np.diff(spectrum.edges)
    contents = np.r_[spectrum.counts * scale, spectrum.background * scale]
    positive = contents[contents > 0]
    counted = (spectrum.counts * scale)[spectrum.counts > 0]
    if positive.size == 0:
        ax.set_ylim(0.1, 10.0)
        return
    smallest = float((counted if counted.size else positive).min())
    top = float(_outline(spectrum)[1].max())
    bottom = max(SMALLEST_FRACTION * smallest, 0.5 * float(positive.min()))
    ax.set_ylim(min(bottom, 0.1 * top), 1.4 * top)


def _outline(spectrum: MassSpectrum) -> tuple[FloatArray, FloatArray]:
    """Edges of bins and the highest of what is drawn there."""
    scale = nominal_width(spectrum.edges) / np.diff(spectrum.edges)
    high = np.max(
        [
            spectrum.counts + garwood_errors(spectrum.counts)[1],
            spectrum.background + spectrum.background_error,
            spectrum.background + spectrum.signal,
        ],
        axis=0,
    )
    x = np.stack([spectrum.edges[:-1], spectrum.edges[1:]], axis=1).ravel()
    return x, np.repeat(high * scale, 2)


def _legend(spectrum: MassSpectrum, artists: Artists, ax: Axes) -> object:
    fit = "sideband fit"
    if spectrum.goodness is not None:
        goodness = spectrum.goodness
        fit += (
            "\n"
            + rf"$\chi^2$/ndof = {goodness.chi2:.1f}/{goodness.ndof}, $\mathit{{p}}$ = {_p_value(goodness.p_value)}"
        )
    entries = [(artists["data"], "data"), ((artists["band"], artists["background"]), fit)]
    if artists["total"] is not None:
        entries.append((artists["total"], "sideband fit + fitted signal"))
    entries.append((artists["window"][0], f"window {str(spectrum.window).replace('-', '–')}"))
    handles, labels = zip(*entries, strict=True)
    x, y = _outline(spectrum)
    return place_legend(ax, handles, labels, x, y, sides=("right", "left"))


def _p_value(p: float) -> str:
    if p >= 1e-3:
        return f"{p:.2f}" if p >= 0.095 else f"{p:.2g}"
    if p < 1e-99:
        return r"$< 10^{-99}$"
    mantissa, exponent = f"{p:.0e}".split("e")
    return rf"${mantissa}\times 10^{{{int(exponent)}}}$"
