"""Events of a parametrised classifier: signal with the masses it was simulated with, background with masses drawn anew."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from gbistat.data.read import read_events
from gbistat.errors import EventsError
from gbistat.training.dataset import ClassifierSet
from gbistat.training.splits import Sample, check_inputs, file_sha256, split_rng

if TYPE_CHECKING:
    from gbistat.data.events import Events
    from gbistat.training.card import Fractions
    from gbistat.training.paws_card import PawsCard
    from gbistat.typing import FloatArray, IntArray

__all__ = [
    "NearMasses",
    "PawsPool",
    "epoch_set",
    "member_pools",
    "paws_pool",
    "read_signal",
    "rescaled",
    "split_points",
    "with_masses",
]

VALIDATION_COPIES = 4
CELLS = 14
"""Cells of the jet masses along each axis, with equal numbers of signal events."""
BLOCK = 8192


@dataclass(frozen=True, eq=False)
class PawsPool:
    """Events of both classes.

    Parameters
    ----------
    background : array of shape (n_b, d)
        Features.
    signal : array of shape (n_s, d + 2)
        Features, and the masses of each event.
    """

    background: FloatArray
    signal: FloatArray


def split_points(masses: FloatArray, fractions: Fractions, *, seed: int, file: str) -> dict[str, IntArray]:
    """Row numbers of each part of a signal file; ``data`` consists of whole mass points.

    Parameters
    ----------
    masses : array of shape (n, 2)
        Masses of each event.
    fractions : Fractions
        Shares: ``data`` of the points, ``train`` and ``reference`` of the events.
    seed : int
        Seed of all splits of a card.
    file : str
        Name of the file, which with the seed decides the split.
    """
    rng = split_rng(seed, file)
    points, point_of = np.unique(masses, axis=0, return_inverse=True)
    point_of = point_of.ravel()
    kept = rng.permutation(len(points))[: round(len(points) * fractions.data)]
    is_data = np.isin(point_of, kept)
    rest = rng.permutation(np.flatnonzero(~is_data))
    n_train = round(rest.size * fractions.train / (fractions.train + fractions.reference))
    parts = {"train": rest[:n_train], "reference": rest[n_train:], "data": np.flatnonzero(is_data)}
    return {name: np.sort(rows).astype(np.int64) for name, rows in parts.items()}


def read_signal(folder: str | Path, card: PawsCard) -> Sample:
    """Read the signal of a card; its events have the masses among their features, named as the parameters.

    Raises
    ------
    EventsError
        If the file is missing or cannot be read, has no masses, has masses outside the card's ranges, or has a mass
        point without an event to train with.
    """
    spec = card.signal
    path = Path(folder) / spec.file
    if not path.is_file():
        raise EventsError(f"{spec.file} is not in {folder}; give the folder that holds the card's files of events")
    try:
        events = read_events(
            path,
            features=(*card.features, *card.masses),
            mass=card.mass,
            unit=card.unit,
            mapping={item.name: item.column for item in card.parameters},
        )
    except EventsError as problem:
        columns = ", ".join(repr(item.column) for item in card.parameters)
        raise EventsError(
            f"{problem}\na parametrised classifier needs the masses of every signal event ({columns})"
        ) from None
    check_inputs(events, card.inputs, path)
    for item in card.parameters:
        values = events.feature(item.name)
        outside = int(np.sum(~((values >= item.low) & (values <= item.high))))
        if outside:
            raise EventsError(
                f"{path}: {item.column!r} is outside {item.low:g}-{item.high:g} {item.unit} in {outside} of {len(events)} "
                f"events (it spans {values.min():g} to {values.max():g}); change the range of {item.name!r} in the card"
            )
    masses = events.matrix(card.masses)
    parts = split_points(masses, spec.split, seed=card.seed, file=spec.file)
    sample = Sample(spec.file, file_sha256(path), events, MappingProxyType(parts), card.seed)
    _check_points(sample, card)
    return sample


def _check_points(sample: Sample, card: PawsCard) -> None:
    everything = sample.events.select(np.sort(np.concatenate([sample.parts["train"], sample.parts["reference"]])))
    wanted = np.unique(everything.matrix(card.masses), axis=0)
    train = _within(sample.part("train"), card.signal_range)
    found = {tuple(point) for point in np.unique(train.matrix(card.masses), axis=0)}
    empty = [point for point in wanted if tuple(point) not in found]
    if empty:
        a, b = empty[0]
        raise EventsError(
            f"{sample.file}: {len(empty)} of {len(wanted)} mass points, ({a:g}, {b:g}) the first, have no event to train with "
            f"in signal_range {list(card.signal_range)}; simulate more events there, or leave these points out of the file"
        )


def _within(events: Events, interval: tuple[float, float]) -> Events:
    return events.select((events.mass >= interval[0]) & (events.mass < interval[1]))


def paws_pool(background: Sample, signal: Sample, card: PawsCard, part: str = "train") -> PawsPool:
    """Events of a part: background in the training range, signal in its own range.

    Raises
    ------
    EventsError
        If a class has no event.
    """
    b = _within(background.part(part), card.train_range).matrix(card.features)
    s = _within(signal.part(part), card.signal_range).matrix((*card.features, *card.masses))
    for file, rows, name, interval in (
        (background.file, b, "train_range", card.train_range),
        (signal.file, s, "signal_range", card.signal_range),
    ):
        if len(rows) == 0:
            raise EventsError(
                f"{file} has no event of part {part!r} with {card.mass} in {interval[0]:g}-{interval[1]:g} {card.unit}; "
                f"check {name} and the file"
            )
    return PawsPool(b, s)


def member_pools(pool: PawsPool, card: PawsCard, member: int) -> tuple[PawsPool, PawsPool]:
    """Bootstrap resample that a member trains on, and the events that it left out, about 37 %."""
    rng = np.random.default_rng([card.seed, 31, member])
    pairs = []
    for rows in (pool.background, pool.signal):
        chosen = rng.integers(len(rows), size=len(rows))
        left = np.ones(len(rows), dtype=np.bool_)
        left[chosen] = False
        pairs.append((rows[chosen], rows[left]))
    (background, background_left), (signal, signal_left) = pairs
    return PawsPool(background, signal), PawsPool(background_left, signal_left)


@dataclass(frozen=True, eq=False)
class NearMasses:
    """Masses of signal events in cells of their jet masses: p(theta | cell) at the simulated mass points.

    Parameters
    ----------
    points : array of shape (p, 2)
        Masses.
    prior : array of shape (p,)
        Share of the signal events at each.
    edges : two arrays
        Inner edges of the cells in the two features.
    columns : (int, int)
        Where these features are.
    cumulative : array of shape (cells, p)
        Cumulative p(theta | cell); the prior in a cell without signal.
    """

    points: FloatArray
    prior: FloatArray
    edges: tuple[FloatArray, FloatArray]
    columns: tuple[int, int]
    cumulative: FloatArray

    @classmethod
    def of(cls, signal: FloatArray, card: PawsCard) -> NearMasses:
        """Measure them; cells have equal numbers of signal events along each axis."""
        d = len(card.features)
        first, second = card.compare or card.features[:2]
        columns = (card.features.index(first), card.features.index(second))
        points, point_of = np.unique(signal[:, d:], axis=0, return_inverse=True)
        prior = np.bincount(point_of.ravel(), minlength=len(points)) / len(signal)
        inner = np.linspace(0.0, 1.0, CELLS + 1)[1:-1]
        edges = (np.quantile(signal[:, columns[0]], inner), np.quantile(signal[:, columns[1]], inner))
        table = np.zeros((CELLS * CELLS, len(points)))
        np.add.at(table, (_cells(signal, edges, columns), point_of.ravel()), 1.0)
        counts = table.sum(axis=1, keepdims=True)
        table = np.where(counts > 0, table / np.maximum(counts, 1.0), prior)
        return cls(points, prior, edges, columns, np.cumsum(table, axis=1))

    def draw(self, background: FloatArray, share: float, *, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """Masses for background events: a share of them from p(theta | cell), the others from p(theta).

        Returns
        -------
        masses, weights : arrays of shape (n, 2) and (n,)
            The weights p(theta) / ((1 - share) p(theta) + share p(theta | cell)) make both together a sample of p(theta).
        """
        n, cells = len(background), _cells(background, self.edges, self.columns)
        chosen = np.searchsorted(np.cumsum(self.prior), rng.random(n)).clip(max=self.prior.size - 1)
        near = np.flatnonzero(rng.random(n) < share)
        level = rng.random(near.size)
        for begin in range(0, near.size, BLOCK):
            rows = slice(begin, begin + BLOCK)
            found = (self.cumulative[cells[near[rows]]] < level[rows, None]).sum(axis=1)
            chosen[near[rows]] = found.clip(max=self.prior.size - 1)
        before = np.where(chosen > 0, self.cumulative[cells, chosen - 1], 0.0)
        conditional = self.cumulative[cells, chosen] - before
        prior = self.prior[chosen]
        return self.points[chosen], prior / ((1.0 - share) * prior + share * conditional)


def _cells(rows: FloatArray, edges: tuple[FloatArray, FloatArray], columns: tuple[int, int]) -> IntArray:
    first, second = (np.searchsorted(edge, rows[:, column]) for edge, column in zip(edges, columns, strict=True))
    cells: IntArray = first * CELLS + second
    return cells


def rescaled(rows: FloatArray, card: PawsCard, columns: tuple[int, ...], *, rng: np.random.Generator) -> FloatArray:
    """Rows with some columns multiplied by one factor a row, such that the masses, the last two, stay in their ranges.

    A jet's mass is proportional to that of the particle behind it, and its ratios of N-subjettiness hardly change by a few per cent
    of mass: so an event at one simulated mass point makes one at masses near it.
    """
    masses = rows[:, -2:]
    factor = np.exp(rng.uniform(-card.rescale, card.rescale, size=len(rows)))
    for item, column in zip(card.parameters, masses.T, strict=True):
        factor = np.clip(factor, item.low / column, item.high / column)
    result = rows.copy()
    result[:, [*columns, -2, -1]] *= factor[:, None]
    return result


def with_masses(background: FloatArray, signal: FloatArray, copies: int, *, rng: np.random.Generator) -> FloatArray:
    """Background events with masses drawn from those of signal events, so that both classes have one distribution of them.

    Parameters
    ----------
    background : array of shape (n_b, d)
        Features.
    signal : array of shape (n_s, d + 2)
        Signal events with masses.
    copies : int
        Rows per background event.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    array of shape (copies * n_b, d + 2)
        The first n_b rows are all background events once.
    """
    n = copies * len(background)
    masses = signal[rng.integers(len(signal), size=n), background.shape[1] :]
    return np.concatenate([np.tile(background, (copies, 1)), masses], axis=1)


def epoch_set(pool: PawsPool, card: PawsCard, member: int, epoch: int | None = None) -> ClassifierSet:
    """Both classes with the same sum of weights; the masses of background are drawn anew for every epoch.

    Without `epoch` it is a validation set, always the same, with the events as they are. In training rows beyond the last full
    batch are left out: a batch of another size would be compiled anew.
    """
    validates = epoch is None
    rng = np.random.default_rng([card.seed, 32, member, 0 if epoch is None else epoch + 1])
    copies = VALIDATION_COPIES if validates else card.copies
    signal, weights = pool.signal, np.ones(copies * len(pool.background))
    if validates or not card.near:
        background = with_masses(pool.background, signal, copies, rng=rng)
    else:
        rows = np.tile(pool.background, (copies, 1))
        masses, weights = NearMasses.of(signal, card).draw(rows, card.near, rng=rng)
        background = np.concatenate([rows, masses], axis=1)
    if card.rescale and not validates:
        columns = tuple(card.features.index(name) for name in card.compare or ())
        # The masses of background move in the same way: both classes keep one distribution of them.
        signal, background = rescaled(signal, card, columns, rng=rng), rescaled(background, card, (), rng=rng)
    x = np.concatenate([signal, background])
    y = np.concatenate([np.ones(len(signal)), np.zeros(len(background))])
    weights = np.concatenate([np.full(len(signal), 0.5 / len(signal)), 0.5 * weights / weights.sum()]) * y.size
    if not validates:
        size = card.optimiser.batch_size
        keep = rng.permutation(y.size)[: max(y.size // size, 1) * size]
        x, y, weights = x[keep], y[keep], weights[keep]
    return ClassifierSet(x, y, weights)
