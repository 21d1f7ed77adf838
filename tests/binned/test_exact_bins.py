"""Exact bins: derivatives, the templates they share with the workspace, and convergence to the unbinned likelihood."""

from __future__ import annotations

from collections.abc import Callable

import jacobi
import numpy as np
import pytest

from gbistat.binned.binning import LOG_RATIO, Binning, ProductBinning
from gbistat.binned.convergence import ToyComparison, convergence, normalised
from gbistat.binned.exact import ExactBins
from gbistat.binned.load import load_workspace
from gbistat.binned.observables import event_values, log_ratio_binning, product_binning
from gbistat.binned.templates import Templates
from gbistat.binned.twin import binned_twin
from gbistat.data.events import Events
from gbistat.errors import ModelError, OptionError
from gbistat.fit.minimize import fit
from gbistat.likelihood.auxiliary import AuxiliaryMeasurements
from gbistat.likelihood.histfactory import BinnedTerm
from gbistat.likelihood.model import Model
from gbistat.likelihood.nll import ExtendedUnbinnedNLL
from gbistat.likelihood.reference import Reference, reference_from_data, reference_from_pool

Maker = Callable[..., Events]


@pytest.fixture
def looking(simple: Model, with_ratio: Callable[[Model], Model]) -> Model:
    """Model that looks at the mass and a feature."""
    return with_ratio(simple)


@pytest.fixture
def pool(looking: Model, make_events: Maker) -> Reference:
    return reference_from_pool(looking, make_events(6000, 0))


def test_derivatives(looking: Model, pool: Reference, make_events: Maker, with_tilt) -> None:
    model = with_tilt(looking, pool.events, 15.0)
    reference = reference_from_pool(model, pool.events)
    exact = ExactBins(model, reference, log_ratio_binning(model, reference, n_bins=7))
    counts = exact.expected(exact.nll(np.ones(exact.n_bins)).start_vector()).sum(axis=0) + 3.0
    nll = exact.nll(counts)
    theta = nll.start_vector(mu=12.0, slope=0.0021, spurious_signal=0.7)
    result = nll.evaluate(theta)
    scale = np.array([1.0, 10.0, 1e-4, 1.0])
    gradient, _ = jacobi.jacobi(lambda x: nll.value(x * scale), theta / scale)
    hessian, _ = jacobi.jacobi(lambda x: nll.evaluate(x * scale).gradient, theta / scale)
    np.testing.assert_allclose(result.gradient * scale, gradient, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(result.hessian * scale, hessian, rtol=1e-6, atol=1e-6 * np.abs(hessian).max())


def test_templates_are_those_of_the_workspace(looking: Model, pool: Reference) -> None:
    binning = log_ratio_binning(looking, pool, n_bins=12)
    exact, templates = ExactBins(looking, pool, binning), Templates(looking, binning, reference=pool)
    for slope in (0.0019, 0.002, 0.0023):
        theta = np.array([30.0, 1900.0, slope])
        np.testing.assert_allclose(exact.expected(theta), templates.expected(theta), rtol=1e-12)


def test_asimov_set_of_bins_returns_its_parameters(looking: Model, pool: Reference) -> None:
    exact = ExactBins(looking, pool, log_ratio_binning(looking, pool, n_bins=15))
    theta = exact.nll(np.zeros(exact.n_bins)).start_vector(mu=25.0)
    best = fit(exact.nll(exact.expected(theta).sum(axis=0)))
    np.testing.assert_allclose(best.values, theta, rtol=1e-6)


def test_binned_results_tend_to_the_unbinned_one(looking: Model, pool: Reference, make_events: Maker) -> None:
    events = make_events(2000, 40)
    nll = ExtendedUnbinnedNLL(looking, events)
    values = event_values(looking, events, LOG_RATIO, mixture=nll.mixture)
    summary, exact = convergence(looking, nll, pool, values, bins=(2, 10, 50, 200))
    ratios = [point.ratio for point in summary.points]
    losses = [point.information_loss for point in summary.points]
    assert ratios == sorted(ratios, reverse=True)
    assert losses == sorted(losses, reverse=True)
    assert ratios[0] > 1.05
    assert ratios[-1] == pytest.approx(1.0, abs=5e-3)
    assert summary.points[-1].estimate == pytest.approx(summary.estimate, abs=0.05 * summary.error)
    assert summary.to_dict()["points"][0]["n_bins"] == exact[2][0].n_bins == 2

    toys = ToyComparison(looking, nll, pool, 40.0)
    for number in (2, 200):
        toys.add_exact(f"{number} bins", exact[number][1])
    coarse, fine = toys.run(12, rng=np.random.default_rng(3))
    assert (coarse.n_toys, fine.n_toys) == (12, 12)
    assert np.hypot(fine.mean, fine.spread) < 0.03
    assert fine.correlation > 0.999 > coarse.correlation
    assert coarse.spread > 0.2


def test_every_point_its_own_bin(looking: Model, pool: Reference) -> None:
    """The same likelihood as the unbinned one of the points, at the start values of what moves densities."""
    points = ExactBins(looking, pool)
    rng = np.random.default_rng(2)
    counts = rng.poisson(pool.weights(np.array([40.0, 2000.0, 0.002]))).astype(float)
    ours = points.nll(counts)
    (mixture,) = (pool.mixture.reweighted(counts),)
    first, second = np.array([10.0, 2000.0, 0.002]), np.array([60.0, 1900.0, 0.002])
    difference = ours.value(second) - ours.value(first)
    constraint = looking.constraints[0]
    constrained = constraint.value(second[1:]) - constraint.value(first[1:])
    # The pool's background integrates to 1 only up to the slices of mass.
    assert difference - constrained == pytest.approx(mixture.value(second) - mixture.value(first), rel=1e-3)


def test_all_methods_of_a_toy_have_the_same_auxiliary_measurements(
    simple: Model, with_ratio: Callable[[Model], Model], make_events: Maker
) -> None:
    """In standard deviations, the constraints of the model are those of its workspace."""
    model = with_ratio(simple)
    reference, events = reference_from_pool(model, make_events(3000, 0)), make_events(500, 5)
    nll = ExtendedUnbinnedNLL(model, events)
    toys = ToyComparison(model, nll, reference, 10.0)
    twin = binned_twin(model, nll, events, "m_jj", reference=reference)
    loaded = load_workspace(twin.workspace)
    toys.add_workspace("twin", loaded, twin.binning.index(reference.events.mass))
    drawn, here = np.array([1.3, -0.6]), np.array([-0.2, 0.9])
    constraints = toys._measured(drawn)
    directions = toys.standard.directions
    steps = [direction.plus - toys.standard.nominal for direction in directions]
    theta = toys.standard.nominal + sum(x * step for x, step in zip(here, steps, strict=True))
    ours = sum(c.value(theta[[model.names.index(name) for name in c.names]]) for c in constraints)
    assert ours == pytest.approx(0.5 * ((here - drawn) ** 2).sum(), rel=1e-9)
    counts = np.ones(len(reference.events))
    other = toys.methods["twin"](counts, drawn, constraints)
    (auxiliary,) = (c for c in other.constraints if isinstance(c, AuxiliaryMeasurements))
    named = {loaded.labels[d.name]: x for d, x in zip(directions, here, strict=True)}
    assert auxiliary.value(np.array([named[name] for name in auxiliary.names])) == pytest.approx(ours, rel=1e-9)
    (term,) = (c for c in other.constraints if isinstance(c, BinnedTerm))
    assert term.observed.sum() == counts.sum()


def test_normalisation_of_the_signal(looking: Model, pool: Reference, make_events: Maker) -> None:
    """A density that is k times too large gives k times too small a signal."""
    nll = ExtendedUnbinnedNLL(looking, make_events(2000, 200))
    other = normalised(nll, looking, pool)
    theta = nll.start_vector(mu=50.0)
    scaled = theta.copy()
    scaled[0] /= pool.normalisation
    difference = [other.mixtures[0].intensity(theta), nll.mixture.intensity(theta)]
    assert np.abs(difference[0] / difference[1] - 1).max() > 1e-4 or pool.normalisation == pytest.approx(1.0)
    signal = other.mixtures[0].components[0].log_density(theta) - nll.mixture.components[0].log_density(theta)
    np.testing.assert_allclose(signal, -np.log(pool.normalisation), rtol=1e-9)


def test_bins_of_two_observables(looking: Model, pool: Reference, make_events: Maker) -> None:
    binning = product_binning(looking, pool, "m_jj:x", n_bins=(3, 4))
    assert binning.observable == "m_jj:x"
    events = make_events(1000, 20)
    counts = binning.counts(event_values(looking, events, "m_jj:x"))
    assert counts.sum() == len(events)
    mass, x = events.mass, events.feature("x")
    inside = (mass >= binning.first.edges[1]) & (mass < binning.first.edges[2])
    second = binning.seconds[1]
    assert counts[4:8].tolist() == second.counts(x[inside]).tolist()
    exact = ExactBins(looking, pool, binning)
    np.testing.assert_allclose(exact.probabilities(exact.nll(counts).start_vector()).sum(axis=1), 1.0)
    assert binning.describe(5).startswith("bin 1 of m_jj (3433.33 to 3566.67), bin 1 of x")
    assert binning.to_dict()["first"]["observable"] == "m_jj"


def test_bad_input(looking: Model, pool: Reference, make_events: Maker) -> None:
    events = make_events(100, 5)
    with pytest.raises(OptionError, match="no observable 'z'"):
        event_values(looking, events, "m_jj:z")
    with pytest.raises(OptionError, match="one name, or two different ones"):
        event_values(looking, events, "x:x")
    with pytest.raises(OptionError, match="1 binnings of x for 2 bins of m_jj"):
        ProductBinning(Binning("m_jj", [0.0, 1.0, 2.0]), (Binning("x", [0.0, 1.0]),))
    with pytest.raises(ModelError, match="reference points are outside of all bins; let the bins cover them"):
        ExactBins(looking, pool, Binning("x", [0.0, 1.0]))
    nll = ExtendedUnbinnedNLL(looking, events)
    with pytest.raises(ModelError, match="need a pool of reference events"):
        ToyComparison(looking, nll, reference_from_data(nll, nll.start_vector(mu=1.0)), 0.0)
