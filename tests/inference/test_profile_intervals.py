"""Profile intervals: closed forms, MINOS, closing the loop, and intervals that are not one closed piece."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import chi2, norm

from gbistat.data.events import Events
from gbistat.errors import FitFailed, OptionError, ParameterError
from gbistat.fit.minimize import fit, to_minuit
from gbistat.fit.result import FitResult
from gbistat.inference.profile import Profile, profile_interval, profile_scan, threshold
from gbistat.likelihood.constraints import LogNormalConstraint, NormalConstraint, PoissonConstraint
from gbistat.likelihood.nll import NLL, ExtendedUnbinnedNLL, UnbinnedNLL
from gbistat.likelihood.parameters import Parameter
from gbistat.likelihood.reference import Reference

Counting = Callable[..., tuple[ExtendedUnbinnedNLL, Reference]]
LEVELS = (0.6827, 0.90, 0.95)


def mixed(rng: np.random.Generator, n_sig: int, n_bkg: int) -> np.ndarray:
    """Log ratios as of a feature that is N(1.5, 1) for the signal and N(0, 1) for the background."""
    x = np.concatenate([rng.normal(1.5, 1.0, n_sig), rng.normal(0.0, 1.0, n_bkg)])
    return 1.5 * x - 1.125


def likelihoods() -> dict[str, NLL]:
    """Small and large, symmetric and not, with and without nuisances."""
    rng = np.random.default_rng(11)
    found: dict[str, NLL] = {
        f"{n_sig} of {n_sig + n_bkg}": ExtendedUnbinnedNLL.from_log_ratio(mixed(rng, n_sig, n_bkg))
        for n_sig, n_bkg in ((3, 4), (6, 30), (0, 40), (60, 400), (300, 3000))
    }
    small = ExtendedUnbinnedNLL.from_log_ratio(mixed(rng, 5, 20), nominal=2.0)
    found["constrained background"] = small + NormalConstraint("n_bkg", 17.0, 2.0)
    found["control region"] = small + PoissonConstraint("n_bkg", 9.0, 0.5)
    found["log-normal background"] = small + LogNormalConstraint("n_bkg", 25.0, 0.2)
    other = ExtendedUnbinnedNLL.from_log_ratio(mixed(rng, 2, 10))
    found["two samples"] = small + other
    found["fraction"] = UnbinnedNLL(small.model, Events(mass=np.zeros(25)))
    return found


LIKELIHOODS = likelihoods()


def minos_ends(nll: NLL, best: FitResult, name: str, cl: float) -> tuple[float, float] | None:
    """Ends that MINOS finds; None where it finds none."""
    minuit = to_minuit(nll, best.values)
    minuit.tol = 1e-3
    minuit.migrad()
    minuit.minos(name, cl=cl)
    errors = minuit.merrors[name]
    return (best.value(name) + errors.lower, best.value(name) + errors.upper) if errors.is_valid else None


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_agrees_with_minos(name: str) -> None:
    """To 1e-3 of an error, for every parameter."""
    nll = LIKELIHOODS[name]
    best = fit(nll).raise_if_invalid()
    for parameter in nll.names:
        interval = profile_interval(nll, parameter, cl=0.6827, best=best)
        minos = minos_ends(nll, best, parameter, 0.6827)
        assert minos is not None
        assert interval.segments == (pytest.approx(minos, abs=1e-3 * best.error(parameter)),)


@pytest.mark.parametrize("cl", [0.90, 0.95])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_agrees_with_minos_further_out(name: str, cl: float) -> None:
    """To 1e-3 of an error, plus what MINOS itself misses the contour by (2e-3 at most; it has a tolerance of its own).

    Near the wall of positive densities MINOS finds no end where there is one: there the loop is closed instead.
    """
    nll = LIKELIHOODS[name]
    best = fit(nll).raise_if_invalid()
    for parameter in nll.names:
        interval = profile_interval(nll, parameter, cl=cl, best=best)
        minos = minos_ends(nll, best, parameter, cl)
        assert minos is not None or name in ("6 of 36", "0 of 40")
        for ours, theirs in zip(interval.segments[0], minos or (), strict=minos is not None):
            q = 2.0 * (fit(nll, fixed={parameter: theirs}).nll - best.nll)
            missed = abs(q - interval.threshold) / (2.0 * math.sqrt(interval.threshold))
            assert missed < 2.5e-3
            assert abs(ours - theirs) < (1e-3 + missed) * best.error(parameter)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_closes_the_loop(name: str) -> None:
    """At each end, ``2 (nll - minimum)`` of a fit made anew is the quantile of chi2."""
    nll = LIKELIHOODS[name]
    best = fit(nll)
    for cl in LEVELS:
        interval = profile_interval(nll, nll.poi, cl=cl)
        assert interval.threshold == pytest.approx(chi2.ppf(cl, 1))
        assert interval.best == pytest.approx(best.value(nll.poi), abs=1e-6 * best.error(nll.poi))
        assert len(interval.segments) == 1
        for end in interval.segments[0]:
            assert end is not None
            assert 2.0 * (fit(nll, fixed={nll.poi: end}).nll - best.nll) == pytest.approx(interval.threshold, rel=1e-5)
    inner, outer = profile_interval(nll, nll.poi, cl=0.68), profile_interval(nll, nll.poi, cl=0.95)
    assert outer.low < inner.low < inner.best < inner.high < outer.high


@pytest.mark.parametrize("cl", LEVELS)
def test_gaussian_measurement(gaussian_measurement: Callable[..., NLL], cl: float) -> None:
    interval = profile_interval(gaussian_measurement(1.7, 0.4), "mu", cl=cl)
    half = 0.4 * math.sqrt(chi2.ppf(cl, 1))
    assert interval.segments == (pytest.approx((1.7 - half, 1.7 + half), rel=1e-6),)
    assert interval.notes == ()


@pytest.mark.parametrize("n", [1.0, 4.0, 30.0])
def test_interval_of_a_count(counting: Counting, n: float) -> None:
    """Ends where 2 [nu - n + n ln(n / nu)] is the quantile; the Gaussian interval would be far off."""
    nll, _ = counting(n, 2.0, 3.0)

    def excess(nu: float) -> float:
        return 2.0 * (nu - n + n * math.log(n / nu)) - chi2.ppf(0.95, 1)

    low, high = brentq(excess, 1e-9, n), brentq(excess, n, 20.0 * n + 20.0)
    interval = profile_interval(nll, "mu", cl=0.95)
    assert interval.low == pytest.approx((low - 3.0) / 2.0, rel=1e-6)
    assert interval.high == pytest.approx((high - 3.0) / 2.0, rel=1e-6)


def test_quantiles() -> None:
    assert [threshold(cl) for cl in LEVELS] == pytest.approx([1.0, 2.7055, 3.8415], rel=1e-4)
    assert threshold(0.6827, dof=2) == pytest.approx(2.2958, rel=1e-4)
    for cl in (0.0, 1.0, 95.0, -0.1, math.nan):
        with pytest.raises(OptionError, match=r"confidence level .* must lie between 0 and 1, for example 0.95"):
            threshold(cl)


def test_scan(rng: np.random.Generator) -> None:
    nll = ExtendedUnbinnedNLL.from_log_ratio(mixed(rng, 20, 100))
    best = fit(nll)
    grid = best.value("mu") + best.error("mu") * np.linspace(-3.0, 3.0, 13)
    scan = profile_scan(nll, "mu", grid)
    assert scan.q[6] == pytest.approx(0.0, abs=1e-9)
    expected = [2.0 * (fit(nll, fixed={"mu": value}).nll - best.nll) for value in grid]
    np.testing.assert_allclose(scan.q, expected, rtol=1e-6, atol=1e-9)
    assert scan.to_dict()["best"] == pytest.approx(best.value("mu"))
    # The order of a scan does not matter.
    np.testing.assert_allclose(profile_scan(nll, "mu", grid[::-1]).q[::-1], scan.q, rtol=1e-6, atol=1e-9)


def test_an_end_that_does_not_close_says_so(counting: Counting, gaussian_measurement: Callable[..., NLL]) -> None:
    bounded, _ = counting(2.0, 1.0, 3.0, low=0.0)
    interval = profile_interval(bounded, "mu", cl=0.95)
    assert interval.low is None
    assert interval.high is not None
    assert interval.notes == ("the 0.95 interval of mu has no lower end: the range of mu ends at 0",)
    assert interval.to_dict()["segments"] == [[None, interval.high]]
    narrow = profile_interval(gaussian_measurement(1.0, 1.0, 0.5, 1.5), "mu", cl=0.95)
    assert narrow.segments == ((None, None),)
    assert len(narrow.notes) == 2
    closes = profile_interval(gaussian_measurement(1.0, 1.0, 0.5, 9.0), "mu", cl=0.6827)
    assert closes.low is None
    assert closes.high == pytest.approx(2.0, rel=1e-4)


def test_a_likelihood_that_levels_off(saturating: NLL) -> None:
    closed = profile_interval(saturating, "t", cl=0.6827)
    assert closed.segments == (
        pytest.approx((-math.sqrt(2.0 * math.log(2.0)), math.sqrt(2.0 * math.log(2.0))), rel=1e-3),
    )
    with np.errstate(under="ignore"):
        open_ended = profile_interval(saturating, "t", cl=0.95)
    assert open_ended.segments == ((None, None),)
    assert open_ended.notes[0] == "the 0.95 interval of t has no lower end: the likelihood is flat there"
    assert "no upper end: the likelihood is flat there" in open_ended.notes[1]


def test_an_estimate_at_the_end_of_the_range(gaussian_measurement: Callable[..., NLL]) -> None:
    """Measured -1 +- 1 with mu >= 0: q(mu) = (mu + 1)^2 - 1."""
    interval = profile_interval(gaussian_measurement(-1.0, 1.0, 0.0), "mu", cl=0.95)
    assert interval.best == 0.0
    assert interval.low is None
    assert interval.high == pytest.approx(math.sqrt(1.0 + chi2.ppf(0.95, 1)) - 1.0, rel=1e-6)


def test_lower_end_at_the_positivity_wall(rng: np.random.Generator) -> None:
    """Known background and a deficit: the wall of positive densities closes the interval before the quantile does."""
    log_ratio = np.concatenate([[2.0], np.full(60, -4.0)])
    free = ExtendedUnbinnedNLL.from_log_ratio(log_ratio, weights=np.concatenate([[1e-9], np.ones(60)]))
    nll = NLL([Parameter("mu", 0.0), Parameter("n_bkg", 60.0, 0.0, fixed=True)], free.mixtures, (), poi="mu")
    wall = -60.0 / math.exp(2.0)
    assert nll(0.999999 * wall, 60.0) < math.inf == nll(1.000001 * wall, 60.0)
    profile = Profile(nll, "mu", fit(nll, fixed={"mu": wall + 1.0}))
    assert profile.q(2.0 * wall) == math.inf
    assert profile.root(3.841, wall + 1.0, 2.0 * wall) == pytest.approx(wall, rel=1e-6)


def test_two_peaks_give_two_segments(bump: Callable[..., ExtendedUnbinnedNLL]) -> None:
    """Two signals of about the same significance: the mass is one or the other."""
    first, second = (4.0 * norm.ppf((np.arange(n) + 0.5) / n) for n in (36, 27))
    smooth = -100.0 * np.log(1.0 - (np.arange(150) + 0.5) / 150 * (1.0 - math.exp(-1.0))) + 100.0
    nll = bump(np.concatenate([130.0 + first, smooth, 168.0 + second]), m_X=131.0)
    interval = profile_interval(nll, "m_X", cl=0.95)
    assert len(interval.segments) == 2
    (first_low, first_high), (second_low, second_high) = interval.segments
    assert first_low < 130.0 < first_high < 150.0 < second_low < 168.0 < second_high
    assert (interval.low, interval.high) == (first_low, second_high)
    lowest = min(fit(nll, start=nll.start_vector(m_X=m)).nll for m in (131.0, 167.0))
    for end in (first_low, first_high, second_low, second_high):
        assert 2.0 * (fit(nll, fixed={"m_X": end}).nll - lowest) == pytest.approx(interval.threshold, rel=1e-4)


def test_better_minimum_found_during_the_profile(double_well: NLL) -> None:
    wrong, right = fit(double_well, start=np.array([-1.2])), fit(double_well, start=np.array([1.2]))
    expected = profile_interval(double_well, "t", cl=0.95, best=right)
    found = profile_interval(double_well, "t", cl=0.95, best=wrong)
    assert found.best == pytest.approx(right.value("t"))
    assert len(found.segments) == len(expected.segments) == 1
    assert found.segments[0] == pytest.approx(expected.segments[0], rel=1e-6)
    grid = np.linspace(-1.5, 1.5, 31)
    scan = profile_scan(double_well, "t", grid, best=wrong)
    np.testing.assert_allclose(scan.q, [2.0 * (double_well(t) - right.nll) for t in grid], rtol=1e-9, atol=1e-9)
    assert scan.best.value("t") == pytest.approx(right.value("t"))


def test_better_minimum_stepped_on_while_leaving_the_interval(hidden_well: NLL) -> None:
    """The step out of the wrong interval lands on the flank of a deeper well, above the level seen from its bottom."""
    wrong, right = fit(hidden_well, start=np.array([0.0])), fit(hidden_well, start=np.array([21.0]))
    assert right.nll < wrong.nll - 5.0
    assert wrong.nll - 1.5 < hidden_well(19.5996) < wrong.nll - 0.5
    found, expected = (profile_interval(hidden_well, "t", cl=0.95, best=best) for best in (wrong, right))
    assert found.segments == (pytest.approx(expected.segments[0], rel=1e-6),)
    assert found.best == pytest.approx(21.0, abs=0.1)


def test_segments_of_a_double_well(double_well: NLL) -> None:
    """The lower well is 3 deeper: the other is inside where the quantile exceeds 6, and both merge above 16 or so."""
    polynomial = np.polynomial.Polynomial([8.0, -1.5, -16.0, 0.0, 8.0])
    lowest = fit(double_well, start=np.array([1.2])).nll
    for cl in (0.95, 0.99, 1.0 - 1e-5):
        level = chi2.ppf(cl, 1)
        roots = (polynomial - lowest - 0.5 * level).roots()
        real = sorted(roots[np.abs(roots.imag) < 1e-9].real)
        expected = [(real[k], real[k + 1]) for k in range(0, len(real), 2)]
        interval = profile_interval(double_well, "t", cl=cl)
        assert len(interval.segments) == len(expected) == {0.95: 1, 0.99: 2}.get(cl, 1)
        for segment, pair in zip(interval.segments, expected, strict=True):
            assert segment == pytest.approx(pair, abs=1e-5)


def test_a_gap_without_a_point_of_the_search(double_well: NLL) -> None:
    """The grid is -3, -1, 1, 3: the first point beyond the core is inside of the next segment already."""
    fine, coarse = (profile_interval(double_well, "t", cl=0.999, n_search=n) for n in (60, 4))
    assert len(fine.segments) == len(coarse.segments) == 2
    for first, second in zip(fine.segments, coarse.segments, strict=True):
        assert first == pytest.approx(second, abs=1e-5)


def test_a_barrier_within_one_error(barrier: NLL) -> None:
    """The first step outwards, two errors, would jump over it; the grid of the search does not let it."""
    interval = profile_interval(barrier, "t", cl=0.95)
    assert len(interval.segments) == 2
    (low, first), (second, high) = interval.segments
    assert low == pytest.approx(-19.6, abs=0.1)
    assert 3.0 < first < 6.0 < 10.0 < second < 13.0
    assert high == pytest.approx(19.6, abs=0.1)


def test_a_segment_at_the_end_of_the_range(double_well: NLL) -> None:
    cut = NLL([Parameter("t", 1.0, -1.0, 3.0)], [], double_well.constraints, poi="t")
    interval = profile_interval(cut, "t", cl=0.99)
    assert len(interval.segments) == 2
    assert interval.low is None
    assert "no lower end: the range of t ends at -1" in interval.notes[0]
    # A search that ends inside of a segment follows it to its end.
    inside = profile_interval(double_well, "t", cl=0.99, search=(-1.0, 1.5))
    whole = profile_interval(double_well, "t", cl=0.99)
    assert inside.segments[0] == pytest.approx(whole.segments[0], abs=1e-5)


def test_wrong_questions(rng: np.random.Generator) -> None:
    nll = ExtendedUnbinnedNLL.from_log_ratio(mixed(rng, 5, 20))
    with pytest.raises(ParameterError, match=r"there is no parameter 'n_bgk'; nearest names: n_bkg"):
        profile_interval(nll, "n_bgk")
    with pytest.raises(ParameterError, match=r"n_bkg = -5 is outside its range 0 to inf"):
        profile_scan(nll, "n_bkg", [-5.0, 10.0])
    with pytest.raises(OptionError, match="confidence level 95 must lie"):
        profile_interval(nll, "mu", cl=95)
    with pytest.raises(FitFailed, match=r"the fit is not valid: the Hessian is singular"):
        profile_interval(ExtendedUnbinnedNLL.from_log_ratio(np.zeros(20)), "mu")
