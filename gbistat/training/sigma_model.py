"""A SIGMA training from a card, and its export as the same kind of model that a sideband generator becomes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat.errors import EventsError, ModelError, OutputError, TermError
from gbistat.terms.metadata import TERM_SCHEMA, TermMetadata
from gbistat.terms.model_spec import MODEL_SCHEMA, ModelSpec
from gbistat.terms.network import NetworkTerm
from gbistat.terms.store import member_records, save_model
from gbistat.terms.validation import validate
from gbistat.training.background_export import check_density_parity
from gbistat.training.card import dump_card
from gbistat.training.graph import to_onnx
from gbistat.training.run import check_same_run
from gbistat.training.sidebands import check_features
from gbistat.training.sigma import train_sigma
from gbistat.training.sigma_card import load_sigma_card
from gbistat.training.sigma_graph import sigma_flow
from gbistat.training.sigma_run import load_sigma_run
from gbistat.training.splits import read_sample

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gbistat.terms.metadata import Parity
    from gbistat.terms.store import LoadedModel
    from gbistat.training.ratio import Progress
    from gbistat.training.sigma_card import SigmaCard
    from gbistat.training.sigma_run import SigmaRun
    from gbistat.typing import FloatArray, Json

__all__ = ["export_sigma", "train_sigma_card"]

PARITY_EVENTS = 10_000


def train_sigma_card(
    card: SigmaCard,
    run_directory: str | Path,
    *,
    events: str | Path | None = None,
    progress: Progress | None = None,
) -> SigmaRun:
    """Train what a card describes, or go on with it where an earlier call was stopped.

    Parameters
    ----------
    card : SigmaCard
        What to train; see `gbistat.training.sigma_card.load_sigma_card`.
    run_directory : path
        Folder of the run.
    events : path, optional
        Folder of the file of events; ``card.events`` by default.
    progress : callable, optional
        Told after every epoch.

    Raises
    ------
    EventsError
        If the events do not fit the card, a feature has no density, or a side of the window is empty.
    OutputError, FitFailed, MissingExtra
        As :func:`gbistat.training.sigma.train_sigma`.
    """
    folder = Path(run_directory)
    sample = read_sample(card.events if events is None else events, card.background, card)
    x = sample.part("train").matrix(card.names)
    x = x[(x[:, 0] >= card.train_range[0]) & (x[:, 0] < card.train_range[1])]
    for side, count in (("below", np.sum(x[:, 0] < card.edges[0])), ("above", np.sum(x[:, 0] >= card.edges[1]))):
        if count == 0:
            raise EventsError(
                f"no event {side} the window {card.edges[0]:g}-{card.edges[1]:g} {card.unit} (buffer included): the context "
                "cannot be interpolated; move the window or widen train_range"
            )
    check_features(x[:, 1:], card.features)
    bounds = [(item.low, item.high) for item in card.inputs[1:]]
    text = folder / "card.yaml"
    if text.is_file():
        check_same_run(folder, (load_sigma_card(text), card))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text.write_bytes(dump_card(card))
        _save_held_out(folder / "held_out.npz", sample.part("reference").matrix(card.names), card)
    except OSError as problem:
        raise OutputError(f"{folder} cannot be written: {problem.strerror or problem}; choose another place") from None
    return train_sigma(
        x[:, 1:],
        x[:, 0],
        card.features,
        folder,
        options=card.sigma.options(card.seed),
        bounds=bounds,
        record={"splits": [sample.record()]},
        progress=progress,
    )


def _save_held_out(path: Path, x: FloatArray, card: SigmaCard) -> None:
    inside = (x[:, 0] >= card.model.valid[0]) & (x[:, 0] < card.model.valid[1])
    partial = path.with_name(".held_out.partial.npz")
    np.savez_compressed(partial, background=x[inside])
    partial.replace(path)


def export_sigma(
    run_directory: str | Path, output: str | Path, *, overwrite: bool = False, checks: Mapping[str, Any] | None = None
) -> LoadedModel:
    """Write the model of a finished run for the window of its card, whole or not at all.

    Parameters
    ----------
    run_directory : path
        Folder that `train_sigma_card` filled.
    output : path
        Folder of the model.
    overwrite : bool, default False
        Whether an existing model there is replaced.
    checks : mapping, optional
        Measured properties for ``term.json``, as JSON.

    Returns
    -------
    LoadedModel
        The model as it loads from disk; its term is evaluated and drawn from like that of a sideband flow.

    Raises
    ------
    OutputError
        If the run is not finished or damaged, or the output cannot be written.
    TermError
        If a graph differs from its network by more than 1e-4 in ln p at one event, or by more than 5e-6 on average.
    MissingExtra
        If Keras, TensorFlow or tf2onnx is not installed.

    Notes
    -----
    The Runge-Kutta steps are written out in the graphs, so that a runtime without Keras integrates; converting them takes a
    minute or two. For another window change ``window`` in a copy of the card, or ask
    :func:`gbistat.training.sigma_graph.sigma_density`: nothing is trained again.
    """
    if Path(output).exists() and not overwrite:
        raise OutputError(f"{output} already exists; choose another place or allow overwriting")
    folder = Path(run_directory)
    run, card = load_sigma_run(folder), load_sigma_card(folder / "card.yaml")
    flow = sigma_flow(run, card.edges, steps=card.steps, name=card.term)
    graphs = {"member_0.onnx": to_onnx(flow.density)}
    samplers = {"sampler_0.onnx": to_onnx(flow.sampler)}
    with np.load(folder / "held_out.npz", allow_pickle=False) as arrays:
        held_out: FloatArray = arrays["background"]
    held_out = held_out[run.transform.inside(held_out[:, 1:].astype(np.float32).astype(np.float64))]
    rows = np.linspace(0, len(held_out), PARITY_EVENTS, endpoint=False).astype(np.int64)
    parity = check_density_parity([flow], _term(run, card, graphs, samplers), held_out[rows])
    term = _term(run, card, graphs, samplers, parity=parity, checks=dict(checks or {}))
    return save_model(
        output,
        _model(run, card),
        terms=[term],
        files={"README.md": _prose(run, card).encode(), "card.yaml": dump_card(card)},
        overwrite=overwrite,
    )


def _term(
    run: SigmaRun,
    card: SigmaCard,
    graphs: Mapping[str, bytes],
    samplers: Mapping[str, bytes],
    *,
    parity: Parity | None = None,
    checks: Json | None = None,
) -> NetworkTerm:
    low, high = run.mass_range
    mass = {"name": card.mass, "unit": card.unit, "low": low, "high": high}
    ends = zip(card.inputs[1:], run.transform.low.tolist(), run.transform.high.tolist(), strict=True)
    words = {"role": "feature", "transform": "logit of the position in (low, high), standardised"}
    history = run.history()
    data = {
        "schema": TERM_SCHEMA,
        "name": card.term,
        "kind": "density",
        "features": [
            {**mass, "role": "conditional", "transform": "ln x over the range of training, to [-1, 1]"},
            *({"name": item.name, "unit": item.unit, "low": begin, "high": end, **words} for item, begin, end in ends),
        ],
        "mass": mass,
        "members": [record.to_json() for record in member_records(graphs)],
        "samplers": [record.to_json() for record in member_records(samplers)],
        "parity": None if parity is None else parity.to_json(),
        "training": {
            "seed": card.seed,
            "library_versions": run.record["versions"],
            "epochs": len(history),
            "loss": min(epoch.loss for epoch in history),
            "validation_loss": min(epoch.validation_loss for epoch in history),
            "data": [
                {"file": split["file"], "sha256": split["sha256"], "n_events": count, "role": f"background {part}"}
                for split in run.record["splits"]
                for part, count in split["counts"].items()
            ],
            "settings": {"sigma": card.sigma.to_json(), "interpolated": list(card.edges), "steps": card.steps},
        },
        "checks": checks or {},
    }
    metadata = validate(TermMetadata, data, error=TermError, where=f"term {card.term!r}")
    return NetworkTerm(metadata, tuple(graphs.values()), samplers=tuple(samplers.values()))


def _model(run: SigmaRun, card: SigmaCard) -> ModelSpec:
    part = card.model
    # Rounding must not put the ends of the fit outside what was trained.
    valid = [max(part.valid[0], run.mass_range[0]), min(part.valid[1], run.mass_range[1])]
    data = {
        "schema": MODEL_SCHEMA,
        "name": card.name,
        "description": card.description,
        "mass": {"name": card.mass, "unit": card.unit},
        "features": list(card.features),
        "window": list(card.window),
        # Outside its window the exported model is not blinded: it serves this window only.
        "valid": list(card.window),
        "background": {
            "mass": {"shape": "dijet", "options": {"n_parameters": part.background_parameters, "sqrt_s": part.sqrt_s}},
            "features": card.term,
            "fit_range": [min(part.fit_range[0], valid[0]), max(part.fit_range[1], valid[1])],
            "yield": "sideband",
        },
        "terms": [card.term],
        "provenance": {"splits": run.record["splits"]},
    }
    return validate(ModelSpec, data, error=ModelError, where=f"model {card.name!r}")


def _prose(run: SigmaRun, card: SigmaCard) -> str:
    low, high = card.edges
    return (
        f"# {card.name}\n\n{card.description}\n\n"
        f"SIGMA (arXiv:2410.20537): conditional flow matching on {run.record['n_events']} events of every mass in "
        f"{card.train_range[0]:g}-{card.train_range[1]:g} {card.unit}, the window included; between {low:g} and {high:g} "
        f"{card.unit} the context of the mass is interpolated from these edges. ln p(x | m) by the exact trace, {card.steps} "
        "Runge-Kutta steps inside the graph. Outside the window the model has seen the events, so it is valid in "
        f"{card.window[0]:g}-{card.window[1]:g} {card.unit} only.\n\n"
        "A signal in the window can reach the interpolated background through weights that all masses share.\n"
    )
