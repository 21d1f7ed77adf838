"""From a finished background training to a model on disk: density and sampling graphs, parity, held-out likelihood."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat.data.events import Events
from gbistat.errors import ModelError, OutputError, TermError
from gbistat.terms.generator import GeneratorTerm
from gbistat.terms.metadata import TERM_SCHEMA, Parity, TermMetadata
from gbistat.terms.model_spec import MODEL_SCHEMA, ModelSpec
from gbistat.terms.network import NetworkTerm, log_mean
from gbistat.terms.store import member_records, save_model
from gbistat.terms.validation import validate
from gbistat.training.background import build_member, final_weights
from gbistat.training.background_model_card import background_model_card
from gbistat.training.background_run import load_background_run
from gbistat.training.card import dump_card
from gbistat.training.flow import log_density, sample_flow
from gbistat.training.graph import to_onnx

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gbistat.terms.store import LoadedModel
    from gbistat.training.background_card import BackgroundCard
    from gbistat.training.background_run import BackgroundRun
    from gbistat.training.flow import Flow
    from gbistat.typing import FloatArray, Json

__all__ = ["LARGEST_DIFFERENCE", "LARGEST_MEAN_DIFFERENCE", "check_density_parity", "export_background"]

PARITY_EVENTS = 10_000
LARGEST_DIFFERENCE = 1e-4
LARGEST_MEAN_DIFFERENCE = 5e-6
LARGEST_SHIFT = 1e-3
"""Of a sampled feature, in standard deviations of its sidebands."""
SLICES = 8


def export_background(
    run_directory: str | Path, output: str | Path, *, overwrite: bool = False, checks: Mapping[str, Any] | None = None
) -> LoadedModel:
    """Write the model of a finished run, whole or not at all.

    Parameters
    ----------
    run_directory : path
        Folder that `gbistat.training.background.train_background` filled.
    output : path
        Folder of the model, for example ``models/dijet-background``.
    overwrite : bool, default False
        Whether an existing model there is replaced.
    checks : mapping, optional
        More measured properties for ``term.json``, as JSON.

    Returns
    -------
    LoadedModel
        The model as it loads from disk.

    Raises
    ------
    OutputError
        If the run is not finished or damaged, or the output cannot be written.
    TermError
        If a graph differs from its network by more than 1e-4 in ln p at one event, or by more than 5e-6 on average.
    MissingExtra
        If Keras, TensorFlow or tf2onnx is not installed.
    """
    if Path(output).exists() and not overwrite:
        raise OutputError(f"{output} already exists; choose another place or allow overwriting")
    run = load_background_run(run_directory)
    card, held_out = run.card, run.held_out()
    flows = [_finished(run, member) for member in range(card.optimiser.members)]
    graphs = {f"member_{index}.onnx": to_onnx(flow.density) for index, flow in enumerate(flows)}
    samplers = {f"sampler_{index}.onnx": to_onnx(flow.sampler) for index, flow in enumerate(flows)}
    draft = _term(run, graphs, samplers)
    parity = check_density_parity(flows, draft, _spread(held_out, PARITY_EVENTS))
    sampling = _sampler_parity(flows, draft, run, held_out)
    found = {"held_out": _held_out_likelihood(draft, held_out, run), "sampler_parity": sampling, **(checks or {})}
    term = _term(run, graphs, samplers, parity=parity, checks=_rounded(found))
    return save_model(
        output,
        _model(run),
        terms=[term],
        files={"README.md": background_model_card(run, term.metadata).encode(), "card.yaml": dump_card(card)},
        overwrite=overwrite,
    )


def _finished(run: BackgroundRun, member: int) -> Flow:
    folder = run.member(member)
    final = folder.final()
    if final is None:
        raise OutputError(f"{run.directory} is not finished (member {member}); run the training again, it goes on")
    flow = build_member(run, member)
    flow.set_weights(final_weights(folder, final.epochs))
    return flow


def _spread(x: FloatArray, count: int) -> FloatArray:
    """Events spread evenly over a sample, or repeated if there are fewer than wanted."""
    return x[np.linspace(0, len(x), count, endpoint=False).astype(np.int64)]


def _as_events(x: FloatArray, term: NetworkTerm) -> Events:
    metadata = term.metadata
    units = {item.name: item.unit for item in metadata.features}
    return Events(x[:, 0], x[:, 1:], metadata.feature_names[1:], units, mass_name=metadata.mass.name)


def check_density_parity(flows: Sequence[Flow], term: NetworkTerm, x: FloatArray) -> Parity:
    """Compare each graph of a density with the network that it was exported from.

    Parameters
    ----------
    flows : sequence of Flow
        The members in order.
    term : NetworkTerm
        Their graphs.
    x : array of shape (n, 1 + d)
        Mass and features of held-out events.

    Raises
    ------
    TermError
        If a difference of ln p is larger than 1e-4, or the mean of a member larger than 5e-6.
    """
    differences = np.abs(term.member_values(_as_events(x, term)) - np.stack([log_density(flow, x) for flow in flows]))
    worst, mean = float(differences.max()), float(differences.mean(axis=1).max())
    if not (worst <= LARGEST_DIFFERENCE and mean <= LARGEST_MEAN_DIFFERENCE):
        raise TermError(
            f"term {term.name!r}: ln p differs between Keras and ONNX by up to {worst:.3g} and by {mean:.3g} on average on "
            f"{len(x)} events, and {LARGEST_DIFFERENCE:g} and {LARGEST_MEAN_DIFFERENCE:g} are allowed; nothing was written. "
            "Check the versions of tf2onnx and onnxruntime, or take a smaller flow"
        )
    against = "Keras networks on held-out sideband events; mean of the worst member"
    return Parity(max_abs=worst, mean_abs=mean, n_events=len(x), against=against)


def _sampler_parity(flows: Sequence[Flow], term: NetworkTerm, run: BackgroundRun, held_out: FloatArray) -> Json:
    """Largest difference of a sampled feature between Keras and ONNX, and of a sample taken back by the density."""
    generator = GeneratorTerm(term)
    mass = _spread(held_out, PARITY_EVENTS)[:, 0]
    latent = np.random.default_rng([run.card.seed, 14]).standard_normal((len(mass), len(run.card.features)))
    deviation = held_out[:, 1:].std(axis=0)
    worst = 0.0
    for index, flow in enumerate(flows):
        shift = generator.transform(latent, mass, index) - sample_flow(flow, np.column_stack([mass, latent]))
        worst = max(worst, float(np.max(np.abs(shift) / deviation)))
    if not worst <= LARGEST_SHIFT:
        raise TermError(
            f"term {term.name!r}: a sampled feature differs between Keras and ONNX by up to {worst:.3g} of its standard "
            f"deviation, and {LARGEST_SHIFT:g} is allowed; nothing was written"
        )
    return {"max_shift": worst, "n_events": len(mass)}


def _held_out_likelihood(term: NetworkTerm, held_out: FloatArray, run: BackgroundRun) -> Json:
    """Mean ln p per held-out sideband event, of the ensemble and of each member, and in slices of the mass."""
    values = term.member_values(_as_events(held_out, term))
    together = log_mean(values)
    n = len(held_out)
    edges = np.quantile(held_out[:, 0], np.linspace(0.0, 1.0, SLICES + 1))
    rows = []
    for low, high in itertools.pairwise(edges.tolist()):
        inside = (held_out[:, 0] >= low) & ((held_out[:, 0] < high) | (high == edges[-1]))
        spread = float(np.mean(values[:, inside].std(axis=0, ddof=1))) if len(values) > 1 else None
        part = together[inside]
        rows.append({
            "low": low, "high": high, "n_events": int(inside.sum()), "log_prob": float(part.mean()),
            "sigma": float(part.std() / np.sqrt(part.size)), "spread_of_members": spread,
        })  # fmt: skip
    return {
        "n_events": n,
        "log_prob": float(together.mean()),
        "sigma": float(together.std() / np.sqrt(n)),
        "log_prob_of_members": values.mean(axis=1).tolist(),
        "slices": rows,
    }


def _rounded(value: Any) -> Any:
    """Seven digits: what a float32 network gives."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value


def _term(
    run: BackgroundRun,
    graphs: Mapping[str, bytes],
    samplers: Mapping[str, bytes],
    *,
    parity: Parity | None = None,
    checks: Json | None = None,
) -> NetworkTerm:
    card, transform = run.card, run.scaling.transform
    low, high = card.train_range
    mass = {"name": card.mass, "unit": card.unit, "low": low, "high": high}
    words = {"role": "feature", "transform": "logit of the position in (low, high), standardised"}
    ranges = zip(card.inputs[1:], transform.low.tolist(), transform.high.tolist(), strict=True)
    data = {
        "schema": TERM_SCHEMA,
        "name": card.term,
        "kind": "density",
        "features": [
            {**mass, "role": "conditional", "transform": "ln x, standardised"},
            *(
                {"name": item.name, "unit": item.unit, "low": begin, "high": end, **words}
                for item, begin, end in ranges
            ),
        ],
        "mass": mass,
        "combine": "mean_density" if len(graphs) > 1 else "none",
        "members": [record.to_json() for record in member_records(graphs)],
        "samplers": [record.to_json() for record in member_records(samplers)],
        "parity": None if parity is None else parity.to_json(),
        "training": _training(run),
        "checks": checks or {},
    }
    metadata = validate(TermMetadata, data, error=TermError, where=f"term {card.term!r}")
    return NetworkTerm(metadata, tuple(graphs.values()), samplers=tuple(samplers.values()))


def _training(run: BackgroundRun) -> Json:
    card = run.card
    folders = [run.member(member) for member in range(card.optimiser.members)]
    histories = [folder.history() for folder in folders]
    finals = [final for folder in folders if (final := folder.final()) is not None]
    losses = [
        float(np.mean([history[e].loss for e in final.epochs]))
        for history, final in zip(histories, finals, strict=True)
    ]
    split = run.split
    return {
        "seed": card.seed,
        "library_versions": run.versions,
        "epochs": sum(len(history) for history in histories),
        "loss": float(np.mean(losses)),
        "validation_loss": float(np.mean([final.validation_loss for final in finals])),
        "data": [
            {"file": split["file"], "sha256": split["sha256"], "n_events": count, "role": f"background {part}"}
            for part, count in split["counts"].items()
        ],
        "settings": {
            "flow": card.flow.to_json(),
            "optimiser": card.optimiser.to_json(),
            "window_left_out": list(card.window),
            "sideband_events": run.counts,
            "epochs_of_members": [len(history) for history in histories],
            "epochs_averaged": [list(final.epochs) for final in finals],
            "validation_losses_of_members": [final.validation_loss for final in finals],
            "warnings": list(run.warnings),
        },
    }


def _model(run: BackgroundRun) -> ModelSpec:
    card: BackgroundCard = run.card
    data = {
        "schema": MODEL_SCHEMA,
        "name": card.name,
        "description": card.description,
        "mass": {"name": card.mass, "unit": card.unit},
        "features": list(card.features),
        "window": list(card.window),
        "valid": list(card.model.valid),
        "background": {
            "mass": {
                "shape": "dijet",
                "options": {"n_parameters": card.model.background_parameters, "sqrt_s": card.model.sqrt_s},
            },
            "features": card.term,
            "fit_range": list(card.model.fit_range),
            "yield": "sideband",
        },
        "terms": [card.term],
        "provenance": {"splits": [run.split]},
    }
    return validate(ModelSpec, data, error=ModelError, where=f"model {card.name!r}")
