"""Certificates of backgrounds in the metadata of terms: attached to a model on disk, and read again.

The long form is ``diagnostics.json`` in the folder of the model, the short form `gbistat.terms.metadata.CertificateRecord` in
``term.json``. The hash of a model leaves certificates out, so that a certificate can name the model that it is of.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

from gbistat.errors import ModelError
from gbistat.terms.files import new_folder, parse_json, plain_json, sha256
from gbistat.terms.store import LoadedModel, load_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gbistat.terms.metadata import CertificateRecord
    from gbistat.terms.model_spec import ModelSpec
    from gbistat.typing import Json

__all__ = ["DIAGNOSTICS", "attach_certificate", "certificate_of", "certified_terms"]

DIAGNOSTICS = "diagnostics.json"
"""Name of the long form in the folder of a model."""


def certified_terms(spec: ModelSpec) -> tuple[str, ...]:
    """Terms that carry the certificate: the generator, or else the ratios of the signal to the background."""
    if spec.background.features is not None:
        return (spec.background.features,)
    return spec.signal.ratios if spec.has_signal else ()


def certificate_of(model: LoadedModel) -> CertificateRecord | None:
    """Certificate that a model carries; None if it has none."""
    for name in certified_terms(model.spec):
        if (found := model.terms[name].metadata.certificate) is not None:
            return found
    return None


def attach_certificate(model: LoadedModel, certificate: CertificateRecord, document: bytes) -> LoadedModel:
    """Write a certificate into a model on disk, long form and short form; an earlier one is replaced.

    Parameters
    ----------
    model : LoadedModel
        With a folder, and a generator or a ratio.
    certificate : CertificateRecord
        Short form; its two hashes are filled in here.
    document : bytes
        Long form.

    Returns
    -------
    LoadedModel
        The model as it loads from disk: its hash is the one that it had without certificate.

    Raises
    ------
    ModelError
        If the model has no folder, or no term whose background a certificate could be of.
    OutputError
        If the folder cannot be written; it is replaced whole or not at all.
    """
    names = certified_terms(model.spec)
    if model.directory is None or not names:
        raise ModelError(
            f"model {model.name!r} has no folder, or no generator and no ratio: there is no term to put a certificate into"
        )
    with new_folder(model.directory, marker="model.json", overwrite=True) as partial:
        shutil.copytree(model.directory, partial, dirs_exist_ok=True, symlinks=True)
        (partial / DIAGNOSTICS).write_bytes(document)
        short = certificate.model_copy(update={"diagnostics_sha256": sha256(document)})
        _write(partial, names, short)
        tested = load_model(partial).sha256
        _write(partial, names, short.model_copy(update={"model_sha256": tested}))
        loaded = load_model(partial)
    return replace(loaded, directory=model.directory)


def _write(folder: Path, names: tuple[str, ...], certificate: CertificateRecord) -> None:
    """Put a certificate into each term.json, and their new hashes into model.json; all else stays as it is."""
    digests = {}
    for name in names:
        file = f"terms/{name}/term.json"
        _edit(folder / file, lambda data: data | {"certificate": certificate.to_json()})
        digests[file] = sha256((folder / file).read_bytes())

    def with_digests(data: Json) -> Json:
        files = [record | {"sha256": digests.get(record["file"], record["sha256"])} for record in data.get("files", [])]
        return data | {"files": files}

    _edit(folder / "model.json", with_digests)


def _edit(path: Path, change: Callable[[Json], Json]) -> None:
    data = change(parse_json(path.read_bytes(), where=str(path), error=ModelError))
    path.write_bytes(plain_json(data))
