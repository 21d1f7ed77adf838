"""A signal of unknown masses among held-out simulated dijets: strength and masses from the shipped parametrised ratio.

    python validation/paws/run.py --events DIR [--quick]
    python validation/paws/run.py --events DIR --toys 100 --more MORE --checkpoint toys.jsonl [--model DIR] [--efficiency 0.09]
    python validation/paws/run.py --events DIR --speed

Background is the part `data` of the split that the card of `dijet-paws` records (it trained nothing and normalises nothing); 100 events
of masses 500 and 100 GeV are added, of which some 80 fall into 3300-3700 GeV. The fit knows neither number nor masses. One injection is a
demonstration and no measurement of bias or coverage: the bands are wide. ``--quick`` leaves out the intervals of the masses.
The search has nodes 25 GeV apart (``--step``); around the minima they are finer, and the table says what that leaves.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from common import judged, model_and_card, with_nodes

from gbistat.data.events import Events, concatenate
from gbistat.data.read import read_events
from gbistat.data.window import MassWindow
from gbistat.fit.build import build_analysis
from gbistat.fit.minimize import fit
from gbistat.inference.mass_profile import SearchedProfile
from gbistat.inference.profile import profile_interval
from gbistat.terms.model_spec import ParameterSpec
from gbistat.terms.store import load_model, load_reference
from gbistat.training.splits import read_sample

HERE = Path(__file__).parent
MODEL = "dijet-paws"
TRUTH = {"m_X": 100.0, "m_Y": 500.0}
CLOSE = {"m_X": (425.0, 575.0), "m_Y": (50.0, 150.0)}
SIGNAL = "signal_qq_3500_500_100.features.h5"


def mixture(folder: Path, count: int, rng: np.random.Generator) -> tuple[Events, int]:
    """Held-out background with signal among it, and how many signal events are in the window."""
    _, card = model_and_card(MODEL)
    background = read_sample(folder, card.background, card).part("data")
    signal = read_events(folder / SIGNAL, features=card.features, mass=card.mass)
    chosen = signal.select(rng.choice(len(signal), count, replace=False))
    low, high = card.model.window
    inside = int(((chosen.mass >= low) & (chosen.mass < high)).sum())
    return concatenate([background, chosen]), inside


def run_toys(arguments: argparse.Namespace) -> int:
    """Print the tables of the toys; exit code 1 if a number leaves its band."""
    import toys  # beside this file

    if arguments.checkpoint is None:
        raise SystemExit("--toys needs --checkpoint FILE: the study is long")
    rows = toys.study(
        arguments.events, arguments.more, arguments.model, arguments.toys, arguments.checkpoint, arguments.efficiency
    )
    print()
    return int(judged(toys.table(rows), json.loads((HERE / "expected.json").read_text())["toys"]))


def main() -> int:
    """Print the table; exit code 1 if a number leaves its band."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=Path, required=True, metavar="DIR", help="folder of the simulated dijet files")
    parser.add_argument("--quick", action="store_true", help="no intervals of the masses")
    parser.add_argument("--step", type=float, default=25.0, metavar="GEV", help="distance of the nodes")
    parser.add_argument("--close", action="store_true", help="only 425-575 and 50-150 GeV, for small steps")
    parser.add_argument(
        "--toys", type=int, metavar="N", help="N toys for each share of signal instead (validation/paws/toys.py)"
    )
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="toys made so far; the study goes on from there"
    )
    parser.add_argument("--more", type=Path, metavar="MORE", help="folder that more_events.py filled, for toys")
    parser.add_argument("--model", default=MODEL, help="name or folder of the model")
    parser.add_argument("--efficiency", type=float, metavar="SIGMA", help="relative error of the efficiency, for toys")
    parser.add_argument("--speed", action="store_true", help="time of a full fit of 120,000 events instead")
    arguments = parser.parse_args()
    if arguments.speed:
        import toys  # beside this file

        return int(toys.speed(arguments.events, arguments.model)["full fit, s of processor time"] > 10.0)
    if arguments.toys is not None:
        return run_toys(arguments)
    model = load_model(arguments.model)
    spec = with_nodes(model.spec, tuple(TRUTH), arguments.step)
    if arguments.close:
        part = {
            name: ParameterSpec(start=0.5 * (low + high), low=low, high=high) for name, (low, high) in CLOSE.items()
        }
        spec = spec.model_copy(update={"parameters": {**spec.parameters, **part}})
    events, injected = mixture(arguments.events, 100, np.random.default_rng(5))
    begin = time.process_time()
    window = MassWindow(*spec.window) if spec.window else MassWindow(3300.0, 3700.0)
    analysis = build_analysis(spec, events, window, terms=model.terms, pool=load_reference(model))
    networks = time.process_time() - begin
    if analysis.masses is None:
        raise SystemExit(f"{MODEL} has no free masses")
    begin = time.process_time()
    best = analysis.masses.with_scale(fit(analysis.nll).raise_if_invalid())
    print(f"{len(analysis.events)} events in {window}, {injected} of them signal; nodes {arguments.step:g} GeV apart")
    for name in ("mu",) if arguments.quick else ("mu", *TRUTH):
        profile = SearchedProfile(
            analysis.nll, name, analysis.masses.search, best, analysis.masses.basins, analysis.masses.scale.get(name)
        )
        pieces = [profile_interval(analysis.nll, name, cl=cl, profile=profile).segments for cl in (0.6827, 0.95)]
        text = "; ".join(" or ".join(f"[{low:.1f}, {high:.1f}]" for low, high in piece) for piece in pieces)
        print(f"  {name:<4} {best.value(name):7.1f} +- {best.error(name):5.1f}   68.27 and 95 %: {text}")
    if arguments.quick:
        print("  " + ", ".join(f"{name} {best.value(name):.1f} +- {best.error(name):.1f}" for name in TRUTH))
    kappa, interpolation = analysis.masses.kappa, analysis.masses.interpolation
    found = sorted(best.value(name) for name in TRUTH)
    result = {
        "mu / injected": best.value("mu") / injected,
        "lighter mass minus truth, GeV": found[0] - min(TRUTH.values()),
        "heavier mass minus truth, GeV": found[1] - max(TRUTH.values()),
        "q0": float(analysis.masses.search.q0.max()),
        "ln kappa": float(kappa.log_kappa.flat[0]),
        "interpolation, largest shift in errors": interpolation.worst if interpolation else float("nan"),
        "networks, s of processor time": networks,
        "fit and intervals, s of processor time": time.process_time() - begin,
    }
    return int(judged(result, json.loads((HERE / "expected.json").read_text())["run"]))


if __name__ == "__main__":
    sys.exit(main())
