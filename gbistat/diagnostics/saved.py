"""Certificates on disk, as other commands read them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from gbistat.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CERTIFICATE", "saved_verdict"]

CERTIFICATE = "diagnostics.json"
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
