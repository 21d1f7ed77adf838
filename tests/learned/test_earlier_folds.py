"""Networks that see earlier folds only."""

from __future__ import annotations

import numpy as np
import pytest

from gbistat.data.transforms import FeatureTransform
from gbistat.errors import EventsError
from gbistat.training.ranode import _Outside
from gbistat.training.ranode_card import FoldPart, RanodeCard
from gbistat.training.ranode_data import TransformedData, _check_sizes


def make_data(n=400, folds=4):
    rng = np.random.default_rng(1)
    x = np.column_stack([np.arange(n, dtype=float), rng.random(n)])
    transform = FeatureTransform.fit(x, ("m", "t"), bounds=[(-1.0, n), (-0.1, 1.1)])
    zero = np.zeros(n)
    return TransformedData(
        x,
        zero,
        transform,
        x.astype(np.float32),
        zero.astype(np.float32),
        np.arange(n) % folds,
        np.arange(n) // folds % 2,
        0,
    )


@pytest.mark.parametrize("earlier", [False, True])
def test_each_network_sees_the_folds_it_may_see(earlier):
    data, networks = make_data(), [(k, m) for k in range(4) for m in range(2)]
    outside = _Outside.of(data, networks, earlier=earlier)
    for t, (k, m) in enumerate(networks):
        seen = outside.z[t, 0][outside.train[t]].astype(int)
        held = outside.z[t, 0][outside.validate[t]].astype(int)
        allowed = set(range(k)) if earlier and k else set(range(4)) - {k}
        assert set((seen % 4).tolist()) == set((held % 4).tolist()) == allowed
        assert set((held // 4 % 2).tolist()) == {m}
        assert seen.size + held.size == 100 * len(allowed)


def test_too_few_events_in_the_first_folds_are_found():
    card = RanodeCard.model_validate(
        {
            "schema": "gbistat.training/1",
            "kind": "ranode",
            "name": "small",
            "data": {"file": "data.npz"},
            "seed": 1,
            "generator": "dijet-background",
            "folds": {"n_folds": 4, "members": 2},
            "optimiser": {"batch_size": 100},
        }
    )
    data = make_data()
    _check_sizes(data.fold, data.part, card)
    sequential = card.model_copy(update={"folds": FoldPart(n_folds=4, members=2, train_on="earlier")})
    with pytest.raises(EventsError, match="leave 50 to train a network, fewer than a batch of 100"):
        _check_sizes(data.fold, data.part, sequential)
