"""Sideband events that may train a generator, and what is wrong with them before hours are spent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import rankdata

from gbistat.data.transforms import FeatureTransform
from gbistat.data.window import MassWindow
from gbistat.errors import EventsError, WindowError

if TYPE_CHECKING:
    from gbistat.training.background_card import BackgroundCard
    from gbistat.training.splits import Sample
    from gbistat.typing import FloatArray

__all__ = ["SidebandPool", "bootstrap", "check_features", "sideband_pool"]

FEW_IN_A_SIDEBAND = 1000
ATOM = 0.01
"""Share of events with one and the same value above which a feature is not continuous."""
SAME = 1.0 - 1e-9
"""Correlation of ranks from which two features are one."""


@dataclass(frozen=True, eq=False)
class SidebandPool:
    """What may train.

    Parameters
    ----------
    x : array of shape (n, 1 + d)
        Mass and features of the sideband events inside the range of the transform.
    transform : FeatureTransform
        Fitted to them.
    counts : dict of str to int
        Events ``below`` and ``above`` the window, and ``left_out``: in a sideband but at or beyond an end of a
        feature's range.
    warnings : tuple of str
        What a person should know before trusting the result.
    """

    x: FloatArray
    transform: FeatureTransform
    counts: dict[str, int]
    warnings: tuple[str, ...]


def sideband_pool(sample: Sample, card: BackgroundCard) -> SidebandPool:
    """Sideband events of the part ``train`` of a sample.

    Raises
    ------
    WindowError
        If the window lies outside the data.
    EventsError
        If a sideband is empty, or a feature is constant, integer, duplicated, or not finite.
    """
    x = sample.part("train").matrix(card.names)
    mass = x[:, 0]
    unit, (low, high) = card.unit, card.window
    if not np.any((mass >= low) & (mass < high)) and (
        mass.max(initial=-np.inf) < low or mass.min(initial=np.inf) >= high
    ):
        span = f"{mass.min():.6g} to {mass.max():.6g} {unit}" if mass.size else "nothing"
        raise WindowError(
            f"the window {MassWindow(low, high, unit)} is outside the data of {sample.file}, which span {span}; "
            "check the window and the unit"
        )
    masks = {
        "below": (mass >= card.train_range[0]) & (mass < low),
        "above": (mass >= high) & (mass < card.train_range[1]),
    }
    warnings = []
    for side, mask in masks.items():
        n, interval = int(mask.sum()), (card.train_range[0], low) if side == "below" else (high, card.train_range[1])
        where = f"{side} the window, {interval[0]:g}-{interval[1]:g} {unit},"
        if n == 0:
            raise EventsError(
                f"the sideband {where} is empty: with one sideband a generator extrapolates into the window and is not "
                "to be trusted; move the window or widen train_range"
            )
        if n < FEW_IN_A_SIDEBAND:
            warnings.append(
                f"the sideband {where} has {n} events only: the interpolation into the window hangs on them"
            )
    chosen = x[masks["below"] | masks["above"]]
    check_features(chosen[:, 1:], card.features)
    bounds = [(item.low, item.high) for item in card.inputs[1:]]
    transform = FeatureTransform.fit(chosen[:, 1:], card.features, margin=card.margin, bounds=bounds)
    # The graph works in float32, and an end must not be reached by rounding.
    inside = transform.inside(chosen[:, 1:].astype(np.float32).astype(np.float64))
    left_out = int(np.sum(~inside))
    if left_out:
        warnings.append(
            f"{left_out} of {len(chosen)} sideband events have a feature at or beyond a known end of its range (inputs "
            "low, high): they are left out, and the density there is 0"
        )
    counts = {"below": int(masks["below"].sum()), "above": int(masks["above"].sum()), "left_out": left_out}
    return SidebandPool(chosen[inside], transform, counts, tuple(warnings))


def check_features(features: FloatArray, names: tuple[str, ...]) -> None:
    """Refuse features that have no density: not finite, constant, integer, with atoms, or functions of each other.

    Raises
    ------
    EventsError
        Names the feature, the reason and the way out.
    """
    for name, column in zip(names, features.T, strict=True):
        bad = int(np.sum(~np.isfinite(column)))
        if bad:
            raise EventsError(
                f"feature {name!r} is NaN or infinite in {bad} of {len(column)} events; remove these events"
            )
        values, counts = np.unique(column, return_counts=True)
        if values.size == 1:
            raise EventsError(
                f"feature {name!r} is constant ({values[0]:.6g}) in all {len(column)} events: leave this feature out"
            )
        if np.array_equal(values, np.round(values)) and values.size < len(column):
            raise EventsError(
                f"feature {name!r} takes whole numbers only ({values.size} distinct values): it has no density; leave it "
                "out, or add noise uniform in [0, 1) to it in the file"
            )
        if counts.max() > max(ATOM * len(column), 2):
            raise EventsError(
                f"feature {name!r} is {values[np.argmax(counts)]:.6g} in {counts.max()} of {len(column)} events: it has no "
                "density there; leave it out, or select events without that value"
            )
    if len(names) < 2:
        return
    ranks = np.corrcoef([rankdata(column) for column in features.T])
    first, second = np.unravel_index(np.argmax(np.abs(np.triu(ranks, 1))), ranks.shape)
    if abs(ranks[first, second]) > SAME:
        raise EventsError(
            f"the features {names[first]!r} and {names[second]!r} are functions of each other (their ranks are the same): "
            "together they have no density; leave one out"
        )
    smallest = float(np.linalg.eigvalsh(np.corrcoef(features.T))[0])
    if smallest < 1.0 - SAME:
        raise EventsError(
            f"one of the features {', '.join(names)} is a linear function of the others: together they have no density; "
            "leave it out"
        )


def bootstrap(n: int, *, entropy: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a bootstrap resample of n events, and the rows that it left out (about 37 %)."""
    chosen = np.random.default_rng(entropy).integers(n, size=n)
    left = np.ones(n, dtype=np.bool_)
    left[chosen] = False
    return chosen, np.flatnonzero(left)
