"""What ``gbistat limits`` and ``gbistat fit`` do for a model whose signal was learned from the data."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from gbistat.data.events import ENERGY_UNITS
from gbistat.data.window import MassWindow
from gbistat.diagnostics.saved import model_verdict
from gbistat.errors import OptionError, nearest
from gbistat.inference.background_family import BackgroundFamily, describe
from gbistat.inference.learned_signal import learned_signal_data
from gbistat.inference.signal_fraction import class_interval, cross_fit_estimate, unrestricted_lower_limit
from gbistat.inference.split_likelihood import discovery_evidence
from gbistat.report.learned_signal import FoundSignal, LearnedSignalReport
from gbistat.rng import as_generator
from gbistat.run_events import read_data
from gbistat.steps import silent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gbistat.config import RunOptions
    from gbistat.data.events import Events
    from gbistat.inference.learned_signal import LearnedSignalData
    from gbistat.inference.signal_fraction import CrossFitEstimate
    from gbistat.steps import Steps
    from gbistat.typing import BoolArray, Json

__all__ = ["NULLS", "LearnedSignalOptions", "has_learned_signal", "run_learned_signal"]

NULLS: Mapping[str, BackgroundFamily] = {
    "mean": BackgroundFamily(ensemble=0.0, mass_sigma=0.0),
    "ensemble": BackgroundFamily(ensemble=1.0, mass_sigma=3.0),
    "wide": BackgroundFamily(ensemble=1.0, mass_sigma=3.0, tilt=0.05),
}
"""Composite nulls by name."""
FALSE_POSITIVES = (1e-2, 3e-3, 1e-3)
"""False-positive rates at which significance improvement is graded."""


@dataclass(frozen=True)
class LearnedSignalOptions:
    """How statements about a learned signal are made.

    Parameters
    ----------
    null : str
        Name of a composite null in `NULLS`.
    seed : int
        Of reference events.
    n_reference : int
        Reference events of each kind and fold, for the integrals of the lower limit.
    labels : str, optional
        Column with the truth, for grading alone.

    Raises
    ------
    OptionError
        If the null has no such name, or there are too few reference events.
    """

    null: str = "ensemble"
    seed: int = 1
    n_reference: int = 20_000
    labels: str | None = field(default=None)

    def __post_init__(self) -> None:
        if self.null not in NULLS:
            raise OptionError(f"there is no null {self.null!r}; {nearest(self.null, NULLS)}")
        if self.n_reference < 1000:
            raise OptionError(f"{self.n_reference} reference events are too few for the integrals; give 1000 at least")

    @property
    def family(self) -> BackgroundFamily:
        """The composite null."""
        return NULLS[self.null]


def has_learned_signal(options: RunOptions) -> bool:
    """Whether the model's signal is a density learned from the data."""
    spec = options.model.spec
    return spec.has_signal and spec.signal.density is not None


def run_learned_signal(
    options: RunOptions, chosen: LearnedSignalOptions | None = None, *, steps: Steps = silent
) -> LearnedSignalReport:
    """Evidence against "background only", lower limit on the fraction, and the signal that was found.

    Parameters
    ----------
    options : RunOptions
        Model, events and one window, that of the training.
    chosen : LearnedSignalOptions, optional
        Null, seed, grading.
    steps : callable, optional
        Told about each step.

    Returns
    -------
    LearnedSignalReport
        Ready to be shown or written.

    Raises
    ------
    OptionError
        If an option does not apply to a learned signal.
    GbistatError
        If model, events or window do not make sense.
    """
    chosen = chosen or LearnedSignalOptions()
    _check_options(options)
    spec, rng = options.model.spec, as_generator(chosen.seed)
    scale = ENERGY_UNITS["GeV"] / ENERGY_UNITS[spec.mass.unit]
    low, high = options.windows[0]
    window = MassWindow(low * scale, high * scale, spec.mass.unit)
    with steps(f"reading {options.source.path.name}"):
        events, labels = _read(options, chosen.labels)
    with steps(f"{window}: sidebands and networks"):
        data = learned_signal_data(spec, options.model.terms, events, window, family=chosen.family, rng=rng)
    with steps(f"{window}: evidence"):
        evidence = discovery_evidence(data.folds, scheme=data.scheme)
        plain = discovery_evidence(data.plain_folds, scheme=data.scheme)
        estimate = cross_fit_estimate(data.folds)
    with steps(f"{window}: reference events"):
        references = data.references(chosen.n_reference, rng=rng)
    with steps(f"{window}: lower limit"):
        limit = unrestricted_lower_limit(data.folds, references, cl=options.cl, scheme=data.scheme)
        alone = [reference.plain for reference in references]
        plain_limit = unrestricted_lower_limit(data.plain_folds, alone, cl=options.cl, scheme=data.scheme)
        interval = class_interval(data.folds, cl=options.cl, scheme=data.scheme)
    with steps(f"{window}: samples of the signal"):
        found = _found(data, estimate, chosen, rng)
    term = data.term
    counts = (
        data.background.generator.n_members,
        data.background.sidebands.theta.size,
        len(data.background.generator.features),
    )
    grading = {} if labels is None else _grade(data, labels, window, events)
    return LearnedSignalReport(
        model=options.model.name,
        model_sha256=options.model.sha256,
        source=str(options.source.path),
        n_read=len(events),
        window=window,
        left_out=data.left_out,
        evidence=evidence,
        plain_evidence=plain,
        null=describe(chosen.family, counts),
        null_settings={"name": chosen.null, **chosen.family.to_dict()},
        limit=limit,
        plain_limit=plain_limit,
        interval=interval,
        estimate=estimate,
        fractions=term.fractions,
        mode=term.mode,
        sidebands=data.background.sidebands,
        found=found,
        warnings=_warnings(options, data, chosen),
        grading=grading,
    )


def _check_options(options: RunOptions) -> None:
    """Refuse what makes no sense for a learned signal."""
    name = options.model.name
    if options.method.name != "profile":
        raise OptionError(
            f"--method {options.method.name} needs a signal of known density, and that of model {name!r} was learned from the "
            "data; leave it out: limits are by e-values, valid without toys"
        )
    if options.background is not None:
        raise OptionError(
            f"--background does not apply to model {name!r}: its signal was learned with the generator that it comes with; "
            "train again with another one"
        )
    if options.model.spec.signal.ensemble != "mean":
        raise OptionError(
            f"--ensemble {options.model.spec.signal.ensemble} does not apply to model {name!r}: no network's spread is profiled; "
            "--null says how far the background may move"
        )
    if len(options.windows) != 1:
        raise OptionError(
            f"{len(options.windows)} windows for model {name!r}: its signal was learned in one; give that"
        )


def _read(options: RunOptions, labels: str | None) -> tuple[Events, BoolArray | None]:
    """Events of the fit range, and their labels if these were asked for."""
    spec = options.model.spec
    events = read_data(options, extra=() if labels is None else (labels,))
    if labels is None:
        return events, None
    truth = events.feature(labels) > 0.5
    kept = [events.names.index(name) for name in spec.features]
    units = {name: events.units[name] for name in (events.mass_name, *spec.features)}
    return replace(events, features=events.features[:, kept], names=spec.features, units=units), truth


def _found(
    data: LearnedSignalData, estimate: CrossFitEstimate, chosen: LearnedSignalOptions, rng: np.random.Generator
) -> FoundSignal:
    fraction = estimate.value if estimate.value > 0.0 else float(np.median(data.term.fractions))
    samples = tuple(data.term.sample(chosen.n_reference, fold=k, rng=rng) for k in range(data.term.n_folds))
    background = data.background.sample(chosen.n_reference, rng=rng)
    return FoundSignal(data.events, data.fold, data.log_ratio, data.score, fraction, samples, background)


def _grade(data: LearnedSignalData, labels: BoolArray, window: MassWindow, events: Events) -> Json:
    """Significance improvement of the anomaly score, by truth labels."""
    in_window = np.flatnonzero((events.mass >= window.low) & (events.mass < window.high))
    log_b = data.background.log_prob(events.select(in_window))
    truth = labels[in_window][np.isfinite(log_b)]
    signal, background = data.score[truth], np.sort(data.score[~truth])
    if not signal.size or not background.size:
        return {"signal": int(signal.size), "background": int(background.size)}
    result: Json = {"signal": int(signal.size), "background": int(background.size), "sic": {}}
    for rate in FALSE_POSITIVES:
        cut = background[max(int(np.ceil((1.0 - rate) * background.size)) - 1, 0)]
        result["sic"][f"{rate:g}"] = float((signal > cut).mean() / np.sqrt(max((background > cut).mean(), 1e-12)))
    return result


def _warnings(options: RunOptions, data: LearnedSignalData, chosen: LearnedSignalOptions) -> tuple[str, ...]:
    warnings = list(data.events.notes)
    with options.source.path.open("rb") as stream:
        other = data.term.other_data(hashlib.file_digest(stream, "sha256").hexdigest())
    warnings += [] if other is None else [other]
    verdict = model_verdict(options.model)
    if verdict is None:
        warnings.append(
            "the background has no certificate: e-value and limit take it to be right within the null; gbistat diagnose "
            "--generator MODEL --attach makes one"
        )
    elif not verdict.startswith("PASS"):
        warnings.append(
            f"the certificate of the background is not PASS, and a wrong background looks like a signal: {verdict}"
        )
    if chosen.null == "mean":
        warnings.append(
            "the null is the mean of the generator's members alone: any error of the generator counts as signal; "
            "--null ensemble or wide allow for some"
        )
    goodness = data.background.sidebands.goodness
    if goodness.p_value < 0.01:
        warnings.append(
            f"the sideband fit describes the spectrum badly: chi2/ndof = {goodness.chi2:.1f}/{goodness.ndof}, "
            f"p = {goodness.p_value:.2g}"
        )
    if data.left_out:
        warnings.append(
            f"{data.left_out} events in the window are outside the range of the background generator and are not judged"
        )
    return tuple(dict.fromkeys(warnings))
