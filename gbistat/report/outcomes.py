"""What the commands find out, before it becomes JSON, tables or figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gbistat.binned.comparison import Comparison
    from gbistat.binned.results import BinnedResult
    from gbistat.data.window import MassWindow
    from gbistat.fit.build import Analysis
    from gbistat.fit.result import FitResult
    from gbistat.fit.spectrum import MassSpectrum
    from gbistat.inference.methods import MethodResult
    from gbistat.inference.results import CLsScan, DiscoveryResult, IntervalResult, LimitResult, ScanResult
    from gbistat.inference.toy_limit_results import ToyLimit

__all__ = ["Failure", "FitOutcome", "LimitsOutcome", "Report"]


@dataclass(frozen=True, eq=False)
class FitOutcome:
    """Fit of one window.

    Parameters
    ----------
    window : MassWindow
        Where events were counted.
    analysis : Analysis
        Likelihood and all around it.
    fit : FitResult
        The free fit.
    intervals : mapping of str to tuple of IntervalResult
        Profile intervals by parameter, the narrower first.
    spectrum : MassSpectrum or None
        For the plot of the mass.
    warnings : tuple of str
        What a reader must know.
    by_method : MethodResult or None
        Intervals on the parameter of interest by another method, if one was asked for: these are the result then.
    """

    window: MassWindow
    analysis: Analysis
    fit: FitResult
    intervals: Mapping[str, tuple[IntervalResult, ...]]
    spectrum: MassSpectrum | None
    warnings: tuple[str, ...]
    by_method: MethodResult | None = field(default=None, kw_only=True)

    @property
    def method(self) -> str:
        """Name of the method of the intervals on the parameter of interest."""
        return "profile" if self.by_method is None else self.by_method.options.name

    @property
    def poi_intervals(self) -> tuple[IntervalResult, ...]:
        """Intervals on the parameter of interest, by the method asked for."""
        return self.intervals[self.poi] if self.by_method is None else self.by_method.intervals

    @property
    def poi(self) -> str:
        """Parameter of interest."""
        return self.analysis.model.poi


@dataclass(frozen=True, eq=False)
class LimitsOutcome(FitOutcome):
    """Limits of one window: everything of the fit, and more.

    Parameters
    ----------
    limit : LimitResult
        CLs upper limit with its expected band.
    scan : ScanResult
        Profile of the parameter of interest.
    cls_scan : CLsScan
        CLs beside its expected band.
    discovery : DiscoveryResult
        Local significance.
    binned : tuple of BinnedResult
        pyhf on the same events: in bins of the mass, and of the network's log ratio where there is one.
    comparison : Comparison or None
        The same beside more binned methods, for the verb "compare".
    profiled_limit : float or None
        Where masses are free: upper limit with them profiled, from the one-sided profile likelihood (no CLb: without signal masses mean
        nothing, and the distribution of that statistic is not known). ``None`` where it does not close, or no mass is free.
    """

    limit: LimitResult
    scan: ScanResult
    cls_scan: CLsScan
    discovery: DiscoveryResult
    binned: tuple[BinnedResult, ...]
    comparison: Comparison | None = None
    profiled_limit: float | None = None

    @property
    def toy_limit(self) -> ToyLimit | None:
        """CLs limit by toys, if it was asked for."""
        return None if self.by_method is None else self.by_method.limit


@dataclass(frozen=True)
class Failure:
    """A window that gave no result.

    Parameters
    ----------
    window : (low, high)
        In GeV.
    message : str
        Why.
    """

    window: tuple[float, float]
    message: str


@dataclass(frozen=True, eq=False)
class Report:
    """Results of a command over its windows.

    Parameters
    ----------
    verb : str
        "fit", "limits" or "compare".
    model, model_sha256 : str
        Name of the model, and the hash over its files.
    source : str
        File of events.
    n_read : int
        Events read from it.
    cl : float
        Confidence level of limits.
    ensemble : str
        "mean", or "profiled" where the spread of ensembles is profiled.
    outcomes : tuple of FitOutcome
        One a window, in order.
    failures : tuple of Failure
        Windows without a result.
    """

    verb: str
    model: str
    model_sha256: str
    source: str
    n_read: int
    cl: float
    ensemble: str
    outcomes: tuple[FitOutcome, ...]
    failures: tuple[Failure, ...] = ()
