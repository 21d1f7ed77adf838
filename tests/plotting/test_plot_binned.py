"""Figures of binned results: what is drawn is what was handed in."""

from __future__ import annotations

import numpy as np
import pytest

from gbistat.binned.convergence import BinsPoint, Convergence, Differences
from gbistat.binned.postfit import PostFit
from gbistat.errors import OptionError
from gbistat.plotting.binned import draw_convergence, draw_post_fit, save_convergence, save_post_fit


def convergence() -> Convergence:
    points = tuple(
        BinsPoint(n, n, 16.0 * (1 + 1 / n), 1 + 1 / n, 2 / n, 50.0 + 20.0 / n, 10.0) for n in (2, 20, 200, 2000)
    )
    return Convergence("mu", 16.0, 16.0, 50.0, 10.0, 0.99, points)


TOYS = [
    Differences("20 bins in log_ratio", 50, 0.03, 0.04, 0.99),
    Differences("200 bins in log_ratio", 50, 0.0, 0.006, 0.9999),
    Differences("pyhf, bump hunt, 20 bins in m_jj", 50, 1.0, 2.0, 0.3),
]


def post(*, open_ended: bool = False, scale: float = 1.0) -> PostFit:
    samples = {"background": scale * np.array([4000.0, 300.0, 20.0, 4.0]), "signal": np.array([0.0, 5.0, 15.0, 9.0])}
    observed = np.array([scale * 4010.0, scale * 320.0, 33.0, 0.0])
    return PostFit("log_ratio", np.array([-2.0, 0.0, 1.0, 2.0, 4.0]), "1", observed, samples, np.ones(4), open_ended)


def test_convergence(axes):
    upper, lower = axes(2)
    artists = draw_convergence(convergence(), TOYS, upper, lower)
    np.testing.assert_allclose(artists["limit"].get_ydata(), [50.0, 5.0, 0.5, 0.05])
    np.testing.assert_allclose(artists["information"].get_ydata(), [100.0, 10.0, 1.0, 0.1])
    np.testing.assert_allclose(artists["data"].get_ydata(), [100.0, 10.0, 1.0, 0.1])
    np.testing.assert_allclose(artists["toys"].get_xdata(), [20.0, 200.0])
    np.testing.assert_allclose(artists["toys"].get_ydata(), [5.0, 0.6])
    with pytest.raises(OptionError, match="no number of bins"):
        draw_convergence(Convergence("mu", 1.0, 1.0, 1.0, 1.0, 1.0, ()), [], upper, lower)


@pytest.mark.parametrize("open_ended", [False, True])
def test_post_fit(axes, open_ended):
    upper, lower = axes(2)
    shown = post(open_ended=open_ended)
    artists = draw_post_fit(shown, upper, lower)
    assert list(artists["samples"]) == ["background", "signal"]
    heights = [bar.get_height() for bar in artists["pulls"]]
    np.testing.assert_allclose(heights, shown.pulls)
    edges = artists["samples"]["signal"].get_data().edges
    assert edges.tolist() == ([0.5, 1.5, 2.5, 3.5, 4.5] if open_ended else [-2.0, 0.0, 1.0, 2.0, 4.0])
    top = artists["samples"]["signal"].get_data().values
    np.testing.assert_allclose(top, shown.total)
    assert upper.get_yscale() == "log"


def test_a_sample_that_cannot_be_seen_is_left_out(axes):
    upper, lower = axes(2)
    shown = post()
    samples = {**shown.samples, "spurious": np.full(4, 1e-6)}
    artists = draw_post_fit(PostFit("m_jj", shown.edges, "GeV", shown.observed, samples, shown.error), upper, lower)
    assert "spurious" not in artists["samples"]


def test_files(tmp_path):
    save_convergence(convergence(), TOYS, tmp_path / "a.png")
    save_post_fit(post(), tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        assert (tmp_path / name).stat().st_size > 20_000
