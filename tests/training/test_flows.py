"""Splines, masks and flows against closed forms and numerical integrals, on TensorFlow and on JAX."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gbistat.training.autoregressive import autoregressive_masks, count_parameters
from gbistat.training.background_card import FlowSpec

pytest.importorskip("tensorflow")

from gbistat.training.environment import keras
from gbistat.training.splines import LEAST_SIZE, n_spline_parameters, spline_forward, spline_inverse

pytestmark = [
    pytest.mark.train,
    # Keras 3 calls numpy with copy=False on TensorFlow's tensors.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]

CHECK = Path(__file__).with_name("flow_check.py")


def load_check():
    spec = importlib.util.spec_from_file_location("flow_check", CHECK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def check():
    return load_check()


def as_tensor(array):
    return keras().ops.convert_to_tensor(np.asarray(array, dtype=np.float32))


def forward(x, raw, bins, bound):
    y, log_slope = spline_forward(as_tensor(x), as_tensor(raw), bins=bins, bound=bound)
    return np.asarray(y, dtype=float), np.asarray(log_slope, dtype=float)


def test_no_parameters_are_the_identity():
    x = np.linspace(-6.0, 6.0, 49)[:, None]
    y, log_slope = forward(x, np.zeros((49, 1, n_spline_parameters(6))), 6, 3.0)
    assert y == pytest.approx(x, abs=2e-6)
    assert log_slope == pytest.approx(0.0, abs=3e-6)


def test_a_spline_against_its_formula():
    # Two bins with known knots: arXiv:1906.04032, eq. 4, evaluated by hand in float64.
    bins, bound = 2, 1.0
    widths, heights, slope = np.array([0.3, 0.7]), np.array([0.6, 0.4]), 2.5
    free = 1.0 - bins * LEAST_SIZE
    raw = np.concatenate([np.log((widths - LEAST_SIZE) / free), np.log((heights - LEAST_SIZE) / free)])
    softplus = np.log(np.expm1(slope - 1e-3)) - np.log(np.expm1(1 - 1e-3))
    raw = np.append(raw, softplus)
    knots_x, knots_y, slopes = np.array([-1.0, -0.4, 1.0]), np.array([-1.0, 0.2, 1.0]), np.array([1.0, 2.5, 1.0])
    x = np.array([-0.9, -0.5, -0.4, 0.0, 0.77])
    expected, derivative = np.empty_like(x), np.empty_like(x)
    for i, value in enumerate(x):
        k = 0 if value < -0.4 else 1
        w, h = np.diff(knots_x)[k], np.diff(knots_y)[k]
        s, xi = h / w, (value - knots_x[k]) / w
        denominator = s + (slopes[k + 1] + slopes[k] - 2 * s) * xi * (1 - xi)
        expected[i] = knots_y[k] + h * (s * xi**2 + slopes[k] * xi * (1 - xi)) / denominator
        numerator = slopes[k + 1] * xi**2 + 2 * s * xi * (1 - xi) + slopes[k] * (1 - xi) ** 2
        derivative[i] = s**2 * numerator / denominator**2
    y, log_slope = forward(x[:, None], np.tile(raw, (5, 1, 1)), bins, bound)
    assert y[:, 0] == pytest.approx(expected, abs=1e-6)
    assert log_slope[:, 0] == pytest.approx(np.log(derivative), abs=1e-5)


def test_a_spline_increases_and_its_inverse_undoes_it():
    rng = np.random.default_rng(0)
    bins, bound, n = 7, 2.0, 400
    raw = np.tile(rng.normal(0.0, 2.0, size=(1, 1, n_spline_parameters(bins))), (n, 1, 1))
    x = np.linspace(-2.5, 2.5, n)[:, None]
    y, log_slope = forward(x, raw, bins, bound)
    assert np.all(np.diff(y[:, 0]) > 0)
    assert y[[0, -1], 0] == pytest.approx([-2.5, 2.5])
    back = np.asarray(spline_inverse(as_tensor(y), as_tensor(raw), bins=bins, bound=bound), dtype=float)
    # An error of y is divided by the slope.
    assert np.max(np.abs(back - x) * np.minimum(np.exp(log_slope), 1.0)) < 3e-6
    middle = 0.5 * (log_slope[1:] + log_slope[:-1])[:, 0]
    assert np.median(np.abs(np.log(np.diff(y[:, 0]) / np.diff(x[:, 0])) - middle)) < 0.01


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_masks_let_through_what_comes_before_and_nothing_else(order):
    masks = autoregressive_masks(order, [12, 7], outputs=2)
    reach = masks[0]
    for mask in masks[1:]:
        reach = reach @ mask
    reach = reach.reshape(4, 3, 2)
    assert np.all(reach[0] > 0), "the condition reaches every output"
    for source in range(3):
        for target in range(3):
            assert np.all((reach[1 + source, target] > 0) == (order[source] < order[target]))


def test_parameters_are_counted_without_masked_weights():
    spec = FlowSpec(transform="affine", layers=1, hidden=(4,))
    first, second = autoregressive_masks((0, 1), [4], outputs=2)
    assert count_parameters(2, spec) == first.sum() + 4 + second.sum() + 4
    assert count_parameters(2, FlowSpec(transform="affine", layers=3, hidden=(4,))) > 2 * count_parameters(2, spec)


def accept(found, transform):
    assert found["integral"] == pytest.approx(1.0, abs=2e-3)
    # Differences of float32 numbers over a step of 0.01.
    assert found["change_of_variables"] < 5e-3
    assert found["before"] > 0.15
    assert found["after"] < (0.03 if transform == "spline" else 0.08)


@pytest.mark.parametrize("transform", ["spline", "affine"])
def test_flows_on_tensorflow(check, transform):
    found = check.examine(transform)
    assert found["backend"] == "tensorflow"
    accept(found, transform)


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
def test_flows_on_jax():
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(CHECK), "spline"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    (found,) = json.loads(result.stdout.splitlines()[-1])
    assert found["backend"] == "jax"
    accept(found, "spline")


def test_no_feature_sees_a_later_one(check):
    # With one layer the density of the first feature must not change with the second.
    flow = check.make_flow("spline", layers=1, noise=0.3)
    x = np.array([[100.0, 2.0, 0.0], [100.0, 2.0, 1.5]])
    latent = np.array([[100.0, 0.3, -1.0], [100.0, 0.3, 1.0]])
    first = check.sample_flow(flow, latent)[:, 0]
    assert first[0] == first[1]
    assert check.sample_flow(flow, latent[:, [0, 2, 1]])[0, 0] != check.sample_flow(flow, latent[:, [0, 2, 1]])[1, 0]
    assert not np.array_equal(*check.log_density(flow, x).reshape(2, 1))


def test_a_flow_repeats_by_seed(check):
    weights = [check.make_flow("spline", seed=seed).weights for seed in (1, 1, 2)]
    assert all(np.array_equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(weights[0], weights[2], strict=True))
