"""Neyman construction by toys: test statistic of the data and critical values against the parameter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import OptionError
from gbistat.plotting.figure import figure_file
from gbistat.plotting.labels import interval_text, parameter_label, percent
from gbistat.plotting.layout import place_legend, scaled_label
from gbistat.plotting.style import INTERVALS, Artists

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from matplotlib.axes import Axes

    from gbistat.inference.neyman_results import ToyInterval
    from gbistat.typing import FloatArray

__all__ = ["draw_neyman", "save_neyman"]

HEADROOM = 2.0
"""How far up the statistic is shown, relative to the highest critical value."""


def draw_neyman(intervals: Sequence[ToyInterval], ax: Axes, *, label: str | None = None) -> Artists:
    """Draw where the test statistic of the data is below the critical values of toys.

    Parameters
    ----------
    intervals : sequence of ToyInterval
        Intervals of one parameter and one data set at several levels.
    ax : Axes
        Where to draw.
    label : str, optional
        What the parameter is, for the axis; by default from its name.

    Returns
    -------
    dict
        ``observed`` (line), ``legend``, and lists with one entry an interval, the lowest level first: ``critical`` (error bars),
        ``ends`` (lines of markers), ``drops`` (lines from the ends to the axis).

    Raises
    ------
    OptionError
        If there is no interval, or they are of different parameters.

    Notes
    -----
    Error bars are Monte Carlo errors of the critical values. Wilks's theorem would have them on horizontal lines.
    """
    if not intervals or len({interval.poi for interval in intervals}) > 1:
        raise OptionError(f"intervals of one parameter are needed, not of {[interval.poi for interval in intervals]}")
    ordered = sorted(intervals, key=lambda interval: interval.cl)
    points = {point.value: point.t_observed for interval in ordered for point in interval.points}
    x = np.array(sorted(points))
    t = np.array([points[value] for value in x.tolist()])
    artists: Artists = {"observed": ax.plot(x, t, color="black", zorder=4)[0], "critical": [], "ends": [], "drops": []}
    top = HEADROOM * max(point.critical for interval in ordered for point in interval.points)
    for index, interval in enumerate(ordered):
        color = INTERVALS[index % len(INTERVALS)]
        values, critical, errors = np.array([(p.value, p.critical, p.critical_error) for p in interval.points]).T
        artists["critical"].append(
            ax.errorbar(
                values, critical, yerr=errors, color=color, marker="o", markersize=3.0, linestyle="none", zorder=3 + 0.1 * index
            )
        )  # fmt: skip
        ends = [end for segment in interval.segments for end in segment if end is not None]
        heights = np.interp(ends, x, t)
        artists["ends"] += ax.plot(
            ends, heights, marker="o", linestyle="none", color=color, markeredgecolor="black", zorder=5
        )
        artists["drops"].append(ax.vlines(ends, 0.0, heights, color=color, linewidth=1.0, linestyle=":", zorder=1))
    ax.set_ylim(0.0, top)
    ax.set_xlim(*_shown(x, t, top))
    scaled_label(ax, "x", parameter_label(ordered[0].poi, label))
    ax.set_ylabel("test statistic of data, critical values")
    ends = [end for i in ordered for segment in i.segments for end in segment if end is not None]
    handles = [artists["observed"], *artists["critical"]]
    texts = ["data", *(f"{percent(i.cl)}: {interval_text(i, [i.best, *ends])}" for i in ordered)]
    grid = np.linspace(*ax.get_xlim(), 200)
    artists["legend"] = place_legend(ax, handles, texts, grid, np.interp(grid, x, t), sides=("center", "left", "right"))
    return artists


def save_neyman(intervals: Sequence[ToyInterval], path: str | PathLike[str], *, label: str | None = None) -> Path:
    """Write a Neyman construction; see `draw_neyman`.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    OptionError
        If there is nothing to draw.
    OutputError
        If it cannot be written.
    """
    with figure_file(path) as (ax,):
        draw_neyman(intervals, ax, label=label)
    return Path(path)


def _shown(x: FloatArray, t: FloatArray, top: float) -> tuple[float, float]:
    """Range of the parameter in which the statistic is in view."""
    shown = np.flatnonzero(t <= top)
    low, high = max(int(shown[0]) - 1, 0), min(int(shown[-1]) + 1, x.size - 1)
    pad = 0.02 * float(x[high] - x[low]) or 0.5
    return float(x[low]) - pad, float(x[high]) + pad
