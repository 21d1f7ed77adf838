"""Toys at one truth: what is computed once, and the drawing of batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from gbistat.inference.pools import EventSampler, check_pool
from gbistat.inference.toy_constraints import draw_constraint
from gbistat.inference.toy_information import Hypothesis, hypothesis, pool_reports, toy_covariance
from gbistat.inference.toy_moments import MomentSampler, MomentStream, MomentTerm, may_compile
from gbistat.inference.toy_singles import ArrayToys, PoolDensities, SingleToys, single_nll
from gbistat.inference.toy_terms import BatchNLL, CellTerm, PointTerm

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gbistat.inference.cells import Cells
    from gbistat.inference.pools import Pool
    from gbistat.inference.toy_basis import Basis, BatchYields
    from gbistat.inference.toy_constraints import BatchConstraint
    from gbistat.inference.toy_information import Fixed
    from gbistat.inference.toy_tests import Toys
    from gbistat.inference.toys import ToyModel
    from gbistat.likelihood.nll import NLL
    from gbistat.typing import FloatArray, IntArray

__all__ = ["Batch", "Experiment"]

PLAUSIBLE = 10.0
"""Errors of the estimate by which a fit may plausibly be off the truth."""

FEWEST = 4000.0
"""Expected events from which on power sums are faster than the events themselves."""


class Experiment:
    """All that toys at one truth need.

    Parameters
    ----------
    model : ToyModel
        Pools, parameters, constraints.
    truth : array of shape (p,)
        True parameters.
    hypotheses : tuple of tuples of (name, value)
        Parameters held in the fits of each hypothesis.

    Raises
    ------
    EventsError
        If a pool is too small.
    ModelError
        If the data cannot determine the parameter of interest, or the form does not suit the model.
    """

    def __init__(self, model: ToyModel, truth: FloatArray, hypotheses: tuple[Fixed, ...]) -> None:
        self.model = model
        self.truth = truth
        self._compressed = model.options.form == "compressed"
        bare = [hypothesis(model, fixed, truth) for fixed in hypotheses]
        self.counts = [pool.expected(truth) for pool in model.pools]
        self.reports = pool_reports(model, bare[0])
        for report in self.reports:
            check_pool(report, max_shift=model.options.max_pool_shift, max_error=model.options.max_pool_error)
        self._cells: tuple[Cells, ...] = ()
        self._samplers: tuple[EventSampler, ...] = ()
        self._moments: tuple[MomentSampler, ...] = ()
        if self._compressed:
            self._cells = model.cells(hypotheses)
            pairs = list(zip(model.pools, self._cells, strict=True))
            self.hypotheses = tuple(
                Hypothesis(h.theta, h.free, tuple(_scaled_basis(pool, h, truth, cells) for pool, cells in pairs))
                for h in bare
            )
            self._means = [
                np.bincount(cells.labels, counts, cells.count)
                for cells, counts in zip(self._cells, self.counts, strict=True)
            ]
        else:
            self.hypotheses = tuple(bare)
            if all(_has_moments(pool, counts) for pool, counts in zip(model.pools, self.counts, strict=True)):
                self._moments = self._moment_samplers(bare[0])
            else:
                self._samplers = tuple(EventSampler(counts) for counts in self.counts)

    def _moment_samplers(self, at: Hypothesis) -> tuple[MomentSampler, ...]:
        compiled = may_compile(self.model.options.compiled)
        covariance, _ = toy_covariance(self.model, at.theta, at.free)
        error = float(np.sqrt(covariance[self.model.poi_index, self.model.poi_index]))
        samplers = []
        for pool, counts in zip(self.model.pools, self.counts, strict=True):
            signal = signal_of(pool, self.model.poi_index)
            moved = at.theta.copy()
            moved[self.model.poi_index] += PLAUSIBLE * error
            yields = np.abs(pool.yields.at(np.stack([at.theta, moved])))
            slope = float(yields[:, signal].max() / yields[0, 1 - signal])
            shares = pool.shares(at.theta, self.truth)
            samplers.append(MomentSampler(counts, shares[signal] / shares[1 - signal], slope, compiled=compiled))
        return tuple(samplers)

    def batches(self, n_toys: int, *, rng: np.random.Generator) -> Iterator[Batch]:
        """Draw toys, some at a time."""
        model = self.model
        children = rng.spawn(len(model.pools) + len(model.nll.constraints))
        data, auxiliary = tuple(children[: len(model.pools)]), children[len(model.pools) :]
        streams = tuple(MomentStream(child) for child in data) if self._moments else ()
        # Arrays of a batch stay in the cache, or near it, however many cells or events there are.
        if self._compressed:
            size = max(64, 2**18 // max((cells.count for cells in self._cells), default=1))
        elif self._moments:
            size = max(16, min(512, *(int(2**21 / sampler.row) for sampler in self._moments)))
        else:
            size = max(1, int(2**17 / (1.0 + sum(float(counts.sum()) for counts in self.counts))))
        size = min(model.options.batch_size, size)
        for begin in range(0, n_toys, size):
            count = min(size, n_toys - begin)
            constraints = []
            for constraint, child in zip(model.nll.constraints, auxiliary, strict=True):
                index = np.array([model.names.index(name) for name in constraint.names])
                constraints.append((draw_constraint(constraint, self.truth[index], count, rng=child), index))
            if self._compressed:
                means = zip(self._means, data, strict=True)
                yield CountBatch(
                    self, count, tuple(constraints), tuple(child.poisson(m, (count, m.size)) for m, child in means)
                )
            elif self._moments:
                yield MomentBatch(self, count, tuple(constraints), self._moments, streams)
            else:
                drawn = [
                    tuple(sampler.draw(rng=child) for _ in range(count))
                    for sampler, child in zip(self._samplers, data, strict=True)
                ]
                yield EventBatch(self, count, tuple(constraints), tuple(drawn))


Constraints = tuple[tuple["BatchConstraint", "IntArray"], ...]


class Batch(Protocol):
    """Some toys."""

    @property
    def count(self) -> int:
        """How many."""

    @property
    def n_events(self) -> IntArray:
        """Events in each data term, shape (n, d)."""

    def toys(self, which: int) -> Toys:
        """Likelihoods of the toys under one of the hypotheses."""


@dataclass(frozen=True, eq=False)
class CountBatch:
    """Toys as counts in cells, shape (n, K) for each data term."""

    experiment: Experiment
    count: int
    constraints: Constraints
    counts: tuple[IntArray, ...]

    @property
    def n_events(self) -> IntArray:
        """Events in each data term, shape (n, d)."""
        sums = [counts.sum(axis=1) for counts in self.counts]
        return np.stack(sums, axis=1) if sums else np.empty((self.count, 0), dtype=np.int64)

    def toys(self, which: int) -> Toys:
        """Likelihoods of the toys under one of the hypotheses."""
        model = self.experiment.model
        at = self.experiment.hypotheses[which]
        terms = tuple(
            CellTerm(pool.yields, basis, counts.astype(np.float64))
            for pool, counts, basis in zip(model.pools, self.counts, at.bases, strict=True)
        )
        return array_toys(model, terms, self.constraints, at)


@dataclass(frozen=True, eq=False)
class EventBatch:
    """Toys as rows of the pool, for each data term and toy."""

    experiment: Experiment
    count: int
    constraints: Constraints
    events: tuple[tuple[IntArray, ...], ...]

    @property
    def n_events(self) -> IntArray:
        """Events in each data term, shape (n, d)."""
        return np.array([[rows.size for rows in term] for term in self.events], dtype=np.int64).T

    def toys(self, which: int) -> Toys:
        """Likelihoods of the toys under one of the hypotheses: single ones where parameters move densities."""
        experiment = self.experiment
        model = experiment.model
        at = experiment.hypotheses[which]
        if any(at.free[positions].any() for pool in model.pools for positions in pool.moving.values()):
            densities = pool_densities(experiment, at)
            drawn = zip(*self.events, strict=True)
            constraints = self.constraints
            return SingleToys(
                tuple(toy_nll(model, densities, rows, constraints, toy) for toy, rows in enumerate(drawn))
            )
        terms = []
        for pool, events in zip(model.pools, self.events, strict=True):
            shares = pool.shares(at.theta, experiment.truth)
            shares = shares * _sizes(pool.yields.at(at.theta[None])[0], shares)
            terms.append(_padded(pool.yields, shares, events))
        return array_toys(model, tuple(terms), self.constraints, at)


class MomentBatch:
    """Toys as power sums, which remember how to draw their events again."""

    def __init__(
        self,
        experiment: Experiment,
        count: int,
        constraints: Constraints,
        samplers: tuple[MomentSampler, ...],
        streams: tuple[MomentStream, ...],
    ) -> None:
        self.experiment = experiment
        self.count = count
        self.constraints = constraints
        self._samplers = samplers
        self._drawn = [sampler.draw(count, stream) for sampler, stream in zip(samplers, streams, strict=True)]

    @property
    def n_events(self) -> IntArray:
        """Events in each data term, shape (n, d)."""
        return np.stack([toys.n_events for toys, _ in self._drawn], axis=1)

    def toys(self, which: int) -> Toys:
        """Likelihoods of the toys under one of the hypotheses."""
        model = self.experiment.model
        at = self.experiment.hypotheses[which]
        terms = []
        for pool, sampler, (toys, _) in zip(model.pools, self._samplers, self._drawn, strict=True):
            signal = signal_of(pool, model.poi_index)
            scale = float(pool.yields.at(at.theta[None])[0, 1 - signal])
            width = np.where(sampler.points.is_hot, 0.0, sampler.width)
            terms.append(MomentTerm(pool.yields, signal, sampler.points.centre, width, toys, scale))
        batch = BatchNLL(model.nll.parameters, tuple(terms), self.constraints)
        return ArrayToys(batch, lambda toy: self.single(at, toy), at.theta)

    def single(self, at: Hypothesis, toy: int) -> NLL:
        """Likelihood of one toy, event by event."""
        densities = pool_densities(self.experiment, at)
        return toy_nll(self.experiment.model, densities, self.events(toy), self.constraints, toy)

    def events(self, toy: int) -> list[IntArray]:
        """Rows of the pools that the events of one toy are."""
        return [sampler.redraw(drawn, toy) for sampler, (_, drawn) in zip(self._samplers, self._drawn, strict=True)]


def array_toys(
    model: ToyModel, terms: tuple[CellTerm, ...] | tuple[PointTerm, ...], constraints: Constraints, at: Hypothesis
) -> ArrayToys:
    """Toys of batched terms, each of which can be fitted alone."""
    batch = BatchNLL(model.nll.parameters, terms, constraints)
    rates = tuple(tuple(component.rate for component in pool.components) for pool in model.pools)
    return ArrayToys(batch, lambda toy: single_nll(terms, constraints, toy, rates, model.nll), at.theta)


def pool_densities(experiment: Experiment, at: Hypothesis) -> tuple[PoolDensities, ...]:
    """Densities on each pool around a hypothesis, for toys event by event."""
    model = experiment.model
    return tuple(
        PoolDensities.of(pool, at.theta, experiment.truth, None if r.events is None else r.events.mass)
        for pool, r in zip(model.pools, model.references, strict=True)
    )


def toy_nll(
    model: ToyModel, densities: Sequence[PoolDensities], events: Sequence[IntArray], constraints: Constraints, toy: int
) -> NLL:
    """Likelihood of one toy, event by event: that of data, with densities normalised on the pool."""
    mixtures = [d.mixture(rows, model.names) for d, rows in zip(densities, events, strict=True)]
    return model.nll.replaced(mixtures, [constraint.single(toy) for constraint, _ in constraints])


def signal_of(pool: Pool, poi: int) -> int:
    """Component whose yield depends on the parameter of interest (the last, if none or all do)."""
    depends = (pool.yields.linear[:, poi] != 0) | (pool.yields.log_scales[:, poi] != 0)
    return int(np.argmax(depends)) if depends.any() and not depends.all() else depends.size - 1


def _has_moments(pool: Pool, counts: FloatArray) -> bool:
    """Whether toys can be kept as power sums of one ratio: two fixed densities, and enough events to pay."""
    return (
        len(pool.components) == 2
        and not pool.moving
        and float(counts.sum()) >= FEWEST
        and bool((pool.static_shares()[:, counts > 0] > 0).all())
    )


def _scaled_basis(pool: Pool, at: Hypothesis, truth: FloatArray, cells: Cells) -> Basis:
    """Densities in cells around a hypothesis, of a size that loses no digits in logarithms."""
    basis = pool.basis(at.theta, truth, at.free, cells)
    return basis.scaled(_sizes(pool.yields.at(at.theta[None])[0], basis.density(at.theta[None])[0]))


def _sizes(yields: FloatArray, density: FloatArray) -> FloatArray:
    """One over the typical intensity at each point: with it, logarithms of intensities are near 0."""
    total = np.abs(yields) @ density
    factor: FloatArray = 1.0 / np.where(total > 0, total, 1.0)
    return factor


def _padded(yields: BatchYields, shares: FloatArray, events: tuple[IntArray, ...]) -> PointTerm:
    """Data term of toys with their own points; what is missing to the longest has weight 0."""
    count, longest = len(events), max((rows.size for rows in events), default=0)
    density = np.ones((count, shares.shape[0], longest))
    weights = np.zeros((count, longest))
    for toy, rows in enumerate(events):
        density[toy, :, : rows.size] = shares[:, rows]
        weights[toy, : rows.size] = 1.0
    return PointTerm(yields, density, weights)
