"""Toys of binned likelihoods: what they draw, that fits of many are fits of one, and CLs."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy.stats import chi2, ks_2samp, kstest, poisson

from gbistat.binned.backend import load_model, numpy_backend, toy_calculator_defect
from gbistat.binned.batch_fit import BatchNLL, fit_batch
from gbistat.binned.load import load_workspace
from gbistat.binned.toys import binned_toys, toy_cls
from gbistat.errors import ModelError, OptionError
from gbistat.fit.minimize import fit
from gbistat.inference.limits import upper_limit
from gbistat.inference.neyman import neyman_interval
from gbistat.inference.neyman_problem import problem_of_toys
from gbistat.inference.neyman_results import NeymanOptions
from gbistat.inference.profile import profile_interval
from gbistat.inference.qstats import TestStatistics
from gbistat.inference.toy_limit_results import ToyBudget
from gbistat.inference.toy_limits import toy_upper_limit
from gbistat.inference.toy_results import TestSpec
from gbistat.inference.toys import ToyModel, ToyOptions, toy_statistics
from gbistat.likelihood.constraints import PoissonConstraint
from gbistat.likelihood.nll import ExtendedUnbinnedNLL
from gbistat.likelihood.reference import reference_from_data


def test_fits_of_many_are_fits_of_one(every_modifier, rng):
    nll = load_workspace(every_modifier).nll
    truth = fit(nll, fixed={"mu": 0.5}).values
    batch = BatchNLL.draw(nll, truth, 12, rng=rng)
    free = np.array([not parameter.fixed for parameter in nll.parameters])
    many = fit_batch(batch, np.tile(truth, (12, 1)), free)
    assert many.valid.all()
    for row in range(12):
        one = fit(batch.single(row))
        assert many.value[row] == pytest.approx(one.nll, abs=1e-7)
        pull = (many.theta[row] - one.values) / np.where(one.errors > 0, one.errors, 1.0)
        assert np.abs(pull).max() < 1e-3


@pytest.mark.parametrize("statistic", ["tmu", "qmu", "qmu_tilde", "q0"])
def test_statistics_are_those_of_single_fits(every_modifier, statistic):
    nll = load_workspace(every_modifier).nll
    truth = fit(nll, fixed={"mu": 0.5}).values
    toys = binned_toys(nll, truth, 0.5, 12, rng=np.random.default_rng(4), statistic=statistic)
    assert toys.estimates.min() < 0
    assert toys.estimates.max() > 0.5
    batch = BatchNLL.draw(nll, truth, 12, rng=np.random.default_rng(4))
    for row in range(12):
        single = TestStatistics(batch.single(row), "mu")
        expected = single.q0() if statistic == "q0" else getattr(single, statistic)(0.5)
        assert toys.values[row] == pytest.approx(expected, abs=1e-6)
        assert toys.estimates[row] == pytest.approx(single.estimate, abs=1e-4)


def test_drawn_data_have_the_expected_distribution(every_modifier):
    """Means and variances of 20,000 toys; a correct one fails with 1e-4 (five sigma, about 30 numbers)."""
    nll = load_workspace(every_modifier).nll
    truth = nll.start_vector(theory=0.7, mc_SR_0=1.1)
    batch = BatchNLL.draw(nll, truth, 20_000, rng=np.random.default_rng(8))
    (counts, where), (measured, who) = batch.terms
    mean = counts.term.yields(truth[where])
    error = np.sqrt(mean / 20_000)
    assert np.abs(counts.observed.mean(axis=0) - mean).max() < (5 * error).max()
    np.testing.assert_allclose(counts.observed.var(axis=0), mean, rtol=5 * np.sqrt(2 / 20_000) * 1.1)
    pulls = (measured.values - truth[who][: measured.values.shape[1]]) / measured.measurements.sigmas
    assert np.abs(pulls.mean(axis=0)).max() < 5 / np.sqrt(20_000)
    np.testing.assert_allclose(pulls.std(axis=0), 1.0, rtol=0.03)


def test_statistic_follows_chi2(many_nuisances):
    """p-value of a KS test on 400 toys; a correct one fails with 1e-3."""
    nll = load_workspace(many_nuisances(20, 6, signal=1.0)).nll
    truth = fit(nll, fixed={"mu": 1.0}).values
    toys = binned_toys(nll, truth, 1.0, 400, rng=np.random.default_rng(21), statistic="tmu")
    assert toys.n_failed == 0
    assert kstest(toys.values, chi2(1).cdf).pvalue > 1e-3


def test_cls_of_one_bin(counting):
    """qmu_tilde falls with the count, so that p-values are sums of Poisson probabilities."""
    nll = load_workspace(counting(6.0, 5.0, 4.0)).nll
    result = toy_cls(nll, 1.0, 4000, rng=np.random.default_rng(2))
    exact = poisson.cdf(4, 11.0), poisson.cdf(4, 5.0)
    assert result.p_signal == pytest.approx(exact[0], abs=5 * np.sqrt(exact[0] / 4000))
    assert result.p_background == pytest.approx(exact[1], abs=5 * np.sqrt(exact[1] * (1 - exact[1]) / 4000))
    assert result.observed == pytest.approx(exact[0] / exact[1], abs=5 * result.error)
    median = poisson.cdf(5, 11.0) / poisson.cdf(5, 5.0)
    assert result.expected[2] == pytest.approx(median, abs=5 * result.error)
    assert list(result.expected) == sorted(result.expected)


def test_the_defect_of_pyhf_is_told(counting):
    """The note says what happens: pyhf's calculator fails exactly where the note says so."""
    loaded = load_workspace(counting(6.0, 5.0, 4.0))
    note = toy_calculator_defect()
    notes = toy_cls(loaded.nll, 1.0, 50, rng=np.random.default_rng(1)).notes
    assert any("toy calculator of pyhf" in text for text in notes) == (note is not None)
    with numpy_backend() as pyhf:
        model, _ = load_model(pyhf, loaded.workspace)
        np.random.seed(1)  # noqa: NPY002  # pyhf draws from the global generator

        def toys():
            return pyhf.infer.hypotest(
                1.0, [4.0], model, calctype="toybased", ntoys=5, track_progress=False, return_expected=True
            )

        if note is None:
            toys()
        else:
            with pytest.raises(TypeError, match="interpolation"):
                toys()


def test_speed(many_nuisances):
    """100 bins and 50 nuisances: pyhf takes about a second for a fit by SLSQP, several by MINUIT."""
    nll = load_workspace(many_nuisances(100, 50, signal=0.5)).nll
    truth = fit(nll, fixed={"mu": 0.0}).values
    begin = time.perf_counter()
    for _ in range(3):
        assert fit(nll).valid
    assert (time.perf_counter() - begin) / 3 < 0.5
    begin = time.perf_counter()
    binned_toys(nll, truth, 1.0, 64, rng=np.random.default_rng(1))
    assert 64 / (time.perf_counter() - begin) > 5.0


def test_bad_input(counting):
    nll = load_workspace(counting(6.0, 5.0, 4.0)).nll
    rng = np.random.default_rng(1)
    with pytest.raises(OptionError, match="'qmu_tild' is unknown; nearest names: qmu_tilde"):
        binned_toys(nll, nll.start_vector(), 1.0, 5, rng=rng, statistic="qmu_tild")
    with pytest.raises(OptionError, match="0 toys"):
        binned_toys(nll, nll.start_vector(), 1.0, 0, rng=rng)
    with pytest.raises(OptionError, match="not -1"):
        toy_cls(nll, -1.0, 5, rng=rng)
    with pytest.raises(ModelError, match="channel 'SR', bin 0: -1 events are expected"):
        binned_toys(nll, np.array([-1.0]), 1.0, 5, rng=rng)
    with pytest.raises(ModelError, match="unbinned data"):
        binned_toys(ExtendedUnbinnedNLL.from_log_ratio(np.zeros(3)), np.zeros(2), 1.0, 5, rng=rng)


@pytest.fixture
def two_bins(workspace):
    mu = {"name": "mu", "type": "normfactor", "data": None}
    scale = {"name": "k", "type": "normsys", "data": {"hi": 1.1, "lo": 0.92}}
    samples = [
        {"name": "signal", "data": [6.0, 8.0], "modifiers": [mu]},
        {"name": "background", "data": [30.0, 50.0], "modifiers": [scale]},
    ]
    return load_workspace(workspace([{"name": "SR", "samples": samples}], {"SR": [33.0, 55.0]})).nll


def test_limits_and_intervals_by_toys_run_on_workspaces(two_bins):
    """With 85 events the toys agree with asymptotic formulae; Monte Carlo errors are 2 % of the ends, the band five of them."""
    model = ToyModel.from_nll(two_bins, ())
    limit = toy_upper_limit(model, budget=ToyBudget(1000, 2000, 0.05), rng=np.random.default_rng(1))
    asymptotic = upper_limit(two_bins)
    assert limit.observed == pytest.approx(asymptotic.observed, rel=0.1)
    assert limit.expected[2] == pytest.approx(asymptotic.expected[2], rel=0.1)
    options = NeymanOptions(precision=0.1, min_toys=500, max_toys=4000, n_points=6)
    found = neyman_interval(problem_of_toys(model), cl=0.6827, rng=np.random.default_rng(2), options=options)
    profile = profile_interval(two_bins, "mu", cl=0.6827)
    assert found.segments[-1][1] == pytest.approx(profile.high, abs=0.15 * (profile.high - profile.low))


def test_common_toys_are_these_toys(two_bins):
    """The two ways to fit toys give the same distribution; a KS test of 1500 toys each fails with 1e-3."""
    truth = fit(two_bins, fixed={"mu": 0.5}).values
    model = ToyModel.from_nll(two_bins, ())
    theirs = toy_statistics(model, truth, [TestSpec("tmu", 0.5)], 1500, rng=np.random.default_rng(3))
    ours = binned_toys(two_bins, truth, 0.5, 1500, rng=np.random.default_rng(4), statistic="tmu")
    assert ks_2samp(theirs.statistics[:, 0], ours.values).pvalue > 1e-3
    assert ks_2samp(theirs.estimates[:, 0], ours.estimates).pvalue > 1e-3


def test_common_toys_of_joined_data(workspace, rng):
    """A binned control region beside unbinned events, in batches: toy by toy the same as with a Poisson constraint."""
    pool = ExtendedUnbinnedNLL.from_log_ratio(rng.normal(-1.0, 1.0, 3000))
    reference = reference_from_data(pool, np.array([0.0, 3000.0]))
    region = ExtendedUnbinnedNLL.from_log_ratio(np.r_[rng.normal(-1.0, 1.0, 250), 2.5, 3.0, 2.8])
    sample = {"name": "b", "data": [4.0], "modifiers": [{"name": "n_bkg", "type": "normfactor", "data": None}]}
    parameters = [{"name": "n_bkg", "inits": [60.0], "bounds": [[0.0, 1e4]]}]
    control = load_workspace(
        workspace([{"name": "CR", "samples": [sample]}], {"CR": [1000.0]}, poi="", parameters=parameters)
    )
    results = []
    for nll in (region + control.nll, region.with_constraint(PoissonConstraint("n_bkg", 1000.0, 4.0))):
        model = ToyModel.from_nll(nll, reference, options=ToyOptions(max_pool_error=1.0))
        tests = [TestSpec("tmu", 5.0)]
        results.append(toy_statistics(model, model.profiled(5.0), tests, 200, rng=np.random.default_rng(1)))
    np.testing.assert_allclose(results[0].statistics, results[1].statistics, atol=1e-6)
    np.testing.assert_allclose(results[0].estimates, results[1].estimates, atol=1e-4)
