"""Parquet through pyarrow, batch by batch."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gbistat import extras
from gbistat.data.table import Chunk, read_errors
from gbistat.errors import EventsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["ParquetTable", "open_parquet"]

BUFFER_BYTES: Final = 2**20
"""Read-ahead of each column, so that a row group need not fit into memory in its packed form."""


@dataclass(frozen=True)
class ParquetTable:
    """Numeric columns of an open Parquet file."""

    path: Path
    file: Any
    n_rows: int
    columns: tuple[str, ...]
    damage: tuple[type[Exception], ...]
    unusable: Mapping[str, str] = field(default_factory=dict)
    hint: str = ""
    format: str = "Parquet"

    def chunks(self, names: Sequence[str], size: int) -> Iterator[Chunk]:
        """Rows in order; a null becomes NaN, which is counted and refused like any other."""
        start = 0
        batches = self.file.iter_batches(batch_size=size, columns=list(names))
        while True:
            with read_errors(self.path, "Parquet", *self.damage):
                batch = next(batches, None)
            if batch is None:
                return
            columns = {
                name: np.array(batch.column(name).to_numpy(zero_copy_only=False), dtype=np.float64) for name in names
            }
            yield Chunk(batch.num_rows, np.arange(start, start + batch.num_rows), columns)
            start += batch.num_rows


@contextmanager
def open_parquet(path: Path, tree: str | None = None) -> Iterator[ParquetTable]:
    """Open a Parquet file.

    Raises
    ------
    EventsError
        If it is not Parquet, is truncated, or a `tree` is asked for.
    MissingExtra
        If pyarrow is not installed.
    """
    if tree is not None:
        raise EventsError(f"{path} is a Parquet file: it has no trees or keys; leave out tree={tree!r}")
    pyarrow = extras.pyarrow()
    damage: tuple[type[Exception], ...] = (pyarrow.ArrowException, OSError)
    with read_errors(path, "Parquet", *damage):
        file = pyarrow.parquet.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False)
    with file:
        columns: list[str] = []
        unusable: dict[str, str] = {}
        for column in file.schema_arrow:
            if _is_number(pyarrow.types, column.type):
                columns.append(column.name)
            else:
                unusable[column.name] = f"has type {column.type}, not one number a row"
        yield ParquetTable(path, file, int(file.metadata.num_rows), tuple(columns), damage, unusable)


def _is_number(types: Any, kind: Any) -> bool:
    return bool(types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind))
