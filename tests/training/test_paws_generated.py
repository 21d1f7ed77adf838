"""Background of a parametrised classifier from a generator: what is drawn, kept and refused. The generator is made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from gbistat.errors import EventsError, ModelError, OutputError, TermError, UnitsError
from gbistat.terms.metadata import TermMetadata
from gbistat.terms.model_spec import ModelSpec
from gbistat.terms.network import NetworkTerm
from gbistat.terms.store import load_reference, member_records, save_model
from gbistat.training.paws import train_paws
from gbistat.training.paws_dataset import PawsPool, epoch_set
from gbistat.training.paws_export import export_paws
from gbistat.training.paws_generated import _columns, epoch_background, generated_background, paws_generator, thinned
from gbistat.training.splits import read_sample
from gbistat.training_workflow import fitted_log_kappa


def graph(nodes, tensors, n_outputs):
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", k]) for n, k in (("x", 4), ("y", n_outputs))]
    content = helper.make_graph(nodes, "g", ends[:1], ends[1:], stored)
    return helper.make_model(content, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()


def sampler(b_mean):
    """(m, z1, z2, z3) to (abs(150 + 80 z1), abs(150 + 80 z2), b_mean + z3): the background of the toy if b_mean is 0."""
    weights = np.array([[0, 0, 0], [80, 0, 0], [0, 80, 0], [0, 0, 1]], np.float32)
    tensors = {
        "w": weights,
        "c": np.array([150, 150, 0], np.float32),
        "shift": np.array([[0, 0, b_mean]], np.float32),
        "keep": np.array([[1, 1, 0]], np.float32),
        "other": np.array([[0, 0, 1]], np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"]),
        helper.make_node("Add", ["xw", "c"], ["t"]),
        helper.make_node("Abs", ["t"], ["a"]),
        helper.make_node("Mul", ["a", "keep"], ["masses"]),
        helper.make_node("Mul", ["t", "other"], ["rest"]),
        helper.make_node("Add", ["masses", "rest"], ["both"]),
        helper.make_node("Add", ["both", "shift"], ["y"]),
    ]
    return graph(nodes, tensors, 3)


def some_density():
    """What a generator must have; it is not evaluated here."""
    return graph([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": np.zeros((4, 1), np.float32)}, 1)


@pytest.fixture
def saved(tmp_path):
    """Function that writes a generator, with changes of its term, and returns its folder."""

    def save(names=("m_u", "m_v", "b"), unit="1", mass="m", b_means=(1.0, -1.0)):
        members = {f"member_{k}.onnx": some_density() for k in range(2)}
        samplers = {f"sampler_{k}.onnx": sampler(b_mean) for k, b_mean in enumerate(b_means)}
        features = [{"name": name, "unit": unit} for name in names]
        content = {
            "schema": "gbistat.term/1",
            "name": "toy",
            "kind": "density",
            "features": [{"name": mass, "unit": "GeV", "low": 80.0, "high": 160.0, "role": "conditional"}, *features],
            "mass": {"name": mass, "unit": "GeV", "low": 80.0, "high": 160.0},
            "combine": "mean_density",
            "members": [record.to_json() for record in member_records(members)],
            "samplers": [record.to_json() for record in member_records(samplers)],
        }
        term = NetworkTerm(
            TermMetadata.model_validate(content), tuple(members.values()), samplers=tuple(samplers.values())
        )
        spec = {
            "schema": "gbistat.model/1",
            "name": "toy-background",
            "mass": {"name": mass, "unit": "GeV"},
            "features": list(names),
            "window": [94.0, 106.0],
            "valid": [85.0, 155.0],
            "background": {"mass": {"shape": "exponential"}, "features": "toy", "fit_range": [80.0, 160.0]},
            "terms": ["toy"],
        }
        save_model(tmp_path / "generator", ModelSpec.model_validate(spec), terms=[term], overwrite=True)
        return str(tmp_path / "generator")

    return save


@pytest.fixture
def made(saved, paws_card, paws_events):
    card = paws_card(background={"generator": saved(), "n_events": 3000, "pool": 9000})
    return card, paws_generator(card, read_sample(paws_events, card.background, card))


def test_generated_events_have_the_features_of_the_card_and_the_spectrum_of_the_sidebands(made, paws_events):
    _, generator = made
    rows = generator.draw(20_000, (88.0, 125.0), rng=np.random.default_rng(1))
    mass, u, b, v = rows.T
    assert generator.window == (94.0, 106.0)
    assert np.all((mass >= 88.0) & (mass <= 125.0))
    # 80 + 80 beta(1, 1.5) falls as (1 - x)^0.5; the fit has 2 parameters and 4,600 sideband events.
    x = (np.array([88.0, 106.0, 125.0]) - 80.0) / 80.0
    cumulative = 1.0 - (1.0 - x) ** 1.5
    expected = (cumulative[1] - cumulative[0]) / (cumulative[2] - cumulative[0])
    assert np.mean(mass < 106.0) == pytest.approx(expected, abs=0.03)
    for column in (u, v):
        assert np.mean(column) == pytest.approx(152.0, abs=3.0)
    assert np.mean(b) == pytest.approx(0.0, abs=0.05)
    assert np.std(b) == pytest.approx(np.sqrt(2.0), abs=0.05)


def test_a_member_of_the_classifier_learns_from_one_member_of_the_generator(made):
    card, generator = made
    first, again = (generated_background(generator, card, 0) for _ in range(2))
    assert np.array_equal(first, again)
    assert first.shape == (9000, 3)
    validation = generated_background(generator, card, 0, validates=True)
    assert validation.shape == (3000, 3)
    # Single numbers of 24 bits may agree.
    assert np.mean(np.isin(validation[:, 0], first[:, 0])) < 0.01
    means = [generated_background(generator, card, member)[:, 1].mean() for member in range(3)]
    assert means == pytest.approx([1.0, -1.0, 1.0], abs=0.1)


def test_an_epoch_takes_other_events_than_the_one_before(made):
    card, generator = made
    pool = generated_background(generator, card, 0)
    first, again, later = (epoch_background(pool, card, 0, epoch) for epoch in (3, 3, 4))
    assert np.array_equal(first, again)
    assert first.shape == (3000, 3)
    # A third of the later events by chance.
    assert np.mean(np.isin(later[:, 0], first[:, 0])) == pytest.approx(1 / 3, abs=0.05)
    assert np.all(np.isin(first[:, 0], pool[:, 0]))
    assert np.unique(first[:, 0]).size > 2990


def test_masses_follow_from_one_another():
    rows = np.array([[100.0, 300.0], [50.0, 20.0]])
    assert _columns(rows, ("m_light", "dm"), ("m_heavy", "m_light")).tolist() == [[400.0, 100.0], [70.0, 50.0]]
    assert _columns(rows, ("dm", "m_heavy"), ("m_light",)).tolist() == [[200.0], [-30.0]]


def test_a_generator_without_a_feature_of_the_card_is_refused(saved, paws_card, paws_events):
    card = paws_card(background={"generator": saved(("m_u", "m_v", "c"))})
    with pytest.raises(EventsError, match=r"makes no 'b', which the card takes as input; .*train one with all inputs"):
        paws_generator(card, read_sample(paws_events, card.background, card))


def test_a_generator_with_other_units_or_another_mass_is_refused(saved, paws_card, paws_events):
    card = paws_card(background={"generator": saved(unit="GeV")})
    background = read_sample(paws_events, card.background, card)
    with pytest.raises(UnitsError, match=r"makes 'm_u' in 'GeV', and the card says '1' for 'm_u'; correct the card"):
        paws_generator(card, background)


def test_a_generator_of_another_mass_is_refused(saved, paws_card, paws_events):
    card = paws_card(background={"generator": saved(mass="m_jj")})
    with pytest.raises(UnitsError, match=r"has the mass 'm_jj' in GeV, and the card 'm' in GeV; take a generator"):
        paws_generator(card, read_sample(paws_events, card.background, card))


def test_a_generator_that_is_not_valid_in_the_training_range_is_refused(saved, paws_card, paws_events):
    card = paws_card(background={"generator": saved()}, train_range=[70.0, 125.0], model={"fit_range": [60.0, 160.0]})
    with pytest.raises(TermError, match=r"train_range \[70.0, 125.0\] is not inside 80-160 GeV, where the generator"):
        paws_generator(card, read_sample(paws_events, card.background, card))


def test_a_model_that_is_no_generator_is_refused(paws_card, paws_events):
    card = paws_card(background={"generator": "no-such-model"})
    with pytest.raises(ModelError, match=r"no-such-model"):
        paws_generator(card, read_sample(paws_events, card.background, card))


def test_a_background_without_sidebands_is_refused(saved, paws_card, changed_paws_events):
    card = paws_card(background={"generator": saved()})
    folder = changed_paws_events(background={"m": lambda c: np.full(400, 100.0)})
    with pytest.raises(EventsError, match=r"has 0 events outside 94-106 GeV in 80-160; the spectrum"):
        paws_generator(card, read_sample(folder, card.background, card))


def test_masses_drawn_near_the_jets_have_weights_that_undo_it(made, paws_events, paws_card):
    card = paws_card(near=0.5, copies=20)
    signal = np.random.default_rng(3).uniform(50.0, 250.0, size=(30, 2)).repeat(50, axis=0)
    rng = np.random.default_rng(4)
    jets = np.abs(
        np.column_stack([rng.normal(signal.max(axis=1), 30.0), np.zeros(1500), rng.normal(signal.min(axis=1), 30.0)])
    )
    pool = PawsPool(made[1].draw(1000, (94.0, 106.0), rng=rng)[:, 1:], np.column_stack([jets, signal]))
    found = epoch_set(pool, card, 0, 0)
    background = found.y == 0
    x, weights = found.x[background], found.weights[background]
    assert weights.max() > 1.2 * weights.min()
    # Larger and smaller jet keep no memory of the masses, on average over the weights ...
    larger = x[:, 3:].max(axis=1)
    shift = np.average((x[:, 0] - x[:, 0].mean()) * (larger - larger.mean()), weights=weights)
    spread = x[:, 0].std() * larger.std()
    assert abs(shift / spread) < 0.04
    # ... and without them they do.
    assert np.mean((x[:, 0] - x[:, 0].mean()) * (larger - larger.mean())) / spread > 0.15
    assert np.average(larger, weights=weights) == pytest.approx(signal.max(axis=1).mean(), rel=0.02)


def test_rescaled_signal_keeps_its_shape_and_its_range(made, paws_card):
    card = paws_card(rescale=0.1)
    rng = np.random.default_rng(5)
    masses = rng.uniform(50.0, 250.0, size=(2000, 2))
    jets = np.column_stack([masses.max(axis=1), rng.normal(size=2000), masses.min(axis=1)])
    found = epoch_set(PawsPool(jets[:500], np.column_stack([jets, masses])), card, 0, 0)
    x = found.x[found.y == 1]
    assert x[:, 3:].min() >= 50.0
    assert x[:, 3:].max() <= 250.0 + 1e-9
    assert x[:, 0] == pytest.approx(x[:, 3:].max(axis=1))
    assert x[:, 2] == pytest.approx(x[:, 3:].min(axis=1))
    inside = (x[:, 3:].min(axis=1) > 60.0) & (x[:, 3:].max(axis=1) < 220.0)
    assert not np.any(np.isin(x[inside, 3], masses[:, 0]))
    background = found.x[found.y == 0]
    assert set(background[:, 1]) <= set(jets[:500, 1])


def test_thinned_rows_estimate_numbers_of_all():
    rng = np.random.default_rng(6)
    x = rng.normal(size=200_000)
    rows, weights = thinned(3.0 * x, 6000, smallest=0.005, rng=rng)
    assert rows.size == pytest.approx(6000, abs=300)
    assert weights.sum() == pytest.approx(200_000, rel=0.05)
    assert weights.max() <= 200.0 + 1e-9
    # The tail that a plain sample of as many rows would hold 8 events of.
    tail = x[rows] > 3.0
    assert tail.sum() > 200
    assert weights[tail].sum() == pytest.approx(200_000 * 0.00135, rel=0.15)


@pytest.mark.train
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@pytest.mark.parametrize("reference", ["mixed", "background"])
def test_a_ratio_is_trained_and_exported_with_generated_background(
    reference, saved, paws_card, paws_events, tmp_path, monkeypatch
):
    pytest.importorskip("tensorflow")
    for name, value in (("DRAWN", 4000), ("DRAWS", 2), ("REFERENCE_EVENTS", 2000)):
        monkeypatch.setattr(f"gbistat.training.paws_grading.{name}", value)
    card = paws_card(
        background={"generator": saved(b_means=(0.0, 0.0)), "n_events": 3000, "pool": 6000},
        optimiser={"members": 1, "epochs": 3, "learning_rate": 0.03},
        benchmarks=[],
        model={"reference": reference},
        peak=0.4,
        near=0.3,
    )
    run = train_paws(card, tmp_path / "run", events=paws_events)
    held_out = run.held_out()
    assert held_out.blind == (94.0, 106.0)
    # All events of the file grade, inside the window.
    mass = held_out.background[:, 0]
    assert len(mass) == np.sum((mass >= 80.0) & (mass < 160.0)) == 6000
    model = export_paws(tmp_path / "run", tmp_path / "model", normaliser=fitted_log_kappa)
    checks = model.terms["toy-masses"].metadata.checks
    assert checks["held_out"]["n_background"] == np.sum((mass >= 94.0) & (mass < 106.0))
    assert checks["log_kappa"]["n_background"] == len(held_out.generated)
    events = load_reference(model)
    # Rounded on disk.
    assert np.all((events.mass >= 92.0) & (events.mass <= 108.0))
    # Background is abs(N(150, 80)): a mean of 152.
    assert np.average(events.feature("m_u"), weights=events.weights) == pytest.approx(152.0, abs=12.0)
    text = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "came from the generator" in text
    saved(b_means=(0.0, 0.5))
    if reference == "background":
        with pytest.raises(OutputError, match=r"is another one than that which .* was trained with"):
            export_paws(tmp_path / "run", tmp_path / "again", normaliser=fitted_log_kappa)
