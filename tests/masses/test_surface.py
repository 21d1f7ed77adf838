"""Splines of a ratio over the masses, and its normalisation."""

from __future__ import annotations

import numpy as np
import pytest

from gbistat.errors import ModelError, ParameterError
from gbistat.likelihood.kappa import FEWEST, normalised_surface
from gbistat.likelihood.surface import RatioSurface, exchangeable, node_values
from gbistat.likelihood.theta_grid import ThetaGrid, grid_of


def test_a_quadratic_log_ratio_is_exact(blob):
    rng = np.random.default_rng(1)
    events = blob.events(blob.background(300, rng))
    grid = grid_of(blob.ranges, {"m_X": 50.0, "m_Y": 25.0})
    assert grid.shape == (12, 23)
    factor = RatioSurface(blob.Blob(), grid, np.zeros(grid.shape)).prepare(events)
    for theta in ([50.0, 600.0], [333.3, 127.9], [600.0, 50.0]):
        point = np.array(theta)
        np.testing.assert_allclose(
            factor.log_prob(point), blob.Blob().log_ratio(events, m_X=theta[0], m_Y=theta[1]), atol=1e-9
        )
        log, slope, bend = factor.derivatives(point)
        np.testing.assert_allclose(log, factor.log_prob(point), rtol=1e-12)
        np.testing.assert_allclose(slope, (events.features - point).T / blob.width**2, atol=1e-9)
        expected = -np.eye(2)[:, :, None] / blob.width**2
        np.testing.assert_allclose(bend, np.broadcast_to(expected, bend.shape), atol=1e-10)


def test_derivatives_of_a_ratio_that_is_no_polynomial(blob):
    rng = np.random.default_rng(2)
    events = blob.events(blob.background(9000, rng))  # more than one block
    grid = grid_of(blob.ranges)
    factor = RatioSurface(blob.Blob(symmetric=True), grid, np.zeros(grid.shape)).prepare(events)
    theta = np.array([310.0, 287.0])
    few = np.array([0, 17, 8191, 8192, 8999])
    step = 1e-3 * np.eye(2)
    slope = [(factor.log_prob(theta + h)[few] - factor.log_prob(theta - h)[few]) / 2e-3 for h in step]
    np.testing.assert_allclose(factor.derivatives(theta)[1][:, few], slope, rtol=1e-6, atol=1e-8)
    up, down = ([factor.derivatives(theta + sign * h)[1][:, few] for h in step] for sign in (1, -1))
    bend = (np.array(up) - np.array(down)) / 2e-3
    np.testing.assert_allclose(factor.derivatives(theta)[2][:, :, few], bend, rtol=1e-5, atol=1e-9)


def test_interpolation_error_falls_with_the_step(blob):
    rng = np.random.default_rng(3)
    events = blob.events(blob.signal(2000, (300.0, 280.0), rng))
    exact = blob.Blob(symmetric=True).log_ratio(events, m_X=296.0, m_Y=273.0)
    errors = []
    for step in (50.0, 25.0, 12.5):
        grid = ThetaGrid(("m_X", "m_Y"), (np.arange(150.0, 451.0, step),) * 2)
        factor = RatioSurface(blob.Blob(symmetric=True), grid, np.zeros(grid.shape)).prepare(events)
        errors.append(np.abs(factor.log_prob(np.array([296.0, 273.0])) - exact).max())
    # Cubic splines: fourth order, 16 where the step is small against the structure.
    assert errors[1] < errors[0] / 4
    assert errors[2] < errors[1] / 6


def test_the_network_is_asked_once_for_each_set_of_events(blob):
    term = blob.Blob()
    grid = grid_of(blob.ranges, {"m_X": 100.0, "m_Y": 100.0})
    rng = np.random.default_rng(4)
    pool, data = (blob.events(blob.background(500, rng)) for _ in range(2))
    surface, _ = normalised_surface(term, grid, pool)
    calls = term.calls
    # Two more ask whether the masses can be exchanged; they cannot.
    assert calls == len(grid.nodes) + 2
    surface.prepare(pool)
    assert term.calls == calls
    surface.prepare(data)
    surface.prepare(data)
    assert term.calls == 2 * calls


def test_exchangeable_masses_cost_half(blob):
    term = blob.Blob(symmetric=True)
    grid = grid_of(blob.ranges, {"m_X": 100.0, "m_Y": 100.0})
    events = blob.events(blob.background(300, np.random.default_rng(9)))
    values = node_values(term, grid, events)
    assert term.calls == 6 + 7 * 8 // 2
    for place in ((0, 6), (6, 0), (2, 5), (3, 3)):
        exact = term.log_ratio(events, m_X=grid.axes[0][place[0]], m_Y=grid.axes[1][place[1]])
        np.testing.assert_array_equal(values[place], exact)
    other = ThetaGrid(("m_X", "m_Y"), (grid.axes[0], grid.axes[1] + 1.0))
    assert not exchangeable(term, other, events)


def test_kappa_undoes_a_wrong_normalisation(blob):
    rng = np.random.default_rng(5)
    pool = blob.events(blob.background(10_000, rng))
    inner = ThetaGrid(("m_X", "m_Y"), (np.arange(150.0, 501.0, 50.0),) * 2)
    for scale in (1.0, 7.0):
        surface, kappa = normalised_surface(blob.Blob(scale=scale), inner, pool)
        # Away from the edges the truth is -ln(scale): within four errors everywhere, and much nearer than node by node.
        pull = (kappa.log_kappa + np.log(scale)) / kappa.error
        assert np.abs(pull).max() < 4.0
        assert kappa.error.max() < 0.6 * kappa.raw_error.min()
        assert np.abs(kappa.log_kappa + np.log(scale)).max() < np.abs(kappa.raw + np.log(scale)).max()
        ratio = np.exp(surface.prepare(pool).log_prob(np.array([300.0, 300.0])))
        assert ratio.mean() == pytest.approx(1.0, abs=4 * kappa.raw_error[3, 3])
    # A flat background: 4 pi sigma^2 / side^2 of the events stand behind a blob.
    expected = 10_000 * 4 * np.pi * blob.width**2 / blob.side**2
    assert kappa.effective_size[3, 3] == pytest.approx(expected, rel=0.15)
    # One constant is enough, and the score of others on events that they do not know says so.
    assert kappa.form == "degree 0"
    assert kappa.scores["degree 0"] <= min(kappa.scores.values()) * 1.05
    assert (kappa.effective_size[2:-2, 2:-2] >= FEWEST).all()


def test_kappa_follows_what_other_events_confirm(blob):
    class Tilted(type(blob.Blob())):
        def log_ratio(self, events, *, m_X, m_Y):
            return super().log_ratio(events, m_X=m_X, m_Y=m_Y) + 0.8 * (m_X - 325.0) / 275.0

    pool = blob.events(blob.background(20_000, np.random.default_rng(11)))
    inner = ThetaGrid(("m_X", "m_Y"), (np.arange(150.0, 501.0, 50.0),) * 2)
    _, kappa = normalised_surface(Tilted(), inner, pool)
    truth = -0.8 * (inner.nodes[:, 0].reshape(inner.shape) - 325.0) / 275.0
    assert kappa.smooth.basis.degree >= 1
    assert np.abs(kappa.log_kappa - truth).max() < 4.5 * kappa.error.max()
    assert kappa.error.max() < kappa.raw_error.max()


def test_kappa_has_a_crease_at_equal_masses_and_an_edge_at_the_lower_ends(blob):
    """What a smooth network rounds off, and a polynomial alone would smear over the plane; within 4.5 errors everywhere."""

    class Creased(type(blob.Blob())):
        def log_ratio(self, events, *, m_X, m_Y):
            own = 0.5 * np.exp(-0.5 * (np.log(m_X / m_Y) / 0.1) ** 2) + 0.3 * (
                (m_X / 150.0) ** -5 + (m_Y / 150.0) ** -5
            )
            return super().log_ratio(events, m_X=m_X, m_Y=m_Y) + own

    pool = blob.events(blob.background(20_000, np.random.default_rng(13)))
    inner = ThetaGrid(("m_X", "m_Y"), (np.arange(150.0, 501.0, 50.0),) * 2)
    surface, kappa = normalised_surface(Creased(symmetric=True), inner, pool)
    assert kappa.smooth.basis.degree <= 1
    assert kappa.form.endswith(", lower ends, equal masses")
    a, b = inner.nodes.T
    truth = -0.5 * np.exp(-0.5 * (np.log(a / b) / 0.1) ** 2) - 0.3 * ((a / 150.0) ** -5 + (b / 150.0) ** -5)
    assert np.abs((kappa.log_kappa.ravel() - truth) / kappa.error.ravel()).max() < 4.5
    assert np.median(kappa.error) < 0.7 * np.median(kappa.raw_error)
    # Between the nodes it is the function itself: 20 GeV from the diagonal at 250 GeV no spline over 50 GeV would find it.
    crease = surface.log_kappa_at(np.array([260.0, 240.0])) - surface.log_kappa_at(np.array([400.0, 240.0]))
    assert crease == pytest.approx(-0.5 * np.exp(-0.5 * (np.log(26 / 24) / 0.1) ** 2), abs=0.08)
    # Masses that cannot be exchanged have no crease.
    _, plain = normalised_surface(blob.Blob(), inner, pool)
    assert all("equal" not in name for name in plain.scores)
    assert any("equal" in name for name in kappa.scores)


def test_nodes_with_hardly_an_event_do_not_count(blob):
    rng = np.random.default_rng(12)
    x = blob.background(6000, rng)
    pool = blob.events(x[(x[:, 0] < 420) | (rng.random(6000) < 0.02)])
    inner = ThetaGrid(("m_X", "m_Y"), (np.arange(150.0, 551.0, 50.0),) * 2)
    _, kappa = normalised_surface(blob.Blob(), inner, pool)
    assert (kappa.effective_size[-1] < FEWEST).all()
    assert (kappa.effective_size[1] >= FEWEST).all()
    assert np.isfinite(kappa.log_kappa).all()


def test_kappa_node_by_node_is_the_mean(blob):
    rng = np.random.default_rng(6)
    pool = blob.events(blob.background(3000, rng))
    grid = grid_of(blob.ranges, {"m_X": 110.0, "m_Y": 110.0})
    surface, kappa = normalised_surface(blob.Blob(), grid, pool, np.full(3000, 0.3), smooth=False)
    for node, value in zip(grid.nodes, kappa.log_kappa.ravel(), strict=True):
        ratio = np.exp(blob.Blob().log_ratio(pool, m_X=node[0], m_Y=node[1]) + 0.3)
        assert value == pytest.approx(-np.log(ratio.mean()), abs=1e-12)
    values = surface.prepare(pool).log_prob(grid.nodes[7]) + 0.3
    assert np.exp(values).mean() == pytest.approx(1.0, abs=1e-9)


def test_bad_grids(blob):
    with pytest.raises(ModelError, match="4 or more rising numbers"):
        ThetaGrid(("m_X",), (np.array([1.0, 2.0, 3.0]),))
    with pytest.raises(ModelError, match="rising"):
        ThetaGrid(("m_X",), (np.array([1.0, 3.0, 2.0, 4.0]),))
    with pytest.raises(ModelError, match="2 axes for the parameters m_X"):
        ThetaGrid(("m_X",), (np.arange(5.0), np.arange(5.0)))
    with pytest.raises(ModelError, match="both ends must be finite"):
        grid_of({"m_X": (50.0, np.inf)})
    with pytest.raises(ModelError, match="'m_Z', which no ratio depends on; nearest names: m_Y, m_X"):
        grid_of(blob.ranges, {"m_Z": 10.0})
    grid = grid_of(blob.ranges)
    with pytest.raises(ParameterError, match="m_Y = 601 is outside 50 to 600"):
        grid.weights(np.array([100.0, 601.0]))
    with pytest.raises(ModelError, match="kappa of shape"):
        RatioSurface(blob.Blob(), grid, np.zeros(4))
