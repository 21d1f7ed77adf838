"""Likelihoods inside iminuit: as they are, and added to iminuit's own cost functions."""

from __future__ import annotations

import math
from collections.abc import Callable

import iminuit.cost
import numpy as np
import pytest
from iminuit import Minuit
from iminuit.util import describe
from scipy.stats import norm

from gbistat.data.events import Events
from gbistat.fit.minimize import fit, to_minuit
from gbistat.likelihood.components import Component, MassFactor, Yield
from gbistat.likelihood.constraints import NormalConstraint
from gbistat.likelihood.model import Model
from gbistat.likelihood.nll import NLL, ExtendedUnbinnedNLL
from gbistat.likelihood.parameters import Parameter
from gbistat.terms.density import MassDensity
from gbistat.terms.shapes.gaussian import Gaussian

Builder = Callable[..., ExtendedUnbinnedNLL]


@pytest.fixture
def nll(rng: np.random.Generator) -> ExtendedUnbinnedNLL:
    return ExtendedUnbinnedNLL.from_log_ratio(np.concatenate([rng.normal(2.0, 1.0, 40), rng.normal(-1.5, 1.5, 300)]))


def assert_agrees(minuit: Minuit, reference: NLL) -> None:
    """MIGRAD's values to 2e-2 of an error (its own goal), HESSE's errors to 1 %."""
    assert minuit.valid
    expected = fit(reference).raise_if_invalid()
    for name in reference.names:
        pull = (minuit.values[name] - expected.value(name)) / expected.error(name)
        assert abs(pull) < 2e-2
        assert minuit.errors[name] == pytest.approx(expected.error(name), rel=1e-2)


@pytest.mark.parametrize("strategy", [0, 1, 2])
def test_usable_as_it_is(nll: ExtendedUnbinnedNLL, strategy: int) -> None:
    assert describe(nll) == ["mu", "n_bkg"]
    minuit = Minuit(nll, **nll.start)
    assert minuit.errordef == Minuit.LIKELIHOOD
    assert minuit.limits["mu"] == (-math.inf, math.inf)
    assert minuit.limits["n_bkg"] == (0.0, math.inf)
    minuit.strategy = strategy
    minuit.migrad()
    minuit.hesse()
    assert minuit.ngrad > 0
    assert_agrees(minuit, nll)


@pytest.mark.parametrize("strategy", [0, 1, 2])
def test_usable_with_shapes_whose_hessian_starts_singular(
    bump: Builder, bump_masses: Callable[..., np.ndarray], strategy: int
) -> None:
    """At mu = 0 the Hessian has a row of zeros for the mass; iminuit must not be led to trust it."""
    nll = bump(bump_masses(80, 400, 153.0))
    minuit = Minuit(nll, **nll.start)
    minuit.strategy = strategy
    minuit.migrad()
    minuit.hesse()
    assert_agrees(minuit, nll)


def test_limits_follow_the_parameters(bump: Builder) -> None:
    nll = bump(np.linspace(101.0, 199.0, 50))
    assert Minuit(nll, **nll.start).limits["m_X"] == (105.0, 195.0)
    total = nll + iminuit.cost.NormalConstraint("rate", 0.02, 0.001)
    assert Minuit(total, **nll.start).limits["m_X"] == (105.0, 195.0)


@pytest.mark.parametrize("first", ["nll", "constraint"])
def test_plus_a_constraint_of_iminuit(nll: ExtendedUnbinnedNLL, first: str) -> None:
    """iminuit scales each term by its errordef: chi2 of the constraint and -ln L meet as they should."""
    constraint = iminuit.cost.NormalConstraint("n_bkg", 280.0, 5.0)
    total = nll + constraint if first == "nll" else constraint + nll
    assert isinstance(total, iminuit.cost.CostSum)
    theta = {"mu": 30.0, "n_bkg": 290.0}
    value = total(*(theta[name] for name in describe(total)))
    assert value == pytest.approx(2.0 * nll(30.0, 290.0) + 4.0, rel=1e-12)
    minuit = Minuit(total, **nll.start)
    minuit.migrad()
    minuit.hesse()
    assert minuit.ngrad > 0
    assert_agrees(minuit, nll + NormalConstraint("n_bkg", 280.0, 5.0))


def test_plus_unbinned_data_of_iminuit(rng: np.random.Generator) -> None:
    """A control sample fixes the width of a peak through iminuit's own UnbinnedNLL."""
    domain = ((-50.0, 50.0),)
    peak = MassDensity.free(Gaussian(), domain, names=("mean", "width"))
    model = Model(
        components=(Component("signal", Yield({"mu": 1.0}), (MassFactor(peak),)),),
        parameters=(Parameter("mu", 50.0, 0.0), Parameter("mean", 0.5), Parameter("width", 2.0, 0.1, 10.0)),
    )
    mass, control = rng.normal(0.0, 3.0, 60), rng.normal(5.0, 3.0, 900)
    nll = ExtendedUnbinnedNLL(model, Events(mass=mass))
    total = nll + iminuit.cost.UnbinnedNLL(control, lambda x, centre, width: norm.pdf(x, centre, width))
    assert describe(total) == ["mu", "mean", "width", "centre"]
    minuit = Minuit(total, **nll.start, centre=4.0)
    minuit.migrad()
    minuit.hesse()
    assert minuit.valid
    # Closed form: common variance of two samples about their own means.
    variance = (((mass - mass.mean()) ** 2).sum() + ((control - control.mean()) ** 2).sum()) / 960
    assert minuit.values["width"] == pytest.approx(math.sqrt(variance), rel=1e-4)
    assert minuit.errors["width"] == pytest.approx(math.sqrt(variance / (2 * 960)), rel=1e-2)
    assert minuit.values["mu"] == pytest.approx(60.0, rel=1e-3)


def test_sum_of_several(nll: ExtendedUnbinnedNLL, rng: np.random.Generator) -> None:
    other = ExtendedUnbinnedNLL.from_log_ratio(rng.normal(-1.0, 1.5, 200), nominal=2.0)
    total = sum([nll, other])
    minuit = Minuit(total, **total.start)
    assert minuit.errordef == Minuit.LIKELIHOOD
    minuit.migrad()
    minuit.hesse()
    assert_agrees(minuit, nll + other)


def test_ready_made_minimiser(bump: Builder, bump_masses: Callable[..., np.ndarray]) -> None:
    nll = bump(bump_masses(80, 400, 152.0))
    best = fit(nll)
    minuit = to_minuit(nll, best.values)
    assert minuit.parameters == nll.names
    assert minuit.limits["m_X"] == (105.0, 195.0)
    minuit.migrad()
    minuit.hesse()
    assert_agrees(minuit, nll)
    held = NLL(
        [Parameter("mu", 0.0), Parameter("n_bkg", 27.0, 0.0, fixed=True)],
        ExtendedUnbinnedNLL.from_log_ratio(np.zeros(4)).mixtures,
        (),
        poi="mu",
    )
    assert to_minuit(held).fixed["n_bkg"]
    assert not to_minuit(held).fixed["mu"]
