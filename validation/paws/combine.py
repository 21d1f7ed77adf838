"""One model of two decay modes from two exported ones of one mode each.

    python validation/paws/combine.py FIRST SECOND --output DIR [--name NAME] [--fraction alpha]

FIRST and SECOND are models with a parametrised ratio of the same masses (``gbistat train paws``, ``gbistat export``), of the same background, for the
same windows. The signal of the new model is ``(1 - alpha) r_first + alpha r_second``; its mass shape is that of FIRST (how far the other is
away is printed), and alpha is the share of the second mode among selected events.

Each model has reference events of its own: held-out background, and held-out signal, with weights rho_b / (rho_b + rho_s r) that make both
stand for background. The new model takes the background and the signal of both, with weights rho_b / (rho_b + rho_1 r_1 + rho_2 r_2)
(M. R. Shirts and J. D. Chodera, J. Chem. Phys. 129 (2008) 124105, eq. 9, for three samples). Ratios are averaged over nodes of the masses.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gbistat.data.events import Events
from gbistat.terms.density import MassDensity
from gbistat.terms.shapes.registry import make_shape
from gbistat.terms.signal_spec import MassScaleSpec, ModesSpec
from gbistat.terms.store import load_model, load_reference, save_model

if TYPE_CHECKING:
    from gbistat.terms.network import NetworkTerm
    from gbistat.terms.store import LoadedModel
    from gbistat.typing import FloatArray

NODES = 8
"""Of each mass, for the average of a ratio."""
NEIGHBOURS = 201
SAME = ("mass", "features", "window", "valid", "background")


def mode_of(model: LoadedModel) -> NetworkTerm:
    """The one ratio of a model."""
    if len(model.spec.signal.ratios) != 1:
        raise SystemExit(f"{model.name}: one ratio is needed, not {', '.join(model.spec.signal.ratios) or 'none'}")
    return model.terms[model.spec.signal.ratios[0]]


def mean_log_ratio(term: NetworkTerm, events: Events) -> FloatArray:
    """ln of the mean ratio over nodes of the masses, shape (n,)."""
    axes = [np.linspace(*item.bounds, NODES) for item in term.metadata.parameters]
    names = [item.name for item in term.metadata.parameters]
    total = np.full(len(events), -np.inf)
    for node in product(*axes):
        total = np.logaddexp(total, term.log_ratio(events, **dict(zip(names, map(float, node), strict=True))))
    return total - np.log(NODES ** len(axes))


def excess(own: Events, term: NetworkTerm, other: Events) -> tuple[FloatArray, FloatArray]:
    """``ln(rho_s r / rho_b)`` at a model's own reference events, from their weights, and at others, from r and the mass."""
    weights = np.ones(len(own)) if own.weights is None else own.weights
    log = np.log(1.0 / np.clip(weights, 1e-300, 1.0 - 1e-12) - 1.0)
    # What is left of it without r depends on the mass alone: a running median over events next to each other.
    left = log - mean_log_ratio(term, own)
    order = np.argsort(own.mass)
    half = NEIGHBOURS // 2
    padded = np.pad(left[order], half, mode="edge")
    smooth = np.median(np.lib.stride_tricks.sliding_window_view(padded, NEIGHBOURS), axis=1)
    return log, mean_log_ratio(term, other) + np.interp(other.mass, own.mass[order], smooth)


def combined_reference(first: LoadedModel, second: LoadedModel) -> Events:
    """Background and both signals, with weights that make them background."""
    one, two = load_reference(first), load_reference(second)
    if one is None or two is None:
        raise SystemExit("both models need reference events")
    rows = [np.c_[events.mass, events.matrix(first.spec.features)] for events in (one, two)]
    known = {row.tobytes() for row in rows[0]}
    new = np.array([row.tobytes() not in known for row in rows[1]])
    shared = int((~new).sum())
    print(f"reference events: {len(one)} and {len(two)}, {shared} of them (the background) in both")
    if shared == 0:
        raise SystemExit("the two reference files have no event in common: they are not of one split of the background")
    signal = two.select(new)
    own_one, there_one = excess(one, mode_of(first), signal)
    own_two, there_two = excess(two, mode_of(second), one)
    other = {row.tobytes(): value for row, value in zip(rows[1], own_two, strict=True)}
    at_one = np.array([other.get(row.tobytes(), value) for row, value in zip(rows[0], there_two, strict=True)])
    weights = np.concatenate(
        [1.0 / (1.0 + np.exp(own_one) + np.exp(at_one)), 1.0 / (1.0 + np.exp(there_one) + np.exp(own_two[new]))]
    )
    events = Events(
        np.r_[one.mass, signal.mass],
        np.concatenate([rows[0][:, 1:], signal.matrix(first.spec.features)]),
        first.spec.features,
        {name: one.units[name] for name in first.spec.features},
        mass_name=one.mass_name,
    )
    return replace(events, weights=weights)


def shape_distance(first: LoadedModel, second: LoadedModel) -> float:
    """Largest difference of the cumulative distributions of the two mass shapes in the window."""
    edges = first.spec.window or first.spec.background.fit_range
    cumulative = []
    for model in (first, second):
        spec = model.spec.signal.mass
        shape = make_shape(spec.shape, **dict(spec.options))
        affine = spec.affine([item.name for item in shape.parameters], 0.5 * sum(edges))
        density = MassDensity.fixed(shape, (edges,), affine.offset)
        cumulative.append(np.cumsum(density.probabilities(np.linspace(*edges, 201), [])))
    return float(np.abs(cumulative[0] - cumulative[1]).max())


def larger_errors(first: LoadedModel, second: LoadedModel) -> tuple[dict[str, MassScaleSpec], dict[str, float]]:
    """Errors of the mass scale and of the strength: of the two modes the larger, since a fit of both has one nuisance for each."""
    one, two = first.spec.signal, second.spec.signal
    scale = {}
    for name in {**one.mass_scale, **two.mass_scale}:
        pair = [model.mass_scale.get(name, MassScaleSpec()) for model in (one, two)]
        scale[name] = MassScaleSpec(
            absolute=max(item.absolute for item in pair), relative=max(item.relative for item in pair)
        )
    names = {**one.efficiency, **two.efficiency}
    return scale, {name: max(one.efficiency.get(name, 0.0), two.efficiency.get(name, 0.0)) for name in names}


def papers(first: LoadedModel, second: LoadedModel, name: str, fraction: str, distance: float) -> dict[str, bytes]:
    """Model card of the new model, and the cards of both trainings."""
    found: dict[str, bytes] = {}
    for model, file in ((first, "card.yaml"), (second, "card-second.yaml")):
        card = None if model.directory is None else model.directory / "card.yaml"
        if card is not None and card.is_file():
            found[file] = card.read_bytes()
    text = f"""# {name}

Two decay modes of one signal, `(1 - {fraction}) r_1 + {fraction} r_2`, with the same masses in both and {fraction} the share of the second among
the selected signal events.

| mode | term | from | trained by |
|---|---|---|---|
| first | `{mode_of(first).name}` | `{first.name}`: {first.spec.description} | `card.yaml` |
| second | `{mode_of(second).name}` | `{second.name}`: {second.spec.description} | `card-second.yaml` |

The terms are those of the two models, unchanged, and of the errors of strength and mass scale each is the larger one. The mass shape is that of the first; that of the second has a cumulative distribution up to {distance:.3f}
away from it. `reference.json` holds the held-out background and the held-out signal of both modes, weighted to stand for background.
Made by `python validation/paws/combine.py FIRST SECOND --output DIR`, after `gbistat train paws CARD` and `gbistat export` of both.
"""
    return {"README.md": text.encode(), **found}


def main() -> int:
    """Write the model and evaluate it once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--name", default="dijet-paws-modes")
    parser.add_argument("--fraction", default="alpha")
    arguments = parser.parse_args()
    first, second = load_model(arguments.first), load_model(arguments.second)
    for part in SAME:
        if getattr(first.spec, part) != getattr(second.spec, part):
            raise SystemExit(
                f"the two models differ in {part}: {getattr(first.spec, part)}; {getattr(second.spec, part)}"
            )
    terms = [mode_of(first), mode_of(second)]
    if terms[0].name == terms[1].name:
        raise SystemExit(f"both ratios are called {terms[0].name!r}; export one under another name (term in its card)")
    distance = shape_distance(first, second)
    print(f"mass shapes: largest difference of the cumulative distributions {distance:.3f}")
    reference = combined_reference(first, second)
    scale, efficiency = larger_errors(first, second)
    signal = first.spec.signal.model_copy(
        update={
            "ratios": (),
            "modes": ModesSpec(ratios=(terms[0].name, terms[1].name), fraction=arguments.fraction),
            "mass_scale": scale,
            "efficiency": efficiency,
        }
    )
    spec = first.spec.model_copy(
        update={
            "name": arguments.name,
            "description": f"(1 - {arguments.fraction}) {first.name} + {arguments.fraction} {second.name}: {first.spec.description}; {second.spec.description}",
            "signal_": signal,
            "terms": tuple(term.name for term in terms),
            "reference": None,
            "files": (),
            "provenance": {first.name: first.spec.provenance, second.name: second.spec.provenance},
        }
    )
    model = save_model(
        arguments.output,
        spec,
        terms=terms,
        reference=reference,
        reference_description=f"held-out background with the signal of {first.name} and of {second.name}, weighted to stand for background",
        digits=9,
        files=papers(first, second, arguments.name, arguments.fraction, distance),
    )
    size = float(reference.weights.sum() ** 2 / (reference.weights**2).sum()) if reference.weights is not None else 0.0
    print(
        f"wrote {arguments.output}: {len(reference)} reference events worth {size:.0f} of background, sha256 {model.sha256[:12]}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
