r"""Cells of a pool: points that a compressed likelihood need not tell apart.

With scores ``x`` (shape (c, n)) and weights ``a``, joining points to cells loses

.. math:: \mathrm{SSE}_c = \sum_k \sum_{i \in k} a_i (x_{ci} - \bar x_{ck})^2,

the part of the Fisher information that lies within cells. Where a coordinate is the efficient score of the parameter of
interest times its error, ``SSE_c`` is the relative increase of the variance of its estimate, and its root the r.m.s.
difference to the estimate from single events in units of the error. Cells are made by splitting, again and again, the cell
whose best split gains most: a tree, so that it works for any number of coordinates.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gbistat.typing import FloatArray, IntArray

__all__ = ["Cells", "make_cells"]


@dataclass(frozen=True, eq=False)
class Cells:
    """A partition of points.

    Parameters
    ----------
    labels : int array of shape (n,)
        Cell of each point, 0 to count - 1.
    count : int
        Number of cells.
    loss : array of shape (c,)
        SSE of each coordinate.
    """

    labels: IntArray
    count: int
    loss: FloatArray


@dataclass(frozen=True, eq=False)
class _Node:
    members: IntArray
    loss: FloatArray
    gain: float
    order: IntArray
    cut: int


def make_cells(scores: FloatArray, weights: FloatArray, *, tolerance: FloatArray, max_cells: int) -> Cells:
    """Split until no coordinate loses more than its tolerance, or there are as many cells as allowed.

    Parameters
    ----------
    scores : array of shape (c, n)
        Coordinates, scaled so that their losses compare.
    weights : array of shape (n,)
        Weights, not negative.
    tolerance : array of shape (c,)
        Largest loss of each coordinate; infinite for one that only guides the splits.
    max_cells : int
        Largest number of cells.

    Returns
    -------
    Cells
        With ``count <= max(1, max_cells)``; the same for the same input, whatever the machine.
    """
    n = scores.shape[1]
    labels = np.zeros(n, dtype=np.int64)
    root = _node(np.arange(n), scores, weights)
    total = root.loss.copy()
    heap = [(-root.gain, 0, root)]
    leaves: list[_Node] = []
    made = 1
    while heap and (total > tolerance).any() and len(heap) + len(leaves) < max_cells:
        _, _, node = heapq.heappop(heap)
        if node.gain <= 0.0:
            leaves.append(node)
            continue
        total = total - node.loss
        for part in (node.order[: node.cut], node.order[node.cut :]):
            child = _node(part, scores, weights)
            total = total + child.loss
            heapq.heappush(heap, (-child.gain, made, child))
            made += 1
    leaves += [node for _, _, node in heap]
    # Cells in order of their first coordinate, so that tables and plots read from background to signal.
    means = [_mean(scores[0, leaf.members], weights[leaf.members]) for leaf in leaves]
    for label, place in enumerate(np.argsort(means, kind="stable")):
        labels[leaves[place].members] = label
    return Cells(labels, len(leaves), np.maximum(np.sum([leaf.loss for leaf in leaves], axis=0), 0.0))


def _mean(x: FloatArray, a: FloatArray) -> float:
    total = float(a.sum())
    return float(a @ x) / total if total > 0 else float(x.mean())


def _node(members: IntArray, scores: FloatArray, weights: FloatArray) -> _Node:
    """Loss of a cell, and the split along its longest axis that gains most."""
    x, a = scores[:, members], weights[members]
    total = float(a.sum())
    if members.size < 2 or not total > 0:
        return _Node(members, np.zeros(scores.shape[0]), 0.0, members, 0)
    x = x - ((x @ a) / total)[:, None]
    loss = (x * x) @ a
    axis = int(np.argmax(loss))
    rank = np.argsort(x[axis], kind="stable")
    order = members[rank]
    weight = np.cumsum(a[rank])
    moment = np.cumsum(x[:, rank] * a[rank], axis=1)
    values = x[axis, rank]
    left, right = weight[:-1], total - weight[:-1]
    # Points of equal score stay together: to tell them apart gains nothing.
    possible = (values[1:] > values[:-1]) & (left > 0) & (right > 0)
    if not possible.any():
        return _Node(members, loss, 0.0, members, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (moment[:, :-1] ** 2).sum(axis=0) * (total / (left * right))
    between = np.where(possible, between, -1.0)
    cut = int(np.argmax(between)) + 1
    # Below this, the gain is rounding: the cell holds one point many times over.
    gain = float(between[cut - 1]) if between[cut - 1] > 1e-14 else 0.0
    return _Node(members, loss, gain, order, cut)
