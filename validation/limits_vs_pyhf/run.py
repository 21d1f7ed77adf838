"""Fits, test statistics and asymptotic CLs of binned models: gbistat beside pyhf on the same JSON.

    python validation/limits_vs_pyhf/run.py --likelihoods ARCHIVE [--quick]

ARCHIVE is ``ins1748602-probability-models.tar.gz`` of the HEPData record ins1748602: background-only workspaces of three regions of a
published search, and a patch for each signal point. From each region some points are taken, spread evenly over its patches. Each is
tested at the signal strength where gbistat's observed CLs is 0.05. Models of pyhf's documentation come on top, also at half and at
twice that. Likelihood and formulae of the reference are pyhf's; its functions are minimised by Newton steps on differences of pyhf's own
expected counts (``gbistat.binned.optimizer``, which falls back to MINUIT), since MINUIT as pyhf sets it up stops up to 0.05 above the
minimum of ``-2 ln L``. Nuisances with one-sided templates give these likelihoods several minima. Where pyhf's is higher by 0.001, a line
says so, its test statistic is formed with the lower one, and its estimate and observed CLs do not count. For one
point of each region and the documented models the table has MINUIT's CLs beside that.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gbistat.binned.backend import load_model, numpy_backend
from gbistat.binned.load import load_workspace
from gbistat.fit.minimize import fit
from gbistat.inference.limits import AsymptoticCLs
from gbistat.inference.qstats import TestStatistics

if TYPE_CHECKING:
    from gbistat.fit.result import FitResult

REGIONS = ("RegionA", "RegionB", "RegionC")


@dataclass(frozen=True)
class Row:
    """Differences of one model, and seconds."""

    name: str
    parameters: int
    mu: float
    nll: float
    qmu: float
    cls: float
    minuit: float
    lower: int
    seconds: tuple[float, float]


def documented_models() -> dict[str, dict]:
    """Workspaces of the models in pyhf's documentation: two bins with correlated or uncorrelated errors, one bin on/off."""
    mu = {"name": "mu", "type": "normfactor", "data": None}

    def workspace(signal: list, background: list, modifier: dict, observed: list) -> dict:
        samples = [
            {"name": "signal", "data": signal, "modifiers": [mu]},
            {"name": "background", "data": background, "modifiers": [modifier]},
        ]
        return {
            "channels": [{"name": "singlechannel", "samples": samples}],
            "observations": [{"name": "singlechannel", "data": observed}],
            "measurements": [{"name": "m", "config": {"poi": "mu", "parameters": []}}],
            "version": "1.0.0",
        }

    shape = {"hi_data": [45.0, 57.0], "lo_data": [55.0, 47.0]}
    return {
        "hello world": workspace(
            [12.0, 11.0],
            [50.0, 52.0],
            {"name": "uncorr", "type": "shapesys", "data": [3.0, 7.0]},
            [51.0, 48.0],
        ),
        "uncorrelated background": workspace(
            [5.0, 10.0], [50.0, 60.0], {"name": "uncorr", "type": "shapesys", "data": [5.0, 12.0]}, [55.0, 62.0]
        ),
        "correlated background": workspace(
            [12.0, 11.0], [50.0, 52.0], {"name": "corr", "type": "histosys", "data": shape}, [51.0, 60.0]
        ),
        "on/off": workspace([10.0], [50.0], {"name": "uncorr", "type": "shapesys", "data": [7.0]}, [62.0]),
    }


def published_models(archive: Path, points: int) -> dict[str, tuple[dict, list | None]]:
    """Background-only workspaces with patches, `points` of each region."""
    models: dict[str, tuple[dict, list | None]] = {}
    with tarfile.open(archive) as content:

        def read(name: str) -> object:
            file = content.extractfile(name)
            if file is None:
                raise SystemExit(f"{archive} has no {name}")
            return json.load(io.BytesIO(file.read()))

        for region in REGIONS:
            names = sorted(n for n in content.getnames() if n.startswith(f"{region}/patch."))
            background = read(f"{region}/BkgOnly.json")
            chosen = [names[k] for k in np.linspace(0, len(names) - 1, points + 2).astype(int)[1:-1]]
            for name in chosen:
                label = name.removeprefix(f"{region}/patch.").removesuffix(".json")
                models[f"{region} {label}"] = (background, read(name))  # type: ignore[assignment]
    return models


def backgrounds(archive: Path) -> dict[str, dict]:
    """Background-only workspaces."""
    found = {}
    with tarfile.open(archive) as content:
        for region in REGIONS:
            file = content.extractfile(f"{region}/BkgOnly.json")
            if file is None:
                raise SystemExit(f"{archive} has no {region}/BkgOnly.json")
            found[f"{region} background only"] = json.load(io.BytesIO(file.read()))
    return found


def compare(name: str, source: dict, patch: list | None, factors: tuple[float, ...], *, minuit: bool) -> Row:
    """Differences between gbistat and pyhf for one model; NaN for MINUIT's where that is not asked for or fails."""
    loaded = load_workspace(source, patch=patch)
    nll = loaded.nll
    begin = time.perf_counter()
    best = fit(nll).raise_if_invalid()
    cls = AsymptoticCLs(nll, (), best=best)
    limit = cls.limit().observed
    values = [factor * limit for factor in factors]
    ours = [cls.point(value) for value in values]
    statistics = TestStatistics(nll, nll.poi, best)
    q = [statistics.qmu_tilde(value) for value in values]
    own = time.perf_counter() - begin
    with numpy_backend("newton") as pyhf:
        model, data = load_model(pyhf, loaded.workspace)
        config = model.config
        bounds = [list(pair) for pair in config.suggested_bounds()]
        bounds[config.poi_index][1] = max(bounds[config.poi_index][1], 4.0 * max(values))
        start, fixed = config.suggested_init(), config.suggested_fixed()
        begin = time.perf_counter()
        parameters, twice_nll = pyhf.infer.mle.fit(data, model, start, bounds, fixed, return_fitted_val=True)
        theirs, conditional = [], []
        for value in values:
            observed, band, *_ = pyhf.infer.hypotest(
                value, data, model, start, bounds, fixed, test_stat="qtilde", return_expected_set=True
            )
            theirs.append([float(observed), *(float(x) for x in band)])
            _, height = pyhf.infer.mle.fixed_poi_fit(value, data, model, start, bounds, fixed, return_fitted_val=True)
            conditional.append(float(height))
        theirs_seconds = time.perf_counter() - begin
        shipped = float("nan")
        if minuit:
            pyhf.set_backend("numpy", "minuit")
            settings = {"test_stat": "qtilde", "return_expected_set": True}
            try:
                observed, band = pyhf.infer.hypotest(limit, data, model, start, bounds, fixed, **settings)
                point = cls.point(limit)
                difference = np.array([point.observed, *point.expected]) - [float(observed), *map(float, band)]
                shipped = float(np.abs(difference).max())
            except pyhf.exceptions.FailedMinimization:
                print(f"MINUIT does not converge for {name}")
        names = [loaded.labels[label] for label in config.par_names]
        # pyhf's fit is bounded at 0, and so is ours here.
        bounded = best if best.value(nll.poi) >= 0 else fit(nll, fixed={nll.poi: 0.0})

        def height_of(result: FitResult) -> float:
            """pyhf's -2 ln L at gbistat's parameters."""
            point = np.array([result.value(item) for item in names])
            return -2.0 * float(model.logpdf(point, data)[0])

        reached = height_of(bounded)
        own_heights = [height_of(statistics.profile.conditional(value)) for value in values]
    # pyhf may stop short of a minimum that gbistat reaches, never the other way round.
    free_lower = float(twice_nll) - reached > 1e-3
    lower = int(free_lower) + sum(b - a > 1e-3 for a, b in zip(own_heights, conditional, strict=True))
    above = max(a - b for a, b in zip([reached, *own_heights], [float(twice_nll), *conditional], strict=True))
    lowest = min(reached, float(twice_nll))
    their_q = [max(min(a, b) - lowest, 0.0) for a, b in zip(own_heights, conditional, strict=True)]
    # At a wall of the parameter there is no error: that of the background-only Asimov set is of the same size.
    error = best.error(nll.poi) or cls.asimov.profile.best.error(nll.poi)
    mu = float(parameters[config.poi_index])
    # From a higher minimum pyhf's estimate and observed CLs are those of another point; the expected ones are not.
    first = 1 if lower else 0
    return Row(
        name,
        len(names),
        float("nan") if free_lower else abs(bounded.value(nll.poi) - mu) / error,
        above,
        max(abs(a - b) for a, b in zip(q, their_q, strict=True)),
        max(
            float(np.abs(np.array([p.observed, *p.expected]) - t)[first:].max())
            for p, t in zip(ours, theirs, strict=True)
        ),
        shipped,
        lower,
        (own, theirs_seconds),
    )


def compare_backgrounds(name: str, source: dict) -> Row:
    """Differences of the fit of a background-only workspace."""
    loaded = load_workspace(source, signal=False)
    begin = time.perf_counter()
    best = fit(loaded.nll).raise_if_invalid()
    own = time.perf_counter() - begin
    with numpy_backend("newton") as pyhf, warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        workspace = pyhf.Workspace(source)
        model = workspace.model(poi_name=None)
        data = workspace.data(model)
        begin = time.perf_counter()
        values, height = pyhf.infer.mle.fit(data, model, return_fitted_val=True)
        theirs = time.perf_counter() - begin
        names = [loaded.labels[label] for label in model.config.par_names]
        point = np.array([best.value(item) for item in names])
        above = -2.0 * float(model.logpdf(point, data)[0]) - float(height)
    errors = np.array([best.error(item) or 1.0 for item in names])
    nan = float("nan")
    return Row(name, len(names), float(np.abs((values - point) / errors).max()), above, nan, nan, nan, 0, (own, theirs))


def main() -> int:
    """Print the table; exit code 1 if a difference leaves its band."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--likelihoods", type=Path, metavar="ARCHIVE", help="published likelihoods")
    parser.add_argument("--points", type=int, default=7, help="signal points of each region")
    parser.add_argument("--quick", action="store_true", help="documented models and one point of the smallest region")
    options = parser.parse_args()
    expected = json.loads((Path(__file__).parent / "expected.json").read_text())
    models: dict[str, tuple[dict, list | None]] = {name: (w, None) for name, w in documented_models().items()}
    if options.likelihoods is not None:
        points = published_models(options.likelihoods, 1 if options.quick else options.points)
        if options.quick:
            points = {name: model for name, model in points.items() if name.startswith("RegionB")}
        models |= points
    elif not options.quick:
        parser.error("give --likelihoods ARCHIVE, or --quick for the documented models alone")
    print(
        f"{'model':<36}{'p':>4}{'mu/sigma':>10}{'2 nll':>10}{'qmu~':>10}{'CLs':>10}{'MINUIT':>10}{'s':>8}{'s pyhf':>8}"
    )
    rows = []
    for name, workspace in ({} if options.likelihoods is None else backgrounds(options.likelihoods)).items():
        row = compare_backgrounds(name, workspace)
        rows.append(row)
        print(
            f"{row.name:<36}{row.parameters:4d}{row.mu:10.1e}{row.nll:10.1e}{'':30}"
            f"{row.seconds[0]:8.2f}{row.seconds[1]:8.1f}",
            flush=True,
        )
    print("(mu/sigma of a background-only fit: the largest of all parameters)")
    for name, (workspace, patch) in models.items():
        documented = patch is None
        first = documented or name.split()[0] not in {row.name.split()[0] for row in rows if "only" not in row.name}
        factors = (0.5, 1.0, 2.0) if documented else (1.0,)
        row = compare(name, workspace, patch, factors, minuit=first and not (options.quick and not documented))
        rows.append(row)
        print(
            f"{row.name:<36}{row.parameters:4d}{row.mu:10.1e}{row.nll:10.1e}{row.qmu:10.1e}{row.cls:10.1e}{row.minuit:10.1e}"
            f"{row.seconds[0]:8.2f}{row.seconds[1]:8.1f}{'  pyhf in a higher minimum' * (row.lower > 0)}",
            flush=True,
        )
    worst = {
        "mu / sigma": max(row.mu for row in rows if row.mu == row.mu),
        "2 nll above pyhf": max(row.nll for row in rows),
        "qmu_tilde": max(row.qmu for row in rows if row.qmu == row.qmu),
        "CLs": max(row.cls for row in rows if row.cls == row.cls),
        "CLs, MINUIT as shipped": max(row.minuit for row in rows if row.minuit == row.minuit),
    }
    failed = False
    print(
        f"\n{len(rows)} models; in {sum(row.lower > 0 for row in rows)} gbistat's minimum is lower by more than 0.001"
    )
    for name, value in worst.items():
        good = value <= expected[name]
        failed |= not good
        print(f"largest difference of {name:<24}{value:10.1e}  {'<=' if good else 'ABOVE'} {expected[name]}")
    own, theirs = (sum(row.seconds[k] for row in rows) for k in (0, 1))
    print(f"seconds in all: gbistat {own:.1f}, pyhf {theirs:.1f}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
