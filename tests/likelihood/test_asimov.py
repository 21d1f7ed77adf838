"""Asimov sets: fits of them return the parameters they were made for."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy.stats import norm

from gbistat.data.events import Events
from gbistat.data.window import MassWindow
from gbistat.errors import EventsError, ModelError
from gbistat.fit.minimize import fit
from gbistat.inference.limits import upper_limit
from gbistat.likelihood.components import Component, LogArray, LogRatio, MassFactor, Yield
from gbistat.likelihood.constraints import NormalConstraint
from gbistat.likelihood.mixture import Mixture
from gbistat.likelihood.model import Model
from gbistat.likelihood.nll import NLL, ExtendedUnbinnedNLL, UnbinnedNLL
from gbistat.likelihood.parameters import Parameter
from gbistat.likelihood.reference import (
    Reference,
    asimov_nll,
    reference_from_data,
    reference_from_pool,
    reference_from_quadrature,
)
from gbistat.terms.density import MassDensity
from gbistat.terms.shapes.exponential import Exponential
from gbistat.terms.shapes.gaussian import Gaussian

WINDOW = MassWindow(100.0, 200.0)


class ShiftedNormal:
    """ln of N(x; shift, 1) / N(x; 0, 1): a feature that a network would have learned."""

    def __init__(self, shift: float) -> None:
        self.shift = shift

    def log_ratio(self, events: Events) -> np.ndarray:
        return self.shift * events.feature("x") - 0.5 * self.shift**2


def networked(shift: float = 1.0) -> Model:
    """Gaussian peak times a feature ratio on an exponential background."""
    peak = MassDensity.fixed(Gaussian(), (WINDOW.edges,), (150.0, 10.0))
    falling = MassDensity.fixed(Exponential(), (WINDOW.edges,), (0.01,))
    return Model(
        components=(
            Component("signal", Yield({"mu": 1.0}), (MassFactor(peak), LogRatio(ShiftedNormal(shift)))),
            Component("background", Yield({"n_bkg": 1.0}), (MassFactor(falling),)),
        ),
        parameters=(Parameter("mu", 0.0), Parameter("n_bkg", 500.0, 0.0)),
        window=WINDOW,
    )


def background_events(count: int, rng: np.random.Generator) -> Events:
    falling = MassDensity.fixed(Exponential(), (WINDOW.edges,), (0.01,))
    return Events(
        mass=falling.sample(count, (), rng=rng), features=rng.standard_normal((count, 1)), names=["x"], weights=None
    )


def grid_reference(model: Model) -> Reference:
    """Quadrature over mass and feature: what a pool of infinite size would be."""
    mass, mass_weight = model.components[1].factors[0].density.nodes(50)
    x, x_weight = np.polynomial.legendre.leggauss(50)
    x, x_weight = 7.0 * x, 7.0 * x_weight
    events = Events(mass=np.repeat(mass, x.size), features=np.tile(x, mass.size)[:, None], names=["x"])
    measure = np.repeat(mass_weight, x.size) * np.tile(x_weight * norm.pdf(x), mass.size)
    mixture = Mixture.of(model, events, np.array([0.0, 500.0]))
    return Reference(mixture, measure, "quadrature", math.inf, 1.0)


def assert_returns(nll: NLL, references: tuple[Reference, ...], theta: np.ndarray, start: np.ndarray) -> None:
    """Fit the Asimov set from elsewhere: the true parameters come back to 1e-6 of their errors."""
    result = fit(asimov_nll(nll, references, theta), start=start)
    assert result.valid, result.message
    np.testing.assert_allclose((result.values - theta) / result.errors, 0.0, atol=1e-6)


@pytest.mark.parametrize(
    "theta", [[60.0, 140.0, 6.0, 400.0, 0.02], [15.0, 120.0, 9.0, 1000.0, -0.01], [-12.0, 170.0, 8.0, 300.0, 0.0]]
)
def test_quadrature_returns_yields_and_shapes(resonance: Model, spectrum: Events, theta: list[float]) -> None:
    nll = ExtendedUnbinnedNLL(resonance, spectrum)
    reference = reference_from_quadrature(resonance)
    truth = np.array(theta)
    assert reference.kind == "quadrature"
    assert math.isinf(reference.effective_size)
    assert reference.weights(truth).sum() == pytest.approx(truth[0] + truth[3], rel=1e-10)
    assert_returns(nll, (reference,), truth, truth * [0.8, 1.01, 1.1, 1.2, 1.05])


def test_quadrature_of_a_peak_far_narrower_than_the_window(rng: np.random.Generator) -> None:
    peak = MassDensity.fixed(Gaussian(), (WINDOW.edges,), (151.3, 0.05))
    falling = MassDensity.fixed(Exponential(), (WINDOW.edges,), (0.01,))
    model = Model(
        components=(
            Component("signal", Yield({"mu": 1.0}), (MassFactor(peak),)),
            Component("background", Yield({"n_bkg": 1.0}), (MassFactor(falling),)),
        ),
        parameters=(Parameter("mu", 0.0), Parameter("n_bkg", 500.0, 0.0)),
        window=WINDOW,
    )
    nll = ExtendedUnbinnedNLL(model, Events(mass=falling.sample(500, (), rng=rng)))
    assert_returns(nll, (reference_from_quadrature(model),), np.array([30.0, 500.0]), np.array([10.0, 550.0]))


def test_quadrature_with_constraints_moves_the_auxiliary_values(resonance: Model, spectrum: Events) -> None:
    model = resonance.with_constraint(NormalConstraint("n_bkg", 500.0, 5.0))
    nll = ExtendedUnbinnedNLL(model, spectrum)
    truth = np.array([60.0, 140.0, 6.0, 400.0, 0.02])
    reference = reference_from_quadrature(model)
    assert_returns(nll, (reference,), truth, truth * 1.05)
    (constraint,) = asimov_nll(nll, (reference,), truth).constraints
    assert constraint.observed.tolist() == [400.0]


def test_quadrature_of_the_shape_only_form(resonance: Model, spectrum: Events) -> None:
    nll = UnbinnedNLL(resonance, spectrum)
    truth = np.array([0.15, 140.0, 6.0, 0.02])
    assert_returns(nll, (reference_from_quadrature(nll.model),), truth, truth * 1.05)


def test_quadrature_needs_densities_of_the_mass() -> None:
    with pytest.raises(ModelError, match=r"quadrature needs densities of the mass alone; give reference events"):
        reference_from_quadrature(networked())


def test_data_at_the_estimate_are_their_own_asimov_set(resonance: Model, spectrum: Events) -> None:
    nll = ExtendedUnbinnedNLL(resonance, spectrum)
    best = fit(nll).raise_if_invalid()
    reference = reference_from_data(nll, best.values)
    np.testing.assert_allclose(reference.weights(best.values), 1.0, rtol=1e-5)
    assert_returns(nll, (reference,), best.values, best.values * 1.02)


@pytest.mark.parametrize("constrained", [False, True])
def test_data_return_other_yields(rng: np.random.Generator, constrained: bool) -> None:
    """Also where a constraint pulls, so that the densities are not normalised on the data at the estimate."""
    constraints = [NormalConstraint("n_bkg", 150.0, 5.0)] if constrained else []
    log_ratio, weights = rng.normal(-1.0, 1.5, 200), rng.uniform(0.5, 1.5, 200)
    nll = ExtendedUnbinnedNLL.from_log_ratio(log_ratio, nominal=3.0, weights=weights, constraints=constraints)
    reference = reference_from_data(nll, fit(nll).values)
    for truth in ([0.0, 180.0], [10.0, 120.0]):
        assert_returns(nll, (reference,), np.array(truth), np.array([4.0, 150.0]))
        assert reference.weights(np.array(truth)).sum() == pytest.approx(3.0 * truth[0] + truth[1], rel=1e-9)
    mu, n_bkg = fit(nll).values
    points = weights * np.exp(log_ratio) / (3.0 * mu * np.exp(log_ratio) + n_bkg)
    assert reference.effective_size == pytest.approx(points.sum() ** 2 / (points**2).sum())


def test_data_of_one_term_of_a_sum(rng: np.random.Generator) -> None:
    """Each term takes its own parameters out of those of the sum, wherever they stand."""
    first = ExtendedUnbinnedNLL.from_log_ratio(np.concatenate([rng.normal(2.0, 0.5, 15), rng.normal(-2.0, 1.0, 85)]))
    plain = networked()
    other = dataclasses.replace(
        plain,
        components=(plain.components[0], dataclasses.replace(plain.components[1], rate=Yield({"n_other": 1.0}))),
        parameters=(Parameter("n_other", 500.0, 0.0), Parameter("mu", 0.0)),
    )
    total = first + ExtendedUnbinnedNLL(other, background_events(400, rng))
    assert total.names == ("mu", "n_bkg", "n_other")
    best = fit(total)
    references = tuple(reference_from_data(total, best.values, which=k) for k in range(2))
    assert_returns(total, references, np.array([20.0, 110.0, 350.0]), best.values)
    for reference in references:
        at_estimate = np.array([best.value(name) for name in reference.mixture.names])
        # Not exactly the data, since the signal is that of both terms.
        np.testing.assert_allclose(reference.weights(at_estimate), 1.0, atol=0.2)
    with pytest.raises(ModelError, match=r"1 reference\(s\) for 2 data term\(s\)"):
        asimov_nll(total, references[:1], best.values)


def test_pool_returns_the_yields(rng: np.random.Generator) -> None:
    model = networked()
    nll = ExtendedUnbinnedNLL(model, background_events(500, rng))
    reference = reference_from_pool(model, background_events(2000, rng))
    for truth in ([0.0, 500.0], [40.0, 600.0], [-5.0, 500.0]):
        theta = np.array(truth)
        assert reference.weights(theta).sum() == pytest.approx(sum(truth), rel=1e-9)
        assert_returns(nll, (reference,), theta, np.array([10.0, 550.0]))


def test_pool_has_the_masses_of_the_background_density(rng: np.random.Generator) -> None:
    """Whatever the masses of the pool are: between the slices each has the probability of the density."""
    model = networked()
    pool = Events(mass=rng.uniform(90.0, 210.0, 2000), features=rng.standard_normal((2000, 1)), names=["x"])
    reference = reference_from_pool(model, pool)
    assert reference.events is not None
    assert len(reference.events) == WINDOW.contains(pool.mass).sum()
    weights = reference.weights(np.array([0.0, 1.0]))
    density = model.components[1].factors[0].density
    order = np.argsort(reference.events.mass)
    cumulative = np.cumsum(weights[order])
    edges = reference.events.mass[order]
    expected = np.array([density.probabilities([WINDOW.low, edge], ())[0] for edge in edges[50::50]])
    np.testing.assert_allclose(cumulative[49:-1:50][: expected.size], expected, atol=0.01)


def test_pool_weights_count(rng: np.random.Generator) -> None:
    """Two events of weight 1 or one of weight 2."""
    model, pool = networked(), background_events(300, rng)
    often = np.where(pool.features[:, 0] > 0.5, 2, 1)
    heavy = dataclasses.replace(pool, weights=often.astype(float))
    repeated = pool.select(np.repeat(np.arange(300), often))
    theta = np.array([30.0, 400.0])
    once = reference_from_pool(model, heavy).weights(theta)
    twice = reference_from_pool(model, repeated).weights(theta)
    # Slices of mass differ a little: compare sums in the feature.
    for threshold in (-1.0, 0.0, 0.5, 1.0):
        first = once[pool.features[:, 0] > threshold].sum()
        assert first == pytest.approx(twice[repeated.features[:, 0] > threshold].sum(), rel=0.03)


def test_effective_size_of_a_pool(rng: np.random.Generator) -> None:
    """Without a mass, n E[r]^2 / E[r^2] = n exp(-shift^2) for shifted normals."""
    model = Model(
        components=(
            Component("signal", Yield({"mu": 1.0}), (LogRatio(ShiftedNormal(1.0)),)),
            Component("background", Yield({"n_bkg": 1.0}), (LogRatio(ShiftedNormal(0.0)),)),
        ),
        parameters=(Parameter("mu", 0.0), Parameter("n_bkg", 500.0, 0.0)),
    )
    reference = reference_from_pool(model, background_events(40_000, rng))
    assert reference.effective_size == pytest.approx(40_000 * math.exp(-1.0), rel=0.05)
    assert reference.normalisation == pytest.approx(1.0, abs=4.0 / math.sqrt(40_000 * math.exp(-1.0)))
    uniform = Model(
        components=(
            Component("signal", Yield({"mu": 1.0}), (LogRatio(ShiftedNormal(0.0)),)),
            Component("background", Yield({"n_bkg": 1.0}), (LogRatio(ShiftedNormal(0.0)),)),
        ),
        parameters=(Parameter("mu", 0.0), Parameter("n_bkg", 500.0, 0.0)),
    )
    assert reference_from_pool(uniform, background_events(321, rng)).effective_size == pytest.approx(321.0)


def test_expected_limits_from_a_pool_agree_with_quadrature(rng: np.random.Generator) -> None:
    """Within twice the error that the effective size states."""
    model = networked()
    nll = ExtendedUnbinnedNLL(model, background_events(500, rng))
    exact = upper_limit(nll, grid_reference(model))
    for size in (1000, 5000):
        reference = reference_from_pool(model, background_events(size, rng))
        stated = 1.0 / math.sqrt(reference.effective_size)
        limit = upper_limit(nll, reference)
        np.testing.assert_allclose(limit.expected, exact.expected, rtol=2.0 * stated)
    from_data = upper_limit(nll, reference_from_data(nll, fit(nll).values))
    np.testing.assert_allclose(from_data.expected, exact.expected, rtol=0.3)


def test_pools_that_cannot_serve(rng: np.random.Generator) -> None:
    model = networked()
    pool = background_events(100, rng)
    extra = Component("flat", Yield({"n_flat": 1.0}), (LogArray(np.zeros(100)),))
    two = dataclasses.replace(
        model, components=(*model.components, extra), parameters=(*model.parameters, Parameter("n_flat", 1.0))
    )
    with pytest.raises(ModelError, match="needs one background; this model has 2"):
        reference_from_pool(two, pool)
    with pytest.raises(EventsError, match="none of 100 events is in the window"):
        reference_from_pool(model, dataclasses.replace(pool, mass=pool.mass + 1000.0))
    far = MassDensity.fixed(Gaussian(), (WINDOW.edges,), (150.0, 1e-5))
    blind = dataclasses.replace(
        model, components=(Component("signal", Yield({"mu": 1.0}), (MassFactor(far),)), model.components[1])
    )
    with pytest.raises(ModelError, match=r"vanishes on all 100 reference events .*zero signal acceptance"):
        reference_from_pool(blind, pool)
