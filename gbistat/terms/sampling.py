"""Masses drawn from a shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gbistat.terms.quadrature import gauss_legendre

if TYPE_CHECKING:
    from gbistat.terms.protocols import Shape
    from gbistat.typing import FloatArray

__all__ = ["draw"]

CELLS = 64  # a panel
NODES = 4  # a cell


def draw(
    shape: Shape, theta: FloatArray, low: FloatArray, high: FloatArray, n: int, *, rng: np.random.Generator
) -> FloatArray:
    """Draw n masses from exp(u) on panels, by inversion of its cumulative distribution.

    Each panel is cut into cells. The probability of a cell is integrated; inside a cell the density is taken as the
    exponential that has its slope, which is inverted in closed form. No draw is rejected.

    Parameters
    ----------
    shape : Shape
        A shape with p parameters.
    theta : array of shape (p,)
        Their values.
    low, high : array of shape (P,)
        Panels on which exp(u) is smooth, as `Quadrature.resolve` finds them; masses are below ``high``.
    n : int
        How many.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    array of shape (n,)
        In no order.
    """
    cuts = np.linspace(low, high, CELLS + 1, axis=1)
    start, stop = cuts[:, :-1].ravel(), cuts[:, 1:].ravel()
    nodes, weights = gauss_legendre(start, stop, NODES)
    u = shape.log_shape(nodes.ravel(), theta).reshape(nodes.shape)
    cumulative = np.cumsum(np.sum(np.exp(u - np.max(u)) * weights, axis=1))
    cell = np.searchsorted(cumulative, rng.random(n) * cumulative[-1], side="right")
    width = stop[cell] - start[cell]
    # Empty cells, where u is -inf, are never drawn: only the slopes of drawn cells are computed.
    slope = (u[cell, 2] - u[cell, 1]) / (nodes[cell, 2] - nodes[cell, 1]) * width
    mass = start[cell] + _invert_exponential(rng.random(n), slope) * width
    below: FloatArray = np.minimum(mass, np.nextafter(stop[cell], -np.inf))
    return below


def _invert_exponential(uniform: FloatArray, slope: FloatArray) -> FloatArray:
    """Inverse cumulative distribution of exp(slope * x) on 0 <= x < 1."""
    fall = np.maximum(np.abs(slope), 1e-9)
    from_the_higher_end = np.log1p(uniform * np.expm1(-fall)) / -fall
    return np.where(slope > 0, 1.0 - from_the_higher_end, from_the_higher_end)
