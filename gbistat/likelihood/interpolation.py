r"""How HistFactory moves between the templates at -1, 0 and +1 standard deviations, with derivatives.

Additive (``histosys``, pyhf's code 4p): with :math:`\delta_\pm` the differences to the nominal template,
:math:`S = (\delta_+ + \delta_-)/2` and :math:`A = (\delta_+ - \delta_-)/16`,

.. math:: I(\alpha) = \alpha S + a(\alpha) A, \quad a = 15\alpha^2 - 10\alpha^4 + 3\alpha^6 \ (|\alpha| < 1),
          \quad a = 8 |\alpha| \ (|\alpha| \ge 1),

so that all bins of a template share one function of the parameter. Multiplicative (``normsys``, code 4): exponential beyond one standard
deviation, and the polynomial of degree 6 in between that joins it with two continuous derivatives (K. Cranmer et al.,
CERN-OPEN-2012-016, section 4.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gbistat.typing import FloatArray

__all__ = ["asymmetry", "factor", "factor_coefficients"]

_SMOOTH = (
    np.array(
        [
            [15.0, -15.0, -7.0, -7.0, 1.0, -1.0],
            [24.0, 24.0, -9.0, 9.0, 1.0, 1.0],
            [-10.0, 10.0, 10.0, 10.0, -2.0, 2.0],
            [-24.0, -24.0, 14.0, -14.0, -2.0, -2.0],
            [3.0, -3.0, -3.0, -3.0, 1.0, -1.0],
            [8.0, 8.0, -5.0, 5.0, 1.0, 1.0],
        ]
    )
    / 16.0
)
"""Coefficients of the polynomial from its value - 1, slope and curvature at +1 and -1."""


def asymmetry(alpha: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return ``a(alpha)`` of the additive interpolation with its first and second derivative, shapes of `alpha`.

    Examples
    --------
    >>> [x.tolist() for x in asymmetry(np.array([1.0, -2.0]))]
    [[8.0, 16.0], [8.0, -8.0], [0.0, 0.0]]
    """
    square = alpha * alpha
    inside = square < 1.0
    value = np.where(inside, square * (15.0 + square * (-10.0 + 3.0 * square)), 8.0 * np.abs(alpha))
    first = np.where(inside, alpha * (30.0 + square * (-40.0 + 18.0 * square)), 8.0 * np.sign(alpha))
    second = np.where(inside, 30.0 + square * (-120.0 + 90.0 * square), 0.0)
    return value, first, second


def factor_coefficients(high: FloatArray, low: FloatArray) -> FloatArray:
    """Polynomial coefficients of the multiplicative interpolation, shape (6, e), for factors of shape (e,), all above 0."""
    up, down = np.log(high), np.log(low)
    joins = np.stack([high - 1.0, low - 1.0, up * high, -down * low, up**2 * high, down**2 * low])
    result: FloatArray = _SMOOTH @ joins
    return result


def factor(
    alpha: FloatArray, log_high: FloatArray, log_low: FloatArray, coefficients: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Multiplicative interpolation: factors, and their first and second derivatives *divided by the factors*.

    Parameters
    ----------
    alpha : array of shape (..., e)
        Parameters in standard deviations.
    log_high, log_low : array of shape (e,)
        Logarithms of the factors at +1 and -1.
    coefficients : array of shape (6, e)
        From `factor_coefficients`.

    Returns
    -------
    tuple of 3 arrays of shape (..., e)
        f, f'/f, f''/f.
    """
    slope = np.where(alpha >= 0.0, log_high, -log_low)
    value = np.exp(alpha * slope)
    first, second = slope + np.zeros_like(alpha), slope**2 + np.zeros_like(alpha)
    inside = np.abs(alpha) < 1.0
    if inside.any():
        x = np.where(inside, alpha, 0.0)
        c1, c2, c3, c4, c5, c6 = coefficients
        f = 1.0 + x * (c1 + x * (c2 + x * (c3 + x * (c4 + x * (c5 + x * c6)))))
        d = c1 + x * (2 * c2 + x * (3 * c3 + x * (4 * c4 + x * (5 * c5 + x * 6 * c6))))
        b = 2 * c2 + x * (6 * c3 + x * (12 * c4 + x * (20 * c5 + x * 30 * c6)))
        value = np.where(inside, f, value)
        first, second = np.where(inside, d / f, first), np.where(inside, b / f, second)
    return value, first, second
