"""``gbistat train`` and ``gbistat export``."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["export_command", "train_command"]

_OPTIONS = (
    click.argument("card", type=click.Path(path_type=Path)),
    click.option(
        "--output", "run", type=click.Path(path_type=Path), required=True, metavar="RUN", help="Folder of the run."
    ),
    click.option(
        "--events",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Folder of the card's files of events.  [default: the card's]",
    ),
    click.option("--debug", is_flag=True, help="Show the traceback of an error."),
)


def _training(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of every training."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@click.group("train")
def train_command() -> None:
    """Train networks (needs the extra 'train': Keras and TensorFlow)."""


@train_command.command("ratio")
@_training
def train_ratio_command(card: Path, run: Path, events: Path | None, debug: bool) -> None:
    """Train the density ratio of CARD; the same command goes on where an earlier one was stopped."""
    from gbistat.training_workflow import run_training

    with _progress() as progress:
        run_training(card, run, events=events, progress=progress)
    click.echo(f"trained {run}; export it with: gbistat export {run} --output FOLDER")


@train_command.command("background")
@_training
def train_background_command(card: Path, run: Path, events: Path | None, debug: bool) -> None:
    """Train the sideband generator of CARD; the same command goes on where an earlier one was stopped."""
    from gbistat.training_workflow import run_background_training

    with _progress() as progress:
        warnings = run_background_training(card, run, events=events, progress=progress)
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"trained {run}, losses in {run / 'losses.png'}; export it with: gbistat export {run} --output FOLDER")


@train_command.command("paws")
@_training
def train_paws_command(card: Path, run: Path, events: Path | None, debug: bool) -> None:
    """Train the classifier of CARD for all masses of a signal; the same command goes on where an earlier one was stopped."""
    from gbistat.training_workflow import run_paws_training

    with _progress() as progress:
        run_paws_training(card, run, events=events, progress=progress)
    click.echo(f"trained {run}, losses in {run / 'losses.png'}; export it with: gbistat export {run} --output FOLDER")


@train_command.command("ranode")
@_training
def train_ranode_command(card: Path, run: Path, events: Path | None, debug: bool) -> None:
    """Learn the signal in the data of CARD (DIR may be the file itself); the same command goes on where it was stopped."""
    from gbistat.training_workflow import run_ranode_training

    with _progress() as progress:
        warnings = run_ranode_training(card, run, events=events, progress=progress)
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"trained {run}, losses in {run / 'losses.png'}; export it with: gbistat export {run} --output FOLDER")


@contextmanager
def _progress() -> Iterator[Callable[[float, str], None] | None]:
    """Progress bar with time left on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("reading events", total=1.0)

        def progress(fraction: float, text: str, /) -> None:
            bar.update(task, completed=fraction, description=text)

        yield progress


@click.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--output", type=click.Path(path_type=Path), required=True, metavar="FOLDER", help="Folder of the model to write."
)
@click.option("--overwrite", is_flag=True, help="Replace a model that is there.")
@click.option(
    "--events",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of the run's file of events, if they are simulated: a generator is compared with the true background too.",
)
@click.option("--no-checks", is_flag=True, help="Do not measure a generator on held-out events.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def export_command(run: Path, output: Path, overwrite: bool, events: Path | None, no_checks: bool, debug: bool) -> None:
    """Export a trained RUN as a model: ONNX graphs checked against Keras, and what was measured on held-out events."""
    from gbistat.training_workflow import run_export

    model = run_export(run, output, overwrite=overwrite, checks=not no_checks, events=events)
    click.echo(f"wrote {output}: model {model.name}, sha256 {model.sha256[:12]}")
