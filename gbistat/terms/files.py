"""Files of exported terms and models: paths that stay inside their folder, hashes, JSON, folders written whole."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, NoReturn

from gbistat.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gbistat.errors import GbistatError
    from gbistat.terms.validation import Record
    from gbistat.typing import Json

__all__ = [
    "bare_digests",
    "check_schema",
    "dump_json",
    "inside",
    "new_folder",
    "parse_json",
    "plain_json",
    "read_inside",
    "read_verified",
    "sha256",
]


def sha256(content: bytes) -> str:
    """Hexadecimal SHA-256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def bare_digests(model: Json, terms: Mapping[str, Json]) -> dict[str, str]:
    """Hashes that ``model.json`` and the ``term.json`` with certificates would have without these.

    Parameters
    ----------
    model : mapping
        Content of ``model.json``.
    terms : mapping of str to mapping
        File to content of each ``term.json`` with a certificate.
    """
    bare = {
        file: sha256(plain_json({k: v for k, v in data.items() if k != "certificate"})) for file, data in terms.items()
    }
    files = [record | {"sha256": bare.get(record["file"], record["sha256"])} for record in model.get("files", [])]
    return bare | {"model.json": sha256(plain_json(model | {"files": files}))}


def inside(folder: Path, file: str, error: type[GbistatError]) -> Path:
    """Path of a file that a JSON file names, refused if it leaves the folder.

    Raises
    ------
    GbistatError
        Of class `error`: absolute path, ``..``, backslash or drive, or a symbolic link that leads outside.
    """
    pure = PurePosixPath(file)
    if PureWindowsPath(file).anchor or ".." in pure.parts or "\\" in file or "\0" in file:
        raise error(
            f"{folder}: the file {file!r} points outside its own folder, which is refused; "
            "write a plain relative path such as 'member_0.onnx'"
        )
    path = folder / pure
    try:
        target, home = path.resolve(), folder.resolve()
    except (OSError, RuntimeError) as problem:  # RuntimeError: a loop of links, before Python 3.13
        raise error(f"{path} leads nowhere: {problem}; put the file itself there") from None
    if not target.is_relative_to(home):
        raise error(
            f"{path} is a link to {target}, outside its own folder, which is refused; put the file itself there"
        )
    return path


def read_inside(folder: Path, file: str, *, error: type[GbistatError], way_out: str) -> bytes:
    """Bytes of a file inside a folder.

    Raises
    ------
    GbistatError
        Of class `error`: the path leaves the folder, or the file is missing or cannot be read.
    """
    path = inside(folder, file, error)
    try:
        content = path.read_bytes() if path.is_file() else None
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror or problem}; check its name and permissions") from None
    if content is None:
        raise error(f"{path} is missing or not a file; {way_out}")
    return content


def read_verified(
    folder: Path, file: str, expected: str, *, source: str, error: type[GbistatError], way_out: str
) -> bytes:
    """Bytes of a file whose hash is known.

    Parameters
    ----------
    folder : Path
        Folder that the file must stay in.
    file : str
        Relative path.
    expected : str
        SHA-256 that `source` gives.
    source : str
        Name of the JSON file with the expected hash.
    error : type
        Class of the error to raise.
    way_out : str
        What to do about a missing or a changed file.

    Raises
    ------
    GbistatError
        Of class `error`, if the file is outside, missing, or has another hash.
    """
    content = read_inside(folder, file, error=error, way_out=way_out)
    found = sha256(content)
    if found != expected:
        raise error(
            f"{folder / file} is not the file that {source} describes: its sha256 begins with {found[:12]}, "
            f"expected {expected[:12]}; {way_out}"
        )
    return content


def parse_json(content: bytes, *, where: str, error: type[GbistatError]) -> Json:
    """Mapping that JSON bytes hold.

    Raises
    ------
    GbistatError
        Of class `error`: not UTF-8, not JSON (with line and column), NaN or Infinity, a key given twice, or not a
        mapping.
    """

    def refuse_constant(name: str) -> NoReturn:
        raise error(f"{where} has {name}, which is not JSON; write a finite number, or null where there is none")

    def unique(pairs: list[tuple[str, Any]]) -> Json:
        data = dict(pairs)
        if len(data) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise error(f"{where} has the key {twice!r} twice in one place; keep one")
        return data

    try:
        data = json.loads(content.decode("utf-8"), parse_constant=refuse_constant, object_pairs_hook=unique)
    except UnicodeDecodeError:
        raise error(f"{where} is not JSON: it is not UTF-8 text; restore the file") from None
    except json.JSONDecodeError as problem:
        raise error(
            f"{where} is not JSON: {problem.msg} at line {problem.lineno}, column {problem.colno}; "
            "repair or restore the file"
        ) from None
    except RecursionError:
        raise error(f"{where} is nested too deeply to be what it should be; restore the file") from None
    if not isinstance(data, dict):
        raise error(f"{where} holds a JSON {type(data).__name__}; it must hold a mapping of names to values")
    return data


def check_schema(data: Json, known: str, *, where: str, error: type[GbistatError]) -> None:
    """Check the ``schema`` entry before anything else is read.

    Raises
    ------
    GbistatError
        Of class `error`: no schema, a schema of something else, or one of a newer version.
    """
    found = data.get("schema")
    if found == known:
        return
    family, version = known.split("/")
    match = re.fullmatch(re.escape(family) + r"/(\d+)", found) if isinstance(found, str) else None
    if match is not None and int(match[1]) > int(version):
        raise error(
            f"{where} has schema {found!r}, newer than the {known!r} that this gbistat reads; "
            "upgrade it (pip install --upgrade gbistat) or export again with this version"
        )
    says = "has no schema" if found is None else f"has the unknown schema {found!r}"
    raise error(f'{where} {says}; it must say "schema": "{known}"; is this the right file?')


def dump_json(record: Record, *, error: type[GbistatError], where: str, indent: int | None = 2) -> bytes:
    """UTF-8 JSON of a record, with a newline at the end.

    Raises
    ------
    GbistatError
        Of class `error`, if a free value inside is NaN or infinite: JSON has no such number.
    """
    try:
        return plain_json(record.to_json(), indent=indent)
    except ValueError as problem:
        raise error(f"{where} cannot be written as JSON: {problem}; replace NaN and inf by null") from None


def plain_json(data: Json, *, indent: int | None = 2) -> bytes:
    """UTF-8 JSON as every file of a model has it: hashes depend on it.

    Raises
    ------
    ValueError
        If a number is NaN or infinite.
    """
    return (json.dumps(data, indent=indent, allow_nan=False, ensure_ascii=False) + "\n").encode()


@contextmanager
def new_folder(directory: Path, *, marker: str, overwrite: bool) -> Iterator[Path]:
    """Folder that appears whole or not at all: written beside its place, then renamed.

    Parameters
    ----------
    directory : Path
        Where the folder shall be.
    marker : str
        File that a folder must hold to be replaced; protects a folder of something else.
    overwrite : bool
        Whether an existing folder with the marker is replaced, with all that is in it.

    Yields
    ------
    Path
        Temporary folder to write into.

    Raises
    ------
    OutputError
        If the place is taken or cannot be written.
    """
    directory = directory.absolute()
    taken = directory.exists() or directory.is_symlink()
    if taken and not overwrite:
        raise OutputError(f"{directory} already exists; choose another place or allow overwriting")
    if taken and not (directory / marker).is_file():
        raise OutputError(f"{directory} exists and holds no {marker}, so it is not replaced; choose another place")
    token = secrets.token_hex(4)
    partial = directory.with_name(f".{directory.name}.{token}.partial")
    old = directory.with_name(f".{directory.name}.{token}.old")
    try:
        partial.mkdir(parents=True)
        yield partial
        if taken:
            directory.rename(old)
        partial.rename(directory)
    except OSError as problem:
        raise OutputError(
            f"{directory} cannot be written: {problem.strerror or problem}; choose another place"
        ) from None
    finally:
        if old.exists() and not directory.exists():
            old.rename(directory)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(partial, ignore_errors=True)
