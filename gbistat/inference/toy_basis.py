"""What the likelihoods of many toys have in common: yields, and densities in cells that parameters may move."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.likelihood.components import Yield
    from gbistat.typing import FloatArray, IntArray

__all__ = ["Basis", "BatchYields", "Expansion"]


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
