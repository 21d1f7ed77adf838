"""Legends that hide nothing, labels that fit."""

from __future__ import annotations

import numpy as np
import pytest

from gbistat.plotting.layout import fit_label, place_legend, scaled_label

GRID = np.linspace(0.0, 1.0, 101)
SHAPES = {"falling": 1.0 - GRID, "rising": GRID, "valley": np.abs(2.0 * GRID - 1.0), "flat": np.ones(101)}


def draw(ax, shape, *, log=False):
    y = 10.0 ** (3.0 * SHAPES[shape]) if log else SHAPES[shape]
    (line,) = ax.plot(GRID, y)
    ax.set(xlim=(0.0, 1.0), ylim=(1.0, 1000.0) if log else (0.0, 1.0), yscale="log" if log else "linear")
    return line, y


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    ("shape", "third", "raised"),
    [("falling", 2, False), ("rising", 0, False), ("valley", 1, False), ("flat", 2, True)],
)
def test_legend_goes_where_there_is_room_and_makes_room_where_there_is_none(axes, free_of, shape, third, raised, log):
    (ax,) = axes()
    line, y = draw(ax, shape, log=log)
    before = ax.get_ylim()
    legend = place_legend(ax, [line], ["curve"], GRID, y)
    assert ax.get_ylim()[0] == before[0]
    assert bool(ax.get_ylim()[1] > before[1]) is raised
    assert free_of(ax, GRID, y)
    box, frame = legend.get_window_extent(), ax.get_window_extent()
    assert int(3 * (0.5 * (box.x0 + box.x1) - frame.x0) / frame.width) == third


def test_a_tall_legend_leaves_part_of_the_axes_to_the_data(axes):
    (ax,) = axes()
    line, y = draw(ax, "flat")
    place_legend(ax, [line] * 60, ["curve"] * 60, GRID, y)
    assert ax.get_ylim()[1] < 4.0


@pytest.mark.parametrize(
    ("limits", "label"),
    [
        ((0.0, 300.0), "events"),
        ((-0.004, 0.008), r"events / $\mathrm{10^{-3}}$"),
        ((0.0, 1.1e-5), r"events / $\mathrm{10^{-6}}$"),
        ((0.0, 7.5e5), r"events / $\mathrm{10^{5}}$"),
        ((12345.1, 12345.9), "events"),
    ],
)
def test_ticks_of_a_scaled_axis_are_short_and_true(axes, limits, label):
    (ax,) = axes()
    ax.set_xlim(*limits)
    scaled_label(ax, "x", "events")
    assert ax.get_xlabel() == label
    ax.figure.draw_without_rendering()
    power = label.partition("^{")[2].partition("}")[0] or "0"
    shown = [text.get_text().replace("\N{MINUS SIGN}", "-") for text in ax.get_xticklabels()]
    values = np.array([float(text) for text in shown]) * 10.0 ** int(power)
    np.testing.assert_allclose(values, ax.get_xticks(), rtol=1e-6, atol=1e-9 * max(map(abs, limits)))
    assert ax.xaxis.get_offset_text().get_text() == ""
    inside = [text for text, value in zip(shown, values, strict=True) if limits[0] <= value <= limits[1]]
    assert len(inside) >= 2
    assert sum(map(len, inside)) <= 45


def test_a_label_longer_than_its_axis_shrinks(axes):
    (ax,) = axes()
    ax.set_ylabel("short")
    size = ax.yaxis.label.get_fontsize()
    fit_label(ax, ax.yaxis.label, "y")
    assert ax.yaxis.label.get_fontsize() == size
    ax.set_ylabel("signal events in the window, " * 3)
    fit_label(ax, ax.yaxis.label, "y")
    assert 0.6 * size <= ax.yaxis.label.get_fontsize() < size
