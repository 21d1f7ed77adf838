"""Global significance over a plane of masses: known trial factors, toys against the search itself, p-values that are uniform."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import kstest, norm, poisson

from gbistat.errors import ModelError, OptionError
from gbistat.fit.plane import search_plane
from gbistat.inference.look_elsewhere import global_from_toys
from gbistat.inference.plane_significance import plane_significance
from gbistat.inference.plane_toys import NullYield, null_maps
from gbistat.likelihood.kappa import normalised_surface
from gbistat.likelihood.nll import ExtendedUnbinnedNLL
from gbistat.likelihood.surface import exchangeable
from gbistat.likelihood.theta_grid import grid_of

N_BKG = 600


def test_trial_factor_of_separate_boxes():
    """Signals that live in boxes without overlap: counts are independent and p_global = 1 - (1 - p)^K, exactly Poisson."""
    k, mean = 24, 20.0
    ratio = np.kron(np.eye(k) * k, np.ones(5))
    maps = null_maps(ratio, np.ones(5 * k), NullYield(k * mean, 0.0), 4000, rng=np.random.default_rng(1))
    for count in (30, 33, 36):
        q = 2.0 * (count * math.log(count / mean) - (count - mean))
        local = poisson.sf(count - 1, mean)
        exact = 1.0 - (1.0 - local) ** k
        found = global_from_toys(q - 1e-9, maps)
        # Four Monte Carlo errors, three numbers: false alarm 2e-4.
        assert found.p_global == pytest.approx(exact, abs=4.0 * math.sqrt(exact * (1.0 - exact) / 4000))
        one = (maps[:, 0] >= q - 1e-9).mean()
        assert one == pytest.approx(local, abs=4.0 * math.sqrt(local / 4000))


def test_one_node_is_a_half_chi2():
    rng = np.random.default_rng(2)
    ratio = np.where(np.arange(60) < 2, 30.0, 1e-3)[None]
    for sigma in (math.inf, 60.0):
        maps = null_maps(ratio, np.ones(60), NullYield(12_000.0, sigma), 3000, rng=rng)[:, 0]
        # Four Monte Carlo errors, and what 400 events in the box are off a Gaussian.
        assert (maps == 0.0).mean() == pytest.approx(0.5, abs=0.055)
        assert (maps > 2.706).mean() == pytest.approx(0.05, abs=0.02)


def test_polynomial_for_small_ratios_is_exact_enough():
    rng = np.random.default_rng(3)
    ratio, share = np.exp(rng.normal(-2.0, 2.5, (4, 3000))), rng.uniform(0.5, 1.5, 3000)
    maps = null_maps(ratio, share, NullYield(2000.0), 40, rng=np.random.default_rng(4))
    # The same toys, one by one, by a grid of strengths.
    again = np.random.default_rng(4)
    share, ratio = share / share.sum(), ratio / (ratio @ (share / share.sum()))[:, None]
    counts = again.poisson(2000.0 * share, (40, 3000))
    mu = np.linspace(0.0, 150.0, 30_001)
    for toy in range(0, 40, 8):
        b, hit = counts[toy].sum(), counts[toy] > 0
        for node in range(4):
            coarse = mu[::200]
            t = [2.0 * (counts[toy, hit] @ np.log1p(m * ratio[node, hit] / b) - m) for m in coarse]
            fine = mu[np.abs(mu - coarse[int(np.argmax(t))]) < 2.0]
            t = [2.0 * (counts[toy, hit] @ np.log1p(m * ratio[node, hit] / b) - m) for m in fine]
            assert maps[toy, node] == pytest.approx(max(t), abs=2e-4)


def analysis_like(blob, *, symmetric=False, n_pool=4000, step=50.0, ranges=None, seed=10):
    """What plane_significance looks at, from the blob on a flat background."""
    rng = np.random.default_rng(seed)
    pool = blob.events(blob.background(n_pool, rng), rng.uniform(0.0, 1.0, n_pool))
    ranges = ranges or blob.ranges
    term = blob.Blob(symmetric=symmetric)
    grid = grid_of(ranges, dict.fromkeys(ranges, step))
    surface, _ = normalised_surface(term, grid, pool)
    _, _, nll = blob.likelihood(term, blob.events(blob.background(50, rng)), pool, float(N_BKG), ranges=ranges)
    model = nll.model
    signal = model.components[0]
    factors = (signal.factors[0], surface)
    model = type(model)(
        (type(signal)(signal.name, signal.rate, factors), model.components[1]),
        model.parameters, model.constraints, model.window, model.poi,
    )  # fmt: skip

    def searched(x):
        data = blob.events(x)
        likelihood = ExtendedUnbinnedNLL(model, data)
        search = search_plane(likelihood, grid.names, grid.axes)
        known = SimpleNamespace(
            names=grid.names, grid=grid, search=search, model=model, pool=pool, fraction=None,
            exchangeable=exchangeable(term, grid, data),
        )  # fmt: skip
        return SimpleNamespace(masses=known, events=data)

    return searched


def test_global_p_values_are_uniform(blob):
    """100 data sets without signal, from the true background and not from the pool: Kolmogorov-Smirnov, false alarm 1e-3."""
    searched = analysis_like(blob, step=137.5, seed=20)
    rng = np.random.default_rng(21)
    maps = [searched(blob.background(rng.poisson(N_BKG), rng)).masses for _ in range(100)]
    known = maps[0]
    # The p-values of plane_significance for all data sets at once; it puts the reference events into slices of mass, which moves them a little.
    found = plane_significance(SimpleNamespace(masses=known, events=None), 1500, rng=np.random.default_rng(22))
    assert found.searched == 25
    assert not found.symmetric
    toys = np.sort(null_maxima(known, 1500, np.random.default_rng(22)))
    p_values = [1.0 - np.searchsorted(toys, one.search.q0.max()) / toys.size for one in maps]
    assert p_values[0] == pytest.approx(found.results[0].p_global, abs=0.06)
    assert kstest(p_values, "uniform").pvalue > 1e-3
    local = [math.sqrt(one.search.q0.max()) for one in maps]
    # Not so the local ones.
    assert kstest(norm.sf(local), "uniform").pvalue < 1e-6


def null_maxima(known, n_toys, rng):
    """Largest q0 of toys, straight from the ratios."""
    pool = known.pool
    signal = known.model.components[0].factors[-1].prepare(pool)
    nodes = known.grid.nodes
    ratio = np.exp([signal.log_prob(node) for node in nodes])
    return null_maps(
        ratio, np.ones(len(pool)), NullYield(known.search.null.value("n_bkg"), 0.01 * N_BKG), n_toys, rng=rng
    ).max(axis=1)


def test_exchangeable_masses_count_once(blob):
    searched = analysis_like(blob, symmetric=True, step=91.0)
    rng = np.random.default_rng(31)
    x = np.r_[blob.background(N_BKG, rng), blob.signal(25, (510.0, 120.0), rng)]
    analysis = searched(x)
    found = plane_significance(analysis, 400, rng=np.random.default_rng(32), seed=32)
    n = found.axes[0].size
    assert found.symmetric
    assert found.notes == ()
    assert found.searched == n * (n + 1) // 2
    assert found.masses["m_X"] >= found.masses["m_Y"]
    assert found.best.q_max == pytest.approx(analysis.masses.search.q0.max(), rel=1e-9)
    assert found.best.p_global > found.best.p_local
    document = json.loads(json.dumps(found.to_dict()))
    assert document["seed"] == 32
    assert document["z_local"] == pytest.approx(math.sqrt(found.best.q_max))
    low, high = document["z_global_interval"]
    assert low < document["z_global"] < high
    # Same seed, same answer.
    assert plane_significance(analysis, 400, rng=np.random.default_rng(32), seed=32).to_dict() == found.to_dict()


def test_yield_of_a_toy():
    """With an auxiliary measurement of error sigma the fit is its weighted mean with the count."""
    rng = np.random.default_rng(41)
    counts = rng.poisson(10_000.0, 4000).astype(float)
    fitted = NullYield(10_000.0, 100.0).fitted(counts, rng)
    assert fitted.mean() == pytest.approx(10_000.0, abs=5.0)
    assert fitted.std() == pytest.approx(100.0 / math.sqrt(2.0), rel=0.06)
    assert NullYield(10_000.0, 0.0).fitted(counts, rng).tolist() == [10_000.0] * 4000
    assert NullYield(10_000.0).fitted(counts, rng).tolist() == counts.tolist()


def test_bad_requests(blob):
    rng = np.random.default_rng(51)
    good = np.ones((2, 10))
    with pytest.raises(OptionError, match="at least one"):
        null_maps(good, np.ones(10), NullYield(10.0), 0, rng=rng)
    with pytest.raises(OptionError, match="9 pool events"):
        null_maps(good, np.ones(9), NullYield(10.0), 5, rng=rng)
    with pytest.raises(OptionError, match="probabilities"):
        null_maps(good, -np.ones(10), NullYield(10.0), 5, rng=rng)
    with pytest.raises(OptionError, match="vanishes"):
        null_maps(0.0 * good, np.ones(10), NullYield(10.0), 5, rng=rng)
    with pytest.raises(OptionError, match="no toys can be drawn"):
        NullYield(0.0)
    with pytest.raises(ModelError, match="depends on no masses"):
        plane_significance(SimpleNamespace(masses=None), 10, rng=rng)
