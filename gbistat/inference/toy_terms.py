r"""Likelihoods of many toys at once, as arrays with one row a toy: values, gradients, Hessians.

Every toy has the same points (cells of a pool) with its own counts W, or its own points; in both cases

.. math:: \mathrm{nll} = \sum_j n_j - \sum_k W_k \ln \lambda_k, \qquad \lambda_k = \sum_j n_j(\theta) f_{jk}(\theta)

with the derivatives of :mod:`gbistat.likelihood.mixture`. Where a parameter moves the density of a cell, ``f_jk`` is a
polynomial of second order around a centre (:class:`gbistat.inference.toy_basis.Expansion`): then lambda is linear in a few rows that are the same for
all toys, and sums over cells are matrix products. Yields, and factors common to all cells, are exact.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from gbistat.inference.toy_basis import Basis, BatchYields
    from gbistat.inference.toy_constraints import BatchConstraint
    from gbistat.likelihood.parameters import Parameter
    from gbistat.typing import BoolArray, FloatArray, IntArray

__all__ = ["BatchNLL", "CellTerm", "PointTerm", "Term", "chain_yields", "repair"]


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
