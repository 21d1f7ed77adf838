"""Spread of an ensemble of ratios as nuisance parameters of the likelihood."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import gbistat
from gbistat.data.events import Events
from gbistat.data.window import MassWindow
from gbistat.errors import ModelError
from gbistat.fit.minimize import fit
from gbistat.inference.profile import profile_interval
from gbistat.likelihood.components import Component, LogRatio, MassFactor, Yield
from gbistat.likelihood.ensemble import with_ensemble_directions
from gbistat.likelihood.model import Model
from gbistat.likelihood.nll import ExtendedUnbinnedNLL
from gbistat.likelihood.parameters import Parameter
from gbistat.terms.density import MassDensity
from gbistat.terms.shapes.registry import make_shape

WINDOW = MassWindow(0.0, 1.0)
MEANS = np.array([1.8, 2.0, 2.3])


@dataclasses.dataclass(frozen=True)
class Members:
    """Signal N(mu_k, 1) against background N(0, 1) in a feature: ln r_k = mu_k x - mu_k^2 / 2."""

    means: tuple[float, ...] = tuple(MEANS)
    name: str = "peak-2 x"

    def member_values(self, events):
        x = events.features[:, 0]
        return np.array([mu * x - 0.5 * mu * mu for mu in self.means])

    def log_ratio(self, events):
        return np.logaddexp.reduce(self.member_values(events), axis=0) - np.log(len(self.means))


def events_of(x):
    return Events(mass=np.full(len(x), 0.5), features=np.asarray(x, dtype=float)[:, None], names=("x",))


def model_of(term):
    flat = MassDensity.fixed(make_shape("exponential"), ((0.0, 1.0),), [1e-9])
    return Model(
        (
            Component("signal", Yield({"mu": 1.0}), (MassFactor(flat), LogRatio(term))),
            Component("background", Yield({"n_bkg": 1.0}), (MassFactor(flat),)),
        ),
        (Parameter("mu", 0.0), Parameter("n_bkg", 2000.0, 0.0)),
        (),
        WINDOW,
        "mu",
    )


@pytest.fixture(scope="module")
def pool():
    return events_of(np.random.default_rng(1).normal(size=200_000))


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(2)
    return events_of(np.r_[rng.normal(size=2000), rng.normal(2.0, 1.0, 150)])


def test_covariance_is_that_of_a_mean(pool):
    term = Members()
    model = with_ensemble_directions(model_of(term), term, pool)
    factor = model.component("signal").factors[-1]
    assert factor.names == ("peak_2_x_member_0", "peak_2_x_member_1", "peak_2_x_member_2")
    some = events_of([-1.0, 0.5, 3.0])
    directions = factor.prepare(some).derivatives(np.zeros(3))[1] + factor.mean[:, None]
    deviations = term.member_values(some) - term.log_ratio(some)
    np.testing.assert_allclose(directions.T @ directions, deviations.T @ deviations / (3 * 2), rtol=1e-12)


def test_signal_density_stays_normalised(pool):
    term = Members()
    model = with_ensemble_directions(model_of(term), term, pool)
    factor = model.component("signal").factors[-1].prepare(pool)
    ratio = np.exp(term.log_ratio(pool))
    for u in (np.array([0.0, 1.0, -1.0]), np.array([-1.0, 0.5, 1.0])):
        changed = np.mean(ratio * np.exp(factor.log_prob(u))) / np.mean(ratio)
        # Without normalisation it is 2 % off; what is left is of third order.
        assert changed == pytest.approx(1.0, abs=0.001)


def test_equal_members_change_nothing_and_different_ones_widen_the_interval(pool, data):
    results = {}
    for label, means in (("equal", (2.0, 2.0, 2.0)), ("spread", tuple(MEANS))):
        term = Members(means)
        plain = ExtendedUnbinnedNLL(model_of(term), data)
        profiled = ExtendedUnbinnedNLL(with_ensemble_directions(model_of(term), term, pool), data)
        intervals = [profile_interval(nll, "mu", cl=0.6827) for nll in (plain, profiled)]
        results[label] = [interval.high - interval.low for interval in intervals]
        assert fit(profiled).valid
    assert results["equal"][1] == pytest.approx(results["equal"][0], rel=1e-6)
    assert results["spread"][1] > 1.01 * results["spread"][0]


def test_one_member_has_no_spread(pool):
    term = Members((2.0,))
    with pytest.raises(ModelError, match="'peak-2 x' has one member"):
        with_ensemble_directions(model_of(term), term, pool)


def test_shipped_model_with_its_ensemble_profiled(monkeypatch):
    from gbistat.config import RunCard, resolve_options
    from gbistat.workflow import run_fit

    mean, profiled = (run_fit(resolve_options(ensemble=choice)).outcomes[0] for choice in ("mean", "profiled"))
    members = [name for name in profiled.fit.names if "_member_" in name]
    assert len(members) == 3
    assert set(profiled.fit.names) - set(mean.fit.names) == set(members)
    assert profiled.fit.error("mu") > mean.fit.error("mu")
    assert abs(profiled.fit.value("mu") - mean.fit.value("mu")) < profiled.fit.error("mu")
    assert resolve_options(RunCard(ensemble="profiled")).model.spec.signal.ensemble == "profiled"
    monkeypatch.setattr("gbistat.workflow.load_reference", lambda model: None)
    with pytest.raises(ModelError, match="needs reference events in the window"):
        gbistat.prepare(card=RunCard(ensemble="profiled"))


def test_a_model_without_ratio_has_no_ensemble(tmp_path):
    card = tmp_path / "card.yaml"
    np.savez(tmp_path / "e.npz", m=100.0 + np.random.default_rng(3).exponential(40.0, 500))
    card.write_text(
        "events: {path: e.npz}\nwindows: [[130, 150]]\nensemble: profiled\nmodel:\n  mass: {name: m, unit: GeV}\n"
        "  signal: {mass: {shape: gaussian, parameters: {mean: 140.0, sigma: 5.0}}}\n"
        "  background: {mass: {shape: exponential}, fit_range: [100, 200]}\n"
    )
    with pytest.raises(ModelError, match="the signal has no ratio"):
        gbistat.prepare(card=gbistat.read_card(card))
