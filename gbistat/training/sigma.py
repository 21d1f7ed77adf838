r"""SIGMA: one conditional flow-matching model of all the data, interpolated between the edges of any window.

The network of :mod:`gbistat.training.velocity` learns the velocity that carries a standard normal into p(y|m) along
straight paths (Lipman et al., arXiv:2210.02747),

.. math::

    y_t = t \, y_1 + (1 - (1 - s) t) \, y_0, \qquad
    \text{loss} = E \, \lVert v(y_t, t; m) - (y_1 - (1 - s) y_0) \rVert^2,

on events of every mass, the signal region included. In a window its context c(m) is replaced by

.. math::

    a \, c(m_1) + (1 - a) \, c(m_2), \qquad a = \frac{m_2 - m}{m_2 - m_1}

(SIGMA, arXiv:2410.20537), so that what is learned inside the window, a signal among it, does not enter the background there
other than through weights that all masses share. One training serves every window.

Settings follow SIGMA, scaled to two CPU cores: 3 blocks of 128 instead of 4 of 256, no dropout and no batch norm (either would
make the divergence that of another function), a cosine learning rate instead of one that waits for a plateau.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat.data.transforms import FeatureTransform
from gbistat.errors import EventsError, FitFailed, OutputError
from gbistat.training.environment import keras
from gbistat.training.sigma_run import SigmaEpoch, SigmaOptions, SigmaRun, start_sigma_run, stops
from gbistat.training.velocity import build_velocity

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gbistat.typing import FloatArray, IntArray, Json

__all__ = ["learning_rate", "scaled_mass", "train_sigma"]

MARGIN = 1e-3


def scaled_mass(mass: FloatArray, mass_range: tuple[float, float]) -> FloatArray:
    """ln m scaled to [-1, 1] over a range, shape (n,).

    Examples
    --------
    >>> scaled_mass(np.array([1000.0, 2000.0, 4000.0]), (1000.0, 4000.0)).round(12).tolist()
    [-1.0, 0.0, 1.0]
    """
    low, high = np.log(mass_range)
    return 2.0 * (np.log(mass) - low) / (high - low) - 1.0


def train_sigma(
    features: FloatArray,
    mass: FloatArray,
    names: Sequence[str],
    run_directory: str | Path,
    *,
    options: SigmaOptions | None = None,
    bounds: Sequence[tuple[float | None, float | None]] | None = None,
    record: Json | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> SigmaRun:
    """Train on all events, or go on where an earlier call was stopped; the result is the same.

    Parameters
    ----------
    features : array of shape (n, d)
        Features of all events, sidebands and signal region; d of 1 to 6.
    mass : array of shape (n,)
        Their masses, positive.
    names : sequence of str
        Names of the features.
    run_directory : path
        Folder of the run: a checkpoint after every epoch.
    options : SigmaOptions, optional
        Network and training.
    bounds : sequence of (float or None, float or None), optional
        Known ends of the features, such as 0 for a mass; events at or beyond an end are left out and counted.
    record : dict, optional
        Kept with the run: hashes and counts of the events.
    progress : callable, optional
        Told fraction and text after every epoch.

    Returns
    -------
    SigmaRun
        The finished run.

    Raises
    ------
    EventsError
        If there are too few events for the weights, a feature is constant or NaN, or a mass is not positive.
    OutputError
        If the folder cannot be written, or holds another run.
    FitFailed
        If the loss is no longer finite.
    MissingExtra
        If Keras is not installed.
    """
    options = options or SigmaOptions()
    x, m = _checked(features, mass, names)
    transform = FeatureTransform.fit(x, names, margin=MARGIN, bounds=bounds)
    # The network works in float32, and an end must not be reached by rounding.
    keep = transform.inside(x.astype(np.float32).astype(np.float64))
    x, m = x[keep], m[keep]
    counts = {"n_events": len(x), "left_out": int(np.sum(~keep))}
    run = start_sigma_run(
        Path(run_directory), SigmaRun(Path(run_directory), options, transform, _span(m), {**(record or {}), **counts})
    )
    history = run.history()
    if stops([epoch.validation_loss for epoch in history], options):
        return run
    y, u = run.transform.forward(x), scaled_mass(m, run.mass_range)
    train, validate = _split(len(y), options)
    network = run.last() if history else _compiled(options, x.shape[1])
    _check_size(network, train.size)
    fixed = _paths(y[validate], u[validate], options, np.random.default_rng([options.seed, 2]))
    while not stops([epoch.validation_loss for epoch in history], options):
        number = len(history)
        rng = np.random.default_rng([options.seed, 3, number])
        order = train[rng.permutation(train.size)]
        rate = learning_rate(number, options)
        network.optimizer.learning_rate.assign(rate)
        inputs, target = _paths(y[order], u[order], options, rng)
        fitted = network.fit(inputs, target, batch_size=options.batch_size, epochs=1, shuffle=False, verbose=0)
        predicted = network.predict(fixed[0], batch_size=16_384, verbose=0)
        loss, validation_loss = float(fitted.history["loss"][0]), float(np.mean((predicted - fixed[1]) ** 2))
        if not np.isfinite([loss, validation_loss]).all():
            raise FitFailed(
                f"the loss is {loss:g} after epoch {number + 1}; lower learning_rate ({options.learning_rate:g}), or look for "
                "outliers among the features"
            )
        history.append(SigmaEpoch(loss, validation_loss, rate))
        try:
            run.save(network, history)
        except OSError as problem:
            raise OutputError(
                f"{run.directory} cannot be written: {problem.strerror or problem}; the run goes on at its last epoch"
            ) from None
        if progress is not None:
            done = 1.0 if run.finished else len(history) / options.epochs
            progress(done, f"epoch {len(history)}: loss {loss:.5f}, validation {validation_loss:.5f}")
    return run


def learning_rate(epoch: int, options: SigmaOptions) -> float:
    """Learning rate of an epoch: three epochs of warm-up, then half a cosine down to 0."""
    warm = min(1.0, (epoch + 1) / 3.0)
    return options.learning_rate * warm * 0.5 * (1.0 + math.cos(math.pi * epoch / options.epochs))


def _checked(features: FloatArray, mass: FloatArray, names: Sequence[str]) -> tuple[FloatArray, FloatArray]:
    x, m = np.asarray(features, dtype=np.float64), np.asarray(mass, dtype=np.float64)
    if x.ndim != 2 or m.shape != (len(x),) or x.shape[1] != len(names) or not 1 <= x.shape[1] <= 6:
        raise EventsError(
            f"features of shape {x.shape} and masses of shape {m.shape} with {len(names)} names: give (n, d) and (n,) with one "
            "name a feature, d from 1 to 6"
        )
    bad = int(np.sum(~(np.isfinite(m) & (m > 0))))
    if bad:
        raise EventsError(f"the mass is not a positive number in {bad} of {len(m)} events; remove these events")
    if np.ptp(m) == 0:
        raise EventsError(f"all {len(m)} events have the mass {m[0]:g}: nothing to condition on")
    return x, m


def _span(m: FloatArray) -> tuple[float, float]:
    if m.size == 0:
        raise EventsError("no event has every feature inside its known ends; check bounds and units")
    return float(m.min()), float(m.max())


def _split(n: int, options: SigmaOptions) -> tuple[IntArray, IntArray]:
    order = np.random.default_rng([options.seed, 1]).permutation(n)
    n_validate = max(1, round(options.validation * n))
    return order[n_validate:], order[:n_validate]


def _compiled(options: SigmaOptions, n_features: int) -> Any:
    network = build_velocity(options, n_features, seed=options.seed)
    optimiser = keras().optimizers.AdamW(options.learning_rate, weight_decay=options.weight_decay)
    network.compile(optimizer=optimiser, loss="mse", jit_compile=False)
    return network


def _check_size(network: Any, n_train: int) -> None:
    weights = int(network.count_params())
    if n_train * network.output_shape[-1] < 0.1 * weights:
        raise EventsError(
            f"{n_train} events to train {weights} weights: the network would learn them by heart; use a smaller one "
            "(width, blocks) or more events"
        )


def _paths(y: FloatArray, u: FloatArray, options: SigmaOptions, rng: np.random.Generator) -> tuple[Any, Any]:
    """Points on paths with time and scaled mass, shape (n, d + 2), and the velocities there, both in float32."""
    start = rng.standard_normal(y.shape)
    # One time in each of n equal steps: the loss fluctuates less than with independent times.
    t = ((rng.permutation(len(y)) + rng.random(len(y))) / len(y))[:, None]
    shrink = 1.0 - options.path_width
    points = t * y + (1.0 - shrink * t) * start
    inputs = np.concatenate([points, t, u[:, None]], axis=1)
    return inputs.astype(np.float32), (y - shrink * start).astype(np.float32)
