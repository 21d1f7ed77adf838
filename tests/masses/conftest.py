"""A signal at unknown masses (m_X, m_Y): a blob of 40 GeV in two features, on a flat background, with its exact ratio as a network."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from gbistat.data.events import Events
from gbistat.data.window import MassWindow
from gbistat.likelihood.components import Component, MassFactor, Yield
from gbistat.likelihood.constraints import NormalConstraint
from gbistat.likelihood.kappa import normalised_surface
from gbistat.likelihood.model import Model
from gbistat.likelihood.nll import ExtendedUnbinnedNLL
from gbistat.likelihood.parameters import Parameter
from gbistat.likelihood.theta_grid import grid_of
from gbistat.terms.density import MassDensity
from gbistat.terms.metadata import TermMetadata
from gbistat.terms.model_spec import ModelSpec
from gbistat.terms.network import NetworkTerm
from gbistat.terms.shapes.registry import make_shape
from gbistat.terms.store import member_records

SIDE, WIDTH = 650.0, 40.0
STEP = 50.0
RANGES = {"m_X": (50.0, 600.0), "m_Y": (50.0, 600.0)}


class Blob:
    """Log ratio of a Gaussian blob to a flat background; with `symmetric` the masses may be exchanged."""

    def __init__(self, *, symmetric=False, scale=1.0):
        self.symmetric, self.scale = symmetric, scale
        self.calls = 0

    def log_ratio(self, events, *, m_X, m_Y):
        self.calls += 1
        a, b = events.features.T

        def one(u, v):
            return -0.5 * ((a - u) ** 2 + (b - v) ** 2) / WIDTH**2

        log = np.logaddexp(one(m_X, m_Y), one(m_Y, m_X)) - np.log(2) if self.symmetric else one(m_X, m_Y)
        return log + np.log(self.scale * SIDE**2 / (2 * np.pi * WIDTH**2))


def flat_events(x, mass=None):
    x = np.asarray(x, dtype=float)
    mass = np.full(len(x), 0.5) if mass is None else mass
    return Events(mass=mass, features=x, names=("a", "b"), units={"a": "GeV", "b": "GeV"})


def background(n, rng):
    return rng.uniform(0.0, SIDE, (n, 2))


def signal(n, masses, rng):
    return rng.normal(masses, WIDTH, (n, 2))


def likelihood(term, data, pool, n_bkg, *, ranges=RANGES):
    """Grid, kappa and likelihood with free masses."""
    grid = grid_of(ranges, dict.fromkeys(ranges, STEP))
    surface, kappa = normalised_surface(term, grid, pool)
    flat = MassDensity.fixed(make_shape("exponential"), ((0.0, 1.0),), [1e-9])
    model = Model(
        (
            Component("signal", Yield({"mu": 1.0}), (MassFactor(flat), surface)),
            Component("background", Yield({"n_bkg": 1.0}), (MassFactor(flat),)),
        ),
        (
            Parameter("mu", 0.0, 0.0),
            Parameter("n_bkg", n_bkg, 0.0),
            *(Parameter(name, 0.5 * sum(ends), *ends) for name, ends in ranges.items()),
        ),
        (NormalConstraint("n_bkg", n_bkg, 0.01 * n_bkg),),
        MassWindow(0.0, 1.0),
        "mu",
    )
    return grid, kappa, ExtendedUnbinnedNLL(model, data)


def blob_graph():
    """ONNX bytes of the log ratio of a blob; inputs a, b, m_X, m_Y."""
    w = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]], np.float32) / np.float32(WIDTH)
    tensors = {
        "w": w,
        "half": np.array([[-0.5], [-0.5]], np.float32),
        "c": np.array([np.log(SIDE**2 / (2 * np.pi * WIDTH**2))], np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["d"]),
        helper.make_node("Mul", ["d", "d"], ["q"]),
        helper.make_node("MatMul", ["q", "half"], ["s"]),
        helper.make_node("Add", ["s", "c"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(v, k) for k, v in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()


def blob_term():
    members = {"member_0.onnx": blob_graph()}
    content = {
        "schema": "gbistat.term/1",
        "name": "blob",
        "kind": "density_ratio",
        "features": [{"name": name, "unit": "GeV", "low": -500.0, "high": 1200.0} for name in ("a", "b")],
        "mass": {"name": "m_jj", "unit": "GeV", "low": 100.0, "high": 200.0},
        "parameters": [{"name": name, "unit": "GeV", "low": low, "high": high} for name, (low, high) in RANGES.items()],
        "combine": "mean_ratio",
        "members": [record.to_json() for record in member_records(members)],
        "log_kappa": {"value": 0.0, "sigma": 0.0, "method": "formula", "n_reference": 1},
        "parity": {"max_abs": 0.0, "mean_abs": 0.0, "n_events": 1, "against": "formula"},
    }
    metadata = TermMetadata.model_validate_json(json.dumps(content))
    return NetworkTerm(metadata, tuple(members.values()))


def blob_spec(**signal_changes):
    content = {
        "schema": "gbistat.model/1",
        "name": "blob",
        "mass": {"name": "m_jj", "unit": "GeV"},
        "features": ["a", "b"],
        "window": [130.0, 150.0],
        "signal": {
            "mass": {"shape": "gaussian", "parameters": {"mean": 140.0, "sigma": 5.0}},
            "ratios": ["blob"],
            "grid_step": {"m_X": STEP, "m_Y": STEP},
            **signal_changes,
        },
        "background": {"mass": {"shape": "exponential"}, "fit_range": [100.0, 200.0]},
        "terms": ["blob"],
    }
    return ModelSpec.model_validate_json(json.dumps(content))


def spectrum(n_background, n_signal, masses, rng):
    """Events of the model above."""
    mass = 100.0 + rng.exponential(60.0, 3 * n_background)
    mass = mass[mass < 200.0][:n_background]
    x = np.r_[background(mass.size, rng), signal(n_signal, masses, rng)]
    return flat_events(x, np.r_[mass, rng.normal(140.0, 5.0, n_signal)])


@pytest.fixture(scope="session")
def blob():
    """The problem: see the functions of this file."""
    return SimpleNamespace(
        Blob=Blob,
        events=flat_events,
        background=background,
        signal=signal,
        likelihood=likelihood,
        term=blob_term,
        spec=blob_spec,
        spectrum=spectrum,
        ranges=RANGES,
        width=WIDTH,
        side=SIDE,
    )
