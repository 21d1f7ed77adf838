"""Figures in files: made, drawn, written and forgotten, without a window and without a backend."""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gbistat.errors import GbistatError, OutputError, nearest
from gbistat.plotting.labels import parameter_label
from gbistat.plotting.limits import draw_cls_scan, draw_comparison, draw_limits
from gbistat.plotting.mass import draw_spectrum
from gbistat.plotting.scans import draw_profile
from gbistat.plotting.style import styled

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from os import PathLike

    from gbistat.data.window import MassWindow
    from gbistat.fit.spectrum import MassSpectrum
    from gbistat.inference.results import CLsScan, IntervalResult, LimitResult, ScanResult

__all__ = ["figure_file", "save_cls_scan", "save_comparison", "save_limits", "save_profile", "save_spectrum"]

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


def save_spectrum(spectrum: MassSpectrum, path: str | PathLike[str]) -> Path:
    """Write the mass spectrum with its fit and pulls; see `draw_spectrum`.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    with figure_file(path, size=(7.0, 6.4), rows=(2.8, 1.0)) as (main, pulls):
        draw_spectrum(spectrum, main, pulls)
    return Path(path)


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


def save_cls_scan(scan: CLsScan, limit: LimitResult, path: str | PathLike[str], *, label: str | None = None) -> Path:
    """Write a CLs scan with its limit; see `draw_cls_scan`.

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
        draw_cls_scan(scan, limit, ax, label=label)
    return Path(path)


def save_limits(
    windows: Sequence[MassWindow],
    limits: Sequence[LimitResult],
    path: str | PathLike[str],
    *,
    label: str | None = None,
    mass_name: str = "mass",
) -> Path:
    """Write limits against mass windows; see `draw_limits`.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    OptionError
        If windows and limits do not fit together.
    OutputError
        If it cannot be written.
    """
    with figure_file(path) as (ax,):
        text = parameter_label(limits[0].poi, label) if limits else ""
        draw_limits(windows, limits, ax, text, mass_name=mass_name)
    return Path(path)


def save_comparison(
    rows: Sequence[tuple[str, LimitResult]], path: str | PathLike[str], *, label: str | None = None
) -> Path:
    """Write limits side by side; see `draw_comparison`.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    OptionError
        If the limits do not fit together.
    OutputError
        If it cannot be written.
    """
    with figure_file(path, size=(9.0, 1.9 + 0.55 * len(rows))) as (ax,):
        draw_comparison(rows, ax, label=label)
    return Path(path)


def _write(figure: Any, path: Path, suffix: str) -> None:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("wb") as stream:
            figure.savefig(stream, format=suffix)
        partial.replace(path)
    except OSError as problem:
        if isinstance(problem, GbistatError):
            raise
        raise OutputError(f"{path} cannot be written: {problem.strerror or problem}; choose another place") from None
    finally:
        partial.unlink(missing_ok=True)
