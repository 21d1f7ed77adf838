"""Directions of a log ratio: derivatives, and toys in which they are nuisances."""

from __future__ import annotations

import numpy as np
import pytest

from gbistat.data.events import Events
from gbistat.errors import ModelError
from gbistat.inference.toy_results import TestSpec
from gbistat.inference.toys import ToyModel, ToyOptions, toy_statistics
from gbistat.likelihood.components import Component, LogArray, Yield
from gbistat.likelihood.constraints import NormalConstraint
from gbistat.likelihood.directions import LogDirections, direction_moments
from gbistat.likelihood.model import Model
from gbistat.likelihood.nll import ExtendedUnbinnedNLL
from gbistat.likelihood.parameters import Parameter
from gbistat.likelihood.reference import reference_from_pool

MEAN = np.array([1.0, 0.6])
SPREAD = np.array([[1.0, 0.6], [0.6, 0.54]])
"""Moments of (z, 0.3 z^2) for z ~ N(1, 1): var z^2 = 6, cov(z, z^2) = 2."""

COVARIANCE = np.array([[0.04, 0.01], [0.01, 0.02]])


def model(z: np.ndarray, *, sized: float = 1.0) -> Model:
    """ln r = z - 1/2 of a standard normal z, so that z ~ N(1, 1) for signal, with open directions z and 0.3 z^2."""
    directions = LogDirections(("w_1", "w_2"), np.stack([z, 0.3 * z**2]), MEAN, SPREAD)
    return Model(
        components=(
            Component("signal", Yield({"mu": 100.0}), (LogArray(z - 0.5), directions)),
            Component("background", Yield({"n_bkg": 1.0}), (LogArray(np.zeros(z.size)),)),
        ),
        parameters=(
            Parameter("mu", 0.0),
            Parameter("n_bkg", 2000.0, 0.0),
            Parameter("w_1", 0.0),
            Parameter("w_2", 0.0),
        ),
        constraints=(NormalConstraint(("w_1", "w_2"), (0.0, 0.0), sized**2 * COVARIANCE),),
    )


def toys_of(sized: float, form: str = "compressed") -> ToyModel:
    rng = np.random.default_rng(1)
    pool, data = rng.normal(size=20_000), rng.normal(size=2000)
    reference = reference_from_pool(model(pool, sized=sized), Events(mass=np.zeros(pool.size)))
    nll = ExtendedUnbinnedNLL(model(data, sized=sized), Events(mass=np.zeros(data.size)))
    return ToyModel.from_nll(nll, reference, options=ToyOptions(form=form))


def test_derivatives_against_differences():
    z = np.random.default_rng(2).normal(size=300)
    nll = ExtendedUnbinnedNLL(model(z), Events(mass=np.zeros(z.size)))
    theta, step = np.array([0.7, 250.0, 0.2, -0.3]), 1e-5
    state = nll.evaluate(theta)
    for i in range(4):
        up, down = theta.copy(), theta.copy()
        up[i] += step
        down[i] -= step
        assert state.gradient[i] == pytest.approx((nll.value(up) - nll.value(down)) / (2 * step), rel=1e-5, abs=1e-5)
        assert state.hessian[i] == pytest.approx(
            (nll.evaluate(up).gradient - nll.evaluate(down).gradient) / (2 * step), rel=1e-5, abs=1e-6
        )


def test_directions_are_nuisances_of_toys():
    tests = [TestSpec("tmu", 1.0)]
    wide, narrow = (toys_of(sized) for sized in (0.5, 0.01))
    results = [toy_statistics(m, m.theta(mu=1.0), tests, 3000, rng=np.random.default_rng(3)) for m in (wide, narrow)]
    assert all(r.n_failed == 0 for r in results)
    # An open ratio costs precision.
    assert results[0].error.mean() > 1.02 * results[1].error.mean()
    for result in results:
        assert np.mean(result.statistics[:, 0] < 1.0) == pytest.approx(0.6827, abs=0.04)


def test_compressed_directions_agree_with_events():
    compressed, exact = toys_of(0.5), toys_of(0.5, "exact")
    theta = compressed.theta(mu=1.0)
    first = toy_statistics(compressed, theta, [], 1500, rng=np.random.default_rng(4))
    second = toy_statistics(exact, theta, [], 60, rng=np.random.default_rng(5))
    assert second.n_failed == 0
    # Two sets of toys: four errors of the mean and of the width of 60.
    spread = first.estimate.std()
    assert second.estimate.mean() == pytest.approx(first.estimate.mean(), abs=4 * spread / np.sqrt(60))
    assert second.estimate.std() == pytest.approx(spread, rel=4 / np.sqrt(120))
    assert second.error.mean() == pytest.approx(first.error.mean(), rel=0.05)


def test_moments_and_normalisation():
    z = np.random.default_rng(6).normal(size=400_000)
    values, ratio = np.stack([z, 0.3 * z**2]), np.exp(z - 0.5)
    mean, spread = direction_moments(values, ratio)
    assert mean == pytest.approx(MEAN, abs=0.02)
    assert spread == pytest.approx(SPREAD, abs=0.04)
    factor = LogDirections(("a", "b"), values, mean, spread).prepare(Events(mass=np.zeros(z.size)))
    assert np.mean(ratio * np.exp(factor.log_prob(np.array([0.05, -0.04])))) == pytest.approx(np.mean(ratio), rel=2e-4)
    with pytest.raises(ModelError, match="add up to 0"):
        direction_moments(values, 0.0 * ratio)


def test_bad_directions():
    with pytest.raises(ModelError, match=r"shape \(3, 4\) .* for 2 weight"):
        LogDirections(("a", "b"), np.zeros((3, 4)), np.zeros(2), np.eye(2))
    with pytest.raises(ModelError, match="NaN or infinite for 1 of 4 events"):
        LogDirections(("a",), np.array([[0.0, np.nan, 1.0, 2.0]]), np.zeros(1), np.eye(1))
    with pytest.raises(ModelError, match="directions of 4 events for 3 events"):
        LogDirections(("a",), np.zeros((1, 4)), np.zeros(1), np.eye(1)).prepare(Events(mass=np.zeros(3)))
