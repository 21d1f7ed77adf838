"""Where to cut for a counting experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import ModelError
from gbistat.inference.asymptotics import expected_limit_threshold

if TYPE_CHECKING:
    from gbistat.typing import FloatArray

__all__ = ["best_threshold"]

FEWEST_POINTS = 10
"""Reference events above a threshold."""


def best_threshold(
    values: FloatArray, background: FloatArray, signal: FloatArray, *, relative_error: float, cl: float = 0.95
) -> float:
    r"""Threshold above which a counting experiment has the smallest median expected limit.

    The signal that is ``z`` standard deviations from nothing, ``s = z^2 / 2 + z sqrt(z^2 / 4 + b + (delta b)^2)``, divided by the
    efficiency, is smallest there (after G. Punzi, arXiv:physics/0308063).

    Parameters
    ----------
    values : array of shape (n,)
        Log ratio of the points.
    background, signal : array of shape (n,)
        Expected background events that each point stands for, and its share of the signal.
    relative_error : float
        delta, relative error of the background.
    cl : float, default 0.95
        Confidence level.

    Raises
    ------
    ModelError
        If there are too few points.
    """
    if values.size < 2 * FEWEST_POINTS:
        raise ModelError(f"{values.size} reference events are too few to place a threshold")
    order = np.argsort(values)[::-1]
    b, s = np.cumsum(background[order]), np.cumsum(signal[order])
    z = expected_limit_threshold(cl, 0.0)
    needed = 0.5 * z**2 + z * np.sqrt(0.25 * z**2 + b + (relative_error * b) ** 2)
    cost = np.where(s > 0, needed / np.where(s > 0, s, 1.0), np.inf)
    best = FEWEST_POINTS + int(np.argmin(cost[FEWEST_POINTS:-1]))
    return float(0.5 * (values[order][best] + values[order][best + 1]))
