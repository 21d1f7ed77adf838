"""Loops that numba compiles (extra ``fast``), written for it: plain indices, no allocation. Far too slow without it."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["moment_loop"]


def moment_loop(
    proposed: Any,
    bits: Any,
    begin: Any,
    size: Any,
    largest: Any,
    smallest: Any,
    weight: Any,
    deviation: Any,
    centre: Any,
    is_hot: Any,
    counts: Any,
    sums: Any,
    hot: Any,
) -> int:
    """Power sums of one toy; see :mod:`gbistat.inference.toy_moments`, whose numpy function does the same."""
    used = 0
    place = 0
    # Unsigned throughout: numba would turn a mixture with signed numbers into floating point.
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    for cell in range(proposed.size):
        first = begin[cell]
        points = np.uint64(size[cell])
        top = largest[cell] * 2.0**-32
        sure = np.uint64(smallest[cell] / largest[cell] * 2.0**32)
        number = proposed[cell]
        if is_hot[cell]:
            for i in range(number):
                product = np.uint64(bits[place + i]) * points
                height = product & low
                where = first + np.int64(product >> shift)
                if height < sure or np.float64(height) * top < weight[where]:
                    hot[used] = np.float64(deviation[where]) + centre[cell]
                    used += 1
        else:
            n = 0
            s1 = s2 = s3 = s4 = 0.0
            for i in range(number):
                product = np.uint64(bits[place + i]) * points
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
            counts[cell] += n
            sums[0, cell] += s1
            sums[1, cell] += s2
            sums[2, cell] += s3
            sums[3, cell] += s4
        place += number
    return used
