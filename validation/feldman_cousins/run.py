"""The tables of Feldman and Cousins, arXiv:physics/9711021, recomputed: printed entries, exact coverage, and the toy construction.

    python validation/feldman_cousins/run.py [--quick] [--table 0.90]

Published entries stand in ``tests/inference/reference/feldman_cousins.json``, which says where each comes from. The paper made
its tables on a grid of 0.005 in mu and printed two digits: an entry agrees if the exact end, rounded, is the printed number, or
if it is the end on that grid. Table XII is the mean of the printed upper ends.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import gammaln, ndtr, xlogy

from gbistat.inference.belts import gaussian_interval, poisson_acceptance, poisson_interval
from gbistat.inference.neyman import neyman_interval
from gbistat.inference.neyman_problem import NeymanProblem, bounded_threshold

if TYPE_CHECKING:
    from gbistat.inference.results import IntervalResult

HERE = Path(__file__).parent
PUBLISHED = HERE.parents[1] / "tests" / "inference" / "reference" / "feldman_cousins.json"
BACKGROUNDS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0)
LEVELS = (0.6827, 0.90, 0.95, 0.99)
GRID = 0.005


def ends(result: IntervalResult) -> tuple[float, float]:
    """Lowest and highest end; both exist here."""
    low, high = result.low, result.high
    return (math.nan if low is None else low), (math.nan if high is None else high)


class Comparison:
    """Printed entries against computed ones."""

    def __init__(self) -> None:
        self.count = self.rounded = self.neither = 0
        self.largest = 0.0

    def add(self, label: str, exact: float, printed: float, *, upper: bool) -> None:
        """Compare one end."""
        self.count += 1
        self.largest = max(self.largest, abs(exact - printed))
        if abs(round(exact, 2) - printed) < 1e-9:
            self.rounded += 1
            return
        on_grid = GRID * (math.floor(exact / GRID + 1e-9) if upper else math.ceil(exact / GRID - 1e-9))
        agrees = abs(on_grid - printed) < 0.5 * 0.01 + 1e-9
        self.neither += not agrees
        print(f"  {label}: exact {exact:.4f}, printed {printed:.2f}, on the paper's grid {on_grid:.3f}")


def compare_tables(published: dict[str, Any]) -> dict[str, float]:
    """Poisson and Gaussian tables."""
    comparison = Comparison()
    for table, cl in (("poisson_90", 0.90), ("poisson_68", 0.6827)):
        for key, row in published[table].items():
            if not key.startswith("b="):
                continue
            for n, low, high in zip(row["n"], row["low"], row["high"], strict=True):
                found = ends(poisson_interval(n, float(key[2:]), cl=cl, published=True))
                comparison.add(f"{cl} {key} n={n} low", found[0], low, upper=False)
                comparison.add(f"{cl} {key} n={n} high", found[1], high, upper=True)
    none = published["poisson_90_none"]
    for b, high in zip(none["b"], none["high"], strict=True):
        comparison.add(
            f"0.9 b={b} n=0 high", ends(poisson_interval(0, b, cl=0.90, published=True))[1], high, upper=True
        )
    table = published["poisson_95_high"]
    for b, row in table["b"].items():
        for n, high in zip(table["n"], row, strict=True):
            found = ends(poisson_interval(n, float(b), cl=0.95, published=True))
            comparison.add(f"0.95 b={b} n={n} high", found[1], high, upper=True)
    for entry in published["gaussian"]["entries"]:
        if entry["status"] == "paper":
            found = ends(gaussian_interval(entry["x0"], cl=float(entry["cl"])))
            comparison.add(f"Gaussian {entry['cl']} x={entry['x0']} low", found[0], entry["low"], upper=False)
            comparison.add(f"Gaussian {entry['cl']} x={entry['x0']} high", found[1], entry["high"], upper=True)
    return {
        "entries compared": comparison.count,
        "entries that differ even on the paper's grid": comparison.neither,
        "entries that differ when rounded": comparison.count - comparison.rounded,
        "largest difference to a printed entry": comparison.largest,
    }


def compare_sensitivity(published: dict[str, Any], *, quick: bool) -> dict[str, float]:
    """Table XII: the mean upper end without signal."""
    table = published["sensitivity"]
    wrong = count = 0
    for cl in ("0.90", "0.6827"):
        for b, printed in list(zip(table["b"], table[cl], strict=False))[: 9 if quick else None]:
            n = np.arange(int(b + 9.0 * math.sqrt(b) + 3.0))
            high = [round(ends(poisson_interval(int(k), b, cl=float(cl), published=True))[1], 2) for k in n]
            mass = np.exp(xlogy(n, b) - b - gammaln(n + 1.0))
            count += 1
            wrong += round(float(mass @ high), 2) != printed
    return {"mean upper ends compared": count, "mean upper ends that differ": wrong}


def poisson_coverage(cl: float, *, quick: bool) -> float:
    """Smallest coverage minus level over means and backgrounds: sums, no toys."""
    worst = math.inf
    for b in (0.0, 0.5, 3.0, 8.0):
        for mu in np.linspace(0.0, 15.0, 151 if quick else 1501):
            low, high = poisson_acceptance(float(mu), b, cl=cl)
            n = np.arange(low, high + 1)
            worst = min(worst, float(np.exp(xlogy(n, mu + b) - mu - b - gammaln(n + 1.0)).sum()) - cl)
    return worst


def gaussian_coverage(cl: float, *, quick: bool) -> float:
    """Largest difference of coverage and level: the accepted x at each mean, by root finding on the ends."""
    worst = 0.0
    for mu in np.linspace(0.1, 6.0, 12 if quick else 60):
        top = brentq(lambda x, m=mu: ends(gaussian_interval(x, cl=cl))[0] - m, 0.0, mu + 6.0)
        bottom = brentq(lambda x, m=mu: ends(gaussian_interval(x, cl=cl))[1] - m, -80.0, mu)
        worst = max(worst, abs(float(ndtr(top - mu) - ndtr(bottom - mu)) - cl))
    return worst


class GaussianToys:
    """Toys of a Gaussian measurement of a mean that cannot be negative."""

    def __call__(
        self, theta_true: np.ndarray, poi_values: np.ndarray, n_toys: int, *, rng: np.random.Generator
    ) -> np.ndarray:
        x = rng.normal(theta_true[0], 1.0, n_toys)
        return np.stack([statistic(x, float(value)) for value in poi_values], axis=1)


def statistic(x: np.ndarray, mu: float) -> np.ndarray:
    """``-2 ln R``."""
    return np.where(x >= 0, (x - mu) ** 2, mu**2 - 2.0 * x * mu)


def toys_against_exact(*, quick: bool) -> dict[str, float]:
    """The construction by toys on the Gaussian problem: its ends in Monte Carlo errors."""
    pulls = []
    for seed in range(4 if quick else 40):
        for x in (-1.0, 0.5, 2.0, 4.0):
            for cl in (0.6827, 0.90, 0.95):
                problem = NeymanProblem(
                    poi="mu",
                    index=0,
                    best=max(x, 0.0),
                    scale=1.0,
                    low=0.0,
                    high=math.inf,
                    observed=lambda value, x=x: float(statistic(np.array(x), value)),
                    profiled=lambda value: np.array([value]),
                    statistics=GaussianToys(),
                    asymptotic=bounded_threshold,
                )
                result = neyman_interval(problem, cl=cl, rng=np.random.default_rng([seed, 7]))
                exact = ends(gaussian_interval(x, cl=cl))
                for found, wanted, error in zip(ends(result), exact, result.errors[0], strict=True):
                    if error and wanted > 0:
                        pulls.append((found - wanted) / error)
    return {"mean pull of toy ends": abs(float(np.mean(pulls))), "width of pulls of toy ends": float(np.std(pulls))}


def print_table(cl: float, *, quick: bool) -> None:
    """One table of the paper in full."""
    for columns in (BACKGROUNDS[:10], BACKGROUNDS[10:])[: 1 if quick else 2]:
        print(f"\nPoisson, {100 * cl:g} % CL: interval of the signal mean for n observed, background b")
        print("  n " + "".join(f"{b:>14.1f}" for b in columns))
        for n in range(11 if quick else 21):
            row = [ends(poisson_interval(n, b, cl=cl, published=True)) for b in columns]
            print(f"{n:>3} " + "".join(f"{low:>7.2f},{high:>6.2f}" for low, high in row))
    print(f"\nGaussian with boundary, {100 * cl:g} % CL")
    for x in np.arange(-3.0, 3.2, 0.5 if quick else 0.1):
        low, high = ends(gaussian_interval(float(x), cl=cl))
        print(f"{x:>6.1f} {low:>7.2f},{high:>6.2f}")


def main() -> int:
    """Print tables and checks; exit code 1 if a number leaves its band."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="part of the tables and fewer toys, in less than a minute")
    parser.add_argument("--table", type=float, action="append", help="level of a table to print; all by default")
    arguments = parser.parse_args()
    quick = arguments.quick
    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    for cl in arguments.table or ((0.90,) if quick else LEVELS):
        print_table(cl, quick=quick)
    print("\nEntries that are not the rounded exact ends:")
    numbers = compare_tables(published)
    numbers |= compare_sensitivity(published, quick=quick)
    for cl in LEVELS:
        numbers[f"smallest Poisson coverage minus {cl:g}"] = poisson_coverage(cl, quick=quick)
        numbers[f"largest Gaussian coverage off {cl:g}"] = gaussian_coverage(cl, quick=quick)
    numbers |= toys_against_exact(quick=quick)
    bands = json.loads((HERE / "expected.json").read_text(encoding="utf-8"))
    failed = False
    print()
    for name, value in numbers.items():
        low, high = bands[name]
        inside = (low is None or value >= low) and (high is None or value <= high)
        failed |= not inside
        print(f"{name:<48} {value:>10.3g}  {'' if inside else 'OUTSIDE '}[{low}, {high}]")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
