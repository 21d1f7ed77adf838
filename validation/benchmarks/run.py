"""Cost of one unbinned fit against plain iminuit: ratios, measured interleaved in one process on the same arrays.

    python validation/benchmarks/run.py [--quick]

The problem is that of bump-on-exponential with exact densities: x in [0, 10], background exp(-x / 2.5), signal Gauss(4, 0.4),
120,000 background and 500 signal events, likelihood in (mu, n_bkg). The peer is what an analyst writes: a three-line numpy
function of the ratios, handed to ``iminuit.Minuit`` with its numerical gradient and default strategy.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from iminuit import Minuit
from iminuit import __version__ as iminuit_version

from gbistat.fit.minimize import fit
from gbistat.fit.result import FitOptions
from gbistat.likelihood.nll import ExtendedUnbinnedNLL

if TYPE_CHECKING:
    from collections.abc import Callable

NOMINAL = 500.0


def events(n_background: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the events and return ``r = p_s / p_b`` of each."""
    background = -2.5 * np.log1p(-rng.random(rng.poisson(n_background)) * -np.expm1(-4.0))
    x = np.r_[background, rng.normal(4.0, 0.4, rng.poisson(NOMINAL))]
    signal = np.exp(-0.5 * ((x - 4.0) / 0.4) ** 2) / (0.4 * np.sqrt(2.0 * np.pi))
    return signal / (np.exp(-x / 2.5) / (2.5 * -np.expm1(-4.0)))


def timed(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, interleaved so that a busy machine slows all alike."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for name, function in functions.items():
        function()
        del name
    for _ in range(repeats):
        for name, function in functions.items():
            begin = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def measure(n_background: int, repeats: int) -> dict[str, float]:
    """Ratios to plain iminuit, and how far the estimates are apart."""
    ratio = events(n_background, np.random.default_rng(20260101))
    log_ratio = np.log(np.maximum(ratio, 1e-300))

    def plain_nll(mu: float, n_bkg: float) -> float:
        return mu * NOMINAL + n_bkg - np.sum(np.log(n_bkg + mu * NOMINAL * ratio))

    plain_nll.errordef = Minuit.LIKELIHOOD  # type: ignore[attr-defined]

    def plain() -> Minuit:
        minuit = Minuit(plain_nll, mu=0.5, n_bkg=float(ratio.size))
        minuit.migrad()
        return minuit

    def plain_fixed() -> Minuit:
        minuit = Minuit(plain_nll, mu=0.5, n_bkg=float(ratio.size))
        minuit.fixed["mu"] = True
        minuit.migrad()
        return minuit

    nll = ExtendedUnbinnedNLL.from_log_ratio(log_ratio, nominal=NOMINAL)
    seconds = timed(
        {
            "plain": plain,
            "plain_fixed": plain_fixed,
            "newton": lambda: fit(nll),
            "migrad": lambda: fit(nll, options=FitOptions(minimizer="migrad")),
            "fixed": lambda: fit(nll, fixed={"mu": 0.5}),
        },
        repeats,
    )
    reference, ours = plain(), fit(nll)
    return {
        "fit / plain iminuit": seconds["newton"] / seconds["plain"],
        "fit with MIGRAD / plain iminuit": seconds["migrad"] / seconds["plain"],
        "fit at fixed mu / plain iminuit": seconds["fixed"] / seconds["plain"],
        "plain iminuit at fixed mu / plain iminuit": seconds["plain_fixed"] / seconds["plain"],
        "difference of mu / sigma": abs(ours.value("mu") - reference.values["mu"]) / ours.error("mu"),
        "difference of errors / error": abs(ours.error("mu") / reference.errors["mu"] - 1.0),
        "plain iminuit, milliseconds": 1e3 * seconds["plain"],
    }


def main() -> int:
    """Print the table; exit code 1 if a number leaves its band."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    quick = parser.parse_args().quick
    expected = json.loads((Path(__file__).parent / "expected.json").read_text())
    print(
        f"Python {platform.python_version()}, numpy {np.__version__}, iminuit {iminuit_version}, {platform.machine()}"
    )
    failed = False
    for size in (10_000, 120_000):
        result = measure(size, 9 if quick else 41)
        print(f"\n{size} background events")
        for name, value in result.items():
            limit = expected.get(str(size), {}).get(name)
            verdict = "" if limit is None else (f"<= {limit}" if value <= limit else f"ABOVE {limit}")
            failed |= verdict.startswith("ABOVE")
            print(f"  {name:<45} {value:8.4f}  {verdict}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
