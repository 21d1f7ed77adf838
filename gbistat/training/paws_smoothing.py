r"""How sharply a trained network sees that two masses are equal, chosen on held-out signal.

The graph orders its two masses by a root, :math:`\pm\sqrt{h^2 + s^2}` with half of their (logarithmic) difference h, which is differentiable where they are
equal (:mod:`gbistat.training.paws_network`). With the s of the training a network tells masses that differ by less than some 4 s from equal ones
less well than the events would allow, and finds them equal: a signal of 560 and 470 GeV at 555 and 475. The same weights with a smaller s do better. s is
a number like any other, so it has a likelihood: of held-out signal at its true masses,

.. math:: \ln L(s) = \sum_i \left[\ln r_s(x_i; \theta_i) + \ln\kappa_s(\theta_i)\right],

with the normalisation that a fit would give the ratio. It is read off a parabola through the three best of a few values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat.training.paws_grading import log_ratio_rows
from gbistat.training.paws_network import build_paws_network

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gbistat.data.events import Events
    from gbistat.terms.network import NetworkTerm
    from gbistat.training.network import Scaling
    from gbistat.training.paws_card import PawsCard
    from gbistat.typing import FloatArray, Json

    Normaliser = Callable[[NetworkTerm, Events, FloatArray], Callable[[FloatArray], FloatArray] | None]

__all__ = ["SmoothingStudy", "Trial", "smoothing_study", "with_smoothing"]

FACTORS = (1.0, 0.8, 0.6, 0.4)
"""Values that are tried, in units of that of the training; the network was never asked for less than the last in any event that it learned from."""


@dataclass(frozen=True, eq=False)
class Trial:
    """One smoothing.

    Parameters
    ----------
    smoothing : float
        s.
    networks : tuple of keras.Model
        The members with it.
    term : NetworkTerm
        The ratio.
    log_kappa : callable or None
        Its normalisation: from points of shape (g, 2) to ln kappa, shape (g,).
    score : float
        ln L.
    """

    smoothing: float
    networks: tuple[Any, ...]
    term: NetworkTerm
    log_kappa: Callable[[FloatArray], FloatArray] | None
    score: float


@dataclass(frozen=True, eq=False)
class SmoothingStudy:
    """All that were tried.

    Parameters
    ----------
    trials : tuple of Trial
        The first is the smoothing of the training.
    best : Trial
        The highest.
    """

    trials: tuple[Trial, ...]
    best: Trial

    def to_json(self) -> Json:
        """Plain data; scores are differences to that of the training."""
        first = self.trials[0]
        return {
            "trained": first.smoothing,
            "chosen": self.best.smoothing,
            "tried": [{"smoothing": t.smoothing, "log_likelihood": t.score - first.score} for t in self.trials],
        }


def with_smoothing(network: Any, card: PawsCard, scaling: Scaling, smoothing: float) -> Any:
    """A trained network with the same weights and another smoothing.

    Parameters
    ----------
    network : keras.Model
        Made by `build_paws_network`.
    card : PawsCard
        Card of the run.
    scaling : Scaling
        Of its features.
    smoothing : float
        In place of the card's, relative or not as there.
    """
    result = build_paws_network(card.model_copy(update={_name(card): smoothing}), scaling, member=0)
    result.set_weights(network.get_weights())
    return result


def _name(card: PawsCard) -> str:
    return "smoothing" if card.relative_smoothing is None else "relative_smoothing"


def smoothing_study(
    networks: Sequence[Any],
    card: PawsCard,
    scaling: Scaling,
    signal: FloatArray,
    reference: Events,
    log_base: FloatArray,
    *,
    as_term: Callable[[Sequence[Any]], NetworkTerm],
    normaliser: Normaliser,
) -> SmoothingStudy:
    """Try some values.

    Parameters
    ----------
    networks : sequence of keras.Model
        Trained members.
    card : PawsCard
        Card of the run.
    scaling : Scaling
        Of its features.
    signal : array of shape (n, 1 + d + 2)
        Mass, features and masses of the daughters of signal events that trained nothing.
    reference : Events
        Background events in the window, for the normalisation.
    log_base : array
        ln of the ratio of the mass densities at these, up to a constant.
    as_term : callable
        From networks to a ratio.
    normaliser : callable
        From a ratio, these reference events and `log_base` to its ln kappa, as fits have it.
    """
    trained = float(getattr(card, _name(card)))
    masses = signal[:, 1 + len(card.features) :]

    def trial(smoothing: float) -> Trial:
        same = smoothing == trained
        own = tuple(n if same else with_smoothing(n, card, scaling, smoothing) for n in networks)
        term = as_term(own).without_range_check()
        log_kappa = normaliser(term, reference, log_base)
        total = log_ratio_rows(term, signal, card)
        if log_kappa is not None:
            total += log_kappa(masses)
        return Trial(smoothing, own, term, log_kappa, float(total.sum()))

    trials = [trial(trained * factor) for factor in FACTORS]
    highest = int(np.argmax([t.score for t in trials]))
    if 0 < highest < len(trials) - 1:
        around = trials[highest - 1 : highest + 2]
        bend, slope, _ = np.polyfit([t.smoothing for t in around], [t.score for t in around], 2)
        trials.append(trial(float(f"{-0.5 * slope / bend:.3g}")))
    return SmoothingStudy(tuple(trials), max(trials, key=lambda t: t.score))
