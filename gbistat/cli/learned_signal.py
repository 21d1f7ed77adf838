"""``gbistat limits`` and ``gbistat fit`` of a signal that was learned from the data: table and options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from gbistat.errors import OptionError

if TYPE_CHECKING:
    from pathlib import Path

    from gbistat.config import RunOptions
    from gbistat.learned_signal_workflow import LearnedSignalOptions
    from gbistat.report.learned_signal import LearnedSignalReport
    from gbistat.steps import Steps

__all__ = ["learned", "learned_options", "refuse_learned", "run_and_write", "show_learned"]

_OPTIONS = (
    click.option(
        "--null",
        type=click.Choice(["mean", "ensemble", "wide"]),
        help="For a signal learned from data: backgrounds that 'background only' contains.  [default: ensemble]",
    ),
    click.option("--labels", metavar="COLUMN", help="For a signal learned from data: truth, for grading alone."),
)
_NOT_FOR_LEARNED = {
    "precision": "--precision",
    "min_toys": "--min-toys",
    "max_toys": "--max-toys",
    "form": "--form",
    "jobs": "--jobs",
}


def learned(function: Any) -> Any:
    """Add the options for a signal learned from data to a verb."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def refuse_learned(null: str | None, labels: str | None) -> None:
    """Refuse options for learned signals where the signal is known.

    Raises
    ------
    OptionError
        If one was given.
    """
    for name, value in (("--null", null), ("--labels", labels)):
        if value is not None:
            raise OptionError(f"{name} is for a signal learned from data (gbistat train ranode); leave it out here")


def learned_options(null: str | None, labels: str | None, given: dict[str, Any]) -> LearnedSignalOptions:
    """Options of the command line for a learned signal.

    Raises
    ------
    OptionError
        If an option was given that has nothing to do with it.
    """
    from gbistat.learned_signal_workflow import LearnedSignalOptions

    for name, flag in _NOT_FOR_LEARNED.items():
        if given.get(name) is not None:
            raise OptionError(
                f"{flag} is for toys, and statements about a signal learned from data need none; leave it out"
            )
    seed = given.get("seed")
    return LearnedSignalOptions(null or "ensemble", 1 if seed is None else seed, labels=labels)


def run_and_write(
    run: RunOptions, chosen: LearnedSignalOptions, output: Path | None, steps: Steps
) -> tuple[LearnedSignalReport, list[Path]]:
    """Do the work and write the files."""
    from gbistat.learned_signal_workflow import run_learned_signal
    from gbistat.report.learned_signal import write_learned_signal

    report = run_learned_signal(run, chosen, steps=steps)
    written: list[Path] = []
    if output is not None:
        with steps("drawing"):
            written = write_learned_signal(report, output)
    return report, written


def show_learned(report: LearnedSignalReport) -> None:
    """Print the statements to standard output."""
    from rich.console import Console
    from rich.table import Table

    from gbistat.report.learned_signal import WHY_NO_UPPER_END

    console = Console(highlight=False)
    console = Console(highlight=False, width=None if console.is_terminal else 120)
    console.print(
        f"model {report.model} (sha256 {report.model_sha256[:12]}), signal learned from the data; {report.n_read} events in "
        f"the fit range from {report.source}",
        soft_wrap=True,
    )
    level = f"{100 * report.limit.cl:.4g} %"
    table = Table(
        "",
        f"null: {report.null_settings['name']}",
        "null: mean generator",
        title=f"window {report.window}, {report.n_events} events, {len(report.evidence.log_e_folds)} folds "
        f"({'multiplied: each judged by networks of earlier ones' if report.evidence.scheme == 'product' else 'averaged'})",
        title_justify="left",
    )
    pairs = (report.evidence, report.plain_evidence)
    table.add_row("ln e against background only", *[f"{found.log_e:.2f}" for found in pairs])
    table.add_row("  p-value at most", *[f"{found.p_at_most:.2g}" for found in pairs])
    table.add_row("  significance at least", *[f"{found.z_at_least:.2f}" for found in pairs])
    limits = (report.limit, report.plain_limit)
    table.add_row(f"signal fraction, {level} lower limit", *[_fraction(limit.low) for limit in limits])
    table.add_row("  signal events", *[f"{limit.low * report.n_events:.4g}" for limit in limits])
    table.add_row("  upper limit", "none", "none")
    console.print(table)
    console.print(f"null: {report.null}", soft_wrap=True)
    console.print(f"no upper limit: {WHY_NO_UPPER_END}.", soft_wrap=True)
    estimate, interval = report.estimate, report.interval
    text = "none (no fraction fits)" if interval.empty else f"[{interval.low:.3g}, {interval.high:.3g}]"
    console.print(
        f"for the learned signal density only: fraction {_fraction(estimate.value)} +- {_fraction(estimate.error)}; for mixtures "
        f"of the {interval.n_densities} networks of a fold only: {level} interval {text}",
        soft_wrap=True,
    )
    if report.grading.get("sic"):
        graded = ", ".join(f"{value:.2f} at {rate}" for rate, value in report.grading["sic"].items())
        console.print(f"grading with labels ({report.grading['signal']} signal events): SIC {graded}", soft_wrap=True)
    for warning in report.warnings:
        console.print(f"[yellow]warning[/yellow] {report.window}: {warning}", soft_wrap=True)


def _fraction(value: float) -> str:
    return f"{value:.3g}"
