"""Cost of a fit and of toys of a binned model, against pyhf on the same JSON, measured interleaved in one process.

    python validation/benchmarks/binned.py [--quick]

A bump on a falling spectrum: 100 bins, two samples, 50 nuisances, half of them shapes (``histosys``) and half yields (``normsys``).
pyhf minimises with its numpy backend and MINUIT, and toys are what its toy calculator does for one: a draw of the data and the
auxiliary data, a free fit and one at fixed mu (with SLSQP as well, which is the faster of the two). gbistat's toys are drawn and fitted in batches.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from gbistat.binned.backend import load_model, numpy_backend, toy_calculator_defect
from gbistat.binned.load import load_workspace
from gbistat.binned.toys import binned_toys
from gbistat.fit.minimize import fit


def workspace(n_bins: int, n_nuisances: int, rng: np.random.Generator) -> dict:
    """A bump on a falling spectrum."""
    x = np.linspace(0.0, 1.0, n_bins)
    bump = np.exp(-0.5 * ((x - 0.5) / 0.05) ** 2)
    bump *= 60.0 / bump.sum()
    falling = np.exp(-2.0 * x)
    falling *= 6000.0 / falling.sum()
    on_signal: list[dict] = [{"name": "mu", "type": "normfactor", "data": None}]
    on_background: list[dict] = []
    for k in range(n_nuisances):
        if k % 2:
            width = 0.03 * rng.random()
            on_background.append({"name": f"n{k}", "type": "normsys", "data": {"hi": 1.0 + width, "lo": 1.0 - width}})
        else:
            shape = 0.03 * rng.normal(size=n_bins).cumsum() / np.sqrt(n_bins)
            data = {"hi_data": (falling * (1 + shape)).tolist(), "lo_data": (falling * (1 - shape)).tolist()}
            on_background.append({"name": f"n{k}", "type": "histosys", "data": data})
        if k % 5 == 0:
            on_signal.append({"name": f"n{k}", "type": "normsys", "data": {"hi": 1.05, "lo": 0.96}})
    samples = [
        {"name": "signal", "data": bump.tolist(), "modifiers": on_signal},
        {"name": "background", "data": falling.tolist(), "modifiers": on_background},
    ]
    observed = rng.poisson(falling + 0.5 * bump).astype(float).tolist()
    return {
        "channels": [{"name": "SR", "samples": samples}],
        "observations": [{"name": "SR", "data": observed}],
        "measurements": [{"name": "m", "config": {"poi": "mu", "parameters": []}}],
        "version": "1.0.0",
    }


def seconds(function, repeats: int) -> float:  # type: ignore[no-untyped-def]
    """Median time of a call."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def measure(n_bins: int, n_nuisances: int, *, quick: bool) -> dict[str, float]:
    """Ratios to pyhf."""
    source = workspace(n_bins, n_nuisances, np.random.default_rng(5))
    nll = load_workspace(source).nll
    best = fit(nll)
    truth = fit(nll, fixed={"mu": 0.5}).values
    n_toys = 128 if quick else 512
    fit_seconds = seconds(lambda: fit(nll), 11)
    toy_seconds = seconds(lambda: binned_toys(nll, truth, 0.5, n_toys, rng=np.random.default_rng(1)), 1 if quick else 3)
    found: dict[str, float] = {}
    with numpy_backend() as pyhf:
        model, data = load_model(pyhf, source)
        true = pyhf.tensorlib.astensor(model.config.suggested_init())

        def toy() -> None:
            sample = model.make_pdf(true).sample()
            pyhf.infer.mle.fit(sample, model)
            pyhf.infer.mle.fixed_poi_fit(0.5, sample, model)

        for optimizer, name in (("minuit", "MINUIT"), ("scipy", "SLSQP")):
            pyhf.set_backend("numpy", optimizer)
            theirs = seconds(lambda: pyhf.infer.mle.fit(data, model), 1 if quick else 3)
            found[f"fit / pyhf's with {name}"] = fit_seconds / theirs
            found[f"pyhf's fit with {name}, seconds"] = theirs
            if optimizer == "scipy":
                np.random.seed(1)  # noqa: NPY002  # pyhf draws from the global generator
                found["toys per second / pyhf's with SLSQP"] = seconds(toy, 1 if quick else 5) / (toy_seconds / n_toys)
                mu = float(pyhf.infer.mle.fit(data, model)[model.config.poi_index])
                found["difference of mu / sigma"] = abs(best.value("mu") - mu) / best.error("mu")
    found["fit, milliseconds"] = 1e3 * fit_seconds
    found["toys per second"] = n_toys / toy_seconds
    return found


def main() -> int:
    """Print the table; exit code 1 if a number leaves its band."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    quick = parser.parse_args().quick
    expected = json.loads((Path(__file__).parent / "expected.json").read_text())["binned"]
    print(f"Python {platform.python_version()}, numpy {np.__version__}, {platform.machine()}")
    print(toy_calculator_defect() or "the toy calculator of pyhf works here")
    failed = False
    print("\n100 bins, 50 nuisances")
    for name, value in measure(100, 50, quick=quick).items():
        low, high = expected.get(name, (-np.inf, np.inf))
        good = low <= value <= high
        failed |= not good
        band = "" if name not in expected else f"{'within' if good else 'OUTSIDE'} {low:g} to {high:g}"
        print(f"  {name:<45} {value:9.4g}  {band}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
