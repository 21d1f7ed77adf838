r"""Toy CLs and CLs+b, and upper limits with expected bands, all with their Monte Carlo error.

With ``q = qmu_tilde`` (Eq. (16) of arXiv:1007.1727) and toys thrown at the nuisances that the observed data prefer,

.. math:: CL_{s+b} = P(q \ge q_{obs} | \mu), \quad CL_b = P(q \ge q_{obs} | 0), \quad CL_s = CL_{s+b} / CL_b

(A. L. Read, J. Phys. G 28 (2002) 2693; LHC test statistic: ATL-PHYS-PUB-2011-11). One set of background-only toys serves all
tested values. Expected values are quantiles over these toys of what each of them would have given as data.

Fractions of toys have binomial errors; a failed toy could have fallen on either side, so that its share is added to the
error. Errors of limits are from the jackknife over ten groups of toys, each left out in turn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.special import ndtr, ndtri

from gbistat.errors import FitFailed, OptionError, ScanRangeError
from gbistat.inference.asymptotics import SIGMAS
from gbistat.inference.limits import AsymptoticCLs
from gbistat.inference.toy_limit_results import ToyBudget, ToyCLsPoint, ToyLimit, exceeding, failure_notes, fraction
from gbistat.inference.toy_results import TestSpec, concatenate_toys
from gbistat.inference.toys import data_statistics, toy_statistics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.inference.toy_results import ToyResults
    from gbistat.inference.toys import ToyModel
    from gbistat.typing import BoolArray, FloatArray

__all__ = ["ToyCLs", "toy_upper_limit"]

GROUPS = 10
"""Groups of the jackknife."""


@dataclass(eq=False)
class _Scan:
    """Test statistics of toys on a grid: q of the data (g,), of signal toys (g lists) and background toys (n, g)."""

    values: FloatArray
    observed: FloatArray
    signal: list[FloatArray] = field(default_factory=list)
    background: FloatArray = field(default_factory=lambda: np.empty((0, 0)))


class ToyCLs:
    """CLs of one model from toys, sharing the background-only toys among all tested values.

    Parameters
    ----------
    model : ToyModel
        With the likelihood of the observed data.
    rng : numpy.random.Generator
        Source of randomness.
    rule : {"cls", "clsb"}
        Whether limits are on CLs or on CLs+b.
    """

    def __init__(self, model: ToyModel, *, rng: np.random.Generator, rule: Literal["cls", "clsb"] = "cls") -> None:
        if rule not in ("cls", "clsb"):
            raise OptionError(f"rule {rule!r} is unknown; it is 'cls' or 'clsb'")
        self.model = model
        self.rule = rule
        self._seeds = rng.spawn(2)
        self._background_seed = self._seeds[0].bit_generator.seed_seq
        self._null = model.profiled(0.0)
        self._signal: dict[float, list[ToyResults]] = {}
        self._background: ToyResults | None = None
        self._observed: dict[float, float] = {}
        self.n_toys = 0
        self.n_failed = 0

    def scan(self, values: Sequence[float], n_toys: int) -> tuple[ToyCLsPoint, ...]:
        """CLs at several values, with at least `n_toys` toys at each and at 0.

        Raises
        ------
        FitFailed
            If a fit to the data fails.
        """
        scan = self._scan(values, n_toys)
        return tuple(self._point(scan, g) for g in range(scan.values.size))

    def limit(self, *, cl: float = 0.95, budget: ToyBudget | None = None) -> ToyLimit:
        """Observed limit and expected band.

        Parameters
        ----------
        cl : float, default 0.95
            Confidence level.
        budget : ToyBudget, optional
            Toys at every tested value are doubled until the relative error of the observed and the median expected
            limit is below `precision`, or there are `max_toys` at each.

        Raises
        ------
        OptionError
            If `cl` is not between 0 and 1.
        ScanRangeError
            If CLs does not fall to ``1 - cl`` within the range of the parameter.
        """
        if not 0.0 < cl < 1.0:
            raise OptionError(f"confidence level {cl:g} must lie between 0 and 1, for example 0.95")
        plan = budget or ToyBudget()
        asymptotic, values = self._grid(cl)
        n = plan.min_toys
        scan = self._scan(values, n)
        if (self._curves(scan, None)[:, 0] < 1.0 - cl).any():
            # At 0 itself qmu_tilde is 0 for all data, so that nothing is ever excluded.
            values = [0.01 * values[0], 0.3 * values[0], *values]
            scan = self._scan(values, n)
        for _ in range(12):
            if (self._curves(scan, None)[:, -1] < 1.0 - cl).all():
                break
            if self._resolution(scan) < 1.0 - cl:
                values = self._extended(values)
            elif n < plan.max_toys:
                n = min(4 * n, plan.max_toys)
            else:
                raise ScanRangeError(
                    f"{n} toys are too few for a limit of {self.model.poi}: so few background-only toys are like the data that "
                    f"CLs below {self._resolution(scan):.2g} cannot be told from 0; raise max_toys"
                )
            scan = self._scan(values, n)
        else:
            raise ScanRangeError(
                f"the limit of {self.model.poi} was not reached at {values[-1]:g}; the data do not bound it"
            )
        while True:
            limits = self._solve(scan, cl, None)
            groups = np.array([self._solve(scan, cl, group) for group in range(GROUPS)])
            errors = np.sqrt((GROUPS - 1) / GROUPS * ((groups - groups.mean(axis=0)) ** 2).sum(axis=0))
            if n >= plan.max_toys or (errors[[0, 3]] <= plan.precision * limits[[0, 3]]).all():
                break
            n = min(2 * n, plan.max_toys)
            scan = self._scan(values, n)
        result = ToyLimit(
            poi=self.model.poi,
            cl=cl,
            observed=float(limits[0]),
            error=float(errors[0]),
            expected=_five(limits[1:]),
            expected_errors=_five(errors[1:]),
            points=tuple(self._point(scan, g) for g in range(scan.values.size)),
            method=f"{self.rule}-toys",
            n_toys=self.n_toys,
            n_failed=self.n_failed,
            asymptotic=asymptotic if self.rule == "cls" else None,
        )
        notes = failure_notes(self.n_failed, self.n_toys)
        if result.observed == 0.0:
            notes.append(
                f"{self.rule} excludes every value of {self.model.poi}: the data have too few events for any of them"
            )
        if result.agrees is False:
            notes.append(
                f"the asymptotic limit {asymptotic:.4g} does not agree with the toys': use {result.observed:.4g} +- "
                f"{result.error:.2g}"
            )
        return replace(result, notes=tuple(notes))

    def _grid(self, cl: float) -> tuple[float | None, list[float]]:
        """Observed asymptotic limit, and values around it and the asymptotic band."""
        wall = self.model.nll.parameters[self.model.poi_index].high
        try:
            found = AsymptoticCLs(self.model.nll, self.model.references, poi=self.model.poi).limit(cl=cl)
        except (FitFailed, ScanRangeError):
            # Asymptotics fail for a handful of events; the band then is a guess that the scan extends.
            estimates = self._background_toys((), 500).estimate
            spread = float(np.std(estimates[np.isfinite(estimates)])) if np.isfinite(estimates).sum() > 1 else 0.0
            # Three events are the limit of a search that expects and sees nothing.
            least = self.model.nll.event_size(self.model.poi, self._null)
            high = min(6.0 * max(spread, least), wall)
            return None, [float(x) for x in np.linspace(high / 12, high, 12)]
        high = min(1.25 * max(found.expected[4], found.observed), wall)
        low = min(0.6 * min(found.expected[0], found.observed), 0.5 * high)
        return found.observed, [float(x) for x in np.linspace(low, high, 12)]

    def _extended(self, values: list[float]) -> list[float]:
        wall = self.model.nll.parameters[self.model.poi_index].high
        if values[-1] >= wall:
            raise ScanRangeError(
                f"the limit of {self.model.poi} was not reached at {values[-1]:g}, the end of its range; raise it"
            )
        step = values[-1] - values[0]
        return [*values, *(min(values[-1] + step * (k + 1) / 6, wall * (1 - 1e-12 * (5 - k))) for k in range(6))]

    def _background_toys(self, tests: Sequence[TestSpec], n: int) -> ToyResults:
        """Background-only toys: the same ones whatever is asked of them."""
        return toy_statistics(self.model, self._null, tests, n, rng=self._fresh())

    def _fresh(self) -> np.random.Generator:
        """Generator of the background-only toys, from its beginning."""
        seed = self._background_seed
        if not isinstance(seed, np.random.SeedSequence):
            raise OptionError("toys need a generator that was seeded by a SeedSequence, as default_rng does")
        again = np.random.SeedSequence(entropy=seed.entropy, spawn_key=seed.spawn_key, pool_size=seed.pool_size)
        return np.random.Generator(type(self._seeds[0].bit_generator)(again))

    def _scan(self, values: Sequence[float], n: int) -> _Scan:
        """Throw what is missing."""
        grid = [float(value) for value in values]
        tests = [TestSpec("qmu_tilde", value) for value in grid]
        new = [test for test in tests if test.value not in self._observed]
        if new:
            found = data_statistics(self.model, new)
            self._observed |= {test.value: float(q) for test, q in zip(new, found, strict=True)}
        for test in tests:
            parts = self._signal.setdefault(test.value, [])
            missing = n - sum(map(len, parts))
            if missing > 0:
                truth = self.model.profiled(test.value)
                parts.append(toy_statistics(self.model, truth, [test], missing, rng=self._seeds[1].spawn(1)[0]))
        if self._background is None or len(self._background) < n or set(self._background.tests) != set(tests):
            self._background = self._background_toys(tests, n)
        background = self._background
        signal = [concatenate_toys(self._signal[value]) for value in grid]
        everything = [background, *signal]
        self.n_toys, self.n_failed = sum(map(len, everything)), sum(toys.n_failed for toys in everything)
        return _Scan(
            np.array(grid),
            np.array([self._observed[value] for value in grid]),
            [toys.statistics[:, 0] for toys in signal],
            np.stack([background.statistic(test) for test in tests], axis=1),
        )

    def _point(self, scan: _Scan, g: int) -> ToyCLsPoint:
        q = float(scan.observed[g])
        above, n = exceeding(scan.signal[g], q)
        p, p_error = fraction(above, max(n, 1), scan.signal[g].size - n)
        column = scan.background[:, g]
        above_b, m = exceeding(column, q)
        b, b_error = fraction(above_b, max(m, 1), column.size - m)
        ratio = p / b if b > 0 else 1.0
        relative = math.hypot(p_error / p, b_error / b) if p > 0 and b > 0 else math.inf
        error = ratio * relative if math.isfinite(relative) else (p_error / b if b > 0 else 1.0)
        expected = _expected(scan.signal[g], column, rule=self.rule)
        return ToyCLsPoint(
            float(scan.values[g]), q, p, b, ratio, p_error, b_error, error, expected,
            scan.signal[g].size, column.size,
        )  # fmt: skip

    def _curves(self, scan: _Scan, group: int | None) -> FloatArray:
        """Observed and expected CLs, shape (6, g), without one group of toys."""
        rows = []
        background = scan.background[_outside(scan.background.shape[0], group)]
        for g, signal in enumerate(scan.signal):
            q = float(scan.observed[g])
            some = signal[_outside(signal.size, group)]
            above, n = exceeding(some, q)
            above_b, m = exceeding(background[:, g], q)
            ratio = (above + 0.5) / (n + 1.0)
            if self.rule == "cls":
                ratio /= (above_b + 0.5) / (m + 1.0)
            rows.append((ratio, *_expected(some, background[:, g], rule=self.rule)))
        return np.array(rows).T

    def _resolution(self, scan: _Scan) -> float:
        """Smallest observed CLs that this number of toys can give."""
        above, n = exceeding(scan.background[:, -1], float(scan.observed[-1]))
        background = (above + 0.5) / (n + 1.0) if self.rule == "cls" else 1.0
        return 0.5 / (scan.signal[-1].size + 1.0) / background

    def _solve(self, scan: _Scan, cl: float, group: int | None) -> FloatArray:
        """Observed and expected limits, shape (6,)."""
        curves = self._curves(scan, group)
        return np.array([_crossing(scan.values, curve, 1.0 - cl) for curve in curves])


def _outside(n: int, group: int | None) -> BoolArray:
    mask: BoolArray = np.ones(n, dtype=bool) if group is None else np.arange(n) % GROUPS != group
    return mask


def _expected(signal: FloatArray, background: FloatArray, *, rule: str) -> tuple[float, float, float, float, float]:
    """CLs (or CLs+b) of typical background-only data: quantiles over the background-only toys as data."""
    s, b = np.sort(signal[~np.isnan(signal)]), np.sort(background[~np.isnan(background)])
    if not (s.size and b.size):
        return (math.nan,) * 5
    # A large statistic is a strong exclusion: -2 sigma of the band is the upper tail of q.
    data = np.quantile(b, ndtr(-np.array(SIGMAS)))
    slack = 1e-7 * np.maximum(1.0, data)
    above = (s.size - np.searchsorted(s, data - slack) + 0.5) / (s.size + 1.0)
    if rule == "cls":
        above = above / ((b.size - np.searchsorted(b, data - slack) + 0.5) / (b.size + 1.0))
    return _five(above)


def _five(values: FloatArray) -> tuple[float, float, float, float, float]:
    a, b, c, d, e = (float(value) for value in values)
    return a, b, c, d, e


def _crossing(values: FloatArray, curve: FloatArray, alpha: float) -> float:
    """Where a noisy falling curve meets a level: root of a parabola through its normal quantiles around there."""
    z = -ndtri(np.clip(curve, 1e-9, 1.0 - 1e-9))
    target = float(-ndtri(alpha))
    above = np.flatnonzero(z >= target)
    if above.size == 0:
        return float(values[-1])
    first = int(above[0])
    if first == 0:
        # Excluded everywhere: CLs+b of data with far too few events.
        return 0.0
    near = np.argsort(np.abs(np.arange(values.size) - (first - 0.5)), kind="stable")[:6]
    centre, width = float(values[near].mean()), float(np.ptp(values[near])) or 1.0
    x = (values[near] - centre) / width
    # Far in the tail few toys are left: such points weigh less.
    weight = np.sqrt(np.clip(curve[near], 1e-6, 1.0))
    c2, c1, c0 = np.polyfit(x, z[near], 2, w=weight) if near.size >= 4 else (0.0, *np.polyfit(x, z[near], 1))
    roots = np.roots([c2, c1, c0 - target]) if c2 != 0 else np.array([(target - c0) / c1])
    real = roots[np.abs(roots.imag) < 1e-9].real
    inside = real[(np.abs(real) < 1.0) & (2.0 * c2 * real + c1 > 0)]
    if inside.size == 0:
        low = max(first - 1, 0)
        return float(np.interp(target, z[low : first + 1], values[low : first + 1]))
    return float(centre + width * inside[np.argmin(np.abs(inside))])


def toy_upper_limit(
    model: ToyModel,
    *,
    cl: float = 0.95,
    rule: Literal["cls", "clsb"] = "cls",
    budget: ToyBudget | None = None,
    rng: np.random.Generator,
) -> ToyLimit:
    """Upper limit from toys with its expected band.

    Parameters
    ----------
    model : ToyModel
        With the likelihood of the observed data.
    cl : float, default 0.95
        Confidence level.
    rule : {"cls", "clsb"}, default "cls"
        CLs, or CLs+b without the protection against downward fluctuations.
    budget : ToyBudget, optional
        How many toys.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    ToyLimit
        Observed and expected limits with Monte Carlo errors, and whether the asymptotic limit agrees.

    Raises
    ------
    ScanRangeError
        If the limit lies beyond the range of the parameter.
    FitFailed
        If a fit to the data fails.
    """
    return ToyCLs(model, rng=rng, rule=rule).limit(cl=cl, budget=budget)
