"""Mass densities against closed forms, and how their parameters are tied to those of a model."""

from __future__ import annotations

import numpy as np
import pytest
from jacobi import jacobi
from scipy import special, stats

from gbistat.errors import ModelError, OptionError, ParameterError, WindowError
from gbistat.terms.density import MassDensity
from gbistat.terms.sampling import draw
from gbistat.terms.shapes.bernstein import Bernstein
from gbistat.terms.shapes.chebyshev import Chebyshev
from gbistat.terms.shapes.dijet import Dijet
from gbistat.terms.shapes.double_crystal_ball import DoubleCrystalBall
from gbistat.terms.shapes.exponential import Exponential
from gbistat.terms.shapes.gaussian import Gaussian
from gbistat.terms.shapes.histogram import Histogram
from gbistat.terms.shapes.power_law import PowerLaw

WINDOW = ((3300.0, 3700.0),)
MASS = np.linspace(3300.0, 3699.0, 57)


@pytest.mark.parametrize("rate", [-0.05, -1e-6, 1e-9, 2e-3, 0.05, 1.0, 40.0])
def test_truncated_exponential(rate):
    density = MassDensity.free(Exponential(), WINDOW)
    width = 400.0
    # ln(rate / (1 - exp(-rate width))) from the low edge, written for either sign of the rate.
    log_norm = np.log(rate / -np.expm1(-rate * width))
    np.testing.assert_allclose(density.log_prob(MASS, [rate]), log_norm - rate * (MASS - 3300), rtol=1e-11, atol=1e-8)
    moments = density.normalisation([rate])
    half = rate * width / 2
    if abs(half) < 0.1:
        mean, variance = width / 2 - rate * width**2 / 12, width**2 / 12
    else:
        mean = 1 / rate + width * np.exp(-rate * width) / np.expm1(-rate * width)
        variance = 1 / rate**2 - (width / (np.exp(half) - np.exp(-half))) ** 2 if half < 100 else 1 / rate**2
    assert density.mean_score(WINDOW[0], [rate])[0] == pytest.approx(-(3300 + mean), rel=1e-9)
    assert moments.hessian[0, 0] == pytest.approx(variance, rel=1e-7)


@pytest.mark.parametrize("rate", [-1.0, 0.3, 2.0])
def test_steep_exponential_in_wide_bins(rate):
    edges = np.array([3300.0, 3310.0, 3350.0, 3500.0, 3695.0, 3700.0])
    at_edges = np.expm1(-rate * (edges - 3300.0)) if rate > 0 else np.exp(rate * (3700.0 - edges))
    expected = np.diff(at_edges) / (at_edges[-1] - at_edges[0])
    density = MassDensity.free(Exponential(), WINDOW)
    np.testing.assert_allclose(density.probabilities(edges, [rate]), expected, rtol=1e-9, atol=1e-12)


def test_flat_exponential():
    density = MassDensity.free(Exponential(), ((2800.0, 3300.0), (3700.0, 7000.0)))
    np.testing.assert_allclose(density.log_prob([2800.0, 5000.0], [0.0]), -np.log(3800.0), rtol=1e-14)


@pytest.mark.parametrize("exponent", [-2.0, 0.5, 1.0, 3.0, 7.5, 60.0])
def test_power_law(exponent):
    density = MassDensity.free(PowerLaw(), WINDOW)
    low, high = WINDOW[0]
    if exponent == 1:
        log_z = np.log(np.log(high / low))
    else:
        log_z = np.log((low ** (1 - exponent) - high ** (1 - exponent)) / (exponent - 1))
    np.testing.assert_allclose(density.log_prob(MASS, [exponent]), -exponent * np.log(MASS) - log_z, atol=1e-9)


def test_power_law_down_to_zero():
    density = MassDensity.free(PowerLaw(), ((0.0, 1.0),))
    np.testing.assert_allclose(density.log_prob([0.25], [0.5]), np.log(0.5 * 0.25**-0.5), atol=1e-6)
    assert np.isneginf(density.log_prob([0.25], [1.0])).all()
    with pytest.raises(ParameterError, match=r"power_law\(exponent=1\) is not a density on 0-1"):
        density.sample(1, [1.0], rng=np.random.default_rng(1))


@pytest.mark.parametrize("sigma", [0.1, 1.0, 10.0, 33.0, 100.0, 400.0, 1e5])
@pytest.mark.parametrize("mean", [3500.0, 3300.0, 3698.7, 3100.0])
def test_truncated_gaussian(mean, sigma):
    density = MassDensity.free(Gaussian(), WINDOW)
    low, high = ((edge - mean) / sigma for edge in WINDOW[0])
    near = np.clip(mean + sigma * np.linspace(-2, 2, 21), 3300.0, 3699.9)
    expected = stats.truncnorm.logpdf(near, low, high, loc=mean, scale=sigma)
    # Where scipy's own tail loses digits, compare with the asymptotic form ln Phi through log_ndtr.
    reference = stats.norm.logpdf(near, mean, sigma) - _log_interval(low, high)
    np.testing.assert_allclose(density.log_prob(near, [mean, sigma]), reference, rtol=1e-9, atol=1e-9)
    if sigma >= 10 and mean > 3200:
        np.testing.assert_allclose(density.log_prob(near, [mean, sigma]), expected, rtol=1e-9, atol=1e-9)


def _log_interval(low, high):
    """ln(Phi(high) - Phi(low)), on the side where nothing cancels."""
    if low > 0:
        low, high = -high, -low
    upper, lower = special.log_ndtr(high), special.log_ndtr(low)
    return upper + np.log1p(-np.exp(lower - upper))


@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0])
def test_a_narrow_peak_in_a_wide_window(sigma):
    density = MassDensity.free(Gaussian(), ((1000.0, 9000.0),))
    for mean in (1234.567, 5000.0, 8888.1):
        moments = density.normalisation([mean, sigma])
        assert moments.log_integral == pytest.approx(np.log(sigma * np.sqrt(2 * np.pi)), abs=1e-10)
        np.testing.assert_allclose(moments.gradient, [0.0, 1 / sigma], atol=1e-8 / sigma)
        np.testing.assert_allclose(moments.hessian, [[0.0, 0.0], [0.0, -1 / sigma**2]], atol=1e-8 / sigma**2)
        masses = density.sample(5000, [mean, sigma], rng=np.random.default_rng(7))
        # A false alarm once in 10^4.
        assert stats.kstest(masses, stats.norm(mean, sigma).cdf).pvalue > 1e-4
        edges = mean + sigma * np.array([-1.0, 0.0, 2.0])
        np.testing.assert_allclose(
            density.probabilities(edges, [mean, sigma]), np.diff(stats.norm.cdf([-1, 0, 2])), rtol=1e-9
        )


def test_two_intervals_are_the_sum_of_each():
    low, high = (2800.0, 3300.0), (3700.0, 7000.0)
    density, values = MassDensity.free(Gaussian(), (low, high)), [3650.0, 150.0]
    parts = [density.log_integral(interval, values) for interval in (low, high)]
    assert density.normalisation(values).log_integral == pytest.approx(np.logaddexp(*parts), abs=1e-12)
    shares = density.probabilities([2800.0, 3500.0, 7000.0], values)
    np.testing.assert_allclose(np.log(shares[1] / shares[0]), parts[1] - parts[0], atol=1e-10)
    draws = density.sample(20_000, values, rng=np.random.default_rng(11))
    # Binomial, five standard deviations: a false alarm once in 10^6.
    assert abs(np.mean(draws > 3500) - shares[1]) < 5 * np.sqrt(shares[1] * shares[0] / 20_000)
    assert not np.any((draws >= 3300) & (draws < 3700))


def test_bernstein_integral_is_the_mean_coefficient():
    density = MassDensity.free(Bernstein(degree=3, support=(3300.0, 3700.0)), WINDOW)
    values = [0.6, 0.2, 0.1]
    assert density.normalisation(values).log_integral == pytest.approx(np.log(400 * 1.9 / 4), abs=1e-13)
    np.testing.assert_allclose(density.mean_score(WINDOW[0], values), 1 / 1.9, rtol=1e-12)


@pytest.mark.parametrize("rate", [-3.0, 3.0])
def test_samples_inside_a_cell(rate):
    """A panel so steep that nearly all draws fall in one cell; Kolmogorov-Smirnov, a false alarm once in 10^4."""
    theta, low, high = np.array([rate]), np.zeros(1), np.full(1, 64.0)
    draws = draw(Exponential(), theta, low, high, 5000, rng=np.random.default_rng(5))
    distance = draws if rate > 0 else 64.0 - draws
    assert stats.kstest(distance, stats.expon(scale=1 / 3).cdf).pvalue > 1e-4


def test_samples_stay_below_the_high_edge():
    class Largest:
        def random(self, n):
            return np.full(n, np.nextafter(1.0, 0.0))

    for rate in (-0.01, 0.0, 0.01):
        (mass,) = MassDensity.free(Exponential(), WINDOW).sample(1, [rate], rng=Largest())
        assert 3699.0 < mass < 3700.0


def test_histogram_probabilities_are_its_contents():
    edges = np.array([3300.0, 3350.0, 3500.0, 3525.0, 3700.0])
    density = MassDensity.free(Histogram(edges, (3.0, 10.0, 0.0, 5.0)), WINDOW)
    np.testing.assert_allclose(density.probabilities(edges, ()), np.array([3, 10, 0, 5]) / 18, rtol=1e-13)
    # 3525 is the low edge of the last bin and belongs to it.
    expected = [3 / 18 / 50, 0, 5 / 18 / 175, 5 / 18 / 175]
    np.testing.assert_allclose(np.exp(density.log_prob([3310.0, 3510.0, 3525.0, 3600.0], ())), expected)


def test_crystal_ball_against_scipy():
    """One tail against scipy.stats.crystalball, with the other join moved out of the range."""
    mean, sigma, alpha, n = 3500.0, 30.0, 1.3, 2.7
    mass = np.linspace(3000, 3600, 61)
    theta = np.array([mean, sigma, alpha, n, 50.0, 2.0])
    expected = stats.crystalball.logpdf(mass, alpha, n, mean, sigma)
    difference = DoubleCrystalBall().log_shape(mass, theta) - expected
    np.testing.assert_allclose(difference, difference[0], atol=1e-12)
    mirrored = DoubleCrystalBall().log_shape(2 * mean - mass, theta[[0, 1, 4, 5, 2, 3]])
    np.testing.assert_allclose(mirrored, DoubleCrystalBall().log_shape(mass, theta), atol=1e-12)


@pytest.mark.parametrize("join", [-1.1, 1.7])
def test_crystal_ball_is_smooth_at_the_joins(join):
    theta = np.array([3500.0, 30.0, 1.1, 2.5, 1.7, 4.0])
    shape, step = DoubleCrystalBall(), 1e-7
    at = 3500.0 + 30.0 * join
    below, above = (shape.derivatives(np.array([at + side * step]), theta) for side in (-1, 1))
    np.testing.assert_allclose(above[0], below[0], atol=1e-7)
    np.testing.assert_allclose(above[1], below[1], atol=1e-7)
    np.testing.assert_allclose(above[1][0], join / 30, atol=1e-7)


def test_crystal_ball_with_a_steep_tail_is_a_gaussian_with_an_exponential_tail():
    """For n to infinity a tail becomes exp(alpha^2 / 2 - alpha |t|); the published form would overflow."""
    shape = DoubleCrystalBall()
    u = shape.log_shape(np.array([3500.0 - 30 * 4.0]), np.array([3500.0, 30.0, 1.5, 1e12, 2.0, 5.0]))
    np.testing.assert_allclose(u, 1.5**2 / 2 - 1.5 * 4.0, rtol=1e-9)


@pytest.mark.parametrize(
    ("shape", "offset", "matrix", "values"),
    [
        (Gaussian(), [0.0, 0.0], [[3500.0], [35.0]], [1.01]),
        (Gaussian(), [3500.0, 30.0], [[1.0, 0.0, 2.0], [0.0, 3.0, 0.5]], [4.0, 1.0, 2.0]),
        (DoubleCrystalBall(), [0.0, 0.0, 1.5, 3.0, 1.2, 4.0], [[3500, 0], [0, 40], *[[0, 0]] * 4], [1.0, 0.9]),
        (Dijet(), [10.0, 5.0, 0.1], [[1.0, 0.2], [0.0, -0.3], [0.1, 0.0]], [0.5, -1.0]),
        (Bernstein(2, (3300.0, 3700.0)), [0.4, 0.2], [[0.1], [-0.1]], [0.7]),
        (Chebyshev(2, (3300.0, 3700.0)), [0.1, 0.0], [[0.1], [0.3]], [-0.3]),
    ],
    ids=["scale", "mixing", "crystal-ball", "dijet", "bernstein", "chebyshev"],
)
def test_affine_parameters(shape, offset, matrix, values):
    matrix = np.array(matrix, dtype=float)
    names = tuple(f"v{i}" for i in range(matrix.shape[1]))
    density = MassDensity(shape, WINDOW, names, np.array(offset), matrix)
    theta = density.shape_parameters(values)
    np.testing.assert_allclose(theta, offset + matrix @ values)
    free = MassDensity.free(shape, WINDOW)
    log_p, gradient, hessian = density.derivatives(MASS, values)
    log_p_free, gradient_free, hessian_free = free.derivatives(MASS, theta)
    np.testing.assert_allclose(log_p, log_p_free, atol=1e-12)
    np.testing.assert_allclose(gradient, matrix.T @ gradient_free, rtol=1e-9, atol=1e-12)
    expected = np.einsum("pa,pqn,qb->abn", matrix, np.broadcast_to(hessian_free, (*hessian_free.shape[:2], 57)), matrix)
    np.testing.assert_allclose(np.broadcast_to(hessian, expected.shape), expected, rtol=1e-8, atol=1e-10)
    scale = 1e-3 * np.abs(values)
    numeric = jacobi(lambda x: density.log_prob(MASS, values + scale * x), np.zeros(len(values)))[0] / scale
    np.testing.assert_allclose(gradient, numeric.T, rtol=1e-6, atol=1e-6 * np.abs(gradient).max())
    moments = density.normalisation(values)
    np.testing.assert_allclose(moments.gradient, matrix.T @ free.normalisation(theta).gradient, rtol=1e-9, atol=1e-12)


def test_names_of_free_parameters():
    density = MassDensity.free(Exponential(), WINDOW, names=["bkg_rate"])
    assert density.parameters == ("bkg_rate",)
    with pytest.raises(ParameterError, match=r"values have shape \(0,\); exponential needs \(1,\): bkg_rate"):
        density.log_prob([3400.0], ())
    with pytest.raises(ModelError, match=r"gaussian has 2 parameter.* but 3 names"):
        MassDensity.free(Gaussian(), WINDOW, names=["a", "b", "c"])
    with pytest.raises(ParameterError, match="named twice"):
        MassDensity.free(Gaussian(), WINDOW, names=["a", "a"])


def test_sizes_of_the_affine_map():
    with pytest.raises(ModelError, match=r"offset must have shape \(2,\), not \(3,\)"):
        MassDensity(Gaussian(), WINDOW, (), np.zeros(3))
    with pytest.raises(ModelError, match=r"matrix \(2, 1\), not \(1, 2\)"):
        MassDensity(Gaussian(), WINDOW, ("m",), np.zeros(2), np.ones((1, 2)))
    with pytest.raises(ParameterError, match=r"gaussian\(mean=nan, sigma=30\) has a parameter that is not a finite"):
        MassDensity.fixed(Gaussian(), WINDOW, [np.nan, 30.0])


@pytest.mark.parametrize(
    ("shape", "domain", "match"),
    [
        (Gaussian(), (), "at least one interval"),
        (Gaussian(), (3300.0, 3700.0), "give a sequence of intervals"),
        (Gaussian(), ((3700.0, 3300.0),), "interval 3700 3300 is empty"),
        (Gaussian(), ((3300.0, np.inf),), "not finite"),
        (Gaussian(), ((3000.0, 3400.0), (3300.0, 3700.0)), "overlap"),
        (Dijet(), ((3000.0, 14000.0),), "3000-14000 leaves the range 0 to 13000 on which dijet is defined"),
        (PowerLaw(), ((-5.0, 5.0),), "leaves the range 0 to inf"),
        (Bernstein(2, (3300.0, 3600.0)), WINDOW, "leaves the range 3300 to 3600"),
        (Histogram((3400.0, 3500.0), (1.0,)), WINDOW, "leaves the range 3400 to 3500"),
    ],
)
def test_wrong_domains(shape, domain, match):
    with pytest.raises(WindowError, match=match):
        MassDensity.free(shape, domain)


def test_integrals_must_stay_in_the_support():
    density = MassDensity.free(Dijet(), WINDOW)
    with pytest.raises(WindowError, match="leaves the range"):
        density.log_integral((3000.0, 13500.0), [10.0, 5.0, 0.0])
    with pytest.raises(WindowError, match="leaves the range"):
        density.mean_score((3000.0, 13500.0), [10.0, 5.0, 0.0])


def test_signal_outside_the_window():
    with pytest.raises(ModelError, match=r"gaussian\(mean=4500, sigma=20\) has no part in 3300-3700 \(10\^-349 of it"):
        MassDensity.fixed(Gaussian(), WINDOW, [4500.0, 20.0])
    with pytest.raises(ModelError, match="histogram is zero everywhere on 3300-3700"):
        MassDensity.free(Histogram((3000.0, 3300.0, 4000.0), (1.0, 0.0)), WINDOW)
    density = MassDensity.free(Gaussian(), WINDOW)
    density.check_integral([3200.0, 50.0])
    with pytest.raises(ModelError, match="move the window"):
        density.check_integral([3000.0, 30.0])
    MassDensity.free(Dijet(), WINDOW).check_integral([10.0, 5.0, 0.1])


@pytest.mark.parametrize("edges", [[3300.0], [3300.0, 3300.0], [3400.0, 3300.0], [[3300.0, 3400.0]], [3300.0, np.nan]])
def test_wrong_edges(edges):
    with pytest.raises(OptionError, match="edges of bins"):
        MassDensity.free(Exponential(), WINDOW).probabilities(edges, [0.0])


def test_wrong_counts():
    density = MassDensity.free(Exponential(), WINDOW)
    with pytest.raises(OptionError, match="cannot draw -1"):
        density.sample(-1, [0.0], rng=np.random.default_rng(1))
    with pytest.raises(OptionError, match="0 nodes an interval"):
        density.nodes(0)


def test_nodes_integrate_polynomials_exactly():
    mass, weights = MassDensity.free(Exponential(), ((0.0, 1.0), (2.0, 4.0))).nodes(5)
    assert mass.shape == weights.shape == (10,)
    assert weights @ mass**9 == pytest.approx((1 + 4.0**10 - 2.0**10) / 10, rel=1e-13)


def test_chebyshev_that_is_negative_between_events():
    """1 + 1.2 T_2 is below zero in the middle, where no event is: still not a density."""
    density = MassDensity.free(Chebyshev(2, (0.0, 1.0)), ((0.0, 1.0),))
    assert np.isneginf(density.log_prob([0.01, 0.99], [0.0, 1.2])).all()
    assert np.isfinite(density.log_prob([0.01, 0.99], [0.0, 0.9])).all()


def test_arrays_cannot_be_changed_from_outside():
    density = MassDensity.fixed(Gaussian(), WINDOW, [3500.0, 30.0])
    prepared = density.prepare(MASS)
    for array in (density.offset, density.matrix, prepared.log_prob(())):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0.0


def test_derivatives_do_not_change_what_is_cached():
    prepared = MassDensity.free(Dijet(), WINDOW).prepare(MASS)
    first = prepared.derivatives([10.0, 5.0, 0.1])
    kept = [array.copy() for array in first]
    for array in first:
        array[...] = 0.0
    for again, array in zip(prepared.derivatives([10.0, 5.0, 0.1]), kept, strict=True):
        np.testing.assert_array_equal(again, array)
