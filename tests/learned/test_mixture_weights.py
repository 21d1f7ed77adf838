"""Weights of mixtures: against scipy, with the duality gap as a proof."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import LinearConstraint, minimize

from gbistat.errors import EventsError, OptionError
from gbistat.inference.mixture_weights import maximise_mixture


def columns(n, signal, background, seed=3):
    rng = np.random.default_rng(seed)
    return np.vstack([0.2 * rng.normal(size=(background, n)), -4.0 + 3.0 * rng.normal(size=(signal, n))])


@pytest.mark.parametrize(("signal", "background", "w"), [(2, 1, 0.1), (3, 2, 0.02), (1, 4, 0.5)])
def test_agrees_with_a_general_minimiser(signal, background, w):
    logs, groups = columns(150, signal, background), np.repeat([0, 1], [background, signal])
    found = maximise_mixture(logs, (1.0 - w, w), groups, tolerance=1e-8)
    a = np.exp(logs)
    totals = LinearConstraint((groups[None] == np.arange(2)[:, None]).astype(float), [1.0 - w, w], [1.0 - w, w])
    start = np.where(groups == 0, (1.0 - w) / background, w / signal)
    other = minimize(
        lambda b: -np.log(b @ a).sum(),
        start,
        jac=lambda b: -a @ (1.0 / (b @ a)),
        bounds=[(0, 1)] * len(a),
        constraints=totals,
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert found.value == pytest.approx(-other.fun, abs=1e-5)
    assert found.gap < 1e-8
    np.testing.assert_allclose(found.weights, other.x, atol=2e-4)


def test_no_weights_exceed_the_upper_bound_even_when_stopped_early():
    logs = 4.0 * columns(400, 0, 6)
    early, rng = maximise_mixture(logs, max_iterations=1, tolerance=0.0), np.random.default_rng(1)
    best = maximise_mixture(logs, tolerance=1e-9)
    assert early.value <= best.value <= early.upper_bound
    rows = np.exp(logs) / (early.weights @ np.exp(logs))
    assert early.gap == pytest.approx(rows.sum(axis=1).max() - 400, rel=1e-6)
    for b in rng.dirichlet(np.full(6, 0.3), 200):
        assert np.log(b @ np.exp(logs)).sum() <= best.upper_bound


def test_two_components_have_the_closed_form_of_a_binomial():
    # 30 events that only the first density makes twice as often, 70 the other way round.
    logs = np.log(np.where(np.arange(100) < 30, [[2.0], [0.5]], [[0.5], [2.0]]))
    # Stationary point of 30 ln(0.5 + 1.5 b) + 70 ln(2 - 1.5 b): 30 (2 - 1.5 b) = 70 (0.5 + 1.5 b).
    found = maximise_mixture(logs, tolerance=1e-10)
    assert found.weights[0] == pytest.approx(25.0 / 150.0, abs=1e-6)


def test_the_maximum_may_be_a_corner_and_a_density_may_be_zero():
    logs = np.array([[0.0, 0.0, -np.inf], [-1.0, -1.0, 0.0], [-3.0, -3.0, -3.0]])
    found = maximise_mixture(logs, tolerance=1e-9)
    assert found.weights[2] == pytest.approx(0.0, abs=1e-6)
    assert found.gap < 1e-9


def test_a_group_without_weight_is_left_out():
    logs = columns(50, 2, 1)
    found = maximise_mixture(logs, (1.0, 0.0), np.array([0, 1, 1]))
    assert found.value == pytest.approx(logs[0].sum())
    assert found.weights.tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("logs", "totals", "groups", "error", "message"),
    [
        (np.empty((2, 0)), (1.0,), None, EventsError, "there are no events to fit weights to"),
        (np.full((1, 3), np.nan), (1.0,), None, EventsError, "NaN or infinite relative to the background"),
        (np.full((2, 3), -np.inf), (1.0,), None, EventsError, "3 of 3 events have density 0 in every component"),
        (np.zeros((2, 3)), (1.0,), np.array([0, 1]), OptionError, "need a group each, below the 1 totals"),
        (np.zeros((1, 3)), (0.5, 0.5), None, OptionError, r"group 1 has weight 0.5 and no density"),
        (np.zeros((1, 3)), (-1.0,), None, OptionError, "must not be negative"),
    ],
)
def test_errors(logs, totals, groups, error, message):
    with pytest.raises(error, match=message):
        maximise_mixture(logs, totals, groups)
