"""Density and samples of an exported generator against closed forms; what is refused."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import kstest, norm

from gbistat.errors import EventsError, ModelError, TermError
from gbistat.terms.generator import GeneratorTerm
from gbistat.terms.model_spec import ModelSpec
from gbistat.terms.network import NetworkTerm
from gbistat.terms.protocols import ConditionalDensity
from gbistat.terms.store import load_model, load_term, save_model, save_term

MASS = np.array([2600.0, 3500.0, 3500.0, 4900.0])


def test_log_prob_is_the_log_of_the_mean_density(toy):
    density: ConditionalDensity = GeneratorTerm(toy.generator((0.3, -0.2)))
    t = np.array([0.5, -1.0, 3.0, 2.0])[:, None]
    centre = toy.slope * (MASS - 3500.0)
    members = np.stack([norm.logpdf(t[:, 0], centre + shift) for shift in (0.3, -0.2)])
    assert density.member_log_prob(t, MASS) == pytest.approx(members, abs=2e-5)
    assert density.log_prob(t, MASS) == pytest.approx(np.log(np.mean(np.exp(members), axis=0)), abs=2e-5)


def test_the_density_is_zero_outside_the_range(toy):
    density = GeneratorTerm(toy.generator(features=toy.features(-1.0, 2.0)))
    t = np.array([-1.0, 0.0, 2.0, 7.0])[:, None]
    assert density.inside(t).tolist() == [False, True, False, False]
    found = density.log_prob(t, MASS)
    assert np.isneginf(found).tolist() == [True, False, True, True]
    assert np.isneginf(density.log_prob(t[[0]], MASS[[0]])).all()


def test_samples_follow_each_member(toy):
    density = GeneratorTerm(toy.generator((2.0, -2.0)))
    mass = np.full(8001, 4000.0)
    sample = density.sample(mass, rng=np.random.default_rng(1))
    assert sample.shape == (8001, 1)
    u = sample[:, 0] - toy.slope * 500.0
    # A fixed seed; such a p-value or a smaller one comes once in a thousand seeds.
    assert kstest(u, lambda x: 0.5 * norm.cdf(x, 2.0) + 0.5 * norm.cdf(x, -2.0)).pvalue > 1e-3
    assert np.array_equal(sample, density.sample(mass, rng=np.random.default_rng(1)))
    assert not np.array_equal(sample, density.sample(mass, rng=np.random.default_rng(2)))
    latent = np.array([[0.0], [1.0]])
    for member, shift in enumerate((2.0, -2.0)):
        found = density.transform(latent, np.array([3500.0, 4000.0]), member)
        assert found[:, 0] == pytest.approx([shift, shift + 1.0 + 500 * toy.slope], abs=1e-5)


def test_samples_stay_inside_the_range(toy):
    density = GeneratorTerm(toy.generator(features=toy.features(-1.0, 2.0)))
    assert density.inside(density.sample(np.full(500, 3500.0), rng=np.random.default_rng(1))).all()


def test_what_is_refused(toy):
    density = GeneratorTerm(toy.generator())
    with pytest.raises(
        TermError, match=r"1 of 2 masses are outside \[2500, 5000\] GeV, where the generator 'gaussian'"
    ):
        density.sample(np.array([3000.0, 6000.0]), rng=np.random.default_rng(1))
    with pytest.raises(TermError, match=r"1 of 2 events have m_jj outside \[2500, 5000\] GeV"):
        density.log_prob(np.zeros((2, 1)), np.array([3000.0, 6000.0]))
    with pytest.raises(EventsError, match=r"features have shape \(4, 2\) and masses \(4,\); .* takes \(n, 1\) \(t\)"):
        density.log_prob(np.zeros((4, 2)), MASS)
    with pytest.raises(EventsError, match=r"1 of 4 events have a NaN"):
        density.log_prob(np.array([[0.0], [np.nan], [0.0], [0.0]]), MASS)
    with pytest.raises(TermError, match=r"term 'ratio' is a density_ratio without samplers: it cannot be drawn from"):
        GeneratorTerm(toy.ratio())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "mass_density"}, r"samplers belong to a density, and this term is a mass_density"),
        (
            {"samplers": [{"file": "sampler_0.onnx", "sha256": "0" * 64}]},
            r"1 samplers for 2 members; give one each, or none",
        ),
        ({"features": [{"name": "m_jj", "unit": "GeV"}, {"name": "t"}]}, r"the first feature must be 'm_jj' with role"),
        ({"parameters": [{"name": "theta"}]}, r"without parameters"),
    ],
)
def test_metadata_that_cannot_be_drawn_from(changes, message, toy):
    with pytest.raises(ValidationError, match=message):
        toy.generator(**changes)


def test_samplers_are_stored_and_checked(toy, tmp_path):
    term = toy.generator()
    save_term(tmp_path / "term", term.metadata, dict(zip(
        [record.file for record in (*term.metadata.members, *term.metadata.samplers)], (*term.graphs, *term.samplers), strict=True
    )))  # fmt: skip
    loaded = load_term(tmp_path / "term")
    assert (loaded.graphs, loaded.samplers) == (term.graphs, term.samplers)
    (tmp_path / "term" / "sampler_1.onnx").write_bytes(term.samplers[0])
    with pytest.raises(TermError, match=r"sampler_1.onnx"):
        load_term(tmp_path / "term")
    with pytest.raises(TermError, match=r"term 'gaussian' has 2 samplers and 1 graphs; give one each"):
        NetworkTerm(term.metadata, term.graphs, samplers=term.samplers[:1])


def test_a_background_alone_is_a_model(toy, tmp_path):
    saved = save_model(tmp_path / "model", toy.background_spec(), terms=[toy.generator()])
    loaded = load_model(tmp_path / "model")
    assert loaded.sha256 == saved.sha256
    assert not loaded.spec.has_signal
    assert GeneratorTerm(loaded.terms["gaussian"]).n_members == 2
    with pytest.raises(ModelError, match=r"model 'gaussian-background' is a background without a signal"):
        loaded.spec.signal  # noqa: B018
    assert json.loads((tmp_path / "model" / "model.json").read_text())["signal"] is None
    # Another sampler is another model.
    changed = save_model(tmp_path / "other", toy.background_spec(), terms=[toy.generator((0.1, -0.2))])
    assert changed.sha256 != saved.sha256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"background": {"mass": {"shape": "exponential"}, "fit_range": [2800.0, 4800.0]}},
            r"signal is missing; add it",
        ),
        ({"terms": []}, r"background.features is 'gaussian', which is not in terms"),
    ],
)
def test_backgrounds_that_are_no_model(changes, message, toy):
    content = {**toy.background_spec().to_json(), **changes}
    with pytest.raises(ValidationError, match=message):
        ModelSpec.model_validate(content)


def test_a_background_needs_a_term_that_can_be_drawn_from(toy, tmp_path):
    background = {**toy.background_spec().to_json()["background"], "features": "ratio"}
    spec = toy.background_spec(background=background, terms=["ratio"])
    with pytest.raises(ModelError, match=r"background.features has 'ratio', which is a density_ratio without samplers"):
        save_model(tmp_path / "model", spec, terms=[toy.ratio()])


def test_a_generator_travels_to_another_process(toy):
    density = GeneratorTerm(toy.generator())
    before = density.sample(MASS, rng=np.random.default_rng(1))
    assert np.array_equal(pickle.loads(pickle.dumps(density)).sample(MASS, rng=np.random.default_rng(1)), before)
