"""Training of a conditional density ratio: a small ensemble of classifiers, each on its own bootstrap resample."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gbistat.errors import FitFailed, OutputError
from gbistat.training.dataset import member_sets, training_pool
from gbistat.training.network import build_network, measure_scaling, train_epoch
from gbistat.training.run import Epoch, start_run
from gbistat.training.schedule import outlook
from gbistat.training.splits import read_sample

if TYPE_CHECKING:
    from collections.abc import Callable

    from gbistat.training.card import RatioCard
    from gbistat.training.dataset import ClassifierSet, TrainingPool
    from gbistat.training.paws_card import PawsCard
    from gbistat.training.run import MemberFolder, RatioRun

__all__ = ["Progress", "train_member", "train_ratio"]


class Progress(Protocol):
    """What is told about a training after each epoch."""

    def __call__(self, fraction: float, text: str, /) -> None:
        """Fraction of the work that is done, at least, and a line on where the training stands."""


def train_ratio(
    card: RatioCard,
    run_directory: str | Path,
    *,
    events: str | Path | None = None,
    progress: Progress | None = None,
) -> RatioRun:
    """Train the ensemble of a card, or go on with it where an earlier call was stopped.

    Parameters
    ----------
    card : RatioCard
        What to train; see `gbistat.training.card.load_card`.
    run_directory : path
        Folder of the run: the card, the record of the splits, held-out events, and per member a checkpoint after
        every epoch. After a kill the same call goes on at the last epoch that is complete, with the same result.
    events : path, optional
        Folder of the files of events; ``card.events`` by default.
    progress : callable, optional
        Told after every epoch.

    Returns
    -------
    RatioRun
        The finished run, ready for `gbistat.training.export.export_ratio`.

    Raises
    ------
    EventsError
        If a file of events is missing or does not fit the card.
    OutputError
        If the folder cannot be written, or holds a run of another card or of other events.
    FitFailed
        If a loss is no longer finite.
    MissingExtra
        If Keras or TensorFlow is not installed.

    Notes
    -----
    The members' density ratios are averaged (arithmetic mean), which keeps E_b[r] = 1 if each member has it. The
    spread of the members is that of bootstrap resamples of the training events; it says nothing about what all
    members have in common, such as too few events in a corner.
    """
    folder = card.events if events is None else events
    background = read_sample(folder, card.background, card)
    signals = [read_sample(folder, spec, card) for spec in card.signals]
    pool = training_pool(background, signals, card)
    run = start_run(Path(run_directory), card, measure_scaling(pool.background, card), background, signals)
    for member in range(card.optimiser.members):
        _train_member(run, pool, member, progress)
    return run


def _train_member(run: RatioRun, pool: TrainingPool, member: int, progress: Progress | None) -> None:
    card = run.card

    def sets() -> tuple[Callable[[int], ClassifierSet], ClassifierSet]:
        train, validate = member_sets(pool, card, member)
        return lambda _: train, validate

    train_member(
        card,
        run.member(member),
        member,
        network=lambda: build_network(card, run.scaling, member=member),
        sets=sets,
        progress=progress,
    )


def train_member(
    card: RatioCard | PawsCard,
    folder: MemberFolder,
    member: int,
    *,
    network: Callable[[], Any],
    sets: Callable[[], tuple[Callable[[int], ClassifierSet], ClassifierSet]],
    progress: Progress | None,
) -> None:
    """Train one member, or go on with it, until its validation loss says stop.

    Parameters
    ----------
    card : RatioCard or PawsCard
        Card of the training.
    folder : MemberFolder
        Where the checkpoints are.
    member : int
        Number of the member.
    network : callable
        Makes the untrained network; not called where there is a checkpoint.
    sets : callable
        Makes the training set as a function of the epoch, and the validation set; not called if nothing is left to do.
    progress : callable or None
        Told after every epoch.

    Raises
    ------
    FitFailed
        If a loss is no longer finite.
    OutputError
        If a checkpoint cannot be written.
    """
    history = folder.history()
    now = outlook([epoch.validation_loss for epoch in history], card.optimiser)
    if now.stop:
        return
    trained = folder.load("last") if history else network()
    train, validate = sets()
    while not now.stop:
        number = len(history)
        loss, validation_loss = train_epoch(
            trained, train(number), validate, card, member=member, epoch=number, rate=now.learning_rate
        )
        if not np.isfinite([loss, validation_loss]).all():
            raise FitFailed(
                f"member {member}: the loss is {loss:g} after epoch {number + 1}; lower optimiser.learning_rate "
                f"({card.optimiser.learning_rate:g})"
            )
        history.append(Epoch(loss, validation_loss, now.learning_rate))
        now = outlook([epoch.validation_loss for epoch in history], card.optimiser)
        _save(folder, trained, history, now.best or 0)
        if progress is not None:
            progress(*_report(card, member, history, stopped=now.stop))


def _save(folder: MemberFolder, network: Any, history: list[Epoch], best: int) -> None:
    try:
        folder.save(network, history, best=best)
    except OSError as problem:
        raise OutputError(
            f"{folder.path} cannot be written: {problem.strerror or problem}; free some space and start again: "
            "the run goes on at its last complete epoch"
        ) from None


def _report(card: RatioCard | PawsCard, member: int, history: list[Epoch], *, stopped: bool) -> tuple[float, str]:
    members, epochs = card.optimiser.members, card.optimiser.epochs
    inside = 1.0 if stopped else len(history) / epochs
    text = (
        f"member {member + 1} of {members}, epoch {len(history)} of at most {epochs}: "
        f"loss {history[-1].loss:.4f}, validation {history[-1].validation_loss:.4f}"
    )
    return (member + inside) / members, text
