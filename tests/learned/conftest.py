"""A model whose signal was "learned", solved exactly: one feature t in (0, 1), uniform background at every mass.

Member m of every fold has p_s = 1/400 * a_m t^(a_m - 1) on 3300-3700 GeV, so that ln p_s / p_b = ln a_m + (a_m - 1) ln t
up to the mass, whose background falls exponentially. Member j of the generator has density c_j t^(c_j - 1).
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from gbistat.data.events import Events
from gbistat.terms.folds import FOLD_ALGORITHM
from gbistat.terms.metadata import TermMetadata
from gbistat.terms.model_spec import ModelSpec
from gbistat.terms.network import NetworkTerm
from gbistat.terms.store import member_records, save_model

LOW, HIGH = 3300.0, 3700.0
SIGNAL, GENERATOR = (40.0, 30.0), (1.02, 0.98)
FOLDS = 3
SCALE = 600.0


def graph(nodes, tensors, n_outputs):
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", n_outputs])]
    stored = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in tensors.items()]
    content = helper.make_graph(nodes, "g", inputs, outputs, stored)
    return helper.make_model(content, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()


def power_density(power, log_constant):
    """ln p = log_constant + ln power + (power - 1) ln t; t is the second input."""
    nodes = [
        helper.make_node("MatMul", ["x", "pick"], ["t"]),
        helper.make_node("Log", ["t"], ["log"]),
        helper.make_node("Mul", ["log", "slope"], ["product"]),
        helper.make_node("Add", ["product", "constant"], ["y"]),
    ]
    tensors = {"pick": [[0.0], [1.0]], "slope": [power - 1.0], "constant": [np.log(power) + log_constant]}
    return graph(nodes, tensors, 1)


def power_sampler(power, *, joint):
    """Normal numbers z to Phi(z): the second to t = Phi^(1/power), the first to a uniform mass if `joint`."""
    nodes = [
        helper.make_node("Mul", ["x", "root"], ["z"]),
        helper.make_node("Erf", ["z"], ["erf"]),
        helper.make_node("Mul", ["erf", "half"], ["halved"]),
        helper.make_node("Add", ["halved", "half"], ["phi"]),
        helper.make_node("Pow", ["phi", "powers"], ["u"]),
    ]
    tensors = {"root": [np.sqrt(0.5)], "half": [0.5], "powers": [[1.0, 1.0 / power]]}
    if joint:
        nodes += [helper.make_node("Mul", ["u", "width"], ["w"]), helper.make_node("Add", ["w", "low"], ["y"])]
        tensors |= {"width": [[HIGH - LOW, 1.0]], "low": [[LOW, 0.0]]}
        return graph(nodes, tensors, 2)
    nodes.append(helper.make_node("MatMul", ["u", "pick"], ["y"]))
    return graph(nodes, {**tensors, "pick": [[0.0], [1.0]]}, 1)


def make_term(name, kind, densities, samplers, features, **changes):
    members = {f"member_{k}.onnx": content for k, content in enumerate(densities)}
    drawn = {f"sampler_{k}.onnx": content for k, content in enumerate(samplers)}
    content = {
        "schema": "gbistat.term/1",
        "name": name,
        "kind": kind,
        "features": features,
        "mass": {"name": "m_jj", "unit": "GeV", "low": LOW, "high": HIGH},
        "combine": "mean_density",
        "members": [record.to_json() for record in member_records(members)],
        "samplers": [record.to_json() for record in member_records(drawn)],
    }
    metadata = TermMetadata.model_validate({**content, **changes})
    return NetworkTerm(metadata, tuple(members.values()), samplers=tuple(drawn.values()))


def signal_term(train_on="others"):
    each = [power_density(a, -np.log(HIGH - LOW)) for a in SIGNAL]
    draws = [power_sampler(a, joint=True) for a in SIGNAL]
    features = [
        {"name": "m_jj", "unit": "GeV", "low": LOW, "high": HIGH},
        {"name": "t", "unit": "1", "low": 0.0, "high": 1.0},
    ]
    rule = {"n_folds": FOLDS, "seed": 1, "columns": ["m_jj", "t"], "algorithm": FOLD_ALGORITHM}
    members = [{"fold": fold, "fraction": 0.01} for fold in range(FOLDS) for _ in SIGNAL]
    cross_fit = {"rule": rule, "mode": "learnable", "train_on": train_on, "members": members}
    return make_term("found", "signal_density", each * FOLDS, draws * FOLDS, features, cross_fit=cross_fit)


def generator_term():
    features = [
        {"name": "m_jj", "unit": "GeV", "low": 2500.0, "high": 5000.0, "role": "conditional"},
        {"name": "t", "unit": "1", "low": 0.0, "high": 1.0},
    ]
    mass = {"name": "m_jj", "unit": "GeV", "low": 2500.0, "high": 5000.0}
    densities = [power_density(c, 0.0) for c in GENERATOR]
    samplers = [power_sampler(c, joint=False) for c in GENERATOR]
    return make_term("uniform", "density", densities, samplers, features, mass=mass)


def make_spec(**changes):
    content = {
        "name": "learned",
        "features": ["t"],
        "window": [LOW, HIGH],
        "valid": [LOW, HIGH],
        "signal": {"density": "found"},
        "background": {"mass": {"shape": "exponential"}, "features": "uniform", "fit_range": [2800.0, 4800.0]},
        "terms": ["found", "uniform"],
    }
    return ModelSpec.model_validate({**content, **changes})


def make_events(n=20_000, n_signal=0, seed=4):
    """Falling mass with uniform t, and signal of power 40 with uniform mass in the window."""
    rng = np.random.default_rng(seed)
    mass = 2800.0 - SCALE * np.log1p(-rng.random(n) * -np.expm1(-2000.0 / SCALE))
    t = rng.random(n)
    peak, score = rng.uniform(LOW, HIGH, n_signal), rng.random(n_signal) ** (1.0 / SIGNAL[0])
    return Events(np.concatenate([mass, peak]), np.concatenate([t, score])[:, None], ("t",), {"t": "1"})


def save_events(path, events, n_signal=0):
    label = np.r_[np.zeros(len(events) - n_signal), np.ones(n_signal)]
    np.savez(path, m_jj=events.mass, t=events.feature("t"), label=label)
    return path


def save(directory, train_on="others"):
    """Model on disk."""
    save_model(directory / "model", make_spec(), terms=[signal_term(train_on), generator_term()])
    return directory / "model"


@pytest.fixture(scope="session")
def learned():
    """The builders of this file."""
    return SimpleNamespace(
        events=make_events,
        save_events=save_events,
        save=save,
        signal=signal_term,
        generator=generator_term,
        spec=make_spec,
    )
