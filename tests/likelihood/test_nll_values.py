"""Values of likelihoods against plain formulas, and where they have none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import expon, norm

from gbistat.data.events import Events
from gbistat.errors import EventsError, ModelError, OptionError, ParameterError
from gbistat.likelihood.components import Component, LogArray, LogOffset, LogRatio, MassFactor, Yield
from gbistat.likelihood.constraints import NormalConstraint
from gbistat.likelihood.mixture import BLOCK
from gbistat.likelihood.model import Model
from gbistat.likelihood.nll import ExtendedUnbinnedNLL, UnbinnedNLL
from gbistat.likelihood.parameters import Parameter
from gbistat.terms.density import MassDensity


def plain_nll(log_ratio: np.ndarray, n_sig: float, n_bkg: float, weights: np.ndarray | None = None) -> float:
    terms = np.log(n_sig * np.exp(log_ratio) + n_bkg)
    return n_sig + n_bkg - math.fsum(terms if weights is None else weights * terms)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 1000, BLOCK, BLOCK + 5, 2 * BLOCK + 1])
def test_extended_form_for_any_number_of_events(rng: np.random.Generator, size: int) -> None:
    log_ratio = rng.normal(-1.0, 2.0, size)
    nll = ExtendedUnbinnedNLL.from_log_ratio(log_ratio, nominal=4.0)
    for mu, n_bkg in ((0.0, 50.0), (3.0, 20.0), (-0.01, 900.0)):
        assert nll(mu, n_bkg) == pytest.approx(plain_nll(log_ratio, 4.0 * mu, n_bkg), rel=1e-12, abs=1e-12)
        assert nll.evaluate(np.array([mu, n_bkg])).value == pytest.approx(nll(mu, n_bkg), rel=1e-14)


def test_weights_multiply_logarithms(rng: np.random.Generator) -> None:
    log_ratio, weights = rng.normal(-1.0, 2.0, 500), rng.uniform(-0.5, 2.0, 500)
    nll = ExtendedUnbinnedNLL.from_log_ratio(log_ratio, weights=weights)
    assert nll(3.0, 400.0) == pytest.approx(plain_nll(log_ratio, 3.0, 400.0, weights), rel=1e-12)


def test_densities_of_mass_against_scipy(resonance: Model, spectrum: Events) -> None:
    mass = spectrum.mass
    nll = ExtendedUnbinnedNLL(resonance, spectrum)
    signal = norm(141.0, 7.0)
    background = expon(scale=1 / 0.03)
    p_s = signal.pdf(mass) / (signal.cdf(200.0) - signal.cdf(100.0))
    p_b = background.pdf(mass) / (background.cdf(200.0) - background.cdf(100.0))
    expected = 50.0 + 380.0 - np.log(50.0 * p_s + 380.0 * p_b).sum()
    assert nll(50.0, 141.0, 7.0, 380.0, 0.03) == pytest.approx(expected, rel=1e-12)
    shape_only = UnbinnedNLL(resonance, spectrum)
    expected = -np.log(0.2 * p_s + 0.8 * p_b).sum()
    assert shape_only(0.2, 141.0, 7.0, 0.03) == pytest.approx(expected, rel=1e-12)


def test_yields_and_shares(resonance: Model, spectrum: Events) -> None:
    nll = ExtendedUnbinnedNLL(resonance, spectrum)
    theta = np.array([50.0, 141.0, 7.0, 380.0, 0.03])
    np.testing.assert_allclose(nll.mixture.yields(theta), [50.0, 380.0])
    shares = nll.mixture.fractions(theta)
    np.testing.assert_allclose(shares.sum(axis=0), 1.0)
    signal = resonance.component("signal").factors[0].prepare(spectrum).log_prob(np.array([141.0, 7.0]))
    np.testing.assert_allclose(shares[0] * nll.mixture.intensity(theta), 50.0 * np.exp(signal), rtol=1e-10)


def test_yield_scales_with_the_exponential_of_nuisances() -> None:
    rate = Yield({"mu": 10.0, "n_spurious": 1.0}, 2.0, {"efficiency": 0.1, "luminosity": 0.02})
    assert rate.parameters == ("mu", "n_spurious", "efficiency", "luminosity")
    model = Model(
        components=(Component("signal", rate, (LogArray(np.zeros(1)),)),),
        parameters=tuple(Parameter(name, 0.0) for name in rate.parameters),
    )
    nll = ExtendedUnbinnedNLL(model, Events(mass=[0.0]))
    expected = (10.0 * 1.5 + 4.0 + 2.0) * math.exp(0.1 * 2.0 - 0.02 * 3.0)
    assert nll.mixture.yields(np.array([1.5, 4.0, 2.0, -3.0]))[0] == pytest.approx(expected)


def test_constraints_are_added(rng: np.random.Generator) -> None:
    log_ratio = rng.normal(-1.0, 2.0, 50)
    free = ExtendedUnbinnedNLL.from_log_ratio(log_ratio)
    held = ExtendedUnbinnedNLL.from_log_ratio(log_ratio, constraints=[NormalConstraint("n_bkg", 40.0, 4.0)])
    assert held(2.0, 50.0) - free(2.0, 50.0) == pytest.approx(0.5 * 2.5**2)


@pytest.mark.parametrize("log_ratio", [600.0, 700.0, -600.0, -700.0, -5000.0])
def test_huge_and_tiny_ratios(log_ratio: float) -> None:
    nll = ExtendedUnbinnedNLL.from_log_ratio(np.array([log_ratio, 0.3]))
    terms = np.logaddexp(math.log(2.5) + np.array([log_ratio, 0.3]), math.log(30.0))
    assert nll(2.5, 30.0) == pytest.approx(32.5 - terms.sum(), rel=1e-13)
    assert nll(0.0, 30.0) == pytest.approx(30.0 - 2 * math.log(30.0), rel=1e-12)
    share = np.exp(log_ratio - terms[0]), np.exp(-terms[0])
    ratio = math.exp(0.3) / (2.5 * math.exp(0.3) + 30.0), 1.0 / (2.5 * math.exp(0.3) + 30.0)
    expected = [1.0 - share[0] - ratio[0], 1.0 - share[1] - ratio[1]]
    np.testing.assert_allclose(nll.grad(2.5, 30.0), expected, rtol=1e-12)


def test_ratios_beyond_what_a_number_can_hold() -> None:
    """exp(5000) is no float64, but -ln L is; at mu = 0 the event is one that cannot happen."""
    nll = ExtendedUnbinnedNLL.from_log_ratio(np.array([5000.0, 0.3]))
    terms = np.logaddexp(math.log(2.5) + np.array([5000.0, 0.3]), math.log(30.0))
    assert nll(2.5, 30.0) == pytest.approx(32.5 - terms.sum(), rel=1e-13)
    assert nll.grad(2.5, 30.0)[0] == pytest.approx(1.0 - 1.0 / 2.5 - 1.0 / (2.5 + 30.0 * math.exp(-0.3)), rel=1e-12)
    assert nll(0.0, 30.0) == math.inf


def test_an_overflow_is_no_perfect_fit() -> None:
    model = Model(
        components=(
            Component("signal", Yield({"mu": 1.0}), (LogArray(np.zeros(9)), LogOffset("k"))),
            Component("background", Yield({"n_bkg": 1.0}), (LogArray(np.zeros(9)),)),
        ),
        parameters=(Parameter("mu", 1.0), Parameter("k", 0.0), Parameter("n_bkg", 9.0, 0.0)),
    )
    nll = ExtendedUnbinnedNLL(model, Events(mass=np.zeros(9)))
    assert nll(1.0, 600.0, 9.0) == pytest.approx(10.0 - 9 * 600.0)
    for k in (710.0, 1e6):
        assert nll(1.0, k, 9.0) == math.inf
        state = nll.evaluate(np.array([1.0, k, 9.0]))
        assert state.value == math.inf
        assert np.isnan(state.gradient).all()


def test_infinite_beyond_the_positivity_wall() -> None:
    nll = ExtendedUnbinnedNLL.from_log_ratio(np.log([20.0, 0.5, 1.0]))
    wall = -100.0 / 20.0
    assert np.isfinite(nll(wall + 1e-9, 100.0))
    for mu in (wall - 1e-9, 2.0 * wall, -1e6):
        assert nll(mu, 100.0) == math.inf
        state = nll.evaluate(np.array([mu, 100.0]))
        assert state.value == math.inf
        assert np.isnan(state.gradient).all()
        assert np.isnan(state.hessian).all()
    assert nll(0.0, 0.0) == math.inf


def test_infinite_where_parameters_give_no_density(resonance: Model, spectrum: Events) -> None:
    """A peak of negative width is no signal of size 0: the background must not carry on alone."""
    nll = ExtendedUnbinnedNLL(resonance, spectrum)
    for width in (-1.0, 0.0):
        assert nll(40.0, 140.0, width, 400.0, 0.02) == math.inf
        state = nll.evaluate(np.array([40.0, 140.0, width, 400.0, 0.02]))
        assert state.value == math.inf
        assert np.isnan(state.gradient).all()


def test_a_peak_without_events_in_its_domain_is_no_error(peak: MassDensity, falling: MassDensity) -> None:
    """Outside its domain a density is 0, which is a value: the nll stays finite."""
    narrow = peak.on(((120.0, 140.0),))
    model = Model(
        components=(
            Component("signal", Yield({"mu": 1.0}), (MassFactor(narrow),)),
            Component("background", Yield({"n_bkg": 1.0}), (MassFactor(falling),)),
        ),
        parameters=tuple(
            Parameter(name, value)
            for name, value in {"mu": 1.0, "m_X": 130.0, "width": 5.0, "n_bkg": 3.0, "rate": 0.01}.items()
        ),
    )
    nll = ExtendedUnbinnedNLL(model, Events(mass=[110.0, 150.0, 170.0]))
    background = falling.log_prob(np.array([110.0, 150.0, 170.0]), [0.01])
    assert nll(*nll.start_vector()) == pytest.approx(4.0 - 3.0 * math.log(3.0) - background.sum())
    assert np.isfinite(nll.grad(*nll.start_vector())).all()


def test_parameters_that_are_not_numbers(resonance: Model, spectrum: Events) -> None:
    """Minimisers ask for such values when they are lost; they get an answer that turns them back, no exception."""
    nll = ExtendedUnbinnedNLL(resonance, spectrum)
    for bad in (math.nan, math.inf):
        assert nll(40.0, bad, 6.0, 400.0, 0.02) == math.inf
        assert np.isnan(nll.grad(40.0, bad, 6.0, 400.0, 0.02)).all()


def test_a_ratio_term_is_evaluated_once() -> None:
    class Counting:
        calls = 0

        def log_ratio(self, events: Events) -> np.ndarray:
            Counting.calls += 1
            return events.mass / 100.0

    model = Model(
        components=(
            Component("signal", Yield({"mu": 1.0}), (LogRatio(Counting()),)),
            Component("background", Yield({"n_bkg": 1.0}), (LogArray(np.zeros(3)),)),
        ),
        parameters=(Parameter("mu", 0.0), Parameter("n_bkg", 3.0, 0.0)),
    )
    nll = ExtendedUnbinnedNLL(model, Events(mass=[10.0, 20.0, 50.0]))
    for mu in (0.5, 1.0):
        assert nll(mu, 3.0) == pytest.approx(plain_nll(np.array([0.1, 0.2, 0.5]), mu, 3.0))
    assert Counting.calls == 1


def test_events_that_a_likelihood_refuses(resonance: Model) -> None:
    with pytest.raises(EventsError, match=r"2 of 3 events are outside the window 100-200 GeV; .*in_window"):
        ExtendedUnbinnedNLL(resonance, Events(mass=[99.0, 150.0, 200.0]))
    with pytest.raises(EventsError, match="no events: a shape-only likelihood"):
        UnbinnedNLL(resonance, Events(mass=[]))
    with pytest.raises(EventsError, match=r"2 of 3 are NaN or infinite, shape \(3,\)"):
        ExtendedUnbinnedNLL.from_log_ratio(np.array([0.1, np.nan, np.inf]))
    with pytest.raises(EventsError, match=r"one finite number an event"):
        ExtendedUnbinnedNLL.from_log_ratio(np.zeros((2, 2)))
    with pytest.raises(OptionError, match="nominal signal yield 0 must be above 0"):
        ExtendedUnbinnedNLL.from_log_ratio(np.zeros(3), nominal=0.0)


def test_events_without_density_are_counted(resonance: Model, peak: MassDensity) -> None:
    model = Model(
        components=(Component("signal", Yield({"mu": 1.0}), (MassFactor(peak.on(((120.0, 160.0),))),)),),
        parameters=(Parameter("mu", 1.0), Parameter("m_X", 140.0), Parameter("width", 5.0)),
    )
    with pytest.raises(ModelError, match=r"2 of 3 events have density 0 .*first at row 1\)"):
        ExtendedUnbinnedNLL(model, Events(mass=[130.0, 110.0, 170.0]))
    ratio_of_others = Model(
        components=(Component("signal", Yield({"mu": 1.0}), (LogArray(np.zeros(4)),)),),
        parameters=(Parameter("mu", 1.0),),
    )
    with pytest.raises(ModelError, match="4 log values for 3 events"):
        ExtendedUnbinnedNLL(ratio_of_others, Events(mass=np.zeros(3)))


def test_start_values_by_name(resonance: Model, spectrum: Events) -> None:
    nll = ExtendedUnbinnedNLL(resonance, spectrum)
    assert nll.start == {"mu": 40.0, "m_X": 140.0, "width": 6.0, "n_bkg": 400.0, "rate": 0.02}
    np.testing.assert_array_equal(nll.start_vector(m_X=150.0), [40.0, 150.0, 6.0, 400.0, 0.02])
    with pytest.raises(ParameterError, match=r"no parameter 'm_x'; nearest names: m_X"):
        nll.start_vector(m_x=150.0)
    with pytest.raises(ParameterError, match=r"m_X = 250 is outside its range 110 to 190"):
        nll.start_vector(m_X=250.0)


def test_size_of_one_event() -> None:
    model = Model(
        components=(
            Component("signal", Yield({"mu": 5.0}, log_scales={"e": 0.2}), (LogArray(np.zeros(2)),)),
            Component("background", Yield({"n_bkg": 1.0, "mu": 3.0}), (LogArray(np.zeros(2)),)),
        ),
        parameters=(Parameter("mu", 0.0), Parameter("e", 0.0), Parameter("n_bkg", 2.0)),
        constraints=(NormalConstraint("e", 0.0, 1.0),),
    )
    nll = ExtendedUnbinnedNLL(model, Events(mass=np.zeros(2)))
    assert nll.event_size("mu", nll.start_vector()) == pytest.approx(1.0 / 8.0)
    assert nll.event_size("mu", np.array([0.0, 1.0, 2.0])) == pytest.approx(1.0 / (5.0 * math.exp(0.2) + 3.0))
    assert nll.event_size("e", nll.start_vector()) == 0.0
