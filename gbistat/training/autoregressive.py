r"""Masked autoregressive flows in ``keras.ops``: affine (arXiv:1705.07057) and rational-quadratic splines.

One layer maps :math:`z_i = g(x_i; \phi_i(x_{<i}, c))` with a monotonic g, an order of the features, and parameters
:math:`\phi` from one network whose weights are masked such that :math:`\phi_i` sees the features before i and the
condition c only (MADE, arXiv:1502.03509). Its Jacobian is triangular: all features are mapped in one pass, and the
log-determinant is a sum. The inverse takes d passes, one a feature.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat.training.environment import keras
from gbistat.training.splines import n_spline_parameters, spline_forward, spline_inverse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.training.background_card import FlowSpec
    from gbistat.typing import FloatArray

__all__ = ["AutoregressiveLayer", "autoregressive_masks", "count_parameters", "make_layers"]

LAST_LAYER = 0.1
"""Size of the last kernel at the start, relative to Glorot's: the untrained flow is close to the identity."""
STRONGEST = 4.0
"""Bound of the log of an affine scale."""


def autoregressive_masks(order: Sequence[int], hidden: Sequence[int], *, outputs: int) -> list[FloatArray]:
    """Masks of the kernels of one conditioner, input to output, each of shape (inputs, outputs of the kernel).

    Parameters
    ----------
    order : sequence of int
        Position of each of the d features in the order, from 0.
    hidden : sequence of int
        Units of the hidden layers.
    outputs : int
        Numbers that each feature's map needs; the last kernel has d times as many columns, feature by feature.

    Notes
    -----
    A unit of degree k may see features at positions below k; the condition, the first input, has degree 0. Hidden
    units take the degrees 0 ... d - 1 in turn, a feature at position k has degree k + 1 as input and k as output.

    Examples
    --------
    >>> first, second = autoregressive_masks([0, 1], [2], outputs=1)
    >>> first.tolist(), second.tolist()
    ([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]], [[1.0, 1.0], [0.0, 1.0]])
    """
    positions = np.asarray(order)
    degrees = [np.concatenate([[0], positions + 1])]
    degrees += [np.arange(units) % positions.size for units in hidden]
    degrees.append(np.repeat(positions, outputs))
    return [(after[None, :] >= before[:, None]).astype(np.float64) for before, after in pairwise(degrees)]


@dataclass(frozen=True, eq=False)
class AutoregressiveLayer:
    """One layer of a flow: its conditioner and the map of one feature given its parameters.

    Parameters
    ----------
    conditioner : sequence of keras.layers.Layer
        Masked dense layers; the last has ``d * outputs`` columns.
    order : tuple of int
        Position of each feature in the order.
    flow : FlowSpec
        Kind of map, bins, bound.
    """

    conditioner: tuple[Any, ...]
    order: tuple[int, ...]
    flow: FlowSpec

    def forward(self, condition: Any, x: Any) -> tuple[Any, Any]:
        """z and ln |det dz/dx|, shapes (n, d) and (n, 1)."""
        ops = keras().ops
        raw = self._parameters(condition, x)
        if self.flow.transform == "spline":
            z, log_slope = spline_forward(x, raw, bins=self.flow.bins, bound=self.flow.bound)
        else:
            shift, log_slope = self._affine(raw)
            z = (x - shift) * ops.exp(log_slope)
        return z, ops.sum(log_slope, axis=1, keepdims=True)

    def inverse(self, condition: Any, z: Any) -> Any:
        """x of which `z` is the image, shape (n, d)."""
        ops = keras().ops
        x = ops.zeros_like(z)
        for step in range(len(self.order)):
            raw = self._parameters(condition, x)
            if self.flow.transform == "spline":
                found = spline_inverse(z, raw, bins=self.flow.bins, bound=self.flow.bound)
            else:
                shift, log_slope = self._affine(raw)
                found = z * ops.exp(-log_slope) + shift
            now = np.asarray([float(position == step) for position in self.order], dtype=np.float32)
            x = x + found * now
        return x

    def _parameters(self, condition: Any, x: Any) -> Any:
        library = keras()
        hidden = library.ops.concatenate([condition, x], axis=1)
        for layer in self.conditioner:
            hidden = layer(hidden)
        return library.ops.reshape(hidden, (-1, len(self.order), _outputs(self.flow)))

    def _affine(self, raw: Any) -> tuple[Any, Any]:
        ops = keras().ops
        return raw[..., 0], STRONGEST * ops.tanh(raw[..., 1] * (1.0 / STRONGEST))


def make_layers(n_features: int, flow: FlowSpec, *, entropy: Sequence[int]) -> list[AutoregressiveLayer]:
    """Untrained layers of a flow; the order of the features is reversed from one to the next.

    Every kernel has its own seed, made of `entropy`: nothing depends on Keras's global generator.
    """
    rng = np.random.default_rng(list(entropy))
    layers = []
    for number, order in enumerate(_orders(n_features, flow)):
        masks = autoregressive_masks(order, flow.hidden, outputs=_outputs(flow))
        dense = []
        for position, mask in enumerate(masks):
            last = position == len(masks) - 1
            reach = math.sqrt(6.0 / sum(mask.shape)) * (LAST_LAYER if last else 1.0)
            kernel = rng.uniform(-reach, reach, size=mask.shape) * mask
            name = f"layer_{number}_dense_{position}"
            dense.append(_masked_dense()(mask, kernel, None if last else flow.activation, name=name))
        layers.append(AutoregressiveLayer(tuple(dense), order, flow))
    return layers


def count_parameters(n_features: int, flow: FlowSpec) -> int:
    """Trained numbers of a flow; masked weights are not counted."""
    masks = [autoregressive_masks(order, flow.hidden, outputs=_outputs(flow)) for order in _orders(n_features, flow)]
    return sum(int(mask.sum()) + mask.shape[1] for layer in masks for mask in layer)


def _orders(n_features: int, flow: FlowSpec) -> list[tuple[int, ...]]:
    forward = tuple(range(n_features))
    return [forward if number % 2 == 0 else forward[::-1] for number in range(flow.layers)]


def _outputs(flow: FlowSpec) -> int:
    return n_spline_parameters(flow.bins) if flow.transform == "spline" else 2


@cache
def _masked_dense() -> Any:
    """Class of a dense layer with a masked kernel; made when Keras is there."""
    library = keras()
    base: Any = library.layers.Layer

    class MaskedDense(base):
        """``activation(x @ (kernel * mask) + bias)``."""

        def __init__(self, mask: FloatArray, kernel: FloatArray, activation: str | None, *, name: str) -> None:
            super().__init__(name=name)
            self.mask = mask.astype(np.float32)
            self.start = kernel.astype(np.float32)
            self.activation = library.activations.get(activation)

        def build(self, input_shape: Any) -> None:
            start = self.start
            self.kernel = self.add_weight(
                shape=self.mask.shape,
                initializer=lambda shape, dtype=None: library.ops.convert_to_tensor(start),
                name="kernel",
            )
            self.bias = self.add_weight(shape=(self.mask.shape[1],), initializer="zeros", name="bias")

        def call(self, inputs: Any) -> Any:
            return self.activation(library.ops.matmul(inputs, self.kernel * self.mask) + self.bias)

    return MaskedDense
