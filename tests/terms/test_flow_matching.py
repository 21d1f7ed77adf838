"""Continuous flows with velocities whose paths are known exactly."""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass, replace

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from gbistat.data.transforms import FeatureTransform
from gbistat.errors import OptionError, TermError, WindowError
from gbistat.terms.flow_matching import FlowMatchingDensity, GraphVelocity
from gbistat.terms.protocols import ConditionalDensity

RANGE = (1000.0, 4000.0)
TRANSFORM = FeatureTransform(("a", "b"), np.zeros(2), np.full(2, 10.0), np.zeros(2), np.ones(2))


@dataclass(frozen=True)
class Linear:
    """dy/dt = s y with s = 0.3 + 0.2 u: y1 = exp(s) y0, a Gaussian of width exp(s) at scaled mass u."""

    curve: float = 0.0

    def context(self, mass, /):
        return np.stack([0.3 + 0.2 * mass + self.curve * mass**2], axis=1)

    def velocity(self, x, /):
        return x[:, 3:] * x[:, :2]

    def flow(self, x, /):
        return np.column_stack([self.velocity(x), 2.0 * x[:, 3]])


def exact(features: np.ndarray, width: np.ndarray) -> np.ndarray:
    y = TRANSFORM.forward(features)
    normal = -0.5 * np.sum(y**2, axis=1) / width**2 - 2.0 * np.log(width) - math.log(2.0 * math.pi)
    return normal + TRANSFORM.log_abs_det(features)


def density(**changes: object) -> FlowMatchingDensity:
    return FlowMatchingDensity(**{"network": Linear(), "transform": TRANSFORM, "mass_range": RANGE, **changes})


@pytest.fixture
def points() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.uniform(0.5, 9.5, (200, 2)), rng.uniform(1000.0, 4000.0, 200)


def test_it_is_a_conditional_density() -> None:
    assert isinstance(density(), ConditionalDensity)


def test_density_of_a_linear_flow(points) -> None:
    x, m = points
    u = 2.0 * np.log(m / 1000.0) / math.log(4.0) - 1.0
    found = density(steps=12).log_prob(x, m)
    np.testing.assert_allclose(found, exact(x, np.exp(0.3 + 0.2 * u)), atol=1e-5)


def test_error_of_fourth_order(points) -> None:
    x, m = points
    u = 2.0 * np.log(m / 1000.0) / math.log(4.0) - 1.0
    true = exact(x, np.exp(0.3 + 0.2 * u))
    one, two = (np.abs(density(steps=k).log_prob(x, m) - true).max() for k in (1, 2))
    assert one / two == pytest.approx(16.0, rel=0.5)


def test_samples_follow_the_density() -> None:
    """Transformed samples have the exact width: 4 standard errors of a standard deviation."""
    m = np.full(20_000, 2000.0)
    y = TRANSFORM.forward(density().sample(m, rng=np.random.default_rng(2)))
    width = math.exp(0.3)
    assert y.std() == pytest.approx(width, rel=4 / math.sqrt(2 * y.size))
    assert y.mean() == pytest.approx(0.0, abs=4 * width / math.sqrt(y.size))


def test_context_is_linear_between_the_edges(points) -> None:
    x, m = points
    curved = density(network=Linear(curve=0.5))
    low, high = 1500.0, 2500.0
    found = curved.blinded((1600.0, 2400.0), buffer=100.0)
    assert found.interpolated == (low, high)

    def scale(mass: np.ndarray) -> np.ndarray:
        u = 2.0 * np.log(mass / 1000.0) / math.log(4.0) - 1.0
        return 0.3 + 0.2 * u + 0.5 * u**2

    a = (high - m) / (high - low)
    between = a * scale(np.array(low)) + (1 - a) * scale(np.array(high))
    inside = (m > low) & (m < high)
    width = np.exp(np.where(inside, between, scale(m)))
    np.testing.assert_allclose(found.log_prob(x, m), exact(x, width), atol=1e-4)
    assert np.abs(found.log_prob(x, m) - curved.log_prob(x, m))[inside].max() > 0.01
    # Nothing moves where the window is not, and the edges join.
    np.testing.assert_array_equal(found.log_prob(x, m)[~inside], curved.log_prob(x, m)[~inside])
    edge = np.array([low * (1 + 1e-9), high * (1 - 1e-9)])
    np.testing.assert_allclose(found.log_prob(x[:2], edge), curved.log_prob(x[:2], edge), atol=1e-6)


def test_outside_the_range_of_features_the_density_is_zero() -> None:
    x = np.array([[5.0, 5.0], [0.0, 5.0], [5.0, 11.0]])
    found = density().log_prob(x, np.full(3, 2000.0))
    assert np.isfinite(found[0])
    assert np.isneginf(found[1:]).all()


def test_many_events_are_split(points, monkeypatch) -> None:
    x, m = points
    whole = density().log_prob(x, m), density().sample(m, rng=np.random.default_rng(3))
    monkeypatch.setattr("gbistat.terms.flow_matching.AT_ONCE", 7)
    np.testing.assert_allclose(density().log_prob(x, m), whole[0], rtol=1e-12)
    np.testing.assert_allclose(density().sample(m, rng=np.random.default_rng(3)), whole[1], rtol=1e-12)


def test_masses_windows_and_steps_that_cannot_be() -> None:
    with pytest.raises(TermError, match="2 of 3 masses are outside 1000-4000, where the model was trained"):
        density().sample(np.array([999.0, 2000.0, 4001.0]), rng=np.random.default_rng(1))
    with pytest.raises(WindowError, match="cannot be interpolated between 900 and 1200"):
        density().blinded((900.0, 1200.0))
    with pytest.raises(WindowError, match="the edges must increase"):
        replace(density(), interpolated=(2000.0, 1500.0))
    with pytest.raises(OptionError, match="steps = 0 must be at least 1"):
        density(steps=0)


def linear_graph(weights: np.ndarray) -> bytes:
    tensors = [numpy_helper.from_array(weights.astype(np.float32), "w")]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", weights.shape[0]])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", weights.shape[1]])]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return model.SerializeToString()


def test_graphs_are_evaluated_without_keras() -> None:
    """Context 2 u, velocity (y1, context), divergence t: a graph for each."""
    velocity = np.zeros((4, 2))
    velocity[0, 0] = velocity[3, 1] = 1.0
    both = np.column_stack([velocity, [0.0, 0.0, 1.0, 0.0]])
    network = GraphVelocity((linear_graph(np.array([[2.0]])), linear_graph(velocity), linear_graph(both)))
    x = np.array([[1.0, 2.0, 0.5, 3.0]])
    for copy in (network, pickle.loads(pickle.dumps(network))):
        assert copy.context(np.array([0.5])).tolist() == [[1.0]]
        assert copy.velocity(x).tolist() == [[1.0, 3.0]]
        assert copy.flow(x).tolist() == [[1.0, 3.0, 0.5]]
    with pytest.raises(TermError, match=r"velocity\.onnx"):
        GraphVelocity((linear_graph(np.array([[2.0]])), b"damaged", linear_graph(both)))
