"""What a Neyman construction needs to know of a data set: observed statistics, profiled nuisances, a source of toys."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.optimize import brentq

from gbistat.errors import FitFailed, GbistatError, OptionError, nearest
from gbistat.fit.minimize import covariance, fit
from gbistat.inference.belts import gaussian_tmu_cdf
from gbistat.inference.profile import Profile, settled, threshold
from gbistat.inference.toy_results import TestSpec
from gbistat.inference.toys import toy_statistics
from gbistat.likelihood.nll import NLL

if TYPE_CHECKING:
    from collections.abc import Callable

    from gbistat.fit.result import FitResult
    from gbistat.inference.neyman_points import ToyStatistics
    from gbistat.inference.toys import ToyModel
    from gbistat.typing import FloatArray

__all__ = ["NeymanProblem", "ToyModelStatistics", "bounded_threshold", "problem_of_toys"]

Ordering = Literal["tmu_tilde", "tmu"]


@dataclass(frozen=True, eq=False)
class NeymanProblem:
    """Data, test statistic and source of toys of a Neyman construction.

    Parameters
    ----------
    poi : str
        Parameter of interest.
    index : int
        Its position in the vectors of true parameters.
    best : float
        Estimate within the allowed range, where the statistic is 0.
    scale : float
        Its error: the step that the search begins with.
    low, high : float
        Range in which values can be tested; may be infinite.
    observed : callable
        Test statistic of the data at a value.
    profiled : callable
        True parameters for toys at a value, shape (p,): nuisances fitted to the data there.
    statistics : ToyStatistics
        Source of toys.
    asymptotic : callable, optional
        Critical value at (value, level) in large samples, for comparison.
    method : str
        Name for results.
    physical : bool, default True
        Whether the ends of the range are those of the allowed values: an interval that reaches one ends there. If they only are
        where toys cannot be thrown any more, such an interval has no end.
    low_reason : str
        Why the range ends below.
    """

    poi: str
    index: int
    best: float
    scale: float
    low: float
    high: float
    observed: Callable[[float], float]
    profiled: Callable[[float], FloatArray]
    statistics: ToyStatistics
    asymptotic: Callable[[float, float], float] | None = None
    method: str = "neyman"
    physical: bool = True
    low_reason: str = "its range ends there"

    def __post_init__(self) -> None:
        if not (self.low <= self.best <= self.high and self.scale > 0 and math.isfinite(self.scale)):
            raise OptionError(
                f"estimate {self.best:g} of {self.poi} with error {self.scale:g} in a range from {self.low:g} to {self.high:g}"
            )

    @property
    def low_edge(self) -> float | None:
        """Lowest allowed value, if there is one."""
        return self.low if self.physical and math.isfinite(self.low) else None

    @property
    def high_edge(self) -> float | None:
        """Highest allowed value: an interval that reaches it does not close, as it may be a wall set for convenience."""
        return None


@dataclass(frozen=True, eq=False)
class ToyModelStatistics:
    """Toys of a ToyModel as a source for the construction; can be sent to other processes.

    Parameters
    ----------
    model : ToyModel
        What is drawn and fitted.
    statistic : {"tmu_tilde", "tmu"}
        Test statistic.
    fixed : tuple of (name, value)
        Parameters held in every fit.
    """

    model: ToyModel
    statistic: Ordering
    fixed: tuple[tuple[str, float], ...] = ()

    def __call__(
        self, theta_true: FloatArray, poi_values: FloatArray, n_toys: int, *, rng: np.random.Generator
    ) -> FloatArray:
        """Test statistic at each value on toys, shape (n_toys, n_values); NaN where a fit failed."""
        tests = [TestSpec(self.statistic, float(value), self.fixed) for value in poi_values]
        return toy_statistics(self.model, theta_true, tests, n_toys, rng=rng).statistics


def problem_of_toys(
    model: ToyModel,
    *,
    statistic: Ordering = "tmu_tilde",
    best: FitResult | None = None,
) -> NeymanProblem:
    """Neyman construction for the data of a ToyModel.

    Parameters
    ----------
    model : ToyModel
        Likelihood of the data and pools of toys.
    statistic : {"tmu_tilde", "tmu"}, default "tmu_tilde"
        ``tmu_tilde`` compares with the best fit at 0 or above: the construction of Feldman and Cousins for a signal that cannot be
        negative. ``tmu`` compares with the unbounded best fit, and the interval may reach below 0.
    best : FitResult, optional
        The free fit, if it is at hand.

    Returns
    -------
    NeymanProblem
        For :class:`gbistat.inference.neyman.NeymanScan`.

    Raises
    ------
    OptionError
        If the statistic is unknown.
    FitFailed
        If the free fit is not valid.
    """
    if statistic not in ("tmu_tilde", "tmu"):
        raise OptionError(f"ordering {statistic!r} is unknown; {nearest(statistic, ('tmu_tilde', 'tmu'))}")
    bounded = statistic == "tmu_tilde"
    nll = _at_least_zero(model.nll) if bounded else model.nll
    if best is not None and nll.parameters[nll.names.index(nll.poi)].low > best.value(nll.poi):
        best = None
    profile = Profile(nll, model.poi, best)
    low = profile.parameter.low if bounded else _lowest(model, profile)
    scale = _scale(nll, profile)

    def observed(value: float) -> float:
        return settled(profile, lambda: profile.q(value))

    return NeymanProblem(
        poi=model.poi,
        index=model.names.index(model.poi),
        best=profile.best_value,
        scale=scale,
        low=low,
        high=profile.parameter.high,
        observed=observed,
        profiled=lambda value: profile.conditional(value).values,
        statistics=ToyModelStatistics(model, statistic),
        asymptotic=(lambda value, level: bounded_threshold(value / scale, level))
        if bounded
        else (lambda value, level: threshold(level)),
        method="feldman-cousins" if bounded else "neyman",
        physical=bounded,
        low_reason="below, the expected density would be negative somewhere, and no toys can be thrown",
    )


def _at_least_zero(nll: NLL) -> NLL:
    """Same likelihood with its parameter of interest held at 0 or above: its ratio is Eq. (11) of arXiv:1007.1727.

    It has a minimum even where the other one has none, as for a window without an event.
    """
    parameters = [
        replace(p, low=max(p.low, 0.0), start=max(p.start, 0.0)) if p.name == nll.poi else p for p in nll.parameters
    ]
    return NLL(parameters, nll.mixtures, nll.constraints, poi=nll.poi, convex=nll.convex)


def _scale(nll: NLL, profile: Profile) -> float:
    """Error of the parameter of interest, also where its estimate is at the edge; one event where there is none."""
    index = nll.names.index(nll.poi)
    free = np.array([not p.fixed for p in nll.parameters])
    matrix, _ = covariance(nll.evaluate(profile.best.values, with_value=False).hessian, free)
    size = nll.event_size(nll.poi, profile.best.values)
    error = float(np.sqrt(max(matrix[index, index], 0.0)))
    return max(error, size) or profile.scale()


def _lowest(model: ToyModel, profile: Profile) -> float:
    """Lowest value at which toys can be thrown: every expected density is positive there."""

    def possible(value: float) -> bool:
        try:
            theta = fit(model.nll, fixed={model.poi: value}, start=profile.best.values).raise_if_invalid().values
        except GbistatError:
            return False
        position = {name: i for i, name in enumerate(model.names)}
        for reference in model.references:
            index = np.array([position[name] for name in reference.mixture.names])
            if not reference.weights(theta[index]).min() >= 0.0:
                return False
        return True

    wall = profile.parameter.low
    inside, step = profile.best_value, profile.scale()
    if not possible(inside):
        raise FitFailed(
            f"at the estimate {model.poi} = {inside:g} the expected density is negative somewhere, so that no toys can be thrown; "
            "use the Feldman-Cousins ordering, which keeps it at 0 or above"
        )
    while True:
        outside = max(inside - step, wall)
        if not possible(outside):
            break
        if outside == wall or step > 1e3 * profile.scale():
            return outside
        inside, step = outside, 1.6 * step
    for _ in range(20):
        middle = 0.5 * (inside + outside)
        inside, outside = (middle, outside) if possible(middle) else (inside, middle)
    return inside


def bounded_threshold(distance: float, level: float) -> float:
    """Critical value of the bounded statistic in large samples, Eq. (43) of arXiv:1007.1727.

    Parameters
    ----------
    distance : float
        Tested value in units of its error, 0 or more.
    level : float
        Confidence level.

    Examples
    --------
    >>> round(bounded_threshold(0.0, 0.95), 3)  # one-sided at the boundary
    2.706
    >>> round(bounded_threshold(5.0, 0.95), 3)  # Wilks far from it
    3.841
    """
    top = threshold(level)
    if gaussian_tmu_cdf(top, distance) <= level:
        return top
    return float(brentq(lambda t: gaussian_tmu_cdf(t, distance) - level, 0.0, top, xtol=1e-10))
