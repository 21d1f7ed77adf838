"""A signal learned from data: the analytic case, what a fold's networks may not know, resuming, errors, export."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from gbistat.cli import main
from gbistat.data.events import Events
from gbistat.data.transforms import FeatureTransform
from gbistat.errors import CardError, EventsError, ModelError, OutputError
from gbistat.terms.folds import FoldRule
from gbistat.terms.generator import GeneratorTerm
from gbistat.terms.learned_signal import LearnedSignalTerm
from gbistat.terms.network import log_mean
from gbistat.terms.store import load_model
from gbistat.training.ranode import _Stack, fit_fraction, train_ranode
from gbistat.training.ranode_card import RanodeCard, load_ranode_card
from gbistat.training.ranode_data import RanodeData, fold_rules, transform_data
from gbistat.training.ranode_export import choose_networks, export_ranode, final_log_prob
from gbistat.training.ranode_run import StackEpoch, load_ranode_run
from gbistat.training.splits import file_sha256
from gbistat.training_workflow import prepare_ranode

pytestmark = pytest.mark.train

LOW, HIGH, RATE = 3300.0, 3700.0, 1.0 / 300.0
NAMES = ("m_jj", "x")
FRACTION = 0.05


def log_background(mass, x):
    """Exponential in the mass, 2 (1 - x) in the feature: exact."""
    width = HIGH - LOW
    return np.log(RATE) - RATE * (mass - LOW) - np.log(-np.expm1(-RATE * width)) + np.log(2.0 * (1.0 - x))


def log_signal(mass, x):
    return norm.logpdf(mass, 3500.0, 25.0) + norm.logpdf(x, 0.7, 0.05)


def draw(n: int, fraction: float, seed: int) -> Events:
    rng = np.random.default_rng(seed)
    n_signal = round(fraction * n)
    u = rng.uniform(size=n - n_signal)
    mass = LOW - np.log1p(u * np.expm1(-RATE * (HIGH - LOW))) / RATE
    x = 1.0 - np.sqrt(rng.uniform(size=n - n_signal))
    mass = np.r_[mass, rng.normal(3500.0, 25.0, n_signal)]
    return Events(mass, np.r_[x, rng.normal(0.7, 0.05, n_signal)][:, None], ["x"])


TRANSFORM = FeatureTransform.fit(draw(2000, 0.0, 99).matrix(NAMES), NAMES, bounds=[(LOW, HIGH), (0.0, 1.0)])


def prepared(events: Events) -> RanodeData:
    record = {
        "file": "toy.npz",
        "sha256": "1" * 64,
        "n_events": len(events),
        "n_window": len(events),
        "generator": {"name": "exact", "sha256": "2" * 64, "term": "none"},
        "sidebands": {},
        "warnings": [],
    }
    return RanodeData(events, log_background(events.mass, events.feature("x")), TRANSFORM, record)


def make_card(**changes) -> RanodeCard:
    data = {
        "kind": "ranode",
        "name": "toy",
        "data": {"file": "toy.npz"},
        "seed": 5,
        "folds": {"n_folds": 2, "members": 2},
        "fraction": {"mode": "learnable", "start": 0.02},
        "flow": {"layers": 2, "hidden": [16], "bins": 5, "bound": 6.0},
        "optimiser": {"epochs": 10, "steps": 20, "batch_size": 256, "learning_rate": 1e-2},
        **changes,
    }
    return RanodeCard.model_validate(data)


@pytest.fixture(scope="module")
def events() -> Events:
    return draw(5000, FRACTION, 1)


@pytest.fixture(scope="module")
def run(events, tmp_path_factory):
    return train_ranode(make_card(), tmp_path_factory.mktemp("ranode") / "run", prepared(events))


def weights_of(run):
    return run.stack(0).final_weights()


def test_the_fitted_density_approaches_the_truth(run):
    chosen = choose_networks(run)
    fresh = draw(20_000, FRACTION, 2)
    x = fresh.matrix(NAMES)
    log_b = log_background(x[:, 0], x[:, 1])
    learned = log_mean(final_log_prob(run, chosen.weights, x))
    truth = np.log1p(FRACTION * np.expm1(log_signal(x[:, 0], x[:, 1]) - log_b)).sum()
    w = np.mean([entry["fraction_fitted"] for entry in chosen.fold_record])
    gain = np.log1p(w * np.expm1(learned - log_b)).sum()
    # 250 signal events, of which a network sees 94; six other seeds give shares of 0.91 to 0.99 and w of 0.038 to 0.060.
    assert 0.85 * truth < gain < truth
    assert 0.035 < w < 0.065


def test_the_density_is_normalised(run):
    chosen = choose_networks(run)
    mass = np.linspace(LOW, HIGH, 401)
    x = np.linspace(0.0, 1.0, 401)
    mass, x = 0.5 * (mass[1:] + mass[:-1]), 0.5 * (x[1:] + x[:-1])
    grid = np.stack(np.meshgrid(mass, x, indexing="ij"), axis=-1).reshape(-1, 2)
    density = np.exp(final_log_prob(run, chosen.weights, grid))
    # The rest of a percent is the grid's.
    np.testing.assert_allclose(density.sum(axis=1) * (HIGH - LOW) / 400 / 400, 1.0, atol=0.01)


def test_every_epoch_counts_the_same_events(run, events):
    history = run.stack(0).history()
    assert len(history) == 10
    assert sum(run.counts["folds"]) == run.counts["used"] == len(events) - run.counts["left_out"]
    assert all(len(epoch.fractions) == 4 for epoch in history)
    assert history[-1].fractions != history[0].fractions


def test_the_test_fold_is_never_used(run, events, tmp_path):
    # Every event of fold 0 gets other values, of the same fold; nothing else changes.
    card = make_card()
    outer, _ = fold_rules(card, NAMES)
    folds = outer.fold_of(events)
    others = draw(20_000, 0.5, 3)
    others = others.select(np.flatnonzero(outer.fold_of(others) == 0)[: int(np.sum(folds == 0))])
    mass, x = np.array(events.mass), np.array(events.feature("x"))
    mass[folds == 0], x[folds == 0] = others.mass, others.feature("x")
    changed = train_ranode(card, tmp_path / "run", prepared(Events(mass, x[:, None], ["x"])))
    for before, after in zip(weights_of(run), weights_of(changed), strict=True):
        assert np.array_equal(before[:2], after[:2])
    assert any(not np.array_equal(a[2:], b[2:]) for a, b in zip(weights_of(run), weights_of(changed), strict=True))
    fitted = [choose_networks(r).fold_record for r in (run, changed)]
    assert fitted[0][0]["fraction_fitted"] == fitted[1][0]["fraction_fitted"]
    assert fitted[0][1]["fraction_fitted"] != fitted[1][1]["fraction_fitted"]


class Killed(Exception):
    pass


def test_a_killed_run_in_another_order_ends_the_same(run, events, tmp_path):
    count = []

    def kill(fraction, text):
        count.append(text)
        if len(count) == 3:
            raise Killed

    order = np.random.default_rng(4).permutation(len(events))
    with pytest.raises(Killed):
        train_ranode(make_card(), tmp_path / "run", prepared(events), progress=kill)
    again = train_ranode(make_card(), tmp_path / "run", prepared(events.select(order)))
    for one, other in zip(weights_of(run), weights_of(again), strict=True):
        assert np.array_equal(one, other)
    assert run.stack(0).history() == again.stack(0).history()


def test_batches_prefer_signal_and_undo_it(run, events):
    ready = transform_data(prepared(events), make_card())
    stack = _Stack(run, ready, 0, 0.02, None)
    log_ratio = np.where(stack.outside.train[0], np.log(np.arange(1.0, stack.outside.z.shape[2] + 1.0)) - 6.0, 0.0)
    places, counts = stack._draw(0, 0.02, log_ratio, 0)
    assert stack.outside.train[0][places].all()
    # Mean over the drawn events of anything, weighted, estimates its mean over all; here of the place itself.
    size, rows = 256, np.flatnonzero(stack.outside.train[0])
    estimate = np.sum(counts * size * places) / len(places)
    spread = np.std(counts * size * places) / np.sqrt(len(places))
    assert abs(estimate - rows.mean()) < 4 * spread
    assert np.mean(places) > 1.1 * rows.mean()


def test_which_epochs_are_averaged(run, events):
    losses = [[5.0, 1.0], [3.0, 2.0], [4.0, 3.0], [2.0, 4.0], [2.5, 0.0]]  # of two folds; a fold has two members
    history = [StackEpoch((0.0,) * 4, (a / 2, a / 2, b / 2, b / 2), (0.1,) * 4) for a, b in losses]

    def stack(**options):
        optimiser = {"epochs": 9, "average": 2, "patience": 2, **options}
        return _Stack(replace(run, card=make_card(optimiser=optimiser)), None, 0, 0.1, None)

    # Fold 1 is best at once, and two epochs later it is left as it is: its last epoch comes too late.
    assert stack(keep="best")._stops(history) == [5, 3]
    assert stack(keep="best")._chosen(history) == [[3, 4], [0, 1]]
    assert stack(keep="last")._chosen(history) == [[3, 4], [1, 2]]
    assert not stack()._done(history)
    assert stack()._done([*history, *history[-1:] * 2])
    assert stack(epochs=5)._done(history)


def test_fraction_of_known_densities():
    sample = draw(50_000, 0.03, 7)
    x = sample.feature("x")
    ratio = log_signal(sample.mass, x) - log_background(sample.mass, x)
    # Error 0.0009; four of them.
    assert abs(fit_fraction(ratio) - 0.03) < 0.0036
    assert fit_fraction(np.full(100, -3.0)) < 2e-6


def test_a_run_of_other_events_is_refused(run, events):
    data = prepared(events)
    other = replace(data, record={**data.record, "sha256": "3" * 64})
    with pytest.raises(OutputError, match="other events than those given now"):
        train_ranode(make_card(), run.directory, other)
    generator = replace(data, record={**data.record, "generator": {"name": "other", "sha256": "4" * 64, "term": "t"}})
    with pytest.raises(OutputError, match="other events than those given now"):
        train_ranode(make_card(), run.directory, generator)
    with pytest.raises(OutputError, match="another card"):
        train_ranode(make_card(seed=6), run.directory, data)


def test_too_few_events(tmp_path):
    with pytest.raises(EventsError, match="fewer than a batch of 256"):
        train_ranode(make_card(), tmp_path / "run", prepared(draw(500, 0.0, 1)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fraction": {"mode": "fixed", "start": 0.0}}, "fraction.start is 0.*greater than 0"),
        ({"fraction": {"mode": "fixed", "start": 1.0}}, "fraction.start is 1.*less than 1"),
        ({"fraction": {"mode": "scan", "values": [0.01]}}, "a scan needs two values of w"),
        ({"fraction": {"mode": "fixed", "values": [0.01, 0.02]}}, "values belong to a scan"),
        ({"folds": {"n_folds": 1}}, "folds.n_folds is 1"),
        ({"flow": {"transform": "affine"}}, "made of splines"),
        ({"labels": "label"}, "unknown key 'labels'"),
    ],
)
def test_mistakes_in_a_card(tmp_path, changes, message):
    data = {"kind": "ranode", "name": "toy", "data": {"file": "toy.npz"}, "seed": 1, **changes}
    (tmp_path / "card.yaml").write_text(json.dumps(data))
    with pytest.raises(CardError, match=message):
        load_ranode_card(tmp_path / "card.yaml")


def test_a_card_of_another_kind(tmp_path):
    (tmp_path / "card.yaml").write_text("kind: background\n")
    with pytest.raises(CardError, match="gbistat train background"):
        load_ranode_card(tmp_path / "card.yaml")


FEATURES = ("m_light", "dm", "tau21_light", "tau21_heavy")


@pytest.fixture(scope="module")
def dijets(tmp_path_factory):
    """Background of the shipped generator in the window, anything outside, and 150 signal events."""
    rng = np.random.default_rng(8)
    generator = GeneratorTerm(load_model("dijet-background").terms["features-given-mass"])
    mass = 2800.0 + rng.exponential(450.0, 9000)
    mass = mass[mass < 7000.0]
    window = (mass >= LOW) & (mass < HIGH)
    features = np.full((len(mass), 4), 0.5) + rng.uniform(0, 0.1, (len(mass), 4))
    features[window] = generator.sample(mass[window], rng=rng)
    signal = np.column_stack([
        rng.normal(3500, 40, 150), rng.normal(100, 8, 150), rng.normal(400, 15, 150),
        rng.beta(20, 50, 150), rng.beta(20, 50, 150),
    ])  # fmt: skip
    table = np.vstack([np.column_stack([mass, features]), signal])
    folder = tmp_path_factory.mktemp("dijets")
    np.savez(folder / "data.npz", **dict(zip(("m_jj", *FEATURES), table.T, strict=True)))
    card = {
        "kind": "ranode", "name": "toy-ranode", "data": {"file": "data.npz"}, "seed": 3, "events": str(folder),
        "folds": {"n_folds": 2, "members": 1},
        "fraction": {"mode": "scan", "values": [0.02, 0.05]},
        "flow": {"layers": 1, "hidden": [16], "bins": 5, "bound": 6.0},
        "optimiser": {"epochs": 4, "steps": 10, "batch_size": 128, "learning_rate": 1e-2, "average": 1},
    }  # fmt: skip
    (folder / "card.yaml").write_text(json.dumps(card))
    return folder


@pytest.fixture(scope="module")
def exported(dijets):
    for arguments in (
        ["train", "ranode", str(dijets / "card.yaml"), "--output", str(dijets / "run")],
        ["export", str(dijets / "run"), "--output", str(dijets / "model")],
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 0
    return load_model(dijets / "model")


def test_an_exported_model_holds_everything(exported, dijets):
    assert (dijets / "run" / "losses.png").stat().st_size > 1000
    assert set(exported.terms) == {"learned-signal", "features-given-mass"}
    assert exported.spec.signal.density == "learned-signal"
    assert exported.spec.background == load_model("dijet-background").spec.background
    assert exported.spec.window == exported.spec.valid == (LOW, HIGH)
    with pytest.raises(ModelError, match="has no mass shape of its own"):
        exported.spec.signal.mass  # noqa: B018
    signal = LearnedSignalTerm(exported.terms["learned-signal"])
    assert (signal.n_folds, signal.n_members, signal.mode, signal.window) == (2, 1, "scan", (LOW, HIGH))
    assert signal.rule == FoldRule(2, 3, ("m_jj", *FEATURES))
    assert {member.trained_with for member in signal.cross_fit.members} <= {0.02, 0.05}
    # 150 events among 2100, less what an out-of-sample fit with one small network misses.
    assert np.all((signal.fractions > 0.03) & (signal.fractions < 0.09))
    assert signal.other_data(file_sha256(dijets / "data.npz")) is None
    assert "this is not the data set" in str(signal.other_data("f" * 64))
    quality = signal.metadata.checks["quality"]
    assert quality["gain_held_out"] > 20.0
    assert 60.0 < quality["signal_like_events"] < 240.0
    assert abs(quality["integral"]["value"] - 1.0) < 5 * quality["integral"]["sigma"] < 0.5
    assert [len(row["scan"]) for row in quality["folds"]] == [2, 2]


def test_the_exported_density_is_cross_fitted(exported, dijets):
    run = load_ranode_run(dijets / "run")
    kept = run.events()
    signal = LearnedSignalTerm(exported.terms["learned-signal"])
    events = Events(kept["x"][:, 0], kept["x"][:, 1:], FEATURES, run.units)
    assert np.array_equal(signal.rule.fold_of(events), kept["fold"])
    # As the graphs see the events, in single precision.
    by_keras = final_log_prob(run, choose_networks(run).weights, kept["x"].astype(np.float32).astype(float))
    expected = np.where(kept["fold"] == 0, by_keras[0], by_keras[1])
    np.testing.assert_allclose(signal.log_prob(events), expected, atol=2e-3)
    np.testing.assert_allclose(signal.fold_log_prob(events, 1)[0], by_keras[1], atol=2e-3)
    outside = Events([3200.0, 3500.0], [[50.0, 50.0, 0.5, 0.5], [-1.0, 50.0, 0.5, 0.5]], FEATURES, run.units)
    assert np.isneginf(signal.log_prob(outside)).all()
    assert signal.inside(outside).tolist() == [False, False]


def test_samples_follow_the_density(exported):
    signal = LearnedSignalTerm(exported.terms["learned-signal"])
    sample = signal.sample(2000, rng=np.random.default_rng(1))
    assert signal.inside(sample).all()
    assert sample.names == FEATURES
    # E_p[ln p - ln q] is positive for any other density q of the same range, here of the same sample with features exchanged.
    mixed = replace(sample, mass=np.roll(sample.mass, 1))
    own, other = (log_mean(signal.term.member_values(events)) for events in (sample, mixed))
    assert np.mean(own - other) > 0
    assert len(signal.sample(7, fold=1, rng=np.random.default_rng(2))) == 7


def test_a_generator_that_changed_is_refused(exported, dijets, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(dijets / "run", copy)
    content = json.loads((copy / "run.json").read_text())
    content["record"]["generator"]["sha256"] = "0" * 64
    (copy / "run.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="is not the one that the signal was learned with"):
        export_ranode(copy, tmp_path / "model")
    with pytest.raises(OutputError, match="already exists"):
        export_ranode(copy, dijets / "model")
    (copy / "stack_1" / "history.json").unlink()
    with pytest.raises(OutputError, match="is not finished"):
        export_ranode(copy, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_errors_of_the_data(dijets, tmp_path):
    card = load_ranode_card(dijets / "card.yaml")
    with np.load(dijets / "data.npz") as arrays:
        columns = {name: arrays[name] for name in arrays.files}
    np.savez(tmp_path / "few.npz", **{name: columns[name] for name in ("m_jj", "m_light", "dm")})
    with pytest.raises(EventsError, match="tau21_light"):
        prepare_ranode(card, tmp_path / "few.npz")
    above = columns["m_jj"] >= HIGH
    np.savez(tmp_path / "above.npz", **{name: values[above] for name, values in columns.items()})
    with pytest.raises(EventsError, match=r"none of .* events is in the window"):
        prepare_ranode(card, tmp_path / "above.npz")
    np.savez(tmp_path / "tev.npz", **{**columns, "m_jj": columns["m_jj"] / 1000.0})
    with pytest.raises(EventsError, match="if the file is in TeV"):
        prepare_ranode(card, tmp_path / "tev.npz")
    with pytest.raises(CardError, match="has no generator of features"):
        prepare_ranode(card.model_copy(update={"generator": "dijet-qq-3500"}), dijets / "data.npz")
    with pytest.raises(EventsError, match="is not in"):
        prepare_ranode(card, tmp_path)
