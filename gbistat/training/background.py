"""Training of a sideband generator: an ensemble of flows, each on its own bootstrap resample of the sideband events."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import EventsError, FitFailed, OutputError
from gbistat.training.autoregressive import count_parameters
from gbistat.training.background_run import Final, FlowEpoch, start_background_run
from gbistat.training.environment import keras
from gbistat.training.epoch_choice import generator_argos
from gbistat.training.flow import build_flow, compile_flow, log_density
from gbistat.training.sidebands import bootstrap, sideband_pool
from gbistat.training.splits import read_sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.training.background_card import BackgroundCard, FlowOptimiserSpec
    from gbistat.training.background_run import BackgroundRun, FlowFolder
    from gbistat.training.flow import Flow
    from gbistat.training.ratio import Progress
    from gbistat.training.sidebands import SidebandPool
    from gbistat.typing import FloatArray

__all__ = ["build_member", "cosine_rate", "final_weights", "train_background"]

RESAMPLE, WEIGHTS, BATCHES, SELECTION = 11, 12, 13, 14
"""Streams of random numbers, each with the card's seed before it and the member after it."""


def train_background(
    card: BackgroundCard,
    run_directory: str | Path,
    *,
    events: str | Path | None = None,
    progress: Progress | None = None,
) -> BackgroundRun:
    """Train the ensemble of a card, or go on with it where an earlier call was stopped.

    Parameters
    ----------
    card : BackgroundCard
        What to train; see `gbistat.training.background_card.load_background_card`.
    run_directory : path
        Folder of the run. Every member leaves a checkpoint after each epoch; after a kill the same call goes on at
        the last epoch that is complete, with the same result.
    events : path, optional
        Folder of the file of events; ``card.events`` by default.
    progress : callable, optional
        Told after every epoch.

    Returns
    -------
    BackgroundRun
        The finished run, ready for `gbistat.training.background_export.export_background`.

    Raises
    ------
    EventsError, WindowError
        If the events do not fit the card, a sideband is empty, a feature has no density, or there are fewer events
        than parameters.
    OutputError
        If the folder cannot be written, or holds a run of another card or of other events.
    FitFailed
        If a loss is no longer finite.
    MissingExtra
        If Keras or its backend is not installed.

    Notes
    -----
    A member trains on a bootstrap resample of the sideband events and is validated on the events that the resample
    left out, about 37 %. The weights of its best epochs are averaged (one network a member remains), and the
    densities of the members. The spread of the members is the statistical error of one of them for a sideband sample
    of this size, the randomness of the training included; what all have in common, such as the interpolation across
    the window, is not in it.
    """
    sample = read_sample(card.events if events is None else events, card.background, card)
    pool = sideband_pool(sample, card)
    n_parameters = count_parameters(len(card.features), card.flow)
    if len(pool.x) < n_parameters:
        raise EventsError(
            f"{len(pool.x)} sideband events are fewer than the {n_parameters} parameters of the flow; take fewer layers, "
            "hidden units or bins (flow), widen train_range, or give more events"
        )
    if len(pool.x) < card.optimiser.batch_size:
        raise EventsError(
            f"{len(pool.x)} sideband events do not fill a batch of {card.optimiser.batch_size}; lower optimiser.batch_size"
        )
    run = start_background_run(Path(run_directory), card, sample, pool, pool.warnings)
    for member in range(card.optimiser.members):
        if run.member(member).final() is None:
            _train_member(run, pool, member, progress)
    return run


def build_member(run: BackgroundRun, member: int) -> Flow:
    """Untrained flow of a member."""
    entropy = [run.card.seed, WEIGHTS, member]
    return build_flow(run.card.flow, run.scaling, entropy=entropy, name=f"member_{member}")


def final_weights(folder: FlowFolder, epochs: Sequence[int]) -> list[FloatArray]:
    """Average of the weights after some epochs, array by array."""
    kept = [folder.weights(epoch) for epoch in epochs]
    return [
        np.mean(np.stack(arrays), axis=0, dtype=np.float64).astype(arrays[0].dtype)
        for arrays in zip(*kept, strict=True)
    ]


def cosine_rate(epoch: int, optimiser: FlowOptimiserSpec) -> float:
    """Learning rate of an epoch: half a cosine from the start value down to 0 after the last epoch.

    Examples
    --------
    >>> from gbistat.training.background_card import FlowOptimiserSpec
    >>> options = FlowOptimiserSpec(epochs=4, learning_rate=0.1)
    >>> [round(cosine_rate(epoch, options), 4) for epoch in range(4)]
    [0.1, 0.0854, 0.05, 0.0146]
    """
    return 0.5 * optimiser.learning_rate * (1.0 + math.cos(math.pi * epoch / optimiser.epochs))


def _best(losses: Sequence[float], count: int) -> list[int]:
    """Epochs with the smallest losses, in order of time."""
    return sorted(sorted(range(len(losses)), key=lambda epoch: losses[epoch])[:count])


def _train_member(run: BackgroundRun, pool: SidebandPool, member: int, progress: Progress | None) -> None:
    card, folder = run.card, run.member(member)
    chosen, left = bootstrap(len(pool.x), entropy=[card.seed, RESAMPLE, member])
    train, validate = pool.x[chosen].astype(np.float32), pool.x[left]
    flow = build_member(run, member)
    compile_flow(flow, card.optimiser)
    optimiser = flow.density.optimizer
    optimiser.build(flow.density.trainable_variables)
    history = folder.history()
    if history:
        weights, variables = folder.state()
        flow.set_weights(weights)
        for variable, value in zip(optimiser.variables, variables, strict=True):
            variable.assign(value)
    while not _done(history, card.optimiser):
        history.append(_epoch(flow, train, validate, card, member=member, history=history))
        ranks = [epoch.rank(card.optimiser.select) for epoch in history]
        _save(folder, flow, history, _best(ranks, card.optimiser.average))
        if progress is not None:
            progress(*_report(card, member, history))
    _finish(folder, flow, validate, history, card)


def _done(history: Sequence[FlowEpoch], optimiser: FlowOptimiserSpec) -> bool:
    if not history:
        return False
    (best,) = _best([epoch.validation_loss for epoch in history], 1)
    return len(history) >= optimiser.epochs or len(history) - 1 - best >= optimiser.patience


def _epoch(
    flow: Flow,
    train: FloatArray,
    validate: FloatArray,
    card: BackgroundCard,
    *,
    member: int,
    history: Sequence[FlowEpoch],
) -> FlowEpoch:
    """One epoch; the result depends on the state of the flow, the events, the card, the member and the epoch only."""
    number, options = len(history), card.optimiser
    # The last batch is left out if it is not full: another size would be compiled anew, and has a noisier gradient.
    size = len(train) // options.batch_size * options.batch_size
    order = np.random.default_rng([card.seed, BATCHES, member, number]).permutation(len(train))[:size]
    rate = cosine_rate(number, options)
    flow.density.optimizer.learning_rate.assign(rate)
    result = flow.density.fit(
        train[order],
        np.zeros((size, 1), dtype=np.float32),
        batch_size=options.batch_size,
        epochs=1,
        shuffle=False,
        verbose=0,
    )
    loss = float(result.history["loss"][0])
    validation_loss = -float(np.mean(log_density(flow, validate)))
    if not np.isfinite([loss, validation_loss]).all():
        raise FitFailed(
            f"member {member}: the loss is {loss:g} and the validation loss {validation_loss:g} after epoch {number + 1}; "
            f"lower optimiser.learning_rate ({options.learning_rate:g}) or optimiser.clip_norm ({options.clip_norm:g})"
        )
    value = None
    if options.select == "argos":
        # The same events and latent numbers after every epoch: what differs is the flow.
        value = generator_argos(flow, validate, entropy=[card.seed, SELECTION, member])
    return FlowEpoch(loss, validation_loss, rate, value)


def _save(folder: FlowFolder, flow: Flow, history: list[FlowEpoch], best: list[int]) -> None:
    convert = keras().ops.convert_to_numpy
    variables = [np.asarray(convert(variable)) for variable in flow.density.optimizer.variables]
    try:
        folder.save(flow.weights, variables, history, best=best)
    except OSError as problem:
        raise OutputError(
            f"{folder.path} cannot be written: {problem.strerror or problem}; free some space and start again: "
            "the run goes on at its last complete epoch"
        ) from None


def _finish(
    folder: FlowFolder, flow: Flow, validate: FloatArray, history: Sequence[FlowEpoch], card: BackgroundCard
) -> None:
    """Average the weights of the best epochs; keep the single best epoch if the average has a larger loss than it."""
    losses = [epoch.validation_loss for epoch in history]
    ranks = [epoch.rank(card.optimiser.select) for epoch in history]
    epochs, (best,) = _best(ranks, card.optimiser.average), _best(ranks, 1)
    flow.set_weights(final_weights(folder, epochs))
    loss = -float(np.mean(log_density(flow, validate)))
    folder.finish(Final(tuple(epochs), loss) if loss < losses[best] else Final((best,), losses[best]))


def _report(card: BackgroundCard, member: int, history: Sequence[FlowEpoch]) -> tuple[float, str]:
    members, epochs = card.optimiser.members, card.optimiser.epochs
    inside = 1.0 if _done(history, card.optimiser) else len(history) / epochs
    text = (
        f"member {member + 1} of {members}, epoch {len(history)} of at most {epochs}: "
        f"loss {history[-1].loss:.4f}, validation {history[-1].validation_loss:.4f}"
    )
    return (member + inside) / members, text
