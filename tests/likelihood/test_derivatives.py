"""Closed-form gradients and Hessians against numerical ones (jacobi), to 1e-6."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from jacobi import jacobi

from gbistat.data.events import Events
from gbistat.likelihood import mixture
from gbistat.likelihood.components import Component, LogArray, LogOffset, MassFactor, Yield
from gbistat.likelihood.constraints import Constraint, LogNormalConstraint, NormalConstraint, PoissonConstraint
from gbistat.likelihood.model import Model
from gbistat.likelihood.nll import NLL, ExtendedUnbinnedNLL, UnbinnedNLL
from gbistat.likelihood.parameters import Parameter
from gbistat.terms.density import MassDensity
from gbistat.terms.shapes.dijet import Dijet
from gbistat.terms.shapes.double_crystal_ball import DoubleCrystalBall


def assert_derivatives(nll: NLL, theta: np.ndarray) -> None:
    """Compare with differences of the value and of the gradient, in units of what each parameter's error allows."""
    state = nll.evaluate(theta)
    assert state.value == pytest.approx(nll.value(theta), rel=1e-13)
    np.testing.assert_array_equal(nll.grad(*theta), nll.evaluate(theta, with_value=False).gradient)
    np.testing.assert_array_equal(nll.hessian(*theta), state.hessian)
    np.testing.assert_allclose(state.hessian, state.hessian.T, rtol=1e-12, atol=1e-12 * np.abs(state.hessian).max())

    with np.errstate(divide="ignore"):
        sigma = np.minimum(1.0 / np.sqrt(np.abs(np.diag(state.hessian))), 0.1 * np.maximum(1.0, np.abs(theta)))
    gradient = jacobi(lambda u: nll.value(theta + sigma * u), np.zeros(theta.size))[0]
    scale = max(1.0, np.abs(gradient).max())
    np.testing.assert_allclose(state.gradient * sigma, gradient, rtol=1e-6, atol=1e-6 * scale)
    hessian = jacobi(lambda u: nll.evaluate(theta + sigma * u, with_value=False).gradient * sigma, np.zeros(theta.size))
    np.testing.assert_allclose(state.hessian * np.outer(sigma, sigma), hessian[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mu", [-3.0, 0.0, 17.5])
def test_static_densities(rng: np.random.Generator, mu: float) -> None:
    nll = ExtendedUnbinnedNLL.from_log_ratio(rng.normal(-1.0, 1.0, 300), nominal=2.0)
    assert_derivatives(nll, np.array([mu, 280.0]))


def test_weighted_events(rng: np.random.Generator) -> None:
    nll = ExtendedUnbinnedNLL.from_log_ratio(rng.normal(-1.0, 1.0, 300), weights=rng.uniform(-0.2, 2.0, 300))
    assert_derivatives(nll, np.array([9.0, 280.0]))


def test_many_blocks(rng: np.random.Generator) -> None:
    nll = ExtendedUnbinnedNLL.from_log_ratio(rng.normal(-1.0, 1.0, 17_001))
    assert_derivatives(nll, np.array([400.0, 16_500.0]))


@pytest.mark.parametrize("weighted", [False, True])
def test_free_peak_on_a_free_background(
    resonance: Model, spectrum: Events, rng: np.random.Generator, weighted: bool
) -> None:
    events = Events(mass=spectrum.mass, weights=rng.uniform(0.5, 1.5, len(spectrum))) if weighted else spectrum
    nll = ExtendedUnbinnedNLL(resonance, events)
    for theta in ([55.0, 141.0, 5.5, 390.0, 0.019], [-4.0, 120.0, 9.0, 450.0, 0.03], [0.0, 160.0, 3.0, 460.0, 0.0]):
        assert_derivatives(nll, np.array(theta))


def test_derivatives_over_several_blocks_are_those_of_one(
    resonance: Model, spectrum: Events, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    weighted = Events(mass=spectrum.mass, weights=rng.uniform(0.5, 1.5, len(spectrum)))
    theta = np.array([55.0, 141.0, 5.5, 390.0, 0.019])
    for events in (spectrum, weighted):
        whole = ExtendedUnbinnedNLL(resonance, events).evaluate(theta)
        with monkeypatch.context() as patch:
            patch.setattr(mixture, "BLOCK", 77)
            pieces = ExtendedUnbinnedNLL(resonance, events).evaluate(theta)
        assert pieces.value == pytest.approx(whole.value, rel=1e-13)
        np.testing.assert_allclose(pieces.gradient, whole.gradient, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(pieces.hessian, whole.hessian, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("weighted", [False, True])
def test_nuisances_shared_between_yields_shapes_and_factors(
    nuisance_model: Callable[[int], Model], spectrum: Events, rng: np.random.Generator, weighted: bool
) -> None:
    events = Events(mass=spectrum.mass, weights=rng.uniform(0.5, 1.5, len(spectrum))) if weighted else spectrum
    nll = ExtendedUnbinnedNLL(nuisance_model(len(events)), events)
    assert_derivatives(nll, nll.start_vector())
    assert_derivatives(nll, np.array([2.5, 1.5, 310.0, 60.0, 1.013, 0.7, -0.4, 0.03, -0.8]))


def test_crystal_ball_and_dijet_function(rng: np.random.Generator) -> None:
    domain = ((3300.0, 3700.0),)
    matrix = np.zeros((6, 2))
    matrix[0, 0], matrix[1, 1] = 3500.0, 70.0
    peak = MassDensity(
        DoubleCrystalBall(), domain, ("mass_scale", "resolution"), np.array([0.0, 0.0, 1.5, 3.0, 2.0, 4.0]), matrix
    )
    smooth = MassDensity.free(Dijet(), domain)
    model = Model(
        components=(
            Component("signal", Yield({"mu": 1.0}), (MassFactor(peak),)),
            Component("background", Yield({"n_bkg": 1.0}), (MassFactor(smooth),)),
        ),
        parameters=(
            Parameter("mu", 10.0),
            Parameter("mass_scale", 1.0, 0.9, 1.1),
            Parameter("resolution", 1.0, 0.5, 2.0),
            Parameter("n_bkg", 200.0, 0.0),
            *(Parameter(name, start) for name, start in zip(smooth.parameters, (10.0, 5.0, 0.1), strict=True)),
        ),
    )
    mass = rng.uniform(3300.0, 3700.0, 220)
    # The second derivative jumps where core and tail meet: differences are wrong for events that a step takes across.
    joints = 3500.0 * 1.01 + 70.0 * 1.1 * np.array([-1.5, 2.0])
    mass = mass[(np.abs(mass[:, None] - joints) > 20.0).all(axis=1)]
    nll = ExtendedUnbinnedNLL(model, Events(mass=mass))
    assert_derivatives(nll, np.array([12.0, 1.01, 1.1, 190.0, 11.0, 4.5, 0.12]))


def test_a_parameter_that_stands_in_yield_and_density_of_one_component(rng: np.random.Generator) -> None:
    model = Model(
        components=(
            Component(
                "signal",
                Yield({"mu": 5.0, "x": 2.0}, log_scales={"x": 0.3}),
                (LogArray(rng.normal(0.0, 1.0, 80)), LogOffset("x"), LogOffset("x")),
            ),
            Component("background", Yield(constant=70.0), (LogArray(np.zeros(80)), LogOffset("x"))),
        ),
        parameters=(Parameter("mu", 1.0), Parameter("x", 0.1)),
    )
    assert_derivatives(ExtendedUnbinnedNLL(model, Events(mass=np.zeros(80))), np.array([1.3, 0.2]))


@pytest.mark.parametrize("fraction", [-0.01, 0.0, 0.1, 0.9])
def test_shape_only(resonance: Model, spectrum: Events, fraction: float) -> None:
    nll = UnbinnedNLL(resonance, spectrum)
    assert nll.names == ("f", "m_X", "width", "rate")
    assert_derivatives(nll, np.array([fraction, 143.0, 5.0, 0.018]))


def test_sum_of_likelihoods(resonance: Model, spectrum: Events, rng: np.random.Generator) -> None:
    other = ExtendedUnbinnedNLL.from_log_ratio(rng.normal(-1.0, 1.0, 50), nominal=3.0)
    total = ExtendedUnbinnedNLL(resonance, spectrum) + other + NormalConstraint("mu", 30.0, 10.0)
    assert total.names == ("mu", "m_X", "width", "n_bkg", "rate")
    assert_derivatives(total, np.array([20.0, 143.0, 5.0, 300.0, 0.018]))


@pytest.mark.parametrize(
    ("constraint", "theta"),
    [
        (NormalConstraint("a", 2.0, 0.3), [1.7]),
        (NormalConstraint(("a", "b"), (2.0, -1.0), (0.3, 2.0)), [1.7, 3.0]),
        (NormalConstraint(("a", "b"), (2.0, -1.0), np.array([[0.5, -0.3], [-0.3, 0.9]])), [1.7, 3.0]),
        (LogNormalConstraint("a", 2.0, 0.3), [1.7]),
        (LogNormalConstraint("a", 2.0, 0.3), [9.0]),
        (PoissonConstraint("a", 7.0, 2.5), [1.7]),
        (PoissonConstraint("a", 0.0, 2.5), [1.7]),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, list) else "",
)
def test_constraints(constraint: Constraint, theta: list[float]) -> None:
    parameters = [Parameter(name, start) for name, start in zip(constraint.names, theta, strict=True)]
    assert_derivatives(NLL(parameters, [], [constraint], poi="a"), np.array(theta))


def test_derivatives_of_a_subset_of_the_parameters(rng: np.random.Generator) -> None:
    log_densities = rng.normal(0.0, 1.0, (4, 120))
    names = ("a", "b", "c", "d")
    model = Model(
        components=tuple(
            Component(name, Yield({name: 1.0}), (LogArray(values),))
            for name, values in zip(names, log_densities, strict=True)
        ),
        parameters=tuple(Parameter(name, 30.0, 0.0) for name in names),
        poi="a",
        signal="a",
    )
    nll = ExtendedUnbinnedNLL(model, Events(mass=np.zeros(120)))
    theta = np.array([20.0, 25.0, 35.0, 40.0])
    full = nll.evaluate(theta)
    for free in ([False, True, False, True], [True, False, False, False], [False, False, True, True], [False] * 4):
        mask = np.array(free)
        part = nll.evaluate(theta, free=mask)
        assert part.value == pytest.approx(full.value, rel=1e-14)
        np.testing.assert_allclose(part.gradient[mask], full.gradient[mask], rtol=1e-12)
        np.testing.assert_allclose(part.hessian[np.ix_(mask, mask)], full.hessian[np.ix_(mask, mask)], rtol=1e-12)
