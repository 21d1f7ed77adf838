"""More simulated events in the window than come with the data: background, and signal at masses that no training has seen.

    pip install pythia8mc==8.317.2 fastjet pandas tables
    python validation/paws/more_events.py --tool generate_dijets.py --output MORE --background 30000 --points 12 [--seed 1]

Toys of 20,000 background events take more of it than the held-out part of `qcd.features.h5` has in 3300-3700 GeV, and toys of a strong signal take
more events of one mass point than the 110 of `signal_qq_parametric.features.h5`. `--tool` is the program that those files were made with: the detector, jets,
N-subjettiness and columns are its own. Background in a window is made cheaper by one thing that leaves the window's events as they are: events whose partons
are far from it (a dijet mass outside 3000-4800 GeV, a leading jet below 1080 GeV) are dropped before hadronisation. About 0.2 s of processor time an event.
(A cut on the mass of the hard process would be cheaper still and wrong: 6 % of the window's events have less than 2750 GeV there, and they are those with
the heaviest jets, since radiation that a jet swallows adds to the dijet mass.)

Files: `qcd_SEED.h5` and `signal_SEED_POINT.h5`, in the layout of the data. `run.py --toys N --more MORE` takes all that are there.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

WINDOW = (3300.0, 3700.0)
PARTONS, LEADING = (3000.0, 4800.0), 1080.0
LEADING_JET, CENTRAL = 1200.0, 2.5
MASSES = (60.0, 590.0)
EVERY = 1000
"""Events after which those made so far are written."""


def load(tool: Path) -> Any:
    """The program that made the data, as a module."""
    spec = importlib.util.spec_from_file_location("generate_dijets", tool)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{tool} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(tool: Any, rows: list[list[float]], file: Path) -> None:
    """Table of events, whole or not at all."""
    import pandas as pd

    partial = file.with_suffix(".partial")
    table = pd.DataFrame(np.array(rows, np.float32), columns=tool.COLUMNS)
    table.to_hdf(partial, key="df", mode="w", complevel=5)
    partial.replace(file)


def dijet_mass(jets: list[Any]) -> float:
    """Mass of two jets, each with an energy from its momentum and its mass."""
    momenta = np.array([(jet.px(), jet.py(), jet.pz()) for jet in jets])
    energy = np.sqrt(np.sum(momenta**2, axis=1) + [max(jet.m(), 0.0) ** 2 for jet in jets]).sum()
    return float(np.sqrt(max(energy**2 - np.sum(momenta.sum(axis=0) ** 2), 0.0)))


def background(tool: Any, count: int, seed: int, file: Path) -> None:
    """QCD dijets in the window."""
    import fastjet
    import pythia8mc as pythia8

    rng = np.random.default_rng(seed)
    pythia = pythia8.Pythia("", False)
    for line in (
        "Beams:eCM = 13000.", "Random:setSeed = on", f"Random:seed = {int(rng.integers(1, 9e8))}", "Print:quiet = on",
        "HardQCD:all = on", "PhaseSpace:pTHatMin = 1000", "HadronLevel:all = off",
    ):  # fmt: skip
        pythia.readString(line)
    if not pythia.init():
        raise SystemExit("Pythia did not initialise")

    def two_jets(particles: list[Any]) -> tuple[Any, list[Any]]:
        clustering = fastjet.ClusterSequence(particles, tool.JET)  # must outlive its jets
        return clustering, fastjet.sorted_by_pt(clustering.inclusive_jets(20.0))[:2]

    rows: list[list[float]] = []
    while len(rows) < count:
        if not pythia.next():
            continue
        partons = [
            fastjet.PseudoJet(p.px(), p.py(), p.pz(), p.e())
            for p in pythia.event
            if p.isFinal() and p.pT() > 0.5 and abs(p.eta()) < 2.7
        ]
        _kept, jets = two_jets(partons)
        if len(jets) < 2 or jets[0].pt() <= LEADING or not PARTONS[0] < dijet_mass(jets) < PARTONS[1]:
            continue
        if not pythia.forceHadronLevel():
            continue
        _kept, jets = two_jets(tool.detected(pythia.event, rng))
        if len(jets) < 2 or jets[0].pt() < LEADING_JET or any(abs(jet.eta()) > CENTRAL for jet in jets):
            continue
        if not WINDOW[0] <= dijet_mass(jets) < WINDOW[1]:
            continue
        values = [
            v
            for jet in jets
            for v in (jet.px(), jet.py(), jet.pz(), max(jet.m(), 0.0), *tool.subjettiness(list(jet.constituents())))
        ]
        rows.append([*values, 0.0, 0.0, 0.0])
        if len(rows) % EVERY == 0:
            print(f"{file.name}: {len(rows)} of {count}", flush=True)
            write(tool, rows, file)
    write(tool, rows, file)


def signal(tool: Any, masses: tuple[float, float], count: int, seed: int, file: Path) -> None:
    """Events of one mass point, of any dijet mass."""
    rng = np.random.default_rng(seed)
    pythia = tool.generator("signal", int(rng.integers(1, 9e8)), 3500.0, *masses, False, 1000.0)
    rows: list[list[float]] = []
    while len(rows) < count:
        if pythia.next() and (jets := tool.dijet(tool.detected(pythia.event, rng))):
            rows.append([*jets, *masses, 1.0])
    write(tool, rows, file)


def main() -> None:
    """Make what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", type=Path, required=True, help="generate_dijets.py, which made the data")
    parser.add_argument("--output", type=Path, required=True, metavar="MORE", help="folder of the files")
    parser.add_argument("--background", type=int, default=0, help="background events")
    parser.add_argument("--points", type=int, default=0, help="mass points of signal")
    parser.add_argument(
        "--events", type=int, default=1600, help="signal events of each, of which 3 of 4 are in the window"
    )
    parser.add_argument("--seed", type=int, default=1, help="another seed makes other files")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    tool = load(arguments.tool)
    points = np.sort(np.random.default_rng(arguments.seed).uniform(*MASSES, (arguments.points, 2)), axis=1)[:, ::-1]
    for number, (heavier, lighter) in enumerate(points.round(1).tolist()):
        file = arguments.output / f"signal_{arguments.seed}_{number}.h5"
        if not file.exists():
            print(f"{file.name}: {arguments.events} events of {heavier}, {lighter} GeV", flush=True)
            signal(tool, (heavier, lighter), arguments.events, 1000 * arguments.seed + number, file)
    if arguments.background:
        background(tool, arguments.background, arguments.seed, arguments.output / f"qcd_{arguments.seed}.h5")


if __name__ == "__main__":
    main()
