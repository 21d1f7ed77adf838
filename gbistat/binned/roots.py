"""Roots of several rising functions that are evaluated together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from gbistat.typing import FloatArray

__all__ = ["shared_roots"]


def shared_roots(
    function: Callable[[float], FloatArray],
    level: float,
    count: int,
    *,
    guess: float,
    tolerance: float = 1e-5,
    max_calls: int = 200,
) -> list[float | None]:
    """Where each of several functions reaches a level, with few calls of all together.

    Every value serves the search for every root: the next point is the inverse interpolation of the values at hand, kept
    inside a bracket.

    Parameters
    ----------
    function : callable
        From x > 0 to values of shape (count,), which are 0 at ``x = 0`` and rise, best in a straight line.
    level : float
        Above 0.
    count : int
        Number of functions.
    guess : float
        A point of the right size, above 0.
    tolerance : float, default 1e-5
        Largest distance from the level.
    max_calls : int, default 200
        Calls after which to give up.

    Returns
    -------
    list of float or None
        Roots; ``None`` where none was found.

    Examples
    --------
    >>> roots = shared_roots(lambda x: np.array([x, x * x]), 3.0, 2, guess=1.0)
    >>> [round(root, 4) for root in roots]
    [3.0, 1.7321]
    """
    points: dict[float, FloatArray] = {0.0: np.zeros(count), guess: function(guess)}
    return [_root(function, points, number, level, tolerance, max_calls) for number in range(count)]


def _root(
    function: Callable[[float], FloatArray],
    points: dict[float, FloatArray],
    number: int,
    level: float,
    tolerance: float,
    max_calls: int,
) -> float | None:
    tries = 0
    while len(points) < max_calls:
        x = np.array(sorted(points))
        y = np.array([points[key][number] for key in x.tolist()]) - level
        best = int(np.argmin(np.abs(y)))
        if abs(y[best]) < tolerance:
            return float(x[best])
        above = np.flatnonzero(y >= 0)
        if not above.size:
            # A straight line through 0 points to the root; a factor keeps it from crawling or running away.
            trial = float(x[-1]) * min(max(1.02 * level / max(float(y[-1]) + level, 1e-6), 1.05), 4.0)
        else:
            right = int(above[0])
            low, high = float(x[right - 1]), float(x[right])
            if high - low < 1e-12 * high:
                return high
            tries += 1
            trial = _interpolate(x, y, right)
            if not low < trial < high or tries % 6 == 0:
                trial = 0.5 * (low + high)
        points[trial] = function(trial)
    return None


def _interpolate(x: FloatArray, y: FloatArray, right: int) -> float:
    """Zero of the inverse interpolation through up to four points around the bracket; secant if these do not rise."""
    chosen = np.arange(max(0, right - 2), min(x.size, right + 2))
    nodes, values = y[chosen], x[chosen]
    if not (np.diff(nodes) > 0).all():
        nodes, values = y[right - 1 : right + 1], x[right - 1 : right + 1]
    total = 0.0
    for i in range(nodes.size):
        others = np.delete(nodes, i)
        total += float(values[i] * np.prod(others / (others - nodes[i])))
    return total
