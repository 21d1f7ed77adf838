"""gbistat's own answers for a binned likelihood, in the form of pyhf's: fit, intervals, CLs limit, significance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gbistat.binned.results import BinnedResult
from gbistat.fit.minimize import fit
from gbistat.inference.discovery import discovery
from gbistat.inference.limits import AsymptoticCLs
from gbistat.inference.profile import Profile, profile_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.likelihood.nll import NLL
    from gbistat.likelihood.reference import Reference

__all__ = ["gbistat_result"]


def gbistat_result(
    nll: NLL,
    references: tuple[Reference, ...] = (),
    *,
    observable: str,
    n_bins: int,
    cl: float = 0.95,
    intervals: Sequence[float] = (0.6827, 0.95),
) -> BinnedResult:
    """Fit, intervals, limit and significance of a binned likelihood by gbistat's own inference.

    Parameters
    ----------
    nll : NLL
        The likelihood.
    references : tuple of Reference
        What Asimov sets are made of, one for each data term that is not a workspace.
    observable : str
        What was binned.
    n_bins : int
        Number of bins.
    cl : float, default 0.95
        Confidence level of the limits.
    intervals : sequence of float
        Confidence levels of the intervals.

    Raises
    ------
    FitFailed
        If a fit is not valid.
    ScanRangeError
        If a limit is beyond the range of the parameter.
    """
    best = fit(nll).raise_if_invalid()
    profile = Profile(nll, nll.poi, best)
    limit = AsymptoticCLs(nll, references, best=best).limit(cl=cl)
    found = tuple(profile_interval(nll, nll.poi, cl=level, profile=profile) for level in intervals)
    return BinnedResult(
        observable=observable,
        n_bins=n_bins,
        poi=nll.poi,
        value=best.value(nll.poi),
        error=best.error(nll.poi),
        intervals=found,
        limit=limit,
        discovery=discovery(nll, best=best),
        notes=(*limit.notes, *(note for interval in found for note in interval.notes)),
    )
