"""Spurious signal as a tilt of the background: normalised, of the stated size, and unbiased where a floating kappa is not."""

from __future__ import annotations

import numpy as np
import pytest
from jacobi import jacobi

from gbistat.data.events import Events
from gbistat.errors import ModelError
from gbistat.fit.minimize import fit
from gbistat.likelihood.components import Component, LogArray, LogOffset, Yield
from gbistat.likelihood.constraints import NormalConstraint
from gbistat.likelihood.model import Model
from gbistat.likelihood.nll import ExtendedUnbinnedNLL
from gbistat.likelihood.parameters import Parameter
from gbistat.likelihood.tilt import spurious_signal_tilt

SEPARATION = 2.5


class GaussianRatio:
    """Exact ratio of N(d, 1) to N(0, 1) in the first feature: ln r = d x - d^2 / 2, E_b[r] = 1."""

    def log_ratio(self, events, /, **theta):
        return SEPARATION * events.features[:, 0] - 0.5 * SEPARATION**2


def make_events(x):
    return Events(mass=np.zeros(len(x)), features=np.asarray(x)[:, None], names=("x",))


def base_model(n_background):
    from gbistat.likelihood.components import LogRatio

    class Flat:
        parameters = ()

        def prepare(self, events):
            return LogArray(np.zeros(len(events))).prepare(events)

    return Model(
        components=(
            Component("signal", Yield({"mu": 1.0}), (LogRatio(GaussianRatio()),)),
            Component("background", Yield({"n_bkg": 1.0}), (Flat(),)),
        ),
        parameters=(Parameter("mu", 0.0), Parameter("n_bkg", n_background, 0.0)),
    )


def with_tilt(model, tilt, width=1.0):
    signal, background = model.components
    return Model(
        components=(signal, Component("background", background.rate, (*background.factors, tilt))),
        parameters=(*model.parameters, Parameter("nu", 0.0, -8.0, 8.0)),
        constraints=(NormalConstraint("nu", 0.0, width),),
    )


@pytest.fixture(scope="module")
def pool():
    """Background on a fine grid of the normal distribution: expectations are then sums without noise."""
    x = np.linspace(-9.0, 9.0, 40_001)
    weight = np.exp(-0.5 * x**2)
    return Events(mass=np.zeros(x.size), features=x[:, None], names=("x",), weights=weight / weight.sum())


def expectation(pool, values):
    return float(pool.weights @ values)


def test_density_stays_normalised(pool):
    tilt, _ = spurious_signal_tilt(base_model(5000.0), "nu", pool, kappa=0.1)
    prepared = tilt.prepare(pool)
    for nu in (-3.0, -0.5, 1.0, 4.0):
        assert expectation(pool, np.exp(prepared.log_prob(np.array([nu])))) == pytest.approx(1.0, abs=1e-12)


def test_derivatives(pool):
    tilt, _ = spurious_signal_tilt(base_model(5000.0), "nu", pool, spurious=20.0)
    prepared = tilt.prepare(make_events([-1.0, 0.4, 2.0, 3.5]))
    for nu in (-1.3, 0.0, 2.0):
        at = np.array([nu])
        log, gradient, hessian = prepared.derivatives(at)
        np.testing.assert_allclose(log, prepared.log_prob(at))
        numeric, _ = jacobi(prepared.log_prob, at)
        np.testing.assert_allclose(gradient[0], numeric[:, 0], rtol=1e-6, atol=1e-9)
        second, _ = jacobi(lambda v: prepared.derivatives(v)[1][0], at)
        np.testing.assert_allclose(np.broadcast_to(hessian[0, 0], 4), second[:, 0], rtol=1e-6, atol=1e-9)


def test_one_sigma_fakes_the_stated_number_of_events(pool):
    """Fit of signal and background to an exact background that is tilted by one sigma, half the signal it is sensitive to."""
    n = 5000.0
    model = base_model(n)
    wanted = 0.5 * n * spurious_signal_tilt(model, "nu", pool, spurious=1.0)[0].fraction
    tilt, size = spurious_signal_tilt(model, "nu", pool, spurious=wanted)
    assert size == pytest.approx(wanted)
    tilted = n * pool.weights * np.exp(tilt.prepare(pool).log_prob(np.array([1.0])))
    events = Events(mass=pool.mass, features=pool.features, names=pool.names, weights=tilted)
    result = fit(ExtendedUnbinnedNLL(model, events))
    # The size is linearised; what is left is the curvature of w and of the information.
    assert result.value("mu") == pytest.approx(wanted, rel=0.25)


def test_kappa_is_turned_into_events_by_the_information(pool):
    """A ratio that is too large by delta shifts mu by delta N / I, for a signal of two standard deviations."""
    n, delta = 20_000.0, 0.05
    model = base_model(n)
    tilt, size = spurious_signal_tilt(model, "nu", pool, kappa=delta)
    log_ratio = GaussianRatio().log_ratio(pool)
    weights = n * pool.weights * (1.0 + tilt.fraction * np.exp(log_ratio))
    right = fit(ExtendedUnbinnedNLL.from_log_ratio(log_ratio, weights=weights))
    shifted = fit(ExtendedUnbinnedNLL.from_log_ratio(log_ratio + np.log1p(delta), weights=weights))
    assert shifted.value("mu") - right.value("mu") == pytest.approx(size, rel=0.1)


def test_nothing_is_pulled_where_a_floating_kappa_is(pool):
    """Exact signal and background: the tilt stays at 0, a floating ln kappa runs to sigma^2 n_sig."""
    n_background, n_signal, sigma = 5000.0, 60.0, 0.08
    model = base_model(n_background)
    tilt, _ = spurious_signal_tilt(model, "nu", pool, kappa=sigma)
    ratio = np.exp(GaussianRatio().log_ratio(pool))
    weights = pool.weights * (n_background + n_signal * ratio)
    events = Events(mass=pool.mass, features=pool.features, names=pool.names, weights=weights)
    good = fit(ExtendedUnbinnedNLL(with_tilt(model, tilt), events))
    assert good.value("mu") == pytest.approx(n_signal, rel=1e-5)
    assert good.value("nu") == pytest.approx(0.0, abs=1e-5)
    plain = fit(ExtendedUnbinnedNLL(model, events))
    assert good.error("mu") > 1.02 * plain.error("mu")

    signal, background = model.components
    floating = Model(
        components=(Component("signal", signal.rate, (*signal.factors, LogOffset("ln_kappa"))), background),
        parameters=(*model.parameters, Parameter("ln_kappa", 0.0)),
        constraints=(NormalConstraint("ln_kappa", 0.0, sigma),),
    )
    bad = fit(ExtendedUnbinnedNLL(floating, events))
    assert bad.value("ln_kappa") > 0.5 * sigma**2 * n_signal


def test_size_zero_is_refused(pool):
    with pytest.raises(ModelError, match="size 0"):
        spurious_signal_tilt(base_model(100.0), "nu", pool)
