"""Fits whose results are known in closed form, to 1e-6 of the value or of its error."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from gbistat.data.events import Events
from gbistat.fit.minimize import fit
from gbistat.fit.result import FitOptions, FitResult
from gbistat.likelihood.components import Component, LogArray, MassFactor, Yield
from gbistat.likelihood.constraints import LogNormalConstraint, NormalConstraint, PoissonConstraint
from gbistat.likelihood.model import Model
from gbistat.likelihood.nll import NLL, ExtendedUnbinnedNLL, UnbinnedNLL
from gbistat.likelihood.parameters import Parameter
from gbistat.terms.density import MassDensity
from gbistat.terms.protocols import Shape
from gbistat.terms.shapes.exponential import Exponential
from gbistat.terms.shapes.gaussian import Gaussian

Counting = Callable[..., ExtendedUnbinnedNLL]


def fit_shape(shape: Shape, domain: tuple[float, float], mass: np.ndarray, **start: float) -> FitResult:
    density = MassDensity.free(shape, (domain,))
    ranges = {p.name: (p.low, p.high) for p in shape.parameters}
    model = Model(
        components=(Component("signal", Yield({"n": 1.0}), (MassFactor(density),)),),
        parameters=(
            Parameter("n", 10.0, 0.0),
            *(Parameter(name, value, *ranges[name]) for name, value in start.items()),
        ),
        poi="n",
    )
    return fit(ExtendedUnbinnedNLL(model, Events(mass=mass))).raise_if_invalid()


@pytest.mark.parametrize("size", [5, 100, 20_000])
def test_an_extended_fit_returns_the_number_of_events(rng: np.random.Generator, size: int) -> None:
    log_ratio = np.concatenate([rng.normal(2.0, 1.0, size // 5 + 2), rng.normal(-2.0, 1.5, size)])
    result = fit(ExtendedUnbinnedNLL.from_log_ratio(log_ratio, nominal=3.0)).raise_if_invalid()
    assert 3.0 * result.value("mu") + result.value("n_bkg") == pytest.approx(log_ratio.size, rel=1e-9)


def test_an_extended_fit_returns_the_sum_of_weights(rng: np.random.Generator) -> None:
    weights = rng.uniform(0.2, 2.0, 300)
    result = fit(ExtendedUnbinnedNLL.from_log_ratio(rng.normal(-0.5, 1.5, 300), weights=weights)).raise_if_invalid()
    assert result.value("mu") + result.value("n_bkg") == pytest.approx(weights.sum(), rel=1e-9)


def test_with_floating_shapes_too(bump: Counting, bump_masses: Callable[..., np.ndarray]) -> None:
    mass = bump_masses(80, 400, 150.0)
    result = fit(bump(mass)).raise_if_invalid()
    assert result.value("mu") + result.value("n_bkg") == pytest.approx(480.0, rel=1e-9)


def test_rate_of_an_exponential_is_the_inverse_of_the_mean(rng: np.random.Generator) -> None:
    mass = rng.exponential(2.5, 500)
    result = fit_shape(Exponential(), (0.0, 400.0), mass, rate=1.0)
    assert result.value("rate") == pytest.approx(1.0 / mass.mean(), rel=1e-6)
    assert result.error("rate") == pytest.approx(1.0 / mass.mean() / math.sqrt(500), rel=1e-6)
    assert result.value("n") == pytest.approx(500.0, rel=1e-6)
    assert result.error("n") == pytest.approx(math.sqrt(500.0), rel=1e-6)
    assert result.correlation("n", "rate") == pytest.approx(0.0, abs=1e-9)


def test_gaussian_has_the_mean_and_the_spread_of_the_sample(rng: np.random.Generator) -> None:
    mass = rng.normal(125.0, 1.7, 800)
    result = fit_shape(Gaussian(), (50.0, 200.0), mass, mean=124.0, sigma=2.5)
    spread = mass.std()
    assert result.value("mean") == pytest.approx(mass.mean(), abs=1e-6 * spread)
    assert result.value("sigma") == pytest.approx(spread, rel=1e-6)
    assert result.error("mean") == pytest.approx(spread / math.sqrt(800), rel=1e-6)
    assert result.error("sigma") == pytest.approx(spread / math.sqrt(1600), rel=1e-6)


def test_signal_plus_known_background(counting: Counting) -> None:
    for n in (3.0, 40.0, 250.0):
        result = fit(counting(n, 2.0, 30.0)).raise_if_invalid()
        assert result.value("mu") == pytest.approx((n - 30.0) / 2.0, rel=1e-6)
        assert result.error("mu") == pytest.approx(math.sqrt(n) / 2.0, rel=1e-6)
        assert result.nll == pytest.approx(n - n * math.log(n), rel=1e-9)


@pytest.mark.parametrize(("n_on", "n_off", "tau"), [(25.0, 40.0, 4.0), (4.0, 5.0, 0.5), (190.0, 1000.0, 5.0)])
def test_on_and_off_counts(counting: Counting, n_on: float, n_off: float, tau: float) -> None:
    result = fit(counting(n_on, 1.0, None, PoissonConstraint("b", n_off, tau))).raise_if_invalid()
    assert result.value("b") == pytest.approx(n_off / tau, rel=1e-6)
    assert result.value("mu") == pytest.approx(n_on - n_off / tau, rel=1e-6)
    assert result.error("mu") == pytest.approx(math.sqrt(n_on + n_off / tau**2), rel=1e-6)
    held = fit(counting(n_on, 1.0, None, PoissonConstraint("b", n_off, tau)), fixed={"mu": 0.0}).raise_if_invalid()
    assert held.value("b") == pytest.approx((n_on + n_off) / (1.0 + tau), rel=1e-6)
    assert held.error("mu") == 0.0
    assert held.fixed == ("mu",)


def test_measurements_are_averaged() -> None:
    nll = NLL([Parameter("a", 0.0)], [], [NormalConstraint("a", 3.0, 1.0), NormalConstraint("a", 6.0, 0.5)], poi="a")
    result = fit(nll).raise_if_invalid()
    assert result.value("a") == pytest.approx((3.0 + 4.0 * 6.0) / 5.0, rel=1e-9)
    assert result.error("a") == pytest.approx(math.sqrt(1.0 / 5.0), rel=1e-9)


def test_a_correlated_measurement_pulls_the_other_parameter() -> None:
    covariance = np.array([[4.0, 1.2], [1.2, 1.0]])
    nll = NLL(
        [Parameter("a", 0.0), Parameter("b", 0.0)], [], [NormalConstraint(("a", "b"), (1.0, 2.0), covariance)], poi="a"
    )
    free = fit(nll).raise_if_invalid()
    np.testing.assert_allclose(free.covariance, covariance, rtol=1e-9)
    assert free.correlation("a", "b") == pytest.approx(0.6)
    held = fit(nll, fixed={"b": 3.5}).raise_if_invalid()
    assert held.value("a") == pytest.approx(1.0 + 1.2 * 1.5, rel=1e-9)
    assert held.error("a") == pytest.approx(math.sqrt(4.0 - 1.2**2), rel=1e-9)
    assert held.nll == pytest.approx(0.5 * 1.5**2, rel=1e-9)


def test_log_normal_measurement() -> None:
    nll = NLL([Parameter("a", 9.0, 0.0)], [], [LogNormalConstraint("a", 2.0, 0.3)], poi="a")
    result = fit(nll).raise_if_invalid()
    assert result.value("a") == pytest.approx(2.0, rel=1e-6)
    assert result.error("a") == pytest.approx(0.6, rel=1e-6)


def test_fraction_is_the_ratio_of_fitted_yields(rng: np.random.Generator) -> None:
    """Without constraints the extended likelihood factorises into the count and the shape."""
    log_ratio = np.concatenate([rng.normal(2.0, 1.0, 40), rng.normal(-2.0, 1.5, 200)])
    extended = ExtendedUnbinnedNLL.from_log_ratio(log_ratio)
    both = fit(extended).raise_if_invalid()
    shape = fit(UnbinnedNLL(extended.model, Events(mass=np.zeros(240)))).raise_if_invalid()
    assert shape.value("f") == pytest.approx(both.value("mu") / 240.0, rel=1e-6)
    # Var(mu) = N^2 Var(f) + f^2 N
    variance = 240.0**2 * shape.error("f") ** 2 + shape.value("f") ** 2 * 240.0
    assert both.error("mu") ** 2 == pytest.approx(variance, rel=1e-6)


def test_two_categories_with_one_signal_strength() -> None:
    """Sum of likelihoods with n_i = s_i mu + b_i: the stationary point of the summed score."""
    here = (LogArray(np.zeros(1)),)

    def category(n: float, s: float, b: float) -> ExtendedUnbinnedNLL:
        model = Model(
            (Component("signal", Yield({"mu": s}), here), Component("background", Yield(constant=b), here)),
            (Parameter("mu", 0.0),),
        )
        return ExtendedUnbinnedNLL(model, Events(mass=[0.0], weights=[n]))

    result = fit(category(12.0, 5.0, 6.0) + category(100.0, 8.0, 95.0)).raise_if_invalid()
    mu = result.value("mu")
    score = 13.0 - 12.0 * 5.0 / (5.0 * mu + 6.0) - 100.0 * 8.0 / (8.0 * mu + 95.0)
    assert score == pytest.approx(0.0, abs=1e-6)
    information = 12.0 * 25.0 / (5.0 * mu + 6.0) ** 2 + 100.0 * 64.0 / (8.0 * mu + 95.0) ** 2
    assert result.error("mu") == pytest.approx(1.0 / math.sqrt(information), rel=1e-6)


@pytest.mark.parametrize("strategy", [0, 1])
def test_migrad_returns_the_same(
    rng: np.random.Generator, bump: Counting, bump_masses: Callable[..., np.ndarray], strategy: int
) -> None:
    options = FitOptions(minimizer="migrad", strategy=strategy)
    for nll in (
        ExtendedUnbinnedNLL.from_log_ratio(np.concatenate([rng.normal(2.0, 1.0, 30), rng.normal(-2.0, 1.5, 200)])),
        bump(bump_masses(80, 400, 152.0)),
    ):
        newton, migrad = fit(nll), fit(nll, options=options)
        assert migrad.valid
        np.testing.assert_allclose((migrad.values - newton.values) / newton.errors, 0.0, atol=1e-3)
        np.testing.assert_allclose(migrad.errors, newton.errors, rtol=1e-3)
        assert migrad.nll == pytest.approx(newton.nll, abs=1e-6)


def test_result_as_plain_numbers(counting: Counting) -> None:
    result = fit(counting(25.0, 1.0, None, PoissonConstraint("b", 40.0, 4.0))).raise_if_invalid()
    assert result.as_dict() == {"mu": result.value("mu"), "b": result.value("b")}
    plain = result.to_dict()
    assert plain["parameters"]["mu"]["value"] == pytest.approx(15.0)
    assert plain["parameters"]["mu"]["error"] == pytest.approx(math.sqrt(27.5))
    assert plain["valid"] is True
    assert plain["covariance"][0][1] == pytest.approx(-10.0 / 4.0)
