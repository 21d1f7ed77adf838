"""What every file format looks like from above: named columns, read in chunks."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from gbistat.errors import EventsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from gbistat.typing import FloatArray, IntArray

__all__ = ["Chunk", "Table", "common_length", "is_number", "read_errors", "row_ranges"]


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a table.

    Parameters
    ----------
    n_read : int
        Rows of the file that this chunk stands for.
    rows : array of shape (n,)
        Row number in the file of each event; n is less than `n_read` where rows hold no usable event.
    columns : mapping
        Named columns, float64 of shape (n,).
    counts : mapping, optional
        How many rows something happened to, by a clause that says what (``"have fewer than two FatJet"``).
    """

    n_read: int
    rows: IntArray
    columns: Mapping[str, FloatArray]
    counts: Mapping[str, int] = field(default_factory=dict)


class Table(Protocol):
    """An open file of events."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def format(self) -> str:
        """Format and place inside the file, for example ``"HDF5 (pandas fixed, df)"``."""

    @property
    def n_rows(self) -> int:
        """Rows in the file."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that hold one number a row."""

    @property
    def unusable(self) -> Mapping[str, str]:
        """Other columns and why they cannot be used."""

    @property
    def hint(self) -> str:
        """Clause for the message about a column that is absent; may be empty."""

    def chunks(self, names: Sequence[str], size: int) -> Iterator[Chunk]:
        """Rows in order, at most `size` in a chunk, of the columns asked for."""


def row_ranges(n_rows: int, size: int) -> Iterator[tuple[int, int]]:
    """First and last-plus-one row of each chunk."""
    for start in range(0, n_rows, size):
        yield start, min(start + size, n_rows)


def is_number(dtype: np.dtype[np.generic]) -> bool:
    """Whether a dtype holds plain numbers: float, integer or bool."""
    return dtype.kind in "fiub" and dtype.shape == ()


def common_length(lengths: Mapping[str, int], unusable: dict[str, str]) -> int:
    """Length shared by most arrays of a file that holds one array a column; the odd ones become unusable."""
    if not lengths:
        return 0
    n_rows, _ = max(Counter(lengths.values()).items(), key=lambda item: (item[1], item[0]))
    for name, length in lengths.items():
        if length != n_rows:
            unusable[name] = f"has {length} values where the other columns have {n_rows}"
    return n_rows


@contextmanager
def read_errors(path: Path, kind: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn what a file library raises into an `EventsError` that names the file.

    Raises
    ------
    EventsError
        In place of any of `errors`.
    """
    try:
        yield
    except EventsError:
        raise
    except PermissionError as error:
        raise EventsError(f"{path} cannot be opened: permission denied; check the rights of the file") from error
    except errors as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise EventsError(
            f"{path} cannot be read as {kind}: it is truncated, damaged or something else ({reason[:120]}); "
            "get the file again"
        ) from error
