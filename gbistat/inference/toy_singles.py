"""Toys one by one: likelihoods of single toys, fitted by :func:`gbistat.fit.minimize.fit`.

For models whose densities the batched fits do not cover, and for single toys at which these gave up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import FitFailed, ParameterError
from gbistat.fit.minimize import FAR, fit
from gbistat.inference.toy_fits import FAILED, FITTED, UNBOUNDED, BatchFit, fit_batch
from gbistat.inference.toy_terms import CellTerm
from gbistat.likelihood.mixture import Mixture, PreparedComponent
from gbistat.terms.density import PreparedDensity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gbistat.fit.result import FitResult
    from gbistat.inference.pools import Pool
    from gbistat.inference.toy_basis import Basis, Expansion
    from gbistat.inference.toy_constraints import BatchConstraint
    from gbistat.inference.toy_terms import BatchNLL, PointTerm
    from gbistat.likelihood.components import PreparedFactor, Yield
    from gbistat.likelihood.nll import NLL
    from gbistat.typing import BoolArray, FloatArray, IntArray

__all__ = ["ArrayToys", "PoolDensities", "SingleToys", "single_nll", "toy_mixture"]


@dataclass(frozen=True, eq=False)
class _Polynomial:
    """Density of one component in some cells, as a log factor."""

    expansion: Expansion
    rows: FloatArray

    def log_prob(self, values: FloatArray) -> FloatArray:
        with np.errstate(divide="ignore", invalid="ignore"):
            log: FloatArray = np.log(self.expansion.monomials(values[None])[0] @ self.rows)
        return log

    def derivatives(self, values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        e, point = self.expansion, values[None]
        density = e.monomials(point)[0] @ self.rows
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = (e.slopes(point)[0].T @ self.rows) / density
            bend = np.moveaxis(e.curvature(self.rows.T), 0, 2) / density
            return np.log(density), slope, bend - slope[:, None] * slope[None]


@dataclass(frozen=True, eq=False)
class _Offset:
    """Log factor ``slope . (theta - centre)``, the same for all n points."""

    slope: FloatArray
    centre: FloatArray
    size: int

    def log_prob(self, values: FloatArray) -> FloatArray:
        return np.full(self.size, float(self.slope @ (values - self.centre)))

    def derivatives(self, values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        k = self.slope.size
        return self.log_prob(values), np.repeat(self.slope[:, None], self.size, axis=1), np.zeros((k, k, 1))


@dataclass(frozen=True, eq=False)
class _Rows:
    """Some points of a log factor."""

    factor: PreparedFactor
    rows: IntArray

    def log_prob(self, values: FloatArray) -> FloatArray:
        return self.factor.log_prob(values)[self.rows]

    def derivatives(self, values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        log, gradient, hessian = self.factor.derivatives(values)
        return log[self.rows], gradient[:, self.rows], hessian[..., self.rows] if hessian.shape[2] > 1 else hessian


@dataclass(frozen=True, eq=False)
class PoolDensities:
    """Densities of a pool's components around one hypothesis, of which single toys take their rows.

    Parameters
    ----------
    pool : Pool
        Points and factors.
    theta : array of shape (p,)
        Where mass densities are normalised on the pool.
    shares : array of shape (J, n)
        Probabilities of the points there.
    tilts : tuple of (positions, slopes)
        Mean scores of the components on the pool, which are not quite 0 and are taken out.
    mass : array of shape (n,) or None
        Masses of the points, if they are known.
    """

    pool: Pool
    theta: FloatArray
    shares: FloatArray
    tilts: tuple[tuple[IntArray, FloatArray], ...]
    mass: FloatArray | None

    @classmethod
    def of(cls, pool: Pool, theta: FloatArray, truth: FloatArray, mass: FloatArray | None) -> PoolDensities:
        """Evaluate them once for many toys."""
        shares = pool.shares(theta, truth)
        tilts = []
        for j, share in enumerate(shares):
            if j in pool.moving:
                positions, gradient, _, normalised = pool.slopes(j, theta)
                tilts.append((positions, np.where(normalised, gradient @ share / share.sum(), 0.0)))
            else:
                tilts.append((np.empty(0, dtype=np.int64), np.empty(0)))
        return cls(pool, theta, shares, tuple(tilts), mass)

    def mixture(self, rows: IntArray, names: Sequence[str]) -> Mixture:
        """Data term of one toy whose events are rows of the pool, shape (n,)."""
        pool, theta = self.pool, self.theta
        components = []
        for j, component in enumerate(pool.components):
            factors: list[tuple[PreparedFactor, IntArray]] = []
            moved = np.zeros(rows.size)
            for factor, index in component.factors:
                taken: PreparedFactor = _Rows(factor, rows)
                if isinstance(factor, PreparedDensity) and self.mass is not None:
                    taken = factor.density.prepare(self.mass[rows])
                factors.append((taken, pool.index[index]))
                moved = moved + taken.log_prob(theta[pool.index[index]])
            positions, slope = self.tilts[j]
            if positions.size:
                factors.append((_Offset(-slope, theta[positions], rows.size), positions))
            with np.errstate(divide="ignore"):
                static = np.log(self.shares[j, rows]) - moved
            components.append(PreparedComponent(component.rate, static, tuple(factors)))
        return Mixture(components, names, theta)


def toy_mixture(
    pool: Pool, rows: IntArray, names: Sequence[str], theta: FloatArray, truth: FloatArray, mass: FloatArray | None
) -> Mixture:
    """Data term of one toy whose events are rows of a pool; see :class:`PoolDensities`, which serves many toys."""
    return PoolDensities.of(pool, theta, truth, mass).mixture(rows, names)


def single_nll(
    terms: Sequence[CellTerm | PointTerm],
    constraints: Sequence[tuple[BatchConstraint, IntArray]],
    toy: int,
    rates: Sequence[Sequence[Yield]],
    like: NLL,
) -> NLL:
    """Likelihood of one toy of a batch, as an object that the scalar fit takes.

    Parameters
    ----------
    terms, constraints : sequences of terms and of (BatchConstraint, positions)
        Of n toys.
    toy : int
        Which.
    rates : sequence of sequences of Yield
        Yields of each term's components.
    like : NLL
        Whose names, parameter of interest and convexity.
    """
    start = like.start_vector()
    mixtures = []
    for term, yields in zip(terms, rates, strict=True):
        occupied = np.flatnonzero(term.weights[toy] > 0)
        if isinstance(term, CellTerm):
            components = _cell_components(term.basis, occupied, yields)
        else:
            with np.errstate(divide="ignore"):
                static = np.log(term.density[toy][:, occupied])
            components = [PreparedComponent(rate, row, ()) for rate, row in zip(yields, static, strict=True)]
        mixtures.append(Mixture(components, like.names, start, weights=term.weights[toy, occupied]))
    return like.replaced(mixtures, [constraint.single(toy) for constraint, _ in constraints])


def _cell_components(basis: Basis, cells: IntArray, rates: Sequence[Yield]) -> list[PreparedComponent]:
    components, begin = [], 0
    for rate, e in zip(rates, basis.expansions, strict=True):
        rows = basis.rows[begin : begin + e.size, cells]
        begin += e.size
        factors: list[tuple[PreparedFactor, IntArray]] = []
        static = np.zeros(cells.size)
        if e.index.size:
            # An expansion looks at the parameters of its own component alone, in their order.
            own = replace(e, index=np.arange(e.index.size))
            factors.append((_Polynomial(own, rows), e.index))
        else:
            with np.errstate(divide="ignore"):
                static = np.log(rows[0])
        if e.offset_index.size:
            factors.append((_Offset(e.offset_slope, e.offset_centre, cells.size), e.offset_index))
        components.append(PreparedComponent(rate, static, tuple(factors)))
    return components


@dataclass(frozen=True, eq=False)
class ArrayToys:
    """Toys fitted in a batch, and one by one where that fails.

    Parameters
    ----------
    batch : BatchNLL
        Of n toys.
    single : callable
        Likelihood of one toy by its row, for the scalar fit.
    anchor : array of shape (p,)
        Parameters at which the two forms of a toy's likelihood are compared, to remove the constant between them.
    """

    batch: BatchNLL
    single: Callable[[int], NLL]
    anchor: FloatArray

    def fit(self, start: FloatArray, free: BoolArray, *, column: int | None, rows: IntArray | None) -> BatchFit:
        """Fit some of the toys (all for None) from a start of shape (n, p)."""
        batch = self.batch if rows is None else self.batch.take(rows)
        result = fit_batch(batch, start, free, column=column)
        for row in np.flatnonzero(result.status == FAILED):
            toy = int(row if rows is None else rows[row])
            nll = self.single(toy)
            outcome = _attempt(nll, start[row], free)
            if outcome is None:
                continue
            found, status = outcome
            constant = self.batch.take(np.array([toy])).value(self.anchor[None])[0] - nll.value(self.anchor)
            result.theta[row], result.status[row] = found.values, status
            result.value[row] = -np.inf if status == UNBOUNDED else found.nll + constant
            if column is not None:
                result.covariance_column[row] = found.covariance[column]
        return result


@dataclass(frozen=True, eq=False)
class SingleToys:
    """Toys fitted one by one.

    Parameters
    ----------
    nlls : tuple of NLL
        Their likelihoods, all in the same p parameters.
    """

    nlls: tuple[NLL, ...]

    def fit(self, start: FloatArray, free: BoolArray, *, column: int | None, rows: IntArray | None) -> BatchFit:
        """Fit some of the toys (all for None) from a start of shape (n, p)."""
        chosen = np.arange(len(self.nlls)) if rows is None else rows
        n, p = start.shape
        theta, value = start.copy(), np.full(n, np.nan)
        status, done = np.full(n, FAILED, dtype=np.int64), np.zeros((n, p if column is not None else 0))
        for row, toy in enumerate(chosen):
            outcome = _attempt(self.nlls[toy], start[row], free)
            if outcome is None:
                continue
            found, status[row] = outcome
            theta[row], value[row] = found.values, found.nll if status[row] == FITTED else -np.inf
            if column is not None:
                done[row] = found.covariance[column]
        return BatchFit(theta, value, status, done)


def _attempt(nll: NLL, start: FloatArray, free: BoolArray) -> tuple[FitResult, int] | None:
    """Scalar fit of one toy and its code; None if there is no minimum."""
    held = {name: float(x) for name, x, f in zip(nll.names, start, free, strict=True) if not f}
    last = None
    for begin in (start, np.where(free, nll.start_vector(), start)):
        try:
            result = fit(nll, fixed=held, start=begin)
        except FitFailed:
            continue
        if result.valid:
            return result, FITTED
        last = result
        if nll.poi not in held and result.value(nll.poi) < -FAR:
            return result, UNBOUNDED
    if last is not None and nll.poi not in held and _falls_without_end(nll, start, held):
        return last, UNBOUNDED
    return None


def _falls_without_end(nll: NLL, start: FloatArray, held: Mapping[str, float]) -> bool:
    """Whether -ln L decreases however far the parameter of interest goes below 0: no event looks like signal."""
    size = nll.event_size(nll.poi, start)
    previous = float("inf")
    for events in (1e2, 1e4, 1e6):
        try:
            result = fit(nll, fixed={**held, nll.poi: -events * size}, start=start)
        except (FitFailed, ParameterError):
            return False
        if not result.nll < previous - 1.0:
            return False
        previous = result.nll
    return size > 0.0
