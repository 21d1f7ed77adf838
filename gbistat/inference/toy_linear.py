"""Many small symmetric systems of equations at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gbistat.typing import BoolArray, FloatArray

__all__ = ["solve_positive"]

SINGULAR = 1e-13
"""Pivot, relative to its diagonal element, below which a matrix counts as singular."""


def solve_positive(matrices: FloatArray, right: FloatArray) -> tuple[FloatArray, BoolArray]:
    """Solve ``A x = b`` for positive-definite A by ``L D L^T``, one operation on all systems at a time.

    LAPACK takes microseconds a call for matrices of this size, most of it overhead.

    Parameters
    ----------
    matrices : array of shape (n, k, k)
        Symmetric; only the lower triangle is read.
    right : array of shape (n, k)
        Right-hand sides.

    Returns
    -------
    array of shape (n, k), array of bool of shape (n,)
        Solutions, and the systems whose matrix is not positive definite: their solutions mean nothing.
    """
    k = right.shape[1]
    bad = np.zeros(right.shape[0], dtype=bool)
    lower: dict[tuple[int, int], FloatArray] = {}
    pivots: list[FloatArray] = []
    y: list[FloatArray] = []
    for j in range(k):
        diagonal = matrices[:, j, j]
        pivot, value = diagonal, right[:, j]
        for m in range(j):
            pivot = pivot - lower[j, m] ** 2 * pivots[m]
            value = value - lower[j, m] * y[m]
        wrong = ~(pivot > SINGULAR * diagonal)
        if wrong.any():
            bad |= wrong
            pivot = np.where(wrong, 1.0, pivot)
        pivots.append(pivot)
        y.append(value)
        for i in range(j + 1, k):
            element = matrices[:, i, j]
            for m in range(j):
                element = element - lower[i, m] * lower[j, m] * pivots[m]
            lower[i, j] = element / pivot
    x: list[FloatArray] = [np.empty(0)] * k
    for j in reversed(range(k)):
        value = y[j] / pivots[j]
        for i in range(j + 1, k):
            value = value - lower[i, j] * x[i]
        x[j] = value
    return (np.stack(x, axis=1) if k else np.empty_like(right)), bad
