"""Splits: which event of a file trains, which is a reference, which stands for data; decided once, by a recorded seed."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from gbistat.data.read import read_events
from gbistat.errors import EventsError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gbistat.data.events import Events
    from gbistat.training.background_card import BackgroundCard, FeatureInput
    from gbistat.training.card import BackgroundSample, Fractions, InputSpec, RatioCard, SignalSample
    from gbistat.training.paws_card import PawsCard
    from gbistat.training.sigma_card import SigmaCard
    from gbistat.typing import IntArray, Json

__all__ = ["PARTS", "Sample", "check_inputs", "file_sha256", "read_sample", "split_indices", "split_rng"]

PARTS = ("train", "reference", "data")


@dataclass(frozen=True, eq=False)
class Sample:
    """Events of one file and their split.

    Parameters
    ----------
    file : str
        Name of the file.
    sha256 : str
        Hash of the file.
    events : Events
        All n events, in the order of the file.
    parts : mapping of str to array of int
        Part (``train``, ``reference``, ``data``) to sorted row numbers; disjoint, and together all rows.
    seed : int
        Seed of the split.
    """

    file: str
    sha256: str
    events: Events
    parts: Mapping[str, IntArray]
    seed: int

    def part(self, name: str) -> Events:
        """Events of one part."""
        return self.events.select(self.parts[name])

    def record(self) -> Json:
        """What fixes the split, as JSON: hashes of the file and of the row numbers, counts and seed."""
        return {
            "file": self.file,
            "sha256": self.sha256,
            "n_events": len(self.events),
            "seed": self.seed,
            "counts": {name: int(rows.size) for name, rows in self.parts.items()},
            "rows_sha256": {name: _hash_rows(rows) for name, rows in self.parts.items()},
        }


def split_indices(n_events: int, fractions: Fractions, *, seed: int, file: str) -> dict[str, IntArray]:
    """Row numbers of each part of a file.

    Parameters
    ----------
    n_events : int
        Rows of the file.
    fractions : Fractions
        Shares of the parts; the sizes are rounded so that they add up to `n_events`.
    seed : int
        Seed of all splits of a card.
    file : str
        Name of the file: with the seed it decides the split, so that another file more or less changes nothing.

    Returns
    -------
    dict of str to array of int
        Sorted row numbers of ``train``, ``reference`` and ``data``.

    Examples
    --------
    >>> from gbistat.training.card import Fractions
    >>> parts = split_indices(10, Fractions(train=0.4, reference=0.2, data=0.4), seed=1, file="events.h5")
    >>> [rows.size for rows in parts.values()]
    [4, 2, 4]
    """
    rng = split_rng(seed, file)
    order = rng.permutation(n_events)
    cumulative = np.cumsum([getattr(fractions, part) for part in PARTS])
    edges = [0, *(round(n_events * float(edge)) for edge in cumulative[:-1]), n_events]
    return {
        part: np.sort(order[low:high]).astype(np.int64)
        for part, (low, high) in zip(PARTS, pairwise(edges), strict=True)
    }


def check_inputs(events: Events, inputs: Sequence[InputSpec | FeatureInput], path: Path) -> None:
    """Refuse events whose features have other units than a card says, or lie below the valid range of an input.

    Raises
    ------
    EventsError
        Naming the feature.
    """
    for item in inputs:
        found = events.units[item.name]
        if found != item.unit:
            raise EventsError(
                f"{path}: {item.name!r} is in {found!r}, and the card says {item.unit!r}; correct the card"
            )
        below = 0 if item.low is None else int(np.sum(events.feature(item.name) < item.low))
        if below:
            raise EventsError(f"{path}: {item.name!r} is below {item.low:g} in {below} events; lower inputs low")


def split_rng(seed: int, file: str) -> np.random.Generator:
    """Source of randomness of the split of a file: the same in every card with that seed."""
    return np.random.default_rng([seed, zlib.crc32(file.encode())])


def read_sample(
    folder: str | Path, sample: BackgroundSample | SignalSample, card: RatioCard | BackgroundCard | PawsCard | SigmaCard
) -> Sample:
    """Read a file of the card and split it.

    Raises
    ------
    EventsError
        If the file is not in the folder or cannot be read, or an event is below the valid range of an input.
    """
    path = Path(folder) / sample.file
    if not path.is_file():
        raise EventsError(f"{sample.file} is not in {folder}; give the folder that holds the card's files of events")
    events = read_events(path, features=card.features, mass=card.mass, unit=card.unit)
    check_inputs(events, card.inputs, path)
    parts = split_indices(len(events), sample.split, seed=card.seed, file=sample.file)
    return Sample(sample.file, file_sha256(path), events, MappingProxyType(parts), card.seed)


def _hash_rows(rows: IntArray) -> str:
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
