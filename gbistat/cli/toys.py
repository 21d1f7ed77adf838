"""``gbistat toys run``, ``gbistat toys merge``, ``gbistat toys status``."""

from __future__ import annotations

import math
import re
import shlex
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from gbistat.cli.options import run_options, source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gbistat.inference.campaign_run import Progress
    from gbistat.toy_workflow import PreparedToys, ToysStatus

__all__ = ["Bar", "parse_points", "progress_bar", "toys_command"]


def parse_points(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[float, ...]:
    """Values written as ``LOW:HIGH:COUNT`` or ``A,B,C``.

    Raises
    ------
    click.BadParameter
        If it is neither.
    """
    if text is None:
        return ()
    try:
        if ":" in text:
            low, high, count = text.split(":")
            a, b, n = float(low), float(high), int(count)
            if n < 2 or not a < b:
                raise ValueError
            values = tuple(float(f"{a + (b - a) * i / (n - 1):.12g}") for i in range(n))
        else:
            values = tuple(float(value) for value in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither LOW:HIGH:COUNT nor A,B,C; for example 0:100:21") from None
    if not all(map(math.isfinite, values)):
        raise click.BadParameter(f"{text!r} holds a value that is not finite")
    return values


def _part(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None:
        raise click.BadParameter(f"{text!r} is not I/N, for example 1/10")
    return int(match[1]), int(match[2])


@click.group("toys")
def toys_command() -> None:
    r"""Throw toys of a model, and put files of toys together.

    \b
    gbistat toys run --points 0:60:13 --toys 10000 --jobs 4 --output toys.npz
    gbistat toys run ... --jobs 50 --dry-run > jobs.txt       one command a line, for a batch system
    gbistat toys merge toys.part-*.npz --output toys.npz
    gbistat toys status toys.npz
    """


@toys_command.command("run")
@source
@click.option(
    "--points",
    callback=parse_points,
    metavar="LOW:HIGH:N|A,B,C",
    help="True values of the parameter of interest.  [default: 21 from 0 to four errors above the estimate]",
)
@click.option("--toys", "n_toys", type=int, default=1000, show_default=True, help="Toys at each value.")
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, help="Seed of all random numbers.")
@click.option(
    "--form", type=click.Choice(["compressed", "exact"]), default="compressed", show_default=True, help="Form of toys."
)
@click.option("--jobs", type=int, default=1, show_default=True, help="Processes; with --dry-run jobs of the array.")
@click.option("--scheduler", metavar="ADDRESS", help="Dask scheduler, for example tcp://10.0.0.1:8786, or 'local'.")
@click.option(
    "--part", callback=_part, default="1/1", metavar="I/N", help="Only the I-th of N shares.  [default: everything]"
)
@click.option("--output", type=click.Path(path_type=Path), required=True, metavar="FILE", help="File of toys (.npz).")
@click.option("--dry-run", is_flag=True, help="Print a job array, one command a line, and throw nothing.")
def toys_run(
    points: tuple[float, ...],
    n_toys: int,
    seed: int,
    form: Any,
    jobs: int,
    scheduler: str | None,
    part: tuple[int, int],
    output: Path,
    dry_run: bool,
    debug: bool,
    **options: Any,
) -> int:
    """Throw toys at several true values; fit each, and evaluate the statistics that intervals and limits need.

    What a file of that name holds is not done again: the same command goes on after a kill, and with more --toys adds to
    it. The result depends neither on --jobs nor on --scheduler.
    """
    from gbistat.toy_workflow import ToysRequest, prepare_toys, run_toys

    if jobs < 1:
        raise click.UsageError(f"--jobs {jobs}: give at least 1")
    run = run_options(**options)
    with progress_bar() as bar:
        prepared = prepare_toys(run, ToysRequest(points, n_toys, seed, form), steps=bar.steps)
        if dry_run:
            _print_jobs(click.get_current_context(), prepared, jobs, output)
            return 0
        _show_plan(prepared)
        try:
            campaign = run_toys(prepared, output, jobs=jobs, scheduler=scheduler, part=part, progress=bar.progress)
        except KeyboardInterrupt:
            click.echo("finished toys are kept; the same command goes on from here", err=True)
            raise
    click.echo(f"wrote {output}: {campaign.n_done()} of {campaign.plan.total} toys")
    return 0


@toys_command.command("merge")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), required=True, metavar="FILE", help="File of toys to write.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def toys_merge(files: tuple[Path, ...], output: Path, debug: bool) -> int:
    """Merge FILES of toys of one campaign; their order does not matter.

    Files of jobs that were killed may be among them: their finished toys are in the journal beside.
    """
    from gbistat.toy_workflow import merge_toys

    status = merge_toys(files, output)
    click.echo(f"wrote {output}: {status.n_done} of {status.plan.total} toys from {len(files)} file(s)")
    if status.n_missing:
        click.echo(
            f"gbistat: {status.n_missing} task(s) are missing; gbistat toys status {output} shows where", err=True
        )
    return 0


@toys_command.command("status")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def toys_status(file: Path, as_json: bool, debug: bool) -> int:
    """Show what is in a FILE of toys, while a job is writing it too. Exit code 1 if toys are missing."""
    from gbistat.toy_workflow import toys_status as read_status

    status = read_status(file)
    if as_json:
        import json

        click.echo(json.dumps(status.to_dict(), indent=2))
    else:
        _show_status(file, status)
    return 1 if status.n_missing else 0


def _print_jobs(context: click.Context, prepared: PreparedToys, jobs: int, output: Path) -> None:
    """One command a line on standard output, how to end on standard error."""
    values = ",".join(_text(value) for value in prepared.values)
    shared = _given(context, skip=("points", "jobs", "part", "output", "dry_run", "scheduler", "debug"))
    count = min(jobs, len(prepared.plan.tasks()))
    files = []
    for job in range(1, count + 1):
        files.append(output.with_name(f"{output.stem}.part-{job}-of-{count}{output.suffix}"))
        own = ["--points", values, "--part", f"{job}/{count}", "--output", str(files[-1])]
        click.echo(shlex.join(["gbistat", "toys", "run", *shared, *own]))
    merge = shlex.join(["gbistat", "toys", "merge", *map(str, files), "--output", str(output)])
    click.echo(f"{prepared.plan.total} toys in {count} job(s); at the end: {merge}", err=True)


def _given(context: click.Context, skip: tuple[str, ...]) -> list[str]:
    """Arguments that were given, as they would be typed again."""
    words: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        if name in skip or context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        value = context.params[name]
        for one in value if parameter.multiple else [value]:
            if isinstance(parameter, click.Option):
                words.append(parameter.opts[0])
            words += [_text(part) for part in (one if isinstance(one, tuple) else (one,))]
    return words


def _text(value: object) -> str:
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _show_plan(prepared: PreparedToys) -> None:
    plan = prepared.plan
    for warning in prepared.warnings:
        click.echo(f"gbistat: warning: {warning}", err=True)
    for report in prepared.reports:
        if report.kind != "quadrature":
            click.echo(
                f"pool: {report.n_points} points, worth {report.background_size:.0f} for the background and "
                f"{report.signal_size:.0f} for the signal; {report.expected:.0f} events expected",
                err=True,
            )
    click.echo(f"{plan.n_points} points, {plan.total} toys, seed {plan.seed}, plan {plan.sha256[:12]}", err=True)


def _show_status(file: Path, status: ToysStatus) -> None:
    from rich.console import Console
    from rich.table import Table

    plan = status.plan
    table = Table(status.poi, "toys", "asked for", "mean estimate", "spread", "not ok")
    for point in status.points:
        odd = ", ".join(f"{count} {name}" for name, count in point.counts if name != "ok")
        numbers = ["" if value is None else f"{value:.4g}" for value in (point.estimate, point.spread)]
        table.add_row(f"{point.value:.6g}", str(point.n_done), str(point.n_asked), *numbers, odd)
    console = Console(highlight=False)
    console = Console(highlight=False, width=None if console.is_terminal else 120)
    made = ", ".join(f"{name} {' and '.join(found)}" for name, found in status.versions.items())
    console.print(
        f"{file}: {plan.work}, model sha256 {plan.model_sha256[:12]}, seed {plan.seed}, made by {made or 'nobody'}"
    )
    console.print(table)
    ending = "complete" if not status.n_missing else f"{status.n_missing} task(s) to do"
    console.print(f"{status.n_done} of {plan.total} toys; {ending}")


class Bar:
    """Steps and toys done, shown on a terminal or not at all."""

    def __init__(self, show: Callable[..., None]) -> None:
        self._show = show

    @contextmanager
    def steps(self, description: str) -> Iterator[None]:
        """One step of preparation."""
        self._show(description=description)
        yield

    def progress(self, progress: Progress) -> None:
        """Toys done."""
        self._show(description="toys", completed=progress.n_done, total=progress.n_toys)


@contextmanager
def progress_bar() -> Iterator[Bar]:
    """Progress bar on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield Bar(lambda **_: None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)
        yield Bar(lambda **changes: bar.update(task, **changes))
