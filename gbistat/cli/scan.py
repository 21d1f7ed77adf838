"""``gbistat scan``."""

from __future__ import annotations

import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from gbistat.cli.options import run_options, source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gbistat.scan_workflow import ScanReport
    from gbistat.workflow import Steps

__all__ = ["scan_command"]


@click.command("scan")
@source
@click.option("--step", type=float, help="Distance of the masses.  [default: twice that of the ratio's own grid]")
@click.option("--cl", type=float, help="Confidence level of limits.  [default: 0.95]")
@click.option("--output", type=click.Path(path_type=Path), metavar="DIR", help="Write maps and JSON there.")
@click.option("--json", "json_path", metavar="FILE", help="Write JSON to a file, or to standard output (-).")
def scan_command(
    step: float | None, cl: float | None, output: Path | None, json_path: str | None, debug: bool, **options: Any
) -> int:
    """Limits and local significance with the masses of the signal held at each point of a grid."""
    from gbistat.report.document import to_text
    from gbistat.report.files import check_writable, write_text
    from gbistat.scan_workflow import run_scan, write_scan

    file = None if json_path in (None, "-") else Path(str(json_path))
    if output is not None or file is not None:
        check_writable(output, file)
    run = run_options(**options, cl=cl)
    with _bar() as (steps, progress):
        report = run_scan(run, step=step, steps=steps, progress=progress)
        written = [] if output is None else write_scan(report, output)
    if json_path == "-":
        click.echo(to_text(report.to_dict()), nl=False)
        return 0
    if file is not None:
        written.append(write_text(file, to_text(report.to_dict())))
    _show(report)
    for path in written:
        click.echo(f"wrote {path}")
    return 0


def _show(report: ScanReport) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console = Console(highlight=False, width=None if console.is_terminal else 120)
    limits = report.limits
    low, high = report.window
    title = f"window {low:g}-{high:g} GeV, model {report.model} (sha256 {report.model_sha256[:12]})"
    table = Table(
        *(f"{name} [{report.unit}]" for name in limits.names),
        "limit",
        "expected",
        "1 sigma",
        "local Z",
        title=f"{title}; the ten largest local significances of {limits.z.size}",
        title_justify="left",
    )
    order = np.argsort(-np.nan_to_num(limits.z, nan=-1.0), axis=None)[:10]
    for place in zip(*np.unravel_index(order, limits.z.shape), strict=True):
        masses = [f"{axis[k]:.6g}" for axis, k in zip(limits.axes, place, strict=True)]
        band = limits.expected[place]
        table.add_row(
            *masses,
            f"{limits.observed[place]:.4g}",
            f"{band[2]:.4g}",
            f"{band[1]:.4g} to {band[3]:.4g}",
            f"{limits.z[place]:.2f}",
        )
    console.print(table)
    console.print("local: at masses fixed beforehand; the highest of a whole plane is higher without any signal")
    for warning in report.warnings:
        console.print(f"[yellow]warning[/yellow] {warning}", soft_wrap=True)


@contextmanager
def _bar() -> Iterator[tuple[Steps, Callable[[int, int], None]]]:
    """Progress bar on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield (lambda description: nullcontext()), (lambda done, total: None)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)

        @contextmanager
        def step(description: str) -> Iterator[None]:
            bar.update(task, description=description)
            yield

        yield step, lambda done, total: bar.update(task, completed=done, total=total)
