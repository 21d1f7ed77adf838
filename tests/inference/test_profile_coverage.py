"""Statistical properties of fits and profile intervals on pseudo-experiments, with stated false-alarm chances."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.stats import binomtest, kstest

from gbistat.fit.minimize import fit
from gbistat.inference.profile import profile_interval
from gbistat.inference.qstats import TestStatistics
from gbistat.likelihood.nll import ExtendedUnbinnedNLL

N_TOYS = 300
N_SIG, N_BKG = 24.0, 200.0
SHIFT = 1.5


@dataclass(frozen=True)
class Toys:
    """What 300 pseudo-experiments gave at a signal of about 3 standard deviations."""

    pulls: np.ndarray
    inside: np.ndarray
    tmu: np.ndarray
    errors: np.ndarray


@pytest.fixture(scope="module")
def toys() -> Toys:
    """Poisson counts of events with a feature N(1.5, 1) for the signal and N(0, 1) for the background."""
    rng = np.random.default_rng(20240920)
    pulls, inside, tmu, errors = [], [], [], []
    for _ in range(N_TOYS):
        x = np.concatenate([rng.normal(SHIFT, 1.0, rng.poisson(N_SIG)), rng.normal(0.0, 1.0, rng.poisson(N_BKG))])
        nll = ExtendedUnbinnedNLL.from_log_ratio(SHIFT * x - 0.5 * SHIFT**2)
        best = fit(nll).raise_if_invalid()
        interval = profile_interval(nll, "mu", cl=0.6827, best=best)
        assert interval.low is not None
        assert interval.high is not None
        pulls.append((best.value("mu") - N_SIG) / best.error("mu"))
        errors.append(best.error("mu"))
        inside.append(interval.low <= N_SIG <= interval.high)
        tmu.append(TestStatistics(nll, "mu", best).tmu(N_SIG))
    return Toys(np.array(pulls), np.array(inside), np.array(tmu), np.array(errors))


def test_the_signal_has_about_three_standard_deviations(toys: Toys) -> None:
    assert 2.0 < N_SIG / np.median(toys.errors) < 4.0


def test_coverage_of_the_profile_interval(toys: Toys) -> None:
    """Covered k of 300 toys at 68.27 %: two-sided binomial p above 1e-3, the false-alarm chance."""
    covered = int(toys.inside.sum())
    assert binomtest(covered, N_TOYS, 0.6827).pvalue > 1e-3
    # An interval and the statistic it is made of say the same, toy by toy.
    np.testing.assert_array_equal(toys.inside, toys.tmu <= 1.0000434)


def test_pulls(toys: Toys) -> None:
    """Mean within 3.3 and width within 3.3 of their errors (false-alarm chance 1e-3 each)."""
    assert abs(toys.pulls.mean()) < 3.3 * toys.pulls.std() / math.sqrt(N_TOYS)
    assert abs(toys.pulls.std() - 1.0) < 3.3 / math.sqrt(2.0 * N_TOYS)


def test_wilks(toys: Toys) -> None:
    """tmu at the truth follows chi2 with one degree of freedom (false-alarm chance 1e-3)."""
    assert kstest(toys.tmu, "chi2", args=(1,)).pvalue > 1e-3
