"""``gbistat coverage``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gbistat.cli.options import run_options, source
from gbistat.cli.toys import parse_points, progress_bar

if TYPE_CHECKING:
    from gbistat.coverage_workflow import CoverageReport

__all__ = ["coverage_command"]


@click.command("coverage")
@source
@click.option(
    "--points",
    callback=parse_points,
    metavar="LOW:HIGH:N|A,B,C",
    help="True values of the parameter of interest.  [default: 6 from 0 to four errors above the estimate]",
)
@click.option("--toys", "n_toys", type=int, default=500, show_default=True, help="Toys at each value.")
@click.option(
    "--method",
    "methods",
    multiple=True,
    default=("profile", "cls"),
    show_default=True,
    help="profile, cls, feldman-cousins, neyman, cls-toys or ln2; repeat it for several.",
)
@click.option(
    "--cl", "cls", type=float, multiple=True, default=(0.6827, 0.9, 0.95), show_default=True, help="Confidence level."
)
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, help="Seed of all random numbers.")
@click.option(
    "--inner-toys", type=int, default=1000, show_default=True, help="Toys that methods by toys throw for each toy."
)
@click.option("--jobs", type=int, default=1, show_default=True, help="Processes.")
@click.option("--scheduler", metavar="ADDRESS", help="Dask scheduler, for example tcp://10.0.0.1:8786, or 'local'.")
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="DIR", help="Write the plot, JSON and the toys there."
)
@click.option("--json", "json_path", metavar="FILE", help="Write JSON to a file, or to standard output (-).")
def coverage_command(
    points: tuple[float, ...],
    n_toys: int,
    methods: tuple[str, ...],
    cls: tuple[float, ...],
    seed: int,
    inner_toys: int,
    jobs: int,
    scheduler: str | None,
    output: Path | None,
    json_path: str | None,
    debug: bool,
    **options: Any,
) -> int:
    """Measure how often intervals and limits hold the truth, and how far estimates are off, on toys of the model.

    With --output a stopped run goes on where it was, and more --toys are added to those that are there.
    """
    from gbistat.coverage_workflow import CoverageRequest, run_coverage, write_coverage

    if jobs < 1:
        raise click.UsageError(f"--jobs {jobs}: give at least 1")
    run = run_options(**options)
    request = CoverageRequest(points, n_toys, methods, cls, seed, inner_toys)
    if json_path not in (None, "-"):
        from gbistat.report.files import check_writable

        check_writable(None, Path(str(json_path)))
    with progress_bar() as bar:
        report = run_coverage(
            run, request, output=output, jobs=jobs, scheduler=scheduler, steps=bar.steps, progress=bar.progress
        )
        written = [] if output is None else write_coverage(report, output)
    text = json.dumps(report.to_dict(), indent=2, allow_nan=False)
    if json_path == "-":
        click.echo(text)
        return 0
    if json_path is not None:
        from gbistat.report.files import write_text

        written.append(write_text(Path(json_path), text + "\n"))
    _show(report)
    for path in written:
        click.echo(f"wrote {path}")
    return 0


def _show(report: CoverageReport) -> None:
    from rich.console import Console
    from rich.table import Table

    low, high = report.window
    title = f"window {low:g}-{high:g} GeV, model {report.model} (sha256 {report.model_sha256[:12]})"
    table = Table(
        f"true {report.poi}", "method", "level", "coverage", "toys", "failed", "bias", title=title, title_justify="left"
    )
    for result in report.results:
        for row in result.rows:
            below, above = row.ends
            table.add_row(
                f"{row.truth:.6g}",
                row.method,
                f"{100 * row.cl:.4g} %",
                f"{100 * row.coverage:.2f} (+{100 * (above - row.coverage):.2f} -{100 * (row.coverage - below):.2f}) %"
                + ("  low" if row.pull < -3 else ""),
                str(row.n_toys),
                str(row.n_failed or ""),
                f"{row.bias:.3g} +- {row.bias_error:.2g}",
            )
    console = Console(highlight=False)
    console = Console(highlight=False, width=None if console.is_terminal else 120)
    console.print(table)
    for warning in report.warnings:
        console.print(f"[yellow]warning[/yellow] {warning}", soft_wrap=True)
