"""A shape at fixed masses as a function of the model's parameters, with everything cached that does not move.

The shape's parameters are affine in those of the model, ``theta = offset + matrix @ values``, so an exponential family
stays one in `values`, and a polynomial stays linear.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

if TYPE_CHECKING:
    from gbistat.terms.protocols import ExponentialFamily, LinearFamily, Shape
    from gbistat.typing import FloatArray

__all__ = ["Table", "tabulate"]


class Table(Protocol):
    """u and its derivatives in the k model parameters at n fixed masses."""

    @property
    def fresh(self) -> bool:
        """Whether the arrays of derivatives are new ones, which the caller may change."""
        ...

    def log_shape(self, values: FloatArray) -> FloatArray:
        """u, shape (n,)."""
        ...

    def derivatives(self, values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """u (n,), gradient (k, n) and Hessian (k, k, n) or (k, k, 1)."""
        ...


def tabulate(shape: Shape, mass: FloatArray, offset: FloatArray, matrix: FloatArray) -> Table:
    """Table of a shape, with the cache that its family allows.

    Parameters
    ----------
    shape : Shape
        A shape with p parameters; an `ExponentialFamily` or a `LinearFamily` is known by its extra method.
    mass : array of shape (n,)
        Masses, all inside the support of the shape.
    offset : array of shape (p,)
        Parameters of the shape where all values are 0.
    matrix : array of shape (p, k)
        Their derivative in the values.
    """
    # isinstance() of a protocol takes longer than an integral; a look for the one extra method does not.
    if hasattr(shape, "statistics"):
        return _ExponentialTable(cast("ExponentialFamily", shape).statistics(mass), offset, matrix)
    if hasattr(shape, "basis"):
        return _LinearTable(cast("LinearFamily", shape).basis(mass), offset, matrix)
    return _GeneralTable(shape, mass, offset, matrix)


class _ExponentialTable:
    fresh = False

    def __init__(self, statistics: FloatArray, offset: FloatArray, matrix: FloatArray) -> None:
        self._constant = offset @ statistics
        self._slopes = np.ascontiguousarray(matrix.T @ statistics)

    def log_shape(self, values: FloatArray) -> FloatArray:
        u: FloatArray = self._constant + values @ self._slopes
        return u

    def derivatives(self, values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        k = values.size
        return self.log_shape(values), self._slopes, np.zeros((k, k, 1))


class _LinearTable:
    fresh = True

    def __init__(self, basis: FloatArray, offset: FloatArray, matrix: FloatArray) -> None:
        self._constant = basis[0] + offset @ basis[1:]
        self._slopes = np.ascontiguousarray(matrix.T @ basis[1:])

    def _log(self, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        f = self._constant + values @ self._slopes
        positive = f > 0
        if positive.all():
            return f, np.log(f)
        return np.where(positive, f, np.inf), np.where(positive, np.log(np.where(positive, f, 1.0)), -np.inf)

    def log_shape(self, values: FloatArray) -> FloatArray:
        return self._log(values)[1]

    def derivatives(self, values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        f, u = self._log(values)
        gradient = self._slopes / f
        return u, gradient, -(gradient[:, np.newaxis] * gradient[np.newaxis])


class _GeneralTable:
    fresh = True

    def __init__(self, shape: Shape, mass: FloatArray, offset: FloatArray, matrix: FloatArray) -> None:
        self._shape, self._mass, self._offset, self._matrix = shape, mass, offset, matrix
        self._free = np.array_equal(matrix, np.eye(*matrix.shape))

    def log_shape(self, values: FloatArray) -> FloatArray:
        return self._shape.log_shape(self._mass, self._offset + self._matrix @ values)

    def derivatives(self, values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        k = values.size
        if k == 0:
            return self.log_shape(values), np.zeros((0, self._mass.size)), np.zeros((0, 0, 1))
        u, gradient, hessian = self._shape.derivatives(self._mass, self._offset + self._matrix @ values)
        if self._free and gradient.shape[0] == k:
            return u, gradient, hessian
        half = np.tensordot(self._matrix, hessian, axes=(0, 0))
        return u, self._matrix.T @ gradient, np.tensordot(self._matrix, half, axes=(0, 1))
