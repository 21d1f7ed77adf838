"""Training of a signal density on data with the background frozen (R-ANODE), all folds and members at once."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit

from gbistat.errors import FitFailed
from gbistat.training.ranode_data import transform_data
from gbistat.training.ranode_run import StackEpoch, start_ranode_run
from gbistat.training.stacked_flow import StackedFlow
from gbistat.training.stacked_training import StackState, make_trainer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.training.ranode_card import RanodeCard, RanodeOptimiserSpec
    from gbistat.training.ranode_data import RanodeData, TransformedData
    from gbistat.training.ranode_run import RanodeRun, StackFolder
    from gbistat.training.ratio import Progress
    from gbistat.training.stacked_training import StackTrainer
    from gbistat.typing import BoolArray, FloatArray, IntArray, Json

__all__ = ["cosine_rate", "fit_fraction", "train_ranode"]

WEIGHTS, BATCHES, NOISE = 21, 22, 23
"""Streams of random numbers, each with the card's seed before it, then fold and member, then the epoch."""
UNIFORM = 0.5
"""Share of a batch that is drawn evenly; the rest in proportion to how probably an event is signal."""
AT_ONCE = 2048
"""Events of each network evaluated at once."""
SMALLEST, LARGEST = 1e-6, 0.5
"""Range of a fraction that is fitted after the training."""


def train_ranode(
    card: RanodeCard, run_directory: str | Path, data: RanodeData, *, progress: Progress | None = None
) -> RanodeRun:
    """Train all networks of a card on data, or go on where an earlier call was stopped.

    Parameters
    ----------
    card : RanodeCard
        What to train.
    run_directory : path
        Folder of the run. There is a checkpoint after each epoch; after a kill the same call goes on at the last epoch that is
        complete, with the same result.
    data : RanodeData
        Events of the window and the density of their background; ``gbistat.training_workflow`` prepares it.
    progress : callable, optional
        Told after every epoch.

    Returns
    -------
    RanodeRun
        The finished run, ready for `gbistat.training.ranode_export.export_ranode`.

    Raises
    ------
    EventsError
        If there are too few events, or a feature has no density.
    OutputError
        If the folder cannot be written, or holds a run of another card, generator or other events.
    FitFailed
        If a loss is no longer finite.
    MissingExtra
        If Keras or its backend is not installed.

    Notes
    -----
    Network m of fold k is trained on the events of the other folds without their part m, and validated on that part. Where the
    training stops is decided by the validation losses of all members of a fold together, and so is the fraction w that is
    fitted at the end: M parts make up all events outside the fold, each of them judged by a network that did not see it. The
    events of fold k itself enter nothing. With ``folds.train_on: earlier`` "other folds" are those before k; for the first fold all
    others.
    """
    ready = transform_data(data, card)
    run = start_ranode_run(Path(run_directory), card, data, ready)
    starts = card.fraction.starts
    for index, start in enumerate(starts):
        if run.stack(index).outcome() is None:
            _Stack(run, ready, index, start, progress).train()
    return run


def cosine_rate(epoch: float, optimiser: RanodeOptimiserSpec) -> float:
    """Learning rate of an epoch: half a cosine from the start value down to 0 after the last epoch."""
    return 0.5 * optimiser.learning_rate * (1.0 + math.cos(math.pi * epoch / optimiser.epochs))


def fit_fraction(log_ratio: FloatArray) -> float:
    """Fraction w that maximises sum ln[1 - w + w r], a concave function, between 1e-6 and 1/2.

    Parameters
    ----------
    log_ratio : array of shape (n,)
        ln p_s / p_b by networks that did not see the event.

    Examples
    --------
    >>> import numpy as np
    >>> 0.09 < fit_fraction(np.log(np.r_[np.full(90, 1e-3), np.full(10, 1e3)])) < 0.11
    True
    """

    def loss(log_w: float) -> float:
        return -float(np.sum(_gains(log_ratio, np.exp(log_w))))

    found = minimize_scalar(loss, bounds=(math.log(SMALLEST), math.log(LARGEST)), method="bounded")
    return float(np.exp(found.x))


@dataclass(frozen=True, eq=False)
class _Stack:
    """The K M networks of one start value of w."""

    run: RanodeRun
    ready: TransformedData
    index: int
    start: float
    progress: Progress | None

    @property
    def card(self) -> RanodeCard:
        return self.run.card

    @property
    def folder(self) -> StackFolder:
        return self.run.stack(self.index)

    @cached_property
    def networks(self) -> list[tuple[int, int]]:
        """Fold and member of each network."""
        folds = self.card.folds
        return list(itertools.product(range(folds.n_folds), range(folds.members)))

    @cached_property
    def flow(self) -> StackedFlow:
        return StackedFlow(self.ready.z.shape[1], self.card.flow)

    @cached_property
    def trainer(self) -> StackTrainer:
        options, fraction = self.card.optimiser, self.card.fraction
        return make_trainer(
            self.flow.n_features,
            self.flow.flow,
            weight_decay=options.weight_decay,
            clip_norm=options.clip_norm,
            fraction_rate=fraction.rate if fraction.mode == "learnable" else 0.0,
        )

    @cached_property
    def outside(self) -> _Outside:
        """Events outside the fold of each network, in parts to train on and to validate on."""
        return _Outside.of(self.ready, self.networks, earlier=self.card.folds.train_on == "earlier")

    def train(self) -> None:
        history = self.folder.history()
        state = self.folder.state() if history else self._first_state()
        log_ratio = self._log_ratio(state.weights)
        while not self._done(history):
            state = self._steps(state, log_ratio, len(history))
            log_ratio = self._log_ratio(state.weights)
            history.append(self._measured(state, log_ratio, len(history)))
            self.folder.save(state, history, kept=self._kept(history))
            if self.progress is not None:
                self.progress(*self._report(history))
        self._finish(history)

    def _first_state(self) -> StackState:
        weights = self.flow.start([[self.card.seed, WEIGHTS, k, m] for k, m in self.networks])
        return StackState.start(weights, np.full(len(self.networks), self.start))

    def _log_ratio(self, weights: Sequence[Any]) -> FloatArray:
        """ln p_s / p_b of the events outside the fold of each network, shape (T, n)."""
        outside = self.outside
        parts = [
            self.trainer.log_prob(weights, outside.z[:, :, begin : begin + AT_ONCE])
            for begin in range(0, outside.z.shape[2], AT_ONCE)
        ]
        ratio: FloatArray = np.concatenate(parts, axis=1) - outside.log_b
        return ratio

    def _steps(self, state: StackState, log_ratio: FloatArray, number: int) -> StackState:
        """Steps of one epoch; the result depends on state, events, card and number of the epoch only."""
        options, outside = self.card.optimiser, self.outside
        drawn = [self._draw(t, state.fractions[t], log_ratio[t], number) for t in range(len(self.networks))]
        places, counts = (np.stack(arrays) for arrays in zip(*drawn, strict=True))
        networks = np.arange(len(self.networks))[:, None]
        noise = [np.random.default_rng([self.card.seed, NOISE, k, m, number]) for k, m in self.networks]
        for step in range(options.steps):
            chosen = slice(step * options.batch_size, (step + 1) * options.batch_size)
            at = places[:, chosen]
            x = np.ascontiguousarray(np.swapaxes(outside.z[networks, :, at], 1, 2))
            if options.jitter > 0.0:
                x += np.stack([rng.standard_normal(x.shape[1:], dtype=np.float32) for rng in noise]) * np.float32(
                    options.jitter
                )
            rate = cosine_rate(number + step / options.steps, options)
            count = np.ascontiguousarray(counts[:, chosen])
            _, state = self.trainer.step(state, rate, x, outside.log_b[networks, at], count)
        return state

    def _draw(self, t: int, fraction: float, log_ratio: FloatArray, number: int) -> tuple[IntArray, FloatArray]:
        """Events of one network for the steps of an epoch, and what each of them counts in the loss.

        Half of them are drawn in proportion to how probably they are signal, and the gradient stays unbiased: it is these events that
        the gradient is made of, and there are few of them.
        """
        options, (k, m) = self.card.optimiser, self.networks[t]
        rows = np.flatnonzero(self.outside.train[t])
        logit = math.log(fraction) - math.log1p(-fraction)
        signal = expit(logit + log_ratio[rows])
        share = (1.0 - UNIFORM) * signal / signal.sum() + UNIFORM / rows.size
        cumulative = np.cumsum(share)
        rng = np.random.default_rng([self.card.seed, BATCHES, k, m, number])
        size = options.steps * options.batch_size
        drawn = np.searchsorted(cumulative, rng.random(size) * cumulative[-1], side="right").clip(max=rows.size - 1)
        counts = 1.0 / (rows.size * share[drawn] * options.batch_size)
        return rows[drawn], counts.astype(np.float32)

    def _measured(self, state: StackState, log_ratio: FloatArray, number: int) -> StackEpoch:
        """Losses of the state after an epoch."""
        fractions = state.fractions
        loss = -_gains(log_ratio, fractions[:, None])
        outside = self.outside
        each = (loss * outside.train).sum(axis=1) / outside.train.sum(axis=1)
        validation = (loss * outside.validate).sum(axis=1)
        if not (np.isfinite(each).all() and np.isfinite(validation).all()):
            options = self.card.optimiser
            raise FitFailed(
                f"a loss of the signal flows is not finite after epoch {number + 1}; lower optimiser.learning_rate "
                f"({options.learning_rate:g}) or optimiser.clip_norm ({options.clip_norm:g})"
            )
        return StackEpoch(tuple(each.tolist()), tuple(validation.tolist()), tuple(fractions.tolist()))

    def _of_folds(self, history: Sequence[StackEpoch]) -> FloatArray:
        """Validation loss of each fold after each epoch, summed over members, shape (epochs, K)."""
        losses = np.array([epoch.validation_losses for epoch in history])
        total: FloatArray = losses.reshape(len(history), self.card.folds.n_folds, -1).sum(axis=2)
        return total

    def _stops(self, history: Sequence[StackEpoch]) -> list[int]:
        """Number of epochs that count in each fold: up to `patience` after its best one."""
        patience = self.card.optimiser.patience
        stops = []
        for losses in self._of_folds(history).T:
            best = np.minimum.accumulate(losses)
            late = [n for n in range(len(losses)) if n - int(np.argmax(losses == best[n])) >= patience]
            stops.append(late[0] + 1 if late else len(losses))
        return stops

    def _done(self, history: Sequence[StackEpoch]) -> bool:
        if not history:
            return False
        return len(history) >= self.card.optimiser.epochs or max(self._stops(history)) < len(history)

    def _chosen(self, history: Sequence[StackEpoch]) -> list[list[int]]:
        """Epochs of each fold whose weights are averaged."""
        options = self.card.optimiser
        chosen = []
        for losses, stop in zip(self._of_folds(history).T, self._stops(history), strict=True):
            if options.keep == "last":
                chosen.append(list(range(max(0, stop - options.average), stop)))
            else:
                chosen.append(sorted(np.argsort(losses[:stop], kind="stable")[: options.average].tolist()))
        return chosen

    def _kept(self, history: Sequence[StackEpoch]) -> set[int]:
        return {epoch for epochs in self._chosen(history) for epoch in epochs}

    def _finish(self, history: Sequence[StackEpoch]) -> None:
        """Average the weights of the chosen epochs, and fit w in each fold to events that its networks did not see."""
        chosen = self._chosen(history)
        kept = {epoch: self.folder.weights(epoch) for epoch in self._kept(history)}
        masks: list[Any] = [*self.flow.masks(), np.ones((1, 1), dtype=np.float32)]
        final: list[Any] = []
        for position, mask in enumerate(masks):
            rows = [
                np.mean([kept[epoch][position][t] for epoch in chosen[k]], axis=0, dtype=np.float64)
                for t, (k, _) in enumerate(self.networks)
            ]
            final.append((np.stack(rows) * mask).astype(np.float32))
        state = StackState(final, [], [])
        log_ratio = self._log_ratio(final)
        validation = np.array(self._measured(state, log_ratio, len(history)).validation_losses)
        folds = self.card.folds
        outcome: Json = {
            "start": self.start,
            "epochs": [[int(e) for e in epochs] for epochs in chosen],
            "fractions_learned": state.fractions.tolist(),
            "validation_losses": validation.tolist(),
            "fractions_fitted": [fit_fraction(values) for values in self._out_of_sample(log_ratio)],
            "gains": [float(-v) for v in validation.reshape(folds.n_folds, folds.members).sum(axis=1)],
        }
        self.folder.finish(outcome, final[:-1])

    def _out_of_sample(self, log_ratio: FloatArray) -> list[FloatArray]:
        """ln p_s / p_b of the events outside each fold, each by the member that did not see it."""
        members, validate = self.card.folds.members, self.outside.validate
        blocks = [slice(k * members, (k + 1) * members) for k in range(self.card.folds.n_folds)]
        return [log_ratio[rows][validate[rows]] for rows in blocks]

    def _report(self, history: Sequence[StackEpoch]) -> tuple[float, str]:
        options, stacks = self.card.optimiser, len(self.card.fraction.starts)
        inside = 1.0 if self._done(history) else len(history) / options.epochs
        gain = -float(self._of_folds(history)[-1].mean())
        which = f"w = {self.start:g}, " if stacks > 1 else ""
        text = f"{len(self.networks)} networks, {which}epoch {len(history)} of at most {options.epochs}: held-out gain {gain:.1f}"
        return (self.index + inside) / stacks, text


@dataclass(frozen=True, eq=False)
class _Outside:
    """Events outside the fold of each of T networks, padded to one length n.

    Parameters
    ----------
    z : array of shape (T, d, n), float32
        Transformed events.
    log_b : array of shape (T, n), float32
        ln p_b in the transformed space.
    train, validate : array of shape (T, n)
        Which events a network is trained on, and on which it is judged; neither where there is padding.
    """

    z: Any
    log_b: Any
    train: BoolArray
    validate: BoolArray

    @classmethod
    def of(cls, ready: TransformedData, networks: Sequence[tuple[int, int]], *, earlier: bool = False) -> _Outside:
        rows = [np.flatnonzero(ready.fold < k if earlier and k else ready.fold != k) for k, _ in networks]
        # Whole blocks: every call has the same shape, and is compiled once.
        longest = math.ceil(max(len(r) for r in rows) / AT_ONCE) * AT_ONCE
        padded = np.stack([np.r_[r, np.zeros(longest - len(r), dtype=np.int64)] for r in rows])
        real = np.stack([np.arange(longest) < len(r) for r in rows])
        part = np.stack([ready.part[r] == m for r, (_, m) in zip(padded, networks, strict=True)])
        z = np.ascontiguousarray(np.swapaxes(ready.z[padded], 1, 2))
        return cls(z, ready.log_b[padded], real & ~part, real & part)


def _gains(log_ratio: FloatArray, fraction: FloatArray) -> FloatArray:
    """ln[1 - w + w r]."""
    gains: FloatArray = np.logaddexp(np.log1p(-fraction), np.log(fraction) + log_ratio)
    return gains
