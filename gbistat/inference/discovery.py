"""Local significance of a signal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gbistat.fit.minimize import fit
from gbistat.inference.asymptotics import p_from_q0
from gbistat.inference.qstats import TestStatistics
from gbistat.inference.results import DiscoveryResult
from gbistat.likelihood.reference import asimov_nll

if TYPE_CHECKING:
    from gbistat.fit.result import FitResult
    from gbistat.likelihood.nll import NLL
    from gbistat.likelihood.reference import Reference

__all__ = ["discovery"]


def discovery(
    nll: NLL,
    *,
    poi: str | None = None,
    best: FitResult | None = None,
    references: tuple[Reference, ...] | None = None,
    expected_at: float | None = None,
) -> DiscoveryResult:
    """Local p-value and significance of background only, asymptotically: ``Z = sqrt(q0)``, Eq. (53) of arXiv:1007.1727.

    Parameters
    ----------
    nll : NLL
        Likelihood of the data.
    poi : str, optional
        Parameter of interest; the likelihood's own by default.
    best : FitResult, optional
        The free fit, if it is at hand.
    references : tuple of Reference, optional
        What Asimov sets are made of; needed for the expected significance.
    expected_at : float, optional
        Value of the parameter for which to give the median expected significance.

    Returns
    -------
    DiscoveryResult
        Local numbers: where masses were searched over, the global ones are other numbers.

    Raises
    ------
    FitFailed
        If a fit is not valid.
    """
    name = poi or nll.poi
    statistics = TestStatistics(nll, name, best)
    q0 = statistics.q0()
    expected = None
    if references is not None and expected_at is not None:
        theta = statistics.profile.conditional(expected_at).values
        asimov = asimov_nll(nll, references, theta)
        expected = math.sqrt(TestStatistics(asimov, name, fit(asimov, start=theta)).q0())
    return DiscoveryResult(name, q0, p_from_q0(q0), math.sqrt(q0), expected)
