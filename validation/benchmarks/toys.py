"""Cost of toys against the peers, measured in one process on the same pool: ratios, and how far estimates are apart.

    python validation/benchmarks/toys.py [--quick]

The problem is that of ``run.py``: x in [0, 10], background exp(-x / 2.5), signal Gauss(4, 0.4), 120,000 background and 500
nominal signal events, likelihood in (mu, n_bkg), both free. Toys are drawn from a pool of background events with known ratios,
as they are where the ratio is a network.

Peers: what an analyst writes in numpy (draw ratios from the pool, Newton in the signal fraction), the same handed to iminuit,
a 50-bin pyhf model, and evermore's vmapped 50-bin fit; each is skipped where it is not installed. Times are processor times of
one core, the smallest of several interleaved rounds: set OPENBLAS_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from iminuit import Minuit

from gbistat.data.events import Events
from gbistat.inference.neyman_problem import problem_of_toys
from gbistat.inference.parallel import mapping
from gbistat.inference.toy_experiment import CountBatch
from gbistat.inference.toy_results import TestSpec
from gbistat.inference.toy_tests import answer
from gbistat.inference.toys import ToyModel, ToyOptions, toy_statistics
from gbistat.likelihood.nll import ExtendedUnbinnedNLL
from gbistat.likelihood.reference import reference_from_pool

if TYPE_CHECKING:
    from collections.abc import Callable

NOMINAL = 500.0
BACKGROUND = 120_000
LENGTH = 2.5


def pool_of_x(count: int, rng: np.random.Generator) -> np.ndarray:
    """Background events."""
    return -LENGTH * np.log1p(-rng.random(count) * -np.expm1(-4.0))


def ratio_of_x(x: np.ndarray) -> np.ndarray:
    """``p_s / p_b``."""
    signal = np.exp(-0.5 * ((x - 4.0) / 0.4) ** 2) / (0.4 * np.sqrt(2.0 * np.pi))
    return np.maximum(signal / (np.exp(-x / LENGTH) / (LENGTH * -np.expm1(-4.0))), 1e-300)


def toy_model(ratio: np.ndarray, options: ToyOptions) -> ToyModel:
    """Toys of the problem."""
    data = ExtendedUnbinnedNLL.from_log_ratio(np.log(ratio[:BACKGROUND]), nominal=NOMINAL)
    pooled = ExtendedUnbinnedNLL.from_log_ratio(np.log(ratio), nominal=NOMINAL)
    return ToyModel.from_nll(
        data, reference_from_pool(pooled.model, Events(mass=np.zeros(ratio.size))), options=options
    )


def numpy_newton(ratio: np.ndarray, rng: np.random.Generator) -> float:
    """One background-only toy: ratios drawn from the pool, Newton in the signal fraction."""
    drawn = ratio[rng.integers(0, ratio.size, rng.poisson(BACKGROUND))]
    excess = drawn - 1.0
    fraction = 0.0
    for _ in range(30):
        share = excess / (1.0 + fraction * excess)
        slope, bend = share.sum(), share @ share
        fraction += slope / bend
        if slope * slope < 1e-10 * bend:
            break
    return float(fraction * drawn.size / NOMINAL)


def iminuit_toy(ratio: np.ndarray, rng: np.random.Generator) -> float:
    """One background-only toy: ratios drawn from the pool, MIGRAD with its own gradient."""
    drawn = ratio[rng.integers(0, ratio.size, rng.poisson(BACKGROUND))]

    def nll(mu: float, n_bkg: float) -> float:
        return mu * NOMINAL + n_bkg - np.sum(np.log(n_bkg + mu * NOMINAL * drawn))

    nll.errordef = Minuit.LIKELIHOOD  # type: ignore[attr-defined]
    minuit = Minuit(nll, mu=0.1, n_bkg=float(drawn.size))
    minuit.migrad()
    return float(minuit.values["mu"])


def binned(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signal and background templates in 50 bins of x."""
    ratio = ratio_of_x(x)
    edges = np.linspace(0.0, 10.0, 51)
    background = np.histogram(x, edges)[0] * BACKGROUND / x.size
    signal = np.histogram(x, edges, weights=ratio)[0] * NOMINAL / ratio.sum()
    return signal, background


def pyhf_toys(x: np.ndarray, count: int, rng: np.random.Generator) -> Callable[[], object]:
    """Fits of 50-bin toys with pyhf's default backend and minimiser."""
    import pyhf

    signal, background = binned(x)
    spec = {
        "channels": [
            {
                "name": "x",
                "samples": [
                    {
                        "name": "s",
                        "data": signal.tolist(),
                        "modifiers": [{"name": "mu", "type": "normfactor", "data": None}],
                    },
                    {
                        "name": "b",
                        "data": background.tolist(),
                        "modifiers": [{"name": "nb", "type": "normfactor", "data": None}],
                    },
                ],
            }
        ]
    }
    model = pyhf.Model(spec, poi_name="mu")
    bounds = [(-10.0, 10.0) if name == "mu" else (0.5, 1.5) for name in model.config.par_order]

    def run() -> object:
        for _ in range(count):
            estimate = pyhf.infer.mle.fit(rng.poisson(background).astype(float), model, par_bounds=bounds)
        return estimate

    return run


def evermore_toys(x: np.ndarray, count: int, rng: np.random.Generator) -> Callable[[], object]:
    """Vmapped 50-bin fits, as evermore does them: jax and optimistix' BFGS on the whole batch."""
    import jax
    import jax.numpy as jnp
    import optimistix

    jax.config.update("jax_enable_x64", True)
    signal, background = map(jnp.asarray, binned(x))

    def loss(theta: object, observed: object) -> object:
        mean = theta[0] * signal + theta[1] * background  # type: ignore[index]
        return jnp.sum(mean - observed * jnp.log(mean))

    solver = optimistix.BFGS(rtol=1e-5, atol=1e-7)
    fit = jax.jit(
        jax.vmap(
            lambda n: optimistix.minimise(loss, solver, jnp.array([0.1, 1.0]), n, max_steps=200, throw=False).value
        )
    )
    fit(jnp.asarray(rng.poisson(background, (256, 50)).astype(float))).block_until_ready()

    def run() -> object:
        for _ in range(0, count, 256):
            result = fit(jnp.asarray(rng.poisson(background, (256, 50)).astype(float))).block_until_ready()
        return result

    return run


def rates(functions: dict[str, tuple[Callable[[], object], int]], rounds: int) -> dict[str, float]:
    """Toys a second of each: the best of several interleaved rounds, after one to warm up."""
    best = dict.fromkeys(functions, float("inf"))
    for turn in range(rounds + 1):
        for name, (function, count) in functions.items():
            begin = time.process_time()
            function()
            if turn:
                best[name] = min(best[name], (time.process_time() - begin) / count)
    return {name: 1.0 / seconds for name, seconds in best.items()}


def speed(x: np.ndarray, quick: bool) -> dict[str, float]:
    """Toys a second, and ratios to the peers."""
    ratio = ratio_of_x(x)
    compressed = toy_model(ratio, ToyOptions())
    exact = toy_model(ratio, ToyOptions(form="exact"))
    plain = toy_model(ratio, ToyOptions(form="exact", compiled=False))
    theta = compressed.theta(mu=0.0, n_bkg=float(BACKGROUND))
    rng = np.random.default_rng(1)
    many, some, few = (20_480, 128, 20) if quick else (81_920, 512, 60)

    def toys(model: ToyModel, count: int, *tests: TestSpec) -> tuple[Callable[[], object], int]:
        return (lambda: toy_statistics(model, theta, tests, count, rng=rng)), count

    functions: dict[str, tuple[Callable[[], object], int]] = {
        "compressed": toys(compressed, many),
        "compressed with tmu": toys(compressed, many, TestSpec("tmu_tilde", 0.3)),
        "exact": toys(exact, some),
        "exact, numpy": toys(plain, some),
        "exact with tmu at 20 values": toys(exact, some, *(TestSpec("tmu", 0.05 * k) for k in range(20))),
        "numpy Newton": ((lambda: [numpy_newton(ratio, rng) for _ in range(few)]), few),
        "plain iminuit": ((lambda: [iminuit_toy(ratio, rng) for _ in range(few // 10)]), few // 10),
    }
    if importlib.util.find_spec("pyhf"):
        functions["pyhf, 50 bins"] = (pyhf_toys(x, few, rng), few)
    if importlib.util.find_spec("optimistix"):
        functions["evermore, 50 bins, vmapped"] = (evermore_toys(x, 2560, rng), 2560)
    measured = rates(functions, 2 if quick else 5)
    result = {f"{name}, toys/s": value for name, value in measured.items()}
    for peer in ("numpy Newton", "plain iminuit", "pyhf, 50 bins", "evermore, 50 bins, vmapped"):
        if peer in measured:
            result[f"compressed / {peer}"] = measured["compressed"] / measured[peer]
    compiled = importlib.util.find_spec("numba") is not None
    result[f"exact / numpy Newton ({'numba' if compiled else 'numpy'})"] = measured["exact"] / measured["numpy Newton"]
    return result


def linearity(x: np.ndarray, quick: bool) -> dict[str, float]:
    """Time a toy for ten times as many toys, over that for fewer; 1 is linear."""
    model = toy_model(ratio_of_x(x), ToyOptions())
    theta = model.theta(mu=0.0, n_bkg=float(BACKGROUND))
    few = 20_480
    toy_statistics(model, theta, [], few, rng=np.random.default_rng(2))
    seconds = []
    for count in (few, 10 * few):
        times = []
        for _ in range(2 if quick else 4):
            begin = time.process_time()
            toy_statistics(model, theta, [], count, rng=np.random.default_rng(2))
            times.append((time.process_time() - begin) / count)
        seconds.append(min(times))
    return {"time a toy, ten times as many": seconds[1] / seconds[0]}


def agreement(x: np.ndarray, quick: bool) -> dict[str, float]:
    """Compressed against exact on the same events: bias, r.m.s. difference, both in errors of mu."""
    ratio = ratio_of_x(x)
    model, exact = toy_model(ratio, ToyOptions()), toy_model(ratio, ToyOptions(form="exact"))
    cells = model.cells()[0]
    result: dict[str, float] = {"cells": float(cells.count), "predicted r.m.s.": float(np.sqrt(max(cells.loss)))}
    count = 300 if quick else 2000
    for mu in (0.0, 1.0):
        theta = model.theta(mu=mu, n_bkg=float(BACKGROUND))
        experiment, single = (m._experiment(theta, ((),)) for m in (model, exact))
        start, free = experiment.hypotheses[0].theta, experiment.hypotheses[0].free
        differences = []
        for batch in single.batches(count, rng=np.random.default_rng(3)):
            counts = [np.bincount(cells.labels[batch.events(t)[0]], minlength=cells.count) for t in range(batch.count)]
            joined = CountBatch(experiment, batch.count, batch.constraints, (np.stack(counts),))
            first, second = (answer(b.toys(0), [], start, free, 0, b.count) for b in (joined, batch))
            differences.append((first.theta[:, 0] - second.theta[:, 0]) / second.error)
        difference = np.concatenate(differences)
        result[f"bias of compressed at mu = {mu:g}"] = abs(float(difference.mean()))
        result[f"r.m.s. of compressed at mu = {mu:g}"] = float(difference.std())
    return result


def construction(x: np.ndarray, quick: bool) -> dict[str, float]:
    """Critical values of a Feldman-Cousins interval, 20 points of 10,000 toys, on one process and on two.

    Wall-clock times, the smaller of two: the one ratio here that other work on the machine spoils. It is taken with 100,000 toys a
    point (20,000 with --quick): 10,000 are half a second of work, of which sending them is a part.
    """
    model = toy_model(ratio_of_x(x), ToyOptions())
    problem = problem_of_toys(model)
    values = [problem.best + problem.scale * 0.2 * k for k in range(20)]
    truths = [problem.profiled(value) for value in values]
    times: dict[tuple[int, int], float] = {}
    results: dict[tuple[int, int], list[float]] = {}
    for jobs in (1, 2):
        with mapping(jobs) as mapper:
            for count in (10_000, 20_000 if quick else 100_000):
                throw = Thrown(problem.statistics, count)
                # The first round starts the processes and prepares the points in each.
                for turn in range(3):
                    seeds = np.random.default_rng(4).spawn(20)
                    begin = time.perf_counter()
                    columns = list(mapper(throw, truths, values, seeds))
                    seconds = time.perf_counter() - begin
                    if turn:
                        times[jobs, count] = min(seconds, times.get((jobs, count), seconds))
                results[jobs, count] = [float(np.quantile(column, 0.95)) for column in columns]
    if any(results[1, count] != results[2, count] for jobs, count in times if jobs == 1):
        raise SystemExit("two processes give another result than one")
    many = max(count for _, count in times)
    return {
        "Feldman-Cousins, 20 x 10,000 toys, s": times[1, 10_000],
        "the same on two processes, s": times[2, 10_000],
        "one process / two": times[1, many] / times[2, many],
    }


class Thrown:
    """Test statistic of toys at one value; a class, so that it can be sent to a process."""

    def __init__(self, statistics: object, count: int) -> None:
        self.statistics = statistics
        self.count = count

    def __call__(self, truth: np.ndarray, value: float, rng: np.random.Generator) -> np.ndarray:
        """Shape (n,)."""
        column: np.ndarray = self.statistics(truth, np.array([value]), self.count, rng=rng)[:, 0]  # type: ignore[operator]
        return column


def memory(size: int) -> dict[str, float]:
    """Largest memory of a process of its own that throws compressed and exact toys from a pool (Linux alone tells)."""
    if not Path("/proc/self/status").exists():
        return {}
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import re, numpy as np, toys as b\n"
        f"ratio = b.ratio_of_x(b.pool_of_x({size}, np.random.default_rng(1)))\n"
        "for form, count in (('compressed', 200_000), ('exact', 1000)):\n"
        "    model = b.toy_model(ratio, b.ToyOptions(form=form))\n"
        "    theta = model.theta(mu=0.0, n_bkg=float(b.BACKGROUND))\n"
        "    b.toy_statistics(model, theta, [b.TestSpec('tmu', 0.5)], count, rng=np.random.default_rng(2))\n"
        # Not getrusage: its maximum is inherited from the process that started this one.
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 2**20)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {"memory, GiB": float(result.stdout)}


def main() -> int:
    """Print the table; exit code 1 if a number leaves its band."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer toys")
    quick = parser.parse_args().quick
    bands = json.loads((Path(__file__).parent / "expected.json").read_text())["toys"]
    x = pool_of_x(2_000_000, np.random.default_rng(20260101))
    print(f"Python {platform.python_version()}, numpy {np.__version__}, {platform.machine()}; pool of {x.size} events")
    result = {
        **speed(x, quick),
        **linearity(x, quick),
        **agreement(x, quick),
        **construction(x, quick),
        **memory(x.size),
    }
    failed = False
    for name, value in result.items():
        low, high = bands.get(name, (None, None))
        wrong = (low is not None and value < low) or (high is not None and value > high)
        failed |= wrong
        band = "" if name not in bands else f"{'-' if low is None else low} to {'-' if high is None else high}"
        print(f"  {name:<52} {value:12.4g}  {'OUTSIDE ' if wrong else ''}{band}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
