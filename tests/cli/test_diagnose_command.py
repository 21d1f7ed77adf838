"""``gbistat diagnose`` and ``gbistat report`` from the command line, on the shipped model and events."""

from __future__ import annotations

import dataclasses
import html
import json
import shutil
import subprocess

import numpy as np
import pytest

from gbistat import diagnose_outputs, diagnose_workflow
from gbistat.cli import main
from gbistat.config import DEFAULT_MODEL, demo_events, resolve_options
from gbistat.data.events import Events
from gbistat.diagnose_inputs import DiagnoseRequest, Pairs
from gbistat.diagnose_workflow import pseudo_windows
from gbistat.diagnostics.saved import model_verdict, saved_verdict
from gbistat.errors import ModelError, OptionError, OutputError
from gbistat.terms.certificates import certificate_of
from gbistat.terms.files import sha256
from gbistat.terms.store import load_model, load_reference

pytest.importorskip("sklearn", reason="needs the extra 'train'")
QUICK = [
    "--window", "3300", "3700", "--members", "1", "--folds", "2", "--permutations", "299",
    "--nplm-permutations", "19", "--max-events", "1500", "--no-null-run",
]  # fmt: skip
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "headless_shell")


def run(arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return stop.value.code


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Results of a run that attached its certificate to a copy of the shipped model, ``model`` beside them."""
    directory = tmp_path_factory.mktemp("certificate") / "results"
    copy = directory.parent / "model"
    shutil.copytree(load_model(DEFAULT_MODEL).directory, copy)
    arguments = ["--model", str(copy), "--events", str(demo_events()), "--output", str(directory), "--attach"]
    assert run(["diagnose", *QUICK, *arguments]) == 0
    return directory


def test_the_certificate_of_the_shipped_model(folder):
    content = json.loads((folder / "diagnostics.json").read_text())
    assert content["schema"] == "gbistat.diagnose/1"
    assert content["verdict"] in ("PASS", "FAIL", "UNDECIDED")
    # 1500 events certify nothing at 0.2 sigma: whatever else is found, no PASS.
    assert content["verdict"] != "PASS"
    assert "cannot certify 0.2 sigma" in content["statement"]
    assert content["region"] == "sidebands"
    assert {"name", "value", "p", "null", "verdict"} == set(content["checks"][0])
    # The first of two folds trains the classifier only.
    assert content["impact"]["n"] == [1500, 1500]
    assert content["classifier"]["n"] == [750, 750]
    assert set(content["settings"]["fold_hashes"]) == {"test", "generated"}
    names = {path.name for path in folder.iterdir()}
    assert {"weights.png", "weights_log.png", "log_weights.png", "roc.png", "calibration.png", "nplm.png"} <= names


def test_the_page_is_self_contained(folder):
    assert run(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert 'name="viewport"' in page
    assert page.count("data:image/png;base64,") == len(list(folder.glob("*.png")))
    assert "http://" not in page
    assert "https://" not in page
    content = json.loads((folder / "diagnostics.json").read_text())
    assert f'class="verdict {content["verdict"]}"' in page
    assert content["model"]["sha256"] in page


MEASURE = """<script>addEventListener("load", () => parent.postMessage(JSON.stringify({
  width: innerWidth, scroll: document.documentElement.scrollWidth, height: document.body.scrollHeight,
  images: [...document.images].map(i => [i.naturalWidth, i.getBoundingClientRect().width]),
  verdict: getComputedStyle(document.querySelector(".verdict")).backgroundColor,
  size: parseFloat(getComputedStyle(document.body).fontSize),
  text: document.body.innerText}), "*"))</script></body>"""
FRAME = """<!doctype html><iframe src="page.html" width="390" height="844" style="border:0"></iframe><pre id="out"></pre>
<script>addEventListener("message", m => document.getElementById("out").textContent = m.data)</script>"""


def test_a_browser_shows_the_page_on_a_phone(folder, tmp_path):
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium here")
    run(["report", str(folder)])
    page = (folder / "report.html").read_text()
    (tmp_path / "page.html").write_text(page.replace("</body>", MEASURE))
    (tmp_path / "phone.html").write_text(FRAME)
    # Names do not resolve: what the page needs is in it.
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "--virtual-time-budget=5000"]
    done = subprocess.run(
        [*command, "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}",
         (tmp_path / "phone.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    found = json.loads(html.unescape(done.stdout.split('<pre id="out">')[1].split("</pre>")[0]))
    assert found["width"] == 390
    # Nothing is wider than the screen; wide tables scroll inside themselves.
    assert found["scroll"] <= 390
    assert found["size"] >= 16
    assert len(found["images"]) == len(list(folder.glob("*.png")))
    assert all(natural > 0 and 200 < shown <= 390 for natural, shown in found["images"])
    assert found["verdict"] != "rgba(0, 0, 0, 0)"
    content = json.loads((folder / "diagnostics.json").read_text())
    for text in (
        content["verdict"],
        content["statement"],
        "held-out log-score",
        "Provenance",
        content["model"]["sha256"],
    ):
        assert text in found["text"]


def test_json_on_standard_output(capsys, tmp_path):
    # A file of generated events that are shifted in one feature: seen.
    reference = load_reference(load_model(DEFAULT_MODEL))
    names = reference.names
    rows = np.random.default_rng(1).permutation(len(reference))[:12_000]
    columns = {name: reference.feature(name)[rows] for name in names} | {"m_jj": reference.mass[rows]}
    columns["tau21_heavy"] = np.clip(1.1 * columns["tau21_heavy"], 0.0, 0.999)
    np.savez(tmp_path / "generated.npz", **columns)
    assert run(["diagnose", *QUICK, "--generated", str(tmp_path / "generated.npz"), "--json", "-"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["detected"]
    assert any(region["obs"] == "tau21_heavy" and region["p"] < 0.05 for region in content["classifier"]["regions"])


def test_certificates_on_disk(folder, tmp_path):
    assert saved_verdict(None) is None
    assert saved_verdict(tmp_path) is None
    content = json.loads((folder / "diagnostics.json").read_text())
    assert saved_verdict(folder).startswith(content["verdict"])
    (tmp_path / "diagnostics.json").write_text("{}")
    with pytest.raises(ModelError, match="is no certificate"):
        saved_verdict(tmp_path)


@pytest.mark.parametrize("name", [DEFAULT_MODEL, "dijet-background"])
def test_shipped_backgrounds_carry_certificates(name):
    # Of the model as it is, in the metadata of its term; the long form beside it is the one that was attached.
    model = load_model(name)
    certificate = certificate_of(model)
    assert certificate.model_sha256 == model.sha256
    content = (model.directory / "diagnostics.json").read_bytes()
    assert sha256(content) == certificate.diagnostics_sha256
    assert json.loads(content)["verdict"] == certificate.verdict
    assert "; it is" not in model_verdict(model)


def test_a_certificate_is_attached(folder):
    model = load_model(folder.parent / "model")
    assert model.sha256 == load_model(DEFAULT_MODEL).sha256
    long = (model.directory / "diagnostics.json").read_bytes()
    assert long == (folder / "diagnostics.json").read_bytes()
    certificate = certificate_of(model)
    assert certificate.diagnostics_sha256 == sha256(long)
    content = json.loads(long)
    assert (certificate.verdict, certificate.statement) == (content["verdict"], content["reasons"][0])
    assert list(certificate.bias) == content["impact"]["bias_over_sigma"]
    assert content["model"]["sha256"] == model.sha256


def test_a_tilt_is_exported_with_its_certificate(monkeypatch, tmp_path):
    # Networks of the tilt are tested where they are trained; here a shipped ratio takes their place.
    ratio = load_model(DEFAULT_MODEL).terms["qq-500-100"]
    seen = []

    def train(data, generated, *, rng, valid):
        seen.append((len(data), len(generated), valid))
        return dataclasses.replace(
            ratio, metadata=ratio.metadata.model_copy(update={"name": "tilt", "certificate": None})
        )

    monkeypatch.setattr(diagnose_outputs, "train_tilt", train)
    quick = [*QUICK, "--nplm-permutations", "0", "--max-events", "600", "--json", str(tmp_path / "x.json")]
    assert run(["diagnose", *quick, "--export-tilt", str(tmp_path / "tilted")]) == 0
    assert seen == [(600, 600, (3100.0, 5000.0))]
    model = load_model(tmp_path / "tilted")
    assert model.spec.background.tilt.term == "tilt"
    assert certificate_of(model).model_sha256 == model.sha256 != load_model(DEFAULT_MODEL).sha256
    assert json.loads((tmp_path / "x.json").read_text())["verdict"] == certificate_of(model).verdict
    assert load_reference(model) is not None
    request = DiagnoseRequest(unblind=True)
    with pytest.raises(OptionError, match="would take a signal for background"):
        diagnose_outputs.export_tilt(resolve_options(), request, tmp_path / "other")
    with pytest.raises(OutputError, match="already exists"):
        diagnose_outputs.export_tilt(resolve_options(), DiagnoseRequest(), tmp_path / "tilted")


def test_pseudo_windows_do_not_straddle_the_window():
    mass = np.concatenate([np.linspace(3100, 3300, 300), np.linspace(3700, 5000, 700)])
    parts = pseudo_windows(mass, 3500.0)
    assert sorted(np.concatenate(parts).tolist()) == list(range(1000))
    assert [(bool(np.all(mass[rows] < 3500)), bool(np.all(mass[rows] > 3500))) for rows in parts] == [
        (True, False), (False, True), (False, True), (False, True),
    ]  # fmt: skip
    # Few events on a side are no window.
    assert len(pseudo_windows(mass[280:], 3500.0)) == 3


def test_masses_of_a_model_in_tev_meet_a_window_in_gev(monkeypatch):
    mass = np.linspace(3.1, 5.0, 400)
    events = Events(mass, mass[:, None], ["pt"], {"m_jj": "TeV", "pt": "TeV"})
    pairs = Pairs("gen", events, events, None, 400, {})
    seen = {}
    monkeypatch.setattr(diagnose_workflow, "read_pairs", lambda *_, **__: pairs)
    monkeypatch.setattr(diagnose_workflow, "signal_log_ratios", lambda _, data, generated: (data.mass, generated.mass))
    monkeypatch.setattr(
        diagnose_workflow, "diagnose_samples", lambda *samples, **given: seen.update(given, samples=samples)
    )
    diagnose_workflow.run_diagnose(resolve_options(windows=[(3300.0, 3700.0)]), DiagnoseRequest())
    data, generated, _ = seen["samples"]
    assert seen["window"] == (3300.0, 3700.0)
    for found in (data, generated):
        assert (found.mass.min(), found.mass.max()) == (pytest.approx(3100.0), pytest.approx(5000.0))
    # Terms are in TeV still.
    assert seen["log_ratios"][0].max() == 5.0


def test_an_unblinded_window_asks_for_no_bias(capsys):
    arguments = [*QUICK, "--nplm-permutations", "0", "--unblind", "--json", "-"]
    assert run(["diagnose", *arguments]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["region"] == "signal region"
    assert content["impact"] is None
    assert "a signal gives large weights too" in content["statement"]


def test_bad_input(capsys, tmp_path):
    assert run(["diagnose", *QUICK, "--trained-on", str(demo_events())]) == 1
    assert "are also in 'generator training'" in capsys.readouterr().err
    assert run(["diagnose", *QUICK, "--window", "3700", "4100"]) == 1
    assert "2 windows" in capsys.readouterr().err
    assert run(["diagnose", *QUICK, "--generator", "dijet-qq-3500"]) == 1
    assert "no generator that can be sampled" in capsys.readouterr().err
    assert run(["report", str(tmp_path)]) == 1
    assert "nothing to report" in capsys.readouterr().err
    (tmp_path / "fit.json").write_text("{}")
    assert run(["report", str(tmp_path)]) == 1
    assert "has no schema" in capsys.readouterr().err
    assert run(["report", str(tmp_path / "none")]) == 1
    assert "there is no folder" in capsys.readouterr().err
