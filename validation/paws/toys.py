"""Toys of a signal of unknown masses in simulated dijets: pulls, coverage and masses. Called by run.py --toys N.

Each toy is a window of 20,000 expected background events and signal of one mass point: random parts, **without replacement**, of held-out simulated background
(part `data` of the split that the model's card records, and what `more_events.py` made) and of signal at masses that trained nothing, with
Poisson counts. So each toy by itself is an honest sample of what the simulation draws from, and its intervals shall cover with their probability; toys
share events, which makes their average less certain than their number says, and nothing else. (Toys drawn with replacement from a pool of N events fluctuate
about the pool instead: sqrt(1 + n / N) times as wide as intervals are. So did an earlier version of this study, 49-60 % for 68 %.)

A quarter of the toys has the benchmark of 500 and 100 GeV, the others go through the random mass points of `more_events.py`. Points with too few events for a
share of signal are left out there. Auxiliary measurements (the sidebands) fluctuate. Networks are evaluated once for each event of the pools and node; toys look that up.
Toys without signal take long (many small minima), and one in ten is made.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
from common import columns_like, model_and_card

from gbistat.data.events import Events, concatenate
from gbistat.data.read import read_events
from gbistat.data.window import MassWindow
from gbistat.errors import GbistatError
from gbistat.fit.build import build_analysis
from gbistat.fit.masses import with_other_events
from gbistat.fit.minimize import fit
from gbistat.fit.result import FitOptions
from gbistat.inference.mass_profile import MirroredProfile, SearchedProfile
from gbistat.inference.profile import profile_interval
from gbistat.likelihood.surface import RatioSurface
from gbistat.terms.store import load_reference
from gbistat.training.splits import read_sample

if TYPE_CHECKING:
    from pathlib import Path

    from gbistat.fit.build import Analysis
    from gbistat.terms.network import NetworkTerm
    from gbistat.typing import FloatArray, IntArray

EXPECTED = 20_000
SHARES = (0.0, 0.003, 0.006, 0.01, 0.02)
"""Injected S/B; without signal, what the pool of background does by itself."""
WITHOUT = 10
"""One toy in this many is made without signal too."""
ROW = "pool_row"
MOST_SIGNAL = 4000
SMALLER = (50.0, 100.0, 200.0, 600.0)
"""Ranges of the smaller mass that are looked at apart, GeV."""
ABOVE = 4.0
"""Standard deviations of a Poisson count above its mean that pools must hold."""


class Remembered:
    """A term that knows its values at all events of a pool, node by node, once they were asked for."""

    def __init__(self, term: NetworkTerm, pool: Events) -> None:
        self.term, self.pool = term, pool
        self.metadata = term.metadata
        self.name = term.name
        self._known: dict[tuple[float, ...], FloatArray] = {}
        self.evaluations = 0
        self.seconds = 0.0

    def log_ratio(self, events: Events, /, **theta: float) -> FloatArray:
        """Values of the pool's events that these are; other events are evaluated."""
        if ROW not in events.names:
            return self.term.log_ratio(events, **theta)
        begin = time.process_time()
        try:
            return self._look_up(events.feature(ROW).astype(np.int64), theta)
        finally:
            self.seconds += time.process_time() - begin

    def _look_up(self, rows: IntArray, theta: dict[str, float]) -> FloatArray:
        key = tuple(theta.values())
        if not all(_on_lattice(value) for value in key):
            return self.term.log_ratio(self.pool.select(rows), **theta)  # a point that never comes again
        values = self._known.setdefault(key, np.full(len(self.pool), np.nan, dtype=np.float32))
        missing = np.unique(rows[np.isnan(values[rows])])
        if missing.size:
            self.evaluations += missing.size
            values[missing] = self.term.log_ratio(self.pool.select(missing), **theta)
        return values[rows].astype(np.float64)


@dataclasses.dataclass(frozen=True, eq=False)
class Pools:
    """Events that toys are drawn from: rows of one set of events in the window."""

    analysis: Analysis
    events: Events
    background: IntArray
    signals: dict[tuple[float, float], IntArray]
    improvement: dict[str, float]
    systematic: tuple[tuple[str, ...], ...] = ()


def pools(
    folder: Path,
    more: Path | None,
    name: str,
    efficiency: float | None,
    rng: np.random.Generator,
    expected: int = EXPECTED,
) -> Pools:
    """Events that trained nothing, and an analysis of as much background as toys have."""
    model, card = model_and_card(name)
    background = read_sample(folder, card.background, card).part("data")
    window = MassWindow(*(model.spec.window or card.model.window))
    inside = background.in_window(window)
    extra = [
        columns_like(read_events(file, features=card.features, mass=card.mass).in_window(window), inside)
        for file in _files(more, "qcd_*.h5")
    ]
    parts, signals = [columns_like(inside, inside), *extra], {}
    n_background = begin = sum(map(len, parts))
    columns = [item.column for item in card.parameters]
    for file in _files(more, "signal_*.h5"):
        own = read_events(file, features=(*card.features, *columns), mass=card.mass).in_window(window)
        point = tuple(sorted((float(own.feature(column)[0]) for column in columns), reverse=True))
        parts.append(columns_like(own, inside))
        signals[point] = np.arange(begin, begin + len(own))
        begin += len(own)
    for item in card.benchmarks:
        own = read_events(folder / item.file, features=card.features, mass=card.mass).in_window(window)
        own = own.select(rng.permutation(len(own))[:MOST_SIGNAL])
        parts.append(columns_like(own, inside))
        signals[tuple(sorted(map(float, item.masses), reverse=True))] = np.arange(begin, begin + len(own))
        begin += len(own)
    everything = concatenate(parts)
    numbered = dataclasses.replace(
        everything,
        features=np.column_stack([everything.features, np.arange(len(everything), dtype=np.float64)]),
        names=(*everything.names, ROW),
        units={**everything.units, ROW: "1"},
    )
    terms = {key: Remembered(term, everything) for key, term in model.terms.items()}
    improvement = {
        f"{a:g}, {b:g}": _improvement(terms, numbered, np.arange(n_background), rows, card.masses, (a, b))
        for (a, b), rows in signals.items()
    }
    # As much of the spectrum as toys expect, for the sidebands and their error.
    scale = expected / len(inside)
    outside = background.select(~window.contains(background.mass))
    copies = np.repeat(np.arange(len(outside)), rng.poisson(scale, len(outside)))
    wide = outside.select(copies)
    wide = dataclasses.replace(
        wide,
        features=np.column_stack([wide.features, np.zeros(len(wide))]),
        names=(*wide.names, ROW),
        units={**wide.units, ROW: "1"},
    )
    nominal = numbered.select(np.sort(rng.choice(n_background, expected, replace=n_background < expected)))
    spec = model.spec
    if efficiency is not None:
        signal = spec.signal.model_copy(update={"efficiency": {"efficiency": efficiency}})
        spec = spec.model_copy(update={"signal_": signal})
    analysis = build_analysis(
        spec,
        concatenate([nominal, wide]),
        window,
        terms=terms,
        pool=load_reference(model),  # type: ignore[arg-type]
    )
    return Pools(
        analysis, numbered, np.arange(n_background), signals, improvement, tuple((k,) for k in spec.signal.efficiency)
    )


def _files(folder: Path | None, pattern: str) -> list[Path]:
    return [] if folder is None else sorted(folder.glob(pattern))


def _most(expected: float) -> float:
    """Events that a pool must hold for Poisson counts of a mean."""
    return expected + ABOVE * float(np.sqrt(expected))


def _on_lattice(mass: float) -> bool:
    """Whether a mass is a node of the lattices, of which the finest has 16 steps in 25 GeV."""
    return abs((mass - 50.0) / 1.5625 - round((mass - 50.0) / 1.5625)) < 1e-4


def _improvement(
    terms: dict[str, Remembered],
    events: Events,
    background: IntArray,
    signal: IntArray,
    names: tuple[str, ...],
    masses: tuple[float, float],
) -> float:
    """Significance improvement at a false positive rate of 1e-3, at the true masses."""
    (term,) = terms.values()
    theta = dict(zip(names, masses, strict=True))
    b, s = (term.log_ratio(events.select(rows), **theta) for rows in (background, signal))
    cut = np.quantile(b, 1.0 - 1e-3)
    return float((s > cut).mean() / np.sqrt((b > cut).mean()))


def one_toy(source: Pools, point: tuple[float, float], share: float, rng: np.random.Generator) -> dict[str, object]:
    """Draw, search, fit, intervals."""
    begin = time.process_time()
    count = rng.poisson(EXPECTED)
    n_signal = rng.poisson(share * EXPECTED)
    rows = np.r_[
        rng.choice(source.background, count, replace=False), rng.choice(source.signals[point], n_signal, replace=False)
    ]
    rows = np.sort(rows)
    events = source.events.select(rows)
    nominal = source.analysis
    if nominal.masses is None:
        raise SystemExit("the model has no free masses")
    for factor in nominal.masses.model.component(nominal.model.signal).factors:
        if isinstance(factor, RatioSurface):
            factor.select(events, source.events, rows)
    truth = {p.name: p.start for p in nominal.masses.model.parameters} | {"n_bkg": float(EXPECTED)}
    # What the network has wrong about strength and masses is there as it is: only statistical measurements are drawn again.
    constraints = [
        constraint.expected(at) if constraint.names in source.systematic else constraint.fluctuate(at, rng=rng)
        for constraint in nominal.masses.model.constraints
        for at in (np.array([truth[name] for name in constraint.names]),)
    ]
    record: dict[str, object] = {
        "point": list(point),
        "share": share,
        "injected": n_signal,
        "expected": share * EXPECTED,
    }
    try:
        analysis = with_other_events(nominal, events, constraints)
        best = fit(analysis.nll).raise_if_invalid()
        known = analysis.masses
        if known is None:
            raise SystemExit("the model has no free masses")
        names = known.names
        found = sorted((best.value(name) for name in names), reverse=True)
        record |= {"mu": best.value("mu"), "error": best.error("mu"), "masses": found}
        record["q0"] = 2.0 * (fit(analysis.nll, fixed={"mu": 0.0, **{n: best.value(n) for n in names}}).nll - best.nll)
        record["interpolation"] = None if known.interpolation is None else known.interpolation.worst
        profile = SearchedProfile(analysis.nll, "mu", known.search, best, known.basins)
        record["q_truth"] = profile.q(share * EXPECTED) if share else None
        record["mu_interval"] = [
            list(s) for s in profile_interval(analysis.nll, "mu", cl=0.6827, profile=profile).segments
        ]
        if share > 0:
            # Ordered masses: the larger is the first in boxes above the diagonal, and the smaller the second.
            upper = [basin for basin in known.basins if basin.mirror is None]
            for name, true in zip(names, point, strict=True):
                mass = SearchedProfile(analysis.nll, name, known.search, best, known.basins, known.scale.get(name))
                record[f"q_{name}"] = mass.q(true)
            record["boxes"] = len(upper)
    except GbistatError as error:
        record["failed"] = str(error)
    record["seconds"] = time.process_time() - begin
    return record


def study(
    folder: Path, more: Path | None, name: str, n_toys: int, checkpoint: Path, efficiency: float | None
) -> list[dict[str, object]]:
    """All toys; those in the checkpoint are not made again."""
    done = [json.loads(line) for line in checkpoint.read_text().splitlines()] if checkpoint.exists() else []
    known = {(row["share"], row["number"]) for row in done if "number" in row}
    source = pools(folder, more, name, efficiency, np.random.default_rng(20))
    if source.background.size < _most(EXPECTED):
        raise SystemExit(
            f"{source.background.size} background events in the window are too few for toys of {EXPECTED} without replacement; make more of "
            "them with validation/paws/more_events.py, and give their folder with --more"
        )
    *others, benchmark = source.signals
    print(
        f"pool: {source.background.size} background events for toys of {EXPECTED}; {len(others)} random mass points of "
        f"{int(np.median([source.signals[p].size for p in others]))} events each, and {source.signals[benchmark].size} of the benchmark",
        flush=True,
    )
    print(
        "significance improvement at 1e-3: " + "; ".join(f"({k}) {v:.1f}" for k, v in source.improvement.items()),
        flush=True,
    )
    # Numbers first, so that a study that is cut short has toys of every share.
    for number in range(n_toys):
        for share in SHARES:
            if (share, number) in known or (share == 0.0 and number % WITHOUT):
                continue
            enough = [p for p in others if source.signals[p].size >= _most(share * EXPECTED)]
            # Of four toys the first is the benchmark; the others take the points in turn.
            turn = number - number // 4 - 1
            point = benchmark if number % 4 == 0 or not enough else enough[turn % len(enough)]
            rng = np.random.default_rng([20, number, round(share * 1e4)])
            record = one_toy(source, point, share, rng) | {"number": number}
            done.append(record)
            with checkpoint.open("a") as file:
                file.write(json.dumps(record) + "\n")
    return done


def speed(folder: Path, name: str, expected: int = 120_000, share: float = 0.006) -> dict[str, float]:
    """Processor time of one full fit with all intervals, networks apart."""
    rng = np.random.default_rng(3)
    source = pools(folder, None, name, None, rng, expected)
    nominal = source.analysis
    if nominal.masses is None:
        raise SystemExit("the model has no free masses")
    point = list(source.signals)[-1]
    rows = np.sort(
        np.r_[
            rng.choice(source.background, rng.poisson(expected)),
            rng.choice(source.signals[point], rng.poisson(share * expected)),
        ]
    )
    events = source.events.select(rows)
    terms = []
    for factor in nominal.masses.model.component(nominal.model.signal).factors:
        if isinstance(factor, RatioSurface):
            factor.select(events, source.events, rows)
            terms.append(factor.term)
    truth = {p.name: p.start for p in nominal.masses.model.parameters} | {"n_bkg": float(expected)}
    constraints = [c.expected(np.array([truth[n] for n in c.names])) for c in nominal.masses.model.constraints]
    with_other_events(nominal, events, constraints)  # evaluates the networks where that is still to be done
    for term in terms:
        term.seconds = 0.0
    begin = time.process_time()
    analysis = with_other_events(nominal, events, constraints)
    best = fit(analysis.nll, options=FitOptions(minimizer="migrad")).raise_if_invalid()
    fitted = time.process_time()
    known = analysis.masses
    if known is None:
        raise SystemExit("the model has no free masses")
    first = None
    for parameter in ("mu", *known.names):
        if first is not None and parameter in known.names and known.exchangeable:
            profile = MirroredProfile(first, parameter)
        else:
            profile = SearchedProfile(analysis.nll, parameter, known.search, best, known.basins)
        first = profile if parameter in known.names and first is None else first
        for cl in (0.6827, 0.95):
            pieces = profile_interval(analysis.nll, parameter, cl=cl, profile=profile).segments
            print(f"  {parameter:<4} {best.value(parameter):8.1f} +- {best.error(parameter):5.1f}  {cl:.2%}: {pieces}")
    end = time.process_time()
    networks = sum(term.seconds for term in terms)
    result = {
        "events": float(len(events)),
        "search and fit, s of processor time": fitted - begin - networks,
        "intervals, s of processor time": end - fitted,
        "full fit, s of processor time": end - begin - networks,
    }
    for label, value in result.items():
        print(f"  {label:<42} {value:9.3g}")
    return result


def table(rows: list[dict[str, object]]) -> dict[str, float]:
    """Print the table; the numbers by name, for the bands."""
    result: dict[str, float] = {}
    groups: dict[tuple[float, str], list[dict[str, object]]] = defaultdict(list)
    for row in rows:
        kind = "benchmark" if row["point"] == [500.0, 100.0] else "parametric"
        groups[float(row["share"]), kind].append(row)  # type: ignore[arg-type]
        groups[float(row["share"]), "all"].append(row)  # type: ignore[arg-type]
    print(
        f"{'S/B %':>6} {'masses':<11} {'toys':>5} {'pull':>13} {'width':>11} {'|dm|':>5} {'cover mu':>9} {'heavier':>8} {'lighter':>8} {'s':>5}"
    )
    for (share, kind), group in sorted(groups.items()):
        good = [row for row in group if "failed" not in row]
        if not good:
            continue
        pull = np.array([(row["mu"] - row["expected"]) / row["error"] for row in good])  # type: ignore[operator]
        seconds = np.mean([row["seconds"] for row in group])
        if share == 0.0:
            print(
                f"{0:6.1f} {kind:<11} {len(group):5d}  median mu {np.median([row['mu'] for row in good]):.1f}, q0 {np.median([row['q0'] for row in good]):.1f}"
            )
            continue
        distance = [abs(a - b) for row in good for a, b in zip(row["masses"], row["point"], strict=True)]  # type: ignore[call-overload]
        cover = [np.mean([row[key] <= 1.0 for row in good]) for key in ("q_truth", "q_m_X", "q_m_Y")]
        n = len(good)
        print(
            f"{100 * share:6.1f} {kind:<11} {len(group):5d} {pull.mean():+6.2f} +- {pull.std() / np.sqrt(n):.2f} "
            f"{pull.std():5.2f} +- {pull.std() / np.sqrt(2 * n):.2f} {np.median(distance):5.1f} "
            + " ".join(f"{100 * c:7.0f}%" for c in cover)
            + f" {seconds:5.1f}"
            + (f"   {len(group) - n} failed" if n < len(group) else "")
        )
        label = f"toys, S/B {100 * share:g} %, {kind}"
        result |= {
            f"{label}: mean pull": float(pull.mean()),
            f"{label}: width": float(pull.std()),
            f"{label}: median |m - truth|": float(np.median(distance)),
        }
        result |= {
            f"{label}: coverage of {w}": float(c) for w, c in zip(("mu", "heavier", "lighter"), cover, strict=True)
        }
    _by_smaller_mass(rows)
    _over_points(rows)
    worst = [row["interpolation"] for row in rows if row.get("interpolation") is not None]
    if worst:
        print(
            f"interpolation, largest shift in errors: median {np.median(worst):.4f}, 95 % {np.quantile(worst, 0.95):.4f}"
        )
    return result


def _over_points(rows: list[dict[str, Any]]) -> None:
    """Print what intervals hold at all S/B together, with errors from the scatter over mass points: toys of one point share what is odd about it."""
    good = [row for row in rows if row["share"] and "failed" not in row]
    points = {tuple(row["point"]) for row in good}
    if len(points) < 2:
        return

    def mean(values: FloatArray) -> tuple[float, float]:
        away = [np.sum((values - values.mean())[[tuple(row["point"]) == point for row in good]]) for point in points]
        spread = np.sqrt(np.sum(np.square(away)) * len(points) / (len(points) - 1)) / len(good)
        return float(values.mean()), float(spread)

    texts = []
    for key, name in (("q_truth", "mu"), ("q_m_X", "the larger mass"), ("q_m_Y", "the smaller mass")):
        held, error = mean(np.array([float(row[key] <= 1.0) for row in good]))
        texts.append(f"{name} {100 * held:.0f} +- {100 * error:.0f} %")
    pulls = np.array([(row["mu"] - row["expected"]) / row["error"] for row in good])
    pull, error = mean(pulls)
    print(
        f"\nall {len(good)} toys of {len(points)} mass points: 68 % intervals hold {', '.join(texts)}; "
        f"pull of mu {pull:+.2f} +- {error:.2f}, width {pulls.std():.2f}"
    )


def _by_smaller_mass(rows: list[dict[str, Any]]) -> None:
    """Print what depends on the smaller mass, and by how much strengths are too large."""
    good = [row for row in rows if row["share"] and "failed" not in row]
    print(
        f"\n{'S/B %':>6} {'smaller mass':>13} {'toys':>5} {'found - true':>13} {'lighter':>8} {'heavier':>8} {'mu / expected':>14}"
    )
    for share in sorted({row["share"] for row in good}):
        for low, high in itertools.pairwise(SMALLER):
            own = [row for row in good if row["share"] == share and low <= row["point"][1] < high]
            if own:
                shift = np.median([row["masses"][1] - row["point"][1] for row in own])
                held = [100 * np.mean([row[key] <= 1.0 for row in own]) for key in ("q_m_Y", "q_m_X")]
                ratio = np.mean([row["mu"] / row["expected"] for row in own])
                print(
                    f"{100 * share:6.1f} {f'{low:g}-{high:g}':>13} {len(own):5d} {shift:+9.1f} GeV {held[0]:7.0f}% {held[1]:7.0f}% {ratio:14.2f}"
                )
