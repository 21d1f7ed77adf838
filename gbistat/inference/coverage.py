"""How often intervals hold the truth, and how far estimates are off: measured on toys, for any method.

A method is anything that turns a data set into an interval or a limit. Every number comes with its binomial error, by
C. J. Clopper and E. S. Pearson, Biometrika 26 (1934) 404.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
from scipy.special import bdtr, betaincinv

from gbistat.errors import GbistatError, OptionError
from gbistat.inference.results import IntervalResult, LimitResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from gbistat.typing import BoolArray, FloatArray, Json

__all__ = ["CoverageResult", "CoverageRow", "clopper_pearson", "coverage_of_flags", "measure_coverage"]

T = TypeVar("T")
Answer = IntervalResult | LimitResult
ONE_SIGMA = 0.6826894921370859


def clopper_pearson(k: int, n: int, *, cl: float = ONE_SIGMA) -> tuple[float, float]:
    """Central interval for a binomial probability, never covering less than it says.

    Parameters
    ----------
    k, n : int
        Successes and trials.
    cl : float, default 0.6827
        Confidence level.

    Raises
    ------
    OptionError
        If there are no trials, more successes than trials, or `cl` is not between 0 and 1.

    Examples
    --------
    >>> [round(end, 4) for end in clopper_pearson(0, 10, cl=0.95)]
    [0.0, 0.3085]
    """
    if not (0 <= k <= n and n > 0 and 0.0 < cl < 1.0):
        raise OptionError(f"{k} successes in {n} trials at level {cl:g}: there is no interval for that")
    tail = 0.5 * (1.0 - cl)
    low = float(betaincinv(k, n - k + 1, tail)) if k > 0 else 0.0
    high = float(betaincinv(k + 1, n - k, 1.0 - tail)) if k < n else 1.0
    return low, high


@dataclass(frozen=True)
class CoverageRow:
    """Coverage of one method at one confidence level and one truth.

    Parameters
    ----------
    method : str
        Its name.
    cl : float
        Confidence level that it claims.
    truth : float
        True value.
    n_toys, n_covered, n_failed : int
        Toys thrown; intervals that hold the truth; toys that gave no interval.
    failures : tuple of (str, int)
        What went wrong how often.
    n_open : int
        Intervals with an end that did not close.
    bias, bias_error, spread : float
        Mean of estimate minus truth, its error, and the standard deviation of the estimate; NaN where there is none.
    length : float
        Median length of the closed intervals; NaN if there are none.
    """

    method: str
    cl: float
    truth: float
    n_toys: int
    n_covered: int
    n_failed: int = 0
    failures: tuple[tuple[str, int], ...] = ()
    n_open: int = 0
    bias: float = math.nan
    bias_error: float = math.nan
    spread: float = math.nan
    length: float = math.nan

    @property
    def n_answers(self) -> int:
        """Toys with an interval."""
        return self.n_toys - self.n_failed

    @property
    def coverage(self) -> float:
        """Share of the intervals that hold the truth; NaN without any."""
        return self.n_covered / self.n_answers if self.n_answers else math.nan

    @property
    def ends(self) -> tuple[float, float]:
        """68.27 % Clopper-Pearson interval of the coverage; (0, 1) without any toy."""
        return clopper_pearson(self.n_covered, self.n_answers) if self.n_answers else (0.0, 1.0)

    @property
    def worst(self) -> float:
        """Coverage if every toy that failed had missed the truth."""
        return self.n_covered / self.n_toys

    @property
    def pull(self) -> float:
        """Coverage minus level, in binomial errors at that level: below -3 the method covers too rarely."""
        return (self.coverage - self.cl) / math.sqrt(self.cl * (1.0 - self.cl) / max(self.n_answers, 1))

    @property
    def p_value(self) -> float:
        """Probability of this coverage or a lower one, if the true one were the level."""
        return float(bdtr(self.n_covered, self.n_answers, self.cl)) if self.n_answers else 1.0

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        low, high = self.ends
        numbers = {
            "coverage": self.coverage,
            "coverage_low": low,
            "coverage_high": high,
            "bias": self.bias,
            "bias_error": self.bias_error,
            "spread": self.spread,
            "length": self.length,
        }
        return {
            "method": self.method,
            "cl": self.cl,
            "truth": self.truth,
            "n_toys": self.n_toys,
            "n_covered": self.n_covered,
            "n_failed": self.n_failed,
            "failures": dict(self.failures),
            "n_open": self.n_open,
            **{key: value if math.isfinite(value) else None for key, value in numbers.items()},
        }


@dataclass(frozen=True)
class CoverageResult:
    """Coverage of several methods on the same toys.

    Parameters
    ----------
    truth : float
        True value of the parameter.
    rows : tuple of CoverageRow
        One for each method and level.
    """

    truth: float
    rows: tuple[CoverageRow, ...]

    def row(self, method: str, cl: float) -> CoverageRow:
        """Row of one method and level.

        Raises
        ------
        OptionError
            If there is none.
        """
        for row in self.rows:
            if row.method == method and abs(row.cl - cl) < 1e-9:
                return row
        known = ", ".join(f"{row.method} at {row.cl:g}" for row in self.rows)
        raise OptionError(f"no coverage of {method!r} at {cl:g}; there is {known}")

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {"truth": self.truth, "rows": [row.to_dict() for row in self.rows]}


def measure_coverage(
    generate: Callable[[np.random.Generator], T],
    methods: Mapping[str, Callable[[T, np.random.Generator], Answer | Sequence[Answer]]],
    truth: float,
    n_toys: int,
    *,
    rng: np.random.Generator,
    mapper: Callable[..., Iterable[list[tuple[str, object]]]] = map,
) -> CoverageResult:
    """Coverage and bias of methods on toys.

    Parameters
    ----------
    generate : callable
        Draws a data set from a generator, at the true value.
    methods : mapping of str to callable
        Each takes a data set and a generator and returns an interval or a limit, or several at different levels.
    truth : float
        True value of the parameter.
    n_toys : int
        Data sets to draw.
    rng : numpy.random.Generator
        Every toy has its own child, and on it every method its own, so that the result depends neither on the number of workers
        nor on which other methods run.
    mapper : callable
        ``map``, or the ``map`` of an executor.

    Returns
    -------
    CoverageResult
        A row for each method and level. A toy that fails with one of gbistat's errors is counted with the name of the error;
        any other exception is raised.

    Raises
    ------
    OptionError
        If there are no toys or no methods.
    """
    if n_toys < 1 or not methods:
        raise OptionError(f"{n_toys} toys and {len(methods)} methods: there is nothing to measure")
    work = _Toy(generate, tuple(methods.items()), truth)
    records: dict[tuple[str, float], _Record] = {}
    lost: dict[str, Counter[str]] = {name: Counter() for name in methods}
    for answers in mapper(work, rng.spawn(n_toys)):
        for name, answer in answers:
            if isinstance(answer, str):
                lost[name][answer] += 1
            elif isinstance(answer, _One):
                records.setdefault((name, answer.cl), _Record()).add(answer)
    for name in methods:
        if not any(key[0] == name for key in records):
            records[name, math.nan] = _Record()
    rows = [
        record.row(name, cl, truth, n_toys, lost[name])
        for name in methods
        for (who, cl), record in records.items()
        if who == name
    ]
    return CoverageResult(truth, tuple(rows))


def coverage_of_flags(
    method: str, cl: float, truth: float, covered: BoolArray, *, estimates: FloatArray | None = None, n_failed: int = 0
) -> CoverageRow:
    """Coverage from arrays, for methods that answer many toys at once.

    Parameters
    ----------
    method : str
        Name.
    cl : float
        Confidence level.
    truth : float
        True value.
    covered : array of bool, shape (n,)
        Whether the truth was accepted.
    estimates : array of shape (n,), optional
        Estimates; infinite ones are left out of the bias.
    n_failed : int, default 0
        Further toys without an answer.
    """
    flags = np.asarray(covered, dtype=bool)
    values = np.empty(0) if estimates is None else np.asarray(estimates, dtype=np.float64)
    bias, error, spread = _moments(values, truth)
    failures = (("failed fit", n_failed),) if n_failed else ()
    return CoverageRow(
        method, cl, truth, flags.size + n_failed, int(flags.sum()), n_failed, failures, 0, bias, error, spread
    )


@dataclass(frozen=True)
class _One:
    """What matters of one interval."""

    cl: float
    covered: bool
    open: bool
    estimate: float
    length: float


@dataclass(frozen=True)
class _Toy(Generic[T]):
    """One toy with all methods; an instance, so that it can be sent to another process."""

    generate: Callable[[np.random.Generator], T]
    methods: tuple[tuple[str, Callable[[T, np.random.Generator], Answer | Sequence[Answer]]], ...]
    truth: float

    def __call__(self, rng: np.random.Generator) -> list[tuple[str, object]]:
        data = self.generate(rng)
        answers: list[tuple[str, object]] = []
        for name, method in self.methods:
            # Its own stream, tied to its name: another method beside it changes nothing.
            own = np.random.default_rng([*name.encode(), *_words(rng)])
            try:
                answer = method(data, own)
            except GbistatError as error:
                answers.append((name, type(error).__name__))
                continue
            several = [answer] if isinstance(answer, (IntervalResult, LimitResult)) else list(answer)
            answers += [(name, _one(result, self.truth)) for result in several]
        return answers


def _words(rng: np.random.Generator) -> list[int]:
    """Seed of a spawned generator as whole numbers."""
    sequence = rng.bit_generator.seed_seq
    return [int(word) for word in sequence.generate_state(8)]


def _one(result: Answer, truth: float) -> _One:
    if isinstance(result, LimitResult):
        return _One(result.cl, truth <= result.observed, False, math.nan, math.nan)
    inside = any((low is None or low <= truth) and (high is None or truth <= high) for low, high in result.segments)
    low, high = result.low, result.high
    length = (
        math.nan
        if low is None or high is None
        else sum(b - a for a, b in result.segments if a is not None and b is not None)
    )
    return _One(result.cl, inside, low is None or high is None, result.best, length)


def _moments(values: FloatArray, truth: float) -> tuple[float, float, float]:
    finite = values[np.isfinite(values)]
    if finite.size < 2:
        return math.nan, math.nan, math.nan
    spread = float(finite.std(ddof=1))
    return float(finite.mean()) - truth, spread / math.sqrt(finite.size), spread


@dataclass
class _Record:
    covered: int = 0
    open: int = 0
    count: int = 0
    estimates: list[float] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)

    def add(self, one: _One) -> None:
        self.count += 1
        self.covered += one.covered
        self.open += one.open
        self.estimates.append(one.estimate)
        self.lengths.append(one.length)

    def row(self, method: str, cl: float, truth: float, n_toys: int, lost: Counter[str]) -> CoverageRow:
        lengths = np.array(self.lengths)
        closed = lengths[np.isfinite(lengths)]
        bias, error, spread = _moments(np.array(self.estimates), truth)
        return CoverageRow(
            method=method,
            cl=cl,
            truth=truth,
            n_toys=n_toys,
            n_covered=self.covered,
            n_failed=n_toys - self.count,
            failures=tuple(sorted(lost.items())),
            n_open=self.open,
            bias=bias,
            bias_error=error,
            spread=spread,
            length=float(np.median(closed)) if closed.size else math.nan,
        )
