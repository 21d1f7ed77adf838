"""Likelihoods that several tests of this folder look at."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gbistat.data.events import Events
from gbistat.data.window import MassWindow
from gbistat.likelihood.components import Component, LogArray, MassFactor, Yield
from gbistat.likelihood.constraints import Constraint, NormalConstraint
from gbistat.likelihood.mixture import Mixture
from gbistat.likelihood.model import Model
from gbistat.likelihood.nll import NLL, ExtendedUnbinnedNLL
from gbistat.likelihood.parameters import Parameter, start_vector
from gbistat.likelihood.reference import Reference
from gbistat.terms.density import MassDensity
from gbistat.terms.shapes.exponential import Exponential
from gbistat.terms.shapes.gaussian import Gaussian


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240919)


@pytest.fixture
def gaussian_measurement() -> Callable[..., NLL]:
    """A likelihood that is exactly Gaussian in mu: a measurement and nothing else."""

    def build(value: float, sigma: float, low: float = -np.inf, high: float = np.inf) -> NLL:
        start = min(max(value, low), high)
        return NLL([Parameter("mu", start, low, high)], [], [NormalConstraint("mu", value, sigma)], poi="mu")

    return build


@pytest.fixture
def binned() -> Callable[..., tuple[ExtendedUnbinnedNLL, Reference]]:
    """Histograms as weighted points, one a bin: what a binned likelihood is for the code of an unbinned one.

    Takes the counts, one row of expected events a component with its yield, and returns the likelihood with the
    measure of its Asimov sets (1 a bin).
    """

    def build(
        counts: np.ndarray,
        components: dict[str, tuple[Yield, np.ndarray]],
        parameters: list[Parameter],
        constraints: list[Constraint],
    ) -> tuple[ExtendedUnbinnedNLL, Reference]:
        with np.errstate(divide="ignore"):
            parts = tuple(
                Component(name, rate, (LogArray(np.log(template / template.sum())),))
                for name, (rate, template) in components.items()
            )
        model = Model(parts, tuple(parameters), tuple(constraints))
        bins = Events(mass=np.arange(counts.size, dtype=float), weights=counts)
        nll = ExtendedUnbinnedNLL(model, bins)
        mixture = Mixture.of(model, bins.without_weights(), start_vector(model.parameters))
        return nll, Reference(mixture, np.ones(counts.size), "quadrature", float("inf"), 1.0)

    return build


@pytest.fixture
def counting(
    binned: Callable[..., tuple[ExtendedUnbinnedNLL, Reference]],
) -> Callable[..., tuple[ExtendedUnbinnedNLL, Reference]]:
    """One bin: n events where s mu + b are expected, b known or with constraints on a parameter of that name."""

    def build(
        n: float, s: float, b: float | None, *constraints: Constraint, low: float = -np.inf
    ) -> tuple[ExtendedUnbinnedNLL, Reference]:
        background = Yield({"b": 1.0}) if b is None else Yield(constant=b)
        parameters = [Parameter("mu", max(low, 0.0), low)]
        if b is None:
            parameters.append(Parameter("b", max(n, 1.0), 0.0))
        one = np.ones(1)
        components = {"signal": (Yield({"mu": s}), one), "background": (background, one)}
        return binned(np.array([n]), components, parameters, list(constraints))

    return build


@pytest.fixture
def bump() -> Callable[..., ExtendedUnbinnedNLL]:
    """Gaussian peak of free mass on a flat-ish exponential of known rate in 100-200 GeV."""

    def build(mass: np.ndarray, *, m_X: float = 150.0, sigma: float = 4.0) -> ExtendedUnbinnedNLL:
        window = MassWindow(100.0, 200.0)
        peak = MassDensity(Gaussian(), (window.edges,), ("m_X",), np.array([0.0, sigma]), np.array([[1.0], [0.0]]))
        falling = MassDensity.fixed(Exponential(), (window.edges,), (0.01,))
        model = Model(
            components=(
                Component("signal", Yield({"mu": 1.0}), (MassFactor(peak),)),
                Component("background", Yield({"n_bkg": 1.0}), (MassFactor(falling),)),
            ),
            parameters=(
                Parameter("mu", 10.0),
                Parameter("m_X", m_X, 105.0, 195.0),
                Parameter("n_bkg", float(mass.size), 0.0),
            ),
            window=window,
        )
        return ExtendedUnbinnedNLL(model, Events(mass=mass))

    return build


class DoubleWell:
    """``8 (t^2 - 1)^2 - 1.5 t``: a minimum near -1 and, lower by 3, one near +1."""

    names = ("t",)

    def value(self, theta: np.ndarray) -> float:
        return float(8.0 * (theta[0] ** 2 - 1.0) ** 2 - 1.5 * theta[0])

    def gradient(self, theta: np.ndarray) -> np.ndarray:
        return np.array([32.0 * theta[0] * (theta[0] ** 2 - 1.0) - 1.5])

    def hessian(self, theta: np.ndarray) -> np.ndarray:
        return np.array([[96.0 * theta[0] ** 2 - 32.0]])


@pytest.fixture
def double_well() -> NLL:
    return NLL([Parameter("t", -1.0, -3.0, 3.0)], [], [DoubleWell()], poi="t")


class Saturating:
    """``1 - exp(-t^2 / 2)``: 2 nll never exceeds 2, so that no 95 % interval closes."""

    names = ("t",)

    def value(self, theta: np.ndarray) -> float:
        return float(-np.expm1(-0.5 * theta[0] ** 2))

    def gradient(self, theta: np.ndarray) -> np.ndarray:
        return np.array([theta[0] * np.exp(-0.5 * theta[0] ** 2)])

    def hessian(self, theta: np.ndarray) -> np.ndarray:
        return np.array([[(1.0 - theta[0] ** 2) * np.exp(-0.5 * theta[0] ** 2)]])


@pytest.fixture
def saturating() -> NLL:
    """Beside a nuisance that is measured."""
    measured = NormalConstraint("nuisance", 0.0, 1.0)
    return NLL([Parameter("t", 0.1), Parameter("nuisance", 1.0)], [], [Saturating(), measured], poi="t")


class HiddenWell:
    """``t^2 / 200 - 8 exp(-(t - 21)^2 / 2)``: an error of 10 at 0, and a deeper, narrow well two errors away."""

    names = ("t",)

    def value(self, theta: np.ndarray) -> float:
        return float(theta[0] ** 2 / 200.0 - 8.0 * np.exp(-0.5 * (theta[0] - 21.0) ** 2))

    def gradient(self, theta: np.ndarray) -> np.ndarray:
        return np.array([theta[0] / 100.0 + 8.0 * (theta[0] - 21.0) * np.exp(-0.5 * (theta[0] - 21.0) ** 2)])

    def hessian(self, theta: np.ndarray) -> np.ndarray:
        bend = 8.0 * (1.0 - (theta[0] - 21.0) ** 2) * np.exp(-0.5 * (theta[0] - 21.0) ** 2)
        return np.array([[0.01 + bend]])


@pytest.fixture
def hidden_well() -> NLL:
    return NLL([Parameter("t", 0.0)], [], [HiddenWell()], poi="t")


class Barrier:
    """``t^2 / 200 + 10 exp(-(t - 8)^2 / 4.5)``: an error of 10, and a barrier within one error."""

    names = ("t",)

    def value(self, theta: np.ndarray) -> float:
        return float(theta[0] ** 2 / 200.0 + 10.0 * np.exp(-((theta[0] - 8.0) ** 2) / 4.5))

    def gradient(self, theta: np.ndarray) -> np.ndarray:
        return np.array([theta[0] / 100.0 - 10.0 * (theta[0] - 8.0) / 2.25 * np.exp(-((theta[0] - 8.0) ** 2) / 4.5)])

    def hessian(self, theta: np.ndarray) -> np.ndarray:
        bend = 10.0 / 2.25 * ((theta[0] - 8.0) ** 2 / 2.25 - 1.0) * np.exp(-((theta[0] - 8.0) ** 2) / 4.5)
        return np.array([[0.01 + bend]])


@pytest.fixture
def barrier() -> NLL:
    return NLL([Parameter("t", 0.0, -60.0, 60.0)], [], [Barrier()], poi="t")
