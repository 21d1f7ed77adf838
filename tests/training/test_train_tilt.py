"""Weights as an exportable ratio: what they are, where they are held, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from gbistat.data.events import Events
from gbistat.errors import EventsError
from gbistat.training.classifier_network import NetworkOptions
from gbistat.training.tilt import TiltOptions, train_tilt

pytest.importorskip("keras", reason="needs the extra 'train'")
pytestmark = pytest.mark.train
D = 0.4


def events(mean, n, rng, names=("t",)):
    mass = rng.uniform(3000.0, 4000.0, n)
    return Events(mass, rng.normal(mean, 1.0, (n, 1)), names, dict.fromkeys(names, "1"))


def test_the_weights_of_a_shift_are_exported():
    pytest.importorskip("tensorflow", reason="needs the extra 'train'")
    rng = np.random.default_rng(1)
    data, generated = events(0.0, 4000, rng), events(D, 4000, rng)
    network = NetworkOptions(layers=1, nodes=16, epochs=8, batch_size=200)
    options = TiltOptions(members=2, network=network)
    term = train_tilt(data, generated, rng=rng, valid=(3000.0, 4000.0), options=options)
    x = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    asked = Events(np.full(5, 3500.0), x[:, None], ("t",), {"t": "1"})
    # ln w = -d x + d^2 / 2; networks trained for two seconds.
    assert term.log_ratio(asked) == pytest.approx(-D * x + 0.5 * D**2, abs=0.2)
    assert term.metadata.parity.max_abs < 1e-4
    assert term.metadata.checks["std_log_weight"] == pytest.approx(D, rel=0.25)
    # Beyond the training events the weight stays what it is at their edge.
    far = Events(np.full(2, 3500.0), np.array([[8.0], [80.0]]), ("t",), {"t": "1"})
    assert np.ptp(term.log_ratio(far)) < 0.02


def test_samples_that_make_no_tilt():
    rng = np.random.default_rng(1)
    for data, generated in [
        (events(0, 50, rng), events(0, 200, rng)),
        (events(0, 200, rng), events(0, 200, rng, ("u",))),
    ]:
        with pytest.raises(EventsError, match="needs 100 of each with the same features"):
            train_tilt(data, generated, rng=rng, valid=(3000.0, 4000.0))
