"""Every layout gives the same events, whatever the chunks; selection, units, weights and mapping."""

from __future__ import annotations

import math

import h5py
import numpy as np
import pytest

from gbistat.data.events import concatenate
from gbistat.data.features import FEATURES
from gbistat.data.read import iter_events, read_events, summarise_events
from gbistat.data.window import MassWindow
from gbistat.errors import UnitsError

NAMES = ("m_light", "dm", "tau21_light", "tau21_heavy", "label")


def expected(columns):
    derived = [FEATURES[name].values(columns) for name in NAMES[:-1]]
    return FEATURES["m_jj"].values(columns), np.column_stack([*derived, columns["label"]])


@pytest.mark.parametrize("chunk_size", [17, 97, 1000])
def test_all_layouts_give_the_same_events(layout, chunk_size, dijets, write):
    columns = dijets(120)
    events = read_events(write(columns, layout), features=NAMES, chunk_size=chunk_size)
    mass, features = expected(columns)
    np.testing.assert_array_equal(events.mass, mass)
    np.testing.assert_array_equal(events.features, features)
    assert events.names == NAMES
    assert dict(events.units) == {"m_jj": "GeV", "m_light": "GeV", "dm": "GeV"} | dict.fromkeys(NAMES[2:], "1")
    assert events.notes == ()
    assert events.weights is None


def test_32_bit_file_is_read_as_its_widened_self(layout, dijets, write):
    narrow = {name: values.astype(np.float32) for name, values in dijets(40).items()}
    events = read_events(write(narrow, layout), features=NAMES)
    mass, features = expected({name: values.astype(np.float64) for name, values in narrow.items()})
    np.testing.assert_array_equal(events.mass, mass)
    np.testing.assert_array_equal(events.features, features)


def test_fixed_frame_with_blocks_of_different_types(tmp_path, dijets):
    columns = dijets(30)
    path = tmp_path / "mixed.h5"
    with h5py.File(path, "w") as file:
        frame = file.create_group("df")
        frame.attrs.update(pandas_type=b"frame", nblocks=2)
        frame["block0_items"] = np.array([b"label"])
        frame["block0_values"] = columns["label"].astype(np.int64)[:, None]
        names = [name for name in columns if name != "label"][::-1]
        frame["block1_items"] = np.array([name.encode() for name in names])
        frame["block1_values"] = np.column_stack([columns[name] for name in names])
    np.testing.assert_array_equal(read_events(path, features=NAMES).features, expected(columns)[1])


def test_raw_file_with_thousands_of_columns_is_read_in_slabs(tmp_path, monkeypatch, rng):
    values = rng.normal(size=(60, 400)).astype(np.float32)
    path = tmp_path / "raw.h5"
    with h5py.File(path, "w") as file:
        frame = file.create_group("df")
        frame.attrs.update(pandas_type=b"frame", nblocks=1)
        frame["block0_items"] = np.arange(400)
        frame["block0_values"] = values
    monkeypatch.setattr("gbistat.data.hdf5.SLAB_BYTES", 7 * 400 * 4)
    events = read_events(path, mass="399", features=["0", "250"])
    np.testing.assert_array_equal(events.mass, values[:, 399].astype(float))
    np.testing.assert_array_equal(events.features, values[:, [0, 250]].astype(float))


def test_key_chooses_among_several_frames(tmp_path, dijets, write):
    path = write(dijets(20), "fixed")
    with h5py.File(path, "a") as file:
        file.copy("df", "other")
        file["other/block0_values"][...] *= 2.0
    one, two = (read_events(path, tree=key) for key in ("df", "/other"))
    np.testing.assert_allclose(two.mass, 2.0 * one.mass, rtol=1e-12)


@pytest.mark.parametrize("layout", ["plain", "group", "npz"])
@pytest.mark.parametrize("odd", [7, 90])
def test_odd_lengths_beside_the_columns_do_not_matter(layout, odd, dijets, write):
    columns = dijets(40)
    path = write({**columns, "edges": np.linspace(0.0, 1.0, odd)}, layout)
    np.testing.assert_array_equal(read_events(path).mass, expected(columns)[0])
    assert summarise_events(path).unusable == {"edges": f"has {odd} values where the other columns have 40"}


@pytest.mark.parametrize("chunk_size", [13, 1000])
def test_window_selects_while_streaming(layout, chunk_size, dijets, write):
    columns = dijets(200)
    mass, features = expected(columns)
    low, high = np.quantile(mass, [0.3, 0.6])
    mask = (mass >= low) & (mass < high)
    events = read_events(write(columns, layout), features=NAMES, window=MassWindow(low, high), chunk_size=chunk_size)
    np.testing.assert_array_equal(events.mass, mass[mask])
    np.testing.assert_array_equal(events.features, features[mask])


def test_sidebands_are_a_union_of_intervals(dijets, write):
    columns = dijets(300)
    mass = expected(columns)[0]
    a, b, c, d = np.quantile(mass, [0.1, 0.4, 0.6, 0.9])
    path = write(columns)
    events = read_events(path, window=[(a, b), (c, d)], chunk_size=50)
    np.testing.assert_array_equal(events.mass, mass[((mass >= a) & (mass < b)) | ((mass >= c) & (mass < d))])
    assert summarise_events(path, window=[(a, b), (c, d)]).n_selected == len(events)


def test_chunks_join_to_the_whole(layout, dijets, write):
    columns = dijets(110)
    mass = expected(columns)[0]
    path = write(columns, layout)
    options = {"features": NAMES, "weights": "tau1j1", "window": MassWindow(0.0, float(np.median(mass)))}
    parts = list(iter_events(path, chunk_size=25, **options))
    whole = read_events(path, **options)
    assert len(parts) >= 5  # ends of row groups and clusters may add more
    joined = concatenate(parts)
    np.testing.assert_array_equal(joined.mass, whole.mass)
    np.testing.assert_array_equal(joined.features, whole.features)
    np.testing.assert_array_equal(joined.weights, whole.weights)
    np.testing.assert_array_equal(whole.weights, columns["tau1j1"][mass < np.median(mass)])


def test_chunks_never_exceed_their_size(layout, dijets, write):
    assert max(len(part) for part in iter_events(write(dijets(100), layout), chunk_size=30)) <= 30


def test_maximum_counts_selected_events(dijets, write):
    columns = dijets(300)
    mass = expected(columns)[0]
    window = MassWindow(float(np.quantile(mass, 0.5)), 1e6)
    events = read_events(write(columns), features=NAMES, window=window, max_events=37, chunk_size=20, weights="label")
    want = np.flatnonzero(window.contains(mass))[:37]
    np.testing.assert_array_equal(events.mass, mass[want])
    np.testing.assert_array_equal(events.weights, columns["label"][want])
    assert len(read_events(write(columns, name="again"), max_events=1000)) == 300


def in_tev(columns):
    return {name: values / 1000.0 if name[0] in "pm" else values for name, values in columns.items()}


def test_file_in_tev_with_a_window_in_gev(dijets, write):
    columns = in_tev(dijets(200))
    path = write(columns)
    mass = FEATURES["m_jj"].values(columns)
    window = MassWindow(*np.quantile(mass * 1000.0, [0.3, 0.7]))
    events = read_events(path, features=NAMES, unit="TeV", window=window)
    assert events.unit == "TeV"
    assert events.units["m_light"] == "TeV"
    np.testing.assert_array_equal(events.mass, mass[window.contains(mass * 1000.0)])
    # An event at an edge stays inside after the conversion that follows.
    assert len(events.to_unit("GeV").in_window(window)) == len(events)


def test_events_at_the_edges_survive_a_conversion(write):
    mass = np.array([3.3, np.nextafter(3.3, 0.0), 3.7, np.nextafter(3.7, 0.0), 3.5])
    window = MassWindow(3300.0, 3700.0)
    events = read_events(write({"M": mass}, "npz"), mass="M", unit="TeV", window=window)
    assert len(events.to_unit("GeV").in_window(window)) == len(events)


def test_mapping_names_columns_and_features(dijets, write):
    columns = dijets(25)
    mass, _ = expected(columns)
    renamed = {"jet_one_mass" if name == "mj1" else name: values for name, values in columns.items()}
    path = write({**renamed, "w": np.arange(25.0)})
    events = read_events(
        path,
        mass="mass",
        features=["first"],
        weights="weight",
        mapping={"mass": "m_jj", "mj1": "jet_one_mass", "first": "mj2", "weight": "w"},
    )
    np.testing.assert_array_equal(events.mass, mass)
    assert (events.mass_name, events.names) == ("mass", ("first",))
    np.testing.assert_array_equal(events.feature("first"), columns["mj2"])
    assert events.units["first"] == "GeV"
    np.testing.assert_array_equal(events.weights, np.arange(25.0))


def test_column_of_the_file_is_preferred_to_the_derived_feature(dijets, write):
    columns = dijets(10)
    path = write({**columns, "m_light": np.arange(10.0)})
    events = read_events(path, features=["m_light"])
    np.testing.assert_array_equal(events.feature("m_light"), np.arange(10.0))
    assert events.units["m_light"] == "GeV"


def test_columns_of_unknown_unit_are_declared_or_noted(write):
    path = write({"M": np.array([91.0, 88.0]), "pt1": np.array([40.0, 50.0]), "bdt": np.array([0.1, 0.2])}, "npz")
    plain = read_events(path, mass="M", features=["pt1", "bdt"])
    assert plain.units["pt1"] == "1"
    assert plain.notes == (
        "no unit declared for pt1, bdt: taken as dimensionless (declare it with units={'pt1': 'GeV'})",
    )
    declared = read_events(path, mass="M", features=["pt1", "bdt"], units={"pt1": "GeV", "bdt": "1"})
    assert declared.notes == ()
    np.testing.assert_allclose(declared.to_unit("TeV").feature("pt1"), [0.04, 0.05], rtol=1e-15)


def test_integers_and_flags_become_numbers(layout, write):
    columns = {
        "M": np.arange(5.0),
        "n": np.arange(5, dtype=np.int32),
        "flag": np.array([True, False, True, True, False]),
    }
    events = read_events(write(columns, layout), mass="M", features=["n", "flag"], units={"n": "1", "flag": "1"})
    np.testing.assert_array_equal(events.features, [[0, 1], [1, 0], [2, 1], [3, 1], [4, 0]])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"unit": "gev"}, "unit 'gev' is not an energy unit"),
        ({"units": {"m_light": "parsec"}}, "unit 'parsec' of 'm_light' is not known"),
        ({"units": {"m_light": "TeV"}}, "'m_light' is computed from the jets, in 'GeV'.*cannot be in 'TeV'"),
        ({"mass": "tau1j1"}, "'tau1j1' is in '1' and the file in 'GeV'"),
        ({"mass": "mj1", "units": {"mj1": "TeV"}}, "'mj1' is in 'TeV' and the file in 'GeV'"),
    ],
)
def test_contradicting_units(options, match, dijets, write):
    with pytest.raises(UnitsError, match=match):
        read_events(write(dijets(5)), features=["m_light"], **options)


def test_summary_of_a_file(layout, dijets, write):
    columns = dijets(80)
    mass, _ = expected(columns)
    columns["mj1"][[4, 9]] = np.nan
    window = MassWindow(0.0, float(np.median(mass)))
    good = np.ones(80, dtype=bool)
    good[[4, 9]] = False
    summary = summarise_events(write(columns, layout), features=["tau21_light", "label"], window=window, chunk_size=17)
    assert (summary.n_rows, summary.n_events, summary.unit) == (80, 80, "GeV")
    assert set(summary.columns) == set(columns)
    assert set(summary.derivable) == set(FEATURES)
    mass_range = summary.ranges["m_jj"]
    assert (mass_range.low, mass_range.high) == (mass[good].min(), mass[good].max())
    assert (mass_range.n_bad, mass_range.bad_rows, mass_range.unit) == (2, (4, 9), "GeV")
    assert summary.n_selected == np.sum(window.contains(mass) & good)
    assert (summary.ranges["label"].low, summary.ranges["label"].high) == (0.0, 1.0)


def test_summary_without_a_mass_lists_the_columns(write):
    summary = summarise_events(write({"M": np.array([91.0, 88.0]), "pt1": np.array([40.0, 50.0])}, "npz"))
    assert summary.mass is None
    assert summary.columns == ("M", "pt1")
    assert summary.ranges == {}
    assert summary.n_selected is None


def test_summary_of_nothing_finite(write):
    summary = summarise_events(write({"M": np.full(3, np.nan)}, "npz"), mass="M")
    assert math.isnan(summary.ranges["M"].low)
    assert summary.ranges["M"].n_bad == 3


def test_lhc_olympics_layout_as_published(shared_data):
    path = shared_data / "qcd.features.h5"
    window = MassWindow(3300.0, 3700.0)
    events = read_events(path, features=NAMES, window=window, chunk_size=50_000)
    assert len(events) == 37410  # README of the data
    with h5py.File(path) as file:
        names = [name.decode() for name in file["df/block0_items"]]
        table = file["df/block0_values"][()].astype(np.float64)
    columns = dict(zip(names, table.T, strict=True))
    mass, features = expected(columns)
    np.testing.assert_array_equal(events.mass, mass[window.contains(mass)])
    np.testing.assert_array_equal(events.features, features[window.contains(mass)])
    assert summarise_events(path).n_rows == 285_209
