"""Loops that numba compiles (extra ``fast``), written for it: plain indices, no allocation. Far too slow without it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

__all__ = ["Points", "moment_loop"]


class Points(NamedTuple):
    """Points of a pool in K cells, as exact toys of many events draw them.

    Parameters
    ----------
    begin, size : int arrays of shape (K,)
        First point of each cell, and how many there are.
    largest, smallest : arrays of shape (K,)
        Extreme expected counts of its points.
    weight : array of shape (n,)
        Expected count of each point.
    deviation : array of shape (n,), single precision
        Its ratio, less the centre of the cell.
    centre : array of shape (K,)
        Mean ratio of the points of each cell.
    is_hot : array of bool, shape (K,)
        Whether events of a cell are kept one by one.
    """

    begin: Any
    size: Any
    largest: Any
    smallest: Any
    weight: Any
    deviation: Any
    centre: Any
    is_hot: Any


def moment_loop(proposed: Any, place: Any, bits: Any, points: Any, counts: Any, sums: Any, hot: Any, used: Any) -> None:
    """Power sums of some toys; see :mod:`gbistat.inference.toy_moments`, whose numpy function does the same.

    Parameters
    ----------
    proposed : int array of shape (n, K)
        Proposals in each cell.
    place : int array of shape (n,)
        Where each toy's bits begin; moved on.
    bits : array of 32-bit integers
        One a proposal.
    points : Points
        The pool.
    counts, sums, hot, used : arrays of shape (n, K), (n, 4, K), (n, H), (n,)
        Results: events and power sums in cold cells, ratios in hot cells, how many of these.
    """
    # Unsigned throughout: numba would turn a mixture with signed numbers into floating point.
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    weight, deviation = points.weight, points.deviation
    for cell in range(proposed.shape[1]):
        first = points.begin[cell]
        size = np.uint64(points.size[cell])
        top = points.largest[cell] * 2.0**-32
        sure = np.uint64(points.smallest[cell] / points.largest[cell] * 2.0**32)
        centre = points.centre[cell]
        for toy in range(proposed.shape[0]):
            start, number = place[toy], proposed[toy, cell]
            place[toy] = start + number
            if points.is_hot[cell]:
                for i in range(start, start + number):
                    product = np.uint64(bits[i]) * size
                    height = product & low
                    where = first + np.int64(product >> shift)
                    if height < sure or np.float64(height) * top < weight[where]:
                        hot[toy, used[toy]] = np.float64(deviation[where]) + centre
                        used[toy] += 1
            else:
                n = 0
                s1 = s2 = s3 = s4 = 0.0
                for i in range(start, start + number):
                    product = np.uint64(bits[i]) * size
                    height = product & low
                    where = first + np.int64(product >> shift)
                    if height < sure or np.float64(height) * top < weight[where]:
                        d = np.float64(deviation[where])
                        square = d * d
                        n += 1
                        s1 += d
                        s2 += square
                        s3 += square * d
                        s4 += square * square
                counts[toy, cell] = n
                sums[toy, 0, cell] = s1
                sums[toy, 1, cell] = s2
                sums[toy, 2, cell] = s3
                sums[toy, 3, cell] = s4
