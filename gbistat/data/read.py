"""Events from files: HDF5 (LHC Olympics layout), ROOT, Parquet and NPZ, in constant memory.

==================  ==================================================================
`read_events`       everything selected, as one `Events`
`iter_events`       the same, chunk by chunk, for a file larger than memory
`summarise_events`  what a file holds: columns, ranges, values that cannot be used
==================  ==================================================================

A name, be it the mass, a feature or the weights, is looked up in `mapping`, then among the columns of the file, then
among the features that the jets give (`gbistat.data.features`); a name found nowhere is an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gbistat.data.events import Events
from gbistat.data.resolve import Request, open_table, resolve_all
from gbistat.data.stream import Part, Tally, selection, stream
from gbistat.data.summary import EventsSummary, summarise_events

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from os import PathLike

    from gbistat.data.resolve import Plan
    from gbistat.data.stream import Selection
    from gbistat.data.window import MassWindow

__all__ = ["EventsSummary", "iter_events", "read_events", "summarise_events"]


def read_events(
    path: str | PathLike[str],
    *,
    features: Sequence[str] = (),
    mass: str = "m_jj",
    mapping: Mapping[str, str] | None = None,
    unit: str = "GeV",
    window: MassWindow | Sequence[tuple[float, float]] | None = None,
    weights: str | None = None,
    tree: str | None = None,
    units: Mapping[str, str] | None = None,
    chunk_size: int = 200_000,
    max_events: int | None = None,
) -> Events:
    """Read the events of a file, streaming, so that only the selected ones take memory.

    Parameters
    ----------
    path : path-like
        A file ending in ``.h5``, ``.hdf5``, ``.root``, ``.parquet`` or ``.npz``.
    features : sequence of str, optional
        Features, in the order of the columns of `Events.features`.
    mass : str, default "m_jj"
        The resonance mass.
    mapping : mapping, optional
        Name asked for (or canonical column) to name in the file. ``{"jets": "FatJet"}`` presents the two objects of the
        largest pT of a jagged ROOT collection as the jets; rows with fewer than two are counted in `Events.notes`.
    unit : str, default "GeV"
        Energy unit of the file, which the events keep (`Events.to_unit` converts them). It is declared, not guessed.
    window : MassWindow or sequence of (low, high), optional
        Only events inside: a window in its own unit, or a union of half-open intervals in the unit of the file
        (sidebands).
    weights : str, optional
        Column of event weights.
    tree : str, optional
        TTree or RNTuple of a ROOT file, or key of an HDF5 file, where there are several.
    units : mapping, optional
        Unit of columns whose names gbistat does not know: an energy unit, or ``"1"``. Where nothing is declared a
        column is taken as dimensionless and `Events.notes` says so.
    chunk_size : int, default 200000
        Rows in memory at a time.
    max_events : int, optional
        Stop after this many selected events: the first in the order of the file, which need not be a fair sample.

    Returns
    -------
    Events
        Selected events, in the order of the file.

    Raises
    ------
    EventsError
        If the file cannot be read, a name is found nowhere, the mass of any row or a feature of a selected row is NaN or
        infinite (counted, with rows of the file), or no event is selected.
    UnitsError
        If a unit is unknown, or a declared one contradicts another.
    WindowError
        If `window` is not a window.
    OptionError
        If `chunk_size` or `max_events` is below 1.

    Notes
    -----
    Momenta stored in 32 bits become 64-bit before any arithmetic. Rows are counted from 0.
    """
    request = Request(
        Path(path),
        mass=mass,
        features=tuple(features),
        weights=weights,
        mapping=mapping or {},
        unit=unit,
        units=units or {},
        tree=tree,
        chunk_size=chunk_size,
        max_events=max_events,
    )
    chosen = selection(window, unit)
    total = Tally()
    parts: list[Part] = []
    with open_table(request) as table:
        plan = resolve_all(table, request)
        for part, tally in _limited(stream(table, plan, chosen, chunk_size), max_events):
            total.merge(tally)
            if part.mass.size and not total.bad:
                parts.append(part)
    total.raise_bad(request.path)
    total.raise_nothing(request.path, unit, chosen)
    return _events(plan, _joined(parts), (*plan.notes, *total.notes))


def iter_events(
    path: str | PathLike[str],
    *,
    features: Sequence[str] = (),
    mass: str = "m_jj",
    mapping: Mapping[str, str] | None = None,
    unit: str = "GeV",
    window: MassWindow | Sequence[tuple[float, float]] | None = None,
    weights: str | None = None,
    tree: str | None = None,
    units: Mapping[str, str] | None = None,
    chunk_size: int = 200_000,
    max_events: int | None = None,
) -> Iterator[Events]:
    """Events of a file, one set a chunk of the file, in constant memory.

    The parameters are those of `read_events`. A chunk without selected events gives an empty set, so that its notes are
    not lost; notes count within their chunk.

    Raises
    ------
    EventsError, UnitsError, WindowError, OptionError
        As `read_events`: what can be known from the names at once, values that are not finite when their chunk is
        reached, and that nothing was selected at the end.
    """
    request = Request(
        Path(path),
        mass=mass,
        features=tuple(features),
        weights=weights,
        mapping=mapping or {},
        unit=unit,
        units=units or {},
        tree=tree,
        chunk_size=chunk_size,
        max_events=max_events,
    )
    chosen = selection(window, unit)
    with open_table(request) as table:
        resolve_all(table, request)
    return _iterate(request, chosen)


def _iterate(request: Request, chosen: Selection) -> Iterator[Events]:
    total = Tally()
    with open_table(request) as table:
        plan = resolve_all(table, request)
        for part, tally in _limited(stream(table, plan, chosen, request.chunk_size), request.max_events):
            total.merge(tally)
            total.raise_bad(request.path)
            yield _events(plan, part, (*plan.notes, *tally.notes))
    total.raise_nothing(request.path, request.unit, chosen)


def _limited(parts: Iterator[tuple[Part, Tally]], max_events: int | None) -> Iterator[tuple[Part, Tally]]:
    """Stop once enough events are there."""
    left = max_events
    for part, tally in parts:
        if left is None:
            yield part, tally
            continue
        mass, features, weights = part
        yield Part(mass[:left], features[:left], None if weights is None else weights[:left]), tally
        left -= min(left, mass.size)
        if not left:
            return


def _joined(parts: list[Part]) -> Part:
    weights = [part.weights for part in parts if part.weights is not None]
    return Part(
        np.concatenate([part.mass for part in parts]),
        np.concatenate([part.features for part in parts]),
        np.concatenate(weights) if weights else None,
    )


def _events(plan: Plan, part: Part, notes: tuple[str, ...]) -> Events:
    for array in part:
        if array is not None:
            array.setflags(write=False)
    return Events(
        mass=part.mass,
        features=part.features,
        names=tuple(quantity.name for quantity in plan.features),
        units=plan.units,
        weights=part.weights,
        mass_name=plan.mass.name,
        notes=notes,
    )
