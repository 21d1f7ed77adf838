r"""A rule in words for where data and generated events differ: a shallow regression tree of ln w on the observables.

The tree knows ln w and no labels, and the classifiers knew only labels of events before the last fold: in the last fold, where leaves are
counted, labels are exchangeable, and the p-value of a leaf is a plain hypergeometric one, times the number of leaves. Unlike
`gbistat.diagnostics.regions` a leaf may be a box in up to three observables.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import hypergeom

from gbistat.errors import EventsError, OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gbistat.diagnostics.weights import Scores
    from gbistat.typing import FloatArray, IntArray, Json

__all__ = ["Rule", "find_rules"]

LARGEST = 5.0
"""Size at which ln w is cut off: a single infinite weight is not to rule a mean."""
QUANTILES = np.concatenate([[0.005, 0.01, 0.02], np.linspace(0.05, 0.95, 19), [0.98, 0.99, 0.995]])


@dataclass(frozen=True)
class Rule:
    """A leaf of the tree.

    Parameters
    ----------
    text : str
        Conditions on observables, joined by "and".
    observables : tuple of str
        That the conditions are on, each once.
    mean_log_weight : float
        Mean of ln w in the leaf, cut off at -5 and 5.
    n_data, n_generated : int
        Events of the last fold in the leaf.
    p_value : float
        That so unequal shares come by chance, for any of the leaves.
    """

    text: str
    observables: tuple[str, ...]
    mean_log_weight: float
    n_data: int
    n_generated: int
    p_value: float

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "rule": self.text,
            "mean_lnw": self.mean_log_weight,
            "n_data": self.n_data,
            "n_gen": self.n_generated,
            "p": self.p_value,
        }


@dataclass(frozen=True)
class _Leaf:
    grown: IntArray
    counted: IntArray
    bounds: dict[str, tuple[float, float]]


def find_rules(
    observables: Mapping[str, FloatArray],
    scores: Scores,
    *,
    depth: int = 3,
    smallest: int = 50,
) -> tuple[Rule, ...]:
    """Grow a tree of ln w on all events and count its leaves on those of the last fold.

    Parameters
    ----------
    observables : mapping of str to array of shape (n,)
        Values in the order of the scores, finite.
    scores : Scores
        Of test events, from one classifier, or from classifiers trained on earlier folds (`forward_fit`).
    depth : int, default 3
        Conditions in a rule, at most.
    smallest : int, default 50
        Events that a leaf must have.

    Returns
    -------
    tuple of Rule
        The smallest p-value first.

    Raises
    ------
    OptionError
        If depth or smallest is below 1, or there are no observables.
    EventsError
        If an observable is not finite or has another number of events.
    """
    if depth < 1 or smallest < 1 or not observables:
        raise OptionError(
            f"depth = {depth}, smallest = {smallest}, {len(observables)} observables: give at least 1 each"
        )
    n = scores.logit.size
    for name, values in observables.items():
        if np.shape(values) != (n,) or not np.all(np.isfinite(values)):
            raise EventsError(
                f"observable {name!r} does not fit {n} scores, or is not finite; remove it or these events"
            )
    target = np.clip(scores.log_weight, -LARGEST, LARGEST)
    counted = np.flatnonzero(scores.fold == scores.fold.max())
    leaves = [_Leaf(np.arange(n), counted, {})]
    for _ in range(depth):
        leaves = [part for leaf in leaves for part in _split(leaf, observables, target, smallest)]
    total, n_data = counted.size, int(scores.is_data[counted].sum())
    rules = []
    for leaf in leaves:
        if not leaf.bounds or not leaf.counted.size:
            continue
        k = int(scores.is_data[leaf.counted].sum())
        law = hypergeom(total, n_data, leaf.counted.size)
        p = min(1.0, 2.0 * len(leaves) * min(float(law.cdf(k)), float(law.sf(k - 1))))
        mean = float(target[leaf.grown].mean())
        text = " and ".join(_words(name, *ends) for name, ends in leaf.bounds.items())
        rules.append(Rule(text, tuple(leaf.bounds), mean, k, leaf.counted.size - k, p))
    return tuple(sorted(rules, key=lambda rule: (rule.p_value, -abs(rule.mean_log_weight))))


def _split(leaf: _Leaf, observables: Mapping[str, FloatArray], target: FloatArray, smallest: int) -> list[_Leaf]:
    """Two leaves with the least variance of ln w inside, or the leaf itself where no split is possible."""
    best: tuple[float, str, float] | None = None
    y = target[leaf.grown]
    for name, values in observables.items():
        x = values[leaf.grown]
        if x.size < 2 * smallest:
            break
        order = np.argsort(x, kind="stable")
        sums = np.cumsum(y[order])
        edges = np.unique(np.quantile(x, QUANTILES))
        below = np.searchsorted(x[order], edges, side="left")
        usable = (below >= smallest) & (x.size - below >= smallest)
        for edge, k in zip(edges[usable], below[usable], strict=True):
            # Variance between the parts: what a split explains.
            gain = float(sums[k - 1] ** 2 / k + (sums[-1] - sums[k - 1]) ** 2 / (x.size - k) - sums[-1] ** 2 / x.size)
            if best is None or gain > best[0]:
                best = (gain, name, float(edge))
    if best is None or best[0] <= 1e-12 * max(float(np.sum(y**2)), 1e-300):
        return [leaf]
    _, name, edge = best
    low, high = leaf.bounds.get(name, (-math.inf, math.inf))
    parts = []
    for side, ends in ((True, (low, edge)), (False, (edge, high))):
        grown, counted = (rows[(observables[name][rows] < edge) == side] for rows in (leaf.grown, leaf.counted))
        parts.append(_Leaf(grown, counted, {**leaf.bounds, name: ends}))
    return parts


def _words(name: str, low: float, high: float) -> str:
    if math.isinf(low):
        return f"{name} < {high:.4g}"
    return f"{name} > {low:.4g}" if math.isinf(high) else f"{low:.4g} < {name} < {high:.4g}"
