"""Many smooth convex minimisations at once: L-BFGS on the columns of a matrix, so that all share one matrix product."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from gbistat.typing import FloatArray

__all__ = ["minimize_columns"]

MEMORY = 10
ARMIJO = 1e-4
HALVINGS = 20


def minimize_columns(
    loss: Callable[[FloatArray], tuple[FloatArray, FloatArray]],
    start: FloatArray,
    *,
    tolerance: float = 1e-8,
    iterations: int = 400,
) -> FloatArray:
    """Minimise a function of each column.

    Parameters
    ----------
    loss : callable
        Takes (r, k), returns values (k,) and gradients (r, k).
    start : array of shape (r, k)
        Start, in coordinates where the Hessian is near the unit matrix.
    tolerance : float
        Half the squared gradient, an estimate of what a column's loss can still fall by in these coordinates, at which
        the column is done.
    iterations : int
        Most steps.

    Returns
    -------
    array of shape (r, k)
        Minimum of each column.
    """
    x = start
    value, gradient = loss(x)
    steps: list[FloatArray] = []
    changes: list[FloatArray] = []
    for _ in range(iterations):
        open_columns = 0.5 * np.einsum("rk,rk->k", gradient, gradient) > tolerance
        if not open_columns.any():
            break
        direction = -_two_loops(gradient, steps, changes) * open_columns
        slope = np.einsum("rk,rk->k", gradient, direction)
        # A direction that does not go down comes from a bad memory: the gradient itself always does.
        direction = np.where(slope < 0, direction, -gradient * open_columns)
        slope = np.minimum(slope, -np.einsum("rk,rk->k", gradient, gradient) * (slope >= 0) * open_columns)
        length = np.ones(x.shape[1])
        for _halving in range(HALVINGS):
            trial = x + length * direction
            new_value, new_gradient = loss(trial)
            bad = ~(new_value <= value + ARMIJO * length * slope + 1e-15)
            if not bad.any():
                break
            length = np.where(bad, 0.5 * length, length)
        steps.append(trial - x)
        changes.append(new_gradient - gradient)
        del steps[:-MEMORY], changes[:-MEMORY]
        x, value, gradient = trial, new_value, new_gradient
    return x


def _two_loops(gradient: FloatArray, steps: list[FloatArray], changes: list[FloatArray]) -> FloatArray:
    """Product of the inverse Hessian estimate with the gradient, column by column (Nocedal and Wright, Alg. 7.4)."""
    q = gradient.copy()
    kept = []
    for s, y in zip(reversed(steps), reversed(changes), strict=True):
        curvature = np.einsum("rk,rk->k", s, y)
        rho = np.divide(1.0, curvature, out=np.zeros_like(curvature), where=curvature > 1e-30)
        alpha = rho * np.einsum("rk,rk->k", s, q)
        q -= alpha * y
        kept.append((s, y, rho, alpha))
    if steps:
        s, y = steps[-1], changes[-1]
        curvature, square = np.einsum("rk,rk->k", s, y), np.einsum("rk,rk->k", y, y)
        q *= np.where((curvature > 1e-30) & (square > 0), curvature / np.where(square > 0, square, 1.0), 1.0)
    for s, y, rho, alpha in reversed(kept):
        beta = rho * np.einsum("rk,rk->k", y, q)
        q += (alpha - beta) * s
    return q
