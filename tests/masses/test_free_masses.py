"""Fits with free masses: global search, intervals of masses in pieces, models from ONNX terms."""

from __future__ import annotations

import numpy as np
import pytest

from gbistat.data.events import Events
from gbistat.data.window import MassWindow
from gbistat.errors import ModelError
from gbistat.fit.build import build_analysis
from gbistat.fit.minimize import fit
from gbistat.fit.plane import global_fit, search_plane
from gbistat.inference.mass_profile import SearchedProfile
from gbistat.inference.profile import profile_interval
from gbistat.likelihood.parameters import index_of

TRUTH = (510.0, 120.0)


def problem(blob, n_signal, seed, *, symmetric=False, n_bkg=1500, ranges=None):
    rng = np.random.default_rng(seed)
    pool = blob.events(blob.background(8000, rng))
    x = np.r_[blob.background(rng.poisson(n_bkg), rng), blob.signal(n_signal, TRUTH, rng)]
    grid, _, nll = blob.likelihood(
        blob.Blob(symmetric=symmetric), blob.events(x), pool, float(n_bkg), ranges=ranges or blob.ranges
    )
    return grid, nll


def test_map_is_that_of_conditional_fits(blob):
    grid, nll = problem(blob, 60, 1)
    coarse = [axis[::2] for axis in grid.axes]
    search = search_plane(nll, grid.names, coarse)
    for place in [(5, 1), (2, 2), (0, 4), (4, 1)]:
        full = fit(nll, fixed=search.node(place))
        assert search.strength[place] == pytest.approx(full.value("mu"), abs=0.05 * full.error("mu"))
        assert search.q0[place] == pytest.approx(2 * (search.null.nll - full.nll), abs=0.1, rel=0.02)
    assert (search.q0 >= 0).all()
    assert ((search.q0 > 0) == (search.strength > 0)).all()


def test_global_fit_finds_the_signal_wherever_it_starts(blob):
    grid, nll = problem(blob, 90, 2)
    best, search = global_fit(nll, grid.names, grid.axes)
    assert best.valid
    for name, truth in zip(grid.names, TRUTH, strict=True):
        assert best.value(name) == pytest.approx(truth, abs=4 * best.error(name))
    # No node of a three times finer map is better.
    fine = search_plane(nll, grid.names, [np.linspace(axis[0], axis[-1], 3 * axis.size - 2) for axis in grid.axes])
    assert 2 * (search.null.nll - best.nll) > fine.q0.max() - 0.1
    # A plain fit from the middle of the plane ends elsewhere.
    assert fit(nll).nll > best.nll + 1.0


def test_unbiased_with_errors_of_the_right_size(blob):
    pulls = []
    for seed in range(24):
        grid, nll = problem(blob, np.random.default_rng(1000 + seed).poisson(100), 100 + seed)
        best, _ = global_fit(nll, grid.names, grid.axes)
        truths = {"mu": 100.0, "m_X": TRUTH[0], "m_Y": TRUTH[1]}
        pulls.append([(best.value(name) - truth) / best.error(name) for name, truth in truths.items()])
    mean, width = np.mean(pulls, axis=0), np.std(pulls, axis=0)
    # 24 toys: an error of 0.2 on the mean and 0.15 on the width; four of each, false alarm below 1e-3.
    assert (np.abs(mean) < 0.85).all()
    assert ((width > 0.45) & (width < 1.6)).all()


def test_exchanged_masses_give_an_interval_of_two_pieces(blob):
    grid, nll = problem(blob, 130, 4, symmetric=True)
    best, search = global_fit(nll, grid.names, grid.axes)
    intervals = [
        profile_interval(nll, name, cl=0.6827, profile=SearchedProfile(nll, name, search, best)) for name in grid.names
    ]
    for interval in intervals:
        assert len(interval.segments) == 2
        (low, high), (low_2, high_2) = interval.segments
        assert low - 15 < TRUTH[1] < high + 15
        assert low_2 - 15 < TRUTH[0] < high_2 + 15
    # The likelihood is symmetric, and so are the intervals.
    np.testing.assert_allclose(np.ravel(intervals[0].segments), np.ravel(intervals[1].segments), atol=0.02)


def test_a_piece_narrower_than_the_search_is_found(blob):
    grid, nll = problem(blob, 900, 9, symmetric=True)
    best, search = global_fit(nll, grid.names, grid.axes)
    for name in grid.names:
        # Ten points over 550 GeV, for pieces of a few GeV.
        profile = SearchedProfile(nll, name, search, best)
        interval = profile_interval(nll, name, cl=0.6827, profile=profile, n_search=10)
        assert len(interval.segments) == 2
        assert all(high - low < 15.0 for low, high in interval.segments)


def test_profile_of_the_strength_is_global_in_the_masses(blob):
    grid, nll = problem(blob, 60, 5)
    best, search = global_fit(nll, grid.names, grid.axes)
    profile = SearchedProfile(nll, "mu", search, best)
    assert profile.q(0.0) == pytest.approx(2 * (search.null.nll - best.nll), abs=1e-6)
    for value in (10.0, 60.0, 90.0):
        found = profile.conditional(value)
        brute = min(
            fit(nll, fixed={"mu": value, **search.node(place)}).nll
            for place in [(9, 1), (9, 2), (4, 4), *search.maxima()[:5]]
        )
        assert found.nll <= brute + 1e-6


def test_without_signal_the_interval_of_a_mass_is_all_of_its_range(blob):
    grid, nll = problem(blob, 0, 300, ranges={"m_X": (200.0, 400.0), "m_Y": (150.0, 350.0)})
    best, search = global_fit(nll, grid.names, grid.axes)
    assert 2 * (search.null.nll - best.nll) < 3.84
    interval = profile_interval(nll, "m_X", cl=0.95, profile=SearchedProfile(nll, "m_X", search, best))
    assert interval.segments == ((None, None),)
    assert len(interval.notes) == 2


def test_model_with_a_parametrised_network(blob):
    rng = np.random.default_rng(7)
    events = blob.spectrum(3000, 100, TRUTH, rng)
    pool = blob.spectrum(8000, 0, TRUTH, rng)
    window = MassWindow(130.0, 150.0)
    analysis = build_analysis(blob.spec(), events, window, terms={"blob": blob.term()}, pool=pool)
    assert analysis.masses is not None
    assert analysis.masses.names == ("m_X", "m_Y")
    assert analysis.model.parameter("mu").low == 0.0
    best = fit(analysis.nll)
    for name, truth in zip(("m_X", "m_Y"), TRUTH, strict=True):
        assert best.value(name) == pytest.approx(truth, abs=4 * best.error(name))
        assert analysis.model.parameter(name).start == pytest.approx(best.value(name), abs=best.error(name))
    assert best.value("mu") == pytest.approx(95.4, abs=4 * best.error("mu"))
    # The error of kappa is a nuisance, made at the masses that fit best.
    assert "spurious_signal" in analysis.model.names
    assert 0.0 < analysis.masses.kappa_sigma < 0.1
    assert analysis.spurious_signal > 0.0
    # Labels and names of files are nowhere: the same events without weights or notes give the same bits.
    bare = Events(mass=events.mass, features=events.features, names=events.names, units=events.units)
    again = build_analysis(blob.spec(), bare, window, terms={"blob": blob.term()}, pool=pool)
    assert fit(again.nll).values.tolist() == best.values.tolist()


def test_declared_masses_narrow_or_hold(blob):
    rng = np.random.default_rng(8)
    events, pool = blob.spectrum(2000, 100, TRUTH, rng), blob.spectrum(4000, 0, TRUTH, rng)
    window, terms = MassWindow(130.0, 150.0), {"blob": blob.term()}

    def spec(**parameters):
        return blob.spec().model_copy(
            update={"parameters": type(blob.spec()).model_validate(
                {**blob.spec().to_json(), "parameters": parameters}
            ).parameters}
        )  # fmt: skip

    narrow = spec(m_X={"start": 450.0, "low": 400.0, "high": 550.0})
    analysis = build_analysis(narrow, events, window, terms=terms, pool=pool)
    assert analysis.masses.grid.axes[0][[0, -1]].tolist() == [400.0, 550.0]
    held = build_analysis(
        spec(m_X={"start": 500.0, "fixed": True}, m_Y={"start": 120.0, "fixed": True}),
        events, window, terms=terms, pool=pool,
    )  # fmt: skip
    best = fit(held.nll)
    assert (best.value("m_X"), best.value("m_Y")) == (500.0, 120.0)
    with pytest.raises(ModelError, match="m_X = 700 is outside 50 to 600"):
        build_analysis(spec(m_X={"start": 700.0, "fixed": True}), events, window, terms=terms, pool=pool)
    with pytest.raises(ModelError, match="nothing in common"):
        build_analysis(spec(m_X={"start": 650.0, "low": 620.0}), events, window, terms=terms, pool=pool)
    with pytest.raises(ModelError, match="takes reference events"):
        build_analysis(spec(), events, window, terms=terms, pool=None)


def test_a_fit_that_begins_where_two_masses_are_equal_leaves_the_saddle(blob):
    """The slope across equal masses vanishes there by symmetry, and -ln L bends down: a stationary point that is no minimum."""
    rng = np.random.default_rng(91)
    data = blob.events(np.concatenate([blob.background(3000, rng), blob.signal(250, (345.0, 255.0), rng)]))
    nll = blob.likelihood(blob.Blob(symmetric=True), data, blob.events(blob.background(4000, rng)), 3000.0)[2]
    theta = nll.start_vector()
    theta[[index_of(name, nll.parameters) for name in ("mu", "m_X", "m_Y")]] = 200.0, 300.0, 300.0
    at_saddle = fit(nll, fixed={"m_X": 300.0, "m_Y": 300.0}, start=theta)
    found = fit(nll, start=at_saddle.values)
    assert found.valid, found.message
    assert found.nll < at_saddle.nll - 3.0
    assert sorted(found.value(name) for name in ("m_X", "m_Y")) == pytest.approx([255.0, 345.0], abs=15.0)
