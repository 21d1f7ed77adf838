"""HistFactory workspaces (JSON schema 1.0.0) of a model in bins of one observable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbistat.binned.backend import validate_workspace
from gbistat.binned.nuisances import standardise
from gbistat.binned.observables import check_observable, event_values
from gbistat.binned.samples import free_scale, make_samples
from gbistat.binned.templates import Templates, tilted
from gbistat.errors import EventsError, ModelError, UnitsError
from gbistat.likelihood.mixture import Mixture
from gbistat.likelihood.parameters import start_vector
from gbistat.likelihood.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gbistat.binned.binning import AnyBinning
    from gbistat.binned.nuisances import Standardised
    from gbistat.binned.samples import Sample
    from gbistat.data.events import Events
    from gbistat.likelihood.model import Model
    from gbistat.typing import BoolArray, FloatArray, Json

__all__ = ["BinnedTwin", "to_pyhf"]

FEW_POINTS = 100
"""Effective pool events under the signal below which a note says so."""


@dataclass(frozen=True, eq=False)
class BinnedTwin:
    """A model in bins of one observable, with the observed counts, as a workspace.

    Parameters
    ----------
    observable : str
        What is binned.
    binning : Binning or ProductBinning
        The nb bins.
    workspace : dict
        HistFactory JSON, valid for schema 1.0.0. Parameters have the names of the model's; constrained ones are in
        standard deviations, free yields relative to their start values, ``mu`` means the same.
    observed : array of shape (nb,)
        Events in each bin.
    samples : dict of str to array of shape (nb,)
        Nominal expected events of each sample.
    poi : str
        Parameter of interest.
    error_guess : float
        Its expected error, from the Fisher information.
    notes : tuple of str
        What a reader must know.
    """

    observable: str
    binning: AnyBinning
    workspace: Json
    observed: FloatArray
    samples: Mapping[str, FloatArray]
    poi: str
    error_guess: float
    notes: tuple[str, ...] = ()

    @property
    def n_bins(self) -> int:
        """Number of bins nb."""
        return self.binning.n_bins

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "binning": self.binning.to_dict(),
            "observed": self.observed.tolist(),
            "samples": {name: counts.tolist() for name, counts in self.samples.items()},
            "workspace": self.workspace,
            "notes": list(self.notes),
        }


def to_pyhf(
    model: Model,
    events: Events,
    binning: AnyBinning,
    *,
    reference: Reference | None = None,
    mixture: Mixture | None = None,
    held: Mapping[str, float] | None = None,
    statistical_errors: bool = True,
) -> BinnedTwin:
    """Binned twin of a model, ready for pyhf.

    Parameters
    ----------
    model : Model
        One signal and backgrounds (one, for the log ratio).
    events : Events
        Observed events, inside the model's window.
    binning : Binning or ProductBinning
        Bins of the mass, of a feature, or of the log ratio.
    reference : Reference, optional
        Quadrature or a pool of background events; not needed for bins of the mass where each component has a mass density.
    mixture : Mixture, optional
        The model's components at the events (``nll.mixture``), if at hand: saves the evaluation of a network.
    held : mapping of str to float, optional
        Parameters to hold at a value. A parameter that changes a shape must be constrained, fixed or held.
    statistical_errors : bool, default True
        Whether templates from a finite pool get a ``staterror``.

    Returns
    -------
    BinnedTwin
        With the workspace of one channel. Two observables of the same events are two workspaces: they are not
        independent, so they must never become channels of one.

    Raises
    ------
    OptionError
        If the events do not have the observable.
    UnitsError
        If the bins are in another unit than the events.
    EventsError
        If events are outside the model's window.
    ModelError
        If a reference is needed and missing, a template is negative, the signal is zero, a bin has no background, or
        HistFactory cannot express the model.

    Notes
    -----
    Effects of several nuisances combine as HistFactory has them: ``histosys`` adds to the counts, linearly beyond one standard
    deviation, ``normsys`` multiplies, exponentially beyond. They agree with the unbinned model to first order in each
    nuisance; for yields known to 20 % or worse the tails differ visibly. The offset ln kappa of a ratio has no effect on
    templates normalised over a pool, and is left out.
    """
    _check_events(model, events, binning)
    standard = standardise(model, held)
    templates = Templates(
        model,
        binning,
        mass_name=events.mass_name,
        reference=reference,
        held=held,
        tilting=_tilting(model, events, mixture, reference),
    )
    observed = binning.counts(
        event_values(model, events, binning.observable, mixture=mixture, held=held), events.weights
    )
    samples = make_samples(templates, standard)
    _check_bins(model, binning, samples)
    if statistical_errors and templates.is_sampled:
        _add_statistical_errors(samples, templates, f"staterror_{binning.observable}")
    estimate, error = _linear_estimate(model, standard, samples, observed)
    channels: list[Json] = [{"name": binning.observable, "samples": [sample.to_json() for sample in samples]}]
    observations: list[Json] = [{"name": binning.observable, "data": observed.tolist()}]
    for counter in standard.counters:
        size = counter.scale * free_scale(model, counter.name)
        modifiers = [{"name": counter.name, "type": "normfactor", "data": None}]
        label = f"{counter.name}_auxiliary"
        channels.append({"name": label, "samples": [{"name": label, "data": [size], "modifiers": modifiers}]})
        observations.append({"name": label, "data": [float(counter.observed)]})
    workspace: Json = {
        "channels": channels,
        "observations": observations,
        "measurements": [_measurement(model, standard, observed, samples, 10.0 * (abs(estimate) + 5.0 * error))],
        "version": "1.0.0",
    }
    validate_workspace(workspace)
    return BinnedTwin(
        observable=binning.observable,
        binning=binning,
        workspace=workspace,
        observed=observed,
        samples={sample.name: sample.counts for sample in samples},
        poi=model.poi,
        error_guess=error,
        notes=_notes(templates, standard, samples, events),
    )


def _check_events(model: Model, events: Events, binning: AnyBinning) -> None:
    check_observable(binning.observable, events)
    unit = events.units.get(binning.observable, binning.unit)
    if binning.unit not in (None, unit):
        raise UnitsError(
            f"the bins of {binning.observable} are in {binning.unit} and the events in {unit}; convert one of them"
        )
    if model.window is not None:
        outside = int((~model.window.contains(events.mass)).sum())
        if outside:
            raise EventsError(
                f"{outside} of {len(events)} events are outside the window {model.window}; select them with Events.in_window"
            )


def _tilting(model: Model, events: Events, mixture: Mixture | None, reference: Reference | None) -> Reference | None:
    """Points that say how a tilt changes bins of the mass: the reference, or the data as background points."""
    others = [j for j, component in enumerate(model.components) if component.name != model.signal]
    if (reference is not None and reference.kind != "data") or not tilted(model) or len(others) != 1:
        return reference
    start = start_vector(model.parameters)
    known = mixture or Mixture.of(model, events, start)
    own = np.ones(len(events)) if events.weights is None else events.weights
    measure = own * np.exp(-known.components[others[0]].log_density(start))
    return Reference(known, measure, "data", float(len(events)), 1.0, events)


def _check_bins(model: Model, binning: AnyBinning, samples: Sequence[Sample]) -> None:
    signal = sum((s.counts for s in samples if s.scaled_by == model.poi), np.zeros(binning.n_bins))
    rest = sum((s.counts for s in samples if s.scaled_by != model.poi), np.zeros(binning.n_bins))
    if not signal.any():
        raise ModelError(f"no signal is expected in any bin of {binning.observable}: zero signal acceptance")
    empty = np.flatnonzero(~(rest > 0))
    if empty.size:
        raise ModelError(
            f"no background is expected in {binning.describe(int(empty[0]))}"
            f"{f' and {empty.size - 1} more' if empty.size > 1 else ''}; merge bins, so that each has some"
        )


def _add_statistical_errors(samples: Sequence[Sample], templates: Templates, name: str) -> None:
    """One factor a bin for all samples, since they are made of the same pool events.

    HistFactory adds the errors of samples in quadrature; these are fully correlated, so they are scaled to give the
    linear sum.
    """
    relative = templates.relative_errors()
    chosen = [sample for sample in samples if sample.counts.any()]
    total = sum((sample.counts for sample in chosen), np.zeros_like(relative))
    squares = sum((sample.counts**2 for sample in chosen), np.zeros_like(relative))
    for sample in chosen:
        errors = relative * sample.counts * total / np.sqrt(squares)
        sample.modifiers.append({"name": name, "type": "staterror", "data": errors.tolist()})


def _linear_estimate(
    model: Model, standard: Standardised, samples: Sequence[Sample], observed: FloatArray
) -> tuple[float, float]:
    """Estimate of the parameter of interest by one linear least-squares step, and its error."""
    names = [*standard.free, *(direction.name for direction in standard.directions)]
    null = sum((s.counts for s in samples if s.scaled_by != model.poi), np.zeros(observed.size))
    columns = np.zeros((observed.size, len(names)))
    for sample in samples:
        if sample.scaled_by is not None:
            columns[:, names.index(sample.scaled_by)] += sample.counts
        if sample.scaled_by != model.poi:
            for name, (high, low) in sample.variations.items():
                columns[:, names.index(name)] += 0.5 * (high - low)
    penalty = np.zeros(len(names))
    penalty[len(standard.free) :] = 1.0
    for counter in standard.counters:
        penalty[names.index(counter.name)] = max(counter.observed, 1.0)
    used: BoolArray = np.asarray(columns.any(axis=0))
    information = (columns.T @ (columns / null[:, None]) + np.diag(penalty))[np.ix_(used, used)]
    size = np.sqrt(np.diag(information))
    scaled = information / np.outer(size, size)
    if np.linalg.eigvalsh(scaled)[0] < 1e-10:
        raise ModelError(
            f"{', '.join(name for name, u in zip(names, used, strict=True) if u)} cannot be told apart in {observed.size} bin(s); "
            "use more bins, or constrain the background yield"
        )
    covariance = np.linalg.inv(scaled) / np.outer(size, size)
    step = covariance @ (columns.T @ ((observed - null) / null))[used]
    position = int(np.flatnonzero(np.flatnonzero(used) == names.index(model.poi))[0])
    return float(step[position]), float(np.sqrt(covariance[position, position]))


def _measurement(
    model: Model, standard: Standardised, observed: FloatArray, samples: Sequence[Sample], high: float
) -> Json:
    """Parameter of interest, start values and ranges; the former is bounded at 0 as pyhf's qmu_tilde wants it."""
    excess = max(1.0, float(observed.sum()) / float(sum(s.counts.sum() for s in samples)))
    parameters: list[Json] = [{"name": model.poi, "inits": [min(1.0, high / 2)], "bounds": [[0.0, high]]}]
    for name in standard.free:
        if name != model.poi:
            scale, parameter = free_scale(model, name), model.parameter(name)
            ends = sorted((parameter.low / scale, parameter.high / scale))
            low = max(ends[0], 0.0) if ends[0] >= 0 else max(ends[0], -10.0 * excess)
            parameters.append(
                {"name": name, "inits": [parameter.start / scale], "bounds": [[low, min(ends[1], 10.0 * excess)]]}
            )
    return {"name": "gbistat", "config": {"poi": model.poi, "parameters": parameters}}


def _notes(templates: Templates, standard: Standardised, samples: Sequence[Sample], events: Events) -> tuple[str, ...]:
    notes = []
    used = {modifier["name"] for sample in samples for modifier in sample.modifiers}
    idle = [direction.name for direction in standard.directions if direction.name not in used]
    # In bins of the mass it goes without saying that a nuisance of the features changes nothing.
    if idle and templates.binning.observable != events.mass_name:
        notes.append(f"{', '.join(idle)} does not change any bin and is left out of the workspace")
    if templates.effective_size < FEW_POINTS:
        notes.append(
            f"the signal template in {templates.binning.observable} rests on {templates.effective_size:.0f} effective pool events"
        )
    if events.weights is not None:
        notes.append("the events have weights: bins are fitted as if their sums were Poisson counts")
    return tuple(notes)
