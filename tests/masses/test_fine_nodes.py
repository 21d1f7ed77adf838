"""Fine nodes around the minima: what splines miss, boxes, mirrored masses, other events of a window."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from gbistat.data.window import MassWindow
from gbistat.errors import ParameterError
from gbistat.fit.basins import refine_minima, within
from gbistat.fit.build import build_analysis
from gbistat.fit.interpolation import interpolation_error
from gbistat.fit.masses import with_other_events
from gbistat.fit.minimize import fit
from gbistat.fit.plane import search_plane
from gbistat.inference.mass_profile import MirroredProfile, SearchedProfile
from gbistat.inference.profile import profile_interval
from gbistat.likelihood.held import with_held_ratios
from gbistat.likelihood.lattice import Lattice
from gbistat.likelihood.surface import RatioSurface
from gbistat.likelihood.theta_grid import grid_of

TRUTH = (433.0, 211.0)
SHARP = 18.0
"""Width of a signal that nodes 50 GeV apart cannot follow."""


class Sharp:
    """A narrow peak with long tails in two features; symmetric in the masses."""

    def log_ratio(self, events, *, m_X, m_Y):
        a, b = events.features.T

        def one(u, v):
            return -1.5 * np.log1p(((a - u) ** 2 + (b - v) ** 2) / SHARP**2)

        norm = 650.0**2 / (2 * np.pi * SHARP**2)
        return np.logaddexp(one(m_X, m_Y), one(m_Y, m_X)) - np.log(2) + np.log(norm)


@pytest.fixture(scope="module")
def sharp(blob):
    """Model and events with coarse splines, and the same on fine nodes everywhere."""
    rng = np.random.default_rng(31)
    n = 90
    radius = SHARP * np.sqrt(rng.uniform(0.05, 1.0, n) ** -2 - 1.0)
    angle = rng.uniform(0, 2 * np.pi, n)
    signal = np.stack([TRUTH[0] + radius * np.cos(angle), TRUTH[1] + radius * np.sin(angle)], axis=1)
    signal = signal[((signal > 0) & (signal < 650)).all(axis=1)]
    events = blob.events(np.r_[blob.background(1500, rng), signal])
    pool = blob.events(blob.background(5000, rng))
    grid, _, nll = blob.likelihood(Sharp(), events, pool, 1500.0)
    return grid, nll, events


def surface_of(nll):
    return next(f for f in nll.model.component("signal").factors if isinstance(f, RatioSurface))


def test_fine_nodes_give_the_fit_of_the_network(blob, sharp):
    grid, nll, events = sharp
    surface = surface_of(nll)
    search = search_plane(nll, grid.names, grid.axes)
    lattice = Lattice(surface, events)
    assert lattice.mirrored
    coarse = fit(nll, start=start(nll, search))
    basins, found = refine_minima(nll.model, events, search, [lattice])
    best = basins[0].best
    assert found.worst < 0.01
    assert max(found.steps.values()) < 7.0
    # The same on fine nodes around the truth, without any coarse ones.
    fine = grid_of({"m_X": (380.0, 480.0), "m_Y": (160.0, 260.0)}, {"m_X": 2.5, "m_Y": 2.5})
    other = with_same_kappa(surface, fine)
    exact = fit(box_likelihood(nll, other, events, fine), start=best.values)
    for name in ("mu", "m_X", "m_Y"):
        assert best.value(name) == pytest.approx(exact.value(name), abs=0.01 * exact.error(name))
        assert best.error(name) == pytest.approx(exact.error(name), rel=0.02)
    # Coarse splines alone do not do.
    assert max(abs(coarse.value(n) - exact.value(n)) / exact.error(n) for n in ("m_X", "m_Y")) > 0.1
    # The mirror image is there, and is the same.
    (image,) = [basin for basin in basins if basin.mirror == 0]
    assert image.low.tolist() == basins[0].low[::-1].tolist()


def test_a_box_follows_a_minimum_that_leaves_it(sharp, monkeypatch):
    """Coarse splines may put a minimum far from where it is, with an error that is far too small."""
    from gbistat.fit import basins as module

    grid, nll, events = sharp
    search = search_plane(nll, grid.names, grid.axes)
    expected = refine_minima(nll.model, events, search, [Lattice(surface_of(nll), events)])[0][0].best
    original = module._coarse_minima

    def displaced(*arguments):
        (first, *_) = original(*arguments)
        values, errors = first.values.copy(), first.errors.copy()
        for name, shift in (("m_X", -30.0), ("m_Y", 25.0)):
            values[first.names.index(name)] += shift
            errors[first.names.index(name)] = 1.0
        return [dataclasses.replace(first, values=values, errors=errors)]

    monkeypatch.setattr(module, "_coarse_minima", displaced)
    basins, found = refine_minima(nll.model, events, search, [Lattice(surface_of(nll), events)])
    assert found.worst < 0.01
    for number, name in enumerate(("m_X", "m_Y")):
        assert basins[0].best.value(name) == pytest.approx(expected.value(name), abs=0.02 * expected.error(name))
        assert basins[0].low[number] < expected.value(name) - 2 * expected.error(name)
        assert expected.value(name) + 2 * expected.error(name) < basins[0].high[number]


def test_boxes_are_those_of_the_last_fits(sharp, monkeypatch):
    """However early the boxes stop to move, there are fine nodes in all of those that are handed back."""
    from gbistat.fit import basins as module

    grid, nll, events = sharp
    search = search_plane(nll, grid.names, grid.axes)
    monkeypatch.setattr(module, "MOVES", 1)
    monkeypatch.setattr(module, "EDGE", 1e6)
    monkeypatch.setattr(module, "WIDER", (1.0, 6.0))
    surface = surface_of(nll)
    basins, _ = refine_minima(nll.model, events, search, [Lattice(surface, events)])
    covered = [patch.grid for patch in surface.prepare(events).patches]
    for basin in basins:
        assert any(patch.covers(basin.low) and patch.covers(basin.high) for patch in covered)


def with_same_kappa(surface, grid):
    kappa = np.array([surface.log_kappa_at(node) for node in grid.nodes]).reshape(grid.shape)
    return RatioSurface(surface.term, grid, kappa)


def start(nll, search):
    theta = search.null.values.copy()
    search.put(theta, search.maxima()[0], nll)
    return theta


def box_likelihood(nll, surface, events, grid):
    model = nll.model
    components = tuple(
        dataclasses.replace(c, factors=tuple(surface if isinstance(f, RatioSurface) else f for f in c.factors))
        for c in model.components
    )
    ends = {name: (axis[0], axis[-1]) for name, axis in zip(grid.names, grid.axes, strict=True)}
    parameters = tuple(
        dataclasses.replace(p, low=ends[p.name][0], high=ends[p.name][1], start=sum(ends[p.name]) / 2)
        if p.name in ends
        else p
        for p in model.parameters
    )
    return type(nll)(dataclasses.replace(model, components=components, parameters=parameters), events)


def test_the_measured_error_is_the_shift(blob, sharp):
    grid, nll, events = sharp
    fresh = type(nll)(nll.model, events)
    surface = surface_of(nll)
    prepared = surface.prepare(events)
    surface.refine(events, ())
    try:
        coarse_nll = type(nll)(nll.model, events)
        search = search_plane(coarse_nll, grid.names, grid.axes)
        coarse = fit(coarse_nll, start=start(coarse_nll, search))
        shifts, _ = interpolation_error(coarse_nll, [surface], events, coarse, search, [50.0, 50.0])
    finally:
        surface.refine(events, prepared.patches)
    fine = grid_of({"m_X": (380.0, 480.0), "m_Y": (160.0, 260.0)}, {"m_X": 2.5, "m_Y": 2.5})
    other = with_same_kappa(surface, fine)
    a, b = sorted((coarse.value("m_X"), coarse.value("m_Y")), reverse=True)
    begin = coarse.values.copy()
    begin[[2, 3]] = a, b
    exact = fit(box_likelihood(fresh, other, events, fine), start=begin)
    moved = {"m_X": exact.value("m_X") - a, "m_Y": exact.value("m_Y") - b}
    order = {"m_X": "m_X", "m_Y": "m_Y"} if a == coarse.value("m_X") else {"m_X": "m_Y", "m_Y": "m_X"}
    for name, own in order.items():
        # One Newton step is not the whole way where the shift is large; sign and size are right.
        assert shifts[own] * coarse.error(own) == pytest.approx(moved[name], abs=0.5 * abs(moved[name]) + 0.3)


def test_profiles_in_boxes_are_those_of_a_search(blob):
    rng = np.random.default_rng(32)
    events, pool = blob.spectrum(2500, 100, (510.0, 120.0), rng), blob.spectrum(4000, 0, (510.0, 120.0), rng)
    analysis = build_analysis(blob.spec(), events, MassWindow(130.0, 150.0), terms={"blob": blob.term()}, pool=pool)
    best, known = fit(analysis.nll), analysis.masses
    assert known.interpolation.worst < 0.01
    for name in ("mu", "m_X"):
        one = profile_interval(
            analysis.nll, name, cl=0.6827, profile=SearchedProfile(analysis.nll, name, known.search, best, known.basins)
        )
        two = profile_interval(
            analysis.nll, name, cl=0.6827, profile=SearchedProfile(analysis.nll, name, known.search, best)
        )
        assert len(one.segments) == len(two.segments) == 1
        np.testing.assert_allclose(one.segments, two.segments, atol=2e-3 * best.error(name))
    # Other events: the same ones give the same fit; the network is asked for nothing but them.
    again = with_other_events(analysis, analysis.events)
    np.testing.assert_allclose(fit(again.nll).values, best.values, atol=1e-4 * best.errors.max())
    assert again.masses.kappa is known.kappa
    fewer = analysis.events.select(np.arange(len(analysis.events)) % 2 == 0)
    half = fit(with_other_events(analysis, fewer).nll)
    assert half.value("mu") == pytest.approx(best.value("mu") / 2, abs=4 * half.error("mu"))


def test_without_signal_the_network_model_gives_the_whole_range(blob):
    rng = np.random.default_rng(35)
    events, pool = blob.spectrum(1200, 0, TRUTH, rng), blob.spectrum(4000, 0, TRUTH, rng)
    analysis = build_analysis(blob.spec(), events, MassWindow(130.0, 150.0), terms={"blob": blob.term()}, pool=pool)
    best, known = fit(analysis.nll), analysis.masses
    profile = SearchedProfile(analysis.nll, "m_X", known.search, best, known.basins)
    interval = profile_interval(analysis.nll, "m_X", cl=0.9999, profile=profile)
    assert interval.segments == ((None, None),)
    assert len(interval.notes) == 2


def test_exchanged_masses_share_their_fits(blob, sharp):
    grid, nll, _ = sharp
    search = search_plane(nll, grid.names, grid.axes, mirrored=True)
    whole = search_plane(nll, grid.names, grid.axes)
    np.testing.assert_allclose(search.q0, whole.q0, rtol=1e-6, atol=1e-6)
    best = fit(nll, start=start(nll, search))
    first = SearchedProfile(nll, "m_X", search, best)
    second = MirroredProfile(first, "m_Y")
    value = best.value("m_Y") + 0.7 * best.error("m_Y")
    direct = SearchedProfile(nll, "m_Y", search, best)
    assert second.q(value) == pytest.approx(direct.q(value), abs=1e-5)
    assert second.conditional(value).value("m_Y") == value


def test_within_narrows_ranges(blob, sharp):
    _, nll, _ = sharp
    box = within(nll, ("m_X", "m_Y"), np.array([400.0, 20.0]), np.array([500.0, 300.0]))
    ends = {p.name: (p.low, p.high) for p in box.parameters}
    assert ends["m_X"] == (400.0, 500.0)
    assert ends["m_Y"] == (50.0, 300.0)
    assert box.value(nll.start_vector()) == nll.value(nll.start_vector())


def test_held_masses_take_the_network_itself(blob, sharp):
    _, nll, events = sharp
    at = {"m_X": 441.3, "m_Y": 207.7}
    model = with_held_ratios(nll.model, at)
    factor = model.component("signal").factors[-1]
    point = np.array(list(at.values()))
    exact = Sharp().log_ratio(events, **at) + surface_of(nll).log_kappa_at(point)
    np.testing.assert_allclose(factor.prepare(events).log_prob(point), exact, atol=1e-12)
    assert not factor.prepare(events).derivatives(point)[1].any()
    with pytest.raises(ParameterError, match="is asked for at"):
        factor.prepare(events).log_prob(point + 1.0)
    node = with_held_ratios(nll.model, {"m_X": 450.0, "m_Y": 200.0}).component("signal").factors[-1]
    values = node.prepare(events).log_prob(np.array([450.0, 200.0]))
    surface = surface_of(nll)
    np.testing.assert_allclose(
        values,
        Sharp().log_ratio(events, m_X=450.0, m_Y=200.0) + surface.log_kappa_at(np.array([450.0, 200.0])),
        atol=1e-9,
    )
