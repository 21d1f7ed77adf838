"""Statements about a signal learned from the data: are they valid, and how much do they find.

    python validation/ranode/run.py [--quick] [--sets 40] [--nulls 200] [--work DIR] [--trainings SETS ... --events DIR] [--output FILE]

Part (a), exactly known background: 10,000 events, a mass and two features, a narrow signal that a quick learner has to find
(`analytic.py`). In each data set: five folds learned without them (averages of e-values), prefixes of folds (products of e-values),
lower limits on the fraction, the published one-fold statement with its rule "Delta ln L = ln 2", and q0 of searches that know
the signal or all but two masses. `--work` keeps finished data sets, and a run goes on where it was stopped.

Part (b), trained flows on simulated dijets: the folders that `data_sets.py` wrote, given with `--trainings`; alone with `--trained-only`. With
`--events` beside the power of searches that know the signal (`known.py`).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import analytic
import numpy as np
import trained
from scipy.special import chdtrc, ndtr

from gbistat.inference.bounded_evidence import RatioReference
from gbistat.inference.signal_fraction import (
    class_interval,
    cross_fit_estimate,
    unrestricted_lower_limit,
)
from gbistat.inference.split_likelihood import FoldRatios, FractionPrior, discovery_evidence

HERE = Path(__file__).parent
SIGNALS = (0, 60, 100, 140, 200)
"""Signal events on average, of 10,000."""
THRESHOLDS = {
    "e >= 20": math.log(20.0),
    "3 sigma": -math.log(float(ndtr(-3.0))),
    "5 sigma": -math.log(float(ndtr(-5.0))),
}
REFERENCE = 20_000


def one_set(n_signal: int, seed: int) -> dict[str, float]:
    """All statements about one data set."""
    rng = np.random.default_rng([n_signal, seed])
    x, label = analytic.draw(n_signal, rng)
    folds = np.arange(len(x)) % analytic.FOLDS
    nets = [analytic.learn(x[folds != k], rng) for k in range(analytic.FOLDS)]
    early = [analytic.learn(x[folds < k], rng) for k in range(1, analytic.FOLDS)]
    cross = [FoldRatios(net.log_ratio(x[folds == k])) for k, net in enumerate(nets)]
    sequence = [FoldRatios(net.log_ratio(x[folds == k])) for k, net in enumerate(early, 1)]
    trained = [FractionPrior(np.array([np.mean(net.fractions)])) for net in nets]
    average, product = discovery_evidence(cross), discovery_evidence(sequence, scheme="product")
    xb = rng.standard_normal((REFERENCE, analytic.D))

    def references(networks: list[analytic.Learned]) -> list[RatioReference]:
        return [RatioReference(n.log_ratio(xb), n.log_ratio(n.sample(REFERENCE, rng))) for n in networks]

    estimate, one = cross_fit_estimate(cross), cross_fit_estimate(cross[:1])
    inside, inside_product = class_interval(cross), class_interval(sequence, scheme="product")
    rule = analytic.rule_interval(x, folds, nets[0])
    return {
        "n_signal": n_signal,
        "seed": seed,
        "n": len(x),
        "truth": n_signal / analytic.N_EVENTS,
        "average": average.log_e,
        "product": product.log_e,
        "both": float(np.logaddexp(average.log_e, product.log_e)) - math.log(2.0),
        "one fold": average.log_e_folds[0],
        "average, trained w": discovery_evidence(cross, prior=trained).log_e,
        "low average": unrestricted_lower_limit(cross, references(nets)).low,
        "low product": unrestricted_lower_limit(sequence, references(early), scheme="product").low,
        "low one fold": unrestricted_lower_limit(cross[:1], references(nets[:1])).low,
        "class average": inside.low,
        "class product": inside_product.low,
        "estimate": estimate.value,
        "error": estimate.error,
        "one-fold error": one.error,
        "trained w": float(np.mean([net.fractions for net in nets])),
        "rule low": rule[0],
        "rule high": rule[1],
        "supervised": analytic.supervised_q0(x),
        "searched": analytic.searched_q0(x),
        "found": float(np.mean(label)),
    }


def collect(sets: int, nulls: int, signals: tuple[int, ...], work: Path | None) -> dict[int, dict[str, np.ndarray]]:
    """Data sets by number of signal events, from the file of finished ones where there is one."""
    rows: dict[tuple[int, int], dict[str, float]] = {}
    file = None if work is None else work / "analytic.jsonl"
    if file is not None and file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            rows[row["n_signal"], row["seed"]] = row
    # Every part of the list has data sets of all kinds in the proportions asked for: an unfinished run can be read.
    counts = {s: nulls if s == 0 else sets for s in signals}
    wanted = sorted(((s, seed) for s in signals for seed in range(counts[s])), key=lambda key: key[1] / counts[key[0]])
    for key in wanted:
        if key not in rows:
            rows[key] = one_set(*key)
            if file is not None:
                with file.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(rows[key]) + "\n")
    found = {}
    for s in signals:
        chosen = [rows[key] for key in wanted if key[0] == s]
        found[s] = {name: np.array([row[name] for row in chosen]) for name in chosen[0]}
    return found


def global_p(q0: np.ndarray, null: np.ndarray) -> np.ndarray:
    """p-value of the largest q0 of a plane: P(chi2_1 > u)/2 + N2 sqrt(u) exp(-u/2), N2 from the upper half of the nulls."""
    levels = np.quantile(null, [0.5, 0.6, 0.7, 0.8])
    tails = np.array([(null > u).mean() for u in levels]) - 0.5 * chdtrc(1, levels)
    scale = float(np.mean(tails / (np.sqrt(levels) * np.exp(-0.5 * levels))))
    return np.minimum(0.5 * chdtrc(1, q0) + scale * np.sqrt(q0) * np.exp(-0.5 * q0), 1.0)


def print_analytic(found: dict[int, dict[str, np.ndarray]]) -> dict[str, float]:
    """Tables of part (a), and the numbers that are held to bands."""
    null = found[0]
    n_null = len(null["average"])
    print(
        f"(a) known background, {analytic.N_EVENTS} events, {analytic.FOLDS} folds; {n_null} data sets without signal"
    )
    print("\nvalidity without signal: share of data sets, at most 5 % allowed")
    for name in ("one fold", "average", "product", "both", "average, trained w"):
        print(
            f"  e >= 20, {name:20s} {100 * np.mean(null[name] >= THRESHOLDS['e >= 20']):5.1f} %   mean e {np.exp(null[name]).mean():.2f}"
        )
    print(
        "\nlower limits at 95 %: share of data sets in which the limit exceeds the truth, and median limit over truth"
    )
    print(
        "  signal     S/B    any signal: one fold      average       product   | mixtures of networks: average product"
    )
    worst = 0.0
    for s, rows in found.items():
        cells = []
        for name in ("low one fold", "low average", "low product", "class average", "class product"):
            above = 100 * float(np.mean(rows[name] > rows["truth"]))
            if name.startswith("low"):
                worst = max(worst, above)
            ratio = np.median(rows[name]) / s * analytic.N_EVENTS if s else math.nan
            cells.append(f"{above:4.1f} % {ratio:5.2f}")
        print(f"  {s:6d} {100 * s / (analytic.N_EVENTS - s):6.2f} %  " + "    ".join(cells))
    print(
        "\npower [%]: e >= 20, and p <= that of 3 and 5 sigma; q0 with the global p-value of its own search at the same levels"
    )
    print(
        f"  signal     S/B   {'supervised q0':>17s} {'q0, masses free':>17s} {'one fold':>17s} {'average':>17s} {'product':>17s} {'both':>17s}   median ln e: one fold, average, product"
    )
    gains = {}
    for s, rows in found.items():
        supervised = 0.5 * chdtrc(1, rows["supervised"])
        p = {
            "supervised": np.where(rows["supervised"] > 0, supervised, 1.0),
            "searched": global_p(rows["searched"], null["searched"]),
            **{name: np.exp(-np.maximum(rows[name], 0.0)) for name in ("one fold", "average", "product", "both")},
        }
        cells = ["/".join(f"{100 * np.mean(v <= math.exp(-t)):.0f}" for t in THRESHOLDS.values()) for v in p.values()]
        medians = [float(np.median(rows[name])) for name in ("one fold", "average", "product")]
        gains[s] = medians
        print(
            f"  {s:6d} {100 * s / (analytic.N_EVENTS - s):6.2f} % "
            + " ".join(f"{c:>17s}" for c in cells)
            + "   "
            + "  ".join(f"{m:6.1f}" for m in medians)
        )
    print(
        "\nfraction: median fitted beside the networks, cross-fit estimate for the learned density, its error, one fold's error over it,"
    )
    print("and how often Delta ln L = ln 2 in one fold ('95 %') holds the truth")
    ratios, coverage = [], {}
    for s, rows in found.items():
        width = float(np.median(rows["one-fold error"] / rows["error"]))
        holds = (rows["rule low"] <= rows["truth"]) & (rows["truth"] <= rows["rule high"])
        coverage[s] = float(np.mean(holds))
        closed = float(np.mean(rows["rule high"] < 1.0))
        if s >= 100:
            ratios.append(width)
        print(
            f"  {s:6d}  truth {s / analytic.N_EVENTS:.4f}  trained {np.median(rows['trained w']):.4f}  cross-fit "
            f"{np.median(rows['estimate']):+.4f} +- {np.median(rows['error']):.4f}  {width:.2f}   ln 2: {100 * coverage[s]:.0f} % "
            f"(closed above in {100 * closed:.0f} %)"
        )
    top = max(found)
    return {
        "largest P(e >= 20) [%]": 100
        * max(float(np.mean(null[n] >= THRESHOLDS["e >= 20"])) for n in ("average", "product")),
        "largest P(limit > truth) [%]": worst,
        "ln e, product over one fold": gains[top][2] / gains[top][0],
        "one-fold error over cross-fit error": float(np.mean(ratios)) if ratios else math.nan,
        "worst coverage of ln 2 [%]": 100 * min(coverage.values()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few data sets, under a minute")
    parser.add_argument("--sets", type=int, default=60)
    parser.add_argument("--nulls", type=int, default=200)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--trainings", type=Path, nargs="+", metavar="SETS", help="folders that data_sets.py wrote")
    parser.add_argument(
        "--events",
        type=Path,
        help="folder of the simulated dijet files, for the searches of part (b) that know the signal",
    )
    parser.add_argument("--trained-only", action="store_true", help="leave out part (a)")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    sets, nulls, signals = (2, 4, (0, 200)) if options.quick else (options.sets, options.nulls, SIGNALS)
    if options.work is not None:
        options.work.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    numbers: dict[str, float] = {}
    if not options.trained_only:
        numbers = print_analytic(collect(sets, nulls, signals, options.work))
    print(f"\n{time.perf_counter() - began:.0f} s")
    if options.trainings is not None:
        kept = None if options.work is None else options.work / "trained"
        if kept is not None:
            kept.mkdir(exist_ok=True)
        numbers |= trained.print_trained(*trained.read_all(options.trainings, kept, options.events))
    expected = json.loads((HERE / "expected.json").read_text(encoding="utf-8"))
    bad = []
    for name, (low, high) in expected["quick" if options.quick else "full"].items():
        if name not in numbers:
            continue
        inside = low <= numbers[name] <= high
        print(f"{'ok ' if inside else 'BAD'} {name}: {numbers[name]:.3g} in [{low:g}, {high:g}]")
        bad += [] if inside else [name]
    if options.output is not None:
        options.output.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
