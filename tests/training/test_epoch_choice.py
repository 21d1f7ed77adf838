"""Epochs chosen by ARGOS: of a generator (small is good) and of a classifier (large is good)."""

from __future__ import annotations

import numpy as np
import pytest

from gbistat.errors import CardError, OptionError
from gbistat.training import classifier_network, epoch_choice
from gbistat.training.classifier_network import NetworkOptions, train_network
from gbistat.training.epoch_choice import generator_argos

pytest.importorskip("sklearn", reason="needs the extra 'train'")
ENTROPY = [1, 2]


def gaussian(shift=0.0, hole=np.inf):
    """A flow that draws N(shift, 1), and nothing above the hole."""

    def sample(_, x):
        drawn = x[:, 1:] + shift
        return np.where(drawn < hole, drawn, -drawn)

    return sample


def test_argos_of_a_generator_ranks_generators(monkeypatch):
    # Right, off by 0.1 and 0.3, without the upper 2.3 %: what a search would take for signal is ranked worst.
    rng = np.random.default_rng(1)
    held_out = np.column_stack([rng.uniform(3000, 4000, 4000), rng.normal(size=4000)])
    found = {}
    for name, flow in {"right": (), "near": (0.15,), "far": (0.3,), "hole": (0.0, 2.0)}.items():
        monkeypatch.setattr(epoch_choice, "sample_flow", gaussian(*flow))
        found[name] = generator_argos(None, held_out, entropy=ENTROPY)
        assert found[name] == generator_argos(None, held_out, entropy=ENTROPY)
    assert found["right"] < found["near"] < found["far"]
    assert found["hole"] > 2 * found["right"]


@pytest.mark.train
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_a_card_selects_the_epochs_of_a_generator(background_card, background_events, tmp_path):
    pytest.importorskip("tensorflow", reason="needs the extra 'train'")
    from gbistat.training.background import train_background

    card = background_card(optimiser={"members": 1, "epochs": 3, "average": 1, "select": "argos"})
    run = train_background(card, tmp_path, events=background_events)
    history, final = run.member(0).history(), run.member(0).final()
    values = [epoch.argos for epoch in history]
    assert all(value is not None and value > 0 for value in values)
    assert final.epochs == (int(np.argmin(values)),)
    assert final.validation_loss == pytest.approx(history[final.epochs[0]].validation_loss, abs=1e-4)
    with pytest.raises(CardError, match="select"):
        background_card(optimiser={"select": "auc"})


@pytest.mark.train
def test_a_classifier_keeps_the_epochs_of_largest_argos(monkeypatch):
    pytest.importorskip("keras", reason="needs the extra 'train'")
    rng = np.random.default_rng(2)
    x, label = rng.normal(size=(1000, 2)), np.arange(1000) < 500
    ask, weights = rng.normal(size=(3, 2)), np.ones(1000)
    answers = iter([0.3, 0.9, 0.1])
    logits = []

    class Answer:
        def __init__(self, value):
            self.value = value

    monkeypatch.setattr(classifier_network, "argos", lambda *_: Answer(next(answers)))
    own = classifier_network._logits

    def watched(network, z):
        logits.append(own(network, z))
        return logits[-1]

    monkeypatch.setattr(classifier_network, "_logits", watched)
    options = NetworkOptions(layers=1, nodes=4, epochs=3, batch_size=100, average=1, select="argos")
    (kept,) = train_network(x, label, weights, ask, seeds=[1], options=options)
    # The second epoch is the best, whatever its loss; it is asked after its validation.
    asked = [values for values in logits if values.size == 3]
    assert np.array_equal(kept, asked[1])
    with pytest.raises(OptionError, match="cannot be selected by 'auc'"):
        NetworkOptions(select="auc")
