"""From names to numbers: which file, which columns, which derived features answer a request."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from gbistat.data.events import ENERGY_UNITS
from gbistat.data.features import FEATURES, Feature, column_unit, derivable
from gbistat.data.hdf5 import open_hdf5
from gbistat.data.npz import open_npz
from gbistat.data.pairs import leading_pairs
from gbistat.data.parquet import open_parquet
from gbistat.data.root import RootTable, open_root
from gbistat.errors import EventsError, OptionError, UnitsError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from gbistat.data.table import Table
    from gbistat.typing import FloatArray

__all__ = ["FORMATS", "JETS", "Plan", "Quantity", "Request", "check_mapping", "open_table", "resolve", "resolve_all"]

FORMATS: Final[Mapping[str, Callable[[Path, str | None], AbstractContextManager[Table]]]] = MappingProxyType(
    {".h5": open_hdf5, ".hdf5": open_hdf5, ".root": open_root, ".parquet": open_parquet, ".npz": open_npz}
)
"""Reader of each suffix."""

JETS: Final = "jets"
"""Key of a mapping that names the jagged collection whose two leading objects are the jets."""


@dataclass(frozen=True)
class Request:
    """What is asked of a file: see `gbistat.data.read.read_events` for the meaning of each field."""

    path: Path
    mass: str = "m_jj"
    features: tuple[str, ...] = ()
    weights: str | None = None
    mapping: Mapping[str, str] = field(default_factory=dict)
    unit: str = "GeV"
    units: Mapping[str, str] = field(default_factory=dict)
    tree: str | None = None
    chunk_size: int = 200_000
    max_events: int | None = None

    def __post_init__(self) -> None:
        if self.unit not in ENERGY_UNITS:
            raise UnitsError(f"unit {self.unit!r} is not an energy unit; {nearest(self.unit, ENERGY_UNITS)}")
        for name, unit in self.units.items():
            if unit != "1" and unit not in ENERGY_UNITS:
                raise UnitsError(f"unit {unit!r} of {name!r} is not known; {nearest(unit, [*ENERGY_UNITS, '1'])}")
        for option, value in (("chunk_size", self.chunk_size), ("max_events", self.max_events)):
            if value is not None and value < 1:
                raise OptionError(f"{option} {value} is not a number of events; give 1 or more")
        names = (self.mass, *self.features)
        for name in names:
            if names.count(name) > 1:
                raise EventsError(f"{name!r} is asked for twice among the mass and the features; ask once")


@dataclass(frozen=True)
class Quantity:
    """A name that was asked for, and how the columns of the file give it.

    Parameters
    ----------
    name : str
        As asked for.
    unit : str
        Its unit in the file.
    columns : mapping
        What the computation calls a column, to the column of the file.
    feature : Feature or None
        The computation; ``None`` means that the quantity is a column.
    unit_is_declared : bool
        Whether the unit is known, not taken to be ``"1"`` for want of anything better.
    """

    name: str
    unit: str
    columns: Mapping[str, str]
    feature: Feature | None = None
    unit_is_declared: bool = True

    def values(self, chunk: Mapping[str, FloatArray]) -> FloatArray:
        """Values of the events of a chunk, shape (n,)."""
        if self.feature is None:
            return chunk[self.columns[self.name]]
        return self.feature.values({canonical: chunk[column] for canonical, column in self.columns.items()})


@dataclass(frozen=True)
class Plan:
    """The quantities of a request, found in an open table."""

    mass: Quantity
    features: tuple[Quantity, ...]
    weights: Quantity | None

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        """The mass, the features, the weights."""
        return (self.mass, *self.features, *(() if self.weights is None else (self.weights,)))

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the file to read, each once."""
        return tuple(dict.fromkeys(column for quantity in self.quantities for column in quantity.columns.values()))

    @property
    def units(self) -> dict[str, str]:
        """Unit of the mass and of each feature."""
        return {quantity.name: quantity.unit for quantity in (self.mass, *self.features)}

    @property
    def notes(self) -> tuple[str, ...]:
        """Features whose unit nobody declared."""
        unknown = [quantity.name for quantity in self.features if not quantity.unit_is_declared]
        if not unknown:
            return ()
        declaration = f"units={{{unknown[0]!r}: {self.mass.unit!r}}}"
        return (f"no unit declared for {', '.join(unknown)}: taken as dimensionless (declare it with {declaration})",)


@contextmanager
def open_table(request: Request) -> Iterator[Table]:
    """Open a file of events by its suffix, seen through the collection that the mapping names as jets.

    Raises
    ------
    EventsError
        If the file does not exist, is a folder, is empty, has an unknown suffix or cannot be read.
    """
    path = request.path
    _check_path(path)
    collection = request.mapping.get(JETS)
    with FORMATS[path.suffix.lower()](path, request.tree) as table:
        if table.n_rows == 0:
            raise EventsError(f"{path} holds no events: {table.format} has zero rows; check how it was written")
        if collection is None:
            yield table
        elif isinstance(table, RootTable):
            yield leading_pairs(table, collection)
        else:
            raise EventsError(
                f"{path}: mapping {JETS!r} to {collection!r} needs a ROOT file with jagged collections, and this is "
                f"{table.format}; map single columns"
            )


def _check_path(path: Path) -> None:
    suffixes = " ".join(FORMATS)
    if path.is_dir():
        inside = sorted(entry.name for entry in path.iterdir() if entry.suffix.lower() in FORMATS)
        held = f"it holds {', '.join(inside[:5])}" if inside else f"it holds none with a suffix {suffixes}"
        raise EventsError(f"{path} is a folder; give a file of events ({held})")
    if not path.exists():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        offer = nearest(path.name, siblings) if siblings else f"there is no folder {path.parent} with files in it"
        raise EventsError(f"{path} does not exist; {offer}")
    if path.suffix.lower() not in FORMATS:
        raise EventsError(f"{path} has the suffix {path.suffix!r}; events are read from {suffixes}")
    if path.stat().st_size == 0:
        raise EventsError(f"{path} is empty (0 bytes); get the file again")


def resolve_all(table: Table, request: Request) -> Plan:
    """Find everything that a request asks for.

    Raises
    ------
    EventsError
        If a name is neither mapped, nor a column, nor derivable; the message offers the nearest names.
    UnitsError
        If a declared unit contradicts what the unit of the file makes of a feature.
    """
    check_mapping(table, request.mapping)
    return Plan(
        mass=_as_energy(resolve(table, request.mass, request), request.unit),
        features=tuple(resolve(table, name, request) for name in request.features),
        weights=None if request.weights is None else resolve(table, request.weights, request),
    )


def check_mapping(table: Table, mapping: Mapping[str, str]) -> None:
    """Refuse a mapping to something that is not there, whether it is needed or not.

    Raises
    ------
    EventsError
        If a target is neither a column nor a derivable feature.
    """
    there = {*table.columns, *derivable((*table.columns, *mapping))}
    for name, target in mapping.items():
        if name != JETS and target not in there:
            raise _absent(table, target, name)


def _as_energy(quantity: Quantity, unit: str) -> Quantity:
    if quantity.unit_is_declared and quantity.unit != unit:
        raise UnitsError(
            f"{quantity.name!r} is in {quantity.unit!r} and the file in {unit!r}: a mass has the energy unit of the file"
        )
    return Quantity(quantity.name, unit, quantity.columns, quantity.feature)


def resolve(table: Table, name: str, request: Request) -> Quantity:
    """Find one name: mapped, a column of the file, or derived from the jets, in this order.

    Raises
    ------
    EventsError
        If it is none of them.
    UnitsError
        If a declared unit contradicts the unit of the file.
    """
    target = request.mapping.get(name, name)
    natural = column_unit(name, request.unit) or column_unit(target, request.unit)
    declared = request.units.get(name)
    if target in table.columns:
        unit = declared or natural
        return Quantity(name, unit or "1", {name: target}, None, unit is not None)
    feature = FEATURES.get(target)
    if feature is None:
        raise _absent(table, target, name)
    if declared not in (None, feature.unit(request.unit)):
        raise UnitsError(
            f"{name!r} is computed from the jets, in {feature.unit(request.unit)!r} where the file is in "
            f"{request.unit!r}; it cannot be in {declared!r}"
        )
    columns = {canonical: request.mapping.get(canonical, canonical) for canonical in feature.columns}
    missing = [column for column in columns.values() if column not in table.columns]
    if missing:
        # With some of the jets' columns there, another of them is misspelt; with none, it is the feature itself.
        asked = missing[0] if len(missing) < len(columns) else name
        way_out = table.hint or (
            f"{_nearest(table, asked)}; a column of another name is given as --map {name}=NAME (mapping={{{name!r}: NAME}} in Python)"
        )
        raise EventsError(
            f"{table.path} has no column {name!r}, and to compute it these are absent: {', '.join(missing)}; {way_out}"
        )
    return Quantity(name, feature.unit(request.unit), columns, feature)


def _absent(table: Table, target: str, name: str) -> EventsError:
    what = f"{target!r}" if target == name else f"{target!r} (to which {name!r} is mapped)"
    if target in table.unusable:
        return EventsError(f"{table.path}: column {what} {table.unusable[target]}")
    hint = f"; {table.hint}" if table.hint else ""
    return EventsError(f"{table.path} has no column or feature {what}; {_nearest(table, target)}{hint}")


def _nearest(table: Table, name: str) -> str:
    candidates = list(dict.fromkeys((*table.columns, *derivable(table.columns))))
    same = [candidate for candidate in candidates if candidate.lower() == name.lower()]
    return f"nearest names: {', '.join(same)}" if same else nearest(name, candidates)
