"""Order of the smooth background: likelihood ratios against chi2, information criteria, and what cannot be chosen."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import chi2, kstest

from gbistat.config import RunCard, resolve_options
from gbistat.data.events import Events
from gbistat.data.window import MassWindow
from gbistat.errors import EventsError, FitFailed, ModelError, OptionError, WindowError
from gbistat.fit.build import build_analysis
from gbistat.fit.order import choose_order, nested_shapes, with_order
from gbistat.fit.sidebands import fit_sidebands
from gbistat.terms.density import MassDensity
from gbistat.terms.model_spec import BackgroundSpec
from gbistat.terms.validation import validate

WINDOW, RANGE = MassWindow(3300.0, 3700.0), MassWindow(2800.0, 7000.0)
TRUE = {2: [12.0, 5.0], 3: [12.0, 24.0, 16.0]}


def dijets(n: int, order: int, seed: int) -> Events:
    shape = nested_shapes("dijet")[order - 2]
    density = MassDensity.fixed(shape, (RANGE.edges,), TRUE[order])
    return Events(density.sample(n, (), rng=np.random.default_rng(seed)), mass_name="m_jj", units={"m_jj": "GeV"})


def test_table_holds_likelihood_ratios_and_criteria() -> None:
    events = dijets(20_000, 3, 1)
    choice = choose_order(events, WINDOW, RANGE, nested_shapes("dijet"))
    fits = [fit_sidebands(events, WINDOW, RANGE, shape) for shape in nested_shapes("dijet")]
    n = fits[0].fit.values[0]
    for trial, fitted in zip(choice.trials, fits, strict=True):
        k = trial.n_parameters
        assert trial.nll == fitted.fit.nll
        assert trial.aic == pytest.approx(2 * k + 2 * trial.nll, rel=1e-14)
        assert trial.bic == pytest.approx(k * math.log(n) + 2 * trial.nll, rel=1e-14)
        assert trial.expected == fitted.expected
    for one, two in zip(choice.trials, choice.trials[1:], strict=False):
        assert one.statistic == pytest.approx(2 * (one.nll - two.nll), abs=1e-9)
        assert one.p_value == pytest.approx(chi2.sf(one.statistic, 1), rel=1e-9)
    assert choice.trials[-1].p_value is None
    assert choice.n_parameters == 3
    assert "mild double use" in choice.notes[0]


@pytest.mark.parametrize(("order", "n"), [(2, 20_000), (3, 20_000)])
def test_finds_the_order_of_large_samples(order: int, n: int) -> None:
    """False alarms: 5 % for the test, and each seed was fixed before it was looked at."""
    events = dijets(n, order, 11)
    for criterion in ("likelihood_ratio", "aic", "bic"):
        assert choose_order(events, WINDOW, RANGE, nested_shapes("dijet"), criterion=criterion).n_parameters == order


def test_likelihood_ratio_follows_chi2_without_a_third_parameter() -> None:
    """100 samples of the two-parameter function: p-values are uniform (Kolmogorov-Smirnov above 1 %)."""
    p = [
        choose_order(dijets(1500, 2, s), WINDOW, RANGE, nested_shapes("dijet")[:2]).trials[0].p_value
        for s in range(100)
    ]
    assert kstest(p, "uniform").pvalue > 0.01


def test_alpha_and_bic_are_stricter_or_looser() -> None:
    events = dijets(20_000, 3, 1)
    shapes = nested_shapes("dijet")
    p = choose_order(events, WINDOW, RANGE, shapes).trials[1].p_value
    assert choose_order(events, WINDOW, RANGE, shapes, alpha=min(0.999, p * 1.001)).n_parameters > 3
    assert choose_order(events, WINDOW, RANGE, shapes, alpha=1e-300).n_parameters == 2
    assert choose_order(events, WINDOW, RANGE, shapes, criterion="bic").n_parameters <= 3


def test_polynomials_are_nested_too() -> None:
    rng = np.random.default_rng(5)
    mass = 100.0 * np.sqrt(rng.random(30_000) * 3.0 + 1.0)  # density proportional to m on 100-200: degree 1
    events = Events(mass, mass_name="m", units={"m": "GeV"})
    for family in ("bernstein", "chebyshev"):
        shapes = nested_shapes(family, {"support": (100.0, 200.0), "degree": 9})[:3]
        choice = choose_order(events, MassWindow(140.0, 160.0), MassWindow(100.0, 200.0), shapes)
        assert choice.n_parameters == 1
        assert choice.fit.expected == pytest.approx(30_000 * (160**2 - 140**2) / 3e4, rel=0.02)


def test_the_last_order_is_reported_as_the_last() -> None:
    events = dijets(20_000, 3, 3)
    choice = choose_order(events, WINDOW, RANGE, nested_shapes("dijet")[:2])
    assert choice.n_parameters == 3
    assert any("the largest order that was tried was chosen" in note for note in choice.notes)
    plain = choice.to_dict()
    assert plain["n_parameters"] == 3
    assert plain["trials"][0]["goodness"]["ndof"] > 10


def test_too_few_events_end_the_table() -> None:
    inside = dijets(400, 2, 4).mass
    mass = np.concatenate([inside[(inside < 3300)][:3], inside[inside > 3700][:3]])
    events = Events(mass, mass_name="m_jj", units={"m_jj": "GeV"})
    with pytest.raises((EventsError, FitFailed), match="sideband"):
        choose_order(
            Events(mass[[0, 3]], mass_name="m_jj", units={"m_jj": "GeV"}), WINDOW, RANGE, nested_shapes("dijet")
        )
    with pytest.raises(EventsError, match="6 sideband events for a shape of 5 parameters; use a simpler shape"):
        fit_sidebands(events, WINDOW, RANGE, nested_shapes("dijet")[3])


def test_an_order_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from gbistat.fit import order as module

    def failing(events, window, fit_range, shape):  # type: ignore[no-untyped-def]
        if len(shape.parameters) == 4:
            raise FitFailed("the sideband fit of dijet failed: a wall")
        return fit_sidebands(events, window, fit_range, shape)

    monkeypatch.setattr(module, "fit_sidebands", failing)
    choice = choose_order(dijets(5000, 2, 6), WINDOW, RANGE, nested_shapes("dijet"))
    assert [trial.n_parameters for trial in choice.trials] == [2, 3, 4]
    assert choice.trials[2].message == "the sideband fit of dijet failed: a wall"
    assert math.isnan(choice.trials[2].nll)
    assert any("dijet with 4 parameters could not be fitted" in note for note in choice.notes)


def test_sidebands_that_cannot_be_used() -> None:
    events = dijets(2000, 2, 7)
    low = events.select(events.mass < 3500)
    with pytest.raises(EventsError, match="no event in the sideband 3700-7000 GeV"):
        choose_order(low, WINDOW, RANGE, nested_shapes("dijet"))
    with pytest.raises(WindowError, match="leaves no sideband"):
        choose_order(events, WINDOW, MassWindow(3300.0, 7000.0), nested_shapes("dijet"))


def test_wrong_options() -> None:
    events = dijets(2000, 2, 7)
    with pytest.raises(OptionError, match="criterion 'aicc' is unknown; nearest names: aic"):
        choose_order(events, WINDOW, RANGE, nested_shapes("dijet"), criterion="aicc")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="alpha = 5 must lie between 0 and 1"):
        choose_order(events, WINDOW, RANGE, nested_shapes("dijet"), alpha=5.0)
    with pytest.raises(OptionError, match=r"the shapes have \[3, 2\] parameters"):
        choose_order(events, WINDOW, RANGE, nested_shapes("dijet")[1::-1])
    with pytest.raises(ModelError, match="the shape 'exponential' has no order to choose"):
        with_order("exponential", {}, 2)
    with pytest.raises(ModelError, match="'dijett' has no order to choose; nearest names: dijet"):
        nested_shapes("dijett")


def test_model_and_card_ask_for_an_order() -> None:
    base = {"mass": {"shape": "dijet", "options": {"n_parameters": 2}}, "fit_range": [2800.0, 7000.0]}
    spec = resolve_options(RunCard(), windows=[(3300.0, 3700.0)]).model.spec
    signal_only = spec.model_copy(update={"signal_": spec.signal.model_copy(update={"ratios": ()}), "features": ()})
    events = dijets(20_000, 3, 1)
    for order, size in ((None, 2), (4, 4), ("auto", 3), ("bic", 3)):
        background = validate(BackgroundSpec, {**base, "order": order}, error=ModelError, where="background")
        analysis = build_analysis(signal_only.model_copy(update={"background": background}), events, WINDOW)
        assert analysis.sidebands is not None
        assert analysis.sidebands.theta.size == size
        assert (analysis.order is not None) == isinstance(order, str)
        assert any("mild double use" in w for w in analysis.warnings) == isinstance(order, str)
    fixed = {**base, "mass": {"shape": "exponential", "parameters": {"rate": 0.01}}, "order": "auto"}
    with pytest.raises(ModelError, match="nothing is left to choose"):
        validate(BackgroundSpec, fixed, error=ModelError, where="background")


@pytest.mark.parametrize(("asked", "found"), [("auto", "auto"), ("4", 4), (2, 2), (None, None)])
def test_explicit_order_wins(asked: str | int | None, found: str | int | None) -> None:
    card = RunCard(background_order="bic") if asked is not None else RunCard()
    options = resolve_options(card, windows=[(3300.0, 3700.0)], background_order=asked)
    assert options.model.spec.background.order == found


def test_a_wrong_order_is_refused() -> None:
    with pytest.raises(OptionError, match="allowed: 'auto', 'aic' or 'bic'"):
        resolve_options(RunCard(), windows=[(3300.0, 3700.0)], background_order="most")
