"""Make the demonstration events that come with gbistat, and the README beside them.

    python validation/demo/make_events.py --events DIRECTORY_WITH_THE_FEATURE_FILES

The background is the part 'data' of the split that the model's card fixes, so that no event of it trained, normalised
or graded the network; the signal is drawn from the part 'data' of the signal file. There is no label in the output.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from gbistat.data.events import Events, concatenate
from gbistat.data.read import read_events
from gbistat.training.card import BackgroundSample, RatioCard, SignalSample, load_card
from gbistat.training.splits import read_sample

ROOT = Path(__file__).resolve().parents[2]
CARD = ROOT / "models" / "dijet-qq-3500" / "card.yaml"
OUTPUT = ROOT / "gbistat" / "data" / "demo" / "dijets.h5"
COLUMNS = ("m_jj", "m_light", "dm", "tau21_light", "tau21_heavy", "m_heavy", "tau32_light", "tau32_heavy")
"""What the shipped models look at."""
SEED = 35
INJECTED = 60
LOWEST_MASS = 2700.0
WINDOW = (3300.0, 3700.0)


@dataclass(frozen=True)
class Counts:
    background: int
    background_in_window: int
    signal: int
    signal_in_window: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=Path, required=True, help="folder with the feature files named in the card")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="file to write; README.md is written beside it")
    options = parser.parse_args()
    card = load_card(CARD)
    table, counts = mix(card, options.events)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_frame(options.output, table)
    (options.output.parent / "README.md").write_text(readme(card, counts, options.output.name), encoding="utf-8")
    print(f"{options.output}: {len(table)} events, {options.output.stat().st_size / 1e6:.2f} MB; {counts}")
    return 0


def mix(card: RatioCard, folder: Path) -> tuple[np.ndarray, Counts]:
    """Background and injected signal, shuffled: float32, one column a name of COLUMNS."""
    rng = np.random.default_rng([SEED, card.seed])
    background = above(held_out(card, folder, card.background))
    available = above(held_out(card, folder, card.signals[0]))
    signal = available.select(np.sort(rng.choice(len(available), size=INJECTED, replace=False)))
    counts = Counts(len(background), in_window(background), len(signal), in_window(signal))
    events = concatenate([background, signal])
    table = events.matrix(COLUMNS).astype(np.float32)
    return table[rng.permutation(len(table))], counts


def held_out(card: RatioCard, folder: Path, sample: BackgroundSample | SignalSample) -> Events:
    """Part 'data' of a file with every column, also those that the card's network does not look at."""
    rows = read_sample(folder, sample, card).parts["data"]
    return read_events(folder / sample.file, features=COLUMNS[1:], mass=card.mass, unit=card.unit).select(rows)


def above(events: Events) -> Events:
    return events.select(events.mass > LOWEST_MASS)


def in_window(events: Events) -> int:
    return int(np.sum((events.mass >= WINDOW[0]) & (events.mass < WINDOW[1])))


def write_frame(path: Path, table: np.ndarray) -> None:
    """pandas "fixed" layout, readable by pandas.read_hdf and by h5py alone."""
    empty = h5py.Empty(np.dtype("S1"))
    with h5py.File(path, "w", libver=("earliest", "v108"), track_order=False) as file:
        describe(file, CLASS="GROUP", VERSION="1.0", PYTABLES_FORMAT_VERSION="2.1", TITLE=empty)
        group = file.create_group("df")
        describe(
            group,
            CLASS="GROUP",
            VERSION="1.0",
            TITLE=empty,
            pandas_type="frame",
            encoding="UTF-8",
            errors="strict",
            axis0_variety="regular",
            axis1_variety="regular",
            block0_items_variety="regular",
            ndim=np.int64(2),
            nblocks=np.int64(1),
        )
        names = np.array([name.encode() for name in COLUMNS])
        for key, values, kind in (
            ("axis0", names, "string"),
            ("axis1", np.arange(len(table), dtype=np.int64), "integer"),
            ("block0_items", names, "string"),
            ("block0_values", table, None),
        ):
            data = group.create_dataset(key, data=values, compression="gzip", compression_opts=9, shuffle=True)
            describe(data, CLASS="CARRAY", VERSION="1.1", TITLE=empty, transposed=np.uint8(1))
            if kind is not None:
                describe(data, kind=kind, name=np.bytes_("N."))  # how PyTables writes None
            if kind == "string":
                describe(data, nan_rep="nan")


def describe(node: h5py.HLObject, **attributes: object) -> None:
    for key, value in attributes.items():
        if isinstance(value, str):
            # PyTables gives text back for fixed-length UTF-8 only, and bytes for ASCII.
            node.attrs.create(key, value.encode(), dtype=h5py.string_dtype("utf-8", len(value)))
        else:
            node.attrs[key] = value


def readme(card: RatioCard, counts: Counts, name: str) -> str:
    return f"""# Demonstration events

`{name}` holds {counts.background + counts.signal} simulated dijet events in the pandas "fixed" HDF5 layout (key `df`, float32): `pandas.read_hdf` and
`gbistat events show` read it. Columns: {", ".join(f"`{column}`" for column in COLUMNS)}; masses in GeV. There is no label.

It was made by `validation/demo/make_events.py` (seed {SEED}, together with the seed {card.seed} of the splits in
`models/{card.name}/card.yaml`) from simulated events with the selection and the layout of the LHC Olympics R&D data
(Pythia 8, parametrised detector, leading jet pT > 1200 GeV, R = 1.0):

| what | events above {LOWEST_MASS:g} GeV | in {WINDOW[0]:g}-{WINDOW[1]:g} GeV |
|---|---|---|
| background: part `data` ({card.background.split.data:.0%}) of `{card.background.file}` | {counts.background} | {counts.background_in_window} |
| injected signal: from the part `data` of `{card.signals[0].file}` | {counts.signal} | {counts.signal_in_window} |

The signal is a resonance of {card.signals[0].resonance:g} GeV that decays to X (500 GeV) and Y (100 GeV), each to two quarks. None of these
events trained, normalised or graded the model `{card.name}`, or trained or normalised `dijet-paws`, whose split of the background is the same. The true
answer of `gbistat limits --window {WINDOW[0]:g} {WINDOW[1]:g}` on this file is therefore mu = {counts.signal_in_window}.
"""


if __name__ == "__main__":
    sys.exit(main())
