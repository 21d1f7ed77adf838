"""Profile likelihood of one parameter with its intervals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import OptionError
from gbistat.plotting.figure import figure_file
from gbistat.plotting.labels import format_numbers, interval_text, parameter_label, percent, upright
from gbistat.plotting.layout import place_legend, scaled_label
from gbistat.plotting.style import GUIDE, INTERVALS, Artists

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from matplotlib.axes import Axes

    from gbistat.inference.results import IntervalResult, ScanResult, Segment
    from gbistat.typing import FloatArray

__all__ = ["draw_profile", "save_profile"]

HEADROOM = 2.0
"""How far up the curve is shown, relative to the highest threshold."""


def draw_profile(
    scan: ScanResult, intervals: Sequence[IntervalResult], ax: Axes, *, label: str | None = None
) -> Artists:
    """Draw a profile scan, the thresholds of its intervals and their ends.

    Parameters
    ----------
    scan : ScanResult
        The curve.
    intervals : sequence of IntervalResult
        Intervals of the same parameter.
    ax : Axes
        Where to draw.
    label : str, optional
        What the parameter is, for the axis; by default from its name.

    Returns
    -------
    dict
        ``curve``, ``best`` (lines), ``legend``, and lists with one entry an interval, the lowest level first:
        ``thresholds`` (lines), ``threshold_labels``, ``segments`` (lists of lines), ``ends`` (lines of markers), ``drops``
        (lines from the ends to the axis).

    Raises
    ------
    OptionError
        If an interval is not of the scan's parameter.

    Notes
    -----
    The curve passes the grid, and beside it the best fit (q = 0) and the ends of profile intervals (q = threshold), which
    are as exact as the grid. An end that does not close is drawn as an arrow at the edge of the axes.
    """
    for interval in intervals:
        if interval.poi != scan.poi:
            raise OptionError(f"an interval of {interval.poi} does not belong on a scan of {scan.poi}")
    ordered = sorted(intervals, key=lambda interval: interval.cl)
    best = scan.best.value(scan.poi)
    x, q = _curve(scan, ordered)
    (curve,) = ax.plot(x, q, color="black", zorder=4)
    _set_range(x, q, ordered, ax)
    artists: Artists = {"curve": curve}
    artists |= {name: [] for name in ("thresholds", "threshold_labels", "segments", "ends", "drops")}
    height = 0.6 * ax.get_ylim()[1]
    (artists["best"],) = ax.plot([best, best], [0.0, height], color=GUIDE, linestyle="--", linewidth=1.2, zorder=2)
    for index, interval in enumerate(ordered):
        _draw_interval(interval, INTERVALS[index % len(INTERVALS)], ax, artists)
    scaled_label(ax, "x", parameter_label(scan.poi, label))
    ax.set_ylabel(r"$-\mathrm{2\,\Delta\,ln}\,L$")
    numbers = [best, *_ends(ordered)]
    handles = [artists["best"], *(lines[0] for lines in artists["segments"])]
    texts = [f"best fit {upright(format_numbers(numbers)[0])}"]
    texts += [f"{percent(interval.cl)}: {interval_text(interval, numbers)}" for interval in ordered]
    # On a fine grid, since the legend may lie between two points of the curve.
    grid = np.linspace(*ax.get_xlim(), 200)
    outline = np.r_[grid, best], np.r_[np.interp(grid, x, q), height]
    artists["legend"] = place_legend(ax, handles, texts, *outline, sides=("center", "left", "right"))
    return artists


def save_profile(
    scan: ScanResult, intervals: Sequence[IntervalResult], path: str | PathLike[str], *, label: str | None = None
) -> Path:
    """Write a profile scan with its intervals; see `draw_profile`.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    with figure_file(path) as (ax,):
        draw_profile(scan, intervals, ax, label=label)
    return Path(path)


def _curve(scan: ScanResult, intervals: Sequence[IntervalResult]) -> tuple[FloatArray, FloatArray]:
    """Grid, best fit and ends of profile intervals, in order."""
    points = dict(zip(scan.values.tolist(), scan.q.tolist(), strict=True))
    low, high = float(scan.values.min()), float(scan.values.max())
    extra = {scan.best.value(scan.poi): 0.0}
    for interval in intervals:
        if interval.method == "profile":
            extra |= {end: interval.threshold for segment in interval.segments for end in segment if end is not None}
    points |= {value: q for value, q in extra.items() if low <= value <= high}
    x = np.array(sorted(points))
    return x, np.array([points[value] for value in x.tolist()])


def _set_range(x: FloatArray, q: FloatArray, intervals: Sequence[IntervalResult], ax: Axes) -> None:
    """Show the curve up to `HEADROOM` times the highest threshold, and every end."""
    finite = q[np.isfinite(q)]
    highest = max((interval.threshold for interval in intervals), default=0.5 * float(finite.max(initial=2.0)))
    top = HEADROOM * highest
    shown = np.flatnonzero(q <= top)
    low, high = (int(shown[0]), int(shown[-1])) if shown.size else (0, x.size - 1)
    left, right = _crossing(x, q, low, low - 1, top), _crossing(x, q, high, high + 1, top)
    ends = _ends(intervals)
    pad = 0.02 * (max([right, *ends]) - min([left, *ends])) or 0.5
    ax.set_xlim(min([left, *(end - pad for end in ends)]), max([right, *(end + pad for end in ends)]))
    ax.set_ylim(0.0, top)


def _crossing(x: FloatArray, q: FloatArray, inside: int, outside: int, level: float) -> float:
    """Where the straight line from a point below a level to its neighbour above passes the level."""
    if not 0 <= outside < x.size or not q[outside] > level > q[inside]:
        return float(x[inside])
    share = (level - q[inside]) / (q[outside] - q[inside])
    return float(x[inside] + share * (x[outside] - x[inside]))


def _ends(intervals: Sequence[IntervalResult]) -> list[float]:
    """All ends that close."""
    return [end for interval in intervals for segment in interval.segments for end in segment if end is not None]


def _draw_interval(interval: IntervalResult, color: str, ax: Axes, artists: Artists) -> None:
    level = interval.threshold
    artists["thresholds"].append(ax.axhline(level, color=color, linestyle=":", linewidth=1.2, zorder=1))
    text = ax.text(
        1.03,
        level,
        percent(interval.cl),
        color=color,
        transform=ax.get_yaxis_transform(),
        va="center",
        fontsize="small",
    )
    artists["threshold_labels"].append(text)
    closed = _ends([interval])
    artists["ends"] += ax.plot(closed, [level] * len(closed), marker="o", linestyle="none", color=color, zorder=5)
    artists["drops"].append(ax.vlines(closed, 0.0, level, color=color, linewidth=1.0, linestyle=":", zorder=1))
    artists["segments"].append([])
    for segment in interval.segments:
        artists["segments"][-1] += _draw_segment(segment, level, color, ax)


def _draw_segment(segment: Segment, level: float, color: str, ax: Axes) -> list[object]:
    """Bar at the height of the threshold, with an arrow at the axes' edge for an end that does not close."""
    left, right = ax.get_xlim()
    low, high = segment
    ends = [left if low is None else low, right if high is None else high]
    artists: list[object] = [*ax.plot(ends, [level, level], color=color, linewidth=2.4, zorder=3)]
    for end, edge, marker in ((low, left, "<"), (high, right, ">")):
        if end is None:
            artists += ax.plot([edge], [level], marker=marker, color=color, markersize=8, clip_on=False, zorder=6)
    return artists
