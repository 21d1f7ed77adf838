"""All checks of a generator in one call, on a conditional Gaussian that is known exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from scipy.stats import norm

pytest.importorskip("sklearn")

from gbistat.errors import EventsError
from gbistat.training.background_checks import CheckOptions, check_generator, pseudo_windows
from gbistat.training.two_sample import TwoSampleOptions

WINDOW = (3300.0, 3700.0)
NAMES = ("m", "a", "b")
FAST = CheckOptions(
    n_integrals=3,
    n_points=2048,
    n_bins=4,
    largest=3000,
    tests=TwoSampleOptions(folds=3, permutations=199, trees=40, leaves=6, smallest_leaf=30, learning_rate=0.1),
)


@dataclass(frozen=True)
class Gaussian:
    """Two features inside (-20, 20): N(m / 1000 - 4 + shift, 1) and N(0, 0.5)."""

    shift: float = 0.0

    def log_prob(self, features, mass, /):
        first = norm.logpdf(features[:, 0], mass / 1000.0 - 4.0 + self.shift, 1.0)
        return first + norm.logpdf(features[:, 1], 0.0, 0.5)

    def sample(self, mass, /, *, rng):
        return np.column_stack([rng.normal(mass / 1000.0 - 4.0 + self.shift, 1.0), rng.normal(0.0, 0.5, mass.size)])


def events(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mass = rng.uniform(2400.0, 6000.0, n)
    return np.column_stack([mass, Gaussian().sample(mass, rng=rng)])


def run(blind, seed: int = 1):
    x = events(12_000, seed)
    inside = (x[:, 0] >= WINDOW[0]) & (x[:, 0] < WINDOW[1])
    return check_generator(
        blind,
        x[~inside],
        NAMES,
        window=WINDOW,
        unit="GeV",
        bounds=[(-20.0, 20.0), (-20.0, 20.0)],
        rng=np.random.default_rng(2),
        truth=x[inside],
        options=FAST,
    )


def test_an_exact_generator_passes() -> None:
    """Seven tests: the smallest of seven uniform p-values is below 0.002 once in 70."""
    quality = run(lambda span: (Gaussian(), span == WINDOW))
    assert (quality.mass_name, quality.unit, quality.window) == ("m", "GeV", WINDOW)
    for row in quality.normalisation:
        assert row.integral == pytest.approx(1.0, abs=max(4 * row.error, 1e-4))
    assert 3500.0 in [row.mass for row in quality.normalisation]
    assert (
        quality.region("sidebands")[0].test.n_pairs == FAST.largest - FAST.largest // 3
    )  # the first of three folds only trains
    assert sum(row.n_events for row in quality.likelihood) > 10_000
    assert [region.kind for region in quality.regions].count("pseudo-window") == 4
    assert quality.region("signal region")[0].blinded
    assert not quality.region("sidebands")[0].blinded
    assert all(region.test.p_value > 0.004 for region in quality.regions)


def test_each_window_is_asked_of_its_own_generator() -> None:
    """A generator that is wrong only in one pseudo-window is found there and nowhere else."""
    wrong = pseudo_windows(WINDOW, (2400.0, 6000.0))[2]
    asked = []

    def blind(span):
        asked.append(span)
        return (Gaussian(1.0), True) if span == pytest.approx(wrong, rel=0.01) else (Gaussian(), False)

    quality = run(blind)
    found = {round(region.low): region for region in quality.region("pseudo-window")}
    bad = found.pop(round(wrong[0]))
    assert bad.blinded
    assert bad.test.p_value == pytest.approx(1 / 200)
    assert all(region.test.p_value > 0.004 for region in found.values())
    assert asked[0] == WINDOW


def test_pseudo_windows_leave_the_signal_region_alone() -> None:
    found = pseudo_windows(WINDOW, (2400.0, 8000.0))
    assert len(found) == 4
    for low, high in found:
        assert high < WINDOW[0] or low > WINDOW[1]
        assert high / low == pytest.approx(3700.0 / 3300.0)
    edges = [edge for window in found for edge in window]
    assert edges == sorted(edges)
    assert pseudo_windows(WINDOW, (3200.0, 3800.0)) == ()


def test_too_few_events() -> None:
    with pytest.raises(EventsError, match="499 held-out events are too few to check a generator"):
        check_generator(
            lambda span: (Gaussian(), False),
            events(499, 1),
            NAMES,
            window=WINDOW,
            unit="GeV",
            bounds=[(None, None)] * 2,
            rng=np.random.default_rng(1),
        )
