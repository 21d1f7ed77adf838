"""The network: raw inputs to a logit, pre-processing inside the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat.training.environment import keras

if TYPE_CHECKING:
    from gbistat.training.card import RatioCard
    from gbistat.training.dataset import ClassifierSet
    from gbistat.training.paws_card import PawsCard
    from gbistat.typing import FloatArray

__all__ = [
    "Scaling",
    "build_network",
    "evaluate",
    "measure_scaling",
    "set_dropout_seeds",
    "train_epoch",
    "weighted_loss",
]

PREDICTED_AT_ONCE = 16_384


@dataclass(frozen=True)
class Scaling:
    """Mean and standard deviation of each input after its logarithm, two tuples of length d."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]


def measure_scaling(x: FloatArray, card: RatioCard | PawsCard) -> Scaling:
    """Scaling from events, shape (n, d): the background that may train."""
    columns = [
        x[:, column] if item.log_offset is None else np.log(x[:, column] + item.log_offset)
        for column, item in enumerate(card.inputs)
    ]
    return Scaling(
        tuple(float(np.mean(column)) for column in columns),
        # A constant input stays constant.
        tuple(float(np.std(column)) or 1.0 for column in columns),
    )


def build_network(card: RatioCard, scaling: Scaling, *, member: int) -> Any:
    """Untrained network of one member, compiled.

    Every random choice has its own seed, made of the card's seed and the member: nothing depends on Keras's global
    generator.

    Returns
    -------
    keras.Model
        Input ``x`` of shape (n, d) in raw units, output of shape (n, 1): the logit.
    """
    library = keras()
    seeds = iter(np.random.default_rng([card.seed, 2, member]).integers(2**31 - 1, size=len(card.network.hidden) + 1))

    def dense(width: int, activation: str | None) -> Any:
        start = library.initializers.GlorotUniform(seed=int(next(seeds)))
        return library.layers.Dense(width, activation=activation, kernel_initializer=start)

    inputs = library.Input((len(card.inputs),), name="x")
    columns = []
    for position, (item, mean, deviation) in enumerate(zip(card.inputs, scaling.mean, scaling.deviation, strict=True)):
        column = inputs[:, position : position + 1]
        if item.log_offset is not None:
            column = library.ops.log(column + item.log_offset)
        columns.append((column - mean) * (1.0 / deviation))
    hidden = library.ops.concatenate(columns, axis=1)
    for width in card.network.hidden:
        hidden = dense(width, card.network.activation)(hidden)
        if card.network.dropout > 0:
            hidden = library.layers.Dropout(card.network.dropout, seed=0)(hidden)
    network = library.Model(inputs, dense(1, None)(hidden), name=f"member_{member}")
    optimiser = card.optimiser
    network.compile(
        optimizer=library.optimizers.AdamW(optimiser.learning_rate, weight_decay=optimiser.weight_decay),
        loss=library.losses.BinaryCrossentropy(from_logits=True),
        jit_compile=False,
    )
    return network


def set_dropout_seeds(network: Any, entropy: list[int]) -> None:
    """Put the generators of the dropout layers into a state that depends on `entropy` only."""
    generators = [layer.seed_generator for layer in network.layers if hasattr(layer, "seed_generator")]
    states = np.random.default_rng(entropy).integers(2**31 - 1, size=(len(generators), 2))
    for generator, state in zip(generators, states, strict=True):
        generator.state.assign(state)


def train_epoch(
    network: Any,
    train: ClassifierSet,
    validate: ClassifierSet,
    card: RatioCard | PawsCard,
    *,
    member: int,
    epoch: int,
    rate: float,
) -> tuple[float, float]:
    """One epoch; the result depends on the network's state, the sets, the card, `member`, `epoch` and `rate` only.

    Returns
    -------
    (float, float)
        Training loss (mean over the epoch) and validation loss after it.
    """
    entropy = [card.seed, 3, member, epoch]
    order = np.random.default_rng(entropy).permutation(len(train.y))
    set_dropout_seeds(network, [*entropy, 1])
    network.optimizer.learning_rate.assign(rate)
    x, y, weights = (array[order].astype(np.float32) for array in (train.x, train.y, train.weights))
    history = network.fit(
        x,
        y,
        sample_weight=weights,
        batch_size=card.optimiser.batch_size,
        epochs=1,
        shuffle=False,
        verbose=0,
    ).history
    return float(history["loss"][0]), weighted_loss(evaluate(network, validate.x), validate)


def weighted_loss(logits: FloatArray, events: ClassifierSet) -> float:
    """Binary cross-entropy in float64, per unit of weight."""
    wrong = np.where(events.y > 0.5, -logits, logits)
    return float(np.average(np.logaddexp(0.0, wrong), weights=events.weights))


def evaluate(network: Any, x: FloatArray) -> FloatArray:
    """Logits at raw inputs, shape (n,), in float64."""
    output = network.predict(x.astype(np.float32), batch_size=PREDICTED_AT_ONCE, verbose=0)
    logits: FloatArray = np.asarray(output, dtype=np.float64)[:, 0]
    return logits
