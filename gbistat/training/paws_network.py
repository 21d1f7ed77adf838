"""The parametrised network: raw features and two masses to a logit, pre-processing and the order of the masses inside."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat.training.environment import COMPILED, keras

if TYPE_CHECKING:
    from gbistat.training.network import Scaling
    from gbistat.training.paws_card import PawsCard

__all__ = ["build_paws_network"]


def build_paws_network(card: PawsCard, scaling: Scaling, *, member: int) -> Any:
    """Untrained network of one member, compiled.

    Every random choice has its own seed, made of the card's seed and the member.

    Returns
    -------
    keras.Model
        Input ``x`` of shape (n, d + 2), raw features and masses, output of shape (n, 1): the logit.

    Notes
    -----
    The masses, or their logarithms, enter by a sum and a root of a squared difference. So exchanging them changes nothing, and the logit is
    differentiable where they are equal, which splines through it need; larger and smaller mass themselves have a kink there.
    """
    library = keras()
    ops = library.ops
    seeds = iter(np.random.default_rng([card.seed, 33, member]).integers(2**31 - 1, size=len(card.network.hidden) + 1))

    def dense(width: int, activation: str | None) -> Any:
        start = library.initializers.GlorotUniform(seed=int(next(seeds)))
        return library.layers.Dense(width, activation=activation, kernel_initializer=start)

    d = len(card.inputs)
    inputs = library.Input((d + 2,), name="x")
    raw = {item.name: inputs[:, position : position + 1] for position, item in enumerate(card.inputs)}
    columns = []
    for item, mean, deviation in zip(card.inputs, scaling.mean, scaling.deviation, strict=True):
        column = raw[item.name]
        if item.log_offset is not None:
            column = ops.log(column + item.log_offset)
        columns.append((column - mean) * (1.0 / deviation))
    larger, smaller, asymmetry = _ordered(ops, inputs[:, d : d + 1], inputs[:, d + 1 :], card)
    columns += [_standardised(ops.log(mass), card) for mass in (larger, smaller)]
    if not card.symmetric:
        columns.append(asymmetry)
    offsets = {item.name: item.log_offset or 0.0 for item in card.inputs}
    for name, masses in zip(card.compare or (), ((larger, smaller), (smaller, larger)), strict=False):
        for place, mass in enumerate(masses):
            # The same offset on both sides: the logarithm of an ungroomed jet's mass may be that of 0.
            ratio = ops.log(raw[name] + offsets[name]) - ops.log(mass + offsets[name])
            if place == 0:
                columns.append(ratio * (1.0 / card.resolution))
            if card.peak is not None:
                # Steep on both sides of a peak, which smooth units build only slowly.
                columns.append(ops.log(1.0 + ops.square(ratio * (1.0 / card.peak))))
    hidden = ops.concatenate(columns, axis=1)
    for width in card.network.hidden:
        hidden = dense(width, card.network.activation)(hidden)
        if card.network.dropout > 0:
            hidden = library.layers.Dropout(card.network.dropout, seed=0)(hidden)
    network = library.Model(inputs, dense(1, None)(hidden), name=f"member_{member}")
    optimiser = card.optimiser
    network.compile(
        optimizer=library.optimizers.AdamW(optimiser.learning_rate, weight_decay=optimiser.weight_decay),
        loss=library.losses.BinaryCrossentropy(from_logits=True),
        jit_compile=card.compiled and library.backend.backend() in COMPILED,
    )
    return network


def _ordered(ops: Any, a: Any, b: Any, card: PawsCard) -> tuple[Any, Any, Any]:
    """Larger mass, smaller mass, and which is which, in (-1, 1); all of them smooth where the masses are equal.

    The smaller of the masses themselves is too large by twice the smoothing, so that it stays positive.
    """
    relative = card.relative_smoothing
    if relative is not None:
        a, b = ops.log(a), ops.log(b)
    centre, half = (a + b) * 0.5, (a - b) * 0.5
    size = ops.sqrt(ops.square(half) + (card.smoothing if relative is None else relative) ** 2)
    if relative is not None:
        return ops.exp(centre + size), ops.exp(centre - size), half / size
    return centre + size, centre - size + 2.0 * card.smoothing, half / size


def _standardised(log_mass: Any, card: PawsCard) -> Any:
    low = math.log(min(item.low for item in card.parameters))
    high = math.log(max(item.high for item in card.parameters))
    return (log_mass - 0.5 * (low + high)) * (3.0 / (high - low))
