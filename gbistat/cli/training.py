"""``gbistat train`` and ``gbistat export``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

__all__ = ["export_command", "train_command"]


@click.group("train")
def train_command() -> None:
    """Train networks (needs the extra 'train': Keras and TensorFlow)."""


@train_command.command("ratio")
@click.argument("card", type=click.Path(path_type=Path))
@click.option(
    "--output", "run", type=click.Path(path_type=Path), required=True, metavar="RUN", help="Folder of the run."
)
@click.option(
    "--events",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of the card's files of events.  [default: the card's]",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def train_ratio_command(card: Path, run: Path, events: Path | None, debug: bool) -> None:
    """Train the density ratio of CARD; the same command goes on where an earlier one was stopped."""
    from gbistat.workflow import run_training

    if not sys.stderr.isatty():
        run_training(card, run, events=events)
    else:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("reading events", total=1.0)

            def progress(fraction: float, text: str, /) -> None:
                bar.update(task, completed=fraction, description=text)

            run_training(card, run, events=events, progress=progress)
    click.echo(f"trained {run}; export it with: gbistat export {run} --output FOLDER")


@click.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--output", type=click.Path(path_type=Path), required=True, metavar="FOLDER", help="Folder of the model to write."
)
@click.option("--overwrite", is_flag=True, help="Replace a model that is there.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def export_command(run: Path, output: Path, overwrite: bool, debug: bool) -> None:
    """Export a trained RUN as a model: ONNX graphs checked against Keras, kappa, reference events, checks."""
    from gbistat.workflow import run_export

    model = run_export(run, output, overwrite=overwrite)
    click.echo(f"wrote {output}: model {model.name}, sha256 {model.sha256[:12]}")
