"""What each command does, one short function a verb; the same functions serve scripts.

``prepare`` gives the likelihood of a window and stops there; ``run_fit``, ``run_limits`` and ``run_compare`` go on to
the numbers that a paper quotes.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from gbistat.config import resolve_options
from gbistat.data.events import ENERGY_UNITS
from gbistat.data.window import MassWindow
from gbistat.errors import GbistatError, MissingExtra, OptionError
from gbistat.fit.build import Analysis, build_analysis
from gbistat.fit.masses import free_masses, with_held_masses
from gbistat.fit.minimize import fit
from gbistat.fit.result import FitOptions
from gbistat.fit.spectrum import mass_spectrum
from gbistat.inference.discovery import discovery
from gbistat.inference.limits import AsymptoticCLs
from gbistat.inference.mass_profile import MirroredProfile, SearchedProfile
from gbistat.inference.profile import Profile, profile_interval, profile_scan
from gbistat.likelihood.reference import reference_from_data
from gbistat.report.files import poi_label
from gbistat.report.outcomes import Failure, FitOutcome, LimitsOutcome, Report
from gbistat.run_events import read_data
from gbistat.run_warnings import certificate_verdicts, fit_warnings, null_warnings
from gbistat.steps import Steps, silent
from gbistat.terms.store import load_reference

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from gbistat.binned.comparison import ComparisonOptions
    from gbistat.binned.results import BinnedResult
    from gbistat.config import RunCard, RunOptions
    from gbistat.data.events import Events
    from gbistat.fit.result import FitResult
    from gbistat.inference.methods import MethodResult
    from gbistat.likelihood.reference import Reference
    from gbistat.typing import Json

__all__ = [
    "Steps",
    "prepare",
    "run_compare",
    "run_export_workspace",
    "run_fit",
    "run_limits",
]

STANDARD_CL = 0.6827


def prepare(
    *,
    window: tuple[float, float] | None = None,
    model: str | Path | None = None,
    events: str | Path | None = None,
    card: RunCard | None = None,
    unit: str | None = None,
    mapping: Mapping[str, str] | None = None,
    background: str | Path | None = None,
) -> Analysis:
    """Likelihood of one window: read events, fit the sidebands, evaluate the networks once.

    Parameters
    ----------
    window : (low, high), optional
        In GeV; the model's own by default.
    model : str or path, optional
        Name of a shipped model or folder of an exported one.
    events : path, optional
        File of events; with the shipped model the shipped events by default.
    card : RunCard, optional
        Where the rest is said (:func:`gbistat.config.read_card`).
    unit : str, optional
        Energy unit of the file.
    mapping : mapping, optional
        Names in gbistat to names in the file.
    background : str or path, optional
        Name of a shipped sideband generator or folder of an exported one, whose samples take the place of the
        model's reference events.

    Returns
    -------
    Analysis
        ``analysis.nll`` goes into ``iminuit.Minuit``, or into gbistat's own intervals and limits.

    Raises
    ------
    GbistatError
        Whatever is wrong with the model, the events or the window.
    """
    windows = () if window is None else (window,)
    options = resolve_options(
        card, model=model, events=events, unit=unit, mapping=mapping, windows=windows, background=background
    )
    return _analyse(options, read_data(options), load_reference(options.model), options.windows[0])


def run_fit(options: RunOptions, *, steps: Steps = silent) -> Report:
    """Fit every window and give profile intervals on the parameter of interest.

    Raises
    ------
    GbistatError
        If the events cannot be used, or the only window fails; of several windows, those that fail are listed.
    """
    return _over_windows("fit", options, steps, _fit_window)


def run_limits(options: RunOptions, *, steps: Steps = silent, binned: bool = True) -> Report:
    """Intervals, CLs limit with expected band, significance and the binned cross-check for every window.

    Parameters
    ----------
    options : RunOptions
        Model, events, windows.
    steps : callable, optional
        Told about each step.
    binned : bool, default True
        Whether to run pyhf beside.

    Returns
    -------
    Report
        With a :class:`LimitsOutcome` a window.

    Raises
    ------
    GbistatError
        If the events cannot be used, or the only window fails; of several windows, those that fail are listed.
    """
    return _over_windows("limits", options, steps, lambda o, a, s: _limits_window(o, a, s, binned=binned))


def run_compare(options: RunOptions, *, steps: Steps = silent, comparison: ComparisonOptions | None = None) -> Report:
    """Unbinned result beside binned ones, and the cost of binning, for every window.

    Parameters
    ----------
    options : RunOptions
        Model, events, windows.
    steps : callable, optional
        Told about each step.
    comparison : ComparisonOptions, optional
        Numbers of bins and toys.

    Raises
    ------
    GbistatError
        As :func:`run_limits`.
    """
    from gbistat.binned.comparison import ComparisonOptions, compare_binned

    chosen = replace(comparison or ComparisonOptions(), cl=options.cl, intervals=_levels(options.cl))

    def work(options: RunOptions, analysis: Analysis, steps: Steps) -> LimitsOutcome:
        outcome = _limits_window(options, analysis, steps, binned=True)
        with steps(f"{outcome.window}: cost of binning, toys"):
            found = compare_binned(
                analysis.model, analysis.nll, analysis.events, analysis.reference, outcome.binned, chosen
            )
        return replace(outcome, comparison=found, warnings=(*outcome.warnings, *found.notes))

    return _over_windows("compare", options, steps, work)


def run_export_workspace(
    options: RunOptions,
    observable: str | None = None,
    *,
    n_bins: int | None = None,
    min_background: float = 5.0,
    statistical_errors: bool = True,
    steps: Steps = silent,
) -> tuple[Json, tuple[str, ...]]:
    """HistFactory workspace of the binned twin; several windows become channels of one workspace.

    Parameters
    ----------
    options : RunOptions
        Model, events, windows.
    observable : str, optional
        The mass (by default), a feature, ``"log_ratio"``, or two of these with a colon between.
    n_bins : int, optional
        Number of bins; of two observables that of the second in each bin of the first. By default that of the rows of
        `run_limits` and `run_compare`: 30 of the log ratio before bins with too few events are joined, 20 otherwise.
    min_background : float, default 5
        Expected background events that a bin has at least, but for those of the mass alone.
    statistical_errors : bool, default True
        Whether templates from a finite pool get a ``staterror``.
    steps : callable, optional
        Told about each step.

    Returns
    -------
    dict, tuple of str
        The workspace, and what a reader must know.

    Raises
    ------
    GbistatError
        If a window cannot be binned, or windows overlap.
    """
    from gbistat.binned.binning import LOG_RATIO
    from gbistat.binned.export import combine_twins
    from gbistat.binned.twin import MASS_BINS, RATIO_BINS, binned_twin

    if n_bins is None:
        n_bins = RATIO_BINS if observable == LOG_RATIO else MASS_BINS
    windows = sorted(options.windows)
    for (low, high), (other, end) in pairwise(windows):
        if other < high:
            raise OptionError(
                f"the windows {low:g}-{high:g} and {other:g}-{end:g} GeV share events, and channels of a workspace must not; "
                "export them one by one"
            )
    events, pool = read_data(options), load_reference(options.model)
    twins, notes = {}, []
    for low, high in options.windows:
        with steps(f"{low:g}-{high:g} GeV: templates"):
            analysis = _analyse(options, events, pool, (low, high))
            label = f"w{low:g}_{high:g}".replace(".", "p")
            twin = binned_twin(
                analysis.model,
                analysis.nll,
                analysis.events,
                observable or analysis.events.mass_name,
                reference=analysis.reference,
                n_bins=n_bins,
                min_background=min_background,
                statistical_errors=statistical_errors,
            )
            twins[label] = twin
            notes += [f"{low:g}-{high:g} GeV: {note}" for note in twin.notes]
    return combine_twins(twins), tuple(notes)


def _analyse(options: RunOptions, events: Events, pool: Events | None, window: tuple[float, float]) -> Analysis:
    spec = options.model.spec
    scale = ENERGY_UNITS["GeV"] / ENERGY_UNITS[spec.mass.unit]
    chosen = MassWindow(window[0] * scale, window[1] * scale, spec.mass.unit)
    return build_analysis(spec, events, chosen, terms=options.model.terms, pool=pool, background=options.background)


def _over_windows(
    verb: str, options: RunOptions, steps: Steps, work: Callable[[RunOptions, Analysis, Steps], FitOutcome]
) -> Report:
    with steps(f"reading {options.source.path.name}"):
        events = read_data(options)
        pool = load_reference(options.model)
    outcomes: list[FitOutcome] = []
    failures: list[Failure] = []
    for low, high in options.windows:
        try:
            with steps(f"{low:g}-{high:g} GeV: sidebands and networks"):
                analysis = _analyse(options, events, pool, (low, high))
            outcomes.append(work(options, analysis, steps))
        except MissingExtra:
            raise
        except GbistatError as error:
            if len(options.windows) == 1:
                raise
            failures.append(Failure((low, high), str(error)))
    return Report(
        verb=verb,
        model=options.model.name,
        model_sha256=options.model.sha256,
        source=str(options.source.path),
        n_read=len(events),
        cl=options.cl,
        ensemble=options.model.spec.signal.ensemble,
        outcomes=tuple(outcomes),
        failures=tuple(failures),
    )


def _fit_window(options: RunOptions, analysis: Analysis, steps: Steps, *, own_intervals: bool = True) -> FitOutcome:
    window = analysis.window
    with steps(f"{window}: fit and intervals"):
        best = fit(analysis.nll, options=FitOptions(minimizer="migrad")).raise_if_invalid()
        best = best if analysis.masses is None else analysis.masses.with_scale(best)
        poi = analysis.model.poi
        levels = _levels(options.cl)
        intervals = {}
        profiles: dict[str, Profile] = {}
        for name in (poi, *_free_shape_parameters(analysis)):
            profile = profiles[name] = _profile(analysis, name, best, profiles)
            intervals[name] = tuple(profile_interval(analysis.nll, name, cl=cl, profile=profile) for cl in levels)
    spectrum = None
    if analysis.sidebands is not None:
        density = analysis.signal_density(best.as_dict())
        n_signal = float(analysis.nll.mixture.yields(best.values)[0])
        spectrum = mass_spectrum(analysis.spectrum, analysis.sidebands, density, n_signal)
    by_method = None
    if options.method.name != "profile" and own_intervals:
        by_method = _by_method(options, analysis, steps, best, None, significance=False)
    notes = [note for results in intervals.values() for result in results for note in result.notes]
    warnings = tuple(dict.fromkeys((*fit_warnings(analysis, best), *notes, *certificate_verdicts(options))))
    return FitOutcome(window, analysis, best, intervals, spectrum, warnings, by_method=by_method)


def _by_method(
    options: RunOptions,
    analysis: Analysis,
    steps: Steps,
    best: FitResult,
    references: tuple[Reference, ...] | None,
    *,
    significance: bool,
) -> MethodResult:
    """Intervals on the parameter of interest by the method asked for."""
    from gbistat.inference.methods import intervals_by_method

    with steps(f"{analysis.window}: {options.method.name}" + (" (toys)" if options.method.by_toys else "")):
        return intervals_by_method(
            analysis, _levels(options.cl), options.method, best=best, references=references, significance=significance
        )


def _profile(analysis: Analysis, name: str, best: FitResult, known: Mapping[str, Profile]) -> Profile:
    """Profile of a parameter; where masses are free it looks for minima in all of their plane."""
    if analysis.masses is None:
        return Profile(analysis.nll, name, best)
    if analysis.masses.exchangeable and name in analysis.masses.names:
        for other in analysis.masses.names:
            if other in known:
                return MirroredProfile(known[other], name)
    known_masses = analysis.masses
    scale = known_masses.scale.get(name)
    return SearchedProfile(analysis.nll, name, known_masses.search, best, known_masses.basins, scale)


def _levels(cl: float) -> tuple[float, ...]:
    """Confidence levels of intervals: one standard deviation, and the one asked for."""
    return (STANDARD_CL, cl) if cl > STANDARD_CL else (cl,)


def _free_shape_parameters(analysis: Analysis) -> list[str]:
    """Parameters of the signal's shape that no constraint holds: masses and widths that users ask about."""
    constrained = {name for constraint in analysis.model.constraints for name in constraint.names}
    signal = analysis.model.component(analysis.model.signal)
    used = {name for factor in signal.factors for name in factor.parameters} - constrained
    return [parameter.name for parameter in analysis.model.parameters if parameter.name in used and not parameter.fixed]


def _limits_window(options: RunOptions, analysis: Analysis, steps: Steps, *, binned: bool) -> LimitsOutcome:
    base = _fit_window(options, analysis, steps, own_intervals=False)
    warnings, profiled = list(base.warnings), None
    if moving := free_masses(analysis):
        # One-sided at this level: the upper end of a two-sided interval of 2 cl - 1.
        profile = _profile(analysis, base.poi, base.fit, {})
        if options.cl > 0.5:
            profiled = profile_interval(analysis.nll, base.poi, cl=2.0 * options.cl - 1.0, profile=profile).high
        held = {name: base.fit.value(name) for name in moving}
        analysis = with_held_masses(analysis, held)
        base = replace(base, analysis=analysis)
        unit = dict.fromkeys(analysis.masses.names, f" {analysis.window.unit}") if analysis.masses else {}
        text = ", ".join(f"{name} = {value:.4g}{unit.get(name, '')}" for name, value in held.items())
        warnings.append(
            f"limits and the significance are those of a signal at {text}, the values that fit best: that they "
            "were searched for is not in them; hold masses with --mass, or see gbistat scan for all of them"
            + (
                ""
                if profiled is None
                else f"; with these profiled {base.poi} < {profiled:.4g} (one-sided profile likelihood)"
            )
        )
    window, nll, poi = base.window, analysis.nll, base.poi
    best = fit(nll, start=base.fit.values).raise_if_invalid() if moving else base.fit
    reference: Reference | None = analysis.reference
    if reference is None:
        reference = reference_from_data(nll, best.values)
        warnings.append("expected limits come from reweighted data, not from independent reference events")
    with steps(f"{window}: CLs limit"):
        cls = AsymptoticCLs(nll, (reference,), best=best)
        limit = cls.limit(cl=options.cl)
        top = min(1.25 * max(limit.observed, limit.expected[-1]), analysis.model.parameter(poi).high)
        cls_scan = cls.scan(np.linspace(0.0, top, 81))
        # Without a nominal yield there is no signal whose significance could be expected.
        nominal = poi_label(base) is None
        found = discovery(nll, best=best, references=(reference,), expected_at=1.0 if nominal else None)
        warnings += null_warnings(analysis, cls.data.profile.conditional(0.0))
        wide = base.intervals[poi][-1]
        low = best.value(poi) - 4 * best.error(poi) if wide.low is None else wide.low - best.error(poi)
        high = best.value(poi) + 4 * best.error(poi) if wide.high is None else wide.high + best.error(poi)
        scan = profile_scan(nll, poi, _scan_grid(analysis, low, high, best.value(poi)), best=best)
    warnings += limit.notes
    by_method = None
    if options.method.name != "profile":
        by_method = _by_method(options, analysis, steps, best, (reference,), significance=True)
    twins: list[BinnedResult] = []
    if binned:
        with steps(f"{window}: binned cross-check with pyhf"):
            twins = _binned(analysis, reference, options.cl, warnings)
    return LimitsOutcome(
        window=window,
        analysis=analysis,
        fit=base.fit,
        intervals=base.intervals,
        spectrum=base.spectrum,
        warnings=tuple(dict.fromkeys(warnings)),
        by_method=by_method,
        limit=limit,
        scan=scan,
        cls_scan=cls_scan,
        discovery=found,
        binned=tuple(twins),
        profiled_limit=profiled,
    )


def _scan_grid(analysis: Analysis, low: float, high: float, best: float) -> list[float]:
    """Points of the profile plot: only those where the likelihood has support."""
    parameter = analysis.model.parameter(analysis.model.poi)
    grid = np.unique(np.r_[np.linspace(max(low, parameter.low), min(high, parameter.high), 80), best])
    return [float(x) for x in grid]


def _binned(analysis: Analysis, reference: Reference, cl: float, warnings: list[str]) -> list[BinnedResult]:
    from gbistat.binned.twin import binned_results

    results, notes = binned_results(
        analysis.model, analysis.nll, analysis.events, reference, cl=cl, intervals=_levels(cl)
    )
    warnings += notes
    return results
