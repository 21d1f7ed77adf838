"""What searches that know more than R-ANODE make of the same data sets: the signal itself, or all of it but two masses.

- *supervised*: `dijet-qq-3500`, a classifier trained on this very signal; q0, local p-value.
- *masses known*: `dijet-paws` at the true masses; q0, local p-value.
- *masses free*: `dijet-paws` over its plane of masses with nodes 25 GeV apart, kappa from its own reference events as in `gbistat fit`; largest q0, with the
  global p-value of toys without signal and, beyond them, of their Euler characteristic (`gbistat scan --toys`).

Like the evidence of a learned signal these use the shape of the events and not their number. Networks are evaluated once for every event of the window;
data sets find theirs by the dijet mass, which no two events share. Labels choose events for toys and for grading, and nothing else.
Data sets hold events that trained `dijet-qq-3500` (40 % of the background, half of the signal) and background that trained `dijet-paws`, which flatters
both a little; their significance improvement is from events that trained neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.special import chdtrc

from gbistat.data.events import Events, concatenate
from gbistat.data.read import read_events
from gbistat.data.window import MassWindow
from gbistat.fit.mass_parameters import mass_ranges
from gbistat.inference.look_elsewhere import look_elsewhere
from gbistat.inference.plane_toys import NullYield, null_maps
from gbistat.likelihood.kappa import normalised_surface
from gbistat.likelihood.theta_grid import grid_of
from gbistat.terms.density import MassDensity
from gbistat.terms.shapes.registry import make_shape
from gbistat.terms.store import load_model, load_reference
from gbistat.training.card import load_card
from gbistat.training.splits import read_sample

if TYPE_CHECKING:
    from pathlib import Path

    from gbistat.terms.store import LoadedModel

WINDOW = (3300.0, 3700.0)
DEDICATED, PAWS = "dijet-qq-3500", "dijet-paws"
FILES = ("qcd.features.h5", "signal_qq_3500_500_100.features.h5")
MASSES = {"m_X": 500.0, "m_Y": 100.0}
RATES = (1e-3, 3e-3)
TOYS = 1000
EXPECTED = 22_446
"""Background events of a data set on average: 60 % of those of the window."""


def peak(model: LoadedModel, mass: np.ndarray) -> np.ndarray:
    """ln of the signal's mass density in the window."""
    spec = model.spec.signal.mass
    shape = make_shape(spec.shape, **spec.options)
    affine = spec.affine([p.name for p in shape.parameters], 0.5 * sum(WINDOW))
    return MassDensity.fixed(shape, (WINDOW,), affine.offset).log_prob(mass, ())


def best_q0(excess: np.ndarray) -> np.ndarray:
    """2 max over w >= 0 of sum ln(1 + w (r - 1)) for r - 1 of shape (nodes, n)."""
    w = np.full(len(excess), 1e-3)
    for _ in range(60):
        score = excess / (1.0 + w[:, None] * excess)
        step = score.sum(axis=1) / np.einsum("ij,ij->i", score, score)
        after = np.clip(w + step, 1e-7, np.minimum(10.0 * w, 0.5))
        done = np.abs(after - w) <= 1e-4 * w
        w = after
        if done.all():
            break
    return 2.0 * np.maximum(np.log1p(w[:, None] * excess).sum(axis=1), 0.0)


class KnownSignals:
    """Ratios of known signals at every event of the window, and the distribution of the largest q0 without signal.

    Parameters
    ----------
    folder : Path
        Simulated dijets.
    density : MassDensity
        Of the background, for toys.
    work : Path, optional
        Folder in which the ratios are kept.
    """

    def __init__(self, folder: Path, density: MassDensity, work: Path | None) -> None:
        self.dedicated, self.paws = load_model(DEDICATED), load_model(PAWS)
        names = tuple(dict.fromkeys((*self.paws.spec.features, *self.dedicated.spec.features)))
        self.window = MassWindow(*WINDOW)
        kinds = [read_events(folder / file, features=names) for file in FILES]
        inside = [self.window.contains(events.mass) for events in kinds]
        events = concatenate([kind.select(mask) for kind, mask in zip(kinds, inside, strict=True)])
        self.signal = np.repeat([False, True], [int(mask.sum()) for mask in inside])
        self.fresh = np.concatenate([mask[rows] for mask, rows in zip(self._untrained(folder), inside, strict=True)])
        self.mass = events.mass
        self.order = np.argsort(events.mass)
        self.log_base = density.log_prob(events.mass, ())
        self.supervised = self.dedicated.terms["qq-500-100"].log_ratio(events) + peak(self.dedicated, events.mass)
        self.paws_peak = peak(self.paws, events.mass)
        self.axes, self.nodes, self.log_r = self._plane(events, density, work)
        truth = [all(abs(m - t) < 1e-6 for m, t in zip(node, MASSES.values(), strict=True)) for node in self.nodes]
        self.truth = truth.index(True)
        self.maps = self._toys(work)

    def _untrained(self, folder: Path) -> list[np.ndarray]:
        """Whether events of either kind trained no network of `dijet-qq-3500` or `dijet-paws`; their splits of background are one."""
        if self.dedicated.directory is None:
            raise SystemExit(f"{DEDICATED} is not on disk")
        card = load_card(self.dedicated.directory / "card.yaml")
        masks = []
        for sample in (card.background, card.signals[0]):
            found = read_sample(folder, sample, card)
            mask = np.ones(len(found.events), dtype=bool)
            mask[found.parts["train"]] = False
            masks.append(mask)
        return masks

    def _plane(
        self, events: Events, density: MassDensity, work: Path | None
    ) -> tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray]:
        """Axes, nodes with m_X >= m_Y (g, 2), and ln of the normalised ratio of features and mass over background, (g, n)."""
        term = self.paws.terms["qq-masses"]
        grid = grid_of(mass_ranges([term], {}))
        nodes = grid.nodes[grid.nodes[:, 0] >= grid.nodes[:, 1]]
        kept = None if work is None else work / "plane.npz"
        if kept is not None and kept.is_file():
            with np.load(kept) as stored:
                return grid.axes, nodes, stored["log_r"]
        reference = load_reference(self.paws)
        if reference is None:
            raise SystemExit(f"{PAWS} has no reference events")
        pool = reference.in_window(self.window)
        log_base = peak(self.paws, pool.mass) - density.log_prob(pool.mass, ())
        _, kappa = normalised_surface(term, grid, pool, log_base)
        shift = kappa.log_kappa.reshape(-1)[grid.nodes[:, 0] >= grid.nodes[:, 1]]
        log_r = np.empty((len(nodes), len(events)), dtype=np.float32)
        for row, node, add in zip(log_r, nodes, shift, strict=True):
            row[:] = term.log_ratio(events, **grid.named(node)) + add + self.paws_peak - self.log_base
        if kept is not None:
            np.savez(kept, log_r=log_r)
        return grid.axes, nodes, log_r

    def _map(self, values: np.ndarray) -> np.ndarray:
        """Values at the nodes, (..., g), as maps over both axes; NaN in the other half."""
        result = np.full((*values.shape[:-1], *(axis.size for axis in self.axes)), np.nan)
        places = tuple(np.abs(axis[None] - self.nodes[:, [k]]).argmin(axis=1) for k, axis in enumerate(self.axes))
        result[(..., *places)] = values
        return result

    def _toys(self, work: Path | None) -> np.ndarray:
        """Maps of q0 without signal, drawn from all true background of the window, shape (toys, n, m)."""
        kept = None if work is None else work / "toys.npz"
        if kept is not None and kept.is_file():
            with np.load(kept) as stored:
                return self._map(stored["q0"])
        ratio = np.exp(self.log_r[:, ~self.signal].astype(np.float64))
        share = np.full(ratio.shape[1], 1.0 / ratio.shape[1])
        q0 = null_maps(ratio, share, NullYield(EXPECTED), TOYS, rng=np.random.default_rng(11))
        if kept is not None:
            np.savez(kept, q0=q0)
        return self._map(q0)

    def statements(self, mass: np.ndarray, density: MassDensity) -> dict[str, float]:
        """q0 and p-values of the three searches in a data set of these events."""
        places = self.order[np.searchsorted(self.mass, mass, sorter=self.order)]
        if np.abs(self.mass[places] - mass).max() > 1e-6:
            raise SystemExit("a data set holds events that are not in these files")
        shift = self.log_base[places] - density.log_prob(mass, ())
        first = float(best_q0(np.expm1(self.supervised[places] - density.log_prob(mass, ()))[None])[0])
        q0 = np.concatenate(
            [best_q0(np.expm1(self.log_r[k : k + 46, places] + shift)) for k in range(0, len(self.nodes), 46)]
        )
        top = int(q0.argmax())
        found = look_elsewhere(self._map(q0), self.maps)
        toys, beyond = found[0], found[-1]
        p_global = toys.p_global if toys.p_global * toys.n_toys >= 10 else beyond.p_global
        known = float(q0[self.truth])
        return {
            "q0 supervised": first,
            "q0 masses known": known,
            "q0 masses free": float(q0[top]),
            "p supervised": _p(first),
            "p masses known": _p(known),
            "p masses free": p_global,
            "m_X": float(self.nodes[top, 0]),
            "m_Y": float(self.nodes[top, 1]),
        }

    def improvements(self) -> dict[str, list[float]]:
        """Significance improvement at two background efficiencies, with its error from bootstraps, of events that trained nothing."""
        rng, result = np.random.default_rng(12), {}
        for name, score in (
            ("supervised", self.supervised - self.log_base),
            ("PAWS at the true masses", self.log_r[self.truth]),
        ):
            b, s = score[self.fresh & ~self.signal], score[self.fresh & self.signal]
            draws = [improvement(rng.choice(b, b.size), rng.choice(s, s.size)) for _ in range(200)]
            result[name] = [*improvement(b, s), *np.std(draws, axis=0)]
        return result


def improvement(background: np.ndarray, signal: np.ndarray) -> list[float]:
    """Signal efficiency over the root of the background's, at two background efficiencies."""
    cuts = np.quantile(background, [1.0 - rate for rate in RATES])
    return [float(np.mean(signal > cut) / np.sqrt(rate)) for cut, rate in zip(cuts, RATES, strict=True)]


def _p(q0: float) -> float:
    return 0.5 * float(chdtrc(1, q0)) if q0 > 0 else 1.0
