"""The two leading objects of a jagged collection, presented as flat dijet columns (awkward and vector)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gbistat import extras
from gbistat.data.root import four_momentum
from gbistat.data.table import Chunk
from gbistat.errors import EventsError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from gbistat.data.root import RootTable
    from gbistat.typing import FloatArray

__all__ = ["LeadingPairs", "leading_pairs"]

_MOMENTUM: Final = ("px", "py", "pz", "m")
_SPACELIKE: Final = 1e-6
"""How far m^2 may be below zero, in units of E^2, before it is more than the rounding of 32-bit E and p."""


@dataclass(frozen=True)
class LeadingPairs:
    """A ROOT table seen through one of its collections: ``pxj1`` is the px of the object with the largest pT.

    Every member of the collection becomes two columns (``tau1j1``, ``tau1j2``); flat columns stay. Rows with fewer than
    two objects are left out and counted.

    Parameters
    ----------
    base : RootTable
        The open tree.
    collection : str
        Name of the collection.
    momentum : mapping
        Coordinates in the words of `vector` (``pt``, ``eta``, ``phi``, ``mass``, ``px``, ..., ``E``) to columns.
    members : mapping
        Other members of the collection to columns.
    """

    base: RootTable
    collection: str
    momentum: Mapping[str, str]
    members: Mapping[str, str]

    @property
    def path(self) -> Path:
        """The file."""
        return self.base.path

    @property
    def format(self) -> str:
        """Format, tree and collection."""
        return f"{self.base.format}, two leading {self.collection}"

    @property
    def n_rows(self) -> int:
        """Rows in the file, those with fewer than two objects among them."""
        return self.base.n_rows

    @property
    def columns(self) -> tuple[str, ...]:
        """Momenta and members of the pair, then the flat columns of the tree."""
        pair = [f"{stem}j{jet}" for jet in (1, 2) for stem in (*_MOMENTUM, *self.members)]
        return tuple(dict.fromkeys((*pair, *self.base.columns)))

    @property
    def unusable(self) -> Mapping[str, str]:
        """As in the tree."""
        return self.base.unusable

    @property
    def hint(self) -> str:
        """Where the columns come from."""
        return f"columns ending in j1 and j2 are the members of {self.collection}"

    def chunks(self, names: Sequence[str], size: int) -> Iterator[Chunk]:
        """Rows with two objects or more, in order."""
        awkward = extras.awkward()
        pair = {f"{stem}j{jet}": (stem, jet - 1) for jet in (1, 2) for stem in (*_MOMENTUM, *self.members)}
        stems = {pair[name][0] for name in names if name in pair}
        flat = [name for name in names if name not in pair]
        members = {stem: self.members[stem] for stem in stems if stem not in _MOMENTUM}
        start = 0
        for arrays in self.base.arrays({*self.momentum.values(), *members.values(), *flat}, size):
            momenta = self._momenta(arrays)
            n_read = len(momenta)
            keep = awkward.to_numpy(awkward.num(momenta, axis=1) >= 2)
            order = self._leading(momenta)[keep]
            table, n_spacelike = self._components(momenta[keep][order])
            for stem, column in members.items():
                table[stem] = _square(arrays[column][keep][order])
            columns = {name: np.asarray(arrays[name]).astype(np.float64)[keep] for name in flat}
            columns.update({name: table[stem][:, jet] for name, (stem, jet) in pair.items() if name in names})
            counts = {
                f"have fewer than two {self.collection} and are left out": n_read - int(keep.sum()),
                f"have a leading {self.collection} with E below |p|, whose mass is taken as 0": n_spacelike,
            }
            yield Chunk(n_read, start + np.flatnonzero(keep), columns, {k: n for k, n in counts.items() if n})
            start += n_read

    def _momenta(self, arrays: Mapping[str, Any]) -> Any:
        awkward = extras.awkward()
        return extras.vector().zip(
            {name: awkward.values_astype(arrays[column], np.float64) for name, column in self.momentum.items()}
        )

    @staticmethod
    def _leading(momenta: Any) -> Any:
        """Indices of the two objects with the largest pT; a NaN goes first, so that it is seen and not passed over."""
        awkward = extras.awkward()
        with np.errstate(invalid="ignore", over="ignore"):
            pt = momenta.pt
            order = awkward.argsort(awkward.where(np.isfinite(pt), pt, np.inf), axis=1, ascending=False, stable=True)
        return order[:, :2]

    @staticmethod
    def _components(pairs: Any) -> tuple[dict[str, FloatArray], int]:
        """Cartesian momenta and masses, each of shape (n, 2), and the number of events with a spacelike object."""
        with np.errstate(invalid="ignore", over="ignore"):
            px, py, pz = (_square(component) for component in (pairs.px, pairs.py, pairs.pz))
            mass2, energy = _square(pairs.mass2), _square(pairs.energy)
            spacelike = np.any(mass2 < -_SPACELIKE * energy**2, axis=1)
            mass = np.sqrt(np.where(mass2 < 0, 0.0, mass2))
        return {"px": px, "py": py, "pz": pz, "m": mass}, int(spacelike.sum())


def _square(pairs: Any) -> FloatArray:
    values: FloatArray = np.asarray(extras.awkward().flatten(pairs, axis=1)).astype(np.float64).reshape(-1, 2)
    return values


def leading_pairs(table: RootTable, collection: str) -> LeadingPairs:
    """View of a table through its collection `collection`.

    Raises
    ------
    EventsError
        If there is no such collection, or it has no complete four-momentum.
    """
    if collection not in table.collections:
        raise EventsError(
            f"{table.path} has no collection {collection!r} with momenta; {nearest(collection, sorted(table.collections))}"
        )
    members = table.collections[collection]
    momentum = four_momentum(members)
    if not momentum:
        raise EventsError(
            f"{table.path}: collection {collection!r} has neither a mass nor an energy (only {', '.join(members)}); "
            "its objects have no four-momentum"
        )
    used = set(momentum.values())
    others = {member: column for member, column in members.items() if column not in used and member not in _MOMENTUM}
    return LeadingPairs(table, collection, momentum, others)
