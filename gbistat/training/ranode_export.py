"""From a finished training on data to a model on disk: the signal's density beside the generator, parity, what was found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat.errors import ModelError, OutputError, TermError
from gbistat.terms.learned_signal import LearnedSignalTerm
from gbistat.terms.metadata import TERM_SCHEMA, Parity, TermMetadata
from gbistat.terms.model_spec import MODEL_SCHEMA, ModelSpec
from gbistat.terms.network import NetworkTerm
from gbistat.terms.store import load_model, member_records, save_model
from gbistat.terms.validation import validate
from gbistat.training.card import dump_card
from gbistat.training.ranode_data import fold_rules
from gbistat.training.ranode_graph import make_graphs
from gbistat.training.ranode_model_card import ranode_model_card
from gbistat.training.ranode_quality import measure_quality, run_events
from gbistat.training.ranode_run import load_ranode_run
from gbistat.training.stacked_flow import StackedFlow
from gbistat.training.stacked_training import make_trainer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.terms.store import LoadedModel
    from gbistat.training.ranode_graph import FlowGraphs
    from gbistat.training.ranode_run import RanodeRun
    from gbistat.typing import FloatArray, Json

__all__ = [
    "LARGEST_DIFFERENCE",
    "LARGEST_MEAN_DIFFERENCE",
    "Chosen",
    "choose_networks",
    "export_ranode",
    "final_log_prob",
]

PARITY_EVENTS = 4000
LARGEST_DIFFERENCE = 2e-3
"""Of ln p_s at one event: a narrow density has large slopes, and float32 has seven digits."""
LARGEST_MEAN_DIFFERENCE = 5e-5
LARGEST_SHIFT = 1e-2
"""Of a drawn feature, in standard deviations of the data."""
AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class Chosen:
    """Networks of a finished run, fold by fold: of a scan, those of the best w in each fold.

    Parameters
    ----------
    weights : list of array of shape (K M, ...)
        Masked weights.
    fractions, trained_with : list of float
        w of each network, fitted out of sample and in the loss, for ``term.json``.
    fold_record : list of dict
        What was found in each fold.
    """

    weights: list[Any]
    fractions: list[float]
    trained_with: list[float]
    fold_record: list[Json]


def choose_networks(run: RanodeRun) -> Chosen:
    """Weights and fractions of the networks that a run ends with.

    Raises
    ------
    OutputError
        If it is not finished.
    """
    card = run.card
    k, m = card.folds.n_folds, card.folds.members
    outcomes, weights = [], []
    for index in range(len(card.fraction.starts)):
        folder = run.stack(index)
        outcome = folder.outcome()
        if outcome is None:
            raise OutputError(f"{run.directory} is not finished; run the training again, it goes on")
        outcomes.append(outcome)
        weights.append(folder.final_weights())
    best = [int(np.argmax([outcome["gains"][fold] for outcome in outcomes])) for fold in range(k)]
    rows = [(best[fold], fold * m + member) for fold in range(k) for member in range(m)]
    stacked = [np.stack([weights[stack][i][t] for stack, t in rows]) for i in range(len(weights[0]))]
    record: list[Json] = []
    fractions: list[float] = []
    trained_with: list[float] = []
    for fold in range(k):
        outcome = outcomes[best[fold]]
        fitted = float(outcome["fractions_fitted"][fold])
        learned = outcome["fractions_learned"][fold * m : (fold + 1) * m]
        fractions += [fitted] * m
        trained_with += learned if card.fraction.mode == "learnable" else [float(outcome["start"])] * m
        entry: Json = {
            "fold": fold,
            "fraction_fitted": fitted,
            "fractions_learned": learned,
            "gain_out_of_sample": float(outcome["gains"][fold]),
            "epochs_averaged": outcome["epochs"][fold],
        }
        if card.fraction.mode == "scan":
            entry["scan"] = [
                {
                    "fraction": o["start"],
                    "gain": float(o["gains"][fold]),
                    "fraction_fitted": o["fractions_fitted"][fold],
                }
                for o in outcomes
            ]
        record.append(entry)
    return Chosen(stacked, fractions, trained_with, record)


def final_log_prob(run: RanodeRun, weights: Sequence[Any], x: FloatArray) -> FloatArray:
    """ln p_s by every network, by Keras, shape (K M, n), at raw mass and features inside the ranges."""
    trainer = make_trainer(x.shape[1], run.card.flow, weight_decay=0.0, clip_norm=1.0, fraction_rate=0.0)
    z = run.transform.forward(x).astype(np.float32)
    parts = []
    for begin in range(0, len(z), AT_ONCE):
        block = z[begin : begin + AT_ONCE]
        # Whole blocks: what was compiled for one fits all.
        padded = np.concatenate([block, np.zeros((AT_ONCE - len(block), x.shape[1]), dtype=np.float32)])
        stacked = np.ascontiguousarray(np.broadcast_to(padded.T, (len(weights[0]), *padded.T.shape)))
        parts.append(trainer.log_prob([*weights, np.zeros(1)], stacked)[:, : len(block)])
    result: FloatArray = np.concatenate(parts, axis=1) + run.transform.log_abs_det(x)
    return result


def export_ranode(run_directory: str | Path, output: str | Path, *, overwrite: bool = False) -> LoadedModel:
    """Write the model of a finished run, whole or not at all: everything that ``gbistat limits --model`` needs.

    Parameters
    ----------
    run_directory : path
        Folder that `gbistat.training.ranode.train_ranode` filled.
    output : path
        Folder of the model.
    overwrite : bool, default False
        Whether an existing model there is replaced.

    Raises
    ------
    OutputError
        If the run is not finished or damaged, or the output cannot be written.
    ModelError
        If the generator is no longer the one that the signal was learned with.
    TermError
        If a graph differs from its network by more than 2e-3 in ln p_s at one event, or by more than 5e-5 on average.
    MissingExtra
        If Keras, TensorFlow or tf2onnx is not installed.
    """
    if Path(output).exists() and not overwrite:
        raise OutputError(f"{output} already exists; choose another place or allow overwriting")
    run = load_ranode_run(run_directory)
    chosen = choose_networks(run)
    generator = load_model(run.card.generator)
    trained_with = run.record["generator"]
    if generator.sha256 != trained_with["sha256"]:
        raise ModelError(
            f"the model {run.card.generator!r} is not the one that the signal was learned with (its hash differs); put that one back, or "
            "train again"
        )
    if trained_with["term"] == run.card.term:
        raise ModelError(
            f"the signal's term and the generator's are both called {run.card.term!r}; rename the term in the card"
        )
    flow = StackedFlow(len(run.transform), run.card.flow)
    graphs = make_graphs(flow, run.transform, chosen.weights)
    draft = _term(run, chosen, graphs)
    parity = _parity(run, chosen, draft, run.events()["x"])
    checks = {
        "sampler_parity": _sampler_parity(run, chosen, draft),
        "quality": measure_quality(run, chosen.fold_record, draft),
    }
    term = _term(run, chosen, graphs, parity=parity, checks=_rounded(checks))
    frozen = generator.terms[trained_with["term"]]
    return save_model(
        output,
        _model(run, generator),
        terms=[term, frozen],
        files={"README.md": ranode_model_card(run, term.metadata).encode(), "card.yaml": dump_card(run.card)},
        overwrite=overwrite,
    )


def _spread(x: FloatArray, count: int) -> FloatArray:
    return x[np.unique(np.linspace(0, len(x), min(count, len(x)), endpoint=False).astype(np.int64))]


def _parity(run: RanodeRun, chosen: Chosen, term: NetworkTerm, x: FloatArray) -> Parity:
    """Difference between graphs and networks on data."""
    # Both see what a graph sees: next to an edge of the window the seventh digit of the mass moves a logit.
    events = _spread(x, PARITY_EVENTS).astype(np.float32).astype(np.float64)
    events = events[run.transform.inside(events)]
    differences = np.abs(term.member_values(run_events(run, events)) - final_log_prob(run, chosen.weights, events))
    worst, mean = float(differences.max()), float(differences.mean(axis=1).max())
    if not (worst <= LARGEST_DIFFERENCE and mean <= LARGEST_MEAN_DIFFERENCE):
        raise TermError(
            f"term {term.name!r}: ln p differs between Keras and ONNX by up to {worst:.3g} and by {mean:.3g} on average on "
            f"{len(events)} events, and {LARGEST_DIFFERENCE:g} and {LARGEST_MEAN_DIFFERENCE:g} are allowed; nothing was "
            "written. Check the versions of tf2onnx and onnxruntime, or take a smaller flow"
        )
    return Parity(
        max_abs=worst,
        mean_abs=mean,
        n_events=len(events),
        against="Keras networks on the data; mean of the worst member",
    )


def _sampler_parity(run: RanodeRun, chosen: Chosen, term: NetworkTerm) -> Json:
    """Largest difference of a drawn feature between Keras and ONNX, first network of each fold."""
    signal = LearnedSignalTerm(term)
    flow = StackedFlow(len(run.transform), run.card.flow)
    latent = np.random.default_rng([run.card.seed, 24]).standard_normal((500, len(run.transform)))
    deviation = run.events()["x"].std(axis=0)
    worst = 0.0
    for fold in range(signal.n_folds):
        t = fold * signal.n_members
        weights = [array[t : t + 1] for array in chosen.weights]
        z = np.asarray(flow.inverse(weights, latent.T[None].astype(np.float32)))[0].T
        shift = signal.transform(latent, t) - run.transform.inverse(z.astype(np.float64))
        # A quantile: where a spline is steep, the last digit of the latent number moves a feature.
        worst = max(worst, float(np.quantile(np.abs(shift) / deviation, 0.99)))
    if not worst <= LARGEST_SHIFT:
        raise TermError(
            f"term {term.name!r}: drawn features differ between Keras and ONNX by up to {worst:.3g} of their standard deviation, "
            f"and {LARGEST_SHIFT:g} is allowed; nothing was written"
        )
    return {"shift_99_percent": worst, "n_events": len(latent)}


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
    run: RanodeRun, chosen: Chosen, graphs: FlowGraphs, *, parity: Parity | None = None, checks: Json | None = None
) -> NetworkTerm:
    card, transform = run.card, run.transform
    m = card.folds.members
    names = [f"fold_{t // m}_member_{t % m}" for t in range(len(graphs.densities))]
    members = {f"{name}.onnx": graph for name, graph in zip(names, graphs.densities, strict=True)}
    samplers = {f"{name}_sampler.onnx": graph for name, graph in zip(names, graphs.samplers, strict=True)}
    outer, _ = fold_rules(card, transform.names)
    low, high = run.window
    words = "logit of the position in (low, high), standardised"
    ranges = zip(transform.names, transform.low.tolist(), transform.high.tolist(), strict=True)
    data = {
        "schema": TERM_SCHEMA,
        "name": card.term,
        "kind": "signal_density",
        "features": [
            {"name": name, "unit": run.units[name], "low": begin, "high": end, "transform": words}
            for name, begin, end in ranges
        ],
        "mass": {"name": transform.names[0], "unit": run.units[transform.names[0]], "low": low, "high": high},
        "combine": "mean_density",
        "members": [record.to_json() for record in member_records(members)],
        "samplers": [record.to_json() for record in member_records(samplers)],
        "cross_fit": {
            "rule": outer.to_dict(),
            "mode": card.fraction.mode,
            "train_on": card.folds.train_on,
            "members": [
                {"fold": t // m, "fraction": w, "trained_with": loss}
                for t, (w, loss) in enumerate(zip(chosen.fractions, chosen.trained_with, strict=True))
            ],
        },
        "parity": None if parity is None else parity.to_json(),
        "training": _training(run),
        "checks": checks or {},
    }
    metadata = validate(TermMetadata, data, error=TermError, where=f"term {card.term!r}")
    return NetworkTerm(metadata, tuple(members.values()), samplers=tuple(samplers.values()))


def _training(run: RanodeRun) -> Json:
    card, record = run.card, run.record
    histories = [run.stack(index).history() for index in range(len(card.fraction.starts))]
    last = histories[0][-1]
    return {
        "seed": card.seed,
        "library_versions": run.versions,
        "epochs": sum(len(history) for history in histories),
        "loss": float(np.mean(last.losses)),
        "validation_loss": float(np.mean(last.validation_losses)),
        "data": [{"file": record["file"], "sha256": record["sha256"], "n_events": record["n_events"], "role": "data"}],
        "settings": {
            "flow": card.flow.to_json(),
            "optimiser": card.optimiser.to_json(),
            "folds": card.folds.to_json(),
            "fraction": card.fraction.to_json(),
            "window": list(run.window),
            "generator": record["generator"],
            "sidebands": record["sidebands"],
            "counts": run.counts,
            "warnings": list(record["warnings"]),
        },
    }


def _model(run: RanodeRun, generator: LoadedModel) -> ModelSpec:
    card = run.card
    names = run.transform.names
    data = {
        "schema": MODEL_SCHEMA,
        "name": card.name,
        "description": card.description,
        "mass": {"name": names[0], "unit": run.units[names[0]]},
        "features": list(names[1:]),
        "window": list(run.window),
        "valid": list(run.window),
        "signal": {"density": card.term},
        "background": generator.spec.background.to_json(),
        "terms": [card.term, run.record["generator"]["term"]],
        "provenance": {
            "data": {key: run.record[key] for key in ("file", "sha256", "n_events", "n_window")},
            "generator": run.record["generator"],
        },
    }
    return validate(ModelSpec, data, error=ModelError, where=f"model {card.name!r}")
