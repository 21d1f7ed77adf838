"""Bad files and bad requests: a short message with the value, the reason and the way out; nothing is unpickled."""

from __future__ import annotations

import contextlib
import io
import zipfile

import h5py
import numpy as np
import pytest
import uproot

from gbistat.data.features import FEATURES
from gbistat.data.read import iter_events, read_events, summarise_events
from gbistat.data.window import MassWindow
from gbistat.errors import EventsError, GbistatError, OptionError, WindowError


def message_of(path, **options):
    """The message, after checking that it is short and the same from all three functions."""
    messages = []
    for function in (read_events, lambda *a, **k: list(iter_events(*a, **k)), summarise_events):
        with pytest.raises(EventsError) as caught:
            function(path, **options)
        messages.append(str(caught.value))
    assert len(set(messages)) == 1
    assert "\n" not in messages[0]
    assert len(messages[0]) < 600
    return messages[0]


def test_missing_file_offers_its_neighbours(dijets, write):
    path = write(dijets(3), name="qcd_events")
    assert message_of(path.with_name("qcd_event.h5")).endswith("does not exist; nearest names: qcd_events.h5")
    assert "there is no folder" in message_of(path.parent / "nowhere" / "a.h5")


def test_folder_lists_its_files(dijets, write):
    path = write(dijets(3))
    assert "is a folder; give a file of events (it holds events.h5)" in message_of(path.parent)


def test_unknown_suffix_lists_the_known_ones(tmp_path):
    path = tmp_path / "events.csv"
    path.write_text("m_jj\n3500\n")
    assert "suffix '.csv'; events are read from .h5 .hdf5 .root .parquet .npz" in message_of(path)


@pytest.mark.parametrize("suffix", [".h5", ".root", ".parquet", ".npz"])
def test_file_of_zero_bytes(suffix, tmp_path):
    path = tmp_path / f"events{suffix}"
    path.touch()
    assert "is empty (0 bytes)" in message_of(path)


@pytest.mark.parametrize("suffix", [".h5", ".root", ".parquet", ".npz"])
def test_text_under_a_wrong_suffix(suffix, tmp_path):
    path = tmp_path / f"events{suffix}"
    path.write_text("this is not a file of events, whatever its name says\n" * 20)
    assert "is not a ROOT file" in message_of(path) or "cannot be read as" in message_of(path)


def test_file_with_zero_rows(layout, dijets, write):
    empty = {name: values[:0] for name, values in dijets(4).items()}
    assert "holds no events" in message_of(write(empty, layout))


def test_empty_frame_as_pandas_marks_it(tmp_path):
    path = tmp_path / "empty.h5"
    with h5py.File(path, "w") as file:
        frame = file.create_group("df")
        frame.attrs.update(pandas_type=b"frame", nblocks=1)
        frame["block0_items"] = np.array([b"m_jj"])
        frame["block0_values"] = np.zeros((1, 1))  # pandas writes one value in place of none
        frame["block0_values"].attrs.update(shape=b"(I1\nI0\ntp0\n.", value_type="float64", transposed=np.uint8(0))
    assert "holds no events: HDF5 (pandas fixed, df) has zero rows" in message_of(path)


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.97])
def test_truncated_file(kept, layout, dijets, write):
    path = write(dijets(4000), layout)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    message = message_of(path)
    assert "truncated" in message
    assert "get the file again" in message


def test_root_file_that_lost_its_last_byte(dijets, write):
    path = write(dijets(50), "ttree")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert f"is truncated: it has {len(whole) - 1} of {len(whole)} bytes" in message_of(path)


@pytest.mark.parametrize("seed", range(5))
def test_damaged_bytes_never_escape_as_foreign_errors(seed, layout, dijets, write):
    path = write(dijets(2000), layout)
    damaged = bytearray(path.read_bytes())
    rng = np.random.default_rng(seed)
    for position in rng.integers(4, len(damaged), 400):
        damaged[position] = rng.integers(256)
    path.write_bytes(bytes(damaged))
    # Numbers that are not compressed may change unnoticed: then there are other events, or a NaN that is counted.
    with contextlib.suppress(GbistatError):
        read_events(path, features=["tau21_light"])


def test_missing_column_offers_columns_and_features(layout, dijets, write):
    path = write(dijets(5), layout)
    assert "no column or feature 'm_lite'; nearest names: m_light" in message_of(path, features=["m_lite"])
    assert "nearest names: m_jj" in message_of(path, mass="M_JJ")
    assert "no column or feature 'wgt'" in message_of(path, weights="wgt")


def test_feature_whose_columns_are_absent_names_them(dijets, write):
    columns = {name: values for name, values in dijets(5).items() if not name.startswith("tau2")}
    message = message_of(write(columns), features=["tau21_light"])
    assert "to compute it these are absent: tau2j1, tau2j2; nearest names: tau3j1, tau1j1" in message
    assert "mapping={'tau21_light': NAME}" in message


def test_mapping_to_nothing_is_refused_even_if_unused(dijets, write):
    message = message_of(write(dijets(5)), mapping={"unused": "tau9j1"})
    assert "no column or feature 'tau9j1' (to which 'unused' is mapped); nearest names: tau" in message


def test_jets_are_mapped_in_root_only(dijets, write):
    assert "needs a ROOT file with jagged collections" in message_of(write(dijets(5)), mapping={"jets": "FatJet"})


def test_name_asked_for_twice(dijets, write):
    assert "'dm' is asked for twice" in message_of(write(dijets(5)), features=["dm", "m_light", "dm"])
    assert "'m_jj' is asked for twice" in message_of(write(dijets(5), name="b"), mass="m_jj", features=["m_jj"])


@pytest.mark.parametrize("layout", ["parquet", "npz"])
def test_formats_without_trees(layout, dijets, write):
    assert "has no trees or keys; leave out tree='Events'" in message_of(write(dijets(5), layout), tree="Events")


def test_several_trees_are_named(dijets, tmp_path):
    path = tmp_path / "two.root"
    with uproot.recreate(path) as file:
        for name, n in (("Events", 3), ("Runs", 1), ("deep/Events", 2)):
            file.mktree(name, {"M": np.float64}).extend({"M": np.full(n, 91.0)})
    message = message_of(path, mass="M")
    assert (
        "3 trees: Events (3 entries), Runs (1 entries), deep/Events (2 entries); choose one (tree='Events')" in message
    )
    assert "no tree 'Event'; nearest names: Events" in message_of(path, mass="M", tree="Event")
    assert len(read_events(path, mass="M", tree="deep/Events")) == 2


def test_root_file_without_a_tree(tmp_path):
    path = tmp_path / "histogram.root"
    with uproot.recreate(path) as file:
        file["h"] = np.histogram([1.0, 2.0])
    assert "holds no TTree or RNTuple, only TH1D" in message_of(path)


def test_several_frames_are_named(dijets, write):
    path = write(dijets(5))
    with h5py.File(path, "a") as file:
        file.copy("df", "extra")
    assert "holds 2 tables: df, extra; choose one (tree='df')" in message_of(path)
    assert "no table 'ext'; nearest names: extra" in message_of(path, tree="ext")


def test_hdf5_without_columns(tmp_path):
    path = tmp_path / "images.h5"
    with h5py.File(path, "w") as file:
        file["images"] = np.zeros((5, 8, 8))
    assert "no pandas frame and no one-dimensional numeric data set" in message_of(path)


def test_pandas_table_format_says_how_to_write_it(tmp_path, pickled):
    path = tmp_path / "table.h5"
    with h5py.File(path, "w") as file:
        frame = file.create_group("df")
        frame.attrs["pandas_type"] = b"frame_table"
        table = frame.create_dataset("table", data=np.zeros(3, dtype=[("index", "i8"), ("values_block_0", "f8", (2,))]))
        table.attrs["values_block_0_kind"] = np.void(pickled)
        frame["index"] = np.arange(3)
    for options in ({}, {"tree": "df"}):
        message = message_of(path, **options)
        assert "'df' is a pandas object of kind 'frame_table'" in message
        assert "format='fixed'" in message


def test_npz_with_objects_is_never_unpickled(tmp_path, pickled):
    path = tmp_path / "objects.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": (2,)})
    numbers = io.BytesIO()
    np.lib.format.write_array(numbers, np.array([91.0, 88.0]))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("M.npy", numbers.getvalue())
        archive.writestr("jets.npy", header.getvalue() + pickled)
    assert len(read_events(path, mass="M")) == 2
    assert "column 'jets' holds pickled objects, which gbistat never unpickles" in message_of(path, mass="jets")


def test_npz_with_matrices(tmp_path):
    path = tmp_path / "matrix.npz"
    np.savez(path, M=np.ones(3), x=np.ones((3, 2)))
    assert r"column 'x' has shape (3, 2)" in message_of(path, mass="M", features=["x"])


def test_npz_whose_array_is_shorter_than_its_header(tmp_path):
    path = tmp_path / "short.npz"
    numbers = io.BytesIO()
    np.lib.format.write_array(numbers, np.arange(10.0))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("M.npy", numbers.getvalue()[:-16])
    assert "array 'M' ends before its 10 values" in message_of(path, mass="M")


def test_hdf5_with_objects_is_never_unpickled(tmp_path, pickled):
    path = tmp_path / "objects.h5"
    with h5py.File(path, "w") as file:
        frame = file.create_group("df")
        frame.attrs.update(pandas_type=b"frame", nblocks=2)
        frame["block0_items"] = np.array([b"M"])
        frame["block0_values"] = np.array([[91.0], [88.0]])
        frame["block1_items"] = np.array([b"name"])
        values = frame.create_dataset("block1_values", (1,), dtype=h5py.vlen_dtype(np.uint8))
        values[0] = np.frombuffer(pickled, dtype=np.uint8)
    assert read_events(path, mass="M").mass.tolist() == [91.0, 88.0]
    assert "column 'name' holds text or pickled objects" in message_of(path, mass="M", features=["name"])


def test_root_branch_of_fixed_arrays(tmp_path):
    path = tmp_path / "arrays.root"
    with uproot.recreate(path) as file:
        tree = file.mktree("t", {"M": np.float64, "z": ("f8", (3,))})
        tree.extend({"M": np.ones(4), "z": np.ones((4, 3))})
    assert "column 'z' has type double[3], not one number a row" in message_of(path, mass="M", features=["z"])


@pytest.mark.parametrize("chunk_size", [10, 1000])
def test_nan_is_counted_with_rows_of_the_file(layout, chunk_size, dijets, write):
    columns = dijets(60)
    columns["mj1"][[7, 41, 55]] = np.nan
    columns["tau2j2"][[3, 4, 5, 6, 12, 13, 59]] = np.inf
    path = write(columns, layout)
    with pytest.raises(EventsError) as caught:
        read_events(path, features=["tau21_j2"], chunk_size=chunk_size)
    assert "NaN or infinite values among 60 rows: 'm_jj' in 3 (rows 7, 41, 55)" in str(caught.value)
    assert "'tau21_j2' in 7 (rows 3, 4, 5, 6, 12, ...). Remove or repair" in str(caught.value)


def test_nan_mass_is_refused_whatever_the_window(dijets, write):
    columns = dijets(30)
    columns["pxj1"][20] = np.nan
    with pytest.raises(EventsError, match=r"'m_jj' in 1 \(rows 20\)"):
        read_events(write(columns), window=MassWindow(0.0, 1e6))


def test_nan_feature_outside_the_window_does_not_matter(dijets, write):
    columns = dijets(50)
    mass = FEATURES["m_jj"].values(columns)
    order = np.argsort(mass)
    columns["tau1j1"][order[40:]] = np.nan
    path = write(columns)
    window = MassWindow(0.0, float(mass[order[40]]))
    assert len(read_events(path, features=["tau21_j1"], window=window)) == 40
    with pytest.raises(EventsError, match="'tau21_j1' in 10"):
        read_events(path, features=["tau21_j1"])


def test_nan_weights_are_counted(dijets, write):
    columns = {**dijets(10), "w": np.where(np.arange(10) == 6, np.nan, 1.0)}
    with pytest.raises(EventsError, match=r"'w' in 1 \(rows 6\)"):
        read_events(write(columns), weights="w")


def test_null_of_parquet_is_a_nan(tmp_path):
    pa = pytest.importorskip("pyarrow")
    path = tmp_path / "null.parquet"
    pa.parquet.write_table(pa.table({"M": [91.0, None, 88.0], "n": [1, 2, None]}), path)
    with pytest.raises(EventsError, match=r"'M' in 1 \(rows 1\); 'n' in 1 \(rows 2\)|'M' in 1 \(rows 1\)"):
        read_events(path, mass="M", features=["n"])


def test_iterator_refuses_a_nan_when_its_chunk_comes(dijets, write):
    columns = dijets(30)
    columns["mj1"][25] = np.nan
    parts = iter_events(write(columns), chunk_size=10)
    assert len(next(parts)) == 10
    assert len(next(parts)) == 10
    with pytest.raises(EventsError, match=r"'m_jj' in 1 \(rows 25\)"):
        next(parts)


def test_iterator_checks_names_at_once(dijets, write):
    with pytest.raises(EventsError, match="no column or feature 'nothing'"):
        iter_events(write(dijets(3)), features=["nothing"])


def test_all_events_outside_the_window_hint_at_the_unit(dijets, write):
    columns = {name: values / 1000.0 if name[0] in "pm" else values for name, values in dijets(40).items()}
    path = write(columns)
    window = MassWindow(3300.0, 3700.0)
    with pytest.raises(
        EventsError, match=r"none of 40 events is in the window 3300-3700 GeV.*in TeV, say so \(--unit TeV\)"
    ):
        read_events(path, window=window)
    with pytest.raises(EventsError, match="none of 40 events"):
        list(iter_events(path, window=window, chunk_size=15))
    assert summarise_events(path, window=window).n_selected == 0


def test_wrong_unit_is_hinted_at_in_the_unit_that_was_declared(dijets, write):
    with pytest.raises(EventsError, match=r"GeV: the masses span .* TeV; if the file is in GeV, say so"):
        read_events(write(dijets(40)), unit="TeV", window=MassWindow(3300.0, 3700.0))


def test_empty_sidebands_name_both(dijets, write):
    with pytest.raises(EventsError, match="in the window 1-2 GeV or 3-4 GeV"):
        read_events(write(dijets(10)), window=[(1.0, 2.0), (3.0, 4.0)])


@pytest.mark.parametrize("window", [(3300.0, 3700.0), [], [(1.0, 2.0, 3.0)], [(5.0, 2.0)], ["ab"], 3.0])
def test_impossible_windows_to_read(window, dijets, write):
    with pytest.raises(WindowError):
        read_events(write(dijets(3)), window=window)


@pytest.mark.parametrize("option", ["chunk_size", "max_events"])
def test_sizes_below_one(option, dijets, write):
    with pytest.raises(OptionError, match=f"{option} 0 is not a number of events"):
        read_events(write(dijets(3)), **{option: 0})
