"""Does the shipped model return the signal that was put in? Injections into held-out simulated dijets, and windows without signal.

    python validation/closure/run.py --events DIRECTORY_WITH_THE_FEATURE_FILES [--quick]

The background is what trained nothing: the parts 'reference' and 'data' of the split in the model's card (53,000 events above
3100 GeV). Two tables:

1. Windows without signal: mu in disjoint windows, and the spurious signal that their weighted mean allows.
2. Injections: Poisson numbers of held-out signal events (3500/500/100) in Poisson bootstraps of the 'data' background, 3300-3700 GeV.
   Bootstraps of one finite sample share its fluctuation, so the mean of the fits is uncertain by one statistical
   error of mu, which is printed beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np

from gbistat.data.events import Events, concatenate
from gbistat.data.window import MassWindow
from gbistat.fit.build import build_analysis
from gbistat.fit.minimize import fit
from gbistat.inference.profile import profile_interval
from gbistat.likelihood.reference import asimov_nll
from gbistat.terms.store import load_model, load_reference
from gbistat.training.card import load_card
from gbistat.training.splits import read_sample

ROOT = Path(__file__).resolve().parents[2]
MODEL = "dijet-qq-3500"
WINDOWS = ((3120, 3300), (3300, 3700), (3700, 4100), (4100, 4500), (4500, 4980))
INJECTED = (0, 20, 40, 80, 160)


def main() -> int:
    """Print both tables; exit code 1 if a number leaves its band."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=Path, required=True, help="folder with the feature files named in the card")
    parser.add_argument("--quick", action="store_true", help="fewer injections")
    options = parser.parse_args()
    expected = json.loads((Path(__file__).parent / "expected.json").read_text())
    card = load_card(ROOT / "models" / MODEL / "card.yaml")
    background = read_sample(options.events, card.background, card)
    signal = read_sample(options.events, card.signals[0], card).part("data")
    failed = signal_free(concatenate([background.part("reference"), background.part("data")]), expected)
    failed |= injections(background.part("data"), signal, 10 if options.quick else 100, expected)
    return int(failed)


def signal_free(background: Events, expected: dict[str, float]) -> bool:
    """Print the first table; whether the mean pull leaves its band."""
    model = load_model(MODEL)
    pool = load_reference(model)
    print("windows without signal (all held-out background)\n")
    print("window [GeV]   events   fitted mu   68.27 % interval   score estimate at mu = 0   pull")
    shares, weights, pulls = [], [], []
    for low, high in WINDOWS:
        analysis = build_analysis(model.spec, background, MassWindow(low, high), terms=model.terms, pool=pool)
        nll, n = analysis.nll, len(analysis.events)
        best = fit(nll).raise_if_invalid()
        interval = profile_interval(nll, "mu", cl=0.6827, best=best)
        # The likelihood is far from parabolic below 0, where no event forbids it: errors there are no guide. The score at
        # mu = 0 with the error expected there has mean 0 and width 1 if the background is right.
        null = fit(nll, fixed={"mu": 0.0}).raise_if_invalid()
        asimov = asimov_nll(nll, (analysis.reference,), null.values)
        sigma = fit(asimov, start=null.values).error("mu")
        pull = -float(nll.evaluate(null.values).gradient[0]) * sigma
        shares.append(pull * sigma / n)
        weights.append((n / sigma) ** 2)
        pulls.append(pull)
        print(
            f"{low}-{high}   {n:8d}   {best.value('mu'):7.1f}   [{interval.low:.1f}, {interval.high:.1f}]   {pull * sigma:7.1f} +- {sigma:.1f}   {pull:+.2f}"
        )
    mean, error = float(np.average(shares, weights=weights)), 1.0 / math.sqrt(sum(weights))
    chi2 = float(np.sum(np.square(pulls)))
    print(
        f"\nspurious signal: {1e4 * mean:.1f} +- {1e4 * error:.1f} events per 10,000 background events; chi2 of the pulls {chi2:.1f} / {len(pulls)}"
    )
    return abs(mean / error) > expected["mean pull without signal, at most"]


def injections(background: Events, signal: Events, n_toys: int, expected: dict[str, float]) -> bool:
    """Print the second table; whether a bias leaves its band."""
    model = load_model(MODEL)
    pool = load_reference(model)
    window = MassWindow(3300.0, 3700.0)
    inside = signal.in_window(window)
    rng = np.random.default_rng(20261122)
    print(
        f"\ninjections, {n_toys} Poisson bootstraps each\n\ninjected   mean mu   its spread   mean error   bias / error   68.27 % interval covers"
    )
    failed = False
    for n_signal in INJECTED:
        values, errors, covered = [], [], 0
        for _ in range(n_toys):
            copies = rng.poisson(1.0, len(background))
            rows = np.repeat(np.arange(len(background)), copies)
            chosen = inside.select(rng.choice(len(inside), size=rng.poisson(n_signal), replace=False))
            mixture = concatenate([background.select(rows), chosen])
            analysis = build_analysis(model.spec, mixture, window, terms=model.terms, pool=pool)
            best = fit(analysis.nll).raise_if_invalid()
            interval = profile_interval(analysis.nll, "mu", cl=0.6827, best=best)
            values.append(best.value("mu"))
            errors.append(best.error("mu"))
            covered += (interval.low is None or interval.low <= n_signal) and (
                interval.high is None or n_signal <= interval.high
            )
        mean, spread, error = float(np.mean(values)), float(np.std(values, ddof=1)), float(np.mean(errors))
        bias = (mean - n_signal) / error
        print(
            f"{n_signal:8d}   {mean:7.1f}   {spread:10.1f}   {error:10.1f}   {bias:+12.2f}   {covered / n_toys:.2f}",
            flush=True,
        )
        failed |= abs(bias) > expected["bias in units of the error, at most"]
    return failed


if __name__ == "__main__":
    sys.exit(main())
