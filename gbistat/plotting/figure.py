"""Figures in files: made, drawn, written and forgotten, without a window and without a backend."""

from __future__ import annotations

import secrets
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gbistat.errors import OutputError, nearest
from gbistat.plotting.style import styled

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike

__all__ = ["figure_file"]

DPI = 200
SIZE = (7.0, 5.6)
"""Width and height in inches."""
FORMATS = ("png", "pdf", "svg")


@contextmanager
def figure_file(
    path: str | PathLike[str],
    *,
    size: tuple[float, float] = SIZE,
    rows: tuple[float, ...] = (1.0,),
    dpi: int = DPI,
) -> Iterator[list[Any]]:
    """Context that yields the panels of a styled figure and writes it at the end, whole or not at all.

    Parameters
    ----------
    path : path-like
        File to write; its ending chooses the format: png, pdf or svg. An older file is replaced.
    size : tuple of float
        Width and height in inches.
    rows : tuple of float
        Relative heights of the panels, which share the x axis.
    dpi : int, default 200
        Pixels an inch.

    Yields
    ------
    list of Axes
        The panels, from the top.

    Raises
    ------
    OutputError
        If the ending is unknown or the file cannot be written.
    MissingExtra
        If mplhep or matplotlib cannot be imported.
    """
    path = Path(path)
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        raise OutputError(f"{path}: no figure format {path.suffix!r}; {nearest(suffix, FORMATS)}")
    with styled():
        # A figure that pyplot never hears of needs no closing and leaves the user's own figures and backend alone.
        from matplotlib.figure import Figure

        figure = Figure(figsize=size, dpi=dpi)
        axes = figure.subplots(len(rows), 1, sharex=True, squeeze=False, height_ratios=rows)
        yield list(axes[:, 0])
        figure.tight_layout(pad=0.5, h_pad=0.35)
        _write(figure, path, suffix)


def _write(figure: Any, path: Path, suffix: str) -> None:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("wb") as stream:
            figure.savefig(stream, format=suffix)
        partial.replace(path)
    except OSError as problem:
        raise OutputError(f"{path} cannot be written: {problem.strerror or problem}; choose another place") from None
    finally:
        with suppress(OSError):  # where the folder is not one, there is nothing to remove
            partial.unlink(missing_ok=True)
