"""NPZ archives, member by member and chunk by chunk, without ever unpickling."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

import numpy as np

from gbistat.data.table import Chunk, common_length, is_number, read_errors, row_ranges
from gbistat.errors import EventsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from gbistat.typing import FloatArray

__all__ = ["NpzTable", "open_npz"]

_FOREIGN = (zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError)
_DAMAGE = (*_FOREIGN, OSError, ValueError, EOFError, NotImplementedError, RuntimeError, SyntaxError)


@dataclass(frozen=True)
class NpzTable:
    """Columns of an open NPZ archive: its one-dimensional numeric arrays."""

    path: Path
    archive: zipfile.ZipFile
    n_rows: int
    dtypes: Mapping[str, np.dtype[np.generic]]
    unusable: Mapping[str, str] = field(default_factory=dict)
    hint: str = ""
    format: str = "NPZ"

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the one-dimensional numeric arrays."""
        return tuple(self.dtypes)

    def chunks(self, names: Sequence[str], size: int) -> Iterator[Chunk]:
        """Rows in order; the members are decompressed side by side as they are read."""
        with ExitStack() as stack:
            streams: dict[str, IO[bytes]] = {}
            with read_errors(self.path, "NPZ", *_DAMAGE):
                for name in names:
                    streams[name] = stack.enter_context(self.archive.open(f"{name}.npy"))
                    _header(streams[name])
            for start, stop in row_ranges(self.n_rows, size):
                with read_errors(self.path, "NPZ", *_DAMAGE):
                    columns = {name: self._next(name, streams[name], stop - start) for name in names}
                yield Chunk(stop - start, np.arange(start, stop), columns)

    def _next(self, name: str, stream: IO[bytes], count: int) -> FloatArray:
        dtype = self.dtypes[name]
        raw = stream.read(count * dtype.itemsize)
        if len(raw) != count * dtype.itemsize:
            raise EventsError(f"{self.path}: array {name!r} ends before its {self.n_rows} values; get the file again")
        return np.frombuffer(raw, dtype=dtype).astype(np.float64)


@contextmanager
def open_npz(path: Path, tree: str | None = None) -> Iterator[NpzTable]:
    """Open an NPZ archive.

    Raises
    ------
    EventsError
        If it is not an archive, is truncated, or a `tree` is asked for.
    """
    if tree is not None:
        raise EventsError(f"{path} is an NPZ archive: it has no trees or keys; leave out tree={tree!r}")
    with read_errors(path, "NPZ", *_DAMAGE):
        archive = zipfile.ZipFile(path)
    with archive:
        with read_errors(path, "NPZ", *_DAMAGE):
            table = _table(path, archive)
        yield table


def _table(path: Path, archive: zipfile.ZipFile) -> NpzTable:
    dtypes: dict[str, np.dtype[np.generic]] = {}
    unusable: dict[str, str] = {}
    lengths: dict[str, int] = {}
    for member in archive.namelist():
        if not member.endswith(".npy"):
            continue
        name = member.removesuffix(".npy")
        with archive.open(member) as stream:
            shape, dtype = _header(stream)
        if dtype.hasobject:
            unusable[name] = "holds pickled objects, which gbistat never unpickles; save it as plain numbers"
        elif len(shape) != 1 or not is_number(dtype):
            unusable[name] = f"has shape {shape} and type {dtype}, not one number a row; save one array a column"
        else:
            dtypes[name], lengths[name] = dtype, shape[0]
    n_rows = common_length(lengths, unusable)
    return NpzTable(path, archive, n_rows, {n: d for n, d in dtypes.items() if n not in unusable}, unusable)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"array format {version} is not known")
    return shape, dtype
