"""Limits on the fraction: bounded e-values against every signal, universal inference over a class, coverage on toys."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from gbistat.errors import EventsError, FitFailed, OptionError
from gbistat.inference.bounded_evidence import RatioReference, RatioTail
from gbistat.inference.signal_fraction import (
    class_interval,
    cross_fit_estimate,
    unrestricted_lower_limit,
)
from gbistat.inference.split_likelihood import FoldRatios, FractionPrior, discovery_evidence

MEAN, WIDTH = 1.5, 0.3
ALONE = np.ones(1)
"""Weight of the only null density."""


def log_ratio(x, mean=MEAN, width=WIDTH):
    return norm.logpdf(x, mean, width) - norm.logpdf(x)


def reference(n=40_000, seed=9):
    rng = np.random.default_rng(seed)
    return RatioReference(log_ratio(rng.standard_normal(n))[None], log_ratio(rng.normal(MEAN, WIDTH, n))[None])


def cap_by_quadrature(w1, w):
    """The cap c by quadrature on a fine grid."""
    x = np.linspace(-9, 9, 40_001)
    p_b, r = norm.pdf(x), 1.0 - w1 + w1 * np.exp(log_ratio(x))
    low, high = 1.0, float(r.max()) / (1.0 - w)
    for _ in range(50):
        c = 0.5 * (low + high)
        total = np.trapezoid(np.maximum(1.0 - w, r / c) * p_b, x)
        low, high = (c, high) if total > 1.0 else (low, c)
    g = np.minimum(r / (1.0 - w), c)
    return c, (1.0 - w) * np.trapezoid(g * p_b, x) + w * c


@pytest.mark.parametrize(("w1", "w"), [(0.1, 0.01), (0.1, 0.05), (0.02, 0.019)])
def test_cap_makes_the_largest_expectation_over_all_signals_one(w1, w):
    c, largest = cap_by_quadrature(w1, w)
    assert largest == pytest.approx(1.0, abs=1e-6)
    found = RatioTail.of(w1, reference(100_000), ALONE).cap(w)
    assert 0.95 * c < found < c  # below by the caution, two Monte Carlo errors


def test_nothing_is_gained_against_a_null_that_holds_the_alternative():
    assert RatioTail.of(0.02, reference(), ALONE).cap(0.05) == 1.0


def test_limit_is_above_zero_where_the_evidence_is_above_one_over_alpha():
    rng, prior = np.random.default_rng(5), FractionPrior(np.array([0.02, 0.05]))
    lows, evidence = [], []
    for n_signal in (0, 10, 20, 40, 60, 100):
        x = np.r_[rng.standard_normal(1000 - n_signal), rng.normal(MEAN, WIDTH, n_signal)]
        folds = [FoldRatios(log_ratio(x)[None])]
        evidence.append(discovery_evidence(folds, prior=prior).log_e)
        lows.append(unrestricted_lower_limit(folds, [reference()], prior=prior).low)
    assert [low > 0 for low in lows] == [e > math.log(20.0) for e in evidence]
    assert 0.02 < lows[-1] < 0.1


def test_limits_exceed_the_truth_rarely_whatever_the_signal():
    """False alarm: 95 % limits of 80 data sets exceed the truth in more than 10 with probability 0.2 % at most (binomial)."""
    rng, ref, w = np.random.default_rng(11), reference(4000), 0.06
    prior = FractionPrior(np.array([0.03, 0.06, 0.12]))
    above = {"as learned": 0, "elsewhere": 0}
    for _ in range(40):
        for kind, mean in (("as learned", MEAN), ("elsewhere", 1.8)):
            signal = rng.random(400) < w
            x = np.where(signal, rng.normal(mean, WIDTH, 400), rng.standard_normal(400))
            folds = [FoldRatios(log_ratio(part)[None]) for part in np.split(x, 2)]
            above[kind] += unrestricted_lower_limit(folds, [ref, ref], prior=prior).low > w
    assert sum(above.values()) <= 10


def composite(x, log_nulls, scheme, prior):
    """Lower limit and ln e of halves of the events."""
    rng = np.random.default_rng(12)
    xb, xs = rng.standard_normal(5000), rng.normal(MEAN, WIDTH, 5000)
    references = [RatioReference(log_ratio(xb)[None], log_ratio(xs)[None], log_nulls(xb), log_nulls(xs))] * 2
    folds = [FoldRatios(log_ratio(part)[None], log_nulls(part)) for part in np.split(x, 2)]
    low = unrestricted_lower_limit(folds, references, scheme=scheme, prior=prior).low
    return low, discovery_evidence(folds, scheme=scheme, prior=prior).log_e


@pytest.mark.parametrize("scheme", ["average", "product"])
@pytest.mark.parametrize(("seed", "shift"), [(6, 0.15), (33, 0.3)])
def test_several_nulls_give_a_limit_below_that_of_each(scheme, seed, shift):
    """Of the second pair one density alone gives a lower limit than the mixture that is most likely without signal."""

    def shifted(y):
        return np.array([norm.logpdf(y, s) - norm.logpdf(y) for s in (0.0, shift)])

    rng, prior = np.random.default_rng(seed), FractionPrior(np.array([0.05, 0.1]))
    x = rng.permutation(np.r_[rng.standard_normal(1800), rng.normal(MEAN, WIDTH, 200)])
    alone = [composite(x, lambda y, k=k: shifted(y)[k][None], scheme, prior)[0] for k in range(2)]
    assert 0.0 < composite(x, shifted, scheme, prior)[0] <= min(alone) * (1 + 1e-3)


@pytest.mark.parametrize("scheme", ["average", "product"])
def test_background_that_is_a_mixture_of_the_null_gives_no_limit(scheme):
    """Each density alone is excluded: only between them lies what the events were drawn from."""

    def bumps(y):
        return np.array([np.zeros(len(y)), np.log(0.88 + 0.12 * np.exp(log_ratio(y)))])

    rng, prior = np.random.default_rng(13), FractionPrior(np.array([0.02, 0.04, 0.08]))
    x = rng.permutation(np.r_[rng.standard_normal(2880), rng.normal(MEAN, WIDTH, 120)])
    low, log_e = composite(x, bumps, scheme, prior)
    assert low == 0.0
    assert log_e < math.log(20.0)
    for k in range(2):
        low, log_e = composite(x, lambda y, k=k: bumps(y)[k][None], scheme, prior)
        assert low > 0.0
        assert log_e > math.log(20.0)


def test_class_interval_of_one_density_is_the_set_of_the_split_likelihood_ratio():
    rng, prior = np.random.default_rng(7), FractionPrior(np.array([0.1]))
    x = np.r_[rng.standard_normal(450), rng.normal(MEAN, WIDTH, 50)]
    fold = FoldRatios(log_ratio(x)[None])
    interval = class_interval([fold], prior=prior)
    ratio = np.expm1(log_ratio(x))
    grid = np.linspace(0, 0.4, 40_001)
    inside = np.array([np.log1p(0.1 * ratio).sum() - np.log1p(w * ratio).sum() for w in grid]) < math.log(20.0)
    assert interval.low == pytest.approx(grid[inside][0], abs=2e-5)
    assert interval.high == pytest.approx(grid[inside][-1], abs=2e-5)
    assert interval.to_dict()["valid_for"].startswith("signals that are mixtures")


def test_class_interval_may_be_empty_when_the_class_is_wrong():
    # All events where the class has nothing: the alternative's background describes them, the null's does not.
    fold = FoldRatios(np.full((1, 200), -5.0), np.full((1, 200), -0.5))
    assert class_interval([fold]).empty


def test_estimate_is_the_maximum_and_its_error_that_of_the_likelihood():
    rng = np.random.default_rng(8)
    values = []
    for _ in range(150):
        x = np.where(rng.random(1000) < 0.05, rng.normal(MEAN, WIDTH, 1000), rng.standard_normal(1000))
        values.append(cross_fit_estimate([FoldRatios(log_ratio(part)[None]) for part in np.split(x, 5)]))
    pulls = np.array([(v.value - 0.05) / v.error for v in values])
    # Standard errors of mean and width of 150 pulls: 0.08 and 0.06; four of them.
    assert abs(pulls.mean()) < 0.33
    assert abs(pulls.std() - 1.0) < 0.24
    assert not any(v.at_wall for v in values)


def test_estimate_stops_at_the_wall():
    found = cross_fit_estimate([FoldRatios(np.log(np.full((1, 50), 0.5)))])
    assert found.at_wall
    assert found.value < 0


def test_errors():
    fold = FoldRatios(np.zeros((1, 5)))
    with pytest.raises(FitFailed, match="the same density in all events"):
        cross_fit_estimate([fold])
    with pytest.raises(OptionError, match="confidence level 2 must lie between 0 and 1"):
        class_interval([fold], cl=2.0)
    with pytest.raises(OptionError, match="0 references for 1 folds"):
        unrestricted_lower_limit([fold], [])
    with pytest.raises(EventsError, match="reference log ratios of the background are missing"):
        RatioReference(np.empty((1, 0)), np.zeros((1, 3)))
    mixed = [fold, FoldRatios(np.zeros((1, 5)), np.zeros((2, 5)))]
    with pytest.raises(EventsError, match=r"folds have \[1, 2\] null densities"):
        class_interval(mixed)
