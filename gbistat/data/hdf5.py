"""HDF5 through h5py alone: pandas "fixed" frames, and plain files with one data set a column."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gbistat import extras
from gbistat.data.table import Chunk, common_length, is_number, read_errors, row_ranges
from gbistat.errors import EventsError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from gbistat.typing import FloatArray

__all__ = ["HDF5Table", "open_hdf5"]

SLAB_BYTES: Final = 32 * 2**20
"""Most bytes of a two-dimensional data set in memory at a time: raw files have thousands of columns."""

_DAMAGE = (OSError, RuntimeError, KeyError, TypeError, ValueError)  # what h5py raises on a damaged file


@dataclass(frozen=True)
class _Column:
    """A data set of shape (n,), or one column of a data set of shape (n, k)."""

    data: Any
    item: int | None = None


@dataclass(frozen=True)
class HDF5Table:
    """Columns of an open HDF5 file."""

    path: Path
    format: str
    n_rows: int
    sources: Mapping[str, _Column]
    unusable: Mapping[str, str] = field(default_factory=dict)
    hint: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the numeric columns."""
        return tuple(self.sources)

    def chunks(self, names: Sequence[str], size: int) -> Iterator[Chunk]:
        """Rows in order; each data set is read once a chunk, whatever the number of its columns."""
        for start, stop in row_ranges(self.n_rows, size):
            columns = {name: np.empty(stop - start) for name in names}
            with read_errors(self.path, "HDF5", *_DAMAGE):
                for data, wanted in self._by_data(names):
                    _fill(data, wanted, columns, start, stop)
            yield Chunk(stop - start, np.arange(start, stop), columns)

    def _by_data(self, names: Sequence[str]) -> list[tuple[Any, dict[str, int | None]]]:
        grouped: dict[str, tuple[Any, dict[str, int | None]]] = {}
        for name in names:
            source = self.sources[name]
            grouped.setdefault(source.data.name, (source.data, {}))[1][name] = source.item
        return list(grouped.values())


def _fill(data: Any, wanted: Mapping[str, int | None], out: Mapping[str, FloatArray], start: int, stop: int) -> None:
    if data.ndim == 1:
        for name in wanted:
            out[name][:] = data[start:stop]
        return
    items = [item for item in wanted.values() if item is not None]
    first, last = min(items), max(items) + 1
    rows = max(1, SLAB_BYTES // ((last - first) * data.dtype.itemsize))
    for low in range(start, stop, rows):
        high = min(low + rows, stop)
        slab = data[low:high, first:last]
        for name, item in wanted.items():
            out[name][low - start : high - start] = slab[:, item - first] if item is not None else slab[:, 0]


@contextmanager
def open_hdf5(path: Path, tree: str | None = None) -> Iterator[HDF5Table]:
    """Open an HDF5 file.

    Parameters
    ----------
    path : Path
        An existing file.
    tree : str, optional
        Key of the frame, or group of the data sets, where the file holds several.

    Raises
    ------
    EventsError
        If it is not HDF5, is truncated, or holds no table or several.
    """
    h5py = extras.h5py()
    with read_errors(path, "HDF5", *_DAMAGE):
        file = h5py.File(path, "r")
    with file:
        with read_errors(path, "HDF5", *_DAMAGE):
            table = _table(path, h5py, file, tree)
        yield table


def _table(path: Path, h5py: Any, file: Any, tree: str | None) -> HDF5Table:
    frames, plain, other = _survey(h5py, file)
    if tree is not None:
        key = tree.strip("/")
    elif len(frames) == 1 or (not frames and len(plain) == 1):
        key = (frames or plain)[0]
    elif not frames and "" in plain:
        key = ""
    elif frames or plain:
        names = [name or "/" for name in frames + plain]
        raise EventsError(f"{path} holds {len(names)} tables: {', '.join(names)}; choose one (tree={names[0]!r})")
    else:
        raise EventsError(
            f"{path} holds no table that can be read: {_why_none(other)}; write a frame with "
            "to_hdf(path, key='df', format='fixed') or one numeric data set a column"
        )
    if key in frames:
        return _frame(path, h5py, file[key], key)
    if key in plain:
        return _plain(path, h5py, file[key or "/"], key)
    if key in other:
        raise EventsError(f"{path}: {_why_none({key: other[key]})}; write it with to_hdf(..., format='fixed')")
    raise EventsError(f"{path} has no table {tree!r}; {nearest(tree or '', frames + plain)}")


def _survey(h5py: Any, file: Any) -> tuple[list[str], list[str], dict[str, str]]:
    """Groups that are pandas fixed frames, groups with one-dimensional numeric data sets, other pandas objects."""
    frames: list[str] = []
    plain: list[str] = []
    other: dict[str, str] = {}

    def look(name: str, group: Any) -> None:
        if not isinstance(group, h5py.Group) or any(name.startswith(f"{known}/") for known in (*frames, *other)):
            return
        kind = _text(group.attrs.get("pandas_type", b""))
        if kind == "frame":
            frames.append(name)
        elif kind:
            other[name] = kind
        elif any(
            isinstance(d, h5py.Dataset) and d.ndim == 1 and is_number(d.dtype)
            for d in (group.get(member) for member in group)
        ):
            plain.append(name)

    look("", file)
    file.visititems(look)
    return frames, plain, other


def _why_none(other: Mapping[str, str]) -> str:
    if not other:
        return "no pandas frame and no one-dimensional numeric data set"
    name, kind = next(iter(other.items()))
    return f"{name!r} is a pandas object of kind {kind!r}, whose column names are pickled"


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _frame(path: Path, h5py: Any, group: Any, key: str) -> HDF5Table:
    sources: dict[str, _Column] = {}
    unusable: dict[str, str] = {}
    lengths: set[int] = set()
    for block in range(int(group.attrs["nblocks"])):
        items = [_text(item) for item in group[f"block{block}_items"][()]]
        values = group[f"block{block}_values"]
        if "shape" in values.attrs:  # pandas marks an empty block so, and writes a dummy value in its place
            lengths.add(0)
        elif h5py.check_vlen_dtype(values.dtype) or not is_number(values.dtype):
            unusable.update(dict.fromkeys(items, "holds text or pickled objects, which gbistat never unpickles"))
            continue
        elif values.ndim != 2 or values.shape[1] != len(items):
            raise EventsError(f"{path}: block {block} of {key!r} has shape {values.shape} for {len(items)} columns")
        else:
            lengths.add(int(values.shape[0]))
        for position, item in enumerate(items):
            if item in sources:
                raise EventsError(f"{path}: column {item!r} appears twice in {key!r}; rename one of them")
            sources[item] = _Column(values, position)
    if len(lengths) > 1:
        raise EventsError(f"{path}: the blocks of {key!r} have different lengths {sorted(lengths)}; get the file again")
    return HDF5Table(path, f"HDF5 (pandas fixed, {key})", max(lengths, default=0), sources, unusable)


def _plain(path: Path, h5py: Any, group: Any, key: str) -> HDF5Table:
    sources: dict[str, _Column] = {}
    unusable: dict[str, str] = {}
    for name in group:
        data = group.get(name)
        if not isinstance(data, h5py.Dataset):
            continue
        if data.ndim != 1 or not is_number(data.dtype):
            unusable[name] = f"has shape {data.shape} and type {data.dtype}, not one number a row"
        else:
            sources[name] = _Column(data)
    n_rows = common_length({name: int(column.data.shape[0]) for name, column in sources.items()}, unusable)
    sources = {name: column for name, column in sources.items() if name not in unusable}
    return HDF5Table(path, f"HDF5 (one data set a column, /{key})", n_rows, sources, unusable)
