"""Likelihoods that several tests of this folder fit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gbistat.data.events import Events
from gbistat.data.window import MassWindow
from gbistat.likelihood.components import Component, LogArray, MassFactor, Yield
from gbistat.likelihood.constraints import Constraint
from gbistat.likelihood.model import Model
from gbistat.likelihood.nll import ExtendedUnbinnedNLL
from gbistat.likelihood.parameters import Parameter
from gbistat.terms.density import MassDensity
from gbistat.terms.shapes.exponential import Exponential
from gbistat.terms.shapes.gaussian import Gaussian


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240918)


@pytest.fixture
def counting() -> Callable[..., ExtendedUnbinnedNLL]:
    """A single bin: n events where s mu + b are expected."""

    def build(
        n: float, s: float, b: float | None = None, *constraints: Constraint, low: float = -np.inf
    ) -> ExtendedUnbinnedNLL:
        background = Yield({"b": 1.0}) if b is None else Yield(constant=b)
        here = (LogArray(np.zeros(1)),)
        parameters = [Parameter("mu", max(low, 0.0), low)]
        if b is None:
            parameters.append(Parameter("b", max(n, 1.0), 0.0))
        model = Model(
            (Component("signal", Yield({"mu": s}), here), Component("background", background, here)),
            tuple(parameters),
            constraints,
        )
        return ExtendedUnbinnedNLL(model, Events(mass=[0.0], weights=[n]))

    return build


@pytest.fixture
def bump() -> Callable[..., ExtendedUnbinnedNLL]:
    """Gaussian peak of free mass on an exponential background in 100-200 GeV."""

    def build(mass: np.ndarray, *, m_X: float = 150.0, sigma: float = 5.0, rate: float = 0.02) -> ExtendedUnbinnedNLL:
        window = MassWindow(100.0, 200.0)
        peak = MassDensity(Gaussian(), (window.edges,), ("m_X",), np.array([0.0, sigma]), np.array([[1.0], [0.0]]))
        falling = MassDensity.free(Exponential(), (window.edges,))
        model = Model(
            components=(
                Component("signal", Yield({"mu": 1.0}), (MassFactor(peak),)),
                Component("background", Yield({"n_bkg": 1.0}), (MassFactor(falling),)),
            ),
            parameters=(
                Parameter("mu", 0.0),
                Parameter("m_X", m_X, 105.0, 195.0),
                Parameter("n_bkg", float(mass.size), 0.0),
                Parameter("rate", rate, -1.0, 1.0),
            ),
            window=window,
        )
        return ExtendedUnbinnedNLL(model, Events(mass=mass))

    return build


@pytest.fixture
def bump_masses(rng: np.random.Generator) -> Callable[[int, int, float], np.ndarray]:
    """Masses of n_sig events of a peak at a mass and n_bkg of the background."""

    def draw(n_sig: int, n_bkg: int, at: float) -> np.ndarray:
        falling = MassDensity.fixed(Exponential(), ((100.0, 200.0),), (0.02,))
        return np.concatenate([rng.normal(at, 5.0, n_sig), falling.sample(n_bkg, (), rng=rng)])

    return draw
