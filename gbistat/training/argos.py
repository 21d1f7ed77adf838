r"""ARGOS: a number that ranks classifiers without labels, to choose epochs, features and hyper-parameters.

For a cut on the score with a share :math:`\epsilon_D` of data and :math:`\epsilon_B` of background template above it,

.. math::

    A = \frac{\epsilon_D - \epsilon_B}{\sqrt{\epsilon_B}},

at its largest over cuts (arXiv:2511.14832). With a share f of signal and a right template it is f times the significance improvement, less
:math:`f \sqrt{\epsilon_B}`. It is a selection metric and never a p-value: its largest value is biased upwards, and a wrong template looks like
signal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import EventsError, OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.typing import FloatArray

__all__ = ["Argos", "argos", "best_epochs"]


@dataclass(frozen=True)
class Argos:
    """Largest value over cuts.

    Parameters
    ----------
    value : float
        A.
    cut : float
        Score at and above which events count.
    n_data, n_template : int
        Events there.
    noise : float
        Below ``4 / sqrt(n)`` with the smaller sample's size n, 95 % of values without any signal lie.
    """

    value: float
    cut: float
    n_data: int
    n_template: int
    noise: float


def argos(data: FloatArray, template: FloatArray, *, min_template: int = 25) -> Argos:
    """ARGOS of validation events.

    Parameters
    ----------
    data, template : array of shape (n,), (m,)
        Scores of data and of background template, from a classifier that saw neither.
    min_template : int, default 25
        Template events that must pass a cut: without a floor a handful decides.

    Raises
    ------
    EventsError
        If scores are NaN or there are fewer template events than the floor.
    OptionError
        If the floor is below 1.
    """
    if min_template < 1:
        raise OptionError(f"min_template = {min_template} must be at least 1")
    if np.isnan(data).any() or np.isnan(template).any():
        raise EventsError("scores are NaN; check the features of these events")
    if template.size < min_template or data.size < 1:
        raise EventsError(f"{data.size} data and {template.size} template events for a floor of {min_template}")
    x, b = np.sort(data)[::-1], np.sort(template)[::-1]
    # Cuts at template events: between two of them the largest A is where the most data pass, at the lower end.
    cuts = np.unique(b[min_template - 1 :])
    passing_b = template.size - np.searchsorted(b[::-1], cuts, side="left")
    passing_x = data.size - np.searchsorted(x[::-1], cuts, side="left")
    share_x, share_b = passing_x / data.size, passing_b / template.size
    values = (share_x - share_b) / np.sqrt(share_b)
    best = int(np.argmax(values))
    noise = 4.0 / math.sqrt(min(data.size, template.size))
    return Argos(float(values[best]), float(cuts[best]), int(passing_x[best]), int(passing_b[best]), noise)


def best_epochs(history: Sequence[float], *, count: int = 10) -> list[int]:
    """Epochs of largest value, in order of time; their scores are averaged.

    Parameters
    ----------
    history : sequence of float
        ARGOS after each epoch, on validation events.
    count : int, default 10
        How many.

    Examples
    --------
    >>> best_epochs([0.1, 0.5, 0.3, 0.4], count=2)
    [1, 3]
    """
    return sorted(sorted(range(len(history)), key=lambda epoch: -history[epoch])[:count])
