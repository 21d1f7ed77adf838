"""``gbistat fit``, ``gbistat limits``, ``gbistat compare``."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gbistat.cli.learned_signal import learned, learned_options, refuse_learned, run_and_write, show_learned
from gbistat.cli.options import common, method, run_options
from gbistat.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gbistat.config import RunOptions
    from gbistat.learned_signal_workflow import LearnedSignalOptions
    from gbistat.report.outcomes import Report
    from gbistat.steps import Steps

__all__ = ["compare_command", "fit_command", "limits_command", "progress"]


@click.command("fit")
@common
@method
@learned
def fit_command(**options: Any) -> int:
    """Fit signal strength, masses and background in a window, with intervals.

    Without a card, model and events the shipped ones are used: the model dijet-paws, whose signal may have any masses. --model
    dijet-qq-3500, the model of gbistat limits, knows them, and takes seconds where the search over the masses takes a minute.
    """
    from gbistat.config import DEFAULT_FIT_MODEL
    from gbistat.workflow import run_fit

    return _run(run_fit, {**options, "default_model": DEFAULT_FIT_MODEL})


@click.command("limits")
@common
@method
@learned
@click.option("--no-binned", is_flag=True, help="Skip the binned cross-check with pyhf.")
def limits_command(no_binned: bool, **options: Any) -> int:
    """Intervals, CLs upper limit with its expected band, local significance, and the binned pyhf result beside them.

    Without a card, model and events the shipped ones are used. Several --window give one row each and a plot of the
    limit against the window. A signal that was learned from the data (gbistat train ranode) gets an e-value against background
    only and a lower limit on its fraction instead.
    """
    from gbistat.workflow import run_limits

    def work(run: RunOptions, *, steps: Steps) -> Report:
        return run_limits(run, steps=steps, binned=not no_binned)

    return _run(work, options)


@click.command("compare")
@common
@click.option(
    "--bins", type=int, default=200, show_default=True, help="Bins of the log ratio that get a row of their own."
)
@click.option("--toys", type=int, default=50, show_default=True, help="Toys that all methods fit; 0 for none.")
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of the toys.")
def compare_command(bins: int, toys: int, seed: int, **options: Any) -> int:
    """Compare the unbinned result with binned ones: bins of the log ratio, a bump hunt in the mass, cut and count.

    Tells estimates, intervals, limits and significances, how far estimates of the same toys are apart, and what binning
    costs as a function of the number of bins.
    """
    from gbistat.workflow import run_compare

    def work(run: RunOptions, *, steps: Steps) -> Report:
        from gbistat.binned.comparison import ComparisonOptions

        return run_compare(run, steps=steps, comparison=ComparisonOptions(main_bins=bins, toys=toys, seed=seed))

    return _run(work, options)


def _run(work: Callable[..., Report], options: dict[str, Any]) -> int:
    """Resolve options, run, show, write; exit code 1 if some window failed."""
    from gbistat.learned_signal_workflow import has_learned_signal

    output: Path | None = options.pop("output")
    json_path: str | None = options.pop("json_path")
    options.pop("debug")
    takes_learned = "null" in options
    null, labels = options.pop("null", None), options.pop("labels", None)
    run = run_options(**options)
    if output is not None or json_path not in (None, "-"):
        from gbistat.report.files import check_writable

        check_writable(output, None if json_path in (None, "-") else Path(str(json_path)))
    if has_learned_signal(run):
        if not takes_learned:
            raise ModelError(
                f"the signal of model {run.model.name!r} was learned from the data and has no binned twin; use gbistat limits"
            )
        return _run_learned(run, learned_options(null, labels, options), output, json_path)
    refuse_learned(null, labels)
    with progress() as steps:
        report = work(run, steps=steps)
        written: list[Path] = []
        if output is not None:
            from gbistat.report.files import write_report

            with steps("drawing"):
                written = write_report(report, output)
    if json_path is not None:
        from gbistat.report.document import document, to_text
        from gbistat.report.files import write_text

        text = to_text(document(report))
        if json_path == "-":
            click.echo(text, nl=False)
        else:
            write_text(Path(json_path), text)
    if json_path != "-":
        from gbistat.cli.tables import show

        show(report)
        for path in written:
            click.echo(f"wrote {path}")
    for failure in report.failures:
        click.echo(f"gbistat: window {failure.window[0]:g} {failure.window[1]:g} failed: {failure.message}", err=True)
    return 1 if report.failures else 0


def _run_learned(run: RunOptions, chosen: LearnedSignalOptions, output: Path | None, json_path: str | None) -> int:
    """The same for a signal that was learned from the data."""
    from gbistat.report.document import to_text
    from gbistat.report.files import write_text

    with progress() as steps:
        report, written = run_and_write(run, chosen, output, steps)
    if json_path == "-":
        click.echo(to_text(report.to_dict()), nl=False)
        return 0
    if json_path is not None:
        write_text(Path(json_path), to_text(report.to_dict()))
    show_learned(report)
    for path in written:
        click.echo(f"wrote {path}")
    return 0


@contextmanager
def progress() -> Iterator[Steps]:
    """Progress bar on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda description: nullcontext()
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)

        @contextmanager
        def step(description: str) -> Iterator[None]:
            bar.update(task, description=description)
            yield

        def steps(description: str) -> AbstractContextManager[object]:
            return step(description)

        yield steps
