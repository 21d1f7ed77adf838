"""Failure modes of samples whose failure is known."""

from __future__ import annotations

import numpy as np
import pytest

from gbistat.diagnostics.calibration import calibrate
from gbistat.diagnostics.evidence import log_score, tail_tests
from gbistat.diagnostics.failure_modes import DESCRIPTIONS, failure_modes, weight_shape
from gbistat.diagnostics.permutations import permutation_test
from gbistat.diagnostics.roc import area_under_roc
from gbistat.diagnostics.slices import slice_scan
from gbistat.diagnostics.weights import Scores, weight_moments


def name_them(scores, observables):
    rng = np.random.default_rng(1)
    test = permutation_test(scores, rng=rng, permutations=199)
    return failure_modes(
        scores,
        moments=weight_moments(scores),
        tails=tail_tests(scores, rng=rng),
        area=area_under_roc(scores),
        calibration=calibrate(scores),
        log_score=log_score(scores),
        slices=slice_scan(observables, scores),
        rejected=test.p_global < 0.01,
    )


@pytest.mark.parametrize(("kind", "code"), [("tail cut", "TAIL"), ("smear", "SMEAR-DOM"), ("shift", "SHIFT")])
def test_jet_masses(jets, kind, code):
    toy = jets.toy(kind, 20_000, np.random.default_rng(4))
    first, *_ = name_them(toy.scores, {"mass": toy.values})
    assert (first.code, first.score) == (code, 1.0)
    assert first.description == DESCRIPTIONS[code]


def test_closed_forms(toys):
    rng = np.random.default_rng(4)
    for toy, code in [
        (toys["shift"](0.2, 20_000, rng), "SHIFT"),
        (toys["smear"](1.25, 20_000), "SMEAR-DOM"),
        (toys["boundary"](20_000), "EDGE"),
        (toys["resonance"](1.5, 20_000, rng), "SMEAR-NARROW"),
        (toys["resonance"](1.0, 20_000, rng), "SMEAR-NARROW"),
    ]:
        assert name_them(toy.scores, {"x": toy.values})[0].code == code


def test_nothing_is_named_without_a_rejection():
    rng = np.random.default_rng(4)
    scores = Scores(rng.normal(0, 0.01, 10_000), np.arange(10_000) < 5000)
    assert name_them(scores, {"x": rng.normal(size=10_000)}) == ()


def test_a_classifier_that_learned_noise_or_the_opposite(toys):
    rng = np.random.default_rng(4)
    noise = Scores(rng.normal(0, 1.3, 10_000), np.arange(10_000) < 5000)
    assert name_them(noise, {"x": rng.normal(size=10_000)})[0].code == "OVERFIT-C"
    toy = toys["shift"](0.3, 5000)
    assert "ANTI-C" in [mode.code for mode in name_them(Scores(-toy.scores.logit, toy.is_data), {"x": toy.values})]


def test_a_factor_is_named(toys):
    toy = toys["shift"](0.5, 20_000, np.random.default_rng(4))
    assert "NORM" in [mode.code for mode in name_them(Scores(toy.scores.logit + 0.3, toy.is_data), {"x": toy.values})]


def test_the_most_frequent_weight(toys):
    assert weight_shape(toys["smear"](1.25, 20_000).scores).mode == pytest.approx(1.25, abs=0.01)
    assert weight_shape(toys["boundary"](20_000).scores).mode == pytest.approx(1.05)
    toy = toys["resonance"](1.5, 20_000, np.random.default_rng(1))
    assert weight_shape(toy.scores).mode == pytest.approx(0.635, abs=0.02)
