"""Fits of many toys of a binned likelihood at once: damped Newton steps on arrays with one row a toy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import ModelError
from gbistat.fit.minimize import fit
from gbistat.likelihood.auxiliary import AuxiliaryMeasurements
from gbistat.likelihood.histfactory import BinnedTerm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.likelihood.auxiliary import AuxiliaryBatch
    from gbistat.likelihood.histfactory import BinnedBatch
    from gbistat.likelihood.nll import NLL
    from gbistat.typing import BoolArray, FloatArray, IntArray

__all__ = ["BatchFit", "BatchNLL", "fit_batch"]

EDM = 1e-9
"""Estimated distance to the minimum, in units of the nll, before the last step."""
STUCK = 1e-6
"""The same where rounding of the nll hides any decrease."""
MAX_ITERATIONS = 60
SMALLEST_BEND = 0.2
"""Curvature, in units of that of each parameter alone, that a step assumes at least where the nll bends down."""


@dataclass(frozen=True, eq=False)
class BatchNLL:
    """Likelihoods of n toys that differ in their data alone.

    Parameters
    ----------
    nll : NLL
        Parameters, and the observed data.
    terms : sequence of (batch, indices)
        Data of the toys, and where the parameters of each term are.
    size : int
        n.
    """

    nll: NLL
    terms: Sequence[tuple[BinnedBatch | AuxiliaryBatch, IntArray]]
    size: int

    @classmethod
    def draw(cls, nll: NLL, theta: FloatArray, count: int, *, rng: np.random.Generator) -> BatchNLL:
        """Draw toys at true parameters of shape (p,).

        Raises
        ------
        ModelError
            If the likelihood has data that are not binned, or expected counts are negative.
        """
        terms: list[tuple[BinnedBatch | AuxiliaryBatch, IntArray]] = []
        if nll.mixtures:
            raise ModelError("this likelihood has unbinned data; draw its toys from a pool of events instead")
        for term, child in zip(nll.constraints, rng.spawn(len(nll.constraints)), strict=True):
            if not isinstance(term, (BinnedTerm, AuxiliaryMeasurements)):
                raise ModelError(f"toys of many rows cannot be drawn for a {type(term).__name__}; use NLL.fluctuate")
            index = np.array([nll.names.index(name) for name in term.names], dtype=np.int64)
            terms.append((term.draw(theta[index], count, rng=child), index))
        return cls(nll, terms, count)

    def take(self, rows: IntArray | BoolArray) -> BatchNLL:
        """Some of the toys."""
        chosen = np.arange(self.size)[rows]
        return replace(self, terms=[(batch.take(chosen), index) for batch, index in self.terms], size=chosen.size)

    def single(self, row: int) -> NLL:
        """Likelihood of one toy."""
        return self.nll.replaced([], [batch.single(row) for batch, _ in self.terms])

    def value(self, theta: FloatArray) -> FloatArray:
        """-ln L of each toy, shape (n,), at parameters of shape (n, p)."""
        return np.asarray(sum(batch.value(theta[:, index]) for batch, index in self.terms))

    def derivatives(self, theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Gradient (n, p) and Hessian (n, p, p)."""
        n, p = theta.shape
        gradient, hessian = np.zeros((n, p)), np.zeros((n, p, p))
        for batch, index in self.terms:
            first, second = batch.derivatives(theta[:, index])
            gradient[:, index] += first
            hessian[:, index[:, None], index] += second
        return gradient, hessian


@dataclass(frozen=True, eq=False)
class BatchFit:
    """Minima of n toys.

    Parameters
    ----------
    theta : array of shape (n, p)
        Where.
    value : array of shape (n,)
        -ln L there.
    valid : array of bool, shape (n,)
        Whether a minimum was found.
    single : int
        Toys that had to be fitted one by one.
    """

    theta: FloatArray
    value: FloatArray
    valid: BoolArray
    single: int = 0


def fit_batch(batch: BatchNLL, start: FloatArray, free: BoolArray) -> BatchFit:
    """Minimise the likelihoods of many toys over some parameters.

    Parameters
    ----------
    batch : BatchNLL
        Of n toys.
    start : array of shape (n, p)
        Where to begin; parameters that are not free stay there.
    free : array of bool, shape (p,)
        What to fit.

    Returns
    -------
    BatchFit
        One row a toy. Toys whose steps go astray are fitted one by one; none raises.
    """
    low = np.array([parameter.low for parameter in batch.nll.parameters])
    high = np.array([parameter.high for parameter in batch.nll.parameters])
    x = np.where(free, np.clip(start, low, high), start)
    valid = np.zeros(batch.size, dtype=np.bool_)
    value = batch.value(x)
    rows = np.flatnonzero(np.isfinite(value))
    part = batch.take(rows)
    for _ in range(MAX_ITERATIONS):
        if not rows.size:
            break
        step, edm, bent = _steps(part, x[rows], free, low, high)
        near = (edm < EDM) & ~bent
        moved, lower, found = _search(part, x[rows], value[rows], step, edm, low, high)
        x[rows], value[rows] = moved, lower
        stuck = ~near & ~found
        valid[rows[near | (stuck & (edm < STUCK))]] = True
        going = ~near & ~stuck
        rows, part = rows[going], part.take(going)
    lost = np.flatnonzero(~valid)
    for row in lost:
        fixed = {p.name: float(start[row, k]) for k, p in enumerate(batch.nll.parameters) if not free[k]}
        result = fit(batch.single(int(row)), fixed=fixed)
        x[row], value[row], valid[row] = result.values, result.nll, result.valid
    return BatchFit(x, value, valid, lost.size)


def _steps(
    batch: BatchNLL, x: FloatArray, free: BoolArray, low: FloatArray, high: FloatArray
) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Newton steps (n, p), the edm they predict (n,), and toys whose Hessian bends down somewhere."""
    gradient, hessian = batch.derivatives(x)
    held = ~free | ((x <= low) & (gradient > 0)) | ((x >= high) & (gradient < 0))
    gradient = np.where(held, 0.0, gradient)
    diagonal = np.abs(np.einsum("nii->ni", hessian))
    scale = np.where(held | (diagonal == 0), 0.0, 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0)))
    scaled = hessian * (scale[:, :, None] * scale[:, None, :])
    index = np.arange(x.shape[1])
    scaled[:, index, index] = np.where(scale == 0, 1.0, scaled[:, index, index])
    right = scale * gradient
    solution, bent = _solve(scaled, right)
    step = -scale * solution
    return step, -0.5 * np.einsum("np,np->n", gradient, step), bent


def _solve(matrices: FloatArray, right: FloatArray) -> tuple[FloatArray, BoolArray]:
    """Solve for each row; matrices that are not positive definite are bent up, and the last array tells which."""
    bent = np.zeros(right.shape[0], dtype=np.bool_)
    try:
        np.linalg.cholesky(matrices)
    except np.linalg.LinAlgError:
        for row, matrix in enumerate(matrices):
            try:
                np.linalg.cholesky(matrix)
            except np.linalg.LinAlgError:
                bent[row] = True
        values, vectors = np.linalg.eigh(matrices[bent])
        upward = np.matmul(vectors * np.maximum(np.abs(values), SMALLEST_BEND)[:, None, :], vectors.transpose(0, 2, 1))
        matrices = np.array(matrices, dtype=np.float64)
        matrices[bent] = upward
    return np.asarray(np.linalg.solve(matrices, right[..., None])[..., 0], dtype=np.float64), bent


def _search(
    batch: BatchNLL,
    x: FloatArray,
    value: FloatArray,
    step: FloatArray,
    edm: FloatArray,
    low: FloatArray,
    high: FloatArray,
) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Whole steps, or half of them, ... until each value falls; at the minimum rounding may hide the decrease."""
    moved, lower = x.copy(), value.copy()
    found = np.zeros(x.shape[0], dtype=np.bool_)
    rows, length = np.arange(x.shape[0]), 1.0
    for _ in range(30):
        trial = np.where(step[rows] != 0, np.clip(x[rows] + length * step[rows], low, high), x[rows])
        now = batch.value(trial)
        good = now <= value[rows] - 1e-4 * length * edm[rows] + 1e-13 * np.abs(value[rows])
        chosen = rows[good]
        moved[chosen], lower[chosen], found[chosen] = trial[good], now[good], True
        if good.all():
            break
        rows, batch = rows[~good], batch.take(~good)
        length *= 0.5
    return moved, lower, found
