"""Coverage and bias on toys whose answers are known in closed form.

Statistical tests have a fixed seed and would fail by chance for one seed in a thousand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy.special import bdtr, bdtri, ndtr

from gbistat.errors import FitFailed, OptionError
from gbistat.inference.belts import gaussian_interval
from gbistat.inference.coverage import (
    CoverageResult,
    clopper_pearson,
    coverage_of_flags,
    measure_coverage,
)
from gbistat.inference.profile import threshold
from gbistat.inference.results import IntervalResult, LimitResult

TRUTH = 1.3
N = 4000


def draw(rng: np.random.Generator) -> float:
    return float(rng.normal(TRUTH, 1.0))


def wilks(x: float, cl: float) -> IntervalResult:
    half = math.sqrt(threshold(cl))
    return IntervalResult("mu", cl, ((x - half, x + half),), x, threshold(cl))


def central(x: float, rng: np.random.Generator) -> Sequence[IntervalResult]:
    return [wilks(x, 0.6827), wilks(x, 0.95)]


def ln_two(x: float, rng: np.random.Generator) -> IntervalResult:
    """The rule ``Delta lnL = ln 2``, taken for 95 %."""
    half = math.sqrt(2.0 * math.log(2.0))
    return IntervalResult("mu", 0.95, ((x - half, x + half),), x, 2.0 * math.log(2.0))


def feldman_cousins(x: float, rng: np.random.Generator) -> IntervalResult:
    return gaussian_interval(x, cl=0.90)


def limit(x: float, rng: np.random.Generator) -> LimitResult:
    return LimitResult("mu", 0.95, x + 1.6449, (0.0, 0.0, 0.0, 0.0, 0.0))


def one_sided(x: float, rng: np.random.Generator) -> IntervalResult:
    return IntervalResult("mu", 0.95, ((None, x + 1.6449),), x, 2.71)


def two_pieces(x: float, rng: np.random.Generator) -> IntervalResult:
    return IntervalResult("mu", 0.95, ((TRUTH - 3.0, TRUTH - 2.0), (TRUTH - 1.0, TRUTH + 1.0)), x, 1.0)


def fragile(x: float, rng: np.random.Generator) -> IntervalResult:
    if x < TRUTH - 1.0:
        raise FitFailed("no minimum")
    return wilks(x, 0.95)


def random_wilks(x: float, rng: np.random.Generator) -> IntervalResult:
    return wilks(x + 0.1 * float(rng.standard_normal()), 0.6827)


METHODS = {"wilks": central, "ln 2": ln_two, "fc": feldman_cousins, "limit": limit, "one-sided": one_sided}


@pytest.fixture(scope="module")
def result() -> CoverageResult:
    return measure_coverage(draw, METHODS, TRUTH, N, rng=np.random.default_rng(11))


def two_sided_p(k: int, n: int, p: float) -> float:
    return float(min(1.0, 2.0 * min(bdtr(k, n, p), 1.0 - bdtr(k - 1, n, p))))


class TestClopperPearson:
    @pytest.mark.parametrize(("k", "n"), [(1, 7), (30, 40), (999, 1000)])
    def test_tails(self, k: int, n: int) -> None:
        low, high = clopper_pearson(k, n, cl=0.9)
        # By definition: at the ends the observed count or a more extreme one has 5 %.
        assert 1.0 - bdtr(k - 1, n, low) == pytest.approx(0.05, abs=1e-10)
        assert bdtr(k, n, high) == pytest.approx(0.05, abs=1e-10)
        assert high == pytest.approx(bdtri(k, n, 0.05), abs=1e-10)

    def test_edges(self) -> None:
        assert clopper_pearson(0, 5)[0] == 0.0
        assert clopper_pearson(5, 5)[1] == 1.0
        with pytest.raises(OptionError, match="6 successes in 5"):
            clopper_pearson(6, 5)
        with pytest.raises(OptionError, match="0 trials"):
            clopper_pearson(0, 0)


class TestCoverage:
    @pytest.mark.parametrize(
        ("method", "cl", "expected"),
        [
            ("wilks", 0.6827, 0.6827),
            ("wilks", 0.95, 0.95),
            ("ln 2", 0.95, 2.0 * float(ndtr(math.sqrt(2.0 * math.log(2.0)))) - 1.0),
            ("fc", 0.90, 0.90),
            ("limit", 0.95, 0.95),
            ("one-sided", 0.95, 0.95),
        ],
    )
    def test_known_coverage(self, result: CoverageResult, method: str, cl: float, expected: float) -> None:
        row = result.row(method, cl)
        assert row.n_toys == N
        assert two_sided_p(row.n_covered, row.n_toys, expected) > 1e-3
        low, high = row.ends
        assert low < row.coverage < high

    def test_the_rule_of_the_seeds_covers_76_percent(self, result: CoverageResult) -> None:
        row = result.row("ln 2", 0.95)
        assert row.coverage == pytest.approx(0.761, abs=0.025)
        assert row.pull < -20
        assert row.p_value < 1e-100

    def test_bias_and_length(self, result: CoverageResult) -> None:
        row = result.row("wilks", 0.95)
        assert abs(row.bias) < 3.3 * row.bias_error
        assert row.spread == pytest.approx(1.0, abs=0.04)
        assert row.length == pytest.approx(2.0 * 1.95996, rel=1e-4)
        # The bounded estimate is biased upwards near its boundary: E[max(x, 0)] - mu.
        expected = TRUTH * (float(ndtr(TRUTH)) - 1.0) + math.exp(-0.5 * TRUTH**2) / math.sqrt(2.0 * math.pi)
        bounded = result.row("fc", 0.90)
        assert abs(bounded.bias - expected) < 3.3 * bounded.bias_error

    def test_open_ends_are_counted(self, result: CoverageResult) -> None:
        row = result.row("one-sided", 0.95)
        assert row.n_open == N
        assert math.isnan(row.length)
        assert row.to_dict()["length"] is None

    def test_every_piece_counts(self) -> None:
        row = measure_coverage(draw, {"two": two_pieces}, TRUTH, 50, rng=np.random.default_rng(1)).row("two", 0.95)
        assert row.n_covered == 50
        assert row.length == pytest.approx(3.0)
        missed = measure_coverage(draw, {"two": two_pieces}, TRUTH - 1.5, 50, rng=np.random.default_rng(1))
        assert missed.row("two", 0.95).n_covered == 0


class TestFailures:
    def test_failures_are_named_and_counted(self) -> None:
        row = measure_coverage(draw, {"fragile": fragile}, TRUTH, 500, rng=np.random.default_rng(3)).row(
            "fragile", 0.95
        )
        assert row.n_failed == dict(row.failures)["FitFailed"]
        assert 0 < row.n_failed < 250
        assert row.n_answers == 500 - row.n_failed
        assert row.worst == row.n_covered / 500 < row.coverage
        assert row.to_dict()["failures"] == {"FitFailed": row.n_failed}

    def test_all_fail(self) -> None:
        def never(x: float, rng: np.random.Generator) -> IntervalResult:
            raise FitFailed("never")

        row = measure_coverage(draw, {"never": never}, TRUTH, 5, rng=np.random.default_rng(3)).rows[0]
        assert (row.n_failed, row.n_covered) == (5, 0)
        assert row.ends == (0.0, 1.0)
        assert row.to_dict()["coverage"] is None

    def test_mistakes_are_not_swallowed(self) -> None:
        def broken(x: float, rng: np.random.Generator) -> IntervalResult:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            measure_coverage(draw, {"broken": broken}, TRUTH, 5, rng=np.random.default_rng(3))


class TestReproducibility:
    def test_other_methods_change_nothing(self) -> None:
        alone = measure_coverage(draw, {"r": random_wilks}, TRUTH, 60, rng=np.random.default_rng(5))
        beside = measure_coverage(draw, {"a": random_wilks, "r": random_wilks}, TRUTH, 60, rng=np.random.default_rng(5))
        assert alone.row("r", 0.6827) == beside.row("r", 0.6827)

    def test_workers_change_nothing(self) -> None:
        serial = measure_coverage(draw, {"r": random_wilks}, TRUTH, 60, rng=np.random.default_rng(5))
        with ThreadPoolExecutor(2) as pool:
            parallel = measure_coverage(
                draw, {"r": random_wilks}, TRUTH, 60, rng=np.random.default_rng(5), mapper=pool.map
            )
        assert serial == parallel


class TestArrays:
    def test_flags(self) -> None:
        row = coverage_of_flags(
            "m", 0.9, 2.0, np.array([True, True, False]), estimates=np.array([1.0, 2.0, -np.inf]), n_failed=1
        )
        assert (row.n_toys, row.n_covered, row.n_failed) == (4, 2, 1)
        assert row.coverage == pytest.approx(2 / 3)
        assert row.bias == pytest.approx(-0.5)
        assert row.to_dict()["n_failed"] == 1


class TestErrors:
    def test_nothing_to_measure(self) -> None:
        with pytest.raises(OptionError, match="0 toys"):
            measure_coverage(draw, METHODS, TRUTH, 0, rng=np.random.default_rng(1))
        with pytest.raises(OptionError, match="0 methods"):
            measure_coverage(draw, {}, TRUTH, 10, rng=np.random.default_rng(1))

    def test_unknown_row(self, result: CoverageResult) -> None:
        with pytest.raises(OptionError, match=r"wilks at 0\.95"):
            result.row("wilks", 0.5)
