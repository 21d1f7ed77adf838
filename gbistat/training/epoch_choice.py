"""Which epochs of a generator are good ones, without labels of signal: ARGOS of held-out events against samples.

For a classifier a large ARGOS is good (`gbistat.training.argos`). A generator is the background template of such a search: where
held-out background exceeds its samples, a classifier finds "signal" that is none, so that here the smallest value is best. It is a
metric to select by and never a p-value: its smallest value over epochs is biased downwards, and validation events decide it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gbistat.training.argos import argos
from gbistat.training.classifiers import ClassifierOptions, cross_fit
from gbistat.training.flow import sample_flow

if TYPE_CHECKING:
    from gbistat.training.flow import Flow
    from gbistat.typing import FloatArray

__all__ = ["generator_argos"]

MOST_EVENTS = 10_000
OPTIONS = ClassifierOptions(members=1, smallest_leaf=50, trees=60, learning_rate=0.1)
"""Small trees: this is asked after every epoch."""


def generator_argos(flow: Flow, held_out: FloatArray, *, entropy: list[int]) -> float:
    """ARGOS of held-out events against samples of a flow at their masses, by cross-fitted boosted trees.

    Parameters
    ----------
    flow : Flow
        After some epoch.
    held_out : array of shape (n, 1 + d)
        Masses and features of events that did not train it.
    entropy : list of int
        Of all random choices: the same for every epoch of a member, so that epochs are compared on equal terms.

    Returns
    -------
    float
        The largest (share of data - share of samples) / sqrt(share of samples) over cuts on the classifier's output.

    Raises
    ------
    EventsError
        If there are fewer than 25 events, or a sample is not finite.
    MissingExtra
        If scikit-learn is not installed.
    """
    rng = np.random.default_rng(entropy)
    data = held_out[rng.permutation(len(held_out))[:MOST_EVENTS]]
    latent = rng.standard_normal((len(data), data.shape[1] - 1))
    samples = np.column_stack([data[:, 0], sample_flow(flow, np.column_stack([data[:, 0], latent]))])
    label = np.arange(2 * len(data)) < len(data)
    # An event and its sample have the same mass: they stay together.
    fold = np.tile(rng.permutation(len(data)) % 2, 2)
    fitted = cross_fit(np.concatenate([data, samples]), label, fold, rng=rng, options=OPTIONS)
    values = [argos(fitted.logit[label & (fold == k)], fitted.logit[~label & (fold == k)]).value for k in (0, 1)]
    # Outputs of two classifiers have no common scale: one value each.
    return float(np.mean(values))
