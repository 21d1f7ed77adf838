"""Training, checkpoints and export of a generator on a toy. Keras runs in every test of this file."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from gbistat.cli import main
from gbistat.errors import FitFailed, OutputError, TermError
from gbistat.terms.generator import GeneratorTerm
from gbistat.terms.store import load_model
from gbistat.training import background_export
from gbistat.training.background import build_member, final_weights, train_background
from gbistat.training.background_export import check_density_parity, export_background
from gbistat.training.background_run import load_background_run
from gbistat.training.card import dump_card
from gbistat.training.flow import log_density, sample_flow
from gbistat.training.run import load_run, run_kind

pytestmark = [
    pytest.mark.train,
    # Keras 3 calls numpy with copy=False on TensorFlow's tensors.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]


class Killed(BaseException):
    """What a kill looks like from inside: nothing catches it."""


@pytest.fixture(scope="module")
def trained(background_card, background_events, tmp_path_factory):
    said = []
    run = train_background(
        background_card(),
        tmp_path_factory.mktemp("run"),
        events=background_events,
        progress=lambda fraction, text: said.append((fraction, text)),
    )
    return SimpleNamespace(run=run, said=said)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    output = tmp_path_factory.mktemp("models") / "toy"
    return SimpleNamespace(model=export_background(trained.run.directory, output), path=output)


@pytest.fixture(scope="module")
def generator(exported):
    return GeneratorTerm(exported.model.terms["toy-density"])


def test_training_lowers_the_loss_and_averages_the_best_epochs(trained):
    for index in range(2):
        folder = trained.run.member(index)
        history, final = folder.history(), folder.final()
        assert history[-1].loss < history[0].loss
        losses = [epoch.validation_loss for epoch in history]
        assert final.validation_loss <= min(losses)
        assert final.epochs in (tuple(sorted(np.argsort(losses)[:2].tolist())), (int(np.argmin(losses)),))
        weights = final_weights(folder, final.epochs)
        kept = [folder.weights(epoch) for epoch in final.epochs]
        assert weights[0] == pytest.approx(np.mean([arrays[0] for arrays in kept], axis=0), abs=1e-6)
    assert trained.run.member(0).history() != trained.run.member(1).history()


def test_progress_ends_at_one_and_never_falls(trained):
    fractions = [fraction for fraction, _ in trained.said]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert trained.said[0][1].startswith("member 1 of 2, epoch 1 of at most 4: loss ")


def test_a_killed_run_goes_on_with_the_same_result(trained, background_card, background_events, tmp_path):
    told = []

    def kill(fraction, text):
        told.append(text)
        if len(told) == 2:
            raise Killed

    with pytest.raises(Killed):
        train_background(background_card(), tmp_path, events=background_events, progress=kill)
    # What a kill in the middle of writing leaves behind.
    (tmp_path / "member_0" / "partial.npz").write_bytes(b"cut off")
    (tmp_path / "member_0" / "last_0002.npz").write_bytes(b"not named by the history")
    assert len(load_background_run(tmp_path).member(0).history()) == 2
    with pytest.raises(OutputError, match=r"is not finished \(member 0\); run the training again, it goes on"):
        export_background(tmp_path, tmp_path / "model")
    resumed = train_background(background_card(), tmp_path, events=background_events)
    for index in range(2):
        here, there = resumed.member(index), trained.run.member(index)
        assert here.history() == there.history()
        assert here.final() == there.final()
        pairs = zip(*(final_weights(folder, folder.final().epochs) for folder in (here, there)), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)


def test_a_finished_run_is_not_trained_again(trained, background_card, background_events, tmp_path):
    train_background(trained.run.card, trained.run.directory, events=background_events, progress=pytest.fail)
    with pytest.raises(OutputError, match=r"holds a run of another card"):
        train_background(background_card(seed=8), trained.run.directory, events=background_events)
    (tmp_path / "sidebands.h5").write_bytes((background_events / "sidebands.h5").read_bytes() + b"\0")
    with pytest.raises(OutputError, match=r"holds a run with other events"):
        train_background(trained.run.card, trained.run.directory, events=tmp_path)


def test_a_run_knows_its_kind(trained, tmp_path):
    assert run_kind(trained.run.directory) == "background"
    with pytest.raises(OutputError, match=r"is damaged|is the card of a background"):
        load_run(trained.run.directory)
    with pytest.raises(OutputError, match=r"is not the folder of a training run"):
        load_background_run(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"schema": "gbistat.run/1", "kind": "ratio"}))
    with pytest.raises(OutputError, match=r"kind 'ratio'; this needs 'gbistat.run/1' and 'background'"):
        load_background_run(tmp_path)


def test_an_exploding_loss_stops_with_a_way_out(background_card, background_events, tmp_path):
    card = background_card(optimiser={"learning_rate": 1e12, "clip_norm": 1e30}, flow={"transform": "affine"})
    with pytest.raises(FitFailed, match=r"member 0: the loss is nan .* lower optimiser.learning_rate \(1e\+12\)"):
        train_background(card, tmp_path, events=background_events)


def test_the_graphs_are_the_networks(trained, exported, generator):
    parity = exported.model.terms["toy-density"].metadata.parity
    assert parity.n_events == 10_000
    assert parity.max_abs <= 1e-4
    assert parity.mean_abs <= 5e-6
    x = trained.run.held_out()[:400]
    latent = np.random.default_rng(1).normal(size=(400, 2))
    members = generator.member_log_prob(x[:, 1:], x[:, 0])
    for index in range(2):
        flow, folder = build_member(trained.run, index), trained.run.member(index)
        flow.set_weights(final_weights(folder, folder.final().epochs))
        assert members[index] == pytest.approx(log_density(flow, x), abs=1e-4)
        features = generator.transform(latent, x[:, 0], index)
        assert features == pytest.approx(sample_flow(flow, np.column_stack([x[:, 0], latent])), abs=1e-4)
    mean = np.log(np.mean(np.exp(members), axis=0))
    assert generator.log_prob(x[:, 1:], x[:, 0]) == pytest.approx(mean, abs=1e-10)


@pytest.mark.parametrize("mass", [85.0, 107.0, 135.0])
def test_the_density_is_normalised_and_the_sample_follows_it(generator, mass):
    rng = np.random.default_rng(2)
    low, high = np.array([item.bounds for item in generator.metadata.features[1:]]).T
    # Uniform points in the box: variance of the mean from the points themselves.
    u = rng.uniform(low, high, size=(60_000, 2))
    values = np.exp(generator.log_prob(u, np.full(len(u), mass))) * np.prod(high - low)
    assert np.mean(values) == pytest.approx(1.0, abs=4 * np.std(values) / np.sqrt(len(u)))
    sample = generator.sample(np.full(20_000, mass), rng=rng)
    for column in range(2):
        mean = np.mean(values * u[:, column])
        error = np.hypot(
            np.std(values * u[:, column]) / np.sqrt(len(u)), np.std(sample[:, column]) / np.sqrt(len(sample))
        )
        assert np.mean(sample[:, column]) == pytest.approx(mean, abs=4 * error)  # one false alarm in 8000


def test_what_was_exported_is_complete(exported, trained):
    model = load_model(exported.path)
    assert model.sha256 == exported.model.sha256
    spec, term = model.spec, model.terms["toy-density"].metadata
    assert not spec.has_signal
    assert (spec.window, spec.background.features) == ((100.0, 115.0), "toy-density")
    assert (term.kind, term.combine, len(term.samplers)) == ("density", "mean_density", 2)
    assert [feature.role for feature in term.features] == ["conditional", "feature", "feature"]
    assert term.training.settings["window_left_out"] == [100.0, 115.0]
    assert spec.provenance["splits"] == [trained.run.split]
    held_out = term.checks["held_out"]
    assert held_out["n_events"] == len(trained.run.held_out())
    assert held_out["log_prob"] >= np.mean(held_out["log_prob_of_members"])  # Jensen
    mass = trained.run.held_out()[:, 0]
    assert not np.any((mass >= 100) & (mass < 115))
    text = (exported.path / "README.md").read_text(encoding="utf-8")
    assert f"{term.parity.max_abs:.1e}" in text
    assert (exported.path / "card.yaml").read_bytes() == dump_card(trained.run.card)
    with pytest.raises(OutputError, match=r"already exists"):
        export_background(trained.run.directory, exported.path)


def test_a_graph_that_is_not_the_network_is_refused(trained, exported, monkeypatch):
    flows = [build_member(trained.run, index) for index in range(2)]
    term, x = exported.model.terms["toy-density"], trained.run.held_out()[:100]
    with pytest.raises(TermError, match=r"ln p differs between Keras and ONNX by up to .* on 100 events"):
        check_density_parity(flows, term, x)
    for flow, folder in zip(flows, map(trained.run.member, range(2)), strict=True):
        flow.set_weights(final_weights(folder, folder.final().epochs))
    assert check_density_parity(flows, term, x).max_abs <= 1e-4
    monkeypatch.setattr(background_export, "LARGEST_MEAN_DIFFERENCE", 0.0)
    with pytest.raises(TermError, match=r"0.0001 and 0 are allowed; nothing was written"):
        check_density_parity(flows, term, x)


def test_commands_train_and_export(trained, background_events, tmp_path, capsys):
    card, run, model = tmp_path / "card.yaml", trained.run.directory, tmp_path / "model"
    card.write_bytes(dump_card(trained.run.card))
    for arguments in (
        ["train", "background", card, "--output", run, "--events", background_events],
        ["export", run, "--output", model],
        ["model", "show", model],
    ):
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert stop.value.code == 0, said.err
        if arguments[0] == "train":
            assert "warning: the sideband above the window, 115-140 GeV, has" in said.err
    assert (run / "losses.png").stat().st_size > 10_000
    assert "none: a background alone" in said.out
    assert "can be drawn from" in said.out
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "fit",
                "--model",
                str(model),
                "--events",
                str(background_events / "sidebands.h5"),
                "--window",
                "100",
                "115",
            ]
        )
    assert stop.value.code == 1
    assert (
        "is a background without a signal; use it beside a model: --background toy-background"
        in capsys.readouterr().err
    )
