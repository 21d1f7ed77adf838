"""Likelihoods that several tests of this folder look at."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gbistat.data.events import Events
from gbistat.data.window import MassWindow
from gbistat.likelihood.components import Component, Factor, LogArray, LogOffset, MassFactor, Yield
from gbistat.likelihood.constraints import NormalConstraint
from gbistat.likelihood.model import Model
from gbistat.likelihood.parameters import Parameter
from gbistat.terms.density import MassDensity
from gbistat.terms.shapes.exponential import Exponential
from gbistat.terms.shapes.gaussian import Gaussian

WINDOW = MassWindow(100.0, 200.0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240917)


@pytest.fixture
def peak() -> MassDensity:
    """Gaussian peak with free mean and width."""
    return MassDensity.free(Gaussian(), (WINDOW.edges,), names=("m_X", "width"))


@pytest.fixture
def falling() -> MassDensity:
    """Exponential background with a free rate."""
    return MassDensity.free(Exponential(), (WINDOW.edges,))


@pytest.fixture
def resonance(peak: MassDensity, falling: MassDensity) -> Model:
    """Peak on a falling background; every parameter free."""
    return Model(
        components=(
            Component("signal", Yield({"mu": 1.0}), (MassFactor(peak),)),
            Component("background", Yield({"n_bkg": 1.0}), (MassFactor(falling),)),
        ),
        parameters=(
            Parameter("mu", 40.0),
            Parameter("m_X", 140.0, 110.0, 190.0),
            Parameter("width", 6.0, 0.1, 30.0),
            Parameter("n_bkg", 400.0, 0.0),
            Parameter("rate", 0.02, -1.0, 1.0),
        ),
        window=WINDOW,
    )


@pytest.fixture
def spectrum(peak: MassDensity, falling: MassDensity, rng: np.random.Generator) -> Events:
    """60 signal events and 400 background events of the resonance."""
    signal = peak.sample(60, (140.0, 6.0), rng=rng)
    background = falling.sample(400, (0.02,), rng=rng)
    return Events(mass=np.concatenate([signal, background]))


@pytest.fixture
def nuisance_model(peak: MassDensity, falling: MassDensity) -> Callable[[int], Model]:
    """A model of everything at once: nuisances that scale yields, move shapes and shift ratios, some of them shared.

    ``scale`` moves the mean of the peak and the signal yield; ``tilt`` stands in two factors of the background.
    """

    def build(n_events: int) -> Model:
        centred = MassDensity(Gaussian(), (WINDOW.edges,), ("scale",), np.array([0.0, 6.0]), np.array([[140.0], [0.5]]))
        tilted = MassDensity(
            Exponential(), (WINDOW.edges,), ("tilt", "bend"), np.array([0.02]), np.array([[0.002, 0.001]])
        )
        ratio = LogArray(np.random.default_rng(4).normal(-0.5, 1.0, n_events))
        signal: tuple[Factor, ...] = (MassFactor(centred), ratio, LogOffset("ln_kappa"))
        background: tuple[Factor, ...] = (MassFactor(tilted), LogOffset("tilt"))
        return Model(
            components=(
                Component(
                    "signal",
                    Yield({"mu": 20.0, "n_spurious": 1.0}, 3.0, log_scales={"efficiency": 0.1, "scale": 2.0}),
                    signal,
                ),
                Component("background", Yield({"n_bkg": 1.0}, log_scales={"efficiency": -0.02}), background),
                Component("flat", Yield({"n_flat": 1.0}), (LogArray(np.full(n_events, -np.log(WINDOW.width))),)),
            ),
            parameters=(
                Parameter("mu", 1.0),
                Parameter("n_spurious", 0.0),
                Parameter("n_bkg", 300.0, 0.0),
                Parameter("n_flat", 50.0, 0.0),
                Parameter("scale", 1.0, 0.9, 1.1),
                Parameter("tilt", 0.0, -5.0, 5.0),
                Parameter("bend", 0.0, -5.0, 5.0),
                Parameter("ln_kappa", 0.0),
                Parameter("efficiency", 0.0, -5.0, 5.0),
            ),
            constraints=(
                NormalConstraint("n_spurious", 0.0, 4.0),
                NormalConstraint(("tilt", "bend"), (0.0, 0.0), np.array([[1.0, 0.4], [0.4, 1.0]])),
                NormalConstraint("ln_kappa", 0.0, 0.05),
                NormalConstraint("efficiency", 0.0, 1.0),
                NormalConstraint("scale", 1.0, 0.01),
            ),
            window=WINDOW,
        )

    return build
