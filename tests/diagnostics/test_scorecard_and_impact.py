"""Distances against exact values, the scorecard's nulls, and what a difference does to mu."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import brentq

from gbistat.diagnostics.distances import (
    frechet_distance,
    kernel_statistics,
    radial_gram,
    separation,
    sliced_wasserstein,
)
from gbistat.diagnostics.impact import (
    injection_power,
    pool_windows,
    projected_bias,
    ratio_normalisation,
    signal_score,
    smallest_certifiable,
)
from gbistat.diagnostics.scorecard import METRICS, ScorecardOptions, scorecard
from gbistat.diagnostics.weights import Estimate
from gbistat.errors import EventsError, OptionError

COVARIANCE = np.array([[1.0, 0.25], [0.25, 1.0]])
ROOT = np.linalg.cholesky(COVARIANCE)


def gaussian(root, n, rng):
    """Sample whose mean and covariance are exact: only the formula is tested."""
    x = rng.normal(size=(n, len(root)))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return x @ root.T


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x: x + np.array([1.0, 0.0]), 1.0),
        (lambda x: x + np.array([0.1, 0.0]), 0.01),
        (lambda x: x @ np.linalg.inv(ROOT).T, 0.03188),
        (lambda x: math.sqrt(10) * x, 9.351),
        (lambda x: x / math.sqrt(10), 0.9351),
    ],
)
def test_frechet_distance_is_exact(change, expected):
    rng = np.random.default_rng(1)
    x, y = gaussian(ROOT, 500, rng), gaussian(ROOT, 500, rng)
    assert frechet_distance(x, change(y)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("d", "factor"), [(2, 0.6366), (5, 0.375), (10, 0.2587)])
def test_sliced_wasserstein_of_a_shift(d, factor):
    # The same events, shifted: the distance along u is |u_1| exactly; 2000 directions give 2 %.
    rng = np.random.default_rng(2)
    x = rng.normal(size=(300, d))
    y = x + np.eye(d)[0] * 0.5
    assert sliced_wasserstein(x, y, rng=rng, directions=2000) == pytest.approx(0.5 * factor, rel=0.04)


def test_separation_follows_its_null():
    # 2 n S is chi-square with bins - 1 degrees: mean within 4 errors.
    rng = np.random.default_rng(3)
    n, bins = 1000, 11
    values = [2 * n * separation(rng.normal(size=(n, 1)), rng.normal(size=(n, 1)), n_bins=bins)[0] for _ in range(300)]
    assert abs(np.mean(values) - (bins - 1)) < 4 * math.sqrt(2 * (bins - 1) / 300) + 0.2


def test_kernel_statistic_is_unbiased_and_right():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(6, 2)), rng.normal(size=(5, 2))
    gram = radial_gram(np.concatenate([x, y]), 1.0)
    own = [sum(gram[i, j] for i in part for j in part if i != j) for part in (range(6), range(6, 11))]
    cross = sum(gram[i, j] for i in range(6) for j in range(6, 11))
    direct = own[0] / 30 + own[1] / 20 - 2 * cross / 30
    assert kernel_statistics(gram, np.arange(11)[None] < 6)[0] == pytest.approx(direct)


def test_scorecard_sees_what_each_metric_can_see():
    rng = np.random.default_rng(5)
    options = ScorecardOptions(permutations=59, directions=20, kernel_events=300, largest=2000)
    data = rng.normal(size=(4000, 3))
    shifted = rng.normal(size=(2000, 3)) + np.array([0.2, 0.0, 0.0])
    correlated = rng.normal(size=(2000, 3))
    correlated[:, 1] = 0.2 * correlated[:, 0] + math.sqrt(1 - 0.04) * correlated[:, 1]
    null = scorecard(data, rng.normal(size=(2000, 3)), rng=rng, options=options)
    assert null.p_value > 0.05
    assert [metric.name for metric in null.metrics] == list(METRICS)
    shift = scorecard(data, shifted, rng=rng, options=options)
    for name in ("sliced_wasserstein", "frechet", "separation"):
        assert shift[name].p_value == pytest.approx(1 / 60)
        assert shift[name].value > shift[name].truth
    assert scorecard(data, correlated, rng=rng, options=options)["frechet"].p_value == pytest.approx(1 / 60)
    with pytest.raises(EventsError, match="needs 40 of each"):
        scorecard(data[:5], shifted, rng=rng)
    with pytest.raises(EventsError, match="feature 1 is constant"):
        scorecard(np.ones((50, 2)) * [1, 0] + rng.normal(size=(50, 2)) * [1, 0], shifted[:, :2], rng=rng)


def scores_of(x):
    """p = (1 - mu) N(0, 1) + mu N(2, 0.3)."""
    return stats.norm.pdf(x, 2, 0.3) / stats.norm.pdf(x) - 1


def test_impact_of_a_shifted_mean():
    # Generator N(d, 1): its own ratio is what the analysis uses, s = p_s / p_gen - 1.
    d, n = 0.02, 200_000
    u = (np.arange(n) + 0.5) / n
    data, generated = stats.norm.ppf(u), stats.norm.ppf(u) + d

    def score(x):
        return stats.norm.pdf(x, 2, 0.3) / stats.norm.pdf(x - d) - 1

    impact = projected_bias(score(data), score(generated), n_background=60_000, log_weight=-d * generated + 0.5 * d * d)
    assert impact.bias.value == pytest.approx(-2.265, abs=0.03)
    assert impact.bias_from_weights == pytest.approx(impact.bias.value, abs=0.02)
    assert impact.universal_bound == pytest.approx(math.sqrt(60_000 * math.expm1(d * d)), rel=0.01)
    assert impact.bias.error == pytest.approx(math.sqrt(2 * 60_000 / n), rel=0.05)
    assert impact.upper == pytest.approx(abs(impact.bias.value) + 1.645 * impact.bias.error, abs=1e-3)
    assert "cannot certify 0.2 sigma" in impact.statement(0.2)
    assert "below the tolerance of 2" in impact.statement(2.0)
    # delta of the fraction: delta/sigma / sqrt(N I).
    linear = impact.bias.value / math.sqrt(60_000 * np.var(score(generated)))
    assert linear == pytest.approx(-0.002193, abs=3e-5)


@pytest.mark.parametrize(("d", "refit", "ratio"), [(0.02, -0.002177, 1.008), (0.05, -0.00553, 1.019)])
def test_the_projection_is_what_a_refit_finds(d, refit, ratio):
    # Maximum of the expected log-likelihood of (1 - mu) p_gen + mu p_s over p_data, by quadrature.
    x = np.linspace(-9, 9, 40_001)
    p_data, p_gen, p_s = stats.norm.pdf(x), stats.norm.pdf(x, d), stats.norm.pdf(x, 2, 0.3)
    s = p_s / p_gen - 1
    found = brentq(lambda mu: np.trapezoid(p_data * s / (1 + mu * s), x), -0.02, 0.02)
    assert found == pytest.approx(refit, abs=6e-6)
    u = (np.arange(200_000) + 0.5) / 200_000
    score = [stats.norm.pdf(y, 2, 0.3) / stats.norm.pdf(y, d) - 1 for y in (stats.norm.ppf(u), stats.norm.ppf(u) + d)]
    impact = projected_bias(*score, n_background=60_000)
    linear = impact.bias.value / math.sqrt(60_000 * np.var(score[1]))
    assert linear / found == pytest.approx(ratio, abs=0.004)


def test_sidebands_as_large_as_the_window_certify_little():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=10_000), rng.normal(size=10_000)
    impact = projected_bias(scores_of(x), scores_of(y), n_background=10_000)
    assert impact.certifiable > 1.6
    assert smallest_certifiable(10_000, 0.2) == pytest.approx(2 * 10_000 * (1.645 / 0.2) ** 2, rel=1e-3)


def test_bounded_scores_have_the_size_of_the_expected_signal():
    rng = np.random.default_rng(2)
    log_ratio = np.log(scores_of(rng.normal(size=20_000)) + 1 + 1e-300)
    s = signal_score(log_ratio, n_background=10_000)
    f = 1 / s.max() if s.max() > 0 else 0
    information = np.mean(np.expm1(log_ratio) ** 2 / (1 + f * np.expm1(log_ratio)))
    assert s.max() < math.sqrt(10_000 * information) / 2 * 1.5
    with pytest.raises(EventsError, match="same density"):
        signal_score(np.zeros(10), n_background=10)


def test_power_grows_with_events():
    # Gaussian approximation: power = Phi(bias / error - 1.645); 100 trials, 4 binomial errors.
    rng = np.random.default_rng(3)
    generated = rng.normal(size=20_000)
    for n_data, tolerance in ((20_000, 3.0), (20_000, 0.2)):
        error = math.sqrt(10_000 * (1 / n_data + 1 / 20_000))
        expected = stats.norm.cdf(tolerance / error - 1.6449)
        power = injection_power(generated, n_data=n_data, n_background=10_000, tolerance=tolerance, rng=rng, trials=100)
        assert abs(power - expected) < 4 * math.sqrt(max(expected * (1 - expected), 0.01) / 100)
    with pytest.raises(OptionError, match="cannot be injected"):
        injection_power(generated, n_data=100, n_background=10, tolerance=3.0, rng=rng)


def test_windows_are_pooled():
    biases = [Estimate(1.0, 1.0), Estimate(-1.0, 1.0), Estimate(0.6, 0.5)]
    pooled = pool_windows([1.0, 2.0, 3.0], biases, at=2.0)
    assert pooled.bias.value == pytest.approx(0.6 * 4 / 6)
    assert pooled.bias.error == pytest.approx(1 / math.sqrt(6))
    assert pooled.n_degrees == 2
    line = pool_windows([1.0, 3.0], [Estimate(1.0, 1.0), Estimate(3.0, 1.0)], at=2.0, degree=1)
    assert (line.bias.value, line.p_value) == (pytest.approx(2.0), 1.0)
    with pytest.raises(OptionError, match="1 windows"):
        pool_windows([1.0], [Estimate(1.0, 1.0)], at=2.0, degree=1)


def test_impact_refuses_what_has_no_answer():
    with pytest.raises(OptionError, match="n_background = 0"):
        projected_bias(np.arange(3.0), np.arange(3.0), n_background=0)
    with pytest.raises(EventsError, match="same for all generated"):
        projected_bias(np.arange(3.0), np.ones(3), n_background=5)
    with pytest.raises(EventsError, match="must be finite"):
        projected_bias(np.array([1.0, np.nan]), np.arange(3.0), n_background=5)


def test_a_ratio_that_is_off_by_a_factor_is_normalised():
    # Exact ratio of N(theta, 1) to N(0, 1) times 1.1: kappa = 1 / 1.1 at every theta, within 4 errors.
    x = np.random.default_rng(4).normal(size=50_000)
    theta = np.array([-0.5, 0.0, 0.3, 0.8])
    kappa, error = ratio_normalisation(math.log(1.1) + theta[:, None] * x - 0.5 * theta[:, None] ** 2)
    assert np.all(np.abs(kappa - 1 / 1.1) < 4 * error + 1e-9)
    assert error[-1] == pytest.approx(math.sqrt(math.expm1(0.64) / 50_000) / 1.1, rel=0.1)
    with pytest.raises(EventsError, match="ratio is 0"):
        ratio_normalisation(np.full((1, 3), -np.inf))
