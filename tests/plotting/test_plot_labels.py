"""Text of figures."""

from __future__ import annotations

import math

import pytest

from gbistat.inference.results import IntervalResult, LimitResult
from gbistat.plotting.labels import (
    format_numbers,
    interval_text,
    limit_text,
    mass_label,
    p_value_text,
    parameter_label,
    percent,
    upright,
)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m_jj", "$m_{jj}$ [GeV]"),
        ("m_mumu", r"$m_{\mu\mu}$ [GeV]"),
        ("m_X", r"$m_{\mathrm{X}}$ [GeV]"),
        ("mass", "mass [GeV]"),
        ("cost_$", r"cost_\$ [GeV]"),
    ],
)
def test_mass_labels_hold_symbol_and_unit(name, text):
    assert mass_label(name, "GeV") == text


def test_parameter_label_prefers_the_callers_text():
    assert parameter_label("mu", "signal events in the window") == "signal events in the window"
    assert parameter_label("mu") == r"signal strength $\mu$"
    assert parameter_label("m_X_shift") == "m_X_shift"


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([103.24, 74.11, 133.4], ["103.2", "74.1", "133.4"]),
        ([-12.04, -48.2, 26.4], ["-12.0", "-48.2", "26.4"]),
        ([0.0], ["0"]),
        ([-0.001, 40.0], ["0.0", "40.0"]),
        ([12345.0, 12300.0], ["12345.0", "12300.0"]),
        ([2.5e-6, 1.25e-6], [r"2.50\times 10^{-6}", r"1.25\times 10^{-6}"]),
        ([2345678.0, 2341678.0], [r"2.34568\times 10^{6}", r"2.34168\times 10^{6}"]),
        ([math.inf, 3.0], ["?", "3.00"]),
    ],
)
def test_numbers_keep_three_digits_of_what_tells_them_apart(values, texts):
    assert format_numbers(values) == texts


@pytest.mark.parametrize("scale", [1e-30, 1e-5, 0.01, 1.0, 4321.0, 1e5, 1e12])
def test_numbers_survive_being_written(scale):
    """Written numbers are off by less than 1 % of their spread, whatever their size."""
    values = [1.00 * scale, 1.37 * scale, -0.61 * scale]
    back = [float(text.replace(r"\times 10^{", "e").replace("}", "")) for text in format_numbers(values)]
    assert back == pytest.approx(values, abs=0.01 * 1.98 * scale)


def test_intervals_say_where_they_do_not_close():
    def text(*segments):
        return interval_text(IntervalResult("mu", 0.95, segments, 5.0, 3.84), [5.0])

    assert text((1.0, 20.0)) == "[1.0, 20.0]"
    assert text((None, 20.0)) == r"$\leq$ 20.0"
    assert text((-1.0, None)) == r"$\geq$ −1.00"
    assert text((None, None)) == "open on both sides"
    assert text((1.0, 2.0), (4.0, 20.0)) == r"[1.00, 2.00] $\cup$ [4.0, 20.0]"


def test_limit_text_gives_the_68_percent_band_around_the_median():
    observed, expected = limit_text(LimitResult("mu", 0.95, 151.0, (30.0, 41.0, 57.0, 79.0, 106.0)))
    assert (observed, expected) == ("151", r"$\mathrm{57^{+22}_{-16}}$")
    observed, expected = limit_text(LimitResult("mu", 0.95, 1.51e-7, (3e-8, 4.1e-8, 5.7e-8, 7.9e-8, 1.06e-7)))
    assert observed == r"$\mathrm{1.51\times 10^{-7}}$"
    assert expected == r"$\mathrm{0.57 ^{+0.22 }_{-0.16 }\times 10^{-7}}$".replace(" ", "").replace(
        r"\times10", r"\times 10"
    )


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (1.0, "$p$ = 1.00"),
        (0.55, "$p$ = 0.55"),
        (0.0321, "$p$ = 0.032"),
        (3.2e-12, r"$p$ = $\mathrm{3.2\times 10^{-12}}$"),
        (0.0, r"$p$ < $\mathrm{10^{-99}}$"),
    ],
)
def test_p_values_are_never_rounded_to_zero(p, text):
    assert p_value_text(p) == text


def test_levels_and_signs():
    assert percent(0.6827) == "68.27 %"
    assert percent(0.95) == "95 %"
    assert upright("-3.5") == "\N{MINUS SIGN}3.5"
