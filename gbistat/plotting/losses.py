"""Losses of a training against the epoch: whether it converged, and whether it learned its events by heart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import OptionError
from gbistat.plotting.figure import figure_file
from gbistat.plotting.style import GUIDE, INTERVALS, Artists

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from matplotlib.axes import Axes

__all__ = ["draw_losses", "save_losses"]


def draw_losses(
    histories: Sequence[Sequence[tuple[float, float]]],
    ax: Axes,
    *,
    finals: Sequence[float] = (),
    label: str = "loss",
) -> Artists:
    """Draw the losses of the members of an ensemble.

    Parameters
    ----------
    histories : sequence of sequences of (float, float)
        For each member the training and the validation loss of each epoch.
    ax : Axes
        Where to draw.
    finals : sequence of float, optional
        Validation loss of each member as it is kept, after its weights were averaged.
    label : str
        What the loss is, for the axis.

    Returns
    -------
    dict
        Lists ``training``, ``validation`` and ``finals`` of lines, one a member, and ``legend``.

    Raises
    ------
    OptionError
        If there is no epoch to draw.
    """
    if not any(histories):
        raise OptionError("there is no epoch to draw; train first")
    artists: Artists = {"training": [], "validation": [], "finals": []}
    for member, history in enumerate(histories):
        color = INTERVALS[member % len(INTERVALS)]
        epochs = np.arange(1, len(history) + 1)
        values = np.asarray(history, dtype=np.float64).reshape(-1, 2)
        artists["training"] += ax.plot(epochs, values[:, 0], color=color, linestyle=":", linewidth=1.2)
        artists["validation"] += ax.plot(epochs, values[:, 1], color=color)
        if member < len(finals) and len(history):
            artists["finals"] += ax.plot(
                epochs[-1:], [finals[member]], color=color, marker="*", linestyle="none", markersize=11
            )
    ax.set_ylim(*_range(histories, finals))
    ax.set_xlabel("epoch")
    ax.set_ylabel(label)
    handles = [
        *ax.plot([], [], color=GUIDE, linestyle=":", linewidth=1.2),
        *ax.plot([], [], color=GUIDE),
        *(ax.plot([], [], color=GUIDE, marker="*", linestyle="none", markersize=11) if finals else []),
    ]
    texts = ["training events", "events left out", "average of the best epochs"][: len(handles)]
    artists["legend"] = ax.legend(handles, texts, loc="upper right")
    return artists


def save_losses(
    histories: Sequence[Sequence[tuple[float, float]]],
    path: str | PathLike[str],
    *,
    finals: Sequence[float] = (),
    label: str = "loss",
) -> Path:
    """Write the losses of an ensemble; see `draw_losses`.

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
        draw_losses(histories, ax, finals=finals, label=label)
    return Path(path)


def _range(histories: Sequence[Sequence[tuple[float, float]]], finals: Sequence[float]) -> tuple[float, float]:
    """All losses but those of the first epochs, which are far above the rest; room for the legend above."""
    shown = np.concatenate(
        [np.asarray(history[min(2, len(history) - 1) :]).ravel() for history in histories if history]
    )
    values = np.concatenate([shown, finals])
    low, high = float(values.min()), float(values.max())
    pad = 0.05 * (high - low) or 0.5
    return low - pad, high + pad + 0.35 * (high - low)
