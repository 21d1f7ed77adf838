"""Errors of masses and strength beside statistical ones: known scatter, and a term that is off by a known factor."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from gbistat.training.paws_errors import mass_scale, scale_study, strength_error

WIDTH = 0.08


def test_scatter_of_shifts_beside_their_errors():
    """100 x 2000 shifts of a known error: within a few per cent of it (5 of its statistical errors)."""
    rng = np.random.default_rng(61)
    masses = rng.uniform(50.0, 600.0, 2000)
    errors = rng.uniform(0.001, 0.006, masses.size)
    true = np.hypot(1.5 / masses, 0.006)
    found = mass_scale(masses, rng.normal(0.0, np.hypot(true, errors)), errors)
    assert found.sigma(100.0) == pytest.approx(100.0 * np.hypot(0.015, 0.006), rel=0.1)
    assert found.sigma(500.0) == pytest.approx(500.0 * np.hypot(0.003, 0.006), rel=0.1)


def test_shifts_within_their_errors_ask_for_next_to_nothing():
    rng = np.random.default_rng(62)
    masses, errors = rng.uniform(50.0, 600.0, 400), np.full(400, 0.004)
    found = mass_scale(masses, rng.normal(0.0, errors), errors)
    assert found.sigma(300.0) < 0.25 * 300.0 * 0.004


class Term:
    """ln r with its maximum at the jets' masses times a factor."""

    def __init__(self, factor):
        self.factor = factor

    def log_ratio(self, events, *, m_X, m_Y):
        a, b = events.features.T
        return -0.5 * (np.log(self.factor * a / m_X) ** 2 + np.log(self.factor * b / m_Y) ** 2) / WIDTH**2


def card(symmetric):
    inputs = [SimpleNamespace(name=name, unit="GeV") for name in ("a", "b")]
    parameters = [SimpleNamespace(name=name, low=50.0, high=600.0) for name in ("m_X", "m_Y")]
    return SimpleNamespace(
        features=("a", "b"), inputs=inputs, parameters=parameters, masses=("m_X", "m_Y"), symmetric=symmetric,
        mass="m_jj", unit="GeV",
    )  # fmt: skip


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_term_that_is_off_by_one_per_cent(symmetric):
    rng = np.random.default_rng(63)
    points = rng.uniform(60.0, 550.0, (120, 2))
    if symmetric:
        points = -np.sort(-points, axis=1)
    theta = np.repeat(points, 25, axis=0)
    jets = theta * np.exp(rng.normal(0.0, WIDTH, theta.shape))
    rows = np.column_stack([np.full(len(theta), 3500.0), jets, theta])
    found = scale_study(Term(1.01), rows, card(symmetric))
    assert sum(cell["n_events"] for cell in found["cells"]) > 2000
    for cell in found["cells"]:
        error = np.array(cell["sigma_of_one_event"]) / np.sqrt(cell["n_events"])
        np.testing.assert_allclose(cell["sigma_of_one_event"], WIDTH, rtol=0.02)
        np.testing.assert_array_less(np.abs(np.array(cell["shift"]) - np.log(1.01)), 4.5 * error)
    for name in ("m_X", "m_Y"):
        item = found["error"][name]
        assert np.hypot(item["absolute"] / 300.0, item["relative"]) == pytest.approx(np.log(1.01), rel=0.35)


def test_too_little_signal_gives_no_error():
    rows = np.column_stack([np.full(40, 3500.0), np.full((40, 2), 300.0), np.full((40, 2), 300.0)])
    assert scale_study(Term(1.0), rows, card(False)) == {"cells": []}


def grades(x, e):
    return [
        {"closure": {"sigma": b}, "closure_with_kappa_from": {"reference": {"fitted_over_true": a}}}
        for a, b in zip(x, e, strict=True)
    ]


def test_scatter_of_closure_beside_its_errors():
    """300 points: tau of 0.08 within 0.012, three of its statistical errors."""
    rng = np.random.default_rng(64)
    e = rng.uniform(0.05, 0.1, 300)
    assert strength_error(grades(rng.normal(1.0, np.hypot(0.08, e)), e)) == pytest.approx(0.08, abs=0.012)
    # A common shift is an error; less scatter than the errors say asks for none.
    assert strength_error(grades(np.full(300, 1.05), np.full(300, 0.01))) == pytest.approx(0.05, rel=0.05)
    assert strength_error(grades(rng.normal(1.0, 0.5 * e), e)) == 0.0
    assert strength_error(grades([1.3], [0.01])) == 0.0
