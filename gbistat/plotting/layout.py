"""Where things go in an axes: a legend that hides nothing, ticks without long numbers, labels that fit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gbistat.plotting.labels import upright

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.text import Text

    from gbistat.typing import FloatArray

__all__ = ["fit_label", "place_legend", "scaled_label"]

Side = Literal["left", "center", "right"]
LOCATIONS: dict[Side, Any] = {"left": "upper left", "center": "upper center", "right": "upper right"}
MARGIN = 0.03
"""Free space around a legend, as a fraction of the axes."""
TALLEST = 0.7
"""Part of an axes that a legend is assumed to need at most."""
ROOM = 40
"""Characters that the numbers along an x axis may have in all."""
SMALLEST_FONT = 0.6
"""Smallest size of a label, relative to the style's."""


def place_legend(
    ax: Axes,
    handles: Sequence[Any],
    labels: Sequence[str],
    x: FloatArray,
    y: FloatArray,
    *,
    sides: Sequence[Side] = ("right", "left", "center"),
    **options: Any,
) -> Any:
    """Put a legend at the top of an axes and raise the y range until nothing lies under it.

    Parameters
    ----------
    ax : Axes
        Its ranges must be set; the upper end of y is raised, the rest stays.
    handles, labels : sequence
        Entries.
    x, y : array of shape (n,)
        Upper outline of what is drawn, in data coordinates.
    sides : sequence of {"right", "left", "center"}
        Places tried; the one that costs least of the y range is taken, the first of equal ones.
    **options
        Further arguments of ``Axes.legend``.

    Returns
    -------
    Legend
        The legend.
    """
    legend = ax.legend(handles, labels, loc=LOCATIONS[sides[0]], **options)
    box, frame = legend.get_window_extent(), ax.bbox
    width, height = box.width / frame.width + MARGIN, min(box.height / frame.height + MARGIN, TALLEST)
    spans = {"left": (0.0, width), "center": (0.5 - width / 2, 0.5 + width / 2), "right": (1.0 - width, 1.0)}
    log = ax.get_yscale() == "log"
    bottom, top = ax.get_ylim()
    across = _fractions(ax.get_xlim(), x, log=ax.get_xscale() == "log")
    up = _fractions((bottom, top), y, log=log)
    needed: dict[Side, float] = {}
    for side in sides:
        low, high = spans[side]
        under = up[(across >= low) & (across <= high) & np.isfinite(up)]
        needed[side] = max(1.0, float(under.max(initial=0.0)) / (1.0 - height))
    best = min(needed, key=needed.__getitem__)
    legend.set_loc(LOCATIONS[best])
    stretch = needed[best]
    ax.set_ylim(bottom, bottom * (top / bottom) ** stretch if log else bottom + (top - bottom) * stretch)
    return legend


def scaled_label(ax: Axes, axis: Literal["x", "y"], label: str) -> None:
    """Label an axis; a power of ten of its ticks stands in the label instead of loose at the axis' end.

    Parameters
    ----------
    ax : Axes
        Its range must be set.
    axis : {"x", "y"}
        Which one.
    label : str
        Text with its unit.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    one = ax.xaxis if axis == "x" else ax.yaxis
    largest = max(abs(end) for end in one.get_view_interval())
    exponent = math.floor(math.log10(largest)) if largest > 0 and math.isfinite(largest) else 0
    if one.get_scale() != "log":
        if not -3 < exponent < 5:
            exponent -= largest < 2.0 * 10.0**exponent
            label = rf"{label} / $\mathrm{{10^{{{exponent}}}}}$"
        else:
            exponent = 0
        scale = 10.0**exponent
        one.set_major_formatter(FuncFormatter(lambda value, _position: upright(f"{value / scale:.7g}")))
        if axis == "x":
            longest = max(len(f"{value / scale:.7g}") for value in one.get_majorticklocs())
            one.set_major_locator(MaxNLocator(max(3, min(9, ROOM // longest)), steps=[1, 2, 2.5, 5, 10]))
    ax.set(**{f"{axis}label": label})
    fit_label(ax, one.label, axis)


def fit_label(ax: Axes, text: Text, axis: Literal["x", "y"]) -> None:
    """Make a label smaller if it is longer than its axis."""
    box = text.get_window_extent()
    ratio = ax.bbox.width / box.width if axis == "x" else ax.bbox.height / max(box.width, box.height)
    if ratio < 1.0:
        text.set_fontsize(float(text.get_fontsize()) * max(ratio, SMALLEST_FONT))


def _fractions(limits: tuple[float, float], values: FloatArray, *, log: bool) -> FloatArray:
    """Positions along an axis, 0 at its start and 1 at its end."""
    low, high = limits
    if log:
        low, high, values = math.log(low), math.log(high), np.log(np.maximum(values, low))
    fractions: FloatArray = (np.asarray(values, dtype=np.float64) - low) / (high - low)
    return fractions
