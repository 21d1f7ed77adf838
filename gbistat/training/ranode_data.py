"""Data in a window as a stack of signal flows takes them: transformed, with the background's density, in folds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import EventsError
from gbistat.terms.folds import FoldRule
from gbistat.training.sidebands import check_features

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.data.events import Events
    from gbistat.data.transforms import FeatureTransform
    from gbistat.training.ranode_card import RanodeCard
    from gbistat.typing import FloatArray, IntArray, Json

__all__ = ["INNER_SEED", "RanodeData", "TransformedData", "fold_rules", "transform_data"]

INNER_SEED = 1_000_003
"""Added to the card's seed for the parts inside a fold's training events."""


@dataclass(frozen=True, eq=False)
class RanodeData:
    """Data in the window and what is known of their background.

    Parameters
    ----------
    events : Events
        n events of the window, in the unit of the generator, with its features.
    log_background : array of shape (n,)
        ln[p_b(x|m) p_b(m)], in the units of the events, p_b(m) normalised on the window; -inf outside the range of the generator.
    transform : FeatureTransform
        Of the mass, on the open window, and of the features, on the open ranges where the generator's density lives. It must not be
        fitted to these events: a fold's networks would know of the fold.
    record : dict
        Provenance, as JSON: ``file``, ``sha256``, ``generator`` (name and sha256), ``sidebands``, ``warnings``.
    """

    events: Events
    log_background: FloatArray
    transform: FeatureTransform
    record: Json


@dataclass(frozen=True, eq=False)
class TransformedData:
    """What the networks see, in an order that does not depend on that of the file.

    Parameters
    ----------
    x : array of shape (n, 1 + d)
        Raw mass and features.
    log_background : array of shape (n,)
        ln p_b in the raw space.
    transform : FeatureTransform
        Of mass and features.
    z : array of shape (n, 1 + d), float32
        Transformed.
    log_b : array of shape (n,), float32
        ln p_b in the transformed space.
    fold, part : array of shape (n,)
        Fold of each event, and its part in the training events of the other folds.
    left_out : int
        Events in the window, but at or beyond an end of a feature's range.
    """

    x: FloatArray
    log_background: FloatArray
    transform: FeatureTransform
    z: FloatArray
    log_b: FloatArray
    fold: IntArray
    part: IntArray
    left_out: int


def fold_rules(card: RanodeCard, columns: Sequence[str]) -> tuple[FoldRule, FoldRule]:
    """Rule of the folds, and of the parts inside them."""
    names = tuple(columns)
    folds = card.folds
    return FoldRule(folds.n_folds, card.seed, names), FoldRule(folds.parts, card.seed + INNER_SEED, names)


def transform_data(data: RanodeData, card: RanodeCard) -> TransformedData:
    """Select, sort, transform and deal the events.

    Raises
    ------
    EventsError
        If too few events are left, a feature has no density, or a fold is too small for the batches.
    """
    names = (data.events.mass_name, *data.events.names)
    x = data.events.matrix(names)
    log_background = np.asarray(data.log_background, dtype=np.float64)
    transform = data.transform
    if transform.names != names:
        raise EventsError(
            f"the transform is of {list(transform.names)}, and the events have {list(names)}; give the same"
        )
    inside = transform.inside(x.astype(np.float32).astype(np.float64)) & np.isfinite(log_background)
    left_out = int(np.sum(~inside))
    x, log_background = x[inside], log_background[inside]
    if not len(x):
        raise EventsError(f"all {left_out} events are outside the range of the generator; check units and window")
    check_features(x, names)
    order = np.lexsort((*x.T[::-1], log_background))
    x, log_background = x[order], log_background[order]
    events = data.events.select(np.flatnonzero(inside)[order])
    outer, inner = fold_rules(card, names)
    fold, part = outer.fold_of(events), inner.fold_of(events)
    _check_sizes(fold, part, card)
    log_b = log_background - transform.log_abs_det(x)
    return TransformedData(
        x,
        log_background,
        transform,
        transform.forward(x).astype(np.float32),
        log_b.astype(np.float32),
        fold,
        part,
        left_out,
    )


def _check_sizes(fold: IntArray, part: IntArray, card: RanodeCard) -> None:
    k, parts = card.folds.n_folds, card.folds.parts
    earlier = card.folds.train_on == "earlier"
    seen = [(fold < i) if earlier and i else (fold != i) for i in range(k)]
    smallest = min(int(np.sum(rows & (part != j))) for rows in seen for j in range(parts))
    if smallest < card.optimiser.batch_size:
        raise EventsError(
            f"{len(fold)} events in {k} folds leave {smallest} to train a network, fewer than a batch of "
            f"{card.optimiser.batch_size}; lower optimiser.batch_size or give more events"
        )
