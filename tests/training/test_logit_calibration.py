"""Lines through logits: against their construction."""

from __future__ import annotations

import numpy as np
import pytest

from gbistat.errors import FitFailed
from gbistat.training.dataset import ClassifierSet
from gbistat.training.logit_calibration import calibrate_logits


@pytest.fixture(scope="module")
def sample():
    # Signal N(1, 1), background N(0, 1): the true logit with equal classes is z - 1/2.
    rng = np.random.default_rng(1)
    z = np.concatenate([rng.normal(1.0, 1.0, 40_000), rng.normal(0.0, 1.0, 80_000)])
    y = np.repeat([1.0, 0.0], [40_000, 80_000])
    return z - 0.5, ClassifierSet(z[:, None], y, np.where(y > 0.5, 2.0, 1.0))


def test_a_network_that_is_too_sure_is_taken_back(sample):
    true, events = sample
    line = calibrate_logits((true - 0.3) / 0.8, events)
    # Errors of a logistic regression of this size are about 0.008; four of them.
    assert line.slope == pytest.approx(0.8, abs=0.03)
    assert line.shift == pytest.approx(0.3, abs=0.03)
    assert line.loss_after < line.loss_before
    best = np.average(np.logaddexp(0.0, np.where(events.y > 0.5, -true, true)), weights=events.weights)
    assert line.loss_after == pytest.approx(best, abs=1e-4)


def test_far_logits_converge(sample):
    true, events = sample
    assert calibrate_logits(30.0 * true + 50.0, events).slope == pytest.approx(1 / 30.0, rel=0.03)


def test_a_network_that_learned_the_opposite_is_refused(sample):
    true, events = sample
    with pytest.raises(FitFailed, match=r"slope -1.0\d*\): it has not learned|slope -0.9\d*\): it has not learned"):
        calibrate_logits(-true, events)
