"""Coverage campaigns. The chance of a false alarm of each statistical test is below 1e-4."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import kstest

from gbistat.data.events import Events
from gbistat.data.window import MassWindow
from gbistat.errors import FitFailed, OptionError, ToyFileError
from gbistat.inference import coverage_campaign
from gbistat.inference.campaign import Campaign, CampaignPlan
from gbistat.inference.campaign_run import run_campaign
from gbistat.inference.coverage_campaign import METHODS, coverage_results, draw_likelihood, plan_coverage
from gbistat.inference.toys import ToyModel
from gbistat.likelihood.components import Component, MassFactor, Yield
from gbistat.likelihood.constraints import NormalConstraint
from gbistat.likelihood.model import Model
from gbistat.likelihood.nll import ExtendedUnbinnedNLL
from gbistat.likelihood.parameters import Parameter
from gbistat.likelihood.reference import reference_from_quadrature
from gbistat.terms.density import MassDensity
from gbistat.terms.shapes.exponential import Exponential
from gbistat.terms.shapes.gaussian import Gaussian

WINDOW = MassWindow(100.0, 200.0)
FALLING = MassDensity.fixed(Exponential(), (WINDOW.edges,), (0.02,))


@pytest.fixture(scope="module")
def model():
    """Peak on a falling background with a constrained yield: 200 events."""
    peak = MassDensity.fixed(Gaussian(), (WINDOW.edges,), (140.0, 6.0))
    model = Model(
        components=(
            Component("signal", Yield({"mu": 1.0}), (MassFactor(peak),)),
            Component("background", Yield({"n_bkg": 1.0}), (MassFactor(FALLING),)),
        ),
        parameters=(Parameter("mu", 10.0), Parameter("n_bkg", 200.0, 0.0)),
        constraints=(NormalConstraint("n_bkg", 200.0, 20.0),),
        window=WINDOW,
    )
    rng = np.random.default_rng(3)
    mass = np.r_[peak.sample(15, (), rng=rng), FALLING.sample(190, (), rng=rng)]
    nll = ExtendedUnbinnedNLL(model, Events(mass=mass))
    return ToyModel.from_nll(nll, reference_from_quadrature(model, nodes_per_piece=400))


def plan(model, values=(0.0, 15.0), n_toys=40, methods=("profile",), cls=(0.6827, 0.95), **options):
    return plan_coverage(model, values, n_toys, methods, cls, seed=2, model_sha256="a" * 64, **options)


def test_drawn_likelihoods_are_those_of_the_truth(model):
    """Counts and auxiliary values of 400 toys; masses of one large toy."""
    rng = np.random.default_rng(11)
    truth = np.array([15.0, 200.0])
    toys = [draw_likelihood(model, truth, rng=rng) for _ in range(400)]
    counts = np.array([toy.mixtures[0].size for toy in toys])
    assert abs(counts.mean() - 215.0) < 4 * math.sqrt(215.0 / 400)
    assert abs(counts.var() / 215.0 - 1.0) < 4 * math.sqrt(2.0 / 400)
    auxiliary = np.array([float(np.ravel(toy.constraints[0].observed)[0]) for toy in toys])
    assert kstest(auxiliary, "norm", args=(200.0, 20.0)).pvalue > 1e-4


def test_the_score_of_a_drawn_likelihood_has_mean_zero(model):
    rng = np.random.default_rng(12)
    truth = np.array([15.0, 200.0])
    scores = np.array([draw_likelihood(model, truth, rng=rng).evaluate(truth).gradient for _ in range(400)])
    assert (np.abs(scores.mean(axis=0)) < 4 * scores.std(axis=0) / 20).all()


def test_batched_profile_coverage(model):
    """2 x 2000 toys: Wilks holds to about a percent with 200 events; the rule of ln 2 is no 95 % interval."""
    campaign = run_campaign(*plan(model, n_toys=2000, methods=("profile", "ln2")))
    for result, truth in zip(coverage_results(campaign), (0.0, 15.0), strict=True):
        assert result.truth == truth
        for cl in (0.6827, 0.95):
            row = result.row("profile", cl)
            assert row.n_toys == 2000
            assert row.n_failed == 0
            assert abs(row.coverage - cl) < 0.012 + 4 * math.sqrt(cl * (1 - cl) / 2000)
            assert abs(row.bias) < 4 * row.bias_error
            # Delta lnL = ln 2 is a threshold of 1.386 on chi2 with one degree of freedom.
        assert abs(row_of_ln2(result).coverage - 0.761) < 0.012 + 4 * math.sqrt(0.76 * 0.24 / 2000)


def row_of_ln2(result):
    (row,) = [row for row in result.rows if row.method == "ln2"]
    assert row.cl == 0.95
    return row


def test_single_toys_cover_as_batched_ones(model):
    """150 toys one by one, by profile and asymptotic CLs; where the estimate is the limit, CLs over-covers."""
    campaign = run_campaign(*plan(model, n_toys=150, methods=("profile", "cls"), cls=(0.9,)))
    zero, signal = coverage_results(campaign)
    for result in (zero, signal):
        assert abs(result.row("profile", 0.9).coverage - 0.9) < 4 * math.sqrt(0.09 / 150)
    # CLs never excludes no signal at all, and covers more than it says.
    assert zero.row("cls", 0.9).coverage == 1.0
    assert signal.row("cls", 0.9).coverage > 0.9


def test_methods_by_toys_on_their_own_toys(model):
    """Feldman-Cousins, Neyman and toy CLs of 12 toys each: as profile intervals and asymptotic CLs with 200 events."""
    methods = ("profile", "cls", "feldman-cousins", "neyman", "cls-toys")
    options = {"values": (15.0,), "n_toys": 12, "methods": methods, "cls": (0.6827,), "inner_toys": 200}
    campaign = run_campaign(*plan(model, **options))
    held = campaign.column("held")
    assert set(np.unique(held)) <= {0, 1}
    same = {(a, b): (held[:, methods.index(a)] == held[:, methods.index(b)]).mean() for a in methods for b in methods}
    assert same["profile", "feldman-cousins"] > 0.8
    assert same["profile", "neyman"] > 0.8
    assert same["cls", "cls-toys"] > 0.8
    # Another method beside it changes nothing.
    alone = run_campaign(*plan(model, **(options | {"methods": ("feldman-cousins",)})))
    assert np.array_equal(alone.column("held")[:, 0], held[:, 2])


def test_failed_methods_are_counted(model, monkeypatch):
    def sometimes(toy, cl):
        if toy.nll.mixtures[0].size % 2:
            raise FitFailed("no minimum")
        return True

    monkeypatch.setitem(METHODS, "cls", sometimes)
    campaign = run_campaign(*plan(model, values=(0.0,), methods=("profile", "cls"), cls=(0.9,)))
    (result,) = coverage_results(campaign)
    row = result.row("cls", 0.9)
    assert 5 < row.n_failed < 35
    assert row.n_covered == 40 - row.n_failed
    assert result.row("profile", 0.9).n_failed == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ("profil",)}, "method 'profil' is unknown; nearest names: profile"),
        ({"methods": ()}, "give each at least once"),
        ({"values": (1.0, 1.0)}, "give each at least once"),
        ({"cls": (0.9, 1.0)}, "confidence level 1 must lie between 0 and 1"),
        ({"values": (-1.0,), "methods": ("cls",)}, "cls tests values of 0 and above, not -1"),
        ({"n_toys": 0}, "0 toys at a point"),
    ],
)
def test_what_cannot_be_measured(model, change, message):
    with pytest.raises(OptionError, match=message):
        plan(model, **change)


def test_foreign_campaigns():
    other = CampaignPlan("count/1", "a" * 64, ("mu",), np.zeros(1), (1,), 1)
    with pytest.raises(ToyFileError, match="results of 'count/1', not of 'coverage/1'"):
        coverage_results(Campaign(other))
    assert coverage_campaign.WORK == "coverage/1"
