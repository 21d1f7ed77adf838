r"""Calibration of a classifier's logits by a straight line, on events that did not train it.

A network that knows its training events too well is too sure: its odds are too large where they are large and too small where they are
small. A density ratio made of them finds too much signal. The line :math:`a\,l + b` with the least cross-entropy on other events
(J. Platt, in Advances in Large Margin Classifiers, 1999) takes that back, and leaves the order of the events as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat.errors import FitFailed

if TYPE_CHECKING:
    from gbistat.training.dataset import ClassifierSet
    from gbistat.typing import FloatArray

__all__ = ["LogitLine", "apply_line", "calibrate_logits"]

STEPS = 50


@dataclass(frozen=True)
class LogitLine:
    """Line from a network's logit to the calibrated one, and the validation loss before and after."""

    slope: float
    shift: float
    loss_before: float
    loss_after: float


def calibrate_logits(logits: FloatArray, events: ClassifierSet) -> LogitLine:
    """Line with the least weighted cross-entropy, by Newton steps; the problem is convex.

    Parameters
    ----------
    logits : array of shape (n,)
        Of the network.
    events : ClassifierSet
        The n events, which must not have trained it.

    Raises
    ------
    FitFailed
        If the steps do not converge, or the slope is not positive: the network has learned nothing.
    """
    x = np.stack([logits, np.ones_like(logits)])
    weights = events.weights / events.weights.sum()

    def loss(line: FloatArray) -> float:
        found = line @ x
        return float(weights @ np.logaddexp(0.0, np.where(events.y > 0.5, -found, found)))

    line = np.array([1.0, 0.0])
    before = now = loss(line)
    for _ in range(STEPS):
        c = 0.5 * (1.0 + np.tanh(0.5 * (line @ x)))
        gradient = x @ (weights * (c - events.y))
        step = np.linalg.solve((x * (weights * c * (1.0 - c))) @ x.T, gradient)
        new = line - step
        while loss(new) > now + 1e-15 and np.max(np.abs(step)) > 1e-12:
            step = 0.5 * step
            new = line - step
        line, now = new, loss(new)
        if np.max(np.abs(step)) < 1e-9:
            break
    else:
        raise FitFailed(f"the calibration of {logits.size} logits did not converge; give more events to validate with")
    if not line[0] > 0:
        raise FitFailed(
            f"calibrated logits fall with the network's (slope {line[0]:g}): it has not learned to tell signal from background; "
            "train longer or give more events"
        )
    return LogitLine(float(line[0]), float(line[1]), before, now)


def apply_line(network: Any, line: LogitLine) -> None:
    """Change the last layer of a network so that its logits are the calibrated ones."""
    kernel, bias = network.layers[-1].get_weights()
    network.layers[-1].set_weights(
        [kernel * np.float32(line.slope), bias * np.float32(line.slope) + np.float32(line.shift)]
    )
