"""A trained SIGMA model as densities: for any window from numpy, or for one window as two graphs of a term."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat.terms.flow_matching import FlowMatchingDensity, GraphVelocity
from gbistat.training.environment import keras
from gbistat.training.flow import Flow, features_of, logits_of
from gbistat.training.graph import to_onnx
from gbistat.training.velocity import split_models

if TYPE_CHECKING:
    from collections.abc import Callable

    from gbistat.training.sigma_run import SigmaRun
    from gbistat.training.velocity import VelocityModels
    from gbistat.typing import FloatArray

__all__ = ["KerasVelocity", "sigma_density", "sigma_flow"]

PREDICTED_AT_ONCE = 16_384


@dataclass(frozen=True, eq=False)
class KerasVelocity:
    """The velocity of a network on Keras's backend; a `gbistat.terms.flow_matching.Velocity`."""

    models: VelocityModels

    def context(self, mass: FloatArray, /) -> FloatArray:
        """Context of n scaled masses, shape (n, c)."""
        return _predict(self.models.context, mass[:, None])

    def velocity(self, x: FloatArray, /) -> FloatArray:
        """Velocity at ``[y, t, context]``, shape (n, d)."""
        return _predict(self.models.velocity, x)

    def flow(self, x: FloatArray, /) -> FloatArray:
        """Velocity and divergence at ``[y, t, context]``, shape (n, d + 1)."""
        return _predict(self.models.flow, x)


def _predict(model: Any, x: FloatArray) -> FloatArray:
    output = model.predict(x.astype(np.float32), batch_size=PREDICTED_AT_ONCE, verbose=0)
    return np.asarray(output, dtype=np.float64)


def sigma_density(run: SigmaRun, *, network: Any = None, backend: str = "onnx") -> FlowMatchingDensity:
    """Density of a finished run, as it was trained; ``blinded`` makes it that of any window.

    Parameters
    ----------
    run : SigmaRun
        The run.
    network : keras.Model, optional
        Instead of the run's own.
    backend : {"onnx", "keras"}
        What evaluates the velocity: ONNX graphs, which need no Keras afterwards, or Keras.

    Raises
    ------
    OutputError
        If the run is not finished.
    TermError
        If the network cannot be written as ONNX.
    """
    models = split_models(run.network() if network is None else network, run.options)
    velocity: Any = KerasVelocity(models)
    if backend == "onnx":
        velocity = GraphVelocity((to_onnx(models.context), to_onnx(models.velocity), to_onnx(models.flow)))
    return FlowMatchingDensity(velocity, run.transform, run.mass_range)


def sigma_flow(
    run: SigmaRun, interpolated: tuple[float, float], *, steps: int = 10, network: Any = None, name: str = "sigma"
) -> Flow:
    """Density and sampler for one window, all Runge-Kutta steps inside the graph.

    Parameters
    ----------
    run : SigmaRun
        The run.
    interpolated : (float, float)
        Edges of the interpolation of the context.
    steps : int, default 10
        Runge-Kutta steps.
    network : keras.Model, optional
        Instead of the run's own.
    name : str
        Name of the graphs.

    Returns
    -------
    Flow
        Raw mass and features to ln p, and raw mass and normal numbers to raw features; see
        :class:`gbistat.training.flow.Flow`.

    Raises
    ------
    OutputError
        If the run is not finished.
    """
    library = keras()
    ops = library.ops
    models = split_models(run.network() if network is None else network, run.options)
    d = len(run.transform)
    inputs = library.Input((1 + d,), name="x")
    context = _context_between(models.context, inputs[:, :1], run.mass_range, interpolated)
    y, log_slope = logits_of(inputs[:, 1:], run.transform)
    state = ops.concatenate([y, ops.zeros_like(y[:, :1])], axis=1)
    state = _integrate(lambda s, t: models.flow(_inputs(s[:, :d], t, context)), state, 1.0, -1.0 / steps, steps)
    square = ops.sum(state[:, :d] * state[:, :d], axis=1, keepdims=True)
    log_prob = log_slope + state[:, d:] - 0.5 * square - float(0.5 * d * np.log(2.0 * np.pi))
    density = library.Model(inputs, log_prob, name=name)
    latent = library.Input((1 + d,), name="x")
    context = _context_between(models.context, latent[:, :1], run.mass_range, interpolated)
    y = _integrate(lambda s, t: models.velocity(_inputs(s, t, context)), latent[:, 1:], 0.0, 1.0 / steps, steps)
    return Flow(density, library.Model(latent, features_of(y, run.transform), name=f"{name}_sampler"))


def _context_between(network: Any, mass: Any, mass_range: tuple[float, float], edges: tuple[float, float]) -> Any:
    """Context, interpolated between the edges."""
    ops = keras().ops
    low, high = np.log(mass_range)

    def scaled(m: Any) -> Any:
        return (ops.log(m) - float(low)) * float(2.0 / (high - low)) - 1.0

    below, above = (network(scaled(0.0 * mass + edge)) for edge in edges)
    a = (edges[1] - mass) * (1.0 / (edges[1] - edges[0]))
    inside = ops.logical_and(mass > edges[0], mass < edges[1])
    return ops.where(inside, a * below + (1.0 - a) * above, network(scaled(mass)))


def _inputs(y: Any, t: float, context: Any) -> Any:
    ops = keras().ops
    return ops.concatenate([y, ops.zeros_like(y[:, :1]) + t, context], axis=1)


def _integrate(slope: Callable[[Any, float], Any], state: Any, start: float, step: float, steps: int) -> Any:
    """Runge-Kutta steps of fourth order, written out."""
    for k in range(steps):
        t = start + k * step
        k1 = slope(state, t)
        k2 = slope(state + (0.5 * step) * k1, t + 0.5 * step)
        k3 = slope(state + (0.5 * step) * k2, t + 0.5 * step)
        k4 = slope(state + step * k3, t + step)
        state = state + (step / 6.0) * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
    return state
