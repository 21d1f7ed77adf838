"""SIGMA: the exact trace, a toy that it must learn, resume after a kill, export, and a second backend."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from gbistat.errors import CardError, EventsError, FitFailed, OptionError, OutputError
from gbistat.terms.generator import GeneratorTerm
from gbistat.terms.generator_quality import GeneratorQuality
from gbistat.terms.store import load_model
from gbistat.terms.validation import validate
from gbistat.training.sigma import learning_rate, train_sigma
from gbistat.training.sigma_card import SigmaCard
from gbistat.training.sigma_graph import sigma_density, sigma_flow
from gbistat.training.sigma_model import export_sigma, train_sigma_card
from gbistat.training.sigma_run import SigmaOptions, load_sigma_run
from gbistat.training.velocity import build_velocity, split_models
from gbistat.training_workflow import check_background

pytestmark = [
    pytest.mark.train,
    # Keras 3 calls numpy with copy=False on TensorFlow's tensors.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]

SMALL = SigmaOptions(
    width=24, blocks=1, context=8, mass_frequencies=1, epochs=8, batch_size=128, learning_rate=8e-3, averaged=2, seed=4
)
NAMES = ("a", "b")


def toy(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Gaussians whose mean follows ln m: a from -0.5 to 0.5 over 1000 to 4000."""
    rng = np.random.default_rng(seed)
    mass = 1000.0 * 4.0 ** rng.random(n)
    centre = np.log(mass / 2000.0) / np.log(4.0)
    return np.column_stack([rng.normal(centre, 0.4), rng.normal(0.0, 0.7, n)]), mass


class Killed(BaseException):
    """What a kill looks like from inside: nothing catches it."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    x, m = toy(4000, 1)
    said = []
    run = train_sigma(
        x, m, NAMES, tmp_path_factory.mktemp("sigma"), options=SMALL, progress=lambda f, text: said.append((f, text))
    )
    return run, said


def test_divergence_is_the_trace_of_the_jacobian() -> None:
    """Central differences of the velocity, on a network with random weights."""
    options = SigmaOptions(width=16, blocks=2, context=6, mass_frequencies=2)
    network = build_velocity(options, 3, seed=1)
    rng = np.random.default_rng(2)
    network.set_weights([rng.normal(0.0, 0.4, w.shape) for w in network.get_weights()])
    models = split_models(network, options)
    x = rng.normal(size=(40, 5)).astype(np.float32)
    context = models.context.predict(x[:, 4:], verbose=0)
    z = np.column_stack([x[:, :4], context]).astype(np.float32)
    both = models.flow.predict(z, verbose=0)
    np.testing.assert_allclose(both[:, :3], network.predict(x, verbose=0), atol=1e-5)
    np.testing.assert_allclose(both[:, :3], models.velocity.predict(z, verbose=0), atol=1e-5)
    trace, step = np.zeros(40), 1e-2
    for i in range(3):
        moved = [z.copy(), z.copy()]
        moved[0][:, i] += step
        moved[1][:, i] -= step
        up, down = (models.velocity.predict(point, verbose=0)[:, i] for point in moved)
        trace += (up - down) / (2 * step)
    np.testing.assert_allclose(both[:, 3], trace, atol=0.01 * np.abs(trace).max())


def test_training_learns_the_toy(trained) -> None:
    run, said = trained
    history = run.history()
    assert history[-1].validation_loss < history[0].validation_loss
    assert said[-1][0] == 1.0
    assert [f for f, _ in said] == sorted(f for f, _ in said)
    density = replace(sigma_density(run, backend="keras"), steps=6)
    for m, centre in ((1200.0, -0.37), (3600.0, 0.42)):
        x = density.sample(np.full(2000, m), rng=np.random.default_rng(3))
        assert x[:, 0].mean() == pytest.approx(centre, abs=0.12)
        assert x[:, 1].std() == pytest.approx(0.7, rel=0.15)
    x, m = toy(1000, 5)
    x, m = (array[(m > 1010) & (m < 3990)] for array in (x, m))
    entropy = np.log(2 * np.pi * np.e) + np.log(0.4 * 0.7)
    values = density.log_prob(x, m)
    assert np.mean(values[np.isfinite(values)]) == pytest.approx(-entropy, abs=0.12)


def test_unrolled_graph_is_the_numpy_integration(trained) -> None:
    run, _ = trained
    edges = (1500.0, 2500.0)
    flow = sigma_flow(run, edges, steps=2)
    density = replace(sigma_density(run, backend="keras"), interpolated=edges, steps=2)
    x, m = toy(300, 6)
    inside = run.transform.inside(x)
    x, m = x[inside], m[inside]
    inputs = np.column_stack([m, x]).astype(np.float32)
    np.testing.assert_allclose(flow.density.predict(inputs, verbose=0)[:, 0], density.log_prob(x, m), atol=2e-4)
    rng = np.random.default_rng(7)
    latent = np.random.default_rng(7).standard_normal((m.size, 2))
    made = flow.sampler.predict(np.column_stack([m, latent]).astype(np.float32), verbose=0)
    np.testing.assert_allclose(made, density.sample(m, rng=rng), atol=2e-4)


def test_a_killed_run_goes_on_with_the_same_result(trained, tmp_path) -> None:
    run, _ = trained
    x, m = toy(4000, 1)
    told = []

    def kill(fraction, text):
        told.append(text)
        if len(told) == 3:
            raise Killed

    with pytest.raises(Killed):
        train_sigma(x, m, NAMES, tmp_path, options=SMALL, progress=kill)
    (tmp_path / "partial.keras").write_bytes(b"cut off")
    with pytest.raises(OutputError, match="is not finished; run the training again, it goes on"):
        load_sigma_run(tmp_path).network()
    again = train_sigma(x, m, NAMES, tmp_path, options=SMALL)
    assert again.history() == run.history()
    pairs = zip(again.network().get_weights(), run.network().get_weights(), strict=True)
    assert all(np.array_equal(one, two) for one, two in pairs)


def test_best_epochs_are_kept_and_averaged(trained) -> None:
    run, _ = trained
    files = sorted(file.name for file in run.directory.glob("weights_*.npz"))
    losses = [epoch.validation_loss for epoch in run.history()]
    best = sorted(np.argsort(losses)[:2].tolist())
    assert files == [f"weights_{epoch:04d}.npz" for epoch in best]
    stacks = []
    for file in files:
        with np.load(run.directory / file) as arrays:
            stacks.append([arrays[f"arr_{i}"] for i in range(len(arrays.files))])
    for one, two, mean in zip(*stacks, run.network().get_weights(), strict=True):
        np.testing.assert_allclose(mean, 0.5 * (one + two), atol=1e-7)


def test_a_folder_belongs_to_one_set_of_options_and_events(trained) -> None:
    run, _ = trained
    x, m = toy(4000, 1)
    with pytest.raises(OutputError, match="holds a run with other options"):
        train_sigma(x, m, NAMES, run.directory, options=replace(SMALL, epochs=7))
    with pytest.raises(OutputError, match="holds a run with other events"):
        train_sigma(x[:-1] * 1.1, m[:-1], NAMES, run.directory, options=SMALL)
    with pytest.raises(OutputError, match=r"it has no run\.json"):
        load_sigma_run(run.directory / "elsewhere")


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    rates = [learning_rate(epoch, SigmaOptions(epochs=10, learning_rate=1.0)) for epoch in range(11)]
    assert rates[0] == pytest.approx(1 / 3)
    assert rates[2] == max(rates)
    assert rates[10] == pytest.approx(0.0, abs=1e-12)


def test_events_that_cannot_train(tmp_path) -> None:
    x, m = toy(500, 8)
    with pytest.raises(EventsError, match="the mass is not a positive number in 1 of 500 events"):
        train_sigma(x, np.where(np.arange(500) == 3, -1.0, m), NAMES, tmp_path, options=SMALL)
    with pytest.raises(EventsError, match="all 500 events have the mass 1000"):
        train_sigma(x, np.full(500, 1000.0), NAMES, tmp_path, options=SMALL)
    with pytest.raises(EventsError, match="feature 'b' is constant"):
        train_sigma(np.column_stack([x[:, 0], np.ones(500)]), m, NAMES, tmp_path, options=SMALL)
    with pytest.raises(EventsError, match="feature 'a' is NaN or infinite in 1 of 500 events"):
        train_sigma(np.where(np.arange(1000).reshape(500, 2) == 4, np.nan, x), m, NAMES, tmp_path, options=SMALL)
    with pytest.raises(EventsError, match=r"45 events to train \d+ weights: the network would learn them by heart"):
        train_sigma(x[:50], m[:50], NAMES, tmp_path / "few", options=replace(SMALL, width=200))
    with pytest.raises(EventsError, match="d from 1 to 6"):
        train_sigma(np.ones((500, 7)), m, tuple("abcdefg"), tmp_path, options=SMALL)
    with pytest.raises(OptionError, match="width = 0 must be at least 1"):
        SigmaOptions(width=0)
    with pytest.raises(OptionError, match="validation = 1 must lie between 0 and 1"):
        SigmaOptions(validation=1.0)


def test_an_exploding_loss_stops_with_a_way_out(tmp_path) -> None:
    x, m = toy(2000, 10)
    with pytest.raises(FitFailed, match=r"the loss is .* after epoch 1; lower learning_rate \(1e\+30\)"):
        train_sigma(x, m, NAMES, tmp_path, options=replace(SMALL, learning_rate=1e30))


def card(**changes: object) -> SigmaCard:
    content = {
        "kind": "sigma",
        "name": "toy-sigma",
        "term": "features",
        "seed": 3,
        "mass": "m",
        "inputs": [{"name": "m", "unit": "GeV"}, {"name": "a"}, {"name": "b", "low": -8.0, "high": 8.0}],
        "background": {"file": "toy.npz", "split": {"train": 0.6, "reference": 0.3, "data": 0.1}},
        "window": [1800.0, 2200.0],
        "buffer": 100.0,
        "train_range": [1000.0, 4000.0],
        "steps": 1,
        "sigma": {
            "width": 12,
            "blocks": 1,
            "context": 4,
            "mass_frequencies": 1,
            "epochs": 1,
            "batch_size": 256,
            "averaged": 1,
        },
        "model": {"valid": [1100.0, 3900.0], "fit_range": [1100.0, 3900.0], "background_parameters": 2},
    }
    return validate(SigmaCard, {**content, **changes}, error=CardError, where="card")


@pytest.mark.slow
def test_card_to_exported_model(tmp_path) -> None:
    x, m = toy(3000, 9)
    np.savez(tmp_path / "toy.npz", m=m, a=x[:, 0], b=x[:, 1])
    run = train_sigma_card(card(), tmp_path / "run", events=tmp_path)
    assert run.finished
    model = export_sigma(tmp_path / "run", tmp_path / "model")
    generator = GeneratorTerm(model.terms["features"])
    assert generator.features == NAMES
    assert model.spec.valid == model.spec.window == (1800.0, 2200.0)
    assert generator.metadata.parity.max_abs < 1e-4
    density = replace(sigma_density(run, backend="keras"), interpolated=(1700.0, 2300.0), steps=1)
    inside = (m > 1800) & (m < 2200) & run.transform.inside(x)
    np.testing.assert_allclose(
        generator.log_prob(x[inside], m[inside]), density.log_prob(x[inside], m[inside]), atol=3e-4
    )
    assert generator.sample(m[inside], rng=np.random.default_rng(1)).shape == (inside.sum(), 2)
    checked = check_background(tmp_path / "run", model, events=tmp_path)
    quality = GeneratorQuality.from_dict(checked.terms["features"].metadata.checks["quality"])
    assert checked.sha256 == load_model(tmp_path / "model").sha256 != model.sha256
    assert quality.window == (1800.0, 2200.0)
    assert quality.spurious == ()  # the shipped ratio knows nothing of these features
    assert (tmp_path / "run" / "checks.png").stat().st_size > 10_000
    with pytest.raises(OutputError, match="holds a run of another card"):
        train_sigma_card(card(seed=4), tmp_path / "run", events=tmp_path)
    np.savez(tmp_path / "toy.npz", m=m[m < 2300], a=x[m < 2300, 0], b=x[m < 2300, 1])
    with pytest.raises(EventsError, match="no event above the window 1700-2300 GeV"):
        train_sigma_card(card(), tmp_path / "one-sided", events=tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"buffer": 900.0}, "leaves nothing on both sides inside train_range"),
        ({"train_range": [0.0, 4000.0]}, "reaches down to 0"),
        ({"mass": "a"}, "the mass 'a' is not the first of the inputs"),
        ({"model": {"valid": [900.0, 3900.0], "fit_range": [900.0, 3900.0]}}, "is not inside train_range"),
        ({"kind": "background"}, "kind"),
    ],
)
def test_cards_that_contradict_themselves(changes, message) -> None:
    with pytest.raises(CardError, match=message):
        card(**changes)


OTHER_BACKEND = """
import json, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from dataclasses import replace
from test_sigma import NAMES, SMALL, toy
from gbistat.training.environment import keras
from gbistat.training.sigma import train_sigma
from gbistat.training.sigma_graph import sigma_density
x, m = toy(4000, 1)
run = train_sigma(x, m, NAMES, sys.argv[2], options=replace(SMALL, epochs=2))
values = replace(sigma_density(run, backend="keras"), steps=2).log_prob(x[:50], m[:50])
print(json.dumps([keras().backend.backend(), [e.validation_loss for e in run.history()], values.tolist()]))
"""


@pytest.mark.slow
def test_jax_gives_the_same_as_tensorflow(tmp_path) -> None:
    """Same seeds, same initial weights: losses agree to the rounding of float32 that two epochs build up."""
    pytest.importorskip("jax")
    x, m = toy(4000, 1)
    run = train_sigma(x, m, NAMES, tmp_path / "tensorflow", options=replace(SMALL, epochs=2))
    expected = replace(sigma_density(run, backend="keras"), steps=2).log_prob(x[:50], m[:50])
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    done = subprocess.run(
        [sys.executable, "-c", OTHER_BACKEND, str(Path(__file__).parent), str(tmp_path / "jax")],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    backend, losses, values = json.loads(done.stdout.strip().splitlines()[-1])
    assert backend == "jax"
    np.testing.assert_allclose(losses, [epoch.validation_loss for epoch in run.history()], rtol=1e-3)
    np.testing.assert_allclose(values, expected, atol=0.02)
