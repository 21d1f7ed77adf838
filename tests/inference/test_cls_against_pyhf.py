"""Asymptotic CLs of identical binned problems, ours and pyhf's: observed and the expected band.

1e-3 relative is what is promised; with a tight tolerance in pyhf's minimiser both agree to a few 1e-6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyhf
import pytest

from gbistat.inference.discovery import discovery
from gbistat.inference.limits import AsymptoticCLs
from gbistat.likelihood.components import Yield
from gbistat.likelihood.constraints import Constraint, NormalConstraint, PoissonConstraint
from gbistat.likelihood.nll import ExtendedUnbinnedNLL
from gbistat.likelihood.parameters import Parameter
from gbistat.likelihood.reference import Reference

Binned = Callable[..., tuple[ExtendedUnbinnedNLL, Reference]]

KINDS = ("known", "shapesys", "efficiency", "free", "everything")
"""Background: exactly known; uncertain in each bin; known within a factor, as the signal is; free; all of it."""

CASES = [(kind, seed) for kind in KINDS for seed in range(4 if kind == "everything" else 8)]


@pytest.fixture(autouse=True)
def exact_pyhf() -> Iterator[None]:
    """pyhf with a minimiser that goes on for longer than by default, and as it was afterwards."""
    backend, optimizer = pyhf.get_backend()
    pyhf.set_backend("numpy", pyhf.optimize.scipy_optimizer(tolerance=1e-10))
    yield
    pyhf.set_backend(backend, optimizer)


@dataclass(frozen=True)
class Problem:
    """Expected events in bins, what is uncertain about them, and counts."""

    signal: np.ndarray
    background: np.ndarray
    counts: np.ndarray
    background_error: np.ndarray | None
    signal_efficiency: float
    background_scale: float
    free: bool

    @classmethod
    def random(cls, kind: str, seed: int) -> Problem:
        rng = np.random.default_rng((seed, KINDS.index(kind)))
        n_bins = int(rng.integers(3, 6)) if kind in ("free", "everything") else 1 if seed % 4 == 0 else 2 + seed % 5
        background = rng.uniform(5.0, 80.0, n_bins)
        signal = rng.uniform(0.5, 8.0, n_bins) * np.exp(-0.5 * (np.arange(n_bins) - n_bins / 2) ** 2) + 0.5
        strength = rng.choice([0.0, 0.0, 1.5])
        uncertain = kind in ("shapesys", "everything")
        return cls(
            signal=signal,
            background=background,
            counts=rng.poisson(background + strength * signal).astype(float),
            background_error=rng.uniform(0.05, 0.3, n_bins) * background if uncertain else None,
            signal_efficiency=float(rng.uniform(0.02, 0.2)) if kind in ("efficiency", "everything") else 0.0,
            background_scale=float(rng.uniform(0.02, 0.2)) if kind == "efficiency" else 0.0,
            free=kind in ("free", "everything"),
        )

    def ours(self, binned: Binned) -> tuple[ExtendedUnbinnedNLL, Reference]:
        """Points with weights; a background uncertain in each bin is one component a bin."""
        parameters, constraints = [Parameter("mu", 1.0)], []
        signal_scales, background_scales = {}, {}
        if self.signal_efficiency:
            signal_scales["efficiency"] = self.signal_efficiency
            parameters.append(Parameter("efficiency", 0.0, -8.0, 8.0))
            constraints.append(NormalConstraint("efficiency", 0.0, 1.0))
        if self.background_scale:
            background_scales["scale"] = self.background_scale
            parameters.append(Parameter("scale", 0.0, -8.0, 8.0))
            constraints.append(NormalConstraint("scale", 0.0, 1.0))
        if self.free and self.background_error is not None:
            # ln of the free factor: the product with the factors of the bins stays a yield of the form there is.
            background_scales["log_k"] = 1.0
            parameters.append(Parameter("log_k", 0.0, -20.0, 5.0))
        components = {"signal": (Yield({"mu": self.signal.sum()}, log_scales=signal_scales), self.signal)}
        if self.background_error is None:
            total = self.background.sum()
            rate = Yield({"k": total}) if self.free else Yield(constant=total, log_scales=background_scales)
            parameters += [Parameter("k", 1.0, 0.0)] if self.free else []
            components["background"] = (rate, self.background)
        else:
            self._add_bins(components, background_scales, parameters, constraints)
        return binned(self.counts, components, parameters, constraints)

    def _add_bins(
        self,
        components: dict[str, tuple[Yield, np.ndarray]],
        scales: dict[str, float],
        parameters: list[Parameter],
        constraints: list[Constraint],
    ) -> None:
        assert self.background_error is not None
        for i, (b, error) in enumerate(zip(self.background, self.background_error, strict=True)):
            template = np.zeros(self.background.size)
            template[i] = 1.0
            components[f"background_{i}"] = (Yield({f"gamma_{i}": b}, log_scales=scales), template)
            parameters.append(Parameter(f"gamma_{i}", 1.0, 0.0))
            tau = (b / error) ** 2
            constraints.append(PoissonConstraint(f"gamma_{i}", tau, tau))

    def pyhf_model(self) -> pyhf.Model:
        signal = [{"name": "mu", "type": "normfactor", "data": None}]
        background = []
        if self.signal_efficiency:
            signal.append(normsys("efficiency", self.signal_efficiency))
        if self.background_scale:
            background.append(normsys("scale", self.background_scale))
        if self.free:
            background.append({"name": "k", "type": "normfactor", "data": None})
        if self.background_error is not None:
            background.append({"name": "gamma", "type": "shapesys", "data": self.background_error.tolist()})
        samples = [
            {"name": "signal", "data": self.signal.tolist(), "modifiers": signal},
            {"name": "background", "data": self.background.tolist(), "modifiers": background},
        ]
        return pyhf.Model(
            {"channels": [{"name": "channel", "samples": samples}]},
            poi_name="mu",
            validate=False,
            modifier_settings={"normsys": {"interpcode": "code1"}, "histosys": {"interpcode": "code4p"}},
        )

    def pyhf_cls(self, mu: float) -> np.ndarray:
        """Observed CLs and the five expected ones."""
        model = self.pyhf_model()
        bounds = model.config.suggested_bounds()
        bounds[model.config.poi_index] = (0.0, 20.0 * mu)
        observed, expected = pyhf.infer.hypotest(
            mu, self.counts.tolist() + model.config.auxdata, model, par_bounds=bounds, return_expected_set=True
        )
        return np.array([observed, *expected], dtype=float)


def normsys(name: str, log_size: float) -> dict[str, object]:
    """A log-normal factor exp(log_size * alpha)."""
    return {"name": name, "type": "normsys", "data": {"hi": np.exp(log_size), "lo": np.exp(-log_size)}}


@pytest.mark.parametrize(("kind", "seed"), CASES)
def test_observed_and_expected_cls(binned: Binned, kind: str, seed: int) -> None:
    problem = Problem.random(kind, seed)
    nll, reference = problem.ours(binned)
    asymptotic = AsymptoticCLs(nll, (reference,))
    median = asymptotic.limit().expected[2]
    for mu in (0.3 * median, median, 1.6 * median):
        point = asymptotic.point(mu)
        ours = np.array([point.observed, *point.expected])
        np.testing.assert_allclose(ours, problem.pyhf_cls(mu), rtol=1e-4)


@pytest.mark.parametrize(("kind", "seed"), [("known", 1), ("shapesys", 0), ("efficiency", 3)])
def test_limits(binned: Binned, kind: str, seed: int) -> None:
    problem = Problem.random(kind, seed)
    nll, reference = problem.ours(binned)
    limit = AsymptoticCLs(nll, (reference,)).limit()
    model = problem.pyhf_model()
    bounds = model.config.suggested_bounds()
    bounds[model.config.poi_index] = (0.0, 20.0 * limit.observed)
    observed, expected = pyhf.infer.intervals.upper_limits.toms748_scan(
        problem.counts.tolist() + model.config.auxdata,
        model,
        0.01,
        4.0 * limit.expected[4],
        rtol=1e-5,
        par_bounds=bounds,
    )
    np.testing.assert_allclose([limit.observed, *limit.expected], [observed, *expected], rtol=1e-4)


@pytest.mark.parametrize(("kind", "seed"), CASES[::3])
def test_discovery(binned: Binned, kind: str, seed: int) -> None:
    problem = Problem.random(kind, seed)
    nll, _ = problem.ours(binned)
    model = problem.pyhf_model()
    data = problem.counts.tolist() + model.config.auxdata
    expected = float(pyhf.infer.hypotest(0.0, data, model, test_stat="q0"))
    assert discovery(nll).p0 == pytest.approx(expected, rel=1e-4)
