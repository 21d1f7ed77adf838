r"""Monotonic rational-quadratic splines in ``keras.ops`` (Durkan et al., arXiv:1906.04032).

On [-B, B] the map is piecewise a ratio of two quadratic polynomials between knots (x_k, y_k) with derivatives
:math:`\delta_k`; outside it is the identity, with derivative 1 at both ends. In bin k, with
:math:`w = x_{k+1} - x_k`, :math:`h = y_{k+1} - y_k`, :math:`s = h / w` and :math:`\xi = (x - x_k) / w` (their eq. 4-5),

.. math::

    y = y_k + \frac{h [ s \xi^2 + \delta_k \xi (1 - \xi) ]}{s + (\delta_{k+1} + \delta_k - 2 s) \xi (1 - \xi)}, \qquad
    \frac{dy}{dx} = \frac{s^2 [ \delta_{k+1} \xi^2 + 2 s \xi (1 - \xi) + \delta_k (1 - \xi)^2 ]}
                         {[ s + (\delta_{k+1} + \delta_k - 2 s) \xi (1 - \xi) ]^2},

and the inverse is the root of a quadratic equation (eq. 6-8). The bin is chosen by sums over one-hot vectors, not by
an index: every operation exists on each backend, in XLA and in ONNX.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from gbistat.training.environment import keras

__all__ = [
    "LEAST_SIZE",
    "LEAST_SLOPE",
    "SLOPE_OFFSET",
    "Bin",
    "forward_in",
    "inverse_in",
    "n_spline_parameters",
    "spline_forward",
    "spline_inverse",
]

LEAST_SIZE = 1e-3
"""Smallest width and height of a bin as a share of 2B."""
LEAST_SLOPE = 1e-3
"""Smallest derivative at a knot."""
SLOPE_OFFSET = math.log(math.expm1(1.0 - LEAST_SLOPE))
"""softplus(0 + SLOPE_OFFSET) + LEAST_SLOPE = 1."""


def n_spline_parameters(bins: int) -> int:
    """Numbers that describe one spline: widths, heights and inner derivatives."""
    return 3 * bins - 1


@dataclass(frozen=True, eq=False)
class Bin:
    """The bin that each value falls into; every field has the shape of the values.

    Parameters
    ----------
    x, y : tensor
        Lower knot.
    width, height : tensor
        Size.
    left, right : tensor
        Derivatives at the lower and at the upper knot.
    inside : tensor
        1 where the value is within the bound, 0 outside.
    """

    x: Any
    y: Any
    width: Any
    height: Any
    left: Any
    right: Any
    inside: Any


def spline_forward(x: Any, raw: Any, *, bins: int, bound: float) -> tuple[Any, Any]:
    """Spline and the log of its derivative.

    Parameters
    ----------
    x : tensor of shape (n, d)
        Values.
    raw : tensor of shape (n, d, 3 bins - 1)
        Any numbers: widths and heights before a softmax, derivatives before a softplus. All 0 is the identity.
    bins : int
        Number of bins.
    bound : float
        B.

    Returns
    -------
    (tensor, tensor)
        y and ln dy/dx, each of shape (n, d).
    """
    return forward_in(_find(x, raw, bins, bound, of_output=False), x, bound)


def forward_in(found: Bin, x: Any, bound: float) -> tuple[Any, Any]:
    """As `spline_forward`, in bins that are known."""
    ops = keras().ops
    xi = (ops.clip(x, -bound, bound) - found.x) / found.width
    slope = found.height / found.width
    rest = 1.0 - xi
    between = xi * rest
    denominator = slope + (found.right + found.left - 2.0 * slope) * between
    y = found.y + found.height * (slope * xi * xi + found.left * between) / denominator
    growth = found.right * xi * xi + 2.0 * slope * between + found.left * rest * rest
    log_slope = ops.log(growth) + 2.0 * ops.log(slope / denominator)
    return found.inside * y + (1.0 - found.inside) * x, found.inside * log_slope


def spline_inverse(y: Any, raw: Any, *, bins: int, bound: float) -> Any:
    """Value at which the spline is `y`; arguments as in `spline_forward`."""
    return inverse_in(_find(y, raw, bins, bound, of_output=True), y, bound)


def inverse_in(found: Bin, y: Any, bound: float) -> Any:
    """As `spline_inverse`, in bins that are known."""
    ops = keras().ops
    above = ops.clip(y, -bound, bound) - found.y
    slope = found.height / found.width
    bend = above * (found.right + found.left - 2.0 * slope)
    a = found.height * (slope - found.left) + bend
    b = found.height * found.left - bend
    c = -slope * above
    # The form of the root that loses no digits: b > 0 on the branch that is the inverse.
    root = ops.sqrt(ops.maximum(b * b - 4.0 * a * c, 0.0))
    x = found.x + found.width * (-2.0 * c / (b + root))
    return found.inside * x + (1.0 - found.inside) * y


def _find(values: Any, raw: Any, bins: int, bound: float, *, of_output: bool) -> Bin:
    ops = keras().ops
    x, width = _knots(raw[..., :bins], bins, bound)
    y, height = _knots(raw[..., bins : 2 * bins], bins, bound)
    inner = ops.softplus(raw[..., 2 * bins :] + SLOPE_OFFSET) + LEAST_SLOPE
    one = ops.ones_like(inner[..., :1])
    left, right = ops.concatenate([one, inner], axis=-1), ops.concatenate([inner, one], axis=-1)
    edges = (y if of_output else x)[..., 1:]
    beyond = ops.cast(ops.expand_dims(values, -1) >= edges, values.dtype)
    chosen = ops.concatenate([one, beyond], axis=-1) - ops.concatenate([beyond, ops.zeros_like(one)], axis=-1)
    inside = ops.cast(ops.abs(values) < bound, values.dtype)
    tables = {"x": x, "y": y, "width": width, "height": height, "left": left, "right": right}
    return Bin(**{name: ops.sum(chosen * table, axis=-1) for name, table in tables.items()}, inside=inside)


def _knots(raw: Any, bins: int, bound: float) -> tuple[Any, Any]:
    """Lower knots and sizes of the bins, each of shape (..., bins)."""
    ops = keras().ops
    size = 2.0 * bound * (LEAST_SIZE + (1.0 - LEAST_SIZE * bins) * ops.softmax(raw, axis=-1))
    return ops.matmul(size, _before(bins)) - bound, size


def _before(bins: int) -> Any:
    """Matrix that sums all bins before each: a cumulative sum that every backend compiles well."""
    return np.triu(np.ones((bins, bins), dtype=np.float32), 1)
