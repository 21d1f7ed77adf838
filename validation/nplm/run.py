"""NPLM on the published one-dimensional benchmark (arXiv:1806.02350, 2204.02317), and at full size in five dimensions.

    python validation/nplm/run.py [--quick]

Reference: 2000 expected events of 8 exp(-8x), N_R = 200,000. Signals: NP1 10 events at N(0.8, 0.02), NP2 90 events at N(0.2, 0.02), NP3 90 events of
Gamma(3, 1/8). Kernel width 0.3, penalty 1e-10; data fluctuate (Poisson). Published: 9.58 degrees of freedom, median Z of
2.43, 2.82 and 3.04; an ideal test has 4.7, 4.1 and 4.4. --quick takes N_R = 20,000 and a penalty of 1e-7.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from scipy.stats import chi2, norm

from gbistat.diagnostics.nplm import nplm_fit, nplm_test
from gbistat.diagnostics.nplm_kernel import NplmOptions, kernel_features
from gbistat.diagnostics.significance import null_significance

HERE = Path(__file__).parent
PUBLISHED = {"NP1": 2.43, "NP2": 2.82, "NP3": 3.04}
WIDTH, EXPECTED = 0.3, 2000
SIGNALS = {
    "NP1": (10, lambda n, rng: rng.normal(0.8, 0.02, n)),
    "NP2": (90, lambda n, rng: rng.normal(0.2, 0.02, n)),
    "NP3": (90, lambda n, rng: rng.gamma(3, 1 / 8, n)),
}


def toy(n_reference: int, options: NplmOptions, signal: str | None, rng: np.random.Generator) -> float:
    """t of one toy with fresh data and reference."""
    reference = rng.exponential(1 / 8, n_reference)
    data = rng.exponential(1 / 8, rng.poisson(EXPECTED))
    if signal is not None:
        expected, draw = SIGNALS[signal]
        data = np.concatenate([data, draw(rng.poisson(expected), rng)])
    # The width is in units of x itself; the reference's standard deviation is 1/8.
    pool = np.concatenate([data, reference])[:, None]
    label = np.arange(len(pool)) < data.size
    weight = EXPECTED / n_reference
    features = kernel_features(pool, WIDTH, float(label.mean()), weight, options, rng=rng)
    return float(nplm_fit(features, label[None], weight)[0][0])


def benchmark(*, quick: bool, rng: np.random.Generator) -> dict[str, float]:
    """Degrees of freedom of the null and median Z of each signal."""
    n_reference, nulls, signals = (20_000, 40, 20) if quick else (200_000, 100, 40)
    options = NplmOptions(centres=300, penalty=1e-7 if quick else 1e-10, cut=1e-13)
    begin = time.perf_counter()
    null = np.array([toy(n_reference, options, None, rng) for _ in range(nulls)])
    good = null[null >= 0]
    numbers = {"degrees of freedom": float(good.mean()), "null toys with t < 0": float(nulls - good.size)}
    print(
        f"N_R = {n_reference}: null of {nulls} toys, mean t {good.mean():.2f} +- {good.std() / np.sqrt(good.size):.2f}, "
        f"std {good.std():.2f} (chi-square: {np.sqrt(2 * good.mean()):.2f}); {time.perf_counter() - begin:.0f} s"
    )
    print(f"{'signal':<8}{'median t':>10}{'Z chi2':>9}{'Z gamma':>9}{'counted':>9}{'published':>11}")
    for name, published in PUBLISHED.items():
        t = float(np.median([toy(n_reference, options, name, rng) for _ in range(signals)]))
        z = float(norm.isf(chi2(good.mean()).sf(t)))
        own = null_significance(t, good, rng=rng)
        print(f"{name:<8}{t:>10.1f}{z:>9.2f}{own.z_gamma:>9.2f}{own.z:>9.2f}{published:>11.2f}")
        numbers[f"{name}: Z"] = z
    return numbers


def five_dimensions(*, quick: bool, rng: np.random.Generator) -> dict[str, float]:
    """Time and null of 20,000 + 4,000 normal events, and what a shift of 0.15 gives."""
    permutations = 64 if quick else 300
    options = NplmOptions(centres=500, permutations=permutations)
    data, reference = rng.normal(size=(4000, 5)), rng.normal(size=(20_000, 5))
    begin = time.perf_counter()
    result = nplm_test(data, reference, rng=rng, options=options)
    seconds = time.perf_counter() - begin
    print(
        f"5-D, 20,000 + 4,000 events, {permutations} permutations: {seconds:.0f} s, rank {result.best.rank}, mean null t {result.best.null.mean():.1f}"
    )
    shifted = nplm_test(data + np.array([0.15, 0, 0, 0, 0]), reference, rng=rng, options=options)
    z = shifted.significance
    print(
        f"  shift of 0.15 sd in one feature: t {shifted.best.t:.1f}, Z counted {z.z:.2f} (ceiling {z.z_ceiling:.2f}), "
        f"extrapolated {z.z_gamma:.2f} +- {z.z_gamma_error:.2f}"
    )
    return {
        "5-D: seconds": seconds,
        "5-D: mean null t": float(result.best.null.mean()),
        "5-D: smallest null t": float(result.best.null.min()),
        "5-D: Z of a shift, extrapolated": z.z_gamma,
    }


def main() -> int:
    """Print the tables; exit code 1 if a number leaves its band."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the reference events and fewer toys")
    quick = parser.parse_args().quick
    rng = np.random.default_rng(2204)
    numbers = benchmark(quick=quick, rng=rng) | five_dimensions(quick=quick, rng=rng)
    bands = json.loads((HERE / "expected.json").read_text(encoding="utf-8"))["quick" if quick else "full"]
    failed = False
    print()
    for name, value in numbers.items():
        low, high = bands[name]
        inside = (low is None or value >= low) and (high is None or value <= high)
        failed |= not inside
        print(f"{name:<36} {value:>10.4g}  {'' if inside else 'OUTSIDE '}[{low}, {high}]")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
