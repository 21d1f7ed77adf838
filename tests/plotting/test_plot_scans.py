"""Profile scans with intervals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gbistat.errors import OptionError
from gbistat.inference.results import IntervalResult
from gbistat.plotting.scans import draw_profile


def legend_texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_curve_holds_the_scan_the_best_fit_and_the_ends(axes, profile):
    scan, intervals = profile(points=20)
    (ax,) = axes()
    x, q = draw_profile(scan, intervals, ax)["curve"].get_data()
    assert np.all(np.diff(x) > 0)
    assert set(scan.values) <= set(x)
    np.testing.assert_allclose(q[np.isin(x, scan.values)], scan.q)
    assert q[x == 103.0] == [0.0]
    for interval in intervals:
        assert q[x == interval.low] == q[x == interval.high] == [interval.threshold]


def test_ends_of_other_constructions_are_not_put_on_the_curve(axes, profile):
    scan, intervals = profile()
    (ax,) = axes()
    others = [replace(interval, method="feldman-cousins") for interval in intervals]
    x, _ = draw_profile(scan, others, ax)["curve"].get_data()
    assert intervals[1].low not in x


def test_thresholds_ends_and_best_fit(axes, profile):
    scan, intervals = profile()
    (ax,) = axes()
    artists = draw_profile(scan, intervals[::-1], ax, label="signal events in the window")
    assert ax.get_xlabel() == "signal events in the window"
    assert [line.get_ydata()[0] for line in artists["thresholds"]] == [i.threshold for i in intervals]
    assert [text.get_text() for text in artists["threshold_labels"]] == ["68.27 %", "95 %"]
    for text, interval in zip(artists["threshold_labels"], intervals, strict=True):
        assert text.get_position()[1] == interval.threshold
    for line, interval in zip(artists["ends"], intervals, strict=True):
        np.testing.assert_allclose(line.get_xdata(), interval.segments[0])
    assert set(artists["best"].get_xdata()) == {103.0}
    assert legend_texts(ax) == ["best fit 103", "68.27 %: [74, 132]", "95 %: [46, 160]"]


@pytest.mark.parametrize(("best", "sigma"), [(-12.0, 19.0), (2.3e-6, 1.1e-6), (2.3e6, 4e3), (0.0, 1.0)])
def test_all_of_the_intervals_is_in_view_and_the_legend_hides_nothing(axes, profile, free_of, best, sigma):
    scan, intervals = profile(best=best, sigma=sigma)
    (ax,) = axes()
    draw_profile(scan, intervals, ax)
    left, right = ax.get_xlim()
    assert left < intervals[1].low < intervals[1].high < right
    assert right - left < 1.6 * (intervals[1].high - intervals[1].low)
    bottom, top = ax.get_ylim()
    assert bottom == 0.0
    assert top > intervals[1].threshold
    grid = np.linspace(left, right, 300)
    assert free_of(ax, grid, ((grid - best) / sigma) ** 2)


def test_long_numbers_go_into_the_label_of_the_axis(axes, profile):
    scan, intervals = profile(best=2.3e-6, sigma=1.1e-6)
    (ax,) = axes()
    draw_profile(scan, intervals, ax)
    assert ax.get_xlabel() == r"signal strength $\mu$ / $\mathrm{10^{-6}}$"
    ax.figure.draw_without_rendering()
    shown = {text.get_text() for text in ax.get_xticklabels()}
    assert {"1", "2", "3"} <= shown
    assert ax.xaxis.get_offset_text().get_text() == ""


@pytest.mark.parametrize(
    ("options", "markers", "text"),
    [
        ({"best": 3.0, "sigma": 9.0, "low": 0.0}, ["<"], r"95 %: $\leq$ 20.6"),
        ({"best": 3.0, "sigma": 9.0, "high": 12.5}, [">"], r"95 %: $\geq$ −14.6"),
        ({"best": 3.0, "sigma": 9.0, "low": 0.0, "high": 9.0}, ["<", ">"], "95 %: open on both sides"),
    ],
)
def test_open_ends_are_arrows_at_the_edge(axes, profile, options, markers, text):
    scan, intervals = profile(**options)
    (ax,) = axes()
    artists = draw_profile(scan, intervals, ax)
    lines = artists["segments"][1]
    assert [line.get_marker() for line in lines[1:]] == markers
    for line in lines[1:]:
        assert line.get_xdata()[0] in ax.get_xlim()
    assert legend_texts(ax)[2] == text


def test_an_interval_of_two_pieces(axes, profile):
    scan, _ = profile()
    pieces = ((20.0, 60.0), (90.0, 130.0))
    (ax,) = axes()
    artists = draw_profile(scan, [IntervalResult("mu", 0.95, pieces, 103.0, 3.84)], ax)
    assert [tuple(line.get_xdata()) for line in artists["segments"][0]] == list(pieces)
    np.testing.assert_allclose(artists["ends"][0].get_xdata(), [20.0, 60.0, 90.0, 130.0])
    assert legend_texts(ax)[1] == r"95 %: [20, 60] $\cup$ [90, 130]"


def test_short_broken_and_bare_scans_are_drawn(axes, profile):
    scan, intervals = profile()
    broken = np.where(np.arange(41) % 5 == 0, np.nan, scan.q)
    draw_profile(replace(scan, q=broken), intervals, *axes())
    draw_profile(replace(scan, values=scan.values[:1], q=scan.q[:1]), intervals, *axes())
    draw_profile(scan, [], *axes())
    draw_profile(replace(scan, values=scan.values[:5], q=scan.q[:5] + 100.0), [intervals[0]], *axes())


def test_an_interval_of_another_parameter_is_refused(axes, profile):
    scan, _ = profile()
    _, others = profile(poi="m_X")
    with pytest.raises(OptionError, match="an interval of m_X does not belong on a scan of mu"):
        draw_profile(scan, others, *axes())
