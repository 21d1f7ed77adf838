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

    from rich.console import Console

    from gbistat.inference.plane_significance import PlaneSignificance
    from gbistat.scan_workflow import ScanReport
    from gbistat.steps import Steps

__all__ = ["scan_command"]


@click.command("scan")
@source
@click.option("--step", type=float, help="Distance of the masses.  [default: twice that of the ratio's own grid]")
@click.option("--cl", type=float, help="Confidence level of limits.  [default: 0.95]")
@click.option("--toys", type=int, default=0, help="Background-only toys for the global significance.  [default: none]")
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of the toys.")
@click.option("--output", type=click.Path(path_type=Path), metavar="DIR", help="Write maps and JSON there.")
@click.option("--json", "json_path", metavar="FILE", help="Write JSON to a file, or to standard output (-).")
def scan_command(
    step: float | None,
    cl: float | None,
    toys: int,
    seed: int,
    output: Path | None,
    json_path: str | None,
    debug: bool,
    **options: Any,
) -> int:
    """Limits and local significance with the masses of the signal held at each point of a grid."""
    from gbistat.config import DEFAULT_FIT_MODEL
    from gbistat.report.document import to_text
    from gbistat.report.files import check_writable, write_text
    from gbistat.scan_workflow import run_scan, write_scan

    file = None if json_path in (None, "-") else Path(str(json_path))
    if output is not None or file is not None:
        check_writable(output, file)
    run = run_options(**options, cl=cl, default_model=DEFAULT_FIT_MODEL)
    with _bar() as (steps, progress):
        report = run_scan(run, step=step, toys=toys, seed=seed, steps=steps, progress=progress)
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
    if report.significance is not None:
        _show_global(console, report.significance, report.unit)
    for warning in report.warnings:
        console.print(f"[yellow]warning[/yellow] {warning}", soft_wrap=True)


def _show_global(console: Console, found: PlaneSignificance, unit: str) -> None:
    """Largest excess: local and global p-values of every method."""
    from rich.table import Table

    place = ", ".join(f"{name} = {value:.6g}" for name, value in found.masses.items())
    half = " (half of the plane: the masses can be exchanged)" if found.symmetric else ""
    table = Table(
        "method",
        "local p",
        "local Z",
        "global p",
        "68.27 %",
        "global Z",
        "toys",
        title=f"largest excess of {found.searched} nodes{half}: {place} {unit}, {found.strength:.4g} events",
        title_justify="left",
    )
    for result in found.results:
        bound = "below " if result.method == "toys" and result.p_low == 0.0 else ""
        table.add_row(
            result.method,
            f"{result.p_local:.2g}",
            f"{result.z_local:.2f}",
            f"{bound}{result.p_global:.2g}",
            f"{result.p_low:.2g} to {result.p_high:.2g}",
            f"{'above ' if bound else ''}{result.z_global:.2f}",
            str(result.n_toys),
        )
    console.print(table)
    low, high = found.z_interval
    console.print(
        f"global significance {found.best.z_global:.2f} ({low:.2f} to {high:.2f}), by {found.best.method}; the statistic is that of the "
        "map: at its nodes, without the nuisance of a spurious signal"
    )
    for note in dict.fromkeys([*found.notes, *(note for result in found.results for note in result.notes)]):
        console.print(f"note {note}", soft_wrap=True)


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
