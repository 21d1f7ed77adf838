"""Profile likelihood of one parameter with its intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gbistat.plotting.labels import format_numbers, interval_text, parameter_label, percent
from gbistat.plotting.layout import place_legend, scaled_label
from gbistat.plotting.style import GUIDE, INTERVALS, Artists

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from gbistat.inference.results import IntervalResult, ScanResult, Segment
    from gbistat.typing import FloatArray

__all__ = ["draw_profile"]

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
        ``curve`` (line), ``best`` (line), ``thresholds``, ``threshold_labels``, ``segments``, ``ends`` (lists, one entry
        an interval), ``legend``.

    Notes
    -----
    The curve passes the grid, and beside it the best fit (q = 0) and the ends of profile intervals (q = threshold), which
    are as exact as the grid. An end that does not close is drawn as an arrow at the edge of the axes.
    """
    ordered = sorted(intervals, key=lambda interval: interval.cl)
    best = scan.best.value(scan.poi)
    x, q = _curve(scan, ordered)
    (curve,) = ax.plot(x, q, color="black", zorder=4)
    _set_range(x, q, ordered, ax)
    artists: Artists = {"curve": curve, "thresholds": [], "threshold_labels": [], "segments": [], "ends": []}
    height = 0.6 * ax.get_ylim()[1]
    (artists["best"],) = ax.plot([best, best], [0.0, height], color=GUIDE, linestyle="--", linewidth=1.2, zorder=2)
    for index, interval in enumerate(ordered):
        _draw_interval(interval, INTERVALS[index % len(INTERVALS)], ax, artists)
    scaled_label(ax, "x", parameter_label(scan.poi, label))
    ax.set_ylabel(r"$-2\,\Delta\,\ln\,\mathit{L}$")
    numbers = [
        best,
        *(end for interval in ordered for segment in interval.segments for end in segment if end is not None),
    ]
    handles = [artists["best"], *(lines[0] for lines in artists["segments"])]
    texts = [f"best fit {format_numbers(numbers)[0]}"]
    texts += [f"{percent(interval.cl)}: {interval_text(interval, numbers)}" for interval in ordered]
    outline = _dense(*ax.get_xlim(), x, q)
    artists["legend"] = place_legend(ax, handles, texts, *outline, sides=("center", "left", "right"))
    return artists


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
    """Show the curve up to `HEADROOM` times the highest threshold, and every end and the best fit."""
    highest = max((interval.threshold for interval in intervals), default=0.5 * float(np.nanmax(q, initial=2.0)))
    top = HEADROOM * highest
    shown = np.flatnonzero(q <= top)
    first, last = max(int(shown[0]) - 1, 0), min(int(shown[-1]) + 1, x.size - 1)
    left, right = (_crossing(x[[k, k_in]], q[[k, k_in]], top) for k, k_in in ((first, shown[0]), (last, shown[-1])))
    ends = [end for interval in intervals for segment in interval.segments for end in segment if end is not None]
    left, right = min([left, *ends]), max([right, *ends])
    pad = 0.02 * (right - left) if right > left else 0.5
    ax.set_xlim(left - pad * (min(ends, default=right) <= left), right + pad * (max(ends, default=left) >= right))
    ax.set_ylim(0.0, top)


def _crossing(x: FloatArray, q: FloatArray, level: float) -> float:
    """Where the straight line from the point outside to the one inside passes a level."""
    (outside, inside), (above, below) = x, q
    if above <= level:
        return float(outside)
    return float(inside + (outside - inside) * (level - below) / (above - below))


def _draw_interval(interval: IntervalResult, color: str, ax: Axes, artists: Artists) -> None:
    level = interval.threshold
    artists["thresholds"].append(ax.axhline(level, color=color, linestyle=":", linewidth=1.2, zorder=1))
    text = ax.text(
        1.01,
        level,
        percent(interval.cl),
        color=color,
        transform=ax.get_yaxis_transform(),
        va="center",
        fontsize="small",
    )
    artists["threshold_labels"].append(text)
    bars, ends = [], []
    for segment in interval.segments:
        bars += _draw_segment(segment, level, color, ax)
        closed = [end for end in segment if end is not None]
        ends += ax.plot(closed, [level] * len(closed), marker="o", linestyle="none", color=color, zorder=5)
        ends.append(ax.vlines(closed, 0.0, level, color=color, linewidth=1.0, linestyle=":", zorder=1))
    artists["segments"].append(bars)
    artists["ends"].append(ends)


def _draw_segment(segment: Segment, level: float, color: str, ax: Axes) -> list[object]:
    """Bar at the height of the threshold, with an arrow at the axes' edge for an end that does not close."""
    left, right = ax.get_xlim()
    low, high = segment
    artists: list[object] = []
    artists += ax.plot(
        [left if low is None else low, right if high is None else high],
        [level, level],
        color=color,
        linewidth=2.4,
        zorder=3,
    )
    for end, at, marker in ((low, left, 0.0), (high, right, 1.0)):
        if end is None:
            artists += ax.plot(
                [at], [level], marker="<" if marker == 0.0 else ">", color=color, markersize=8, clip_on=False, zorder=6
            )
    return artists


def _dense(left: float, right: float, x: FloatArray, q: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Curve on a fine grid, since a legend may lie between two points of it."""
    grid = np.linspace(left, right, 200)
    return grid, np.interp(grid, x, q)
