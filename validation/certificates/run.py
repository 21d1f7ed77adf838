"""Certificates of the shipped backgrounds: made again, and compared with the ones that the models carry.

    python validation/certificates/run.py --events DIR [--attach] [--output DIR] [--quick]

`dijet-qq-3500`, whose background are reference events, against the sidebands of the events that come with gbistat. `dijet-background`, a
sideband generator, against all simulated sideband events that did not train it (parts 'reference' and 'data' of its split), for a
measurement with as many background events in the window as the shipped events have; the events that trained it are given too, and
refused if one of them were among the tests. Verdicts are compared with those in the models' metadata; --attach replaces these.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from gbistat.config import DEFAULT_MODEL, demo_events
from gbistat.data.events import concatenate
from gbistat.data.read import read_events
from gbistat.terms.certificates import certificate_of
from gbistat.terms.store import load_model
from gbistat.training.background_card import load_background_card
from gbistat.training.splits import read_sample

ROOT = Path(__file__).resolve().parents[2]
GENERATOR = "dijet-background"
WINDOW = ("3300", "3700")


def write_parts(folder: Path, events: Path) -> tuple[Path, Path]:
    """Files of the events that did not train the generator, and of those that did."""
    card = load_background_card(ROOT / "models" / GENERATOR / "card.yaml")
    sample = read_sample(events, card.background, card)
    parts = {"held_out": concatenate([sample.part("reference"), sample.part("data")]), "training": sample.part("train")}
    paths = []
    for name, chosen in parts.items():
        path = folder / f"qcd_{name}.npz"
        np.savez(path, **{chosen.mass_name: chosen.mass}, **{f: chosen.feature(f) for f in chosen.names})
        paths.append(path)
    return paths[0], paths[1]


def expected_events() -> int:
    """Events of the shipped file in the window."""
    mass = read_events(demo_events()).mass
    return int(np.sum((mass >= float(WINDOW[0])) & (mass < float(WINDOW[1]))))


def main() -> int:
    """Print both certificates; exit code 1 if a verdict is not the one that the model carries."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=Path, default=ROOT.parent / "shared" / "data", metavar="DIR")
    parser.add_argument("--attach", action="store_true", help="put the certificates into the models")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write figures and pages there")
    parser.add_argument("--quick", action="store_true", help="3000 events of each kind")
    arguments = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as name:
        held_out, training = write_parts(Path(name), arguments.events)
        for model, options in {
            DEFAULT_MODEL: [],
            GENERATOR: [
                *("--generator", GENERATOR, "--events", str(held_out), "--trained-on", str(training)),
                *("--max-events", "100000", "--expected", str(expected_events())),
            ],
        }.items():
            output = (arguments.output or Path(name)) / model
            command = [
                sys.executable,
                "-m",
                "gbistat",
                "diagnose",
                "--window",
                *WINDOW,
                *options,
                "--output",
                str(output),
            ]
            command += ["--attach"] if arguments.attach else []
            command += ["--max-events", "3000", "--members", "1", "--no-null-run"] if arguments.quick else []
            subprocess.run(command, check=True)
            subprocess.run([sys.executable, "-m", "gbistat", "report", str(output)], check=True)
            carried = certificate_of(load_model(model))
            found = load_result(output)
            same = carried is not None and carried.verdict == found
            failed |= not same
            print(f"{model}: {found}, the model carries {'nothing' if carried is None else carried.verdict}\n")
    return int(failed and not arguments.quick)


def load_result(folder: Path) -> str:
    """Verdict of the certificate in a folder of results."""
    return str(json.loads((folder / "diagnostics.json").read_text(encoding="utf-8"))["verdict"])


if __name__ == "__main__":
    sys.exit(main())
