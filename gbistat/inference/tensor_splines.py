"""Smooth functions of a few parameters: tensor products of B-splines with a penalty on roughness (P-splines).

P. H. C. Eilers and B. D. Marx, Statist. Sci. 11 (1996) 89: many knots, and second differences of neighbouring coefficients
as the penalty, so that its strength and not the number of knots decides how much a function may bend.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from scipy.interpolate import BSpline

from gbistat.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.typing import FloatArray, IntArray

__all__ = ["SplineRows", "TensorSplines"]

DEGREE = 3


@dataclass(frozen=True, eq=False)
class TensorSplines:
    """Basis on a box.

    Parameters
    ----------
    low, high : array of shape (d,)
        Corners of the box.
    pieces : tuple of d int
        Polynomial pieces along each axis; the number of basis functions there is three more.

    Raises
    ------
    OptionError
        If the box is empty, shapes differ, or an axis has no piece.
    """

    low: FloatArray
    high: FloatArray
    pieces: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.low.shape != self.high.shape or len(self.pieces) != self.low.size or self.low.ndim != 1:
            raise OptionError(f"a box of {self.low.shape} to {self.high.shape} with pieces {self.pieces}")
        if not (np.isfinite(self.low) & np.isfinite(self.high) & (self.low < self.high)).all():
            raise OptionError(f"empty box: {self.low.tolist()} to {self.high.tolist()}")
        if min(self.pieces) < 1:
            raise OptionError(f"pieces {self.pieces}: every axis needs at least one")

    @property
    def dimension(self) -> int:
        """Number d of axes."""
        return len(self.pieces)

    @property
    def size(self) -> int:
        """Number of basis functions."""
        return int(np.prod([count + DEGREE for count in self.pieces]))

    def scaled(self, points: FloatArray) -> FloatArray:
        """Points (n, d) as fractions of the box.

        Raises
        ------
        OptionError
            If points have another dimension or lie outside of the box.
        """
        x = np.atleast_2d(np.asarray(points, dtype=np.float64))
        if x.ndim != 2 or x.shape[1] != self.dimension:
            raise OptionError(f"points of shape {x.shape} in {self.dimension} dimensions")
        fraction: FloatArray = (x - self.low) / (self.high - self.low)
        outside = ~((fraction >= -1e-9) & (fraction <= 1.0 + 1e-9)).all(axis=1)
        if outside.any():
            first = int(np.flatnonzero(outside)[0])
            raise OptionError(
                f"{int(outside.sum())} of {x.shape[0]} points lie outside of the region of the fit (first: "
                f"{x[first].tolist()}; region {self.low.tolist()} to {self.high.tolist()}); throw toys there first"
            )
        return np.clip(fraction, 0.0, 1.0)

    def matrix(self, points: FloatArray) -> sparse.csr_array:
        """Values of the basis functions at points (n, d), shape (n, size)."""
        columns, values = self._local(points)
        rows = np.arange(0, values.size + 1, values.shape[1])
        return sparse.csr_array((values.ravel(), columns.ravel(), rows), shape=(columns.shape[0], self.size))

    def rows(self, points: FloatArray) -> SplineRows:
        """Values of the basis functions at points (n, d), ready for many weighted fits."""
        columns, values = self._local(points)
        order = np.argsort(columns[:, 0], kind="stable")
        _, begins = np.unique(columns[order, 0], return_index=True)
        ends = [*begins[1:].tolist(), order.size]
        groups = tuple((slice(a, b), columns[order[a]]) for a, b in zip(begins.tolist(), ends, strict=True))
        return SplineRows(self.matrix(points), order, np.ascontiguousarray(values[order]), groups)

    def _local(self, points: FloatArray) -> tuple[IntArray, FloatArray]:
        """Numbers (n, k) and values (n, k) of the basis functions that do not vanish at points."""
        fraction = self.scaled(points)
        n = fraction.shape[0]
        columns = np.zeros((n, 1), dtype=np.int64)
        values = np.ones((n, 1))
        for axis, count in enumerate(self.pieces):
            knots = np.arange(-DEGREE, count + DEGREE + 1) / count
            one = BSpline.design_matrix(fraction[:, axis], knots, DEGREE, extrapolate=False)
            index = one.indices.reshape(n, DEGREE + 1)
            weight = one.data.reshape(n, DEGREE + 1)
            columns = (columns[:, :, None] * (count + DEGREE) + index[:, None, :]).reshape(n, -1)
            values = (values[:, :, None] * weight[:, None, :]).reshape(n, -1)
        return columns, values

    def roughness(self) -> FloatArray:
        """Matrix P of the penalty ``c^T P c``: squared second differences along every axis, shape (size, size)."""
        total = np.zeros((self.size, self.size))
        sizes = [count + DEGREE for count in self.pieces]
        for axis, size in enumerate(sizes):
            second = np.diff(np.eye(size), n=2, axis=0)
            total += _kronecker([second.T @ second if k == axis else np.eye(m) for k, m in enumerate(sizes)])
        return total


@dataclass(frozen=True, eq=False)
class SplineRows:
    """Basis functions at n points, which are also kept sorted by the piece they lie in.

    Parameters
    ----------
    matrix : sparse array of shape (n, size)
        Values.
    order : int array of shape (n,)
        Points piece by piece.
    values : array of shape (n, k)
        Values of the k functions that do not vanish, in that order.
    groups : tuple of (slice, int array of shape (k,))
        Places of the points of each piece in that order, and the functions.
    """

    matrix: sparse.csr_array
    order: IntArray
    values: FloatArray
    groups: tuple[tuple[slice, IntArray], ...]

    def gram(self, weights: FloatArray) -> FloatArray:
        """``B^T diag(weights) B``, shape (size, size): dense products piece by piece, since few functions overlap."""
        sorted_weights = weights[self.order]
        size = self.matrix.shape[1]
        total = np.zeros((size, size))
        for places, functions in self.groups:
            block = self.values[places]
            total[np.ix_(functions, functions)] += (block * sorted_weights[places, None]).T @ block
        return total


def _kronecker(parts: Sequence[FloatArray]) -> FloatArray:
    result: FloatArray = np.ones((1, 1))
    for part in parts:
        result = np.asarray(np.kron(result, part), dtype=np.float64)
    return result
