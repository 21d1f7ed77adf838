"""Errors of masses and strength beside statistical ones: known scatter, and a term that is off by a known factor."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from gbistat.training.paws_errors import fit_shifts, scale_study, strength_error
from gbistat.training.paws_mass_map import MassMap, shift_terms

WIDTH = 0.08


def scatter(masses, shifts, errors):
    """Error of the mass scale without a map."""
    return fit_shifts(masses, shifts, errors, np.empty((masses.size, 0))).error


def test_scatter_of_shifts_beside_their_errors():
    """100 x 2000 shifts of a known error: within a few per cent of it (5 of its statistical errors)."""
    rng = np.random.default_rng(61)
    masses = rng.uniform(50.0, 600.0, 2000)
    errors = rng.uniform(0.001, 0.006, masses.size)
    true = np.hypot(1.5 / masses, 0.006)
    found = scatter(masses, rng.normal(0.0, np.hypot(true, errors)), errors)
    assert found.sigma(100.0) == pytest.approx(100.0 * np.hypot(0.015, 0.006), rel=0.1)
    assert found.sigma(500.0) == pytest.approx(500.0 * np.hypot(0.003, 0.006), rel=0.1)


def test_shifts_within_their_errors_ask_for_next_to_nothing():
    rng = np.random.default_rng(62)
    masses, errors = rng.uniform(50.0, 600.0, 400), np.full(400, 0.004)
    found = scatter(masses, rng.normal(0.0, errors), errors)
    assert found.sigma(300.0) < 0.25 * 300.0 * 0.004


TRUE = np.array([-0.002, -0.03, 0.01])


def test_coefficients_of_a_map_and_what_it_leaves():
    """36 shifts as at export, 150 times: coefficients right on average, errors of the mass scale cover what the map has wrong."""
    rng = np.random.default_rng(65)
    pairs = -np.sort(-np.exp(rng.uniform(np.log(55.0), np.log(580.0), (18, 2))), axis=1)
    masses, other = pairs.ravel(), pairs[:, ::-1].ravel()
    terms = np.stack(shift_terms(masses, other, 50.0), axis=1)
    errors = 0.003 + 0.6 / masses
    found, pulls = [], []
    for _ in range(150):
        own = rng.normal(0.0, 0.004, masses.size)
        fit = fit_shifts(masses, terms @ TRUE + own + rng.normal(0.0, errors), errors, terms)
        found.append(fit.coefficients)
        sigma = np.array([fit.error.sigma(m) / m for m in masses])
        pulls.append((terms @ (TRUE - np.array(fit.coefficients)) + own) / sigma)
    error = np.std(found, axis=0) / np.sqrt(150.0)
    np.testing.assert_array_less(np.abs(np.mean(found, axis=0) - TRUE), 4.0 * error)
    # A share of fits finds no scatter at all where there is some; the error of the coefficients is there still.
    assert 0.75 < np.sqrt(np.median(np.square(pulls))) / 0.674 < 1.25


class Term:
    """ln r with its maximum at the jets' masses times a factor."""

    def __init__(self, factor, coefficients=None):
        self.factor = factor
        self.map = None if coefficients is None else MassMap(50.0, (tuple(coefficients),) * 2)

    def log_ratio(self, events, *, m_X, m_Y):
        a, b = np.log(self.factor * events.features).T
        x, y = np.log([m_X, m_Y])
        if self.map is not None:
            x, y = np.log([m_X, m_Y]) - _true(np.array([m_X, m_Y]), self.map)
        return -0.5 * ((a - x) ** 2 + (b - y) ** 2) / WIDTH**2


def _true(found, mass_map):
    """ln(m' / m) at the m whose m' is given."""
    guess = found
    for _ in range(12):
        guess = found * np.exp(-mass_map.shifts(guess[None])[0])
    return np.log(found / guess)


def card(symmetric):
    inputs = [SimpleNamespace(name=name, unit="GeV") for name in ("a", "b")]
    parameters = [SimpleNamespace(name=name, low=50.0, high=600.0) for name in ("m_X", "m_Y")]
    return SimpleNamespace(
        features=("a", "b"), inputs=inputs, parameters=parameters, masses=("m_X", "m_Y"), symmetric=symmetric,
        mass="m_jj", unit="GeV",
    )  # fmt: skip


def signal_rows(symmetric, count=60, seed=63, events=100):
    rng = np.random.default_rng(seed)
    points = np.exp(rng.uniform(np.log(55.0), np.log(590.0), (count, 2)))
    if symmetric:
        points = -np.sort(-points, axis=1)
    theta = np.repeat(points, events, axis=0)
    return np.column_stack([np.full(len(theta), 3500.0), theta * np.exp(rng.normal(0.0, WIDTH, theta.shape)), theta])


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_term_that_is_off_by_one_per_cent(symmetric):
    """36 to 72 shifts: no pull of 4.5; the map of a third as many is right within 0.6 %, four of its errors."""
    found = scale_study(Term(1.01), signal_rows(symmetric), card(symmetric))
    assert sum(cell.n_events for cell in found.cells) > 4000
    for cell in found.cells:
        error = np.array(cell.sigma) / np.sqrt(cell.n_events)
        np.testing.assert_allclose(cell.sigma, WIDTH, rtol=0.02)
        np.testing.assert_array_less(np.abs(np.array(cell.shift) - np.log(1.01)), 4.5 * error)
    np.testing.assert_allclose(found.map.shifts(np.array([[300.0, 180.0], [500.0, 450.0]])), np.log(1.01), atol=0.006)
    assert found.map.coefficients[0] == found.map.coefficients[1] or not symmetric
    assert all(item.sigma(300.0) < 300.0 * 0.003 for item in found.error.values())


def test_a_map_undoes_what_a_term_has_wrong():
    true = (-0.004, -0.06, 0.02)
    found = scale_study(Term(1.0, true), signal_rows(True, 60, 66), card(True))
    masses = np.array([[500.0, 60.0], [150.0, 120.0], [500.0, 420.0], [300.0, 100.0]])
    expected = MassMap(50.0, (true, true)).shifts(masses)
    assert np.abs(expected).max() > 0.05
    # 7,500 events of 8 % have 0.1 % on an average shift; four times that, a little more at the edges.
    np.testing.assert_allclose(found.map.shifts(masses), expected, atol=0.006)
    left = np.array([row["left"] for row in found.to_json()["cells"]])
    shift = np.array([row["shift"] for row in found.to_json()["cells"]])
    assert np.abs(left).mean() < 0.35 * np.abs(shift).mean()


def test_a_slope_of_kappa_moves_masses():
    """The maximum of -(x - ln f)^2 / 2 w^2 + s ln f is s w^2 away."""
    rows, slope = signal_rows(False, 20), 1.5
    plain, moved = (
        scale_study(Term(1.0), rows, card(False), kappa)
        for kappa in (None, lambda masses: slope * np.log(masses[:, 0]))
    )
    for a, b in zip(plain.cells, moved.cells, strict=True):
        np.testing.assert_allclose(np.subtract(b.shift, a.shift), [slope * WIDTH**2, 0.0], atol=2e-4)


def test_few_cells_give_no_map_and_all_of_the_shift_as_error():
    found = scale_study(Term(1.02), signal_rows(False, 6, 67), card(False))
    assert 2 <= len(found.cells) < 9
    assert found.map is None
    for item in found.error.values():
        assert item.sigma(300.0) == pytest.approx(300.0 * np.log(1.02), rel=0.35)
    assert all(row["left"] == row["shift"] for row in found.to_json()["cells"])


def test_too_little_signal_gives_no_error():
    rows = np.column_stack([np.full(40, 3500.0), np.full((40, 2), 300.0), np.full((40, 2), 300.0)])
    assert scale_study(Term(1.0), rows, card(False)).to_json() == {"cells": [], "map": None, "error": {}}


def test_the_graph_asks_its_network_where_the_map_says():
    """A Keras network of the masses themselves; exchanged masses with the same coefficients give the same bits."""
    keras = pytest.importorskip("keras")
    inputs = keras.Input((4,))
    ops = keras.ops
    product = ops.log(inputs[:, 2:3] * inputs[:, 3:4]) + ops.square(ops.log(inputs[:, 2:3]) - ops.log(inputs[:, 3:4]))
    network = keras.Model(inputs, inputs[:, :1] + product)
    masses = np.random.default_rng(68).uniform(50.0, 600.0, (200, 2))
    x = np.column_stack([np.linspace(-1.0, 1.0, 200), np.zeros(200), masses]).astype(np.float32)
    mass_map = MassMap(50.0, ((0.01, -0.05, 0.02),) * 2)
    moved = masses * np.exp(mass_map.shifts(masses))
    expected = x[:, 0] + np.log(moved).sum(axis=1) + np.diff(np.log(moved), axis=1)[:, 0] ** 2
    applied = mass_map.applied(network)
    values = np.asarray(applied(x))[:, 0]
    np.testing.assert_allclose(values, expected, rtol=2e-6)
    assert np.abs(np.asarray(network(x))[:, 0] - values).max() > 0.05
    np.testing.assert_array_equal(np.asarray(applied(x[:, [0, 1, 3, 2]]))[:, 0], values)


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
