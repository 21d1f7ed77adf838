r"""NPLM with a small network: the extended likelihood itself is maximised, its weights clipped.

The loss is :math:`\sum_R a (e^f - 1) - \sum_D f`, unbounded below unless the weights of the network are: at the end
:math:`t = -2` times the loss (arXiv:1806.02350, arXiv:1912.12155). Where t of null toys follows a chi-square distribution with
as many degrees of freedom as the network has parameters, the clipping is right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat import extras
from gbistat.errors import EventsError, FitFailed, OptionError

if TYPE_CHECKING:
    from gbistat.typing import FloatArray

__all__ = ["NplmNetworkOptions", "nplm_network"]


@dataclass(frozen=True)
class NplmNetworkOptions:
    """Network and training.

    Parameters
    ----------
    hidden : tuple of int
        Nodes of the hidden layers (sigmoid).
    clip : float
        Largest absolute value of a weight.
    epochs : int
        Steps of full-batch Adam.
    learning_rate : float
        Of Adam.
    """

    hidden: tuple[int, ...] = (4,)
    clip: float = 9.0
    epochs: int = 3000
    learning_rate: float = 1e-2

    def __post_init__(self) -> None:
        if not self.hidden or min(self.hidden) < 1 or self.epochs < 1:
            raise OptionError(f"{self}: give at least one hidden layer and one epoch")
        if not (self.clip > 0 and self.learning_rate > 0):
            raise OptionError(f"{self}: clip and learning rate must be positive")


def nplm_network(
    data: FloatArray,
    reference: FloatArray,
    *,
    seed: int,
    expected: float | None = None,
    options: NplmNetworkOptions | None = None,
) -> tuple[float, FloatArray]:
    """Fit f and return t and f at the data.

    Parameters
    ----------
    data, reference : array of shape (n, d), (m, d)
        Features; both are standardised with the reference.
    seed : int
        Of the network's first weights.
    expected : float, optional
        Data expected; by default their number.
    options : NplmNetworkOptions, optional
        Network and training.

    Returns
    -------
    float, array of shape (n,)
        t, which only a null made the same way turns into a p-value; f at the data.

    Raises
    ------
    EventsError
        If shapes do not fit or a value is not finite.
    FitFailed
        If the loss is not finite.
    MissingExtra
        If Keras or TensorFlow is not installed.
    """
    options = options or NplmNetworkOptions()
    x, r = np.asarray(data, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if x.ndim != 2 or r.ndim != 2 or x.shape[1] != r.shape[1]:
        raise EventsError(f"data {x.shape} and reference {r.shape} do not fit; give (n, d) twice")
    if not (np.all(np.isfinite(x)) and np.all(np.isfinite(r))):
        raise EventsError("data or reference have NaN or infinite features; remove these events")
    keras, tf = extras.keras(), extras.tensorflow()
    keras.utils.set_random_seed(seed)
    mean, spread = r.mean(axis=0), r.std(axis=0)
    d_in = tf.constant((x - mean) / spread, tf.float32)
    r_in = tf.constant((r - mean) / spread, tf.float32)
    weight = (len(x) if expected is None else expected) / len(r)
    layers = [keras.layers.Dense(n, activation="sigmoid") for n in options.hidden]
    network = keras.Sequential([keras.Input((x.shape[1],)), *layers, keras.layers.Dense(1)])
    optimiser = keras.optimizers.Adam(options.learning_rate)
    optimiser.build(network.trainable_variables)

    def loss() -> Any:
        of_reference = tf.math.expm1(network(r_in)[:, 0])
        return weight * tf.reduce_sum(of_reference) - tf.reduce_sum(network(d_in)[:, 0])

    def train(steps: Any) -> None:
        for _ in tf.range(steps):
            with tf.GradientTape() as tape:
                value = loss()
            optimiser.apply(tape.gradient(value, network.trainable_variables))
            for variable in network.trainable_variables:
                variable.assign(tf.clip_by_value(variable, -options.clip, options.clip))

    tf.function(train)(tf.constant(options.epochs))
    t = -2.0 * float(loss())
    if not np.isfinite(t):
        raise FitFailed(f"the loss is not finite after {options.epochs} epochs; lower clip ({options.clip:g})")
    return t, np.asarray(network(d_in)[:, 0], dtype=np.float64)
