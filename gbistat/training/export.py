"""From a finished training run to a model on disk: ONNX graphs, normalisation, checks, mass shapes, reference events."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat.errors import ModelError, OutputError, TermError
from gbistat.terms.metadata import TERM_SCHEMA, TermMetadata
from gbistat.terms.model_spec import MODEL_SCHEMA, ModelSpec
from gbistat.terms.network import NetworkTerm
from gbistat.terms.store import member_records, save_model
from gbistat.terms.validation import validate
from gbistat.training.card import dump_card
from gbistat.training.grading import Grader, MassShapes, as_events, fit_mass_shapes, rounded
from gbistat.training.graph import check_parity, to_onnx
from gbistat.training.model_card import model_card
from gbistat.training.run import load_run
from gbistat.training.schedule import outlook

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gbistat.terms.metadata import Parity
    from gbistat.terms.store import LoadedModel
    from gbistat.training.card import RatioCard
    from gbistat.training.kappa import KappaStudy
    from gbistat.training.paws_run import PawsRun
    from gbistat.training.run import RatioRun
    from gbistat.typing import Json

__all__ = [
    "best_network",
    "export_ratio",
    "log_kappa_record",
    "model_spec",
    "training_record",
    "transform_text",
]

PARITY_EVENTS = 10_000
REFERENCE_DIGITS = 5


def export_ratio(run_directory: str | Path, output: str | Path, *, overwrite: bool = False) -> LoadedModel:
    """Write the model of a finished run, whole or not at all.

    Parameters
    ----------
    run_directory : path
        Folder that `gbistat.training.ratio.train_ratio` filled.
    output : path
        Folder of the model, for example ``models/dijet-qq-3500``.
    overwrite : bool, default False
        Whether an existing model there is replaced.

    Returns
    -------
    LoadedModel
        The model as it loads from disk.

    Raises
    ------
    OutputError
        If the run is not finished or damaged, or the output cannot be written.
    TermError
        If a graph differs from its network by more than 1e-4 in the logit.
    FitFailed
        If the fit of a mass shape does not converge.
    MissingExtra
        If Keras, TensorFlow or tf2onnx is not installed.

    Notes
    -----
    ln kappa is the bridge estimate on held-out signal and background (`gbistat.training.kappa`). Its sigma contains the
    statistical error, a significant scatter between bins of the mass beyond it, and by how much the mean over the
    background alone differs beyond twice the error of the difference.
    """
    if Path(output).exists() and not overwrite:
        raise OutputError(f"{output} already exists; choose another place or allow overwriting")
    run = load_run(run_directory)
    card, held_out = run.card, run.held_out()
    networks = [best_network(run, member) for member in range(card.optimiser.members)]
    graphs = {f"member_{index}.onnx": to_onnx(network) for index, network in enumerate(networks)}
    grader = Grader(card, held_out, fit_mass_shapes(card, held_out))
    draft = _term(run, graphs, log_kappa={"value": 0.0, "sigma": 0.0, "method": "none yet"})
    parity = check_parity(
        networks, draft, grader.parity_events(PARITY_EVENTS), against="Keras networks on held-out signal and background"
    )
    study, record = grader.normalise(draft)
    log_kappa = log_kappa_record(study, record)
    term = _term(run, graphs, log_kappa=log_kappa, parity=parity)
    checks: Any = rounded({"log_kappa": record, **grader.grade(term)})
    term = _term(run, graphs, log_kappa=log_kappa, parity=parity, checks=checks)
    mixed = card.model.reference == "mixed"
    reference = grader.mixed_reference(term) if mixed else as_events(grader.reference(), card)
    return save_model(
        output,
        model_spec(run, grader.shapes),
        terms=[term],
        reference=reference,
        reference_description=_reference_description(card),
        digits=REFERENCE_DIGITS,
        files={"README.md": model_card(run, term.metadata, grader.shapes).encode(), "card.yaml": dump_card(card)},
        overwrite=overwrite,
    )


def best_network(run: RatioRun | PawsRun, member: int) -> Any:
    """Trained network of a member.

    Raises
    ------
    OutputError
        If the member is not finished, or its file is damaged.
    """
    folder = run.member(member)
    if not outlook([epoch.validation_loss for epoch in folder.history()], run.card.optimiser).stop:
        raise OutputError(f"{run.directory} is not finished (member {member}); run the training again, it goes on")
    return folder.load("best")


def _term(
    run: RatioRun,
    graphs: Mapping[str, bytes],
    *,
    log_kappa: Json,
    parity: Parity | None = None,
    checks: Json | None = None,
) -> NetworkTerm:
    card = run.card
    low, high = card.model.valid
    data = {
        "schema": TERM_SCHEMA,
        "name": card.term,
        "kind": "density_ratio",
        "features": [
            {
                "name": item.name,
                "unit": item.unit,
                "low": low if item.name == card.mass else item.low,
                "high": high if item.name == card.mass else None,
                "role": "conditional" if item.name == card.mass else "feature",
                "transform": transform_text(item.log_offset, item.unit),
            }
            for item in card.inputs
        ],
        "mass": {"name": card.mass, "unit": card.unit, "low": low, "high": high},
        "combine": "mean_ratio" if len(graphs) > 1 else "none",
        "members": [record.to_json() for record in member_records(graphs)],
        "log_kappa": log_kappa,
        "parity": None if parity is None else parity.to_json(),
        "training": training_record(
            run, ["background", *("signal" for _ in card.signals)], {"balance": card.balance.to_json()}
        ),
        "checks": checks or {},
    }
    metadata = validate(TermMetadata, data, error=TermError, where=f"term {card.term!r}")
    return NetworkTerm(metadata, tuple(graphs.values()))


def transform_text(log_offset: float | None, unit: str) -> str:
    """What the graph does to an input before its layers, in words."""
    if log_offset is None:
        return "standardised"
    inner = "x" if log_offset == 0 else f"x + {log_offset:g}" + ("" if unit == "1" else f" {unit}")
    return f"ln({inner}), standardised"


def log_kappa_record(study: KappaStudy, record: Json) -> Json:
    """Entry ``log_kappa`` of a term."""
    verdict = "agrees" if study.agree else "differs by more than twice the error of the difference, sigma enlarged"
    return {
        "value": float(f"{study.bridge.value:.6g}"),
        "sigma": float(f"{study.sigma:.4g}"),
        "method": (
            "bridge estimator (Bennett 1976) on held-out signal and background with equal weights; the mean over the "
            f"background {verdict}"
        ),
        "n_reference": record["n_background"],
        "effective_size": float(f"{study.effective_size:.5g}"),
    }


def training_record(run: RatioRun | PawsRun, roles: Sequence[str], settings: Json) -> Json:
    """Entry ``training`` of a term: losses, versions, events by role, and settings."""
    card = run.card
    histories = [run.member(member).history() for member in range(card.optimiser.members)]
    best = [min(history, key=lambda epoch: epoch.validation_loss) for history in histories]
    return {
        "seed": card.seed,
        "library_versions": run.versions,
        "epochs": sum(len(history) for history in histories),
        "loss": float(np.mean([epoch.loss for epoch in best])),
        "validation_loss": float(np.mean([epoch.validation_loss for epoch in best])),
        "data": [
            {"file": split["file"], "sha256": split["sha256"], "n_events": count, "role": f"{role} {part}"}
            for split, role in zip(run.splits, roles, strict=True)
            for part, count in split["counts"].items()
        ],
        "settings": {
            "network": card.network.to_json(),
            "optimiser": card.optimiser.to_json(),
            **settings,
            "epochs_of_members": [len(history) for history in histories],
            "validation_losses_of_members": [epoch.validation_loss for epoch in best],
        },
    }


def model_spec(run: RatioRun | PawsRun, shapes: MassShapes) -> ModelSpec:
    """What the model is: the ratio, mass shapes, ranges and provenance.

    Raises
    ------
    ModelError
        If the card gives no valid model.
    """
    card = run.card
    signal = {name: float(f"{value:.6g}") for name, value in shapes.signal.values.items()}
    parameters = {
        name: {"times_center": value} if name in ("mean", "sigma") else value for name, value in signal.items()
    }
    data = {
        "schema": MODEL_SCHEMA,
        "name": card.name,
        "description": card.description,
        "mass": {"name": card.mass, "unit": card.unit},
        "features": list(card.features),
        "window": list(card.model.window),
        "valid": list(card.model.valid),
        "signal": {
            "mass": {"shape": "double_crystal_ball", "parameters": parameters},
            "ratios": [card.term],
            "yield": {"poi": "mu", "nominal": 1.0},
            "spurious": {"sigma": card.model.spurious_signal or None},
        },
        "background": {
            "mass": {
                "shape": "dijet",
                "options": {"n_parameters": card.model.background_parameters, "sqrt_s": card.model.sqrt_s},
            },
            "fit_range": list(card.model.fit_range),
            "yield": "sideband",
        },
        "terms": [card.term],
        "provenance": {"splits": run.splits, "mass_shapes": rounded(shapes.checks)},
    }
    return validate(ModelSpec, data, error=ModelError, where=f"model {card.name!r}")


def _reference_description(card: RatioCard) -> str:
    low, high = card.model.valid
    text = (
        f"background of {card.background.file}, part 'reference' of the split with seed {card.seed}, "
        f"{low:g} <= {card.mass} < {high:g} {card.unit}; trained nothing, fixed kappa and the checks"
    )
    if card.model.reference == "background":
        return text
    files = ", ".join(spec.file for spec in card.signals)
    return (
        f"{text}; with it the same part of {files}, moved over the range of the mass; the weights "
        "rho_b / (rho_b + rho_s r) make both together stand for background"
    )
