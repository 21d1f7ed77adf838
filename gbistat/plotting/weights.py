"""Figures of a certificate: weights, ROC, calibration, slices, closure, null distributions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gbistat.diagnostics.roc import roc_curve
from gbistat.diagnostics.slices import slice_mask
from gbistat.plotting.figure import figure_file
from gbistat.plotting.labels import p_value_text
from gbistat.plotting.style import BACKGROUND, GUIDE, ONE_SIGMA, SIGNAL, TWO_SIGMA, Artists

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from matplotlib.axes import Axes

    from gbistat.diagnostics.calibration import Calibration
    from gbistat.diagnostics.roc import RocCurve
    from gbistat.diagnostics.weights import Scores
    from gbistat.typing import FloatArray

__all__ = [
    "density_histogram",
    "draw_calibration",
    "draw_histogram",
    "draw_log_weights",
    "draw_roc",
    "draw_slices",
    "draw_weights",
    "save_weight_figures",
]

DATA, GENERATED = SIGNAL, BACKGROUND


def density_histogram(values: FloatArray, edges: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Density, its errors and counts in bins; what lies outside is added to the first and last bin, none is dropped.

    Parameters
    ----------
    values : array of shape (n,)
        May be infinite.
    edges : array of shape (bins + 1,)
        Edges.
    """
    inner = edges[1:-1]
    counts = np.bincount(np.searchsorted(inner, values, side="right"), minlength=edges.size - 1).astype(np.float64)
    norm = 1.0 / (values.size * np.diff(edges))
    return counts * norm, np.sqrt(counts) * norm, counts


def draw_histogram(
    ax: Axes, height: FloatArray, edges: FloatArray, error: FloatArray | None = None, *, color: str, label: str
) -> Artists:
    """Draw the outline of a histogram and its errors.

    Stairs and error bars are matplotlib's own: ``mplhep.histplot`` reads every setting, which makes matplotlib choose a
    backend for the whole process.

    Parameters
    ----------
    ax : Axes
        Where to draw.
    height, error : array of shape (bins,)
        Values and, if any, their errors.
    edges : array of shape (bins + 1,)
        Edges.
    color, label : str
        Of both.
    """
    artists: Artists = {"stairs": ax.stairs(height, edges, color=color, label=label, linewidth=1.4, baseline=None)}
    if error is not None:
        middle = 0.5 * (edges[1:] + edges[:-1])
        used = height > 0
        artists["errors"] = ax.errorbar(
            middle[used], height[used], yerr=error[used], fmt="none", color=color, linewidth=1
        )
    return artists


def _two(ax: Axes, data: FloatArray, generated: FloatArray, edges: FloatArray) -> Artists:
    """Densities of both classes."""
    artists: Artists = {}
    for name, values, colour in (("generated", generated, GENERATED), ("data", data, DATA)):
        height, error, _ = density_histogram(values, edges)
        artists[name] = draw_histogram(ax, height, edges, error, color=colour, label=f"{name} ({values.size})")
    return artists


def draw_weights(scores: Scores, ax: Axes, *, log: bool = False) -> Artists:
    """Draw the distribution of the weights of data and of generated events, linearly or with both axes logarithmic.

    Parameters
    ----------
    scores : Scores
        Of test events.
    ax : Axes
        Where to draw.
    log : bool, default False
        Weights 0.01 to 10 on a logarithmic axis instead of 0 to 3; the first and last bin hold what lies beyond.

    Returns
    -------
    dict
        ``data``, ``generated``, ``legend``.
    """
    edges = np.geomspace(1e-2, 10.0, 50) if log else np.linspace(0.0, 3.0, 50)
    with np.errstate(over="ignore"):
        artists = _two(ax, np.exp(scores.data), np.exp(scores.generated), edges)
    ax.axvline(1.0, color=GUIDE, linestyle=":", linewidth=1.0)
    ax.set(xlim=(edges[0], edges[-1]), xlabel="weight w", ylabel="probability density")
    if log:
        ax.set(xscale="log", yscale="log")
        # From half an event in the widest bin to room for the legend.
        lowest = 0.5 / (scores.logit.size * float(edges[-1] - edges[-2]))
        ax.set_ylim(lowest, max(10.0 * ax.get_ylim()[1], 1e3 * lowest))
    artists["legend"] = ax.legend(loc="upper left" if log else "upper right")
    return artists


def draw_log_weights(scores: Scores, axes: tuple[Axes, Axes]) -> Artists:
    """Draw ln w of both classes, and below the ratio of data to generated events with the line ratio = w.

    Parameters
    ----------
    scores : Scores
        Of test events.
    axes : (Axes, Axes)
        Main panel and ratio.

    Returns
    -------
    dict
        ``data``, ``generated``, ``ratio``, ``expected``, ``legend``.
    """
    top, bottom = axes
    values = scores.log_weight[np.isfinite(scores.log_weight)]
    low, high = np.quantile(values, [0.001, 0.999]) if values.size else (-1.0, 1.0)
    reach = max(abs(low), abs(high), 0.02) * 1.1
    edges = np.linspace(-reach, reach, 41)
    artists = _two(top, scores.data, scores.generated, edges)
    top.set(ylabel="probability density", yscale="log")
    artists["legend"] = top.legend(loc="upper left")
    n1, n0 = (density_histogram(part, edges)[2] for part in (scores.data, scores.generated))
    used = (n1 > 0) & (n0 > 0)
    centres = 0.5 * (edges[1:] + edges[:-1])[used]
    ratio = n1[used] / n0[used] * scores.generated.size / scores.data.size
    error = ratio * np.sqrt(1 / n1[used] + 1 / n0[used])
    artists["ratio"] = bottom.errorbar(centres, ratio, yerr=error, fmt="o", color="black", markersize=3.5)
    artists["expected"] = bottom.plot(edges, np.exp(edges), color=ONE_SIGMA, label="ratio = w")[0]
    bottom.set(xlim=(-reach, reach), xlabel="ln w", ylabel="data / gen.")
    span = max(1.15 * np.exp(reach), 1.05 * float(np.max(np.maximum(ratio, 1 / ratio), initial=1.0)))
    span = min(span, 100.0)
    if span > 2.5:
        bottom.set_yscale("log")
        bottom.yaxis.set_minor_formatter("")
        bottom.set_ylim(1 / span, span)
    else:
        bottom.set_ylim(2.0 - span, span)
    bottom.legend(loc="lower right")
    return artists


def draw_roc(curve: RocCurve, text: str, ax: Axes) -> Artists:
    """Draw the distance of the ROC curve to the diagonal, with the band that holds 95 % of curves without a difference.

    Parameters
    ----------
    curve : RocCurve
        The curve.
    text : str
        Written into the figure.
    ax : Axes
        Where to draw.

    Notes
    -----
    The curve itself would hide what matters: near the diagonal all curves look alike.
    """
    x = curve.generated
    artists: Artists = {
        "band": ax.fill_between(x, -curve.band, curve.band, color=TWO_SIGMA, alpha=0.5, label="95 % if alike"),
        "curve": ax.plot(x, curve.data - x, color=DATA, label=text)[0],
    }
    ax.axhline(0.0, color=GUIDE, linestyle=":", linewidth=1.0)
    top = max(2.2 * curve.band, 1.7 * float(np.max(curve.data - x)))
    ax.set(xlim=(0, 1), ylim=(-2.0 * curve.band, top))
    ax.set(xlabel=r"share of generated events above w, $\epsilon_{gen}$", ylabel=r"$\epsilon_{data} - \epsilon_{gen}$")
    artists["legend"] = ax.legend(loc="upper right")
    return artists


def draw_calibration(calibration: Calibration, ax: Axes, *, class_ratio: float = 1.0) -> Artists:
    """Draw the ratio of data to generated events in bins of w against the mean weight.

    Parameters
    ----------
    calibration : Calibration
        Its bins.
    ax : Axes
        Where to draw.
    class_ratio : float, default 1
        Data over generated events in all.
    """
    bins = [b for b in calibration.bins if b.n_data and b.n_generated and np.isfinite(b.mean_weight)]
    w = np.array([b.mean_weight for b in bins])
    ratio = np.array([b.n_data / b.n_generated for b in bins]) / class_ratio
    error = ratio * np.array([np.sqrt(1 / b.n_data + 1 / b.n_generated) for b in bins])
    ends = np.concatenate([w, ratio + error, np.maximum(ratio - error, 0.3 * ratio)]) if bins else np.ones(2)
    low, high = 0.95 * float(ends.min()), 1.05 * float(ends.max())
    slope = calibration.slope
    label = f"slope {slope.value:.2f} $\\pm$ {slope.error:.2f}" if calibration.estimable else "slope not estimable"
    artists: Artists = {
        "diagonal": ax.plot([low, high], [low, high], color=ONE_SIGMA, label="calibrated")[0],
        "points": ax.errorbar(w, ratio, yerr=error, fmt="o", color="black", markersize=4, label=label),
    }
    ax.set(xlim=(low, high), ylim=(low, high * (high / low) ** 0.15), xlabel="mean weight of generated events")
    ax.set_ylabel("data / generated")
    if high / low > 3:
        ax.set(xscale="log", yscale="log")
    artists["legend"] = ax.legend(loc="upper left", title=p_value_text(calibration.p_value))
    return artists


def draw_slices(values: FloatArray, scores: Scores, ax: Axes, *, label: str, share: float = 0.05) -> Artists:
    """Draw an observable for all events and for the slices of small and of large weights.

    Parameters
    ----------
    values : array of shape (n,)
        Observable in the order of the scores.
    scores : Scores
        Of test events.
    ax : Axes
        Where to draw.
    label : str
        Of the x axis.
    share : float, default 0.05
        Of each class in its slice.
    """
    low, high = np.quantile(values, [0.001, 0.999])
    edges = np.linspace(low, high, 41) if high > low else np.linspace(low - 0.5, low + 0.5, 41)
    artists = _two(ax, values[scores.is_data], values[~scores.is_data], edges)
    percent = f"{100 * share:g} %"
    for side, colour, text in (
        ("large", "#f89c20", f"data, {percent} largest w"),
        ("small", "#7a21dd", f"generated, {percent} smallest w"),
    ):
        mask = slice_mask(scores, "large" if side == "large" else "small", share)
        height, _, _ = density_histogram(values[mask], edges[::2])
        artists[side] = ax.stairs(height, edges[::2], color=colour, label=text, fill=True, alpha=0.35)
    ax.set(xlim=(edges[0], edges[-1]), xlabel=label, ylabel="probability density")
    top = max(float(np.max(density_histogram(values[scores.is_data], edges)[0])), ax.get_ylim()[1])
    ax.set_ylim(0, 1.35 * top)
    artists["legend"] = ax.legend(loc="upper right", fontsize="x-small", ncols=2)
    return artists


def save_weight_figures(
    report_scores: Scores,
    calibration: Calibration,
    observables: Mapping[str, FloatArray],
    labels: Mapping[str, str],
    directory: Path,
    *,
    text: str,
    prefix: str = "",
) -> list[Path]:
    """Write the figures that need scores alone: weights, ROC, calibration, slices of each observable.

    Parameters
    ----------
    report_scores : Scores
        Of test events.
    calibration : Calibration
        Of the same.
    observables : mapping of str to array of shape (n,)
        For the slices.
    labels : mapping of str to str
        Axis labels.
    directory : Path
        Existing folder.
    text : str
        In the ROC figure.
    prefix : str
        Before the names of the files.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    scores = report_scores
    written = []

    def place(name: str) -> Path:
        written.append(directory / f"{prefix}{name}.png")
        return written[-1]

    for name, log in (("weights", False), ("weights_log", True)):
        with figure_file(place(name)) as (ax,):
            draw_weights(scores, ax, log=log)
    with figure_file(place("log_weights"), rows=(2.2, 1.0), size=(7.0, 6.4)) as (top, bottom):
        draw_log_weights(scores, (top, bottom))
    with figure_file(place("roc")) as (ax,):
        draw_roc(roc_curve(scores), text, ax)
    with figure_file(place("calibration")) as (ax,):
        n_data = int(scores.is_data.sum())
        draw_calibration(calibration, ax, class_ratio=n_data / (scores.is_data.size - n_data))
    for name, values in observables.items():
        with figure_file(place(f"slices_{name}")) as (ax,):
            draw_slices(values, scores, ax, label=labels.get(name, name))
    return written
