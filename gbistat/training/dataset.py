"""Arrays that a member of the ensemble learns from: a bootstrap resample to train, what it left out to stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import EventsError
from gbistat.training.balance import balance_weights, move_resonances

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.training.card import RatioCard
    from gbistat.training.splits import Sample
    from gbistat.typing import FloatArray

__all__ = ["ClassifierSet", "TrainingPool", "balanced_set", "core_events", "member_sets", "training_pool"]


@dataclass(frozen=True, eq=False)
class ClassifierSet:
    """Events of two classes with weights.

    Parameters
    ----------
    x : array of shape (n, d)
        Raw inputs, in the order of the card.
    y : array of shape (n,)
        1 for signal, 0 for background.
    weights : array of shape (n,)
        Balanced in the mass, with the same sum for both classes and mean 1.
    """

    x: FloatArray
    y: FloatArray
    weights: FloatArray


@dataclass(frozen=True, eq=False)
class TrainingPool:
    """What may train: background in the training range, and core signal events of each resonance mass."""

    background: FloatArray
    signals: tuple[FloatArray, ...]


def core_events(x: FloatArray, resonance: float, card: RatioCard) -> FloatArray:
    """Rows whose mass is within ``balance.core`` of the resonance mass, relative."""
    near = np.abs(x[:, card.mass_column] / resonance - 1.0) < card.balance.core
    return x[near]


def training_pool(background: Sample, signals: Sequence[Sample], card: RatioCard) -> TrainingPool:
    """Training parts of the samples.

    Raises
    ------
    EventsError
        If a sample has no events left to train with.
    """
    x = background.part("train").matrix(card.names)
    low, high = card.train_range
    mass = x[:, card.mass_column]
    cores = [
        core_events(sample.part("train").matrix(card.names), spec.resonance, card)
        for sample, spec in zip(signals, card.signals, strict=True)
    ]
    pool = TrainingPool(x[(mass >= low) & (mass < high)], tuple(cores))
    files = [card.background.file, *(spec.file for spec in card.signals)]
    for file, rows in zip(files, (pool.background, *pool.signals), strict=True):
        if len(rows) == 0:
            raise EventsError(f"{file} has no event to train with in its range of the mass; check train_range and core")
    return pool


def balanced_set(
    background: FloatArray,
    signals: Sequence[FloatArray],
    card: RatioCard,
    interval: tuple[float, float],
    *,
    copies: int,
    rng: np.random.Generator,
) -> ClassifierSet:
    """Signal moved over the range of resonances, background as it is, balanced in the mass.

    Parameters
    ----------
    background : array of shape (n_b, d)
        Background events inside `interval`.
    signals : sequence of arrays of shape (n_j, d)
        Core events of each signal sample of the card.
    card : RatioCard
        Card of the training.
    interval : (float, float)
        Range of the mass; moved signal outside it is left out.
    copies : int
        How often each signal event is moved.
    rng : numpy.random.Generator
        Source of randomness.
    """
    column = card.mass_column
    repeated = [np.repeat(rows, copies, axis=0) for rows in signals]
    resonances = [spec.resonance for spec in card.signals]
    moved, shares = move_resonances(
        [rows[:, column] for rows in repeated], resonances, card.balance.resonances, rng=rng
    )
    signal, share = np.concatenate(repeated), np.concatenate(shares)
    signal[:, column] = np.concatenate(moved)
    inside = (signal[:, column] >= interval[0]) & (signal[:, column] < interval[1]) & (share > 0)
    signal, share = signal[inside], share[inside]
    ones = np.ones(len(background))
    of_signal, of_background = balance_weights(
        (signal[:, column], share),
        (background[:, column], ones),
        interval,
        neighbours=card.balance.neighbours,
    )
    n = len(signal) + len(background)
    return ClassifierSet(
        np.concatenate([signal, background]),
        np.concatenate([np.ones(len(signal)), np.zeros(len(background))]),
        np.concatenate([of_signal, of_background]) * (0.5 * n),
    )


def member_sets(pool: TrainingPool, card: RatioCard, member: int) -> tuple[ClassifierSet, ClassifierSet]:
    """Training and validation set of one member of the ensemble.

    The member trains on a bootstrap resample of the pool; the events that the resample left out, about 37 %,
    validate. Events are resampled before signal is moved, so that no event is on both sides.

    Returns
    -------
    (ClassifierSet, ClassifierSet)
        The training set shuffled; the same for the same card and member.
    """
    rng = np.random.default_rng([card.seed, 1, member])
    resampled = [_bootstrap(rows, rng) for rows in (pool.background, *pool.signals)]
    (background, background_left), *signals = resampled
    train = balanced_set(
        background, [rows for rows, _ in signals], card, card.train_range, copies=card.balance.copies, rng=rng
    )
    validate = balanced_set(
        background_left, [rows for _, rows in signals], card, card.train_range, copies=card.balance.copies, rng=rng
    )
    order = rng.permutation(len(train.y))
    return ClassifierSet(train.x[order], train.y[order], train.weights[order]), validate


def _bootstrap(rows: FloatArray, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    chosen = rng.integers(len(rows), size=len(rows))
    left = np.ones(len(rows), dtype=np.bool_)
    left[chosen] = False
    return rows[chosen], rows[left]
