"""Figure of the checks of a generator: every number is where it belongs, and axes carry units."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gbistat.plotting.generator import draw_generator, save_generator
from gbistat.plotting.style import styled
from gbistat.terms.generator_quality import (
    GeneratorQuality,
    LikelihoodBin,
    Normalisation,
    RegionTest,
    SpuriousWindow,
    TwoSampleTest,
)


@pytest.fixture
def axes():
    """Function that makes four styled panels with one mass axis."""
    from matplotlib.figure import Figure

    with styled():
        yield lambda: list(Figure(figsize=(7.0, 9.0)).subplots(4, 1, sharex=True))


@pytest.fixture
def quality() -> GeneratorQuality:
    test = TwoSampleTest(20_000, 0.503, 0.0028, -1e-4, -2e-4, 1e-4, 0.2)
    return GeneratorQuality(
        "m_jj",
        "GeV",
        (3300.0, 3700.0),
        (Normalisation(3000.0, 1.001, 0.002), Normalisation(3500.0, 0.98, 0.002)),
        (
            LikelihoodBin(2400.0, 2800.0, 900, 0, -10.2, 0.1),
            LikelihoodBin(2800.0, 3300.0, 0, 3, float("nan"), float("nan")),
        ),
        (
            RegionTest("sidebands", 2400.0, 8000.0, False, test),
            RegionTest("pseudo-window", 3800.0, 4200.0, True, replace(test, auc=0.51, p_value=0.004)),
            RegionTest("signal region", 3300.0, 3700.0, True, test),
        ),
        (SpuriousWindow(3800.0, 4200.0, True, 5000, 0.01, 0.01, 4.0, 9.0, 3.0),),
    )


def test_numbers_are_drawn_where_they_belong(axes, quality):
    panels = axes()
    artists = draw_generator(quality, panels)
    np.testing.assert_allclose(artists["normalisation"][0].get_xydata(), [[3000.0, 1.001], [3500.0, 0.98]])
    np.testing.assert_allclose(artists["likelihood"][0].get_xydata(), [[2600.0, -10.2]])
    np.testing.assert_allclose(artists["spurious"][0].get_xydata(), [[4000.0, 4.0]])
    assert [bars[0].get_ydata()[0] for bars in artists["tests"]] == [0.503, 0.51, 0.503]
    assert [text.get_text() for text in artists["p_values"]] == ["$p$ = 0.20", "$p$ = 0.004", "$p$ = 0.20"]
    low, high = panels[0].get_ylim()
    assert low < 0.978
    assert high > 1.003
    assert panels[3].get_xlabel() == "$m_{jj}$ [GeV]"
    assert [ax.get_ylabel() for ax in panels][2] == "AUC"
    assert [text.get_text() for text in artists["legend"].get_texts()][-1] == "signal region (simulation)"


def test_regions_that_trained_the_generator_are_open_markers(axes, quality):
    artists = draw_generator(quality, axes())
    faces = [bars[0].get_markerfacecolor() for bars in artists["tests"]]
    assert faces[0] == "white"
    assert "white" not in faces[1:]


def test_panels_without_results_stay_empty(axes, quality, tmp_path):
    empty = GeneratorQuality(quality.mass_name, quality.unit, quality.window)
    artists = draw_generator(empty, axes())
    assert (artists["normalisation"], artists["likelihood"], artists["spurious"], artists["legend"]) == (None,) * 4
    assert save_generator(quality, tmp_path / "checks.png").stat().st_size > 10_000
