"""What the inference on a binned model returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gbistat.inference.results import DiscoveryResult, IntervalResult, LimitResult
    from gbistat.typing import Json

__all__ = ["BinnedResult"]


@dataclass(frozen=True)
class BinnedResult:
    """Fit, limit and significance of pyhf for one observable.

    Parameters
    ----------
    observable : str
        What was binned.
    n_bins : int
        Number of bins.
    poi : str
        Parameter of interest.
    value, error : float
        Estimate, not bounded at 0, and its error from the Hessian.
    intervals : tuple of IntervalResult
        Profile-likelihood intervals.
    limit : LimitResult
        CLs upper limit, and those expected under background only at -2, -1, 0, +1, +2 sigma.
    discovery : DiscoveryResult
        Local p-value and significance of background only.
    notes : tuple of str
        What a reader must know.
    """

    observable: str
    n_bins: int
    poi: str
    value: float
    error: float
    intervals: tuple[IntervalResult, ...]
    limit: LimitResult
    discovery: DiscoveryResult
    notes: tuple[str, ...] = ()

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "observable": self.observable,
            "n_bins": self.n_bins,
            "fit": {
                self.poi: {
                    "value": self.value,
                    "error": self.error,
                    "intervals": {f"{i.cl:g}": [list(segment) for segment in i.segments] for i in self.intervals},
                }
            },
            "limit": self.limit.to_dict(),
            "significance": {"p0_local": self.discovery.p0, "z_local": self.discovery.z},
            "notes": list(self.notes),
        }
