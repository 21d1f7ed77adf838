"""Pools: normalisation, worth, and drawing from them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2

from gbistat.errors import EventsError, ModelError, ParameterError
from gbistat.inference.pools import EventSampler
from gbistat.inference.toys import ToyModel, ToyOptions
from gbistat.likelihood.nll import ExtendedUnbinnedNLL


def likelihood(nominal=200.0):
    return ExtendedUnbinnedNLL.from_log_ratio(np.zeros(10), nominal=nominal)


def test_shift_is_root_n_over_m_for_equal_weights(bump_pool):
    model = ToyModel.from_nll(likelihood(), bump_pool(40_000, np.random.default_rng(1)))
    (report,) = model.pool_reports(model.theta(mu=0.0, n_bkg=10_000.0))
    assert report.shift == pytest.approx(np.sqrt(10_000 / 40_000), rel=1e-9)
    assert report.background_size == pytest.approx(40_000)
    assert report.expected == pytest.approx(10_000)


def test_densities_are_normalised_on_the_pool(bump_pool):
    reference = bump_pool(5000, np.random.default_rng(2))
    assert abs(reference.normalisation - 1.0) > 1e-4
    model = ToyModel.from_nll(likelihood(), reference)
    theta = model.theta(mu=2.0, n_bkg=3000.0)
    assert model.pools[0].shares(theta, theta).sum(axis=1) == pytest.approx([1.0, 1.0], abs=1e-12)
    assert model.pools[0].expected(theta).sum() == pytest.approx(3400.0)


def test_shift_is_the_spread_that_pools_without_normalisation_show(bump_pool):
    # E_b[r] - 1 of 300 pools of 20,000 points, as a shift of mu in its errors: sigma_mu * S * (E - 1).
    rng = np.random.default_rng(3)
    references = [bump_pool(20_000, rng) for _ in range(300)]
    shifts = []
    for reference in references:
        density = np.exp(reference.mixture.components[0].static) * reference.normalisation
        ratio = density - 1.0
        sigma = np.sqrt(10_000 / np.mean(ratio**2)) / 200.0
        shifts.append(sigma * 200.0 * (reference.normalisation - 1.0))
    model = ToyModel.from_nll(likelihood(), references[0])
    predicted = model.pool_reports(model.theta(mu=0.0, n_bkg=10_000.0))[0].shift
    # chi2 of 300 degrees of freedom: false alarm 1e-4.
    statistic = np.sum((np.array(shifts) / predicted) ** 2)
    assert chi2.ppf(5e-5, 300) < statistic < chi2.isf(5e-5, 300)


def test_weights_of_the_pool_lower_its_worth(bump_pool):
    rng = np.random.default_rng(4)
    weights = rng.exponential(size=30_000)
    plain = ToyModel.from_nll(likelihood(), bump_pool(30_000, np.random.default_rng(5)))
    weighted = ToyModel.from_nll(likelihood(), bump_pool(30_000, np.random.default_rng(5), weights=weights))
    theta = plain.theta(mu=0.0, n_bkg=5000.0)
    size = weights.sum() ** 2 / (weights**2).sum()
    assert weighted.pool_reports(theta)[0].background_size == pytest.approx(size)
    # Exponential weights halve the effective size.
    ratio = weighted.pool_reports(theta)[0].shift / plain.pool_reports(theta)[0].shift
    assert ratio == pytest.approx(np.sqrt(30_000 / size), rel=0.05)


def test_too_small_a_pool_says_how_many_points_would_do(bump_pool):
    options = ToyOptions(max_pool_shift=0.5)
    model = ToyModel.from_nll(likelihood(), bump_pool(2000, np.random.default_rng(6)), options=options)
    theta = model.theta(mu=0.0, n_bkg=10_000.0)
    with pytest.raises(EventsError, match=r"pool of 2000 points .* too small .* about 40000 points are needed"):
        model.pool_reports(theta)
    enough = ToyModel.from_nll(likelihood(), bump_pool(40_001, np.random.default_rng(6)), options=options)
    assert enough.pool_reports(theta)[0].shift < 0.5


def test_a_pool_with_few_signal_like_points_is_refused(bump_pool):
    model = ToyModel.from_nll(likelihood(), bump_pool(60, np.random.default_rng(7)))
    with pytest.raises(EventsError, match="error of that error"):
        model.pool_reports(model.theta(mu=0.0, n_bkg=50.0))


def test_quadrature_is_exact(toy_counting):
    (report,) = toy_counting(10.0, 10).pool_reports(np.array([1.0, 10.0]))
    assert (report.shift, report.error) == (0.0, 0.0)
    assert report.expected == pytest.approx(11.0)


def test_negative_weights_cannot_be_drawn_from(bump_pool):
    weights = np.ones(1000)
    weights[3:5] = -1.0
    with pytest.raises(EventsError, match="2 of 1000 points of the pool have a negative weight"):
        ToyModel.from_nll(likelihood(), bump_pool(1000, np.random.default_rng(8), weights=weights))


def test_a_truth_with_negative_density_is_refused(bump_pool):
    model = ToyModel.from_nll(likelihood(), bump_pool(20_000, np.random.default_rng(9)))
    with pytest.raises(ParameterError, match=r"density is negative at \d+ of 20000 points"):
        model.pools[0].expected(model.theta(mu=-10.0, n_bkg=1000.0))


def test_a_signal_outside_the_pool_is_refused(toy_resonance):
    model = toy_resonance(n_pool=2000)
    theta = model.theta()
    # A signal of which no point of the pool has any part.
    model.pools[0].components[0].static[:] = -np.inf
    with pytest.raises(ModelError, match=r"component number 0 .* outside the pool's reach"):
        model.pools[0].shares(theta, theta)


def test_offsets_are_normalised_at_the_truth_and_nowhere_else(toy_resonance):
    model = toy_resonance(n_pool=2000)
    truth, other = model.theta(ln_kappa=0.1), model.theta(ln_kappa=0.3, bkg_shape_1=2.0)
    shares = model.pools[0].shares(truth, truth)
    assert shares.sum(axis=1) == pytest.approx([1.0, 1.0])
    # In a fit at another value the ratio is off by the difference; mass densities stay normalised.
    assert model.pools[0].shares(other, truth).sum(axis=1) == pytest.approx([np.exp(0.2), 1.0])


@pytest.mark.parametrize("spread", [0.0, 1.5])
def test_sampler_draws_a_poisson_number_at_every_point(spread):
    rng = np.random.default_rng(10)
    mean = 0.03 * np.exp(spread * rng.normal(size=4500))
    mean[7] = 0.0
    sampler = EventSampler(mean)
    totals, sizes = np.zeros(mean.size), []
    repeats = 3000
    for _ in range(repeats):
        rows = sampler.draw(rng=rng)
        sizes.append(rows.size)
        np.add.at(totals, rows, 1.0)
    assert totals[7] == 0
    expected = repeats * mean
    # Pearson's chi2 of points with enough counts, and the variance of the number of events; false alarm 1e-4 each.
    some = expected > 10
    statistic = np.sum((totals - expected)[some] ** 2 / expected[some])
    assert chi2.ppf(5e-5, some.sum()) < statistic < chi2.isf(5e-5, some.sum())
    dispersion = np.sum((np.array(sizes) - mean.sum()) ** 2) / mean.sum()
    assert chi2.ppf(5e-5, repeats) < dispersion < chi2.isf(5e-5, repeats)
