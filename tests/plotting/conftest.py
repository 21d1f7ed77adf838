"""Results with known numbers, and a guard: no test here may change matplotlib's settings or leave a figure open."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
from scipy.stats import chi2, norm

from gbistat.data.window import MassWindow
from gbistat.fit.result import FitResult
from gbistat.fit.sidebands import GoodnessOfFit
from gbistat.fit.spectrum import MassSpectrum
from gbistat.inference.results import CLsScan, IntervalResult, LimitResult, ScanResult
from gbistat.plotting.style import styled


@pytest.fixture(autouse=True)
def unchanged_matplotlib():
    import matplotlib.pyplot as plt

    # Not rcParams.copy(), which would resolve the backend; the backend is compared too.
    before = {key: dict.__getitem__(mpl.rcParams, key) for key in mpl.rcParams}
    figures = plt.get_fignums()
    yield
    after = {key: dict.__getitem__(mpl.rcParams, key) for key in mpl.rcParams}
    assert {key for key in before if before[key] is not after[key] and before[key] != after[key]} == set()
    assert plt.get_fignums() == figures


@pytest.fixture
def axes():
    """Function that makes styled panels, which are gone after the test."""
    from matplotlib.figure import Figure

    with styled():
        yield lambda rows=1: list(
            Figure(figsize=(7.0, 6.0)).subplots(rows, 1, squeeze=False, height_ratios=[3, 1][:rows])[:, 0]
        )


GOODNESS = GoodnessOfFit(41.26, 37, 0.2895)


def falling_spectrum(*, scale=1.0, signal=300.0, goodness=GOODNESS, seed=3):
    edges = np.r_[np.linspace(2800, 3300, 8)[:-1], np.linspace(3300, 3700, 7)[:-1], np.linspace(3700, 7000, 48)]
    centres, widths = 0.5 * (edges[1:] + edges[:-1]), np.diff(edges)
    background = scale * 250.0 * widths * np.exp(-(centres - 2800) / 430)
    peak = signal * np.diff(norm.cdf(edges, 3500, 90))
    counts = np.random.default_rng(seed).poisson(np.maximum(background + peak, 0)).astype(float)
    return MassSpectrum(
        edges, counts, background, 0.02 * background, peak, MassWindow(3300, 3700), "m_jj", "GeV", goodness
    )


def gaussian_scan(*, best=103.0, sigma=29.0, low=None, high=None, points=41, levels=(0.6827, 0.95), poi="mu"):
    """Parabola and its intervals; an end outside the scan does not close."""
    low = best - 3.2 * sigma if low is None else low
    high = best + 3.2 * sigma if high is None else high
    values = np.linspace(low, high, points)
    fit = FitResult((poi, "n_bkg"), np.array([best, 5e3]), np.array([sigma, 70.0]), np.eye(2), 0.0, True)
    intervals = []
    for level in levels:
        threshold = float(chi2.ppf(level, 1))
        ends = (best - sigma * threshold**0.5, best + sigma * threshold**0.5)
        segment = (ends[0] if ends[0] >= low else None, ends[1] if ends[1] <= high else None)
        intervals.append(IntervalResult(poi, level, (segment,), best, threshold))
    return ScanResult(poi, values, ((values - best) / sigma) ** 2, fit), intervals


def gaussian_limit(*, best=103.0, sigma=29.0, cl=0.95, poi="mu"):
    """CLs limit of a Gaussian measurement in closed form."""
    alpha = 1.0 - cl
    observed = best + sigma * float(norm.ppf(1.0 - alpha * norm.cdf(best / sigma)))
    expected = tuple(sigma * (k + float(norm.ppf(1.0 - alpha * norm.cdf(k)))) for k in (-2, -1, 0, 1, 2))
    return LimitResult(poi, cl, observed, expected)


def gaussian_cls(*, best=103.0, sigma=29.0, high=260.0, points=41, poi="mu"):
    values = np.linspace(0.0, high, points)
    observed = norm.sf((values - best) / sigma) / norm.cdf(best / sigma)
    expected = np.stack([norm.sf(values / sigma - k) / norm.cdf(k) for k in (-2, -1, 0, 1, 2)], axis=1)
    return CLsScan(poi, values, observed, expected)


@pytest.fixture
def spectrum():
    return falling_spectrum


@pytest.fixture
def profile():
    return gaussian_scan


@pytest.fixture
def limit():
    return gaussian_limit


@pytest.fixture
def cls_scan():
    return gaussian_cls


@pytest.fixture
def free_of():
    """Function that says whether a legend lies clear of points of a figure that is ready to be written."""

    def check(ax, x, y):
        ax.figure.tight_layout()
        ax.figure.draw_without_rendering()
        box = ax.get_legend().get_window_extent()
        points = ax.transData.transform(np.column_stack([x, y]))
        inside = ax.get_window_extent()
        under = [box.contains(*point) and inside.contains(*point) for point in points]
        return not any(under) and inside.containsx(box.x0) and inside.containsx(box.x1) and inside.containsy(box.y0)

    return check
