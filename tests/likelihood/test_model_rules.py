"""What a model and sums of likelihoods allow, and what they say where they do not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from gbistat.data.events import Events
from gbistat.errors import ModelError, ParameterError
from gbistat.likelihood.components import Component, LogArray, LogOffset, Yield
from gbistat.likelihood.constraints import NormalConstraint
from gbistat.likelihood.model import Model
from gbistat.likelihood.nll import NLL, ExtendedUnbinnedNLL, NLLSum, UnbinnedNLL
from gbistat.likelihood.parameters import Parameter

FLAT = (LogArray(np.zeros(2)),)


def two_yields(**changes: object) -> Model:
    model = Model(
        components=(
            Component("signal", Yield({"mu": 2.0}), FLAT),
            Component("background", Yield({"n_bkg": 1.0}), FLAT),
        ),
        parameters=(Parameter("mu", 0.0), Parameter("n_bkg", 2.0, 0.0)),
    )
    return dataclasses.replace(model, **changes)


def test_rules_of_a_model() -> None:
    model = two_yields()
    assert model.names == ("mu", "n_bkg")
    assert model.parameter("n_bkg").limits == (0.0, np.inf)
    assert model.parameter("mu").limits is None
    with pytest.raises(ModelError, match="needs at least one component"):
        two_yields(components=())
    with pytest.raises(ModelError, match=r"two components share a name among \['signal', 'signal'\]"):
        two_yields(components=(model.components[0],) * 2)
    with pytest.raises(ModelError, match=r"two parameters share a name among \['mu', 'mu'\]"):
        two_yields(parameters=(Parameter("mu", 0.0),) * 2)
    with pytest.raises(ModelError, match=r"component background depends on 'n_bkg', .*nearest names: n_bk"):
        two_yields(parameters=(Parameter("mu", 0.0), Parameter("n_bk", 2.0)))
    with pytest.raises(ModelError, match=r"a constraint depends on 'nbkg', .*nearest names: n_bkg"):
        model.with_constraint(NormalConstraint("nbkg", 1.0, 1.0))
    with pytest.raises(ModelError, match=r"nothing depends on the parameter\(s\) idle; leave them out"):
        two_yields(parameters=(*model.parameters, Parameter("idle", 0.0)))
    with pytest.raises(ParameterError, match=r"there is no parameter 'nbkg'; nearest names: n_bkg"):
        model.parameter("nbkg")
    with pytest.raises(ModelError, match=r"there is no component 'backgrounds'; nearest names: background"):
        model.component("backgrounds")
    with pytest.raises(ModelError, match="a yield of 0 that depends on no parameter"):
        Yield()


def test_rules_of_a_parameter() -> None:
    assert Parameter("mu", 1.0, 0.0, 2.0).check(2.0) == 2.0
    with pytest.raises(ParameterError, match=r"'m X' is not an identifier"):
        Parameter("m X", 0.0)
    with pytest.raises(ParameterError, match=r"mu: the range 2 to 1 is empty"):
        Parameter("mu", 1.5, 2.0, 1.0)
    with pytest.raises(ParameterError, match=r"mu: 3 is outside its range 0 to 2; start inside or widen"):
        Parameter("mu", 3.0, 0.0, 2.0)
    with pytest.raises(ParameterError, match=r"mu = 3 is outside its range 0 to 2; choose a value inside"):
        Parameter("mu", 1.0, 0.0, 2.0).check(3.0)


def test_parameters_that_enter_through_yields_alone(resonance: Model) -> None:
    assert [resonance.yield_only(name) for name in resonance.names] == [True, False, False, True, False]
    scaled = Model(
        components=(Component("signal", Yield({"mu": 1.0}, log_scales={"e": 0.1}), (*FLAT, LogOffset("k"))),),
        parameters=(Parameter("mu", 0.0), Parameter("e", 0.0), Parameter("k", 0.0)),
    )
    assert [scaled.yield_only(name) for name in scaled.names] == [True, False, False]
    with pytest.raises(ParameterError, match="no parameter 'm_Y'; nearest names: m_X"):
        resonance.yield_only("m_Y")


def test_shape_only_form(resonance: Model, spectrum: Events) -> None:
    form = resonance.as_fraction()
    assert form.names == ("f", "m_X", "width", "rate")
    assert form.poi == "f"
    constrained = resonance.with_constraint(NormalConstraint("m_X", 140.0, 1.0)).as_fraction()
    assert [c.names for c in constrained.constraints] == [("m_X",)]
    dropped = resonance.with_constraint(NormalConstraint("n_bkg", 400.0, 10.0)).as_fraction()
    assert dropped.constraints == ()
    nll = UnbinnedNLL(resonance, spectrum)
    assert nll.mixture.yields(nll.start_vector(f=0.3)).tolist() == pytest.approx([0.3, 0.7])
    # A fraction that fits is the ratio of yields that fit.
    full = ExtendedUnbinnedNLL(resonance, spectrum)
    gap = full(60.0, 140.0, 6.0, 400.0, 0.02) - nll(60.0 / 460.0, 140.0, 6.0, 0.02)
    assert gap == pytest.approx(460.0 - 460.0 * np.log(460.0))


def test_models_without_a_shape_only_form(resonance: Model) -> None:
    third = Component("flat", Yield({"n_flat": 1.0}), FLAT)
    three = two_yields(
        components=(*two_yields().components, third), parameters=(*two_yields().parameters, Parameter("n_flat", 1.0))
    )
    with pytest.raises(ModelError, match="this model has 3 components"):
        three.as_fraction()
    scaled = Component("signal", Yield({"mu": 1.0}, log_scales={"e": 0.1}), FLAT)
    with pytest.raises(ModelError, match="yield uncertainties and spurious signal have no meaning"):
        two_yields(
            components=(scaled, two_yields().components[1]), parameters=(*two_yields().parameters, Parameter("e", 0.0))
        ).as_fraction()
    tied = resonance.with_constraint(NormalConstraint(("n_bkg", "rate"), (400.0, 0.02), (20.0, 0.001)))
    with pytest.raises(ModelError, match="a constraint ties the background yield to its shape"):
        tied.as_fraction()
    with pytest.raises(ParameterError, match="the name 'rate' of the fraction is taken"):
        resonance.as_fraction("rate")


def test_sums_of_likelihoods_share_parameters_and_constraints(rng: np.random.Generator) -> None:
    shared = NormalConstraint("mu", 1.0, 2.0)
    first = ExtendedUnbinnedNLL.from_log_ratio(rng.normal(size=20), nominal=3.0, constraints=[shared])
    second = ExtendedUnbinnedNLL.from_log_ratio(rng.normal(size=30), nominal=5.0, constraints=[shared])
    total = first + second
    assert isinstance(total, NLLSum)
    assert total.names == ("mu", "n_bkg")
    assert total.constraints == (shared,)
    penalty = 0.5 * ((2.0 - 1.0) / 2.0) ** 2
    assert total(2.0, 25.0) == pytest.approx(first(2.0, 25.0) + second(2.0, 25.0) - penalty)
    summed = sum([first, second])
    assert isinstance(summed, NLL)
    assert summed(2.0, 25.0) == pytest.approx(total(2.0, 25.0))
    # An equal but separate measurement is another measurement.
    third = ExtendedUnbinnedNLL.from_log_ratio(rng.normal(size=9), constraints=[NormalConstraint("mu", 1.0, 2.0)])
    assert len((total + third).constraints) == 2


def test_a_constraint_may_stand_on_either_side(rng: np.random.Generator) -> None:
    nll = ExtendedUnbinnedNLL.from_log_ratio(rng.normal(size=20))
    constraint = NormalConstraint("n_bkg", 15.0, 3.0)
    left, right = constraint + nll, nll + constraint
    assert left(1.0, 18.0) == right(1.0, 18.0) == pytest.approx(nll(1.0, 18.0) + 0.5)
    with pytest.raises(ModelError, match="a term depends on n_bgk, which the likelihood does not have"):
        nll + NormalConstraint("n_bgk", 15.0, 3.0)
    with pytest.raises(TypeError):
        nll + 1.0
    with pytest.raises(TypeError):
        1.0 + nll


def test_sums_that_contradict_themselves(resonance: Model, spectrum: Events) -> None:
    extended, fraction = ExtendedUnbinnedNLL(resonance, spectrum), UnbinnedNLL(resonance, spectrum)
    with pytest.raises(ModelError, match="different parameters of interest: f, mu"):
        extended + fraction
    moved = dataclasses.replace(
        resonance,
        parameters=tuple(Parameter("m_X", 195.0, 191.0, 199.0) if p.name == "m_X" else p for p in resonance.parameters),
    )
    with pytest.raises(ParameterError, match=r"m_X: the range 191 to 190 is empty"):
        extended + ExtendedUnbinnedNLL(moved, spectrum)


def test_shared_parameters_take_the_narrower_range(resonance: Model, spectrum: Events) -> None:
    narrow = dataclasses.replace(
        resonance,
        parameters=tuple(Parameter("m_X", 150.0, 145.0, 195.0) if p.name == "m_X" else p for p in resonance.parameters),
    )
    total = ExtendedUnbinnedNLL(resonance, spectrum) + ExtendedUnbinnedNLL(narrow, spectrum)
    (shared,) = (p for p in total.parameters if p.name == "m_X")
    assert (shared.start, shared.low, shared.high) == (145.0, 145.0, 190.0)
    assert total.convex == {"mu", "n_bkg"}


def test_what_a_likelihood_looks_like(resonance: Model, spectrum: Events) -> None:
    nll = ExtendedUnbinnedNLL(resonance, spectrum) + NormalConstraint("n_bkg", 400.0, 10.0)
    assert repr(nll) == "NLL(mu, m_X, width, n_bkg, rate; 460 events, 1 constraints)"
    assert nll.npar == 5
