"""The generator tilted by classifier weights: exact for a shifted Gaussian, normalised, profiled."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from gbistat.data.events import Events
from gbistat.data.window import MassWindow
from gbistat.errors import EventsError
from gbistat.fit.minimize import fit
from gbistat.likelihood.components import Component, LogArray, Yield
from gbistat.likelihood.constraints import NormalConstraint
from gbistat.likelihood.model import Model
from gbistat.likelihood.nll import ExtendedUnbinnedNLL
from gbistat.likelihood.parameters import Parameter
from gbistat.likelihood.weight_tilt import WeightTilt, tilt_normalisation

D = 0.3


def log_weight(x):
    """Data N(0, 1), generator N(D, 1)."""
    return -D * x + 0.5 * D * D


@pytest.fixture
def generated():
    return D + stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)


@pytest.mark.parametrize("nu", [-1.0, 0.0, 0.5, 1.0, 2.0])
def test_a_shift_is_tilted_back_exactly(generated, nu):
    log_norm, mean, variance = tilt_normalisation(log_weight(generated), nu)
    assert log_norm == pytest.approx(0.5 * D**2 * nu * (nu - 1), abs=2e-4)
    # p_gen w^nu = N(D (1 - nu), 1), so that ln w has mean -D^2 (1 - nu) + D^2 / 2 and variance D^2.
    assert mean == pytest.approx(-D * D * (1 - nu) + 0.5 * D * D, abs=2e-4)
    assert variance == pytest.approx(D * D, rel=2e-3)


def test_derivatives(generated):
    tilt = WeightTilt("nu", lambda events: log_weight(events.feature("x")), log_weight(generated))
    x = np.array([-1.0, 0.2, 2.0])
    events = Events(np.full(3, 3500.0), x[:, None], ("x",), {"x": "1"}, mass_name="m")
    prepared = tilt.prepare(events)
    step = 1e-4
    for nu in (-0.7, 0.4):
        log, gradient, hessian = prepared.derivatives(np.array([nu]))
        up, down = (prepared.log_prob(np.array([nu + s])) for s in (step, -step))
        assert log == pytest.approx(prepared.log_prob(np.array([nu])))
        assert gradient[0] == pytest.approx((up - down) / (2 * step), abs=1e-6)
        assert hessian[0, 0] == pytest.approx((up - 2 * log + down) / step**2, abs=1e-5)


def test_profiling_the_tilt_removes_the_bias(generated):
    # Data N(0, 1) without signal, analysis with the generator N(D, 1) and a signal N(2, 0.3): biased, unless tilted.
    rng = np.random.default_rng(5)
    x = rng.normal(size=4000)
    events = Events(np.full(x.size, 3500.0), x[:, None], ("x",), {"x": "1"}, mass_name="m")
    ratio = LogArray(stats.norm.logpdf(x, 2, 0.3) - stats.norm.logpdf(x, D))
    tilt = WeightTilt("nu", lambda chosen: log_weight(chosen.feature("x")), log_weight(generated))

    def pull(factors, parameters, constraints):
        model = Model(
            components=(
                Component("signal", Yield({"mu": 1.0}), (ratio,)),
                Component("background", Yield({"n_bkg": 1.0}), factors),
            ),
            parameters=(Parameter("mu", 0.0), Parameter("n_bkg", 4000.0, 0.0), *parameters),
            constraints=constraints,
            window=MassWindow(3400, 3600),
        )
        result = fit(ExtendedUnbinnedNLL(model, events)).raise_if_invalid()
        return result.value("mu") / result.error("mu")

    assert pull((), (), ()) < -4
    # Within 4 errors of 0: false alarm in 16,000.
    assert abs(pull((tilt,), (Parameter("nu", 0.0),), (NormalConstraint("nu", 0.0, 1.0),))) < 4


def test_weights_that_give_no_tilt():
    with pytest.raises(EventsError, match="same weight"):
        WeightTilt("nu", lambda events: np.zeros(len(events)), np.zeros(5))
    with pytest.raises(EventsError, match="1 of 2 generated events"):
        WeightTilt("nu", lambda events: np.zeros(len(events)), np.array([0.0, np.inf]))
    tilt = WeightTilt("nu", lambda events: np.full(len(events), np.inf), np.array([0.0, 1.0]))
    with pytest.raises(EventsError, match="cannot be tilted"):
        tilt.prepare(Events(np.array([1.0]), np.zeros((1, 1)), ("x",), {"x": "1"}, mass_name="m"))
