"""Models that several tests of toys look at."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gbistat.data.events import Events
from gbistat.data.window import MassWindow
from gbistat.inference.toys import ToyModel, ToyOptions
from gbistat.likelihood.components import Component, LogArray, LogOffset, MassFactor, Yield
from gbistat.likelihood.constraints import NormalConstraint
from gbistat.likelihood.model import Model
from gbistat.likelihood.nll import ExtendedUnbinnedNLL
from gbistat.likelihood.parameters import Parameter
from gbistat.likelihood.reference import Reference, reference_from_pool, reference_from_quadrature
from gbistat.terms.density import MassDensity
from gbistat.terms.shapes.exponential import Exponential
from gbistat.terms.shapes.gaussian import Gaussian


def bump_ratio(n: int, rng: np.random.Generator) -> np.ndarray:
    """``p_s / p_b`` of n background events: bump at 4 +- 0.4 on exp(-x / 2.5) in [0, 10]."""
    x = -2.5 * np.log1p(-rng.random(n) * -np.expm1(-4.0))
    signal = np.exp(-0.5 * ((x - 4.0) / 0.4) ** 2) / (0.4 * np.sqrt(2.0 * np.pi))
    return np.maximum(signal / (np.exp(-x / 2.5) / (2.5 * -np.expm1(-4.0))), 1e-300)


def ratio_reference(ratio: np.ndarray, nominal: float = 1.0, weights: np.ndarray | None = None) -> Reference:
    """Reference of pool events with a known ratio."""
    model = ExtendedUnbinnedNLL.from_log_ratio(np.log(ratio), nominal=nominal).model
    return reference_from_pool(model, Events(mass=np.zeros(ratio.size), weights=weights))


@pytest.fixture(scope="session")
def bump_pool() -> Callable[..., Reference]:
    """Reference of n bump events."""

    def build(n: int, rng: np.random.Generator, nominal: float = 200.0, weights: np.ndarray | None = None) -> Reference:
        return ratio_reference(bump_ratio(n, rng), nominal, weights)

    return build


@pytest.fixture(scope="session")
def toy_bump() -> Callable[..., ToyModel]:
    """Toys in (mu, n_bkg) from a pool of ratios."""

    def build(
        n_background: float = 10_000,
        nominal: float = 200.0,
        n_pool: int = 50_000,
        *,
        constraints: tuple[object, ...] = (),
        options: ToyOptions | None = None,
        seed: int = 7,
    ) -> ToyModel:
        rng = np.random.default_rng(seed)
        pool, data = bump_ratio(n_pool, rng), bump_ratio(int(n_background), rng)
        nll = ExtendedUnbinnedNLL.from_log_ratio(np.log(data), nominal=nominal, constraints=constraints)
        return ToyModel.from_nll(nll, ratio_reference(pool, nominal), options=options)

    return build


@pytest.fixture(scope="session")
def toy_counting() -> Callable[..., ToyModel]:
    """One bin: N ~ Poisson(mu + b), all events alike, b known."""

    def build(background: float, observed: int, *, options: ToyOptions | None = None) -> ToyModel:
        window = MassWindow(0.0, 1.0)
        flat = MassDensity.fixed(Exponential(), (window.edges,), [0.0])
        model = Model(
            components=(
                Component("signal", Yield({"mu": 1.0}), (MassFactor(flat),)),
                Component("background", Yield({"n_bkg": 1.0}), (MassFactor(flat),)),
            ),
            parameters=(Parameter("mu", 0.0), Parameter("n_bkg", background, 0.0, fixed=True)),
            window=window,
        )
        nll = ExtendedUnbinnedNLL(model, Events(mass=np.linspace(0.1, 0.9, observed)))
        return ToyModel.from_nll(nll, reference_from_quadrature(model, nodes_per_piece=20), options=options)

    return build


@pytest.fixture(scope="session")
def toy_resonance() -> Callable[..., ToyModel]:
    """Everything at once: shape nuisances, a mass scale, ln kappa, an efficiency, a spurious signal, a feature ratio."""

    def build(
        n_background: float = 3000.0, n_pool: int = 20_000, *, options: ToyOptions | None = None, seed: int = 3
    ) -> ToyModel:
        rng = np.random.default_rng(seed)
        window = MassWindow(100.0, 200.0)
        centred = MassDensity(Gaussian(), (window.edges,), ("scale",), np.array([0.0, 8.0]), np.array([[145.0], [0.0]]))
        tilted = MassDensity(Exponential(), (window.edges,), ("bkg_shape_1",), np.array([0.01]), np.array([[0.0008]]))

        def model(events: Events) -> Model:
            feature = LogArray(events.feature("ln_r"))
            return Model(
                components=(
                    Component(
                        "signal",
                        Yield({"mu": 100.0, "n_spurious": 1.0}, log_scales={"efficiency": 0.1}),
                        (MassFactor(centred), feature, LogOffset("ln_kappa")),
                    ),
                    Component("background", Yield({"n_bkg": 1.0}), (MassFactor(tilted),)),
                ),
                parameters=(
                    Parameter("mu", 0.0),
                    Parameter("n_bkg", n_background, 0.0),
                    Parameter("bkg_shape_1", 0.0, -10.0, 10.0),
                    Parameter("scale", 1.0, 0.9, 1.1),
                    Parameter("ln_kappa", 0.0),
                    Parameter("efficiency", 0.0, -10.0, 10.0),
                    Parameter("n_spurious", 0.0),
                ),
                constraints=(
                    NormalConstraint(
                        ("n_bkg", "bkg_shape_1"), (n_background, 0.0), np.array([[60.0**2, 12.0], [12.0, 1.0]])
                    ),
                    NormalConstraint("scale", 1.0, 0.005),
                    NormalConstraint("ln_kappa", 0.0, 0.002),
                    NormalConstraint("efficiency", 0.0, 1.0),
                    NormalConstraint("n_spurious", 0.0, 5.0),
                ),
                window=window,
            )

        def background(n: int) -> Events:
            # ln r of a Gaussian feature shifted by 1 between background and signal: E_b[r] = 1 exactly.
            z = rng.normal(size=n)
            return Events(mass=tilted.sample(n, (0.0,), rng=rng), features=(z - 0.5)[:, None], names=("ln_r",))

        pool, data = background(n_pool), background(int(n_background))
        return ToyModel.from_nll(
            ExtendedUnbinnedNLL(model(data), data), reference_from_pool(model(pool), pool), options=options
        )

    return build
