"""Terms and models on disk: found by name or path, checked on loading, written whole or not at all."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING

from gbistat.errors import ModelError, TermError, nearest
from gbistat.terms.files import (
    bare_digests,
    check_schema,
    dump_json,
    inside,
    new_folder,
    parse_json,
    read_inside,
    read_verified,
    sha256,
)
from gbistat.terms.metadata import TERM_SCHEMA, FileRecord, TermMetadata
from gbistat.terms.model_spec import MODEL_SCHEMA, ModelSpec, ReferenceFile
from gbistat.terms.network import NetworkTerm
from gbistat.terms.reference import events_from_json, events_to_json
from gbistat.terms.validation import validate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gbistat.data.events import Events
    from gbistat.typing import Json

__all__ = [
    "LoadedModel",
    "find_model",
    "inline_model",
    "load_model",
    "load_reference",
    "load_term",
    "member_records",
    "save_model",
    "save_term",
    "shipped_models",
    "with_checks",
]

_EXPORT_AGAIN = "copy the folder again or export it again (gbistat export)"
_PROSE = frozenset({"README.md", "diagnostics.json"})
"""Files beside a model whose hashes are not in ``model.json``."""
_BESIDE = frozenset({".json", ".md", ".txt", ".yaml", ".yml"})


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model with its terms.

    Parameters
    ----------
    spec : ModelSpec
        Content of ``model.json``.
    directory : Path or None
        Its folder; None for a model written in a run card.
    terms : mapping of str to NetworkTerm
        Terms by name.
    sha256 : str
        Hash over the hashes of the model's files: equal for equal models. Certificates are left out: a model keeps its
        hash when it gets one.
    """

    spec: ModelSpec
    directory: Path | None
    terms: Mapping[str, NetworkTerm] = field(default_factory=dict)
    sha256: str = ""

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.spec.name


def member_records(graphs: Mapping[str, bytes]) -> tuple[FileRecord, ...]:
    """Records for `TermMetadata.members` from file names and graphs, in their order."""
    return tuple(FileRecord(file=file, sha256=sha256(graph)) for file, graph in graphs.items())


def save_term(
    directory: str | Path, metadata: TermMetadata, members: Mapping[str, bytes], *, overwrite: bool = False
) -> NetworkTerm:
    """Write a term: ``term.json`` and its graphs.

    Parameters
    ----------
    directory : path
        The term's folder; made whole or not at all.
    metadata : TermMetadata
        Its members as `member_records` makes them.
    members : mapping of str to bytes
        File name (``member_0.onnx``) to graph.
    overwrite : bool, default False
        Whether an existing term is replaced.

    Returns
    -------
    NetworkTerm
        The term as it loads from disk.

    Raises
    ------
    TermError
        If members and metadata disagree, or a graph is damaged or refers to another file.
    OutputError
        If the folder exists or cannot be written.
    """
    target = Path(directory)
    with new_folder(target, marker="term.json", overwrite=overwrite) as partial:
        _write_term(partial, metadata, members)
        return load_term(partial)


def _write_term(folder: Path, metadata: TermMetadata, members: Mapping[str, bytes]) -> None:
    expected = {record.file: record.sha256 for record in (*metadata.members, *metadata.samplers)}
    if {file: sha256(graph) for file, graph in members.items()} != expected:
        raise TermError(
            f"term {metadata.name!r}: the graphs given ({', '.join(members)}) are not the members in its metadata "
            f"({', '.join(expected)}), by name or by hash; make the records with member_records"
        )
    for file, graph in members.items():
        _check_member(folder, file)
        (folder / file).write_bytes(graph)
    content = dump_json(metadata, error=TermError, where=f"term {metadata.name!r}")
    (folder / "term.json").write_bytes(content)


def _check_member(folder: Path, file: str) -> None:
    inside(folder, file, TermError)
    if PurePosixPath(file).suffix != ".onnx" or "/" in file:
        raise TermError(
            f"{folder}: the member {file!r} is not an .onnx file of this folder; terms hold JSON and ONNX only"
        )


def load_term(directory: str | Path) -> NetworkTerm:
    """Read a term; schema, paths and hashes are checked, and nothing else than JSON and ONNX is read.

    Raises
    ------
    TermError
        Missing or damaged file, newer or unknown schema, wrong hash, a path outside the folder, or a graph with
        references to other files.
    """
    folder = Path(directory)
    content = read_inside(folder, "term.json", error=TermError, way_out="is this the folder of a term?")
    return _parse_term(folder, content)


def _parse_term(folder: Path, content: bytes) -> NetworkTerm:
    where = str(folder / "term.json")
    data = parse_json(content, where=where, error=TermError)
    check_schema(data, TERM_SCHEMA, where=where, error=TermError)
    metadata = validate(TermMetadata, data, error=TermError, where=where)
    graphs, samplers = (
        tuple(_read_graph(folder, record) for record in records) for records in (metadata.members, metadata.samplers)
    )
    return NetworkTerm(metadata, graphs, samplers=samplers)


def _read_graph(folder: Path, record: FileRecord) -> bytes:
    _check_member(folder, record.file)
    return read_verified(folder, record.file, record.sha256, source="term.json", error=TermError, way_out=_EXPORT_AGAIN)


def save_model(
    directory: str | Path,
    spec: ModelSpec,
    *,
    terms: Sequence[NetworkTerm] = (),
    reference: Events | None = None,
    reference_description: str = "",
    digits: int | None = None,
    files: Mapping[str, bytes] | None = None,
    overwrite: bool = False,
) -> LoadedModel:
    """Write a model: ``model.json``, its terms, its reference events and files beside them.

    Parameters
    ----------
    directory : path
        The model's folder; made whole or not at all.
    spec : ModelSpec
        What the model is; its `reference` and `files` are filled in here.
    terms : sequence of NetworkTerm
        The terms that ``spec.terms`` names.
    reference : Events, optional
        Held-out background events.
    reference_description : str
        Where they come from.
    digits : int, optional
        Significant digits of the reference events, all by default.
    files : mapping of str to bytes, optional
        Files at the top of the folder, for example ``README.md`` and ``card.yaml``. All but the README are hashed.
    overwrite : bool, default False
        Whether an existing model is replaced, with everything in its folder.

    Returns
    -------
    LoadedModel
        The model as it loads from disk.

    Raises
    ------
    ModelError, TermError
        If terms and specification disagree, or something would not load again.
    OutputError
        If the folder exists or cannot be written.
    """
    names = [term.name for term in terms]
    if sorted(names) != sorted(spec.terms):
        raise ModelError(f"model {spec.name!r} lists the terms {list(spec.terms)} and was given {names}; give the same")
    target = Path(directory)
    with new_folder(target, marker="model.json", overwrite=overwrite) as partial:
        written = dict(files or {})
        for file, content in written.items():
            _check_beside(partial, file)
            (partial / file).write_bytes(content)
        hashed = [FileRecord(file=file, sha256=sha256(written[file])) for file in written if file not in _PROSE]
        for term in terms:
            folder = partial / "terms" / term.name
            folder.mkdir(parents=True)
            records = (*term.metadata.members, *term.metadata.samplers)
            graphs = dict(zip((record.file for record in records), (*term.graphs, *term.samplers), strict=True))
            _write_term(folder, term.metadata, graphs)
            file = f"terms/{term.name}/term.json"
            hashed.append(FileRecord(file=file, sha256=sha256((partial / file).read_bytes())))
        record = None
        if reference is not None:
            content = events_to_json(reference, description=reference_description, digits=digits)
            (partial / "reference.json").write_bytes(content)
            record = ReferenceFile(file="reference.json", sha256=sha256(content), description=reference_description)
        complete = spec.model_copy(update={"reference": record, "files": tuple(hashed)})
        (partial / "model.json").write_bytes(dump_json(complete, error=ModelError, where=f"model {spec.name!r}"))
        loaded = load_model(partial)
    return LoadedModel(loaded.spec, target, loaded.terms, loaded.sha256)


def _check_beside(folder: Path, file: str) -> None:
    inside(folder, file, ModelError)
    reserved = {"model.json", "reference.json"}
    if PurePosixPath(file).suffix not in _BESIDE or "/" in file or file in reserved:
        raise ModelError(
            f"{file!r} cannot be stored in a model; files beside model.json are {', '.join(sorted(_BESIDE))} at the "
            "top of the folder"
        )


def load_model(name_or_path: str | Path) -> LoadedModel:
    """Read a model by the name of a shipped one or by its folder.

    Every hash in ``model.json`` and in each ``term.json`` is checked. onnxruntime is not needed yet.

    Raises
    ------
    ModelError
        No such model (nearest names offered), missing or damaged file, newer or unknown schema, wrong hash, a path
        outside the folder, or terms that do not fit the model.
    TermError
        The same about a term.
    """
    folder = find_model(name_or_path)
    where = str(folder / "model.json")
    content = read_inside(folder, "model.json", error=ModelError, way_out=_EXPORT_AGAIN)
    data = parse_json(content, where=where, error=ModelError)
    check_schema(data, MODEL_SCHEMA, where=where, error=ModelError)
    if "name" not in data:
        raise ModelError(f'{where} has no name; add "name": "{folder.name}"')
    spec = validate(ModelSpec, data, error=ModelError, where=where)
    hashes = {"model.json": sha256(content)}
    for record in (*spec.files, *([] if spec.reference is None else [spec.reference])):
        _read_model_file(folder, record)
        hashes[record.file] = record.sha256
    terms = {}
    certified: dict[str, Json] = {}
    for name in spec.terms:
        term_folder = inside(folder, f"terms/{name}", ModelError)
        term_json = read_inside(folder, f"terms/{name}/term.json", error=ModelError, way_out=_EXPORT_AGAIN)
        terms[name] = _parse_term(term_folder, term_json)
        hashes[f"terms/{name}/term.json"] = sha256(term_json)
        records = (*terms[name].metadata.members, *terms[name].metadata.samplers)
        hashes |= {f"terms/{name}/{record.file}": record.sha256 for record in records}
        if terms[name].metadata.certificate is not None:
            file = f"terms/{name}/term.json"
            certified[file] = parse_json(term_json, where=file, error=TermError)
        _check_term(where, spec, name, terms[name].metadata)
    hashes |= bare_digests(data, certified) if certified else {}
    total = sha256("".join(f"{digest}  {file}\n" for file, digest in sorted(hashes.items())).encode())
    return LoadedModel(spec, folder, MappingProxyType(terms), total)


def with_checks(model: LoadedModel, term: str, checks: Json) -> LoadedModel:
    """Write a model again with more measured properties in the metadata of one term.

    Parameters
    ----------
    model : LoadedModel
        A model on disk without reference events.
    term : str
        Name of the term.
    checks : mapping
        Added to its ``checks``, as JSON.

    Raises
    ------
    ModelError
        If the model is not on disk or has reference events, or there is no such term.
    OutputError
        If the folder cannot be written.
    """
    if model.directory is None or model.spec.reference is not None or term not in model.terms:
        raise ModelError(f"model {model.name!r} cannot be given checks of a term {term!r}; export it again")
    folder = model.directory
    names = [record.file for record in model.spec.files if "/" not in record.file]
    names += [file for file in ("README.md",) if (folder / file).is_file()]
    metadata = model.terms[term].metadata
    # A certificate is of the model as it was.
    measured = metadata.model_copy(update={"checks": {**metadata.checks, **checks}, "certificate": None})
    terms = [replace(t, metadata=measured) if name == term else t for name, t in model.terms.items()]
    content = {name: (folder / name).read_bytes() for name in names}
    return save_model(folder, model.spec, terms=terms, files=content, overwrite=True)


def _read_model_file(folder: Path, record: FileRecord) -> bytes:
    return read_verified(
        folder, record.file, record.sha256, source="model.json", error=ModelError, way_out=_EXPORT_AGAIN
    )


def _check_term(where: str, spec: ModelSpec, name: str, term: TermMetadata) -> None:
    if term.name != name:
        raise ModelError(f"{where} lists the term {name!r}, and its term.json has the name {term.name!r}; rename one")
    if (term.mass.name, term.mass.unit) != (spec.mass.name, spec.mass.unit):
        raise ModelError(
            f"{where} has the mass {spec.mass.name!r} in {spec.mass.unit}, and its term {name!r} has "
            f"{term.mass.name!r} in {term.mass.unit}; they must be the same"
        )
    for feature in term.feature_names:
        if feature != spec.mass.name and feature not in spec.features:
            raise ModelError(
                f"{where}: term {name!r} needs the feature {feature!r}, which features does not list; "
                f"{nearest(feature, spec.features)}"
            )
    if name == spec.background.features and (term.kind != "density" or not term.samplers):
        raise ModelError(
            f"{where}: background.features has {name!r}, which is a {term.kind} without samplers; it must be a density of "
            "the features at given mass that can be drawn from"
        )
    if spec.has_signal and name in spec.signal.all_ratios and not term.is_ratio:
        raise ModelError(
            f"{where}: signal.ratios has {name!r}, which is a {term.kind}; a ratio must be a density_ratio"
        )
    tilt = spec.background.tilt
    if tilt is not None and name == tilt.term and (not term.is_ratio or term.parameters):
        raise ModelError(
            f"{where}: background.tilt has {name!r}, a {term.kind} with {len(term.parameters)} parameter(s); it must be a "
            "density_ratio of data to background without any"
        )
    if spec.has_signal and name == spec.signal.density and term.kind != "signal_density":
        raise ModelError(
            f"{where}: signal.density has {name!r}, which is a {term.kind}; it must be a signal_density (gbistat train ranode)"
        )
    for what, interval in (("valid", spec.valid), ("window", spec.window)):
        if interval is not None and not (term.mass.low <= interval[0] and interval[1] <= term.mass.high):
            raise ModelError(
                f"{where}: {what} {interval[0]:g}-{interval[1]:g} is wider than the {term.mass.low:g}-{term.mass.high:g} "
                f"{term.mass.unit} in which term {name!r} is valid; narrow it"
            )


def inline_model(spec: ModelSpec) -> LoadedModel:
    """Model written in a run card: no files, so no terms and no reference events.

    Raises
    ------
    ModelError
        If the specification names terms, reference events or files.
    """
    if spec.terms or spec.reference is not None or spec.files:
        raise ModelError(
            f"model {spec.name!r} is written in a run card and names files (terms, reference or files); "
            "networks come from an exported model: give its name or folder instead"
        )
    text = json.dumps(spec.to_json(), sort_keys=True)
    return LoadedModel(spec, None, MappingProxyType({}), sha256(text.encode()))


def load_reference(model: LoadedModel) -> Events | None:
    """Held-out background events of a model; None if it has none.

    Raises
    ------
    ModelError
        If the file is missing, changed or damaged, or its mass is not the model's.
    """
    record = model.spec.reference
    if record is None or model.directory is None:
        return None
    where = str(model.directory / record.file)
    events = events_from_json(_read_model_file(model.directory, record), where=where)
    wanted, found = (model.spec.mass.name, model.spec.mass.unit), (events.mass_name, events.unit)
    if found != wanted:
        raise ModelError(f"{where} has the mass {found[0]!r} in {found[1]}, and the model {wanted[0]!r} in {wanted[1]}")
    for feature in model.spec.features:
        if feature not in events.names:
            raise ModelError(f"{where} lacks the model's feature {feature!r}; {nearest(feature, events.names)}")
    return events


def shipped_models() -> dict[str, Path]:
    """Folders of the models that come with gbistat, by name."""
    package = Path(__file__).resolve().parents[1]
    # In a wheel the models are inside the package, in a checkout beside it.
    for folder in (package / "models", package.parent / "models"):
        found = {path.parent.name: path.parent for path in sorted(folder.glob("*/model.json"))}
        if found:
            return found
    return {}


def find_model(name_or_path: str | Path) -> Path:
    """Folder of a model.

    A bare name means a shipped model if there is one of that name, whatever the working directory holds; write
    ``./name`` for a folder. The path of a ``model.json`` stands for its folder.

    Raises
    ------
    ModelError
        If there is neither such a shipped model nor such a folder.
    """
    shipped = shipped_models()
    if isinstance(name_or_path, str) and name_or_path in shipped:
        return shipped[name_or_path]
    path = Path(name_or_path)
    folder = path.parent if path.name == "model.json" else path
    try:
        found, is_folder = (folder / "model.json").is_file(), folder.is_dir()
    except OSError as problem:
        raise ModelError(
            f"model {str(path)!r} cannot be read: {problem.strerror}; check name and permissions"
        ) from None
    if found:
        return folder
    if is_folder:
        raise ModelError(f"{folder} is not a model: it has no model.json; give the folder that 'gbistat export' wrote")
    raise ModelError(
        f"there is no model {str(name_or_path)!r}: neither a folder nor a shipped model; "
        f"{nearest(str(name_or_path), shipped)}"
    )
