"""How gbistat's figures look: colours, the style context, and the axes' text that several figures share.

The style is mplhep's, applied with `styled` around the drawing *and* the saving of a figure, since matplotlib reads part of
its settings only when it renders. Nothing is changed outside that context.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from gbistat import extras

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "ALPHA",
    "BACKGROUND",
    "BARS",
    "GUIDE",
    "INTERVALS",
    "ONE_SIGMA",
    "SIGNAL",
    "TWO_SIGMA",
    "WINDOW",
    "Artists",
    "styled",
]

Artists: TypeAlias = dict[str, Any]
"""What a plot function drew, by name: matplotlib artists, containers of them, or lists of them."""

BACKGROUND = "#3f6fd8"
SIGNAL = "#e42536"
ALPHA = "#e42536"
WINDOW = "#9c9ca1"
BARS = "#77777c"
GUIDE = "#55555a"
ONE_SIGMA = "#607641"
TWO_SIGMA = "#f5bb54"
"""Green and yellow that stay apart for colour-blind readers (also in grey): the shades CMS recommends since 2024."""
INTERVALS = ("#3f6fd8", "#f89c20", "#7a21dd", "#964a8b")
"""Colours of intervals, from the lowest confidence level up: blue, orange, violet, plum (Petroff, arXiv:2107.02270)."""

OVERRIDES: dict[str, Any] = {
    "font.size": 14.0,
    "axes.labelsize": "medium",
    "axes.linewidth": 1.2,
    "axes.unicode_minus": True,
    "figure.facecolor": "white",
    "legend.fontsize": "small",
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.0,
    "mathtext.default": "it",
    "savefig.bbox": None,
    "savefig.facecolor": "white",
    "xtick.labelsize": "small",
    "xtick.major.size": 7.0,
    "xtick.minor.size": 3.5,
    "ytick.labelsize": "small",
    "ytick.major.size": 7.0,
    "ytick.minor.size": 3.5,
}


@contextmanager
def styled() -> Iterator[None]:
    """Context in which figures look like gbistat's: mplhep's ROOT style at the size of a journal's column and a half.

    The user's own matplotlib settings do not enter, so a figure looks the same everywhere; they are back afterwards.

    Raises
    ------
    MissingExtra
        If mplhep or matplotlib cannot be imported.
    """
    mplhep = extras.mplhep()
    # Not through extras.pyplot(): that chooses a backend for the whole process, and figures made here need none.
    import matplotlib.style

    with matplotlib.style.context([mplhep.style.ROOT, OVERRIDES], after_reset=True):
        yield
