"""Small ONNX graphs whose values numpy reproduces, and a term and a model made of them."""

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

FEATURES = ("m_light", "tau21_light")


def _model(nodes, tensors, n_inputs, *, kind=TensorProto.FLOAT, output=("n", 1), inputs=None):
    inputs = inputs or [helper.make_tensor_value_info("x", kind, ["n", n_inputs])]
    outputs = [helper.make_tensor_value_info("y", kind, list(output))]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(v, k) for k, v in tensors.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def linear(weights, bias=0.0, *, dtype=np.float32, flat=False):
    """Bytes of y = x @ weights + bias, of shape (n, 1), or (n,) if flat."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    tensors = {"w": np.array(weights, dtype).reshape(-1, 1), "b": np.array([bias], dtype)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Add", ["z", "b"], ["s" if flat else "y"])]
    if flat:
        tensors["one"] = np.array([1], np.int64)
        nodes.append(helper.make_node("Squeeze", ["s", "one"], ["y"]))
    shape = ("n",) if flat else ("n", 1)
    return _model(nodes, tensors, len(weights), kind=kind, output=shape).SerializeToString()


def mlp(seed, n_inputs=2, hidden=5):
    """Bytes of a network with one layer of swish units, and the function that it computes, in numpy and float64."""
    rng = np.random.default_rng(seed)
    scale = np.array([1 / 300.0, 1.0] + [1.0] * (n_inputs - 2), np.float32)[:n_inputs]
    w1 = rng.normal(size=(n_inputs, hidden)).astype(np.float32)
    b1 = rng.normal(size=hidden).astype(np.float32)
    w2 = rng.normal(size=(hidden, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["u"]),
        helper.make_node("MatMul", ["u", "w1"], ["v"]),
        helper.make_node("Add", ["v", "b1"], ["h"]),
        helper.make_node("Sigmoid", ["h"], ["sig"]),
        helper.make_node("Mul", ["h", "sig"], ["a"]),
        helper.make_node("MatMul", ["a", "w2"], ["y"]),
    ]
    content = _model(nodes, {"scale": scale, "w1": w1, "b1": b1, "w2": w2}, n_inputs).SerializeToString()

    def function(x):
        h = (x * scale.astype(float)) @ w1.astype(float) + b1
        return ((h / (1 + np.exp(-h))) @ w2.astype(float))[:, 0]

    return content, function


def term_json(members, **changes):
    """Plain content of term.json for a ratio in the two features of these tests."""
    content = {
        "schema": "gbistat.term/1",
        "name": "ratio",
        "kind": "density_ratio",
        "features": [
            {"name": "m_light", "unit": "GeV", "low": 0.0, "high": 1000.0, "transform": "divided by 300 GeV"},
            {"name": "tau21_light", "unit": "1", "low": 0.0, "high": 1.0},
        ],
        "mass": {"name": "m_jj", "unit": "GeV", "low": 3300.0, "high": 3700.0},
        "combine": "mean_ratio",
        "members": [record.to_json() for record in member_records(members)],
        "log_kappa": {"value": 0.25, "sigma": 0.01, "method": "mean of exp(logit)", "n_reference": 10000},
        "parity": {"max_abs": 1e-6, "mean_abs": 1e-7, "n_events": 100, "against": "Keras"},
        "training": {"seed": 1, "epochs": 3, "settings": {"layers": [5], "optimiser": "adam"}},
        "checks": {"auc": 0.9},
    }
    return {**content, **changes}


def make_term(graphs, **changes):
    """Term in memory from a list of graphs."""
    members = {f"member_{index}.onnx": graph for index, graph in enumerate(graphs)}
    return NetworkTerm(TermMetadata.model_validate(term_json(members, **changes)), tuple(graphs))


def model_json(**changes):
    """Plain content of model.json with the ratio term."""
    content = {
        "schema": "gbistat.model/1",
        "name": "small",
        "description": "a model for tests",
        "mass": {"name": "m_jj", "unit": "GeV"},
        "features": list(FEATURES),
        "window": [3300.0, 3700.0],
        "valid": [3300.0, 3700.0],
        "signal": {
            "mass": {
                "shape": "gaussian",
                "parameters": {
                    "mean": {"parameter": "mass_scale", "times_center": 1.0},
                    "sigma": {"times_center": 0.03},
                },
            },
            "ratios": ["ratio"],
            "yield": {"poi": "mu", "nominal": 1.0},
            "spurious": {"sigma": 5.0},
            "efficiency": {"eff_tau21": 0.1},
        },
        "background": {"mass": {"shape": "dijet"}, "fit_range": [2800.0, 7000.0], "yield": "sideband"},
        "parameters": {
            "mass_scale": {"start": 1.0, "low": 0.95, "high": 1.05, "constraint": {"mean": 1.0, "sigma": 0.01}}
        },
        "terms": ["ratio"],
    }
    return {**content, **changes}


def make_events(n=200, seed=5, **changes):
    """Events inside the valid range of the term."""
    rng = np.random.default_rng(seed)
    arrays = {
        "mass": rng.uniform(3300, 3700, n),
        "features": np.column_stack([rng.uniform(0, 1000, n), rng.uniform(0, 1, n)]),
        "names": FEATURES,
        "units": {"m_jj": "GeV", "m_light": "GeV", "tau21_light": "1"},
    }
    return Events(**{**arrays, **changes})


@pytest.fixture(scope="session")
def make():
    """The builders of this file."""
    return SimpleNamespace(
        events=make_events,
        linear=linear,
        mlp=mlp,
        model_json=model_json,
        onnx_model=_model,
        spec=lambda **changes: ModelSpec.model_validate(model_json(**changes)),
        term=make_term,
        term_json=term_json,
    )
