"""Events of a run as its model wants them: what every command reads first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gbistat.data.read import read_events
from gbistat.data.window import MassWindow

if TYPE_CHECKING:
    from pathlib import Path

    from gbistat.config import RunOptions
    from gbistat.data.events import Events

__all__ = ["read_data"]


def read_data(options: RunOptions, path: Path | None = None, *, extra: tuple[str, ...] = ()) -> Events:
    """Events of a file within the range of the model's background fit, in the model's unit.

    Parameters
    ----------
    options : RunOptions
        Model, and how its source of events is read.
    path : Path, optional
        Another file of the same kind.
    extra : tuple of str
        Columns without unit beside the features of the model.

    Raises
    ------
    GbistatError
        If the file cannot be read, or something is missing in it.
    """
    spec, source = options.model.spec, options.source
    return read_events(
        source.path if path is None else path,
        features=(*spec.features, *extra),
        mass=spec.mass.name,
        mapping=source.mapping,
        unit=source.unit,
        window=MassWindow(*spec.background.fit_range, unit=spec.mass.unit),
        weights=source.weights,
        tree=source.tree,
        units={**source.units, **dict.fromkeys(extra, "1")},
    ).to_unit(spec.mass.unit)
