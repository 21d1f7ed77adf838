r"""Likelihoods of many toys at once, as arrays with one row a toy: values, gradients, Hessians.

Every toy has the same points (cells of a pool) with its own counts W, or its own points; in both cases

.. math:: \mathrm{nll} = \sum_j n_j - \sum_k W_k \ln \lambda_k, \qquad \lambda_k = \sum_j n_j(\theta) f_{jk}(\theta)

with the derivatives of :mod:`gbistat.likelihood.mixture`. Where a parameter moves the density of a cell, ``f_jk`` is a
polynomial of second order around a centre (:class:`Expansion`): then lambda is linear in a few rows that are the same for
all toys, and sums over cells are matrix products. Yields, and factors common to all cells, are exact.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.inference.toy_constraints import BatchConstraint
    from gbistat.likelihood.components import Yield
    from gbistat.likelihood.parameters import Parameter
    from gbistat.typing import BoolArray, FloatArray, IntArray

__all__ = ["Basis", "BatchNLL", "BatchYields", "CellTerm", "Expansion", "PointTerm", "Term", "chain_yields", "repair"]


@dataclass(frozen=True, eq=False)
class BatchYields:
    """Yields ``(constant + linear theta) exp(log_scales theta)`` of J components; arrays (J,), (J, p), (J, p)."""

    constant: FloatArray
    linear: FloatArray
    log_scales: FloatArray

    @classmethod
    def of(cls, rates: Sequence[Yield], names: Sequence[str]) -> BatchYields:
        """Coefficients of yields in a vector of named parameters."""
        linear, scales = np.zeros((len(rates), len(names))), np.zeros((len(rates), len(names)))
        for j, rate in enumerate(rates):
            for name, coefficient in rate.linear.items():
                linear[j, names.index(name)] += coefficient
            for name, coefficient in rate.log_scales.items():
                scales[j, names.index(name)] += coefficient
        return cls(np.array([rate.constant for rate in rates]), linear, scales)

    def at(self, theta: FloatArray) -> FloatArray:
        """Yields (n, J) at parameters (n, p)."""
        yields: FloatArray = self.constant + theta @ self.linear.T
        return yields * np.exp(theta @ self.log_scales.T) if self.log_scales.any() else yields

    def derivatives(self, theta: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray | None]:
        """Yields (n, J), Jacobian (n or 1, J, p), second derivatives (n, J, p, p) or None where they vanish."""
        if not self.log_scales.any():
            return self.at(theta), self.linear[None], None
        scale = np.exp(theta @ self.log_scales.T)
        yields = (self.constant + theta @ self.linear.T) * scale
        slope, power = scale[:, :, None] * self.linear, self.log_scales
        cross = slope[:, :, :, None] * power[:, None, :]
        second = cross + np.swapaxes(cross, 2, 3) + yields[:, :, None, None] * (power[:, :, None] * power[:, None, :])
        return yields, slope + yields[:, :, None] * power, second


@dataclass(frozen=True, eq=False)
class Expansion:
    """How the densities of one component change with parameters, to second order around a centre.

    ``f_k = exp(o . (theta - centre_o)) sum_m c_m(d) F_mk`` with ``d = theta - centre`` and monomials c = 1, d_a, and d_a d_b
    for a <= b. For a normalised density the rows F of all but the first add up to 0: it stays normalised.

    Parameters
    ----------
    index, centre : arrays of shape (k,)
        Positions of the parameters, and where the first row is the density.
    offset_index, offset_centre, offset_slope : arrays of shape (q,)
        Parameters that multiply the density as a whole.
    """

    index: IntArray
    centre: FloatArray
    offset_index: IntArray
    offset_centre: FloatArray
    offset_slope: FloatArray

    @classmethod
    def none(cls) -> Expansion:
        """Of a component without such parameters."""
        empty, nothing = np.empty(0), np.empty(0, dtype=np.int64)
        return cls(nothing, empty, nothing, empty, empty)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Monomials of second order."""
        k = self.index.size
        return [(a, b) for a in range(k) for b in range(a, k)]

    @property
    def size(self) -> int:
        """Number of monomials."""
        return 1 + self.index.size + len(self.pairs)

    def monomials(self, theta: FloatArray) -> FloatArray:
        """Values c, shape (n, size), at parameters (n, p)."""
        d = theta[:, self.index] - self.centre
        columns = [np.ones(theta.shape[0]), *d.T, *(d[:, a] * d[:, b] for a, b in self.pairs)]
        return np.stack(columns, axis=1)

    def slopes(self, theta: FloatArray) -> FloatArray:
        """Derivatives of the monomials, shape (n, size, k)."""
        d = theta[:, self.index] - self.centre
        k = self.index.size
        result = np.zeros((theta.shape[0], self.size, k))
        result[:, 1 : 1 + k] = np.eye(k)
        for row, (a, b) in enumerate(self.pairs, start=1 + k):
            result[:, row, a] += d[:, b]
            result[:, row, b] += d[:, a]
        return result

    def curvature(self, sums: FloatArray) -> FloatArray:
        """``sum_m sums_m d2c_m``, shape (n, k, k), for sums of shape (n, size)."""
        k = self.index.size
        result = np.zeros((sums.shape[0], k, k))
        for row, (a, b) in enumerate(self.pairs, start=1 + k):
            result[:, a, b] += sums[:, row]
            result[:, b, a] += sums[:, row]
        return result

    def scale(self, theta: FloatArray) -> FloatArray:
        """Common factor, shape (n,)."""
        factor: FloatArray = np.exp((theta[:, self.offset_index] - self.offset_centre) @ self.offset_slope)
        return factor


@dataclass(frozen=True, eq=False)
class Basis:
    """Densities of J components in K cells.

    Parameters
    ----------
    rows : array of shape (B, K)
        The rows F of all components, one after the other; an overall factor at each cell is free.
    expansions : tuple of Expansion
        One a component.
    """

    rows: FloatArray
    expansions: tuple[Expansion, ...]

    @property
    def moving(self) -> bool:
        """Whether a parameter moves a density."""
        return any(e.size > 1 or e.offset_index.size for e in self.expansions)

    @cached_property
    def upper(self) -> tuple[IntArray, IntArray]:
        """Pairs of rows."""
        first, second = np.triu_indices(self.rows.shape[0])
        return first, second

    @cached_property
    def products(self) -> FloatArray:
        """Products of all pairs of rows, shape (K, B (B + 1) / 2)."""
        return np.ascontiguousarray((self.rows[self.upper[0]] * self.rows[self.upper[1]]).T)

    @cached_property
    def transposed(self) -> FloatArray:
        """Rows as columns, shape (K, B)."""
        return np.ascontiguousarray(self.rows.T)

    def scaled(self, factor: FloatArray) -> Basis:
        """Return the same densities with a factor at each cell."""
        return Basis(self.rows * factor, self.expansions)

    def density(self, theta: FloatArray) -> FloatArray:
        """Densities (n, J, K) at parameters (n, p)."""
        parts, begin = [], 0
        for expansion in self.expansions:
            end = begin + expansion.size
            parts.append(expansion.scale(theta)[:, None] * (expansion.monomials(theta) @ self.rows[begin:end]))
            begin = end
        return np.stack(parts, axis=1)


class Term(Protocol):
    """One data term of n toys."""

    @property
    def convex(self) -> bool:
        """Whether it is self-concordant in the parameters: intensities linear in them, whole counts."""

    def take(self, rows: IntArray) -> Term:
        """Some of the toys."""

    def value(self, theta: FloatArray) -> FloatArray:
        """The nll, shape (n,), up to a constant of each toy; infinite where an occupied point has no density."""

    def derivatives(self, theta: FloatArray) -> tuple[FloatArray, FloatArray, BoolArray | None]:
        """Gradient (n, p), Hessian (n, p, p), and which toys have a density at all their points (None: all)."""


@dataclass(frozen=True, eq=False)
class CellTerm:
    """One data term of n toys with counts in the same cells.

    Parameters
    ----------
    yields : BatchYields
        Of J components.
    basis : Basis
        Their densities.
    weights : array of shape (n, K)
        Counts.
    """

    yields: BatchYields
    basis: Basis
    weights: FloatArray

    @property
    def convex(self) -> bool:
        """Whether it is self-concordant in the parameters."""
        return not self.basis.moving and not self.yields.log_scales.any()

    def take(self, rows: IntArray) -> CellTerm:
        """Some of the toys."""
        return replace(self, weights=self.weights[rows])

    def value(self, theta: FloatArray) -> FloatArray:
        """The nll, shape (n,), up to a constant of each toy; infinite where an occupied cell has no density."""
        yields = self.yields.at(theta)
        intensity = self._amplitudes(theta, yields) @ self.basis.rows
        allowed = repair(intensity, self.weights)
        value = yields.sum(axis=1) - np.einsum("nk,nk->n", self.weights, np.log(intensity))
        return value if allowed is None else np.where(allowed, value, np.inf)

    def derivatives(self, theta: FloatArray) -> tuple[FloatArray, FloatArray, BoolArray | None]:
        """Gradient (n, p), Hessian (n, p, p), and which toys have a density in all their cells (None: all)."""
        yields, jacobian, second = self.yields.derivatives(theta)
        inverse = self._amplitudes(theta, yields) @ self.basis.rows
        allowed = repair(inverse, self.weights)
        np.reciprocal(inverse, out=inverse)
        weighted = self.weights * inverse
        single = weighted @ self.basis.transposed
        np.multiply(weighted, inverse, out=weighted)
        products = weighted @ self.basis.products
        count = self.basis.rows.shape[0]
        double = np.empty((theta.shape[0], count, count))
        first, other = self.basis.upper
        double[:, first, other] = products
        double[:, other, first] = products
        if not self.basis.moving:
            gradient, hessian = chain_yields(1.0 - single, double, jacobian, second)
        else:
            gradient, hessian = self._chain(theta, single, double, yields, jacobian, second)
        return gradient, hessian, allowed

    def _amplitudes(self, theta: FloatArray, yields: FloatArray) -> FloatArray:
        """Factors (n, B) of the rows."""
        if not self.basis.moving:
            return yields
        parts = [
            (yields[:, j] * expansion.scale(theta))[:, None] * expansion.monomials(theta)
            for j, expansion in enumerate(self.basis.expansions)
        ]
        return np.concatenate(parts, axis=1)

    def _chain(
        self,
        theta: FloatArray,
        single: FloatArray,
        double: FloatArray,
        yields: FloatArray,
        jacobian: FloatArray,
        second: FloatArray | None,
    ) -> tuple[FloatArray, FloatArray]:
        """From sums over cells for each row, (n, B) and (n, B, B), to derivatives in parameters."""
        n, p = theta.shape
        slopes = np.zeros((n, self.basis.rows.shape[0], p))
        hessian = np.zeros((n, p, p)) if second is None else second.sum(axis=1)
        begin = 0
        for j, expansion in enumerate(self.basis.expansions):
            end, index = begin + expansion.size, expansion.index
            scale = expansion.scale(theta)
            offset = np.zeros(p)
            np.add.at(offset, expansion.offset_index, expansion.offset_slope)
            size = yields[:, j] * scale
            rise = scale[:, None] * jacobian[:, j] + size[:, None] * offset
            c, dc, sums = expansion.monomials(theta), expansion.slopes(theta), single[:, begin:end]
            slopes[:, begin:end] = c[:, :, None] * rise[:, None, :]
            slopes[:, begin:end, index] += size[:, None, None] * dc
            amount = np.einsum("nm,nm->n", sums, c)
            if second is not None:
                hessian -= (amount * scale)[:, None, None] * second[:, j]
            if offset.any():
                cross = (scale[:, None] * jacobian[:, j])[:, :, None] * offset
                cross = cross + np.swapaxes(cross, 1, 2) + size[:, None, None] * np.outer(offset, offset)
                hessian -= amount[:, None, None] * cross
            if index.size:
                pull = np.einsum("nm,nmk->nk", sums, dc)
                block = rise[:, :, None] * pull[:, None, :]
                hessian[:, :, index] -= block
                hessian[:, index, :] -= np.swapaxes(block, 1, 2)
                hessian[:, index[:, None], index] -= size[:, None, None] * expansion.curvature(sums)
            begin = end
        gradient = jacobian.sum(axis=1) - np.matmul(single[:, None, :], slopes)[:, 0, :]
        hessian += np.matmul(np.swapaxes(slopes, 1, 2), np.matmul(double, slopes))
        return gradient, hessian


@dataclass(frozen=True, eq=False)
class PointTerm:
    """One data term of n toys with points of their own and fixed densities.

    Parameters
    ----------
    yields : BatchYields
        Of J components.
    density : array of shape (n, J, K)
        Densities; an overall factor at each point is free.
    weights : array of shape (n, K)
        1 for a point of the toy, 0 for none.
    """

    yields: BatchYields
    density: FloatArray
    weights: FloatArray

    @property
    def convex(self) -> bool:
        """Whether it is self-concordant in the parameters."""
        return not self.yields.log_scales.any()

    def take(self, rows: IntArray) -> PointTerm:
        """Some of the toys."""
        return replace(self, density=self.density[rows], weights=self.weights[rows])

    def value(self, theta: FloatArray) -> FloatArray:
        """The nll, shape (n,), up to a constant of each toy; infinite where a point has no density."""
        yields = self.yields.at(theta)
        intensity: FloatArray = np.matmul(yields[:, None, :], self.density)[:, 0, :]
        allowed = repair(intensity, self.weights)
        value = yields.sum(axis=1) - np.einsum("nk,nk->n", self.weights, np.log(intensity))
        return value if allowed is None else np.where(allowed, value, np.inf)

    def derivatives(self, theta: FloatArray) -> tuple[FloatArray, FloatArray, BoolArray | None]:
        """Gradient (n, p), Hessian (n, p, p), and which toys have a density at all their points (None: all)."""
        yields, jacobian, second = self.yields.derivatives(theta)
        inverse: FloatArray = np.matmul(yields[:, None, :], self.density)[:, 0, :]
        allowed = repair(inverse, self.weights)
        np.reciprocal(inverse, out=inverse)
        weighted = self.weights * inverse
        single = np.matmul(self.density, weighted[:, :, None])[:, :, 0]
        np.multiply(weighted, inverse, out=weighted)
        double = np.matmul(self.density * weighted[:, None, :], np.swapaxes(self.density, 1, 2))
        gradient, hessian = chain_yields(1.0 - single, double, jacobian, second)
        return gradient, hessian, allowed


def repair(intensity: FloatArray, weights: FloatArray) -> BoolArray | None:
    """Set 1 where an intensity is not positive, in place.

    Returns
    -------
    array of bool of shape (n,), or None
        Toys with no such place among those they occupy; None for all.
    """
    if intensity.size == 0 or intensity.min() > 0:
        return None
    bad = ~(intensity > 0)
    occupied = np.logical_and(bad, weights > 0)
    intensity[bad] = 1.0
    return np.logical_not(occupied.any(axis=1))


def chain_yields(
    slope: FloatArray, double: FloatArray, jacobian: FloatArray, second: FloatArray | None
) -> tuple[FloatArray, FloatArray]:
    """From derivatives in yields, (n, J) and (n, J, J), to those in parameters."""
    if jacobian.shape[0] == 1:
        # One matrix product for all toys: a product a toy costs ten times as much.
        matrix = jacobian[0]
        gradient = slope @ matrix
        p = matrix.shape[1]
        hessian = (double.reshape(len(double), matrix.shape[0] ** 2) @ np.kron(matrix, matrix)).reshape(
            len(double), p, p
        )
    else:
        gradient = np.einsum("nj,njp->np", slope, jacobian)
        hessian = np.matmul(np.matmul(np.swapaxes(jacobian, 1, 2), double), jacobian)
    if second is not None:
        hessian = hessian + np.einsum("nj,njpq->npq", slope, second)
    return gradient, hessian


@dataclass(frozen=True, eq=False)
class BatchNLL:
    """Likelihoods of n toys in the same p parameters.

    Parameters
    ----------
    parameters : tuple of Parameter
        Names, starts and ranges.
    terms : tuple of BatchTerm
        Data.
    constraints : tuple of (BatchConstraint, positions)
        Auxiliary measurements.
    """

    parameters: tuple[Parameter, ...]
    terms: tuple[Term, ...]
    constraints: tuple[tuple[BatchConstraint, IntArray], ...] = ()

    def take(self, rows: IntArray) -> BatchNLL:
        """Likelihoods of some toys."""
        return replace(
            self,
            terms=tuple(term.take(rows) for term in self.terms),
            constraints=tuple((constraint.take(rows), index) for constraint, index in self.constraints),
        )

    def value(self, theta: FloatArray) -> FloatArray:
        """The nll up to a constant of each toy, shape (n,)."""
        total = np.zeros(theta.shape[0])
        for term in self.terms:
            total = total + term.value(theta)
        for constraint, index in self.constraints:
            total = total + constraint.value(theta[:, index])
        return total

    def derivatives(self, theta: FloatArray) -> tuple[FloatArray, FloatArray, BoolArray]:
        """Gradient (n, p), Hessian (n, p, p), and toys where both are finite."""
        n, p = theta.shape
        gradient, hessian = np.zeros((n, p)), np.zeros((n, p, p))
        allowed = np.ones(n, dtype=bool)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for term in self.terms:
                first, second, good = term.derivatives(theta)
                gradient += first
                hessian += second
                if good is not None:
                    allowed &= good
            for constraint, index in self.constraints:
                first, second = constraint.derivatives(theta[:, index])
                gradient[:, index] += first
                hessian[:, index[:, None], index] += second
        allowed &= np.isfinite(gradient).all(axis=1) & np.isfinite(hessian).all(axis=(1, 2))
        return gradient, hessian, allowed
