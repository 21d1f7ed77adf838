"""The sideband generators that come with gbistat: whole, made as they say, and right in the window that they never saw."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gbistat.cli import main
from gbistat.terms.generator import GeneratorTerm
from gbistat.terms.store import load_model
from gbistat.training.background_card import load_background_card
from gbistat.training.sidebands import sideband_pool
from gbistat.training.splits import read_sample

ROOT = Path(__file__).parents[2]
NAME = "dijet-background"
MEMBERS = {NAME: 5, "dijet-background-substructure": 3}


@pytest.fixture(scope="module", params=MEMBERS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return load_model(name)


@pytest.fixture(scope="module")
def generator(model):
    return GeneratorTerm(model.terms[model.spec.background.features])


@pytest.fixture(scope="module")
def sample(name):
    folder = ROOT.parent / "shared" / "data"
    if not (folder / "qcd.features.h5").is_file():
        pytest.skip("the simulated events are not here")
    card = load_background_card(ROOT / "models" / name / "card.yaml")
    return card, read_sample(folder, card.background, card)


def test_the_model_says_what_its_card_says(name, model, generator):
    card = load_background_card(model.directory / "card.yaml")
    metadata = generator.metadata
    assert card.name == model.spec.name == name
    assert model.spec.window == card.window == (3300.0, 3700.0)
    assert metadata.feature_names == card.names
    assert generator.n_members == card.optimiser.members == MEMBERS[name]
    assert metadata.training.settings["window_left_out"] == [3300.0, 3700.0]
    assert metadata.training.seed == card.seed
    assert metadata.parity.n_events == 10_000
    assert metadata.parity.max_abs <= 1e-4
    assert metadata.parity.mean_abs <= 5e-6


def test_it_was_trained_on_sidebands_of_the_training_part(model, generator, sample):
    card, events = sample
    assert model.spec.provenance["splits"] == [events.record()]
    pool = sideband_pool(events, card)
    assert dict(generator.metadata.training.settings["sideband_events"]) == pool.counts
    low, high = (np.array([getattr(item, end) for item in generator.metadata.features[1:]]) for end in ("low", "high"))
    assert np.all((pool.x[:, 1:] > low) & (pool.x[:, 1:] < high))


def test_the_density_is_normalised(generator):
    # Importance sampling with a broadened sample of the generator itself: each member against the mean of all.
    rng = np.random.default_rng(3)
    mass = np.full(20_000, 3500.0)
    x = generator.sample(mass, rng=rng)
    ratio = np.exp(generator.member_log_prob(x, mass) - generator.log_prob(x, mass))
    error = ratio.std(axis=1) / np.sqrt(mass.size)
    assert np.all(np.abs(ratio.mean(axis=1) - 1.0) < 4 * error)
    assert np.all(error < 0.005)


def test_it_describes_the_window_that_it_never_saw(generator, sample):
    card, events = sample
    x = np.concatenate([events.part(name).matrix(card.names) for name in ("reference", "data")])
    x = x[(x[:, 0] >= 3300) & (x[:, 0] < 3700)]
    drawn = generator.sample(x[:, 0], rng=np.random.default_rng(5))
    for column in range(len(generator.features)):
        true, made = x[:, 1 + column], drawn[:, column]
        for power in (1, 2):
            error = np.hypot(np.std(true**power), np.std(made**power)) / np.sqrt(len(true))
            # Four errors, and 1 % of the spread for the generator itself.
            assert abs(np.mean(true**power) - np.mean(made**power)) < 4 * error + 0.01 * np.std(true**power)
    held_out = generator.metadata.checks["held_out"]
    inside = generator.log_prob(x[:, 1:], x[:, 0])
    # Outside the range of the sidebands in some feature there is no density: an event or two in 10,000.
    finite = np.isfinite(inside)
    assert np.mean(~finite) < 5e-4
    assert np.mean(inside[finite]) == pytest.approx(held_out["log_prob"], abs=0.5)


def test_limits_take_it_as_background(capsys):
    documents = []
    for extra in ([], ["--background", NAME]):
        with pytest.raises(SystemExit) as stop:
            main(["fit", "--model", "dijet-qq-3500", "--window", "3300", "3700", *extra, "--json", "-"])
        said = capsys.readouterr()
        assert stop.value.code == 0, said.err
        documents.append(json.loads(said.out)["results"][0])
    own, generated = documents
    assert own["background"]["source"] == "model"
    assert generated["background"]["name"] == NAME
    assert generated["background"]["log_kappa"]["sigma"] > generated["background"]["log_kappa"]["model_sigma"]
    (mu, error), (other, other_error) = ((d["fit"]["mu"]["value"], d["fit"]["mu"]["error"]) for d in documents)
    assert abs(other - mu) < max(error, other_error)
