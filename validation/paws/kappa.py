"""What kappa(theta), the normalisation of a parametrised ratio, does to mu: 1, inferred, sampled, and as gbistat has it.

    python validation/paws/kappa.py --events DIR [--quick] [--toys N]

PAWS (arXiv:2405.08889) turns the odds o = c / (1 - c) of a classifier into the ratio r = kappa o. Its authors tried

- *1*: the odds as they are. Their classes were unbalanced, N_B / N_S = 7.06 at (300, 300), so that o is too small by that factor;
- *inferred*: N_B / N_S of the training. The classes of `dijet-paws` have equal weight at all masses, so that this is 1 here;
- *sampled*: 1 / E_b[o] over reference events. Here the background of the part `reference` in the window, drawn anew in every toy;

*1, weak* is their first form, a classifier of data against as much reference background, with P_data / P_reference = 1 + s o, s = mu / (1 - mu):
nothing holds its normalisation, so that mu carries the whole factor (and what the largest odds of so many reference events miss), and their
published numbers are too large. In a likelihood the same odds make mu too small: the signal density integrates to 1 / 7.

*profiled* is what gbistat does: 1 / E_b[r] over the model's reference events at every node of the masses, smooth, its error
a nuisance of the fit. Masses are held at their true values, the background yield is free, and nothing else differs.

Events trained nothing and normalised nothing (the part `data` of the background, the benchmark signal, and the mass points that the card holds
back); toys are Poisson bootstraps of the background with Poisson numbers of signal. All toys share the one sample of background: its own
fluctuation, one statistical error of mu, is common to all of a row ("common error"). Networks are evaluated once.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from common import columns_like, held_at, judged, model_and_card, with_nodes
from scipy.interpolate import RectBivariateSpline
from scipy.optimize import brentq

from gbistat.data.events import Events, concatenate
from gbistat.data.read import read_events
from gbistat.data.window import MassWindow
from gbistat.fit.build import build_analysis
from gbistat.fit.minimize import fit
from gbistat.fit.nuisances import SPURIOUS
from gbistat.likelihood.components import MassFactor
from gbistat.likelihood.nll import ExtendedUnbinnedNLL
from gbistat.terms.store import load_reference
from gbistat.training.paws_dataset import read_signal
from gbistat.training.splits import read_sample

if TYPE_CHECKING:
    from gbistat.fit.build import Analysis
    from gbistat.fit.masses import FreeMasses
    from gbistat.terms.network import NetworkTerm
    from gbistat.training.paws_card import PawsCard
    from gbistat.typing import FloatArray, Json

HERE = Path(__file__).parent
MODEL = "dijet-paws"
SHARES = (0.003, 0.006, 0.01, 0.02)
PRIOR = 7.06
"""N_B / N_S of the published training at (300, 300)."""
PUBLISHED = {
    "1, weak": "7 to 10, all S/B (figure); 5.4, 3.4, 3.5, 2.5 at 0.3, 0.5, 0.9, 1.6 %",
    "1": "-",
    "inferred": "slightly low: 0.8 at 5 %",
    "sampled": "1.4 at 0.17 %, 1.1 at 0.5 %, 1.0 at 5 %",
    "profiled": "-",
}


@dataclass(frozen=True, eq=False)
class Study:
    """Held-out events of the window, and the analysis of the background among them, masses held.

    Parameters
    ----------
    analysis : Analysis
        Of the background.
    term : NetworkTerm
        The ratio.
    data, reference : Events
        Background of the parts `data` and `reference`.
    """

    analysis: Analysis
    term: NetworkTerm
    data: Events
    reference: Events

    @property
    def masses(self) -> FreeMasses:
        """Grid and kappa."""
        if self.analysis.masses is None:
            raise SystemExit(f"{MODEL} has no free masses")
        return self.analysis.masses

    def log_odds(self, events: Events, masses: dict[str, float]) -> FloatArray:
        """Log of the networks' odds times the ratio of the mass densities, without any kappa."""
        model = self.analysis.model
        total = self.term.log_ratio(events, **masses) - self.own
        for component in model.components:
            for factor in component.factors:
                if isinstance(factor, MassFactor):
                    values = np.array([model.parameter(name).start for name in factor.parameters])
                    total += (1.0 if component.name == model.signal else -1.0) * factor.prepare(events).log_prob(values)
        return total

    @property
    def own(self) -> float:
        """ln kappa that is part of the term: the spectrum of all masses together."""
        kappa = self.term.metadata.log_kappa
        return 0.0 if kappa is None else kappa.value

    def smooth(self, masses: dict[str, float]) -> float:
        """ln kappa of gbistat for the odds."""
        spline = RectBivariateSpline(*self.masses.grid.axes, self.masses.kappa.log_kappa)
        return float(spline(masses["m_X"], masses["m_Y"])[0, 0]) + self.own

    def sampled(self, masses: dict[str, float]) -> FloatArray:
        """Odds of the reference background, whose mean is 1 / kappa."""
        odds: FloatArray = np.exp(self.log_odds(self.reference, masses))
        return odds


def load(folder: Path, step: float | None) -> tuple[Study, Events, Events, PawsCard]:
    """Held-out background with its analysis, the benchmark signal, and the signal of masses that trained nothing."""
    model, card = model_and_card(MODEL)
    background = read_sample(folder, card.background, card)
    window = MassWindow(*card.model.window)
    truth = dict(zip(card.masses, card.benchmarks[0].masses, strict=True))
    spec = with_nodes(held_at(model.spec, truth), card.masses, step)
    spec = spec.model_copy(update={"background": spec.background.model_copy(update={"yield_": "free"})})
    data = background.part("data")
    analysis = build_analysis(spec, data, window, terms=model.terms, pool=load_reference(model))
    (name,) = spec.signal.ratios
    study = Study(analysis, model.terms[name], analysis.events, background.part("reference").in_window(window))
    bench = read_events(folder / card.benchmarks[0].file, features=card.features, mass=card.mass).in_window(window)
    signal = read_signal(folder, card).part("data").in_window(window)
    return study, bench, signal, card


def weak(odds: FloatArray, weights: FloatArray, reference: FloatArray, other: FloatArray) -> float:
    """Strength s of the classifier of data against reference: the minimum of its cross-entropy."""

    def slope(s: float) -> float:
        gain = (weights * odds / ((1.0 + s * odds) * (2.0 + s * odds))).sum()
        return float(gain - (other * reference / (2.0 + s * reference)).sum())

    return 0.0 if slope(0.0) <= 0.0 else float(brentq(slope, 0.0, 10.0))


def toys(
    study: Study, bench: Events, masses: dict[str, float], count: int, rng: np.random.Generator
) -> dict[str, Json]:
    """Mean of mu, its spread and its mean error over the injected number, for each kappa and each share of signal."""
    nll = ExtendedUnbinnedNLL(study.analysis.model, concatenate([study.data, bench]))
    odds = study.sampled(masses)
    own_odds = np.exp(study.log_odds(concatenate([study.data, bench]), masses))
    smooth = study.smooth(masses)
    found: dict[str, Json] = {}
    for share in SHARES:
        rows: dict[str, list[tuple[float, float]]] = {}
        injected = share * len(study.data)
        for _ in range(count):
            weights = np.r_[rng.poisson(1.0, len(study.data)), rng.poisson(injected / len(bench), len(bench))].astype(
                float
            )
            again = rng.poisson(1.0, odds.size)
            kappas = {
                "1": -math.log(PRIOR),
                "inferred": 0.0,
                "sampled": -math.log(float(np.average(odds, weights=again))),
                "profiled": smooth,
            }
            strength = weak(own_odds / PRIOR, weights, odds / PRIOR, again * (len(study.data) / odds.size))
            rows.setdefault("1, weak", []).append((strength * len(study.data), 0.0))
            for name, log_kappa in kappas.items():
                mixture = nll.mixture.reweighted(weights, log_scales=np.array([log_kappa - smooth, 0.0]))
                toy = nll.replaced([mixture], nll.constraints)
                start = toy.start_vector(**{toy.poi: injected, "n_bkg": float(len(study.data))})
                hold = {} if name == "profiled" or SPURIOUS not in toy.names else {SPURIOUS: 0.0}
                best = fit(toy, start=start, fixed=hold)
                rows.setdefault(name, []).append((best.value(toy.poi), best.error(toy.poi)))
        for name, pairs in rows.items():
            values, errors = np.array(pairs).T
            # No error where mu ends at 0, and none of a classifier.
            pulls = (values[errors > 0] - injected) / errors[errors > 0]
            found.setdefault(name, {})[share] = (
                float(values.mean() / injected),
                float(values.std(ddof=1) / math.sqrt(count) / injected),
                float(np.median(errors) / injected),
                float(pulls.mean()) if pulls.size else math.nan,
                float(pulls.std(ddof=1)) if pulls.size > 1 else math.nan,
            )
    return found


def points(study: Study, signal: Events, share: float) -> dict[str, tuple[float, float]]:
    """Mean and scatter of mu over injected at the masses that trained nothing: all background, weighted signal of each point."""
    names = study.masses.grid.names
    columns = signal.matrix(names)
    found: dict[str, list[float]] = {}
    for row in np.unique(columns, axis=0):
        chosen = signal.select((columns == row).all(axis=1))
        masses = dict(zip(names, row.tolist(), strict=True))
        injected = share * len(study.data)
        odds = study.log_odds(concatenate([study.data, columns_like(chosen, study.data)]), masses)
        weights = np.r_[np.ones(len(study.data)), np.full(len(chosen), injected / len(chosen))]
        kappas = {"1": -math.log(PRIOR), "inferred": 0.0, "profiled": study.smooth(masses)}
        kappas["sampled"] = -math.log(float(study.sampled(masses).mean()))
        for name in kappas:
            nll = ExtendedUnbinnedNLL.from_log_ratio(odds + kappas[name], weights=weights)
            best = fit(nll, start=np.array([injected, float(len(study.data))]))
            found.setdefault(name, []).append(best.value("mu") / injected)
    return {name: (float(np.mean(values)), float(np.std(values, ddof=1))) for name, values in found.items()}


def cell(mean: float, error: float, one: float, pull: float, width: float) -> str:
    """One entry of the table; pulls only where fits have an error."""
    pulls = f": {pull:+5.2f}, {width:4.2f}" if math.isfinite(pull + width) else ""
    return f"{mean:5.2f} ({error:.2f}; {one:.2f}){pulls}"


def main() -> int:
    """Print the tables; exit code 1 if a number leaves its band."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=Path, required=True, metavar="DIR", help="folder of the simulated dijet files")
    parser.add_argument("--quick", action="store_true", help="nodes 100 GeV apart, 20 toys, no other masses")
    parser.add_argument("--toys", type=int, default=100, metavar="N", help="toys of each share (default 100)")
    arguments = parser.parse_args()
    study, bench, signal, card = load(arguments.events, 50.0 if arguments.quick else None)
    masses = dict(zip(card.masses, card.benchmarks[0].masses, strict=True))
    rng = np.random.default_rng(20261122)
    found = toys(study, columns_like(bench, study.data), masses, 20 if arguments.quick else arguments.toys, rng)
    known = study.masses
    print(
        f"{len(study.data)} background events, signal of {', '.join(f'{k} = {v:g}' for k, v in masses.items())} GeV; "
        f"ln kappa sampled {-math.log(float(study.sampled(masses).mean())):+.3f}, "
        f"gbistat {study.smooth(masses):+.3f} +- {known.sigma(masses):.3f} ({known.kappa.form})\n"
    )
    print("mean of mu / injected (its error; median error of one fit): mean pull, width of the pulls")
    shares = "".join(f"S/B {100 * share:g} %".rjust(34) for share in SHARES)
    print(f"{'kappa':<10}{shares}   published")
    for name, row in found.items():
        cells = "".join(cell(*numbers).rjust(34) for numbers in row.values())
        print(f"{name:<10}{cells}   {PUBLISHED[name]}")
    result = {f"{name}, S/B 1 %": found[name][0.01][0] for name in found}
    if not arguments.quick:
        other = points(study, signal, 0.01)
        print(
            "\nmasses that trained nothing, S/B 1 %, all background and the signal events of each: mean of mu / injected, scatter"
        )
        for name, (mean, scatter) in other.items():
            print(f"{name:<10} {mean:.2f}, {scatter:.2f}")
            result[f"{name}, other masses"] = mean
    print()
    return int(judged(result, json.loads((HERE / "expected.json").read_text())["kappa"], digits=".2f"))


if __name__ == "__main__":
    sys.exit(main())
