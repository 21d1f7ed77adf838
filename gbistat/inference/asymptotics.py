"""Asymptotic distributions of test statistics: p-values, CLs and its expected values.

All from arXiv:1007.1727. With ``q`` observed and ``q_A`` from the background-only Asimov set, the test statistic in standard
deviations is ``t = sqrt(q) - sqrt(q_A)`` for ``q <= q_A`` and ``(q - q_A) / (2 sqrt(q_A))`` beyond (Eqs. 62 to 66, for
qmu_tilde), and

    CLs+b = 1 - Phi(t + sqrt(q_A)),   CLb = 1 - Phi(t),   CLs = CLs+b / CLb.

A fluctuation of the background by N sigma has ``t = -N``.
"""

from __future__ import annotations

import math

from scipy.special import log_ndtr, ndtr, ndtri

from gbistat.errors import OptionError

__all__ = ["cls_expected", "cls_observed", "expected_limit_threshold", "p_from_q0", "p_from_tmu", "z_from_p"]

SIGMAS = (-2.0, -1.0, 0.0, 1.0, 2.0)
"""Background fluctuations of the expected band, in pyhf's order."""


def p_from_q0(q0: float) -> float:
    """Local p-value of background only: ``1 - Phi(sqrt(q0))``, Eq. (52).

    Examples
    --------
    >>> round(p_from_q0(25.0) * 1e7, 4)
    2.8665
    """
    return float(ndtr(-math.sqrt(max(q0, 0.0))))


def p_from_tmu(tmu: float) -> float:
    """Two-sided p-value of a value of the parameter: ``2 (1 - Phi(sqrt(tmu)))``, Eq. (35) with mu' = mu."""
    return float(2.0 * ndtr(-math.sqrt(max(tmu, 0.0))))


def z_from_p(p: float) -> float:
    """One-sided significance of a p-value: ``Phi^-1(1 - p)``.

    Raises
    ------
    OptionError
        If `p` is not in (0, 1].

    Examples
    --------
    >>> round(z_from_p(2.8665e-7), 3)
    5.0
    """
    if not 0.0 < p <= 1.0:
        raise OptionError(f"p-value {p:g} must be above 0 and at most 1")
    return float(-ndtri(p))


def _tails(t: float, root: float) -> tuple[float, float, float]:
    """CLs+b, CLb and CLs at a test statistic in standard deviations; the ratio in logarithms, so that it never is 0/0."""
    log_signal, log_background = float(log_ndtr(-(t + root))), float(log_ndtr(-t))
    return math.exp(log_signal), math.exp(log_background), math.exp(log_signal - log_background)


def cls_observed(q: float, q_asimov: float, *, tilde: bool = True) -> tuple[float, float, float]:
    """CLs+b, CLb and CLs of an observed test statistic.

    Parameters
    ----------
    q : float
        Observed qmu_tilde (or qmu).
    q_asimov : float
        The same of the background-only Asimov set.
    tilde : bool, default True
        Whether the statistic is qmu_tilde.

    Returns
    -------
    tuple of 3 float
        CLs+b, CLb, CLs.
    """
    root_q, root = math.sqrt(max(q, 0.0)), math.sqrt(max(q_asimov, 0.0))
    if tilde and root_q > root and root > 0:
        return _tails((q - q_asimov) / (2.0 * root), root)
    return _tails(root_q - root, root)


def cls_expected(q_asimov: float) -> tuple[float, float, float, float, float]:
    """Expected CLs under background only at -2, -1, 0, +1, +2 sigma.

    Parameters
    ----------
    q_asimov : float
        qmu_tilde (or qmu) of the background-only Asimov set.

    Returns
    -------
    tuple of 5 float
        In pyhf's order: the first is that of a downward fluctuation of the background, the strongest.

    Notes
    -----
    Far below the limit, where ``sqrt(q_A) < N``, an upward fluctuation by N sigma puts the estimate above the tested value
    and the statistic at 0. The formula is continued there as pyhf does by default (its ``calc_base_dist="normal"``); limits do
    not depend on it, since ``sqrt(q_A) > N`` at each of them.
    """
    root = math.sqrt(max(q_asimov, 0.0))
    values = [_tails(-n, root)[2] for n in SIGMAS]
    return (values[0], values[1], values[2], values[3], values[4])


def expected_limit_threshold(cl: float, n_sigma: float) -> float:
    """Value of ``sqrt(q_A)`` at the limit expected under a background fluctuation of N sigma.

    ``CLs = alpha`` with ``t = -N`` gives ``sqrt(q_A) = Phi^-1(1 - alpha Phi(N)) + N``, Eq. (89) of arXiv:1007.1727.

    Raises
    ------
    OptionError
        If `cl` is not between 0 and 1.

    Examples
    --------
    >>> round(expected_limit_threshold(0.95, 0.0), 4)
    1.96
    """
    if not 0.0 < cl < 1.0:
        raise OptionError(f"confidence level {cl:g} must lie between 0 and 1, for example 0.95")
    return float(-ndtri((1.0 - cl) * ndtr(n_sigma))) + n_sigma
