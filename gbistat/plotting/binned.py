"""Binned results: what binning costs, and distributions after a fit with their pulls."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat.errors import OptionError
from gbistat.plotting.figure import figure_file
from gbistat.plotting.labels import mass_label, mass_symbol
from gbistat.plotting.layout import place_legend
from gbistat.plotting.mass import garwood_errors
from gbistat.plotting.style import BACKGROUND, BARS, GUIDE, INTERVALS, SIGNAL, Artists

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from matplotlib.axes import Axes

    from gbistat.binned.convergence import Convergence, Differences
    from gbistat.binned.postfit import PostFit
    from gbistat.typing import FloatArray

__all__ = ["draw_convergence", "draw_post_fit", "save_convergence", "save_post_fit"]

LOWEST = 1e-3
"""Smallest loss, in per cent, that is told apart from none."""
VISIBLE = 2e-3
"""Share of a bin that a sample must have somewhere to be shown."""
LIMIT_GOAL = 0.5
"""Excess of the expected limit, in per cent, that a line marks."""
SPREAD_GOAL = 3.0
"""Difference of estimates, in per cent of their error, that a line marks."""
COLOURS = (BACKGROUND, "#92dadd", "#94a4a2", "#b9ac70")
"""Colours of samples that are not signal."""


def draw_convergence(convergence: Convergence, toys: Sequence[Differences], ax_limit: Axes, ax_toys: Axes) -> Artists:
    """Draw the excess of the expected limit over the unbinned one, and differences of estimates, against the number of bins.

    Parameters
    ----------
    convergence : Convergence
        Points by number of bins.
    toys : sequence of Differences
        Those in bins of the log ratio are drawn, by the number in their names.
    ax_limit, ax_toys : Axes
        Upper and lower panel, with a common x axis.

    Returns
    -------
    dict
        ``limit``, ``information`` (lines), ``data`` and ``toys`` (points), ``goals`` (lines), ``legends``.

    Raises
    ------
    OptionError
        If there is no point.
    """
    if not convergence.points:
        raise OptionError("there is no number of bins to draw; give at least one")
    n_bins = np.array([point.n_bins for point in convergence.points], dtype=np.float64)
    excess = 100.0 * np.array([point.ratio - 1.0 for point in convergence.points])
    lost = 100.0 * np.array([point.information_loss for point in convergence.points])
    pulls = 100.0 * np.abs(
        [(point.estimate - convergence.estimate) / convergence.error for point in convergence.points]
    )
    artists: Artists = {}
    (artists["limit"],) = ax_limit.plot(n_bins, _shown(excess), color="black", marker="o")
    (artists["information"],) = ax_limit.plot(n_bins, _shown(lost), color=INTERVALS[0], marker="s", linestyle="--")
    (artists["data"],) = ax_toys.plot(n_bins, np.maximum(pulls, 1e-3), color="black", marker="o", linestyle=":")
    handles, labels = [artists["data"]], ["these data"]
    numbered = [(int(item.name.split()[0]), item) for item in toys if item.name.split()[0].isdigit()]
    if numbered:
        x = np.array([number for number, _ in numbered], dtype=np.float64)
        size = 100.0 * np.array([np.hypot(item.mean, item.spread) for _, item in numbered])
        (artists["toys"],) = ax_toys.plot(x, np.maximum(size, 1e-3), color=SIGNAL, marker="D", linestyle="-")
        handles.append(artists["toys"])
        labels.append("toys, r.m.s.")
    artists["goals"] = [
        ax_limit.axhline(LIMIT_GOAL, color=GUIDE, linewidth=0.8, linestyle="-."),
        ax_toys.axhline(SPREAD_GOAL, color=GUIDE, linewidth=0.8, linestyle="-."),
    ]
    for ax, goal in ((ax_limit, LIMIT_GOAL), (ax_toys, SPREAD_GOAL)):
        text: dict[str, Any] = {"color": GUIDE, "fontsize": "small", "ha": "left", "va": "bottom"}
        ax.text(0.01, goal, f"{goal:g} %", transform=ax.get_yaxis_transform(), **text)
        ax.set_xscale("log")
        ax.set_yscale("log")
    ax_limit.set_xlim(n_bins.min() / 1.3, n_bins.max() * 1.3)
    ax_limit.set_ylim(LOWEST, max(60.0, 1.5 * float(max(excess.max(), lost.max()))))
    ax_toys.set_ylim(0.1, 200.0)
    ax_limit.set_ylabel("loss [%]")
    ax_toys.set_ylabel("difference of\nestimates [% of error]")
    ax_toys.set_xlabel("bins in the log ratio")
    upper = np.maximum(np.maximum(excess, lost), LOWEST)
    pair = [artists["limit"], artists["information"]]
    artists["legends"] = [
        place_legend(ax_limit, pair, ["expected limit", "information"], n_bins, upper, sides=("right",)),
        place_legend(ax_toys, handles, labels, n_bins, np.maximum(pulls, 0.1), sides=("right",)),
    ]
    return artists


def _shown(values: FloatArray) -> FloatArray:
    """Values of a logarithmic axis; those too small to be told from none are left out."""
    return np.where(values >= LOWEST, values, np.nan)


def save_convergence(convergence: Convergence, toys: Sequence[Differences], path: str | PathLike[str]) -> Path:
    """Write what binning costs; see `draw_convergence`.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    OptionError
        If there is no point.
    OutputError
        If it cannot be written.
    """
    with figure_file(path, size=(7.0, 6.4), rows=(1.0, 1.0)) as (upper, lower):
        draw_convergence(convergence, toys, upper, lower)
    return Path(path)


def draw_post_fit(post: PostFit, ax_main: Axes, ax_pulls: Axes, *, signal: str = "signal") -> Artists:
    """Draw the samples of a channel after the fit, the data, and the pulls below.

    Parameters
    ----------
    post : PostFit
        The channel.
    ax_main, ax_pulls : Axes
        Upper and lower panel, with a common x axis.
    signal : str, default "signal"
        Samples whose names begin so are signal: on top, in its colour. A negative one is drawn below the others' sum.

    Returns
    -------
    dict
        ``samples`` (stairs by name), ``error`` (band), ``data`` (errorbar), ``pulls`` (bars), ``legend``.

    Notes
    -----
    Bins without edges, and those of an observable whose outer bins are open, are drawn side by side, by their numbers.
    """
    numbered = post.edges is None or post.open_ended
    edges = np.arange(post.observed.size + 1) + 0.5 if numbered or post.edges is None else post.edges
    centres, widths = 0.5 * (edges[1:] + edges[:-1]), np.diff(edges)
    names = sorted(post.samples, key=lambda name: name.startswith(signal))
    base = np.zeros(post.observed.size)
    artists: Artists = {"samples": {}}
    colours = iter(COLOURS * len(names))
    positive = post.total[post.total > 0]
    floor = 0.3 * float(min(positive.min(initial=np.inf), max(post.observed.min(), 0.5)))
    log = bool(post.total.max() > 50.0 * max(positive.min(initial=np.inf), 1e-9)) and np.isfinite(floor)
    for name in names:
        counts = post.samples[name]
        if not np.abs(counts / np.where(post.total > 0, post.total, 1.0)).max() > VISIBLE:
            base = base + counts
            continue
        colour = SIGNAL if name.startswith(signal) else next(colours)
        top = base + counts
        artists["samples"][name] = ax_main.stairs(
            np.maximum(top, floor) if log else top,
            edges,
            baseline=np.maximum(base, floor) if log else base,
            fill=True,
            color=colour,
            alpha=0.55,
            linewidth=0,
            zorder=1,
        )
        base = top
    total, error = post.total, post.error
    low = np.maximum(total - error, floor) if log else total - error
    artists["error"] = ax_main.stairs(
        total + error,
        edges,
        baseline=low,
        fill=True,
        facecolor="none",
        edgecolor=BARS,
        hatch="////",
        linewidth=0,
        zorder=2,
    )
    shown = np.where((post.observed > 0) | (not log), post.observed, np.nan)
    style: dict[str, Any] = {"color": "black", "marker": "o", "markersize": 3.6, "elinewidth": 1.0, "linestyle": "none"}
    artists["data"] = ax_main.errorbar(centres, shown, yerr=garwood_errors(post.observed), zorder=4, **style)
    artists["pulls"] = ax_pulls.bar(centres, post.pulls, widths, color=BARS, linewidth=0)
    ax_pulls.axhline(0.0, color=GUIDE, linewidth=0.8)
    if log:
        ax_main.set_yscale("log")
    upper = np.maximum(total + error, post.observed + garwood_errors(post.observed)[1])
    ax_main.set_ylim(floor if log else 0.0, float(upper.max()) * (2.0 if log else 1.1))
    ax_main.set_xlim(edges[0], edges[-1])
    ax_pulls.set_xlim(edges[0], edges[-1])
    reach = max(3.5, 1.1 * float(np.abs(post.pulls).max()))
    ax_pulls.set_ylim(-reach, reach)
    ax_main.set_ylabel("events a bin")
    ax_pulls.set_ylabel("pull")
    ax_main.tick_params(axis="x", which="both", labelbottom=False)
    ax_pulls.set_xlabel(_axis_text(post, numbered=numbered))
    handles = [artists["data"], *artists["samples"].values(), artists["error"]]
    labels = ["data", *(name.replace("_", " ") for name in artists["samples"]), "error of the fit"]
    x, y = np.r_[edges[:-1], centres, edges[1:]], np.tile(upper, 3)
    artists["legend"] = place_legend(ax_main, handles, labels, x, y, sides=("right", "left"))
    return artists


def save_post_fit(post: PostFit, path: str | PathLike[str]) -> Path:
    """Write a channel after the fit; see `draw_post_fit`.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    with figure_file(path, size=(7.0, 6.0), rows=(2.8, 1.0)) as (main, pulls):
        draw_post_fit(post, main, pulls)
    return Path(path)


def _axis_text(post: PostFit, *, numbered: bool) -> str:
    name = mass_symbol(post.channel)
    if numbered:
        return f"bin of {name}"
    return name if post.unit in (None, "1") else mass_label(post.channel, str(post.unit))
