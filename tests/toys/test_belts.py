"""Closed-form Feldman-Cousins belts: the published tables, the paper's own recipe on a grid, and exact coverage."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import gammaln, ndtr

from gbistat.errors import OptionError
from gbistat.inference.belts import (
    gaussian_interval,
    gaussian_tmu_cdf,
    poisson_acceptance,
    poisson_interval,
    poisson_sensitivity,
    poisson_upper_ends,
)
from gbistat.inference.results import IntervalResult

PRINTED = 0.005 + 0.0006
"""Rounding to 0.01, and the paper's grid of 0.005 in mu for one entry."""


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    path = Path(__file__).parent / "reference" / "feldman_cousins.json"
    return dict(json.loads(path.read_text(encoding="utf-8")))


def ends(result: IntervalResult) -> tuple[float, float]:
    assert result.low is not None
    assert result.high is not None
    return result.low, result.high


def accepted_by_recipe(n: int, background: float, cl: float, mu: np.ndarray) -> np.ndarray:
    """Section IV B of the paper, word for word: rank counts by R, add them up until the level is reached."""
    counts = np.arange(int(mu.max() + background + 60))
    result = np.zeros(mu.size, dtype=bool)
    best = np.maximum(counts, background)
    for k, mean in enumerate(mu + background):
        log_p = counts * math.log(mean) - mean - gammaln(counts + 1.0)
        log_best = (
            np.where(counts > 0, counts * np.log(np.where(best > 0, best, 1.0)), 0.0) - best - gammaln(counts + 1.0)
        )
        order = np.argsort(log_best - log_p, kind="stable")
        stop = int(np.searchsorted(np.cumsum(np.exp(log_p[order])), cl)) + 1
        result[k] = n in counts[order[:stop]]
    return result


class TestPublishedTables:
    @pytest.mark.parametrize(("table", "cl"), [("poisson_90", 0.90), ("poisson_68", 0.6827)])
    def test_intervals(self, published: dict[str, Any], table: str, cl: float) -> None:
        rows = {key: row for key, row in published[table].items() if key.startswith("b=")}
        assert rows
        for key, row in rows.items():
            for n, low, high in zip(row["n"], row["low"], row["high"], strict=True):
                found = ends(poisson_interval(n, float(key[2:]), cl=cl, published=True))
                assert [round(x, 2) for x in found] == [low, high], (key, n)

    def test_upper_ends_at_95(self, published: dict[str, Any]) -> None:
        table = published["poisson_95_high"]
        exceptions = {(e["b"], e["n"]) for e in published["grid_exceptions"] if e["cl"] == 0.95}
        for b, row in table["b"].items():
            for n, printed in zip(table["n"], row, strict=True):
                high = ends(poisson_interval(n, float(b), cl=0.95, published=True))[1]
                assert abs(high - printed) < PRINTED, (b, n)
                if (float(b), n) not in exceptions:
                    assert round(high, 2) == printed, (b, n)

    def test_nothing_observed_at_90(self, published: dict[str, Any]) -> None:
        table = published["poisson_90_none"]
        exceptions = {e["b"] for e in published["grid_exceptions"] if e["n"] == 0}
        for b, printed in zip(table["b"], table["high"], strict=True):
            low, high = ends(poisson_interval(0, b, cl=0.90, published=True))
            assert low == 0.0
            assert abs(high - printed) < PRINTED, b
            if b not in exceptions:
                assert round(high, 2) == printed, b

    def test_sensitivity_is_the_mean_of_printed_ends(self, published: dict[str, Any]) -> None:
        table = published["sensitivity"]
        for cl in ("0.90", "0.6827"):
            for b, printed in list(zip(table["b"], table[cl], strict=False))[:9:4]:
                n = np.arange(int(b + 9.0 * math.sqrt(b) + 3.0))
                high = [round(ends(poisson_interval(int(k), b, cl=float(cl), published=True))[1], 2) for k in n]
                mass = np.exp(n * math.log(b) - b - gammaln(n + 1.0)) if b > 0 else (n == 0).astype(float)
                assert round(float(mass @ high), 2) == printed, (cl, b)
                if b <= 3:
                    assert poisson_sensitivity(b, cl=float(cl)) == pytest.approx(float(mass @ high), abs=0.005)

    def test_gaussian(self, published: dict[str, Any]) -> None:
        for entry in published["gaussian"]["entries"]:
            low, high = ends(gaussian_interval(entry["x0"], cl=float(entry["cl"])))
            tolerance = PRINTED if entry["status"] == "paper" else 0.01
            assert abs(low - entry["low"]) < tolerance, entry
            assert abs(high - entry["high"]) < tolerance, entry

    def test_acceptance_of_table_one(self, published: dict[str, Any]) -> None:
        row = published["poisson_90_acceptance"]
        assert poisson_acceptance(row["mu"], row["b"], cl=0.90) == (row["low"], row["high"])


class TestPoisson:
    @pytest.mark.parametrize(
        ("n", "b", "cl"),
        [
            (0, 0.0, 0.9),
            (1, 0.0, 0.95),
            (4, 2.3, 0.6827),
            (2, 5.0, 0.9),
            (0, 8.0, 0.95),
            (9, 3.0, 0.99),
            (25, 4.5, 0.9),
        ],
    )
    def test_membership_agrees_with_the_recipe(self, n: int, b: float, cl: float) -> None:
        result = poisson_interval(n, b, cl=cl)
        mu = np.arange(0.0, ends(result)[1] + 3.0, 0.011) + 1e-7
        inside = np.zeros(mu.size, dtype=bool)
        for low, high in result.segments:
            assert low is not None
            assert high is not None
            inside |= (mu >= low) & (mu <= high)
        assert np.array_equal(inside, accepted_by_recipe(n, b, cl, mu))

    def test_pieces_are_reported(self) -> None:
        # A set of two pieces: the recipe on a grid shows the gap as well.
        found = [
            (n, b)
            for n in range(8)
            for b in np.arange(0.5, 8.0, 0.25)
            if len(poisson_interval(n, float(b), cl=0.6827).segments) > 1
        ]
        assert found
        n, b = found[0]
        result = poisson_interval(n, float(b), cl=0.6827)
        gap = (result.segments[0][1], result.segments[1][0])
        assert gap[0] is not None
        assert gap[1] is not None
        middle = np.array([0.5 * (gap[0] + gap[1])])
        assert not accepted_by_recipe(n, float(b), 0.6827, middle)[0]
        assert len(poisson_interval(n, float(b), cl=0.6827, published=True).segments) == 1

    @pytest.mark.parametrize("cl", [0.6827, 0.9, 0.95])
    def test_closed_forms(self, cl: float) -> None:
        # Without background n = 0 alone ranks above n = 1, up to a mean of 1 / e: the end is where exp(-mu) = cl, or there.
        assert ends(poisson_interval(1, 0.0, cl=cl))[0] == pytest.approx(min(-math.log(cl), math.exp(-1.0)), abs=1e-9)
        # Counts 1 ... m rank above n = 0 for means between (m / e) (1 + ...) and the next switch; at the end they have cl.
        high = ends(poisson_interval(0, 0.0, cl=cl))[1]
        switches = [math.exp((m * math.log(m) - m) / m) for m in range(1, 20)]
        m = int(np.searchsorted(switches, high - 1e-9))
        below = sum(math.exp(-high + k * math.log(high) - math.lgamma(k + 1)) for k in range(1, m + 1))
        assert below == pytest.approx(cl, abs=1e-9) or min(abs(high - s) for s in switches) < 1e-9

    @pytest.mark.parametrize(("b", "cl"), [(0.0, 0.9), (3.0, 0.9), (0.7, 0.6827)])
    def test_coverage_is_exact(self, b: float, cl: float) -> None:
        intervals = [poisson_interval(n, b, cl=cl).segments for n in range(45)]
        for mu in np.linspace(0.013, 12.0, 60):
            n = np.arange(45)
            mass = np.exp(n * math.log(mu + b) - mu - b - gammaln(n + 1.0))
            inside = np.array([any(low <= mu <= high for low, high in segments) for segments in intervals])
            low, high = poisson_acceptance(float(mu), b, cl=cl)
            assert np.array_equal(np.flatnonzero(inside[: high + 5]), np.arange(low, high + 1))
            assert mass[inside].sum() >= cl - 1e-12

    def test_adjustment_makes_upper_ends_monotonic(self) -> None:
        b = np.linspace(0.0, 6.0, 61)
        plain = poisson_upper_ends(0, b)
        assert plain == pytest.approx([ends(poisson_interval(0, float(x)))[1] for x in b], abs=1e-9)
        assert (np.diff(plain) > 1e-3).any()
        adjusted = [ends(poisson_interval(0, float(x), published=True))[1] for x in b[::6]]
        assert (np.diff(adjusted) <= 1e-12).all()
        assert (np.array(adjusted) >= plain[::6] - 1e-12).all()
        assert plain[30] == pytest.approx(0.953, abs=1e-3)
        assert adjusted[5] == pytest.approx(1.078, abs=1e-3)

    def test_large_counts_approach_the_gaussian(self) -> None:
        low, high = ends(poisson_interval(625, 500.0, cl=0.6827))
        assert (low, high) == pytest.approx((100.0, 150.0), abs=1.0)

    def test_acceptance_without_any_mean(self) -> None:
        assert poisson_acceptance(0.0, 0.0, cl=0.9) == (0, 0)


class TestGaussian:
    @pytest.mark.parametrize("cl", [0.6827, 0.9, 0.95])
    def test_coverage_is_exact(self, cl: float) -> None:
        x = np.arange(-9.0, 13.0, 0.02)
        intervals = np.array([ends(gaussian_interval(float(value), cl=cl)) for value in x])
        for mu in (0.05, 0.3, 1.1, 2.5, 5.0):
            inside = (intervals[:, 0] <= mu) & (mu <= intervals[:, 1])
            mass = ndtr(x + 0.01 - mu) - ndtr(x - 0.01 - mu)
            assert mass[inside].sum() == pytest.approx(cl, abs=0.01)

    def test_scales_with_sigma(self) -> None:
        wide, narrow = ends(gaussian_interval(6.0, sigma=3.0)), ends(gaussian_interval(2.0))
        assert wide == pytest.approx([3.0 * end for end in narrow], rel=1e-12)

    @pytest.mark.parametrize("mu", [0.0, 0.4, 1.7, 6.0])
    def test_distribution_of_the_statistic(self, mu: float) -> None:
        x = np.linspace(mu - 9.0, mu + 9.0, 200_001)
        t = np.where(x >= 0, (x - mu) ** 2, mu**2 - 2.0 * x * mu)
        mass = np.exp(-0.5 * (x - mu) ** 2) / math.sqrt(2.0 * math.pi) * (x[1] - x[0])
        for value in (0.05, 0.8, 2.0, 5.0):
            direct = mass[(t < value)].sum()
            # At mu = 0 half of the outcomes have a statistic of exactly 0.
            assert gaussian_tmu_cdf(value, mu) == pytest.approx(direct, abs=2e-4)
        assert gaussian_tmu_cdf(0.0, mu) == 0.0


class TestErrors:
    @pytest.mark.parametrize("cl", [0.0, 1.0, 95.0])
    def test_level(self, cl: float) -> None:
        with pytest.raises(OptionError, match="between 0 and 1"):
            poisson_interval(3, 1.0, cl=cl)
        with pytest.raises(OptionError, match="between 0 and 1"):
            gaussian_interval(3.0, cl=cl)

    def test_negative(self) -> None:
        with pytest.raises(OptionError, match="-2"):
            poisson_interval(-2, 1.0)
        with pytest.raises(OptionError, match="0 or more"):
            poisson_interval(2, -1.0)
        with pytest.raises(OptionError, match="sigma"):
            gaussian_interval(2.0, sigma=0.0)
        with pytest.raises(OptionError, match="finite"):
            gaussian_interval(math.nan)
