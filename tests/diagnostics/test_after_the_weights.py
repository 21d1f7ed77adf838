"""Rules in words, isotonic recalibration, and what is left after reweighting and after a tilt."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import kstest

from gbistat.diagnostics.calibration import calibrate
from gbistat.diagnostics.evidence import log_score
from gbistat.diagnostics.isotonic import recalibrated
from gbistat.diagnostics.nplm_kernel import NplmOptions
from gbistat.diagnostics.nplm_profiled import nplm_profiled
from gbistat.diagnostics.roc import area_under_roc
from gbistat.diagnostics.rules import find_rules
from gbistat.diagnostics.weights import Scores
from gbistat.errors import EventsError, OptionError


def test_the_rule_of_a_smear_is_on_the_mass_only(jets):
    # Five observables of noise beside: 50,000 alternatives to the splits of the mass.
    rng = np.random.default_rng(8)
    toy = jets.toy("smear", 20_000, rng)
    observables = {"mass": toy.values} | {f"noise_{i}": rng.normal(size=40_000) for i in range(5)}
    rules = find_rules(observables, toy.scores)
    assert {name for rule in rules for name in rule.observables} == {"mass"}
    assert rules[0].p_value < 1e-6
    # Both ends are generated too often, the middle too rarely.
    low, *_ = [rule for rule in rules if rule.text.startswith("mass < ")]
    high, *_ = [rule for rule in rules if rule.text.startswith("mass > ")]
    for rule in (low, high):
        assert rule.mean_log_weight < 0
        assert rule.n_generated > rule.n_data
    assert max(rules, key=lambda rule: rule.mean_log_weight).text.count("mass") == 1


def test_a_rule_in_two_observables():
    # One corner of a square is missing in the generated events: neither projection alone has it.
    rng = np.random.default_rng(2)
    x, y = rng.random((2, 20_000))
    label = np.arange(20_000) < 10_000
    corner = (x > 0.7) & (y > 0.7)
    keep = label | ~corner
    scores = Scores(np.where(corner, 2.0, -0.05)[keep], label[keep])
    first, *_ = find_rules({"x": x[keep], "y": y[keep]}, scores)
    assert set(first.observables) == {"x", "y"}
    assert first.n_generated < 0.1 * first.n_data
    assert "x > 0." in first.text
    assert " and " in first.text


def test_p_values_of_rules_hold_their_level():
    # 80 nulls; outputs of a second fold that know the labels of the first by heart, as classifiers trained on it do. Leaves are
    # counted in the second: share below 0.1 within 3 binomial errors (Bonferroni: below).
    rng = np.random.default_rng(3)
    p = []
    for _ in range(80):
        label = rng.permutation(np.arange(800) < 400)
        a, fold = rng.normal(size=800), np.arange(800) % 2
        first = fold == 0
        near = np.abs(a[:, None] - a[first]).argsort(axis=1)[:, :20]
        known = label[first][near].mean(axis=1) - 0.5
        scores = Scores(np.where(first, 0.1 * a, 4.0 * known), label, fold=fold)
        p.append(find_rules({"a": a, "b": rng.normal(size=800)}, scores)[0].p_value)
    assert np.mean(np.array(p) < 0.1) < 0.1 + 3 * math.sqrt(0.09 / 80)


def test_rules_refuse_what_they_cannot_use():
    rng = np.random.default_rng(1)
    scores = Scores(np.arange(40.0), np.arange(40) % 2 == 0)
    with pytest.raises(OptionError, match="0 observables"):
        find_rules({}, scores)
    with pytest.raises(EventsError, match="'x' does not fit 40 scores"):
        find_rules({"x": np.full(40, np.nan)}, scores)
    # Too few events for two leaves, or nothing to explain: no rule.
    assert find_rules({"x": np.arange(40.0)}, scores) == ()
    constant = Scores(np.zeros(400), np.arange(400) < 200)
    assert find_rules({"x": rng.normal(size=400)}, constant) == ()


@pytest.mark.parametrize(("c", "k"), [(1.5, 1.0), (1.0, 3.0), (0.7, 0.4)])
def test_distorted_weights_are_recalibrated(toys, c, k):
    rng = np.random.default_rng(4)
    toy = toys["shift"](0.5, 20_000, rng)
    distorted = Scores(math.log(c) + k * toy.log_weight(toy.values), toy.is_data)
    found = recalibrated(distorted, rng=rng)
    result = calibrate(found)
    # The isotonic fit has an error of its own, here of about a tenth of an error of the slope.
    assert abs(result.slope.value - 1) < 4 * result.slope.error + 0.05
    assert abs(result.intercept.value) < 4 * result.intercept.error + 0.02
    assert not result.failed
    exact = toy.log_weight(toy.values)
    assert np.sqrt(np.mean((found.log_weight - exact) ** 2)) < 0.2
    # Within a half the order stays, but for ties.
    for half in (0, 1):
        rows = found.fold == half
        areas = [area_under_roc(Scores(s.logit[rows], s.is_data[rows])).value for s in (found, distorted)]
        assert areas[0] == pytest.approx(areas[1], abs=0.003)


def test_recalibration_keeps_apart_what_it_fits_and_what_it_changes():
    # Labels are noise: weights known by heart would be calibrated on the same events, and are not on others.
    rng = np.random.default_rng(5)
    noise = Scores(rng.normal(0, 1.3, 4000), np.arange(4000) < 2000)
    found = recalibrated(noise, rng=rng)
    assert np.std(found.log_weight) < 0.3
    assert log_score(found).value < 0
    folds = np.arange(4000) % 4
    assert np.array_equal(recalibrated(noise, rng=rng, fold=folds).fold, folds)
    infinite = Scores(np.where(np.arange(4000) % 50 == 0, np.inf, noise.logit), noise.is_data)
    assert np.all(np.isfinite(recalibrated(infinite, rng=rng).log_weight))
    with pytest.raises(OptionError, match="one fold"):
        recalibrated(noise, rng=rng, fold=np.zeros(4000, dtype=int))


def shifted(n, m, d, rng):
    """Data N(0, 1) and reference N(d, 1) in the first of two features, and the exact ln w."""
    data, reference = rng.normal(size=(n, 2)), rng.normal(size=(m, 2)) + np.array([d, 0.0])
    return data, reference, tuple(-d * x[:, 0] + 0.5 * d * d for x in (data, reference))


def test_the_tilt_covers_a_shift():
    rng = np.random.default_rng(6)
    options = NplmOptions(centres=40, permutations=99)
    data, reference, weights = shifted(1500, 6000, 0.3, rng)
    found = nplm_profiled(data, reference, weights, rng=rng, sigma=1.0, options=options)
    # nu has an error of 1 / (d sqrt(n)) = 0.09 and is pulled to 0 by a hundredth; Delta is 2 n KL = n d^2 on average.
    assert found.nu == pytest.approx(1.0, abs=0.35)
    assert found.delta == pytest.approx(1500 * 0.09, abs=4 * math.sqrt(4 * 135))
    assert found.test.p_value > 0.01
    # A difference that the tilt does not have stays.
    data[:, 1] *= 1.3
    assert nplm_profiled(data, reference, weights, rng=rng, options=options).test.p_value == 0.01


def test_p_values_after_profiling_are_not_too_small():
    # 60 samples that follow the tilted reference: share below 0.1 within 3 binomial errors, no KS excess at small p.
    rng = np.random.default_rng(7)
    options = NplmOptions(centres=20, permutations=39)
    p = []
    for _ in range(60):
        data, reference, weights = shifted(200, 800, 0.3, rng)
        p.append(nplm_profiled(data, reference, weights, rng=rng, options=options).test.p_value)
    assert np.mean(np.array(p) <= 0.1) < 0.1 + 3 * math.sqrt(0.09 / 60)
    assert kstest(p, "uniform", alternative="greater").pvalue > 0.01


def test_profiling_needs_finite_weights():
    rng = np.random.default_rng(8)
    data, reference, (first, second) = shifted(100, 400, 0.3, rng)
    with pytest.raises(EventsError, match="weights are 0 or infinite"):
        nplm_profiled(data, reference, (np.full(100, np.inf), second), rng=rng)
    with pytest.raises(EventsError, match="do not fit"):
        nplm_profiled(data, reference, (first[:5], second), rng=rng)
