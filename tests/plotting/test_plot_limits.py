"""CLs scans, limits against the window, limits side by side."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from gbistat.data.window import MassWindow
from gbistat.errors import OptionError
from gbistat.plotting.limits import draw_cls_scan, draw_comparison, draw_limits


def legend_texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def ranges(bars):
    """(low, high) of vertical bars."""
    return np.array([(bar.get_y(), bar.get_y() + bar.get_height()) for bar in bars])


def test_cls_curves_and_bands_are_those_of_the_scan(axes, cls_scan, limit):
    scan = cls_scan()
    (ax,) = axes()
    artists = draw_cls_scan(scan, limit(), ax, label="signal events in the window")
    np.testing.assert_allclose(artists["observed"].get_data(), [scan.values, scan.observed])
    np.testing.assert_allclose(artists["median"].get_data(), [scan.values, scan.expected[:, 2]])
    for name, low, high in (("two_sigma", 0, 4), ("one_sigma", 1, 3)):
        corners = artists[name].get_paths()[0].vertices
        for column in (low, high):
            edge = np.column_stack([scan.values, scan.expected[:, column]])
            assert all(np.isclose(corners, point).all(axis=1).any() for point in edge)
    assert ax.get_xlabel() == "signal events in the window"
    assert "CL" in ax.get_ylabel()


def test_limits_are_marked_where_cls_is_alpha(axes, cls_scan, limit):
    result = limit(cl=0.9)
    artists = draw_cls_scan(cls_scan(), result, *axes())
    assert artists["alpha"].get_ydata()[0] == pytest.approx(0.1)
    assert artists["alpha_label"].get_text() == "0.1"
    np.testing.assert_allclose(artists["limit"].get_data(), [[result.observed], [0.1]])
    np.testing.assert_allclose(artists["expected_limit"].get_data(), [[result.expected[2]], [0.1]])


def test_cls_legend_gives_the_numbers(axes, cls_scan, limit, free_of):
    (ax,) = axes()
    scan = cls_scan()
    draw_cls_scan(scan, limit(), ax)
    assert legend_texts(ax)[-2:] == ["95 % CL limit 151", r"expected $\mathrm{57^{+22}_{-16}}$"]
    upper = np.maximum(scan.observed, scan.expected[:, 4])
    assert free_of(ax, scan.values, upper)


@pytest.mark.parametrize("high", [60.0, 260.0, 5000.0])
def test_cls_scan_shows_the_limits_and_little_beyond(axes, cls_scan, limit, high):
    result = limit()
    (ax,) = axes()
    draw_cls_scan(cls_scan(high=high, points=200), result, ax)
    assert result.observed <= ax.get_xlim()[1] <= 1.7 * result.observed


def test_a_cls_scan_without_a_finite_observed_limit_is_drawn(axes, cls_scan, limit):
    (ax,) = axes()
    draw_cls_scan(cls_scan(), replace(limit(), observed=float("inf")), ax)
    assert legend_texts(ax)[-2] == "95 % CL limit ?"


def test_a_limit_on_another_parameter_is_refused(axes, cls_scan, limit):
    with pytest.raises(OptionError, match="a limit on m_X does not belong on a scan of mu"):
        draw_cls_scan(cls_scan(), limit(poi="m_X"), *axes())


@pytest.mark.parametrize("count", [1, 12, 50])
def test_limits_stand_at_their_windows(axes, limit, free_of, count):
    windows = [MassWindow(2900.0 + 200 * k, 3100.0 + 200 * k) for k in range(count)]
    limits = [limit(best=20.0 * np.sin(k), sigma=40.0 * np.exp(-k / 10)) for k in range(count)]
    order = np.random.default_rng(1).permutation(count)
    (ax,) = axes()
    shuffled = [windows[k] for k in order], [limits[k] for k in order]
    artists = draw_limits(*shuffled, ax, "signal events in the window", mass_name="m_jj")
    points = artists["observed"][0]
    np.testing.assert_allclose(points.get_xdata(), [window.centre for window in windows])
    np.testing.assert_allclose(points.get_ydata(), [result.observed for result in limits])
    expected = np.array([result.expected for result in limits])
    np.testing.assert_allclose(ranges(artists["one_sigma"]), expected[:, [1, 3]])
    np.testing.assert_allclose(ranges(artists["two_sigma"]), expected[:, [0, 4]])
    bars = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in artists["two_sigma"]]
    np.testing.assert_allclose(bars, [window.edges for window in windows])
    medians = [segment[0, 1] for segment in artists["median"].get_segments()]
    np.testing.assert_allclose(medians, expected[:, 2])
    assert ax.get_xlabel() == "$m_{jj}$ [GeV]"
    assert ax.get_ylabel() == "95 % CL limit on signal events in the window"
    assert free_of(ax, points.get_xdata(), np.maximum(expected[:, 4], points.get_ydata()))


def test_overlapping_windows_keep_their_extent_on_the_points(axes, limit):
    windows = [MassWindow(3000.0 + 200 * k, 3400.0 + 200 * k) for k in range(12)]
    artists = draw_limits(windows, [limit()] * 12, *axes(), "mu")
    (bars,) = artists["observed"][2]
    drawn = [tuple(segment[:, 0]) for segment in bars.get_segments()]
    np.testing.assert_allclose(drawn, [window.edges for window in windows])
    bands = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in artists["two_sigma"]]
    assert all(first[1] < second[0] for first, second in pairwise(bands))


def test_windows_with_a_common_centre_stand_under_their_names(axes, limit):
    windows = [MassWindow(3500.0 - half, 3500.0 + half) for half in (400, 200)]
    (ax,) = axes()
    draw_limits(windows, [limit(), limit(sigma=35.0)], ax, "mu", mass_name="m_jj")
    assert [text.get_text() for text in ax.get_xticklabels()] == ["3300–3700", "3100–3900"]
    assert ax.get_xlabel() == "window in $m_{jj}$ [GeV]"


def test_limit_axis_is_logarithmic_only_where_needed(axes, limit):
    windows = [MassWindow(1.0, 2.0, "TeV"), MassWindow(2.0, 3.0, "TeV")]
    first, second = axes(2)
    draw_limits(windows, [limit(), limit(sigma=35.0)], first, "mu")
    assert first.get_yscale() == "linear"
    assert first.get_ylim()[0] == 0.0
    draw_limits(windows, [limit(best=0.0, sigma=3e5), limit(best=0.0, sigma=1.0)], second, "mu")
    assert second.get_yscale() == "log"
    assert second.get_xlabel() == "mass [TeV]"


def test_missing_limits_leave_a_gap(axes, limit):
    windows = [MassWindow(1000.0, 2000.0), MassWindow(2000.0, 3000.0)]
    broken = replace(limit(), observed=float("nan"))
    artists = draw_limits(windows, [limit(), broken], *axes(), "mu")
    assert np.isnan(artists["observed"][0].get_ydata()[1])


@pytest.mark.parametrize(
    ("windows", "change", "message"),
    [
        ([MassWindow(1, 2)], {}, "1 windows and 2 limits"),
        ([MassWindow(1, 2), MassWindow(2, 3, "TeV")], {}, "windows in GeV and TeV do not fit"),
        ([MassWindow(1, 2), MassWindow(2, 3)], {"cl": 0.9}, "limits at 90 % and 95 % do not compare"),
        ([MassWindow(1, 2), MassWindow(2, 3)], {"poi": "m_X"}, "limits on m_X and mu do not compare"),
    ],
)
def test_limits_that_do_not_fit_together_are_refused(axes, limit, windows, change, message):
    with pytest.raises(OptionError, match=message):
        draw_limits(windows, [limit(), replace(limit(), **change)], *axes(), "mu")


def test_no_limits_are_refused(axes):
    with pytest.raises(OptionError, match="there is no limit to draw"):
        draw_limits([], [], *axes(), "mu")
    with pytest.raises(OptionError, match="there is no limit to draw"):
        draw_comparison([], *axes())


def test_comparison_has_a_row_a_method_from_the_top(axes, limit):
    rows = [
        ("unbinned", limit()),
        ("binned in log ratio", limit(sigma=31.0)),
        ("binned in $m_{jj}$", limit(sigma=80.0)),
    ]
    (ax,) = axes()
    artists = draw_comparison(rows, ax)
    assert [text.get_text() for text in ax.get_yticklabels()] == [name for name, _ in rows]
    x, y = artists["points"].get_data()
    np.testing.assert_allclose(x, [result.observed for _, result in rows])
    assert np.all(np.diff(y) < 0)
    drawn = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in artists["one_sigma"]]
    np.testing.assert_allclose(drawn, [(result.expected[1], result.expected[3]) for _, result in rows])
    assert ax.get_xlabel() == r"95 % CL limit on signal strength $\mu$"
    assert artists["numbers"][1].get_text() == r"151 ($\mathrm{57^{+22}_{-16}}$)"
    assert len(artists["numbers"]) == 4
