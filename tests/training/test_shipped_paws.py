"""The shipped parametrised model: whole, made as it says, and as good as its card claims."""

from __future__ import annotations

import numpy as np
import pytest

from gbistat.terms.store import load_model, load_reference
from gbistat.training.paws_card import load_paws_card

NAME = "dijet-paws"


@pytest.fixture(scope="module")
def model():
    return load_model(NAME)


@pytest.fixture(scope="module")
def term(model):
    return model.terms["qq-masses"]


def test_the_model_says_what_its_card_says(model, term):
    card = load_paws_card(model.directory / "card.yaml")
    assert card.name == NAME
    assert model.spec.window == card.model.window == (3300.0, 3700.0)
    assert model.spec.features == card.features == term.feature_names
    assert [(item.name, item.low, item.high) for item in term.metadata.parameters] == [
        ("m_X", 50.0, 600.0),
        ("m_Y", 50.0, 600.0),
    ]
    assert term.metadata.parity.max_abs < 1e-4
    assert term.metadata.training.seed == card.seed


def test_its_background_is_split_as_that_of_the_other_models(model):
    def background(name):
        splits = load_model(name).spec.provenance["splits"]
        return next(split for split in splits if split["file"] == "qcd.features.h5")

    assert background(NAME)["rows_sha256"] == background("dijet-qq-3500")["rows_sha256"]


def test_it_separates_and_is_calibrated_where_it_was_never_trained(term):
    checks = term.metadata.checks
    unseen = checks["masses_never_trained"]
    assert len(unseen) > 30
    assert min(row["auc"] for row in unseen) > 0.94
    closure = np.array([row["closure"]["fitted_over_true"] for row in unseen])
    assert np.mean(closure) == pytest.approx(1.0, abs=0.1)
    assert np.std(closure) < 0.16
    assert checks["log_kappa"]["agree_within_two_sigma"]
    for row in checks["held_out"]["calibration"]:
        assert abs(row["observed"] - row["predicted"]) < 4.0 * row["sigma"]


def test_it_is_as_good_at_the_benchmark_as_a_classifier_made_for_it(model, term):
    (row,) = term.metadata.checks["benchmarks"]
    dedicated = next(iter(load_model("dijet-qq-3500").terms.values())).metadata.checks["windows"][0]
    assert row["significance_improvement"]["value"] > 0.9 * dedicated["significance_improvement"]["value"]
    assert abs(row["closure"]["fitted_over_true"] - 1.0) < 3.0 * row["closure"]["sigma"]


def test_reference_events_stand_for_background_at_all_masses(model, term):
    reference = load_reference(model)
    masses = [(a, b) for a in (100.0, 200.0, 300.0, 400.0, 500.0) for b in (100.0, 250.0, 450.0)]
    means = [np.average(np.exp(term.log_ratio(reference, m_X=a, m_Y=b)), weights=reference.weights) for a, b in masses]
    # Single masses have errors of about 8 %.
    assert np.mean(means) == pytest.approx(1.0, abs=0.1)
    a, b = (term.log_ratio(reference, m_X=x, m_Y=y) for x, y in ((500.0, 100.0), (100.0, 500.0)))
    assert np.array_equal(a, b)
