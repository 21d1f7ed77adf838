"""Data sets with and without signal, and the signal density that R-ANODE learns from each: raw material of a study.

    KERAS_BACKEND=jax python validation/ranode/data_sets.py --events DIR --output SETS [--sets 40] [--first 1000]

Every data set is a random 60 % of the simulated QCD dijets (without replacement, the number of events Poisson-distributed; data sets share events,
each by itself is an honest sample), which in the window 3300-3700 GeV played no part in `dijet-background`, and a Poisson-distributed number of
events of the benchmark 3500 -> 500, 100 such that S/B in the window is 0, 0.2, 0.4, 0.9 or 1.7 % on average. ``--background generated`` takes
the background's masses of the window and draws its features from the generator: a null whose p_b(x|m) is known exactly. ``--generator MODEL --levels 0`` takes a
generator that was blind to another window (`pseudo.yaml`: 3700-4100 GeV), which holds no signal: a pseudo-window in the upper sideband.

One file a data set, ``sb_SHARE_seed_SEED.npz``; existing ones are left alone, so that the same command goes on. Seeds below 1000 are for tuning. Content, for
the n events of the window:

    label (n,)              1 for signal: for grading only
    mass (n,), x (n, 4)     GeV, and the generator's features
    fold (n,)               cross-fitting fold
    log_ps (M, n)           ln p_s(m, x) by the M networks that never saw the event; -inf outside the ranges
    log_pb_members (B, n)   ln p_b(x|m) by each member of the generator
    log_pb_mass (n,)        ln p_b(m) on the window, from the sidebands
    w (K,), w_train         fraction fitted out of sample in each fold; fraction in the loss
    rest_label, rest_log_ratio    events of the window that are in no data set: ln p_s / p_b, cross-fitted, for grading
    sic (2,)                significance improvement at background efficiencies 1e-3 and 3e-3, of all events of the window
    meta                    JSON: seeds, counts, card, sideband fit, seconds
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import numpy as np
from known import FILES, improvement
from trained import SKETCH

from gbistat.data.events import Events, concatenate
from gbistat.data.read import read_events
from gbistat.data.window import MassWindow
from gbistat.terms.generator import GeneratorTerm
from gbistat.terms.network import log_mean
from gbistat.terms.store import load_model
from gbistat.training.ranode import train_ranode
from gbistat.training.ranode_card import RanodeCard, load_ranode_card
from gbistat.training.ranode_data import fold_rules
from gbistat.training.ranode_export import choose_networks, final_log_prob
from gbistat.training_workflow import ranode_data

HERE = Path(__file__).parent
SHARE = 0.6
LEVELS = (0.0, 0.002, 0.004, 0.009, 0.017)
SCAN = {
    "folds": {"n_folds": 5, "members": 1},
    "fraction": {"mode": "scan", "values": [1e-4, 1e-2]},
    "flow": {"layers": 2, "hidden": [32, 32, 32, 32], "bins": 8, "bound": 8.0},
    "optimiser": {
        "epochs": 200,
        "steps": 7,
        "batch_size": 2048,
        "learning_rate": 3e-4,
        "patience": 10,
        "keep": "best",
        "average": 1,
    },
}
"""Flows, batches and stopping of the published scan of w: 2 spline layers, conditioned by two residual blocks of 32 units; 2048 events a step, 7 steps
through the four of five folds without a fifth of them; at most 200 epochs, and 10 without a better validation loss."""
SCANNED = 20 * 20
"""Its networks for one data set: 20 values of w, 20 seeds each."""


class Pool:
    """All simulated events, with the generator evaluated once in the window."""

    def __init__(self, folder: Path, card_file: Path, generator: str | None = None) -> None:
        self.card = load_ranode_card(card_file)
        self.model = load_model(generator or self.card.generator)
        if generator is not None:
            self.card = self.card.model_copy(update={"generator": generator, "window": self.model.spec.window})
        self.generator = GeneratorTerm(self.model.terms[str(self.model.spec.background.features)])
        self.window = MassWindow(*(self.card.window or self.model.spec.window or (0.0, 1.0)))
        self.kinds = [read_events(folder / file, features=self.generator.features) for file in FILES]
        self.log_pb = [self.members(events) for events in self.kinds]
        self.n_window = int(self.window.contains(self.kinds[0].mass).sum())
        inside = int(self.window.contains(self.kinds[1].mass).sum())
        self.signal_in_window = inside / len(self.kinds[1])

    def members(self, events: Events) -> np.ndarray:
        """ln p_b(x|m) of each member, shape (B, n); 0 outside the window, where nobody asks."""
        result = np.zeros((self.generator.n_members, len(events)))
        mask = self.window.contains(events.mass)
        result[:, mask] = self.generator.member_log_prob(events.features[mask], events.mass[mask])
        return result

    def draw(self, level: float, seed: int, generated: bool) -> tuple[Events, np.ndarray, np.ndarray, list[np.ndarray]]:
        """Spectrum, its labels, ln p_b of the members, and the rows that were taken of either kind."""
        rng = np.random.default_rng([seed, round(1e5 * level)])
        background, signal = self.kinds
        count = min(int(rng.poisson(SHARE * len(background))), len(background))
        rows = [np.sort(rng.permutation(len(background))[:count])]
        expected = level * SHARE * self.n_window / self.signal_in_window
        rows.append(np.sort(rng.permutation(len(signal))[: rng.poisson(expected)]))
        parts = [kind.select(taken) for kind, taken in zip(self.kinds, rows, strict=True)]
        log_pb = [values[:, taken] for values, taken in zip(self.log_pb, rows, strict=True)]
        if generated:
            mask = self.window.contains(parts[0].mass)
            mass = parts[0].mass[mask]
            features = np.array(parts[0].features)
            features[mask] = self.generator.sample(mass, rng=rng)
            parts[0] = Events(parts[0].mass, features, background.names, background.units)
            log_pb[0] = self.members(parts[0])
        label = np.repeat([0, 1], [len(part) for part in parts])
        return concatenate(parts), label, np.concatenate(log_pb, axis=1), rows


def cross_fitted(run, chosen, events: Events, rule) -> np.ndarray:
    """ln p_s of the networks of each event's own fold, shape (M, n)."""
    m = run.card.folds.members
    x = events.matrix(run.transform.names)
    folds = rule.fold_of(events)
    result = np.full((m, len(events)), -np.inf)
    inside = run.transform.inside(x.astype(np.float32).astype(np.float64))
    for fold in range(rule.n_folds):
        rows = np.flatnonzero((folds == fold) & inside)
        weights = [array[fold * m : (fold + 1) * m] for array in chosen.weights]
        result[:, rows] = final_log_prob(run, weights, x[rows])
    return result


def one_set(pool: Pool, level: float, seed: int, generated: bool, file: Path) -> dict:
    """Make, train, evaluate and store one data set."""
    begin, clock = time.process_time(), time.time()
    card = pool.card.model_copy(update={"seed": seed})
    spectrum, label, log_pb, rows = pool.draw(level, seed, generated)
    mask = pool.window.contains(spectrum.mass)
    events, label, log_pb = spectrum.select(mask), label[mask], log_pb[:, mask]
    data = ranode_data(
        card,
        spectrum,
        pool.model,
        pool.window,
        record={"file": file.name, "sha256": "0" * 64},
        log_features=log_mean(log_pb),
    )
    folder = file.with_suffix(".run")
    run = train_ranode(card, folder, data)
    chosen = choose_networks(run)
    rule, _ = fold_rules(card, run.transform.names)
    log_ps = cross_fitted(run, chosen, events, rule)
    log_mass = data.log_background - log_mean(log_pb)
    # What is left of both kinds grades, with a mass density extended by the same fit.
    left = []
    for kind, values, taken in zip(pool.kinds, pool.log_pb, rows, strict=True):
        free = pool.window.contains(kind.mass)
        free[taken] = False
        left.append((kind.select(free), values[:, free]))
    rest = concatenate([part for part, _ in left])
    rest_label = np.repeat([0, 1], [len(part) for part, _ in left])
    order = np.argsort(events.mass)
    rest_mass = np.interp(rest.mass, events.mass[order], log_mass[order])
    rest_ratio = (
        log_mean(cross_fitted(run, chosen, rest, rule))
        - rest_mass
        - log_mean(np.concatenate([v for _, v in left], axis=1))
    )
    ratio = log_mean(log_ps) - data.log_background
    every, every_label = np.concatenate([ratio, rest_ratio]), np.concatenate([label, rest_label])
    sic = improvement(every[every_label == 0], every[every_label == 1])
    w = np.array([entry["fraction_fitted"] for entry in chosen.fold_record])
    meta = {
        "level": level, "seed": seed, "background": "generated" if generated else "true", "n": len(events),
        "n_signal": int(label.sum()), "fraction_true": float(label.mean()), "card": card.to_json(),
        "sidebands": data.record["sidebands"], "cpu_seconds": time.process_time() - begin,
        "seconds": time.time() - clock, "left_out": run.counts["left_out"],
    }  # fmt: skip
    partial = file.with_suffix(".partial.npz")
    np.savez_compressed(
        partial, label=label.astype(np.int8), mass=events.mass, x=events.features, fold=rule.fold_of(events),
        log_ps=log_ps, log_pb_members=log_pb, log_pb_mass=log_mass, w=w, w_train=np.array(card.fraction.start),
        rest_label=rest_label.astype(np.int8), rest_log_ratio=rest_ratio, sic=np.array(sic), meta=json.dumps(meta),
    )  # fmt: skip
    partial.replace(file)
    shutil.rmtree(folder)
    return summary(file)


def scan_cost(pool: Pool, folder: Path) -> None:
    """Processor time of ten flows as in the published scan of w, and what all of a scan would take on this machine."""
    card = RanodeCard.model_validate({**json.loads(json.dumps(pool.card.to_json())), "seed": 1000, **SCAN})
    spectrum, _, log_pb, _ = pool.draw(0.004, 1000, False)
    log_pb = log_pb[:, pool.window.contains(spectrum.mass)]
    record = {"file": "scan", "sha256": "0" * 64}
    data = ranode_data(card, spectrum, pool.model, pool.window, record=record, log_features=log_mean(log_pb))
    run_folder = folder / "scan.run"
    begin = time.process_time()
    run = train_ranode(card, run_folder, data)
    seconds = time.process_time() - begin
    networks, epochs, computed = 0, [], 0
    for index in range(len(card.fraction.starts)):
        stack = run.stack(index)
        outcome = stack.outcome() or {}
        computed += card.folds.n_folds * len(stack.history())
        epochs += [min(kept[0] + 1 + card.optimiser.patience, card.optimiser.epochs) for kept in outcome["epochs"]]
        networks += card.folds.n_folds
    shutil.rmtree(run_folder)
    each = seconds / computed
    print(
        f"{networks} flows of the published scan: {seconds:.0f} s of processor time for {computed} epochs, {each:.3f} s each; they stop after "
        f"{np.mean(epochs):.0f} epochs on average ({min(epochs)} to {max(epochs)}). {SCANNED} flows: {SCANNED * each * np.mean(epochs) / 3600:.1f} h, "
        f"and {SCANNED * each * card.optimiser.epochs / 3600:.1f} h without early stopping"
    )


def summary(file: Path) -> dict:
    """Numbers of a stored data set."""
    with np.load(file) as arrays:
        meta = json.loads(str(arrays["meta"]))
        log_pb = log_mean(arrays["log_pb_members"]) + arrays["log_pb_mass"]
        ratio = log_mean(arrays["log_ps"]) - log_pb
        gains = [
            float(np.sum(np.logaddexp(np.log1p(-w), np.log(w) + ratio[arrays["fold"] == k])))
            for k, w in enumerate(arrays["w"])
        ]
        return {
            "level": meta["level"], "seed": meta["seed"], "background": meta["background"], "n": meta["n"], "n_signal": meta["n_signal"],
            "w_true": meta["fraction_true"], "w": arrays["w"].tolist(), "gains": gains, "sic": arrays["sic"].tolist(),
            "cpu_seconds": meta["cpu_seconds"],
        }  # fmt: skip


def table(folder: Path) -> None:
    """What all stored data sets say together."""
    found = [summary(file) for file in sorted(folder.glob("sb_*_seed_*.npz")) if "partial" not in file.name]
    print(
        "S/B      sets  w true   w fitted (mean, sd)  ln e of one fold  ln e, mean over folds   SIC 1e-3       SIC 3e-3   (sketch)  cpu s"
    )
    for key in sorted({(item["background"], item["level"]) for item in found}, reverse=True):
        sets = [item for item in found if (item["background"], item["level"]) == key and item["seed"] >= 1000]
        if not sets:
            continue
        w = np.array([np.mean(item["w"]) for item in sets])
        gains = np.array([item["gains"] for item in sets])
        together = np.logaddexp.reduce(gains, axis=1) - np.log(gains.shape[1])
        sic = np.array([item["sic"] for item in sets])
        level = key[1]
        spread = sic.std(axis=0, ddof=1) if len(sets) > 1 else np.full(2, np.nan)
        print(
            f"{100 * level:.1f} % {key[0][:4]} {len(sets):4d}  {np.mean([item['w_true'] for item in sets]):.4f}   {w.mean():.4f} +- {w.std():.4f}   "
            f"{gains.mean():10.2f}        {np.median(together):10.2f} (max {together.max():.2f})   "
            + (
                f"{sic[:, 0].mean():.1f} +- {spread[0]:.1f}   {sic[:, 1].mean():.1f} +- {spread[1]:.1f}   ({SKETCH[level]})"
                if level
                else "-"
            )
            + f"  {np.mean([item['cpu_seconds'] for item in sets]):.0f}"
        )


def schedule(count: int, first: int) -> list[tuple[float, int]]:
    """One of each level, then every other data set without signal."""
    result = [(level, first) for level in (0.004, 0.0, 0.017, 0.002, 0.009)]
    seeds = dict.fromkeys(LEVELS, first + 1)
    others = 0
    while len(result) < count:
        level = 0.0 if len(result) % 2 else LEVELS[1:][others % 4]
        others += level > 0.0
        result.append((level, seeds[level]))
        seeds[level] += 1
    return result[:count]


def main() -> None:
    """Go through the schedule, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=Path, metavar="DIR", help="folder of the simulated dijet files")
    parser.add_argument("--output", type=Path, required=True, metavar="SETS", help="folder of the data sets")
    parser.add_argument("--sets", type=int, default=40, help="how many data sets")
    parser.add_argument("--first", type=int, default=1000, help="first seed; below 1000 for tuning")
    parser.add_argument("--levels", type=str, help="only these S/B, comma-separated, one seed after the other")
    parser.add_argument("--background", choices=("true", "generated"), default="true")
    parser.add_argument("--card", type=Path, default=HERE / "card.yaml")
    parser.add_argument("--generator", metavar="MODEL", help="another generator than the card's, and its window")
    parser.add_argument("--scan-cost", action="store_true", help="only measure what a published scan of w costs here")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.scan_cost:
        scan_cost(Pool(arguments.events, arguments.card), arguments.output)
        return
    if not arguments.table:
        pool = Pool(arguments.events, arguments.card, arguments.generator)
        plan = schedule(arguments.sets, arguments.first)
        if arguments.levels:
            levels = [float(text) for text in arguments.levels.split(",")]
            plan = [(levels[i % len(levels)], arguments.first + i // len(levels)) for i in range(arguments.sets)]
        generated = arguments.background == "generated"
        for level, seed in plan:
            mark = "_generated" if generated else ""
            file = arguments.output / f"sb_{level:g}_seed_{seed}{mark}.npz"
            if not file.is_file():
                print(json.dumps(one_set(pool, level, seed, generated, file)), flush=True)
    table(arguments.output)


if __name__ == "__main__":
    main()
