"""Why the error of kappa is a tilt of the background: the right size, and unbiased where a floating kappa is not."""

from __future__ import annotations

import numpy as np
import pytest

from gbistat.data.events import Events
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


def test_a_spurious_signal_of_an_analytic_model_needs_no_pool():
    """Mass densities alone: expectations and Asimov sets come from quadrature; the limit grows by the stated size."""
    from gbistat.data.window import MassWindow
    from gbistat.fit.build import build_analysis
    from gbistat.inference.limits import upper_limit
    from gbistat.terms.model_spec import ModelSpec

    rng = np.random.default_rng(8)
    masses = 60.0 + rng.exponential(40.0, 20_000)
    events = Events(mass=masses[masses < 140.0])

    def expected(size):
        spec = ModelSpec.model_validate(
            {
                "signal": {
                    "mass": {"shape": "gaussian", "parameters": {"mean": 100.0, "sigma": 2.0}},
                    "spurious": {"sigma": size},
                },
                "background": {"mass": {"shape": "exponential"}, "fit_range": [60.0, 140.0]},
            }
        )
        analysis = build_analysis(spec, events, MassWindow(90.0, 110.0))
        assert analysis.spurious_signal == (size or 0.0)
        asimov_error = fit(analysis.nll).error("mu")
        return upper_limit(analysis.nll, analysis.reference).expected[2], asimov_error

    plain, plain_error = expected(None)
    with_spurious, error = expected(plain_error)
    assert error == pytest.approx(np.sqrt(2.0) * plain_error, rel=0.1)
    assert with_spurious == pytest.approx(np.sqrt(2.0) * plain, rel=0.12)
