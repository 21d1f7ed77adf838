"""Dijet columns with known answers, and writers of every layout that is read."""

from __future__ import annotations

import pickle
from pathlib import Path

import awkward as ak
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uproot

LAYOUTS = {
    "fixed": ".h5",
    "fixed_blocks": ".hdf5",
    "plain": ".h5",
    "group": ".h5",
    "ttree": ".root",
    "rntuple": ".root",
    "parquet": ".parquet",
    "npz": ".npz",
}


@pytest.fixture
def rng():
    return np.random.default_rng(20240719)


@pytest.fixture
def dijets(rng):
    """Columns of the LHC Olympics files for n events, jet 1 with the larger pT."""

    def make(n=500):
        pt = np.sort(rng.uniform(800.0, 2500.0, (2, n)), axis=0)[::-1]
        phi = rng.uniform(-np.pi, np.pi, n) + np.array([np.zeros(n), np.pi + 0.1 * rng.normal(size=n)])
        eta = rng.normal(0.0, 0.8, (2, n))
        columns = {}
        for jet in (0, 1):
            columns[f"pxj{jet + 1}"] = pt[jet] * np.cos(phi[jet])
            columns[f"pyj{jet + 1}"] = pt[jet] * np.sin(phi[jet])
            columns[f"pzj{jet + 1}"] = pt[jet] * np.sinh(eta[jet])
            columns[f"mj{jet + 1}"] = rng.exponential(120.0, n)
            for k in (1, 2, 3):
                columns[f"tau{k}j{jet + 1}"] = rng.uniform(0.0, 0.8, n) / k
        columns["label"] = (rng.uniform(size=n) < 0.3).astype(np.float64)
        return columns

    return make


def write_fixed(path, columns, blocks=None, key="df"):
    """The pandas "fixed" layout as h5py sees it; `blocks` lists the names of each block."""
    n = len(next(iter(columns.values())))
    blocks = blocks or [list(columns)]
    with h5py.File(path, "a") as file:
        frame = file.create_group(key)
        frame.attrs.update(pandas_type=b"frame", nblocks=len(blocks), ndim=2, encoding=b"UTF-8")
        frame["axis0"] = np.array([name.encode() for name in columns])
        frame["axis1"] = np.arange(n)
        for number, names in enumerate(blocks):
            frame[f"block{number}_items"] = np.array([name.encode() for name in names])
            values = frame.create_dataset(
                f"block{number}_values", data=np.column_stack([columns[name] for name in names])
            )
            values.attrs["transposed"] = np.uint8(1)


def write_root(path, columns, kind, name="events"):
    with uproot.recreate(path) as file:
        make = file.mktree if kind == "ttree" else file.mkrntuple
        tree = make(name, {column: values.dtype for column, values in columns.items()})
        half = len(next(iter(columns.values()))) // 2
        for part in (slice(None, half), slice(half, None)):
            tree.extend({column: values[part] for column, values in columns.items()})


def write_layout(path, columns, layout):
    if layout == "fixed":
        write_fixed(path, columns)
    elif layout == "fixed_blocks":
        names = list(columns)
        write_fixed(path, columns, [names[1::2], names[::2]])
    elif layout in ("plain", "group"):
        with h5py.File(path, "w") as file:
            where = file if layout == "plain" else file.create_group("deep/events")
            for name, values in columns.items():
                chunked = {"chunks": (max(1, len(values) // 3),), "compression": "gzip"} if len(values) else {}
                where.create_dataset(name, data=values, **chunked)
    elif layout in ("ttree", "rntuple"):
        write_root(path, columns, layout)
    elif layout == "parquet":
        pq.write_table(pa.table(columns), path, row_group_size=97)
    else:
        np.savez_compressed(path, **columns)


@pytest.fixture
def write(tmp_path):
    """Write columns in a layout; returns the path."""

    def writer(columns, layout="fixed", name="events"):
        path = tmp_path / f"{name}{LAYOUTS[layout]}"
        write_layout(path, columns, layout)
        return path

    return writer


@pytest.fixture(params=list(LAYOUTS))
def layout(request):
    return request.param


@pytest.fixture
def jagged(rng):
    """Jagged jets of n events in random order of pT, some events with fewer than two."""

    def make(n=60):
        counts = rng.integers(0, 5, n)
        total = int(counts.sum())
        flat = {
            "pt": rng.uniform(20.0, 900.0, total),
            "eta": rng.normal(0.0, 1.0, total),
            "phi": rng.uniform(-np.pi, np.pi, total),
            "mass": rng.exponential(40.0, total),
            "tau1": rng.uniform(0.1, 0.8, total),
            "tau2": rng.uniform(0.0, 0.4, total),
        }
        return {name: ak.unflatten(values, counts) for name, values in flat.items()}

    return make


@pytest.fixture
def pickled():
    """Bytes that run code when somebody unpickles them."""

    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle from a file of events was loaded",))

    return pickle.dumps(Bomb())


@pytest.fixture
def shared_data():
    """Folder of the simulated and public events; tests that need it are skipped where it is absent."""
    folder = Path(__file__).parents[2].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    return folder
