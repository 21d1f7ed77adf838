"""Statements about stored trainings on simulated dijets (`data_sets.py`), against nulls of several sizes.

The background is the generator `dijet-background` with the mass shape of each data set's own sidebands. Its ensemble is all that
is known about its error; data sets without signal show whether that is enough.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import logsumexp

from gbistat.data.events import Events
from gbistat.data.read import read_events
from gbistat.inference.background_family import BackgroundFamily, FeatureTilts, ensemble_directions
from gbistat.inference.signal_fraction import class_interval, cross_fit_estimate
from gbistat.inference.split_likelihood import FoldRatios, discovery_evidence
from gbistat.terms.density import MassDensity
from gbistat.terms.generator import GeneratorTerm
from gbistat.terms.network import log_mean
from gbistat.terms.shapes.registry import make_shape
from gbistat.terms.store import load_model

if TYPE_CHECKING:
    from pathlib import Path

    from gbistat.inference.split_likelihood import Scheme
    from gbistat.terms.store import LoadedModel

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
THRESHOLDS = (math.log(20.0), 6.6077, 15.0650)
"""ln of 20 and of 1/p of 3 and 5 sigma."""


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
    supervised: float
    masses_known: float


class Reader:
    """Networks and reference events, loaded once."""

    def __init__(self, events: Path | None) -> None:
        model = load_model("dijet-background")
        self.generator = GeneratorTerm(model.terms[str(model.spec.background.features)])
        self.supervised = load_model("dijet-qq-3500")
        self.paws = load_model("dijet-paws")
        self.tilts: FeatureTilts | None = None
        self.by_mass = {} if events is None else self._ratios_by_mass(events)

    def read(self, file: Path) -> Statement:
        with np.load(file) as stored:
            a = {name: stored[name] for name in stored.files}
        meta = json.loads(str(a["meta"]))
        members = a["log_pb_members"]
        log_b = logsumexp(members, axis=0) - math.log(len(members)) + a["log_pb_mass"]
        ratio = a["log_ps"] - log_b
        mass_corners, density = self._mass(meta["sidebands"], a["mass"])
        if self.tilts is None:
            rng = np.random.default_rng(7)
            drawn = density.sample(200_000, (), rng=rng)
            self.tilts = FeatureTilts.of(self.generator.sample(drawn, rng=rng), 4)
        tilts, log_e, low = self.tilts(a["x"]), {}, {}
        earlier = meta["card"]["folds"].get("train_on") == "earlier"
        scheme: Scheme = "product" if earlier else "average"
        for name, family in FAMILIES.items():
            corners = family.log_corners(
                ensemble_directions(members), mass_corners, tilts if family.tilt else None, n=log_b.size
            )
            rows = [a["fold"] == k for k in range(1 if scheme == "product" else 0, len(a["w"]))]
            folds = [FoldRatios(ratio[:, mask], corners[:, mask]) for mask in rows]
            evidence = discovery_evidence(folds, scheme=scheme)
            log_e[name] = evidence.log_e
            if name in ("mean", "ensemble", "wide"):
                low[name] = class_interval(folds, scheme=scheme).low
            if name == "mean":
                one_fold, estimate, one = (
                    evidence.log_e_folds[0],
                    cross_fit_estimate(folds),
                    cross_fit_estimate(folds[:1]),
                )
        return Statement(
            meta["level"], meta["seed"], meta["background"] + (", earlier folds" if earlier else ""), meta["fraction_true"], log_e, one_fold, low,
            estimate.value, estimate.error, one.error, float(np.mean(a["w"])), tuple(a["sic"]),
            *self._known(a, density),
        )  # fmt: skip

    @staticmethod
    def _mass(record: dict, mass: np.ndarray) -> tuple[np.ndarray, MassDensity]:
        """ln of mass densities at the corners of the sideband fit's ellipsoid, 3 sigma, over the best one."""
        shape = make_shape("dijet", n_parameters=3, sqrt_s=13000.0)
        theta = np.array([record["parameters"][p.name] for p in shape.parameters])
        values, vectors = np.linalg.eigh(np.array(record["covariance"]))
        best = MassDensity.fixed(shape, (WINDOW,), theta)
        reach = 3.0 * math.sqrt(theta.size)
        shifts = [
            s * reach * math.sqrt(max(v, 0.0)) * e for v, e in zip(values, vectors.T, strict=True) for s in (1, -1)
        ]
        base = best.log_prob(mass, ())
        return np.array(
            [MassDensity.fixed(shape, (WINDOW,), theta + d).log_prob(mass, ()) - base for d in shifts]
        ), best

    def _known(self, a: dict, density: MassDensity) -> tuple[float, float]:
        """q0 of the supervised ratio, and of the ratio for any masses at the true ones (NaN without the files)."""
        names = self.generator.features
        units = {item.name: item.unit for item in self.generator.metadata.features}
        events = Events(a["mass"], a["x"], names, units)
        base = density.log_prob(a["mass"], ())
        log_r = self.supervised.terms["qq-500-100"].log_ratio(events) + _peak(self.supervised, a["mass"]) - base
        first = _q0(np.expm1(log_r))
        if not self.by_mass:
            return first, math.nan
        found = np.array([self.by_mass[round(float(m), 6)] for m in a["mass"]])
        return first, _q0(np.expm1(found + _peak(self.paws, a["mass"]) - base))

    def _ratios_by_mass(self, folder: Path) -> dict[float, float]:
        """ln p_s / p_b of the features by `dijet-paws` at the true masses, by the dijet mass, which no two events share."""
        term = self.paws.terms["qq-masses"]
        logs, masses = [], []
        for file in ("qcd", "signal_qq_3500_500_100"):
            events = read_events(folder / f"{file}.features.h5", features=self.paws.spec.features)
            events = events.select((events.mass >= WINDOW[0]) & (events.mass < WINDOW[1]))
            logs.append(log_mean(term.member_values(events, m_X=100.0, m_Y=500.0)))
            masses.append(events.mass)
        # Normalised on all background of the window: for a benchmark, not for a search.
        kappa = -float(logsumexp(logs[0])) + math.log(logs[0].size)
        pairs = zip(np.concatenate(masses), np.concatenate(logs) + kappa, strict=True)
        return {round(float(m), 6): float(value) for m, value in pairs}


def _peak(model: LoadedModel, mass: np.ndarray) -> np.ndarray:
    """ln of the signal's mass density in the window."""
    spec = model.spec.signal.mass
    shape = make_shape(spec.shape, **spec.options)
    affine = spec.affine([p.name for p in shape.parameters], 0.5 * sum(WINDOW))
    return MassDensity.fixed(shape, (WINDOW,), affine.offset).log_prob(mass, ())


def _q0(excess: np.ndarray) -> float:
    w = 1e-3
    for _ in range(60):
        score = excess / (1.0 + w * excess)
        w = float(np.clip(w + score.sum() / (score**2).sum(), 1e-7, min(10.0 * w, 0.5)))
    return 2.0 * max(float(np.log1p(w * excess).sum()), 0.0)


def read_all(folder: Path, work: Path | None, events: Path | None) -> list[Statement]:
    """Statements of all stored data sets of seeds from 1000 on; those of earlier calls are kept in `work`."""
    reader, found = None, []
    for file in sorted(folder.glob("sb_*_seed_*.npz")):
        if "partial" in file.name or int(file.stem.split("_")[3]) < 1000:
            continue
        kept = None if work is None else work / f"{file.stem}.json"
        if kept is not None and kept.is_file():
            found.append(Statement(**json.loads(kept.read_text(encoding="utf-8"))))
            continue
        reader = reader or Reader(events)
        found.append(reader.read(file))
        if kept is not None:
            kept.write_text(json.dumps(found[-1].__dict__), encoding="utf-8")
    return found


def print_trained(found: list[Statement]) -> dict[str, float]:
    """Tables of part (b)."""
    print(
        "\n(b) simulated dijets, 22,400 events in 3300-3700 GeV, five folds of four flows, background flow of five members"
    )
    groups: dict[tuple[str, float], list[Statement]] = {}
    for one in found:
        groups.setdefault((one.background, one.level), []).append(one)
    print("\nln e, median (largest), and data sets with e >= 20 / 3 sigma / 5 sigma, by the null")
    for name, family in FAMILIES.items():
        print(f"  {name}: {json.dumps(family.to_dict())}")
        for (kind, level), sets in sorted(groups.items()):
            values = np.array([one.log_e[name] for one in sets])
            counts = "/".join(f"{int(np.sum(values >= t))}" for t in THRESHOLDS)
            print(
                f"    {kind} S/B {100 * level:.1f} %  {np.median(values):7.2f} ({values.max():6.2f})   {counts} of {len(sets)}"
            )
    print(
        "\nby signal: q0 with known density (its Z), one fold's ln e and error over all folds', fitted fraction, lower limit (mixtures), SIC"
    )
    for (kind, level), sets in sorted(groups.items()):

        def mean(name: str, sets: list[Statement] = sets) -> float:
            return float(np.mean([getattr(one, name) for one in sets]))

        above = {n: sum(one.low[n] > one.truth for one in sets) for n in sets[0].low}
        lows = ", ".join(f"{n} {np.median([one.low[n] for one in sets]):.4f} (above truth {above[n]})" for n in above)
        z = [np.median([math.sqrt(getattr(one, n)) for one in sets]) for n in ("supervised", "masses_known")]
        sic = np.mean([one.sic for one in sets], axis=0)
        print(
            f"  {kind} S/B {100 * level:.1f} % ({len(sets)} sets): truth {mean('truth'):.4f}  Z supervised {z[0]:.1f}, PAWS at true "
            f"masses {z[1]:.1f}; one fold {np.median([one.one_fold for one in sets]):.1f}; width "
            f"{np.median([one.one_error / one.error for one in sets]):.2f}; fitted {mean('trained'):.4f}, cross-fit {mean('estimate'):+.4f} +- "
            f"{mean('error'):.4f}; low {lows}; SIC {sic[0]:.1f}, {sic[1]:.1f}"
        )
    null = [one for one in found if one.level == 0.0 and one.background.startswith("true")]
    return {f"false discoveries, {n}": float(sum(one.log_e[n] >= THRESHOLDS[0] for one in null)) for n in FAMILIES} | {
        "null data sets": float(len(null))
    }
