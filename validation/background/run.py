"""How good are background generators? The shipped ensemble of flows, SIGMA, and the CATHODE recipe on the same events.

    python validation/background/run.py --events DIRECTORY_WITH_THE_FEATURE_FILES [--runs DIR] [--quick]

Every number is measured on the parts 'reference' and 'data' of the split in the model's card, which trained nothing, and for
generators that never saw the signal region on all of its events as well. SIGMA trains on the part 'train' of every mass with
signal injected (S/B = 0.64 % in 3300-3700 GeV, as in the LHC Olympics); the baseline on the same sideband events as the
ensemble. Runs that are not in ``--runs`` are trained first (two cores: 15 minutes SIGMA, 15 minutes the baseline, 5 minutes the
flow with another window blinded); a stopped run goes on. ``--quick`` looks at the ensemble alone, on fewer events; ``--alone`` at its samples
beside all true events of the signal region, in three draws.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gbistat.data.transforms import FeatureTransform
from gbistat.data.window import MassWindow
from gbistat.fit.order import choose_order, nested_shapes
from gbistat.fit.spurious import spurious_signal
from gbistat.plotting.generator import save_generator
from gbistat.terms.generator import GeneratorTerm
from gbistat.terms.generator_quality import GeneratorQuality
from gbistat.terms.store import load_model
from gbistat.training.background import train_background
from gbistat.training.background_card import load_background_card
from gbistat.training.background_export import export_background
from gbistat.training.card import Fractions, SignalSample
from gbistat.training.generator_checks import likelihood_bins, normalisation, region_test
from gbistat.training.sigma import train_sigma
from gbistat.training.sigma_graph import sigma_density
from gbistat.training.sigma_run import SigmaOptions
from gbistat.training.splits import read_sample
from gbistat.training.two_sample import TwoSampleOptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from gbistat.data.events import Events
    from gbistat.terms.flow_matching import FlowMatchingDensity
    from gbistat.terms.generator_quality import RegionKind, RegionTest, SpuriousWindow, TwoSampleTest
    from gbistat.terms.protocols import ConditionalDensity
    from gbistat.training.background_card import BackgroundCard

    Blind: TypeAlias = Callable[[tuple[float, float]], tuple[ConditionalDensity, bool]]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SIGNAL_MODEL = "dijet-qq-3500"
SIGNAL = SignalSample(
    file="signal_qq_3500_500_100.features.h5",
    resonance=3500.0,
    split=Fractions(train=0.5, reference=0.25, data=0.25),
)
INJECTED = 0.0064
PSEUDO = ((2850.0, 3150.0), (3800.0, 4200.0), (4300.0, 4800.0))
BLINDED = PSEUDO[1]
SPURIOUS = ((3120.0, 3280.0), (3300.0, 3700.0), (3800.0, 4200.0), (4300.0, 4800.0))
MASSES = (2600.0, 3000.0, 3500.0, 4000.0, 5000.0, 6500.0)
EDGES = (2450.0, 2650.0, 2900.0, 3300.0, 3700.0, 4200.0, 5000.0, 7500.0)


@dataclass(frozen=True)
class Sample:
    """Events in the range of every generator: mass first."""

    held_out: np.ndarray
    everything: np.ndarray
    spectrum: Events


@dataclass(frozen=True)
class Row:
    """What the table says of one generator."""

    name: str
    quality: GeneratorQuality
    log_prob: np.ndarray
    seconds: float


def main() -> int:
    """Print the table; exit code 1 if a number leaves its band."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=Path, required=True, help="folder with the feature files named in the card")
    parser.add_argument(
        "--model", default="dijet-background", help="exported ensemble: name of a shipped model, or folder"
    )
    parser.add_argument("--runs", type=Path, default=Path("background-runs"), help="folder of the other trainings")
    parser.add_argument("--quick", action="store_true", help="the ensemble alone, on fewer events")
    parser.add_argument("--alone", action="store_true", help="the ensemble alone, on all events of the signal region")
    options = parser.parse_args()
    expected = json.loads((HERE / "expected.json").read_text())[
        "alone" if options.alone else "quick" if options.quick else "full"
    ]
    model = load_model(options.model)
    ensemble = GeneratorTerm(model.terms[str(model.spec.background.features)])
    directory = model.directory or Path()
    card = load_background_card(directory / "card.yaml")
    sample = read_events_once(options.events, card, ensemble)
    found: dict[str, float] = {}
    print(f"{ensemble.n_members} flows of {model.name}, {len(sample.held_out)} held-out events\n")
    if options.alone:
        draws = [signal_region(ensemble, sample, card, seed) for seed in (1, 2, 3)]
        for seed, test in enumerate(draws, 1):
            print(f"draw {seed}, {test.n_pairs} events of the signal region: {words(test)}", flush=True)
        found["flow ensemble: AUC, mean of three draws"] = float(np.mean([test.auc for test in draws]))
        return judge(found, expected)
    show_orders(sample, card)
    found["ONNX, 100,000 events x ensemble [s]"] = seconds = evaluation_time(ensemble, sample)
    print(f"ln p of 100,000 events with {ensemble.n_members} members, one core: {seconds:.1f} s")
    if options.quick:
        rows = [measure("flow ensemble", lambda edges: (ensemble, edges == card.window), sample, card, quick=True)]
    else:
        rows = full(options.runs, options.events, ensemble, sample, card, found)
    show(rows, found)
    for row in rows:
        if not options.quick:
            figure = save_generator(row.quality, options.runs / f"{row.name.replace(' ', '-')}.png")
            print(f"wrote {figure}")
    return judge(found, expected)


def read_events_once(folder: Path, card: BackgroundCard, ensemble: GeneratorTerm) -> Sample:
    """Events of the card's file inside the range of the ensemble."""
    sample = read_sample(folder, card.background, card)

    def inside(events: Events) -> np.ndarray:
        x = events.matrix(card.names)
        keep = (x[:, 0] >= 2450.0) & (x[:, 0] < 7500.0) & ensemble.inside(x[:, 1:])
        return x[keep]

    rows = np.sort(np.concatenate([sample.parts["reference"], sample.parts["data"]]))
    held_out = sample.events.select(rows)
    return Sample(inside(held_out), inside(sample.events), held_out)


def show_orders(sample: Sample, card: BackgroundCard) -> None:
    """Print how many parameters the mass of the held-out events asks for."""
    window, fit_range = MassWindow(*card.window), MassWindow(*card.model.fit_range)
    choice = choose_order(sample.spectrum, window, fit_range, nested_shapes("dijet", {"sqrt_s": card.model.sqrt_s}))
    observed = int(np.sum(window.contains(sample.spectrum.mass)))
    print(f"p_b(m): {observed} held-out events in the window; dijet function fitted outside")
    for trial in choice.trials:
        better = "" if trial.p_value is None else f", one more parameter: p = {trial.p_value:.3g}"
        fit = "" if trial.goodness is None else f"chi2 p = {trial.goodness.p_value:.2g}"
        print(
            f"  {trial.n_parameters} parameters: {trial.expected:.0f} +- {trial.expected_error:.0f} predicted, {fit}, "
            f"AIC {trial.aic - choice.trials[0].aic:+.1f}, BIC {trial.bic - choice.trials[0].bic:+.1f}{better}"
        )
    print(f"  chosen: {choice.n_parameters}\n")


def between(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Events with a mass in [low, high)."""
    return x[(x[:, 0] >= low) & (x[:, 0] < high)]


def sidebands(x: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Events outside a window."""
    return x[(x[:, 0] < window[0]) | (x[:, 0] >= window[1])]


def some(x: np.ndarray, n: int) -> np.ndarray:
    """The same n random events at each call."""
    return x[np.random.default_rng(7).permutation(len(x))[:n]]


def evaluation_time(ensemble: GeneratorTerm, sample: Sample) -> float:
    """Seconds for ln p of 100,000 events, sessions made before."""
    x = sample.everything[np.arange(100_000) % len(sample.everything)]
    ensemble.log_prob(x[:10, 1:], x[:10, 0])
    begin = time.perf_counter()
    ensemble.log_prob(x[:, 1:], x[:, 0])
    return time.perf_counter() - begin


def measure(
    name: str,
    blind: Blind,
    sample: Sample,
    card: BackgroundCard,
    *,
    quick: bool = False,
    n_points: int = 32_768,
) -> Row:
    """All checks of a generator; `blind` gives the one for a window, and whether that saw no event inside."""
    begin = time.perf_counter()
    rng = np.random.default_rng(20261122)
    window = card.window
    density, _ = blind(window)
    x = sample.held_out
    bounds = [(item.low, item.high) for item in card.inputs[1:]]
    transform = FeatureTransform.fit(sample.everything[:, 1:], card.features, margin=2 * card.margin, bounds=bounds)
    masses = (3000.0, 3500.0) if quick else MASSES
    integrals = [normalisation(density, m, rng=rng, transform=transform, n_points=n_points) for m in masses]
    side, inside = sidebands(x, window), between(x, *window)
    tests = TwoSampleOptions(folds=3, permutations=499) if quick else TwoSampleOptions(permutations=1999)

    def test(kind: RegionKind, edges: tuple[float, float], events: np.ndarray) -> RegionTest:
        chosen, blinded = blind(edges) if kind == "pseudo-window" else (density, kind == "signal region")
        return region_test(
            chosen, events[:, 1:], events[:, 0], kind=kind, edges=edges, blinded=blinded, rng=rng, options=tests
        )

    regions = [test("sidebands", (EDGES[0], EDGES[-1]), some(side, 3000 if quick else 30_000))]
    regions.append(test("signal region", window, some(inside, 4000) if quick else inside))
    if not quick:
        regions += [test("pseudo-window", edges, between(x, *edges)) for edges in PSEUDO]
    likely = likelihood_events(sample, card, quick=quick)
    log_prob = density.log_prob(likely[:, 1:], likely[:, 0])
    quality = GeneratorQuality(
        card.mass,
        card.unit,
        window,
        tuple(integrals),
        likelihood_bins(log_prob, likely[:, 0], EDGES),
        tuple(regions),
        () if quick else tuple(spurious(blind, edges, sample) for edges in SPURIOUS),
    )
    return Row(name, quality, log_prob, time.perf_counter() - begin)


def likelihood_events(sample: Sample, card: BackgroundCard, *, quick: bool) -> np.ndarray:
    """Events whose density is compared between generators: sidebands, then the signal region."""
    n_side, n_signal = (2000, 2000) if quick else (20_000, 10_000)
    side, inside = sidebands(sample.held_out, card.window), between(sample.held_out, *card.window)
    return np.concatenate([some(side, n_side), some(inside, n_signal)])


def spurious(blind: Blind, edges: tuple[float, float], sample: Sample) -> SpuriousWindow:
    """Spurious signal of the shipped ratio in a window without signal."""
    signal = load_model(SIGNAL_MODEL)
    generator, blinded = blind(edges)
    rng = np.random.default_rng(int(edges[0]))
    return spurious_signal(
        signal.spec, sample.spectrum, edges, generator, terms=signal.terms, blinded=blinded, rng=rng, n_generated=40_000
    )


def full(
    runs: Path, events: Path, ensemble: GeneratorTerm, sample: Sample, card: BackgroundCard, found: dict[str, float]
) -> list[Row]:
    """Train what is missing, and measure every generator."""
    baseline = trained_flow(runs / "baseline", load_background_card(HERE / "baseline.yaml"), events)
    optimiser = card.optimiser.model_copy(update={"members": 1})
    moved = card.model_copy(update={"name": "dijet-background-blinded", "window": BLINDED, "optimiser": optimiser})
    other = trained_flow(runs / "blinded", moved, events)
    sigma, seconds = trained_sigma(runs / "sigma", events, card)

    def flows(edges: tuple[float, float]) -> tuple[ConditionalDensity, bool]:
        return (other, True) if edges == BLINDED else (ensemble, edges == card.window)

    def affine(edges: tuple[float, float]) -> tuple[ConditionalDensity, bool]:
        return baseline, edges == card.window

    def interpolated(edges: tuple[float, float]) -> tuple[ConditionalDensity, bool]:
        return sigma.blinded(edges, buffer=0.25 * (edges[1] - edges[0])), True

    rows = [
        measure("flow ensemble", flows, sample, card),
        measure("baseline", affine, sample, card),
        measure("SIGMA", interpolated, sample, card, n_points=8192),
    ]
    mass = between(sample.everything, *card.window)[:, 0]
    begin = time.perf_counter()
    sigma.blinded(card.window, buffer=100.0).sample(mass, rng=np.random.default_rng(1))
    cost = time.perf_counter() - begin
    print(
        f"SIGMA for one more window: {cost:.1f} s for {mass.size} samples on one core; its training took {seconds:.0f} s"
    )
    found["SIGMA, one more window / training"] = cost / seconds
    every = between(sample.everything, *card.window)
    for name, generator in (("flow ensemble", ensemble), ("baseline", baseline)):
        edges, rng = card.window, np.random.default_rng(5)
        test = region_test(
            generator, every[:, 1:], every[:, 0], kind="signal region", edges=edges, blinded=True, rng=rng
        ).test
        print(f"{name}, all {len(every)} events of the signal region: {words(test)}")
        found[f"{name}: AUC, all of the signal region"] = test.auc
        found[f"{name}: p, all of the signal region"] = test.p_value
    return rows


def signal_region(generator: GeneratorTerm, sample: Sample, card: BackgroundCard, seed: int) -> TwoSampleTest:
    """All true events of the signal region against samples."""
    x, options = between(sample.everything, *card.window), TwoSampleOptions(permutations=1999)
    return region_test(
        generator,
        x[:, 1:],
        x[:, 0],
        kind="signal region",
        edges=card.window,
        blinded=True,
        rng=np.random.default_rng(seed),
        options=options,
    ).test


def trained_flow(folder: Path, card: BackgroundCard, events: Path) -> GeneratorTerm:
    """Flow of a card: trained and exported where it is not there yet."""
    model = folder / "model"
    if not (model / "model.json").is_file():
        print(f"training {card.name} in {folder}", flush=True)
        train_background(card, folder / "run", events=events)
        export_background(folder / "run", model)
    loaded = load_model(model)
    return GeneratorTerm(loaded.terms[str(loaded.spec.background.features)])


def trained_sigma(folder: Path, events: Path, card: BackgroundCard) -> tuple[FlowMatchingDensity, float]:
    """SIGMA on events of every mass with signal injected, and the seconds that its training took."""
    background = read_sample(events, card.background, card).part("train").matrix(card.names)
    signal = read_sample(events, SIGNAL, card).part("train").matrix(card.names)
    background, signal = (between(x, *card.train_range) for x in (background, signal))
    share = len(between(signal, *card.window)) / len(signal)
    n_signal = round(INJECTED * len(between(background, *card.window)) / share)
    x = np.concatenate([background, signal[np.random.default_rng(5).permutation(len(signal))[:n_signal]]])
    begin = time.perf_counter()
    run = train_sigma(
        x[:, 1:],
        x[:, 0],
        card.features,
        folder,
        options=SigmaOptions(seed=3),
        bounds=[(item.low, item.high) for item in card.inputs[1:]],
        record={"injected": n_signal},
    )
    clock = folder / "seconds.json"
    if not clock.is_file():
        clock.write_text(json.dumps(time.perf_counter() - begin))
    print(f"SIGMA: {len(run.history())} epochs on {run.record['n_events']} events, {n_signal} of them signal")
    return replace(sigma_density(run), steps=10), float(json.loads(clock.read_text()))


def words(test: TwoSampleTest) -> str:
    """A test in a line."""
    return (
        f"AUC {test.auc:.4f} +- {test.auc_error:.4f}, log-score {test.z:+.1f} sigma of its null, p = {test.p_value:.3g}"
    )


def show(rows: list[Row], found: dict[str, float]) -> None:
    """Print the tables, and collect the numbers that have bands."""
    n_side = len(rows[0].log_prob) - (2000 if len(rows) == 1 else 10_000)
    for row in rows:
        quality = row.quality
        print(f"\n{row.name} ({row.seconds:.0f} s)")
        for part, values in (("sidebands", slice(None, n_side)), ("signal region", slice(n_side, None))):
            mine, first = row.log_prob[values], rows[0].log_prob[values]
            good = np.isfinite(mine) & np.isfinite(first)
            change = mine[good] - first[good]
            error = change.std() / np.sqrt(change.size)
            # A few events at an end of a feature's range, where a density may be off by many powers of e, carry a mean.
            bulk = np.clip(change, -1.0, 1.0).mean()
            text = f", minus the ensemble {change.mean():+.4f} +- {error:.4f} ({bulk:+.4f} with differences cut at 1)"
            text = "" if row is rows[0] else text
            print(f"  ln p per held-out event, {part}: {mine[good].mean():.4f}{text}; density 0 for {np.sum(~good)}")
            if row is not rows[0]:
                found[f"{row.name}: ln p minus the ensemble, {part}"] = float(change.mean())
        for region in quality.regions:
            blinded = "blinded" if region.blinded else "not blinded"
            where = f"{region.kind} {region.low:g}-{region.high:g}, {region.test.n_pairs} events, {blinded}"
            print(f"  {where}: {words(region.test)}")
            if region.kind != "pseudo-window":
                found[f"{row.name}: AUC, {region.kind}"] = region.test.auc
                found[f"{row.name}: p, {region.kind}"] = region.test.p_value
        integrals = ", ".join(f"{n.mass:g}: {n.integral:.4f}({1e4 * n.error:.0f})" for n in quality.normalisation)
        print(f"  integral of p(x|m) at m [GeV]: {integrals}")
        worst = max(quality.normalisation, key=lambda n: abs(n.integral - 1.0))
        found[f"{row.name}: |integral - 1|, largest"] = abs(worst.integral - 1.0)
        for s in quality.spurious:
            fitted = "no fit" if s.fitted is None else f"{s.fitted:.1f}"
            print(
                f"  spurious signal {s.low:g}-{s.high:g} of {s.n_events}, {'blinded' if s.blinded else 'not blinded'}: "
                f"{s.value:.1f} +- {s.error:.1f} (fit {fitted}), "
                f"ln E[r] = {s.log_mean_ratio:+.3f} +- {s.log_mean_ratio_error:.3f}"
            )
            if (s.low, s.high) == quality.window:
                found[f"{row.name}: |pull|, signal region"] = abs(s.pull)


def judge(found: dict[str, float], expected: dict[str, list[float | None]]) -> int:
    """Compare with the bands; 1 if a number is outside its band or missing."""
    print()
    failed = 0
    for name, (low, high) in expected.items():
        value = found.get(name, float("nan"))
        good = (low is None or value >= low) and (high is None or value <= high) and np.isfinite(value)
        failed |= not good
        print(f"{'ok  ' if good else 'FAIL'} {name}: {value:.4g} in [{low}, {high}]")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
