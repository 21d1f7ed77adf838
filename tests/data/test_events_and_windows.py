from __future__ import annotations

import numpy as np
import pytest

from gbistat.data.events import Events, concatenate, nothing_selected
from gbistat.data.window import MassWindow
from gbistat.errors import EventsError, UnitsError, WindowError


@pytest.fixture
def events(rng):
    return Events(
        mass=rng.uniform(2000.0, 6000.0, 50),
        features=np.column_stack([rng.uniform(20.0, 300.0, 50), rng.uniform(0.0, 1.0, 50)]),
        names=("m_light", "tau21_light"),
        units={"m_light": "GeV"},
        weights=rng.uniform(0.5, 2.0, 50),
        notes=("3 of 53 events have fewer than two Jet and are left out",),
    )


def test_window_is_half_open():
    window = MassWindow(10.0, 20.0)
    assert window.contains(np.array([9.999, 10.0, 19.999, 20.0])).tolist() == [False, True, True, False]


def test_window_and_sidebands_tile_the_fit_range(rng):
    window, full = MassWindow(3300.0, 3700.0), MassWindow(2800.0, 7000.0)
    pieces = [MassWindow(*edges) for edges in window.sidebands(full)]
    mass = np.append(rng.uniform(2000.0, 8000.0, 1000), [2800.0, 3300.0, 3700.0, 7000.0])
    counts = np.sum([piece.contains(mass) for piece in (*pieces, window)], axis=0)
    np.testing.assert_array_equal(counts, full.contains(mass).astype(int))


@pytest.mark.parametrize(
    ("low", "high", "match"),
    [
        (3700.0, 3300.0, "did you mean 3300 3700"),
        (5.0, 5.0, "edges are equal"),
        (-1.0, 5.0, "not negative"),
        (np.nan, 5.0, "finite"),
        (1.0, np.inf, "finite"),
    ],
)
def test_impossible_windows(low, high, match):
    with pytest.raises(WindowError, match=match):
        MassWindow(low, high)


@pytest.mark.parametrize("window", [MassWindow(2800.0, 3200.0), MassWindow(6000.0, 7000.0), MassWindow(1000.0, 8000.0)])
def test_window_at_the_end_of_the_range_has_no_sidebands(window):
    with pytest.raises(WindowError, match="no sideband on both sides"):
        window.sidebands(MassWindow(2800.0, 7000.0))


def test_arrays_are_copied_and_frozen():
    mass = np.array([1.0, 2.0])
    events = Events(mass=mass)
    mass[0] = 99.0
    assert events.mass.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="read-only"):
        events.mass[0] = 3.0


def test_view_of_a_frozen_array_is_copied():
    base = np.arange(4.0)
    view = base[:2]
    view.setflags(write=False)
    events = Events(mass=view)
    base[0] = 99.0
    assert events.mass.tolist() == [0.0, 1.0]


def test_frozen_arrays_are_shared_between_versions_of_events(events):
    assert events.without_weights().features is events.features


def test_unit_conversion_scales_energies_only(events):
    tev = events.to_unit("TeV")
    np.testing.assert_allclose(tev.mass, events.mass / 1000.0, rtol=1e-15)
    np.testing.assert_allclose(tev.feature("m_light"), events.feature("m_light") / 1000.0, rtol=1e-15)
    np.testing.assert_array_equal(tev.feature("tau21_light"), events.feature("tau21_light"))
    np.testing.assert_array_equal(tev.weights, events.weights)
    assert dict(tev.units) == {"m_jj": "TeV", "m_light": "TeV", "tau21_light": "1"}
    np.testing.assert_allclose(tev.to_unit("GeV").features, events.features, rtol=1e-15)


def test_selection_keeps_weights_and_notes(events):
    chosen = events.in_window(MassWindow(3000.0, 4000.0))
    mask = (events.mass >= 3000.0) & (events.mass < 4000.0)
    np.testing.assert_array_equal(chosen.mass, events.mass[mask])
    np.testing.assert_array_equal(chosen.features, events.features[mask])
    assert chosen.sum_of_weights == pytest.approx(events.weights[mask].sum())
    assert chosen.notes == events.notes


def test_matrix_takes_the_mass_among_the_features(events):
    matrix = events.matrix(["tau21_light", "m_jj"])
    np.testing.assert_array_equal(matrix, np.column_stack([events.feature("tau21_light"), events.mass]))
    assert events.matrix([]).shape == (50, 0)


def test_concatenation_restores_what_was_cut(events):
    low, high = events.select(np.arange(20)), events.select(np.arange(20, 50))
    whole = concatenate([low, high])
    np.testing.assert_array_equal(whole.features, events.features)
    np.testing.assert_array_equal(whole.weights, events.weights)
    assert whole.notes == events.notes


def test_concatenation_of_different_events(events):
    with pytest.raises(UnitsError, match="to_unit"):
        concatenate([events, events.to_unit("TeV")])
    with pytest.raises(EventsError, match="weights"):
        concatenate([events, events.without_weights()])
    with pytest.raises(EventsError, match="cannot join events with features"):
        concatenate([events, Events(mass=[1.0])])
    with pytest.raises(EventsError, match="empty"):
        concatenate([])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"mass": [[1.0]]}, "mass has 2 dimension"),
        ({"mass": [1.0, np.nan, np.inf]}, r"'m_jj' is NaN or infinite in 2 of 3 events \(rows 1, 2\)"),
        ({"mass": [1.0], "features": [[1.0, 2.0]], "names": ("a",)}, r"shape \(1, 2\)"),
        ({"mass": [1.0], "features": [[1.0]], "names": ("m_jj",)}, "appears twice"),
        ({"mass": [1.0], "features": [[np.inf]], "names": ("a",)}, "'a' is NaN or infinite in 1 of 1"),
        ({"mass": [1.0], "weights": [1.0, 2.0]}, "2 weights for 1 events"),
    ],
)
def test_inconsistent_events(arguments, match):
    with pytest.raises(EventsError, match=match):
        Events(**arguments)


def test_unknown_feature_offers_near_ones(events):
    with pytest.raises(EventsError, match="no feature 'tau21'; nearest names: tau21_light"):
        events.feature("tau21")


def test_unknown_unit(events):
    with pytest.raises(UnitsError, match="'TEV' is not an energy unit"):
        events.to_unit("TEV")


def test_window_in_another_unit_is_not_converted_in_silence(events):
    with pytest.raises(UnitsError, match="to_unit"):
        events.in_window(MassWindow(3.3, 3.7, "TeV"))


def test_all_outside_says_which_unit_would_fit():
    tev = Events(mass=[2.5, 3.5, 6.0])
    with pytest.raises(
        EventsError, match=r"none of 3 events is in the window 3300-3700 GeV.*in TeV, say so \(--unit TeV\)"
    ):
        tev.in_window(MassWindow(3300.0, 3700.0))
    with pytest.raises(EventsError, match="choose a window inside that range"):
        tev.in_window(MassWindow(7.0, 8.0))
    with pytest.raises(EventsError, match="no events at all"):
        Events(mass=[]).in_window(MassWindow(7.0, 8.0))


def test_hint_compares_the_declared_unit_not_the_one_of_the_window():
    # Masses of 2500 to 6000 "TeV" against a window in GeV: the file is in GeV.
    text = nothing_selected(10, (2500.0, 6000.0), "TeV", [MassWindow(3300.0, 3700.0)])
    assert "the masses span 2500 to 6000 TeV; if the file is in GeV" in text


def test_no_other_unit_is_offered_where_the_window_lies_between_events():
    text = nothing_selected(2, (2000.0, 5000.0), "GeV", [MassWindow(3300.0, 3700.0)])
    assert "if the file is in" not in text
