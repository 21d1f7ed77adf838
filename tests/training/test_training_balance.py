from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest

from gbistat.errors import EventsError
from gbistat.training.balance import balance_weights, interpolation_shares, local_density, move_resonances

INTERVAL = (0.0, 1.0)


def test_local_density_of_a_grid_is_exact():
    mass = (np.arange(200) + 0.5) / 200
    found, density = local_density(mass[::-1], np.full(200, 3.0), INTERVAL, neighbours=7)
    assert np.array_equal(found, mass)
    # 200 events of weight 3 in a unit interval.
    assert density == pytest.approx(600.0, rel=1e-12)


def test_local_density_follows_a_slope():
    rng = np.random.default_rng(1)
    mass = np.sqrt(rng.random(50_000))  # density 2 m
    found, density = local_density(mass, np.ones(mass.size), INTERVAL, neighbours=400)
    inner = (found > 0.2) & (found < 0.95)
    # 800 events: 3.5 % noise; the largest of thousands of correlated values stays below 5 sigma.
    assert density[inner] / mass.size == pytest.approx(2.0 * found[inner], rel=0.18)


def test_both_classes_get_the_same_distribution_of_the_mass():
    rng = np.random.default_rng(2)
    signal, background = rng.beta(3.0, 2.0, size=20_000), rng.beta(1.0, 3.0, size=50_000)
    brought = rng.uniform(0.5, 1.5, size=signal.size)
    w_s, w_b = balance_weights((signal, brought), (background, np.ones(background.size)), INTERVAL, neighbours=25)
    assert (w_s.sum(), w_b.sum()) == pytest.approx((1.0, 1.0))
    # Below 0.2 there are too few signal events for 25 neighbours to be local.
    edges = np.linspace(0.2, 0.85, 9)
    h_s = np.histogram(signal, edges, weights=w_s)[0]
    h_b = np.histogram(background, edges, weights=w_b)[0]
    # The local density compensates the fluctuations of the counts: better than 1 / sqrt(n).
    assert h_s == pytest.approx(h_b, rel=0.03)
    # h is the geometric mean of the two densities.
    x = 0.5 * (edges[1:] + edges[:-1])
    h = np.sqrt(x**2 * (1 - x) * (1 - x) ** 2)
    assert h_s / h_s.sum() == pytest.approx(h / h.sum(), rel=0.05)


def test_balanced_weights_leave_the_conditional_ratio():
    # The feature depends on the mass in both classes, and p_s(x|m) / p_b(x|m) = exp(x - 1/2) does not.
    rng = np.random.default_rng(3)
    m_s, m_b = rng.beta(4.0, 2.0, size=40_000), rng.beta(1.0, 3.0, size=40_000)
    x_s, x_b = rng.normal(1.0, 1.0, size=m_s.size), rng.normal(0.0, 1.0, size=m_b.size)
    w_s, w_b = balance_weights((m_s, np.ones(m_s.size)), (m_b, np.ones(m_b.size)), INTERVAL, neighbours=25)
    for low, high in ((0.1, 0.4), (0.4, 0.8)):
        masks = [(m >= low) & (m < high) for m in (m_s, m_b)]
        shares = [w[mask].sum() for w, mask in zip((w_s, w_b), masks, strict=True)]
        assert shares[0] == pytest.approx(shares[1], rel=0.02)
        # E_b[g r] = E_s[g] in the slice for g = (x > 1).
        r = np.exp(x_b - 0.5)
        left = np.sum((w_b * r * (x_b > 1.0))[masks[1]]) / shares[1]
        right = np.sum((w_s * (x_s > 1.0))[masks[0]]) / shares[0]
        assert left == pytest.approx(right, rel=0.1)


def test_moved_resonances_are_uniform_and_interpolated():
    rng = np.random.default_rng(4)
    own = [np.full(30_000, 100.0), np.full(20_000, 200.0)]
    moved, weights = move_resonances(own, [100.0, 200.0], (80.0, 240.0), rng=rng)
    assert sum(w.sum() for w in weights) == pytest.approx(160.0)
    everything, w = np.concatenate(moved), np.concatenate(weights)
    counts = np.histogram(everything, np.linspace(80.0, 240.0, 17), weights=w)[0]
    # 50 000 events in 16 bins: 2 % noise, 4 sigma.
    assert counts == pytest.approx(10.0, rel=0.08)
    # Between the samples the share of the first falls linearly from 1 to 0.
    edges = np.linspace(100.0, 200.0, 11)
    first, second = (np.histogram(m, edges, weights=v)[0] for m, v in zip(moved, weights, strict=True))
    assert first / (first + second) == pytest.approx(1.0 - (np.arange(10) + 0.5) / 10, abs=0.03)
    assert kstest(moved[1][moved[1] > 200.0], "uniform", args=(200.0, 40.0)).pvalue > 1e-3


def test_the_relative_position_in_the_peak_is_kept():
    rng = np.random.default_rng(5)
    own = np.array([95.0, 100.0, 105.0])
    moved, _ = move_resonances([own], [100.0], (300.0, 300.000001), rng=rng)
    assert moved[0] == pytest.approx([285.0, 300.0, 315.0], rel=1e-6)


def test_a_sample_without_a_share_gets_no_weight():
    rng = np.random.default_rng(6)
    _, weights = move_resonances([np.ones(5), np.ones(5)], [100.0, 200.0], (50.0, 90.0), rng=rng)
    assert weights[0].sum() == pytest.approx(40.0)
    assert weights[1].sum() == 0.0


def test_shares_add_up_to_one():
    masses = np.linspace(50.0, 400.0, 101)
    shares = interpolation_shares(masses, [100.0, 150.0, 300.0])
    assert shares.sum(axis=0) == pytest.approx(1.0)
    assert shares.min() >= 0.0


def test_too_few_or_equal_masses_are_refused():
    with pytest.raises(EventsError, match=r"5 events in the mass range 0-1 are too few to balance with 10 neighbours"):
        local_density(np.linspace(0.1, 0.9, 5), np.ones(5), INTERVAL, neighbours=10)
    with pytest.raises(EventsError, match=r"more than 4 events have the same mass"):
        local_density(np.full(20, 0.5), np.ones(20), INTERVAL, neighbours=2)
