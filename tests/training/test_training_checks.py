"""Checks on the Gaussian toy, where each has a closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from gbistat.errors import FitFailed, OptionError
from gbistat.terms.shapes.double_crystal_ball import DoubleCrystalBall
from gbistat.terms.shapes.gaussian import Gaussian
from gbistat.training.card import OptimiserSpec
from gbistat.training.checks import (
    area_under_curve,
    calibration,
    closure,
    mean_ratio_in_bins,
    significance_improvement,
)
from gbistat.training.mass_shapes import compare_shape, crystal_ball_start, fit_mass_shape
from gbistat.training.schedule import outlook

SHIFT = 1.5


def draw(seed, n_signal, n_background):
    rng = np.random.default_rng(seed)
    x = rng.normal(SHIFT, 1.0, size=n_signal), rng.normal(size=n_background)
    return tuple(SHIFT * values - 0.5 * SHIFT**2 for values in x)


def test_area_under_the_curve():
    assert area_under_curve(np.array([3.0, 4.0]), np.array([1.0, 2.0])) == 1.0
    assert area_under_curve(np.array([1.0, 2.0]), np.array([1.0, 2.0])) == 0.5
    assert area_under_curve(np.array([1.0]), np.array([0.0, 1.0, 2.0, 3.0])) == 0.375
    # Phi(d / sqrt 2); error below 0.003.
    assert area_under_curve(*draw(1, 20_000, 20_000)) == pytest.approx(norm.cdf(SHIFT / math.sqrt(2)), abs=0.012)


def test_significance_improvement():
    found = significance_improvement(*draw(2, 20_000, 100_000), false_positive_rate=0.01)
    expected = norm.sf(norm.isf(0.01) - SHIFT) / 0.1
    assert found["background_events"] == 1000
    assert found["false_positive_rate"] == 0.01
    assert abs(found["value"] - expected) < 4.0 * found["sigma"]
    # Wider than the statistical error at a fixed cut, which does not count the moving cut's correlation.
    assert found["sigma"] / expected == pytest.approx(0.02, rel=0.3)
    with pytest.raises(OptionError, match=r"needs more than 1000 background events; there are 1"):
        significance_improvement(np.ones(5), np.ones(1), false_positive_rate=0.001)


def test_mean_ratio_in_bins():
    signal, background = draw(3, 5000, 50_000)
    rng = np.random.default_rng(4)
    masses = rng.random(5000), rng.random(50_000)
    edges = np.array([0.0, 0.3, 1.0, 2.0])
    rows = mean_ratio_in_bins((signal, masses[0]), (background, masses[1]), edges)
    assert [(row["low"], row["high"]) for row in rows] == [(0.0, 0.3), (0.3, 1.0)]
    assert sum(row["n_events"] for row in rows) == 50_000
    for row in rows:
        assert row["sigma"] == pytest.approx(math.sqrt((math.exp(SHIFT**2) - 1) / row["n_events"]), rel=0.2)
        assert abs(row["mean"] - 1.0) < 4.0 * row["sigma"]


def test_calibration_of_the_true_ratio_and_of_a_wrong_one():
    signal, background = draw(5, 20_000, 20_000)
    ones = np.ones(20_000)
    edges = np.linspace(0.0, 1.0, 11)
    rows = calibration((signal, ones), (background, ones), edges)
    assert len(rows) == 10
    pulls = np.array([(row["observed"] - row["predicted"]) / row["sigma"] for row in rows])
    assert np.sum(pulls**2) < 31.4  # chi-square of 10, chance 5e-4
    for row in rows:
        # Equal weights: the error of a share among Poisson counts.
        count = row["n_signal"] + row["n_background"]
        assert row["sigma"] == pytest.approx(math.sqrt(row["observed"] * (1 - row["observed"]) / count))
    wrong = calibration((2.0 * signal, ones), (2.0 * background, ones), edges)
    assert max(abs(row["observed"] - row["predicted"]) / row["sigma"] for row in wrong) > 8.0
    # Weights: classes count equally whatever their sums.
    heavy = calibration((signal, 7.0 * ones), (background, ones), edges)
    assert [row["observed"] for row in heavy] == pytest.approx([row["observed"] for row in rows])


@pytest.mark.parametrize(("n_signal", "n_background", "fraction"), [(400, 3000, 0.05), (100, 3000, 0.4)])
def test_closure_is_unbiased_with_the_stated_error(n_signal, n_background, fraction):
    found = [closure(*draw(seed, n_signal, n_background), fraction=fraction) for seed in range(200)]
    ratios = np.array([item.ratio for item in found])
    stated = math.sqrt(np.mean([item.sigma**2 for item in found]))
    # 200 toys: the mean to 7 %, the standard deviation to 5 % of sigma.
    assert np.mean(ratios) == pytest.approx(1.0, abs=4 * stated / math.sqrt(200))
    assert np.std(ratios) == pytest.approx(stated, rel=0.2)


def test_a_wrong_normalisation_shows_in_the_closure():
    signal, background = draw(7, 20_000, 100_000)
    r = np.exp(background)
    information = np.mean((r - 1) ** 2 / (1 + 0.01 * (r - 1)))
    shift = 0.02
    off = (
        closure(signal + shift, background + shift, fraction=0.01).ratio
        - closure(signal, background, fraction=0.01).ratio
    )
    # First order: df = d ln kappa / I.
    assert off == pytest.approx(shift / information / 0.01, rel=0.1)


def reference_schedule(losses, options):
    """Straight from the description: the learning rate of the next epoch and whether there is one."""
    best, best_epoch, rate, since = math.inf, None, options.learning_rate, 0
    for epoch, loss in enumerate(losses):
        since += 1
        if loss < best:
            best, best_epoch, since = loss, epoch, 0
        if since == options.reduce_after:
            rate, since = rate * options.reduce_factor, 0
    return best_epoch, rate, len(losses) == options.epochs or len(losses) - best_epoch > options.patience


def test_schedule_against_an_independent_one():
    rng = np.random.default_rng(8)
    options = OptimiserSpec(epochs=30, patience=7, reduce_after=3, reduce_factor=0.5, learning_rate=0.01)
    for _ in range(100):
        losses = rng.normal(size=int(rng.integers(1, 31))).round(1).tolist()
        found = outlook(losses, options)
        best, rate, stop = reference_schedule(losses, options)
        assert (found.best, found.stop) == (best, stop)
        assert found.learning_rate == pytest.approx(rate)
    assert outlook([], options).stop is False
    assert outlook([], options).learning_rate == 0.01


def test_fit_of_a_gaussian_is_the_closed_form():
    rng = np.random.default_rng(9)
    mass = rng.normal(1.0, 0.02, size=5000)
    found = fit_mass_shape(Gaussian(), mass, (0.5, 1.5), {"mean": 0.99, "sigma": 0.03})
    assert found.values["mean"] == pytest.approx(np.mean(mass), abs=1e-6)
    assert found.values["sigma"] == pytest.approx(np.std(mass), abs=1e-6)
    assert found.errors["mean"] == pytest.approx(np.std(mass) / math.sqrt(5000), rel=1e-4)
    assert compare_shape(found, mass, (0.5, 1.5), fitted=2)["p_value"] > 1e-3
    quantiles = norm.ppf(np.arange(1, 40) / 40, found.values["mean"], found.values["sigma"])
    counts = np.bincount(np.searchsorted(quantiles, mass), minlength=40)
    chi2 = compare_shape(found, mass, (0.5, 1.5), fitted=2)["chi2"]
    assert chi2 == pytest.approx(np.sum((counts - 125.0) ** 2 / 125.0), abs=1.0)  # edges interpolated
    wider = compare_shape(found, 1.0 + 1.3 * (mass - 1.0), (0.5, 1.5), fitted=0)
    assert wider["p_value"] < 1e-6
    assert wider["degrees_of_freedom"] == 39


def test_fit_of_a_crystal_ball_recovers_its_parameters():
    rng = np.random.default_rng(10)
    shape = DoubleCrystalBall()
    start, bounds = crystal_ball_start()
    true = {"mean": 0.995, "sigma": 0.016, "alpha_low": 0.6, "n_low": 6.0, "alpha_high": 1.2, "n_high": 3.0}
    seeded = fit_mass_shape(Gaussian(), rng.normal(1.0, 0.02, size=100), (0.8, 1.4), {"mean": 1.0, "sigma": 0.02})
    density = type(seeded.density).free(shape, ((0.8, 1.4),))
    mass = density.sample(20_000, list(true.values()), rng=rng)
    found = fit_mass_shape(shape, mass, (0.8, 1.4), start, bounds=bounds)
    for name, value in true.items():
        assert abs(found.values[name] - value) < 4.5 * found.errors[name], name
    assert compare_shape(found, mass, (0.8, 1.4), fitted=6)["p_value"] > 1e-3


def test_a_fit_at_its_bound_is_refused():
    rng = np.random.default_rng(11)
    with pytest.raises(FitFailed, match=r"the fit of the gaussian shape ended with mean at its bound"):
        fit_mass_shape(
            Gaussian(),
            rng.normal(1.0, 0.02, size=500),
            (0.5, 1.5),
            {"mean": 0.8, "sigma": 0.1},
            bounds={"mean": (0.7, 0.9)},
        )
