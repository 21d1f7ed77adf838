from __future__ import annotations

import numpy as np
import pytest

from gbistat.data.events import Events
from gbistat.data.window import MassWindow
from gbistat.errors import CampaignError, OptionError, ParameterError, ToyFileError
from gbistat.inference.campaign import Campaign, CampaignPlan
from gbistat.inference.campaign_run import Processes, run_campaign
from gbistat.inference.toy_campaign import campaign_toys, plan_toys, standard_tests, true_parameters
from gbistat.inference.toy_results import TestSpec
from gbistat.inference.toys import ToyModel, ToyOptions, toy_statistics
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


def make_toy_model():
    """Peak on a falling background with a constrained yield: 200 events."""
    peak = MassDensity.fixed(Gaussian(), (WINDOW.edges,), (140.0, 6.0))
    falling = MassDensity.fixed(Exponential(), (WINDOW.edges,), (0.02,))
    model = Model(
        components=(
            Component("signal", Yield({"mu": 1.0}), (MassFactor(peak),)),
            Component("background", Yield({"n_bkg": 1.0}), (MassFactor(falling),)),
        ),
        parameters=(Parameter("mu", 10.0), Parameter("n_bkg", 200.0, 0.0)),
        constraints=(NormalConstraint("n_bkg", 200.0, 20.0),),
        window=WINDOW,
    )
    rng = np.random.default_rng(3)
    mass = np.r_[peak.sample(15, (), rng=rng), falling.sample(190, (), rng=rng)]
    nll = ExtendedUnbinnedNLL(model, Events(mass=mass))
    return ToyModel.from_nll(nll, reference_from_quadrature(model, nodes_per_piece=60))


@pytest.fixture(scope="module")
def toy_model():
    return make_toy_model()


def make_plan(model, values=(0.0, 5.0, 12.0), n_toys=60, **options):
    return plan_toys(model, values, n_toys, seed=5, model_sha256="a" * 64, chunk_size=25, **options)


def test_tests_of_each_point():
    tests = standard_tests([-2.0, 0.0, 3.0])
    assert tests[0] == (TestSpec("tmu", -2.0), TestSpec("q0"))
    assert tests[1] == (TestSpec("tmu_tilde", 0), TestSpec("qmu_tilde", 0), TestSpec("q0"), TestSpec("qmu_tilde", 3.0))
    assert tests[2] == (TestSpec("tmu_tilde", 3.0), TestSpec("qmu_tilde", 3.0), TestSpec("q0"))


def test_true_parameters_are_the_profiled_ones_up_to_rounding(toy_model):
    exact = toy_model.profiled(12.0)
    rounded = true_parameters(toy_model, 12.0)
    assert rounded[0] == 12.0
    # A ten-thousandth of its error of about 11: the digits beyond are noise of the machine.
    assert 0 < abs(rounded[1] - exact[1]) <= 5e-4
    assert rounded[1] == round(rounded[1], 3)
    with pytest.raises(ParameterError):
        true_parameters(toy_model, float("nan"))


def test_campaign_holds_the_toys_of_toy_statistics(toy_model):
    plan, work = make_plan(toy_model)
    campaign = run_campaign(plan, work)
    for point in range(3):
        toys = campaign_toys(campaign, point)
        assert len(toys) == 60
        assert toys.tests == standard_tests([0.0, 5.0, 12.0])[point]
        begin = 0
        for chunk, size in enumerate((25, 25, 10)):
            direct = toy_statistics(toy_model, plan.points[point], toys.tests, size, rng=plan.rng(point, chunk))
            part = toys.select(slice(begin, begin + size))
            np.testing.assert_allclose(part.statistics, direct.statistics, rtol=1e-9, atol=1e-9)
            assert np.array_equal(part.n_events, direct.n_events)
            begin += size
        assert toys.poi == "mu"
        assert toys.true_value == (0.0, 5.0, 12.0)[point]


@pytest.mark.parametrize("form", ["compressed", "exact"])
def test_two_processes_and_a_used_model_give_the_same_bytes(toy_model, tmp_path, form):
    model = ToyModel.from_nll(toy_model.nll, toy_model.references, options=ToyOptions(form=form))
    plan, work = make_plan(model)
    run_campaign(plan, work, tmp_path / "one.npz")
    # What was computed with the model before must not show.
    toy_statistics(model, model.theta(mu=3.0), [TestSpec("q0")], 10, rng=np.random.default_rng(1))
    plan, work = make_plan(model)
    run_campaign(plan, work, tmp_path / "two.npz", executor=Processes(2))
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_settings_that_change_toys_change_the_plan(toy_model):
    base = make_plan(toy_model)[0].sha256
    exact = ToyModel.from_nll(toy_model.nll, toy_model.references, options=ToyOptions(form="exact"))
    coarse = ToyModel.from_nll(toy_model.nll, toy_model.references, options=ToyOptions(information_loss=1e-2))
    others = [
        make_plan(exact),
        make_plan(coarse),
        make_plan(toy_model, tests=[(TestSpec("q0"),)] * 3),
        make_plan(toy_model, settings={"window": [100.0, 200.0]}),
    ]
    assert len({base, *(plan.sha256 for plan, _ in others)}) == 5
    assert make_plan(toy_model, n_toys=70)[0].sha256 == base


def test_what_cannot_be_planned(toy_model):
    with pytest.raises(OptionError, match="give each once, and at least one"):
        make_plan(toy_model, values=(1.0, 1.0))
    with pytest.raises(OptionError, match="give each once, and at least one"):
        make_plan(toy_model, values=())
    with pytest.raises(OptionError, match="0 toys at a point"):
        make_plan(toy_model, n_toys=0)
    with pytest.raises(OptionError, match="tests must be given for each value"):
        make_plan(toy_model, tests=[(TestSpec("q0"),)])
    held = (TestSpec("q0", 0.0, (("n_bkg", 200.0),)),)
    with pytest.raises(OptionError, match="hold the same parameters at all of them"):
        make_plan(toy_model, tests=[held, (TestSpec("q0"),), held])


def test_foreign_campaigns(toy_model):
    plan, _ = make_plan(toy_model)
    with pytest.raises(CampaignError, match=r"no toys are done at mu = 5, n_bkg = .* yet"):
        campaign_toys(Campaign(plan), 1)
    other = CampaignPlan("count/1", "a" * 64, ("mu",), np.zeros(1), (1,), 1)
    with pytest.raises(ToyFileError, match="results of 'count/1', not of 'toy-statistics/1'"):
        campaign_toys(Campaign(other), 0)
