"""The classifier of arXiv:2305.16774, Table 1: a small dense network, its best epochs averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat import extras
from gbistat.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.typing import BoolArray, FloatArray

__all__ = ["NetworkOptions", "train_network"]

VALIDATION = 0.2


@dataclass(frozen=True)
class NetworkOptions:
    """Network and training; the defaults are those of the table's first column.

    Parameters
    ----------
    layers, nodes : int
        Hidden layers and nodes in each.
    dropout : float
        After every hidden layer.
    batch_size, epochs : int
        Of the training.
    learning_rate : float
        Of Adam; a tenth of it after `patience` epochs without a smaller validation loss.
    patience : int
        Epochs.
    average : int
        Epochs of smallest validation loss whose outputs are averaged.
    """

    layers: int = 3
    nodes: int = 512
    dropout: float = 0.1
    batch_size: int = 1000
    epochs: int = 150
    learning_rate: float = 1e-3
    patience: int = 5
    average: int = 5

    def __post_init__(self) -> None:
        if min(self.layers, self.nodes, self.batch_size, self.epochs, self.patience, self.average) < 1:
            raise OptionError(f"{self}: sizes must be positive")
        if not (0 <= self.dropout < 1 and self.learning_rate > 0):
            raise OptionError(f"{self}: dropout must be in [0, 1) and the learning rate positive")


def train_network(
    inputs: FloatArray,
    is_data: BoolArray,
    weights: FloatArray,
    ask: FloatArray,
    *,
    seeds: Sequence[int],
    options: NetworkOptions,
) -> FloatArray:
    """Train one network a seed and ask it about other events.

    Parameters
    ----------
    inputs, is_data, weights : arrays of shape (n, d), (n,), (n,)
        Training events; a fifth of them validates.
    ask : array of shape (m, d)
        Events to ask about.
    seeds : sequence of int
        One a network.
    options : NetworkOptions
        Network and training.

    Returns
    -------
    array of shape (len(seeds), m)
        Logits: of each network the mean over its best epochs.

    Raises
    ------
    MissingExtra
        If Keras is not installed.
    """
    mean, spread = inputs.mean(axis=0), inputs.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    x, z = ((values - mean) / spread for values in (inputs, ask))
    return np.stack([_train(x, is_data, weights, z, seed, options) for seed in seeds])


def _train(
    x: FloatArray, is_data: BoolArray, weights: FloatArray, ask: FloatArray, seed: int, options: NetworkOptions
) -> FloatArray:
    keras = extras.keras()
    keras.utils.set_random_seed(seed)
    order = np.random.default_rng(seed).permutation(len(x))
    held = round(VALIDATION * len(x))
    validate, train = order[:held], order[held:]
    network = _build(keras, x.shape[1], options)
    x32, y, w = x.astype(np.float32), is_data.astype(np.float32), weights.astype(np.float32)
    best: list[tuple[float, FloatArray]] = []
    since = 0
    for _ in range(options.epochs):
        network.fit(x32[train], y[train], sample_weight=w[train], batch_size=options.batch_size, epochs=1, verbose=0)
        loss = float(
            network.evaluate(x32[validate], y[validate], sample_weight=w[validate], batch_size=4096, verbose=0)
        )
        since = 0 if not best or loss < best[0][0] else since + 1
        if len(best) < options.average or loss < best[-1][0]:
            logit = network.predict(ask.astype(np.float32), batch_size=4096, verbose=0)[:, 0].astype(np.float64)
            best = sorted([*best, (loss, logit)], key=lambda item: item[0])[: options.average]
        if since == options.patience:
            network.optimizer.learning_rate = float(network.optimizer.learning_rate) * 0.1
            since = 0
            if float(network.optimizer.learning_rate) < 1e-3 * options.learning_rate:
                break
    return np.mean([logit for _, logit in best], axis=0)


def _build(keras: Any, d: int, options: NetworkOptions) -> Any:
    layers: list[Any] = [keras.Input((d,))]
    for _ in range(options.layers):
        layers += [
            keras.layers.Dense(options.nodes),
            keras.layers.LeakyReLU(negative_slope=0.01),
            keras.layers.Dropout(options.dropout),
        ]
    network = keras.Sequential([*layers, keras.layers.Dense(1)])
    network.compile(
        optimizer=keras.optimizers.Adam(options.learning_rate),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
    )
    return network
