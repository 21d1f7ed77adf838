"""Results as files: JSON and figures, each written beside its place and then renamed, so that nothing half-written stays."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

from gbistat.errors import OutputError
from gbistat.fit.plane import search_close
from gbistat.inference.neyman_results import ToyInterval
from gbistat.report.document import document, to_text
from gbistat.report.outcomes import LimitsOutcome

if TYPE_CHECKING:
    from pathlib import Path

    from gbistat.binned.comparison import Comparison
    from gbistat.report.outcomes import FitOutcome, Report

__all__ = ["check_writable", "write_bytes", "write_report", "write_text"]


def check_writable(directory: Path | None, file: Path | None = None) -> None:
    """Make a folder for results, and find out before any work whether files can be written there.

    Raises
    ------
    OutputError
        If the folder cannot be made or written to.
    """
    if directory is not None:
        if directory.exists() and not directory.is_dir():
            raise OutputError(f"{directory} is a file and not a folder; choose another --output")
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"the folder {directory} cannot be made: {error.strerror}; choose another --output"
            ) from error
    for folder in (directory, None if file is None else file.parent):
        if folder is None:
            continue
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise OutputError(f"nothing can be written to {folder}: {error.strerror}; choose another place") from error


def write_text(path: Path, text: str) -> Path:
    """Write a text file by way of a temporary one.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    return write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file by way of a temporary one.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"{path} cannot be written: {error.strerror}; choose another place") from error
    return path


def write_report(report: Report, directory: Path) -> list[Path]:
    """Write JSON and figures of a report.

    Parameters
    ----------
    report : Report
        Results over windows.
    directory : Path
        Folder, made if it does not exist.

    Returns
    -------
    list of Path
        What was written: ``<verb>.json``, and for each window its figures, with the window in their names where there are
        several.

    Raises
    ------
    OutputError
        If the folder or a file cannot be written.
    """
    from gbistat.plotting.limits import save_limits

    check_writable(directory)
    written = [write_text(directory / f"{report.verb}.json", to_text(document(report)))]
    several = len(report.outcomes) > 1
    for outcome in report.outcomes:
        suffix = f"_{outcome.window.low:g}_{outcome.window.high:g}" if several else ""
        written += _figures(report.verb, outcome, directory, suffix)
    limits = [outcome for outcome in report.outcomes if isinstance(outcome, LimitsOutcome)]
    if several and report.verb == "limits" and limits:
        path = directory / "limits_by_window.png"
        label = poi_label(limits[0])
        mass_name = limits[0].analysis.events.mass_name
        save_limits([o.window for o in limits], [o.limit for o in limits], path, poi_label=label, mass_name=mass_name)
        written.append(path)
    return written


def poi_label(outcome: FitOutcome) -> str | None:
    """Axis label of the parameter of interest: events in the window where the nominal yield is 1; ``None`` for its symbol."""
    rate = outcome.analysis.model.component(outcome.analysis.model.signal).rate
    return "signal events in the window" if rate.linear.get(outcome.poi) == 1.0 else None


def _figures(verb: str, outcome: FitOutcome, directory: Path, suffix: str) -> list[Path]:
    from gbistat.plotting.labels import mass_symbol
    from gbistat.plotting.limits import save_cls_scan, save_comparison
    from gbistat.plotting.mass import save_spectrum
    from gbistat.plotting.scans import save_profile

    written = []
    label = poi_label(outcome)
    if outcome.spectrum is not None and verb != "compare":
        written.append(directory / f"spectrum{suffix}.png")
        save_spectrum(outcome.spectrum, written[-1])
    if isinstance(outcome, LimitsOutcome) and verb == "limits":
        written.append(directory / f"profile{suffix}.png")
        save_profile(outcome.scan, outcome.intervals[outcome.poi], written[-1], label=label)
        written.append(directory / f"cls{suffix}.png")
        save_cls_scan(outcome.cls_scan, outcome.limit, written[-1], label=label, toys=outcome.toy_limit)
    masses = outcome.analysis.masses
    if masses is not None and len(masses.names) == 2 and verb != "compare":
        from gbistat.plotting.plane import save_plane

        written.append(directory / f"plane{suffix}.png")
        best = [outcome.fit.value(name) for name in masses.names]
        # Beyond the box of the best fit the splines are coarse.
        boxes = [
            (basin.low, basin.high)
            for basin in masses.basins
            if all(basin.covers(k, value) for k, value in enumerate(best))
        ]
        close = search_close(outcome.analysis.nll, masses.search, outcome.fit, box=boxes[0] if boxes else None)
        save_plane(
            masses.search.finer(),
            written[-1],
            close=close.with_scale(masses.scale),
            best=best,
            unit=outcome.window.unit,
            exchangeable=masses.exchangeable,
        )
    constructed = [interval for interval in outcome.poi_intervals if isinstance(interval, ToyInterval)]
    if constructed and verb != "compare":
        from gbistat.plotting.neyman import save_neyman

        written.append(directory / f"neyman{suffix}.png")
        save_neyman(constructed, written[-1], label=label)
    if isinstance(outcome, LimitsOutcome) and outcome.comparison is not None:
        written += _comparison_figures(outcome.comparison, directory, suffix)
    if isinstance(outcome, LimitsOutcome) and outcome.binned:
        rows = [("unbinned", outcome.limit)]
        if outcome.comparison is not None:
            rows += [(row.name, row.result.limit) for row in outcome.comparison.rows]
        else:
            rows += [(f"{twin.n_bins} bins in {mass_symbol(twin.observable)}", twin.limit) for twin in outcome.binned]
        written.append(directory / f"comparison{suffix}.png")
        save_comparison(rows, written[-1], label=label)
    return written


def _comparison_figures(comparison: Comparison, directory: Path, suffix: str) -> list[Path]:
    from gbistat.plotting.binned import save_convergence, save_post_fit

    written = []
    if comparison.convergence is not None:
        written.append(directory / f"convergence{suffix}.png")
        save_convergence(comparison.convergence, comparison.toys, written[-1])
    for post in comparison.post_fits:
        written.append(directory / f"post_fit_{post.channel.replace(':', '_')}{suffix}.png")
        save_post_fit(post, written[-1])
    return written
