"""Classifiers that are asked about events they did not see, NPLM with a network, ARGOS."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import kstest, norm

from gbistat.diagnostics.calibration import calibrate
from gbistat.diagnostics.evidence import log_score
from gbistat.diagnostics.folds import assign_folds
from gbistat.diagnostics.nplm import nplm_fit
from gbistat.diagnostics.nplm_kernel import NplmOptions, kernel_features
from gbistat.diagnostics.permutations import permutation_test
from gbistat.diagnostics.roc import area_under_roc
from gbistat.diagnostics.weights import Scores
from gbistat.errors import EventsError, OptionError
from gbistat.training import classifiers
from gbistat.training.argos import argos, best_epochs
from gbistat.training.classifier_network import NetworkOptions
from gbistat.training.classifiers import ClassifierOptions, cross_fit, forward_fit, train_once
from gbistat.training.nplm_network import NplmNetworkOptions, nplm_network

pytest.importorskip("sklearn", reason="needs the extra 'train'")


def sample(n, d, rng):
    """Gaussians shifted by d, two features of which one says nothing."""
    x = rng.normal(size=(2 * n, 2))
    label = np.arange(2 * n) < n
    x[~label, 0] += d
    return x, label


def check_shift(x, label, logit, fold, d):
    """AUC within 5 null widths of the exact one, log-score 50 to 115 % of the Jensen-Shannon divergence."""
    scores = Scores(logit, label, fold=fold)
    area = area_under_roc(scores)
    assert abs(area.value - norm.cdf(d / math.sqrt(2))) < 5 * area.null_width
    exact = log_score(Scores(0.5 * d * d - d * x[:, 0], label)).value
    assert 0.5 * exact < log_score(scores).value < 1.15 * exact
    assert 0.7 < calibrate(scores).slope.value < 1.35
    assert np.corrcoef(logit, -x[:, 0])[0, 1] > 0.9


def test_cross_fitted_trees_give_the_weights_of_a_shift():
    rng = np.random.default_rng(1)
    x, label = sample(5000, 0.5, rng)
    fold = assign_folds(np.arange(10_000), 2, rng=rng)
    fitted = cross_fit(x, label, fold, rng=rng, options=ClassifierOptions(members=2, smallest_leaf=100))
    check_shift(x, label, fitted.logit, fold, 0.5)
    assert fitted.member_logit.shape == (2, 10_000)
    assert fitted.train_logit.shape == (10_000,)


@pytest.mark.train
def test_a_network_gives_the_weights_of_a_shift():
    pytest.importorskip("keras", reason="needs the extra 'train'")
    rng = np.random.default_rng(1)
    x, label = sample(3000, 0.5, rng)
    y, other = sample(2000, 0.5, rng)
    network = NetworkOptions(layers=2, nodes=32, epochs=6, batch_size=200)
    (logit,) = train_once(x, label, y, rng=rng, options=ClassifierOptions("network", members=1, network=network))
    check_shift(y, other, logit, np.zeros(4000, dtype=int), 0.5)


def test_no_event_is_asked_about_by_a_classifier_that_saw_it():
    # Labels are noise: in-sample scores are good, cross-fitted ones cannot be.
    rng = np.random.default_rng(2)
    x, label = rng.normal(size=(2000, 5)), rng.random(2000) < 0.5
    fold = assign_folds(np.arange(2000), 2, rng=rng)
    options = ClassifierOptions(members=1, smallest_leaf=5, leaves=31, trees=60, learning_rate=0.2)
    fitted = cross_fit(x, label, fold, rng=rng, options=options)
    train = Scores(fitted.train_logit, label[fitted.train_rows], fold=fitted.train_fold)
    assert area_under_roc(train).value > 0.6
    assert abs(area_under_roc(Scores(fitted.logit, label, fold=fold)).pull) < 4


def test_trees_find_a_missing_tail_that_the_area_does_not_show():
    # Jet masses ~ Gamma(9), 1.3 % of them above a cut that the generator keeps to.
    rng = np.random.default_rng(9)
    n = 8000
    mass = rng.gamma(9, 0.01, (4 * n, 1))
    data, rest = mass[:n], mass[n:]
    inputs = np.concatenate([data, rest[rest[:, 0] < 0.17][:n]])
    label = np.arange(2 * n) < n
    fold = assign_folds(np.arange(2 * n), 2, rng=rng)
    options = ClassifierOptions(members=2, smallest_leaf=40)
    fitted = cross_fit(inputs, label, fold, rng=rng, options=options)
    scores = Scores(fitted.logit, label, fold=fold)
    test = permutation_test(scores, rng=rng, permutations=1999)
    assert test["log_score"].p_value < 1e-3
    assert test["log_score"].z_null > 2 * abs(area_under_roc(scores).pull)
    assert 0.49 < area_under_roc(scores).value < 0.515


def test_bad_input_of_classifiers():
    rng = np.random.default_rng(3)
    x, label = sample(50, 0.1, rng)
    fold = np.arange(100) % 2
    with pytest.raises(EventsError, match="do not fit"):
        cross_fit(x, label[:3], fold, rng=rng)
    with pytest.raises(EventsError, match="1 of 100 events have NaN"):
        cross_fit(np.where(np.arange(200).reshape(100, 2) == 5, np.nan, x), label, fold, rng=rng)
    with pytest.raises(OptionError, match="one fold"):
        cross_fit(x, label, np.zeros(100, dtype=int), rng=rng)
    with pytest.raises(EventsError, match="too few to train on"):
        cross_fit(x, np.arange(100) < 10, fold, rng=rng)
    with pytest.raises(OptionError, match="no classifier 'forest'"):
        ClassifierOptions("forest")
    with pytest.raises(OptionError, match="sizes must be positive"):
        NetworkOptions(layers=0)
    with pytest.raises(OptionError, match="clip"):
        NplmNetworkOptions(clip=0)


@pytest.mark.train
def test_nplm_with_a_network_finds_a_bump_and_stays_bounded():
    pytest.importorskip("tensorflow", reason="needs the extra 'train'")
    rng = np.random.default_rng(4)
    reference = rng.exponential(1.0, (4000, 1))
    data = rng.exponential(1.0, (400, 1))
    bump = np.concatenate([data, rng.normal(6.4, 0.16, (15, 1))])
    options = NplmNetworkOptions(epochs=600, learning_rate=0.02)
    t_null, _ = nplm_network(data, reference, seed=1, options=options)
    t_bump, f = nplm_network(bump, reference, seed=1, expected=400.0, options=options)
    assert -1.0 < t_null < 45.0
    assert t_bump > t_null + 15
    assert np.mean(bump[np.argsort(f)[-10:], 0]) == pytest.approx(6.4, abs=1.0)
    with pytest.raises(EventsError, match="do not fit"):
        nplm_network(data, np.zeros((3, 2)), seed=1)


def test_the_kernel_solver_agrees_with_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(5)
    pool, label = rng.normal(size=(2400, 2)), np.arange(2400) < 400
    pool[label] += 0.1
    features = kernel_features(pool, 2.0, 1 / 6, 0.2, NplmOptions(centres=40), rng=rng)
    (t,), _ = nplm_fit(features, label[None], 0.2)
    # Back to the coordinates in which the penalty is lambda |beta|^2 / 2.
    root = np.linalg.cholesky(features.penalty / 1e-6)
    phi = np.linalg.solve(root, features.values.T).T
    other = LogisticRegression(C=1 / (2400 * 1e-6), fit_intercept=False, solver="newton-cholesky", tol=1e-10)
    other.fit(phi, label, sample_weight=np.where(label, 1.0, 0.2))
    f = other.decision_function(phi)
    assert t == pytest.approx(2 * np.where(label, f, -0.2 * np.expm1(f)).sum(), rel=0.01)


def test_argos_of_gaussians():
    # Published procedure: signal N(2, 1) of 2 % gives 0.099 +- 0.014 at 60,000 events each, N(3, 1) 0.353 +- 0.026.
    rng = np.random.default_rng(6)
    n, f = 60_000, 0.02
    template = rng.normal(size=n)
    for d, expected, spread in ((2.0, 0.099, 0.014), (3.0, 0.353, 0.026)):
        data = rng.normal(np.where(rng.random(n) < f, d, 0.0), 1.0)
        found = argos(data, template)
        assert abs(found.value - expected) < 4 * spread
        assert found.n_template >= 25
        assert found.value > found.noise
        share = np.mean(data >= found.cut), np.mean(template >= found.cut)
        assert found.value == pytest.approx((share[0] - share[1]) / math.sqrt(share[1]))


def test_argos_without_signal_is_noise():
    # 95 % below 4.4 / sqrt(n): 40 draws, at most 6 above (false alarm in 70).
    rng = np.random.default_rng(7)
    above = [argos(rng.normal(size=5000), rng.normal(size=5000)).value * math.sqrt(5000) > 4.4 for _ in range(40)]
    assert sum(above) <= 6
    with pytest.raises(EventsError, match="for a floor of 25"):
        argos(np.ones(5), np.ones(5))
    with pytest.raises(EventsError, match="NaN"):
        argos(np.full(30, np.nan), np.ones(30))
    assert best_epochs([3.0, 1.0, 2.0], count=2) == [0, 2]


def discriminant(inputs, is_data, ask, *, rng, options):
    """Fisher's linear discriminant in place of trees: thousands of trainings in seconds."""
    first, second = inputs[is_data].mean(axis=0), inputs[~is_data].mean(axis=0)
    slope = np.linalg.solve(np.cov(inputs.T), first - second)
    return ((ask - 0.5 * (first + second)) @ slope)[None]


def test_p_values_are_uniform_where_classifiers_see_earlier_folds_only(monkeypatch):
    # 200 nulls of 3 tested folds, Kolmogorov-Smirnov at 1 % and binomial bands of 3 errors: false alarm in 50.
    monkeypatch.setattr(classifiers, "train_once", discriminant)
    rng = np.random.default_rng(8)
    p = {"forward": [], "crossed": []}
    for _ in range(200):
        x, label, pair = rng.normal(size=(800, 8)), np.arange(800) < 400, np.tile(np.arange(400), 2)
        fold = assign_folds(pair, 4, rng=rng)
        found = forward_fit(x, label, fold, rng=rng)
        scores = Scores(found.logit, label[found.rows], fold=found.fold)
        test = permutation_test(scores, rng=rng, permutations=99, pair=pair[found.rows])
        p["forward"].append([test.p_global, test["log_score"].p_value, test["auc"].p_value])
        crossed = Scores(cross_fit(x, label, fold, rng=rng).logit, label, fold=fold)
        p["crossed"].append([permutation_test(crossed, rng=rng, permutations=99, pair=pair)["auc"].p_value])
    for values in np.array(p["forward"]).T:
        assert kstest(values, "uniform").pvalue > 0.003
        assert np.mean(values <= 0.05) < 0.05 + 3 * math.sqrt(0.0475 / 200)
    # What labels permuted under cross-fitted scores would do.
    assert np.mean(np.array(p["crossed"]) <= 0.05) > 0.12


def test_forward_fits_ask_about_later_folds():
    rng = np.random.default_rng(2)
    x, label = rng.normal(size=(1500, 3)), rng.random(1500) < 0.5
    fold = assign_folds(np.arange(1500), 3, rng=rng)
    options = ClassifierOptions(members=2, smallest_leaf=5, leaves=31, trees=40, learning_rate=0.2)
    found = forward_fit(x, label, fold, rng=rng, options=options)
    assert np.array_equal(found.rows, np.flatnonzero(fold > 0))
    assert np.array_equal(found.fold, fold[found.rows])
    assert found.member_logit.shape == (2, 1000)
    assert np.all(np.isfinite(found.logit))
    # Those of fold 1 were trained on fold 0, those of fold 2 on both; labels are noise, so only training events are known.
    for k in (1, 2):
        trained = found.train_rows[found.train_fold == k]
        assert np.array_equal(np.sort(trained), np.flatnonzero(fold < k))
        known = Scores(found.train_logit[found.train_fold == k], label[trained])
        assert area_under_roc(known).value > 0.6
    assert abs(area_under_roc(Scores(found.logit, label[found.rows], fold=found.fold)).pull) < 4
