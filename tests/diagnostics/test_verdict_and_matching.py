"""Verdicts of known cases, and pairs of events at equal masses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from gbistat.diagnostics.certificate import classifier_report
from gbistat.diagnostics.impact import Impact, projected_bias
from gbistat.diagnostics.matching import accept, match_masses, unweight
from gbistat.diagnostics.permutations import permutation_test
from gbistat.diagnostics.verdict import VerdictOptions, decide
from gbistat.diagnostics.weights import Estimate, Scores, scores_from_probabilities, weight_moments
from gbistat.errors import EventsError


def impact(value, error):
    return Impact(Estimate(value, error), None, None, 1000.0, 1000, 1000)


def test_pass_needs_a_bound_and_power():
    assert decide(0.5, impact=impact(0.02, 0.05), power=0.9).outcome == "PASS"
    assert decide(0.5, impact=impact(0.02, 0.05), power=0.5).outcome == "UNDECIDED"
    assert decide(0.5, impact=impact(0.02, 0.05)).outcome == "UNDECIDED"
    assert decide(0.5, impact=impact(0.02, 1.0), power=0.9).outcome == "UNDECIDED"
    assert decide(0.5).outcome == "UNDECIDED"
    harmless = decide(1e-4, impact=impact(0.02, 0.05), power=0.9)
    assert harmless.outcome == "PASS"
    assert "attach the tilt nuisance" in harmless.reasons[0]


def test_fail_needs_harm_or_a_difference_that_nothing_bounds(jets):
    assert decide(0.5, impact=impact(2.0, 0.5)).outcome == "FAIL"
    assert decide(1e-4).outcome == "FAIL"
    assert decide(1e-4, impact=impact(0.5, 1.0)).outcome == "UNDECIDED"
    moments = weight_moments(jets.toy("tail cut", 20_000, np.random.default_rng(1)).scores)
    failed = decide(1e-4, moments=moments, impact=impact(0.5, 1.0))
    assert failed.outcome == "FAIL"
    assert "missing mass 1.3" in failed.reasons[0]


def test_a_classifier_that_learned_noise_decides_nothing():
    void = decide(1e-4, classifier_faults=("overfitted",))
    assert (void.outcome, void.void) == ("UNDECIDED", True)
    assert any("weights not usable: overfitted" in reason for reason in void.reasons)
    assert decide(0.5, impact=impact(2.0, 0.5), classifier_faults=("overfitted",)).outcome == "FAIL"


def test_equivalence_holds_its_level():
    # A bias exactly at the tolerance passes in at most 5 % of 2000 trials: 3 binomial errors.
    rng = np.random.default_rng(1)
    options = VerdictOptions(tolerance=0.2)
    passed = [
        decide(0.5, impact=impact(rng.normal(0.2, 0.05), 0.05), power=1.0, options=options).outcome == "PASS"
        for _ in range(2000)
    ]
    assert np.mean(passed) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


def test_the_pass_of_a_right_generator_with_many_events():
    # Events 100 times those of the window: 0.2 sigma can be certified (1.645 sqrt(2 / 200) = 0.16).
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2, 100_000))

    def score(values):
        return np.clip(stats.norm.pdf(values, 2, 0.5) / stats.norm.pdf(values) - 1, -1, 20)

    result = projected_bias(score(x), score(y), n_background=200)
    assert result.certifiable < 0.2
    assert decide(0.5, impact=result, power=0.9, options=VerdictOptions(tolerance=0.4)).outcome == "PASS"


def test_never_fail_on_nulls():
    # 25 nulls with a frozen classifier: FAIL needs p < 0.01, a false alarm in 5 of such sets of 25.
    rng = np.random.default_rng(5)
    for _ in range(25):
        n = 400
        scores = Scores(rng.normal(0, 0.02, 2 * n), np.arange(2 * n) < n)
        report = classifier_report(scores, {"x": rng.normal(size=2 * n)}, rng=rng, permutations=199)
        p = report.permutations.p_global
        assert decide(p, classifier_faults=report.faults, moments=report.moments).outcome != "FAIL"


def test_verdicts_on_200_nulls():
    # p-values and biases of samples that are alike, as many events as in the window. FAIL is given at 99 %, for more than 0.2
    # sigma: 1.3 expected, more than 5 in 500 seeds. Without power never a PASS; with events that bound nothing, none either.
    rng = np.random.default_rng(12)
    outcomes = []
    for _ in range(200):
        x = rng.normal(size=600)
        label = rng.permutation(np.arange(600) < 300)
        p = permutation_test(Scores(0.1 * x, label), rng=rng, permutations=199).p_global
        projected = projected_bias(x[label], x[~label], n_background=300)
        outcomes += [decide(p, impact=projected).outcome, decide(p, impact=projected, power=1.0).outcome]
    assert outcomes.count("FAIL") <= 2 * 5
    assert outcomes.count("PASS") == 0
    # With a hundred times the events of the window the bound is tight: then PASS, but for the few that fluctuate.
    x, y = rng.normal(size=(2, 100_000))
    tight = projected_bias(x, y, n_background=500)
    assert decide(0.5, impact=tight).outcome == "UNDECIDED"
    assert decide(0.5, impact=tight, power=0.9, options=VerdictOptions(tolerance=0.4)).outcome == "PASS"


def test_what_is_wrong_with_scores_stands_in_the_report():
    rng = np.random.default_rng(1)
    label, x = np.arange(400) < 200, rng.normal(size=400)
    constant = classifier_report(Scores(np.zeros(400), label), {"x": x}, rng=rng, permutations=19)
    assert "same output" in constant.faults[0]
    assert decide(constant.permutations.p_global, classifier_faults=constant.faults).void
    probability = np.clip(0.5 + 0.6 * x, 0.0, 1.0)
    saturated = classifier_report(scores_from_probabilities(probability, label), {"x": x}, rng=rng, permutations=19)
    assert any("saturated probabilities" in note for note in saturated.notes)
    assert any("no reweighting closure" in note for note in saturated.notes)
    assert saturated.to_dict()["saturated_fraction"] > 0.1
    nothing = Scores(np.where(label, 0.0, -np.inf), label)
    with pytest.raises(EventsError, match="have weight 0"):
        classifier_report(nothing, {"x": x}, rng=rng, permutations=19)


def test_report_of_a_certain_case(jets):
    rng = np.random.default_rng(6)
    toy = jets.toy("tail cut", 8000, rng)
    report = classifier_report(toy.scores, {"mass": toy.values}, rng=rng, permutations=199)
    content = report.to_dict()
    assert content["modes"][0]["code"] == "TAIL"
    assert content["multiplicity"]["p_global"] == 0.005
    assert content["regions"][0]["obs"] == "mass"
    assert content["regions"][0]["high"] is None
    assert content["n"] == [8000, 8000]


def test_pairs_have_equal_masses_and_are_used_once():
    rng = np.random.default_rng(1)
    data, generated = rng.exponential(1.0, 3000), rng.exponential(1.3, 5000)
    rows, partners = match_masses(data, generated, rng=rng)
    assert np.unique(rows).size == rows.size
    assert np.unique(partners).size == partners.size
    assert rows.size > 2000
    assert np.median(np.abs(data[rows] - generated[partners])) < 0.02
    assert stats.ks_2samp(data[rows], generated[partners], method="asymp").pvalue > 0.5
    with pytest.raises(EventsError, match="hardly overlap"):
        match_masses(data, generated + 100, rng=rng)


def test_unweighting():
    rng = np.random.default_rng(1)
    x = rng.normal(size=20_000)
    kept = unweight(np.exp(0.5 * x), rng=rng)
    assert x[kept].mean() == pytest.approx(0.5, abs=0.1)
    with pytest.raises(EventsError, match="sum to 0"):
        unweight(np.zeros(3), rng=rng)
    with pytest.raises(EventsError, match="negative or NaN"):
        unweight(np.array([1.0, -1.0]), rng=rng)


def test_one_huge_weight_does_not_leave_it_alone():
    # w = e^x cut off at its 99.9 % quantile; 800 more of one event would accept nothing else.
    rng = np.random.default_rng(3)
    x = rng.normal(size=20_000)
    x[0] += 800.0
    kept = accept(x, rng=rng)
    w = np.exp(np.minimum(x, np.quantile(x, 0.999)))
    expected = w.sum() / w.max()
    assert abs(kept.size - expected) < 4 * np.sqrt(expected)
    assert 0 in kept
