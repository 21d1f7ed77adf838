"""CLs limits: the Gaussian closed form, closing the loop, and limits that are not there."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from gbistat.errors import FitFailed, ModelError, OptionError, ParameterError, ScanRangeError
from gbistat.fit.minimize import fit
from gbistat.inference.asymptotics import SIGMAS, cls_expected, cls_observed, expected_limit_threshold
from gbistat.inference.limits import AsymptoticCLs, upper_limit
from gbistat.likelihood.components import Yield
from gbistat.likelihood.constraints import NormalConstraint, PoissonConstraint
from gbistat.likelihood.nll import NLL, ExtendedUnbinnedNLL
from gbistat.likelihood.parameters import Parameter
from gbistat.likelihood.reference import Reference, reference_from_data, reference_from_quadrature

Counting = Callable[..., tuple[ExtendedUnbinnedNLL, Reference]]


@pytest.mark.parametrize("cl", [0.90, 0.95])
@pytest.mark.parametrize("estimate", [-2.5, -0.4, 0.0, 0.6, 3.0, 12.0])
def test_limit_of_a_gaussian_measurement(gaussian_measurement: Callable[..., NLL], estimate: float, cl: float) -> None:
    """mu_up = mu^ + sigma Phi^-1(1 - alpha Phi(mu^ / sigma)), also below 0; the band is Eq. (89) of arXiv:1007.1727."""
    sigma, alpha = 0.7, 1.0 - cl
    limit = upper_limit(gaussian_measurement(estimate, sigma), (), cl=cl)
    closed = estimate + sigma * norm.isf(alpha * norm.cdf(estimate / sigma))
    assert limit.observed == pytest.approx(closed, rel=1e-6)
    band = [sigma * (norm.isf(alpha * norm.cdf(n)) + n) for n in (-2, -1, 0, 1, 2)]
    assert limit.expected == pytest.approx(band, rel=1e-6)
    assert limit.cl == cl


def test_the_unbounded_estimate_decides(gaussian_measurement: Callable[..., NLL]) -> None:
    """A parameter bounded at 0 has qmu_tilde with the estimate 0: the same statistic, the same limit."""
    free = upper_limit(gaussian_measurement(-1.2, 0.7), ())
    bounded = upper_limit(gaussian_measurement(-1.2, 0.7, 0.0), ())
    assert bounded.observed == pytest.approx(free.observed, rel=1e-6)
    assert bounded.expected == pytest.approx(free.expected, rel=1e-6)


@pytest.mark.parametrize("n", [0.0, 3.0, 9.0, 20.0])
def test_limit_of_a_count(counting: Counting, n: float) -> None:
    """Known background: q and q_A written out, CLs solved for its root."""
    s, b = 2.0, 8.5

    def nll(mu: float, count: float) -> float:
        nu = s * mu + b
        return nu - (count * math.log(nu) if count else 0.0)

    def statistic(mu: float, count: float) -> float:
        best = max(0.0, (count - b) / s)
        return 2.0 * (nll(mu, count) - nll(best, count)) if mu > best else 0.0

    def cls(mu: float) -> float:
        q, q_asimov = statistic(mu, n), statistic(mu, b)
        root = math.sqrt(q_asimov)
        t = math.sqrt(q) - root if q <= q_asimov else (q - q_asimov) / (2.0 * root)
        return norm.sf(t + root) / norm.sf(t)

    like, reference = counting(n, s, b, low=0.0 if n == 0 else -math.inf)
    limit = upper_limit(like, reference)
    assert limit.observed == pytest.approx(brentq(lambda mu: cls(mu) - 0.05, 0.1, 50.0), rel=1e-5)
    for value, target in zip(limit.expected, SIGMAS, strict=True):
        root = brentq(lambda mu, t=target: math.sqrt(statistic(mu, b)) - expected_limit_threshold(0.95, t), 0.1, 80.0)
        assert value == pytest.approx(root, rel=1e-5)


def shape_problem(
    binned: Callable[..., tuple[ExtendedUnbinnedNLL, Reference]],
) -> tuple[ExtendedUnbinnedNLL, tuple[Reference, ...]]:
    """Four bins, free background, uncertain efficiency."""
    nll, reference = binned(
        np.array([52.0, 44.0, 31.0, 27.0]),
        {
            "signal": (Yield({"mu": 20.0}, log_scales={"efficiency": 0.1}), np.array([1.0, 6.0, 6.0, 1.0])),
            "background": (Yield({"n_bkg": 1.0}), np.array([50.0, 40.0, 32.0, 26.0])),
        },
        [Parameter("mu", 0.0), Parameter("efficiency", 0.0, -5.0, 5.0), Parameter("n_bkg", 150.0, 0.0)],
        [NormalConstraint("efficiency", 0.0, 1.0)],
    )
    return nll, (reference,)


def bump_problem(bump: Callable[..., ExtendedUnbinnedNLL]) -> tuple[ExtendedUnbinnedNLL, tuple[Reference, ...]]:
    """Unbinned: a peak of known mass on a smooth background, quadrature for the Asimov set."""
    rng = np.random.default_rng(8)
    mass = np.concatenate([rng.uniform(100.0, 200.0, 300), rng.normal(150.0, 4.0, 15)])
    nll = bump(mass) + NormalConstraint("m_X", 150.0, 0.5)
    return nll, (reference_from_quadrature(bump(mass).model),)


@pytest.mark.parametrize("name", ["shape", "bump", "on-off"])
def test_closes_the_loop(
    name: str, binned: Counting, bump: Callable[..., ExtendedUnbinnedNLL], counting: Counting
) -> None:
    """CLs at the observed limit is 0.05, and each expected CLs at its own expected limit, computed anew."""
    if name == "shape":
        nll, references = shape_problem(binned)
    elif name == "bump":
        nll, references = bump_problem(bump)
    else:
        nll, reference = counting(25.0, 1.0, None, PoissonConstraint("b", 40.0, 2.0))
        references = (reference,)
    limit = upper_limit(nll, references)
    anew = AsymptoticCLs(nll, references)
    assert anew.point(limit.observed).observed == pytest.approx(0.05, rel=1e-4)
    for k, value in enumerate(limit.expected):
        assert anew.point(value).expected[k] == pytest.approx(0.05, rel=1e-4)
    assert list(limit.expected) == sorted(limit.expected)
    assert limit.expected[0] > 0.0
    strict = upper_limit(nll, references, cl=0.99)
    assert strict.observed > limit.observed
    assert all(wide > narrow for wide, narrow in zip(strict.expected, limit.expected, strict=True))


def test_scan_is_what_its_points_are(binned: Counting) -> None:
    nll, references = shape_problem(binned)
    cls = AsymptoticCLs(nll, references)
    grid = [0.0, 0.3, 0.8, 1.5]
    scan = cls.scan(grid)
    assert scan.values.tolist() == grid
    assert scan.expected.shape == (4, 5)
    # At 0 nothing is tested: signal and background hypotheses are the same.
    assert scan.observed[0] == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(scan.expected[0], 1.0, atol=1e-5)
    assert (np.diff(scan.observed) < 0).all()
    assert (np.diff(scan.expected, axis=0) < 0).all()
    assert (np.diff(scan.expected[1:], axis=1) > 0).all()
    point = cls.point(0.8)
    assert scan.observed[2] == point.observed
    assert point.observed == pytest.approx(point.p_signal / point.p_background)
    assert point.expected == pytest.approx(cls_expected(point.q_asimov))
    assert scan.to_dict()["expected"][2] == list(point.expected)


def test_asimov_data_as_data_have_the_median_limit(binned: Counting) -> None:
    """The Asimov set of background only, taken for the data: observed = median expected."""
    nll, references = shape_problem(binned)
    asimov = AsymptoticCLs(nll, references).asimov.profile.nll
    limit = upper_limit(asimov, references)
    assert limit.observed == pytest.approx(limit.expected[2], rel=1e-4)
    assert fit(asimov).value("mu") == pytest.approx(0.0, abs=1e-6)


def test_observed_data_as_the_measure(bump: Callable[..., ExtendedUnbinnedNLL]) -> None:
    """Without anything better the data themselves make the Asimov set; the observed limit hardly notices."""
    nll, references = bump_problem(bump)
    exact = upper_limit(nll, references)
    rough = upper_limit(nll, reference_from_data(nll, fit(nll).values))
    assert rough.observed == pytest.approx(exact.observed, rel=0.05)
    assert rough.expected == pytest.approx(exact.expected, rel=0.2)


def test_formulas() -> None:
    """Eqs. (57) to (66) of arXiv:1007.1727, in the region of qmu_tilde below and beyond q_A."""
    for q, q_asimov in ((0.0, 4.0), (1.0, 4.0), (4.0, 4.0), (9.0, 4.0), (3.0, 0.01)):
        root = math.sqrt(q_asimov)
        signal = norm.sf((q + q_asimov) / (2.0 * root)) if q > q_asimov else norm.sf(math.sqrt(q))
        background = norm.sf((q - q_asimov) / (2.0 * root)) if q > q_asimov else norm.sf(math.sqrt(q) - root)
        assert cls_observed(q, q_asimov) == pytest.approx((signal, background, signal / background), rel=1e-9)
        plain = norm.sf(math.sqrt(q)) / norm.sf(math.sqrt(q) - root)
        assert cls_observed(q, q_asimov, tilde=False)[2] == pytest.approx(plain, rel=1e-9)
    for n, value in zip((-2, -1, 0, 1, 2), cls_expected(2.3), strict=True):
        assert value == pytest.approx(norm.sf(math.sqrt(2.3) - n) / norm.sf(-n), rel=1e-9)
    assert cls_expected(0.0) == pytest.approx((1.0,) * 5)
    assert cls_observed(0.0, 0.0) == pytest.approx((0.5, 0.5, 1.0))


def test_far_tails_are_no_zero_over_zero() -> None:
    """q = 900, q_A = 100: t = 40, CLs = sf(50) / sf(40), both below the smallest float64."""
    _, background, ratio = cls_observed(900.0, 100.0)
    assert background == 0.0
    assert ratio == pytest.approx(math.exp(norm.logsf(50.0) - norm.logsf(40.0)), rel=1e-9)
    assert ratio > 0.0
    expected = cls_expected(3600.0)
    assert all(math.isfinite(value) for value in expected)
    assert list(expected) == sorted(expected)


@pytest.mark.parametrize("cl", [0.9, 0.95])
def test_threshold_of_the_expected_limit(cl: float) -> None:
    for k, n in enumerate(SIGMAS):
        root = expected_limit_threshold(cl, n)
        assert root > n
        assert cls_expected(root**2)[k] == pytest.approx(1.0 - cl, rel=1e-9)


def test_a_limit_beyond_the_range_says_where_it_stopped(gaussian_measurement: Callable[..., NLL]) -> None:
    with pytest.raises(
        ScanRangeError,
        match=r"the expected limit at \+1 sigma of mu was not reached at 1.8, where CLs = .*raise the upper",
    ):
        upper_limit(gaussian_measurement(0.2, 0.7, -5.0, 1.8), ())
    with pytest.raises(
        ScanRangeError, match=r"the observed limit of mu was not reached at 4.5, where CLs = 0\.\d+; raise"
    ):
        upper_limit(gaussian_measurement(4.0, 0.7, -5.0, 4.5), ())


def test_wrong_questions(counting: Counting, gaussian_measurement: Callable[..., NLL]) -> None:
    nll, reference = counting(9.0, 2.0, 8.5)
    for cl in (0.0, 1.0, 95.0, -1.0):
        with pytest.raises(OptionError, match=r"confidence level .* must lie between 0 and 1, for example 0.95"):
            upper_limit(nll, reference, cl=cl)
    with pytest.raises(ParameterError, match=r"there is no parameter 'nu'; nearest names: mu"):
        upper_limit(nll, reference, poi="nu")
    with pytest.raises(ModelError, match=r"0 reference\(s\) for 1 data term\(s\)"):
        upper_limit(nll, ())
    empty, reference = counting(0.0, 2.0, 8.5)
    with pytest.raises(FitFailed, match=r"the fit is not valid: -ln L is flat or bends down in mu: .*narrow its range"):
        upper_limit(empty, reference)


def test_few_events_carry_a_note(counting: Counting) -> None:
    nll, reference = counting(1.0, 1.0, 0.3)
    (note,) = upper_limit(nll, reference).notes
    assert "a few signal events: asymptotic formulae are unreliable there, use toys" in note
    # The size of the nominal yield must not matter for the note.
    nll, reference = counting(1.0, 1000.0, 0.3)
    assert upper_limit(nll, reference).notes == (note,)
    nll, reference = counting(100.0, 1.0, 95.0)
    limit = upper_limit(nll, reference)
    assert limit.notes == ()
    assert limit.to_dict() == {
        "cl": 0.95,
        "observed": limit.observed,
        "expected": list(limit.expected),
        "method": "cls-asymptotic",
    }
