r"""What splines in place of a network do to a fit, measured with the network itself.

With :math:`g` the gradient of the difference of both nlls at the minimum and V the covariance, the minimum moves by :math:`-V g`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbistat.likelihood.parameters import index_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.data.events import Events
    from gbistat.fit.plane import PlaneSearch
    from gbistat.fit.result import FitResult
    from gbistat.likelihood.nll import NLL
    from gbistat.likelihood.surface import RatioSurface
    from gbistat.typing import FloatArray, Json

__all__ = ["Interpolation", "interpolation_error"]


@dataclass(frozen=True, eq=False)
class Interpolation:
    """What splines in place of the network do to the fit.

    Parameters
    ----------
    steps : mapping of str to float
        Distance of the nodes around the best fit, by mass.
    shifts : mapping of str to float
        By how much a parameter would move with the network itself, in units of its error.
    delta_q0 : float
        Change of ``2 [nll(0) - nll]`` of the best fit with the network itself.
    evaluations : int
        Values of the ratio that the boxes took.
    """

    steps: dict[str, float]
    shifts: dict[str, float]
    delta_q0: float
    evaluations: int

    @property
    def worst(self) -> float:
        """Largest of the shifts, without sign."""
        return max((abs(x) for x in self.shifts.values()), default=0.0)

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "steps": dict(self.steps),
            "shifts_in_errors": dict(self.shifts),
            "delta_q0": self.delta_q0,
            "evaluations": self.evaluations,
        }


def interpolation_error(
    nll: NLL,
    surfaces: Sequence[RatioSurface],
    events: Events,
    best: FitResult,
    search: PlaneSearch,
    steps: Sequence[float],
) -> tuple[dict[str, float], float]:
    """How far each parameter would move with the network itself in place of the splines, in units of its error.

    Parameters
    ----------
    nll : NLL
        Likelihood of one data term.
    surfaces : sequence of RatioSurface
        Splines of its events: the ratio's, or those of two decay modes.
    events : Events
        These.
    best : FitResult
        Its minimum.
    search : PlaneSearch
        Which parameters are masses, and the share of decay modes.
    steps : sequence of float
        Distances of the nodes; slopes are taken over an eighth to both sides.

    Returns
    -------
    dict of str to float, float
        By parameter; and the change of ``2 [nll(0) - nll]``.
    """
    mixture = nll.mixtures[0]
    prepared = [surface.prepare(events) for surface in surfaces]
    theta = best.values
    alpha = 0.0 if len(surfaces) == 1 or search.fraction is None else best.value(search.fraction)
    poi = index_of(nll.poi, nll.parameters)
    moved = theta.copy()
    moved[poi] += 1.0
    signal = int(np.argmax(np.abs(mixture.yields(moved) - mixture.yields(theta))))
    weights = np.ones(mixture.size) if mixture.weights is None else mixture.weights

    def growth(point: FloatArray) -> FloatArray:
        exact, splines = [], []
        for surface, known, share in zip(surfaces, prepared, (1.0 - alpha, alpha), strict=False):
            own = surface.term.log_ratio(events, **surface.grid.named(point)) + surface.log_kappa_at(point)
            scale = math.log(share) if share > 0 else -math.inf
            exact.append(own + scale)
            splines.append(known.log_prob(point) + scale)
        result: FloatArray = np.expm1(np.logaddexp.reduce(exact) - np.logaddexp.reduce(splines))
        return result

    def difference(parameters: FloatArray, factor: FloatArray) -> float:
        return -float(weights @ np.log1p(mixture.fractions(parameters)[signal] * factor))

    masses = [index_of(name, nll.parameters) for name in search.names]
    here = growth(theta[masses])
    gradient = np.zeros_like(theta)
    for j in map(int, np.flatnonzero(best.errors > 0)):
        ends = []
        for sign in (-1.0, 1.0):
            parameter = nll.parameters[j]
            other = theta.copy()
            size = steps[masses.index(j)] / 8.0 if j in masses else 0.1 * best.errors[j]
            other[j] = min(max(other[j] + sign * size, parameter.low), parameter.high)
            ends.append((other[j], difference(other, growth(other[masses]) if j in masses else here)))
        (a, low), (b, high) = ends
        gradient[j] = (high - low) / (b - a)
    shift = -best.covariance @ gradient
    shifts = {name: float(shift[j] / best.errors[j]) for j, name in enumerate(best.names) if best.errors[j] > 0}
    return shifts, -2.0 * difference(theta, here)
