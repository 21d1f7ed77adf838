"""What ``gbistat diagnose`` compares: held-out events of a region, and generated events at the same masses."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from gbistat.data.events import ENERGY_UNITS
from gbistat.diagnostics.folds import Folds, row_keys
from gbistat.diagnostics.matching import match_masses, unweight
from gbistat.diagnostics.verdict import VerdictOptions
from gbistat.errors import EventsError, ModelError, OptionError
from gbistat.run_events import read_data
from gbistat.terms.generator import GeneratorTerm
from gbistat.terms.store import load_model, load_reference
from gbistat.training.classifiers import ClassifierOptions

if TYPE_CHECKING:
    from pathlib import Path

    from gbistat.config import RunOptions
    from gbistat.data.events import Events
    from gbistat.steps import Steps
    from gbistat.terms.store import LoadedModel
    from gbistat.typing import FloatArray, IntArray

__all__ = [
    "DiagnoseRequest",
    "Pairs",
    "generated_pairs",
    "held_out_region",
    "named_file",
    "read_pairs",
    "signal_log_ratios",
]

SMALLEST = 200


@dataclass(frozen=True)
class DiagnoseRequest:
    """What to measure, and how long to take.

    Parameters
    ----------
    generator : str, optional
        Name or folder of an exported sideband generator, which is sampled at the masses of the data.
    generated : Path, optional
        File of generated events, in the layout of the data. Without either: the generator of the model itself, or else
        the model's reference events.
    trained_on : Path, optional
        File of events that trained the generator: none of them may test it.
    unblind : bool
        Test in the signal window, on its data, and not in the sidebands.
    classifier : ClassifierOptions
        The classifier.
    folds, permutations : int
        Of the events: each fold but the first is asked about by classifiers trained on those before; of the labels.
    nplm_permutations : int
        0 for no NPLM.
    null_run : bool
        Whether to repeat everything on two halves of the data.
    max_events : int
        Most events of each kind.
    expected : float, optional
        Background events in the window of the measurement whose bias is asked for; by default those in the file.
    verdict : VerdictOptions
        What is asked.
    seed : int
        Of everything.
    """

    generator: str | None = None
    generated: Path | None = None
    trained_on: Path | None = None
    unblind: bool = False
    classifier: ClassifierOptions = field(default_factory=ClassifierOptions)
    folds: int = 4
    permutations: int = 999
    nplm_permutations: int = 999
    null_run: bool = True
    max_events: int = 20_000
    expected: float | None = None
    verdict: VerdictOptions = field(default_factory=VerdictOptions)
    seed: int = 1

    def __post_init__(self) -> None:
        if self.generator is not None and self.generated is not None:
            raise OptionError("a generator and a file of generated events: give one of the two")
        if self.folds < 2 or self.max_events < SMALLEST:
            raise OptionError(
                f"folds = {self.folds} and max_events = {self.max_events}: give at least 2 and {SMALLEST}"
            )
        if self.expected is not None and not self.expected >= 1:
            raise OptionError(f"expected = {self.expected:g} background events: give 1 or more")


@dataclass(frozen=True, eq=False)
class Pairs:
    """Data and generated events of (nearly) equal masses, row by row.

    Parameters
    ----------
    generator : str
        What generated.
    data, generated : Events
        The pairs.
    member_log_prob : array of shape (K, n) or None
        ln p of the generator's members at the generated events.
    n_background : int
        Events of the file in the window.
    fold_hashes : dict of str to str
        Of the sets of events, none of which shares one with the tests.
    """

    generator: str
    data: Events
    generated: Events
    member_log_prob: FloatArray | None
    n_background: int
    fold_hashes: dict[str, str]


def read_pairs(options: RunOptions, request: DiagnoseRequest, *, rng: np.random.Generator, steps: Steps) -> Pairs:
    """Read held-out events, generate their partners, and refuse events that trained the generator.

    Raises
    ------
    GbistatError
        If the model, the events or the generator cannot be used, or test events trained the generator.
    """
    if len(options.windows) != 1:
        raise OptionError(f"{len(options.windows)} windows: a certificate is for one; give --window once")
    spec = options.model.spec
    if not spec.features:
        raise ModelError(f"model {spec.name!r} has no features: there is nothing that a generator generates")
    scale = ENERGY_UNITS["GeV"] / ENERGY_UNITS[spec.mass.unit]
    low, high = (edge * scale for edge in options.windows[0])
    with steps(f"reading {options.source.path.name}"):
        everything = read_data(options)
        data = held_out_region(everything, options.model, (low, high), unblind=request.unblind)
        n_background = int(np.sum((everything.mass >= low) & (everything.mass < high)))
    folds: dict[str, IntArray] = {}
    if request.trained_on is not None:
        with steps(f"reading {request.trained_on.name}"):
            trained = read_data(options, request.trained_on)
            folds["generator training"] = row_keys(trained.mass, trained.matrix(spec.features))
    with steps("generated events"):
        name, (first, second), members = generated_pairs(options, request, data, rng)
    folds["test"] = row_keys(first.mass, first.matrix(spec.features))
    folds["generated"] = row_keys(second.mass, second.matrix(spec.features))
    checked = Folds(folds)
    checked.check("test")
    return Pairs(name, first, second, members, n_background, checked.hashes())


def named_file(path: Path) -> str:
    """Name and hash of a file: what a certificate that travels can say of it."""
    with path.open("rb") as stream:
        return f"{path.name} (sha256 {hashlib.file_digest(stream, 'sha256').hexdigest()[:12]})"


def held_out_region(events: Events, model: LoadedModel, window: tuple[float, float], *, unblind: bool) -> Events:
    """Sideband events, or those of the signal window if unblinded, where the model's terms are valid."""
    if events.weights is not None:
        raise EventsError("data with event weights cannot be permuted; give unweighted events")
    mass = events.mass
    inside = (mass >= window[0]) & (mass < window[1])
    chosen = inside if unblind else ~inside
    if model.spec.valid is not None:
        chosen &= (mass >= model.spec.valid[0]) & (mass < model.spec.valid[1])
    if int(chosen.sum()) < SMALLEST:
        where = "signal window" if unblind else "sidebands"
        raise EventsError(f"{int(chosen.sum())} events in the {where} where the model is valid; {SMALLEST} are needed")
    return events.select(chosen)


def generated_pairs(
    options: RunOptions, request: DiagnoseRequest, data: Events, rng: np.random.Generator
) -> tuple[str, tuple[Events, Events], FloatArray | None]:
    """Name of the generator, pairs of data and generated events, and ln p of an ensemble's members at the latter."""
    spec = options.model.spec
    chosen = None if request.generator is None else load_model(request.generator)
    if chosen is None and request.generated is None and _samplers(options.model):
        chosen = options.model
    if chosen is not None:
        term = _samplers(chosen)
        if term is None:
            raise ModelError(f"model {chosen.name!r} has no generator that can be sampled; give --generated FILE")
        data = data.select(rng.permutation(len(data))[: request.max_events])
        low, high = term.metadata.mass.bounds
        data = data.select((data.mass >= low) & (data.mass <= high))
        missing = [name for name in spec.features if name not in term.features]
        if missing:
            raise ModelError(
                f"generator {chosen.name!r} has no {', '.join(missing)}; it has {', '.join(term.features)}"
            )
        columns = [term.features.index(name) for name in spec.features]
        # A generator has a density inside the ranges of its features only: other events are no test of it.
        data = data.select(term.inside(data.matrix(term.features)))
        features = term.sample(data.mass, rng=rng)
        members = term.member_log_prob(features, data.mass) if term.n_members >= 3 else None
        units = {name: data.units[name] for name in (spec.mass.name, *spec.features)}
        sampled = type(data)(data.mass, features[:, columns], spec.features, units, mass_name=spec.mass.name)
        return f"{chosen.name} (sha256 {chosen.sha256[:12]})", (data, sampled), members
    if request.generated is not None:
        pool, name = read_data(options, request.generated), named_file(request.generated)
    else:
        reference = load_reference(options.model)
        if reference is None:
            raise ModelError(f"model {spec.name!r} has neither generator nor reference events; give --generated FILE")
        pool, name = reference, f"reference events of {spec.name}"
    if pool.weights is not None:
        pool = pool.select(unweight(pool.weights, rng=rng)).without_weights()
    rows, partners = match_masses(data.mass, pool.mass, rng=rng)
    keep = rng.permutation(rows.size)[: request.max_events]
    return name, (data.select(rows[keep]), pool.select(partners[keep])), None


def _samplers(model: LoadedModel) -> GeneratorTerm | None:
    """Generator of a model, if it has one."""
    for term in model.terms.values():
        if term.metadata.samplers:
            return GeneratorTerm(term)
    return None


def signal_log_ratios(model: LoadedModel, data: Events, generated: Events) -> tuple[FloatArray, FloatArray] | None:
    """Log ratio of signal to background in the features, where the model has one."""
    # A ratio whose masses are free has no value at an event.
    names = [name for name in model.spec.signal.ratios if not model.terms[name].metadata.parameters]
    if not names:
        return None
    first, second = (
        np.sum([model.terms[name].log_ratio(events) for name in names], axis=0) for events in (data, generated)
    )
    return first, second
