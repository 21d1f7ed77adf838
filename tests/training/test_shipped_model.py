"""The model and the events that come with gbistat: whole, consistent with each other, and made as they say."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from gbistat.data.read import read_events
from gbistat.data.window import MassWindow
from gbistat.terms.store import load_model, load_reference
from gbistat.training.card import load_card
from gbistat.training.splits import read_sample

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "gbistat" / "data" / "demo" / "dijets.h5"
FEATURES = ("m_light", "dm", "tau21_light", "tau21_heavy")
NAME = "dijet-qq-3500"


@pytest.fixture(scope="module")
def model():
    return load_model(NAME)


@pytest.fixture(scope="module")
def demo():
    return read_events(DEMO, features=FEATURES)


@pytest.fixture(scope="module")
def shared():
    folder = ROOT.parent / "shared" / "data"
    if not (folder / "qcd.features.h5").is_file():
        pytest.skip("the simulated events are not here")
    return folder


def test_the_model_says_what_its_card_says(model):
    card = load_card(model.directory / "card.yaml")
    assert card.name == NAME
    assert model.spec.valid == card.model.valid == (3100.0, 5000.0)
    assert model.spec.window == (3300.0, 3700.0)
    assert model.spec.features == FEATURES == card.features
    term = model.terms[card.term].metadata
    assert term.feature_names == card.names
    assert term.parity.max_abs < 1e-4
    assert term.parity.n_events == 10_000
    assert term.training.seed == card.seed


def test_the_networks_separate_and_are_normalised(model):
    checks = next(iter(model.terms.values())).metadata.checks
    for row in checks["windows"]:
        assert row["auc"] > 0.94
        closure = row["closure"]
        assert abs(closure["fitted_over_true"] - 1.0) < 3.0 * closure["sigma"]
    assert checks["log_kappa"]["agree_within_two_sigma"]
    worst = max(abs(row["observed"] - row["predicted"]) / row["sigma"] for row in checks["balanced"]["calibration"])
    assert worst < 4.0


def test_reference_events_stand_for_background(model):
    reference = load_reference(model)
    term = next(iter(model.terms.values()))
    r = np.exp(term.log_ratio(reference))
    for low, high in ((3300.0, 3700.0), (4200.0, 4800.0)):
        inside = (reference.mass >= low) & (reference.mass < high)
        a = reference.weights[inside] * r[inside]
        assert a.sum() / reference.weights[inside].sum() == pytest.approx(1.0, abs=0.15)
        assert a.sum() ** 2 / np.sum(a**2) > 500


def test_the_demonstration_file_is_a_pandas_frame_without_labels():
    assert DEMO.stat().st_size < 3_000_000
    with h5py.File(DEMO) as file:
        group = file["df"]
        assert {name: group.attrs[name] for name in ("nblocks", "ndim")} == {"nblocks": 1, "ndim": 2}
        assert [item.decode() for item in group["block0_items"][()]] == [
            "m_jj",
            *FEATURES,
            "m_heavy",
            "tau32_light",
            "tau32_heavy",
        ]
        assert group["block0_values"].dtype == np.float32
        # PyTables reads UTF-8 attributes as text and takes ASCII ones for pickles.
        assert h5py.check_string_dtype(group.attrs.get_id("pandas_type").dtype).encoding == "utf-8"


def test_the_counts_of_the_demonstration_are_those_of_its_readme(demo):
    text = (DEMO.parent / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"\| (?:background|injected signal):.*\| (\d+) \| (\d+) \|", text)
    (background, background_inside), (signal, signal_inside) = [tuple(map(int, row)) for row in rows]
    assert signal == 60
    assert len(demo) == background + signal
    assert len(demo.in_window(MassWindow(3300.0, 3700.0))) == background_inside + signal_inside
    assert f"mu = {signal_inside}" in text


def test_no_demonstration_event_is_a_reference_event(demo, model):
    reference = load_reference(model)
    seen = {tuple(row) for row in np.round(reference.matrix(FEATURES[2:]), 4).tolist()}
    inside = demo.select((demo.mass >= 3100.0) & (demo.mass < 5000.0))
    rows = np.round(inside.matrix(FEATURES[2:]), 4).tolist()
    # Two events agree in two numbers of four digits by chance only: expected here 26 000 x 31 000 / 5e7 = 16.
    assert sum(tuple(row) in seen for row in rows) < 60


def test_the_splits_are_made_again_as_recorded(model, shared):
    card = load_card(model.directory / "card.yaml")
    records = model.spec.provenance["splits"]
    samples = [read_sample(shared, spec, card) for spec in (card.background, *card.signals)]
    assert [sample.record() for sample in samples] == records


def test_the_demonstration_is_made_again_as_shipped(shared, tmp_path):
    path = ROOT / "validation" / "demo" / "make_events.py"
    spec = importlib.util.spec_from_file_location("make_demo_events", path)
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script
    spec.loader.exec_module(script)
    card = load_card(script.CARD)
    table, counts = script.mix(card, shared)
    with h5py.File(DEMO) as file:
        assert np.array_equal(file["df/block0_values"][()], table)
    assert (DEMO.parent / "README.md").read_text(encoding="utf-8") == script.readme(card, counts, DEMO.name)
    script.write_frame(tmp_path / "again.h5", table)
    assert (tmp_path / "again.h5").read_bytes() == DEMO.read_bytes()
