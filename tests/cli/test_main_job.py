"""The main job, as the README gives it, on the shipped model and events."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gbistat.cli import main
from gbistat.config import demo_events

README = Path(__file__).parents[2] / "README.md"
SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert stop.value.code == 0, captured.err
    return captured.out


@pytest.fixture(scope="module")
def limits(tmp_path_factory):
    """Document and folder of one run of the main job."""
    folder = tmp_path_factory.mktemp("results")
    command = [sys.executable, "-m", "gbistat", "limits", "--window", "3300", "3700", "--output", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert result.returncode == 0, result.stderr
    return json.loads((folder / "limits.json").read_text()), folder, result.stdout


def test_keys_of_the_document(limits):
    document, _, _ = limits
    assert document["schema"] == "gbistat.limits/1"
    assert set(document) >= {"schema", "version", "model", "results"}
    assert re.fullmatch(r"[0-9a-f]{64}", document["model"]["sha256"])
    (result,) = document["results"]
    keys = {"window", "n_events", "poi", "method", "fit", "limit", "significance", "binned", "warnings"}
    assert set(result) >= keys
    assert result["window"] == [3300.0, 3700.0]
    assert set(result["limit"]) >= {"cl", "observed", "expected"}
    assert set(result["significance"]) >= {"p0_local", "z_local", "z_global"}
    assert set(result["binned"]) >= {"observable", "fit", "limit"}
    for level in ("0.6827", "0.95"):
        ((low, high),) = result["fit"]["mu"]["intervals"][level]
        assert low < result["fit"]["mu"]["value"] < high


def test_numbers_agree_among_themselves(limits):
    document, _, _ = limits
    (result,) = document["results"]
    expected = result["limit"]["expected"]
    assert expected == sorted(expected)
    total = result["fit"]["mu"]["value"] + result["fit"]["n_bkg"]["value"]
    assert total == pytest.approx(result["n_events"], rel=0.02)
    # The network sees what the mass alone cannot: that is what the package is for.
    by_observable = {row["observable"]: row for row in result["binned_all"]}
    assert result["limit"]["expected"][2] < 0.3 * by_observable["m_jj"]["limit"]["expected"][2]
    binned = by_observable["log_ratio"]
    assert binned["limit"]["expected"][2] == pytest.approx(result["limit"]["expected"][2], rel=0.15)
    difference = binned["fit"]["mu"]["value"] - result["fit"]["mu"]["value"]
    assert abs(difference) < 0.5 * result["fit"]["mu"]["error"]


def test_signal_that_was_injected_is_found(limits):
    """The record beside the events says how many signal events were injected; false alarm below 1e-3 by the intervals' level."""
    document, _, _ = limits
    record = (demo_events().parent / "README.md").read_text()
    found = re.search(r"injected signal.*\| (\d+) \| (\d+) \|", record)
    assert found is not None
    (result,) = document["results"]
    mu = result["fit"]["mu"]
    assert abs(mu["value"] - int(found.group(2))) < 3.3 * mu["error"]
    assert result["significance"]["z_local"] > 2.0


def test_figures(limits):
    _, folder, out = limits
    for name in ("spectrum", "profile", "cls", "comparison"):
        content = (folder / f"{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 20_000
        assert f"{name}.png" in out
    assert not list(folder.glob(".*"))


def test_table(limits):
    _, _, out = limits
    for text in ("95 % CLs limit, observed", "expected, 2 sigma", "local significance", "pyhf"):
        assert text in out


def test_json_on_standard_output_is_only_json(capsys):
    document = json.loads(run(capsys, "fit", "--window", 3300, 3700, "--json", "-"))
    assert document["schema"] == "gbistat.fit/1"
    (result,) = document["results"]
    assert result["valid"]
    n = len(result["parameters"])
    assert np.shape(result["covariance"]) == (n, n)


def test_compare(capsys):
    document = json.loads(run(capsys, "compare", "--window", 3300, 3700, "--toys", 4, "--json", "-"))
    names = [row["name"] for row in document["results"][0]["rows"]]
    assert names[0] == "unbinned"
    assert any("m_jj" in name for name in names)
    assert any("log_ratio" in name for name in names)


def test_several_windows(capsys, tmp_path):
    windows = ("--window", 3200, 3600, "--window", 4300, 4700)
    out = run(capsys, "limits", *windows, "--no-binned", "--output", tmp_path, "--json", tmp_path / "again.json")
    assert "limits by window" in out
    assert (tmp_path / "limits_by_window.png").stat().st_size > 20_000
    document = json.loads((tmp_path / "again.json").read_text())
    assert [result["window"] for result in document["results"]] == [[3200.0, 3600.0], [4300.0, 4700.0]]


def test_a_window_that_fails_does_not_lose_the_others(capsys, tmp_path):
    windows = ("--window", 3300, 3700, "--window", 2900, 3300)
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in ("fit", *windows, "--json", tmp_path / "fit.json")])
    assert stop.value.code == 1
    captured = capsys.readouterr()
    assert "window 2900 3300 failed" in captured.err
    document = json.loads((tmp_path / "fit.json").read_text())
    assert len(document["results"]) == 1
    assert document["failures"][0]["window"] == [2900.0, 3300.0]


def test_same_answer_twice(capsys):
    first = run(capsys, "fit", "--window", 3300, 3700, "--json", "-")
    assert first == run(capsys, "fit", "--window", 3300, 3700, "--json", "-")


def test_model_and_events_show(capsys):
    assert "ln kappa" in run(capsys, "model", "show")
    assert "dijet-qq-3500" in run(capsys, "model", "list")
    assert "events in 3300-3700 GeV" in run(capsys, "events", "show", "--window", 3300, 3700)


def test_progress_is_not_printed_where_nobody_watches(limits):
    document, _, out = limits
    assert document
    assert "reading" not in out


def test_python_of_the_readme_runs(tmp_path, monkeypatch):
    """Each Python block of the README runs as it stands; blocks with prompts are doctests."""
    import doctest

    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        if ">>>" in block:
            test = doctest.DocTestParser().get_doctest(block, {}, "README", str(README), 0)
            assert doctest.DocTestRunner().run(test).failed == 0
        else:
            exec(compile(block, str(README), "exec"), {})


def test_dimuon_card_of_the_readme_runs(capsys, tmp_path):
    """A search without any network, on a file that holds only masses."""
    card = re.search(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert card is not None
    rng = np.random.default_rng(5)
    uproot = pytest.importorskip("uproot")
    masses = np.r_[rng.uniform(60.0, 120.0, 3000), rng.normal(91.2, 2.5, 400)]
    with uproot.recreate(tmp_path / "dimuons.root") as file:
        tree = file.mktree("events", {"M": "float64"})
        tree.extend({"M": masses})
    (tmp_path / "zmumu.yaml").write_text(card.group(1))
    document = json.loads(run(capsys, "limits", tmp_path / "zmumu.yaml", "--json", "-"))
    mu = document["results"][0]["fit"]["mu"]
    # 0.983 of the Gaussian is in the window; false alarm 1e-3 for a Gaussian estimate.
    assert abs(mu["value"] - 400 * 0.983) < 3.3 * mu["error"]


def test_levels_of_the_binned_intervals_are_those_asked_for(capsys):
    document = json.loads(run(capsys, "limits", "--window", 3300, 3700, "--cl", 0.9, "--json", "-"))
    (result,) = document["results"]
    assert list(result["fit"]["mu"]["intervals"]) == ["0.6827", "0.9"]
    for twin in result["binned_all"]:
        assert list(twin["fit"]["mu"]["intervals"]) == ["0.6827", "0.9"]


def test_model_in_tev_has_its_own_window(capsys, tmp_path):
    rng = np.random.default_rng(6)
    np.savez(tmp_path / "m.npz", m=rng.uniform(0.06, 0.12, 3000))
    card = tmp_path / "card.yaml"
    card.write_text(
        "events: {path: m.npz, mapping: {mass: m}, unit: TeV}\n"
        "model:\n  mass: {name: m_x, unit: TeV}\n  window: [0.085, 0.097]\n"
        "  signal: {mass: {shape: gaussian, parameters: {mean: 0.091, sigma: 0.0025}}}\n"
        "  background: {mass: {shape: exponential}, fit_range: [0.06, 0.12]}\n"
    )
    document = json.loads(run(capsys, "fit", card, "--json", "-"))
    assert document["results"][0]["window"] == pytest.approx([85.0, 97.0])


def test_limits_stay_within_the_range_of_the_parameter(capsys, tmp_path):
    rng = np.random.default_rng(7)
    np.savez(tmp_path / "m.npz", m=60.0 + rng.exponential(30.0, 5000))
    card = tmp_path / "card.yaml"
    text = (
        "events: {path: m.npz, mapping: {mass: m}}\nwindows: [[90, 110]]\n"
        "model:\n  mass: {name: m_x, unit: GeV}\n"
        "  signal: {mass: {shape: gaussian, parameters: {mean: 100, sigma: 2}}}\n"
        "  background: {mass: {shape: exponential}, fit_range: [60, 160]}\n"
    )
    card.write_text(text)
    limit = json.loads(run(capsys, "limits", card, "--no-binned", "--json", "-"))["results"][0]["limit"]
    top = 1.01 * max(limit["observed"], limit["expected"][-1])
    card.write_text(text + f"  parameters: {{mu: {{start: 0, low: -500, high: {top}}}}}\n")
    again = json.loads(run(capsys, "limits", card, "--no-binned", "--json", "-"))["results"][0]["limit"]
    assert again["observed"] == pytest.approx(limit["observed"], rel=1e-4)


def test_dimuon_card_of_the_readme_runs_on_real_dimuons_if_present(capsys, tmp_path):
    """A coefficient of the polynomial ends next to 0, where one side of its error is no density."""
    path = SHARED / "root" / "uproot-Zmumu.root"
    if not path.is_file():
        pytest.skip("the ROOT files are not beside this checkout")
    card = re.search(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert card is not None
    (tmp_path / "zmumu.yaml").write_text(card.group(1).replace("dimuons.root", str(path)))
    document = json.loads(run(capsys, "limits", tmp_path / "zmumu.yaml", "--json", "-"))
    assert document["results"][0]["fit"]["mu"]["value"] > 1000


def test_simulated_files_if_present(capsys):
    path = SHARED / "signal_qq_3500_500_100.features.h5"
    if not path.is_file():
        pytest.skip("the simulated events are not beside this checkout")
    document = json.loads(run(capsys, "limits", "--events", path, "--window", 3300, 3700, "--no-binned", "--json", "-"))
    (result,) = document["results"]
    # A file of signal alone: nearly all events in the window are signal.
    assert result["fit"]["mu"]["value"] > 0.5 * result["n_events"]
