"""The tilt of the background that stands for a spurious signal."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from jacobi import jacobi
from scipy.stats import norm

from gbistat.data.events import Events
from gbistat.errors import ModelError
from gbistat.fit.minimize import fit
from gbistat.likelihood.components import Component, LogRatio, Yield
from gbistat.likelihood.constraints import NormalConstraint
from gbistat.likelihood.model import Model
from gbistat.likelihood.nll import ExtendedUnbinnedNLL
from gbistat.likelihood.parameters import Parameter
from gbistat.likelihood.tilt import Tilt, spurious_signal_tilt

SHIFT = 1.5


class ShiftedNormal:
    """ln of N(x; shift, 1) / N(x; 0, 1), off by a constant."""

    def __init__(self, shift: float, off: float = 0.0) -> None:
        self.shift, self.off = shift, off

    def log_ratio(self, events: Events) -> np.ndarray:
        return self.shift * events.feature("x") - 0.5 * self.shift**2 + self.off


def model(n_bkg: float, off: float = 0.0) -> Model:
    return Model(
        components=(
            Component("signal", Yield({"mu": 1.0}), (LogRatio(ShiftedNormal(SHIFT, off)),)),
            Component("background", Yield({"n_bkg": 1.0}), (LogRatio(ShiftedNormal(0.0)),)),
        ),
        parameters=(Parameter("mu", 0.0), Parameter("n_bkg", n_bkg, 0.0)),
    )


def quantiles(count: int, n_bkg: float) -> Events:
    """Background events at quantiles of their feature: no fluctuations; weights sum to the expected number."""
    x = norm.ppf((np.arange(count) + 0.5) / count)
    return Events(mass=np.zeros(count), features=x[:, None], names=["x"], weights=np.full(count, n_bkg / count))


def tilted(plain: Model, tilt: Tilt) -> Model:
    signal, background = plain.components
    return dataclasses.replace(
        plain,
        components=(signal, dataclasses.replace(background, factors=(*background.factors, tilt))),
        parameters=(*plain.parameters, Parameter("nu", 0.0, -3.0, 3.0)),
        constraints=(NormalConstraint("nu", 0.0, 1.0),),
    )


def test_density_stays_normalised_on_the_background() -> None:
    events = quantiles(2000, 5000.0)
    for off in (0.0, 0.3):
        tilt, _ = spurious_signal_tilt(model(5000.0, off), "nu", events, kappa=0.01)
        prepared = tilt.prepare(events)
        assert prepared.log_prob(np.zeros(1)) == pytest.approx(0.0)
        for nu in (-2.0, 0.5, 2.0):
            assert np.mean(np.exp(prepared.log_prob(np.array([nu])))) == pytest.approx(1.0, rel=1e-12)
        assert tilt.log_norm == pytest.approx(off, abs=1e-2)


def test_size_of_the_spurious_signal() -> None:
    """n kappa / I(f) events, I(f) = E_b[(r-1)^2 / (1 + f (r-1))] by quadrature; other sources in quadrature."""
    n_bkg = 5000.0
    events = quantiles(20_000, n_bkg)
    tilt, size = spurious_signal_tilt(model(n_bkg), "nu", events, kappa=0.01)
    x = np.linspace(-9.0, 9.0, 20_001)
    ratio = np.exp(SHIFT * x - 0.5 * SHIFT**2)
    information = np.trapezoid(norm.pdf(x) * (ratio - 1.0) ** 2 / (1.0 + tilt.fraction * (ratio - 1.0)), x)
    assert tilt.fraction == pytest.approx(2.0 / math.sqrt(n_bkg * information), rel=2e-2)
    assert size == pytest.approx(n_bkg * 0.01 / information, rel=2e-2)
    _, alone = spurious_signal_tilt(model(n_bkg), "nu", events, spurious=7.0)
    assert alone == pytest.approx(7.0)
    _, both = spurious_signal_tilt(model(n_bkg), "nu", events, kappa=0.01, spurious=7.0)
    assert both == pytest.approx(math.hypot(size, 7.0))


def test_one_sigma_of_tilt_looks_like_that_much_signal() -> None:
    """Background tilted by +-1 sigma and fitted without a tilt gives a signal of the stated size."""
    n_bkg = 20_000.0
    events = quantiles(20_000, n_bkg)
    tilt, size = spurious_signal_tilt(model(n_bkg), "nu", events, spurious=40.0)
    prepared = tilt.prepare(events)
    fitted = []
    for nu in (-1.0, 1.0):
        weights = events.weights * np.exp(prepared.log_prob(np.array([nu])))
        data = dataclasses.replace(events, weights=weights)
        fitted.append(fit(ExtendedUnbinnedNLL(model(n_bkg), data)).raise_if_invalid().value("mu"))
    assert 0.5 * (fitted[1] - fitted[0]) == pytest.approx(size, rel=0.1)


def test_the_error_of_the_signal_grows_in_quadrature() -> None:
    n_bkg = 20_000.0
    events = quantiles(20_000, n_bkg)
    plain = model(n_bkg)
    statistical = fit(ExtendedUnbinnedNLL(plain, events)).raise_if_invalid()
    tilt, size = spurious_signal_tilt(plain, "nu", events, spurious=60.0)
    total = fit(ExtendedUnbinnedNLL(tilted(plain, tilt), events)).raise_if_invalid()
    assert total.value("mu") == pytest.approx(statistical.value("mu"), abs=0.1 * statistical.error("mu"))
    assert total.error("mu") == pytest.approx(math.hypot(statistical.error("mu"), size), rel=0.05)
    assert total.value("nu") == pytest.approx(0.0, abs=0.1)


def test_derivatives() -> None:
    events = quantiles(300, 300.0)
    tilt, _ = spurious_signal_tilt(model(300.0), "nu", events, spurious=10.0)
    nll = ExtendedUnbinnedNLL(tilted(model(300.0), tilt), events)
    theta = np.array([12.0, 290.0, 0.4])
    gradient = jacobi(nll.value, theta)[0]
    np.testing.assert_allclose(nll.grad(*theta), gradient, rtol=1e-6, atol=1e-6)
    hessian = jacobi(lambda t: nll.evaluate(t, with_value=False).gradient, theta)[0]
    np.testing.assert_allclose(nll.hessian(*theta), hessian, rtol=1e-6, atol=1e-6)


def test_density_is_positive_however_far_the_tilt() -> None:
    events = quantiles(300, 300.0)
    tilt, _ = spurious_signal_tilt(model(300.0), "nu", events, spurious=10.0)
    prepared = tilt.prepare(events)
    for nu in (-1e3, 1e3):
        log = prepared.log_prob(np.array([nu]))
        assert np.isfinite(log).all()
        assert np.mean(np.exp(log)) == pytest.approx(1.0, rel=1e-9)


def test_huge_ratios_are_bounded() -> None:
    """The score is at most 1/f, whatever the ratio of one event is."""
    events = quantiles(300, 300.0)
    tilt, _ = spurious_signal_tilt(model(300.0), "nu", events, spurious=10.0)
    far = Events(mass=np.zeros(2), features=[[600.0], [-600.0]], names=["x"])
    mean = float(tilt.share @ tilt.reference)
    high, low = (tilt.prepare(far).derivatives(np.zeros(1))[1][0] + mean) / tilt.scale
    assert high == pytest.approx(1.0 / tilt.fraction)
    assert low == pytest.approx(-1.0 / (1.0 - tilt.fraction))


def test_tilts_of_nothing() -> None:
    events = quantiles(300, 300.0)
    with pytest.raises(ModelError, match="a spurious signal of size 0 needs no tilt"):
        spurious_signal_tilt(model(300.0), "nu", events)
    same = dataclasses.replace(
        model(300.0),
        components=(
            Component("signal", Yield({"mu": 1.0}), (LogRatio(ShiftedNormal(0.0)),)),
            model(300.0).components[1],
        ),
    )
    with pytest.raises(ModelError, match="signal and background have the same density"):
        spurious_signal_tilt(same, "nu", events, kappa=0.01)
