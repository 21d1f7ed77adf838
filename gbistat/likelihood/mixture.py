"""Numbers of a mixture on a fixed set of points: value, gradient and Hessian of its nll in closed form.

With yields n_j(theta) and densities f_ij(theta) at points i of weight w_i,

    nll = sum_j n_j - sum_i w_i ln lambda_i,      lambda_i = sum_j n_j f_ij,

the extended likelihood of R. Barlow, Nucl. Instrum. Meth. A 297 (1990) 496 (without ``sum_j n_j`` in the shape-only form).
With ``g = d ln f / d theta`` and ``h = d^2 ln f / d theta^2``,

    d lambda   = sum_j f_j dn_j + n_j f_j g_j
    d2 lambda  = sum_j f_j d2n_j + dn_j (f_j g_j)^T + (f_j g_j) dn_j^T + n_j f_j (g_j g_j^T + h_j)
    d nll      = sum_j dn_j - sum_i w_i d lambda_i / lambda_i
    d2 nll     = sum_j d2n_j + sum_i w_i [ d lambda_i d lambda_i^T / lambda_i^2 - d2 lambda_i / lambda_i ].

All logarithms of densities are shifted by one constant an event (the largest at the start values), so that neither a huge
nor a tiny ratio overflows; yields may be negative as long as every lambda_i stays positive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.data.events import Events
    from gbistat.likelihood.components import PreparedFactor, Yield
    from gbistat.likelihood.model import Model
    from gbistat.typing import BoolArray, FloatArray, IntArray

__all__ = ["Evaluation", "Mixture", "PreparedComponent"]

BLOCK = 8192
"""Points handled at a time: small enough for the cache, for temporaries that the allocator keeps, and for linear-algebra
libraries not to start threads, which cost more than they give on vectors of this size."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Value of a function and its derivatives at one point; shapes (), (p,), (p, p)."""

    value: float
    gradient: FloatArray
    hessian: FloatArray


@dataclass(frozen=True, eq=False)
class PreparedComponent:
    """A component on a fixed set of points.

    Parameters
    ----------
    rate : Yield
        Its yield.
    static : array of shape (n,)
        Sum of its log factors that depend on no parameter.
    factors : tuple of (PreparedFactor, indices)
        The others, with the positions of their parameters in the model's vector.
    """

    rate: Yield
    static: FloatArray
    factors: tuple[tuple[PreparedFactor, IntArray], ...]

    def log_density(self, theta: FloatArray) -> FloatArray:
        """Log density at the points, shape (n,)."""
        total = self.static
        for factor, index in self.factors:
            total = total + factor.log_prob(theta[index])
        return total

    def derivatives(self, theta: FloatArray) -> tuple[FloatArray, IntArray, FloatArray, FloatArray]:
        """Log density (n,), positions (k,) of its parameters, gradient (k, n), Hessian broadcasting to (k, k, n)."""
        total = self.static
        index = np.concatenate([positions for _, positions in self.factors])
        gradients = []
        hessian = np.zeros((index.size, index.size, 1))
        begin = 0
        for factor, positions in self.factors:
            log, gradient, second = factor.derivatives(theta[positions])
            total = total + log
            gradients.append(gradient)
            end = begin + positions.size
            if second.shape[2] > hessian.shape[2]:
                hessian = np.repeat(hessian, second.shape[2], axis=2)
            hessian[begin:end, begin:end] += second
            begin = end
        return total, index, np.concatenate(gradients), hessian


class Mixture:
    """Components on a fixed set of weighted points.

    Parameters
    ----------
    components : sequence of PreparedComponent
        The J components.
    names : sequence of str
        The p parameters in order.
    start : array of shape (p,)
        Where the constant shift of the logarithms is computed.
    weights : array of shape (n,), optional
        Weights of the points; 1 each by default.
    extended : bool, default True
        Whether the sum of yields is part of the nll.

    Raises
    ------
    ModelError
        If some point has density 0 under every component.

    Notes
    -----
    Scratch arrays are kept between calls: one object must not be used by two threads at once.
    """

    def __init__(
        self,
        components: Sequence[PreparedComponent],
        names: Sequence[str],
        start: FloatArray,
        *,
        weights: FloatArray | None = None,
        extended: bool = True,
    ) -> None:
        self.components = tuple(components)
        self.names = tuple(names)
        self.extended = extended
        self.weights = None if weights is None else np.ascontiguousarray(weights, dtype=np.float64)
        logs = np.stack([component.log_density(start) for component in self.components])
        self.shift: FloatArray = logs.max(axis=0)
        lost = ~np.isfinite(self.shift)
        if lost.any():
            raise ModelError(
                f"{int(lost.sum())} of {lost.size} events have density 0 or NaN under every component of the model "
                f"(first at row {int(np.flatnonzero(lost)[0])}); select events inside the window of the model"
            )
        self._density: FloatArray = np.exp(logs - self.shift)
        self._moving = [j for j, component in enumerate(self.components) if component.factors]
        self._constant = float(self.shift.sum() if self.weights is None else self.weights @ self.shift)
        self._scratch = np.empty((len(self.components) + 1, min(BLOCK, logs.shape[1])))
        self._position = {name: i for i, name in enumerate(self.names)}

    @classmethod
    def of(
        cls,
        model: Model,
        events: Events,
        start: FloatArray,
        *,
        weights: FloatArray | None = None,
        extended: bool = True,
    ) -> Mixture:
        """Evaluate a model's components at events."""
        position = {name: i for i, name in enumerate(model.names)}
        components = []
        for component in model.components:
            static = np.zeros(len(events))
            moving = []
            for factor in component.factors:
                prepared = factor.prepare(events)
                index = np.array([position[name] for name in factor.parameters], dtype=np.int64)
                if index.size:
                    moving.append((prepared, index))
                else:
                    static = static + prepared.log_prob(np.empty(0))
            components.append(PreparedComponent(component.rate, static, tuple(moving)))
        return cls(components, model.names, start, weights=weights, extended=extended)

    @property
    def size(self) -> int:
        """Number of points."""
        return int(self.shift.size)

    def yields(self, theta: FloatArray) -> FloatArray:
        """Expected events of each component, shape (J,)."""
        return np.array([self._yield(component.rate, theta)[0] for component in self.components])

    def intensity(self, theta: FloatArray) -> FloatArray:
        """``lambda_i = sum_j n_j f_ij`` at the points, shape (n,), in the units of the densities."""
        result: FloatArray = (self.yields(theta) @ self._densities(theta)) * np.exp(self.shift)
        return result

    def fractions(self, theta: FloatArray) -> FloatArray:
        """Share of each component in the intensity at the points, shape (J, n)."""
        parts = self.yields(theta)[:, None] * self._densities(theta)
        shares: FloatArray = parts / parts.sum(axis=0)
        return shares

    def reweighted(self, weights: FloatArray, *, log_scales: FloatArray | None = None) -> Mixture:
        """Same points with other weights, and each component's log density shifted by ``log_scales`` (J,)."""
        components = self.components
        if log_scales is not None:
            components = tuple(
                PreparedComponent(c.rate, c.static + shift, c.factors)
                for c, shift in zip(components, log_scales, strict=True)
            )
        clone = object.__new__(Mixture)
        clone.__dict__.update(self.__dict__)
        clone.components = components
        clone.weights = np.ascontiguousarray(weights, dtype=np.float64)
        if log_scales is not None:
            clone._density = self._density * np.exp(log_scales)[:, None]
        clone._constant = float(clone.weights @ clone.shift)
        clone._scratch = np.empty_like(self._scratch)
        return clone

    def value(self, theta: FloatArray) -> float:
        """The nll; infinite where some lambda_i is not positive."""
        yields = self.yields(theta)
        density = self._densities(theta)
        total = 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            for begin in range(0, self.size, BLOCK):
                part = slice(begin, begin + BLOCK)
                intensity = np.matmul(yields, density[:, part], out=self._row(0, part))
                lowest = intensity.min()
                if not lowest > 0.0:
                    return float("inf")
                total += self._sum_of_logs(intensity, lowest, part)
        return self._sum(yields, total)

    def evaluate(self, theta: FloatArray, *, with_value: bool = True, free: BoolArray | None = None) -> Evaluation:
        """Value, gradient and Hessian; an infinite value with NaN derivatives where some lambda_i is not positive.

        Parameters
        ----------
        theta : array of shape (p,)
            Where.
        with_value : bool, default True
            Without it the logarithms are saved and the value is NaN.
        free : array of bool, shape (p,), optional
            Parameters whose derivatives are wanted: those of the others may then be incomplete.
        """
        # A ratio above 1e154 overflows when it is squared: the Hessian is infinite then, and minimisers look at that.
        with np.errstate(over="ignore", invalid="ignore"):
            if not self._moving:
                return self._evaluate_static(theta, with_value, free)
            return self._evaluate_moving(theta, with_value)

    def _evaluate_static(self, theta: FloatArray, with_value: bool, free: BoolArray | None) -> Evaluation:
        """Densities that depend on nothing: a few dot products a block."""
        yields, jacobian, second = self._yield_derivatives(theta)
        wanted = slice(None)
        if free is not None:
            touched = np.flatnonzero((jacobian[:, free] != 0).any(axis=1))
            if touched.size and touched.size < len(self.components):
                wanted = slice(int(touched[0]), int(touched[-1]) + 1)
        jacobian, second = jacobian[wanted], second[wanted]
        count = jacobian.shape[0]
        single, double = np.zeros(count), np.zeros((count, count))
        total = 0.0
        for begin in range(0, self.size, BLOCK):
            part = slice(begin, begin + BLOCK)
            density = self._density[:, part]
            inverse = np.matmul(yields, density, out=self._row(0, part))
            lowest = inverse.min()
            if not lowest > 0.0:
                return self._forbidden()
            ratio = self._scratch[1 : 1 + count, : inverse.size]
            if with_value:
                total += self._sum_of_logs(inverse, lowest, part)
            np.reciprocal(inverse, out=inverse)
            np.multiply(density[wanted], inverse, out=ratio)
            if self.weights is None:
                single += ratio.sum(axis=1)
                double += _products(ratio, ratio)
            else:
                weighted = ratio * self.weights[part]
                single += weighted.sum(axis=1)
                double += _products(weighted, ratio)
        slope = (1.0 if self.extended else 0.0) - single
        value = self._sum(yields, total) if with_value else np.nan
        return Evaluation(value, slope @ jacobian, jacobian.T @ double @ jacobian + np.tensordot(slope, second, 1))

    def _evaluate_moving(self, theta: FloatArray, with_value: bool) -> Evaluation:
        """Densities that depend on parameters: one more row a component and parameter."""
        yields, jacobian, second = self._yield_derivatives(theta)
        p, count = len(self.names), len(self.components)
        density = self._density.copy()
        shape: dict[int, tuple[IntArray, FloatArray, FloatArray]] = {}
        for j in self._moving:
            log, index, gradient, hessian = self.components[j].derivatives(theta)
            density[j] = self._exp(log, hessian)
            shape[j] = (index, gradient, hessian)
        single, outer, curvature = np.zeros(count), np.zeros((p, p)), np.zeros((p, p))
        gradient_total = np.zeros(p)
        total = 0.0
        for begin in range(0, self.size, BLOCK):
            part = slice(begin, begin + BLOCK)
            share = density[:, part]
            intensity = yields @ share
            lowest = intensity.min()
            if not lowest > 0.0:
                return self._forbidden()
            if with_value:
                total += self._sum_of_logs(intensity, lowest, part)
            share = share / intensity
            weighted = share if self.weights is None else share * self.weights[part]
            rows = jacobian.T @ share
            for j, (index, gradient, hessian) in shape.items():
                # A parameter may stand in two factors of a component, so contributions add up one by one.
                spread = np.zeros((p, index.size))
                spread[index, np.arange(index.size)] = 1.0
                slope = gradient[:, part]
                rows += yields[j] * (spread @ (slope * share[j]))
                moment = spread @ (slope @ weighted[j])
                curvature -= np.outer(jacobian[j], moment) + np.outer(moment, jacobian[j])
                inner = _products(slope * weighted[j], slope)
                if hessian.shape[2] == 1:
                    inner += hessian[..., 0] * weighted[j].sum()
                else:
                    inner += hessian[..., part] @ weighted[j]
                curvature -= yields[j] * (spread @ inner @ spread.T)
            weighted_rows = rows if self.weights is None else rows * self.weights[part]
            single += weighted.sum(axis=1)
            gradient_total -= weighted_rows.sum(axis=1)
            outer += _products(weighted_rows, rows)
        extended = 1.0 if self.extended else 0.0
        curvature += outer + np.tensordot(extended - single, second, 1)
        gradient_total += extended * jacobian.sum(axis=0)
        value = self._sum(yields, total) if with_value else np.nan
        return Evaluation(value, gradient_total, curvature)

    def gradient(self, theta: FloatArray) -> FloatArray:
        """First derivatives, shape (p,)."""
        return self.evaluate(theta, with_value=False).gradient

    def _sum(self, yields: FloatArray, logs: float) -> float:
        """The nll; infinite where some lambda_i overflows, which must not look like a perfect fit."""
        if not np.isfinite(logs):
            return float("inf")
        return (float(yields.sum()) if self.extended else 0.0) - logs - self._constant

    def _sum_of_logs(self, intensity: FloatArray, lowest: float, part: slice) -> float:
        """``sum_i w_i ln lambda_i`` over one block."""
        if self.weights is not None:
            return float(self.weights[part] @ np.log(intensity))
        # Eight numbers are multiplied before each logarithm, which costs far more than a product.
        cut = intensity.size - intensity.size % 8
        if not (lowest > 1e-30 and intensity.max() < 1e30):
            cut = 0
        total = float(np.log(intensity[cut:]).sum())
        if cut:
            total += float(np.log(np.multiply.reduce(intensity[:cut].reshape(8, -1), axis=0)).sum())
        return total

    def _row(self, row: int, part: slice) -> FloatArray:
        return self._scratch[row, : min(BLOCK, self.size - part.start)]

    def _densities(self, theta: FloatArray) -> FloatArray:
        if not self._moving:
            return self._density
        density = self._density.copy()
        for j in self._moving:
            log = self.components[j].log_density(theta)
            vanishes = log.size > 0 and log.max() == -np.inf
            density[j] = self._exp(log, self.components[j].derivatives(theta)[3] if vanishes else None)
        return density

    def _exp(self, log: FloatArray, hessian: FloatArray | None) -> FloatArray:
        """Shifted density; NaN where the parameters give no density at all, which is not the same as one of 0."""
        if log.size and log.max() == -np.inf and hessian is not None and np.isnan(hessian).any():
            return np.full(log.size, np.nan)
        with np.errstate(over="ignore"):
            density: FloatArray = np.exp(log - self.shift)
        return density

    def _forbidden(self) -> Evaluation:
        p = len(self.names)
        return Evaluation(float("inf"), np.full(p, np.nan), np.full((p, p), np.nan))

    def _yield(self, rate: Yield, theta: FloatArray) -> tuple[float, float]:
        """Yield, and its exponential factor alone."""
        scale = 1.0
        if rate.log_scales:
            scale = float(np.exp(sum(s * theta[self._position[name]] for name, s in rate.log_scales.items())))
        linear = rate.constant + sum(c * theta[self._position[name]] for name, c in rate.linear.items())
        return float(linear) * scale, scale

    def _yield_derivatives(self, theta: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Yields (J,), Jacobian (J, p), second derivatives (J, p, p)."""
        p = len(self.names)
        yields = np.empty(len(self.components))
        jacobian = np.zeros((len(self.components), p))
        second = np.zeros((len(self.components), p, p))
        for j, component in enumerate(self.components):
            rate = component.rate
            yields[j], scale = self._yield(rate, theta)
            slope = np.zeros(p)
            for name, coefficient in rate.linear.items():
                slope[self._position[name]] += coefficient * scale
            jacobian[j] = slope
            if rate.log_scales:
                power = np.zeros(p)
                for name, s in rate.log_scales.items():
                    power[self._position[name]] += s
                jacobian[j] += yields[j] * power
                second[j] = np.outer(slope, power) + np.outer(power, slope) + yields[j] * np.outer(power, power)
        return yields, jacobian, second


def _products(left: FloatArray, right: FloatArray) -> FloatArray:
    """Return ``left @ right.T``: dot products are faster than a matrix product with so few rows."""
    count = left.shape[0]
    if count > 6:
        return left @ right.T
    result = np.empty((count, count))
    for j in range(count):
        for k in range(j, count):
            result[j, k] = result[k, j] = left[j] @ right[k]
    return result
