"""Test statistics of arXiv:1007.1727 (Cowan, Cranmer, Gross, Vitells), from profile likelihoods.

The estimate of the parameter of interest is not bounded at 0 in any of them: what happens below 0 is part of the statistic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gbistat.inference.profile import Profile, settled

if TYPE_CHECKING:
    from gbistat.fit.result import FitResult
    from gbistat.likelihood.nll import NLL

__all__ = ["TestStatistics", "q0", "qmu", "qmu_tilde", "tmu"]


class TestStatistics:
    """The statistics of one likelihood and parameter, sharing their fits.

    Parameters
    ----------
    nll : NLL
        Likelihood.
    poi : str
        Parameter of interest.
    best : FitResult, optional
        The free fit, if it is at hand.
    """

    __test__ = False  # not a test, whatever pytest makes of its name

    def __init__(self, nll: NLL, poi: str, best: FitResult | None = None) -> None:
        self.profile = Profile(nll, poi, best)

    @property
    def estimate(self) -> float:
        """Unbounded estimate of the parameter."""
        return self.profile.best_value

    def tmu(self, value: float) -> float:
        """``-2 ln lambda(mu)``, Eq. (8): large for any disagreement."""
        return self.profile.q(value)

    def qmu(self, value: float) -> float:
        """Eq. (14): 0 where the estimate exceeds the tested value."""
        return settled(self.profile, lambda: 0.0 if self.estimate > value else self.profile.q(value))

    def qmu_tilde(self, value: float) -> float:
        """Eq. (16): as qmu, but compared with the fit at 0 where the estimate is negative."""
        return settled(self.profile, lambda: self._qmu_tilde(value))

    def _qmu_tilde(self, value: float) -> float:
        if self.estimate > value:
            return 0.0
        if self.estimate >= 0.0:
            return self.profile.q(value)
        difference = self.profile.conditional(value).nll - self.profile.conditional(0.0).nll
        return max(0.0, 2.0 * difference)

    def q0(self) -> float:
        """Eq. (12): for discovery; 0 where the estimate is negative."""
        return settled(self.profile, lambda: 0.0 if self.estimate < 0.0 else self.profile.q(0.0))


def tmu(nll: NLL, value: float, *, poi: str | None = None, best: FitResult | None = None) -> float:
    """``-2 ln lambda(mu)``, Eq. (8) of arXiv:1007.1727; see :class:`TestStatistics`."""
    return TestStatistics(nll, poi or nll.poi, best).tmu(value)


def qmu(nll: NLL, value: float, *, poi: str | None = None, best: FitResult | None = None) -> float:
    """Statistic for upper limits, Eq. (14) of arXiv:1007.1727; see :class:`TestStatistics`."""
    return TestStatistics(nll, poi or nll.poi, best).qmu(value)


def qmu_tilde(nll: NLL, value: float, *, poi: str | None = None, best: FitResult | None = None) -> float:
    """Statistic for upper limits with ``mu >= 0``, Eq. (16) of arXiv:1007.1727; see :class:`TestStatistics`."""
    return TestStatistics(nll, poi or nll.poi, best).qmu_tilde(value)


def q0(nll: NLL, *, poi: str | None = None, best: FitResult | None = None) -> float:
    """Statistic for discovery, Eq. (12) of arXiv:1007.1727; see :class:`TestStatistics`."""
    return TestStatistics(nll, poi or nll.poi, best).q0()
