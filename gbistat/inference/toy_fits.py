"""Fits of many toys at once: Newton's method on arrays with one row a toy.

For fixed densities the nll of a mixture is convex in the yields and self-concordant, so that a step of length ``1 / (1 + d)``
with d the Newton decrement never leaves the region where all densities are positive (Nesterov and Nemirovskii, "Interior-point
polynomial algorithms in convex programming", SIAM 1994, section 2.2); full steps are taken wherever they do better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbistat.inference.toy_linear import solve_positive

if TYPE_CHECKING:
    from gbistat.inference.toy_terms import BatchNLL
    from gbistat.typing import BoolArray, FloatArray, IntArray

__all__ = ["FAILED", "FITTED", "UNBOUNDED", "BatchFit", "fit_batch"]

FITTED, UNBOUNDED, FAILED = 0, 1, 2
"""Codes of a fit: a minimum, a likelihood that rises without end, neither."""

EDM = 1e-9
"""Estimated distance to the minimum, in units of the nll, before the last step."""

EDM_CONVEX = 1e-7
"""The same for a self-concordant nll: a Newton step from decrement d ends within ``d^2``, here 2e-7 errors."""

MAX_ITERATIONS = 60
FAR = 1e12
"""Size of a parameter, in units of its start or of 1, at which the nll is taken to fall without end."""


@dataclass(frozen=True, eq=False)
class BatchFit:
    """Minima of n toys.

    Parameters
    ----------
    theta : array of shape (n, p)
        Where.
    value : array of shape (n,)
        The nll there, up to a constant of each toy.
    status : int array of shape (n,)
        FITTED, UNBOUNDED or FAILED.
    covariance_column : array of shape (n, p)
        Column of the inverse Hessian that belongs to one chosen parameter; 0 where there is none.
    """

    theta: FloatArray
    value: FloatArray
    status: IntArray
    covariance_column: FloatArray


def fit_batch(nll: BatchNLL, start: FloatArray, free: BoolArray, *, column: int | None = None) -> BatchFit:
    """Minimise the likelihoods of many toys over some parameters.

    Parameters
    ----------
    nll : BatchNLL
        Of n toys.
    start : array of shape (n, p)
        Where to begin; parameters that are not free stay there.
    free : array of bool, shape (p,)
        What to fit.
    column : int, optional
        Parameter whose column of the inverse Hessian is wanted.

    Returns
    -------
    BatchFit
        One row a toy; no toy raises.
    """
    return _Newton(nll, start, free).run(column)


class _Newton:
    """The steps of all toys of a batch; those that are done leave it."""

    def __init__(self, nll: BatchNLL, start: FloatArray, free: BoolArray) -> None:
        self.low = np.array([parameter.low for parameter in nll.parameters])
        self.high = np.array([parameter.high for parameter in nll.parameters])
        self.far = FAR * (1.0 + np.abs([parameter.start for parameter in nll.parameters]))
        self.free = np.flatnonzero(free)
        self.held = np.flatnonzero(~free)
        self.nll = nll
        self.start = start
        convex = all(term.convex for term in nll.terms) and all(c.convex for c, _ in nll.constraints)
        self.edm = EDM_CONVEX if convex else EDM

    def run(self, column: int | None) -> BatchFit:
        n, p = self.start.shape
        theta = self.start.copy()
        theta[:, self.free] = np.clip(theta[:, self.free], self.low[self.free], self.high[self.free])
        status = np.full(n, FAILED, dtype=np.int64)
        done = np.zeros((n, p)) if column is not None else np.empty((n, 0))
        rows = np.arange(n)
        nll = self.nll
        x = theta.copy()
        gradient, hessian, allowed = nll.derivatives(x)
        rows, x, nll, gradient, hessian = _keep(allowed, rows, x, nll, gradient, hessian)
        for _ in range(MAX_ITERATIONS):
            if rows.size == 0:
                break
            step, edm, bent = self._step(x, gradient, hessian)
            finished = (edm < self.edm) & ~bent
            if finished.any():
                self._finish(theta, status, done, rows, x, step, hessian, finished, column)
                left = ~finished
                rows, x, nll, gradient, hessian = _keep(left, rows, x, nll, gradient, hessian)
                step, edm, bent = step[left], edm[left], bent[left]
                if rows.size == 0:
                    break
            x, gradient, hessian, moved = self._advance(nll, x, gradient, hessian, step, edm, bent)
            escaped = (np.abs(x) > self.far).any(axis=1)
            theta[rows] = x
            status[rows[escaped]] = UNBOUNDED
            rows, x, nll, gradient, hessian = _keep(moved & ~escaped, rows, x, nll, gradient, hessian)
        with np.errstate(over="ignore", invalid="ignore"):
            value = self.nll.value(theta)
        value[status == UNBOUNDED] = -np.inf
        status[(status == FITTED) & ~np.isfinite(value)] = FAILED
        return BatchFit(theta, value, status, done)

    def _finish(
        self,
        theta: FloatArray,
        status: IntArray,
        done: FloatArray,
        rows: IntArray,
        x: FloatArray,
        step: FloatArray,
        hessian: FloatArray,
        finished: BoolArray,
        column: int | None,
    ) -> None:
        """Take the last, tiny step, which squares the distance that is left."""
        chosen = rows[finished]
        theta[chosen] = np.clip(x[finished] + step[finished], self.low, self.high)
        theta[chosen[:, None], self.held] = x[finished][:, self.held]
        status[chosen] = FITTED
        if column is not None:
            inner = np.flatnonzero(self.free == column)
            if inner.size:
                block = hessian[finished][:, self.free[:, None], self.free]
                wall = self._at_wall(x[finished])
                _hold(block, wall)
                unit = np.zeros((chosen.size, self.free.size))
                unit[:, inner[0]] = 1.0
                solution, bad = solve_positive(block, unit)
                solution[bad | wall[:, inner[0]]] = 0.0
                solution[wall] = 0.0
                done[chosen[:, None], self.free] = solution

    def _at_wall(self, x: FloatArray) -> BoolArray:
        inner = x[:, self.free]
        mask: BoolArray = (inner <= self.low[self.free]) | (inner >= self.high[self.free])
        return mask

    def _step(
        self, x: FloatArray, gradient: FloatArray, hessian: FloatArray
    ) -> tuple[FloatArray, FloatArray, BoolArray]:
        """Newton steps (n, p), the edm they predict (n,), and toys whose Hessian had to be bent up."""
        free = self.free
        g, block = gradient[:, free], hessian[:, free[:, None], free]
        inner = x[:, free]
        held = ((inner <= self.low[free]) & (g > 0)) | ((inner >= self.high[free]) & (g < 0))
        held |= (g == 0.0) & (np.einsum("nkk->nk", block) == 0.0)
        if held.any():
            g = np.where(held, 0.0, g)
            _hold(block, held)
        direction, bad = solve_positive(block, g)
        if bad.any():
            direction[bad] = _bent(block[bad], g[bad], inner[bad])
        step = np.zeros_like(x)
        step[:, free] = -direction
        edm = 0.5 * np.einsum("nk,nk->n", g, direction)
        return step, edm, bad

    def _advance(
        self,
        nll: BatchNLL,
        x: FloatArray,
        gradient: FloatArray,
        hessian: FloatArray,
        step: FloatArray,
        edm: FloatArray,
        bent: BoolArray,
    ) -> tuple[FloatArray, FloatArray, FloatArray, BoolArray]:
        """Full steps where they halve the edm, shorter ones elsewhere; the last array tells which toys moved."""
        trial = self._within(x, step)
        g, h, allowed = nll.derivatives(trial)
        good = allowed & ~bent
        if good.any():
            _, left, crooked = self._step(trial[good], g[good], h[good])
            good[good] = ~crooked & (left < np.maximum(0.5 * edm[good], self.edm))
        moved = np.ones(x.shape[0], dtype=bool)
        if good.all():
            return trial, g, h, moved
        poor = np.flatnonzero(~good)
        shorter, found = self._line_search(nll.take(poor), x[poor], gradient[poor], step[poor], edm[poor])
        trial[poor] = shorter
        moved[poor[~found]] = False
        g[poor], h[poor], allowed = nll.take(poor).derivatives(shorter)
        moved[poor[~allowed]] = False
        return trial, g, h, moved

    def _line_search(
        self, nll: BatchNLL, x: FloatArray, gradient: FloatArray, step: FloatArray, edm: FloatArray
    ) -> tuple[FloatArray, BoolArray]:
        """Shorten steps until the value falls enough, from the length that is safe for a self-concordant function."""
        begin = nll.value(x)
        length = np.ones(x.shape[0])
        result, found = x.copy(), np.zeros(x.shape[0], dtype=bool)
        rows = np.arange(x.shape[0])
        for attempt in range(40):
            trial = self._within(x[rows], length[rows, None] * step[rows])
            with np.errstate(over="ignore", invalid="ignore"):
                value = nll.value(trial)
            slope = np.einsum("np,np->n", gradient[rows], trial - x[rows])
            good = value <= begin[rows] + 1e-4 * np.minimum(slope, 0.0) + 1e-13 * np.abs(begin[rows])
            result[rows[good]] = trial[good]
            found[rows[good]] = True
            rows, nll = rows[~good], nll.take(np.flatnonzero(~good))
            if rows.size == 0:
                break
            if attempt == 0:
                length = 1.0 / (1.0 + np.sqrt(2.0 * np.maximum(edm, 0.0)))
            else:
                length = 0.4 * length
        return result, found

    def _within(self, x: FloatArray, step: FloatArray) -> FloatArray:
        trial = x + step
        free = self.free
        trial[:, free] = np.clip(trial[:, free], self.low[free], self.high[free])
        return trial


def _keep(
    mask: BoolArray, rows: IntArray, x: FloatArray, nll: BatchNLL, gradient: FloatArray, hessian: FloatArray
) -> tuple[IntArray, FloatArray, BatchNLL, FloatArray, FloatArray]:
    if mask.all():
        return rows, x, nll, gradient, hessian
    return rows[mask], x[mask], nll.take(np.flatnonzero(mask)), gradient[mask], hessian[mask]


def _hold(block: FloatArray, held: BoolArray) -> None:
    """Make held parameters unit rows and columns of Hessians, in place."""
    rows, columns = np.nonzero(held)
    block[rows, columns, :] = 0.0
    block[rows, :, columns] = 0.0
    block[rows, columns, columns] = 1.0


def _bent(block: FloatArray, gradient: FloatArray, x: FloatArray) -> FloatArray:
    """Steps of toys whose Hessian does not bend up everywhere.

    Eigenvalues are taken by size, with a floor. Along a flat direction the nll is a straight line (a toy whose events are all
    alike): it is followed first, by steps of ten times the parameters' size, so that one that falls without end is soon known.
    """
    diagonal = np.abs(np.einsum("nkk->nk", block))
    scale = 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    values, vectors = np.linalg.eigh(block * scale[:, :, None] * scale[:, None, :])
    slope = np.einsum("nkm,nk->nm", vectors, scale * gradient)
    reach = 10.0 * (1.0 + np.abs(x / scale).max(axis=1))[:, None]
    flat = np.abs(values) < 1e-10
    sloping = flat & (np.abs(slope) > 1e-9 * (1.0 + np.abs(slope).max(axis=1))[:, None])
    along = slope / np.maximum(np.abs(values), 1e-3)
    along = np.where(sloping, np.sign(slope) * reach, np.where(sloping.any(axis=1)[:, None], 0.0, along))
    direction: FloatArray = scale * np.einsum("nkm,nm->nk", vectors, along)
    return direction
