"""E-values: closed forms, exact expectations by enumeration, and why a product of cross-fitted ones is none."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from gbistat.errors import EventsError, OptionError
from gbistat.inference.split_likelihood import FoldRatios, FractionPrior, discovery_evidence, z_of_log_e

ONE = FractionPrior(np.array([0.2]))


def test_one_fold_is_the_product_of_mixture_ratios():
    ratio = np.array([[0.5, 30.0, 0.1], [1.5, 10.0, 0.3]])
    expected = np.log1p(0.2 * (ratio.mean(axis=0) - 1.0)).sum()
    assert discovery_evidence([FoldRatios(np.log(ratio))], prior=ONE).log_e == pytest.approx(expected, abs=1e-4)


def test_average_and_product_over_folds_and_prior():
    rng = np.random.default_rng(2)
    folds = [FoldRatios(rng.normal(size=(1, 20))) for _ in range(3)]
    prior = FractionPrior(np.array([0.1, 0.4]), np.array([0.25, 0.75]))
    t = np.array([[np.prod(1 + w * np.expm1(f.log_ratio[0])) for w in prior.fractions] for f in folds])
    average, product = (discovery_evidence(folds, prior=prior, scheme=s) for s in ("average", "product"))
    assert math.exp(average.log_e) == pytest.approx((t @ prior.probabilities).mean(), rel=1e-3)
    assert math.exp(product.log_e) == pytest.approx(t.prod(axis=0) @ prior.probabilities, rel=1e-3)
    assert average.p_at_most == pytest.approx(min(1.0, math.exp(-average.log_e)))


def test_expectation_under_the_null_is_one_by_enumeration():
    """Events are one of three cells; all data sets of four events are summed with their probabilities."""
    p_b, p_s, w = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.2, 0.7]), 0.3
    total = 0.0
    for cells in itertools.product(range(3), repeat=4):
        fold = FoldRatios(np.log(p_s / p_b)[None, list(cells)])
        e = discovery_evidence([fold], prior=FractionPrior(np.array([w]))).log_e
        total += math.prod(p_b[list(cells)]) * math.exp(e)
    assert total == pytest.approx(1.0, abs=1e-4)


def test_composite_null_has_expectation_at_most_one_for_each_of_its_mixtures():
    p_b = np.array([[0.5, 0.3, 0.2], [0.3, 0.4, 0.3]])
    p_s = np.array([0.1, 0.2, 0.7])
    base = p_b[0]
    for truth in (p_b[0], p_b[1], 0.4 * p_b[0] + 0.6 * p_b[1]):
        total = 0.0
        for cells in itertools.product(range(3), repeat=3):
            index = list(cells)
            fold = FoldRatios(np.log(p_s / base)[None, index], np.log(p_b / base)[:, index])
            total += math.prod(truth[index]) * math.exp(discovery_evidence([fold], prior=ONE).log_e)
        assert total <= 1.0


def learned_log_ratio(training, cells):
    """Add-one estimate of the density from the training cells, over a uniform background, evaluated at cells."""
    p = (np.bincount(training, minlength=2) + 1.0) / (len(training) + 2.0)
    return np.log(p / 0.5)[None, cells]


def test_a_product_of_cross_fitted_ratios_is_no_e_value_and_a_sequential_one_is():
    """Two cells, three folds of two events, every data set enumerated."""
    means = {"average": 0.0, "product of cross-fitted": 0.0, "product": 0.0}
    prior = FractionPrior(np.array([0.999999]))
    for data in itertools.product(range(2), repeat=6):
        parts = np.split(np.array(data), 3)
        cross = [
            FoldRatios(learned_log_ratio(np.concatenate([parts[j] for j in range(3) if j != k]), parts[k]))
            for k in range(3)
        ]
        earlier = [FoldRatios(learned_log_ratio(np.concatenate(parts[:k]), parts[k])) for k in (1, 2)]
        weight = 0.5**6
        means["average"] += weight * math.exp(discovery_evidence(cross, prior=prior).log_e)
        means["product of cross-fitted"] += weight * math.exp(
            discovery_evidence(cross, prior=prior, scheme="product").log_e
        )
        means["product"] += weight * math.exp(discovery_evidence(earlier, prior=prior, scheme="product").log_e)
    assert means["average"] == pytest.approx(1.0, abs=1e-3)
    assert means["product"] == pytest.approx(1.0, abs=1e-3)
    assert means["product of cross-fitted"] > 1.2


def test_significance_of_huge_evidence_stays_finite():
    assert z_of_log_e(5000.0) == pytest.approx(math.sqrt(2 * 5000.0), rel=0.01)
    assert z_of_log_e(-3.0) == 0.0


def test_a_signal_density_of_zero_is_allowed_and_one_member_is_enough():
    evidence = discovery_evidence([FoldRatios(np.array([[-np.inf, 1.0]]))], prior=ONE)
    assert evidence.log_e == pytest.approx(math.log(0.8) + math.log(0.8 + 0.2 * math.e), abs=1e-4)


def test_errors():
    with pytest.raises(EventsError, match="at least one event and one network; use fewer folds"):
        FoldRatios(np.empty((2, 0)))
    with pytest.raises(EventsError, match="1 of 2 events have a log ratio of the signal that is NaN or infinite"):
        FoldRatios(np.array([[0.0, np.inf]]))
    with pytest.raises(EventsError, match="log ratios of 2 events with backgrounds of shape"):
        FoldRatios(np.zeros((1, 2)), np.zeros((1, 3)))
    with pytest.raises(OptionError, match="there are no folds"):
        discovery_evidence([])
    fold = FoldRatios(np.zeros((1, 2)))
    with pytest.raises(OptionError, match="scheme 'both' is neither"):
        discovery_evidence([fold], scheme="both")
    with pytest.raises(OptionError, match="a product over folds needs one prior"):
        discovery_evidence([fold], scheme="product", prior=[ONE])
    with pytest.raises(OptionError, match="must lie above 0 and below 1"):
        FractionPrior(np.array([0.0]))
    with pytest.raises(OptionError, match="must have sum 1"):
        FractionPrior(np.array([0.1]), np.array([0.5]))
