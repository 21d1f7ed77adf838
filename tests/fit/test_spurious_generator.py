"""Spurious signal of a generator with a ratio that is known exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest

pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper

from gbistat.data.events import Events
from gbistat.errors import ModelError, WindowError
from gbistat.fit.spurious import generated_events, spurious_signal
from gbistat.terms.metadata import TermMetadata
from gbistat.terms.model_spec import ModelSpec
from gbistat.terms.network import NetworkTerm
from gbistat.terms.store import member_records

SHIFT = 0.8
"""Signal is N(SHIFT, 1) in the feature a, background N(0, 1): ln r = SHIFT a - SHIFT^2 / 2."""


@dataclass(frozen=True)
class Gaussian:
    """Background generator with a shift that should be 0."""

    shift: float = 0.0

    def log_prob(self, features, mass, /):
        return -0.5 * (features[:, 0] - self.shift) ** 2 - 0.5 * math.log(2 * math.pi)

    def sample(self, mass, /, *, rng):
        return rng.normal(self.shift, 1.0, (mass.size, 1))


def ratio() -> NetworkTerm:
    tensors = {"w": np.array([[0.0], [SHIFT]], np.float32), "b": np.array([-0.5 * SHIFT**2], np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Add", ["z", "b"], ["y"])]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(v, k) for k, v in tensors.items()])
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()
    metadata = TermMetadata.model_validate(
        {
            "name": "exact",
            "kind": "density_ratio",
            "features": [{"name": "m", "unit": "GeV", "role": "conditional"}, {"name": "a"}],
            "mass": {"name": "m", "unit": "GeV", "low": 100.0, "high": 300.0},
            "members": [r.to_json() for r in member_records({"member_0.onnx": content})],
            "log_kappa": {"value": 0.0, "sigma": 0.05, "method": "exact"},
        }
    )
    return NetworkTerm(metadata, (content,))


def spec(**changes: object) -> ModelSpec:
    content = {
        "name": "toy",
        "mass": {"name": "m", "unit": "GeV"},
        "features": ["a"],
        "window": [180.0, 220.0],
        "valid": [120.0, 280.0],
        "signal": {
            "mass": {
                "shape": "gaussian",
                "parameters": {"mean": {"times_center": 1.0}, "sigma": {"times_center": 0.03}},
            },
            "ratios": ["exact"],
            "spurious": {"sigma": 5.0},
        },
        "background": {"mass": {"shape": "exponential"}, "fit_range": [100.0, 300.0]},
        "terms": ["exact"],
    }
    return ModelSpec.model_validate({**content, **changes})


def background(n: int, seed: int) -> Events:
    rng = np.random.default_rng(seed)
    mass = 100.0 - 80.0 * np.log1p(-rng.random(n) * -np.expm1(-200.0 / 80.0))
    units = {"m": "GeV", "a": "1"}
    return Events(mass, rng.normal(size=(n, 1)), ("a",), units, mass_name="m")


def run(generator: Gaussian, seed: int = 1, n: int = 20_000):
    return spurious_signal(
        spec(),
        background(n, seed),
        (180.0, 220.0),
        generator,
        terms={"exact": ratio()},
        blinded=True,
        rng=np.random.default_rng(50 + seed),
        n_generated=20_000,
    )


@pytest.mark.parametrize("shift", [0.0, -0.2, 0.3])
def test_mean_ratio_over_a_shifted_generator(shift: float) -> None:
    """E[exp(S a - S^2 / 2)] over N(d, 1) is exp(S d)."""
    result = run(Gaussian(shift))
    assert result.log_mean_ratio == pytest.approx(SHIFT * shift, abs=4 * result.log_mean_ratio_error)
    assert result.log_mean_ratio_error == pytest.approx(math.sqrt(math.expm1(SHIFT**2) / 20_000), rel=0.3)


def test_a_right_generator_finds_nothing_on_average() -> None:
    """12 samples of background: pulls with mean 0 and width 1 (4 standard errors), and the fits near the scores."""
    results = [run(Gaussian(), seed) for seed in range(12)]
    pulls = np.array([result.pull for result in results])
    assert abs(pulls.mean()) < 4 / math.sqrt(12)
    assert 0.4 < np.sqrt(np.mean(pulls**2)) < 1.9
    assert all(result.fitted is not None for result in results)
    assert all(result.low == 180.0 and result.blinded and result.n_events > 3000 for result in results)


def test_a_generator_without_enough_signal_like_events_makes_signal() -> None:
    """Samples at too small a make events look like signal; at too large a, like a lack of it."""
    right, low, high = (run(Gaussian(shift)) for shift in (0.0, -0.3, 0.3))
    assert low.value > right.value + 3 * right.error
    assert high.value < right.value - 3 * right.error


def test_generated_events_have_the_names_and_units_of_others() -> None:
    like = background(10, 3)
    made = generated_events(Gaussian(), np.array([150.0, 160.0]), like, rng=np.random.default_rng(1))
    assert (made.names, made.units, made.mass_name) == (like.names, like.units, "m")
    assert made.mass.tolist() == [150.0, 160.0]


def test_what_cannot_be_measured() -> None:
    signal = spec().signal.model_copy(update={"ratios": ()})
    arguments = {"terms": {"exact": ratio()}, "blinded": True, "rng": np.random.default_rng(1)}
    events = background(2000, 1)
    with pytest.raises(ModelError, match="has no ratio in the features"):
        spurious_signal(spec().model_copy(update={"signal_": signal}), events, (180.0, 220.0), Gaussian(), **arguments)
    with pytest.raises(WindowError, match="is not inside 120-280 GeV"):
        spurious_signal(spec(), events, (105.0, 150.0), Gaussian(), **arguments)
