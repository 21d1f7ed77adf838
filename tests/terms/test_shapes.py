"""Every shape against the same invariants; a new shape is one more row of CASES."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from math import comb

import numpy as np
import pytest
from jacobi import jacobi
from scipy import integrate, stats

from gbistat.errors import EventsError, ModelError, ParameterError
from gbistat.terms.density import MassDensity
from gbistat.terms.protocols import ExponentialFamily, LinearFamily, Shape
from gbistat.terms.shapes.registry import SHAPES, make_shape

WINDOW = ((3300.0, 3700.0),)
SIDEBANDS = ((2800.0, 3300.0), (3700.0, 7000.0))
RANGE = (2800.0, 7000.0)
EDGES = (3300.0, 3350.0, 3500.0, 3525.0, 3700.0)


def crystal_ball(m, mean, sigma, alpha_low, n_low, alpha_high, n_high):
    """The published form, with A = (n/alpha)^n exp(-alpha^2/2) and B = n/alpha - alpha."""
    t = (m - mean) / sigma
    if t < -alpha_low:
        return (
            (n_low / alpha_low) ** n_low * np.exp(-(alpha_low**2) / 2) * (n_low / alpha_low - alpha_low - t) ** -n_low
        )
    if t > alpha_high:
        scale = (n_high / alpha_high) ** n_high * np.exp(-(alpha_high**2) / 2)
        return scale * (n_high / alpha_high - alpha_high + t) ** -n_high
    return np.exp(-t * t / 2)


def dijet(m, p1, p2, p3=0.0, p4=0.0):
    z = m / 13000
    return (1 - z) ** p1 * z ** -(p2 + p3 * np.log(z) + p4 * np.log(z) ** 2)


def bernstein(m, *c):
    t, d = (m - RANGE[0]) / (RANGE[1] - RANGE[0]), len(c)
    return sum(comb(d, i) * t**i * (1 - t) ** (d - i) * a for i, a in enumerate((1.0, *c)))


def chebyshev(m, *a):
    angle = np.arccos(2 * (m - RANGE[0]) / (RANGE[1] - RANGE[0]) - 1)
    return 1 + sum(c * np.cos((i + 1) * angle) for i, c in enumerate(a))


def histogram(m):
    return np.select([m < edge for edge in EDGES[1:]], [3 / 50, 10 / 150, 0.0, 5 / 175])


@dataclass(frozen=True)
class Case:
    """A shape, where it is normalised, its parameters, and its formula in plain numpy, not normalised."""

    name: str
    options: dict
    domain: tuple
    theta: tuple
    formula: Callable

    @property
    def shape(self) -> Shape:
        return make_shape(self.name, **self.options)

    @property
    def density(self) -> MassDensity:
        return MassDensity.free(self.shape, self.domain)

    @property
    def values(self):
        return np.array(self.theta, dtype=float)

    def masses(self, n=31):
        """Masses over the domain, off every kink."""
        per_piece = [np.linspace(low, high, n + 2)[1:-1] + 0.123 for low, high in self.domain]
        return np.concatenate(per_piece)


def gaussian(m, mean, sigma):
    return np.exp(-0.5 * ((m - mean) / sigma) ** 2)


CASES = {
    "gaussian": Case("gaussian", {}, WINDOW, (3480.0, 45.0), gaussian),
    "gaussian-sidebands": Case("gaussian", {}, SIDEBANDS, (3650.0, 150.0), gaussian),
    "crystal-ball": Case("double_crystal_ball", {}, WINDOW, (3510.0, 40.0, 1.1, 2.5, 1.6, 6.0), crystal_ball),
    "crystal-ball-tails": Case(
        "double_crystal_ball", {}, ((2000.0, 6000.0),), (3510.0, 100.0, 0.6, 0.8, 0.9, 1.7), crystal_ball
    ),
    "dijet": Case("dijet", {}, SIDEBANDS, (10.0, 5.0, 0.2), dijet),
    "dijet-2": Case("dijet", {"n_parameters": 2}, WINDOW, (8.0, 6.0), dijet),
    "dijet-4": Case("dijet", {"n_parameters": 4}, ((1500.0, 7000.0),), (9.0, 5.0, 0.1, -0.02), dijet),
    "exponential": Case("exponential", {}, SIDEBANDS, (0.002,), lambda m, rate: np.exp(-rate * m)),
    "exponential-rising": Case("exponential", {}, WINDOW, (-0.01,), lambda m, rate: np.exp(-rate * m)),
    "power-law": Case("power_law", {}, SIDEBANDS, (6.5,), lambda m, exponent: m**-exponent),
    "bernstein": Case("bernstein", {"degree": 4, "support": RANGE}, SIDEBANDS, (0.5, 0.3, 0.1, 0.05), bernstein),
    "chebyshev": Case("chebyshev", {"degree": 3, "support": RANGE}, WINDOW, (-0.7, 0.2, -0.05), chebyshev),
    "histogram": Case("histogram", {"edges": EDGES, "contents": (3.0, 10.0, 0.0, 5.0)}, WINDOW, (), histogram),
}


@pytest.fixture(params=list(CASES), ids=list(CASES))
def case(request):
    return CASES[request.param]


def quad(case, low, high):
    density, values = case.density, case.values
    points = [b for b in case.shape.breakpoints(values) if low < b < high]
    prepared = [low, *points, high]
    return sum(
        integrate.quad(lambda m: np.exp(density.log_prob([m], values)[0]), a, b, epsabs=1e-13, epsrel=1e-11, limit=200)[
            0
        ]
        for a, b in itertools.pairwise(prepared)
    )


def derivative(function, theta):
    """jacobi with steps of a thousandth of each parameter: its own begin far outside of a narrow peak."""
    scale = 1e-3 * np.where(theta == 0, 1.0, np.abs(theta))
    return jacobi(lambda x: function(theta + scale * x), np.zeros_like(theta))[0] / scale


def test_every_shape_has_a_case():
    assert {case.name for case in CASES.values()} == set(SHAPES)


def test_follows_protocol(case):
    shape = case.shape
    assert isinstance(shape, Shape)
    assert shape.name == case.name
    assert len(shape.parameters) == len(case.theta)
    assert shape.support[0] <= case.domain[0][0] < case.domain[-1][1] <= shape.support[1]
    assert isinstance(shape, ExponentialFamily) == (case.name in {"dijet", "exponential", "power_law"})
    assert isinstance(shape, LinearFamily) == (case.name in {"bernstein", "chebyshev"})


def test_log_shape_is_the_formula(case):
    mass = case.masses()
    expected = np.array([case.formula(m, *case.theta) for m in mass])
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(case.shape.log_shape(mass, case.values), np.log(expected), rtol=1e-11, atol=1e-11)


def test_integrates_to_one(case):
    assert sum(quad(case, low, high) for low, high in case.domain) == pytest.approx(1.0, abs=1e-9)


def test_log_prob_is_the_log_of_the_normalised_formula(case):
    total = sum(
        integrate.quad(case.formula, a, b, args=case.theta, epsabs=0, epsrel=1e-12, limit=200)[0]
        for low, high in case.domain
        for a, b in _split(case, low, high)
    )
    mass = case.masses()
    prob = np.array([case.formula(m, *case.theta) for m in mass]) / total
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(case.density.log_prob(mass, case.values), np.log(prob), rtol=0, atol=1e-9)


def _split(case, low, high):
    cuts = [low, *(b for b in case.shape.breakpoints(case.values) if low < b < high), high]
    return list(itertools.pairwise(cuts))


def test_shape_derivatives_against_jacobi(case):
    if not case.theta:
        pytest.skip("no parameters")
    shape, mass, theta = case.shape, case.masses(), case.values
    u, gradient, hessian = shape.derivatives(mass, theta)
    p = theta.size
    np.testing.assert_allclose(u, shape.log_shape(mass, theta), rtol=1e-13, atol=1e-13)
    numeric = derivative(lambda t: shape.log_shape(mass, t), theta).T
    _assert_close(gradient, numeric)
    numeric = derivative(lambda t: shape.derivatives(mass, t)[1].ravel(), theta).reshape(p, mass.size, p)
    _assert_close(np.broadcast_to(hessian, (p, p, mass.size)), numeric.transpose(2, 0, 1))


def test_density_derivatives_against_jacobi(case):
    if not case.theta:
        pytest.skip("no parameters")
    density, mass, values = case.density, case.masses(), case.values
    log_p, gradient, hessian = density.derivatives(mass, values)
    k = values.size
    np.testing.assert_allclose(log_p, density.log_prob(mass, values), rtol=1e-13)
    numeric = derivative(lambda v: density.log_prob(mass, v), values).T
    _assert_close(gradient, numeric)
    numeric = derivative(lambda v: density.derivatives(mass, v)[1].ravel(), values).reshape(k, mass.size, k)
    _assert_close(np.broadcast_to(hessian, (k, k, mass.size)), numeric.transpose(2, 0, 1))


def _assert_close(closed_form, numeric):
    """1e-6 of the largest derivative in the same pair of parameters."""
    scale = np.max(np.abs(numeric), axis=-1, keepdims=True)
    np.testing.assert_allclose(closed_form, numeric, rtol=0, atol=1e-6 * np.max(scale))
    assert np.all(np.abs(closed_form - numeric) <= 1e-6 * scale + 1e-9)


def test_score_and_information_identities(case):
    """E[score] = 0 and E[Hessian] = -E[score score^T]: they tie the derivatives of ln Z to those of u."""
    if not case.theta:
        pytest.skip("no parameters")
    density, values = case.density, case.values
    pieces = tuple(piece for low, high in case.domain for piece in _split(case, low, high))
    mass, weights = density.on(pieces).nodes(100)
    log_p, gradient, hessian = density.derivatives(mass, values)
    probability = np.exp(log_p) * weights
    information = (gradient * probability) @ gradient.T
    scale = np.sqrt(np.diag(information))
    np.testing.assert_allclose(gradient @ probability / scale, 0, atol=1e-8)
    mean_hessian = np.broadcast_to(hessian, (*information.shape, mass.size)) @ probability
    np.testing.assert_allclose((mean_hessian + information) / np.outer(scale, scale), 0, atol=1e-8)


def test_probabilities_of_bins(case):
    low, high = case.domain[0][0], case.domain[-1][1]
    edges = np.concatenate([[low - 100], np.linspace(low, high, 8), [high + 50]])
    probabilities = case.density.probabilities(edges, case.values)
    assert probabilities.sum() == pytest.approx(1.0, abs=1e-12)
    assert probabilities[0] == probabilities[-1] == 0.0
    pieces = [[(max(a, low), min(b, high)) for low, high in case.domain if min(b, high) > max(a, low)]
              for a, b in itertools.pairwise(edges)]  # fmt: skip
    expected = [sum(quad(case, a, b) for a, b in piece) for piece in pieces]
    np.testing.assert_allclose(probabilities, expected, rtol=1e-9, atol=1e-11)


def test_probabilities_of_bins_that_leave_out_a_part(case):
    low, high = case.domain[0]
    edges = np.linspace(low + 20, high - 30, 4)
    whole = case.density.probabilities([low - 1, *edges, 8000.0], case.values)
    np.testing.assert_allclose(case.density.probabilities(edges, case.values), whole[1:-1], rtol=1e-12, atol=1e-15)


def test_samples_follow_the_density(case):
    """Kolmogorov-Smirnov, p > 1e-4: a false alarm once in 10^4 for each case, and the seed is fixed."""
    density, values = case.density, case.values
    masses = density.sample(20_000, values, rng=np.random.default_rng(20250601))
    assert masses.shape == (20_000,)
    assert np.isfinite(density.log_prob(masses, values)).all()
    edges = np.linspace(case.domain[0][0], case.domain[-1][1], 4001)
    cumulative = np.concatenate([[0.0], np.cumsum(density.probabilities(edges, values))])
    result = stats.kstest(masses, lambda m: np.interp(m, edges, cumulative))
    assert result.pvalue > 1e-4


def test_samples_are_reproducible(case):
    first, second = (case.density.sample(10, case.values, rng=np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert case.density.sample(0, case.values, rng=np.random.default_rng(3)).shape == (0,)


def test_outside_the_domain(case):
    density, values = case.density, case.values
    outside = [case.domain[0][0] - 1e-9, case.domain[-1][1], -5.0, 0.0, 1e9, np.inf]
    outside += [] if len(case.domain) == 1 else [case.domain[0][1], 3500.0]
    mass = np.array([case.domain[0][0] + 1.0, *outside])
    log_p, gradient, hessian = density.derivatives(mass, values)
    np.testing.assert_array_equal(np.isneginf(log_p), [False, *[True] * len(outside)])
    np.testing.assert_array_equal(np.isneginf(density.log_prob(mass, values)), np.isneginf(log_p))
    assert not gradient[:, 1:].any()
    assert hessian.shape[2] == 1 or not hessian[:, :, 1:].any()


def test_no_events(case):
    k = len(case.theta)
    log_p, gradient, hessian = case.density.derivatives([], case.values)
    assert log_p.shape == (0,)
    assert gradient.shape == (k, 0)
    assert hessian.shape[:2] == (k, k)


def test_prepared_density_is_the_density(case):
    mass = np.append(case.masses(), 3.0)
    prepared = case.density.prepare(mass)
    assert len(prepared) == mass.size
    for shift in (0.0, 0.01):
        values = case.values * (1 + shift)
        for kept, anew in zip(prepared.derivatives(values), case.density.derivatives(mass, values), strict=True):
            np.testing.assert_array_equal(kept, anew)
        np.testing.assert_array_equal(prepared.log_prob(values), case.density.log_prob(mass, values))
    again = prepared.log_prob(case.values)
    np.testing.assert_array_equal(again, case.density.log_prob(mass, case.values))


def test_fixed_is_free_at_the_same_parameters(case):
    fixed = MassDensity.fixed(case.shape, case.domain, case.theta)
    mass = case.masses()
    np.testing.assert_allclose(fixed.log_prob(mass, ()), case.density.log_prob(mass, case.values), rtol=1e-14)
    assert [a.shape for a in fixed.derivatives(mass, ())] == [(mass.size,), (0, mass.size), (0, 0, 1)]


def test_on_another_domain(case):
    low, high = case.domain[0]
    part = case.density.on(((low, low + 40.0),))
    mass = np.linspace(low + 1, low + 39, 7)
    expected = case.density.log_prob(mass, case.values) - np.log(
        case.density.probabilities([low, low + 40.0], case.values)
    )
    np.testing.assert_allclose(part.log_prob(mass, case.values), expected, rtol=0, atol=1e-10)
    assert high > low + 40.0


def test_log_integral_and_mean_score(case):
    density, values = case.density, case.values
    interval = (3400.0, 3600.0)
    expected = sum(integrate.quad(case.formula, a, b, args=case.theta)[0] for a, b in _split(case, *interval))
    assert density.log_integral(interval, values) == pytest.approx(np.log(expected), abs=1e-9)
    if case.theta:
        numeric = derivative(lambda v: density.log_integral(interval, v), values)
        np.testing.assert_allclose(density.mean_score(interval, values), numeric, rtol=1e-6, atol=1e-9)
        moments = density.normalisation(values)
        numeric = derivative(lambda v: density.normalisation(v).gradient, values)
        np.testing.assert_allclose(moments.hessian, numeric, rtol=1e-6, atol=1e-6 * np.abs(numeric).max())


def test_wrong_shapes(case):
    density = case.density
    with pytest.raises(EventsError, match="one-dimensional"):
        density.log_prob(np.zeros((2, 2)), case.values)
    with pytest.raises(EventsError, match="one-dimensional"):
        density.prepare(3500.0)
    with pytest.raises(EventsError, match="1 of 2 masses are NaN"):
        density.prepare([3500.0, np.nan])
    with pytest.raises(ParameterError, match=r"values have shape \(9,\)"):
        density.log_prob([3500.0], np.ones(9))
    if case.theta:
        with pytest.raises(ParameterError, match="= nan: parameters of"):
            density.log_prob([3500.0], np.full(len(case.theta), np.nan))


@pytest.mark.parametrize(
    ("name", "theta", "reason"),
    [
        ("gaussian", (3500.0, 0.0), "sigma must be within 0 and inf"),
        ("gaussian", (3500.0, -3.0), "sigma must be within 0 and inf"),
        ("crystal-ball", (3500.0, 30.0, 1.0, 2.0, -1.0, 2.0), "alpha_high must be within 0 and inf"),
        ("crystal-ball", (3500.0, 30.0, 1.0, 0.0, 1.0, 2.0), "n_low must be within 0 and inf"),
        ("bernstein", (-9.0, 0.1, 0.1, 0.1), "c1 must be within 0 and inf"),
        ("chebyshev", (-2.0, 0.0, 0.0), "zero, negative or not integrable somewhere there"),
    ],
)
def test_parameters_that_give_no_density(name, theta, reason):
    domain = (RANGE,) if name == "chebyshev" else CASES[name].domain
    density = CASES[name].density.on(domain)
    mass = np.array([2900.0, 3400.0, 3900.0])
    log_p, gradient, hessian = density.derivatives(mass, theta)
    assert np.isneginf(log_p).all()
    assert np.isneginf(density.log_prob(mass, theta)).all()
    assert np.isnan(gradient).all()
    assert np.isnan(hessian).all()
    assert density.normalisation(theta).log_integral == -np.inf
    for act in (
        lambda: density.log_integral(domain[0], theta),
        lambda: density.mean_score(domain[0], theta),
        lambda: density.probabilities([3300.0, 3400.0], theta),
        lambda: density.sample(3, theta, rng=np.random.default_rng(1)),
        lambda: MassDensity.fixed(density.shape, domain, theta),
    ):
        with pytest.raises(ParameterError, match=reason):
            act()


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("gausian", {}, "no shape 'gausian'; nearest names: gaussian"),
        ("dijet", {"n_parameter": 3}, "no option 'n_parameter'; nearest names: n_parameters"),
        ("gaussian", {"mean": 3500}, "no option 'mean'; it has no options"),
        ("chebyshev", {"degree": 3}, "needs the option.* support"),
        ("dijet", {"n_parameters": 1}, "n_parameters = 1: choose from 2 to 5"),
        ("dijet", {"sqrt_s": -13}, "sqrt_s = -13: give a positive energy"),
        ("dijet", {"sqrt_s": "13 TeV"}, "sqrt_s = '13 TeV': give a positive energy"),
        ("bernstein", {"degree": 0, "support": RANGE}, "degree = 0"),
        ("bernstein", {"degree": 2.5, "support": RANGE}, "degree = 2.5"),
        ("chebyshev", {"degree": "2", "support": RANGE}, "degree = '2'"),
        ("chebyshev", {"degree": 2, "support": (3.0, 1.0)}, "low must be below high"),
        ("chebyshev", {"degree": 2, "support": 7000}, "give the interval of mass"),
        ("histogram", {"edges": [1, 2, 3], "contents": [1]}, "3 edges and 1 contents"),
        ("histogram", {"edges": [1, 3, 2], "contents": [1, 1]}, "do not increase"),
        ("histogram", {"edges": [1, 2, 3], "contents": [1, -1]}, "none may be negative"),
        ("histogram", {"edges": [1, 2, 3], "contents": [0, 0]}, "one must be positive"),
        ("histogram", {"edges": [1, 2, 3], "contents": ["a", 0]}, "not numbers"),
        ("histogram", {"edges": [1, 2, np.inf], "contents": [1, 0]}, "finite"),
    ],
)
def test_wrong_options(name, options, match):
    with pytest.raises(ModelError, match=match):
        make_shape(name, **options)


def test_units_of_parameters():
    """In TeV the same density has parameters that scale with the power of mass each carries."""
    for case in CASES.values():
        if "support" in case.options or "edges" in case.options:
            continue
        options = {"sqrt_s": 13.0, **case.options} if case.name == "dijet" else case.options
        shape = make_shape(case.name, **options)
        domain = tuple((low / 1000, high / 1000) for low, high in case.domain)
        theta = [t * 1000.0**-p.mass_power for t, p in zip(case.theta, shape.parameters, strict=True)]
        mass = case.masses()
        in_tev = MassDensity.free(shape, domain).log_prob(mass / 1000, theta)
        np.testing.assert_allclose(in_tev - np.log(1000), case.density.log_prob(mass, case.values), atol=1e-9)
        assert all(p.is_mass == (p.mass_power == 1) for p in shape.parameters)
