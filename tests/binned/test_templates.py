"""Templates: exact integrals of mass densities, sums over reference points, never bin centres."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import expon, norm

from gbistat.binned.binning import Binning, mass_binning
from gbistat.binned.observables import event_values, log_ratio_binning, reference_values
from gbistat.binned.templates import Templates
from gbistat.data.events import Events
from gbistat.errors import ModelError, OptionError
from gbistat.likelihood.components import Component, LogArray, LogOffset, Yield
from gbistat.likelihood.constraints import NormalConstraint
from gbistat.likelihood.mixture import Mixture
from gbistat.likelihood.model import Model
from gbistat.likelihood.nll import ExtendedUnbinnedNLL
from gbistat.likelihood.parameters import Parameter
from gbistat.likelihood.reference import reference_from_data, reference_from_pool, reference_from_quadrature

Maker = Callable[..., Events]
Changer = Callable[[Model], Model]
Tilter = Callable[[Model, Events, float], Model]


def test_mass_templates_are_integrals(simple: Model) -> None:
    assert simple.window is not None
    bins = mass_binning(simple.window)
    templates = Templates(simple, bins)
    theta = np.array([7.0, 1500.0, 0.003])
    signal, background = templates.expected(theta)
    gauss = norm.cdf(bins.edges, 3500.0, 60.0)
    falling = np.exp(-0.003 * bins.edges)
    np.testing.assert_allclose(signal, 7.0 * np.diff(gauss) / (gauss[-1] - gauss[0]), rtol=1e-10)
    np.testing.assert_allclose(background, 1500.0 * np.diff(falling) / (falling[-1] - falling[0]), rtol=1e-10)
    assert not templates.is_sampled
    assert not templates.relative_errors().any()


def test_templates_sum_to_yields(full: Model, with_ratio: Changer, make_events: Maker) -> None:
    model = with_ratio(full)
    reference = reference_from_pool(model, make_events(8000, 0))
    theta = np.array([4.0, 1800.0, 0.0021, 2.0, 1.0, 1.002])
    yields = reference.mixture.yields(theta)
    assert model.window is not None
    for bins in (mass_binning(model.window), log_ratio_binning(model, reference)):
        expected = Templates(model, bins, reference=reference).expected(theta)
        np.testing.assert_allclose(expected.sum(axis=1), yields, rtol=1e-12)
        assert expected.min() >= 0.0


def test_log_ratio_templates_of_mass_alone(simple: Model) -> None:
    """The log ratio of a Gaussian and an exponential is a parabola: a bin of it is two intervals of mass."""
    reference = reference_from_quadrature(simple)
    bins = log_ratio_binning(simple, reference, n_bins=12)
    templates = Templates(simple, bins, reference=reference)
    gauss, falling = norm(3500.0, 60.0), expon(3300.0, 1.0 / 0.002)
    inside = [float(np.diff(shape.cdf([3300.0, 3700.0]))[0]) for shape in (gauss, falling)]
    centre = 3500.0 + 0.002 * 60.0**2
    top = gauss.logpdf(centre) - falling.logpdf(centre) - np.log(inside[0] / inside[1])
    half = 60.0 * np.sqrt(2.0 * np.clip(top - bins.edges, 0.0, None))
    half[0], half[-1] = np.inf, 0.0
    low, high = np.clip(centre - half, 3300.0, 3700.0), np.clip(centre + half, 3300.0, 3700.0)
    for j, shape in enumerate((gauss, falling)):
        above = (shape.cdf(high) - shape.cdf(low)) / inside[j]
        np.testing.assert_allclose(templates.probabilities(j, templates.nominal), -np.diff(above), atol=3e-5)


def test_ratio_of_contents_lies_between_the_edges(simple: Model, with_ratio: Changer, make_events: Maker) -> None:
    """The contents' ratio is a mean of r over the bin, and not its value at the centre."""
    model = with_ratio(simple)
    reference = reference_from_pool(model, make_events(20_000, 0))
    bins = log_ratio_binning(model, reference, n_bins=8)
    signal, background = (
        Templates(model, bins, reference=reference).probabilities(j, np.array([0.0, 2000.0, 0.002])) for j in (0, 1)
    )
    ratio = np.log(signal / background) + np.log(reference.normalisation)
    assert (ratio >= bins.edges[:-1]).all()
    assert (ratio <= bins.edges[1:]).all()
    centre = 0.5 * (bins.edges[1:] + bins.edges[:-1])
    assert np.abs(ratio - centre).max() > 0.3


def test_events_and_pool_have_the_same_log_ratio(simple: Model, with_ratio: Changer, make_events: Maker) -> None:
    """The signal of a reference is normalised on its points; the observable is not."""
    model = with_ratio(simple)
    pool = make_events(400, 0)
    reference = reference_from_pool(model, pool)
    assert abs(reference.normalisation - 1.0) > 1e-3
    np.testing.assert_allclose(
        reference_values(model, reference, "log_ratio"), event_values(model, pool, "log_ratio"), rtol=1e-10
    )


def test_pool_templates_are_weighted_sums(full: Model, with_ratio: Changer, make_events: Maker) -> None:
    """A mass scale moves the log-ratio template of the signal by reweighting the pool."""
    model = with_ratio(full)
    reference = reference_from_pool(model, make_events(5000, 0))
    bins = log_ratio_binning(model, reference, n_bins=10)
    templates = Templates(model, bins, reference=reference)
    moved = templates.nominal.copy()
    moved[model.names.index("mass_scale")] = 1.003
    assert reference.events is not None
    mass, x = reference.events.mass, reference.events.feature("x")
    log_signal = norm.logpdf(mass, 1.003 * 3500.0, 60.0) + norm.logpdf(x, 2.0, 0.6) - norm.logpdf(x)
    weight = reference.measure * np.exp(log_signal)
    by_hand = bins.counts(reference_values(model, reference, "log_ratio"), weight) / weight.sum()
    np.testing.assert_allclose(templates.probabilities(0, moved), by_hand, rtol=1e-10)
    assert np.abs(by_hand - templates.probabilities(0, templates.nominal)).max() > 1e-4


def test_statistical_errors_of_a_pool(simple: Model, with_ratio: Changer, make_events: Maker) -> None:
    model = with_ratio(simple)
    pool = make_events(6000, 0)
    reference = reference_from_pool(model, pool)
    bins = log_ratio_binning(model, reference, n_bins=10)
    templates = Templates(model, bins, reference=reference)
    counts = bins.counts(reference_values(model, reference, "log_ratio"))
    # The strata in mass make weights all but equal.
    np.testing.assert_allclose(templates.relative_errors(), 1.0 / np.sqrt(counts), rtol=0.01)
    assert templates.is_sampled


def test_offset_of_a_ratio_changes_nothing(simple: Model, with_ratio: Changer, make_events: Maker) -> None:
    model = with_ratio(simple)
    signal = model.components[0]
    model = replace(
        model,
        components=(replace(signal, factors=(*signal.factors, LogOffset("ln_kappa"))), model.components[1]),
        parameters=(*model.parameters, Parameter("ln_kappa", 0.0)),
        constraints=(*model.constraints, NormalConstraint("ln_kappa", 0.0, 0.1)),
    )
    reference = reference_from_pool(model, make_events(3000, 0))
    templates = Templates(model, log_ratio_binning(model, reference, n_bins=5), reference=reference)
    theta = templates.nominal.copy()
    theta[-1] = 0.3
    np.testing.assert_allclose(templates.probabilities(0, theta), templates.probabilities(0, templates.nominal))
    # In bins of the mass it is no tilt, which would need points.
    assert model.window is not None
    assert Templates(model, mass_binning(model.window)).shape_parameters(0).size == 0


def test_a_tilt_changes_bins_of_the_mass(simple: Model, with_tilt: Tilter, make_events: Maker) -> None:
    """A spurious signal of 30 events: its template against the integral of the tilted density over each bin."""
    assert simple.window is not None
    bins = mass_binning(simple.window)
    model = with_tilt(simple, make_events(20_000, 0), 30.0)
    grid = Events(mass=3300.0 + 400.0 * (np.arange(40_000) + 0.5) / 40_000)
    mixture = Mixture.of(model, grid, np.array([p.start for p in model.parameters]))
    reference = reference_from_pool(model, make_events(50_000, 0))
    templates = Templates(model, bins, reference=reference)
    plain = Templates(simple, bins).probabilities(1, np.array([0.0, 2000.0, 0.002]))
    for nu in (-2.0, 1.0, 3.0):
        theta = templates.nominal.copy()
        theta[-1] = nu
        tilted = np.bincount(bins.index(grid.mass), np.exp(mixture.components[1].log_density(theta)))
        found = templates.probabilities(1, theta)
        assert found.sum() == pytest.approx(1.0)
        # Fifty thousand points make the mean tilt of a bin good to 1 % of itself.
        np.testing.assert_allclose(found, tilted / tilted.sum(), atol=0.01 * np.abs(found - plain).max())
    np.testing.assert_allclose(templates.probabilities(1, templates.nominal), plain, rtol=1e-12)
    assert templates.model.names[templates.shape_parameters(1)[-1]] == "spurious_signal"
    assert not templates.is_sampled
    with pytest.raises(ModelError, match="templates in m_jj need a reference measure"):
        Templates(model, bins)
    # Half a window: what a tilt takes away from the other half is not lost.
    half = Binning("m_jj", bins.edges[:11])
    whole, part = templates.probabilities(1, theta), Templates(model, half, reference=reference).probabilities(1, theta)
    np.testing.assert_allclose(part, whole[:10], rtol=1e-3)


def test_feature_templates(simple: Model, with_ratio: Changer, make_events: Maker) -> None:
    model = with_ratio(simple)
    reference = reference_from_pool(model, make_events(100_000, 0))
    bins = Binning("x", np.array([-1.0, 0.0, 1.0, 2.0, 3.0]))
    signal, background = Templates(model, bins, reference=reference).expected(np.array([1.0, 1.0, 0.002]))
    # 1e5 pool events; the signal rests on a few thousand of them.
    np.testing.assert_allclose(background, np.diff(norm.cdf(bins.edges)), atol=0.008)
    np.testing.assert_allclose(signal, np.diff(norm.cdf(bins.edges, 2.0, 0.6)), atol=0.04)


def test_what_has_no_templates(simple: Model, make_events: Maker) -> None:
    events = make_events(300, 0)
    bins = Binning("log_ratio", np.array([-1.0, 0.0, 1.0]), open_ended=True)
    with pytest.raises(ModelError, match="need a reference measure"):
        Templates(simple, bins)
    nll = ExtendedUnbinnedNLL(simple, events)
    with pytest.raises(ModelError, match="cannot be made of the data"):
        Templates(simple, bins, reference=reference_from_data(nll, nll.start_vector()))
    other = replace(simple, parameters=tuple(reversed(simple.parameters)))
    with pytest.raises(ModelError, match="not of this model"):
        Templates(simple, bins, reference=reference_from_quadrature(other))
    array = LogArray(np.zeros(300))
    bare = Model(
        (Component("signal", Yield({"mu": 1.0}), (array,)), Component("background", Yield(constant=9.0), (array,))),
        (Parameter("mu", 0.0),),
        window=simple.window,
    )
    with pytest.raises(ModelError, match="templates in m_jj need a reference measure"):
        Templates(bare, Binning("m_jj", np.array([3300.0, 3700.0])))
    with pytest.raises(OptionError, match="no observable 'tau21'"):
        Templates(
            simple, Binning("tau21", np.array([0.0, 1.0])), reference=reference_from_pool(simple, make_events(300, 0))
        )
