"""What a file of events holds, for a person who has just received it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gbistat.data.features import derivable
from gbistat.data.resolve import Request, check_mapping, open_table, resolve, resolve_all
from gbistat.data.stream import BadValues, Tally, selection
from gbistat.errors import EventsError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from gbistat.data.resolve import Quantity
    from gbistat.data.table import Table
    from gbistat.data.window import MassWindow
    from gbistat.typing import FloatArray

__all__ = ["EventsSummary", "Range", "summarise_events"]


@dataclass(frozen=True)
class Range:
    """Span of one quantity over a file.

    Parameters
    ----------
    low, high : float
        Smallest and largest finite value, in `unit`; NaN if there is none.
    unit : str
        Unit of the file for this quantity.
    n_bad : int
        How many values are NaN or infinite.
    bad_rows : tuple of int
        The first few rows of the file where they are.
    """

    low: float
    high: float
    unit: str
    n_bad: int = 0
    bad_rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class EventsSummary:
    """What a file of events holds.

    Parameters
    ----------
    path : str
        The file.
    format : str
        Format and place inside the file.
    n_rows : int
        Rows in the file.
    n_events : int
        Rows that are events: less than `n_rows` where a row has fewer than two objects of a jagged collection.
    columns : tuple of str
        Columns with one number a row.
    unusable : mapping
        Other columns and why they cannot be used.
    derivable : tuple of str
        Features that these columns give.
    mass : str or None
        The mass, if it was found.
    unit : str
        Energy unit that was declared.
    ranges : mapping
        Range of the mass and of each feature.
    n_selected : int or None
        Events inside the window, if one was given.
    notes : tuple of str
        What was counted, and where a jagged collection has to be chosen.
    """

    path: str
    format: str
    n_rows: int
    n_events: int
    columns: tuple[str, ...]
    unusable: Mapping[str, str]
    derivable: tuple[str, ...]
    mass: str | None
    unit: str
    ranges: Mapping[str, Range]
    n_selected: int | None
    notes: tuple[str, ...]


def summarise_events(
    path: str | PathLike[str],
    *,
    features: Sequence[str] = (),
    mass: str | None = None,
    mapping: Mapping[str, str] | None = None,
    unit: str = "GeV",
    window: MassWindow | Sequence[tuple[float, float]] | None = None,
    weights: str | None = None,
    tree: str | None = None,
    units: Mapping[str, str] | None = None,
    chunk_size: int = 200_000,
) -> EventsSummary:
    """What a file holds, in one pass and constant memory; NaN and infinities are counted, not refused.

    Parameters
    ----------
    mass : str, optional
        The mass; where it is not given, ``m_jj`` if the file gives it, else none: columns are listed all the same.
    path, features, mapping, unit, window, weights, tree, units, chunk_size
        As in `read_events`; the ranges of features and weights are those of all events, in the window or not.

    Raises
    ------
    EventsError, UnitsError, WindowError, OptionError
        As `read_events`, except for values that are not finite and for an empty selection.
    """
    request = Request(
        Path(path),
        mass="m_jj" if mass is None else mass,
        features=tuple(features),
        weights=weights,
        mapping=mapping or {},
        unit=unit,
        units=units or {},
        tree=tree,
        chunk_size=chunk_size,
    )
    chosen = selection(window, unit)
    with open_table(request) as table:
        quantities = _quantities(table, request, mass_is_optional=mass is None)
        # Without any quantity a pass over one column still counts the rows of a jagged collection that are events.
        columns = tuple(dict.fromkeys(c for q in quantities for c in q.columns.values())) or table.columns[:1]
        tally = Tally()
        spans = {quantity.name: _Span(quantity.unit) for quantity in quantities}
        for chunk in table.chunks(columns, chunk_size) if columns else ():
            tally.see_rows(chunk)
            for quantity in quantities:
                values = quantity.values(chunk.columns)
                good = values[tally.finite(quantity.name, values, chunk.rows)]
                spans[quantity.name].see(good)
                if quantity.name == request.mass:
                    tally.n_selected += int(chosen.mask(good).sum())
        has_mass = request.mass in spans
        return EventsSummary(
            path=str(path),
            format=table.format,
            n_rows=table.n_rows,
            n_events=tally.n_events if columns else table.n_rows,
            columns=table.columns,
            unusable=dict(table.unusable),
            derivable=derivable(table.columns),
            mass=request.mass if has_mass else None,
            unit=unit,
            ranges={name: span.range(tally.bad.get(name, BadValues())) for name, span in spans.items()},
            n_selected=tally.n_selected if has_mass and window is not None else None,
            notes=tally.notes + ((table.hint,) if table.hint and not has_mass else ()),
        )


@dataclass
class _Span:
    unit: str
    low: float = np.inf
    high: float = -np.inf

    def see(self, values: FloatArray) -> None:
        if values.size:
            self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    def range(self, bad: BadValues) -> Range:
        if self.low > self.high:
            return Range(np.nan, np.nan, self.unit, bad.count, tuple(bad.rows))
        return Range(self.low, self.high, self.unit, bad.count, tuple(bad.rows))


def _quantities(table: Table, request: Request, *, mass_is_optional: bool) -> tuple[Quantity, ...]:
    if not mass_is_optional:
        return resolve_all(table, request).quantities
    check_mapping(table, request.mapping)
    try:
        found = [resolve(table, request.mass, request)]
    except EventsError:
        found = []
    others = dict.fromkeys((*request.features, *(() if request.weights is None else (request.weights,))))
    return (*found, *(resolve(table, name, request) for name in others))
