"""What every backend must do; run as a script with KERAS_BACKEND set, it prints what it found as JSON.

Another backend needs another process: Keras chooses its own once, when it is imported.
"""

from __future__ import annotations

import json
import sys

import numpy as np

from gbistat.data.transforms import FeatureTransform
from gbistat.training.background_card import FlowOptimiserSpec, FlowSpec
from gbistat.training.environment import keras
from gbistat.training.flow import FlowScaling, build_flow, compile_flow, log_density, sample_flow

LOW, HIGH = np.array([0.0, -2.0]), np.array([5.0, 3.0])


def make_flow(transform: str, *, hidden: tuple[int, ...] = (16,), layers: int = 2, seed: int = 1, noise: float = 0.0):
    """Flow in two features between LOW and HIGH at masses near 100; with noise, weights far from the start's."""
    scaling = FlowScaling(
        FeatureTransform(("a", "b"), LOW, HIGH, np.array([0.2, -0.1]), np.array([1.1, 0.9])), 4.6, 0.3
    )
    spec = FlowSpec(transform=transform, layers=layers, hidden=hidden, bins=5, bound=4.0)
    flow = build_flow(spec, scaling, entropy=[seed])
    rng = np.random.default_rng(seed)
    flow.set_weights([array + noise * rng.normal(size=array.shape).astype(np.float32) for array in flow.weights])
    return flow


def grid(n: int, mass: float) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights in both features, uniform in the logit's derivative near the ends."""
    node, weight = np.polynomial.legendre.leggauss(n)
    t, w = 9.0 * node, 9.0 * weight
    u, du = 1.0 / (1.0 + np.exp(-t)), w * np.exp(-t) / (1.0 + np.exp(-t)) ** 2
    columns = [LOW[j] + (HIGH[j] - LOW[j]) * u for j in (0, 1)]
    a, b = (array.ravel() for array in np.meshgrid(*columns, indexing="ij"))
    weights = np.outer(du * (HIGH - LOW)[0], du * (HIGH - LOW)[1]).ravel()
    return np.column_stack([np.full(a.size, mass), a, b]), weights


def examine(transform: str) -> dict[str, float | str]:
    """Integral, inverse, autoregressive Jacobian and three epochs of training."""
    flow = make_flow(transform, noise=0.2)
    x, weights = grid(100, 110.0)
    integral = float(np.sum(weights * np.exp(log_density(flow, x))))
    rng = np.random.default_rng(3)
    latent = np.column_stack([rng.uniform(80, 140, 400), rng.uniform(-2.5, 2.5, size=(400, 2))])
    features = sample_flow(flow, latent)
    # p(x) dx = N(z) dz: the Jacobian of the sampler by central differences.
    step = 1e-2
    jacobian = np.empty((400, 2, 2))
    for j in (0, 1):
        shift = np.zeros(3)
        shift[1 + j] = step
        jacobian[:, :, j] = (sample_flow(flow, latent + shift) - sample_flow(flow, latent - shift)) / (2 * step)
    normal = -0.5 * np.sum(latent[:, 1:] ** 2, axis=1) - np.log(2 * np.pi)
    expected = normal - np.linalg.slogdet(jacobian)[1]
    found = log_density(flow, np.column_stack([latent[:, 0], features]))
    return {
        "backend": keras().backend.backend(),
        "integral": integral,
        "change_of_variables": float(np.median(np.abs(found - expected))),
        **train(transform),
    }


def events(n: int, seed: int) -> np.ndarray:
    """Features that depend on the mass and on each other."""
    rng = np.random.default_rng(seed)
    mass = rng.uniform(80.0, 140.0, n)
    a = 5.0 / (1.0 + np.exp(-rng.normal((mass - 110.0) / 30.0, 0.7)))
    b = -2.0 + 5.0 / (1.0 + np.exp(-rng.normal(0.4 * (a - 2.5), 0.5)))
    return np.column_stack([mass, a, b])


def truth(x: np.ndarray) -> np.ndarray:
    """ln of the density that `events` draws from."""
    u, v = x[:, 1] / 5.0, (x[:, 2] + 2.0) / 5.0
    logits = np.log(u / (1 - u)), np.log(v / (1 - v))
    pulls = (logits[0] - (x[:, 0] - 110.0) / 30.0) / 0.7, (logits[1] - 0.4 * (x[:, 1] - 2.5)) / 0.5
    jacobian = -np.log(5.0 * u * (1 - u)) - np.log(5.0 * v * (1 - v))
    return -0.5 * (pulls[0] ** 2 + pulls[1] ** 2) - np.log(2 * np.pi * 0.7 * 0.5) + jacobian


def train(transform: str) -> dict[str, float]:
    """Mean excess of -ln p over the truth on new events, before and after training."""
    flow = make_flow(transform, layers=1)
    compile_flow(flow, FlowOptimiserSpec(learning_rate=0.01))
    x, test = events(6000, 1).astype(np.float32), events(6000, 2)
    before = float(np.mean(truth(test) - log_density(flow, test)))
    flow.density.fit(x, np.zeros((len(x), 1), np.float32), batch_size=200, epochs=5, shuffle=False, verbose=0)
    return {"before": before, "after": float(np.mean(truth(test) - log_density(flow, test)))}


if __name__ == "__main__":
    sys.stdout.write(json.dumps([examine(transform) for transform in sys.argv[1:]]) + "\n")
