"""Resonances on a falling background whose binned forms are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy.stats import norm

from gbistat.data.events import Events
from gbistat.data.window import MassWindow
from gbistat.likelihood.components import Component, LogRatio, MassFactor, Yield
from gbistat.likelihood.constraints import NormalConstraint
from gbistat.likelihood.model import Model
from gbistat.likelihood.parameters import Parameter
from gbistat.likelihood.tilt import spurious_signal_tilt
from gbistat.terms.density import MassDensity
from gbistat.terms.shapes.exponential import Exponential
from gbistat.terms.shapes.gaussian import Gaussian

WINDOW = MassWindow(3300.0, 3700.0)
RATE, PEAK, WIDTH = 0.002, 3500.0, 60.0
YIELD_ERROR, RATE_ERROR, CORRELATION = 0.02, 1e-4, 0.4


@dataclass(frozen=True)
class FeatureRatio:
    """Exact ratio of two Gaussians in one feature: a network that has learned everything."""

    def log_ratio(self, events: Events) -> np.ndarray:
        x = events.feature("x")
        return norm.logpdf(x, 2.0, 0.6) - norm.logpdf(x)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20241103)


@pytest.fixture
def falling() -> MassDensity:
    return MassDensity.free(Exponential(), (WINDOW.edges,), names=("slope",))


@pytest.fixture
def peak() -> MassDensity:
    return MassDensity.fixed(Gaussian(), (WINDOW.edges,), [PEAK, WIDTH])


@pytest.fixture
def simple(falling: MassDensity, peak: MassDensity) -> Model:
    """Two components; yield and slope of the background from a sideband fit, correlated."""
    n_bkg = 2000.0
    sigma = np.array([YIELD_ERROR * n_bkg, RATE_ERROR])
    covariance = np.outer(sigma, sigma) * np.array([[1.0, CORRELATION], [CORRELATION, 1.0]])
    return Model(
        components=(
            Component("signal", Yield({"mu": 1.0}), (MassFactor(peak),)),
            Component("background", Yield({"n_bkg": 1.0}), (MassFactor(falling),)),
        ),
        parameters=(Parameter("mu", 0.0), Parameter("n_bkg", n_bkg, 0.0), Parameter("slope", RATE)),
        constraints=(NormalConstraint(("n_bkg", "slope"), [n_bkg, RATE], covariance),),
        window=WINDOW,
    )


@pytest.fixture
def full(simple: Model) -> Model:
    """The same with a spurious signal, an efficiency and a mass scale, and three events at mu = 1."""
    moving = MassDensity(
        Gaussian(), (WINDOW.edges,), ("mass_scale",), np.array([0.0, WIDTH]), np.array([[PEAK], [0.0]])
    )
    rate = Yield({"mu": 3.0, "spurious": 1.0}, log_scales={"efficiency": 0.05})
    return replace(
        simple,
        components=(Component("signal", rate, (MassFactor(moving),)), simple.components[1]),
        parameters=(
            *simple.parameters,
            Parameter("spurious", 0.0),
            Parameter("efficiency", 0.0),
            Parameter("mass_scale", 1.0),
        ),
        constraints=(
            *simple.constraints,
            NormalConstraint("spurious", 0.0, 8.0),
            NormalConstraint("efficiency", 0.0, 1.0),
            NormalConstraint("mass_scale", 1.0, 0.003),
        ),
    )


@pytest.fixture
def with_tilt() -> Callable[[Model, Events, float], Model]:
    """Give the background of a model a nuisance that makes signal of it: so many events for one standard deviation."""

    def change(model: Model, events: Events, size: float) -> Model:
        tilt, _ = spurious_signal_tilt(model, "spurious_signal", events, spurious=size)
        background = model.components[1]
        return replace(
            model,
            components=(model.components[0], replace(background, factors=(*background.factors, tilt))),
            parameters=(*model.parameters, Parameter("spurious_signal", 0.0, -10.0, 10.0)),
            constraints=(*model.constraints, NormalConstraint("spurious_signal", 0.0, 1.0)),
        )

    return change


@pytest.fixture
def with_ratio() -> Callable[[Model], Model]:
    """Make a model look at the feature x, too."""

    def change(model: Model) -> Model:
        signal = model.components[0]
        factors = (*signal.factors, LogRatio(FeatureRatio()))
        return replace(model, components=(replace(signal, factors=factors), *model.components[1:]))

    return change


@pytest.fixture
def make_events(falling: MassDensity, peak: MassDensity, rng: np.random.Generator) -> Callable[..., Events]:
    """Events with given numbers of background and signal."""

    def make(n_background: int, n_signal: int) -> Events:
        mass = [falling.sample(n_background, [RATE], rng=rng), peak.sample(n_signal, (), rng=rng)]
        x = np.concatenate([rng.normal(size=n_background), rng.normal(2.0, 0.6, n_signal)])
        return Events(mass=np.concatenate(mass), features=x[:, None], names=["x"])

    return make
