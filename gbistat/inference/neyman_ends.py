r"""Where the p-value of the data crosses ``1 - cl``: the ends of a Neyman interval.

The p-value is known with a binomial error at the values where toys were thrown. As the number of standard deviations

.. math:: z = \Phi^{-1}(1 - p/2)

it is a straight line in the parameter wherever Wilks' theorem holds, and nearly one close to an end almost everywhere. So toys
are thrown at three values around the end, and a weighted line gives the end and its error. Where no line fits, or where the
outcomes are discrete (a count) so that the p-value jumps, the end is bisected for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtri

if TYPE_CHECKING:
    from gbistat.inference.neyman_points import Point, Thrower
    from gbistat.typing import FloatArray

__all__ = ["End", "find_end"]

ROUNDS = 60
FEWEST = 8
"""Toys on the rarer side of the data for a p-value to take part in a fit."""
REACH = 6.0
"""Distance of the outer two of the three values, in wanted errors of the end."""
DECISIVE = 128
"""Most toys at one value of a bisection, in units of the first toys there."""


@dataclass(frozen=True)
class End:
    """End of an interval.

    Parameters
    ----------
    value, error : float
        Where, and its Monte Carlo error (for a jump: half of the bracket).
    settled : bool
        Whether the error is as small as was asked for.
    """

    value: float
    error: float
    settled: bool


def find_end(
    thrower: Thrower, inside: float, outside: float, level: float, *, target: float, first: int, limit: int
) -> End:
    """Find the end of an interval between an accepted and a rejected value.

    Parameters
    ----------
    thrower : Thrower
        Source of toys, with both values thrown already.
    inside, outside : float
        An accepted and a rejected value.
    level : float
        Confidence level.
    target : float
        Wanted error of the end.
    first : int
        Toys at a new value.
    limit : int
        Toys altogether after which to give up.

    Returns
    -------
    End
        As good as the toys allow.
    """
    search = _Search(thrower, inside, outside, level, target, first, limit)
    centre = search.guess()
    best: End | None = None
    for _ in range(ROUNDS):
        found = None if thrower.points[inside].discrete else search.local(centre)
        if found is not None:
            root, error = found
            if abs(root - centre) <= REACH * target:
                best = End(root, error, settled=error <= target)
                if best.settled or thrower.n_toys >= limit:
                    return best
                search.more(centre, (error / target) ** 2)
                continue
            if search.inside_bracket(root):
                centre = root
                continue
        if search.half_width <= target or thrower.n_toys >= limit:
            return search.bracket(settled=search.half_width <= target)
        centre = search.bisect()
    return best or search.bracket(settled=False)


class _Search:
    """State of the search for one end."""

    def __init__(
        self, thrower: Thrower, inside: float, outside: float, level: float, target: float, first: int, limit: int
    ) -> None:
        self.thrower = thrower
        self.inside = inside
        self.outside = outside
        self.level = level
        self.target = target
        self.first = first
        self.limit = limit
        self.side = math.copysign(1.0, outside - inside)

    @property
    def half_width(self) -> float:
        """Half of the bracket."""
        return 0.5 * abs(self.outside - self.inside)

    @property
    def middle(self) -> float:
        """Middle of the bracket."""
        return 0.5 * (self.inside + self.outside)

    def bracket(self, *, settled: bool) -> End:
        """Middle of the bracket as the end."""
        return End(self.middle, self.half_width, settled)

    def inside_bracket(self, value: float) -> bool:
        """Whether a value lies in the bracket; a little outside is allowed, since decisions on the bracket are noisy."""
        return abs(value - self.middle) <= 1.5 * self.half_width

    def guess(self) -> float:
        """End by a line over the coarse grid: where to throw first."""
        same = [p for p in self.thrower.points.values() if (p.value - self.thrower.best) * self.side >= 0]
        rows = sorted(filter(None, map(_row, same)), key=lambda row: abs(row[0] - self.middle))[:4]
        found = _line_crossing(rows, self.level, self.side) if len(rows) > 2 else None
        return self.thrower.within(found[0]) if found is not None and self.inside_bracket(found[0]) else self.middle

    def design(self, centre: float) -> list[float]:
        """The three values around a centre; where toys are near one already, it is taken."""
        wanted = (self.thrower.within(centre + k * REACH * self.target) for k in (-1.0, 0.0, 1.0))
        return list(dict.fromkeys(self.known(value) for value in wanted))

    def known(self, value: float) -> float:
        """A value that has toys, if one is near."""
        near = min(self.thrower.points, key=lambda x: abs(x - value))
        return near if abs(near - value) <= self.target else value

    def local(self, centre: float) -> tuple[float, float] | None:
        """End and its error by a line close to a centre; None if there is none."""
        design = self.design(centre)
        fresh = {x: self.first - self.thrower.point(x).spent for x in design}
        self.thrower.throw({x: count for x, count in fresh.items() if count > 0})
        reach = 1.2 * REACH * self.target
        near = [p for p in self.thrower.points.values() if abs(p.value - centre) <= reach]
        rows = list(filter(None, map(_row, near)))
        found = _line_crossing(rows, self.level, self.side) if len(rows) > 2 else None
        room = min(centre - self.thrower.low, self.thrower.high - centre)
        if found is not None and room < REACH * self.target:
            # Next to the edge of the range z bends fast, and there are no values beyond to show it.
            return found[0], max(found[1], self.target)
        return found

    def more(self, centre: float, factor: float) -> None:
        """Throw more toys at the three values."""
        left = max(self.limit - self.thrower.n_toys, self.first) // 3 + 1
        self.thrower.throw(
            {
                x: min(int(self.thrower.points[x].spent * min(max(factor - 1.0, 0.2), 3.0)) + 1, left)
                for x in self.design(centre)
            }
        )

    def bisect(self) -> float:
        """Halve the bracket by a decision at its middle; one that many toys cannot make counts as accepted."""
        middle, thrower = self.middle, self.thrower
        most = DECISIVE * self.first
        while True:
            have = thrower.point(middle).spent
            thrower.throw({middle: min(have or self.first, most)})
            point = thrower.points[middle]
            decided = point.decided(self.level)
            if decided or point.spent >= most or thrower.n_toys >= self.limit:
                break
        if point.accepted(self.level) or not decided:
            self.inside = middle
        else:
            self.outside = middle
        return self.middle


def _row(point: Point) -> tuple[float, float, float] | None:
    """Value, z and the error of z; None where the p-value is too near 0 or 1 to be known."""
    p, n = point.worst()
    if min(p, 1.0 - p) * n < FEWEST:
        return None
    z = -float(ndtri(0.5 * p))
    density = math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
    return point.value, z, math.sqrt(p * (1.0 - p) / n) / (2.0 * density)


def _line_crossing(rows: list[tuple[float, float, float]], level: float, side: float) -> tuple[float, float] | None:
    x, z, s = (np.array(column) for column in zip(*rows, strict=True))
    weight: FloatArray = 1.0 / s**2
    centre = float(weight @ x / weight.sum())
    design = np.stack([np.ones_like(x), x - centre], axis=1)
    covariance = np.linalg.inv(design.T @ (design * weight[:, None]))
    height, slope = covariance @ (design.T @ (weight * z))
    chi2 = float(weight @ (z - design @ np.array([height, slope])) ** 2)
    freedom = len(rows) - 2
    if chi2 > freedom + 3.0 * math.sqrt(2.0 * freedom) or not slope * side > 0:
        return None
    shift = float((-ndtri(0.5 * (1.0 - level)) - height) / slope)
    direction = np.array([1.0, shift])
    variance = float(direction @ covariance @ direction) * max(1.0, chi2 / freedom)
    return centre + shift, math.sqrt(variance) / abs(float(slope))
