"""Training, checkpoints and export on the toy. Keras runs in every test of this file."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from gbistat.data.read import read_events
from gbistat.errors import OutputError, TermError
from gbistat.terms.metadata import LogKappa
from gbistat.terms.network import NetworkTerm
from gbistat.terms.store import load_model, load_reference, member_records
from gbistat.training.export import export_ratio
from gbistat.training.grading import as_events
from gbistat.training.graph import check_parity, to_onnx
from gbistat.training.network import Scaling, build_network, evaluate
from gbistat.training.ratio import train_ratio
from gbistat.training.run import Epoch, MemberFolder, load_run

pytestmark = [
    pytest.mark.train,
    # Keras 3 calls numpy with copy=False on TensorFlow's tensors.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]


class Killed(BaseException):
    """What a kill looks like from inside: nothing catches it."""


@pytest.fixture(scope="module")
def trained(toy_card, toy_events, tmp_path_factory):
    said = []
    run = train_ratio(
        toy_card(),
        tmp_path_factory.mktemp("run"),
        events=toy_events,
        progress=lambda fraction, text: said.append((fraction, text)),
    )
    return SimpleNamespace(run=run, said=said)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    output = tmp_path_factory.mktemp("models") / "toy"
    return SimpleNamespace(model=export_ratio(trained.run.directory, output), path=output)


def test_training_lowers_the_loss_towards_the_best_possible(trained, toy_shift):
    histories = [trained.run.member(index).history() for index in range(2)]
    for history in histories:
        assert history[-1].loss < history[0].loss
    # Cross-entropy of the true ratio with equal classes.
    x = np.random.default_rng(1).normal(size=200_000)
    wrong = np.logaddexp(0.0, toy_shift * x - 0.5 * toy_shift**2)
    best = min(epoch.validation_loss for history in histories for epoch in history)
    assert best == pytest.approx(np.mean(wrong), abs=0.05)
    assert histories[0] != histories[1]


def test_progress_ends_at_one_and_never_falls(trained):
    fractions = [fraction for fraction, _ in trained.said]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert trained.said[0][1].startswith("member 1 of 2, epoch 1 of at most 5: loss 0.")


def test_the_graph_is_the_network(trained, exported):
    parity = exported.model.terms["toy-ratio"].metadata.parity
    assert parity.max_abs < 1e-5
    x = np.random.default_rng(2).uniform([90.0, -3.0, -3.0], [130.0, 4.0, 3.0], size=(500, 3))
    graphs = exported.model.terms["toy-ratio"].member_values(as_events(x, trained.run.card))
    for index, values in enumerate(graphs):
        network = trained.run.member(index).load("best")
        assert values == pytest.approx(evaluate(network, x), abs=1e-5)


def test_the_ratio_is_the_true_one(exported, toy_events, toy_card, toy_shift):
    term = exported.model.terms["toy-ratio"]
    rng = np.random.default_rng(3)
    x = np.column_stack([rng.uniform(92.0, 128.0, size=2000), rng.uniform(-1.5, 2.5, size=2000), rng.normal(size=2000)])
    found = term.log_ratio(as_events(x, toy_card()))
    true = toy_shift * x[:, 1] - 0.5 * toy_shift**2
    assert np.corrcoef(found, true)[0, 1] > 0.97
    assert np.mean(np.abs(found - true)) < 0.4


def test_what_was_exported_is_complete(exported, trained):
    model = load_model(exported.path)
    assert model.sha256 == exported.model.sha256
    spec, term = model.spec, model.terms["toy-ratio"].metadata
    assert spec.window == (94.0, 106.0)
    assert spec.signal.mass.parameters["mean"].times_center == pytest.approx(1.0, abs=0.01)
    assert spec.provenance["splits"] == trained.run.splits
    assert term.combine == "mean_ratio"
    assert [feature.role for feature in term.features] == ["conditional", "feature", "feature"]
    assert term.training.seed == 11
    assert term.training.library_versions["keras"]
    roles = {record.role for record in term.training.data}
    assert roles == {f"{what} {part}" for what in ("background", "signal") for part in ("train", "reference", "data")}
    assert term.log_kappa.sigma >= term.checks["log_kappa"]["bridge"]["sigma"] * 0.999
    assert len(term.checks["windows"]) == 2
    assert 0.8 < term.checks["windows"][0]["auc"] < 0.9  # Phi(1.5 / sqrt 2) = 0.856
    for row in term.checks["windows"]:
        # With the mass shapes: their peak is where the signal is.
        assert abs(row["closure"]["fitted_over_true"] - 1.0) < 4.0 * row["closure"]["sigma"]
        assert abs(row["mean_ratio_with_mass"]["mean"] - 1.0) < 0.5
    for file in ("README.md", "card.yaml", "reference.json"):
        assert (exported.path / file).is_file()
    text = (exported.path / "README.md").read_text(encoding="utf-8")
    assert f"ln kappa = {term.log_kappa.value:.4f}" in text
    assert "{" not in text.replace("{x", "")


def test_reference_events_trained_nothing_and_stand_for_background(exported, toy_events, toy_card, trained):
    card = toy_card()
    reference = load_reference(exported.model)
    held_out = trained.run.held_out()
    kept = np.sort(np.concatenate([held_out.background, *held_out.signals])[:, 1])
    right = np.searchsorted(kept, reference.feature("a")).clip(1, kept.size - 1)
    found = reference.feature("a")
    # Five digits are kept, so an event lies within 5e-5 of itself.
    assert np.max(np.minimum(np.abs(kept[right] - found), np.abs(kept[right - 1] - found))) < 6e-5
    assert np.all((reference.weights > 0) & (reference.weights <= 1))
    # The feature ``a`` of background is a standard normal; the sample alone has 600 events.
    a, w = reference.feature("a"), reference.weights
    n = np.sum(held_out.background[:, 0] < card.model.valid[1])
    assert np.average(a, weights=w) == pytest.approx(0.0, abs=4 / np.sqrt(n))
    assert np.average(a**2, weights=w) == pytest.approx(1.0, abs=6 / np.sqrt(n))
    # E_b[r] = 1 on them, without the fluctuation of a tail: the model's own ratio is fulfilled.
    r = np.exp(exported.model.terms["toy-ratio"].log_ratio(reference))
    assert np.average(r, weights=w) == pytest.approx(1.0, abs=0.1)
    raw = read_events(toy_events / "background.h5", features=["a", "b"], mass="m")
    inside = (raw.mass >= card.model.valid[0]) & (raw.mass < card.model.valid[1])
    assert w.sum() == pytest.approx(0.3 * inside.sum(), rel=0.1)


@pytest.mark.parametrize("after", [2, 7])
def test_a_killed_run_goes_on_with_the_same_result(after, trained, toy_card, toy_events, tmp_path):
    told = []

    def kill(fraction, text):
        told.append(text)
        if len(told) == after:
            raise Killed

    with pytest.raises(Killed):
        train_ratio(toy_card(), tmp_path, events=toy_events, progress=kill)
    # What a kill in the middle of writing leaves behind.
    (tmp_path / "member_0" / "partial.keras").write_bytes(b"cut off")
    (tmp_path / "member_0" / "epoch_0004.keras").write_bytes(b"not named by the history") if after < 5 else None
    unfinished = load_run(tmp_path)
    with pytest.raises(OutputError, match=r"is not finished \(member \d\); run the training again, it goes on"):
        export_ratio(tmp_path, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    resumed = train_ratio(toy_card(), tmp_path, events=toy_events)
    assert unfinished.card == resumed.card
    for index in range(2):
        assert resumed.member(index).history() == trained.run.member(index).history()
        pairs = zip(*(run.member(index).load("best").get_weights() for run in (resumed, trained.run)), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)


def test_the_best_epoch_is_kept_beside_the_last(toy_card, tmp_path):
    network = build_network(toy_card(), Scaling((4.6, 0.0, 0.0), (0.1, 1.0, 1.0)), member=0)
    network.optimizer.build(network.trainable_variables)
    folder, history, kept = MemberFolder(tmp_path / "member_0"), [], []
    for number, loss in enumerate([0.5, 0.4, 0.6, 0.7]):
        weights = [np.full_like(array, number) for array in network.get_weights()]
        network.set_weights(weights)
        history.append(Epoch(loss, loss, 0.1))
        folder.save(network, history, best=min(number, 1))
        kept.append(sorted(file.name for file in folder.path.iterdir()))
    assert folder.history() == history
    assert folder.load("best").get_weights()[0][0, 0] == 1.0
    assert folder.load("last").get_weights()[0][0, 0] == 3.0
    assert kept[-1] == ["epoch_0001.keras", "epoch_0003.keras", "history.json"]
    (folder.path / "epoch_0003.keras").write_bytes(b"damaged")
    with pytest.raises(OutputError, match=r"epoch_0003.keras cannot be loaded .*; remove .*member_0 to train"):
        folder.load("last")
    with pytest.raises(OutputError, match=r"holds no trained network"):
        MemberFolder(tmp_path / "member_1").load("last")


def test_a_finished_run_is_not_trained_again(trained, toy_events):
    before = trained.run.member(0).history()
    again = train_ratio(trained.run.card, trained.run.directory, events=toy_events, progress=pytest.fail)
    assert again.member(0).history() == before


def test_a_folder_belongs_to_one_card_and_one_set_of_events(trained, toy_card, toy_events, tmp_path):
    with pytest.raises(OutputError, match=r"holds a run of another card"):
        train_ratio(toy_card(optimiser={"epochs": 6}), trained.run.directory, events=toy_events)
    for file in toy_events.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "background.h5").write_bytes((toy_events / "background.h5").read_bytes() + b"\0")
    with pytest.raises(OutputError, match=r"holds a run with other events"):
        train_ratio(trained.run.card, trained.run.directory, events=tmp_path)


def test_a_damaged_run_is_refused(tmp_path):
    with pytest.raises(OutputError, match=r"is not the folder of a training run"):
        export_ratio(tmp_path, tmp_path / "model")
    (tmp_path / "run.json").write_text(json.dumps({"schema": "gbistat.run/9"}))
    with pytest.raises(OutputError, match=r"has schema 'gbistat.run/9'; this gbistat reads 'gbistat.run/1'"):
        export_ratio(tmp_path, tmp_path / "model")
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(OutputError, match=r"run.json cannot be read"):
        export_ratio(tmp_path, tmp_path / "model")


def test_an_existing_model_is_replaced_only_when_asked(exported, trained):
    with pytest.raises(OutputError, match=r"already exists"):
        export_ratio(trained.run.directory, exported.path)


def test_a_graph_that_is_not_the_network_is_refused(trained, exported):
    card, term = trained.run.card, exported.model.terms["toy-ratio"]
    networks = [trained.run.member(index).load("best") for index in range(2)]
    last = networks[1].layers[-1]
    kernel, bias = last.get_weights()
    last.set_weights([kernel, bias + 2e-4])
    x = np.random.default_rng(4).uniform([90.0, -2.0, -2.0], [130.0, 2.0, 2.0], size=(50, 3))
    with pytest.raises(TermError, match=r"member 1 differs by 0.0002\d* between Keras and ONNX on 50 events"):
        check_parity(networks, term, as_events(x, card), against="a test")


def test_networks_differ_by_member_and_repeat_by_seed(toy_card):
    card, scaling = toy_card(), Scaling((4.6, 0.0, 0.0), (0.1, 1.0, 1.0))
    weights = [build_network(card, scaling, member=member).get_weights()[0] for member in (0, 0, 1)]
    assert np.array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_every_activation_exports(toy_card, exported, activation):
    card = toy_card(network={"hidden": [5], "activation": activation})
    network = build_network(card, Scaling((4.6, 0.0, 0.0), (0.1, 1.0, 1.0)), member=0)
    graphs = {"member_0.onnx": to_onnx(network)}
    metadata = exported.model.terms["toy-ratio"].metadata.model_copy(
        update={
            "members": member_records(graphs),
            "combine": "none",
            "log_kappa": LogKappa(value=0.0, sigma=0.0, method="none"),
        }
    )
    term = NetworkTerm(metadata, tuple(graphs.values()))
    x = np.random.default_rng(5).uniform([90.0, -2.0, -2.0], [130.0, 2.0, 2.0], size=(50, 3))
    assert check_parity([network], term, as_events(x, card), against="a test").max_abs < 1e-5
