"""What the functions of this package return. ``None`` is "not computed" or "does not close"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gbistat.fit.result import FitResult
    from gbistat.typing import FloatArray, Json

__all__ = ["CLsPoint", "CLsScan", "DiscoveryResult", "IntervalResult", "LimitResult", "ScanResult", "Segment"]

Segment = tuple[float | None, float | None]
"""Ends of one piece of an interval; ``None`` where it does not close."""


@dataclass(frozen=True, eq=False)
class ScanResult:
    """Profile likelihood of one parameter on a grid.

    Parameters
    ----------
    poi : str
        The parameter.
    values : array of shape (n,)
        Grid.
    q : array of shape (n,)
        ``2 [nll(poi, nu^^) - nll(poi^, nu^)]``.
    best : FitResult
        The free fit.
    """

    poi: str
    values: FloatArray
    q: FloatArray
    best: FitResult

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "poi": self.poi,
            "values": self.values.tolist(),
            "q": self.q.tolist(),
            "best": self.best.value(self.poi),
        }


@dataclass(frozen=True)
class IntervalResult:
    """Confidence interval of one parameter.

    Parameters
    ----------
    poi : str
        The parameter.
    cl : float
        Confidence level.
    segments : tuple of (low, high)
        Pieces of the interval in order; an end that does not close is ``None``.
    best : float
        Estimate.
    threshold : float
        Value of q at the ends.
    method : str
        "profile", and later others.
    notes : tuple of str
        What a reader must know (for example why an end does not close).
    """

    poi: str
    cl: float
    segments: tuple[Segment, ...]
    best: float
    threshold: float
    method: str = "profile"
    notes: tuple[str, ...] = ()

    @property
    def low(self) -> float | None:
        """Lowest end."""
        return self.segments[0][0]

    @property
    def high(self) -> float | None:
        """Highest end."""
        return self.segments[-1][1]

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "poi": self.poi,
            "cl": self.cl,
            "segments": [list(segment) for segment in self.segments],
            "best": self.best,
            "method": self.method,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class CLsPoint:
    """CLs at one value of the parameter of interest.

    Parameters
    ----------
    value : float
        Tested value.
    q_observed, q_asimov : float
        qmu_tilde (or qmu) of the data and of the background-only Asimov set.
    p_signal, p_background : float
        CLs+b and CLb.
    observed : float
        CLs = CLs+b / CLb.
    expected : tuple of 5 float
        CLs under background only at -2, -1, 0, +1, +2 sigma, in pyhf's order.
    """

    value: float
    q_observed: float
    q_asimov: float
    p_signal: float
    p_background: float
    observed: float
    expected: tuple[float, float, float, float, float]


@dataclass(frozen=True, eq=False)
class CLsScan:
    """CLs on a grid of the parameter of interest.

    Parameters
    ----------
    poi : str
        The parameter.
    values, observed : array of shape (n,)
        Grid, and observed CLs on it.
    expected : array of shape (n, 5)
        Expected CLs at -2, -1, 0, +1, +2 sigma.
    """

    poi: str
    values: FloatArray
    observed: FloatArray
    expected: FloatArray

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "poi": self.poi,
            "values": self.values.tolist(),
            "observed": self.observed.tolist(),
            "expected": self.expected.tolist(),
        }


@dataclass(frozen=True)
class LimitResult:
    """Upper limit on one parameter.

    Parameters
    ----------
    poi : str
        The parameter.
    cl : float
        Confidence level.
    observed : float
        Observed limit: CLs there is 1 - cl.
    expected : tuple of 5 float
        Limits expected under background only at -2, -1, 0, +1, +2 sigma.
    method : str
        "cls-asymptotic", and later others.
    notes : tuple of str
        What a reader must know.
    """

    poi: str
    cl: float
    observed: float
    expected: tuple[float, float, float, float, float]
    method: str = "cls-asymptotic"
    notes: tuple[str, ...] = ()

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {"cl": self.cl, "observed": self.observed, "expected": list(self.expected), "method": self.method}


@dataclass(frozen=True)
class DiscoveryResult:
    """Local significance of a signal.

    Parameters
    ----------
    poi : str
        The parameter whose value 0 is tested.
    q0 : float
        Eq. (12) of arXiv:1007.1727.
    p0 : float
        Local p-value of background only.
    z : float
        The same as a number of standard deviations, one-sided.
    z_expected : float or None
        Median significance of a signal of nominal size (``poi = 1``), from an Asimov set.
    """

    poi: str
    q0: float
    p0: float
    z: float
    z_expected: float | None = None

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {"p0_local": self.p0, "z_local": self.z, "z_global": None, "z_expected": self.z_expected}
