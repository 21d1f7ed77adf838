"""Calibration algebra, overfitted classifiers, ensembles, pulls, closure, slices."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import kstest

from gbistat.diagnostics.calibration import calibrate
from gbistat.diagnostics.closure import reweighting_closure
from gbistat.diagnostics.overfitting import compare_with_training, ensemble_stability
from gbistat.diagnostics.pulls import bin_errors, generator_pulls
from gbistat.diagnostics.slices import slice_scan
from gbistat.diagnostics.weights import Scores
from gbistat.errors import EventsError, OptionError


@pytest.mark.parametrize(("c", "k"), [(1.0, 1.0), (1.3, 1.0), (1.0, 0.5), (0.8, 2.0)])
def test_distorted_weights_are_recovered(toys, c, k):
    # 3 sigma each for slope and intercept of four distortions: false alarm in 50.
    toy = toys["shift"](0.5, 20_000, np.random.default_rng(17))
    result = calibrate(Scores(math.log(c) + k * toy.log_weight(toy.values), toy.is_data))
    assert abs(result.slope.value - 1 / k) < 3 * result.slope.error
    assert abs(result.intercept.value + math.log(c) / k) < 3 * result.intercept.error
    assert result.failed == (k != 1)
    # Errors from the Fisher information of the right model, where the classes are equally many.
    exact = toy.log_weight(toy.values)
    p = 1 / (1 + np.exp(-exact))
    design = np.column_stack([np.ones(p.size), math.log(c) + k * exact])
    errors = np.sqrt(np.diag(np.linalg.inv((design * (p * (1 - p))[:, None]).T @ design)))
    assert [result.intercept.error, result.slope.error] == pytest.approx(errors, rel=0.01)


def test_chi2_of_exact_weights_is_uniform(toys):
    # Kolmogorov-Smirnov at 1 %: false alarm in 100.
    rng = np.random.default_rng(3)
    p = [calibrate(toys["shift"](0.5, 2000, rng).scores).p_value for _ in range(150)]
    assert kstest(p, "uniform").pvalue > 0.01


def test_a_slope_is_not_given_where_weights_do_not_vary():
    rng = np.random.default_rng(3)
    result = calibrate(Scores(rng.normal(0, 0.01, 2000), np.arange(2000) < 1000))
    assert not result.estimable
    assert not result.failed
    with pytest.raises(OptionError, match="20 bins of 4 events"):
        calibrate(Scores(np.arange(4.0), np.arange(4) < 2))


def test_an_overfitted_classifier_is_seen():
    # The published pattern: both samples alike, ln w broad and symmetric, training labels known by heart.
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 1.3, 10_000)
    labels = np.arange(10_000) < 5000
    train = Scores(np.where(labels, 1.0, -1.0) * np.abs(noise), labels)
    test = Scores(noise, labels)
    found = compare_with_training(train, test)
    assert found.overfit
    assert found.auc_train == 1.0
    result = calibrate(test)
    assert result.failed
    assert abs(result.slope.value) < 4 * result.slope.error
    assert result.chi2 > 1000


def test_halves_of_an_ensemble():
    rng = np.random.default_rng(1)
    truth = rng.normal(0, 0.3, 5000)
    agreed = ensemble_stability(truth + rng.normal(0, 0.02, (6, 5000)))
    assert agreed.stable
    assert agreed.rms_ratio == pytest.approx(0.02 * math.sqrt(2 / 3) / 0.3, rel=0.1)
    assert not ensemble_stability(rng.normal(0, 0.3, (6, 5000))).stable
    with pytest.raises(OptionError, match="at least two seeds"):
        ensemble_stability(truth[None])


@pytest.mark.parametrize(("rho", "width"), [(0.0, 1.0), (0.9, math.sqrt(0.1)), (1.0, 0.0)])
def test_pulls_are_as_wide_as_errors_are_independent(rho, width):
    # Truth differs from the ensemble's middle by an error of the size the members show, shared between events with rho.
    rng = np.random.default_rng(11)
    n, members, sigma = 20_000, 400, 0.02

    def errors(count):
        common = rng.normal(size=(count, 1))
        return sigma * (math.sqrt(rho) * common + math.sqrt(1 - rho) * rng.normal(size=(count, n)))

    truth = errors(1)[0]
    pulls = generator_pulls(errors(members), truth)
    expected = width * (1 + 1e-9)
    assert pulls.width == pytest.approx(expected, abs=0.02)
    assert (pulls.ks_p_value < 1e-6) == (rho > 0)


def test_pulls_refuse_what_gives_no_error():
    with pytest.raises(OptionError, match="at least three members"):
        generator_pulls(np.zeros((2, 5)), np.zeros(5))
    with pytest.raises(EventsError, match="same density in all members"):
        generator_pulls(np.zeros((4, 5)), np.zeros(5))
    with pytest.raises(EventsError, match="do not fit"):
        generator_pulls(np.zeros((4, 5)), np.zeros(6))


def test_errors_of_bins_hold_the_spread_of_members():
    # Members are Gaussians with means scattered by 0.1; so are the counts left of 0, by 0.1 phi(0) n.
    rng = np.random.default_rng(2)
    means = rng.normal(0, 0.1, 300)
    x = rng.normal(rng.choice(means, 20_000), 1.0)
    errors = bin_errors(-0.5 * (x - means[:, None]) ** 2, x, np.array([-10.0, 0.0, 10.0]))
    half = 0.5 * (errors.high - errors.low)
    assert half == pytest.approx([0.1 * 0.3989 * 20_000] * 2, rel=0.15)
    assert errors.median == pytest.approx([10_000, 10_000], rel=0.05)
    with pytest.raises(OptionError, match="increasing"):
        bin_errors(np.zeros((3, 2)), np.zeros(2), np.array([1.0, 0.0]))


def test_closure_repairs_a_smear_and_not_a_missing_tail(jets):
    rng = np.random.default_rng(5)
    smear = jets.toy("smear", 20_000, rng)
    (result,) = reweighting_closure({"mass": smear.values}, smear.scores)
    assert result.chi2_before > 300
    assert result.p_after > 1e-3
    cut = jets.toy("tail cut", 20_000, rng)
    (result,) = reweighting_closure({"mass": cut.values}, cut.scores, n_bins=100)
    assert result.p_after < 1e-6
    with pytest.raises(EventsError, match="infinite weight"):
        reweighting_closure({"mass": cut.values}, Scores(np.full(40_000, np.inf), cut.is_data))


def test_slices_find_the_observable_and_only_it(jets):
    rng = np.random.default_rng(8)
    toy = jets.toy("smear", 20_000, rng)
    observables = {"mass": toy.values} | {f"noise_{i}": rng.normal(size=40_000) for i in range(5)}
    scan = slice_scan(observables, toy.scores)
    assert {item.observable for item in scan[:4]} == {"mass"}
    # Benjamini-Hochberg at 5 % lets a noise feature pass in about one of six seeds: p < 0.05 * 5 / 24, twenty times.
    assert not [item for item in scan if item.observable != "mass" and item.q_value < 0.05]
    places = {(item.side, item.share): item.position for item in scan if item.observable == "mass"}
    assert places["small", 0.05] == "both ends"
    assert places["large", 0.05] == "middle"
    shift = jets.toy("shift", 20_000, rng)
    places = {item.side: item.position for item in slice_scan({"mass": shift.values}, shift.scores)}
    assert places == {"small": "high", "large": "low"}
    with pytest.raises(EventsError, match="'mass' has shape"):
        slice_scan({"mass": toy.values[:5]}, toy.scores)
