"""Test statistics, p-values and significances that are known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import xlogy
from scipy.stats import norm

from gbistat.errors import FitFailed, OptionError, ParameterError
from gbistat.fit.minimize import fit
from gbistat.inference.asymptotics import p_from_q0, p_from_tmu, z_from_p
from gbistat.inference.discovery import discovery
from gbistat.inference.qstats import TestStatistics, q0, qmu, qmu_tilde, tmu
from gbistat.likelihood.constraints import PoissonConstraint
from gbistat.likelihood.nll import NLL, ExtendedUnbinnedNLL
from gbistat.likelihood.reference import Reference

Counting = Callable[..., tuple[ExtendedUnbinnedNLL, Reference]]


@pytest.mark.parametrize("estimate", [-1.3, 0.0, 0.8, 4.0])
@pytest.mark.parametrize("value", [0.5, 2.0, 5.0])
def test_gaussian_measurement(gaussian_measurement: Callable[..., NLL], estimate: float, value: float) -> None:
    """Eqs. (8), (14), (16) and (12) of arXiv:1007.1727 for one measurement of standard deviation 0.7."""
    nll = gaussian_measurement(estimate, 0.7)
    pull = ((value - estimate) / 0.7) ** 2
    assert tmu(nll, value) == pytest.approx(pull, rel=1e-6)
    assert qmu(nll, value) == pytest.approx(pull if estimate <= value else 0.0, rel=1e-6)
    tilde = pull if estimate >= 0 else (value**2 - 2.0 * value * estimate) / 0.49
    assert qmu_tilde(nll, value) == pytest.approx(tilde if estimate <= value else 0.0, rel=1e-6)
    assert q0(nll) == pytest.approx((estimate / 0.7) ** 2 if estimate >= 0 else 0.0, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("n", [1.0, 7.0, 12.0, 90.0])
def test_discovery_with_a_known_background(counting: Counting, n: float) -> None:
    nll, _ = counting(n, 3.0, 9.0)
    expected = 2.0 * (n * math.log(n / 9.0) - (n - 9.0)) if n > 9.0 else 0.0
    result = discovery(nll)
    assert result.q0 == pytest.approx(expected, rel=1e-6)
    assert result.z == pytest.approx(math.sqrt(expected), rel=1e-6)
    assert result.p0 == pytest.approx(norm.sf(math.sqrt(expected)), rel=1e-6)
    assert result.z_expected is None
    assert result.to_dict() == {"p0_local": result.p0, "z_local": result.z, "z_global": None, "z_expected": None}


@pytest.mark.parametrize(
    ("n_on", "n_off", "tau"),
    [(25.0, 40.0, 4.0), (4.0, 5.0, 5.0), (190.0, 300.0, 2.0), (2.0, 0.0, 3.0), (60.0, 9.0, 0.2)],
)
def test_on_off_significance_of_li_and_ma(counting: Counting, n_on: float, n_off: float, tau: float) -> None:
    """Eq. (17) of T.-P. Li and Y.-Q. Ma, Astrophys. J. 272 (1983) 317, with alpha = 1 / tau."""
    alpha = 1.0 / tau
    first = xlogy(n_on, (1.0 + alpha) / alpha * n_on / (n_on + n_off))
    second = xlogy(n_off, (1.0 + alpha) * n_off / (n_on + n_off))
    expected = 2.0 * (first + second) if n_on > alpha * n_off else 0.0
    nll, _ = counting(n_on, 1.0, None, PoissonConstraint("b", n_off, tau))
    assert q0(nll) == pytest.approx(expected, rel=1e-6)
    assert discovery(nll).z == pytest.approx(math.sqrt(expected), rel=1e-6)


@pytest.mark.parametrize(("s", "b"), [(3.0, 9.0), (10.0, 1.0), (0.5, 200.0)])
def test_median_significance_of_a_count(counting: Counting, s: float, b: float) -> None:
    """sqrt(2 [(s + b) ln(1 + s/b) - s]), Eq. (97) of arXiv:1007.1727, whatever the data are."""
    nll, reference = counting(round(b), s, b)
    result = discovery(nll, references=(reference,), expected_at=1.0)
    assert result.z_expected == pytest.approx(math.sqrt(2.0 * ((s + b) * math.log1p(s / b) - s)), rel=1e-6)


@pytest.mark.parametrize(("s", "b", "sigma"), [(10.0, 20.0, 4.0), (3.0, 1.0, 0.8)])
def test_median_significance_with_an_uncertain_background(counting: Counting, s: float, b: float, sigma: float) -> None:
    """Eq. (20) of G. Cowan's note of 2012 on discovery sensitivity, with tau = b / sigma^2."""
    tau = b / sigma**2
    nll, reference = counting(s + b, s, None, PoissonConstraint("b", tau * b, tau))
    first = (s + b) * math.log((s + b) * (b + sigma**2) / (b**2 + (s + b) * sigma**2))
    second = b**2 / sigma**2 * math.log1p(sigma**2 * s / (b * (b + sigma**2)))
    result = discovery(nll, references=(reference,), expected_at=1.0)
    assert result.z_expected == pytest.approx(math.sqrt(2.0 * (first - second)), rel=1e-6)
    assert result.z == pytest.approx(result.z_expected, rel=1e-6)


def test_p_values_and_significances() -> None:
    assert p_from_q0(0.0) == 0.5
    assert p_from_q0(-1e-12) == 0.5
    assert p_from_q0(25.0) == pytest.approx(2.866516e-7, rel=1e-6)
    assert p_from_q0(1369.0) == pytest.approx(norm.sf(37.0), rel=1e-9)
    assert p_from_tmu(0.0) == 1.0
    assert p_from_tmu(3.841459) == pytest.approx(0.05, rel=1e-6)
    for z in (-2.0, 0.0, 1.3, 8.0):
        assert z_from_p(norm.sf(z)) == pytest.approx(z, abs=1e-9)
    assert z_from_p(1.0) == -math.inf
    for p in (0.0, -0.1, 1.1, math.nan):
        with pytest.raises(OptionError, match=r"p-value .* must be above 0 and at most 1"):
            z_from_p(p)


def test_statistics_share_their_fits(counting: Counting) -> None:
    nll, _ = counting(25.0, 1.0, None, PoissonConstraint("b", 40.0, 4.0))
    statistics = TestStatistics(nll, "mu")
    assert statistics.estimate == pytest.approx(15.0, rel=1e-6)
    assert statistics.qmu(20.0) == statistics.tmu(20.0) == statistics.qmu_tilde(20.0)
    assert statistics.qmu(10.0) == 0.0
    assert statistics.tmu(10.0) > 0.0
    assert statistics.q0() == statistics.tmu(0.0)


def test_a_better_minimum_found_on_the_way_counts_at_once(double_well: NLL) -> None:
    """From the wrong well (-1), the tested value is above the estimate; from the right one (+1), below it."""
    wrong, right = fit(double_well, start=np.array([-1.2])), fit(double_well, start=np.array([1.2]))
    assert right.nll < wrong.nll - 1.0
    value = right.value("t") - 0.05
    assert TestStatistics(double_well, "t", right).qmu(value) == 0.0
    assert TestStatistics(double_well, "t", wrong).qmu(value) == 0.0
    assert TestStatistics(double_well, "t", wrong).qmu_tilde(value) == 0.0
    deep = TestStatistics(double_well, "t", wrong)
    assert deep.tmu(value) == pytest.approx(2.0 * (double_well(value) - right.nll), rel=1e-6)
    assert deep.estimate == pytest.approx(right.value("t"))


def test_wrong_questions(counting: Counting) -> None:
    nll, _ = counting(12.0, 3.0, 9.0)
    with pytest.raises(ParameterError, match=r"there is no parameter 'nu'; nearest names: mu"):
        q0(nll, poi="nu")
    empty, _ = counting(0.0, 3.0, 9.0)
    with pytest.raises(FitFailed, match=r"the fit is not valid: -ln L is flat or bends down in mu"):
        q0(empty)
    bounded, _ = counting(0.0, 3.0, 9.0, low=0.0)
    assert q0(bounded) == 0.0
    assert qmu_tilde(bounded, 2.0) == pytest.approx(12.0)
