"""Neyman construction by toys: against exact belts, its Monte Carlo errors, and what it does with bad toys.

Statistical tests have a fixed seed; tolerances are four Monte Carlo errors.
"""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy.special import gammaln, xlogy

from gbistat.data.events import Events
from gbistat.data.window import MassWindow
from gbistat.errors import FitFailed, OptionError
from gbistat.fit.minimize import fit
from gbistat.inference.belts import gaussian_interval, poisson_interval
from gbistat.inference.critical import CriticalOptions, fit_critical_values, latin_hypercube, throw_design
from gbistat.inference.mass_scans import JointStatistic, MassGrid
from gbistat.inference.neyman import NeymanScan, neyman_interval
from gbistat.inference.neyman_problem import NeymanProblem, bounded_threshold, problem_of_toys
from gbistat.inference.neyman_results import NeymanOptions, ToyInterval
from gbistat.inference.profile import profile_interval, threshold
from gbistat.inference.results import IntervalResult
from gbistat.inference.toys import ToyModel
from gbistat.likelihood.components import Component, LogArray, MassFactor, Yield
from gbistat.likelihood.mixture import Mixture
from gbistat.likelihood.model import Model
from gbistat.likelihood.nll import ExtendedUnbinnedNLL
from gbistat.likelihood.parameters import Parameter
from gbistat.likelihood.reference import Reference, reference_from_quadrature
from gbistat.terms.density import MassDensity
from gbistat.terms.shapes.exponential import Exponential
from gbistat.terms.shapes.gaussian import Gaussian
from gbistat.typing import FloatArray


def t_gauss(x: FloatArray, mu: float, sigma: float = 1.0) -> FloatArray:
    result: FloatArray = np.where(x >= 0, (x - mu) ** 2, mu**2 - 2.0 * x * mu) / sigma**2
    return result


class GaussianToys:
    """Measurements of unit width, or of the width in the second true parameter; every `broken`-th fit fails."""

    def __init__(self, broken: int = 0) -> None:
        self.broken = broken

    def __call__(
        self, theta_true: FloatArray, poi_values: FloatArray, n_toys: int, *, rng: np.random.Generator
    ) -> FloatArray:
        x = rng.normal(theta_true[0], theta_true[1], n_toys)
        t = np.stack([t_gauss(x, float(value)) for value in poi_values], axis=1)
        if self.broken:
            t[:: self.broken] = np.nan
        return t


def gaussian_problem(x: float, *, broken: int = 0, sigma: float = 1.0) -> NeymanProblem:
    return NeymanProblem(
        poi="mu",
        index=0,
        best=max(x, 0.0),
        scale=1.0,
        low=0.0,
        high=math.inf,
        observed=lambda value: float(t_gauss(np.array(x), value)),
        profiled=lambda value: np.array([value, sigma]),
        statistics=GaussianToys(broken),
        asymptotic=bounded_threshold,
        method="feldman-cousins",
    )


def poisson_problem(n: int, b: float) -> NeymanProblem:
    def t(count: FloatArray, mu: float) -> FloatArray:
        best = np.maximum(count, b)
        return np.maximum(2.0 * (mu + b - best - xlogy(count, mu + b) + xlogy(count, best)), 0.0)

    def toys(theta_true: FloatArray, poi_values: FloatArray, n_toys: int, *, rng: np.random.Generator) -> FloatArray:
        count = rng.poisson(theta_true[0] + b, n_toys).astype(np.float64)
        return np.stack([t(count, float(value)) for value in poi_values], axis=1)

    return NeymanProblem(
        poi="mu",
        index=0,
        best=max(n - b, 0.0),
        scale=math.sqrt(n + 1.0),
        low=0.0,
        high=math.inf,
        observed=lambda value: float(t(np.array(float(n)), value)),
        profiled=lambda value: np.array([value]),
        statistics=toys,
    )


def ends(result: IntervalResult) -> tuple[float, float]:
    assert result.low is not None
    assert result.high is not None
    return result.low, result.high


def assert_ends(result: ToyInterval, exact: IntervalResult, *, sigmas: float = 4.0, extra: float = 0.0) -> None:
    """Ends within so many of their Monte Carlo errors; the edge of the range exactly."""
    assert len(result.segments) == 1
    for found, error, wanted in zip(ends(result), result.errors[0], ends(exact), strict=True):
        assert error is not None
        if wanted == 0.0:
            assert (found, error) == (0.0, 0.0)
        else:
            assert abs(found - wanted) < sigmas * error + extra


def exact_p_value(n: int, b: float, mu: float) -> float:
    """Probability of all counts whose statistic is at least that of n."""
    count = np.arange(n + 200, dtype=np.float64)
    best = np.maximum(count, b)
    t = 2.0 * (mu + b - best - xlogy(count, mu + b) + xlogy(count, best))
    mass = np.exp(xlogy(count, mu + b) - mu - b - gammaln(count + 1.0))
    return float(mass[t >= t[n] - 1e-9].sum())


def assert_count_ends(result: ToyInterval, n: int, b: float, cl: float) -> None:
    """The p-value of a count jumps, and between jumps it may stay near 1 - cl: it must cross it where the end is said to be."""
    assert len(result.segments) == 1
    exact = ends(poisson_interval(n, b, cl=cl))
    for side, found, error, wanted in zip((-1, 1), ends(result), result.errors[0], exact, strict=True):
        assert error is not None
        if wanted == 0.0:
            assert (found, error) == (0.0, 0.0)
            continue
        assert abs(found - wanted) < 0.06 * (abs(wanted - result.best) + 1.0) + error
        reach = error + 0.005
        assert exact_p_value(n, b, found - side * reach) > 1.0 - cl - 0.006
        assert exact_p_value(n, b, found + side * reach) < 1.0 - cl + 0.006


class TestAgainstExactBelts:
    @pytest.mark.parametrize("x", [-2.0, 0.0, 1.5, 3.0])
    @pytest.mark.parametrize("cl", [0.6827, 0.90, 0.95])
    def test_gaussian_with_boundary(self, x: float, cl: float) -> None:
        result = neyman_interval(gaussian_problem(x), cl=cl, rng=np.random.default_rng(41))
        assert_ends(result, gaussian_interval(x, cl=cl))
        for end, error in zip(ends(result), result.errors[0], strict=True):
            assert error is not None
            assert error <= 0.025 * abs(end - max(x, 0.0))
        assert result.best == max(x, 0.0)
        assert "same ends" in result.notes[-1]

    @pytest.mark.parametrize(("n", "b"), [(0, 0.0), (1, 0.0), (4, 0.0), (6, 3.0), (0, 3.0), (2, 1.0)])
    @pytest.mark.parametrize("cl", [0.6827, 0.90])
    def test_counts(self, n: int, b: float, cl: float) -> None:
        result = neyman_interval(poisson_problem(n, b), cl=cl, rng=np.random.default_rng(42))
        assert_count_ends(result, n, b, cl)

    def test_errors_are_calibrated(self) -> None:
        # Pulls of 80 ends: mean 0 and width 1 within about three errors.
        exact = ends(gaussian_interval(3.0, cl=0.90))
        pulls = []
        for seed in range(40):
            result = neyman_interval(gaussian_problem(3.0), cl=0.90, rng=np.random.default_rng(seed))
            for found, wanted, error in zip(ends(result), exact, result.errors[0], strict=True):
                assert error is not None
                pulls.append((found - wanted) / error)
        assert abs(np.mean(pulls)) < 0.4
        assert 0.7 < np.std(pulls) < 1.3

    def test_levels_share_their_toys(self) -> None:
        scan = NeymanScan(gaussian_problem(3.0), rng=np.random.default_rng(43))
        first = scan.interval(cl=0.6827)
        again = scan.interval(cl=0.6827)
        assert again.segments == first.segments
        assert again.n_toys == first.n_toys
        second = scan.interval(cl=0.95)
        assert second.n_toys > first.n_toys
        assert ends(second)[0] < ends(first)[0] < ends(first)[1] < ends(second)[1]


class TestSpending:
    def test_precision_costs_toys(self) -> None:
        coarse = neyman_interval(
            gaussian_problem(3.0), rng=np.random.default_rng(1), options=NeymanOptions(precision=0.1)
        )
        fine = neyman_interval(
            gaussian_problem(3.0), rng=np.random.default_rng(1), options=NeymanOptions(precision=0.01)
        )
        assert fine.n_toys > 2 * coarse.n_toys
        assert fine.errors[0][1] is not None
        assert coarse.errors[0][1] is not None
        assert fine.errors[0][1] < 0.5 * coarse.errors[0][1]

    def test_stops_and_says_so_when_toys_run_out(self) -> None:
        options = NeymanOptions(precision=1e-4, max_toys=20_000)
        result = neyman_interval(gaussian_problem(3.0), rng=np.random.default_rng(1), options=options)
        assert result.n_toys < 45_000
        assert any("raise max_toys or precision" in note for note in result.notes)
        assert_ends(result, gaussian_interval(3.0, cl=0.95))

    def test_single_values(self) -> None:
        scan = NeymanScan(gaussian_problem(3.0), rng=np.random.default_rng(2))
        far, near = scan.test(0.0, cl=0.95), scan.test(1.15, cl=0.95)
        assert far.p_value < 0.05 < near.p_value
        assert near.n_toys > far.n_toys
        assert near.critical == pytest.approx(bounded_threshold(1.15, 0.95), abs=4.0 * near.critical_error)
        with pytest.raises(OptionError, match="outside 0 to"):
            scan.test(-1.0)

    def test_workers_change_nothing(self) -> None:
        serial = neyman_interval(gaussian_problem(1.0), rng=np.random.default_rng(3))
        with ThreadPoolExecutor(2) as pool:
            parallel = neyman_interval(gaussian_problem(1.0), rng=np.random.default_rng(3), mapper=pool.map)
        assert serial == parallel

    def test_result_is_an_interval_and_json(self) -> None:
        result = neyman_interval(gaussian_problem(1.0), rng=np.random.default_rng(3))
        assert isinstance(result, IntervalResult)
        document = json.loads(json.dumps(result.to_dict()))
        assert document["method"] == "feldman-cousins"
        assert len(document["errors"]) == len(document["segments"])
        assert len(document["points"]["p_value"]) == len(result.points)


class TestNuisances:
    def test_worst_case_is_the_wider_one(self) -> None:
        # Toys that fluctuate by 1.3 instead of 1 have critical values 1.69 times as large.
        plain = gaussian_problem(5.0)
        worst = neyman_interval(
            plain, cl=0.90, rng=np.random.default_rng(4), nuisances=np.array([[0.0, 0.8], [0.0, 1.3]])
        )
        alone = neyman_interval(gaussian_problem(5.0, sigma=1.3), cl=0.90, rng=np.random.default_rng(5))
        assert ends(worst) == pytest.approx((5.0 - 1.3 * 1.645, 5.0 + 1.3 * 1.645), abs=0.15)
        for a, b, ea, eb in zip(ends(worst), ends(alone), worst.errors[0], alone.errors[0], strict=True):
            assert ea is not None
            assert eb is not None
            assert abs(a - b) < 4.0 * math.hypot(ea, eb)

    def test_nuisances_as_a_function(self) -> None:
        fixed = neyman_interval(gaussian_problem(5.0), rng=np.random.default_rng(6), nuisances=np.array([[9.0, 1.2]]))
        moving = neyman_interval(
            gaussian_problem(5.0), rng=np.random.default_rng(6), nuisances=lambda value: np.array([[value, 1.2]])
        )
        assert fixed == moving

    def test_gamma_is_taken_from_the_level(self) -> None:
        scan = NeymanScan(gaussian_problem(3.0), rng=np.random.default_rng(7), options=NeymanOptions(gamma=0.04))
        assert_ends(scan.interval(cl=0.91), gaussian_interval(3.0, cl=0.95))
        with pytest.raises(OptionError, match="leaves nothing"):
            scan.interval(cl=0.97)


class TestBadToys:
    def test_failed_toys_are_counted(self) -> None:
        result = neyman_interval(gaussian_problem(3.0, broken=10), rng=np.random.default_rng(8))
        assert result.n_failed == pytest.approx(result.n_toys / 9, rel=0.02)
        assert any(f"{result.n_failed} of" in note for note in result.notes)
        assert_ends(result, gaussian_interval(3.0, cl=0.95))

    def test_all_fail(self) -> None:
        with pytest.raises(FitFailed, match=r"all \d+ toys thrown at"):
            neyman_interval(gaussian_problem(3.0, broken=1), rng=np.random.default_rng(8))

    def test_wrong_shape(self) -> None:
        problem = gaussian_problem(3.0)
        object.__setattr__(problem, "statistics", lambda theta, values, n, *, rng: np.zeros(n))
        with pytest.raises(OptionError, match="gave statistics of shape"):
            neyman_interval(problem, rng=np.random.default_rng(8))


class TestErrors:
    def test_options(self) -> None:
        with pytest.raises(OptionError, match="precision 0"):
            NeymanOptions(precision=0.0)
        with pytest.raises(OptionError, match="min_toys 0"):
            NeymanOptions(min_toys=0)
        with pytest.raises(OptionError, match="max_toys 100"):
            NeymanOptions(max_toys=100)
        with pytest.raises(OptionError, match="n_points 2"):
            NeymanOptions(n_points=2)
        with pytest.raises(OptionError, match="gamma"):
            NeymanOptions(gamma=1.0)

    def test_level_and_settings(self) -> None:
        with pytest.raises(OptionError, match="between 0 and 1"):
            neyman_interval(gaussian_problem(3.0), cl=95.0, rng=np.random.default_rng(1))
        with pytest.raises(OptionError, match="for 2 parameters"):
            neyman_interval(gaussian_problem(3.0), rng=np.random.default_rng(1), nuisances=np.ones((1, 3)))
        with pytest.raises(OptionError, match="estimate -1"):
            NeymanProblem(**{**vars(gaussian_problem(0.0)), "best": -1.0})

    def test_asymptotic_threshold(self) -> None:
        assert bounded_threshold(0.0, 0.95) == pytest.approx(threshold(0.90))
        assert bounded_threshold(8.0, 0.95) == pytest.approx(threshold(0.95))


def counting_model(n: int, b: float) -> ToyModel:
    """A count: signal and a known background of the same density, which tells nothing about single events."""
    model = Model(
        (
            Component("signal", Yield({"mu": 1.0}), (LogArray(np.zeros(n)),)),
            Component("background", Yield({}, constant=b), (LogArray(np.zeros(n)),)),
        ),
        (Parameter("mu", 1.0),),
    )
    nll = ExtendedUnbinnedNLL(model, Events(mass=np.zeros(n)))
    one = Model(
        (
            Component("signal", Yield({"mu": 1.0}), (LogArray(np.zeros(1)),)),
            Component("background", Yield({}, constant=b), (LogArray(np.zeros(1)),)),
        ),
        (Parameter("mu", 1.0),),
    )
    mixture = Mixture.of(one, Events(mass=np.zeros(1)), np.ones(1))
    return ToyModel.from_nll(nll, Reference(mixture, np.ones(1), "quadrature", math.inf, 1.0))


DOMAIN = ((0.0, 10.0),)


def bump(n_bkg: float, n_sig: float, seed: int, *, free_mass: bool = False) -> tuple[ExtendedUnbinnedNLL, ToyModel]:
    """Gaussian bump on an exponential, its mass fixed or a parameter."""
    rng = np.random.default_rng(seed)
    background = MassDensity.fixed(Exponential(), DOMAIN, np.array([0.4]))
    if free_mass:
        signal = MassDensity(Gaussian(), DOMAIN, ("m_X",), np.array([0.0, 0.4]), np.array([[1.0], [0.0]]))
    else:
        signal = MassDensity.fixed(Gaussian(), DOMAIN, np.array([4.0, 0.4]))
    parameters = [Parameter("mu", 0.0, -200.0, 2000.0), Parameter("n_bkg", n_bkg, 0.0)]
    if free_mass:
        parameters.append(Parameter("m_X", 4.0, 1.0, 9.0))
    model = Model(
        (
            Component("signal", Yield({"mu": 1.0}), (MassFactor(signal),)),
            Component("background", Yield({"n_bkg": 1.0}), (MassFactor(background),)),
        ),
        tuple(parameters),
        window=MassWindow(0.0, 10.0),
    )
    values = np.array([4.0]) if free_mass else np.empty(0)
    mass = np.concatenate(
        [
            background.sample(rng.poisson(n_bkg), np.empty(0), rng=rng),
            signal.sample(rng.poisson(n_sig), values, rng=rng),
        ]
    )
    nll = ExtendedUnbinnedNLL(model, Events(mass=mass))
    return nll, ToyModel.from_nll(nll, reference_from_quadrature(model))


class TestToyModels:
    @pytest.mark.parametrize(("n", "b", "cl"), [(7, 3.0, 0.90), (2, 1.0, 0.6827)])
    def test_a_count_gives_the_exact_belt(self, n: int, b: float, cl: float) -> None:
        result = neyman_interval(problem_of_toys(counting_model(n, b)), cl=cl, rng=np.random.default_rng(51))
        assert result.method == "feldman-cousins"
        assert_count_ends(result, n, b, cl)

    def test_many_events_agree_with_wilks(self) -> None:
        nll, model = bump(20_000.0, 800.0, 52)
        result = neyman_interval(problem_of_toys(model), cl=0.6827, rng=np.random.default_rng(53))
        wilks = profile_interval(nll, "mu", cl=0.6827)
        assert_ends(result, wilks, extra=0.01 * (ends(wilks)[1] - ends(wilks)[0]))
        assert ends(result) == pytest.approx(result.asymptotic, rel=0.02)

    def test_bounded_and_unbounded_ordering(self) -> None:
        _, model = bump(400.0, 0.0, 58)
        bounded = problem_of_toys(model)
        free = problem_of_toys(model, statistic="tmu")
        low = neyman_interval(free, cl=0.6827, rng=np.random.default_rng(1))
        high = neyman_interval(bounded, cl=0.6827, rng=np.random.default_rng(1))
        assert low.method == "neyman"
        assert low.best < 0.0 <= high.best
        assert low.low is None or low.low < 0.0
        assert high.low == 0.0
        with pytest.raises(FitFailed, match="do not bound it"):
            problem_of_toys(counting_model(0, 0.5), statistic="tmu")
        with pytest.raises(OptionError, match="tmu_tilde"):
            problem_of_toys(model, statistic="q0")  # type: ignore[arg-type]

    def test_no_events(self) -> None:
        # The unbounded likelihood ratio has no minimum here; the bounded one has, at 0.
        result = neyman_interval(problem_of_toys(counting_model(0, 0.5)), cl=0.90, rng=np.random.default_rng(54))
        assert ends(result)[0] == 0.0
        assert ends(result)[1] == pytest.approx(ends(poisson_interval(0, 0.5))[1], abs=0.1)


class TestMassScans:
    def test_scans_and_planes_keep_their_shape(self) -> None:
        _, model = bump(300.0, 30.0, 61, free_mass=True)
        grid = MassGrid(("m_X",), np.array([[2.0], [np.nan], [4.0], [6.0]]))
        observed = grid.data_scan(model)
        toys = grid.toy_scans(model, model.theta(mu=0.0), 20, rng=np.random.default_rng(1))
        assert observed.shape == (4,)
        assert toys.shape == (20, 4)
        assert np.isnan(observed).tolist() == [False, True, False, False]
        assert np.isnan(toys).all(axis=0).tolist() == [False, True, False, False]
        assert observed[2] == np.nanmax(observed) > 9.0

    def test_joint_statistic_is_the_likelihood_ratio(self) -> None:
        nll, model = bump(300.0, 30.0, 61, free_mass=True)
        grid = MassGrid(("m_X",), np.linspace(3.0, 5.0, 41)[:, None])
        joint = JointStatistic(model, grid, model.theta())
        best = fit(nll, start=nll.start_vector(mu=30.0)).raise_if_invalid()
        for mu, mass in ((20.0, 4.2), (45.0, 3.8), (0.0, 4.0)):
            held = fit(nll, fixed={"mu": mu, "m_X": mass}).raise_if_invalid()
            expected = 2.0 * (held.nll - best.nll)
            # The grid of masses misses the minimum by a little.
            assert joint.observed([np.array([mu, mass])])[0] == pytest.approx(expected, abs=0.02)
        values = joint(np.array([30.0, 4.0]), 30, rng=np.random.default_rng(2))
        assert values.shape == (30,)
        assert (values >= -1e-6).all()

    @pytest.mark.slow
    def test_one_campaign_for_mu_and_mass(self) -> None:
        # Smooth critical values of the joint statistic against brute force at two points, as probabilities: 1000 toys there
        # have an error of 0.01, and the surface from 1800 toys one of about 0.015.
        _, model = bump(300.0, 30.0, 61, free_mass=True)
        joint = JointStatistic(model, MassGrid(("m_X",), np.linspace(3.0, 6.0, 11)[:, None]), model.theta())
        design = latin_hypercube([0.0, 3.3], [60.0, 5.7], 45, rng=np.random.default_rng(71))
        points, t = throw_design(joint, design, rng=np.random.default_rng(72), toys_per_point=40)
        surface = fit_critical_values(
            points, t, cls=(0.90,), low=[0.0, 3.3], high=[60.0, 5.7], options=CriticalOptions(pieces=3)
        )
        for point in ([10.0, 5.2], [40.0, 3.8]):
            toys = joint(np.array(point), 1000, rng=np.random.default_rng(73))
            value = float(surface.value(np.array([point]), 0.90)[0])
            assert float((toys <= value).mean()) == pytest.approx(0.90, abs=0.05)
        # The truth is in the set, a mass without any excess at this strength is not.
        there = np.array([[30.0, 4.0], [30.0, 5.5]])
        assert surface.accepts(there, joint.observed(there), 0.90).tolist() == [True, False]

    def test_errors(self) -> None:
        with pytest.raises(OptionError, match="hypotheses of shape"):
            MassGrid(("m_X", "m_Y"), np.ones((3, 1)))
