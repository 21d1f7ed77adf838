"""When to lower the learning rate and when to stop, as a function of the validation losses alone.

Nothing else is remembered between epochs, so a training that was killed goes on as if it had not been.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.training.card import OptimiserSpec

__all__ = ["Outlook", "outlook"]


@dataclass(frozen=True)
class Outlook:
    """What comes after some epochs.

    Parameters
    ----------
    best : int or None
        Epoch with the smallest validation loss, counted from 0; None before the first.
    learning_rate : float
        Of the next epoch.
    stop : bool
        Whether there is no next epoch.
    """

    best: int | None
    learning_rate: float
    stop: bool


def outlook(validation_losses: Sequence[float], optimiser: OptimiserSpec) -> Outlook:
    """Best epoch so far, learning rate of the next, and whether there is one.

    Examples
    --------
    >>> from gbistat.training.card import OptimiserSpec
    >>> options = OptimiserSpec(learning_rate=0.1, reduce_after=1, reduce_factor=0.5, patience=3)
    >>> outlook([0.5, 0.6, 0.7], options)
    Outlook(best=0, learning_rate=0.025, stop=False)
    >>> outlook([0.5, 0.6, 0.7, 0.5], options).stop
    True
    """
    best: int | None = None
    rate, waited = optimiser.learning_rate, 0
    for epoch, loss in enumerate(validation_losses):
        if best is None or loss < validation_losses[best]:
            best, waited = epoch, 0
            continue
        waited += 1
        if waited >= optimiser.reduce_after:
            rate, waited = rate * optimiser.reduce_factor, 0
    done = len(validation_losses)
    stop = done >= optimiser.epochs or (best is not None and done - 1 - best >= optimiser.patience)
    return Outlook(best, rate, stop)
