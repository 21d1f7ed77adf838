"""The mass spectrum: what is drawn is what the result holds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import poisson

from gbistat.data.window import MassWindow
from gbistat.plotting.mass import draw_spectrum, garwood_errors, nominal_width


def scale_of(spectrum):
    return nominal_width(spectrum.edges) / np.diff(spectrum.edges)


def test_garwood_intervals_have_the_tails_that_define_them():
    """P(N >= n | low) = P(N <= n | high) = 15.87 % (Garwood 1936)."""
    counts = np.array([1.0, 2.0, 7.0, 40.0, 3000.0])
    down, up = garwood_errors(counts)
    tail = 0.15865525393145707
    np.testing.assert_allclose(poisson.sf(counts - 1, counts - down), tail, rtol=1e-9)
    np.testing.assert_allclose(poisson.cdf(counts, counts + up), tail, rtol=1e-9)


def test_garwood_interval_of_nothing():
    down, up = garwood_errors(np.zeros(1))
    assert down[0] == 0.0
    assert up[0] == pytest.approx(-np.log(0.15865525393145707), rel=1e-12)


@pytest.mark.parametrize(
    ("edges", "width"),
    [
        (np.linspace(0, 10, 41), 0.25),
        (np.linspace(60, 120, 61), 1.0),
        (np.linspace(8, 12, 61), 0.067),
        (np.r_[np.linspace(2800, 3300, 8), np.linspace(3300, 3700, 7)[1:]], 71.0),
    ],
)
def test_nominal_width_is_short(edges, width):
    assert nominal_width(edges) == pytest.approx(width, rel=1e-9)


def test_data_fit_and_signal_are_those_of_the_result(axes, spectrum):
    result = spectrum()
    main, pulls = axes(2)
    artists = draw_spectrum(result, main, pulls)
    scale = scale_of(result)
    points = artists["data"][0]
    np.testing.assert_allclose(points.get_xdata(), 0.5 * (result.edges[1:] + result.edges[:-1]))
    shown = (result.counts > 0) | (result.background >= 0.5)
    np.testing.assert_allclose(points.get_ydata()[shown], (result.counts * scale)[shown])
    assert np.isnan(points.get_ydata()[~shown]).all()
    values, edges, _ = artists["background"].get_data()
    np.testing.assert_allclose(values, result.background * scale)
    np.testing.assert_allclose(edges, result.edges)
    values, _, low = artists["band"].get_data()
    np.testing.assert_allclose(values, (result.background + result.background_error) * scale)
    np.testing.assert_allclose(low, (result.background - result.background_error) * scale)
    values, edges, _ = artists["total"].get_data()
    assert (edges[0], edges[-1]) == result.window.edges
    np.testing.assert_allclose(values, ((result.background + result.signal) * scale)[7:13])


def test_error_bars_end_at_the_garwood_interval(axes, spectrum):
    result = spectrum()
    artists = draw_spectrum(result, *axes(2))
    down, up = garwood_errors(result.counts) * scale_of(result)
    (bars,) = artists["data"][2]
    drawn = np.array([segment[:, 1] for segment in bars.get_segments() if segment.size])
    shown = (result.counts > 0) | (result.background >= 0.5)
    contents = result.counts * scale_of(result)
    np.testing.assert_allclose(drawn, np.column_stack([contents - down, contents + up])[shown])


def test_pulls_panel_shows_pulls_and_the_signal_in_their_unit(axes, spectrum):
    result = spectrum()
    artists = draw_spectrum(result, *axes(2))
    np.testing.assert_allclose(artists["pulls"].get_data()[0], result.pulls)
    sigma = np.sqrt(result.background + result.background_error**2)
    np.testing.assert_allclose(artists["signal_pulls"].get_data()[0], (result.signal / sigma)[7:13])


def test_axes_have_names_units_and_the_goodness_of_fit(axes, spectrum):
    main, pulls = axes(2)
    draw_spectrum(spectrum(), main, pulls)
    assert pulls.get_xlabel() == "$m_{jj}$ [GeV]"
    assert main.get_ylabel() == "Events / 70 GeV"
    assert "sigma" in pulls.get_ylabel()
    texts = [text.get_text() for text in main.get_legend().get_texts()]
    assert texts[1].endswith("/ndof = 41.3/37, $p$ = 0.29")
    assert texts[-1] == "window 3300–3700 GeV"
    assert main.get_yscale() == "log"


def test_window_is_shaded_in_both_panels(axes, spectrum):
    artists = draw_spectrum(spectrum(), *axes(2))
    assert len(artists["window"]) == 2
    for span in artists["window"]:
        assert (span.get_x(), span.get_x() + span.get_width()) == (3300.0, 3700.0)


@pytest.mark.parametrize(("scale", "reverse"), [(1e-3, False), (1.0, False), (1e4, True)])
def test_everything_is_in_view_and_no_point_is_under_the_legend(axes, spectrum, free_of, scale, reverse):
    result = spectrum(scale=scale, signal=0.0)
    if reverse:
        result = replace(result, counts=result.counts[::-1], background=result.background[::-1])
    main, pulls = axes(2)
    draw_spectrum(result, main, pulls)
    contents = result.counts * scale_of(result)
    bottom, top = main.get_ylim()
    assert bottom < contents[contents > 0].min()
    assert (contents + garwood_errors(result.counts)[1]).max() < top
    centres = 0.5 * (result.edges[1:] + result.edges[:-1])
    filled = contents > 0
    assert free_of(main, centres[filled], contents[filled])


def test_a_negative_signal_and_empty_spectra_are_drawn(axes, spectrum):
    result = spectrum()
    draw_spectrum(replace(result, signal=-2 * result.background), *axes(2))
    nothing = np.zeros_like(result.counts)
    draw_spectrum(replace(result, counts=nothing), *axes(2))
    draw_spectrum(replace(result, counts=nothing, background=nothing, background_error=nothing), *axes(2))


def test_weighted_events_have_errors_from_their_squared_weights(axes, spectrum):
    result = spectrum()
    counts = 0.5 * result.counts
    artists = draw_spectrum(replace(result, counts=counts, variances=0.25 * result.counts), *axes(2))
    (bars,) = artists["data"][2]
    lengths = [segment[1, 1] - segment[0, 1] for segment in bars.get_segments() if segment.size]
    shown = result.counts > 0
    widths = np.diff(result.edges)
    scale = np.median(widths) / widths
    expected = 2.0 * np.sqrt(0.25 * result.counts) * scale
    np.testing.assert_allclose([x for x in lengths if x > 0][:5], expected[shown][:5], rtol=0.05)


def test_without_a_bin_in_the_window_there_is_no_signal_line(axes, spectrum):
    main, pulls = axes(2)
    artists = draw_spectrum(replace(spectrum(goodness=None), window=MassWindow(8000, 9000)), main, pulls)
    assert artists["total"] is None
    assert artists["signal_pulls"] is None
    assert [text.get_text() for text in main.get_legend().get_texts()][:2] == ["data", "sideband fit"]
    assert main.get_xlim() == (2800.0, 7000.0)
