"""Bins: what falls into which, and where automatic edges lie."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gbistat.binned.binning import Binning, automatic_edges, mass_binning
from gbistat.binned.observables import feature_binning, log_ratio_binning, reference_values, usable_reference
from gbistat.data.events import Events
from gbistat.data.window import MassWindow
from gbistat.errors import ModelError, OptionError
from gbistat.likelihood.model import Model
from gbistat.likelihood.nll import ExtendedUnbinnedNLL
from gbistat.likelihood.reference import reference_from_data, reference_from_pool, reference_from_quadrature

Maker = Callable[..., Events]
Changer = Callable[[Model], Model]


def test_counts_are_half_open() -> None:
    bins = Binning("x", np.array([0.0, 1.0, 3.0]))
    assert bins.index(np.array([-0.1, 0.0, 1.0, 2.9, 3.0])).tolist() == [-1, 0, 1, 1, -1]
    assert bins.counts(np.array([0.5, 1.0, 2.0, 9.0]), np.array([2.0, 0.5, 1.0, 7.0])).tolist() == [2.0, 1.5]


def test_open_ends_take_everything() -> None:
    bins = Binning("x", np.array([0.0, 1.0, 3.0]), open_ended=True)
    assert bins.counts(np.array([-np.inf, 0.5, 1.0, 99.0])).tolist() == [2.0, 2.0]


@pytest.mark.parametrize("edges", [[0.0], [0.0, 0.0], [1.0, 0.0], [0.0, np.inf], [[0.0, 1.0]]])
def test_edges_must_increase(edges: list[float]) -> None:
    with pytest.raises(OptionError, match="two finite numbers that increase"):
        Binning("x", np.array(edges))


def test_mass_bins_have_equal_width() -> None:
    bins = mass_binning(MassWindow(3300.0, 3700.0))
    assert bins.n_bins == 20
    np.testing.assert_allclose(np.diff(bins.edges), 20.0)
    with pytest.raises(OptionError, match="0 bins of m_jj"):
        mass_binning(MassWindow(3300.0, 3700.0), n_bins=0)


def test_quantile_edges_hold_equal_weight(rng: np.random.Generator) -> None:
    x, weight = rng.normal(size=5000), rng.uniform(0.5, 1.5, size=5000)
    edges = automatic_edges(x, weight, n_bins=10)
    counts = Binning("x", edges, open_ended=True).counts(x, weight)
    # A bin can be off by the weight of one point at each end.
    np.testing.assert_allclose(counts, weight.sum() / 10, atol=3.0)


def test_minimum_of_background_and_of_points(rng: np.random.Generator) -> None:
    x = rng.normal(size=2000)
    weight = np.full(2000, 0.01)
    edges = automatic_edges(x, weight, n_bins=100, score=np.exp(x), min_background=0.5)
    assert 2 < edges.size - 1 < 100
    assert Binning("x", edges, open_ended=True).counts(x, weight).min() >= 0.5 - 1e-12
    edges = automatic_edges(x, weight, n_bins=100, score=np.exp(x), min_background=0.0, min_points=40)
    assert Binning("x", edges, open_ended=True).counts(x).min() >= 40


def test_equal_values_stay_together() -> None:
    x = np.repeat([0.0, 1.0, 2.0], [50, 30, 20])
    edges = automatic_edges(x, np.ones(100), n_bins=10)
    assert edges.tolist() == [0.0, 0.5, 1.5, 2.0]


def test_too_little_for_two_bins_is_one_bin() -> None:
    assert automatic_edges(np.arange(10.0), np.full(10, 0.1), n_bins=5).tolist() == [0.0, 9.0]


def test_information_bins_lose_less_than_equal_bins(rng: np.random.Generator) -> None:
    """The loss is the variance of the score inside the bins; Panter and Dite's placement is near its minimum."""
    x = rng.normal(size=20_000)
    score = np.exp(1.5 * x) / (1.0 + np.exp(1.5 * x - 4.0))

    def loss(edges: np.ndarray) -> float:
        index = Binning("x", edges, open_ended=True).index(x)
        count = np.bincount(index)
        return float((score**2).sum() - (np.bincount(index, score) ** 2 / count).sum())

    ones = np.ones_like(x)
    best = loss(automatic_edges(x, ones, n_bins=12, score=score))
    assert best < 0.1 * loss(automatic_edges(x, ones, n_bins=12))
    # Equal shares of information, the other usual rule, lose more, too.
    assert best < 0.6 * loss(automatic_edges(x, score**2, n_bins=12, min_background=0.0))


def test_log_ratio_bins_of_a_pool(simple: Model, with_ratio: Changer, make_events: Maker) -> None:
    model = with_ratio(simple)
    reference = reference_from_pool(model, make_events(20_000, 0))
    bins = log_ratio_binning(model, reference, n_bins=40)
    values = reference_values(model, reference, "log_ratio")
    assert bins.open_ended
    assert bins.edges[0] == values.min()
    assert bins.edges[-1] == values.max()
    # 2000 events from 20,000 in the pool: 5 expected ones are 50 in the pool, give or take their strata.
    expected = bins.counts(values) * 0.1
    assert expected.min() > 4.5
    assert 10 < bins.n_bins <= 40
    equal = log_ratio_binning(model, reference, n_bins=40, method="quantile")
    assert np.ptp(equal.counts(values)) < 0.1 * equal.counts(values).mean()
    fewer = log_ratio_binning(model, reference, n_bins=40, min_background=200.0)
    assert fewer.n_bins < bins.n_bins


def test_small_pool_limits_the_bins(simple: Model, with_ratio: Changer, make_events: Maker) -> None:
    """200 pool events for 2000 expected ones: a bin needs ten of the pool, not 5 expected events."""
    model = with_ratio(simple)
    reference = reference_from_pool(model, make_events(200, 0))
    bins = log_ratio_binning(model, reference, n_bins=200)
    values = reference_values(model, reference, "log_ratio")
    assert bins.counts(values).min() >= 10


def test_feature_bins(simple: Model, with_ratio: Changer, make_events: Maker) -> None:
    model = with_ratio(simple)
    reference = reference_from_pool(model, make_events(10_000, 0))
    bins = feature_binning(model, reference, "x", n_bins=8)
    assert (bins.observable, bins.n_bins, bins.unit) == ("x", 8, "1")
    with pytest.raises(OptionError, match=r"no observable 'y' to bin in; .*x"):
        feature_binning(model, reference, "y")


def test_quadrature_is_made_fine(simple: Model) -> None:
    reference = usable_reference(simple, reference_from_quadrature(simple), "log_ratio")
    assert reference.measure.sum() == pytest.approx(400.0)
    assert reference.mixture.size == 100_000


def test_wrong_references_and_options(simple: Model, make_events: Maker) -> None:
    nll = ExtendedUnbinnedNLL(simple, make_events(500, 0))
    from_data = reference_from_data(nll, nll.start_vector())
    with pytest.raises(ModelError, match="log_ratio need a reference measure; give a pool"):
        log_ratio_binning(simple, None)
    with pytest.raises(ModelError, match="cannot be made of the data"):
        log_ratio_binning(simple, from_data)
    quadrature = reference_from_quadrature(simple)
    with pytest.raises(OptionError, match="'quantiles' is unknown; nearest names: quantile"):
        log_ratio_binning(simple, quadrature, method="quantiles")
    with pytest.raises(OptionError, match="min_background -1"):
        log_ratio_binning(simple, quadrature, min_background=-1.0)
    with pytest.raises(ModelError, match="the same value at all reference points"):
        automatic_edges(np.ones(5), np.ones(5), n_bins=3)
