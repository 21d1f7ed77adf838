"""Batched fits: derivatives, and agreement with the scalar fit of the same toys."""

from __future__ import annotations

import numpy as np
import pytest

from gbistat.data.events import Events
from gbistat.errors import MissingExtra
from gbistat.fit.minimize import fit
from gbistat.inference.toy_basis import BatchYields
from gbistat.inference.toy_experiment import CountBatch, MomentBatch
from gbistat.inference.toy_fits import FITTED, UNBOUNDED, fit_batch
from gbistat.inference.toy_linear import solve_positive
from gbistat.inference.toy_moments import MomentSampler, MomentStream, MomentTerm, may_compile
from gbistat.inference.toy_results import TestSpec
from gbistat.inference.toy_tests import answer
from gbistat.inference.toys import ToyModel, ToyOptions, toy_statistics
from gbistat.likelihood.constraints import LogNormalConstraint, NormalConstraint, PoissonConstraint
from gbistat.likelihood.nll import ExtendedUnbinnedNLL
from gbistat.likelihood.reference import reference_from_pool

FREE = ((),)


def drawn(model, theta, count, seed=1):
    """One batch of toys, and their likelihoods under the one hypothesis."""
    experiment = model._experiment(theta, FREE)
    (batch,) = list(experiment.batches(count, rng=np.random.default_rng(seed)))
    return experiment.hypotheses[0], batch, batch.toys(0)


def test_small_systems_are_solved():
    rng = np.random.default_rng(1)
    for k in (1, 2, 5, 9):
        roots = rng.normal(size=(40, k, k)) * 10.0 ** rng.uniform(-3, 3, size=(40, k, 1))
        matrices = (
            roots @ np.swapaxes(roots, 1, 2) + np.eye(k) * 1e-6 * np.einsum("nij,nij->n", roots, roots)[:, None, None]
        )
        right = rng.normal(size=(40, k))
        solution, bad = solve_positive(matrices, right)
        assert not bad.any()
        residual = np.einsum("nij,nj->ni", matrices, solution) - right
        assert np.abs(residual).max() < 1e-6


def test_matrices_that_are_not_positive_are_named():
    matrices = np.array([np.eye(2), np.diag([1.0, -1.0]), np.ones((2, 2)), [[1.0, 0.5], [0.5, 1.0]]])
    solution, bad = solve_positive(matrices, np.ones((4, 2)))
    assert bad.tolist() == [False, True, True, False]
    assert solution[3] == pytest.approx([2 / 3, 2 / 3])


@pytest.mark.parametrize("form", ["compressed", "exact"])
def test_derivatives_of_a_batch_are_those_of_its_values(toy_resonance, toy_bump, form):
    if form == "compressed":
        model = toy_resonance()
        theta = model.theta(mu=1.0)
        steps = np.array([1e-3, 0.3, 1e-2, 1e-4, 1e-4, 1e-3, 1e-2])
    else:
        model = toy_bump(options=ToyOptions(form="exact", compiled=False))
        theta, steps = model.theta(mu=1.0), np.array([1e-3, 0.3])
    _, _, toys = drawn(model, theta, 3)
    nll = toys.batch
    rng = np.random.default_rng(2)
    points = theta + 20 * steps * rng.normal(size=(3, theta.size))
    gradient, hessian, allowed = nll.derivatives(points)
    assert allowed.all()
    scale = np.sqrt(np.einsum("npp->np", hessian))
    for i, step in enumerate(steps):
        up, down = points.copy(), points.copy()
        up[:, i] += step
        down[:, i] -= step
        numeric = (nll.value(up) - nll.value(down)) / (2 * step)
        assert numeric / scale[:, i] == pytest.approx(gradient[:, i] / scale[:, i], abs=2e-4)
        bent = (nll.derivatives(up)[0] - nll.derivatives(down)[0]) / (2 * step)
        assert bent / scale / scale[:, i : i + 1] == pytest.approx(
            hessian[:, i] / scale / scale[:, i : i + 1], abs=2e-4
        )


CASES = {
    "plain": (),
    "normal": (NormalConstraint("n_bkg", 10_000.0, 50.0),),
    "log-normal": (LogNormalConstraint("n_bkg", 10_000.0, 0.01),),
    "poisson": (PoissonConstraint("n_bkg", 5000.0, 0.5),),
    "on the signal": (
        NormalConstraint("mu", 0.0, 1.0),
        NormalConstraint(("mu", "n_bkg"), (0, 1e4), [[1, 5], [5, 900]]),
    ),
}


def assert_same(model, theta, toys, batch, hypothesis, count, tests, tolerance=1e-6):
    """Batched answers are those of the scalar fit, to a millionth of an error."""
    result = answer(toys, tests, hypothesis.theta, hypothesis.free, model.poi_index, count)
    assert (result.status == 0).all()
    for toy in range(count):
        nll = toys.single(toy)
        best = fit(nll, start=theta).raise_if_invalid()
        free = best.errors > 0
        assert np.abs(result.theta[toy] - best.values)[free] / best.errors[free] == pytest.approx(0.0, abs=tolerance)
        assert result.error[toy] == pytest.approx(best.error(model.poi), rel=1e-4)
        for position, test in enumerate(tests):
            held = fit(nll, fixed={model.poi: test.value}, start=best.values).raise_if_invalid()
            q = 2.0 * (held.nll - best.nll)
            assert result.statistics[toy, position] == pytest.approx(q, abs=1e-6 * (1 + q))


@pytest.mark.parametrize("constraints", CASES.values(), ids=CASES)
@pytest.mark.parametrize("form", ["compressed", "exact"])
def test_batched_fits_are_scalar_fits(toy_bump, constraints, form):
    model = toy_bump(constraints=constraints, options=ToyOptions(form=form, compiled=False))
    theta = model.theta(mu=0.5, n_bkg=10_000.0)
    hypothesis, batch, toys = drawn(model, theta, 12)
    assert form == "compressed" or isinstance(batch, MomentBatch)
    assert_same(model, theta, toys, batch, hypothesis, 12, [TestSpec("tmu", 0.0), TestSpec("tmu", 1.0)])


def test_batched_fits_of_few_events_are_scalar_fits(toy_bump):
    model = toy_bump(100, 20.0, options=ToyOptions(form="exact"))
    theta = model.theta(mu=1.0, n_bkg=100.0)
    hypothesis, batch, toys = drawn(model, theta, 20)
    assert_same(model, theta, toys, batch, hypothesis, 20, [TestSpec("tmu", 1.0)])


def test_batched_fits_with_all_kinds_of_nuisances_are_scalar_fits(toy_resonance):
    model = toy_resonance()
    theta = model.theta(mu=1.0)
    hypothesis, batch, toys = drawn(model, theta, 8)
    assert_same(model, theta, toys, batch, hypothesis, 8, [TestSpec("tmu", 0.5)])


def test_power_sums_agree_with_events_where_ratios_reach_far():
    # ln r ~ N(-2, 2): E_b[r] = 1, largest ratios of hundreds. Hot events are kept one by one.
    rng = np.random.default_rng(3)
    ratio = np.exp(rng.normal(-2.0, 2.0, 100_000))
    data = ExtendedUnbinnedNLL.from_log_ratio(np.log(ratio[:20_000]), nominal=100.0)
    pool = ExtendedUnbinnedNLL.from_log_ratio(np.log(ratio), nominal=100.0).model
    reference = reference_from_pool(pool, Events(mass=np.zeros(ratio.size), weights=rng.uniform(0.5, 1.5, ratio.size)))
    model = ToyModel.from_nll(data, reference, options=ToyOptions(form="exact", compiled=False))
    theta = model.theta(mu=0.2, n_bkg=20_000.0)
    hypothesis, batch, toys = drawn(model, theta, 6)
    assert isinstance(batch, MomentBatch)
    sampler = model._experiment(theta, FREE)._moments[0]
    assert 0 < sampler.points.is_hot.sum() < sampler.width.size
    assert_same(model, theta, toys, batch, hypothesis, 6, [TestSpec("tmu", 0.0), TestSpec("tmu", 1.0)])
    # A value at which the sums do not hold: fitted event by event, with the same answer as from the start.
    assert_same(model, theta, toys, batch, hypothesis, 6, [TestSpec("tmu", 80.0)])
    assert not np.isfinite(toys.batch.value(np.tile(model.theta(mu=80.0), (6, 1)))).any()


def test_derivatives_from_power_sums_are_those_of_the_events():
    # One wide cell and a small slope: deviations matter for every sum.
    rng = np.random.default_rng(8)
    ratio = rng.uniform(0.2, 3.0, 2000)
    sampler = MomentSampler(np.full(2000, 0.02), ratio, 0.003, compiled=False)
    assert sampler.width.size == 1
    assert not sampler.points.is_hot.any()
    toys, drawn_toys = sampler.draw(3, MomentStream(rng))
    yields = BatchYields(np.zeros(2), np.eye(2), np.zeros((2, 2)))
    term = MomentTerm(yields, 1, sampler.points.centre, sampler.width, toys, 40.0)
    theta = np.tile([50.0, 0.2], (3, 1))
    value, (gradient, hessian, _) = term.value(theta), term.derivatives(theta)
    for toy in range(3):
        r = ratio[sampler.redraw(drawn_toys, toy)]
        assert r.size == toys.n_events[toy]
        intensity = 50.0 + 0.2 * r
        rows = np.stack([1.0 / intensity, r / intensity])
        assert value[toy] == pytest.approx(50.2 - np.log(intensity / 40.0).sum(), rel=1e-9)
        assert gradient[toy] == pytest.approx(1.0 - rows.sum(axis=1), abs=1e-7)
        assert hessian[toy] == pytest.approx(rows @ rows.T, rel=1e-6)


def test_densities_of_cells_follow_the_pool_to_second_order(toy_resonance):
    model = toy_resonance()
    truth, pool, cells = model.theta(mu=1.0), model.pools[0], model.cells()[0]
    basis = pool.basis(truth, truth, np.ones(truth.size, dtype=bool), cells)
    signal = np.array([model.names.index("scale"), model.names.index("ln_kappa")])
    errors = []
    for size in (0.5, 1.0):
        theta = truth.copy()
        theta[signal] += size * np.array([0.005, 0.002])
        theta[model.names.index("bkg_shape_1")] += 2.0 * size
        density = basis.density(theta[None])[0]
        # Normalised for all values, but for the offset.
        assert density.sum(axis=1) == pytest.approx([np.exp(size * 0.002), 1.0], abs=1e-12)
        exact = np.array([np.bincount(cells.labels, row, cells.count) for row in pool.shares(theta, truth)])
        errors.append(np.abs(density - exact).sum(axis=1))
        # One error of the mass scale moves this much between cells, and the expansion misses a hundredth of it.
        moved = np.abs(density - np.stack([basis.rows[0], basis.rows[3]])).sum(axis=1)
        assert (errors[-1] < 0.02 * moved).all()
    # What is missed is of third order: eight times as much for twice the change.
    assert errors[1] / errors[0] == pytest.approx([8.0, 8.0], rel=0.15)


def test_power_sums_are_those_of_the_events_drawn(toy_bump):
    model = toy_bump(options=ToyOptions(form="exact", compiled=False))
    theta = model.theta(mu=1.0, n_bkg=10_000.0)
    _, batch, _ = drawn(model, theta, 5)
    shares = model.pools[0].shares(theta, theta)
    sampler = model._experiment(theta, FREE)._moments[0]
    moments = batch._drawn[0][0]
    for toy in range(5):
        (rows,) = batch.events(toy)
        ratio = (shares[0] / shares[1])[rows]
        assert rows.size == batch.n_events[toy, 0]
        total = moments.counts[toy] @ sampler.points.centre + moments.sums[toy, 0].sum() + moments.hot[toy].sum()
        assert total == pytest.approx(ratio.sum(), rel=1e-7)


def test_compiled_loops_give_the_same_toys(toy_bump):
    pytest.importorskip("numba")
    # Two proposals in three are kept: weights within a cell differ.
    rng = np.random.default_rng(4)
    counts, ratio = rng.uniform(0.05, 0.15, 50_000), rng.exponential(size=50_000)
    ratio[:20] = 1e4
    for slope in (0.001, 1.0):
        plain, fast = (MomentSampler(counts, ratio, slope, compiled=c) for c in (False, True))
        assert slope < 0.01 or plain.points.is_hot.any()
        first, second = (s.draw(20, MomentStream(np.random.default_rng(5)))[0] for s in (plain, fast))
        assert np.array_equal(first.counts, second.counts)
        assert first.sums == pytest.approx(second.sums, rel=1e-9, abs=1e-9)
        assert first.hot == pytest.approx(second.hot)
        assert np.array_equal(first.n_events, second.n_events)


def test_compiled_loops_need_numba(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "numba", None)
    assert may_compile(None) is False
    with pytest.raises(MissingExtra, match=r"gbistat\[fast\]"):
        may_compile(True)


def counts_toys(model, theta, counts):
    experiment = model._experiment(theta, FREE)
    batch = CountBatch(experiment, len(counts), (), (np.asarray(counts),))
    return experiment.hypotheses[0], batch.toys(0)


def test_toys_without_signal_like_events_have_no_lower_bound(toy_bump):
    model = toy_bump(100, 20.0)
    theta = model.theta(mu=0.0, n_bkg=100.0)
    hypothesis, _, _ = drawn(model, theta, 1)
    ratio = hypothesis.bases[0].rows[0] / hypothesis.bases[0].rows[1]
    counts = np.zeros((2, ratio.size), dtype=np.int64)
    counts[0, np.argmin(ratio)] = 30
    counts[1] = 3
    hypothesis, toys = counts_toys(model, theta, counts)
    result = fit_batch(toys.batch, np.tile(theta, (2, 1)), hypothesis.free)
    assert result.status.tolist() == [UNBOUNDED, FITTED]
    assert result.value[0] == -np.inf
    assert toys.fit(np.tile(theta, (2, 1)), hypothesis.free, column=0, rows=None).status.tolist() == [UNBOUNDED, FITTED]
    tests = [TestSpec("q0"), TestSpec("qmu_tilde", 1.0), TestSpec("tmu_tilde", 1.0), TestSpec("tmu", 1.0)]
    answers = answer(toys, tests, hypothesis.theta, hypothesis.free, 0, 2)
    assert answers.status.tolist() == [1, 0]
    assert answers.theta[0, 0] == -np.inf
    # Against the fit at 0: n_bkg = 30 in both, up to the signal that no event shares.
    single = toys.single(0)
    expected = 2 * (fit(single, fixed={"mu": 1.0}).nll - fit(single, fixed={"mu": 0.0}).nll)
    assert answers.statistics[0] == pytest.approx([0.0, expected, expected, np.inf], rel=1e-6)


def test_toys_without_events(toy_bump):
    model = toy_bump(100, 20.0, constraints=(NormalConstraint("n_bkg", 100.0, 30.0),))
    theta = model.theta(mu=0.0, n_bkg=100.0)
    hypothesis, _, _ = drawn(model, theta, 1)
    _, toys = counts_toys(model, theta, np.zeros((1, hypothesis.bases[0].rows.shape[1]), dtype=np.int64))
    answers = answer(toys, [TestSpec("qmu_tilde", 0.5)], hypothesis.theta, hypothesis.free, 0, 1)
    # Nothing seen: q = 2 (mu S + ...), the background being the same in both fits.
    assert answers.statistics[0, 0] == pytest.approx(2 * 0.5 * 20.0)


def test_backgrounds_end_at_their_wall(toy_bump):
    # Only events in the most signal-like cell: n_bkg = 0, and the signal takes them all.
    model = toy_bump(1000, 20.0)
    theta = model.theta(mu=0.0, n_bkg=1000.0)
    hypothesis, _, _ = drawn(model, theta, 1)
    counts = np.zeros((1, hypothesis.bases[0].rows.shape[1]), dtype=np.int64)
    counts[0, -1] = 40
    _, toys = counts_toys(model, theta, counts)
    result = fit_batch(toys.batch, theta[None], hypothesis.free, column=0)
    assert result.status[0] == FITTED
    assert result.theta[0] == pytest.approx([2.0, 0.0], abs=1e-6)


def test_a_toy_that_cannot_be_fitted_is_counted_and_named(toy_counting):
    class Odd(NormalConstraint):
        """Auxiliary measurement whose likelihood is not a number above 1 sigma."""

        def fluctuate(self, theta, *, rng):
            drawn = NormalConstraint.fluctuate(self, theta, rng=rng)
            return Odd(drawn.names, drawn.observed, drawn.covariance)

        def value(self, theta):
            return np.nan if self.observed[0] > 1.0 else NormalConstraint.value(self, theta)

        def gradient(self, theta):
            return np.full(1, np.nan) if self.observed[0] > 1.0 else NormalConstraint.gradient(self, theta)

    base = toy_counting(20.0, 20)
    model = ToyModel.from_nll(base.nll.with_constraint(Odd("mu", 0.0, 1.0)), base.references)
    results = toy_statistics(model, model.theta(mu=0.0), [TestSpec("q0")], 300, rng=np.random.default_rng(6))
    # One in 6.3 toys; false alarm 1e-5.
    assert 20 < results.n_failed < 80
    assert results.counts_by_status() == {"ok": 300 - results.n_failed, "free fit failed": results.n_failed}
    assert np.array_equal(np.isnan(results.statistics[:, 0]), results.failed)
    assert np.isnan(results.estimate[results.failed]).all()
