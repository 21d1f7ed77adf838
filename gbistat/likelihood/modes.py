r"""A signal of two decay modes: a mixture of two normalised ratios with one fraction.

.. math:: r(x; \theta, \alpha) = (1 - \alpha)\, r_2(x; \theta) + \alpha\, r_3(x; \theta),

arXiv:2405.08889. Each mode is normalised by itself, :math:`E_b[r_k] = 1`, so that the mixture is a density for every alpha from 0 to 1, and
alpha is the share of the second mode among the *selected* signal events: in the window, after all cuts. With efficiencies
:math:`\epsilon_2, \epsilon_3` the share among those produced is
:math:`(\alpha / \epsilon_3) / [(1 - \alpha) / \epsilon_2 + \alpha / \epsilon_3]`.

At fixed theta the intensity is linear in :math:`(\mu (1 - \alpha), \mu \alpha)`, so that the nll is convex in these two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import ModelError

if TYPE_CHECKING:
    from gbistat.data.events import Events
    from gbistat.likelihood.components import Factor, PreparedFactor
    from gbistat.typing import FloatArray

__all__ = ["DecayModes", "PreparedModes"]


@dataclass(frozen=True, eq=False)
class DecayModes:
    """Log factor ``ln[(1 - alpha) exp(f_2) + alpha exp(f_3)]`` of two log factors with the same parameters.

    Parameters
    ----------
    first, second : Factor
        Log factors f_2 and f_3, such as :class:`~gbistat.likelihood.surface.RatioSurface`.
    fraction : str
        Name of alpha.

    Raises
    ------
    ModelError
        If the two have different parameters, or alpha is one of them.
    """

    first: Factor
    second: Factor
    fraction: str = "alpha"

    def __post_init__(self) -> None:
        one, two = self.first.parameters, self.second.parameters
        if one != two:
            raise ModelError(
                f"the two decay modes depend on different parameters: {', '.join(one) or 'none'} and {', '.join(two) or 'none'}; "
                "both need the same, in the same order"
            )
        if self.fraction in one:
            raise ModelError(
                f"the fraction {self.fraction!r} of the decay modes is also a parameter of both; rename it"
            )

    @property
    def parameters(self) -> tuple[str, ...]:
        """Parameters of the modes, then the fraction."""
        return (*self.first.parameters, self.fraction)

    def prepare(self, events: Events) -> PreparedFactor:
        """Both modes on these events."""
        return PreparedModes(self.first.prepare(events), self.second.prepare(events))


@dataclass(frozen=True, eq=False)
class PreparedModes:
    """Two modes on fixed events; the fraction is the last parameter."""

    first: PreparedFactor
    second: PreparedFactor

    def log_prob(self, values: FloatArray) -> FloatArray:
        """Log ratio of the mixture, shape (n,); NaN for a fraction outside 0 to 1."""
        alpha = float(values[-1])
        if alpha in (0.0, 1.0):
            return (self.second if alpha else self.first).log_prob(values[:-1])
        return _mixture(self.first.log_prob(values[:-1]), self.second.log_prob(values[:-1]), alpha)

    def derivatives(self, values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        r"""Log ratio (n,), gradient (d + 1, n), Hessian (d + 1, d + 1, n).

        With :math:`a_k = r_k / r`, shares :math:`p_2 = (1 - \alpha) a_2`, :math:`p_3 = \alpha a_3` and gradients g_k, Hessians h_k of ln r_k:
        :math:`g = \sum p_k g_k`, :math:`u = \partial_\alpha \ln r = a_3 - a_2`, and second derivatives
        :math:`\sum p_k (h_k + g_k g_k^T) - g g^T`, :math:`a_3 g_3 - a_2 g_2 - u g`, :math:`-u^2`.
        """
        alpha = float(values[-1])
        (l2, g2, h2), (l3, g3, h3) = self.first.derivatives(values[:-1]), self.second.derivatives(values[:-1])
        log = _mixture(l2, l3, alpha)
        with np.errstate(over="ignore", invalid="ignore"):
            a2, a3 = np.exp(l2 - log), np.exp(l3 - log)
            p2, p3 = (1.0 - alpha) * a2, alpha * a3
            slope, change = p2 * g2 + p3 * g3, a3 - a2
            d = slope.shape[0]
            gradient = np.concatenate([slope, change[None]])
            hessian = np.empty((d + 1, d + 1, log.size))
            for share, g, h in ((p2, g2, h2), (p3, g3, h3)):
                part = share * (h + g[:, None] * g[None])
                if share is p2:
                    hessian[:d, :d] = part
                else:
                    hessian[:d, :d] += part
            hessian[:d, :d] -= slope[:, None] * slope[None]
            hessian[:d, d] = hessian[d, :d] = a3 * g3 - a2 * g2 - change * slope
            hessian[d, d] = -(change**2)
        return log, gradient, hessian


def _mixture(first: FloatArray, second: FloatArray, alpha: float) -> FloatArray:
    """``ln[(1 - alpha) exp(first) + alpha exp(second)]``."""
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.log(np.array([1.0 - alpha, alpha]))
    result: FloatArray = np.logaddexp(shares[0] + first, shares[1] + second)
    return result
