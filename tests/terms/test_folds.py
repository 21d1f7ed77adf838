"""Folds by a hash of the event: stable under what must not matter, uniform, independent of the features."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2

from gbistat.data.events import Events, concatenate
from gbistat.errors import EventsError, OptionError
from gbistat.terms.folds import FOLD_ALGORITHM, FoldRule

NAMES = ("m_light", "tau21")
KNOWN = [0, 1, 2, 3]
RULE = FoldRule(5, 20260101, ("m_jj", *NAMES))


def some_events(n: int, seed: int = 1) -> Events:
    rng = np.random.default_rng(seed)
    features = np.column_stack([rng.exponential(80.0, n), rng.beta(4, 3, n)])
    return Events(rng.uniform(3300, 3700, n), features, NAMES, {"m_light": "GeV"})


def single_precision(events: Events) -> Events:
    return replace(
        events, mass=events.mass.astype(np.float32), features=events.features.astype(np.float32).astype(float)
    )


def test_known_values():
    # What term.json says must mean the same for ever: these numbers may never change under this name of the algorithm.
    events = Events([3400.0, 3500.5, 3600.25, 3333.3], [[80.0, 0.5], [0.0, 0.25], [1e-3, 0.75], [250.0, 1.0]], NAMES)
    assert FOLD_ALGORITHM == "splitmix64-8bit/1"
    assert RULE.fold_of(events).tolist() == KNOWN
    assert FoldRule(5, 7, RULE.columns).fold_of(events).tolist() != KNOWN


def test_neither_order_nor_other_events_matter():
    events = some_events(2000)
    folds = RULE.fold_of(events)
    order = np.random.default_rng(2).permutation(2000)
    assert np.array_equal(RULE.fold_of(events.select(order)), folds[order])
    assert np.array_equal(RULE.fold_of(concatenate([events.select(np.arange(10)), events]))[10:], folds)


def test_neither_unit_nor_precision_of_the_file_matters():
    events = some_events(20_000)
    folds = RULE.fold_of(events)
    assert np.array_equal(RULE.fold_of(single_precision(events)), folds)
    assert np.array_equal(RULE.fold_of(events.to_unit("TeV")), folds)
    assert np.array_equal(RULE.fold_of(events.to_unit("MeV")), folds)
    # Rounded in TeV and read as GeV: two roundings, and 60,000 values of which some 0.3 lie on an edge between.
    assert np.sum(RULE.fold_of(single_precision(events.to_unit("TeV"))) != folds) <= 4


def test_same_values_same_fold():
    event = Events([3400.0] * 3, [[0.0, 0.5], [-0.0, 0.5], [0.0, 0.5]], NAMES)
    assert len(set(RULE.fold_of(event).tolist())) == 1


def test_every_column_counts():
    events = some_events(1000)
    for name in NAMES:
        features = events.features.copy()
        features[:, events.names.index(name)] *= 1.1
        moved = RULE.fold_of(replace(events, features=features)) != RULE.fold_of(events)
        # 4/5 of independent folds differ; 5 standard deviations.
        assert abs(moved.mean() - 0.8) < 5 * np.sqrt(0.16 / 1000)


@pytest.mark.parametrize("n_folds", [2, 3, 5, 10])
def test_uniform_and_independent_of_the_features(n_folds):
    events = some_events(30_000)
    folds = FoldRule(n_folds, 3, RULE.columns).fold_of(events)
    for name in RULE.columns:
        values = events.feature(name)
        edges = np.quantile(values, np.linspace(0, 1, 21)[1:-1])
        table = np.zeros((20, n_folds))
        np.add.at(table, (np.searchsorted(edges, values), folds), 1)
        expected = table.sum() / table.size
        # 20 K - 1 degrees of freedom to good approximation; a false alarm in 10,000 for each of twelve tables.
        assert np.sum((table - expected) ** 2 / expected) < chi2.isf(1e-4, table.size - 1)


def test_round_trip():
    assert FoldRule.from_dict(RULE.to_dict()) == RULE
    assert RULE.to_dict()["algorithm"] == FOLD_ALGORITHM


def test_errors():
    with pytest.raises(OptionError, match="two folds at least"):
        FoldRule(1, 1, ("m_jj",))
    with pytest.raises(OptionError, match="each once"):
        FoldRule(2, 1, ("m_jj", "m_jj"))
    with pytest.raises(OptionError, match="must be 0 or more"):
        FoldRule(2, -1, ("m_jj",))
    with pytest.raises(OptionError, match="made by 'md5'"):
        FoldRule.from_dict({**RULE.to_dict(), "algorithm": "md5"})
    with pytest.raises(OptionError, match="is no fold rule"):
        FoldRule.from_dict({"n_folds": 5})
    with pytest.raises(EventsError, match="no feature 'tau21'"):
        RULE.fold_of(Events([3400.0], [[1.0]], ["m_light"]))
