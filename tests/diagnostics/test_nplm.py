"""NPLM: solver against another, nulls, benchmarks of the literature, dimension scaling."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from gbistat.diagnostics.batched import minimize_columns
from gbistat.diagnostics.nplm import nplm_fit, nplm_test
from gbistat.diagnostics.nplm_kernel import NplmOptions, kernel_features, kernel_width
from gbistat.diagnostics.significance import null_significance
from gbistat.errors import EventsError, OptionError


def test_many_minimisations_at_once():
    # Convex, not quadratic: log cosh of stretched coordinates, minima known.
    rng = np.random.default_rng(1)
    centre = rng.normal(size=(5, 7))
    stretch = np.array([1.0, 0.5, 2.0, 0.3, 1.5])[:, None]

    def loss(x):
        z = stretch * (x - centre)
        return np.sum(np.logaddexp(z, -z), axis=0), stretch * np.tanh(z)

    found = minimize_columns(loss, np.zeros((5, 7)), tolerance=1e-14)
    assert found == pytest.approx(centre, abs=1e-5)


def test_the_solver_agrees_with_newton_steps():
    rng = np.random.default_rng(1)
    pool = rng.normal(size=(3600, 3))
    labels = np.arange(3600) < 600
    pool[:600] += 0.1
    options = NplmOptions(centres=80)
    features = kernel_features(pool, 3.0, 1 / 6, 0.2, options, rng=rng)
    (t,), (f,) = nplm_fit(features, labels[None], 0.2)
    phi, own = features.values, np.where(labels, 1.0, 0.2) / 3600
    beta = np.zeros(phi.shape[1])
    for _ in range(20):
        p = 1 / (1 + np.exp(-phi @ beta))
        hessian = (phi * (own * p * (1 - p))[:, None]).T @ phi + features.penalty
        beta -= np.linalg.solve(hessian, phi.T @ (own * (p - labels)) + features.penalty @ beta)
    exact = phi @ beta
    assert f == pytest.approx(exact, abs=0.01)
    assert t == pytest.approx(2 * np.where(labels, exact, -0.2 * np.expm1(exact)).sum(), rel=1e-3)


def test_permutation_p_values_are_uniform():
    # Kolmogorov-Smirnov at 1 %: false alarm in 100.
    rng = np.random.default_rng(2)
    options = NplmOptions(centres=30, permutations=39)
    p = [
        nplm_test(rng.normal(size=(100, 5)), rng.normal(size=(400, 5)), rng=rng, options=options).p_value
        for _ in range(60)
    ]
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_five_dimensions_at_full_size():
    # 20,000 + 4,000 normal events, 500 centres: mean null t of 105-125 (published procedure), t never negative.
    rng = np.random.default_rng(3)
    options = NplmOptions(centres=500, permutations=19)
    result = nplm_test(rng.normal(size=(4000, 5)), rng.normal(size=(20_000, 5)), rng=rng, options=options)
    assert 95 < result.best.null.mean() < 125
    assert result.best.null.min() > 0
    assert result.best.penalty == 1e-6
    assert result.p_value > 0.01


def test_fractions_of_modes_give_the_ideal_statistic_in_any_dimension():
    # w takes two values only; t = 2 N KL = 45 + noise over its null, whatever the dimension. Bands of 4 sigma.
    for d in (2, 5, 10):
        rng = np.random.default_rng(4 + d)
        modes = np.zeros((3, d))
        modes[1, 0], modes[2, 1] = 12.0, 12.0

        def draw(n, shares, rng=rng, modes=modes, d=d):
            return modes[rng.choice(3, size=n, p=shares)] + rng.normal(size=(n, d))

        data, reference = draw(1000, [0.4, 0.3, 0.3]), draw(5000, [0.3, 0.35, 0.35])
        result = nplm_test(data, reference, rng=rng, options=NplmOptions(centres=100, permutations=99))
        excess = result.best.t - result.best.null.mean()
        assert 45 - 4 * 14 < excess < 45 + 4 * 14 + 15
        # In ten dimensions the null is wider: 13 sigma become 3.
        assert result.p_value <= (0.01 if d < 10 else 0.03)


def test_matched_moments_are_seen():
    # Same mean and variance: two moments see nothing, a fitted ratio does.
    rng = np.random.default_rng(6)
    data = rng.normal(size=(8000, 1))
    reference = rng.choice([-0.8, 0.8], (20_000, 1)) + 0.6 * rng.normal(size=(20_000, 1))
    options = NplmOptions(centres=100, width_percentiles=(50.0,), permutations=99, cut=1e-12)
    result = nplm_test(data, reference, rng=rng, options=options)
    assert result.p_value == 0.01


def test_several_widths_share_one_p_value():
    rng = np.random.default_rng(7)
    data, reference = rng.normal(size=(300, 2)), rng.normal(size=(1500, 2))
    data[:20] = 0.05 * rng.normal(size=(20, 2)) + 1.5
    options = NplmOptions(centres=60, width_percentiles=(10.0, 50.0, 90.0), permutations=99)
    result = nplm_test(data, reference, rng=rng, options=options)
    assert len(result.widths) == 3
    assert result.p_value >= min(item.p_value for item in result.widths)
    assert result.p_value < 0.05
    worst = data[np.argsort(result.log_ratio)[-10:]]
    assert np.median(np.abs(worst - 1.5)) < 0.3
    # Uniform also when the smallest of several is taken: share below 0.1 of 50 nulls within 3 binomial errors.
    small = NplmOptions(centres=20, width_percentiles=(20.0, 90.0), permutations=29)
    p = [
        nplm_test(rng.normal(size=(60, 2)), rng.normal(size=(200, 2)), rng=rng, options=small).p_value
        for _ in range(50)
    ]
    assert np.mean(np.array(p) <= 0.1) <= 0.1 + 3 * np.sqrt(0.09 / 50)


def test_significance_is_honest_beyond_the_ceiling():
    rng = np.random.default_rng(8)
    null = stats.gamma(6, scale=2).rvs(300, random_state=rng)
    far = null_significance(45.0, null, rng=rng)
    assert far.p_value == pytest.approx(1 / 301)
    assert far.z == pytest.approx(far.z_ceiling)
    assert far.z_ceiling == pytest.approx(2.71, abs=0.01)
    truth = stats.norm.isf(stats.gamma(6, scale=2).sf(45.0))
    assert abs(far.z_gamma - truth) < 4 * far.z_gamma_error
    near = null_significance(float(np.median(null)), null, rng=rng)
    assert abs(near.z) < 0.1
    huge = null_significance(1e5, null, rng=rng)
    assert 100 < huge.z_gamma < 1000
    with pytest.raises(OptionError, match="19 or more"):
        null_significance(1.0, null[:5], rng=rng)


def test_bad_input():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(50, 2))
    with pytest.raises(EventsError, match="do not fit"):
        nplm_test(x, x[:, :1], rng=rng)
    with pytest.raises(EventsError, match="1 of 50 data events are NaN"):
        nplm_test(np.where(np.arange(100).reshape(50, 2) == 3, np.nan, x), x, rng=rng)
    with pytest.raises(EventsError, match="feature 1 is constant"):
        nplm_test(x, np.column_stack([x[:, 0], np.ones(50)]), rng=rng)
    with pytest.raises(OptionError, match="expected = -1"):
        nplm_test(x, x, rng=rng, expected=-1.0)
    for options in ({"centres": 1}, {"width_percentiles": ()}, {"penalty": 0.0}):
        with pytest.raises(OptionError):
            NplmOptions(**options)
    assert kernel_width(x, 50.0, rng=rng) == pytest.approx(np.median(np.linalg.norm(x[:, None] - x, axis=2)), rel=0.1)
