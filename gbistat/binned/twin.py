"""The binned results that stand beside an unbinned one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gbistat.binned.binning import LOG_RATIO, mass_binning
from gbistat.binned.fit import binned_inference
from gbistat.binned.observables import check_observable, feature_binning, log_ratio_binning, product_binning
from gbistat.binned.workspace import to_pyhf
from gbistat.errors import FitFailed, ModelError, ParameterError, ScanRangeError
from gbistat.fit.minimize import fit
from gbistat.likelihood.reference import needs_pool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.binned.binning import AnyBinning
    from gbistat.binned.results import BinnedResult
    from gbistat.binned.workspace import BinnedTwin
    from gbistat.data.events import Events
    from gbistat.likelihood.model import Model
    from gbistat.likelihood.nll import ExtendedUnbinnedNLL
    from gbistat.likelihood.reference import Reference

MASS_SLICES = 5
"""Bins of the first of two observables."""

__all__ = ["MASS_BINS", "RATIO_BINS", "binned_results", "binned_twin", "unconstrained_shapes"]

MASS_BINS, RATIO_BINS = 20, 30
"""Bins of the mass and of the log ratio, before those with too few events are joined."""


def binned_results(
    model: Model,
    nll: ExtendedUnbinnedNLL,
    events: Events,
    reference: Reference | None = None,
    *,
    cl: float = 0.95,
    intervals: Sequence[float] = (0.6827, 0.95),
    mass_bins: int = MASS_BINS,
    ratio_bins: int = RATIO_BINS,
    min_background: float = 5.0,
) -> tuple[list[BinnedResult], list[str]]:
    """pyhf's results in bins of the mass and, where a network looks at features, in bins of the log ratio.

    Parameters
    ----------
    model : Model
        The unbinned model.
    nll : ExtendedUnbinnedNLL
        Its likelihood of the events: the networks are not evaluated again.
    events : Events
        The events in its window.
    reference : Reference, optional
        Pool of background events, for the log ratio.
    cl : float, default 0.95
        Confidence level of the limits.
    intervals : sequence of float
        Confidence levels of the intervals.
    mass_bins, ratio_bins : int
        Number of bins; see :func:`mass_binning` and :func:`log_ratio_binning`.
    min_background : float, default 5
        Expected background events of a bin of the log ratio.

    Returns
    -------
    list of BinnedResult, list of str
        Results, and notes: why one could not be made, and what else a reader must know. A cross-check that fails does
        not take the unbinned result with it.

    Raises
    ------
    OptionError
        If an option is out of its range.
    UnitsError, EventsError
        If the events do not belong to the model.
    """
    results: list[BinnedResult] = []
    notes: list[str] = []
    held: dict[str, float] = {}
    loose = unconstrained_shapes(model)
    if loose:
        best = fit(nll)
        held = {name: best.value(name) for name in loose}
        values = ", ".join(f"{name} = {value:.6g}" for name, value in held.items())
        notes.append(f"binned results hold {values}: HistFactory has no shape parameter without a constraint")
    for observable in (events.mass_name, *([LOG_RATIO] if needs_pool(model) else [])):
        try:
            twin = binned_twin(
                model,
                nll,
                events,
                observable,
                reference=reference,
                held=held,
                n_bins=mass_bins if observable == events.mass_name else ratio_bins,
                min_background=min_background,
            )
            results.append(binned_inference(twin, cl=cl, intervals=intervals))
        except (ModelError, ParameterError, FitFailed, ScanRangeError) as error:
            notes.append(f"no binned result in {observable}: {error}")
    notes += [f"binned in {result.observable}: {note}" for result in results for note in result.notes]
    return results, notes


def binned_twin(
    model: Model,
    nll: ExtendedUnbinnedNLL,
    events: Events,
    observable: str,
    *,
    reference: Reference | None = None,
    held: dict[str, float] | None = None,
    n_bins: int = 20,
    min_background: float = 5.0,
    statistical_errors: bool = True,
) -> BinnedTwin:
    """Binned twin of a likelihood with automatic bins.

    Parameters
    ----------
    model, nll, events, reference
        See :func:`binned_results`.
    observable : str
        Name of the mass, of a feature, ``"log_ratio"``, or two of these with a colon between (``"m_jj:log_ratio"``).
    held : dict of str to float, optional
        Parameters to hold.
    n_bins : int, default 20
        Number of bins; of two observables that of the second in each bin of the first, of which there are up to 5.
    min_background : float, default 5
        Expected background events of a bin, but for those of the mass alone.
    statistical_errors : bool, default True
        Whether templates from a finite pool get a ``staterror``.

    Raises
    ------
    ModelError
        If the model has no window, or see :func:`gbistat.binned.workspace.to_pyhf`.
    OptionError
        If an option is out of its range.
    """
    binning: AnyBinning
    check_observable(observable, events)
    if ":" in observable:
        binning = product_binning(
            model,
            reference,
            observable,
            mass_name=events.mass_name,
            n_bins=(min(n_bins, MASS_SLICES), n_bins),
            min_background=min_background,
        )
    elif observable == LOG_RATIO:
        binning = log_ratio_binning(model, reference, n_bins=n_bins, min_background=min_background, held=held)
    elif observable != events.mass_name:
        binning = feature_binning(model, reference, observable, n_bins=n_bins, min_background=min_background)
    elif model.window is None:
        raise ModelError("bins of the mass need a window, and this model has none; make the bins by hand (Binning)")
    else:
        binning = mass_binning(model.window, n_bins=n_bins, observable=events.mass_name)
    usable = None if reference is not None and reference.kind == "data" else reference
    return to_pyhf(
        model,
        events,
        binning,
        reference=usable,
        mixture=nll.mixture,
        held=held,
        statistical_errors=statistical_errors,
    )


def unconstrained_shapes(model: Model) -> tuple[str, ...]:
    """Free parameters that change a shape, or scale a yield exponentially, and have no constraint."""
    constrained = {name for constraint in model.constraints for name in constraint.names}
    return tuple(
        parameter.name
        for parameter in model.parameters
        if not (parameter.fixed or parameter.name in constrained or model.yield_only(parameter.name))
    )
