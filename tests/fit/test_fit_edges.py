"""Fits at the edges: no events, walls, huge ratios, singular problems, wrong input."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest

from gbistat.data.events import Events
from gbistat.errors import FitFailed, OptionError, ParameterError
from gbistat.fit.minimize import covariance, fit
from gbistat.fit.result import FitOptions
from gbistat.likelihood.components import Component, LogArray, Yield
from gbistat.likelihood.constraints import LogNormalConstraint, NormalConstraint, PoissonConstraint
from gbistat.likelihood.model import Model
from gbistat.likelihood.nll import NLL, ExtendedUnbinnedNLL
from gbistat.likelihood.parameters import Parameter

Builder = Callable[..., ExtendedUnbinnedNLL]


def test_no_events(counting: Builder) -> None:
    nll = ExtendedUnbinnedNLL.from_log_ratio(np.empty(0))
    held = fit(nll, fixed={"mu": 2.0}).raise_if_invalid()
    assert held.as_dict() == {"mu": 2.0, "n_bkg": 0.0}
    assert held.at_bound == ("n_bkg",)
    # Without a lower end of mu there is no minimum, and the fit says which parameter has none.
    free = fit(nll)
    assert not free.valid
    assert "flat or bends down in mu: the data do not determine it; fix it or narrow its range" in free.message
    bounded = fit(counting(0.0, 1.0, 3.0, low=0.0)).raise_if_invalid()
    assert bounded.value("mu") == 0.0
    assert bounded.at_bound == ("mu",)
    assert bounded.nll == pytest.approx(3.0)
    unbounded = fit(counting(0.0, 1.0, 3.0))
    assert not unbounded.valid
    assert "flat or bends down in mu: the data do not determine it; fix it or narrow its range" in unbounded.message


def test_no_events_beside_a_control_region(counting: Builder) -> None:
    """With mu at 0: b = (n_on + n_off) / (1 + tau)."""
    result = fit(counting(0.0, 1.0, None, PoissonConstraint("b", 3.0, 2.0), low=0.0)).raise_if_invalid()
    assert result.value("mu") == 0.0
    assert result.value("b") == pytest.approx(1.0)
    empty = fit(counting(5.0, 1.0, None, PoissonConstraint("b", 0.0, 2.0))).raise_if_invalid()
    assert empty.value("mu") == pytest.approx(5.0)
    assert empty.at_bound == ("b",)


def test_negative_signal_down_to_the_positivity_wall() -> None:
    """One event with ln r = 3 and known background: mu stays above -n_bkg / r however strong the deficit is."""
    ratio = np.concatenate([[math.exp(3.0)], np.full(200, 1e-3)])
    nll = ExtendedUnbinnedNLL.from_log_ratio(np.log(ratio), nominal=10.0)
    result = fit(nll, fixed={"n_bkg": 200.0}).raise_if_invalid()
    wall = -200.0 / (10.0 * ratio[0])
    assert wall < result.value("mu") < 0.8 * wall
    lam = 10.0 * result.value("mu") * ratio + 200.0
    assert (lam > 0).all()
    assert 10.0 - (10.0 * ratio / lam).sum() == pytest.approx(0.0, abs=1e-6)


def test_start_beyond_the_wall(rng: np.random.Generator) -> None:
    nll = ExtendedUnbinnedNLL.from_log_ratio(rng.normal(-1.0, 1.5, 300))
    usual = fit(nll)
    lost = fit(nll, start=np.array([-1e4, 100.0])).raise_if_invalid()
    np.testing.assert_allclose(lost.values, usual.values, rtol=1e-6)


def test_conditional_fits_far_away(rng: np.random.Generator) -> None:
    log_ratio = rng.normal(-1.0, 1.5, 300)
    nll = ExtendedUnbinnedNLL.from_log_ratio(log_ratio)
    far = fit(nll, fixed={"mu": 1e5}).raise_if_invalid()
    assert far.value("n_bkg") == 0.0
    assert far.at_bound == ("n_bkg",)
    assert far.nll == pytest.approx(1e5 - 300 * math.log(1e5) - log_ratio.sum(), rel=1e-12)
    # A negative signal as large as the data needs more background than there are events.
    deep = fit(nll, fixed={"mu": -500.0}).raise_if_invalid()
    lam = -500.0 * np.exp(log_ratio) + deep.value("n_bkg")
    assert (lam > 0).all()
    assert (1.0 / lam).sum() == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(FitFailed, match=r"not finite at the start of the fit with mu = -1e\+09: .*start elsewhere"):
        fit(nll, fixed={"mu": -1e9})


@pytest.mark.parametrize("log_ratio", [20.0, 50.0, 150.0, 300.0, 400.0, 600.0, 690.0])
def test_huge_ratios(log_ratio: float) -> None:
    """Events that only the signal can make, and events that only the background can make: mu counts the former."""
    nll = ExtendedUnbinnedNLL.from_log_ratio(np.concatenate([np.full(7, log_ratio), np.full(30, -log_ratio)]))
    result = fit(nll).raise_if_invalid()
    np.testing.assert_allclose(result.values, [7.0, 30.0], rtol=1e-6)
    np.testing.assert_allclose(result.errors, np.sqrt([7.0, 30.0]), rtol=1e-6)


def test_one_huge_ratio_among_ordinary_ones(rng: np.random.Generator) -> None:
    log_ratio = np.concatenate([[600.0], rng.normal(-1.0, 1.0, 40)])
    result = fit(ExtendedUnbinnedNLL.from_log_ratio(log_ratio)).raise_if_invalid()
    mu, n_bkg = result.values
    ratio = np.exp(log_ratio[1:])
    assert mu + n_bkg == pytest.approx(41.0, rel=1e-9)
    assert 1.0 - 1.0 / mu - (ratio / (mu * ratio + n_bkg)).sum() == pytest.approx(0.0, abs=1e-6)


def test_all_ratios_equal() -> None:
    """At r = 1 signal and background are one thing; at r > 1 all is signal; at r < 1 nothing stops mu from falling."""
    same = fit(ExtendedUnbinnedNLL.from_log_ratio(np.zeros(50)))
    assert not same.valid
    assert "the Hessian is singular" in same.message
    assert "some combination of mu, n_bkg does not change -ln L" in same.message
    with pytest.raises(
        FitFailed, match=r"the fit is not valid: the Hessian is singular .*fix or constrain one of them"
    ):
        same.raise_if_invalid()
    held = fit(ExtendedUnbinnedNLL.from_log_ratio(np.zeros(50)), fixed={"mu": 10.0}).raise_if_invalid()
    assert held.value("n_bkg") == pytest.approx(40.0)

    signal = fit(ExtendedUnbinnedNLL.from_log_ratio(np.full(50, 0.7))).raise_if_invalid()
    np.testing.assert_allclose(signal.values, [50.0, 0.0], rtol=1e-6)
    assert signal.at_bound == ("n_bkg",)

    runaway = fit(ExtendedUnbinnedNLL.from_log_ratio(np.full(50, -1.0)))
    assert not runaway.valid
    assert "-ln L keeps falling towards mu = -" in runaway.message
    assert "the data do not bound it; narrow its range" in runaway.message


def test_singular_fits_name_their_parameters(rng: np.random.Generator, bump: Builder) -> None:
    twins = Model(
        components=tuple(
            Component(name, Yield({name: 1.0}), (LogArray(values),))
            for name, values in (
                ("signal", np.concatenate([rng.normal(2.0, 0.5, 15), rng.normal(-2.0, 1.0, 45)])),
                ("first", np.zeros(60)),
                ("second", np.zeros(60)),
            )
        ),
        parameters=(Parameter("signal", 10.0), Parameter("first", 20.0, 0.0), Parameter("second", 30.0, 0.0)),
        poi="signal",
    )
    nll = ExtendedUnbinnedNLL(twins, Events(mass=np.zeros(60)))
    result = fit(nll)
    assert not result.valid
    assert "some combination of first, second does not change -ln L" in result.message
    assert fit(nll + NormalConstraint("second", 25.0, 5.0)).valid


def test_a_mass_without_a_signal(rng: np.random.Generator, bump: Builder) -> None:
    """A conditional fit at mu = 0 is the background fit, whatever the mass is; it keeps its start and has no error."""
    nll = bump(rng.uniform(100.0, 200.0, 100))
    result = fit(nll, fixed={"mu": 0.0}).raise_if_invalid()
    assert result.value("m_X") == 150.0
    assert result.error("m_X") == 0.0
    held = fit(nll, fixed={"mu": 0.0, "m_X": 120.0}).raise_if_invalid()
    assert result.nll == pytest.approx(held.nll, rel=1e-12)
    assert result.error("rate") == pytest.approx(held.error("rate"), rel=1e-9)


def test_a_parameter_without_any_effect(rng: np.random.Generator) -> None:
    log_ratio = np.concatenate([rng.normal(2.0, 0.5, 15), rng.normal(-2.0, 1.0, 45)])
    model = Model(
        components=(
            Component("signal", Yield({"mu": 1.0, "useless": 0.0}), (LogArray(log_ratio),)),
            Component("background", Yield({"n_bkg": 1.0}), (LogArray(np.zeros(60)),)),
        ),
        parameters=(Parameter("mu", 1.0), Parameter("useless", 0.0), Parameter("n_bkg", 50.0, 0.0)),
    )
    result = fit(ExtendedUnbinnedNLL(model, Events(mass=np.zeros(60))))
    assert not result.valid
    assert "flat or bends down in useless: the data do not determine it; fix it" in result.message


def test_a_parameter_at_its_bound(rng: np.random.Generator) -> None:
    log_ratio = rng.normal(-1.0, 1.5, 300)
    free = ExtendedUnbinnedNLL.from_log_ratio(log_ratio)
    low = fit(free).value("mu") + 1.0
    bounded = NLL([Parameter("mu", low + 10.0, low), Parameter("n_bkg", 300.0, 0.0)], free.mixtures, (), poi="mu")
    result = fit(bounded).raise_if_invalid()
    held = fit(free, fixed={"mu": low})
    assert result.value("mu") == low
    assert result.at_bound == ("mu",)
    assert result.error("mu") == 0.0
    assert result.error("n_bkg") == pytest.approx(held.error("n_bkg"))
    assert result.nll == pytest.approx(held.nll, rel=1e-12)
    upper = NLL([Parameter("mu", -80.0, -90.0, low - 5.0), Parameter("n_bkg", 300.0, 0.0)], free.mixtures, (), poi="mu")
    assert fit(upper).at_bound == ("mu",)


def test_a_wall_excuses_only_what_it_takes_the_meaning_from(bump: Builder, rng: np.random.Generator) -> None:
    """At mu = 0 a signal's mass means nothing, and the fit is one; a parameter that nothing depends on is undetermined anywhere."""
    away = rng.uniform(100.0, 200.0, 400)
    nll = bump(away[np.abs(away - 150.0) > 20.0])
    ends = {"mu": (0.0, math.inf), "m_X": (140.0, 160.0)}

    def bounded(*more: Parameter) -> NLL:
        parameters = [
            dataclasses.replace(p, low=ends[p.name][0], high=ends[p.name][1], fixed=False) if p.name in ends else p
            for p in nll.parameters
        ]
        return NLL([*parameters, *more], nll.mixtures, nll.constraints, poi="mu")

    result = fit(bounded()).raise_if_invalid()
    assert result.value("mu") == 0.0
    assert result.at_bound == ("mu",)
    assert result.error("m_X") == math.inf
    useless = fit(bounded(Parameter("useless", 0.0)))
    assert not useless.valid
    assert "flat or bends down in useless" in useless.message


def test_a_wide_range_is_no_wall(counting: Builder) -> None:
    """A minimum far from the ends of its range on its own scale stays where it is, however far the other end may be."""
    nll = counting(4.0, 1.0, 1.0)
    wide = [dataclasses.replace(p, low=0.0, high=1e15) if p.name == "mu" else p for p in nll.parameters]
    result = fit(NLL(wide, nll.mixtures, nll.constraints, poi="mu")).raise_if_invalid()
    free = fit(nll)
    assert free.value("mu") > 0.5
    assert result.value("mu") == pytest.approx(free.value("mu"), rel=1e-9)
    assert result.error("mu") == pytest.approx(free.error("mu"), rel=1e-9)


def test_steps_do_not_end_where_a_constraint_has_no_value() -> None:
    """Newton's first step for these goes below 0, where the gradient must not look like a good one."""
    for constraint in (PoissonConstraint("b", 2.0, 1.0), LogNormalConstraint("b", 1.0, 0.5)):
        result = fit(NLL([Parameter("b", 40.0)], [], [constraint], poi="b")).raise_if_invalid()
        assert result.value("b") == pytest.approx(2.0 if isinstance(constraint, PoissonConstraint) else 1.0)


def test_few_iterations_hand_over_to_migrad(bump: Builder, bump_masses: Callable[..., np.ndarray]) -> None:
    nll = bump(bump_masses(80, 400, 148.0))
    full, short = fit(nll).raise_if_invalid(), fit(nll, options=FitOptions(max_iterations=1)).raise_if_invalid()
    assert short.n_calls > full.n_calls
    np.testing.assert_allclose((short.values - full.values) / full.errors, 0.0, atol=1e-3)


def test_peak_found_from_the_middle_of_the_window(bump: Builder, bump_masses: Callable[..., np.ndarray]) -> None:
    """A signal of size 0 at the start gives no slope in the mass, and the Hessian there does not bend up."""
    for at in (143.0, 147.0, 153.0, 157.0):
        result = fit(bump(bump_masses(80, 400, at))).raise_if_invalid()
        assert abs(result.value("m_X") - at) < 5.0 * result.error("m_X")
        assert result.value("mu") > 4.0 * result.error("mu")


def test_wrong_input(rng: np.random.Generator) -> None:
    nll = ExtendedUnbinnedNLL.from_log_ratio(rng.normal(-1.0, 1.5, 30))
    with pytest.raises(ParameterError, match=r"there is no parameter 'n_bgk'; nearest names: n_bkg"):
        fit(nll, fixed={"n_bgk": 1.0})
    with pytest.raises(ParameterError, match=r"n_bkg = -1 is outside its range 0 to inf"):
        fit(nll, fixed={"n_bkg": -1.0})
    with pytest.raises(ParameterError, match=r"the fit has no parameter 'muu'; nearest names: mu"):
        fit(nll).value("muu")
    with pytest.raises(OptionError, match=r"minimizer 'newtn' is unknown; nearest names: newton"):
        FitOptions(minimizer="newtn")
    with pytest.raises(OptionError, match="edm 0 must be above 0"):
        FitOptions(edm=0.0)
    with pytest.raises(OptionError, match="max_iterations 0 must be at least 1"):
        FitOptions(max_iterations=0)


def test_everything_fixed(rng: np.random.Generator) -> None:
    nll = ExtendedUnbinnedNLL.from_log_ratio(rng.normal(-1.0, 1.5, 30))
    result = fit(nll, fixed={"mu": 3.0, "n_bkg": 28.0}).raise_if_invalid()
    assert result.nll == nll(3.0, 28.0)
    assert result.fixed == ("mu", "n_bkg")
    assert result.errors.tolist() == [0.0, 0.0]


def test_declared_fixed_parameters_stay_where_they_are(rng: np.random.Generator) -> None:
    free = ExtendedUnbinnedNLL.from_log_ratio(rng.normal(-1.0, 1.5, 30))
    nll = NLL([Parameter("mu", 0.0), Parameter("n_bkg", 27.0, 0.0, fixed=True)], free.mixtures, (), poi="mu")
    result = fit(nll).raise_if_invalid()
    assert result.value("n_bkg") == 27.0
    assert result.fixed == ("n_bkg",)
    assert result.value("mu") == pytest.approx(fit(free, fixed={"n_bkg": 27.0}).value("mu"), rel=1e-9)


def test_covariance_of_what_is_none() -> None:
    everything = np.array([True, True])
    matrix, message = covariance(np.diag([4.0, 0.25]), everything)
    np.testing.assert_allclose(matrix, np.diag([0.25, 4.0]))
    assert not message
    assert covariance(np.diag([4.0, np.inf]), everything)[1] == "the Hessian is not finite"
    assert "bends down in b" in covariance(np.diag([4.0, -1.0]), everything, ("a", "b"))[1]
    assert "combination of a, b" in covariance(np.array([[1.0, 2.0], [2.0, 1.0]]), everything, ("a", "b"))[1]
    matrix, message = covariance(np.array([[4.0, 1.0], [1.0, -1.0]]), np.array([True, False]))
    np.testing.assert_allclose(matrix, [[0.25, 0.0], [0.0, 0.0]])
    # Scales that differ by twenty orders of magnitude are no singularity.
    assert not covariance(np.diag([1e-20, 1.0]), everything)[1]
