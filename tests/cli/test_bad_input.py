"""Bad input ends in one or two lines that say value, reason and way out, with exit code 1 and nothing half-written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from gbistat.cli import main
from gbistat.config import DEFAULT_MODEL, demo_events
from gbistat.terms.store import find_model

CARD = """
events: {{path: {path}, mapping: {{mass: m}}}}
windows: [[{low}, {high}]]
model:
  name: bump
  mass: {{name: m, unit: GeV}}
  signal:
    mass: {{shape: gaussian, parameters: {{mean: {mean}, sigma: 2.0}}}}
  background:
    mass: {{shape: exponential}}
    fit_range: [60, 140]
"""


@pytest.fixture
def spectrum(tmp_path):
    """Masses of a falling spectrum from 60 to 140 GeV."""
    rng = np.random.default_rng(11)
    masses = 60.0 - 25.0 * np.log1p(-rng.random(4000) * -np.expm1(-80.0 / 25.0))
    path = tmp_path / "masses.npz"
    np.savez(path, m=masses)
    return path


@pytest.fixture
def card(tmp_path, spectrum):
    def write(*, low=90, high=110, mean=100.0, path=None, extra=""):
        file = tmp_path / "card.yaml"
        file.write_text(CARD.format(path=path or spectrum, low=low, high=high, mean=mean) + extra)
        return file

    return write


@pytest.fixture
def model_copy(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(find_model(DEFAULT_MODEL), folder)
    return folder


def run(capsys, *arguments):
    """Exit code, standard output and standard error of one command."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def fails(capsys, *arguments, code=1):
    """Standard error of a command that must fail cleanly."""
    status, out, err = run(capsys, *arguments)
    assert status == code, (out, err)
    assert "Traceback" not in err
    assert out == ""
    if code == 1:
        assert err.startswith("gbistat: error: ")
        assert len(err.strip().splitlines()) <= 3
    return err


def test_missing_file(capsys, tmp_path):
    err = fails(capsys, "limits", "--events", tmp_path / "absent.h5", "--window", 3300, 3700)
    assert "absent.h5" in err


def test_missing_column_offers_the_nearest(capsys, tmp_path):
    path = tmp_path / "events.npz"
    np.savez(path, m_jj=np.linspace(2800, 5000, 50), m_lihgt=np.ones(50), dm=np.ones(50))
    err = fails(capsys, "limits", "--events", path, "--window", 3300, 3700)
    assert "'m_light'" in err
    assert "m_lihgt" in err


def test_nan_is_counted_and_located(capsys, tmp_path, card):
    masses = np.linspace(60, 139, 100)
    masses[[7, 31]] = np.nan, np.inf
    path = tmp_path / "nan.npz"
    np.savez(path, m=masses)
    err = fails(capsys, "fit", card(path=path))
    assert "2" in err
    assert "7, 31" in err


def test_all_events_outside_the_window_hints_at_the_unit(capsys, tmp_path):
    rng = np.random.default_rng(3)
    path = tmp_path / "tev.npz"
    columns = {name: rng.random(200) for name in ("m_light", "dm", "tau21_light", "tau21_heavy")}
    np.savez(path, m_jj=rng.uniform(2.8, 6.0, 200), **columns)
    err = fails(capsys, "limits", "--events", path, "--window", 3300, 3700)
    assert "none of 200 events is in the window" in err
    assert "--unit TeV" in err


def test_window_wider_than_the_model(capsys):
    err = fails(capsys, "limits", "--window", 3000, 5500)
    assert "3000-5500 GeV" in err
    assert "is valid" in err


def test_window_reversed(capsys):
    assert "did you mean 3300 3700" in fails(capsys, "limits", "--window", 3700, 3300)


def test_empty_file(capsys, tmp_path, card):
    path = tmp_path / "empty.npz"
    np.savez(path, m=np.empty(0))
    err = fails(capsys, "fit", card(path=path))
    assert "no" in err


def test_truncated_hdf5(capsys, tmp_path):
    path = tmp_path / "cut.h5"
    path.write_bytes(demo_events().read_bytes()[:20_000])
    err = fails(capsys, "limits", "--events", path, "--window", 3300, 3700)
    assert "cut.h5" in err


def test_truncated_root(capsys, tmp_path, card):
    uproot = pytest.importorskip("uproot")
    whole = tmp_path / "whole.root"
    with uproot.recreate(whole) as file:
        tree = file.mktree("events", {"m": "float64"})
        tree.extend({"m": np.linspace(60.0, 139.0, 5000)})
    path = tmp_path / "cut.root"
    path.write_bytes(whole.read_bytes()[:600])
    assert "cut.root" in fails(capsys, "fit", card(path=path))


def test_corrupted_network(capsys, model_copy):
    graph = next(model_copy.glob("terms/*/member_0.onnx"))
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 0xFF
    graph.write_bytes(bytes(content))
    err = fails(capsys, "limits", "--model", model_copy, "--events", demo_events(), "--window", 3300, 3700)
    assert "member_0.onnx" in err
    assert "sha256" in err


def edit_json(path: Path, change) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_term_that_points_outside_its_folder(capsys, model_copy):
    term = next(model_copy.glob("terms/*/term.json"))

    def point_outside(data):
        data["members"][0]["file"] = "../../../secret.onnx"

    edit_json(term, point_outside)
    edit_json(model_copy / "model.json", lambda data: data.update(files=[]))
    assert "secret.onnx" in fails(capsys, "model", "show", model_copy)


def test_newer_schema(capsys, model_copy):
    edit_json(model_copy / "model.json", lambda data: data.update(schema="gbistat.model/9"))
    err = fails(capsys, "model", "show", model_copy)
    assert "gbistat.model/9" in err
    assert "newer" in err


def test_unknown_model_offers_the_nearest(capsys):
    assert DEFAULT_MODEL in fails(capsys, "limits", "--model", "dijet-qq-3600")


def test_parameter_outside_its_range(capsys, card):
    extra = "  parameters:\n    mu: {start: -5, low: 0, high: 10}\n"
    assert "start -5 is outside its range" in fails(capsys, "fit", card(extra=extra))


def test_unknown_key_in_the_card(capsys, card):
    err = fails(capsys, "fit", card(extra="  backgruond: 1\n"))
    assert "backgruond" in err
    assert "background" in err


def test_card_that_is_missing(capsys, tmp_path):
    assert "there is no run card" in fails(capsys, "fit", tmp_path / "nothing.yaml")


def test_singular_fit(capsys, tmp_path, spectrum):
    card = tmp_path / "singular.yaml"
    card.write_text(
        CARD.format(path=spectrum, low=90, high=110, mean="shift")
        .replace(
            "shape: gaussian, parameters: {mean: shift, sigma: 2.0}", "shape: exponential, parameters: {rate: slope}"
        )
        .replace(
            "mass: {shape: exponential}\n", "mass: {shape: exponential, parameters: {rate: slope}}\n    yield: free\n"
        )
        + "  parameters:\n    slope: {start: -0.04, low: -1, high: 1}\n"
    )
    err = fails(capsys, "fit", card)
    assert "singular" in err or "flat" in err


def test_zero_signal_acceptance(capsys, card):
    assert "zero signal acceptance" in fails(capsys, "fit", card(mean=500.0))


def test_no_sideband_on_one_side(capsys, card):
    assert "sideband" in fails(capsys, "fit", card(low=50, high=80))


def test_output_that_cannot_be_written(capsys, card, tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    err = fails(capsys, "fit", card(), "--output", blocker / "results")
    assert "--output" in err
    assert blocker.read_text() == "not a folder"


def test_confidence_level_outside_its_range(capsys, card):
    assert "confidence level 95" in fails(capsys, "limits", card(), "--cl", 95)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("limits", "--window", "3300"), "--window"),
        (("limitz",), "nearest names: limits"),
        (("limits", "--map", "mass"), "NAME=COLUMN"),
        (("fit", "--nonsense"), "--nonsense"),
    ],
)
def test_wrong_usage_is_exit_code_2(capsys, arguments, message):
    assert message in fails(capsys, *arguments, code=2)


def test_debug_shows_the_traceback(tmp_path):
    from gbistat.errors import EventsError

    with pytest.raises(EventsError, match=r"absent\.h5"):
        main(["limits", "--events", str(tmp_path / "absent.h5"), "--window", "3300", "3700", "--debug"])
