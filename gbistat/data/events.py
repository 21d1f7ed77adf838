"""Events: a mass, features, units and perhaps weights, for any number of events."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import EventsError, UnitsError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gbistat.data.window import MassWindow
    from gbistat.typing import BoolArray, FloatArray, IntArray

__all__ = ["ENERGY_UNITS", "Events", "concatenate", "nothing_selected", "outside_message"]

ENERGY_UNITS: Mapping[str, float] = MappingProxyType({"eV": 1e-9, "keV": 1e-6, "MeV": 1e-3, "GeV": 1.0, "TeV": 1e3})
"""Energy units and their size in GeV."""


def _frozen(values: object, shape_rank: int, what: str) -> FloatArray:
    # Frozen arrays that nobody else views are shared, not copied: selections of large files stay cheap.
    own = isinstance(values, np.ndarray) and values.base is None and not values.flags.writeable
    array = np.asarray(values, dtype=np.float64) if own else np.array(values, dtype=np.float64)
    if array.ndim != shape_rank:
        raise EventsError(f"{what} has {array.ndim} dimension(s); it must have {shape_rank}")
    array.setflags(write=False)
    return array


def _check_finite(column: FloatArray, name: str) -> None:
    bad = ~np.isfinite(column)
    if bad.any():
        rows = np.flatnonzero(bad)
        where = ", ".join(str(row) for row in rows[:5]) + (", ..." if rows.size > 5 else "")
        raise EventsError(
            f"{name!r} is NaN or infinite in {rows.size} of {column.size} events (rows {where}); "
            "remove or repair these events in the file, they cannot enter a likelihood"
        )


@dataclass(frozen=True, eq=False)
class Events:
    """Frozen arrays of one set of events.

    Parameters
    ----------
    mass : array of shape (n,)
        The resonance mass, in ``units[mass_name]``.
    features : array of shape (n, d), optional
        Features, one column a name.
    names : sequence of str, optional
        Names of the d features.
    units : mapping, optional
        Unit of the mass and of each feature; ``"1"`` is dimensionless. The mass is in GeV, features dimensionless,
        where nothing is said.
    weights : array of shape (n,), optional
        Event weights; ``None`` means that each event counts once.
    mass_name : str, default "m_jj"
        Name of the mass.
    notes : sequence of str, optional
        What was counted while reading (for example events without two jets).

    Raises
    ------
    EventsError
        If shapes do not match, a name appears twice, or a value is NaN or infinite (counted, with rows).

    Examples
    --------
    >>> events = Events(mass=[91.0, 88.5], features=[[0.1], [0.7]], names=["tau21"])
    >>> len(events), events.feature("tau21").tolist()
    (2, [0.1, 0.7])
    """

    mass: FloatArray
    features: FloatArray = field(default_factory=lambda: np.empty((0, 0)))
    names: tuple[str, ...] = ()
    units: Mapping[str, str] = field(default_factory=dict)
    weights: FloatArray | None = None
    mass_name: str = "m_jj"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        mass = _frozen(self.mass, 1, "mass")
        names = tuple(self.names)
        empty = not names and np.size(self.features) == 0
        features = _frozen(np.empty((mass.size, 0)) if empty else self.features, 2, "features")
        if features.shape != (mass.size, len(names)):
            raise EventsError(
                f"features have shape {features.shape}; {mass.size} masses and {len(names)} names need "
                f"({mass.size}, {len(names)})"
            )
        if len(set(names)) != len(names) or self.mass_name in names:
            raise EventsError(f"a name appears twice among the mass {self.mass_name!r} and the features {list(names)}")
        _check_finite(mass, self.mass_name)
        for column, name in enumerate(names):
            _check_finite(features[:, column], name)
        if self.weights is not None:
            weights = _frozen(self.weights, 1, "weights")
            if weights.shape != mass.shape:
                raise EventsError(f"{weights.size} weights for {mass.size} events")
            _check_finite(weights, "weights")
            set_field(self, "weights", weights)
        units = {self.mass_name: "GeV", **dict.fromkeys(names, "1"), **self.units}
        set_field(self, "mass", mass)
        set_field(self, "names", names)
        set_field(self, "features", features)
        set_field(self, "units", MappingProxyType(units))
        set_field(self, "notes", tuple(self.notes))

    def __len__(self) -> int:
        return int(self.mass.size)

    @property
    def unit(self) -> str:
        """Unit of the mass."""
        return self.units[self.mass_name]

    @property
    def sum_of_weights(self) -> float:
        """Sum of weights; the number of events where there are none."""
        return float(len(self)) if self.weights is None else float(np.sum(self.weights))

    def feature(self, name: str) -> FloatArray:
        """One feature, shape (n,).

        Raises
        ------
        EventsError
            If there is no such feature; the message offers the nearest names.
        """
        if name == self.mass_name:
            return self.mass
        try:
            return self.features[:, self.names.index(name)]
        except ValueError:
            raise EventsError(
                f"these events have no feature {name!r}; {nearest(name, (self.mass_name, *self.names))}"
            ) from None

    def matrix(self, names: Sequence[str]) -> FloatArray:
        """Features (the mass among them, if asked for) in a given order, shape (n, len(names))."""
        if not names:
            return np.empty((len(self), 0))
        return np.column_stack([self.feature(name) for name in names])

    def select(self, choice: BoolArray | IntArray) -> Events:
        """Events at a mask or at indices."""
        weights = None if self.weights is None else self.weights[choice]
        return replace(self, mass=self.mass[choice], features=self.features[choice], weights=weights)

    def in_window(self, window: MassWindow) -> Events:
        """Events inside a mass window.

        Raises
        ------
        UnitsError
            If the window and the mass have different units.
        EventsError
            If no event is inside; the message gives the range the masses span.
        """
        if window.unit != self.unit:
            raise UnitsError(
                f"window {window} and masses in {self.unit} do not go together; convert with Events.to_unit({window.unit!r})"
            )
        mask = window.contains(self.mass)
        if not mask.any():
            raise EventsError(outside_message(self.mass, window))
        # The same object where nothing changes: what was computed for it is still good.
        return self if mask.all() else self.select(mask)

    def to_unit(self, unit: str) -> Events:
        """Same events with the mass and every energy feature in another unit.

        Raises
        ------
        UnitsError
            If `unit` or a declared energy unit is unknown.
        """
        if unit not in ENERGY_UNITS:
            raise UnitsError(f"unit {unit!r} is not an energy unit; {nearest(unit, ENERGY_UNITS)}")
        if self.unit not in ENERGY_UNITS:
            raise UnitsError(
                f"the mass is in {self.unit!r}, which is not an energy unit; {nearest(self.unit, ENERGY_UNITS)}"
            )
        factors = np.array([_factor(self.units[name], unit) for name in self.names])
        units = {name: unit if old in ENERGY_UNITS else old for name, old in self.units.items()}
        if units == dict(self.units):
            return self
        return replace(self, mass=self.mass * _factor(self.unit, unit), features=self.features * factors, units=units)

    def without_weights(self) -> Events:
        """Same events, each counted once."""
        return replace(self, weights=None)


def outside_message(mass: FloatArray, window: MassWindow) -> str:
    """Say why no event is in a window of the same unit, and what may be wrong."""
    span = (float(np.min(mass)), float(np.max(mass))) if mass.size else (np.inf, -np.inf)
    return nothing_selected(mass.size, span, window.unit, (window,))


def nothing_selected(count: int, span: tuple[float, float], unit: str, windows: Sequence[MassWindow]) -> str:
    """Say why none of `count` events is in one of the windows, and what may be wrong.

    Parameters
    ----------
    count : int
        Number of events.
    span : pair of float
        Smallest and largest mass, in `unit`.
    unit : str
        Declared unit of the masses.
    windows : sequence of MassWindow
        Where they were looked for; all in one unit, which need not be `unit`.

    Returns
    -------
    str
        One sentence; it names the unit under which events would be inside, if there is one.
    """
    where = " or ".join(str(window) for window in windows)
    if not count:
        return f"there are no events at all, so none is in the window {where}; check the file and the selection"
    text = f"none of {count} events is in the window {where}: the masses span {span[0]:.6g} to {span[1]:.6g} {unit}"
    for other, size in ENERGY_UNITS.items():
        low, high = (edge * size / ENERGY_UNITS.get(windows[0].unit, 1.0) for edge in span)
        if other != unit and any(low < window.high and high >= window.low for window in windows):
            return (
                text + f"; if the file is in {other}, say so (--unit {other}), else choose a window inside that range"
            )
    return text + "; choose a window inside that range"


def _factor(old: str, new: str) -> float:
    return ENERGY_UNITS[old] / ENERGY_UNITS[new] if old in ENERGY_UNITS else 1.0


def concatenate(parts: Sequence[Events]) -> Events:
    """One set of events from several with the same names and units.

    Raises
    ------
    EventsError
        If there is nothing to join, or names differ, or only some parts have weights.
    UnitsError
        If units differ.
    """
    if not parts:
        raise EventsError("no events to join: the list of parts is empty")
    first = parts[0]
    for part in parts[1:]:
        if part.names != first.names or part.mass_name != first.mass_name:
            raise EventsError(f"cannot join events with features {list(part.names)} to events with {list(first.names)}")
        if dict(part.units) != dict(first.units):
            raise UnitsError(
                f"cannot join events in {dict(part.units)} to events in {dict(first.units)}; use Events.to_unit"
            )
        if (part.weights is None) != (first.weights is None):
            raise EventsError("cannot join events with weights to events without; give weights of 1 or drop them")
    weights = None if first.weights is None else np.concatenate([p.weights for p in parts if p.weights is not None])
    notes = tuple(dict.fromkeys(note for part in parts for note in part.notes))
    return replace(
        first,
        mass=np.concatenate([p.mass for p in parts]),
        features=np.concatenate([p.features for p in parts]),
        weights=weights,
        notes=notes,
    )
