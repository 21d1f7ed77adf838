"""Events that trained something cannot test it: sets of events told apart by the bytes of their rows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import EventsError, OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gbistat.typing import FloatArray, IntArray

__all__ = ["Folds", "assign_folds", "row_keys"]


def row_keys(*columns: FloatArray) -> IntArray:
    """Hash of every event, shape (n,), from its mass and features in single precision.

    Parameters
    ----------
    *columns : arrays of shape (n,) or (n, d)
        What identifies an event. Single precision, so that an event is the same one before and after a network's graph.

    Examples
    --------
    >>> keys = row_keys(np.array([1.0, 2.0, 1.0]))
    >>> bool(keys[0] == keys[2]), bool(keys[0] == keys[1])
    (True, False)
    """
    table = np.ascontiguousarray(np.column_stack(columns), dtype=np.float32) + np.float32(0.0)  # -0.0 becomes 0.0
    words = table.view(np.uint32).astype(np.uint64)
    key = np.full(len(table), 0x9E3779B97F4A7C15, dtype=np.uint64)
    for word in words.T:
        key = (key ^ word) * np.uint64(0xBF58476D1CE4E5B9)
        key ^= key >> np.uint64(29)
    return key.view(np.int64)


@dataclass(frozen=True, eq=False)
class Folds:
    """Sets of events with names: what trained the generator, the classifier, chose its epochs, and tests.

    Parameters
    ----------
    sets : mapping of str to int array
        Keys of the events of each set, from `row_keys`.
    """

    sets: Mapping[str, IntArray]

    def check(self, test: str = "test") -> None:
        """Refuse a test set that shares events with another set.

        Raises
        ------
        OptionError
            If there is no such set.
        EventsError
            If the test set shares an event with any other set.
        """
        if test not in self.sets:
            raise OptionError(f"no set of events {test!r}; there are {', '.join(self.sets)}")
        for name, keys in self.sets.items():
            if name == test:
                continue
            shared = int(np.isin(self.sets[test], keys).sum())
            if shared:
                raise EventsError(
                    f"{shared} of {self.sets[test].size} events of {test!r} are also in {name!r}; events that trained "
                    "cannot test: take others"
                )

    def hashes(self) -> dict[str, str]:
        """First digits of the sha256 of each set, whatever the order of its events."""
        return {name: hashlib.sha256(np.sort(keys).tobytes()).hexdigest()[:16] for name, keys in self.sets.items()}


def assign_folds(keys: IntArray, count: int, *, rng: np.random.Generator) -> IntArray:
    """Random fold of each event, shape (n,); equal events come into the same fold.

    Parameters
    ----------
    keys : int array of shape (n,)
        From `row_keys`, or the number of a pair whose members stay together.
    count : int
        Number of folds.
    rng : numpy.random.Generator
        Decides.

    Raises
    ------
    OptionError
        If there are fewer than two folds, or fewer different events than folds.
    """
    unique, inverse = np.unique(keys, return_inverse=True)
    if count < 2 or unique.size < count:
        raise OptionError(f"{count} folds of {unique.size} different events: give at least 2 folds and more events")
    return (rng.permutation(unique.size) % count)[inverse]
