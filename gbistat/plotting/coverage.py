"""Coverage of intervals and limits against the true value."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import OptionError
from gbistat.plotting.figure import figure_file
from gbistat.plotting.labels import parameter_label, percent
from gbistat.plotting.style import GUIDE, INTERVALS, Artists

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from matplotlib.axes import Axes

    from gbistat.inference.coverage import CoverageResult, CoverageRow

__all__ = ["draw_coverage", "save_coverage"]

MARKERS = ("o", "s", "^", "D", "v", "P")
SHIFT = 0.006
"""Distance of the points of two methods, as a part of the axis."""


def draw_coverage(results: Sequence[CoverageResult], cl: float, ax: Axes, *, label: str) -> Artists:
    """Draw the coverage of every method at one confidence level.

    Parameters
    ----------
    results : sequence of CoverageResult
        One a true value.
    cl : float
        Level that the methods claim.
    ax : Axes
        Where to draw.
    label : str
        Text of the y axis.

    Returns
    -------
    dict
        ``nominal`` (line), ``points`` (error bars by method), ``legend``.

    Raises
    ------
    OptionError
        If no method claims that level.

    Notes
    -----
    Error bars are 68.27 % Clopper-Pearson intervals; a method's points are moved apart a little so that none hides another.
    """
    rows = _rows(results, cl)
    if not rows:
        raise OptionError(f"no coverage at the level {cl:g}")
    artists: Artists = {"nominal": ax.axhline(cl, color=GUIDE, linestyle="--", linewidth=1.2, zorder=1), "points": {}}
    truths = [row.truth for several in rows.values() for row in several]
    reach = max(truths) - min(truths) or max(1.0, abs(truths[0]))
    for index, (method, several) in enumerate(rows.items()):
        x = np.array([row.truth for row in several]) + (index - 0.5 * (len(rows) - 1)) * SHIFT * reach
        y = np.array([row.coverage for row in several])
        ends = np.array([row.ends for row in several])
        artists["points"][method] = ax.errorbar(
            x,
            y,
            yerr=np.abs(ends.T - y),
            color=INTERVALS[index % len(INTERVALS)],
            marker=MARKERS[index % len(MARKERS)],
            linestyle="none",
            label=method,
            zorder=3,
        )
    ax.set_xlim(min(truths) - 0.06 * reach, max(truths) + 0.06 * reach)
    ends = np.array([row.ends for several in rows.values() for row in several])
    low, high = min(float(ends.min()), cl), max(float(ends.max()), cl)
    ax.set_ylim(low - 0.1 * (high - low), high + 0.35 * (high - low))
    ax.set_ylabel(label)
    artists["legend"] = ax.legend(loc="upper center", ncols=min(len(rows), 3))
    return artists


def save_coverage(
    results: Sequence[CoverageResult], path: str | PathLike[str], *, poi: str, label: str | None = None
) -> Path:
    """Draw coverage into a file, one panel a confidence level.

    Parameters
    ----------
    results : sequence of CoverageResult
        One a true value.
    path : path-like
        File to write; png, pdf or svg.
    poi : str
        Parameter of interest.
    label : str, optional
        What the parameter is, for the axis; by default from its name.

    Raises
    ------
    OptionError
        If there is nothing to draw.
    OutputError
        If the file cannot be written.
    """
    levels = sorted({row.cl for result in results for row in result.rows if row.n_answers})
    if not levels:
        raise OptionError("no coverage to draw: no toy had an answer")
    with figure_file(path, size=(7.0, 1.4 + 3.2 * len(levels)), rows=(1.0,) * len(levels)) as axes:
        for cl, ax in zip(levels, axes, strict=True):
            draw_coverage(results, cl, ax, label=f"coverage at {percent(cl)}")
        axes[-1].set_xlabel("true " + parameter_label(poi, label))
    return Path(path)


def _rows(results: Sequence[CoverageResult], cl: float) -> dict[str, list[CoverageRow]]:
    """Rows with an answer at a level, by method."""
    found: dict[str, list[CoverageRow]] = {}
    for result in results:
        for row in result.rows:
            if abs(row.cl - cl) < 1e-9 and row.n_answers:
                found.setdefault(row.method, []).append(row)
    return found
