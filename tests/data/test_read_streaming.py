"""Five million events are read with a window cut in under 1 GiB."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import h5py
import numpy as np
import pytest

N_EVENTS = 5_000_000

MEASURED = """
    import json, pathlib, re, resource, sys
    import numpy as np
    from gbistat.data.read import read_events
    from gbistat.data.window import MassWindow

    events = read_events(
        sys.argv[1], features=["m_light", "dm", "tau21_light", "tau21_heavy"], window=MassWindow(3300.0, 3700.0)
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        # Linux starts ru_maxrss at the size of the process that forked this one; VmHWM belongs to this one alone.
        peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1]) * 1024
    print(json.dumps({"peak": peak, "n": len(events), "sum": float(np.sum(events.features))}))
"""


@pytest.fixture
def large_file(tmp_path, dijets):
    """Five million events: the same hundred thousand fifty times over, in the layout of the LHC Olympics."""
    columns = dijets(100_000)
    block = np.column_stack(list(columns.values())).astype(np.float32)
    path = tmp_path / "large.h5"
    with h5py.File(path, "w") as file:
        frame = file.create_group("df")
        frame.attrs.update(pandas_type=b"frame", nblocks=1)
        frame["block0_items"] = np.array([name.encode() for name in columns])
        values = frame.create_dataset("block0_values", (N_EVENTS, block.shape[1]), dtype=np.float32)
        for start in range(0, N_EVENTS, len(block)):
            values[start : start + len(block)] = block
    yield path, {name: block[:, k] for k, name in enumerate(columns)}
    path.unlink()  # 300 MB: not kept with the other temporary files


def test_large_file_in_bounded_memory(large_file):
    from gbistat.data.features import FEATURES

    path, columns = large_file
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURED), str(path)], capture_output=True, text=True, check=True
    )
    seen = json.loads(done.stdout)
    mass = FEATURES["m_jj"].values(columns)
    mask = (mass >= 3300.0) & (mass < 3700.0)
    names = ("m_light", "dm", "tau21_light", "tau21_heavy")
    total = sum(float(np.sum(FEATURES[name].values(columns)[mask])) for name in names)
    repeats = N_EVENTS // len(mass)
    assert seen["n"] == repeats * int(mask.sum()) > 0
    assert seen["sum"] == pytest.approx(repeats * total, rel=1e-9)
    assert seen["peak"] < 2**30


def test_data_layer_is_light_to_import():
    heavy = ["h5py", "uproot", "awkward", "vector", "pyarrow", "pandas", "matplotlib"]
    code = f"import sys, gbistat.data.read, gbistat.data.transforms; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
