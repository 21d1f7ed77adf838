"""Permutations, tails, evidence, regions and folds: exact where the labels are exchangeable, sharp where they are not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import hypergeom, kstest

from gbistat.diagnostics.evidence import paired_evidence, tail_test, tail_tests
from gbistat.diagnostics.folds import Folds, assign_folds, row_keys
from gbistat.diagnostics.permutations import FAMILY, permutation_labels, permutation_test
from gbistat.diagnostics.regions import find_regions
from gbistat.diagnostics.roc import area_under_roc
from gbistat.diagnostics.weights import Scores
from gbistat.errors import EventsError, OptionError


def null_scores(n, rng, folds=1):
    """A fixed, wrong classifier on exchangeable events."""
    return Scores(rng.normal(0, 0.3, n), rng.permutation(np.arange(n) < n // 2), fold=np.arange(n) % folds)


def test_p_values_are_uniform_on_200_nulls():
    # Kolmogorov-Smirnov at 1 % and a binomial band of 3 sigma: false alarm in 70.
    rng = np.random.default_rng(1)
    tests = [permutation_test(null_scores(600, rng), rng=rng, permutations=99) for _ in range(200)]
    p = np.array([test.p_global for test in tests])
    assert kstest(p, "uniform").pvalue > 0.01
    assert 0.005 < np.mean(p <= 0.05) < 0.1
    for name in FAMILY:
        assert np.mean([test[name].p_value <= 0.05 for test in tests]) < 0.1


def test_labels_of_pairs_stay_in_pairs():
    rng = np.random.default_rng(1)
    pair = np.tile(np.arange(50), 2)
    label = np.arange(100) < 50
    labels = permutation_labels(label, np.zeros(100, dtype=int), 200, rng=rng, pair=pair)
    assert np.all(labels[:, :50] != labels[:, 50:])
    assert abs(labels[:, :50].mean() - 0.5) < 0.02
    with pytest.raises(EventsError, match="one data and one generated"):
        permutation_labels(np.ones(100, dtype=bool), np.zeros(100, dtype=int), 2, rng=rng, pair=pair)


def test_folds_keep_their_sizes():
    rng = np.random.default_rng(1)
    scores = null_scores(300, rng, folds=3)
    labels = permutation_labels(scores.is_data, scores.fold, 20, rng=rng)
    for k in range(3):
        assert np.all(labels[:, scores.fold == k].sum(axis=1) == scores.is_data[scores.fold == k].sum())


def test_a_missing_tail_is_found_where_the_area_is_blind(jets):
    toy = jets.toy("tail cut", 20_000, np.random.default_rng(2))
    test = permutation_test(toy.scores, rng=np.random.default_rng(1), permutations=999)
    assert area_under_roc(toy.scores).pull < 4
    assert test["log_score"].p_value == 0.001
    assert test["log_score"].z_null > 10
    assert test.p_global == 0.001
    (tail,) = (t for t in tail_tests(toy.scores, rng=np.random.default_rng(1)) if t.side == "high" and t.k == 400)
    assert tail.p_value < 1e-30


def test_constant_scores_give_p_value_one():
    scores = Scores(np.zeros(200), np.arange(200) < 100)
    test = permutation_test(scores, rng=np.random.default_rng(1), permutations=99)
    assert test["log_score"].p_value == 1.0
    assert test["auc"].p_value == 1.0
    with pytest.raises(OptionError, match="take 19 or more"):
        permutation_test(scores, rng=np.random.default_rng(1), permutations=10)


def test_unequal_classes_and_infinite_weights():
    rng = np.random.default_rng(1)
    logit = rng.normal(size=3000)
    logit[:3] = np.inf
    scores = Scores(logit, np.arange(3000) < 1000)
    test = permutation_test(scores, rng=rng, permutations=99)
    assert np.isfinite(test.p_global)
    assert test["high_tail"].null_mean == pytest.approx(10, abs=1)


def test_tails_are_hypergeometric():
    rng = np.random.default_rng(1)
    label = np.arange(1000) < 400
    logit = rng.normal(size=1000)
    scores = Scores(logit, label)
    result = tail_test(scores, "high", 0.05, rng=rng)
    observed = label[np.argsort(logit)[-50:]].sum()
    assert result.observed == observed
    assert result.p_value == pytest.approx(hypergeom(1000, 400, 50).sf(observed - 1))
    # Of several folds: the convolution, checked against permutations within 4 binomial errors.
    folds = null_scores(1200, rng, folds=3)
    one = tail_test(folds, "low", 0.05, rng=rng)
    counts = []
    for row in permutation_labels(folds.is_data, folds.fold, 300, rng=rng):
        counts.append(tail_test(Scores(folds.logit, row, fold=folds.fold), "low", 0.05, rng=rng).observed)
    share = np.mean(np.array(counts) >= one.observed)
    assert abs(share - one.p_value) < 4 * np.sqrt(one.p_value * (1 - one.p_value) / 300) + 1e-9
    with pytest.raises(OptionError, match="share 2"):
        tail_test(scores, "high", 2, rng=rng)


def test_paired_evidence_has_mean_at_most_one():
    # E = 1 exactly under exchange; 4 standard errors of 1500 draws: false alarm in 30,000.
    rng = np.random.default_rng(4)
    e = np.exp([paired_evidence(null_scores(60, rng), rng=rng).log_e for _ in range(1500)])
    assert abs(e.mean() - 1) < 4 * e.std() / np.sqrt(e.size)
    ties = Scores(np.full(10, np.inf), np.arange(10) < 5)
    assert paired_evidence(ties, rng=rng).log_e == 0.0


def test_the_region_of_a_missing_tail(jets):
    rng = np.random.default_rng(2)
    toy = jets.toy("tail cut", 10_000, rng)
    values = {"mass": toy.values, "noise": rng.normal(size=20_000)}
    first, *others = find_regions(values, toy.is_data, rng=rng, permutations=199)
    assert (first.observable, first.excess, first.p_value) == ("mass", "data", 0.005)
    assert 0.15 < first.low < 0.18
    assert first.high == np.inf
    assert first.n_generated < 0.1 * first.n_data
    assert all(region.p_value > 0.01 for region in others if region.observable == "noise")
    assert "mass > 0.1" in str(first)


def test_the_search_over_regions_is_in_the_p_value():
    # 60 nulls with 2 observables: share below 0.1 within 3 binomial errors.
    rng = np.random.default_rng(9)
    p = []
    for _ in range(60):
        values = {"a": rng.normal(size=500), "b": rng.exponential(size=500)}
        p.append(find_regions(values, rng.permutation(np.arange(500) < 250), rng=rng, permutations=49)[0].p_value)
    assert np.mean(np.array(p) <= 0.1) < 0.1 + 3 * np.sqrt(0.09 / 60)
    with pytest.raises(EventsError, match="NaN or infinite"):
        find_regions({"a": np.full(4, np.nan)}, np.arange(4) < 2, rng=rng)
    with pytest.raises(OptionError, match="no observables"):
        find_regions({}, np.arange(4) < 2, rng=rng)


def test_overlapping_folds_are_refused():
    rng = np.random.default_rng(1)
    events = rng.normal(size=(100, 3))
    keys = row_keys(events[:, 0], events)
    assert np.unique(keys).size == 100
    Folds({"generator": keys[:50], "test": keys[50:]}).check()
    with pytest.raises(EventsError, match="10 of 50 events of 'test' are also in 'generator'"):
        Folds({"generator": keys[:60], "test": keys[50:]}).check()
    with pytest.raises(OptionError, match="no set of events 'test'"):
        Folds({"generator": keys}).check()
    one, other = (Folds({"test": part}).hashes()["test"] for part in (keys, keys[::-1]))
    assert one == other


def test_equal_events_come_into_one_fold():
    rng = np.random.default_rng(1)
    keys = np.tile(np.arange(40), 2)
    fold = assign_folds(keys, 5, rng=rng)
    assert np.array_equal(fold[:40], fold[40:])
    assert np.bincount(fold).tolist() == [16] * 5
    with pytest.raises(OptionError, match="3 folds of 2 different events"):
        assign_folds(np.array([1, 1, 2]), 3, rng=rng)
