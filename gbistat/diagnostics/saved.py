"""Certificates on disk, as other commands read them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from gbistat.errors import ModelError
from gbistat.terms.certificates import DIAGNOSTICS, certificate_of
from gbistat.terms.files import sha256

if TYPE_CHECKING:
    from pathlib import Path

    from gbistat.terms.metadata import CertificateRecord
    from gbistat.terms.store import LoadedModel

__all__ = ["CERTIFICATE", "certificate_note", "model_verdict", "saved_verdict"]

CERTIFICATE = DIAGNOSTICS
"""Name of a certificate in the folder of a model."""


def saved_verdict(directory: Path | None) -> str | None:
    """Verdict and first reason of the certificate in a folder; None if there is none.

    Parameters
    ----------
    directory : Path or None
        Folder of a model, or of results.

    Raises
    ------
    ModelError
        If there is a file of that name that is no certificate.
    """
    path = None if directory is None else directory / CERTIFICATE
    if path is None or not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return f"{content['verdict']} ({content['generator']} against {content['region']}): {content['reasons'][0]}"
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ModelError(f"{path} is no certificate ({error}); make it again with gbistat diagnose") from error


def model_verdict(model: LoadedModel) -> str | None:
    """Verdict that a model carries in the metadata of its terms, or beside them; None if it was never diagnosed."""
    return certificate_note(certificate_of(model), model.directory, model.sha256)


def certificate_note(certificate: CertificateRecord | None, directory: Path | None, model_sha256: str) -> str | None:
    """Verdict of a certificate, and what is wrong with the certificate itself.

    Parameters
    ----------
    certificate : CertificateRecord or None
        Short form; without it the long form alone is looked for.
    directory : Path or None
        Folder of the model.
    model_sha256 : str
        Hash of the model as it is.
    """
    if certificate is None:
        return saved_verdict(directory)
    text = f"{certificate.verdict} ({certificate.generator} against {certificate.region}): {certificate.statement}"
    if certificate.model_sha256 != model_sha256:
        text += f"; it is of another version of the model ({certificate.model_sha256[:12]}): diagnose it again"
    path = None if directory is None else directory / CERTIFICATE
    if path is not None and path.is_file() and sha256(path.read_bytes()) != certificate.diagnostics_sha256:
        text += f"; {CERTIFICATE} beside the model is not the one that it was made from"
    return text
