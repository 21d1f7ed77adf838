"""Upper limits by the CLs method, from asymptotic formulae."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import brentq

from gbistat.errors import ScanRangeError
from gbistat.fit.minimize import fit
from gbistat.inference.asymptotics import SIGMAS, cls_expected, cls_observed, expected_limit_threshold
from gbistat.inference.profile import settled
from gbistat.inference.qstats import TestStatistics
from gbistat.inference.results import CLsPoint, CLsScan, LimitResult
from gbistat.likelihood.reference import asimov_nll

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gbistat.fit.result import FitResult
    from gbistat.likelihood.nll import NLL
    from gbistat.likelihood.reference import Reference
    from gbistat.typing import FloatArray

__all__ = ["AsymptoticCLs", "upper_limit"]


class AsymptoticCLs:
    """CLs of one likelihood as a function of the tested value, sharing all fits.

    Parameters
    ----------
    nll : NLL
        Likelihood of the data.
    references : tuple of Reference
        One for each data term: what the background-only Asimov set is made of.
    poi : str, optional
        Parameter of interest; the likelihood's own by default.
    best : FitResult, optional
        The free fit, if it is at hand.

    Notes
    -----
    The Asimov set has the nuisance parameters that fit the data best at ``poi = 0``, as in pyhf. The formulae hold for large
    samples; with a few expected events in the region that decides, toys are the way out.
    """

    def __init__(
        self, nll: NLL, references: tuple[Reference, ...], *, poi: str | None = None, best: FitResult | None = None
    ) -> None:
        self.nll = nll
        self.references = references
        self.poi = poi or nll.poi
        self.data = TestStatistics(nll, self.poi, best)

    @cached_property
    def asimov(self) -> TestStatistics:
        """Statistics of the background-only Asimov set."""
        null = self.data.profile.conditional(0.0)
        nll = asimov_nll(self.nll, self.references, null.values)
        return TestStatistics(nll, self.poi, fit(nll, start=null.values))

    def point(self, value: float) -> CLsPoint:
        """Observed and expected CLs at one value.

        Raises
        ------
        FitFailed
            If a conditional fit is not valid.
        """
        q, q_asimov = self.data.qmu_tilde(value), self.asimov.qmu_tilde(value)
        signal, background, observed = cls_observed(q, q_asimov)
        return CLsPoint(value, q, q_asimov, signal, background, observed, cls_expected(q_asimov))

    def scan(self, values: Sequence[float] | FloatArray) -> CLsScan:
        """Observed and expected CLs on a grid."""
        points = [self.point(float(value)) for value in values]
        return CLsScan(
            self.poi,
            np.array([point.value for point in points]),
            np.array([point.observed for point in points]),
            np.array([point.expected for point in points]),
        )

    def limit(self, *, cl: float = 0.95) -> LimitResult:
        """Values at which the observed and the expected CLs fall to ``1 - cl``.

        Raises
        ------
        OptionError
            If `cl` is not between 0 and 1.
        ScanRangeError
            If CLs does not fall that far within the range of the parameter.
        """
        alpha = 1.0 - cl
        thresholds = [expected_limit_threshold(cl, n) for n in SIGMAS]
        scale = self._sigma()
        expected = []
        for t, n in zip(thresholds, SIGMAS, strict=True):

            def excess(value: float, target: float = t) -> float:
                return math.sqrt(self.asimov.qmu_tilde(value)) - target

            expected.append(self._solve(excess, t * scale, f"expected limit at {n:+g} sigma"))

        def excess_observed(value: float) -> float:
            return math.log(alpha) - math.log(max(self.point(value).observed, 1e-300))

        observed = settled(
            self.data.profile,
            lambda: self._solve(excess_observed, max(self.data.estimate, 0.0) + 1.64 * scale, "observed limit"),
        )
        notes = []
        if expected[2] < 3.0 * self._event_size():
            notes.append(
                "the expected limit is a few signal events: asymptotic formulae are unreliable there, use toys"
            )
        return LimitResult(
            self.poi,
            cl,
            observed,
            (expected[0], expected[1], expected[2], expected[3], expected[4]),
            notes=tuple(notes),
        )

    def _event_size(self) -> float:
        """Size of the parameter that adds one signal event."""
        theta = self.data.profile.best.values.copy()
        index = self.nll.names.index(self.poi)
        low, high = theta.copy(), theta.copy()
        low[index], high[index] = 0.0, 1.0
        gain = self.nll.expected_events(high) - self.nll.expected_events(low)
        return 1.0 / gain if gain > 0 else 0.0

    def _sigma(self) -> float:
        """Error of the parameter under background only: the step that root finding begins with."""
        error = self.asimov.profile.best.error(self.poi)
        if error > 0:
            return error
        size = self._event_size()
        return size if size > 0 else 1.0

    def _solve(self, function: Callable[[float], float], guess: float, what: str) -> float:
        """Root of a function that rises through 0."""
        high_wall = self.data.profile.parameter.high
        low, high = 0.0, min(max(guess, 1e-12), high_wall)
        for _ in range(60):
            if function(high) > 0:
                return float(brentq(function, low, high, xtol=1e-6 * high, rtol=1e-9))
            if high >= high_wall:
                break
            low, high = high, min(1.7 * high, high_wall)
        raise ScanRangeError(
            f"the {what} of {self.poi} was not reached at {high:g}, where CLs = {self.point(high).observed:.3g}; "
            f"raise the upper end of the range of {self.poi}"
        )


def upper_limit(
    nll: NLL,
    references: tuple[Reference, ...] | Reference = (),
    *,
    poi: str | None = None,
    cl: float = 0.95,
    best: FitResult | None = None,
) -> LimitResult:
    """CLs upper limit with its expected band, asymptotically.

    Parameters
    ----------
    nll : NLL
        Likelihood of the data.
    references : Reference or tuple of Reference
        What Asimov sets are made of, one for each unbinned data term.
    poi : str, optional
        Parameter of interest; the likelihood's own by default.
    cl : float, default 0.95
        Confidence level.
    best : FitResult, optional
        The free fit, if it is at hand.

    Returns
    -------
    LimitResult
        Observed, and expected at -2, -1, 0, +1, +2 sigma (arXiv:1007.1727; CLs: A. L. Read, J. Phys. G 28 (2002) 2693).

    Raises
    ------
    ScanRangeError
        If the limit lies beyond the range of the parameter.
    FitFailed
        If a fit is not valid.
    """
    several = references if isinstance(references, tuple) else (references,)
    return AsymptoticCLs(nll, several, poi=poi, best=best).limit(cl=cl)
