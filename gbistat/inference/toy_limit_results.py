"""Answers from toys, how many toys they may cost, and fractions of toys with their Monte Carlo error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtr

from gbistat.errors import OptionError

if TYPE_CHECKING:
    from gbistat.typing import FloatArray, Json

__all__ = ["ToyBudget", "ToyCLsPoint", "ToyLimit", "ToyPValue", "exceeding", "failure_notes", "fraction"]


@dataclass(frozen=True)
class ToyBudget:
    """How many toys, and when to stop.

    Parameters
    ----------
    min_toys : int, default 2000
        Toys at each point to begin with.
    max_toys : int, default 64000
        Most toys at a point.
    precision : float, default 0.02
        Relative Monte Carlo error of the answer (a limit, a p-value) at which to stop before that.

    Raises
    ------
    OptionError
        If a number makes no sense.
    """

    min_toys: int = 2000
    max_toys: int = 64_000
    precision: float = 0.02

    def __post_init__(self) -> None:
        if not 100 <= self.min_toys <= self.max_toys:
            raise OptionError(
                f"toys from {self.min_toys} to {self.max_toys}: give at least 100, and a maximum above that"
            )
        if not self.precision > 0:
            raise OptionError(f"precision {self.precision:g} must be above 0, for example 0.02")


@dataclass(frozen=True)
class ToyPValue:
    """A p-value from toys.

    Parameters
    ----------
    p, error : float
        Fraction of toys at least as extreme as the data, and its Monte Carlo error.
    z, z_error : float
        The same as one-sided standard deviations; infinite where no toy is as extreme, and then `z_at_least` says more.
    z_at_least : float
        Significance of the one-sided 95 % upper limit on p.
    n_toys, n_failed : int
        Toys thrown, and those without an answer.
    observed : float
        Test statistic of the data.
    asymptotic : float
        p-value by the asymptotic formula.
    notes : tuple of str
        What a reader must know; whether the asymptotic p-value agrees.
    """

    p: float
    error: float
    z: float
    z_error: float
    z_at_least: float
    n_toys: int
    n_failed: int
    observed: float
    asymptotic: float
    notes: tuple[str, ...] = ()

    @property
    def p_at_most(self) -> float:
        """One-sided 95 % upper limit on p."""
        return float(ndtr(-self.z_at_least))

    @property
    def agrees(self) -> bool:
        """Whether the asymptotic p-value is within three errors of the toys'."""
        spread = math.sqrt(self.asymptotic * (1.0 - self.asymptotic) / max(self.n_toys - self.n_failed, 1))
        return abs(self.p - self.asymptotic) <= 3.0 * max(spread, self.error)

    def to_dict(self) -> Json:
        """Plain numbers, for JSON; None where infinite."""
        numbers = {
            "p0_local": self.p,
            "p0_error": self.error,
            "z_local": self.z,
            "z_error": self.z_error,
            "z_at_least": self.z_at_least,
            "p0_asymptotic": self.asymptotic,
        }
        plain = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        return {**plain, "n_toys": self.n_toys, "n_failed": self.n_failed, "agrees": self.agrees}


@dataclass(frozen=True)
class ToyCLsPoint:
    """CLs at one value of the parameter of interest.

    Parameters
    ----------
    value : float
        Tested value.
    q_observed : float
        qmu_tilde of the data.
    p_signal, p_background, observed : float
        CLs+b, CLb and CLs.
    p_signal_error, p_background_error, error : float
        Their Monte Carlo errors.
    expected : tuple of 5 float
        CLs under background only at -2, -1, 0, +1, +2 sigma, in pyhf's order.
    n_signal, n_background : int
        Toys at the value, and at 0.
    """

    value: float
    q_observed: float
    p_signal: float
    p_background: float
    observed: float
    p_signal_error: float
    p_background_error: float
    error: float
    expected: tuple[float, float, float, float, float]
    n_signal: int
    n_background: int


@dataclass(frozen=True)
class ToyLimit:
    """Upper limit from toys.

    Parameters
    ----------
    poi : str
        The parameter.
    cl : float
        Confidence level.
    observed, error : float
        Observed limit and its Monte Carlo error.
    expected, expected_errors : tuples of 5 float
        Limits expected under background only at -2, -1, 0, +1, +2 sigma, and their Monte Carlo errors.
    points : tuple of ToyCLsPoint
        Tested values.
    method : str
        "cls-toys" or "clsb-toys".
    n_toys, n_failed : int
        Toys in all, and those without an answer.
    asymptotic : float or None
        Observed asymptotic limit, for comparison (CLs only).
    notes : tuple of str
        What a reader must know; whether the asymptotic limit agrees.
    """

    poi: str
    cl: float
    observed: float
    error: float
    expected: tuple[float, float, float, float, float]
    expected_errors: tuple[float, float, float, float, float]
    points: tuple[ToyCLsPoint, ...]
    method: str
    n_toys: int
    n_failed: int
    asymptotic: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool | None:
        """Whether the asymptotic limit is within three errors, or 2 %, of the toys'; None where there is none."""
        if self.asymptotic is None:
            return None
        return abs(self.observed - self.asymptotic) <= max(3.0 * self.error, 0.02 * abs(self.observed))

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "cl": self.cl,
            "observed": self.observed,
            "error": self.error,
            "expected": list(self.expected),
            "expected_errors": list(self.expected_errors),
            "method": self.method,
            "n_toys": self.n_toys,
            "n_failed": self.n_failed,
            "asymptotic": self.asymptotic,
            "agrees": self.agrees,
            "notes": list(self.notes),
        }


def exceeding(q: FloatArray, observed: float) -> tuple[int, int]:
    """Toys at least as extreme as the data, and toys with an answer."""
    known = q[~np.isnan(q)]
    # Equal counts give equal statistics up to rounding: those count as extreme.
    return int((known >= observed - _rounding(observed)).sum()), known.size


def _rounding(q: float) -> float:
    return 1e-7 * max(1.0, q)


def fraction(above: int, n: int, failed: int) -> tuple[float, float]:
    """Fraction of n toys with an answer, and its Monte Carlo error."""
    p = above / n
    # With no toy, or all of them, the binomial error would be 0: that of one toy is taken.
    variance = max(p * (1.0 - p), (1.0 / n) * (1.0 - 1.0 / n)) / n
    return p, math.sqrt(variance + (failed / (n + failed)) ** 2)


def failure_notes(failed: int, n: int) -> list[str]:
    """Note on failed toys, if there are any."""
    return [f"{failed} of {n} toys failed; their share is part of the Monte Carlo error"] if failed else []
