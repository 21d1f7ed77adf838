"""Grid of nodes over parameters of a signal, with the tensor product of cubic splines through values at them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy.interpolate import BSpline

from gbistat.errors import ModelError, ParameterError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gbistat.typing import FloatArray

__all__ = ["DEGREE", "ThetaGrid", "grid_of"]

DEGREE = 3
DEFAULT_PIECES = 22


@dataclass(frozen=True, eq=False)
class ThetaGrid:
    """Nodes at which a ratio is evaluated.

    Parameters
    ----------
    names : tuple of str
        Names of the d parameters.
    axes : tuple of d arrays
        Rising nodes of each, at least 4.

    Raises
    ------
    ModelError
        If names and axes do not match, or an axis does not rise, is not finite or is too short.
    """

    names: tuple[str, ...]
    axes: tuple[FloatArray, ...]

    def __post_init__(self) -> None:
        axes = tuple(np.array(axis, dtype=np.float64) for axis in self.axes)
        if len(axes) != len(self.names) or not axes:
            raise ModelError(f"{len(axes)} axes for the parameters {', '.join(self.names) or 'none'}; give one each")
        for name, axis in zip(self.names, axes, strict=True):
            if axis.ndim != 1 or axis.size <= DEGREE or not (np.isfinite(axis).all() and (np.diff(axis) > 0).all()):
                raise ModelError(
                    f"the nodes of {name} must be {DEGREE + 1} or more rising numbers, not {np.array2string(axis, threshold=6)}"
                )
        object.__setattr__(self, "axes", axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of nodes of each axis."""
        return tuple(axis.size for axis in self.axes)

    @property
    def nodes(self) -> FloatArray:
        """All nodes, shape (g, d); the last parameter runs fastest."""
        mesh = np.meshgrid(*self.axes, indexing="ij")
        return np.stack([axis.ravel() for axis in mesh], axis=1)

    def named(self, node: FloatArray) -> dict[str, float]:
        """One node by the names of its parameters."""
        return {name: float(value) for name, value in zip(self.names, node, strict=True)}

    def coefficients(self, values: FloatArray) -> FloatArray:
        """Coefficients of the splines through values of shape (*shape, n); of the same shape."""
        result: FloatArray = np.asarray(values, dtype=np.float64)
        for number, axis in enumerate(self._splines):
            moved = np.moveaxis(result, number, 0)
            product = axis.inverse @ moved.reshape(moved.shape[0], -1)
            result = np.ascontiguousarray(np.moveaxis(product.reshape(moved.shape), 0, number))
        return result

    @cached_property
    def _splines(self) -> tuple[_AxisSplines, ...]:
        return tuple(_AxisSplines.on(axis) for axis in self.axes)

    def covers(self, theta: FloatArray) -> bool:
        """Whether a point is on the grid."""
        return all(axis[0] <= value <= axis[-1] for axis, value in zip(self.axes, theta, strict=True))

    def weights(self, theta: FloatArray) -> tuple[tuple[slice, ...], FloatArray]:
        """Terms that do not vanish at a point, and their weights for the value, the gradient and the Hessian.

        Returns
        -------
        tuple of d slices, array of shape (1 + d + d * (d + 1) / 2, 4**d)
            Where these coefficients are; rows are the value, d first and the upper triangle of second derivatives.

        Raises
        ------
        ParameterError
            If the point is outside the grid.
        """
        places, local = [], []
        for name, axis, splines, value in zip(self.names, self.axes, self._splines, theta, strict=True):
            slack = 1e-9 * (axis[-1] - axis[0])
            if not axis[0] - slack <= value <= axis[-1] + slack:
                raise ParameterError(
                    f"{name} = {value:g} is outside {axis[0]:g} to {axis[-1]:g}, where its ratio was evaluated"
                )
            first, table = splines.at(min(max(float(value), axis[0]), axis[-1]))
            places.append(slice(first, first + DEGREE + 1))
            local.append(table)
        d = len(local)
        orders = [np.zeros(d, dtype=int), *np.eye(d, dtype=int)]
        for a in range(d):
            for b in range(a, d):
                order = np.zeros(d, dtype=int)
                order[a] += 1
                order[b] += 1
                orders.append(order)
        rows = []
        for order in orders:
            row = np.ones(1)
            for table, derivative in zip(local, order, strict=True):
                row = np.multiply.outer(row, table[derivative]).ravel()
            rows.append(row)
        return tuple(places), np.array(rows)


@dataclass(frozen=True, eq=False)
class _AxisSplines:
    """Cubic B-splines of one axis, not-a-knot at its ends.

    Parameters
    ----------
    inverse : array of shape (n, n)
        From values at the nodes to coefficients.
    breaks : array of shape (n - 3,)
        Where the polynomial pieces begin.
    pieces : array of shape (n - 3, 4, 4)
        Of each piece, the coefficients of the powers (first) of the four splines (second) that do not vanish.
    """

    inverse: FloatArray
    breaks: FloatArray
    pieces: FloatArray

    @classmethod
    def on(cls, axis: FloatArray) -> _AxisSplines:
        knots = np.r_[[axis[0]] * (DEGREE + 1), axis[2:-2], [axis[-1]] * (DEGREE + 1)]
        splines = BSpline(knots, np.eye(axis.size), DEGREE)
        breaks = np.r_[axis[0], axis[2:-2]]
        powers = np.stack([splines(breaks, nu) / math.factorial(nu) for nu in range(DEGREE + 1)], axis=1)
        pieces = np.stack([powers[k, :, k : k + DEGREE + 1] for k in range(breaks.size)])
        inverse: FloatArray = np.linalg.inv(np.asarray(splines(axis), dtype=np.float64))
        return cls(inverse, breaks, pieces)

    def at(self, value: float) -> tuple[int, FloatArray]:
        """Number of the first spline that does not vanish, and the four of them with two derivatives, shape (3, 4)."""
        first = max(int(np.searchsorted(self.breaks, value, side="right")) - 1, 0)
        u = value - float(self.breaks[first])
        powers = np.array([[1.0, u, u * u, u**3], [0.0, 1.0, 2.0 * u, 3.0 * u * u], [0.0, 0.0, 2.0, 6.0 * u]])
        return first, powers @ self.pieces[first]


def grid_of(ranges: Mapping[str, tuple[float, float]], steps: Mapping[str, float] | None = None) -> ThetaGrid:
    """Grid over the ranges of parameters.

    Parameters
    ----------
    ranges : mapping of str to (low, high)
        Ranges by parameter.
    steps : mapping of str to float, optional
        Largest distance of nodes by parameter; by default 1/22 of the range.

    Raises
    ------
    ModelError
        If a range is open or empty, or a step belongs to no parameter.
    """
    steps = steps or {}
    for name in steps:
        if name not in ranges:
            raise ModelError(
                f"a step of the grid is given for {name!r}, which no ratio depends on; {nearest(name, ranges)}"
            )
    axes = []
    for name, (low, high) in ranges.items():
        step = steps.get(name, (high - low) / DEFAULT_PIECES)
        if not (math.isfinite(low) and math.isfinite(high) and low < high and step > 0):
            raise ModelError(
                f"no grid for {name} from {low:g} to {high:g} in steps of {step:g}; both ends must be finite"
            )
        axes.append(np.linspace(low, high, max(math.ceil((high - low) / step - 1e-9) + 1, DEGREE + 1)))
    return ThetaGrid(tuple(ranges), tuple(axes))
