r"""A conditional flow in raw units: transform, layers and Jacobian in one network; and the same network run backwards.

With t the logit of the position in the range of a feature, standardised (`gbistat.data.transforms`), and layers that
map t(x) to z at given mass,

.. math::

    \ln p(x|m) = \ln N(z; 0, 1) + \sum_l \ln \left| \det \frac{\partial z_l}{\partial z_{l-1}} \right|
                 + \sum_j \ln \left| \frac{dt_j}{dx_j} \right| .

The condition is ln m, standardised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat.data.transforms import FeatureTransform
from gbistat.training.autoregressive import make_layers
from gbistat.training.environment import COMPILED, keras

if TYPE_CHECKING:
    from gbistat.training.autoregressive import AutoregressiveLayer
    from gbistat.training.background_card import FlowOptimiserSpec, FlowSpec
    from gbistat.training.sidebands import SidebandPool
    from gbistat.typing import FloatArray, Json

__all__ = ["Flow", "FlowScaling", "build_flow", "compile_flow", "log_density", "sample_flow"]

AT_ONCE = 16_384


@dataclass(frozen=True, eq=False)
class FlowScaling:
    """What the network does to raw values before its first layer.

    Parameters
    ----------
    transform : FeatureTransform
        Of the d features.
    log_mass_mean, log_mass_deviation : float
        Of the sideband events.
    """

    transform: FeatureTransform
    log_mass_mean: float
    log_mass_deviation: float

    @classmethod
    def of(cls, pool: SidebandPool) -> FlowScaling:
        """Scaling fitted to sideband events."""
        log_mass = np.log(pool.x[:, 0])
        return cls(pool.transform, float(log_mass.mean()), float(log_mass.std()))

    def to_dict(self) -> Json:
        """Plain data, for JSON."""
        return {
            "transform": self.transform.to_dict(),
            "log_mass_mean": self.log_mass_mean,
            "log_mass_deviation": self.log_mass_deviation,
        }

    @classmethod
    def from_dict(cls, data: Json) -> FlowScaling:
        """What `to_dict` gave."""
        return cls(FeatureTransform.from_dict(data["transform"]), data["log_mass_mean"], data["log_mass_deviation"])


@dataclass(frozen=True, eq=False)
class Flow:
    """Two networks with the same weights.

    Parameters
    ----------
    density : keras.Model
        Input ``x`` of shape (n, 1 + d): mass and features in raw units; output (n, 1): ln p(x | m) in their units.
    sampler : keras.Model
        Input ``x`` of shape (n, 1 + d): mass and d standard-normal numbers; output (n, d): features in raw units.
    """

    density: Any
    sampler: Any

    @property
    def weights(self) -> list[FloatArray]:
        """Weights in a fixed order, as arrays."""
        return [np.asarray(array) for array in self.density.get_weights()]

    def set_weights(self, weights: list[FloatArray]) -> None:
        """Put weights into both networks."""
        self.density.set_weights(weights)


def build_flow(flow: FlowSpec, scaling: FlowScaling, *, entropy: list[int], name: str = "flow") -> Flow:
    """Untrained flow; the same for the same `entropy`."""
    library = keras()
    n = len(scaling.transform)
    layers = make_layers(n, flow, entropy=entropy)
    inputs = library.Input((1 + n,), name="x")
    hidden, log_slope = _forward(inputs[:, 1:], scaling.transform)
    condition = _condition(inputs[:, :1], scaling)
    for layer in layers:
        hidden, term = layer.forward(condition, hidden)
        log_slope = log_slope + term
    square = library.ops.sum(hidden * hidden, axis=1, keepdims=True)
    density = library.Model(inputs, log_slope - 0.5 * square - 0.5 * n * math.log(2.0 * math.pi), name=name)
    return Flow(density, _build_sampler(layers, scaling, name))


def _build_sampler(layers: list[AutoregressiveLayer], scaling: FlowScaling, name: str) -> Any:
    library = keras()
    inputs = library.Input((1 + len(scaling.transform),), name="x")
    condition, hidden = _condition(inputs[:, :1], scaling), inputs[:, 1:]
    for layer in reversed(layers):
        hidden = layer.inverse(condition, hidden)
    return library.Model(inputs, _backward(hidden, scaling.transform), name=f"{name}_sampler")


def _condition(mass: Any, scaling: FlowScaling) -> Any:
    return (keras().ops.log(mass) - scaling.log_mass_mean) * (1.0 / scaling.log_mass_deviation)


def _forward(x: Any, transform: FeatureTransform) -> tuple[Any, Any]:
    """Standardised logits, shape (n, d), and the log of their derivative summed over features, shape (n, 1)."""
    ops = keras().ops
    below, above = ops.log(x - _row(transform.low)), ops.log(ops.subtract(_row(transform.high), x))
    constant = float(np.sum(np.log((transform.high - transform.low) / transform.std)))
    # ln(x - low) - ln(high - x), not logit(u): 1 - u would lose the digits of events next to the upper end.
    z = (below - above - _row(transform.mean)) * _row(1.0 / transform.std)
    return z, constant - ops.sum(below + above, axis=1, keepdims=True)


def _backward(z: Any, transform: FeatureTransform) -> Any:
    """Features from standardised logits, measured from the nearer end."""
    ops = keras().ops
    z = z * _row(transform.std) + _row(transform.mean)
    width = _row(transform.high - transform.low)
    share = ops.sigmoid(-ops.abs(z)) * width
    return ops.where(z < 0.0, share + _row(transform.low), ops.subtract(_row(transform.high), share))


def _row(values: FloatArray) -> Any:
    """Constant of a graph: a tensor of the backend would become one more input of the exported graph."""
    return values[None, :].astype(np.float32)


def compile_flow(flow: Flow, optimiser: FlowOptimiserSpec) -> None:
    """Optimiser and loss, the mean of -ln p; the training step is compiled by XLA where the backend has it."""
    library = keras()
    flow.density.compile(
        optimizer=library.optimizers.AdamW(
            optimiser.learning_rate, weight_decay=optimiser.weight_decay, global_clipnorm=optimiser.clip_norm
        ),
        loss=_minus,
        jit_compile=library.backend.backend() in COMPILED,
    )


def _minus(_: Any, log_prob: Any) -> Any:
    return -log_prob


def log_density(flow: Flow, x: FloatArray) -> FloatArray:
    """ln p at raw mass and features, shape (n, 1 + d), in float64."""
    if flow.density.compiled:
        # Compiled once for the shape of a batch: what every epoch of a training needs.
        output = flow.density.predict(x.astype(np.float32), batch_size=AT_ONCE, verbose=0)
        return np.asarray(output, dtype=np.float64)[:, 0]
    return _evaluate(flow.density, x)[:, 0]


def sample_flow(flow: Flow, x: FloatArray) -> FloatArray:
    """Features from mass and latent numbers, shape (n, 1 + d), in float64."""
    return _evaluate(flow.sampler, x)


def _evaluate(network: Any, x: FloatArray) -> FloatArray:
    """Output of a network, batch by batch and operation by operation: compiling it for one use takes longer."""
    ops = keras().ops
    batches = np.array_split(x.astype(np.float32), max(1, math.ceil(len(x) / AT_ONCE)))
    return np.concatenate(
        [np.asarray(ops.convert_to_numpy(network(batch, training=False)), dtype=np.float64) for batch in batches]
    )
