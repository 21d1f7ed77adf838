"""pyhf's answers for a binned model: fit, intervals, CLs limit, significance."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtri

from gbistat.binned.backend import load_model, numpy_backend
from gbistat.binned.results import BinnedResult
from gbistat.binned.roots import shared_roots
from gbistat.binned.workspace import BinnedTwin
from gbistat.errors import OptionError, ScanRangeError
from gbistat.inference.asymptotics import p_from_q0
from gbistat.inference.profile import threshold
from gbistat.inference.results import DiscoveryResult, IntervalResult, LimitResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.typing import FloatArray, Json

__all__ = ["binned_inference"]

SHARE = 0.98
"""Part of the way to the first bin without expected events that a negative signal may go."""


def binned_inference(
    twin: BinnedTwin | Json,
    *,
    cl: float = 0.95,
    intervals: Sequence[float] = (0.6827, 0.95),
    optimizer: str = "newton",
) -> BinnedResult:
    """Fit, profile intervals, CLs limit and discovery significance of a binned model by pyhf.

    Parameters
    ----------
    twin : BinnedTwin or dict
        The binned model, or any HistFactory workspace.
    cl : float, default 0.95
        Confidence level of the limits.
    intervals : sequence of float
        Confidence levels of the intervals.
    optimizer : {"newton", "minuit"}
        How pyhf minimises; MINUIT's numerical derivatives give the same numbers in more time.

    Returns
    -------
    BinnedResult
        The estimate may be negative, as long as all expected counts are positive. Limits are from ``pyhf.infer.hypotest`` with
        qmu_tilde, whose estimates are bounded at 0.

    Raises
    ------
    OptionError
        If a confidence level is not between 0 and 1.
    ModelError
        If pyhf does not accept the workspace.
    FitFailed
        If a fit does not converge.
    ScanRangeError
        If CLs does not fall to ``1 - cl`` for any signal that was tried.

    Notes
    -----
    All formulae are asymptotic (arXiv:1007.1727). pyhf's global backend is the caller's again at the end.
    """
    if not 0.0 < cl < 1.0:
        raise OptionError(f"confidence level {cl:g} must lie between 0 and 1, for example 0.95")
    levels = {level: threshold(level) for level in intervals}
    workspace = twin.workspace if isinstance(twin, BinnedTwin) else twin
    with numpy_backend(optimizer) as pyhf:
        calculation = _Calculation(pyhf, workspace)
        found = tuple(calculation.interval(level, q) for level, q in levels.items())
        limit = calculation.limit(cl)
        q0 = calculation.q0()
        own = (twin.observable, twin.n_bins, twin.notes) if isinstance(twin, BinnedTwin) else calculation.describe()
    return BinnedResult(
        observable=own[0],
        n_bins=own[1],
        poi=calculation.poi,
        value=calculation.value,
        error=calculation.error,
        intervals=found,
        limit=limit,
        discovery=DiscoveryResult(calculation.poi, q0, p_from_q0(q0), math.sqrt(q0)),
        notes=(*own[2], *calculation.notes, *(note for interval in found for note in interval.notes)),
    )


class _Calculation:
    """One workspace in pyhf, with the free fit done."""

    def __init__(self, pyhf: Any, workspace: Json) -> None:
        self.pyhf = pyhf
        self.model, data = load_model(pyhf, workspace)
        self.data = [float(x) for x in data]
        config = self.model.config
        self.poi: str = config.poi_name
        self.index: int = config.poi_index
        self.notes: list[str] = []
        self.fixed: list[bool] = config.suggested_fixed()
        self.bounds: list[tuple[float, float]] = [(float(a), float(b)) for a, b in config.suggested_bounds()]
        self.highest = self.bounds[self.index][1]
        self.start = [
            min(max(float(x), low), high) for x, (low, high) in zip(config.suggested_init(), self.bounds, strict=True)
        ]
        self.lowest = min(0.0, self.bounds[self.index][0])
        self.start, _ = self._conditional(0.0)
        self.lowest = self._lowest()
        self._free_fit()

    def describe(self) -> tuple[str, int, tuple[str, ...]]:
        """Name and number of bins of a workspace that is not a twin."""
        config = self.model.config
        return "+".join(config.channels), int(config.nmaindata), ()

    def _lowest(self) -> float:
        """Signal below which some bin would expect less than nothing, for the background that fits best."""
        null, one = np.array(self.start), np.array(self.start)
        null[self.index], one[self.index] = 0.0, 1.0
        background = np.asarray(self.model.expected_actualdata(null))
        signal = np.asarray(self.model.expected_actualdata(one)) - background
        rising = signal > 0
        if not rising.any():
            return min(0.0, self.bounds[self.index][0])
        return -SHARE * float((background[rising] / signal[rising]).min())

    def _range(self, low: float) -> list[tuple[float, float]]:
        bounds = list(self.bounds)
        bounds[self.index] = (low, self.highest)
        return bounds

    def _reach(self, value: float) -> None:
        """Widen the range so that a value is well inside."""
        while value > 0.5 * self.highest:
            self.highest *= 4.0

    def _free_fit(self) -> None:
        for _ in range(20):
            result, twice_nll = self.pyhf.infer.mle.fit(
                self.data,
                self.model,
                list(self.start),
                self._range(self.lowest),
                self.fixed,
                return_uncertainties=True,
                return_fitted_val=True,
            )
            table = np.asarray(result, dtype=np.float64)
            self.value, self.error = (float(x) for x in table[self.index])
            self.minimum = float(twice_nll)
            if self.value + self.error < 0.5 * self.highest:
                break
            self.highest *= 4.0
        if self.value <= self.lowest * (1.0 - 1e-9):
            self.notes.append(
                f"the fit of {self.poi} stopped at {self.value:.4g}, below which some bin would expect no events"
            )

    def _conditional(self, value: float) -> tuple[list[float], float]:
        """Fit with the signal held: parameters and ``-2 ln L``."""
        pars, twice_nll = self.pyhf.infer.mle.fixed_poi_fit(
            value,
            self.data,
            self.model,
            list(self.start),
            self._range(min(self.lowest, value)),
            self.fixed,
            return_fitted_val=True,
        )
        return [float(x) for x in pars], float(twice_nll)

    def q(self, value: float) -> float:
        """``-2 ln lambda`` of a value."""
        self._reach(value)
        return max(0.0, self._conditional(value)[1] - self.minimum)

    def interval(self, cl: float, level: float) -> IntervalResult:
        """Profile-likelihood interval."""
        ends = [self._crossing(level, -1), self._crossing(level, +1)]
        notes = []
        if ends[0] is None:
            notes.append(
                f"the {cl:.4g} interval of {self.poi} has no lower end: below {self.lowest:.4g} some bin would expect no events"
            )
        if ends[1] is None:
            notes.append(f"the {cl:.4g} interval of {self.poi} has no upper end: the likelihood is flat there")
        return IntervalResult(self.poi, cl, ((ends[0], ends[1]),), self.value, level, "profile", tuple(notes))

    def _crossing(self, level: float, side: int) -> float | None:
        root = math.sqrt(level)
        step = side * root * (self.error if self.error > 0 else 0.1 * (1.0 + abs(self.value)))
        inner, outer = self.value, self.value + step
        for _ in range(60):
            if side < 0 and outer <= self.lowest:
                outer = self.lowest
            if self.q(outer) > level:
                xtol = 1e-5 * abs(step)
                return float(brentq(lambda x: math.sqrt(self.q(x)) - root, inner, outer, xtol=xtol))
            if outer == self.lowest:
                return None
            inner, outer = outer, outer + 0.3 * step
        return None

    def limit(self, cl: float) -> LimitResult:
        """Observed limit and the five expected ones."""
        scale = self.error if self.error > 0 else 1.0
        names = ["observed limit", *(f"expected limit at {n:+d} sigma" for n in range(-2, 3))]
        roots = shared_roots(self._cls_score, float(-ndtri(0.5 * (1.0 - cl))), 6, guess=2.0 * scale)
        found = []
        for name, root in zip(names, roots, strict=True):
            if root is None:
                raise ScanRangeError(
                    f"the {name} of {self.poi} was not reached: CLs stays above {1.0 - cl:.3g} for all signals that were tried"
                )
            found.append(root)
        return LimitResult(self.poi, cl, found[0], (found[1], found[2], found[3], found[4], found[5]))

    def _cls_score(self, value: float) -> FloatArray:
        """``-Phi^-1(CLs / 2)`` of the observed and the five expected CLs: all but linear in the signal."""
        self._reach(value)
        observed, expected = self.pyhf.infer.hypotest(
            value,
            self.data,
            self.model,
            list(self.start),
            self._range(0.0),
            self.fixed,
            test_stat="qtilde",
            return_expected_set=True,
        )
        cls = np.maximum([float(observed), *(float(x) for x in expected)], 1e-300)
        score: FloatArray = -ndtri(0.5 * np.minimum(cls, 1.0))
        return score

    def q0(self) -> float:
        """Test statistic for discovery."""
        value = self.pyhf.infer.test_statistics.q0(
            0.0, self.data, self.model, list(self.start), self._range(self.lowest), self.fixed
        )
        return float(value)
