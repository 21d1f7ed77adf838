"""Toy CLs, limits and p-values: exact sums for counting experiments, asymptotics for many events."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import poisson

from gbistat.errors import FitFailed, OptionError, ScanRangeError
from gbistat.inference.discovery import discovery
from gbistat.inference.limits import AsymptoticCLs, upper_limit
from gbistat.inference.toy_discovery import toy_p0
from gbistat.inference.toy_limit_results import ToyBudget, fraction
from gbistat.inference.toy_limits import ToyCLs, toy_upper_limit
from gbistat.inference.toys import ToyModel
from gbistat.likelihood.constraints import NormalConstraint
from gbistat.likelihood.nll import ExtendedUnbinnedNLL


def generator(seed=1):
    return np.random.default_rng(seed)


def counting_cls(mu, n, b):
    """CLs of a counting experiment: a count above the tested one has q = 0, the least extreme."""
    return poisson.cdf(n, mu + b) / poisson.cdf(n, b)


def test_counting_cls_is_the_exact_sum(toy_counting):
    scan = ToyCLs(toy_counting(4.0, 3), rng=generator())
    for point in scan.scan([2.0, 4.0, 6.0], 20_000):
        assert point.p_signal == pytest.approx(poisson.cdf(3, point.value + 4.0), abs=4 * point.p_signal_error)
        assert point.p_background == pytest.approx(poisson.cdf(3, 4.0), abs=4 * point.p_background_error)
        assert point.observed == pytest.approx(counting_cls(point.value, 3, 4.0), abs=4 * point.error)
        # An error of the size that 20,000 toys give, not of another.
        assert point.p_signal_error == pytest.approx(np.sqrt(point.p_signal * (1 - point.p_signal) / 20_000))
        assert point.n_signal == point.n_background == 20_000


@pytest.mark.parametrize("observed", [0, 3, 8])
def test_counting_limits_are_exact(toy_counting, observed):
    b = 4.0
    limit = toy_upper_limit(toy_counting(b, observed), rng=generator(2), budget=ToyBudget(4000, 16_000, 0.01))
    exact = brentq(lambda mu: counting_cls(mu, observed, b) - 0.05, 0.1, 30.0)
    # 1 % for the curve through few points.
    assert limit.observed == pytest.approx(exact, abs=4 * limit.error + 0.01 * exact)
    # No event at all is rare with a background of 4: few toys tell.
    assert limit.error < (0.1 if observed == 0 else 0.03) * exact
    # Median expected: data of the median count.
    median = brentq(lambda mu: counting_cls(mu, 4, b) - 0.05, 0.1, 30.0)
    assert limit.expected[2] == pytest.approx(median, abs=4 * limit.expected_errors[2] + 0.02 * median)
    assert list(limit.expected) == sorted(limit.expected)


def test_counting_limits_without_background_are_3_events(toy_counting):
    limit = toy_upper_limit(toy_counting(1e-6, 0), rng=generator(3), budget=ToyBudget(4000, 8000, 0.01))
    assert limit.observed == pytest.approx(-np.log(0.05), abs=4 * limit.error + 0.03)
    assert limit.asymptotic is None or limit.agrees is False


def test_limits_of_many_events_are_asymptotic(toy_bump):
    model = toy_bump(20_000, 200.0, n_pool=40_000, seed=5)
    asymptotic = upper_limit(model.nll, model.references)
    limit = toy_upper_limit(model, rng=generator(4), budget=ToyBudget(2000, 8000, 0.01))
    assert limit.n_failed == 0
    assert limit.asymptotic == pytest.approx(asymptotic.observed)
    assert limit.agrees
    assert limit.observed == pytest.approx(asymptotic.observed, abs=4 * limit.error + 0.02 * asymptotic.observed)
    for n in (1, 2, 3, 4):
        allowed = 4 * limit.expected_errors[n] + 0.03 * asymptotic.expected[n]
        assert limit.expected[n] == pytest.approx(asymptotic.expected[n], abs=allowed)
    value = asymptotic.observed
    (point,) = ToyCLs(model, rng=generator(5)).scan([value], 8000)
    expected = AsymptoticCLs(model.nll, model.references).point(value)
    assert point.q_observed == pytest.approx(expected.q_observed, abs=1e-6)
    assert point.p_signal == pytest.approx(expected.p_signal, abs=4 * point.p_signal_error + 0.005)
    assert point.p_background == pytest.approx(expected.p_background, abs=4 * point.p_background_error + 0.01)
    for n in (1, 2, 3):
        assert point.expected[n] == pytest.approx(expected.expected[n], abs=0.02)


def test_clsb_is_below_cls_and_undercovers_nothing_by_itself(toy_counting):
    b, n = 9.0, 5
    limit = toy_upper_limit(toy_counting(b, n), rule="clsb", rng=generator(6), budget=ToyBudget(4000, 8000, 0.02))
    exact = brentq(lambda mu: poisson.cdf(n, mu + b) - 0.05, 0.01, 30.0)
    assert limit.observed == pytest.approx(exact, abs=4 * limit.error + 0.02 * (exact + 3))
    assert limit.method == "clsb-toys"
    assert limit.asymptotic is None
    assert limit.agrees is None
    cls = brentq(lambda mu: counting_cls(mu, n, b) - 0.05, 0.01, 30.0)
    assert limit.observed < 0.9 * cls


def test_clsb_excludes_everything_where_events_are_missing(toy_counting):
    # P(N <= 3 | 12) = 0.2 %: CLs+b is below 5 % for any signal, CLs is not.
    limit = toy_upper_limit(toy_counting(12.0, 3), rule="clsb", rng=generator(14), budget=ToyBudget(2000, 2000, 0.1))
    assert limit.observed == 0.0
    assert "excludes every value" in limit.notes[0]
    # One background toy in 440 is like the data: 2000 toys cannot tell a CLs of 5 % from 0, more can.
    with pytest.raises(ScanRangeError, match="2000 toys are too few"):
        toy_upper_limit(toy_counting(12.0, 3), rng=generator(14), budget=ToyBudget(2000, 2000, 0.1))
    more = toy_upper_limit(toy_counting(12.0, 3), rng=generator(14), budget=ToyBudget(2000, 32_000, 0.5))
    exact = brentq(lambda mu: counting_cls(mu, 3, 12.0) - 0.05, 0.1, 30.0)
    assert more.points[0].n_signal > 2000
    assert more.observed == pytest.approx(exact, abs=4 * more.error + 0.02 * exact)


def test_toys_are_added_until_the_precision_is_reached(toy_counting):
    model = toy_counting(4.0, 5)
    rough = toy_upper_limit(model, rng=generator(7), budget=ToyBudget(1000, 64_000, 0.2))
    fine = toy_upper_limit(model, rng=generator(7), budget=ToyBudget(1000, 32_000, 0.015))
    assert rough.points[0].n_signal == 1000
    assert fine.points[0].n_signal > 1000
    assert fine.error <= 0.015 * fine.observed
    assert fine.expected_errors[2] <= 0.015 * fine.expected[2]
    again = toy_upper_limit(model, rng=generator(7), budget=ToyBudget(1000, 32_000, 0.015))
    assert again == fine


def test_a_limit_beyond_the_range_is_an_error(toy_counting):
    base = toy_counting(4.0, 6)
    low = [type(p)(p.name, p.start, p.low, 5.0 if p.name == "mu" else p.high, p.fixed) for p in base.nll.parameters]
    nll = type(base.nll)(low, base.nll.mixtures, base.nll.constraints, poi="mu")
    with pytest.raises(ScanRangeError, match="limit of mu was not reached at 5"):
        toy_upper_limit(ToyModel.from_nll(nll, base.references), rng=generator(8), budget=ToyBudget(200, 200, 0.5))


# p-values.


def test_counting_p_value_is_the_exact_sum(toy_counting):
    result = toy_p0(toy_counting(10.0, 16), rng=generator(9), budget=ToyBudget(2000, 64_000, 0.03))
    exact = poisson.sf(15, 10.0)
    assert result.p == pytest.approx(exact, abs=4 * result.error)
    assert result.error <= 0.03 * result.p
    assert result.error == pytest.approx(np.sqrt(result.p * (1 - result.p) / result.n_toys), rel=1e-6)
    assert result.z == pytest.approx(1.6563, abs=4 * result.z_error + 0.01)
    # sqrt(q0) = 1.75: p = 0.040, the sum is 0.049.
    assert not result.agrees
    assert "does not agree" in result.notes[0]


def test_p_value_of_many_events_is_asymptotic(toy_bump):
    base = toy_bump(20_000, 200.0, n_pool=40_000, seed=5)
    # A data set with an excess: signal-like events drawn from the pool are added.
    rng = generator(10)
    shares = base.pools[0].shares(base.theta(), base.theta())
    ratio = shares[0] / shares[1]
    rows = np.r_[rng.choice(ratio.size, 20_000), rng.choice(ratio.size, 160, p=shares[0])]
    data = ExtendedUnbinnedNLL.from_log_ratio(np.log(ratio[rows]), nominal=200.0)
    model = ToyModel.from_nll(data, base.references)
    result = toy_p0(model, rng=generator(11), budget=ToyBudget(4000, 64_000, 0.05))
    scalar = discovery(model.nll)
    assert scalar.z > 1.5
    assert result.observed == pytest.approx(scalar.q0, abs=1e-6)
    assert result.asymptotic == pytest.approx(scalar.p0)
    assert result.p == pytest.approx(scalar.p0, abs=4 * result.error + 0.05 * scalar.p0)
    assert result.agrees


def test_no_toy_as_extreme_gives_a_bound(toy_counting):
    result = toy_p0(toy_counting(2.0, 30), rng=generator(12), budget=ToyBudget(500, 1000, 0.1))
    assert result.p == 0.0
    assert result.z == np.inf
    assert 2.5 < result.z_at_least < 3.1  # 3 in 1000
    assert result.to_dict()["z_local"] is None
    assert "none of 1000 toys" in result.notes[-1]


def test_a_deficit_has_p_value_1(toy_counting):
    result = toy_p0(toy_counting(10.0, 4), rng=generator(13), budget=ToyBudget(500, 500, 0.1))
    assert result.observed == 0.0
    assert result.p == 1.0


def test_failed_toys_are_part_of_the_error():
    p, error = fraction(100, 900, 100)
    assert p == pytest.approx(1 / 9)
    assert error == pytest.approx(np.hypot(np.sqrt(p * (1 - p) / 900), 0.1))


def test_bad_requests(toy_counting):
    model = toy_counting(4.0, 4)
    with pytest.raises(OptionError, match="at least 100"):
        ToyBudget(10, 100)
    with pytest.raises(OptionError, match="maximum above"):
        ToyBudget(2000, 1000)
    with pytest.raises(OptionError, match="precision 0"):
        ToyBudget(precision=0.0)
    with pytest.raises(OptionError, match="'cl_s' is unknown"):
        ToyCLs(model, rng=generator(), rule="cl_s")
    with pytest.raises(OptionError, match="confidence level 95"):
        toy_upper_limit(model, cl=95.0, rng=generator())
    broken = ToyModel.from_nll(model.nll.with_constraint(NormalConstraint("mu", np.nan, 1.0)), model.references)
    with pytest.raises(FitFailed):
        toy_p0(broken, rng=generator())
