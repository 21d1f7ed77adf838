"""Journal of a campaign under work: every finished chunk is appended at once, so that a killed run loses none of them.

The journal of ``toys.npz`` is ``toys.npz.journal``. It is a sequence of records, each a marker, a length, a CRC-32 and that many
bytes: a line of JSON, and after it arrays in NPY format. A record holds the plan (one whenever a run begins or goes on) or a
chunk. A record that a kill cut off is left out when the journal is read, and overwritten when the run goes on. A run holds a
lock on its journal that ends with its process, so that two runs cannot write one file.
"""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import zlib
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any, Self

import numpy as np

from gbistat.errors import OutputError, ToyFileError
from gbistat.inference.campaign import Campaign
from gbistat.inference.campaign_merge import merge_campaigns
from gbistat.inference.campaign_records import JournalHeader
from gbistat.terms.files import check_schema, parse_json
from gbistat.terms.validation import validate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from gbistat.inference.campaign import CampaignPlan, Columns
    from gbistat.typing import Json

__all__ = ["Journal", "journal_path", "read_journal"]

SCHEMA = "gbistat.toys-journal/1"
_HEAD = struct.Struct("<4sQI")
_MARKER = b"GTJ1"


def journal_path(path: Path) -> Path:
    """Where the journal of a file of toys is."""
    return path.with_name(path.name + ".journal")


def read_journal(path: Path) -> Campaign:
    """Read a journal, of a run that is at work too.

    Raises
    ------
    ToyFileError
        If it is missing, is not a journal, or is damaged elsewhere than at its end.
    """
    try:
        with path.open("rb") as stream:
            found, _ = _read(path, stream)
    except FileNotFoundError:
        raise ToyFileError(f"there is no journal {path}; check the path") from None
    except OSError as error:
        raise ToyFileError(f"{path} cannot be read: {error.strerror or error}") from error
    if found is None:
        raise ToyFileError(f"the journal {path} is empty; run the campaign again")
    return found


def _read(path: Path, stream: IO[bytes]) -> tuple[Campaign | None, int]:
    """Campaign in a journal, ``None`` without a whole record, and the position after its last whole record."""
    found: list[Campaign] = []
    versions: dict[str, tuple[str, ...]] = {}
    end = 0
    for payload, position in _records(path, stream):
        line, _, rest = payload.partition(b"\n")
        data = parse_json(line, where=str(path), error=ToyFileError)
        if "plan" in data:
            check_schema(data, SCHEMA, where=str(path), error=ToyFileError)
            header = validate(JournalHeader, data, error=ToyFileError, where=str(path))
            found.append(Campaign(header.plan.plan(str(path))))
            versions = dict(header.versions)
        elif not found:
            raise ToyFileError(f"{path} is not a journal of toys: it does not begin with a plan")
        else:
            place, chunk = _chunk(path, data, rest)
            if not 0 <= place[0] < found[0].plan.n_points:
                raise ToyFileError(f"{path} is damaged: it holds toys of a point that its plan does not have")
            found.append(Campaign(found[0].plan, {place: chunk}, versions))
        end = position
    if not found:
        return None, 0
    return merge_campaigns(found, [str(path)] * len(found)), end


def _records(path: Path, stream: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Contents of whole records with the position after each; stops at one that was cut off."""
    size = os.fstat(stream.fileno()).st_size
    position = 0
    while position < size:
        head = stream.read(_HEAD.size)
        if not head.startswith(_MARKER[: len(head)]):
            what = "is damaged" if position else "is not a journal of toys"
            raise ToyFileError(f"{path} {what}: no record begins at byte {position}; move it away and run again")
        if len(head) < _HEAD.size:
            return
        _, length, checksum = _HEAD.unpack(head)
        position += _HEAD.size + length
        if position > size:
            return
        payload = stream.read(length)
        if zlib.crc32(payload) != checksum:
            if position == size:
                return
            raise ToyFileError(
                f"{path} is damaged: the checksum of the record that ends at byte {position} is wrong; move it away and run again"
            )
        yield payload, position


def _chunk(path: Path, data: Json, content: bytes) -> tuple[tuple[int, int], Columns]:
    stream = io.BytesIO(content)
    try:
        place = (int(data["point"]), int(data["chunk"]))
        columns = {str(name): np.lib.format.read_array(stream, allow_pickle=False) for name in data["columns"]}
    except (KeyError, TypeError, ValueError, EOFError) as error:
        raise ToyFileError(f"{path} is damaged: a chunk cannot be read: {error}; move it away and run again") from error
    return place, columns


class Journal:
    """Open journal; a context manager that leaves the file where it is unless no chunk is in it.

    Parameters
    ----------
    path : Path
        The journal; made if it is not there, gone on with if it is.
    plan : CampaignPlan
        What is going to be done.
    versions : mapping of str to tuple of str
        Versions of the packages that do it.

    Raises
    ------
    OutputError
        If it cannot be written, or another run is writing it.
    ToyFileError
        If what is there is damaged or belongs to another campaign.
    """

    def __init__(self, path: Path, plan: CampaignPlan, versions: Mapping[str, tuple[str, ...]]) -> None:
        self.path = path
        self._stream = _locked(path)
        self._keep = True
        try:
            self.found = self._go_on(plan, versions)
        except BaseException:
            self._close()
            raise
        self._keep = bool(self.found.chunks)

    def _go_on(self, plan: CampaignPlan, versions: Mapping[str, tuple[str, ...]]) -> Campaign:
        """Read what is there, cut off a torn record, write down the plan."""
        own = Campaign(plan)
        self._stream.seek(0)
        earlier, end = _read(self.path, self._stream)
        found = own
        if earlier is not None:
            found = merge_campaigns([own, earlier], ["the campaign asked for", str(self.path)])
        self._stream.truncate(end)
        header = {
            "schema": SCHEMA,
            "plan": plan.to_json(),
            "versions": {name: list(values) for name, values in versions.items()},
        }
        self._append(json.dumps(header, allow_nan=False).encode())
        return found

    def append(self, place: tuple[int, int], columns: Columns) -> None:
        """Write one chunk.

        Raises
        ------
        OutputError
            If it cannot be written, for example on a full disk.
        """
        content = io.BytesIO()
        line = {"point": place[0], "chunk": place[1], "columns": list(columns)}
        content.write(json.dumps(line).encode() + b"\n")
        for array in columns.values():
            np.lib.format.write_array(content, array, version=(1, 0), allow_pickle=False)
        self._append(content.getvalue())
        self._keep = True

    def _append(self, payload: bytes) -> None:
        try:
            self._stream.write(_HEAD.pack(_MARKER, len(payload), zlib.crc32(payload)) + payload)
            self._stream.flush()
        except OSError as error:
            raise OutputError(
                f"{self.path} cannot be written: {error.strerror or error}; make room, run again"
            ) from error

    def drop(self) -> None:
        """Say that the journal is no longer needed: everything in it stands in the file of toys."""
        self._keep = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if not self._keep:
            self.path.unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        with suppress(OSError):  # what a full disk left in the buffer was reported when it was written
            self._stream.close()


def _locked(path: Path) -> IO[bytes]:
    """Journal opened for reading and appending, with a lock on it."""
    while True:
        try:
            stream = path.open("ab+")
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror or error}; choose another place") from error
        if not _lock(stream):
            stream.close()
            raise OutputError(f"another run is writing {path}; wait for it, or choose another --output")
        # The run that held the lock before may have finished and removed the file that was opened here.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                return stream
        stream.close()


def _lock(stream: IO[Any]) -> bool:
    """Whether no other run holds the lock. Windows and file systems without locks let everyone in."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
