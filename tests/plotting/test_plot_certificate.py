"""Figures of certificates: what is drawn is what was measured."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from gbistat.diagnostics.calibration import calibrate
from gbistat.diagnostics.closure import reweighting_closure
from gbistat.diagnostics.impact import Impact, pool_windows
from gbistat.diagnostics.nplm import nplm_test
from gbistat.diagnostics.nplm_kernel import NplmOptions
from gbistat.diagnostics.permutations import permutation_test
from gbistat.diagnostics.pulls import generator_pulls
from gbistat.diagnostics.roc import roc_curve
from gbistat.diagnostics.weights import Estimate, Scores
from gbistat.plotting.certificate import draw_closure, draw_generator_errors, draw_nplm, draw_null, draw_pulls
from gbistat.plotting.impact import draw_impact
from gbistat.plotting.nplm_map import draw_nplm_map
from gbistat.plotting.style import styled
from gbistat.plotting.weights import (
    density_histogram,
    draw_calibration,
    draw_log_weights,
    draw_roc,
    draw_slices,
    draw_weights,
)

D = 0.5


@pytest.fixture(scope="module")
def toy():
    rng = np.random.default_rng(1)
    x = np.r_[rng.normal(size=3000), rng.normal(D, 1, 3000)]
    return x, Scores(0.5 * D * D - D * x, np.arange(6000) < 3000)


@pytest.fixture
def axes():
    with styled():
        yield Figure().subplots(2, 1)


def test_nothing_is_dropped_from_histograms():
    height, error, counts = density_histogram(np.array([-np.inf, 0.5, 7.0, np.inf]), np.array([0.0, 1.0, 3.0]))
    assert counts.tolist() == [2.0, 2.0]
    assert np.sum(height * [1.0, 2.0]) == pytest.approx(1.0)
    assert error == pytest.approx(np.sqrt([2.0, 2.0]) / (4 * np.array([1.0, 2.0])))


@pytest.mark.parametrize("log", [False, True])
def test_weights(toy, axes, log):
    artists = draw_weights(toy[1], axes[0], log=log)
    assert [text.get_text() for text in artists["legend"].get_texts()] == ["generated (3000)", "data (3000)"]
    assert axes[0].get_xscale() == ("log" if log else "linear")


def test_ratio_of_data_to_generated_events_follows_w(toy, axes):
    artists = draw_log_weights(toy[1], tuple(axes))
    x, y = artists["ratio"].lines[0].get_data()
    middle = np.abs(x) < 0.7
    # Bins of finite width and 3000 events each: 15 % of scatter.
    assert np.log(y[middle]) == pytest.approx(x[middle], abs=0.45)
    assert np.polyfit(x[middle], np.log(y[middle]), 1)[0] == pytest.approx(1.0, abs=0.15)


def test_roc_and_calibration(toy, axes):
    curve = roc_curve(toy[1])
    artists = draw_roc(curve, "AUC", axes[0])
    assert artists["curve"].get_ydata() == pytest.approx(curve.data - curve.generated)
    calibration = calibrate(toy[1])
    points = draw_calibration(calibration, axes[1])["points"].lines[0]
    assert points.get_ydata() == pytest.approx([b.n_data / b.n_generated for b in calibration.bins])


def test_slices_and_closure(toy, axes):
    x, scores = toy
    assert {"data", "generated", "large", "small", "legend"} == set(draw_slices(x, scores, axes[0], label="x"))
    (closure,) = reweighting_closure({"x": x}, scores)
    assert axes[0].get_xlabel() == "x"
    artists = draw_closure(closure, -3.0, 3.0, tuple(axes), label="x")
    assert f"after {closure.chi2_after:.0f}" in artists["legend"].get_title().get_text()


def test_null_distributions(toy, axes):
    test = permutation_test(toy[1], rng=np.random.default_rng(1), permutations=99)
    artists = draw_null(test, axes[0])
    assert artists["log_score"].get_xdata()[0] == pytest.approx(test["log_score"].z_null)
    rng = np.random.default_rng(2)
    options = NplmOptions(centres=10, permutations=29)
    result = nplm_test(rng.normal(size=(50, 1)), rng.normal(size=(200, 1)), rng=rng, options=options)
    assert draw_nplm(result, axes[1])["observed"].get_xdata()[0] == result.best.t


def test_pulls(axes):
    rng = np.random.default_rng(3)
    pulls = generator_pulls(0.05 * rng.normal(size=(20, 500)), 0.05 * rng.normal(size=500))
    texts = [text.get_text() for text in draw_pulls(pulls, axes[0])["legend"].get_texts()]
    assert any(f"width {pulls.width:.2f}" in text for text in texts)
    assert draw_generator_errors(pulls, axes[1])["errors"].lines[0].get_ydata() == pytest.approx(pulls.by_weight[:, 2])


def test_impact(axes):
    biases = [Estimate(1.0, 0.5), Estimate(-1.0, 0.5)]
    pooled = pool_windows([3200.0, 3900.0], biases, at=3500.0)
    impact = Impact(Estimate(-0.4, 0.3), -0.35, 4.0, 1000.0, 500, 500)
    artists = draw_impact(impact, pooled, axes[0], tolerance=0.2, window=(3300.0, 3700.0))
    assert artists["windows"].lines[0].get_xydata().tolist() == [[3200.0, 1.0], [3900.0, -1.0]]
    assert artists["all"].lines[0].get_xydata().tolist() == [[3500.0, -0.4]]
    (bound,) = artists["bound"].lines[2]
    assert bound.get_segments()[0][:, 1] == pytest.approx([-0.4 - 1.645 * 0.3, -0.4 + 1.645 * 0.3], abs=1e-3)
    assert artists["weights"].get_ydata() == pytest.approx([-0.35])
    assert artists["tolerance"].get_y() == -0.2
    assert artists["tolerance"].get_height() == pytest.approx(0.4)
    assert "below 0.89 at 95 %, tolerance 0.2" in artists["legend"].get_title().get_text()
    low, high = axes[0].get_ylim()
    assert low < -1.5
    assert high > 1.5
    # Without windows there is one point and no mass to speak of.
    assert set(draw_impact(impact, None, axes[1], tolerance=0.2)) == {
        "tolerance", "zero", "bound", "all", "weights", "legend",
    }  # fmt: skip


def test_nplm_map(axes):
    rng = np.random.default_rng(2)
    x, y, f = rng.normal(size=(3, 500))
    points = draw_nplm_map(x, y, f, axes[0], labels=("a", "b"))["points"]
    # Largest |f| last: on top.
    assert np.all(np.diff(np.abs(points.get_array())) >= 0)
    order = np.argsort(np.abs(f), kind="stable")
    assert np.asarray(points.get_offsets()) == pytest.approx(np.column_stack([x, y])[order])
    assert points.get_clim() == pytest.approx((-np.quantile(np.abs(f), 0.99), np.quantile(np.abs(f), 0.99)))
