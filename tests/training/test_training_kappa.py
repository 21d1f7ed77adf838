"""Gaussian toy: background N(0, 1), signal N(d, 1), so that ln r = d x - d^2 / 2, known exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gbistat.errors import OptionError
from gbistat.training.checks import closure
from gbistat.training.kappa import (
    bridge_log_kappa,
    effective_size,
    expected_mean_error,
    mean_log_kappa,
    study_log_kappa,
)

SHIFT = 1.5
LOG_KAPPA = 0.7


def log_odds(x, slope=1.0):
    return slope * (SHIFT * x - 0.5 * SHIFT**2) - LOG_KAPPA


def draw(rng, n_signal, n_background, slope=1.0):
    signal, background = rng.normal(SHIFT, 1.0, size=n_signal), rng.normal(size=n_background)
    return (log_odds(signal, slope), np.ones(n_signal)), (log_odds(background, slope), np.ones(n_background))


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.9])
def test_the_bridge_equation_holds_and_finds_kappa(fraction):
    signal, background = draw(np.random.default_rng(1), 4000, 20_000)
    found = bridge_log_kappa(signal, background, fraction=fraction)
    kappa_o = [np.exp(found + values) for values, _ in (signal, background)]
    left = np.mean(kappa_o[1] / ((1 - fraction) + fraction * kappa_o[1]))
    right = np.mean(1.0 / ((1 - fraction) + fraction * kappa_o[0]))
    assert left == pytest.approx(right, rel=1e-10)
    # Standard deviation below 0.03 for each fraction; 5 sigma.
    assert found == pytest.approx(LOG_KAPPA, abs=0.15)


def test_the_mean_finds_kappa_and_a_shift_of_the_odds_shifts_it():
    _, (values, weights) = draw(np.random.default_rng(2), 1, 100_000)
    # sigma = sqrt((e^2.25 - 1) / 1e5) = 0.009.
    assert mean_log_kappa(values, weights) == pytest.approx(LOG_KAPPA, abs=0.045)
    assert mean_log_kappa(values + 700.0, weights) == pytest.approx(mean_log_kappa(values, weights) - 700.0)
    assert mean_log_kappa(values, 5.0 * weights) == pytest.approx(mean_log_kappa(values, weights))


def test_weights_stand_for_repeated_events():
    signal, background = draw(np.random.default_rng(3), 300, 500)
    counts = np.random.default_rng(4).integers(1, 4, size=500)
    repeated = (np.repeat(background[0], counts), np.ones(counts.sum()))
    weighted = (background[0], counts.astype(float))
    assert bridge_log_kappa(signal, weighted) == pytest.approx(bridge_log_kappa(signal, repeated), abs=1e-11)
    assert mean_log_kappa(*weighted) == pytest.approx(mean_log_kappa(*repeated), abs=1e-12)


def test_extreme_odds_do_not_overflow():
    signal, background = draw(np.random.default_rng(5), 200, 200)
    moved = [(values + 2000.0, weights) for values, weights in (signal, background)]
    assert bridge_log_kappa(*moved) == pytest.approx(bridge_log_kappa(signal, background) - 2000.0, abs=1e-8)
    assert effective_size(*moved[1]) == pytest.approx(effective_size(*background))


def test_effective_size_of_equal_odds_is_their_number():
    assert effective_size(np.full(50, 3.0), np.ones(50)) == pytest.approx(50.0)
    assert effective_size(np.array([0.0, -np.inf]), np.ones(2)) == pytest.approx(1.0)


def test_the_error_of_the_mean_is_the_closed_form():
    # E_b[r^2] - 1 = exp(d^2) - 1; 200 000 signal events estimate it to about 1 %.
    signal, background = draw(np.random.default_rng(6), 200_000, 5000)
    found = expected_mean_error(signal[0] + LOG_KAPPA, *(weights for _, weights in (signal, background)))
    assert found == pytest.approx(math.sqrt((math.exp(SHIFT**2) - 1) / 5000), rel=0.05)


def study(rng, n_signal, n_background, slope=1.0, **options):
    signal, background = draw(rng, n_signal, n_background, slope)
    return study_log_kappa(
        (*signal, rng.random(n_signal)),
        (*background, rng.random(n_background)),
        np.linspace(0, 1, 4),
        rng=rng,
        **options,
    )


def test_stated_errors_are_the_spread_over_toys():
    # 150 toys know a standard deviation to 6 %; 4 sigma. The bootstrap of 40 replicas averages out over the toys.
    rng = np.random.default_rng(7)
    studies = [study(rng, 300, 1500, replicas=40) for _ in range(150)]
    for name in ("bridge", "mean", "difference"):
        values = np.array([getattr(item, name).value for item in studies])
        stated = np.sqrt(np.mean([getattr(item, name).sigma ** 2 for item in studies]))
        assert np.std(values) == pytest.approx(stated, rel=0.25), name
    assert np.std([item.bridge.value for item in studies]) < 0.75 * np.std([item.mean.value for item in studies])
    # Two estimates of one number disagree in 5 % of cases: at most 19 of 150 but for a chance of 1e-4.
    assert sum(not item.agree for item in studies) <= 19
    assert sum(item.scatter > 0 for item in studies) <= 19


def test_the_error_of_the_difference_knows_the_correlation():
    # 1200 toys know a standard deviation to 2 %, the stated one is known to 2.5 %; ignoring the correlation is 16 % off.
    rng = np.random.default_rng(12)
    differences = []
    for _ in range(1200):
        signal, background = draw(rng, 1500, 600)
        differences.append(bridge_log_kappa(signal, background) - mean_log_kappa(*background))
    studies = [study(rng, 1500, 600, replicas=20) for _ in range(40)]
    stated = math.sqrt(np.mean([item.difference.sigma**2 for item in studies]))
    assert np.std(differences) == pytest.approx(stated, rel=0.1)


def test_miscalibrated_odds_disagree_and_enlarge_sigma():
    calibrated = study(np.random.default_rng(8), 1500, 10_000, replicas=30)
    assert calibrated.agree
    assert calibrated.sigma == pytest.approx(math.hypot(calibrated.bridge.sigma, calibrated.scatter))
    wrong = study(np.random.default_rng(8), 1500, 10_000, slope=0.6, replicas=30)
    assert not wrong.agree
    assert wrong.sigma > 3.0 * wrong.bridge.sigma


def test_a_kappa_that_depends_on_the_mass_is_seen():
    rng = np.random.default_rng(9)
    (s, w_s), (b, w_b) = draw(rng, 3000, 20_000)
    m_s, m_b = rng.random(3000), rng.random(20_000)
    found = study_log_kappa((s + m_s, w_s, m_s), (b + m_b, w_b, m_b), np.linspace(0, 1, 5), replicas=10, rng=rng)
    # Bins of ln kappa at 0.125, 0.375, ...: standard deviation 0.32.
    assert found.scatter_p_value < 1e-6
    assert found.scatter == pytest.approx(0.32, abs=0.08)
    assert found.sigma > found.scatter


@pytest.mark.parametrize("fraction", [0.005, 0.3])
def test_the_bridge_at_a_share_closes_the_fit_of_that_share(fraction):
    # The score of the mixture fit at its true share is the difference of the two sides of the bridge equation.
    signal, background = draw(np.random.default_rng(10), 500, 3000, slope=0.8)
    found = bridge_log_kappa(signal, background, fraction=fraction)
    assert closure(signal[0] + found, background[0] + found, fraction=fraction).ratio == pytest.approx(1.0, abs=1e-7)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_a_share_outside_its_range_is_refused(fraction):
    signal, background = draw(np.random.default_rng(11), 10, 10)
    with pytest.raises(OptionError, match=r"of the bridge estimator: give a number between 0 and 1"):
        bridge_log_kappa(signal, background, fraction=fraction)
