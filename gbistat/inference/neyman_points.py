"""Toys thrown at tested values of the parameter of interest, and what they say about those values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from gbistat.errors import FitFailed, OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from gbistat.typing import FloatArray

__all__ = ["Point", "Thrower", "ToyStatistics"]

CHUNK = 10_000
"""Toys in one call, so that memory stays bounded and several processes have something to do."""

TIE = 1e-6
"""How far below the observed statistic a toy counts as equal to it: fits of equal data agree this well."""


class ToyStatistics(Protocol):
    """Source of toys."""

    def __call__(
        self, theta_true: FloatArray, poi_values: FloatArray, n_toys: int, *, rng: np.random.Generator
    ) -> FloatArray:
        """Test statistic at each value of the parameter of interest on toys, shape (n_toys, n_values); NaN where a fit failed."""


class Point:
    """One tested value, with toys at one or several settings of the nuisance parameters.

    Parameters
    ----------
    value : float
        Of the parameter of interest.
    t_observed : float
        Test statistic of the data there.
    thetas : list of array of shape (p,)
        True parameters of the toys: the profiled ones first.
    """

    def __init__(self, value: float, t_observed: float, thetas: list[FloatArray]) -> None:
        self.value = value
        self.t_observed = t_observed
        self.thetas = thetas
        self.toys: list[FloatArray] = [np.empty(0) for _ in thetas]
        self.thrown: list[int] = [0] * len(thetas)
        self.n_failed = 0

    @property
    def n_toys(self) -> int:
        """Usable toys of all settings."""
        return sum(toys.size for toys in self.toys)

    @property
    def spent(self) -> int:
        """Toys thrown at the setting that got most of them, failed ones included."""
        return max(self.thrown)

    @property
    def discrete(self) -> bool:
        """Whether most toys share their statistic with others, as where it depends on a count alone."""
        finite = [toys[np.isfinite(toys)] for toys in self.toys]
        shares = [(int(np.count_nonzero(np.diff(toys))) + 1) / toys.size for toys in finite if toys.size > 1]
        return min(shares, default=1.0) < 0.5

    def add(self, which: int, values: FloatArray) -> None:
        """Take in the statistics of more toys at one setting."""
        good = values[~np.isnan(values)]
        self.n_failed += int(values.size - good.size)
        self.thrown[which] += values.size
        self.toys[which] = np.sort(np.concatenate([self.toys[which], good]))

    def worst(self) -> tuple[float, int]:
        """Largest p-value of the data over the settings, and the usable toys at that setting."""
        return max(((self._p(toys), toys.size) for toys in self.toys if toys.size), default=(0.0, 0))

    def p_value(self) -> tuple[float, float]:
        """Largest p-value, and its binomial error: one that does not vanish with no toy beyond the data."""
        p, n = self.worst()
        q = (n * p + 1.0) / (n + 2.0)
        return p, math.sqrt(q * (1.0 - q) / max(n, 1))

    def _p(self, toys: FloatArray) -> float:
        below = int(np.searchsorted(toys, self.t_observed - TIE * (1.0 + self.t_observed)))
        return (toys.size - below) / toys.size

    def critical(self, level: float) -> tuple[float, float]:
        """Largest quantile of the statistic over the settings, and its error from order statistics."""
        return max((_quantile(toys, level) for toys in self.toys if toys.size), default=(math.nan, math.inf))

    def accepted(self, level: float) -> bool:
        """Whether the value is in the interval, as far as these toys tell."""
        return self.p_value()[0] > 1.0 - level

    def decided(self, level: float, *, sigmas: float = 2.0) -> bool:
        """Whether more toys are unlikely to change that."""
        p, n = self.worst()
        return n > 0 and abs(p - (1.0 - level)) > sigmas * math.sqrt(level * (1.0 - level) / n)

    def contenders(self) -> list[int]:
        """Settings that may be the worst one: only they deserve more toys."""
        p, n = self.worst()
        chosen = []
        for which, toys in enumerate(self.toys):
            error = math.sqrt(max(p * (1.0 - p), 1.0 / max(n, 1)) * (1.0 / max(n, 1) + 1.0 / max(toys.size, 1)))
            if toys.size == 0 or self._p(toys) + 3.0 * error >= p:
                chosen.append(which)
        return chosen


def _quantile(toys: FloatArray, level: float) -> tuple[float, float]:
    """Smallest value that at most ``1 - level`` of the toys exceed, and half the distance of its +-1 sigma ranks."""
    n = toys.size
    rank = min(math.ceil(n * level), n) - 1
    reach = math.sqrt(n * level * (1.0 - level))
    low, high = max(math.floor(rank - reach), 0), min(math.ceil(rank + reach), n - 1)
    c = float(toys[rank])
    if not math.isfinite(float(toys[high])):
        return c, math.inf if math.isfinite(c) else 0.0
    return c, float(toys[high] - toys[low]) * reach / max(high - low, 1) if high > low else 0.0


@dataclass(frozen=True)
class _Throw:
    """One batch of toys; an instance, so that it can be sent to another process."""

    statistics: ToyStatistics

    def __call__(self, theta: FloatArray, value: float, n_toys: int, rng: np.random.Generator) -> FloatArray:
        result = np.asarray(self.statistics(theta, np.array([value]), n_toys, rng=rng), dtype=np.float64)
        if result.shape != (n_toys, 1):
            raise OptionError(f"{n_toys} toys at one value gave statistics of shape {result.shape}, not ({n_toys}, 1)")
        return result[:, 0]


class Thrower:
    """Points of one problem, with a source of toys.

    Parameters
    ----------
    statistics : ToyStatistics
        Source of toys.
    observed : callable
        Test statistic of the data at a value.
    settings : callable
        True parameters for toys at a value.
    best, low, high : float
        Estimate, and range of the parameter.
    rng : numpy.random.Generator
        Every batch has its own child, in the order in which batches are asked for.
    mapper : callable
        ``map``, or the ``map`` of an executor: the result is the same.
    """

    def __init__(
        self,
        statistics: ToyStatistics,
        observed: Callable[[float], float],
        settings: Callable[[float], list[FloatArray]],
        *,
        best: float,
        low: float,
        high: float,
        rng: np.random.Generator,
        mapper: Callable[..., Iterable[FloatArray]] = map,
    ) -> None:
        self._throw = _Throw(statistics)
        self.observed = observed
        self.settings = settings
        self.best = best
        self.low = low
        self.high = high
        self.rng = rng
        self.mapper = mapper
        self.points: dict[float, Point] = {}

    @property
    def n_toys(self) -> int:
        """Usable toys so far."""
        return sum(point.n_toys for point in self.points.values())

    @property
    def n_failed(self) -> int:
        """Toys without a statistic so far."""
        return sum(point.n_failed for point in self.points.values())

    def within(self, value: float) -> float:
        """Nearest value in the range."""
        return min(max(value, self.low), self.high)

    def point(self, value: float) -> Point:
        """Point at a value, made if it is new."""
        if value not in self.points:
            self.points[value] = Point(value, self.observed(value), self.settings(value))
        return self.points[value]

    def throw(self, wanted: Mapping[float, int]) -> None:
        """Throw that many more toys at each of these values, at the settings that may be the worst.

        Raises
        ------
        FitFailed
            If all toys at a value failed.
        """
        tasks: list[tuple[Point, int, int]] = []
        for value, count in wanted.items():
            point = self.point(value)
            for which in point.contenders():
                tasks += [(point, which, min(CHUNK, count - begin)) for begin in range(0, count, CHUNK)]
        results = self.mapper(
            self._throw,
            [point.thetas[which] for point, which, _ in tasks],
            [point.value for point, _, _ in tasks],
            [count for _, _, count in tasks],
            self.rng.spawn(len(tasks)),
        )
        for (point, which, _), values in zip(tasks, results, strict=True):
            point.add(which, values)
        for value in wanted:
            if self.points[value].n_toys == 0:
                raise FitFailed(
                    f"all {self.points[value].n_failed} toys thrown at {value:g} failed; look at their status"
                )
