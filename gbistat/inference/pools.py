r"""Pools: the points that toys are drawn from, with the densities of every component evaluated once.

A pool is a finite stand-in for the true distribution, so that ``E_b[r] = 1`` holds on it only up to ``sd(r) / sqrt(M)``. Left
alone, this shifts an estimate by ``sqrt(N / M)`` of its error for N expected events and M points (0.24 for 120,000 events
and 2 million points). Every component is therefore normalised on the pool, at the true parameters of the toys, and signal
events are drawn from the background's points with weights r: a second pool would bring its own noise. What is left is that
the pool's distribution is not the true one: errors and critical values are those of the pool. Its size is checked:

.. math:: \mathrm{shift} = \sqrt{\sum_i a_i^2 (c_i - \bar c)^2}, \quad c_i = (V u_i)_\mu / \sigma_\mu, \qquad
          \mathrm{error} = \frac{1}{2} \sqrt{\sum_i a_i^2 (c_i^2 - \overline{c^2})^2}

with the expected count ``a_i`` of each point, scores ``u_i`` and V the covariance of the parameters: the shift that
normalisation removes, ``sqrt(N / M)`` for equal weights, and the relative error of ``sigma_mu``, which stays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import EventsError, ModelError, ParameterError
from gbistat.inference.toy_basis import Basis, BatchYields, Expansion
from gbistat.terms.density import PreparedDensity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.inference.cells import Cells
    from gbistat.likelihood.components import PreparedFactor
    from gbistat.likelihood.reference import Reference
    from gbistat.typing import BoolArray, FloatArray, IntArray

__all__ = ["EventSampler", "Pool", "PoolReport", "check_pool", "is_normalised", "pool_report"]

SAMPLER_CELL = 2048
"""Points among which an event is drawn uniformly, then kept or not: few enough to stay in the cache."""


@dataclass(frozen=True)
class PoolReport:
    """What a pool is worth for one data term at one truth.

    Parameters
    ----------
    kind : str
        "quadrature", "pool" or "data".
    n_points : int
        Points with a density.
    background_size, signal_size : float
        Effective sizes ``(sum w)^2 / sum w^2`` of all components but the signal, and of the signal.
    expected : float
        Expected events of a toy.
    shift : float
        Shift of the estimate, in its errors, that the pool would cause without normalisation on it: ``sqrt(N / M)`` for
        points of equal weight. 0 for quadrature.
    error : float
        Relative error of the error of the estimate, from the finite pool. 0 for quadrature.
    """

    kind: str
    n_points: int
    background_size: float
    signal_size: float
    expected: float
    shift: float
    error: float


class Pool:
    """Points of one data term, and the densities of its components there.

    Parameters
    ----------
    reference : Reference
        Points, measure and mixture.
    names : sequence of str
        All p parameters of the likelihood.

    Raises
    ------
    EventsError
        If points have negative weights, which cannot be drawn from.
    """

    def __init__(self, reference: Reference, names: Sequence[str]) -> None:
        mixture = reference.mixture
        negative = int((reference.measure < 0).sum())
        if negative:
            raise EventsError(
                f"{negative} of {reference.measure.size} points of the pool have a negative weight: toys cannot be drawn from "
                "them; use a pool without negative weights"
            )
        self.kind = reference.kind
        self.signal_size = reference.effective_size
        self.components = mixture.components
        self.index: IntArray = np.array([names.index(name) for name in mixture.names], dtype=np.int64)
        self.yields = BatchYields.of([component.rate for component in mixture.components], list(names))
        self.size = mixture.size
        self.n_parameters = len(names)
        self.extended = mixture.extended
        with np.errstate(divide="ignore"):
            self._log_measure: FloatArray = np.log(reference.measure)
        self._static: FloatArray | None = None

    @property
    def moving(self) -> dict[int, IntArray]:
        """Components whose density depends on parameters, and the positions of these."""
        found = {}
        for j, component in enumerate(self.components):
            if component.factors:
                local = np.unique(np.concatenate([index for _, index in component.factors]))
                found[j] = self.index[local]
        return found

    def shares(self, theta: FloatArray, truth: FloatArray) -> FloatArray:
        """Probability of each point under each component, shape (J, n), at parameters of shape (p,).

        Mass densities and directions of a log ratio are normalised at `theta`. An offset of ``ln r`` is normalised where the
        toys are thrown, at `truth`: at all other values it is an error of the ratio, as it is in the likelihood.
        """
        if self._static is not None:
            return self._static
        local, true = theta[self.index], truth[self.index]
        rows = []
        for j, component in enumerate(self.components):
            log = component.static + self._log_measure
            offset: FloatArray | float = 0.0
            for factor, index in component.factors:
                here = factor.log_prob(local[index])
                log = log + here
                if not is_normalised(factor) and (local[index] != true[index]).any():
                    offset = offset + (here - factor.log_prob(true[index]))
            rows.append(_normalised(log, offset, j))
        shares = np.stack(rows)
        if not self.moving:
            self._static = shares
        return shares

    def static_shares(self) -> FloatArray:
        """Return `shares` of a pool whose densities depend on no parameter."""
        nowhere = np.zeros(self.n_parameters)
        return self.shares(nowhere, nowhere)

    def expected(self, theta: FloatArray) -> FloatArray:
        """Expected count of each point in a toy at true parameters, shape (n,).

        Raises
        ------
        ParameterError
            If the density is negative somewhere: no toys can be drawn there.
        """
        counts: FloatArray = self.yields.at(theta[None])[0] @ self.shares(theta, theta)
        negative = int((counts < 0).sum())
        if negative:
            raise ParameterError(
                f"the density is negative at {negative} of {self.size} points of the pool: no toys can be drawn with "
                "these true parameters; take a parameter of interest nearer to 0 or a larger background"
            )
        if not np.isfinite(counts).all():
            raise ParameterError(
                "expected counts of the pool are not finite at these true parameters; take smaller ones"
            )
        return counts

    def slopes(self, j: int, theta: FloatArray) -> tuple[IntArray, FloatArray, FloatArray, BoolArray]:
        """Derivatives of a moving component's log density.

        Returns
        -------
        positions (k,), gradient (k, n), Hessian (k, k, n) or (k, k, 1), and which of the parameters enter through mass
        densities alone, so that the mean gradient is 0.
        """
        component = self.components[j]
        _, index, gradient, hessian = component.derivatives(theta[self.index])
        unique = np.unique(index)
        # A parameter may stand in two factors of a component: their derivatives add up.
        spread = (index == unique[:, None]).astype(np.float64)
        gradient = spread @ gradient
        hessian = np.einsum("ka,abn,lb->kln", spread, hessian, spread)
        loose = {int(i) for f, positions in component.factors if not is_normalised(f) for i in positions}
        normalised = np.array([int(i) not in loose for i in unique], dtype=bool)
        return self.index[unique], gradient, hessian, normalised

    def scores(self, theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Expected counts (n,), and scores ``d ln lambda / d theta`` of all parameters, shape (p, n)."""
        yields, jacobian, _ = self.yields.derivatives(theta[None])
        shares = self.shares(theta, theta)
        counts = yields[0] @ shares
        inverse = np.divide(1.0, counts, out=np.zeros_like(counts), where=counts > 0)
        rows = jacobian[0].T @ (shares * inverse)
        for j in self.moving:
            positions, gradient, _, normalised = self.slopes(j, theta)
            centred = gradient - np.where(normalised, gradient @ shares[j], 0.0)[:, None]
            rows[positions] += yields[0, j] * centred * (shares[j] * inverse)
        return counts, rows

    def basis(self, theta: FloatArray, truth: FloatArray, free: BoolArray, cells: Cells) -> Basis:
        """Probability of each cell under each component, and how it changes with the free parameters around `theta`.

        The density of a cell is the mean over its points, expanded to second order with its exact derivatives.
        """
        shares = self.shares(theta, truth)
        rows, expansions = [], []
        for j, share in enumerate(shares):
            more, expansion = [share], Expansion.none()
            if j in self.moving and free[self.moving[j]].any():
                moved, expansion = self._expansion(j, theta, share, free)
                more += moved
            rows += [np.bincount(cells.labels, row, cells.count) for row in more]
            expansions.append(expansion)
        return Basis(np.array(rows, dtype=np.float64), tuple(expansions))

    def _expansion(
        self, j: int, theta: FloatArray, share: FloatArray, free: BoolArray
    ) -> tuple[list[FloatArray], Expansion]:
        """Derivatives of a component's probabilities, first and second, at the points."""
        positions, gradient, hessian, normalised = self.slopes(j, theta)
        wanted = free[positions]
        positions, gradient, normalised = positions[wanted], gradient[wanted], normalised[wanted]
        hessian = hessian[wanted][:, wanted]
        # A gradient that is the same everywhere is a factor common to all points, and exact as such.
        common = (np.ptp(gradient, axis=1) == 0.0) & ~(hessian != 0.0).any(axis=(1, 2))
        local = np.flatnonzero(~common)
        # The pool's mean score is not quite 0, which would pull a parameter as a wrong normalisation does.
        total = share.sum()
        centred = gradient - np.where(normalised, gradient @ share / total, 0.0)[:, None]
        rows = [share * centred[a] for a in local]
        for i, a in enumerate(local):
            for b in local[i:]:
                moment = share * (centred[a] * centred[b] + hessian[a, b])
                if normalised[a] and normalised[b]:
                    moment = moment - share * (moment.sum() / total)
                rows.append(moment * (0.5 if a == b else 1.0))
        where = positions[common]
        return rows, Expansion(positions[local], theta[positions[local]], where, theta[where], gradient[common, 0])


def is_normalised(factor: PreparedFactor) -> bool:
    """Whether a factor keeps a density normalised for all values of its parameters: mass densities do, offsets do not."""
    return isinstance(factor, PreparedDensity) or bool(getattr(factor, "normalised", False))


def _normalised(log: FloatArray, offset: FloatArray | float, j: int) -> FloatArray:
    """Density over points from its logarithm, normalised without the offset."""
    bare = log - offset
    highest = float(bare.max(initial=-math.inf))
    if not math.isfinite(highest):
        raise ModelError(
            f"component number {j} has no density on any point of the pool: it is outside the pool's reach; "
            "choose parameters inside the window"
        )
    shares: FloatArray = np.exp(log - (highest + math.log(float(np.exp(bare - highest).sum()))))
    return shares


def pool_report(
    pool: Pool, theta: FloatArray, counts: FloatArray, scores: FloatArray, covariance: FloatArray, poi: int
) -> PoolReport:
    """Effective sizes of a pool, and what its finite size does to the estimate of the parameter of interest.

    Parameters
    ----------
    pool : Pool
        The pool.
    theta : array of shape (p,)
        True parameters of toys.
    counts, scores : arrays of shape (n,) and (p, n)
        From :meth:`Pool.scores` there.
    covariance : array of shape (p, p)
        Covariance of the parameters in a toy, 0 for those held.
    poi : int
        Position of the parameter of interest.

    Returns
    -------
    PoolReport
        With ``shift`` and ``error`` as in the module's formulae.
    """
    yields = pool.yields
    signal = (yields.linear[:, poi] != 0) | (yields.log_scales[:, poi] != 0)
    shares = pool.shares(theta, theta)
    background = yields.at(theta[None])[0][~signal] @ shares[~signal] if (~signal).any() else counts
    peak = shares[signal].sum(axis=0)
    if pool.kind == "quadrature":
        return PoolReport(pool.kind, pool.size, math.inf, math.inf, float(counts.sum()), 0.0, 0.0)
    variance = float(covariance[poi, poi])
    influence = covariance[poi] @ scores / math.sqrt(variance)
    mean = float(counts @ influence / counts.sum())
    square = float(counts @ influence**2 / counts.sum())
    return PoolReport(
        pool.kind,
        int((counts > 0).sum()),
        _effective(background),
        _effective(peak),
        float(counts.sum()),
        math.sqrt(float(counts**2 @ (influence - mean) ** 2)),
        0.5 * math.sqrt(float(counts**2 @ (influence**2 - square) ** 2)),
    )


def _effective(weights: FloatArray) -> float:
    total = float((weights**2).sum())
    return float(weights.sum()) ** 2 / total if total > 0 else 0.0


def check_pool(report: PoolReport, *, max_shift: float, max_error: float) -> None:
    """Refuse a pool that is too small.

    Raises
    ------
    EventsError
        With the number of points that would do.
    """
    factor = max((report.shift / max_shift) ** 2, (report.error / max_error) ** 2)
    if factor <= 1.0:
        return
    size = report.n_points * factor
    digits = 10 ** max(0, math.floor(math.log10(size)) - 1)
    needed = math.ceil(size / digits - 1e-6) * digits
    raise EventsError(
        f"the pool of {report.n_points} points (worth {report.background_size:.0f} background and {report.signal_size:.0f} "
        f"signal events) is too small for toys of {report.expected:.0f} events: error of the normalisation {report.shift:.2g} "
        f"of the error of the estimate (allowed {max_shift:g}), error of that error {100 * report.error:.2g} % "
        f"(allowed {100 * max_error:g} %); about {needed} points are needed, or toys with fewer events"
    )


class EventSampler:
    """Draws events from weighted points: a Poisson number, as rows of the pool.

    Each cell of points proposes Poisson(size * largest weight) events, uniform among its points, of which a point keeps
    the fraction (its weight / largest): thinning leaves a Poisson process with the right mean at every point.

    Parameters
    ----------
    counts : array of shape (n,)
        Expected count of each point.
    """

    def __init__(self, counts: FloatArray) -> None:
        positive = np.flatnonzero(counts > 0)
        # Equal weights next to each other: nearly every proposal is kept.
        self.order: IntArray = positive[np.argsort(counts[positive], kind="stable")]
        self._weight = counts[self.order]
        begins = np.arange(0, self.order.size, SAMPLER_CELL)
        self._begin = begins
        self._size = np.diff(np.r_[begins, self.order.size])
        self._largest = np.maximum.reduceat(self._weight, begins) if begins.size else np.empty(0)

    def draw(self, *, rng: np.random.Generator) -> IntArray:
        """Rows of the events of one toy, in no meaningful order."""
        proposed = rng.poisson(self._size * self._largest)
        place = rng.random(int(proposed.sum()))
        place *= np.repeat(self._size, proposed)
        offset = place.astype(np.int64)
        place -= offset
        offset += np.repeat(self._begin, proposed)
        place *= np.repeat(self._largest, proposed)
        kept = offset[place < self._weight[offset]]
        return self.order[kept]
