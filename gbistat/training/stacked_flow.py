"""Many small spline flows as one: every array has the networks as its first axis and the events as its last.

A small flow leaves a processor idle between thousands of tiny operations. With T networks stacked, one operation serves all of
them, and with the events last the bins of a spline are whole rows. The maps are those of `gbistat.training.splines` in
masked autoregressive layers (arXiv:1705.07057, arXiv:1906.04032), without a condition.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat.training.autoregressive import LAST_LAYER, autoregressive_masks
from gbistat.training.environment import keras
from gbistat.training.splines import (
    LEAST_SIZE,
    LEAST_SLOPE,
    SLOPE_OFFSET,
    Bin,
    forward_in,
    inverse_in,
    n_spline_parameters,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.training.background_card import FlowSpec
    from gbistat.typing import FloatArray

__all__ = ["StackedFlow"]


@dataclass(frozen=True, eq=False)
class StackedFlow:
    """Architecture of T flows of one kind; their weights are passed in.

    Parameters
    ----------
    n_features : int
        Dimensions d.
    flow : FlowSpec
        Layers, hidden units, bins, bound; its transform must be ``spline``.

    Notes
    -----
    Weights are a list of kernels (T, outputs, inputs) and biases (T, outputs, 1), layer by layer. Kernels hold zeros where
    the autoregressive masks forbid a connection.
    """

    n_features: int
    flow: FlowSpec

    def masks(self) -> list[FloatArray]:
        """Mask of every weight array, shape (outputs, inputs) or (1, 1), in the order of the weights."""
        result = []
        for order in self.orders():
            # The first row belongs to a condition, which a joint density does not have.
            kernels = autoregressive_masks(order, self.flow.hidden, outputs=1)
            parameters = n_spline_parameters(self.flow.bins)
            for position, mask in enumerate(kernels):
                last = position == len(kernels) - 1
                rows = mask[1:].T if position == 0 else mask.T
                result += [np.tile(rows, (parameters, 1)) if last else rows, np.ones((1, 1))]
        return [mask.astype(np.float32) for mask in result]

    def orders(self) -> list[tuple[int, ...]]:
        """Position of each feature in the order of each layer."""
        forward = tuple(range(self.n_features))
        return [forward if number % 2 == 0 else forward[::-1] for number in range(self.flow.layers)]

    def start(self, entropies: Sequence[Sequence[int]]) -> list[FloatArray]:
        """Weights of untrained flows, close to the identity; each network depends on its own entropy only."""
        networks = [self._start(list(entropy)) for entropy in entropies]
        return [np.stack(arrays) for arrays in zip(*networks, strict=True)]

    def _start(self, entropy: list[int]) -> list[FloatArray]:
        rng = np.random.default_rng(entropy)
        masks = self.masks()
        per_layer = len(masks) // self.flow.layers
        result: list[FloatArray] = []
        for index in range(0, len(masks), 2):
            outputs, inputs = masks[index].shape
            last = index % per_layer == per_layer - 2
            reach = math.sqrt(6.0 / (outputs + inputs)) * (LAST_LAYER if last else 1.0)
            kernel = rng.uniform(-reach, reach, size=(outputs, inputs)) * masks[index]
            result += [kernel.astype(np.float32), np.zeros((outputs, 1), dtype=np.float32)]
        return result

    def log_prob(self, weights: Sequence[Any], x: Any) -> Any:
        """ln p of each network, shape (T, n), at transformed features of shape (T, d, n)."""
        ops = keras().ops
        log_slope: Any = 0.0
        for order, layer in self._layers(weights):
            x, terms = forward_in(self._bins(layer, x, x, order, of_output=False), x, self.flow.bound)
            log_slope = log_slope + ops.sum(terms, axis=1)
        constant = 0.5 * self.n_features * math.log(2.0 * math.pi)
        return log_slope - 0.5 * ops.sum(x * x, axis=1) - constant

    def inverse(self, weights: Sequence[Any], z: Any) -> Any:
        """Transformed features of which standard-normal numbers `z` are the image, shape (T, d, n)."""
        ops = keras().ops
        for order, layer in reversed(list(self._layers(weights))):
            x = ops.zeros_like(z)
            for step in range(self.n_features):
                found = inverse_in(self._bins(layer, x, z, order, of_output=True), z, self.flow.bound)
                now = np.array([position == step for position in order], dtype=np.float32)
                x = x + found * now[None, :, None]
            z = x
        return z

    def _layers(self, weights: Sequence[Any]) -> list[tuple[tuple[int, ...], list[Any]]]:
        each = len(weights) // self.flow.layers
        return [(order, list(weights[i * each : (i + 1) * each])) for i, order in enumerate(self.orders())]

    def _bins(self, layer: list[Any], x: Any, values: Any, order: tuple[int, ...], *, of_output: bool) -> Bin:
        """Bin of each of `values`, with spline parameters that depend on `x`."""
        ops, flow = keras().ops, self.flow
        activation = keras().activations.get(flow.activation)
        hidden = x
        for index in range(0, len(layer), 2):
            hidden = ops.matmul(layer[index], hidden) + layer[index + 1]
            hidden = hidden if index == len(layer) - 2 else activation(hidden)
        raw = ops.reshape(hidden, (hidden.shape[0], n_spline_parameters(flow.bins), self.n_features, -1))
        x_size, y_size = _sizes(raw[:, : flow.bins], flow), _sizes(raw[:, flow.bins : 2 * flow.bins], flow)
        inner = ops.softplus(raw[:, 2 * flow.bins :] + SLOPE_OFFSET) + LEAST_SLOPE
        x_low, y_low = (ops.cumsum(size, axis=1) - size - flow.bound for size in (x_size, y_size))
        one = ops.ones_like(inner[:, :1])
        left, right = ops.concatenate([one, inner], axis=1), ops.concatenate([inner, one], axis=1)
        edges = (y_low if of_output else x_low)[:, 1:]
        beyond = ops.cast(ops.expand_dims(values, 1) >= edges, values.dtype)
        chosen = ops.concatenate([one, beyond], axis=1) - ops.concatenate([beyond, ops.zeros_like(one)], axis=1)
        tables = {"x": x_low, "y": y_low, "width": x_size, "height": y_size, "left": left, "right": right}
        picked = {name: ops.sum(chosen * table, axis=1) for name, table in tables.items()}
        return Bin(**picked, inside=ops.cast(ops.abs(values) < flow.bound, values.dtype))


def _sizes(raw: Any, flow: FlowSpec) -> Any:
    """Sizes of the bins, which are the second axis."""
    share = LEAST_SIZE + (1.0 - LEAST_SIZE * flow.bins) * keras().ops.softmax(raw, axis=1)
    return 2.0 * flow.bound * share
