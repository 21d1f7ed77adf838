"""The signal fraction of two known densities: closed forms for its estimate, error, interval, and shift by a wrong normalisation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import norm

from gbistat.data.events import Events
from gbistat.fit.minimize import fit
from gbistat.inference.profile import profile_interval
from gbistat.likelihood.components import Component, LogArray, Yield
from gbistat.likelihood.model import Model
from gbistat.likelihood.nll import ExtendedUnbinnedNLL, UnbinnedNLL
from gbistat.likelihood.parameters import Parameter

FRACTION = 0.01


def fraction_nll(log_signal: np.ndarray, log_background: np.ndarray, weights: np.ndarray | None = None) -> UnbinnedNLL:
    model = Model(
        (
            Component("signal", Yield({"mu": 1.0}), (LogArray(log_signal),)),
            Component("background", Yield({"n_bkg": 1.0}), (LogArray(log_background),)),
        ),
        (Parameter("mu", 0.0), Parameter("n_bkg", float(log_signal.size), 0.0)),
    )
    return UnbinnedNLL(model, Events(mass=np.zeros(log_signal.size), weights=weights))


def asimov(n: float, scale: float = 1.0, fraction: float = FRACTION) -> tuple[UnbinnedNLL, np.ndarray]:
    """N(3, 1) on N(6, 1), as weighted nodes; the signal's density is `scale` times what it should be."""
    x = np.linspace(-6.0, 15.0, 8001)
    signal, background = norm.pdf(x, 3.0), norm.pdf(x, 6.0)
    weights = n * (x[1] - x[0]) * (fraction * signal + (1.0 - fraction) * background)
    logs = norm.logpdf(x, 3.0) + math.log(scale), norm.logpdf(x, 6.0)
    return fraction_nll(*logs, weights), x


def mean_over_background(function: Callable[[float], float]) -> float:
    """E_b of a function of r, where ln r = 3 z - 4.5 for a standard normal z."""

    def integrand(z: float) -> float:
        return norm.pdf(z) * function(math.exp(3.0 * z - 4.5))

    return quad(integrand, -12.0, 15.0, limit=400, epsabs=0.0, epsrel=1e-11)[0]


def information(f: float) -> float:
    return mean_over_background(lambda r: (r - 1.0) ** 2 / (1.0 + f * (r - 1.0)))


def test_error_is_that_of_the_fisher_information() -> None:
    nll, _ = asimov(101_010.1)
    best = fit(nll)
    assert best.value("f") == pytest.approx(FRACTION, rel=1e-9)
    assert best.error("f") == pytest.approx(1.0 / math.sqrt(101_010.1 * information(FRACTION)), rel=1e-8)
    assert best.error("f") == pytest.approx(4.50e-4, rel=2e-3)


def test_interval_where_the_densities_do_not_overlap_is_that_of_a_binomial() -> None:
    n, k = 5000, 50
    far = np.full(n, -300.0)
    near = np.zeros(n)
    is_signal = np.arange(n) < k
    nll = fraction_nll(np.where(is_signal, near, far), np.where(is_signal, far, near))
    best = fit(nll)
    assert best.value("f") == pytest.approx(k / n, rel=1e-10)
    assert best.error("f") == pytest.approx(math.sqrt(k / n * (1 - k / n) / n), rel=1e-8)

    def rise(f: float) -> float:
        top = k * math.log(k / n) + (n - k) * math.log(1 - k / n)
        return 2.0 * (top - k * math.log(f) - (n - k) * math.log(1 - f)) - 1.0

    interval = profile_interval(nll, "f", cl=0.682689492137086, best=best)
    assert interval.low == pytest.approx(brentq(rise, 1e-4, k / n), rel=1e-6)
    assert interval.high == pytest.approx(brentq(rise, k / n, 0.1), rel=1e-6)


def test_a_signal_density_that_is_not_normalised_shifts_the_fraction_by_delta_over_the_information() -> None:
    delta = 1e-4
    for f in (FRACTION, 1e-5):
        nll, _ = asimov(1e9, 1.0 - delta, f)
        size = mean_over_background(lambda r, f=f: r / (1.0 + f * (r - 1.0)))
        assert fit(nll).value("f") - f == pytest.approx(-delta * size / information(f), rel=3e-3)
    assert size == pytest.approx(1.0, abs=0.03)  # where f r is small: delta / I itself
    # Not only in first order: the estimate is where the mean score of the wrong ratio vanishes.
    delta = 0.05
    nll, x = asimov(1e5, 1.0 - delta)
    signal, background = norm.pdf(x, 3.0), norm.pdf(x, 6.0)
    mixture = FRACTION * signal + (1.0 - FRACTION) * background

    def score(f: float) -> float:
        wrong = (1.0 - delta) * signal
        return float((mixture * (wrong - background) / (f * wrong + (1.0 - f) * background)).sum())

    assert fit(nll).value("f") == pytest.approx(brentq(score, 1e-3, 0.1), rel=1e-7)


def test_number_and_fraction_have_the_same_estimate_and_the_number_the_larger_error() -> None:
    """The number has the Poisson error of all events on top: var(n_s) = N^2 var(f) + f^2 N."""
    rng = np.random.default_rng(31)
    x = np.r_[rng.normal(3.0, 1.0, 60), rng.normal(6.0, 1.0, 5940)]
    s, b = norm.logpdf(x, 3.0), norm.logpdf(x, 6.0)
    fraction = fit(fraction_nll(s, b))
    number = fit(ExtendedUnbinnedNLL.from_log_ratio(s - b))
    f, n = fraction.value("f"), float(x.size)
    assert number.value("mu") == pytest.approx(f * n, rel=1e-7)
    assert number.error("mu") ** 2 == pytest.approx(n**2 * fraction.error("f") ** 2 + f**2 * n, rel=1e-6)


def test_poisson_toys_are_unbiased_and_fixed_counts_are_not_their_spread() -> None:
    """200 toys of 4,000 background events. Bands are 4 standard errors: four numbers, false alarm 3e-4."""
    rng = np.random.default_rng(20261122)
    n_background, count = 4000, 200
    n_signal = n_background * FRACTION / (1.0 - FRACTION)
    sigma = 1.0 / math.sqrt((n_background + n_signal) * information(FRACTION))
    free, fixed, covered = [], [], 0
    for _ in range(count):
        for estimates, counts in (
            (free, (rng.poisson(n_signal), rng.poisson(n_background))),
            (fixed, (int(n_signal), n_background)),
        ):
            x = np.r_[rng.normal(3.0, 1.0, counts[0]), rng.normal(6.0, 1.0, counts[1])]
            nll = fraction_nll(norm.logpdf(x, 3.0), norm.logpdf(x, 6.0))
            best = fit(nll)
            estimates.append(best.value("f"))
            if estimates is free:
                interval = profile_interval(nll, "f", cl=0.6827, best=best)
                covered += interval.low <= FRACTION <= interval.high
    assert abs(np.mean(free) - FRACTION) < 4.0 * sigma / math.sqrt(count)
    assert np.std(free, ddof=1) == pytest.approx(sigma, rel=4.0 / math.sqrt(2 * count))
    assert covered / count == pytest.approx(0.6827, abs=4.0 * math.sqrt(0.68 * 0.32 / count))
    # var = sigma^2 - f (1 - f) / N: the variance of the mean score leaves the counts out.
    narrow = math.sqrt(sigma**2 - FRACTION * (1.0 - FRACTION) / (n_background + n_signal))
    assert np.std(fixed, ddof=1) == pytest.approx(narrow, rel=4.0 / math.sqrt(2 * count))
    assert narrow < 0.75 * sigma
