"""Files of toys, schema ``gbistat.toys/1``.

A file is an uncompressed NPZ archive, so ``numpy.load(path)`` reads it, with these members in this order:

``header.json``
    ``schema``; ``plan`` (work, model_sha256, parameters, points, n_toys, seed, chunk_size, settings) and ``plan_sha256``, the
    hash of the plan without ``n_toys``; ``versions`` of the packages that made the toys; ``columns``: by name the type and
    shape of a row, and the points whose toys have it; ``n_toys``: toys in the file.
``task_point``, ``task_chunk``, ``task_toys``
    For each chunk in the file its point, its place at that point, its number of toys; sorted by point and chunk.
one array a column
    Rows are toys, in the order of the chunks: ``numpy.repeat(task_point, task_toys)`` is the point of each. A column that
    only some points have holds the toys of these alone.

Nothing in a file depends on when, where or in what order the toys were made: the same toys are the same bytes. Beside a file
under work stands its journal (:mod:`gbistat.inference.campaign_journal`), which `load_campaign` reads too.
"""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
import zlib
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from gbistat.errors import OutputError, ToyFileError
from gbistat.inference.campaign import Campaign, Columns, rows
from gbistat.inference.campaign_journal import journal_path, read_journal
from gbistat.inference.campaign_merge import merge_campaigns
from gbistat.inference.campaign_records import Header
from gbistat.terms.files import check_schema, parse_json
from gbistat.terms.validation import validate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from gbistat.inference.campaign import CampaignPlan
    from gbistat.typing import Json

__all__ = ["SCHEMA", "load_campaign", "merge_files", "read_campaign", "write_campaign"]

SCHEMA = "gbistat.toys/1"
HEADER = "header.json"
TASKS = ("task_point", "task_chunk", "task_toys")
_STAMP = (1980, 1, 1, 0, 0, 0)
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, KeyError, ValueError)


def write_campaign(path: Path, campaign: Campaign) -> Path:
    """Write a file of toys: beside its place first, then renamed, so that no half of it is ever seen.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as stream:
            _write(stream, campaign)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"{path} cannot be written: {error.strerror or error}; choose another place") from error
    return path


def _write(stream: IO[bytes], campaign: Campaign) -> None:
    places = campaign.places
    arrays: dict[str, NDArray[Any]] = {
        "task_point": np.array([place[0] for place in places], dtype="<i8"),
        "task_chunk": np.array([place[1] for place in places], dtype="<i8"),
        "task_toys": np.array([rows(campaign.chunks[place]) for place in places], dtype="<i8"),
    }
    arrays |= {name: campaign.column(name) for name in campaign.names}
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_member(HEADER), json.dumps(_header(campaign), indent=1, allow_nan=False) + "\n")
        for name, array in arrays.items():
            with archive.open(_member(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)


def _member(name: str) -> zipfile.ZipInfo:
    """Entry without a trace of the clock or of the operating system."""
    entry = zipfile.ZipInfo(name, _STAMP)
    entry.create_system = 3
    entry.external_attr = 0o644 << 16
    return entry


def _header(campaign: Campaign) -> Json:
    columns: Json = {}
    for point, chunk in campaign.places:
        for name, array in campaign.chunks[point, chunk].items():
            kind = columns.setdefault(name, {"dtype": array.dtype.str, "shape": list(array.shape[1:]), "points": []})
            if point not in kind["points"][-1:]:
                kind["points"].append(point)
    return {
        "schema": SCHEMA,
        "plan": campaign.plan.to_json(),
        "plan_sha256": campaign.plan.sha256,
        "versions": {name: list(found) for name, found in sorted(campaign.versions.items())},
        "columns": {name: columns[name] for name in campaign.names},
        "n_toys": campaign.n_done(),
    }


def read_campaign(path: Path) -> Campaign:
    """Read a file of toys.

    Parameters
    ----------
    path : Path
        File that :func:`write_campaign` wrote.

    Returns
    -------
    Campaign
        Its plan and its chunks.

    Raises
    ------
    ToyFileError
        If it is missing, damaged, of another kind, or of a newer version: names the file and the reason.
    """
    try:
        with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            return _read(path, archive)
    except FileNotFoundError:
        raise ToyFileError(f"there is no file of toys {path}; check the path") from None
    except OSError as error:
        raise ToyFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except ToyFileError:
        raise
    except _DAMAGE as error:
        raise ToyFileError(
            f"{path} is not a file of toys, or is damaged: {_reason(error)}; get it again, or run its part again"
        ) from error


def _reason(error: Exception) -> str:
    return f"it has no {error.args[0]}" if isinstance(error, KeyError) and error.args else " ".join(str(error).split())


def _read(path: Path, archive: zipfile.ZipFile) -> Campaign:
    where = str(path)
    if HEADER not in archive.namelist():
        raise ToyFileError(f"{where} is not a file of toys: it is an archive without {HEADER}")
    data = parse_json(_content(archive, HEADER), where=f"{HEADER} of {where}", error=ToyFileError)
    check_schema(data, SCHEMA, where=where, error=ToyFileError)
    header = validate(Header, data, error=ToyFileError, where=f"{where} is damaged: {HEADER}")
    plan = header.plan.plan(where)
    if plan.sha256 != header.plan_sha256:
        raise ToyFileError(f"{where} is damaged: its plan does not have the hash that stands in it")
    wanted = [f"{name}.npy" for name in (*TASKS, *header.columns)]
    if sorted(archive.namelist()) != sorted([HEADER, *wanted]):
        raise ToyFileError(f"{where} is damaged: its arrays are not those that its header lists")
    point, chunk, toys = (_array(archive, name) for name in TASKS)
    _check_tasks(where, plan, point, chunk, toys)
    if int(toys.sum()) != header.n_toys:
        raise ToyFileError(f"{where} is damaged: it does not hold the number of toys that its header gives")
    places = list(zip(point.tolist(), chunk.tolist(), strict=True))
    chunks: dict[tuple[int, int], Columns] = {place: {} for place in places}
    for name, kind in sorted(header.columns.items()):
        array = _array(archive, name)
        having = np.isin(point, kind.points)
        if array.shape != (int(toys[having].sum()), *kind.shape) or array.dtype.str != kind.dtype:
            raise ToyFileError(f"{where} is damaged: column {name!r} has not the type and length that its header gives")
        ends = np.cumsum(toys * having)
        for i in np.flatnonzero(having):
            chunks[places[i]][name] = array[ends[i] - toys[i] : ends[i]]
    if not all(chunks.values()):
        raise ToyFileError(f"{where} is damaged: it has chunks without any column")
    return Campaign(plan, chunks, dict(header.versions))


def _check_tasks(where: str, plan: CampaignPlan, point: NDArray[Any], chunk: NDArray[Any], toys: NDArray[Any]) -> None:
    arrays = (point, chunk, toys)
    if any(a.ndim != 1 or a.dtype.str != "<i8" for a in arrays) or len({len(a) for a in arrays}) > 1:
        raise ToyFileError(f"{where} is damaged: its lists of chunks do not fit together")
    places = list(zip(point.tolist(), chunk.tolist(), strict=True))
    inside = all(0 <= p < plan.n_points and c >= 0 for p, c in places)
    if not inside or places != sorted(set(places)):
        raise ToyFileError(f"{where} is damaged: its chunks are not in order, or not in its plan")
    if any(not 1 <= n <= plan.size_of(*place) for place, n in zip(places, toys.tolist(), strict=True)):
        raise ToyFileError(f"{where} is damaged: a chunk has more toys than its plan asks for")


def _content(archive: zipfile.ZipFile, member: str) -> bytes:
    """Bytes of a member; reading it to its end checks its CRC."""
    entry = archive.getinfo(member)
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 0x1:
        raise ValueError(f"{member} is compressed or encrypted, which files of toys never are")
    return archive.read(entry)


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    content = io.BytesIO(_content(archive, f"{name}.npy"))
    array: NDArray[Any] = np.lib.format.read_array(content, allow_pickle=False)
    return array


def load_campaign(path: Path) -> Campaign:
    """Read a file of toys and what a running or killed job left in the journal beside it.

    Raises
    ------
    ToyFileError
        If there is neither, or one of them is damaged or of another campaign.
    """
    journal = journal_path(path)
    if not journal.exists():
        return read_campaign(path)
    found = [read_journal(journal)]
    names = [str(journal)]
    if path.exists():
        found.append(read_campaign(path))
        names.append(str(path))
    return merge_campaigns(found, names)


def merge_files(paths: Sequence[Path], output: Path) -> Campaign:
    """Merge files of toys of one plan into one; any order of them gives the same bytes.

    Parameters
    ----------
    paths : sequence of Path
        Files, with their journals if jobs were killed.
    output : Path
        Where to write; may be one of them.

    Returns
    -------
    Campaign
        What was written.

    Raises
    ------
    ToyFileError
        If a file is missing or damaged, or two belong to different campaigns.
    OutputError
        If the output cannot be written.
    """
    campaigns = [load_campaign(path) for path in paths]
    merged = merge_campaigns(campaigns, [str(path) for path in paths])
    write_campaign(output, merged)
    return merged
