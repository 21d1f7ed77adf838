"""Profile likelihood: scans and intervals."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from scipy.optimize import brentq
from scipy.special import gammaincinv

from gbistat.errors import FitFailed, OptionError
from gbistat.fit.minimize import fit
from gbistat.inference.results import IntervalResult, ScanResult
from gbistat.likelihood.parameters import index_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gbistat.fit.result import FitResult
    from gbistat.inference.results import Segment
    from gbistat.likelihood.nll import NLL
    from gbistat.typing import FloatArray

__all__ = ["Profile", "profile_interval", "profile_scan", "settled", "threshold"]

T = TypeVar("T")
MAX_RESTARTS = 5
BETTER = 1e-4
"""How far (in nll) below the best fit a conditional fit may fall before it is taken as a better minimum."""


def threshold(cl: float, *, dof: int = 1) -> float:
    """Quantile of chi2 that q is compared with (Wilks).

    Parameters
    ----------
    cl : float
        Confidence level, between 0 and 1.
    dof : int, default 1
        Number of parameters of interest.

    Raises
    ------
    OptionError
        If `cl` is not between 0 and 1.

    Examples
    --------
    >>> [round(threshold(cl), 3) for cl in (0.6827, 0.90, 0.95)]
    [1.0, 2.706, 3.841]
    """
    if not 0.0 < cl < 1.0:
        raise OptionError(f"confidence level {cl:g} must lie between 0 and 1, for example 0.95")
    return float(2.0 * gammaincinv(0.5 * dof, cl))


class Profile:
    """Profile likelihood of one parameter, with warm starts.

    Parameters
    ----------
    nll : NLL
        Likelihood.
    poi : str
        Parameter of interest.
    best : FitResult, optional
        Its free fit; made if not given.

    Raises
    ------
    ParameterError
        If there is no such parameter.
    FitFailed
        If the free fit is not valid.
    """

    def __init__(self, nll: NLL, poi: str, best: FitResult | None = None) -> None:
        self.nll = nll
        self.poi = poi
        self.parameter = nll.parameters[index_of(poi, nll.parameters)]
        self.best = (best if best is not None else fit(nll)).raise_if_invalid()
        self.restarts = 0
        self._points: dict[float, FitResult] = {self.best_value: self.best}

    @property
    def best_value(self) -> float:
        """Estimate of the parameter."""
        return self.best.value(self.poi)

    def conditional(self, value: float) -> FitResult:
        """Fit with the parameter held at a value, started from the nearest fit made so far.

        Raises
        ------
        FitFailed
            If that fit is not valid.
        """
        known = self._points.get(value)
        if known is not None:
            return known
        nearest = min(self._points, key=lambda x: abs(x - value))
        begin = self._points[nearest].values
        result = fit(self.nll, fixed={self.poi: value}, start=begin)
        other = self.nll.unfolded(begin)
        if other is not None:
            again = fit(self.nll, fixed={self.poi: value}, start=other)
            if again.valid and not (result.valid and result.nll <= again.nll):
                result = again
        if not result.valid:
            result = fit(self.nll, fixed={self.poi: value})
        if not result.valid:
            raise FitFailed(f"the fit with {self.poi} held at {value:g} is not valid: {result.message}")
        self._points[value] = result
        return result

    def q(self, value: float) -> float:
        """``2 [nll(value, nu^^) - nll(poi^, nu^)]``; infinite where the likelihood has no support."""
        try:
            result = self.conditional(value)
        except FitFailed:
            if not math.isfinite(self.nll.value(self._moved(value))):
                return math.inf
            raise
        if self.best.nll - result.nll > BETTER:
            self._restart(result)
        return max(0.0, 2.0 * (result.nll - self.best.nll))

    def _restart(self, lower: FitResult) -> None:
        """Take a lower minimum that turned up as the best fit: q at points asked for earlier was too small."""
        if self.restarts >= MAX_RESTARTS:
            raise FitFailed(
                f"the profile of {self.poi} keeps finding lower minima than the best fit; "
                "start the fit nearer to the global minimum"
            )
        self.restarts += 1
        self.best = fit(self.nll, start=lower.values).raise_if_invalid()
        # Conditional fits made so far belong to the other minimum.
        self._points = {self.best_value: self.best}

    def _moved(self, value: float) -> FloatArray:
        theta = self.best.values.copy()
        theta[index_of(self.poi, self.nll.parameters)] = value
        return theta

    def hints(self) -> tuple[float, ...]:
        """Values near which q may have other minima: none, if nothing is known."""
        return ()

    def scale(self) -> float:
        """Step to begin with: the Hessian error, or something of the parameter's size where there is none."""
        error = self.best.error(self.poi)
        return error if 0 < error < math.inf else 0.1 * (abs(self.best_value) + 1.0)

    def crossing(
        self, level: float, direction: int, inner: float | None = None, largest: float = math.inf
    ) -> float | None:
        """End of the interval on one side: where q first exceeds a level; ``None`` if it never does in the range.

        Steps outwards grow, up to `largest`: the search sees no excursion above the level that is narrower than a step.
        """
        wall = self.parameter.high if direction > 0 else self.parameter.low
        inside = self.best_value if inner is None else inner
        step = min(self.scale() * math.sqrt(level), largest)
        outside = inside
        for _ in range(60 if math.isinf(largest) else 300):
            outside = inside + direction * step
            if (outside - wall) * direction >= 0:
                outside = wall
            if self.q(outside) > level:
                break
            if outside == wall:
                return None
            inside, step = outside, min(1.6 * step, largest)
        else:
            return None
        return self.root(level, inside, outside)

    def root(self, level: float, inside: float, outside: float) -> float:
        """Point between an inner and an outer one where q is a level."""
        while math.isinf(self.q(outside)):
            # Beyond this point some density is negative: q rises without bound before it.
            middle = 0.5 * (inside + outside)
            if middle in (inside, outside):
                return inside
            if self.q(middle) <= level:
                inside = middle
            else:
                outside = middle
        if self.q(outside) <= level:
            return outside
        if self.q(inside) > level:
            return inside  # a lower minimum turned up on the way out; the caller begins again
        tolerance = 1e-7 * self.scale()
        # The root of q is nearly a straight line where q is nearly a parabola: few steps.
        root = math.sqrt(level)
        return float(brentq(lambda x: math.sqrt(self.q(x)) - root, inside, outside, xtol=tolerance, rtol=1e-12))


def settled(profile: Profile, work: Callable[[], T]) -> T:
    """Do the work again until no lower minimum turns up in it."""
    while True:
        before = profile.restarts
        result = work()
        if profile.restarts == before:
            return result


def profile_scan(
    nll: NLL, poi: str, values: Sequence[float] | FloatArray, *, best: FitResult | None = None
) -> ScanResult:
    """Profile likelihood on a grid.

    Parameters
    ----------
    nll : NLL
        Likelihood.
    poi : str
        Parameter to scan.
    values : array of shape (n,)
        Grid.
    best : FitResult, optional
        The free fit, if it is at hand.

    Returns
    -------
    ScanResult
        With q on the grid.

    Raises
    ------
    ParameterError
        If the parameter is unknown or a value outside its range.
    FitFailed
        If a fit is not valid.
    """
    grid = np.asarray(values, dtype=np.float64)
    profile = Profile(nll, poi, best)
    q = settled(profile, lambda: [profile.q(profile.parameter.check(float(value))) for value in grid])
    return ScanResult(poi, grid, np.array(q), profile.best)


def profile_interval(
    nll: NLL,
    poi: str,
    *,
    cl: float = 0.95,
    best: FitResult | None = None,
    profile: Profile | None = None,
    search: tuple[float, float] | None = None,
    n_search: int = 60,
) -> IntervalResult:
    """Profile-likelihood interval ``{ x : 2 [nll(x, nu^^) - nll(x^, nu^)] <= chi2_1 quantile }``, ends by root finding.

    Parameters
    ----------
    nll : NLL
        Likelihood.
    poi : str
        Parameter.
    cl : float, default 0.95
        Confidence level.
    best : FitResult, optional
        The free fit, if it is at hand.
    profile : Profile, optional
        Profile of the same likelihood and parameter, whose fits are used again: for a second level.
    search : (low, high), optional
        Where to look for further segments. By default the parameter's range if that is finite and the nll is not
        convex in the parameter; a yield has one segment.
    n_search : int, default 60
        Points of that search.

    Returns
    -------
    IntervalResult
        Segments in order; an end that does not close within the parameter's range is ``None`` and a note says so.

    Raises
    ------
    OptionError
        If `cl` is not between 0 and 1.
    ParameterError
        If the parameter is unknown.
    FitFailed
        If the free fit or a conditional one is not valid.

    Notes
    -----
    Wilks' theorem is wrong near a boundary of the parameter, for a parameter that the data do not identify (a mass at
    ``mu = 0``), and for a handful of events; intervals from toys are the way out there.
    """
    level = threshold(cl)

    profile = profile or Profile(nll, poi, best)
    area = search
    if area is None and poi not in nll.convex:
        area = (profile.parameter.low, profile.parameter.high)

    def work() -> list[Segment]:
        if area is None or not all(map(math.isfinite, area)):
            return [(profile.crossing(level, -1), profile.crossing(level, +1))]
        spacing = (area[1] - area[0]) / n_search
        core = (profile.crossing(level, -1, largest=spacing), profile.crossing(level, +1, largest=spacing))
        inside = [value for value in profile.hints() if area[0] <= value <= area[1]]
        return _segments(profile, level, core, np.union1d(np.linspace(area[0], area[1], n_search), inside))

    segments = settled(profile, work)
    notes = []
    for end, side, wall in (
        (segments[0][0], "lower", profile.parameter.low),
        (segments[-1][1], "upper", profile.parameter.high),
    ):
        if end is None:
            reason = f"the range of {poi} ends at {wall:g}" if math.isfinite(wall) else "the likelihood is flat there"
            notes.append(f"the {cl:.4g} interval of {poi} has no {side} end: {reason}")
    return IntervalResult(poi, cl, tuple(segments), profile.best_value, level, "profile", tuple(notes))


def _segments(profile: Profile, level: float, core: Segment, grid: FloatArray) -> list[Segment]:
    """Segments of ``q <= level``: the one around the best fit, and what a search outside of it finds."""
    found: list[Segment] = [core]
    for side in (-1, +1):
        end = core[0] if side < 0 else core[1]
        if end is None:
            continue
        points = [float(x) for x in grid[::side] if (x - end) * side > 0]
        if not points:
            continue
        # Just outside of the core: the gap to the next segment may be narrower than the grid.
        previous = end + side * min(1e-4 * profile.scale(), 0.5 * abs(points[0] - end))
        begin: float | None = None
        for point in points:
            q = profile.q(point)
            if q <= level and begin is None:
                begin = profile.root(level, point, previous)
            elif q > level and begin is not None:
                other = profile.root(level, previous, point)
                found.append((min(begin, other), max(begin, other)))
                begin = None
            previous = point
        if begin is not None:
            other_end = profile.crossing(level, side, inner=previous)
            found.append((other_end, begin) if side < 0 else (begin, other_end))
    return sorted(found, key=lambda s: -math.inf if s[0] is None else s[0])
