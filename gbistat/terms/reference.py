"""Reference events beside a model: held-out background as columns in JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from gbistat.data.events import Events
from gbistat.errors import ModelError
from gbistat.terms.files import check_schema, dump_json, parse_json
from gbistat.terms.metadata import Unit  # noqa: TC001  # pydantic reads annotations at run time
from gbistat.terms.validation import Number, Record, Text, validate

if TYPE_CHECKING:
    from gbistat.typing import FloatArray

__all__ = ["EVENTS_SCHEMA", "ReferenceEvents", "events_from_json", "events_to_json"]

EVENTS_SCHEMA: Final = "gbistat.events/1"


class ReferenceEvents(Record):
    """Content of ``reference.json``: a column of n numbers for the mass and for each feature."""

    schema_name: Literal["gbistat.events/1"] = Field(default=EVENTS_SCHEMA, alias="schema")
    description: str = ""
    mass_name: Text
    names: tuple[Text, ...] = ()
    units: dict[str, Unit] = Field(default_factory=dict)
    mass: tuple[Number, ...]
    features: dict[str, tuple[Number, ...]] = Field(default_factory=dict)
    weights: tuple[Number, ...] | None = None

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        if sorted(self.names) != sorted(self.features):
            raise ValueError(f"names are {list(self.names)} and features has {list(self.features)}; they must agree")
        columns = {**self.features, **({} if self.weights is None else {"weights": self.weights})}
        for name, column in columns.items():
            if len(column) != len(self.mass):
                raise ValueError(f"{name!r} has {len(column)} values for {len(self.mass)} masses")
        return self


def events_to_json(events: Events, *, description: str = "", digits: int | None = None) -> bytes:
    """JSON bytes of events.

    Parameters
    ----------
    events : Events
        What to write; notes are left out.
    description : str
        Where the events come from.
    digits : int, optional
        Significant digits to keep: 9 hold a float32 exactly and halve the file. Without, float64 is kept exactly.
    """
    record = ReferenceEvents(
        description=description,
        mass_name=events.mass_name,
        names=events.names,
        units=dict(events.units),
        mass=_column(events.mass, digits),
        features={name: _column(events.feature(name), digits) for name in events.names},
        weights=None if events.weights is None else _column(events.weights, digits),
    )
    return dump_json(record, error=ModelError, where="reference events", indent=None)


def events_from_json(content: bytes, *, where: str) -> Events:
    """Events that JSON bytes hold.

    Raises
    ------
    ModelError
        If the content is not JSON, has another schema, or its columns do not fit together.
    """
    data = parse_json(content, where=where, error=ModelError)
    check_schema(data, EVENTS_SCHEMA, where=where, error=ModelError)
    record = validate(ReferenceEvents, data, error=ModelError, where=where)
    features = np.empty((len(record.mass), len(record.names)))
    for column, name in enumerate(record.names):
        features[:, column] = record.features[name]
    return Events(
        mass=np.array(record.mass, dtype=np.float64),
        features=features,
        names=record.names,
        units=record.units,
        weights=None if record.weights is None else np.array(record.weights, dtype=np.float64),
        mass_name=record.mass_name,
    )


def _column(values: FloatArray, digits: int | None) -> tuple[float, ...]:
    exact: list[float] = values.tolist()
    return tuple(exact) if digits is None else tuple(float(f"{value:.{digits}g}") for value in exact)
