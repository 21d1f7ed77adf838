"""A generator that is solved exactly: one feature, Gaussian at any mass, its mean moving with the mass.

Member k draws t ~ N(SLOPE (m - 3500) + shift_k, 1). The ratio of the model is exp(A u - A^2 / 2) with u = t - SLOPE (m - 3500): signal
is N(A, 1) in u, and E_b[r] = exp(A shift_k) for member k at every mass.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from gbistat.data.events import Events
from gbistat.terms.metadata import TermMetadata
from gbistat.terms.model_spec import ModelSpec
from gbistat.terms.network import NetworkTerm
from gbistat.terms.store import member_records

SLOPE, A = 0.002, 2.5


def graph(nodes, tensors, n_outputs=1):
    """Bytes of a graph with the input x of two columns, mass and t (or the latent number)."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", n_outputs])]
    stored = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in tensors.items()]
    content = helper.make_graph(nodes, "g", inputs, outputs, stored)
    model = helper.make_model(content, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return model.SerializeToString()


def affine(weights, bias, name="y"):
    """Nodes and tensors of x @ weights + bias."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["xw"]), helper.make_node("Add", ["xw", "b"], [name])]
    return nodes, {"w": np.reshape(weights, (2, 1)), "b": [bias]}


def density(shift):
    nodes, tensors = affine([-SLOPE, 1.0], 3500.0 * SLOPE - shift, "u")
    nodes += [
        helper.make_node("Mul", ["u", "u"], ["square"]),
        helper.make_node("Mul", ["square", "half"], ["energy"]),
        helper.make_node("Add", ["energy", "constant"], ["y"]),
    ]
    return graph(nodes, {**tensors, "half": [-0.5], "constant": [-0.5 * np.log(2 * np.pi)]})


def sampler(shift):
    return graph(*affine([SLOPE, 1.0], -3500.0 * SLOPE + shift))


def features(low=-60.0, high=60.0):
    return [
        {"name": "m_jj", "unit": "GeV", "low": 2500.0, "high": 5000.0, "role": "conditional"},
        {"name": "t", "unit": "1", "low": low, "high": high},
    ]


def make_generator(shifts=(0.1, -0.1), **changes):
    """Term in memory with one member a shift."""
    members = {f"member_{k}.onnx": density(shift) for k, shift in enumerate(shifts)}
    samplers = {f"sampler_{k}.onnx": sampler(shift) for k, shift in enumerate(shifts)}
    content = {
        "schema": "gbistat.term/1",
        "name": "gaussian",
        "kind": "density",
        "features": features(),
        "mass": {"name": "m_jj", "unit": "GeV", "low": 2500.0, "high": 5000.0},
        "combine": "mean_density" if len(shifts) > 1 else "none",
        "members": [record.to_json() for record in member_records(members)],
        "samplers": [record.to_json() for record in member_records(samplers)],
    }
    metadata = TermMetadata.model_validate({**content, **changes})
    return NetworkTerm(metadata, tuple(members.values()), samplers=tuple(samplers.values()))


def make_ratio(log_kappa=0.0, sigma=0.02, *, name="ratio", slope=A, constant=-0.5 * A**2):
    """The ratio of the model, or another one whose log is linear in u."""
    content = graph(*affine([-slope * SLOPE, slope], slope * 3500.0 * SLOPE + constant))
    metadata = {
        "name": name,
        "kind": "density_ratio",
        "features": features(),
        "mass": {"name": "m_jj", "unit": "GeV", "low": 2500.0, "high": 5000.0},
        "members": [record.to_json() for record in member_records({"member_0.onnx": content})],
        "log_kappa": {"value": log_kappa, "sigma": sigma, "method": "by hand"},
    }
    return NetworkTerm(TermMetadata.model_validate(metadata), (content,))


def make_spec(**changes):
    """Model with the ratio."""
    content = {
        "name": "small",
        "features": ["t"],
        "window": [3300.0, 3700.0],
        "valid": [3000.0, 4500.0],
        "signal": {
            "mass": {"shape": "gaussian", "parameters": {"mean": {"times_center": 1.0}, "sigma": 60.0}},
            "ratios": ["ratio"],
        },
        "background": {"mass": {"shape": "exponential"}, "fit_range": [2800.0, 4800.0], "yield": "sideband"},
        "terms": ["ratio"],
    }
    return ModelSpec.model_validate({**content, **changes})


def background_spec(**changes):
    """Model of the generator alone."""
    content = {
        "name": "gaussian-background",
        "features": ["t"],
        "window": [3300.0, 3700.0],
        "valid": [2800.0, 4800.0],
        "background": {"mass": {"shape": "exponential"}, "features": "gaussian", "fit_range": [2800.0, 4800.0]},
        "terms": ["gaussian"],
    }
    return ModelSpec.model_validate({**content, **changes})


def make_events(n=20_000, n_signal=0):
    """Falling background of the true density (shift 0), and signal in the window's centre."""
    rng = np.random.default_rng(4)
    mass = 2800.0 - 600.0 * np.log1p(-rng.random(n) * -np.expm1(-2000.0 / 600.0))
    t = rng.normal(SLOPE * (mass - 3500.0), 1.0)
    peak = rng.normal(3500.0, 60.0, n_signal)
    return Events(
        np.concatenate([mass, peak]),
        np.concatenate([t, rng.normal(SLOPE * (peak - 3500.0) + A, 1.0)])[:, None],
        ("t",),
        {"t": "1"},
    )


@pytest.fixture(scope="session")
def toy():
    """The builders of this file."""
    return SimpleNamespace(
        a=A,
        slope=SLOPE,
        background_spec=background_spec,
        events=make_events,
        features=features,
        generator=make_generator,
        ratio=make_ratio,
        spec=make_spec,
    )
