"""A signal that was learned from the data: its spectra, and how the data score."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import OptionError
from gbistat.plotting.figure import figure_file
from gbistat.plotting.labels import mass_label, mass_symbol, upright
from gbistat.plotting.layout import place_legend
from gbistat.plotting.style import BACKGROUND, GUIDE, INTERVALS, SIGNAL, Artists

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from matplotlib.axes import Axes

    from gbistat.typing import FloatArray, IntArray

__all__ = ["draw_found_signal", "draw_score", "save_found_signal", "save_score"]

BINS = 30
TAILS = (0.002, 0.998)
"""Quantiles of the drawn events at which an axis ends."""


def draw_found_signal(
    name: str,
    unit: str,
    data: FloatArray,
    purity: FloatArray,
    samples: Sequence[FloatArray],
    background: FloatArray,
    ax: Axes,
) -> Artists:
    """Draw one spectrum of the signal that was found.

    Parameters
    ----------
    name, unit : str
        Of the quantity.
    data : array of shape (n,)
        Its values in the data.
    purity : array of shape (M, n)
        Probability of each event to be signal by each of M networks; points are data weighted with their mean, errors the spread
        between networks and the statistical error in quadrature.
    samples : sequence of array
        Values in events drawn from the networks of each fold; the band is their mean and spread.
    background : array
        Values in events drawn from the background, drawn with the area of the signal.
    ax : Axes
        Where to draw.

    Returns
    -------
    dict
        ``band``, ``mean``, ``background``, ``data`` and ``legend``.

    Raises
    ------
    OptionError
        If there are no samples.
    """
    if not samples or not all(values.size for values in samples):
        raise OptionError("there are no samples of the signal to draw")
    drawn = np.concatenate([*samples, background])
    low, high = np.quantile(drawn, TAILS)
    edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
    centres, total = 0.5 * (edges[1:] + edges[:-1]), float(purity.mean(axis=0).sum())
    curves = np.array([total / values.size * np.histogram(values, edges)[0] for values in samples])
    mean, spread = curves.mean(axis=0), curves.std(axis=0, ddof=1 if len(curves) > 1 else 0)
    base = total / background.size * np.histogram(background, edges)[0]
    members = np.array([np.histogram(data, edges, weights=row)[0] for row in purity])
    content = members.mean(axis=0)
    statistical = np.histogram(data, edges, weights=purity.mean(axis=0) ** 2)[0]
    error = np.sqrt(statistical + members.var(axis=0, ddof=1 if len(members) > 1 else 0))
    upper = mean + spread
    artists: Artists = {
        "band": ax.stairs(upper, edges, baseline=np.maximum(mean - spread, 0.0), fill=True, color=SIGNAL, alpha=0.25),
        "mean": ax.stairs(mean, edges, color=SIGNAL),
        "background": ax.stairs(base, edges, color=BACKGROUND, linestyle="--"),
        "data": ax.errorbar(centres, content, yerr=error, fmt="o", color="black", markersize=4, linewidth=1.2),
    }
    top = float(max(upper.max(), (content + error).max(), base.max()))
    ax.set_xlim(edges[0], edges[-1])
    ax.set_ylim(0.0, 1.08 * top if top > 0 else 1.0)
    symbol = mass_label(name, unit) if unit != "1" else mass_symbol(name)
    ax.set_xlabel(symbol)
    ax.set_ylabel("Signal events per bin")
    handles = [artists["data"], (artists["band"], artists["mean"]), artists["background"]]
    labels = ["data, weighted with purity", "drawn from the networks", "background, same area"]
    x = np.r_[centres, centres, centres]
    artists["legend"] = place_legend(ax, handles, labels, x, np.r_[upper, content + error, base])
    return artists


def save_found_signal(
    name: str,
    unit: str,
    data: FloatArray,
    purity: FloatArray,
    samples: Sequence[FloatArray],
    background: FloatArray,
    path: str | PathLike[str],
) -> Path:
    """Draw one spectrum into a file; see `draw_found_signal`.

    Raises
    ------
    OptionError
        If there are no samples.
    OutputError
        If the file cannot be written.
    """
    with figure_file(path) as (ax,):
        draw_found_signal(name, unit, data, purity, samples, background, ax)
    return Path(path)


def draw_score(score: FloatArray, fold: IntArray, log_e: Sequence[float], ax: Axes, *, first: int = 0) -> Artists:
    """Draw how many events of each fold lie above a score.

    Parameters
    ----------
    score : array of shape (n,)
        ln p_s / p_b.
    fold : array of shape (n,)
        Fold of each event.
    log_e : sequence of float
        ln e of each fold that gives evidence, for the legend.
    ax : Axes
        Where to draw.
    first : int, default 0
        The first of these folds.

    Returns
    -------
    dict
        ``curves``, a list of lines, and ``legend``.
    """
    artists: Artists = {"curves": []}
    finite = score[np.isfinite(score)]
    low, high = max(float(np.quantile(finite, 0.2)), -10.0), float(finite.max())
    top = 1.0
    for k, log in enumerate(log_e, first):
        values = -np.sort(-score[fold == k])
        counts = np.arange(1, values.size + 1)
        top = max(top, float(values.size))
        text = f"fold {k + 1}: ln $e$ = {upright(f'{log:.1f}')}"
        color, dashes = INTERVALS[k % len(INTERVALS)], "--" if k >= len(INTERVALS) else "-"
        artists["curves"] += ax.step(values, counts, where="post", color=color, linestyle=dashes, label=text)
    ax.axvline(0.0, color=GUIDE, linestyle=":", linewidth=1.0)
    ax.set_yscale("log")
    ax.set_xlim(low, high + 0.03 * (high - low))
    ax.set_ylim(0.7, 2.0 * top)
    ax.set_xlabel(r"ln $p_\mathrm{s}$ / $p_\mathrm{b}$")
    ax.set_ylabel("Events above")
    artists["legend"] = ax.legend(loc="upper right")
    return artists


def save_score(
    score: FloatArray, fold: IntArray, log_e: Sequence[float], path: str | PathLike[str], *, first: int = 0
) -> Path:
    """Draw the scores into a file; see `draw_score`.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    with figure_file(path) as (ax,):
        draw_score(score, fold, log_e, ax, first=first)
    return Path(path)
