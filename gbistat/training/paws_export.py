"""From a finished training of a parametrised classifier to a model on disk."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat.data.window import MassWindow
from gbistat.errors import OutputError, TermError
from gbistat.terms.metadata import TERM_SCHEMA, TermMetadata
from gbistat.terms.network import NetworkTerm
from gbistat.terms.store import member_records, save_model
from gbistat.terms.validation import validate
from gbistat.training.card import dump_card
from gbistat.training.export import (
    PARITY_EVENTS,
    REFERENCE_DIGITS,
    best_network,
    log_kappa_record,
    model_spec,
    training_record,
    transform_text,
)
from gbistat.training.grading import rounded
from gbistat.training.graph import check_parity, to_onnx
from gbistat.training.logit_calibration import apply_line
from gbistat.training.paws_errors import FURTHEST, scale_study, strength_error
from gbistat.training.paws_generated import load_paws_generator
from gbistat.training.paws_grading import PawsGrader, as_paws_events, fit_paws_shapes
from gbistat.training.paws_model_card import paws_model_card
from gbistat.training.paws_run import load_paws_run
from gbistat.training.paws_smoothing import smoothing_study

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gbistat.data.events import Events
    from gbistat.terms.metadata import Parity
    from gbistat.terms.store import LoadedModel
    from gbistat.training.grading import MassShapes
    from gbistat.training.logit_calibration import LogitLine
    from gbistat.training.paws_card import PawsCard
    from gbistat.training.paws_errors import ScaleStudy
    from gbistat.training.paws_run import PawsRun
    from gbistat.training.paws_smoothing import Normaliser, SmoothingStudy
    from gbistat.typing import Json

__all__ = ["export_paws"]

PARITY_NODES = 4
STRENGTH = "closure"
"""Nuisance for what closure says of the strength."""


def export_paws(
    run_directory: str | Path, output: str | Path, *, normaliser: Normaliser, overwrite: bool = False
) -> LoadedModel:
    """Write the model of a finished run, whole or not at all.

    Parameters
    ----------
    run_directory : path
        Folder that `gbistat.training.paws.train_paws` filled.
    output : path
        Folder of the model, for example ``models/dijet-paws``.
    normaliser : callable
        From a ratio, reference events and ln of the ratio of the mass densities at these to the ln kappa that a fit would give it, a function of
        points of shape (g, 2), or to ``None``: :func:`gbistat.training_workflow.fitted_log_kappa`.
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
        If Keras, its backend or tf2onnx is not installed.

    Notes
    -----
    The one ln kappa of the term is the bridge estimate over all masses. Where the masses are free in a fit, kappa at
    each of them is computed from the reference events that the model carries.
    """
    if Path(output).exists() and not overwrite:
        raise OutputError(f"{output} already exists; choose another place or allow overwriting")
    run = load_paws_run(run_directory)
    card, held_out = run.card, run.held_out()
    lines = [_line(run, member) for member in range(card.optimiser.members)]
    networks = [best_network(run, member) for member in range(card.optimiser.members)]
    for network, line in zip(networks, lines, strict=True):
        apply_line(network, line)
    shapes, grader = fit_paws_shapes(card, held_out), PawsGrader(card, held_out)
    smoothing, scale = _calibrated(run, grader, shapes, networks, normaliser)
    networks = list(smoothing.best.networks)
    if scale.map is not None:
        networks = [scale.map.applied(network) for network in networks]
    graphs = _graphs(networks)
    draft = _term(run, graphs, log_kappa={"value": 0.0, "sigma": 0.0, "method": "none yet"})
    parity = check_parity(
        networks,
        draft,
        as_paws_events(grader.parity_rows(PARITY_EVENTS), card),
        against="Keras networks on held-out signal and background, masses on a grid",
        points=_grid(card),
    )
    study, record = grader.normalise(draft)
    log_kappa = log_kappa_record(study, record)
    term = _term(run, graphs, log_kappa=log_kappa, parity=parity)
    reference = _reference(run, grader, term)
    checks: Any = rounded(
        {
            "log_kappa": record,
            **grader.grade(term, reference),
            "smoothing": smoothing.to_json(),
            "mass_scale": scale.to_json(),
            "mass_shapes": shapes.checks,
        },
    )
    term = _term(run, graphs, log_kappa=log_kappa, parity=parity, checks=checks)
    spec = model_spec(run, shapes)
    tau = strength_error(checks["masses_never_trained"])
    signal = spec.signal.model_copy(
        update={"mass_scale": dict(scale.error), "efficiency": {STRENGTH: tau} if tau > 0 else {}}
    )
    return save_model(
        output,
        spec.model_copy(update={"signal_": signal}),
        terms=[term],
        reference=reference,
        reference_description=_reference_description(card),
        digits=REFERENCE_DIGITS,
        files={"README.md": paws_model_card(run, term.metadata, shapes).encode(), "card.yaml": dump_card(card)},
        overwrite=overwrite,
    )


def _graphs(networks: Sequence[Any]) -> dict[str, bytes]:
    return {f"member_{index}.onnx": to_onnx(network) for index, network in enumerate(networks)}


def _calibrated(
    run: PawsRun, grader: PawsGrader, shapes: MassShapes, networks: Sequence[Any], normaliser: Normaliser
) -> tuple[SmoothingStudy, ScaleStudy]:
    """Networks whose smoothing is that of the highest likelihood, and where they find held-out signal, normalised as in a fit."""
    card = run.card

    def draft(some: Sequence[Any]) -> NetworkTerm:
        return _term(run, _graphs(some), log_kappa={"value": 0.0, "sigma": 0.0, "method": "none yet"})

    study, record = grader.normalise(draft(networks))
    term = _term(run, _graphs(networks), log_kappa=log_kappa_record(study, record))
    reference = _reference(run, grader, term).in_window(MassWindow(*card.model.window, unit=card.unit))
    # The densities need no normalisation on the window: a constant moves no mass.
    base = shapes.signal.density.prepare(reference.mass / card.signal.resonance).log_prob(shapes.signal.array)
    base -= shapes.background.density.prepare(reference.mass).log_prob(shapes.background.array)
    smoothing = smoothing_study(
        networks, card, run.scaling, grader.signal, reference, base, as_term=draft, normaliser=normaliser
    )
    best = smoothing.best
    wider = tuple(
        quantity.model_copy(update={"low": item.low * math.exp(-FURTHEST), "high": item.high * math.exp(FURTHEST)})
        for quantity, item in zip(best.term.metadata.parameters, card.parameters, strict=True)
    )
    roomy = replace(best.term, metadata=best.term.metadata.model_copy(update={"parameters": wider}))
    return smoothing, scale_study(roomy, grader.signal, card, best.log_kappa)


def _reference(run: PawsRun, grader: PawsGrader, term: NetworkTerm) -> Events:
    card = run.card
    if card.background.generator is not None and card.model.reference == "background":
        record = run.splits[-1]
        generator = load_paws_generator(card, tuple(record["mass_shape"]))
        if generator.model.sha256 != record["sha256"]:
            raise OutputError(
                f"the generator {card.background.generator!r} is another one than that which {run.directory} was trained with; "
                "train again in a new folder"
            )
        return grader.generated_reference(term, generator)
    if card.model.reference == "mixed":
        return grader.mixed_reference(term)
    return as_paws_events(grader.reference(), card)


def _line(run: PawsRun, member: int) -> LogitLine:
    line = run.line(member)
    if line is None:
        raise OutputError(f"{run.directory} is not finished (member {member}); run the training again, it goes on")
    return line


def _grid(card: PawsCard) -> list[dict[str, float]]:
    axes = [np.linspace(item.low, item.high, PARITY_NODES).tolist() for item in card.parameters]
    return [dict(zip(card.masses, node, strict=True)) for node in product(*axes)]


def _term(
    run: PawsRun,
    graphs: Mapping[str, bytes],
    *,
    log_kappa: Json,
    parity: Parity | None = None,
    checks: Json | None = None,
) -> NetworkTerm:
    card = run.card
    low, high = card.model.valid
    generator = card.background.generator
    roles = [
        "background",
        "signal",
        *("signal" for _ in card.benchmarks),
        *([] if generator is None else ["background"]),
    ]
    settings: Json = {
        "symmetric": card.symmetric,
        "smoothing": card.smoothing,
        "relative_smoothing": card.relative_smoothing,
        "resolution": card.resolution,
        "peak": card.peak,
        "near": card.near,
        "rescale": card.rescale,
        "generator": generator,
        "compare": None if card.compare is None else list(card.compare),
        "copies": card.copies,
        "train_range": list(card.train_range),
        "signal_range": list(card.signal_range),
        "logit_lines": [asdict(_line(run, member)) for member in range(card.optimiser.members)],
    }
    data = {
        "schema": TERM_SCHEMA,
        "name": card.term,
        "kind": "density_ratio",
        "features": [
            {
                "name": item.name,
                "unit": item.unit,
                "low": item.low,
                "high": None,
                "role": "feature",
                "transform": transform_text(item.log_offset, item.unit),
            }
            for item in card.inputs
        ],
        "mass": {"name": card.mass, "unit": card.unit, "low": low, "high": high},
        "parameters": [
            {"name": item.name, "unit": item.unit, "low": item.low, "high": item.high} for item in card.parameters
        ],
        "combine": "mean_ratio" if len(graphs) > 1 else "none",
        "members": [item.to_json() for item in member_records(graphs)],
        "log_kappa": log_kappa,
        "parity": None if parity is None else parity.to_json(),
        "training": training_record(run, roles, settings),
        "checks": checks or {},
    }
    metadata = validate(TermMetadata, data, error=TermError, where=f"term {card.term!r}")
    return NetworkTerm(metadata, tuple(graphs.values()))


def _reference_description(card: PawsCard) -> str:
    low, high = card.model.valid
    if card.background.generator is not None:
        drawn = f"background drawn from {card.background.generator}, {low:g} <= {card.mass} < {high:g} {card.unit}"
        if card.model.reference == "background":
            return (
                f"{drawn}; trained nothing; events that look like signal were kept more often, and the weights undo it"
            )
    else:
        drawn = (
            f"background of {card.background.file}, part 'reference' of the split with seed {card.seed}, "
            f"{low:g} <= {card.mass} < {high:g} {card.unit}"
        )
    text = f"{drawn}; trained nothing"
    if card.model.reference == "background":
        return text
    return (
        f"{text}; with it the part 'reference' of {card.signal.file}; the weights rho_b / (rho_b + rho_s r), with r averaged over the "
        "masses of these signal events, make both together stand for background"
    )
