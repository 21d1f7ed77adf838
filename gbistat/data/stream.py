"""One pass over a file in bounded memory: select by mass, compute features, count what is wrong and where."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from gbistat.data.events import ENERGY_UNITS, nothing_selected
from gbistat.data.window import MassWindow
from gbistat.errors import EventsError, WindowError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from gbistat.data.resolve import Plan
    from gbistat.data.table import Chunk, Table
    from gbistat.typing import BoolArray, FloatArray, IntArray

__all__ = ["BadValues", "Part", "Selection", "Tally", "selection", "stream"]

_ROWS_SHOWN: Final = 5


@dataclass(frozen=True)
class Selection:
    """Union of windows; without any, everything is selected.

    Masses are compared in the unit of the windows, converted as `Events.to_unit` does, so that an event at an edge is
    on the same side of it before and after a conversion.
    """

    windows: tuple[MassWindow, ...]
    factor: float

    def mask(self, mass: FloatArray) -> BoolArray:
        """Mask of the masses inside, shape (n,); masses are in the unit of the file."""
        if not self.windows:
            return np.ones(mass.shape, dtype=np.bool_)
        scaled = mass * self.factor
        chosen: BoolArray = np.logical_or.reduce([window.contains(scaled) for window in self.windows])
        return chosen


def selection(window: MassWindow | Sequence[tuple[float, float]] | None, unit: str) -> Selection:
    """Selection by a window in its own unit, or by (low, high) pairs in the unit of the file.

    Raises
    ------
    WindowError
        If a pair is not one, or is empty or reversed.
    """
    if window is None:
        return Selection((), 1.0)
    if isinstance(window, MassWindow):
        return Selection((window,), ENERGY_UNITS[unit] / ENERGY_UNITS[window.unit])
    try:
        pairs = [(float(low), float(high)) for low, high in window]
    except (TypeError, ValueError) as error:
        raise WindowError(f"{window!r} is neither a MassWindow nor a list of (low, high) pairs") from error
    if not pairs:
        raise WindowError("the list of (low, high) pairs is empty; give None to select everything")
    return Selection(tuple(MassWindow(low, high, unit) for low, high in pairs), 1.0)


@dataclass
class BadValues:
    """How often a quantity is NaN or infinite, and in which rows of the file first."""

    count: int = 0
    rows: list[int] = field(default_factory=list)

    def add(self, rows: IntArray) -> None:
        """Count these rows."""
        self.count += rows.size
        self.rows.extend(int(row) for row in rows[: _ROWS_SHOWN - len(self.rows)])

    def merge(self, later: BadValues) -> None:
        """Add what a later chunk has counted."""
        self.count += later.count
        self.rows.extend(later.rows[: _ROWS_SHOWN - len(self.rows)])

    def __str__(self) -> str:
        where = ", ".join(str(row) for row in self.rows) + (", ..." if self.count > len(self.rows) else "")
        return f"{self.count} (rows {where})"


@dataclass
class Tally:
    """What one pass has seen so far."""

    n_read: int = 0
    n_events: int = 0
    n_selected: int = 0
    low: float = np.inf
    high: float = -np.inf
    bad: dict[str, BadValues] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def see_rows(self, chunk: Chunk) -> None:
        """Count the rows of a chunk, and those that hold no usable event."""
        self.n_read += chunk.n_read
        self.n_events += chunk.rows.size
        self.counts.update(chunk.counts)

    def see_mass(self, mass: FloatArray) -> None:
        """Widen the span of the masses."""
        if mass.size:
            self.low, self.high = min(self.low, float(mass.min())), max(self.high, float(mass.max()))

    def finite(self, name: str, values: FloatArray, rows: IntArray) -> BoolArray:
        """Mask of the finite values; the others are counted."""
        mask: BoolArray = np.isfinite(values)
        if not mask.all():
            self.bad.setdefault(name, BadValues()).add(rows[~mask])
        return mask

    def checked(self, name: str, values: FloatArray, rows: IntArray) -> FloatArray:
        """The values themselves, after those that are not finite are counted."""
        self.finite(name, values, rows)
        return values

    def merge(self, later: Tally) -> None:
        """Add what a later chunk has seen."""
        self.n_read += later.n_read
        self.n_events += later.n_events
        self.n_selected += later.n_selected
        self.low, self.high = min(self.low, later.low), max(self.high, later.high)
        self.counts.update(later.counts)
        for name, bad in later.bad.items():
            self.bad.setdefault(name, BadValues()).merge(bad)

    @property
    def notes(self) -> tuple[str, ...]:
        """Rows that something happened to."""
        return tuple(f"{count} of {self.n_read} events {clause}" for clause, count in self.counts.items())

    def raise_bad(self, path: Path) -> None:
        """Raise if a value is NaN or infinite."""
        if self.bad:
            found = "; ".join(f"{name!r} in {bad}" for name, bad in self.bad.items())
            raise EventsError(
                f"{path}: NaN or infinite values among {self.n_read} rows: {found}. Remove or repair these events in "
                "the file, they cannot enter a likelihood"
            )

    def raise_nothing(self, path: Path, unit: str, chosen: Selection) -> None:
        """Raise if no event was selected."""
        if self.n_selected:
            return
        if not self.n_events:
            reasons = "; ".join(self.notes) or "it has no rows"
            raise EventsError(f"{path} holds no usable event: {reasons}")
        raise EventsError(f"{path}: {nothing_selected(self.n_events, (self.low, self.high), unit, chosen.windows)}")


class Part(NamedTuple):
    """Selected events of one chunk: mass (n,), features (n, d), weights (n,) or None."""

    mass: FloatArray
    features: FloatArray
    weights: FloatArray | None


def stream(table: Table, plan: Plan, chosen: Selection, chunk_size: int) -> Iterator[tuple[Part, Tally]]:
    """Selected events of each chunk, with what was counted in this chunk alone.

    The mass is checked in every row, since an event of unknown mass is neither inside nor outside; features and
    weights are checked in the selected rows.
    """
    for chunk in table.chunks(plan.columns, chunk_size):
        tally = Tally()
        tally.see_rows(chunk)
        mass = plan.mass.values(chunk.columns)
        finite = tally.finite(plan.mass.name, mass, chunk.rows)
        tally.see_mass(mass[finite])
        with np.errstate(invalid="ignore"):
            mask = finite & chosen.mask(mass)
        rows = chunk.rows[mask]
        columns = {name: values[mask] for name, values in chunk.columns.items()}
        features = np.empty((rows.size, len(plan.features)))
        for position, quantity in enumerate(plan.features):
            features[:, position] = tally.checked(quantity.name, quantity.values(columns), rows)
        weights = None
        if plan.weights is not None:
            weights = tally.checked(plan.weights.name, plan.weights.values(columns), rows)
        tally.n_selected = rows.size
        yield Part(mass[mask], features, weights), tally
