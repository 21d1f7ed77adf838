"""The classifier of arXiv:2305.16774, Table 1: a small dense network, its best epochs averaged."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from gbistat import extras
from gbistat.errors import OptionError
from gbistat.training.argos import argos

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gbistat.typing import BoolArray, FloatArray

__all__ = ["NetworkOptions", "best_networks", "train_network"]

VALIDATION = 0.2
Kept = TypeVar("Kept")


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
        Best epochs, whose outputs are averaged.
    select : {"loss", "argos"}
        What makes an epoch a good one: a small validation loss, or a large ARGOS of data against generated validation
        events (`gbistat.training.argos`), which looks where data exceed and not at all events. A metric to select by, never
        a p-value: its largest value over epochs is biased upwards. The learning rate follows the loss all the same.
    """

    layers: int = 3
    nodes: int = 512
    dropout: float = 0.1
    batch_size: int = 1000
    epochs: int = 150
    learning_rate: float = 1e-3
    patience: int = 5
    average: int = 5
    select: Literal["loss", "argos"] = "loss"

    def __post_init__(self) -> None:
        if min(self.layers, self.nodes, self.batch_size, self.epochs, self.patience, self.average) < 1:
            raise OptionError(f"{self}: sizes must be positive")
        if not (0 <= self.dropout < 1 and self.learning_rate > 0):
            raise OptionError(f"{self}: dropout must be in [0, 1) and the learning rate positive")
        if self.select not in ("loss", "argos"):
            raise OptionError(f"epochs cannot be selected by {self.select!r}; take 'loss' or 'argos'")


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
    mean, spread = _scaling(inputs)
    x, z = ((values - mean) / spread for values in (inputs, ask))
    return np.stack(
        [
            np.mean(_train(x, is_data, weights, seed, options, lambda network: _logits(network, z))[1], axis=0)
            for seed in seeds
        ]
    )


def best_networks(
    inputs: FloatArray,
    is_data: BoolArray,
    weights: FloatArray,
    *,
    seeds: Sequence[int],
    options: NetworkOptions,
) -> list[Any]:
    """Train one network a seed and keep it as it was after its best epoch, for export.

    Parameters
    ----------
    inputs, is_data, weights, seeds, options
        As for `train_network`; nothing is averaged over epochs.

    Returns
    -------
    list of keras.Model
        Input ``x`` of shape (n, d) in raw units, output (n, 1): the logit, held within the range that it has on the
        training events, beyond which a network extrapolates.

    Raises
    ------
    MissingExtra
        If Keras is not installed.
    """
    keras = extras.keras()
    mean, spread = _scaling(inputs)
    x = (inputs - mean) / spread
    found = []
    for number, seed in enumerate(seeds):
        network, (kept,) = _train(
            x, is_data, weights, seed, replace(options, average=1), lambda network: network.get_weights()
        )
        network.set_weights(kept)
        logit = _logits(network, x)
        raw = keras.Input((x.shape[1],), name="x")
        scaled = (raw - mean[None].astype(np.float32)) * (1.0 / spread[None]).astype(np.float32)
        output = keras.ops.clip(network(scaled), float(logit.min()), float(logit.max()))
        found.append(keras.Model(raw, output, name=f"member_{number}"))
    return found


def _scaling(inputs: FloatArray) -> tuple[FloatArray, FloatArray]:
    spread = inputs.std(axis=0)
    return inputs.mean(axis=0), np.where(spread > 0, spread, 1.0)


def _logits(network: Any, x: FloatArray) -> FloatArray:
    values: FloatArray = network.predict(x.astype(np.float32), batch_size=4096, verbose=0)[:, 0].astype(np.float64)
    return values


def _train(
    x: FloatArray,
    is_data: BoolArray,
    weights: FloatArray,
    seed: int,
    options: NetworkOptions,
    keep: Callable[[Any], Kept],
) -> tuple[Any, list[Kept]]:
    """Network after its last epoch, and what was kept of the best epochs, the best first."""
    keras = extras.keras()
    keras.utils.set_random_seed(seed)
    order = np.random.default_rng(seed).permutation(len(x))
    held = round(VALIDATION * len(x))
    validate, train = order[:held], order[held:]
    network = _build(keras, x.shape[1], options)
    x32, y, w = x.astype(np.float32), is_data.astype(np.float32), weights.astype(np.float32)
    best: list[tuple[float, Kept]] = []
    lowest, since = np.inf, 0
    for _ in range(options.epochs):
        network.fit(x32[train], y[train], sample_weight=w[train], batch_size=options.batch_size, epochs=1, verbose=0)
        logit = _logits(network, x[validate])
        signed = np.where(is_data[validate], -logit, logit)
        loss = float(np.average(np.logaddexp(0.0, signed), weights=weights[validate]))
        since = 0 if loss < lowest else since + 1
        lowest = min(loss, lowest)
        value = loss
        if options.select == "argos":
            value = -argos(logit[is_data[validate]], logit[~is_data[validate]]).value
        if len(best) < options.average or value < best[-1][0]:
            best = sorted([*best, (value, keep(network))], key=lambda item: item[0])[: options.average]
        if since == options.patience:
            network.optimizer.learning_rate = float(network.optimizer.learning_rate) * 0.1
            since = 0
            if float(network.optimizer.learning_rate) < 1e-3 * options.learning_rate:
                break
    return network, [item for _, item in best]


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
