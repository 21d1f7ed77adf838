"""What the inference on a binned model returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gbistat.inference.results import IntervalResult
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
    intervals : mapping of float to IntervalResult
        Profile-likelihood intervals by confidence level.
    cl : float
        Confidence level of the limits.
    observed : float
        CLs upper limit.
    expected : tuple of 5 float
        Limits expected under background only at -2, -1, 0, +1, +2 sigma.
    p0, z : float
        Local p-value and significance of background only.
    notes : tuple of str
        What a reader must know.
    """

    observable: str
    n_bins: int
    poi: str
    value: float
    error: float
    intervals: Mapping[float, IntervalResult]
    cl: float
    observed: float
    expected: tuple[float, float, float, float, float]
    p0: float
    z: float
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "intervals", MappingProxyType(dict(self.intervals)))

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "observable": self.observable,
            "n_bins": self.n_bins,
            "fit": {
                self.poi: {
                    "value": self.value,
                    "error": self.error,
                    "intervals": {f"{cl:g}": [list(s) for s in i.segments] for cl, i in self.intervals.items()},
                }
            },
            "limit": {"cl": self.cl, "observed": self.observed, "expected": list(self.expected)},
            "significance": {"p0_local": self.p0, "z_local": self.z},
            "notes": list(self.notes),
        }
