"""A model with a nuisance of its background's features: a copy of a model on disk with one ratio term more."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gbistat.errors import ModelError
from gbistat.terms.certificates import DIAGNOSTICS, certified_terms
from gbistat.terms.files import new_folder, parse_json, plain_json, sha256
from gbistat.terms.model_spec import TiltSpec
from gbistat.terms.store import load_model, save_term

if TYPE_CHECKING:
    from gbistat.terms.network import NetworkTerm
    from gbistat.terms.store import LoadedModel

__all__ = ["save_tilted"]


def save_tilted(
    model: LoadedModel,
    directory: str | Path,
    term: NetworkTerm,
    *,
    parameter: str = "background_tilt",
    overwrite: bool = False,
) -> LoadedModel:
    """Write a copy of a model whose background tilts with the weights of a classifier, p_b w^nu / Z(nu).

    Parameters
    ----------
    model : LoadedModel
        A model on disk.
    directory : path
        Folder of the copy; made whole or not at all.
    term : NetworkTerm
        The ratio w of data to background.
    parameter : str
        Name of nu.
    overwrite : bool, default False
        Whether a model there is replaced.

    Returns
    -------
    LoadedModel
        The copy as it loads from disk, without the certificate of the original; valid where the ratio is.

    Raises
    ------
    ModelError
        If the model has no folder, has a tilt or a term of that name already, or the term is no ratio.
    OutputError
        If the folder exists or cannot be written.
    """
    if model.directory is None:
        raise ModelError(f"model {model.name!r} stands in a run card and has no folder to copy")
    if model.spec.background.tilt is not None or term.name in model.spec.terms:
        raise ModelError(f"model {model.name!r} already has a term {term.name!r} or a tilt; take the model without it")
    if not term.metadata.is_ratio:
        raise ModelError(f"the tilt {term.name!r} is a {term.metadata.kind}; it must be a density_ratio")
    target = Path(directory)
    with new_folder(target, marker="model.json", overwrite=overwrite) as partial:
        shutil.copytree(model.directory, partial, dirs_exist_ok=True, symlinks=True)
        (partial / DIAGNOSTICS).unlink(missing_ok=True)
        graphs = dict(zip((record.file for record in term.metadata.members), term.graphs, strict=True))
        save_term(partial / "terms" / term.name, term.metadata, graphs)
        content = parse_json((partial / "model.json").read_bytes(), where="model.json", error=ModelError)
        content["terms"] = [*content["terms"], term.name]
        mass, valid = term.metadata.mass, model.spec.valid or model.spec.background.fit_range
        content["valid"] = [max(mass.low, valid[0]), min(mass.high, valid[1])]
        content["background"]["tilt"] = TiltSpec(term=term.name, parameter=parameter).to_json()
        for name in certified_terms(model.spec):
            file = partial / "terms" / name / "term.json"
            data = parse_json(file.read_bytes(), where=str(file), error=ModelError)
            if data.pop("certificate", None) is not None:
                file.write_bytes(plain_json(data))
        files = [record["file"] for record in content["files"]] + [f"terms/{term.name}/term.json"]
        content["files"] = [{"file": file, "sha256": sha256((partial / file).read_bytes())} for file in files]
        (partial / "model.json").write_bytes(plain_json(content))
        loaded = load_model(partial)
    return replace(loaded, directory=target)
