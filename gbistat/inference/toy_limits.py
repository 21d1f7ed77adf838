r"""Toy CLs and CLs+b, and upper limits with expected bands, all with their Monte Carlo error.

With ``q = qmu_tilde`` (Eq. (16) of arXiv:1007.1727) and toys thrown at the nuisances that the observed data prefer,

.. math:: CL_{s+b} = P(q \ge q_{obs} | \mu), \quad CL_b = P(q \ge q_{obs} | 0), \quad CL_s = CL_{s+b} / CL_b

(A. L. Read, J. Phys. G 28 (2002) 2693; LHC test statistic: ATL-PHYS-PUB-2011-11). One set of background-only toys serves all
tested values. Expected values are quantiles over these toys of what each of them would have given as data.

Fractions of toys have binomial errors; a failed toy could have fallen on either side, so that its share is added to the
error. Errors of limits are from the jackknife over ten groups of toys, each left out in turn. Tested values gather around the
crossings; see :mod:`gbistat.inference.toy_cls_curves`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from gbistat.errors import FitFailed, OptionError, ScanRangeError
from gbistat.inference.limits import AsymptoticCLs
from gbistat.inference.toy_cls_curves import GROUPS, WIDTH, CLsCurves, curves, expected_values, five, solve
from gbistat.inference.toy_limit_results import ToyBudget, ToyCLsPoint, ToyLimit, exceeding, failure_notes, fraction
from gbistat.inference.toy_results import TestSpec, concatenate_toys
from gbistat.inference.toys import data_statistics, toy_statistics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from gbistat.inference.toy_results import ToyResults
    from gbistat.inference.toys import ToyModel
    from gbistat.typing import BoolArray, FloatArray

__all__ = ["ToyCLs", "toy_upper_limit"]

COARSE = 10
"""Values of the first scan."""
REFINEMENT = (0.9, 1.0, 1.1)
"""Values around a crossing, relative to it."""


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
    mapper : callable
        ``map``, or the ``map`` of an executor, for toys at several values; changes nothing in the result.
    """

    def __init__(
        self,
        model: ToyModel,
        *,
        rng: np.random.Generator,
        rule: Literal["cls", "clsb"] = "cls",
        mapper: Callable[..., Iterable[ToyResults]] = map,
    ) -> None:
        if rule not in ("cls", "clsb"):
            raise OptionError(f"rule {rule!r} is unknown; it is 'cls' or 'clsb'")
        self.model = model
        self.rule = rule
        self._mapper = mapper
        # One object, so that it is sent to other processes once.
        self._throw = partial(_throw, model)
        self._seeds = rng.spawn(2)
        self._background_seed = self._seeds[0].bit_generator.seed_seq
        self._null = model.profiled(0.0)
        self._signal: dict[float, list[ToyResults]] = {}
        self._background: dict[TestSpec, FloatArray] = {}
        self._background_failed: BoolArray = np.zeros(0, dtype=bool)
        self._n_background = 0
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
        values, n = self._reaching(values, cl, plan)
        scan, centres = self._refined(values, cl, n)
        while True:
            limits = solve(scan, cl, centres, rule=self.rule)
            groups = np.array([solve(scan, cl, centres, rule=self.rule, without=group) for group in range(GROUPS)])
            errors = np.sqrt((GROUPS - 1) / GROUPS * ((groups - groups.mean(axis=0)) ** 2).sum(axis=0))
            if n >= plan.max_toys or (errors[[0, 3]] <= plan.precision * limits[[0, 3]]).all():
                break
            n = min(2 * n, plan.max_toys)
            scan = self._scan(scan.values.tolist(), n)
        result = ToyLimit(
            poi=self.model.poi,
            cl=cl,
            observed=float(limits[0]),
            error=float(errors[0]),
            expected=five(limits[1:]),
            expected_errors=five(errors[1:]),
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

    def _reaching(self, values: list[float], cl: float, plan: ToyBudget) -> tuple[list[float], int]:
        """Values that reach from above to below ``CLs = 1 - cl`` for the data and the whole band, and toys at each."""
        n = plan.min_toys
        scan = self._scan(values, n)
        if (curves(scan, rule=self.rule)[:, 0] < 1.0 - cl).any():
            # At 0 itself qmu_tilde is 0 for all data, so that nothing is ever excluded.
            values = [0.01 * values[0], 0.3 * values[0], *values]
            scan = self._scan(values, n)
        for _ in range(12):
            if (curves(scan, rule=self.rule)[:, -1] < 1.0 - cl).all():
                return values, n
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
        raise ScanRangeError(
            f"the limit of {self.model.poi} was not reached at {values[-1]:g}; the data do not bound it"
        )

    def _refined(self, values: list[float], cl: float, n: int) -> tuple[CLsCurves, FloatArray]:
        """Values close to where the curves cross ``1 - cl``, and these crossings: a coarse grid would bend them."""
        scan = self._scan(values, n)
        centres = solve(scan, cl, None, rule=self.rule)
        wall = self.model.nll.parameters[self.model.poi_index].high
        for _ in range(4):
            wanted = np.unique(np.outer(centres, REFINEMENT))
            for value in wanted[(wanted > 0) & (wanted < wall)].tolist():
                if min(abs(value - known) for known in values) > 0.04 * value:
                    values = sorted([*values, value])
            scan = self._scan(values, n)
            before, centres = centres, solve(scan, cl, centres, rule=self.rule)
            if (np.abs(centres - before) <= 0.1 * before).all():
                break
        near = np.abs(scan.values[:, None] - centres) <= WIDTH * centres
        # The largest value tells whether there are toys enough.
        kept = near.any(axis=1) | (scan.values == scan.values[-1])
        return self._scan(scan.values[kept].tolist(), n), centres

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
            return None, [float(x) for x in np.geomspace(high / 12, high, COARSE)]
        high = min(1.25 * max(found.expected[4], found.observed), wall)
        low = min(0.6 * min(found.expected[0], found.observed), 0.5 * high)
        return found.observed, [float(x) for x in np.geomspace(low, high, COARSE)]

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

    def _background_columns(self, tests: Sequence[TestSpec], n: int) -> list[FloatArray]:
        """Test statistics of the background-only toys, one column a test; what is known is kept."""
        if n > self._n_background:
            self._background, self._n_background = {}, n
            self._background_failed = np.zeros(n, dtype=bool)
        missing = [test for test in tests if test not in self._background]
        if missing:
            toys = self._background_toys(missing, self._n_background)
            self._background |= {test: toys.statistic(test) for test in missing}
            self._background_failed |= toys.failed
        return [self._background[test] for test in tests]

    def _fresh(self) -> np.random.Generator:
        """Generator of the background-only toys, from its beginning."""
        seed = self._background_seed
        if not isinstance(seed, np.random.SeedSequence):
            raise OptionError("toys need a generator that was seeded by a SeedSequence, as default_rng does")
        again = np.random.SeedSequence(entropy=seed.entropy, spawn_key=seed.spawn_key, pool_size=seed.pool_size)
        return np.random.Generator(type(self._seeds[0].bit_generator)(again))

    def _scan(self, values: Sequence[float], n: int) -> CLsCurves:
        """Throw what is missing."""
        grid = [float(value) for value in values]
        tests = [TestSpec("qmu_tilde", value) for value in grid]
        new = [test for test in tests if test.value not in self._observed]
        if new:
            found = data_statistics(self.model, new)
            self._observed |= {test.value: float(q) for test, q in zip(new, found, strict=True)}
        work = []
        for test in tests:
            missing = n - sum(map(len, self._signal.setdefault(test.value, [])))
            if missing > 0:
                work.append((self.model.profiled(test.value), test, missing, self._seeds[1].spawn(1)[0]))
        if work:
            thrown = self._mapper(self._throw, *zip(*work, strict=True))
            for (_, test, _, _), toys in zip(work, thrown, strict=True):
                self._signal[test.value].append(toys)
        background = self._background_columns(tests, n)
        signal = [concatenate_toys(self._signal[value]) for value in grid]
        everything = [toys for parts in self._signal.values() for toys in parts]
        self.n_toys = self._n_background + sum(map(len, everything))
        self.n_failed = int(self._background_failed.sum()) + sum(toys.n_failed for toys in everything)
        return CLsCurves(
            np.array(grid),
            np.array([self._observed[value] for value in grid]),
            [toys.statistics[:, 0] for toys in signal],
            np.stack(background, axis=1),
        )

    def _point(self, scan: CLsCurves, g: int) -> ToyCLsPoint:
        q = float(scan.observed[g])
        above, n = exceeding(scan.signal[g], q)
        p, p_error = fraction(above, max(n, 1), scan.signal[g].size - n)
        column = scan.background[:, g]
        above_b, m = exceeding(column, q)
        b, b_error = fraction(above_b, max(m, 1), column.size - m)
        ratio = p / b if b > 0 else 1.0
        relative = math.hypot(p_error / p, b_error / b) if p > 0 and b > 0 else math.inf
        error = ratio * relative if math.isfinite(relative) else (p_error / b if b > 0 else 1.0)
        expected = expected_values(scan.signal[g], column, rule=self.rule)
        return ToyCLsPoint(
            float(scan.values[g]), q, p, b, ratio, p_error, b_error, error, expected,
            scan.signal[g].size, column.size,
        )  # fmt: skip

    def _resolution(self, scan: CLsCurves) -> float:
        """Smallest observed CLs that this number of toys can give."""
        above, n = exceeding(scan.background[:, -1], float(scan.observed[-1]))
        background = (above + 0.5) / (n + 1.0) if self.rule == "cls" else 1.0
        return 0.5 / (scan.signal[-1].size + 1.0) / background


def _throw(model: ToyModel, truth: FloatArray, test: TestSpec, n_toys: int, rng: np.random.Generator) -> ToyResults:
    """Toys at one value."""
    return toy_statistics(model, truth, [test], n_toys, rng=rng)


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
