"""Coverage of every kind of interval at twelve points, on the same toys.

    python validation/coverage/run.py [--quick] [--toys 20000] [--points 1,5] [--output FILE]

The problem is a bump on a falling spectrum: x in [0, 10], background exp(-x / 2.5), signal Gauss(4, 0.4), 30 to 120,000 background
events, true mu 0 to 5 times its error at mu = 0; nuisances are a known, a free or a constrained background, and a signal
efficiency. Toys fluctuate the number of events, the events and the auxiliary measurements.

An interval holds the truth if the method does not reject it, so each method is asked about the true mu alone:

- profile: ``tmu`` below the chi2 quantile; "ln 2": below 2 ln 2, the rule that was quoted as 95 %;
- Feldman-Cousins and Neyman: ``tmu_tilde`` and ``tmu`` below the critical value from toys at each toy's own profiled nuisances.
  Critical values are a smooth function of the nuisances (:mod:`gbistat.inference.critical`), from 400,000 further toys a point;
- CLs: upper limit, asymptotic, with the Asimov set at each toy's own nuisances.

Feldman-Cousins and Neyman must not cover less than they say by more than three binomial errors. Profile intervals and CLs are
shown as they are.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.interpolate import RegularGridInterpolator

from gbistat.data.events import Events
from gbistat.data.window import MassWindow
from gbistat.fit.minimize import fit
from gbistat.inference.asymptotics import cls_observed
from gbistat.inference.coverage import CoverageRow, coverage_of_flags
from gbistat.inference.critical import CriticalOptions, CriticalValues, fit_critical_values, latin_hypercube
from gbistat.inference.profile import threshold
from gbistat.inference.qstats import TestStatistics
from gbistat.inference.toy_experiment import Experiment
from gbistat.inference.toy_results import TestSpec
from gbistat.inference.toy_tests import answer
from gbistat.inference.toys import ToyModel, toy_statistics
from gbistat.likelihood.components import Component, MassFactor, Yield
from gbistat.likelihood.constraints import Constraint, NormalConstraint
from gbistat.likelihood.model import Model
from gbistat.likelihood.nll import ExtendedUnbinnedNLL
from gbistat.likelihood.parameters import Parameter
from gbistat.likelihood.reference import asimov_nll, reference_from_quadrature
from gbistat.terms.density import MassDensity
from gbistat.terms.shapes.exponential import Exponential
from gbistat.terms.shapes.gaussian import Gaussian

HERE = Path(__file__).parent
LEVELS = (0.6827, 0.90, 0.95)
DOMAIN = ((0.0, 10.0),)
CRITICAL_TOYS = 400_000
GUARANTEED = ("feldman-cousins", "neyman")


@dataclass(frozen=True)
class Place:
    """One point of the study: background events, true mu in errors, what is uncertain."""

    events: float
    signal: float
    background: str
    efficiency: bool = False

    @property
    def label(self) -> str:
        """For the table."""
        return f"{self.background}{', efficiency' if self.efficiency else ''}"


PLACES = (
    Place(30.0, 0.0, "known"),
    Place(30.0, 2.0, "known"),
    Place(30.0, 5.0, "known"),
    Place(30.0, 0.0, "free"),
    Place(30.0, 3.0, "free"),
    Place(300.0, 1.0, "10 %"),
    Place(300.0, 4.0, "10 %"),
    Place(3_000.0, 0.0, "free"),
    Place(3_000.0, 2.0, "free", efficiency=True),
    Place(120_000.0, 0.0, "free"),
    Place(120_000.0, 1.0, "free"),
    Place(120_000.0, 5.0, "free", efficiency=True),
)
QUICK = (1, 4, 9)


def toy_model(place: Place) -> ToyModel:
    """Model of one point; its data play no part."""
    signal = MassDensity.fixed(Gaussian(), DOMAIN, np.array([4.0, 0.4]))
    background = MassDensity.fixed(Exponential(), DOMAIN, np.array([0.4]))
    scales = {"efficiency": 0.1} if place.efficiency else {}
    parameters = [
        Parameter("mu", 0.0),
        Parameter("n_bkg", place.events, 0.0, fixed=place.background == "known"),
    ]
    constraints: list[Constraint] = []
    if place.background == "10 %":
        constraints.append(NormalConstraint("n_bkg", place.events, 0.1 * place.events))
    if place.efficiency:
        parameters.append(Parameter("efficiency", 0.0, -5.0, 5.0))
        constraints.append(NormalConstraint("efficiency", 0.0, 1.0))
    model = Model(
        (
            Component("signal", Yield({"mu": 1.0}, log_scales=scales), (MassFactor(signal),)),
            Component("background", Yield({"n_bkg": 1.0}), (MassFactor(background),)),
        ),
        tuple(parameters),
        tuple(constraints),
        window=MassWindow(0.0, 10.0),
    )
    nll = ExtendedUnbinnedNLL(model, Events(mass=np.array([5.0])))
    return ToyModel.from_nll(nll, reference_from_quadrature(model))


def unit(model: ToyModel) -> float:
    """Error of mu at mu = 0."""
    start = model.theta()
    return fit(asimov_nll(model.nll, model.references, start), start=start).raise_if_invalid().error("mu")


@dataclass(frozen=True, eq=False)
class Toys:
    """Statistics of toys at one truth: columns tmu, tmu_tilde, qmu_tilde, and nuisances fitted at the true mu and at 0."""

    statistics: np.ndarray
    estimate: np.ndarray
    at_truth: np.ndarray
    at_zero: np.ndarray
    n_failed: int


def throw(model: ToyModel, theta: np.ndarray, mu: float, n_toys: int, rng: np.random.Generator) -> Toys:
    """Draw toys, test the true mu on each, and keep the conditional fits."""
    tests = [TestSpec(name, mu) for name in ("tmu", "tmu_tilde", "qmu_tilde")]
    experiment = Experiment(model, theta, ((),))
    at = experiment.hypotheses[0]
    poi = model.poi_index
    held = at.free.copy()
    held[poi] = False
    rows = []
    for batch in experiment.batches(n_toys, rng=rng):
        toys = batch.toys(0)
        found = answer(toys, tests, at.theta, at.free, poi, batch.count)
        conditional = []
        for value in (mu, 0.0):
            begin = np.tile(at.theta, (batch.count, 1))
            begin[:, poi] = value
            fitted = toys.fit(begin, held, column=None, rows=None) if held.any() else None
            conditional.append(begin if fitted is None else fitted.theta)
        rows.append((found.statistics, found.theta[:, poi], *conditional))
    statistics, estimate, at_truth, at_zero = (np.concatenate(column) for column in zip(*rows, strict=True))
    good = ~(np.isnan(statistics).any(axis=1) | np.isnan(at_truth).any(axis=1) | np.isnan(at_zero).any(axis=1))
    return Toys(statistics[good], estimate[good], at_truth[good], at_zero[good], int((~good).sum()))


def over_nuisances(
    model: ToyModel, theta: np.ndarray, mu: float, free: np.ndarray, toys: Toys, n_toys: int, rng: np.random.Generator
) -> dict[str, CriticalValues]:
    """Critical values as smooth functions of the free nuisances, over all that the toys' fits reached."""
    tests = [TestSpec("tmu", mu), TestSpec("tmu_tilde", mu)]
    reached = toys.at_truth[:, free]
    low, high = reached.min(axis=0), reached.max(axis=0)
    pad = 0.01 * (high - low) + 1e-9 * (1.0 + np.abs(high))
    low, high = np.maximum(low - pad, model_low(model)[free]), high + pad
    design = latin_hypercube(low, high, 60 if free.sum() == 1 else 120, rng=rng)
    each = max(200, n_toys // design.shape[0])
    points, values = [], []
    for point, child in zip(design, rng.spawn(design.shape[0]), strict=True):
        truth = theta.copy()
        truth[free] = point
        values.append(toy_statistics(model, truth, tests, each, rng=child).statistics)
        points.append(np.tile(point, (each, 1)))
    where, t = np.concatenate(points), np.concatenate(values)
    options = CriticalOptions(pieces=8 if free.sum() == 1 else 3)
    return {
        name: fit_critical_values(where, t[:, k], cls=LEVELS, low=low, high=high, options=options)
        for k, name in enumerate(("neyman", "feldman-cousins"))
    }


def model_low(model: ToyModel) -> np.ndarray:
    """Lower ends of all parameters."""
    return np.array([parameter.low for parameter in model.nll.parameters])


def asimov_statistic(model: ToyModel, theta: np.ndarray, mu: float, free: np.ndarray, toys: Toys) -> np.ndarray:
    """qmu_tilde of the background-only Asimov set at each toy's nuisances, interpolated on a grid of them."""

    def exact(nuisances: np.ndarray) -> float:
        truth = theta.copy()
        truth[model.poi_index] = 0.0
        truth[free] = nuisances
        nll = asimov_nll(model.nll, model.references, truth)
        return float(np.sqrt(TestStatistics(nll, model.poi, fit(nll, start=truth)).qmu_tilde(mu)))

    reached = toys.at_zero[:, free]
    if not free.any():
        return np.full(reached.shape[0], exact(np.empty(0)) ** 2)
    axes = []
    for column in reached.T:
        low, high = float(column.min()), float(column.max())
        axes.append(np.linspace(low, high, 7) if high - low > 1e-6 * (1.0 + abs(high)) else None)
    moving = [k for k, axis in enumerate(axes) if axis is not None]
    grid = np.stack(np.meshgrid(*(axes[k] for k in moving), indexing="ij"), axis=-1)
    values = np.empty(grid.shape[:-1])
    for index in np.ndindex(*values.shape):
        point = reached.mean(axis=0)
        point[moving] = grid[index]
        values[index] = exact(point)
    roots = RegularGridInterpolator([axes[k] for k in moving], values, method="cubic")(reached[:, moving])
    return np.asarray(roots) ** 2


def measure(place: Place, n_toys: int, critical_toys: int, rng: np.random.Generator) -> list[CoverageRow]:
    """All methods and levels at one point."""
    model = toy_model(place)
    mu = place.signal * unit(model)
    theta = model.theta(mu=mu)
    free = np.array([not parameter.fixed for parameter in model.nll.parameters])
    free[model.poi_index] = False
    data, further = rng.spawn(2)
    toys = throw(model, theta, mu, n_toys, data)
    tmu, tmu_tilde, qmu_tilde = toys.statistics.T
    critical: dict[tuple[str, float], np.ndarray | float] = {}
    if free.any():
        surfaces = over_nuisances(model, theta, mu, free, toys, critical_toys, further)
        for name, surface in surfaces.items():
            for cl in LEVELS:
                critical[name, cl] = surface.value(toys.at_truth[:, free], cl)
    else:
        tests = [TestSpec("tmu", mu), TestSpec("tmu_tilde", mu)]
        t = toy_statistics(model, theta, tests, critical_toys, rng=further).statistics
        for k, name in enumerate(("neyman", "feldman-cousins")):
            for cl in LEVELS:
                critical[name, cl] = float(np.nanquantile(t[:, k], cl, method="inverted_cdf"))
    q_asimov = asimov_statistic(model, theta, mu, free, toys)
    cls = np.array([cls_observed(q, a)[2] for q, a in zip(qmu_tilde, q_asimov, strict=True)])
    # Fits of equal data agree to 1e-6: ties count as accepted, as they do in the construction.
    tie = 1e-6
    rows = []
    for cl in LEVELS:
        accepted = {
            "profile": tmu <= threshold(cl),
            "feldman-cousins": tmu_tilde <= critical["feldman-cousins", cl] + tie * (1.0 + tmu_tilde),
            "neyman": tmu <= critical["neyman", cl] + tie * (1.0 + tmu_tilde),
            "cls": cls > 1.0 - cl,
        }
        if cl == 0.95:
            accepted["ln 2"] = tmu <= 2.0 * np.log(2.0)
        rows += [
            coverage_of_flags(name, cl, mu, flags, estimates=toys.estimate, n_failed=toys.n_failed)
            for name, flags in accepted.items()
        ]
    return rows


def verdict(row: CoverageRow, place: Place, bands: dict[str, float]) -> str:
    """Empty, or what is wrong."""
    if row.method in GUARANTEED and row.pull < bands["lowest pull of feldman-cousins and neyman"]:
        return "TOO LOW"
    large = place.events >= bands["ln 2 holds from events"]
    if row.method == "ln 2" and large and abs(row.coverage - bands["coverage of ln 2"]) > bands["tolerance of ln 2"]:
        return "NOT 76 %"
    if row.n_failed > bands["largest share of failed toys"] * row.n_toys:
        return "TOO MANY FAILED"
    return ""


def main() -> int:
    """Print the table; exit code 1 if a number leaves its band."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three points, 1000 toys each")
    parser.add_argument("--toys", type=int, help="toys at each point; 20000 by default")
    parser.add_argument("--points", help="numbers of the points, from 1, with commas between; all by default")
    parser.add_argument("--output", type=Path, help="write all rows here, as JSON")
    arguments = parser.parse_args()
    bands = json.loads((HERE / "expected.json").read_text(encoding="utf-8"))
    n_toys = arguments.toys or (1000 if arguments.quick else 20_000)
    chosen = [int(k) - 1 for k in arguments.points.split(",")] if arguments.points else range(len(PLACES))
    if arguments.quick and not arguments.points:
        chosen = QUICK
    methods = ("profile", "feldman-cousins", "neyman", "cls", "ln 2")
    print(f"{n_toys} toys a point; coverage in %, binomial error {100 * np.sqrt(0.25 / n_toys):.2f} at most\n")
    header = "| point | events | mu/sigma | background | bias/sigma | " + " | ".join(
        f"{name} {100 * cl:.4g}" for cl in LEVELS for name in methods if name != "ln 2" or cl == 0.95
    )
    print(header + " |\n|" + "---|" * header.count("|"))
    failures, document = [], []
    for k in chosen:
        place = PLACES[k]
        begin = time.perf_counter()
        rows = measure(place, n_toys, CRITICAL_TOYS // (4 if arguments.quick else 1), np.random.default_rng([2026, k]))
        cells = [f"{100 * row.coverage:.1f}" for row in rows]
        bias = rows[0].bias / rows[0].spread
        print(
            f"| {k + 1} | {place.events:.0f} | {place.signal:g} | {place.label} | {bias:+.2f} | "
            + " | ".join(cells)
            + " |",
            flush=True,
        )
        for row in rows:
            wrong = verdict(row, place, bands)
            if wrong:
                failures.append(f"point {k + 1}: {row.method} at {row.cl:g} covers {row.coverage:.4f}: {wrong}")
            document.append({"point": k + 1, "seconds": time.perf_counter() - begin, **row.to_dict()})
    if arguments.output:
        arguments.output.write_text(json.dumps(document, indent=1), encoding="utf-8")
    print()
    for line in failures:
        print(line)
    print("all within their bands" if not failures else f"{len(failures)} outside of their bands")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
