"""Three distortions of jets, as in arXiv:2305.16774 (Figs. 1-3): what the area under the ROC curve hides and weights show.

    python validation/weights/run.py --events DIR [--quick] [--output DIR]

The truth are leading jets of simulated QCD dijets (relative mass m/pT, tau21, tau32). A "generator" gives other jets of the same file, resampled
in 25 bins of the relative mass so that its spectrum is the true one smeared by 25 %, shifted by 10 %, or cut where 1.26 % of the
jets lie above; the other features follow. Boosted trees are trained on half of the jets and tested on the other. A fourth row has no distortion, and a last study repeats
small samples without distortion: their p-values must be uniform. Then the same procedure where everything is known: jet masses that follow
a Gamma distribution, five members trained on 20,000 + 20,000 events and tested on as many others. Last the time of 199 permutations.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from scipy.special import expit
from scipy.stats import gamma, kstest

from gbistat.data.read import read_events
from gbistat.diagnostics.calibration import calibrate
from gbistat.diagnostics.certificate import ClassifierReport, classifier_report
from gbistat.diagnostics.evidence import log_score
from gbistat.diagnostics.folds import assign_folds
from gbistat.diagnostics.permutations import permutation_test
from gbistat.diagnostics.roc import area_under_roc
from gbistat.diagnostics.weights import Scores, weight_moments
from gbistat.plotting.weights import save_weight_figures
from gbistat.training.classifiers import ClassifierOptions, forward_fit, train_once

HERE = Path(__file__).parent
NAMES = ("relative mass", "tau21", "tau32")
CUT_SHARE = 0.012596
MODES = {"none": None, "tail cut": "TAIL", "smear": "SMEAR-DOM", "shift": "SHIFT"}


def jets(path: Path) -> np.ndarray:
    """Relative mass and substructure of the leading jets, shape (n, 3)."""
    columns = ("mj1", "pxj1", "pyj1", "tau1j1", "tau2j1", "tau3j1")
    units = {name: "1" for name in columns if name.startswith("tau")}
    events = read_events(path, features=columns, mass="m_jj", units=units)
    m, px, py, tau1, tau2, tau3 = events.matrix(columns).T
    good = (tau1 > 0) & (tau2 > 0)
    table = np.column_stack([m / np.hypot(px, py), tau2 / np.where(good, tau1, 1), tau3 / np.where(good, tau2, 1)])
    return table[good]


def distort(pool: np.ndarray, kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Jets whose spectrum of the relative mass is distorted; the other features follow."""
    mass = pool[:, 0]
    if kind == "none":
        return pool[:n]
    if kind == "tail cut":
        return pool[mass < np.quantile(mass, 1.0 - CUT_SHARE)][:n]
    mean, sigma = {"smear": (1.0, 0.25), "shift": (1.1, 0.05)}[kind]
    edges = np.linspace(0.0, np.quantile(mass, 0.9999), 26)
    wanted, have = (np.histogram(x, edges)[0] for x in (mass * rng.normal(mean, sigma, mass.size), mass))
    ratio = np.where(have > 0, wanted / np.maximum(have, 1), 0.0)
    inside = (mass >= edges[0]) & (mass < edges[-1])
    weight = np.where(inside, ratio[np.clip(np.searchsorted(edges, mass, side="right") - 1, 0, 24)], 0.0)
    accepted = pool[rng.random(mass.size) * np.quantile(weight, 0.999) < weight]
    return accepted[:n]


def study(
    truth: np.ndarray, generated: np.ndarray, members: int, permutations: int, rng: np.random.Generator
) -> tuple[ClassifierReport, np.ndarray]:
    """Train on one half, report on the other; the relative masses in the order of the scores."""
    n = min(len(truth), len(generated))
    inputs = np.concatenate([truth[:n], generated[:n]])
    label = np.arange(2 * n) < n
    fold = assign_folds(np.arange(2 * n), 2, rng=rng)
    fitted = forward_fit(inputs, label, fold, rng=rng, options=ClassifierOptions(members=members))
    tested = inputs[fitted.rows]
    scores = Scores(fitted.logit, label[fitted.rows], fold=fitted.fold)
    observables = dict(zip(NAMES, tested.T, strict=True))
    return classifier_report(scores, observables, rng=rng, permutations=permutations), tested[:, 0]


def null_p_values(pool: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Global p-values of small samples that are alike: three folds, forward."""
    p = []
    for _ in range(count):
        rows = rng.choice(len(pool), 1600, replace=False)
        label = rng.permutation(np.arange(1600) < 800)
        fold = assign_folds(np.arange(1600), 3, rng=rng)
        options = ClassifierOptions(members=1, smallest_leaf=40, trees=30)
        fitted = forward_fit(pool[rows], label, fold, rng=rng, options=options)
        scores = Scores(fitted.logit, label[fitted.rows], fold=fitted.fold)
        p.append(permutation_test(scores, rng=rng, permutations=99).p_global)
    return np.array(p)


def known_pipeline(n: int, members: int, permutations: int, rng: np.random.Generator) -> dict[str, float]:
    """Train on n + n Gamma-distributed masses of each kind, test on others, compare with exact weights."""
    truth = gamma(9, scale=0.01)
    # Area under the ROC curve and Jensen-Shannon divergence (bits) of exact weights, by quadrature.
    known = {"none": (0.5, 0.0), "tail cut": (0.50630, 0.00633), "smear": (0.5750, 0.01969), "shift": (0.5778, 0.01444)}
    numbers: dict[str, float] = {}
    print(f"\nGamma masses, {n} + {n} to train and to test, {members} members")
    print(
        f"{'distortion':<10}{'AUC':>9}{'exact':>9}{'sigma':>7}{'S / ideal':>11}{'p':>8}{'null widths':>12}{'slope':>7}{'skew':>7}"
    )
    for kind, (auc, divergence) in known.items():
        mass = truth.ppf(rng.random(4 * n))
        if kind == "tail cut":
            mass[2 * n :] = truth.ppf(truth.cdf(0.17) * rng.random(2 * n))
        elif kind != "none":
            mean, sigma = {"smear": (1.0, 0.25), "shift": (1.1, 0.05)}[kind]
            mass[2 * n :] = np.abs(mass[2 * n :] * rng.normal(mean, sigma, 2 * n))
        label, test = np.arange(4 * n) < 2 * n, np.arange(4 * n) % 2 == 1
        options = ClassifierOptions(members=members)
        logits = train_once(mass[~test, None], label[~test], mass[test, None], rng=rng, options=options)
        scores = Scores(np.log(np.mean(expit(logits), axis=0)) - np.log(np.mean(expit(-logits), axis=0)), label[test])
        permuted = permutation_test(scores, rng=rng, permutations=permutations)
        score, area = permuted["log_score"], area_under_roc(scores)
        share = log_score(scores).value / (divergence * np.log(2)) if divergence else np.nan
        slope, skew = calibrate(scores).slope.value, weight_moments(scores).skewness
        off = (area.value - auc) / area.null_width
        print(
            f"{kind:<10}{area.value:>9.4f}{auc:>9.4f}{off:>7.1f}{share:>11.2f}{score.p_value:>8.4f}{score.z_null:>12.1f}{slope:>7.2f}{skew:>7.1f}"
        )
        numbers[f"Gamma, {kind}: AUC minus exact, null widths"] = float(off)
        numbers[f"Gamma, {kind}: p of the log-score"] = score.p_value
        if kind != "none":
            numbers[f"Gamma, {kind}: log-score over the ideal"] = float(share)
        if kind in ("smear", "shift"):
            numbers[f"Gamma, {kind}: slope"] = slope
    return numbers


def permutation_seconds(rng: np.random.Generator) -> float:
    """Processor time of 199 permutations of 40,000 events."""
    scores = Scores(rng.normal(0, 0.3, 40_000), np.arange(40_000) < 20_000)
    begin = time.process_time()
    permutation_test(scores, rng=rng, permutations=199)
    return time.process_time() - begin


def main() -> int:
    """Print the table; exit code 1 if a number leaves its band."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=Path, default=HERE.parents[1].parent / "shared" / "data", metavar="DIR")
    parser.add_argument("--quick", action="store_true", help="fewer events and repetitions, in less than a minute")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write figures there")
    arguments = parser.parse_args()
    n, members, permutations, nulls = (15_000, 2, 1999, 30) if arguments.quick else (40_000, 5, 1999, 200)
    rng = np.random.default_rng(2305)
    pool = rng.permutation(jets(arguments.events / "qcd.features.h5"))
    truth, rest = pool[:n], pool[n:]
    numbers: dict[str, float] = {}
    print(f"{n} jets of each kind, {members} boosted trees")
    print(
        f"{'distortion':<10}{'AUC':>9}{'sigma':>7}{'S [nats]':>11}{'p':>8}{'null widths':>12}{'log10 e':>9}{'slope':>7}{'skew':>7}{'missing':>9}  modes"
    )
    for kind, wanted in MODES.items():
        report, mass = study(truth, distort(rest, kind, n, rng), members, permutations, rng)
        score = report.permutations["log_score"]
        found = [mode.code for mode in report.modes]
        slope = report.calibration.slope.value
        print(
            f"{kind:<10}{report.area.value:>9.4f}{report.area.pull:>7.1f}{report.log_score.value:>11.5f}{score.p_value:>8.4f}"
            f"{score.z_null:>12.1f}{report.evidence.log_e / np.log(10):>9.1f}{slope:>7.2f}{report.moments.skewness:>7.1f}"
            f"{report.moments.missing_mass.value:>9.4f}  {', '.join(found) or '-'}"
        )
        for region in [r for r in report.regions if r.p_value < 0.05][:2]:
            print(f"{'':<10}{region}")
        numbers[f"{kind}: AUC"] = report.area.value
        numbers[f"{kind}: p of the log-score"] = score.p_value
        if kind == "none":
            numbers["none: std ln w"] = report.moments.spread
        else:
            numbers[f"{kind}: null widths of the log-score"] = score.z_null
            numbers[f"{kind}: rank of the right mode"] = found.index(wanted) + 1 if wanted in found else 99
            numbers[f"{kind}: first slice is of the mass"] = float(report.slices[0].observable == "relative mass")
        if kind in ("smear", "shift"):
            numbers[f"{kind}: slope"] = slope
        if arguments.output is not None:
            arguments.output.mkdir(parents=True, exist_ok=True)
            labels = {"relative_mass": "$m / p_T$ of the leading jet"}
            save_weight_figures(
                report.scores,
                report.calibration,
                {"relative_mass": mass},
                labels,
                arguments.output,
                text=f"{kind}: AUC {report.area.value:.4f}",
                prefix=f"{kind.replace(' ', '_')}_",
            )
    p = null_p_values(rest, nulls, rng)
    numbers["nulls: KS p of their p-values"] = float(kstest(p, "uniform").pvalue)
    numbers["nulls: share below 0.05"] = float(np.mean(p <= 0.05))
    numbers |= known_pipeline(*((5000, 2, 999) if arguments.quick else (20_000, 5, 1999)), np.random.default_rng(7))
    numbers["199 permutations of 40,000 events: seconds"] = permutation_seconds(np.random.default_rng(1))
    bands = json.loads((HERE / "expected.json").read_text(encoding="utf-8"))["quick" if arguments.quick else "full"]
    failed = False
    print()
    for name, value in numbers.items():
        low, high = bands.get(name, [None, None])
        inside = (low is None or value >= low) and (high is None or value <= high)
        failed |= not inside
        print(f"{name:<48} {value:>10.4g}  {'' if inside else 'OUTSIDE '}[{low}, {high}]")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
