r"""Best strength and share of decay modes at given masses, with everything else held: two Newton variables in place of one.

With ``r_a, r_b`` the ratios at the two ends of the fraction's range, strengths :math:`s = \mu\, ((1 - \beta), \beta)` with
:math:`\beta = (\alpha - \alpha_{low}) / (\alpha_{high} - \alpha_{low})` are 0 or positive, and

.. math:: t(s) = -2 S (s_a + s_b) + 2 \sum_i \ln\left(1 + S\, \frac{s_a r_{a,i} + s_b r_{b,i}}{b_i}\right)

is concave in them: Newton steps with an active set at 0 find its one maximum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gbistat.typing import BoolArray, FloatArray

__all__ = ["best_strengths"]

MAX_STEPS = 60
CLOSE = 1e-9
"""Change of t below which a step is the last."""


def best_strengths(ratios: FloatArray, weights: FloatArray, slope: float) -> tuple[FloatArray, float]:
    """Maximum of t over strengths of 0 or more.

    Parameters
    ----------
    ratios : array of shape (2, n)
        ``S r / b`` of each end at each event.
    weights : array of shape (n,)
        Weights of the events.
    slope : float
        S: expected events of unit strength.

    Returns
    -------
    array of shape (2,), float
        Strengths and the maximum, 0 where no signal helps.
    """
    strengths = np.zeros(2)
    value = 0.0
    for _ in range(MAX_STEPS):
        share = ratios / (1.0 + strengths @ ratios)
        gradient = share @ weights - slope
        free = (strengths > 0.0) | (gradient > 0.0)
        if not free.any():
            break
        step = _step(share[free], weights, gradient[free])
        trial, better = _search(strengths, free, step, ratios, weights, slope, value)
        done = better - value <= CLOSE
        strengths, value = trial, better
        if done:
            break
    return strengths, value


def _step(share: FloatArray, weights: FloatArray, gradient: FloatArray) -> FloatArray:
    """Newton step of the free strengths; along the gradient where two ratios are the same."""
    bend = (share * weights) @ share.T
    scale = 1.0 / np.sqrt(np.maximum(np.diag(bend), 1e-300))
    scaled = bend * np.outer(scale, scale) + 1e-12 * np.eye(scale.size)
    result: FloatArray = scale * np.linalg.solve(scaled, scale * gradient)
    return result


def _search(
    strengths: FloatArray,
    free: BoolArray,
    step: FloatArray,
    ratios: FloatArray,
    weights: FloatArray,
    slope: float,
    value: float,
) -> tuple[FloatArray, float]:
    """Longest of the halved steps, stopped at 0, that does not lower t."""
    length = 1.0
    for _ in range(40):
        trial = strengths.copy()
        trial[free] = np.maximum(trial[free] + length * step, 0.0)
        found = 2.0 * (float(weights @ np.log1p(trial @ ratios)) - slope * float(trial.sum()))
        if found >= value:
            return trial, found
        length *= 0.5
    return strengths, value
