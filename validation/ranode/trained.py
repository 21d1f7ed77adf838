"""Statements about stored trainings on simulated dijets (`data_sets.py`), against nulls of several sizes, beside searches that know the signal.

The background is the generator that the card names, with the mass shape of each data set's own sidebands. Its ensemble is all that
is known about its error; data sets without signal show whether that is enough. Labels grade, and nothing else.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from known import KnownSignals
from scipy.special import logsumexp, ndtr

from gbistat.inference.background_family import BackgroundFamily, FeatureTilts, ensemble_directions
from gbistat.inference.signal_fraction import class_interval, cross_fit_estimate
from gbistat.inference.split_likelihood import FoldRatios, discovery_evidence
from gbistat.terms.density import MassDensity
from gbistat.terms.generator import GeneratorTerm
from gbistat.terms.shapes.registry import make_shape
from gbistat.terms.store import load_model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gbistat.inference.split_likelihood import Scheme

WINDOW = (3300.0, 3700.0)
FAMILIES = {
    "mean": BackgroundFamily(0.0, 0.0),
    "ensemble": BackgroundFamily(1.0, 3.0),
    "ensemble x 1.5": BackgroundFamily(1.5, 3.0),
    "ensemble x 2": BackgroundFamily(2.0, 3.0),
    "tilt 2 %": BackgroundFamily(1.0, 3.0, 0.02),
    "wide": BackgroundFamily(1.0, 3.0, 0.05),
    "tilt 10 %": BackgroundFamily(1.0, 3.0, 0.1),
    "tilt 20 %": BackgroundFamily(1.0, 3.0, 0.2),
}
OFFERED = ("mean", "ensemble", "wide")
"""Nulls that `gbistat limits --null` knows."""
LEVELS = (0.05, float(ndtr(-3.0)), float(ndtr(-5.0)))
"""p-values: e of 20, and those of 3 and 5 sigma."""
THRESHOLDS = tuple(-math.log(level) for level in LEVELS)
SKETCH = {0.017: 9.9, 0.009: 9.0, 0.004: 6.2, 0.002: 1.4}
"""Significance improvement at 3e-3 of one small flow trained on 80 % of one data set."""
PUBLISHED = {
    0.002: "SIGMA 2.0, IAD 5.4 (at 0.19 %); largest at any efficiency: CATHODE 2, IAD 1.5, ANODE 2.5",
    0.004: "SIGMA 6.5, IAD 9.6; largest: CATHODE 14.4, IAD 12.3, ANODE 4.8",
    0.009: "SIGMA 10.7, IAD 11.1; largest at 0.6 %: CATHODE 16.0, IAD 15.4, ANODE 6.4",
    0.017: "SIGMA 11.3, IAD 11.4",
}
"""Significance improvement of others in the LHC Olympics window, which holds 5.4 times as many events at the same S/B, read off figures: at 1e-3 of
SIGMA (arXiv:2410.20537) and its idealised anomaly detector, between their points in S/B, and the largest of CATHODE (arXiv:2109.00546). Other events."""


@dataclass(frozen=True)
class Statement:
    """One data set."""

    level: float
    seed: int
    background: str
    truth: float
    log_e: dict[str, float]
    one_fold: float
    low: dict[str, float]
    estimate: float
    error: float
    one_error: float
    trained: float
    sic: tuple[float, float]
    seconds: float
    known: dict[str, float] = field(default_factory=dict)


class Reader:
    """Networks and reference events, loaded once.

    Parameters
    ----------
    events : Path, optional
        Simulated dijets, for what searches for known signals find.
    work : Path, optional
        Folder in which the ratios of these are kept.
    """

    def __init__(self, events: Path | None, work: Path | None) -> None:
        self.events, self.work = events, work
        self.tilts: dict[tuple[str, float], FeatureTilts] = {}
        self.known: KnownSignals | None = None

    def read(self, file: Path) -> Statement:
        with np.load(file) as stored:
            a = {name: stored[name] for name in stored.files}
        meta = json.loads(str(a["meta"]))
        card = meta["card"]
        window = tuple(card.get("window") or WINDOW)
        members = a["log_pb_members"]
        log_b = logsumexp(members, axis=0) - math.log(len(members)) + a["log_pb_mass"]
        ratio = a["log_ps"] - log_b
        mass_corners, density = self._mass(meta["sidebands"], a["mass"], window)
        tilts = self._tilts(card["generator"], window, density)(a["x"])
        log_e, low = {}, {}
        earlier = card["folds"].get("train_on") == "earlier"
        scheme: Scheme = "product" if earlier else "average"
        for name, family in FAMILIES.items():
            corners = family.log_corners(
                ensemble_directions(members), mass_corners, tilts if family.tilt else None, n=log_b.size
            )
            rows = [a["fold"] == k for k in range(1 if scheme == "product" else 0, len(a["w"]))]
            folds = [FoldRatios(ratio[:, mask], corners[:, mask]) for mask in rows]
            evidence = discovery_evidence(folds, scheme=scheme)
            log_e[name] = evidence.log_e
            if name in OFFERED:
                low[name] = class_interval(folds, scheme=scheme).low
            if name == "mean":
                one_fold, estimate, one = (
                    evidence.log_e_folds[0],
                    cross_fit_estimate(folds),
                    cross_fit_estimate(folds[:1]),
                )
        kind = meta["background"] + (", earlier folds" if earlier else "")
        kind += "" if window == WINDOW else f", {window[0]:.0f}-{window[1]:.0f} GeV"
        known = self._known(a["mass"], density, self.events) if kind == "true" and self.events is not None else {}
        return Statement(
            meta["level"], meta["seed"], kind, meta["fraction_true"], log_e, one_fold, low, estimate.value, estimate.error, one.error,
            float(np.mean(a["w"])), tuple(a["sic"]), meta["cpu_seconds"], known,
        )  # fmt: skip

    def _tilts(self, generator: str, window: tuple[float, float], density: MassDensity) -> FeatureTilts:
        """Tilts of the generator's features in the window."""
        key = (generator, window[0])
        if key not in self.tilts:
            model = load_model(generator)
            term = GeneratorTerm(model.terms[str(model.spec.background.features)])
            rng = np.random.default_rng(7)
            self.tilts[key] = FeatureTilts.of(term.sample(density.sample(200_000, (), rng=rng), rng=rng), 4)
        return self.tilts[key]

    @staticmethod
    def _mass(record: dict, mass: np.ndarray, window: tuple[float, float]) -> tuple[np.ndarray, MassDensity]:
        """ln of mass densities at the corners of the sideband fit's ellipsoid, 3 sigma, over the best one."""
        shape = make_shape("dijet", n_parameters=3, sqrt_s=13000.0)
        theta = np.array([record["parameters"][p.name] for p in shape.parameters])
        values, vectors = np.linalg.eigh(np.array(record["covariance"]))
        best = MassDensity.fixed(shape, (window,), theta)
        reach = 3.0 * math.sqrt(theta.size)
        shifts = [
            s * reach * math.sqrt(max(v, 0.0)) * e for v, e in zip(values, vectors.T, strict=True) for s in (1, -1)
        ]
        base = best.log_prob(mass, ())
        return np.array(
            [MassDensity.fixed(shape, (window,), theta + d).log_prob(mass, ()) - base for d in shifts]
        ), best

    def _known(self, mass: np.ndarray, density: MassDensity, events: Path) -> dict[str, float]:
        """What searches for known signals find in these events."""
        self.known = self.known or KnownSignals(events, density, self.work)
        return self.known.statements(mass, density)


def read_all(
    folders: Sequence[Path], work: Path | None, events: Path | None
) -> tuple[list[Statement], dict[str, list[float]]]:
    """Statements of all stored data sets of seeds from 1000 on, and the improvements of known signals; those of earlier calls are kept in `work`."""
    reader, found = Reader(events, work), []
    for file in [file for folder in folders for file in sorted(folder.glob("sb_*_seed_*.npz"))]:
        if "partial" in file.name or int(file.stem.split("_")[3]) < 1000:
            continue
        kept = None if work is None else work / f"{file.parent.name}_{file.stem}.json"
        if kept is not None and kept.is_file():
            found.append(Statement(**json.loads(kept.read_text(encoding="utf-8"))))
            continue
        found.append(reader.read(file))
        if kept is not None:
            kept.write_text(json.dumps(found[-1].__dict__), encoding="utf-8")
    known = None if work is None else work / "improvements.json"
    if known is not None and known.is_file() and reader.known is None:
        return found, json.loads(known.read_text(encoding="utf-8"))
    improvements = {} if reader.known is None else reader.known.improvements()
    if known is not None and improvements:
        known.write_text(json.dumps(improvements), encoding="utf-8")
    return found, improvements


Groups = dict[tuple[str, float], list[Statement]]


def _label(key: tuple[str, float]) -> str:
    return f"{key[0]} S/B {100 * key[1]:.1f} %"


def _counts(values: np.ndarray) -> str:
    """Data sets beyond the three levels."""
    return "/".join(f"{int(np.sum(values >= t))}" for t in THRESHOLDS)


def print_improvement(groups: Groups, improvements: dict[str, list[float]]) -> dict[str, float]:
    """Significance improvement beside that of the sketch, of known signals and of published searches."""
    print("\nsignificance improvement at background efficiencies 1e-3 and 3e-3: mean +- spread over data sets")
    for name, (a, b, da, db) in improvements.items():
        print(f"  {name}, events that trained nothing: {a:.1f} +- {da:.1f}, {b:.1f} +- {db:.1f}")
    numbers = {}
    for key, sets in sorted(groups.items()):
        if key[1] == 0.0:
            continue
        sic = np.array([one.sic for one in sets])
        spread = sic.std(axis=0, ddof=1) if len(sets) > 1 else np.full(2, math.nan)
        below = int(np.sum(sic[:, 1] < SKETCH[key[1]]))
        print(
            f"  {_label(key)} ({len(sets)} sets): {sic[:, 0].mean():5.2f} +- {spread[0]:.2f}   {sic[:, 1].mean():5.2f} +- {spread[1]:.2f} "
            f"(smallest {sic[:, 1].min():.1f}; sketch {SKETCH[key[1]]}, below it {below} of {len(sets)})   published: {PUBLISHED[key[1]]}"
        )
        if key[0] == "true":
            numbers[f"SIC at 3e-3, S/B {100 * key[1]:.1f} %"] = float(sic[:, 1].mean())
            numbers[f"below the sketch, S/B {100 * key[1]:.1f} %"] = float(below)
    return numbers


def print_fraction(groups: Groups) -> None:
    """Fraction fitted beside the networks, cross-fit estimate, and lower limits."""
    print(
        "\nfraction of signal in percent: truth; fitted beside the networks, mean +- spread; cross-fit estimate of the learned density, mean "
        "+- spread (its error); median lower limit for mixtures of the networks by null; one fold's error over that of all"
    )
    for key, sets in sorted(groups.items()):
        w, estimate = (100 * np.array([getattr(one, name) for one in sets]) for name in ("trained", "estimate"))
        lows = ", ".join(f"{n} {100 * np.median([one.low[n] for one in sets]):.2f}" for n in sets[0].low)
        width = np.median([one.one_error / one.error for one in sets])
        print(
            f"  {_label(key)} ({len(sets)} sets): {100 * np.mean([one.truth for one in sets]):.3f}; {w.mean():.3f} +- {w.std():.3f} (largest "
            f"{w.max():.3f}); {estimate.mean():+.3f} +- {estimate.std():.3f} ({100 * np.mean([one.error for one in sets]):.3f}); low {lows}; {width:.2f}"
        )


def print_evidence(groups: Groups) -> None:
    """ln e by null, and how often it is beyond the levels."""
    print(
        "\nln e, median (smallest to largest), and data sets with e >= 20 / 1 over p of 3 sigma / 5 sigma, by the null"
    )
    for name, family in FAMILIES.items():
        print(f"  {name}: {json.dumps(family.to_dict())}")
        for key, sets in sorted(groups.items()):
            values = np.array([one.log_e[name] for one in sets])
            print(
                f"    {_label(key)}  {np.median(values):7.2f} ({values.min():.2f} to {values.max():.2f})   {_counts(values)} of {len(sets)}"
            )


def print_power(groups: Groups) -> dict[str, float]:
    """Power of the evidence beside that of searches for known signals on the same data sets."""
    print(
        "\npower: data sets with p <= 0.05 / 3 sigma / 5 sigma (1/e for p), and median Z: supervised and PAWS at the true masses (local), "
        "PAWS with masses free (global), learned signal by null"
    )
    numbers = {}
    for key, sets in sorted(groups.items()):
        cells = []
        if all(one.known for one in sets):
            for name in ("supervised", "masses known", "masses free"):
                p = np.array([one.known[f"p {name}"] for one in sets])
                z = np.median([math.sqrt(one.known[f"q0 {name}"]) for one in sets])
                logs = -np.log(np.maximum(p, 1e-300))
                cells.append(f"{name} {_counts(logs)} (Z {z:.1f}{' local' if name.endswith('free') else ''})")
            near = [abs(one.known["m_X"] - 500.0) <= 50.0 and abs(one.known["m_Y"] - 100.0) <= 50.0 for one in sets]
            cells += [f"masses within 50 GeV in {sum(near)}"] if key[1] > 0 else []
        for name in OFFERED:
            values = np.array([one.log_e[name] for one in sets])
            cells.append(f"{name} {_counts(values)}")
            if key[0] == "true" and key[1] > 0 and name == "ensemble":
                label = f"S/B {100 * key[1]:.1f} %"
                numbers[f"ln e against the ensemble, {label}"] = float(np.median(values))
                numbers[f"e >= 20 against the ensemble [%], {label}"] = 100 * float(np.mean(values >= THRESHOLDS[0]))
        print(f"  {_label(key)} of {len(sets)}: " + "; ".join(cells))
    return numbers


def print_trained(found: list[Statement], improvements: dict[str, list[float]]) -> dict[str, float]:
    """Tables of part (b)."""
    print(
        "\n(b) simulated dijets, five folds of four flows, background flow of five members; "
        f"{np.mean([one.seconds for one in found]):.0f} s of processor time a data set"
    )
    groups: Groups = {}
    for one in found:
        groups.setdefault((one.background, one.level), []).append(one)
    numbers = print_improvement(groups, improvements)
    print_fraction(groups)
    print_evidence(groups)
    numbers |= print_power(groups)
    print("\nvalidity: false discoveries (e >= 20) without signal, and lower limits above the truth in all data sets")
    for kind in sorted({one.background for one in found}):
        null = [one for one in found if one.background == kind and one.level == 0.0]
        every = [one for one in found if one.background == kind]
        false = {n: sum(one.log_e[n] >= THRESHOLDS[0] for one in null) for n in OFFERED}
        above = {n: sum(one.low[n] > one.truth for one in every) for n in OFFERED}
        print(
            f"  {kind}: " + ", ".join(f"{n} {false[n]} of {len(null)} and {above[n]} of {len(every)}" for n in OFFERED)
        )
        if kind == "true":
            numbers["null data sets"] = float(len(null))
            numbers |= {f"false discoveries, {n}": float(false[n]) for n in OFFERED}
            numbers |= {f"lower limits above the truth, {n}": float(above[n]) for n in OFFERED}
    return numbers
