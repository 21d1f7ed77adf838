"""Toys: what they are drawn from, what they answer, and that it depends on the seed alone."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from scipy.special import xlogy
from scipy.stats import chi2, kstest, norm, poisson

from gbistat.errors import EventsError, FitFailed, ModelError, OptionError, ParameterError
from gbistat.inference.qstats import TestStatistics
from gbistat.inference.toy_constraints import draw_constraint
from gbistat.inference.toy_experiment import CountBatch
from gbistat.inference.toy_results import TestSpec, ToyResults, concatenate_toys
from gbistat.inference.toy_tests import answer
from gbistat.inference.toys import ToyModel, ToyOptions, data_statistics, toy_statistics
from gbistat.likelihood.constraints import LogNormalConstraint, NormalConstraint, PoissonConstraint
from gbistat.likelihood.nll import UnbinnedNLL

FREE = ((),)
ALARM = 1e-4
"""False-alarm chance of each statistical test below."""


def generator(seed=1):
    return np.random.default_rng(seed)


# Closed forms: one bin.


@pytest.mark.parametrize("form", ["compressed", "exact"])
def test_counting_experiment_in_closed_form(toy_counting, form):
    model = toy_counting(20.0, 20, options=ToyOptions(form=form))
    tests = [
        TestSpec("tmu", 5.0),
        TestSpec("qmu", 5.0),
        TestSpec("tmu_tilde", 5.0),
        TestSpec("qmu_tilde", 5.0),
        TestSpec("q0"),
    ]
    toys = toy_statistics(model, model.theta(mu=3.0), tests, 400, rng=generator())
    n = toys.n_events[:, 0].astype(float)
    assert (n < 20).any()
    assert (n > 25).any()
    assert toys.estimate == pytest.approx(n - 20.0, abs=1e-5)
    assert toys.error == pytest.approx(np.sqrt(n), rel=3e-4)

    def nll(mu):
        return mu + 20.0 - xlogy(n, mu + 20.0)

    t = 2 * (nll(5.0) - nll(n - 20.0))
    tilde = 2 * (nll(5.0) - nll(np.maximum(n - 20.0, 0.0)))
    expected = [
        t,
        np.where(n - 20 > 5, 0, t),
        tilde,
        np.where(n - 20 > 5, 0, tilde),
        np.where(n < 20, 0, 2 * (nll(0.0) - nll(n - 20.0))),
    ]
    assert toys.statistics == pytest.approx(np.stack(expected, axis=1), abs=1e-8)


def test_counts_are_poisson(toy_counting):
    model = toy_counting(6.0, 6)
    n = toy_statistics(model, model.theta(mu=1.5), [], 20_000, rng=generator(2)).n_events[:, 0]
    expected = 20_000 * poisson.pmf(np.arange(19), 7.5)
    observed = np.bincount(n, minlength=30)[:19]
    statistic = np.sum((observed - expected) ** 2 / expected)
    assert chi2.ppf(ALARM / 2, 18) < statistic < chi2.isf(ALARM / 2, 18)


# Against asymptotic distributions.


def test_statistics_of_many_events_follow_their_asymptotic_distributions(toy_bump):
    model = toy_bump(120_000, 500.0, n_pool=60_000)
    tests = [TestSpec("tmu", 1.0), TestSpec("q0"), TestSpec("qmu_tilde", 1.0)]
    toys = toy_statistics(model, model.theta(mu=1.0, n_bkg=120_000.0), tests, 8000, rng=generator(3))
    assert toys.n_failed == 0
    assert kstest(toys.statistic(tests[0]), chi2(1).cdf).pvalue > ALARM
    pulls = (toys.estimate - 1.0) / toys.error
    assert abs(pulls.mean()) < 4 / np.sqrt(8000) + 0.02
    # Eq. (57) of arXiv:1007.1727: half a delta function at 0, half chi2.
    q = toys.statistic(tests[2])
    zero = int((q == 0).sum())
    assert abs(zero - 4000) < norm.isf(ALARM / 2) * np.sqrt(2000)
    assert kstest(q[q > 0], chi2(1).cdf).pvalue > ALARM
    null = toy_statistics(model, model.theta(mu=0.0, n_bkg=120_000.0), tests, 8000, rng=generator(4))
    q0 = null.statistic(tests[1])
    assert abs(int((q0 == 0).sum()) - 4000) < norm.isf(ALARM / 2) * np.sqrt(2000)
    assert kstest(q0[q0 > 0], chi2(1).cdf).pvalue > ALARM


def test_estimates_from_a_small_pool_are_not_biased(toy_bump):
    # sqrt(N / M) = 0.71: without normalisation on the pool, estimates would be off by about that many errors.
    model = toy_bump(10_000, 200.0, n_pool=20_000, seed=11)
    theta = model.theta(mu=0.5, n_bkg=10_000.0)
    toys = toy_statistics(model, theta, [], 20_000, rng=generator(5))
    pulls = (toys.estimate - 0.5) / toys.error
    assert abs(pulls.mean()) < 4 / np.sqrt(20_000) + 0.01
    assert pulls.std() == pytest.approx(1.0, abs=0.03)


def test_nuisances_widen_the_estimate_as_they_should(toy_resonance):
    model = toy_resonance()
    toys = toy_statistics(model, model.theta(mu=0.5), [TestSpec("tmu", 0.5)], 6000, rng=generator(6))
    assert toys.n_failed == 0
    pulls = (toys.estimate - 0.5) / toys.error
    assert abs(pulls.mean()) < 0.1
    assert pulls.std() == pytest.approx(1.0, abs=0.05)
    assert np.mean(toys.statistics[:, 0] < 1.0) == pytest.approx(0.6827, abs=0.025)


# Compressed against exact, on the same events.


def both_forms(model, exact, theta, count, seed):
    """Fits of the same toys, compressed and event by event."""
    experiment, single = model._experiment(theta, FREE), exact._experiment(theta, FREE)
    labels, size = model.cells()[0].labels, model.cells()[0].count
    hypothesis = experiment.hypotheses[0]
    pairs = []
    for batch in single.batches(count, rng=generator(seed)):
        rows = [batch.events(t)[0] for t in range(batch.count)] if hasattr(batch, "_drawn") else batch.events[0]
        counts = np.stack([np.bincount(labels[r], minlength=size) for r in rows])
        compressed = CountBatch(experiment, batch.count, batch.constraints, (counts,))
        pairs.append(
            [
                answer(b.toys(0), [TestSpec("q0")], hypothesis.theta, hypothesis.free, 0, b.count)
                for b in (compressed, batch)
            ]
        )
    return [np.concatenate([pair[i].theta[:, 0] for pair in pairs]) for i in (0, 1)], np.concatenate(
        [pair[1].error for pair in pairs]
    )


def test_compression_loses_what_it_says_and_has_no_bias(toy_bump):
    model = toy_bump(120_000, 500.0, n_pool=200_000)
    exact = toy_bump(120_000, 500.0, n_pool=200_000, options=ToyOptions(form="exact"))
    theta = model.theta(mu=0.5, n_bkg=120_000.0)
    count = 400
    (first, second), error = both_forms(model, exact, theta, count, 7)
    difference = (first - second) / error
    rms = np.sqrt(np.mean(difference**2))
    assert abs(difference.mean()) < 0.01
    assert rms < 0.05
    # The loss of information is the square of the r.m.s. difference; chi2 with false alarm 1e-4.
    loss = max(model.cells()[0].loss)
    assert loss <= model.options.information_loss
    assert rms < np.sqrt(1.5 * loss * chi2.isf(ALARM, count) / count)


def test_compression_with_moving_densities(toy_resonance):
    model, exact = toy_resonance(), toy_resonance(options=ToyOptions(form="exact"))
    (first, second), error = both_forms(model, exact, model.theta(mu=0.5), 40, 8)
    difference = (first - second) / error
    # 5 % of sigma is the goal for single fits; the mean of 40 has an error of 0.5 %.
    assert np.sqrt(np.mean(difference**2)) < 0.05
    assert abs(difference.mean()) < 0.01 + 4 * 0.03 / np.sqrt(40)


def test_fewer_cells_lose_more(toy_bump):
    few, many = (toy_bump(options=ToyOptions(information_loss=x)) for x in (1e-2, 1e-5))
    assert few.cells()[0].count < 15
    assert many.cells()[0].count > 100
    assert max(many.cells()[0].loss) <= 1e-5
    capped = toy_bump(options=ToyOptions(information_loss=1e-8, max_cells=30))
    assert capped.cells()[0].count == 30


# Auxiliary measurements.


@pytest.mark.parametrize(
    ("constraint", "theta"),
    [
        (NormalConstraint(("a", "b"), (1.0, 2.0), [[4.0, 1.5], [1.5, 1.0]]), (3.0, -1.0)),
        (LogNormalConstraint("a", 1.0, 0.3), (2.0,)),
        (PoissonConstraint("a", 7.0, 4.0), (2.5,)),
    ],
    ids=["normal", "log-normal", "poisson"],
)
def test_auxiliary_values_fluctuate_as_one_by_one(constraint, theta):
    truth = np.array(theta)
    batch = draw_constraint(constraint, truth, 4000, rng=generator(9))
    one_by_one = np.array([np.ravel(constraint.fluctuate(truth, rng=generator(i)).observed) for i in range(4000)])
    drawn = batch.observed.reshape(4000, -1)
    for column in range(drawn.shape[1]):
        assert drawn[:, column].mean() == pytest.approx(
            one_by_one[:, column].mean(), abs=6 * drawn[:, column].std() / 60
        )
        assert drawn[:, column].std() == pytest.approx(one_by_one[:, column].std(), rel=0.1)
    if drawn.shape[1] > 1:
        assert np.cov(drawn.T) == pytest.approx(constraint.covariance, rel=0.12)
    points = truth + 0.1 * generator(10).normal(size=(4000, truth.size))
    value, (gradient, hessian) = batch.value(points), batch.derivatives(points)
    for row in (0, 17, 3999):
        single = batch.single(row)
        assert value[row] == pytest.approx(single.value(points[row]))
        assert gradient[row] == pytest.approx(single.gradient(points[row]))
        assert np.broadcast_to(hessian, (4000, *hessian.shape[1:]))[row] == pytest.approx(single.hessian(points[row]))
    assert np.array_equal(batch.take(np.array([17])).value(points[17:18]), value[17:18])


def test_impossible_auxiliary_values_are_refused():
    with pytest.raises(ModelError, match="must be above 0"):
        draw_constraint(LogNormalConstraint("a", 1.0, 0.3), np.array([-1.0]), 5, rng=generator())


def test_a_constrained_background_fluctuates_with_its_measurement(toy_counting):
    base = toy_counting(50.0, 50)
    free = [p if p.name == "mu" else type(p)(p.name, p.start, 0.0) for p in base.nll.parameters]
    nll = type(base.nll)(free, base.nll.mixtures, [NormalConstraint("n_bkg", 50.0, 10.0)], poi="mu")
    model = ToyModel.from_nll(nll, base.references)
    # A true background that is not the measured one: the measurement fluctuates around the truth.
    toys = toy_statistics(model, model.theta(mu=5.0, n_bkg=60.0), [], 20_000, rng=generator(11))
    # Variance of N plus that of the background's measurement; 4 errors of a variance from 20,000 toys.
    assert toys.estimate.var() == pytest.approx(65.0 + 100.0, rel=4 * np.sqrt(2 / 20_000))
    assert toys.estimate.mean() == pytest.approx(5.0, abs=4 * np.sqrt(165 / 20_000))


# Seeds, batches, files.


@pytest.mark.parametrize("form", ["compressed", "exact"])
def test_toys_depend_on_the_seed_alone(toy_resonance, toy_bump, form):
    build = toy_resonance if form == "compressed" else toy_bump
    tests = [TestSpec("qmu_tilde", 1.0)]

    def run(count, batch_size, seed=12):
        model = build(options=ToyOptions(form=form, batch_size=batch_size))
        return toy_statistics(model, model.theta(mu=1.0), tests, count, rng=generator(seed))

    first, again, small, shorter = run(150, 2048), run(150, 2048), run(150, 7), run(60, 2048)
    other = run(150, 2048, seed=13)
    assert np.array_equal(first.statistics, again.statistics)
    assert np.array_equal(first.n_events, small.n_events)
    assert first.statistics == pytest.approx(small.statistics, rel=1e-6, abs=1e-7)
    assert first.values[:60] == pytest.approx(shorter.values, rel=1e-6, abs=1e-6)
    assert not np.array_equal(first.n_events, other.n_events)


def test_a_model_can_be_sent_to_another_process(toy_resonance):
    model = toy_resonance()
    copy = pickle.loads(pickle.dumps(model))
    first, second = (toy_statistics(m, m.theta(mu=1.0), [TestSpec("q0")], 50, rng=generator(14)) for m in (model, copy))
    assert np.array_equal(first.statistics, second.statistics)
    assert copy.options == model.options


def test_results_survive_a_file(toy_counting, tmp_path):
    model = toy_counting(20.0, 20)
    tests = [TestSpec("q0"), TestSpec("tmu", 2.0, fixed=(("n_bkg", 19.0),))]
    toys = toy_statistics(model, model.theta(), tests, 30, rng=generator(15))
    np.savez(tmp_path / "toys.npz", **toys.to_arrays())
    with np.load(tmp_path / "toys.npz") as arrays:
        back = ToyResults.from_arrays(arrays)
    assert back.tests == toys.tests
    assert (back.names, back.poi, back.form) == (toys.names, toys.poi, toys.form)
    for name in ("theta_true", "statistics", "estimates", "errors", "values", "status", "n_events"):
        assert np.array_equal(getattr(back, name), getattr(toys, name), equal_nan=True)
    both = concatenate_toys([toys.select(slice(0, 10)), toys.select(np.arange(10, 30))])
    assert np.array_equal(both.statistics, toys.statistics)
    with pytest.raises(OptionError, match="cannot join toys"):
        concatenate_toys([toys, toy_statistics(model, model.theta(mu=1.0), tests, 5, rng=generator())])
    with pytest.raises(OptionError, match="list of parts is empty"):
        concatenate_toys([])
    arrays = toys.to_arrays()
    with pytest.raises(OptionError, match="statistics missing"):
        ToyResults.from_arrays({k: v for k, v in arrays.items() if k != "statistics"})
    with pytest.raises(OptionError, match="damaged set of toys"):
        ToyResults.from_arrays(arrays | {"values": np.zeros((3, 2))})
    with pytest.raises(OptionError, match="were not asked for"):
        toys.statistic(TestSpec("q0", fixed=(("n_bkg", 1.0),)))


# Hypotheses.


def test_fixed_parameters_are_held_in_both_fits(toy_counting):
    model = toy_counting(20.0, 20)
    tests = [TestSpec("tmu", 2.0), TestSpec("tmu", 2.0, fixed=(("n_bkg", 15.0),))]
    toys = toy_statistics(model, model.theta(mu=2.0), tests, 50, rng=generator(16))
    assert toys.estimates[:, 1] == pytest.approx(toys.estimates[:, 0] + 5.0, abs=1e-5)
    assert toys.true_value == 2.0


def test_a_free_mass_must_be_held(toy_resonance):
    base = toy_resonance()
    kept = [c for c in base.nll.constraints if c.names != ("scale",)]
    model = ToyModel.from_nll(base.nll.replaced(base.nll.mixtures, kept), base.references)
    with pytest.raises(ModelError, match=r"scale moves a density and nothing constrains it.*fixed"):
        toy_statistics(model, model.theta(), [TestSpec("q0")], 10, rng=generator())
    # Toys of one background under several masses: the scan of a look-elsewhere study.
    tests = [TestSpec("q0", fixed=(("scale", x),)) for x in (0.92, 1.0, 1.08)]
    toys = toy_statistics(model, model.theta(), tests, 300, rng=generator(17))
    assert toys.n_failed == 0
    correlation = np.corrcoef(toys.estimates.T)
    # Masses one and two resolutions apart: neighbours share events.
    assert 0.1 < correlation[0, 1] < 0.95
    assert correlation[0, 2] < correlation[0, 1]


def test_statistics_of_the_data_are_those_of_the_scalar_functions(toy_bump):
    model = toy_bump(constraints=(NormalConstraint("n_bkg", 10_050.0, 60.0),))
    scalar = TestStatistics(model.nll, "mu")
    tests = [TestSpec("q0"), TestSpec("qmu", 0.7), TestSpec("qmu_tilde", 0.7), TestSpec("tmu", 0.2)]
    expected = [scalar.q0(), scalar.qmu(0.7), scalar.qmu_tilde(0.7), scalar.tmu(0.2)]
    assert data_statistics(model, tests) == pytest.approx(expected, abs=1e-7)
    profiled = model.profiled(0.7)
    assert profiled[0] == 0.7
    assert profiled == pytest.approx(scalar.profile.conditional(0.7).values, rel=1e-6)


# Bad input.


def test_bad_requests(toy_bump):
    model = toy_bump()
    theta = model.theta()
    with pytest.raises(OptionError, match="0 toys; ask for at least one"):
        toy_statistics(model, theta, [], 0, rng=generator())
    with pytest.raises(ParameterError, match="2 finite numbers"):
        toy_statistics(model, theta[:1], [], 5, rng=generator())
    with pytest.raises(ParameterError, match="2 finite numbers"):
        toy_statistics(model, theta * np.nan, [], 5, rng=generator())
    with pytest.raises(ParameterError, match="n_bkg = -1 is outside"):
        toy_statistics(model, np.array([0.0, -1.0]), [], 5, rng=generator())
    with pytest.raises(ParameterError, match="no parameter 'n_bgk'; nearest names: n_bkg"):
        toy_statistics(model, theta, [TestSpec("q0", fixed=(("n_bgk", 3.0),))], 5, rng=generator())
    with pytest.raises(OptionError, match="parameter of interest"):
        toy_statistics(model, theta, [TestSpec("q0", fixed=(("mu", 3.0),))], 5, rng=generator())
    with pytest.raises(OptionError, match="tests values of 0 and above"):
        toy_statistics(model, theta, [TestSpec("tmu_tilde", -1.0)], 5, rng=generator())
    with pytest.raises(EventsError, match="too small"):
        toy_statistics(model, model.theta(n_bkg=1e7), [], 5, rng=generator())


def test_bad_tests_and_options():
    with pytest.raises(OptionError, match="'qmutilde' is unknown; nearest names: qmu_tilde"):
        TestSpec("qmutilde", 1.0)
    with pytest.raises(OptionError, match="q0 tests the value 0"):
        TestSpec("q0", 1.0)
    with pytest.raises(OptionError, match="finite"):
        TestSpec("tmu", np.inf)
    with pytest.raises(OptionError, match="'binned' is unknown"):
        ToyOptions(form="binned")
    with pytest.raises(OptionError, match="information_loss"):
        ToyOptions(information_loss=0.0)
    with pytest.raises(OptionError, match="batch_size"):
        ToyOptions(batch_size=0)


def test_models_without_toys(toy_bump, toy_resonance):
    model = toy_bump()
    with pytest.raises(ModelError, match=r"0 reference\(s\) for 1 data term"):
        ToyModel.from_nll(model.nll, ())
    from types import SimpleNamespace

    with pytest.raises(ModelError, match="no reference events"):
        ToyModel.from_analysis(SimpleNamespace(reference=None, nll=model.nll))
    from gbistat.data.events import Events
    from gbistat.likelihood.nll import ExtendedUnbinnedNLL

    ratios = ExtendedUnbinnedNLL.from_log_ratio(np.linspace(-1, 1, 50))
    shape_only = UnbinnedNLL(ratios.model, Events(mass=np.zeros(50)))
    with pytest.raises(ModelError, match="extended"):
        ToyModel.from_nll(shape_only, model.references)


def test_parameters_that_nothing_determines(toy_counting):
    base = toy_counting(20.0, 20)
    free = [type(p)(p.name, p.start, p.low) for p in base.nll.parameters]
    nll = type(base.nll)(free, base.nll.mixtures, base.nll.constraints, poi="mu")
    with pytest.raises(ModelError, match="toys cannot determine mu"):
        toy_statistics(ToyModel.from_nll(nll, base.references), base.theta(), [], 5, rng=generator())


def test_data_that_cannot_be_fitted(toy_counting):
    model = toy_counting(20.0, 20)
    broken = model.nll.with_constraint(NormalConstraint("mu", np.nan, 1.0))
    with pytest.raises(FitFailed, match="observed data failed"):
        data_statistics(ToyModel.from_nll(broken, model.references), [TestSpec("q0")])
