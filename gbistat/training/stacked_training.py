r"""Training of a stack of signal flows on data: the loss of R-ANODE (arXiv:2312.11629) and one step of AdamW.

With the background known, each network minimises

.. math::

    -\frac{1}{n} \sum_i \ln\left[ 1 - w + w \frac{p_s(m_i, x_i)}{p_b(m_i, x_i)} \right],

their eq. 2 less a constant. Each network has its own events, its own fraction w and its own limit on the norm of its gradient:
what it becomes does not depend on its neighbours in the stack.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat import extras
from gbistat.training.environment import keras
from gbistat.training.stacked_flow import StackedFlow

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gbistat.training.background_card import FlowSpec
    from gbistat.typing import FloatArray

__all__ = ["StackState", "StackTrainer", "gain_terms", "make_trainer"]

FIRST, SECOND, TINY = 0.9, 0.999, 1e-8
"""Decay rates of the moments, and the constant of Adam (arXiv:1412.6980)."""


@dataclass(frozen=True, eq=False)
class StackState:
    """Weights and moments of T networks.

    Parameters
    ----------
    weights : list of array
        Arrays of the flows, and last the logits of the fractions w, shape (T, 1, 1).
    first, second : list of array
        Moments of the gradients.
    steps : int
        Steps done.
    """

    weights: list[Any]
    first: list[Any]
    second: list[Any]
    steps: int = 0

    @classmethod
    def start(cls, weights: Sequence[FloatArray], fractions: FloatArray) -> StackState:
        """State before the first step, with a start value of w for each network."""
        logits = (np.log(fractions) - np.log1p(-fractions)).astype(np.float32)[:, None, None]
        arrays = [*weights, logits]
        return cls(arrays, [np.zeros_like(a) for a in arrays], [np.zeros_like(a) for a in arrays])

    def arrays(self) -> dict[str, FloatArray]:
        """Everything as numpy arrays, for a checkpoint."""
        found: dict[str, FloatArray] = {}
        for name in ("weights", "first", "second"):
            found |= {f"{name}_{i}": np.asarray(array) for i, array in enumerate(getattr(self, name))}
        return found

    @classmethod
    def of(cls, arrays: dict[str, FloatArray], steps: int) -> StackState:
        """What `arrays` gave."""
        count = len(arrays) // 3
        parts = [[arrays[f"{name}_{i}"] for i in range(count)] for name in ("weights", "first", "second")]
        return cls(parts[0], parts[1], parts[2], steps)

    @property
    def fractions(self) -> FloatArray:
        """w of each network, shape (T,)."""
        logits = np.asarray(self.weights[-1], dtype=np.float64)[:, 0, 0]
        return 1.0 / (1.0 + np.exp(-logits))


class StackTrainer:
    """Compiled steps of a stack; a backend's functions, no state of their own.

    Parameters
    ----------
    flow : StackedFlow
        Architecture.
    weight_decay, clip_norm : float
        Of AdamW (arXiv:1711.05101); largest norm of the gradient of one network.
    fraction_rate : float
        Learning rate of the logit of w relative to that of the weights; 0 holds it fixed.
    """

    def __init__(self, flow: StackedFlow, *, weight_decay: float, clip_norm: float, fraction_rate: float) -> None:
        self.flow = flow
        masks = [*flow.masks(), np.ones((1, 1), dtype=np.float32)]
        rates = [1.0] * (len(masks) - 1) + [fraction_rate]

        def losses(weights: Sequence[Any], x: Any, log_b: Any, counted: Any) -> Any:
            gains = gain_terms(flow.log_prob(weights[:-1], x) - log_b, weights[-1][:, :, 0])
            ops = keras().ops
            return -ops.sum(gains * counted, axis=1)

        def step(
            weights: Sequence[Any],
            first: Sequence[Any],
            second: Sequence[Any],
            rate: Any,
            x: Any,
            log_b: Any,
            counted: Any,
        ) -> Any:
            # rate: learning rate and the two bias corrections
            ops = keras().ops
            each, slopes = _gradient(lambda w: losses(w, x, log_b, counted), weights)
            slopes = [slope * mask for slope, mask in zip(slopes, masks, strict=True)]
            # The fraction is not part of the norm: it has a learning rate of its own.
            norm = ops.sqrt(sum(ops.sum(slope * slope, axis=(1, 2), keepdims=True) for slope in slopes[:-1]))
            scale = ops.minimum(1.0, clip_norm / (norm + TINY))
            scales = [scale] * (len(slopes) - 1) + [ops.ones_like(scale)]
            result: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
            for i, (weight, slope) in enumerate(zip(weights, slopes, strict=True)):
                g = slope * scales[i]
                m = FIRST * first[i] + (1.0 - FIRST) * g
                v = SECOND * second[i] + (1.0 - SECOND) * g * g
                move = (m * rate[1]) / (ops.sqrt(v * rate[2]) + TINY)
                if i < len(slopes) - 1:
                    move = move + weight_decay * weight
                for values, value in zip(result, (weight - rate[0] * rates[i] * move, m, v), strict=True):
                    values.append(value)
            return each, *result

        self._step = _compiled(step)
        self._log_prob = _compiled(flow.log_prob)

    def step(
        self, state: StackState, rate: float, x: FloatArray, log_b: FloatArray, counted: FloatArray
    ) -> tuple[FloatArray, StackState]:
        """One step.

        Parameters
        ----------
        state : StackState
            Before the step.
        rate : float
            Learning rate.
        x : array of shape (T, d, n), float32
            Transformed events, each network's own.
        log_b : array of shape (T, n), float32
            ln p_b in the transformed space.
        counted : array of shape (T, n), float32
            What each event counts in the loss: 1/n, or more for events that are drawn less often.

        Returns
        -------
        (array of shape (T,), StackState)
            Losses before the step, and the state after it.
        """
        steps = state.steps + 1
        rates = np.array([rate, 1.0 / (1.0 - FIRST**steps), 1.0 / (1.0 - SECOND**steps)], dtype=np.float32)
        losses, weights, first, second = self._step(state.weights, state.first, state.second, rates, x, log_b, counted)
        return losses, StackState(list(weights), list(first), list(second), steps)

    def log_prob(self, weights: Sequence[Any], x: FloatArray) -> FloatArray:
        """ln p_s of each network in the transformed space, shape (T, n); the last of `weights` are the fractions."""
        return np.asarray(self._log_prob(list(weights)[:-1], x), dtype=np.float64)


@cache
def make_trainer(
    n_features: int, flow: FlowSpec, *, weight_decay: float, clip_norm: float, fraction_rate: float
) -> StackTrainer:
    """A trainer; the same one for the same arguments, so that what was compiled serves every set of data."""
    stacked = StackedFlow(n_features, flow)
    return StackTrainer(stacked, weight_decay=weight_decay, clip_norm=clip_norm, fraction_rate=fraction_rate)


def gain_terms(log_ratio: Any, logit: Any) -> Any:
    """ln[1 - w + w r] of tensors, with r from its log and w from its logit: ln(1 - w) + softplus(logit w + ln r)."""
    ops = keras().ops
    return ops.softplus(logit + log_ratio) - ops.softplus(logit)


def _gradient(function: Callable[[list[Any]], Any], weights: Sequence[Any]) -> tuple[Any, list[Any]]:
    """Values of independent networks, shape (T,), and the gradient of each in its own weights."""
    if keras().backend.backend() == "jax":
        jax = extras.jax()

        def total(w: list[Any]) -> tuple[Any, Any]:
            values = function(w)
            return values.sum(), values

        (_, each), slopes = jax.value_and_grad(total, has_aux=True)(list(weights))
        return each, slopes
    tensorflow = extras.tensorflow()
    with tensorflow.GradientTape() as tape:
        tape.watch(weights)
        each = function(list(weights))
        total_loss = keras().ops.sum(each)
    return each, tape.gradient(total_loss, list(weights))


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function compiled by XLA."""
    if keras().backend.backend() == "jax":
        compiled: Callable[..., Any] = extras.jax().jit(function)
        return compiled
    made: Callable[..., Any] = extras.tensorflow().function(function, jit_compile=True, autograph=False)
    return made
