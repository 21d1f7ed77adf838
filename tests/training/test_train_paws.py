"""Training and export of parametrised classifiers on a toy with a known ratio. Keras runs in this file."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from gbistat.data.events import Events
from gbistat.errors import EventsError, OutputError, ParameterError
from gbistat.terms.store import load_model, load_reference
from gbistat.training.card import dump_card
from gbistat.training.environment import keras
from gbistat.training.network import Scaling, evaluate
from gbistat.training.paws import train_paws
from gbistat.training.paws_mass_map import MassMap
from gbistat.training.paws_network import build_paws_network
from gbistat.training.paws_run import load_paws_run
from gbistat.training.paws_smoothing import with_smoothing
from gbistat.training_workflow import run_export, run_paws_training

pytestmark = [
    pytest.mark.train,
    # Keras 3 calls numpy with copy=False on TensorFlow's tensors.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]

SCALING = Scaling((4.8, 0.0, 4.8), (0.8, 1.0, 0.8))


class Killed(BaseException):
    """What a kill looks like from inside: nothing catches it."""


@pytest.fixture(scope="module")
def trained(paws_card, paws_events, tmp_path_factory):
    folder = tmp_path_factory.mktemp("paws")
    (folder / "card.yaml").write_bytes(dump_card(paws_card()))
    said = []
    run_paws_training(
        folder / "card.yaml", folder / "run", events=paws_events, progress=lambda *report: said.append(report)
    )
    return SimpleNamespace(run=load_paws_run(folder / "run"), said=said)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    output = tmp_path_factory.mktemp("paws_model") / "toy-paws"
    return SimpleNamespace(model=run_export(trained.run.directory, output), path=output)


@pytest.fixture(scope="module")
def term(exported):
    return exported.model.terms["toy-masses"]


def toy(n=1000, seed=1, order=("m_u", "b", "m_v")):
    rng = np.random.default_rng(seed)
    columns = {"m_u": rng.uniform(60, 260, size=n), "b": rng.normal(size=n), "m_v": rng.uniform(40, 240, size=n)}
    units = {"m": "GeV", "m_u": "1", "b": "1", "m_v": "1"}
    return Events(np.full(n, 100.0), np.column_stack([columns[name] for name in order]), order, units, mass_name="m")


def test_the_ratio_is_the_true_one_at_masses_never_trained(term, true_log_ratio):
    events = toy()
    for a, b in ((200.0, 100.0), (90.0, 220.0), (150.0, 150.0)):
        found = term.log_ratio(events, m_X=a, m_Y=b)
        true = true_log_ratio(events.feature("m_u"), events.feature("m_v"), a, b)
        # Where signal is; a network that does not look at the masses is off by 0.7 to 1.1.
        assert np.average(np.abs(found - true), weights=np.exp(true)) < 0.5
        assert np.average(found - true, weights=np.exp(true)) == pytest.approx(0.0, abs=0.4)


def test_exchanging_the_masses_changes_nothing_and_there_is_no_kink(term):
    events = toy(50)
    a, b = (term.log_ratio(events, m_X=x, m_Y=y) for x, y in ((180.0, 70.0), (70.0, 180.0)))
    assert np.array_equal(a, b)
    # Through equal masses along m_X - m_Y: an even function without a kink starts with a square.
    middle, near, far = (term.log_ratio(events, m_X=150.0 + d, m_Y=150.0 - d) for d in (0.0, 4.0, 8.0))
    curved = np.abs(near - middle) > 0.01
    assert np.sum(curved) > 10
    assert np.median(((far - middle) / (near - middle))[curved]) == pytest.approx(4.0, abs=0.4)


@pytest.mark.parametrize("changes", [{}, {"relative_smoothing": 0.05, "peak": 0.1, "resolution": 0.1}])
def test_masses_that_cannot_be_exchanged_are_told_apart(paws_card, changes):
    x = np.column_stack([toy(20).matrix(("m_u", "b", "m_v")), np.tile([180.0, 70.0], (20, 1))])
    swapped = x[:, [0, 1, 2, 4, 3]]
    for symmetric in (True, False):
        network = build_paws_network(paws_card(symmetric=symmetric, **changes), SCALING, member=0)
        assert np.array_equal(evaluate(network, x), evaluate(network, swapped)) == symmetric


@pytest.mark.parametrize("changes", [{}, {"relative_smoothing": 0.05}])
def test_a_network_with_another_smoothing_is_that_of_another_card(paws_card, changes):
    card = paws_card(**changes)
    name = "relative_smoothing" if changes else "smoothing"
    network = build_paws_network(card, SCALING, member=0)
    x = np.column_stack([toy(20).matrix(("m_u", "b", "m_v")), np.tile([160.0, 150.0], (20, 1))])
    same, other = (with_smoothing(network, card, SCALING, s) for s in (getattr(card, name), 0.3 * getattr(card, name)))
    assert np.array_equal(evaluate(network, x), evaluate(same, x))
    assert np.abs(evaluate(network, x) - evaluate(other, x)).max() > 1e-3
    directly = build_paws_network(card.model_copy(update={name: 0.3 * getattr(card, name)}), SCALING, member=0)
    assert evaluate(directly, x) == pytest.approx(evaluate(other, x), abs=1e-6)


def test_the_smoothing_is_that_of_the_highest_likelihood(trained, term):
    study = term.metadata.checks["smoothing"]
    first, *others = study["tried"]
    assert (first["smoothing"], first["log_likelihood"]) == (study["trained"], 0.0)
    highest = max(study["tried"], key=lambda row: row["log_likelihood"])
    assert highest["smoothing"] == study["chosen"]
    assert [row["smoothing"] / study["trained"] for row in others[:3]] == pytest.approx([0.8, 0.6, 0.4])


def test_peaks_are_inputs_that_know_a_common_scale(paws_card):
    # Offsets of 0 would make the ratios the same; the toy has 1 GeV, nothing beside 100.
    card = paws_card(relative_smoothing=0.05, peak=0.1, resolution=0.1)
    network = build_paws_network(card, SCALING, member=0)
    compared = next(layer for layer in network.layers if type(layer).__name__ == "Dense").input
    # 3 features, 2 masses, 2 comparisons, 4 peaks.
    assert compared.shape[1] == 11
    x = np.array([[200.0, 0.0, 100.0, 200.0, 100.0], [220.0, 0.0, 100.0, 200.0, 100.0]])
    inside = keras().Model(network.input, compared).predict(x, verbose=0)
    shift = 0.5 * np.log(2.0)
    shift = np.sqrt(shift**2 + 0.05**2) - shift
    larger, smaller = 200.0 * np.exp(shift), 100.0 * np.exp(-shift)
    ratio = np.log((x[:, 0] + 1.0) / (larger + 1.0))
    assert inside[:, 5] == pytest.approx(ratio / 0.1, abs=1e-4)
    assert inside[:, 6] == pytest.approx(np.log1p((ratio / 0.1) ** 2), abs=1e-4)
    other = np.log((x[:, 0] + 1.0) / (smaller + 1.0))
    assert inside[:, 7] == pytest.approx(np.log1p((other / 0.1) ** 2), abs=1e-4)


def test_the_order_of_features_in_a_file_does_not_matter(term):
    a, b = (
        term.log_ratio(toy(order=order), m_X=200.0, m_Y=80.0) for order in (("m_u", "b", "m_v"), ("m_v", "m_u", "b"))
    )
    assert np.array_equal(a, b)
    with pytest.raises(EventsError, match=r"needs the feature 'm_v', which these events do not have"):
        term.log_ratio(_without(toy()), m_X=200.0, m_Y=80.0)


def _without(events):
    units = {name: events.units[name] for name in ("m", "m_u", "b")}
    return Events(events.mass, events.matrix(("m_u", "b")), ("m_u", "b"), units, mass_name="m")


def test_masses_outside_the_grid_are_refused(term):
    with pytest.raises(ParameterError, match=r"parameter 'm_X' = 260 is outside \[50, 250\] GeV"):
        term.log_ratio(toy(5), m_X=260.0, m_Y=80.0)
    with pytest.raises(ParameterError, match=r"depends on the parameter 'm_Y'; give it a value"):
        term.log_ratio(toy(5), m_X=200.0)


def test_what_was_exported_is_complete(exported, trained, term):
    model, metadata = load_model(exported.path), term.metadata
    assert model.sha256 == exported.model.sha256
    assert model.spec.signal.ratios == ("toy-masses",)
    assert model.spec.features == ("m_u", "b", "m_v")
    assert [(item.name, item.low, item.high) for item in metadata.parameters] == [("m_X", 50, 250), ("m_Y", 50, 250)]
    assert metadata.feature_names == ("m_u", "b", "m_v")
    assert metadata.parity.max_abs < 1e-4
    assert metadata.log_kappa.value == pytest.approx(0.0, abs=0.25)
    checks = metadata.checks
    assert len(checks["nodes"]) == 21
    assert len(checks["masses_never_trained"]) == 8
    assert checks["benchmarks"][0]["auc"] > 0.7
    found = checks["benchmarks"][0]["closure"]
    assert abs(found["fitted_over_true"] - 1.0) < 0.3 + 3.0 * found["sigma"]
    lines = metadata.training.settings["logit_lines"]
    assert len(lines) == 2
    assert all(0.6 < line["slope"] < 1.4 and line["loss_after"] <= line["loss_before"] for line in lines)
    for row in checks["held_out"]["calibration"]:
        assert abs(row["predicted"] - row["observed"]) < 0.1 + 4.0 * row["sigma"]
    assert {record.role for record in metadata.training.data} >= {"background train", "signal data", "signal benchmark"}
    assert trained.said[-1][0] == 1.0
    assert (trained.run.directory / "losses.png").is_file()
    text = (exported.path / "README.md").read_text(encoding="utf-8")
    assert "200, 100" in text
    assert "8 mass points that were never trained" in text


def test_calibrated_networks_are_in_the_graphs(exported, trained, term):
    events = toy(50)
    smoothing, found = (term.metadata.checks[name] for name in ("smoothing", "mass_scale"))
    masses = np.array([[200.0, 100.0]])
    if found["map"] is not None:
        mass_map = MassMap(found["map"]["low"], tuple(map(tuple, found["map"]["coefficients"])))
        masses = masses * np.exp(mass_map.shifts(masses))
    x = np.column_stack([events.matrix(("m_u", "b", "m_v")), np.tile(masses, (50, 1))])
    for index, values in enumerate(term.member_values(events, m_X=200.0, m_Y=100.0)):
        line = trained.run.line(index)
        network = trained.run.member(index).load("best")
        if smoothing["chosen"] != smoothing["trained"]:
            network = with_smoothing(network, trained.run.card, trained.run.scaling, smoothing["chosen"])
        raw = evaluate(network, x)
        assert values == pytest.approx(line.slope * raw + line.shift, abs=1e-4)


def test_reference_events_stand_for_background(exported, trained, term):
    reference = load_reference(exported.model)
    mass = trained.run.held_out().background[:, 0]
    n = np.sum((mass >= 92.0) & (mass < 108.0))
    w, v = reference.weights, reference.feature("m_v")
    assert np.all((w > 0) & (w <= 1))
    assert w.sum() == pytest.approx(n, rel=0.15)
    assert len(reference) > n
    # abs(N(150, 80)), with about n events of weight 1 and an error of the ratio.
    mean = np.mean(np.abs(np.random.default_rng(4).normal(150.0, 80.0, size=100_000)))
    assert np.average(v, weights=w) == pytest.approx(mean, abs=4 * 80 / np.sqrt(n))
    r = np.exp(term.log_ratio(reference, m_X=200.0, m_Y=100.0))
    assert np.average(r, weights=w) == pytest.approx(1.0, abs=0.25)


def test_a_killed_run_goes_on_with_the_same_result(trained, paws_card, paws_events, tmp_path):
    told = []

    def kill(fraction, text):
        told.append(text)
        if len(told) == 11:  # in the second member
            raise Killed

    with pytest.raises(Killed):
        train_paws(paws_card(), tmp_path, events=paws_events, progress=kill)
    with pytest.raises(OutputError, match=r"is not finished \(member \d\); run the training again, it goes on"):
        run_export(tmp_path, tmp_path / "model")
    resumed = train_paws(paws_card(), tmp_path, events=paws_events)
    for index in range(2):
        assert resumed.member(index).history() == trained.run.member(index).history()
        pairs = zip(*(run.member(index).load("best").get_weights() for run in (resumed, trained.run)), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)


def test_a_folder_belongs_to_one_card_and_one_kind(trained, paws_card, paws_events):
    with pytest.raises(OutputError, match=r"holds a run of another card"):
        train_paws(paws_card(copies=3), trained.run.directory, events=paws_events)
    with pytest.raises(OutputError, match=r"is not the folder of a training run"):
        load_paws_run(trained.run.directory / "member_0")
