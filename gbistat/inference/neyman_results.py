"""Options and results of the Neyman construction by toys."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gbistat.errors import OptionError
from gbistat.inference.results import IntervalResult

if TYPE_CHECKING:
    from gbistat.inference.results import Segment
    from gbistat.typing import Json

__all__ = ["NeymanOptions", "NeymanPoint", "ToyInterval"]


@dataclass(frozen=True)
class NeymanOptions:
    """How toys are spent.

    Parameters
    ----------
    precision : float, default 0.02
        Wanted Monte Carlo error of an end, as a share of its distance to the estimate.
    min_toys : int, default 500
        Toys at every tested value; more where the level needs them (20 beyond the critical value).
    max_toys : int, default 500_000
        Toys altogether for one interval.
    n_points : int, default 16
        Tested values to begin with.
    gamma : float, default 0
        Part of ``1 - cl`` given to the nuisance set: with a set that holds the true nuisances with probability ``1 - gamma``, the
        worst case over it covers without approximation (R. L. Berger, D. D. Boos, J. Am. Stat. Assoc. 89 (1994) 1012).

    Raises
    ------
    OptionError
        If a value makes no sense.
    """

    precision: float = 0.02
    min_toys: int = 500
    max_toys: int = 500_000
    n_points: int = 16
    gamma: float = 0.0

    def __post_init__(self) -> None:
        if not self.precision > 0:
            raise OptionError(f"precision {self.precision:g} must be above 0")
        if self.min_toys < 1 or self.max_toys < self.min_toys:
            raise OptionError(
                f"min_toys {self.min_toys} and max_toys {self.max_toys}: at least one toy, and not less than the minimum"
            )
        if self.n_points < 4:
            raise OptionError(f"n_points {self.n_points} must be at least 4")
        if not 0.0 <= self.gamma < 1.0:
            raise OptionError(f"gamma {self.gamma:g} must lie between 0 and 1 - cl")


@dataclass(frozen=True)
class NeymanPoint:
    """What the toys say about one tested value.

    Parameters
    ----------
    value : float
        Of the parameter of interest.
    t_observed : float
        Test statistic of the data.
    critical, critical_error : float
        Critical value of the worst setting of the nuisances, and its Monte Carlo error.
    p_value, p_error : float
        p-value of the data there, and its Monte Carlo error.
    n_toys, n_failed : int
        Toys behind it, and toys whose fits failed.
    """

    value: float
    t_observed: float
    critical: float
    critical_error: float
    p_value: float
    p_error: float
    n_toys: int
    n_failed: int


@dataclass(frozen=True)
class ToyInterval(IntervalResult):
    """Confidence interval from toys: an IntervalResult with Monte Carlo errors.

    Its ``threshold`` is NaN, since the critical value depends on the parameter: see `points`.

    Parameters
    ----------
    errors : tuple of (low, high)
        Monte Carlo errors of the ends; 0 at the edge of the allowed range, ``None`` where there is no end.
    asymptotic : (low, high)
        Ends of the interval that asymptotic critical values give; ``None`` where unknown.
    points : tuple of NeymanPoint
        All tested values in order.
    n_toys, n_failed : int
        Toys thrown for it, and toys whose fits failed.
    """

    errors: tuple[Segment, ...] = ()
    asymptotic: Segment = (None, None)
    points: tuple[NeymanPoint, ...] = ()
    n_toys: int = 0
    n_failed: int = 0

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            **super().to_dict(),
            "errors": [list(pair) for pair in self.errors],
            "asymptotic": list(self.asymptotic),
            "n_toys": self.n_toys,
            "n_failed": self.n_failed,
            "points": {
                name: [_finite(getattr(point, name)) for point in self.points]
                for name in ("value", "t_observed", "critical", "critical_error", "p_value", "p_error", "n_toys")
            },
        }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
