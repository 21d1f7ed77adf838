"""Checks of generators on densities that are known exactly: a Gaussian whose mean follows the mass."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.stats import kstest, norm

pytest.importorskip("sklearn")

from gbistat.data.transforms import FeatureTransform
from gbistat.errors import EventsError, OptionError, TermError
from gbistat.terms.generator_quality import GeneratorQuality, Normalisation, SpuriousWindow
from gbistat.terms.protocols import ConditionalDensity
from gbistat.training.generator_checks import held_out_likelihood, normalisation, region_test
from gbistat.training.two_sample import TwoSampleOptions, two_sample_test

FAST = TwoSampleOptions(folds=3, permutations=199, trees=40, leaves=6, smallest_leaf=30, learning_rate=0.1)


@dataclass(frozen=True)
class Gaussian:
    """Two features: N(m / 1000 + shift, 1) and N(0, 0.5), times a factor that should be 1."""

    shift: float = 0.0
    factor: float = 1.0

    def log_prob(self, features, mass, /):
        first = norm.logpdf(features[:, 0], mass / 1000.0 + self.shift, 1.0)
        return first + norm.logpdf(features[:, 1], 0.0, 0.5) + math.log(self.factor)

    def sample(self, mass, /, *, rng):
        return np.column_stack([rng.normal(mass / 1000.0 + self.shift, 1.0), rng.normal(0.0, 0.5, mass.size)])


@dataclass(frozen=True)
class LogitGaussian:
    """A density on the unit square: the logits of both features are standard normal."""

    def log_prob(self, features, mass, /):
        z = np.log(features) - np.log1p(-features)
        return np.sum(norm.logpdf(z) - np.log(features) - np.log1p(-features), axis=1)

    def sample(self, mass, /, *, rng):
        return 1.0 / (1.0 + np.exp(-rng.standard_normal((mass.size, 2))))


def masses(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(3000.0, 5000.0, n)


def test_the_examples_are_conditional_densities() -> None:
    assert isinstance(Gaussian(), ConditionalDensity)


@pytest.mark.parametrize("factor", [1.0, 0.99, 1.03])
def test_normalisation_of_a_gaussian(factor: float) -> None:
    """Exactly the factor, within 4 of the errors and a fraction of a per cent."""
    result = normalisation(Gaussian(factor=factor), 3500.0, rng=np.random.default_rng(1), n_points=4096, n_samples=1000)
    assert result.integral == pytest.approx(factor, abs=max(4 * result.error, 1e-6))
    assert result.error < 0.005


def test_normalisation_in_a_transformed_space() -> None:
    rng = np.random.default_rng(2)
    pool = LogitGaussian().sample(np.zeros(4000), rng=rng)
    bounds = [(0.0, 1.0), (0.0, 1.0)]
    transform = FeatureTransform.fit(pool, ["a", "b"], bounds=bounds)
    result = normalisation(LogitGaussian(), 1.0, rng=rng, transform=transform, n_points=4096, n_samples=1000)
    assert result.integral == pytest.approx(1.0, abs=max(4 * result.error, 1e-4))
    assert result.error < 0.005


def test_the_error_of_the_normalisation_is_its_scatter() -> None:
    """30 repetitions: the spread of the pulls is 1 within 4 standard errors of a spread from 8 scrambles (t, 7 dof)."""
    results = [
        normalisation(Gaussian(), 3500.0, rng=np.random.default_rng(s), n_points=512, n_samples=200) for s in range(30)
    ]
    pulls = np.array([(r.integral - 1.0) / r.error for r in results])
    assert np.sqrt(np.mean(pulls**2)) == pytest.approx(math.sqrt(7 / 5), abs=0.8)


def test_held_out_likelihood_is_minus_the_entropy() -> None:
    m = masses(20_000, 3)
    x = Gaussian().sample(m, rng=np.random.default_rng(4))
    entropy = 0.5 * math.log(2 * math.pi * math.e) * 2 + math.log(0.5)
    rows = held_out_likelihood(Gaussian(), x, m, [3000.0, 3500.0, 5000.0, 9000.0])
    assert [(row.low, row.high) for row in rows] == [(3000.0, 3500.0), (3500.0, 5000.0)]
    assert sum(row.n_events for row in rows) == 20_000
    for row in rows:
        assert row.mean == pytest.approx(-entropy, abs=4 * row.error)
        assert row.error == pytest.approx(
            1.0 / math.sqrt(row.n_events), rel=0.05
        )  # variance of ln p of d Gaussians: d / 2


def test_events_of_density_zero_are_counted() -> None:
    class Half(Gaussian):
        def log_prob(self, features, mass, /):
            return np.where(features[:, 1] > 0, super().log_prob(features, mass), -np.inf)

    m = masses(1000, 5)
    x = Gaussian().sample(m, rng=np.random.default_rng(6))
    (row,) = held_out_likelihood(Half(), x, m, [3000.0, 5000.0])
    assert row.n_outside == int(np.sum(x[:, 1] <= 0))
    assert row.n_events + row.n_outside == 1000


def test_p_values_of_identical_samples_are_uniform() -> None:
    """40 pairs of identical samples: Kolmogorov-Smirnov above 1 %."""
    p = []
    for seed in range(40):
        m = masses(400, 100 + seed)
        rng = np.random.default_rng(seed)
        x, g = (Gaussian().sample(m, rng=rng) for _ in range(2))
        p.append(two_sample_test(x, g, m, rng=rng, options=FAST).p_value)
    assert kstest(p, "uniform").pvalue > 0.01
    assert min(p) >= 1 / 200


def test_a_shift_is_found_with_the_right_area() -> None:
    """N(0) against N(d): AUC = Phi(d / sqrt 2)."""
    m = masses(6000, 7)
    rng = np.random.default_rng(8)
    x, g = Gaussian().sample(m, rng=rng), Gaussian(shift=0.5).sample(m, rng=rng)
    test = two_sample_test(x, g, m, rng=rng, options=FAST)
    exact = norm.cdf(0.5 / math.sqrt(2))
    assert test.auc == pytest.approx(exact, abs=0.02)
    assert test.auc < exact + 3 * test.auc_error
    assert test.auc_error == pytest.approx(math.sqrt(1 / (6 * 4000)), rel=0.02)  # one fold of three only trains
    assert test.p_value == pytest.approx(1 / 200)
    assert test.z > 10
    # Jensen-Shannon divergence of N(0, 1) and N(0.5, 1), by quadrature.
    t = np.linspace(-8.0, 8.5, 20_001)
    p, q = norm.pdf(t), norm.pdf(t, 0.5)
    mix = 0.5 * (p + q)
    jsd = 0.5 * np.trapezoid(p * np.log(p / mix) + q * np.log(q / mix), t)
    assert 0.7 * jsd < test.log_score < 1.1 * jsd


def test_a_wrong_dependence_on_the_mass_is_found() -> None:
    """Samples at shuffled masses have the right distribution of the features, and the wrong one at given mass."""
    m = masses(6000, 9)
    rng = np.random.default_rng(10)
    x = Gaussian().sample(m, rng=rng)
    g = Gaussian().sample(rng.permutation(m), rng=rng)
    assert two_sample_test(x, g, m, rng=rng, options=FAST).p_value == pytest.approx(1 / 200)


def test_moments_of_the_null_are_those_of_the_permutations(monkeypatch: pytest.MonkeyPatch) -> None:
    from gbistat.training import two_sample as module

    seen = []
    original = module._random_subset_sums

    def spy(values, count, rng):
        sums = original(values, 4000, rng)
        seen.append((values, sums))
        return sums[:count]

    monkeypatch.setattr(module, "_random_subset_sums", spy)
    m = masses(600, 11)
    rng = np.random.default_rng(12)
    x, g = Gaussian().sample(m, rng=rng), Gaussian(shift=0.3).sample(m, rng=rng)
    test = two_sample_test(x, g, m, rng=rng, options=FAST)
    ((values, sums),) = seen
    assert test.log_score + sums.mean() == pytest.approx(test.null_mean, abs=5 * test.null_error / math.sqrt(4000))
    assert sums.std() == pytest.approx(test.null_error, rel=0.06)
    # All labels swapped: the score of the samples taken for events.
    assert values.sum() == pytest.approx(2 * (test.null_mean - test.log_score))


def test_region_uses_the_events_inside() -> None:
    m = masses(3000, 13)
    x = Gaussian().sample(m, rng=np.random.default_rng(14))
    region = region_test(
        Gaussian(),
        x,
        m,
        kind="pseudo-window",
        edges=(4000.0, 4500.0),
        blinded=True,
        rng=np.random.default_rng(15),
        options=FAST,
    )
    inside = int(np.sum((m >= 4000) & (m < 4500)))
    assert region.test.n_pairs == inside - math.ceil(inside / 3)  # the first of three folds only trains
    assert (region.kind, region.low, region.high, region.blinded) == ("pseudo-window", 4000.0, 4500.0, True)
    assert region.test.p_value > 0.004
    with pytest.raises(EventsError, match="no event in 7000-8000"):
        region_test(
            Gaussian(),
            x,
            m,
            kind="sidebands",
            edges=(7000.0, 8000.0),
            blinded=False,
            rng=np.random.default_rng(16),
        )


def test_the_same_seed_gives_the_same_test() -> None:
    m = masses(600, 17)
    x, g = (Gaussian().sample(m, rng=np.random.default_rng(s)) for s in (18, 19))
    one, two, other = (two_sample_test(x, g, m, rng=np.random.default_rng(s), options=FAST) for s in (1, 1, 2))
    assert one == two
    assert one != other


def test_results_survive_json() -> None:
    m = masses(600, 20)
    x = Gaussian().sample(m, rng=np.random.default_rng(21))
    region = region_test(
        Gaussian(),
        x,
        m,
        kind="sidebands",
        edges=(3000.0, 5000.0),
        blinded=False,
        rng=np.random.default_rng(1),
        options=FAST,
    )
    quality = GeneratorQuality(
        "m_jj",
        "GeV",
        (3300.0, 3700.0),
        (Normalisation(3500.0, 1.001, 0.002),),
        held_out_likelihood(Gaussian(), x, m, [3000.0, 5000.0]),
        (region,),
        (SpuriousWindow(3800.0, 4200.0, True, 1000, 0.01, 0.02, 3.0, 6.0, None),),
    )
    assert GeneratorQuality.from_dict(quality.to_dict()) == quality
    assert quality.spurious[0].pull == 0.5
    assert quality.region("sidebands") == (region,)
    assert quality.region("signal region") == ()
    with pytest.raises(TermError, match="these are not the checks of a generator"):
        GeneratorQuality.from_dict({"window": [1, 2]})


def test_what_cannot_be_tested() -> None:
    rng = np.random.default_rng(22)
    m = masses(300, 23)
    x = Gaussian().sample(m, rng=rng)
    with pytest.raises(EventsError, match=r"events \(300, 2\), samples \(299, 2\) and masses \(300,\) do not pair"):
        two_sample_test(x, x[1:], m, rng=rng)
    with pytest.raises(EventsError, match="50 pairs are too few for a classifier test in 5 folds"):
        two_sample_test(x[:50], x[:50], m[:50], rng=rng)
    bad = x.copy()
    bad[[3, 5], 0] = np.nan
    with pytest.raises(EventsError, match="2 of 300 samples are NaN or infinite"):
        two_sample_test(x, bad, m, rng=rng)
    with pytest.raises(OptionError, match="folds = 1"):
        TwoSampleOptions(folds=1)
    with pytest.raises(OptionError, match=r"permutations = 9 cannot give a p-value of 0\.05"):
        TwoSampleOptions(permutations=9)
    with pytest.raises(OptionError, match="n_points = 100"):
        normalisation(Gaussian(), 3500.0, rng=rng, n_points=100)
    with pytest.raises(OptionError, match="two or more increasing masses"):
        held_out_likelihood(Gaussian(), x, m, [3500.0, 3000.0])
