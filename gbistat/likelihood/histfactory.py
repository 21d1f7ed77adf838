r"""Expected counts of a HistFactory model and the Poisson likelihood of its bins, with exact derivatives.

A *cell* is one sample in one bin of one channel, a *group* one sample in one channel. With the nominal count :math:`\nu_c`, additive
interpolations :math:`I_k` and factors :math:`f` that each depend on one parameter (CERN-OPEN-2012-016, Eq. 6),

.. math::

    y_c(\theta) = \Bigl[\nu_c + \sum_k I_{kc}(\alpha_k)\Bigr] \prod_{f \ni c} f(\theta_f), \qquad
    \lambda_b = \sum_{c \in b} y_c, \qquad -\ln L = \sum_b \lambda_b - n_b + n_b \ln (n_b / \lambda_b).

Functions take parameters of shape (t, p): the t rows are toys, or the one fit of the data.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import xlogy

from gbistat.errors import ModelError
from gbistat.likelihood.interpolation import asymmetry, factor, factor_coefficients
from gbistat.likelihood.mixture import Evaluation

if TYPE_CHECKING:
    from gbistat.typing import BoolArray, FloatArray, IntArray

__all__ = ["BinnedBatch", "BinnedTerm", "CountTables", "ExpectedCounts"]

TINY = 1e-150
"""Stands for a factor of exactly 0, so that derivatives are products with its inverse; the error is as small."""


@dataclass(frozen=True, eq=False)
class CountTables:
    """A HistFactory model as arrays.

    Parameters
    ----------
    names : tuple of str
        The p parameters.
    bins : tuple of str
        Names of the b bins, for messages.
    cell_bin, cell_group : int array of shape (c,)
        Bin of each of the c cells, in rising order and none left out, and group of each.
    nominal : array of shape (c,)
        Nominal counts.
    shape_parameters : int array of shape (k,)
        Parameters of the additive interpolations, each once.
    shape_high, shape_low : array of shape (k, c)
        Differences to the nominal counts at +1 and -1; 0 where a parameter does nothing.
    scale_parameters, scale_groups : int array of shape (e,)
        Parameter and group of each multiplicative interpolation.
    scale_high, scale_low : array of shape (e,)
        Factors at +1 and -1, above 0.
    linear_parameters, linear_cells : int array of shape (l,)
        Parameters that multiply cells as they are.
    """

    names: tuple[str, ...]
    bins: tuple[str, ...]
    cell_bin: IntArray
    cell_group: IntArray
    nominal: FloatArray
    shape_parameters: IntArray
    shape_high: FloatArray
    shape_low: FloatArray
    scale_parameters: IntArray
    scale_groups: IntArray
    scale_high: FloatArray
    scale_low: FloatArray
    linear_parameters: IntArray
    linear_cells: IntArray

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, np.ndarray):
                value.setflags(write=False)


class ExpectedCounts:
    """Expected counts of b bins as a function of p parameters.

    Parameters
    ----------
    tables : CountTables
        The model.
    """

    def __init__(self, tables: CountTables) -> None:
        self.tables = tables
        self.names = tables.names
        self.n_bins = len(tables.bins)
        p, cells = len(tables.names), tables.nominal.size
        self._starts = np.flatnonzero(np.r_[True, np.diff(tables.cell_bin) > 0])
        self._n_groups = int(tables.cell_group.max()) + 1
        self._symmetric = 0.5 * (tables.shape_high - tables.shape_low)
        self._asymmetric = (tables.shape_high + tables.shape_low) / 16.0
        order = np.argsort(tables.scale_groups, kind="stable")
        self._scale_parameters, self._scale_groups = tables.scale_parameters[order], tables.scale_groups[order]
        high, low = tables.scale_high[order], tables.scale_low[order]
        self._logs = np.log(high), np.log(low)
        self._coefficients = factor_coefficients(high, low)
        self._scaled, self._scale_starts = np.unique(self._scale_groups, return_index=True)
        self._scale_sum = np.zeros((order.size, p))
        self._scale_sum[np.arange(order.size), self._scale_parameters] = 1.0
        self._group_sum = np.zeros((cells, self._n_groups))
        self._group_sum[np.arange(cells), tables.cell_group] = 1.0
        # Linear factors of a cell stand side by side in a table; position p holds a 1 where there are fewer.
        order = np.argsort(tables.linear_cells, kind="stable")
        self._linear_cells, self._linear_parameters = tables.linear_cells[order], tables.linear_parameters[order]
        self._rank = np.arange(order.size) - np.searchsorted(self._linear_cells, self._linear_cells)
        self._table = np.full((cells, max(int(self._rank.max(initial=0)) + 1, 1)), p, dtype=np.int64)
        self._table[self._linear_cells, self._rank] = self._linear_parameters

    @cached_property
    def folded(self) -> tuple[str, ...]:
        """Parameters whose additive interpolation moves some cell to one side for either sign, more than with the sign.

        The nll then has minima on both sides of 0, and no single descent is sure to end in the lower one.
        """
        one_sided = (8.0 * np.abs(self._asymmetric) > np.abs(self._symmetric)).any(axis=1)
        return tuple(self.names[k] for k in self.tables.shape_parameters[one_sided])

    def cells(self, theta: FloatArray) -> FloatArray:
        """Expected counts of every cell, shape (t, c), at parameters of shape (t, p)."""
        return self._base(theta) * self._product(theta)[0]

    def counts(self, theta: FloatArray) -> FloatArray:
        """Expected counts of every bin, shape (t, b), at parameters of shape (t, p)."""
        return np.add.reduceat(self.cells(theta), self._starts, axis=1)

    def value(self, theta: FloatArray, observed: FloatArray) -> FloatArray:
        """The nll, shape (t,), for counts of shape (t, b) or (b,); infinite where an expected count is not positive."""
        expected = self.counts(theta)
        good = (expected > 0.0) | ((expected == 0.0) & (observed == 0.0))
        safe = np.where(good & (expected > 0.0), expected, 1.0)
        terms = np.where(good, expected - observed + xlogy(observed, observed) - xlogy(observed, safe), np.inf)
        return np.asarray(terms.sum(axis=1))

    def derivatives(self, theta: FloatArray, observed: FloatArray) -> tuple[FloatArray, FloatArray, BoolArray]:
        """Gradient (t, p) and Hessian (t, p, p) of the nll, and whether all expected counts are positive (t,)."""
        tables = self.tables
        base, (product, linear, slope, bend) = self._base(theta), self._product(theta)
        cells = base * product
        expected = np.add.reduceat(cells, self._starts, axis=1)
        allowed: BoolArray = ((expected > 0.0) | ((expected == 0.0) & (observed == 0.0))).all(axis=1)
        safe = np.where(expected > 0.0, expected, 1.0)
        weight = 1.0 - observed / safe
        rates = np.zeros((theta.shape[0], self._n_groups, theta.shape[1]))
        rates[:, self._scale_groups, self._scale_parameters] = slope
        rate = rates[:, tables.cell_group]
        rate[:, self._linear_cells, self._linear_parameters] = 1.0 / linear[:, self._linear_cells, self._rank]
        shapes, alpha = tables.shape_parameters, theta[:, tables.shape_parameters]
        _, first, second = asymmetry(alpha)
        moved = self._symmetric.T + first[:, None, :] * self._asymmetric.T
        jacobian = cells[:, :, None] * rate
        jacobian[:, :, shapes] += product[:, :, None] * moved
        jacobian = np.add.reduceat(jacobian, self._starts, axis=1)
        gradient = np.matmul(weight[:, None, :], jacobian)[:, 0]
        spread = weight[:, tables.cell_bin]
        hessian = np.matmul(rate.transpose(0, 2, 1), (spread * cells)[:, :, None] * rate)
        # A parameter acts at most once on a cell by a factor: its own second derivative is known without cancellation.
        own = ((spread * cells) @ self._group_sum)[:, self._scale_groups] * bend @ self._scale_sum
        diagonal = np.arange(theta.shape[1])
        hessian[:, diagonal, diagonal] = own
        if shapes.size:
            mixed = np.matmul(moved.transpose(0, 2, 1), (spread * product)[:, :, None] * rate)
            hessian[:, shapes, :] += mixed
            hessian[:, :, shapes] += mixed.transpose(0, 2, 1)
            hessian[:, shapes, shapes] += second * ((spread * product) @ self._asymmetric.T)
        hessian += np.matmul(jacobian.transpose(0, 2, 1), (observed / safe**2)[:, :, None] * jacobian)
        return gradient, hessian, allowed

    def _base(self, theta: FloatArray) -> FloatArray:
        """Nominal counts with additive interpolations, shape (t, c)."""
        if not self.tables.shape_parameters.size:
            return self.tables.nominal[None]
        alpha = theta[:, self.tables.shape_parameters]
        result: FloatArray = self.tables.nominal + alpha @ self._symmetric + asymmetry(alpha)[0] @ self._asymmetric
        return result

    def _product(self, theta: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Product of all factors (t, c), linear factors (t, c, m), f'/f and f''/f of multiplicative interpolations (t, e)."""
        padded = np.concatenate([theta, np.ones((theta.shape[0], 1))], axis=1)
        linear = padded[:, self._table]
        linear[linear == 0.0] = TINY
        product = linear.prod(axis=2)
        value, slope, bend = factor(theta[:, self._scale_parameters], *self._logs, self._coefficients)
        if self._scaled.size:
            scale = np.ones((theta.shape[0], self._n_groups))
            scale[:, self._scaled] = np.multiply.reduceat(value, self._scale_starts, axis=1)
            product *= scale[:, self.tables.cell_group]
        return product, linear, slope, bend


class BinnedTerm:
    """Poisson likelihood of counts in the bins of a HistFactory model.

    It counts among the constraints of an :class:`gbistat.likelihood.nll.NLL`: data that are a fixed number of values, with an
    expected value for Asimov sets and a distribution for toys.

    Parameters
    ----------
    expectation : ExpectedCounts
        Expected counts.
    observed : array of shape (b,)
        Observed counts, 0 or more, not necessarily whole.

    Raises
    ------
    ModelError
        If the counts do not fit the bins, or are negative or not finite.
    """

    def __init__(self, expectation: ExpectedCounts, observed: FloatArray) -> None:
        counts = np.array(observed, dtype=np.float64)
        if counts.shape != (expectation.n_bins,):
            raise ModelError(f"{counts.size} observed counts for {expectation.n_bins} bins")
        bad = np.flatnonzero(~(np.isfinite(counts) & (counts >= 0)))
        if bad.size:
            where = expectation.tables.bins[int(bad[0])]
            raise ModelError(f"{where}: the observed count {counts[bad[0]]:g} is negative or not a number")
        counts.setflags(write=False)
        self.expectation = expectation
        self.observed = counts

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the p parameters."""
        return self.expectation.names

    def yields(self, theta: FloatArray) -> FloatArray:
        """Expected counts of the bins, shape (b,)."""
        counts: FloatArray = self.expectation.counts(theta[None])[0]
        return counts

    def value(self, theta: FloatArray) -> float:
        """Contribution to the nll, 0 if every expected count is the observed one; infinite where one is not positive."""
        return float(self.expectation.value(theta[None], self.observed)[0])

    def evaluate(self, theta: FloatArray, *, with_value: bool = True) -> Evaluation:
        """Value, gradient (p,) and Hessian (p, p); NaN where an expected count is not positive."""
        gradient, hessian, allowed = self.expectation.derivatives(theta[None], self.observed)
        if not allowed[0]:
            return Evaluation(float("inf"), np.full_like(gradient[0], np.nan), np.full_like(hessian[0], np.nan))
        return Evaluation(self.value(theta) if with_value else np.nan, gradient[0], hessian[0])

    def gradient(self, theta: FloatArray) -> FloatArray:
        """First derivatives, shape (p,)."""
        return self.evaluate(theta, with_value=False).gradient

    def hessian(self, theta: FloatArray) -> FloatArray:
        """Second derivatives, shape (p, p)."""
        return self.evaluate(theta, with_value=False).hessian

    def expected(self, theta: FloatArray) -> BinnedTerm:
        """Same bins with the counts that `theta` predicts: the Asimov set."""
        return BinnedTerm(self.expectation, np.maximum(self.yields(theta), 0.0))

    def fluctuate(self, theta: FloatArray, *, rng: np.random.Generator) -> BinnedTerm:
        """Same bins with Poisson counts drawn at `theta`."""
        return BinnedTerm(self.expectation, self._drawn(theta, 1, rng)[0])

    def draw(self, theta: FloatArray, count: int, *, rng: np.random.Generator) -> BinnedBatch:
        """Counts of many toys at `theta`, of which more begin with the same ones.

        Raises
        ------
        ModelError
            If an expected count is negative.
        """
        return BinnedBatch(self, self._drawn(theta, count, rng))

    def _drawn(self, theta: FloatArray, count: int, rng: np.random.Generator) -> FloatArray:
        mean = self.yields(theta)
        bad = np.flatnonzero(~(mean >= 0))
        if bad.size:
            where = self.expectation.tables.bins[int(bad[0])]
            raise ModelError(f"{where}: {mean[bad[0]]:.4g} events are expected, so that toys cannot be drawn there")
        return rng.poisson(mean, (count, mean.size)).astype(np.float64)


@dataclass(frozen=True, eq=False)
class BinnedBatch:
    """The same bins with the counts of n toys, shape (n, b)."""

    term: BinnedTerm
    observed: FloatArray

    @property
    def convex(self) -> bool:
        """Whether the nll is self-concordant: products of parameters are not."""
        return False

    def single(self, row: int) -> BinnedTerm:
        """Likelihood of one toy."""
        return BinnedTerm(self.term.expectation, self.observed[row])

    def take(self, rows: IntArray) -> BinnedBatch:
        """Some of the toys."""
        return replace(self, observed=self.observed[rows])

    def value(self, theta: FloatArray) -> FloatArray:
        """The nll of each toy, shape (n,), at parameters of shape (n, p)."""
        return self.term.expectation.value(theta, self.observed)

    def derivatives(self, theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Gradient (n, p) and Hessian (n, p, p); NaN where an expected count is not positive."""
        gradient, hessian, allowed = self.term.expectation.derivatives(theta, self.observed)
        gradient[~allowed], hessian[~allowed] = np.nan, np.nan
        return gradient, hessian
