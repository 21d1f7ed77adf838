from __future__ import annotations

import numpy as np
import pytest

from gbistat.errors import EventsError
from gbistat.training.card import Fractions
from gbistat.training.dataset import core_events, member_sets, training_pool
from gbistat.training.splits import PARTS, read_sample, split_indices

FRACTIONS = Fractions(train=0.4, reference=0.25, data=0.35)


@pytest.mark.parametrize("n", [0, 1, 7, 1000, 285_209])
def test_parts_are_disjoint_and_together_everything(n):
    parts = split_indices(n, FRACTIONS, seed=3, file="qcd.h5")
    rows = np.concatenate([parts[name] for name in PARTS])
    assert np.array_equal(np.sort(rows), np.arange(n))
    assert [parts[name].size for name in PARTS] == pytest.approx([0.4 * n, 0.25 * n, 0.35 * n], abs=1)


def test_the_seed_and_the_name_of_the_file_decide():
    first = split_indices(1000, FRACTIONS, seed=3, file="qcd.h5")
    again = split_indices(1000, FRACTIONS, seed=3, file="qcd.h5")
    assert all(np.array_equal(first[name], again[name]) for name in PARTS)
    for other in (
        split_indices(1000, FRACTIONS, seed=4, file="qcd.h5"),
        split_indices(1000, FRACTIONS, seed=3, file="b"),
    ):
        # Independent splits share 0.4 * 0.4 of the events, 160 +- 9.
        shared = np.intersect1d(first["train"], other["train"]).size
        assert 120 < shared < 200


def test_the_record_fixes_file_and_rows(toy_card, toy_events):
    card = toy_card()
    record = read_sample(toy_events, card.background, card).record()
    assert record["counts"] == {"train": 2000, "reference": 1200, "data": 800}
    assert record == read_sample(toy_events, card.background, card).record()
    other = toy_card(seed=12)
    changed = read_sample(toy_events, other.background, other).record()
    assert changed["sha256"] == record["sha256"]
    assert all(changed["rows_sha256"][name] != record["rows_sha256"][name] for name in PARTS)


def test_errors_name_the_file(toy_card, toy_events, tmp_path):
    card = toy_card()
    with pytest.raises(EventsError, match=r"background.h5 is not in .*; give the folder"):
        read_sample(tmp_path, card.background, card)
    inputs = [{"name": "m", "unit": "GeV", "low": 90.0, "log_offset": 0.0}, {"name": "a"}]
    strict = toy_card(inputs=inputs)
    with pytest.raises(EventsError, match=r"'m' is below 90 in \d+ events"):
        read_sample(toy_events, strict.background, strict)
    wrong = toy_card(inputs=[{"name": "m", "unit": "GeV"}, {"name": "a", "unit": "GeV"}])
    with pytest.raises(EventsError, match=r"'a' is in '1', and the card says 'GeV'"):
        read_sample(toy_events, wrong.background, wrong)


def test_no_event_both_trains_and_validates(toy_card, toy_events):
    card = toy_card()
    background = read_sample(toy_events, card.background, card)
    signals = [read_sample(toy_events, spec, card) for spec in card.signals]
    pool = training_pool(background, signals, card)
    low, high = card.train_range
    assert np.all((pool.background[:, 0] >= low) & (pool.background[:, 0] < high))
    train, validate = member_sets(pool, card, 0)
    # The features of an event are never changed, and they are continuous: they identify it.
    assert np.intersect1d(train.x[:, 1], validate.x[:, 1]).size == 0
    of_training_part = np.concatenate([sample.part("train").feature("a") for sample in (background, *signals)])
    assert np.isin(np.concatenate([train.x[:, 1], validate.x[:, 1]]), of_training_part).all()
    # A bootstrap leaves out 1/e of the events.
    share = np.sum(validate.y == 0) / len(pool.background)
    assert share == pytest.approx(np.exp(-1.0), abs=0.04)
    for events in (train, validate):
        assert np.sum(events.weights[events.y > 0.5]) == pytest.approx(np.sum(events.weights[events.y < 0.5]))
        assert np.mean(events.weights) == pytest.approx(1.0)
    again, _ = member_sets(pool, card, 0)
    other, _ = member_sets(pool, card, 1)
    assert np.array_equal(train.x, again.x)
    assert not np.array_equal(np.sort(train.x[:, 1]), np.sort(other.x[:, 1]))


def test_only_the_core_of_a_resonance_trains(toy_card):
    card = toy_card()
    x = np.array([[91.99, 0.0, 0.0], [92.01, 0.0, 0.0], [107.99, 0.0, 0.0], [108.01, 0.0, 0.0]])
    assert core_events(x, 100.0, card)[:, 0].tolist() == [92.01, 107.99]
