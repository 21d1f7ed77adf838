r"""The network of conditional flow matching: a velocity v(y, t; m) whose divergence is computed in closed form.

A sample of p(y|m) is the end of the path dy/dt = v(y, t; m), t from 0 to 1, that starts at a standard-normal point, and

.. math::

    \ln p(y_1|m) = \ln N(y_0; 0, 1) - \int_0^1 \nabla \cdot v(y_t, t; m) \, dt

(Chen et al., arXiv:1806.07366). The network is residual: with time features tau(t), context c(m) and swish s,

.. math::

    h_0 = s(W y + T \tau + U c), \qquad
    h_{k+1} = h_k + \sigma(G_k c + g_k) \odot D_k \, s(A_k h_k + B_k \tau + C_k c), \qquad v = O h_K + o.

Every layer that sees y is linear or elementwise, so the Jacobian dh/dy of shape (d, width) goes forward with h: it is
multiplied by the same matrices, by s' and by the gates. That is the exact trace for the price of d more columns, with
``keras.ops`` alone on any backend. The mass enters through the context c(m) only; SIGMA (arXiv:2410.20537) interpolates it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat.training.environment import keras

if TYPE_CHECKING:
    from gbistat.training.sigma_run import SigmaOptions

__all__ = ["VelocityModels", "build_velocity", "split_models"]


@dataclass(frozen=True, eq=False)
class VelocityModels:
    """The parts of a velocity network, as models that share its weights.

    Parameters
    ----------
    context : keras.Model
        Scaled mass, shape (n, 1), to context, shape (n, c).
    velocity : keras.Model
        ``[y, t, context]`` of shape (n, d + 1 + c) to the velocity, shape (n, d).
    flow : keras.Model
        The same input to velocity and divergence, shape (n, d + 1).
    """

    context: Any
    velocity: Any
    flow: Any


def build_velocity(options: SigmaOptions, n_features: int, *, seed: int) -> Any:
    """Untrained velocity network.

    Parameters
    ----------
    options : SigmaOptions
        Widths and numbers of layers.
    n_features : int
        d.
    seed : int
        Of the initial weights.

    Returns
    -------
    keras.Model
        Input ``[y, t, u]`` of shape (n, d + 2) with the scaled mass u, output the velocity, shape (n, d).
    """
    library = keras()
    layers = _make_layers(options, n_features)
    inputs = library.Input((n_features + 2,), name="x")
    y, t, u = inputs[:, :n_features], inputs[:, n_features : n_features + 1], inputs[:, n_features + 1 :]
    context = _context(layers, u, options)
    output, _ = _velocity(layers, y, t, context, options, divergence=False)
    network = library.Model(inputs, output, name="velocity_of_mass")
    _draw_weights(layers, seed)
    return network


def split_models(network: Any, options: SigmaOptions) -> VelocityModels:
    """Context, velocity and velocity with divergence of a network that `build_velocity` made, sharing its weights."""
    library = keras()
    d = int(network.output_shape[-1])
    layers = {layer.name: layer for layer in network.layers}
    mass = library.Input((1,), name="x")
    context = library.Model(mass, _context(layers, mass, options), name="context")
    inputs = library.Input((d + 1 + options.context,), name="x")
    y, t, c = inputs[:, :d], inputs[:, d : d + 1], inputs[:, d + 1 :]
    plain, _ = _velocity(layers, y, t, c, options, divergence=False)
    velocity, divergence = _velocity(layers, y, t, c, options, divergence=True)
    both = library.ops.concatenate([velocity, divergence], axis=1)
    return VelocityModels(
        context, library.Model(inputs, plain, name="velocity"), library.Model(inputs, both, name="flow")
    )


def _make_layers(options: SigmaOptions, n_features: int) -> dict[str, Any]:
    library = keras()

    def dense(name: str, width: int, *, bias: bool = False, activation: str | None = None) -> Any:
        return library.layers.Dense(width, activation=activation, use_bias=bias, name=name)

    width = options.width
    layers = [
        dense("context_1", options.context, bias=True, activation="swish"),
        dense("context_2", options.context, bias=True, activation="swish"),
        dense("first_y", width),
        dense("first_time", width, bias=True),
        dense("first_context", width),
        dense("last", n_features),
        dense("last_time", n_features, bias=True),
    ]
    for k in range(options.blocks):
        layers += [
            dense(f"block_{k}_in", width),
            dense(f"block_{k}_time", width, bias=True),
            dense(f"block_{k}_context", width),
            dense(f"block_{k}_gate", width, bias=True),
            dense(f"block_{k}_out", width),
        ]
    return {layer.name: layer for layer in layers}


def _draw_weights(layers: dict[str, Any], seed: int) -> None:
    """Glorot's uniform start values from numpy: the same on every backend."""
    rng = np.random.default_rng([seed, 0])
    for name, layer in layers.items():
        kernel, *bias = layer.get_weights()
        # Small, so that a block starts near the identity.
        limit = math.sqrt((0.6 if name.endswith("_out") else 6.0) / sum(kernel.shape))
        start = rng.uniform(-limit, limit, kernel.shape).astype(kernel.dtype)
        layer.set_weights([start, *(np.zeros_like(array) for array in bias)])


def _context(layers: dict[str, Any], u: Any, options: SigmaOptions) -> Any:
    """Activations c(m), the only way in which the mass enters."""
    ops = keras().ops
    frequencies = (math.pi * 2.0 ** np.arange(options.mass_frequencies)).astype("float32")[None, :]
    angles = u * frequencies
    embedded = ops.concatenate([u, ops.cos(angles), ops.sin(angles)], axis=1)
    return layers["context_2"](layers["context_1"](embedded))


def _velocity(
    layers: dict[str, Any], y: Any, t: Any, context: Any, options: SigmaOptions, *, divergence: bool
) -> tuple[Any, Any]:
    """Velocity (n, d), and its divergence (n, 1) where wanted."""
    ops = keras().ops
    angles = t * (math.pi * np.arange(1, options.time_frequencies + 1)).astype("float32")[None, :]
    tau = ops.concatenate([t, ops.cos(angles), ops.sin(angles)], axis=1)
    d = int(y.shape[-1])
    # Layers without a bias act on the rows of the Jacobian as they act on the value.
    identity = np.eye(d, dtype="float32")
    argument = layers["first_y"](y) + layers["first_time"](tau) + layers["first_context"](context)
    h, slope = _swish(argument, derivative=divergence)
    jacobian = None
    if divergence:
        start = ops.expand_dims(0.0 * y, axis=2) + identity[None]
        jacobian = layers["first_y"](start) * ops.expand_dims(slope, axis=1)
    for k in range(options.blocks):
        argument = layers[f"block_{k}_in"](h) + layers[f"block_{k}_time"](tau) + layers[f"block_{k}_context"](context)
        gate = ops.sigmoid(layers[f"block_{k}_gate"](context))
        z, slope = _swish(argument, derivative=divergence)
        if divergence:
            inner = layers[f"block_{k}_in"](jacobian) * ops.expand_dims(slope, axis=1)
            jacobian = jacobian + layers[f"block_{k}_out"](inner) * ops.expand_dims(gate, axis=1)
        h = h + layers[f"block_{k}_out"](z) * gate
    output = layers["last"](h) + layers["last_time"](tau)
    if not divergence:
        return output, None
    trace = ops.sum(layers["last"](jacobian) * identity[None], axis=(1, 2))
    return output, ops.expand_dims(trace, axis=1)


def _swish(x: Any, *, derivative: bool) -> tuple[Any, Any]:
    """``x sigmoid(x)``, and its derivative where wanted."""
    sigmoid = keras().ops.sigmoid(x)
    value = x * sigmoid
    return value, sigmoid + value * (1.0 - sigmoid) if derivative else None
