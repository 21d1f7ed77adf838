"""What becomes of a certificate: files, the metadata of a model, and a model whose background tilts along what was seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gbistat.diagnose_inputs import read_pairs
from gbistat.diagnostics.saved import CERTIFICATE
from gbistat.errors import ModelError, OptionError, OutputError
from gbistat.report.document import to_text
from gbistat.report.files import check_writable, write_text
from gbistat.steps import silent
from gbistat.terms.certificates import attach_certificate
from gbistat.terms.store import load_model
from gbistat.terms.tilted import save_tilted
from gbistat.training.tilt import train_tilt

if TYPE_CHECKING:
    from pathlib import Path

    from gbistat.config import RunOptions
    from gbistat.diagnose_inputs import DiagnoseRequest
    from gbistat.diagnostics.certificate import Certificate
    from gbistat.steps import Steps
    from gbistat.terms.store import LoadedModel

__all__ = ["attach_to_model", "export_tilt", "write_certificate"]


def write_certificate(certificate: Certificate, directory: Path) -> list[Path]:
    """Write ``diagnostics.json`` and the figures.

    Raises
    ------
    OutputError
        If the folder or a file cannot be written.
    """
    from gbistat.plotting.certificate import save_certificate

    check_writable(directory)
    written = [write_text(directory / CERTIFICATE, to_text(certificate.to_dict()))]
    return written + save_certificate(certificate, directory)


def attach_to_model(certificate: Certificate, options: RunOptions, request: DiagnoseRequest) -> Path:
    """Put a certificate into the generator that it is about, or into the model: its term's metadata, and the long form beside.

    Raises
    ------
    ModelError
        If the model has no folder (it stands in a run card).
    OutputError
        If the folder cannot be written.
    """
    model = options.model if request.generator is None else load_model(request.generator)
    attached = attach_certificate(model, certificate.short(), to_text(certificate.to_dict()).encode())
    if attached.directory is None:
        raise ModelError(f"model {model.name!r} has no folder")
    return attached.directory / CERTIFICATE


def export_tilt(
    options: RunOptions,
    request: DiagnoseRequest,
    directory: Path,
    *,
    certificate: Certificate | None = None,
    steps: Steps = silent,
) -> LoadedModel:
    """Write a copy of the generator, or of the model, with a nuisance that tilts the background with classifier weights.

    Parameters
    ----------
    options, request
        As for `run_diagnose`: the same pairs of events train the classifiers of the tilt.
    directory : Path
        Folder of the copy.
    certificate : Certificate, optional
        Put into the copy.
    steps : callable, optional
        Told about each step.

    Raises
    ------
    GbistatError
        As for `run_diagnose`; or the window is unblinded, where a signal would become background; or the copy cannot be written.
    """
    if request.unblind:
        raise OptionError("a tilt learned in the signal window would take a signal for background; leave --unblind out")
    target = options.model if request.generator is None else load_model(request.generator)
    if directory.exists():
        raise OutputError(f"{directory} already exists; choose another place for the model with the tilt")
    rng = np.random.default_rng(request.seed)
    pairs = read_pairs(options, request, rng=rng, steps=steps)
    mass = options.model.spec
    with steps("classifiers of the tilt"):
        term = train_tilt(pairs.data, pairs.generated, rng=rng, valid=mass.valid or mass.background.fit_range)
    model = save_tilted(target, directory, term)
    if certificate is None:
        return model
    return attach_certificate(model, certificate.short(), to_text(certificate.to_dict()).encode())
