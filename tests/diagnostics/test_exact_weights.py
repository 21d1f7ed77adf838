"""Weights known in closed form: every quantity against its exact value."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp, ndtr

from gbistat.diagnostics.distances import separation
from gbistat.diagnostics.evidence import log_score, paired_evidence
from gbistat.diagnostics.permutations import permutation_test
from gbistat.diagnostics.roc import area_under_roc, null_width, roc_curve, weighted_area
from gbistat.diagnostics.scorecard import ScorecardOptions, scorecard
from gbistat.diagnostics.slices import wasserstein
from gbistat.diagnostics.weights import Scores, scores_from_probabilities, weight_moments
from gbistat.errors import EventsError, OptionError

N = 40_000


@pytest.mark.parametrize(("d", "log10_e"), [(0.1, 1.06), (0.2, 4.28), (0.5, 25.5)])
def test_gaussian_shift(toys, d, log10_e):
    scores = toys["shift"](d, N).scores
    moments = weight_moments(scores)
    assert area_under_roc(scores).value == pytest.approx(ndtr(d / math.sqrt(2)), abs=2e-5)
    assert moments.mean_generated.value == pytest.approx(1.0, abs=1e-3)
    assert moments.variance == pytest.approx(math.expm1(d * d), rel=5e-3)
    assert moments.effective_fraction == pytest.approx(math.exp(-d * d), rel=2e-3)
    assert np.mean(np.exp(scores.data)) == pytest.approx(math.exp(d * d), rel=1e-3)
    assert moments.mean_inverse_data.value == pytest.approx(1.0, abs=1e-3)
    assert np.mean(scores.data) == pytest.approx(d * d / 2, abs=1e-4)
    evidence = paired_evidence(scores, rng=np.random.default_rng(5))
    # Random pairs: 4 standard errors of the mean, a false alarm in 16,000.
    per_thousand = 1000 * evidence.mean.value / math.log(10)
    assert abs(per_thousand - log10_e) < 4 * 1000 * evidence.mean.error / math.log(10) + 0.05
    assert evidence.n_needed == pytest.approx(math.log(20) / evidence.mean.value)


def test_gaussian_smear(toys):
    scores = toys["smear"](1.25, N).scores
    moments = weight_moments(scores)
    assert np.exp(scores.log_weight).max() == pytest.approx(1.25, abs=1e-4)
    assert area_under_roc(scores).value == pytest.approx(0.57045, abs=1e-4)
    assert moments.variance == pytest.approx(0.07187, abs=2e-4)
    assert np.mean(np.exp(scores.generated) < 0.5) == pytest.approx(0.0711, abs=2e-4)
    assert np.mean(np.exp(scores.data) < 0.5) == pytest.approx(0.0241, abs=2e-4)
    assert np.median(np.exp(scores.generated)) == pytest.approx(1.0999, abs=2e-4)


# AUC, Jensen-Shannon divergence in bits, missing mass, log10 of e a thousand pairs: by quadrature.
JETS = [
    ("tail cut", 0.50630, 0.00633, 0.012596, 3.79),
    ("smear", 0.5750, 0.01969, 0.0, 11.9),
    ("shift", 0.5778, 0.01444, 0.0, 8.9),
]


@pytest.mark.parametrize(("kind", "auc", "jsd", "missing", "log10_e"), JETS)
def test_jet_masses(jets, kind, auc, jsd, missing, log10_e):
    # Fluctuating samples: each number within 4 of its standard errors; a false alarm in about 1000 of the 15 numbers.
    scores = jets.toy(kind, 30_000, np.random.default_rng(3)).scores
    area, score, moments = area_under_roc(scores), log_score(scores), weight_moments(scores)
    evidence = paired_evidence(scores, rng=np.random.default_rng(4))
    assert abs(area.value - auc) < 4 * max(area.error, 3e-4)
    assert abs(score.value / math.log(2) - jsd) < 4 * score.error / math.log(2)
    assert abs(moments.missing_mass.value - missing) < 4 * moments.missing_mass.error + 1e-5
    assert abs(1000 * (evidence.mean.value) / math.log(10) - log10_e) < 4 * 1000 * evidence.mean.error / math.log(10)


def test_shares_of_extreme_weights_in_jets(jets):
    rng = np.random.default_rng(8)
    smear, shift = (jets.toy(kind, 40_000, rng).scores for kind in ("smear", "shift"))
    for scores, small, large in (
        (smear, (0.1160, 0.0461), (0.2218, 0.1756)),
        (shift, (0.0752, 0.0371), (0.2632, 0.1891)),
    ):
        shares = [np.mean(side < math.log(0.6)) for side in (scores.generated, scores.data)]
        assert shares == pytest.approx(small, abs=0.007)
        shares = [np.mean(side > math.log(1.25)) for side in (scores.data, scores.generated)]
        assert shares == pytest.approx(large, abs=0.009)
    assert np.exp(smear.log_weight).max() == pytest.approx(1.269, abs=2e-3)


@pytest.mark.parametrize(
    ("kind", "masses", "weights"),
    [
        ("smear", (0.03, 0.06, 0.12, 0.15, 0.18), (0.313, 0.977, 1.113, 0.769, 0.449)),
        ("shift", (0.03, 0.06, 0.09, 0.12, 0.15, 0.18), (1.717, 1.352, 1.048, 0.799, 0.601, 0.445)),
    ],
)
def test_weights_of_jets_by_quadrature(jets, kind, masses, weights):
    log_weight = jets.toy(kind, 10, np.random.default_rng(1)).log_weight
    assert np.exp(log_weight(np.array(masses))) == pytest.approx(weights, abs=2e-3)


# Variance of w over generated events, separation power, Wasserstein and Kolmogorov-Smirnov distance: by quadrature.
DISTANCES = [
    ("tail cut", 1.6e-4, 0.00634, 0.00123, 0.0126),
    ("smear", 0.0806, 0.0259, 0.00624, 0.0717),
    ("shift", 0.0750, 0.0198, 0.00900, 0.1110),
]


@pytest.mark.parametrize(("kind", "variance", "separated", "distance", "ks"), DISTANCES)
def test_distances_of_jets(jets, kind, variance, separated, distance, ks):
    n = 40_000
    toy = jets.toy(kind, n, np.random.default_rng(11))
    data, generated = toy.data[:, None], toy.generated[:, None]
    # Noise of (bins - 1) / 2n taken off; bins that resolve the tail, of which the one with the cut loses some.
    bins = 320 if kind == "tail cut" else 40
    found = separation(data, generated, n_bins=bins)[0] - (bins - 1) / (2 * n)
    assert found == pytest.approx(separated, abs=4 * math.sqrt(separated / n) + 0.12 * separated)
    assert wasserstein(toy.data, toy.generated) == pytest.approx(distance, abs=4 * 0.03 * math.sqrt(2 / n))
    assert stats.ks_2samp(toy.data, toy.generated).statistic == pytest.approx(ks, abs=2 / math.sqrt(n))
    w = np.exp(toy.scores.generated)
    if kind == "tail cut":
        # All events have the same weight 1 - eps: (1 / w - 1)^2 is the chi-square divergence of what is not missing.
        assert (1.0 / w[0] - 1.0) ** 2 == pytest.approx(variance, rel=0.05)
        assert np.ptp(w) == 0.0
    else:
        # Where next to no shifted event is, the tabulated ratio of this test is no longer one.
        low, high = (0.025, 0.25) if kind == "shift" else (0.0, 1.0)
        inside = (toy.generated > low) & (toy.generated < high)
        assert np.var(w[inside]) == pytest.approx(variance, rel=0.06)


@pytest.mark.parametrize("d", [2, 5, 10])
def test_fractions_of_modes(d):
    # Three modes 12 standard deviations apart: w is 4/3 or 6/7, whatever the dimension.
    shares, other = np.array([0.4, 0.3, 0.3]), np.array([0.3, 0.35, 0.35])
    modes = np.zeros((3, d))
    modes[1, 0], modes[2, 1] = 12.0, 12.0
    n = 20_000

    def draw(parts):
        rng = np.random.default_rng(d)
        return np.concatenate([modes[k] + rng.normal(size=(round(n * s), d)) for k, s in enumerate(parts)])

    x = np.concatenate([draw(shares), draw(other)])
    logs = -0.5 * np.sum((x[:, None] - modes) ** 2, axis=2)
    log_weight = logsumexp(logs, axis=1, b=shares) - logsumexp(logs, axis=1, b=other)
    # Rounded, or rounding errors would break the ties.
    scores = Scores(log_weight.round(9), np.arange(2 * n) < n)
    assert np.unique(np.exp(log_weight).round(6)).tolist() == pytest.approx([6 / 7, 4 / 3], abs=1e-6)
    assert area_under_roc(scores).value == pytest.approx(0.55, abs=1e-5)
    assert np.mean(scores.data) == pytest.approx(0.02258, abs=1e-5)


def mixture(a, width, n, rng):
    """Data N(0, 1), generator 1/2 N(-a, width) + 1/2 N(a, width), exact scores."""
    data = rng.normal(size=n)
    generated = rng.choice([-a, a], n) + width * rng.normal(size=n)
    x = np.concatenate([data, generated])
    log_gen = np.logaddexp(stats.norm.logpdf(x, a, width), stats.norm.logpdf(x, -a, width)) - math.log(2)
    return x, Scores(stats.norm.logpdf(x) - log_gen, np.arange(2 * n) < n)


def test_equal_moments():
    # Mean and variance agree: the Frechet distance sees nothing, the log-score does.
    rng = np.random.default_rng(4)
    n = 40_000
    x, scores = mixture(0.6, 0.8, n, rng)
    area, moments = area_under_roc(scores), weight_moments(scores)
    assert abs(area.value - 0.5156) < 4 * area.null_width
    assert abs(np.mean(scores.data) - 0.00216) < 4 * np.std(scores.data) / math.sqrt(n)
    assert moments.variance == pytest.approx(0.0050, rel=0.1)
    assert np.exp(scores.log_weight[np.argmin(np.abs(x))]) == pytest.approx(1.060, abs=1e-3)
    assert np.mean(x[n:] ** 4) == pytest.approx(2.741, abs=4 * math.sqrt(np.var(x[n:] ** 4) / n))
    assert permutation_test(scores, rng=rng, permutations=999)["log_score"].p_value == 0.001
    # 59 permutations of the Frechet distance: a p-value below 0.02 in one of 50 seeds.
    label = scores.is_data
    options = ScorecardOptions(permutations=59, directions=5, kernel_events=100, largest=10_000)
    assert scorecard(x[label][:, None], x[~label][:, None], rng=rng, options=options)["frechet"].p_value > 0.02
    assert not moments.heavy_tail


def test_an_infinite_variance_of_the_weights_raises_an_alarm_that_the_area_does_not():
    # In the tails p_data / p_gen grows without end: the variance of w is infinite, the area is tame.
    _, scores = mixture(0.8, 0.6, 40_000, np.random.default_rng(4))
    assert weight_moments(scores).heavy_tail
    area = area_under_roc(scores)
    assert abs(area.value - 0.5755) < 4 * area.null_width


@pytest.mark.parametrize(("sigma", "peak", "dip", "where"), [(1.5, 1.672, 0.631, 3.16), (1.0, 1.383, 0.767, 2.48)])
def test_resonance(toys, sigma, peak, dip, where):
    toy = toys["resonance"](sigma, 20_000, np.random.default_rng(1))
    x = np.linspace(0, 6, 2001)
    w = np.exp(toy.log_weight(x))
    assert w[0] == pytest.approx(peak, abs=2e-3)
    assert (w.min(), x[w.argmin()]) == (pytest.approx(dip, abs=2e-3), pytest.approx(where, abs=0.05))
    if sigma == 1.5:
        assert np.mean(toy.scores.generated < 0) == pytest.approx(0.628, abs=0.02)


def test_boundary(toys):
    scores = toys["boundary"](42_000).scores
    moments = weight_moments(scores)
    assert moments.mean_inverse_data.value == pytest.approx(1 / 1.05, abs=1e-9)
    assert moments.spurious_mass.value == pytest.approx(0.0476, abs=1e-4)
    assert area_under_roc(scores).value == pytest.approx(0.5238, abs=1e-4)
    assert moments.n_infinite == 2000


def test_a_tail_that_rules_the_variance_is_flagged():
    # Matched moments with a narrow generator: the variance of w diverges although the AUC is tame.
    rng = np.random.default_rng(2)
    x0 = rng.choice([-0.8, 0.8], 20_000) + 0.6 * rng.normal(size=20_000)
    x1 = rng.normal(size=20_000)

    def log_weight(x):
        density = np.logaddexp(-0.5 * ((x - 0.8) / 0.6) ** 2, -0.5 * ((x + 0.8) / 0.6) ** 2) - math.log(1.2)
        return -0.5 * x**2 - density

    scores = Scores(log_weight(np.r_[x1, x0]), np.arange(40_000) < 20_000)
    assert weight_moments(scores).heavy_tail
    assert area_under_roc(scores).value == pytest.approx(0.5755, abs=0.012)


def test_roc_curve_and_its_area():
    rng = np.random.default_rng(1)
    scores = Scores(np.r_[rng.normal(0.5, 1, 3000), rng.normal(0, 1, 3000)], np.arange(6000) < 3000)
    curve = roc_curve(scores, points=2000)
    assert np.trapezoid(curve.data, curve.generated) == pytest.approx(area_under_roc(scores).value, abs=2e-3)
    assert curve.band == pytest.approx(1.3581 * math.sqrt(2 / 3000))
    assert null_width(20_000, 20_000) == pytest.approx(0.0029, abs=2e-5)


def test_weighted_area_counts_an_event_as_often_as_its_weight():
    rng = np.random.default_rng(1)
    a, b = rng.integers(5, size=30).astype(float), rng.integers(4, size=20).astype(float)
    wa, wb = rng.integers(1, 4, 30), rng.integers(1, 4, 20)
    repeated = Scores(np.r_[np.repeat(a, wa), np.repeat(b, wb)], np.arange(wa.sum() + wb.sum()) < wa.sum())
    assert weighted_area(a, b, wa.astype(float), wb.astype(float)) == pytest.approx(area_under_roc(repeated).value)
    with pytest.raises(EventsError, match="sum to 0"):
        weighted_area(a, b, np.zeros(30), wb.astype(float))


def test_the_prior_of_the_training_sample_enters():
    labels = np.array([True, False, True, False])
    logit = np.array([0.3, 0.1, 0.2, -0.4])
    shifted = Scores(logit + math.log(3.0), labels, log_prior=-math.log(3.0))
    assert shifted.log_weight == pytest.approx(logit)


def test_bad_scores():
    labels = np.array([True, False, True, False])
    with pytest.raises(EventsError, match="1 of 4 classifier outputs are NaN"):
        Scores(np.array([0.0, np.nan, 1.0, 2.0]), labels)
    with pytest.raises(EventsError, match="no generated events"):
        Scores(np.zeros(4), np.ones(4, dtype=bool))
    with pytest.raises(EventsError, match="no data events in fold 1"):
        Scores(np.zeros(4), labels, fold=np.array([0, 0, 0, 1]))
    with pytest.raises(EventsError, match="differ in shape"):
        Scores(np.zeros(3), labels)
    with pytest.raises(OptionError, match="log prior ratio inf"):
        Scores(np.zeros(4), labels, log_prior=math.inf)
    with pytest.raises(EventsError, match=r"1 of 4 probabilities are outside \[0, 1\]"):
        scores_from_probabilities(np.array([0.1, 1.2, 0.3, 0.4]), labels)
    with pytest.raises(EventsError, match="have weight 0"):
        weight_moments(Scores(np.full(4, -np.inf), labels))


def test_constant_and_saturated_scores_are_flagged():
    labels = np.array([True, False, True, False])
    assert Scores(np.zeros(4), labels).constant
    assert not Scores(np.arange(4.0), labels).constant
    scores = scores_from_probabilities(np.array([1.0, 0.0, 1 - 1e-9, 0.5]), labels)
    assert scores.saturated == 0.75
    assert scores.log_weight[0] == np.inf
    assert log_score(scores.select(np.array([True, False, True, True]))).value < math.log(2)
