"""A density learned from data: which network answers for which event, what its term.json must say."""

from __future__ import annotations

import numpy as np
import pytest

from gbistat.data.events import Events
from gbistat.errors import ModelError, OptionError, TermError, UnitsError
from gbistat.terms.folds import FoldRule
from gbistat.terms.learned_signal import LearnedSignalTerm
from gbistat.terms.metadata import TermMetadata
from gbistat.terms.model_spec import ModelSpec
from gbistat.terms.network import NetworkTerm
from gbistat.terms.store import load_model, member_records, save_model
from gbistat.terms.validation import validate

COLUMNS = ("m_jj", "m_light", "tau21_light")
RULE = FoldRule(3, 11, COLUMNS)
K, M = 3, 2


def content(members, **changes):
    return {
        "schema": "gbistat.term/1",
        "name": "learned",
        "kind": "signal_density",
        "features": [
            {"name": "m_jj", "unit": "GeV", "low": 3300.0, "high": 3700.0},
            {"name": "m_light", "unit": "GeV", "low": 0.0, "high": 1000.0},
            {"name": "tau21_light", "low": 0.0, "high": 1.0},
        ],
        "mass": {"name": "m_jj", "unit": "GeV", "low": 3300.0, "high": 3700.0},
        "combine": "mean_density",
        "members": [record.to_json() for record in member_records(members)],
        "cross_fit": {
            "rule": RULE.to_dict(),
            "mode": "fixed",
            "members": [{"fold": t // M, "fraction": 0.01 * (1 + t), "trained_with": 0.02} for t in range(K * M)],
        },
        "training": {"seed": 1, "data": [{"file": "d.npz", "sha256": "a" * 64, "n_events": 9, "role": "data"}]},
        **changes,
    }


@pytest.fixture
def graphs(make):
    # Network t answers t + x_1 / 1000: it says who it is.
    return {f"net_{t}.onnx": make.linear([0.0, 1e-3, 0.0], float(t)) for t in range(K * M)}


@pytest.fixture
def signal(graphs):
    metadata = validate(TermMetadata, content(graphs), error=TermError, where="term")
    return LearnedSignalTerm(NetworkTerm(metadata, tuple(graphs.values())))


def test_each_event_is_judged_by_its_own_fold(signal, make):
    events = make.events(500)
    folds = RULE.fold_of(events)
    assert set(folds) == {0, 1, 2}
    base = events.feature("m_light") / 1000
    np.testing.assert_allclose(signal.cross_log_prob(events) - base, [M * folds, M * folds + 1.0], atol=1e-6)
    np.testing.assert_allclose(signal.log_prob(events) - base, M * folds + np.log((1 + np.e) / 2), atol=1e-6)
    np.testing.assert_allclose(signal.fold_log_prob(events, 1) - base, [[2.0] * 500, [3.0] * 500], atol=1e-6)
    assert (signal.n_folds, signal.n_members, signal.rule) == (K, M, RULE)
    np.testing.assert_allclose(signal.fractions, [[0.01, 0.02], [0.03, 0.04], [0.05, 0.06]])


def test_outside_the_ranges_there_is_no_density(signal):
    units = {"m_light": "GeV"}
    features = [[50.0, 0.5], [0.0, 0.5], [50.0, 1.0], [50.0, 0.5], [50.0, 0.5]]
    events = Events([3500.0, 3500.0, 3500.0, 3700.0, 3299.0], features, COLUMNS[1:], units)
    assert signal.inside(events).tolist() == [True, False, False, False, False]
    assert np.isfinite(signal.log_prob(events)).tolist() == [True, False, False, False, False]


def test_other_data_are_said(signal):
    assert signal.trained_on == ("a" * 64,)
    assert signal.other_data("a" * 64) is None
    assert "not the data set in which the signal was learned" in str(signal.other_data("b" * 64))


def test_errors_of_use(signal, make):
    with pytest.raises(OptionError, match=r"fold 3 does not exist; .* has the folds 0 to 2"):
        signal.fold_log_prob(make.events(), 3)
    with pytest.raises(TermError, match="each event takes the members that never saw it"):
        signal.term.log_prob(make.events())
    with pytest.raises(TermError, match="has no samplers"):
        signal.sample(5, rng=np.random.default_rng(1))
    with pytest.raises(UnitsError, match="takes 'm_jj' in 'GeV'"):
        signal.log_prob(Events([3500.0], [[50.0, 0.5]], COLUMNS[1:], {"m_jj": "TeV", "m_light": "GeV"}))
    with pytest.raises(TermError, match="is a density_ratio, not a density learned from data"):
        LearnedSignalTerm(make.term([make.linear([1.0, 1.0])]))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("cross_fit",), None, "a signal_density has cross_fit"),
        (("kind",), "density", "a signal_density has cross_fit"),
        (("cross_fit", "members"), [{"fold": 0, "fraction": 0.1}] * 2, "are not ordered fold by fold"),
        (("cross_fit", "members", 0, "fraction"), 1.0, "must be less than 1"),
        (("cross_fit", "rule", "columns"), ["m_jj", "m_lihgt"], "the folds hash 'm_lihgt'.*m_light"),
        (("features", 1, "low"), None, "needs low and high"),
        (("mass", "name"), "m_x", "the first feature of a signal_density is the mass 'm_x'"),
    ],
)
def test_mistakes_in_a_term(graphs, path, value, message):
    data = content(graphs)
    target = data
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with pytest.raises(TermError, match=message):
        validate(TermMetadata, data, error=TermError, where="term")


def spec(**signal):
    return {
        "name": "m",
        "features": list(COLUMNS[1:]),
        "window": [3300.0, 3700.0],
        "signal": signal,
        "background": {"mass": {"shape": "dijet"}, "features": "generator", "fit_range": [2800.0, 7000.0]},
        "terms": ["learned", "generator"],
    }


def test_mistakes_in_a_model(signal, make, tmp_path):
    def model(data):
        return validate(ModelSpec, data, error=ModelError, where="model")

    assert model(spec(density="learned")).signal.density == "learned"
    with pytest.raises(ModelError, match="already says what the signal is"):
        model(spec(density="learned", ratios=["generator"]))
    with pytest.raises(ModelError, match="mass is missing"):
        model(spec())
    with pytest.raises(ModelError, match=r"signal.density is 'lerned', which is not in terms; .*learned"):
        model(spec(density="lerned"))
    without = spec(density="learned")
    del without["background"]["features"]
    with pytest.raises(ModelError, match=r"signal.density needs background.features"):
        model(without)
    # A generator that is none, found when the model is read again.
    data = {**spec(density="ratio"), "terms": ["ratio", "learned"]}
    data["background"] = {**data["background"], "features": "learned"}
    terms = [make.term([make.linear([1.0, 1.0])]), signal.term]
    with pytest.raises(ModelError, match=r"must be a signal_density|must be a density of"):
        save_model(tmp_path / "m", model(data), terms=terms)
    assert not (tmp_path / "m").exists()


def test_a_model_comes_back_from_disk(signal, tmp_path):
    generator = load_model("dijet-background")
    term = generator.terms["features-given-mass"]
    data = {
        **spec(density="learned"),
        "features": list(dict.fromkeys([*generator.spec.features, "tau21_light"])),
        "background": generator.spec.background.to_json(),
        "terms": ["learned", term.name],
    }
    saved = save_model(
        tmp_path / "m", validate(ModelSpec, data, error=ModelError, where="m"), terms=[signal.term, term]
    )
    again = load_model(tmp_path / "m")
    assert again.sha256 == saved.sha256
    assert LearnedSignalTerm(again.terms["learned"]).rule == RULE
