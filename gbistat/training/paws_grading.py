"""Mass shapes, normalisation, reference events and checks of a parametrised ratio, on held-out events only."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations_with_replacement, product
from typing import TYPE_CHECKING

import numpy as np

from gbistat.data.events import Events
from gbistat.terms.shapes.registry import make_shape
from gbistat.training.balance import local_density
from gbistat.training.checks import (
    area_under_curve,
    calibration,
    closure,
    significance_improvement,
)
from gbistat.training.grading import FALSE_POSITIVE_RATE, REPLICAS, MassShapes
from gbistat.training.kappa import effective_size, mean_log_kappa, study_log_kappa
from gbistat.training.mass_shapes import compare_shape, crystal_ball_start, fit_mass_shape
from gbistat.training.paws_dataset import with_masses
from gbistat.training.paws_generated import thinned
from gbistat.training.paws_masses import find_masses

if TYPE_CHECKING:
    from gbistat.terms.network import NetworkTerm
    from gbistat.training.kappa import KappaStudy
    from gbistat.training.paws_card import PawsCard
    from gbistat.training.paws_generated import PawsGenerator
    from gbistat.training.paws_masses import FoundMasses
    from gbistat.training.paws_run import PawsHeldOut
    from gbistat.typing import FloatArray, Json

__all__ = ["PawsGrader", "as_paws_events", "fit_paws_shapes", "log_ratio_rows"]

CALIBRATION_EDGES = (0.0, 1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97, 0.99, 1.0)
CLOSURE_FRACTION = 0.01
MOST_EVENTS = 4000
FEWEST_EVENTS = 30
"""Signal events of a mass point that is graded on its own."""
NODES = 6
DRAWN, DRAWS = 100_000, 5
"""Events of a generator of which reference events are chosen, at a time, and how often."""
REFERENCE_EVENTS = 24_000
SMALLEST_CHANCE = 0.016
COARSE = 20


def fit_paws_shapes(card: PawsCard, held_out: PawsHeldOut) -> MassShapes:
    """Fit the signal's mass shape to its training events of all masses, the background's to the held-out background.

    Raises
    ------
    FitFailed
        If a fit does not converge.
    """
    low, high = card.model.fit_range
    resonance = card.signal.resonance
    domain = (low / resonance, high / resonance)
    start, bounds = crystal_ball_start()
    signal = fit_mass_shape(
        make_shape("double_crystal_ball"), held_out.train_masses / resonance, domain, start, bounds=bounds
    )
    dijet = make_shape("dijet", n_parameters=card.model.background_parameters, sqrt_s=card.model.sqrt_s)
    starts = {parameter.name: parameter.start or 0.1 for parameter in dijet.parameters}
    background = fit_mass_shape(dijet, held_out.background[:, 0], (low, high), starts)
    checks = {
        card.signal.file: compare_shape(signal, held_out.signal[:, 0] / resonance, domain, fitted=0),
        card.background.file: compare_shape(
            background, held_out.background[:, 0], (low, high), fitted=card.model.background_parameters
        ),
    }
    return MassShapes(signal, background, checks)


def log_ratio_rows(term: NetworkTerm, rows: FloatArray, card: PawsCard) -> FloatArray:
    """ln r of each event at its own masses.

    Parameters
    ----------
    term : NetworkTerm
        The ratio.
    rows : array of shape (n, 1 + d + 2)
        Mass, features and masses of the daughters.
    card : PawsCard
        Card of the run.
    """
    d = len(card.features)
    points, point_of = np.unique(rows[:, 1 + d :], axis=0, return_inverse=True)
    order = np.argsort(point_of.ravel(), kind="stable")
    edges = np.searchsorted(point_of.ravel()[order], np.arange(len(points) + 1))
    result = np.empty(len(rows))
    for point, begin, end in zip(points, edges, edges[1:], strict=False):
        chosen = order[begin:end]
        theta = dict(zip(card.masses, point.tolist(), strict=True))
        result[chosen] = term.log_ratio(as_paws_events(rows[chosen], card), **theta)
    return result


def as_paws_events(rows: FloatArray, card: PawsCard) -> Events:
    """Events from rows of mass and features; further columns are left out."""
    units = {item.name: item.unit for item in card.inputs}
    features = rows[:, 1 : 1 + len(card.features)]
    return Events(rows[:, 0], features, card.features, {card.mass: card.unit, **units}, mass_name=card.mass)


def _select(rows: FloatArray, interval: tuple[float, float]) -> FloatArray:
    return rows[(rows[:, 0] >= interval[0]) & (rows[:, 0] < interval[1])]


@dataclass(frozen=True, eq=False)
class PawsGrader:
    """Held-out events of a run, ready to grade a term.

    Parameters
    ----------
    card : PawsCard
        Card of the run.
    held_out : PawsHeldOut
        Its held-out events.
    """

    card: PawsCard
    held_out: PawsHeldOut

    @cached_property
    def background(self) -> FloatArray:
        """Held-out background that grades: in the training range, more of it than in the window and of the same features.

        Where a generator learned from the sidebands, the window that it never saw.
        """
        return _select(self.held_out.background, self.held_out.blind or self.card.train_range)

    @cached_property
    def signal(self) -> FloatArray:
        """Held-out signal of masses that were trained."""
        return _select(self.held_out.signal, self.card.signal_range)

    @cached_property
    def paired(self) -> FloatArray:
        """Held-out background, each event with masses of a signal event."""
        return self._paired(self.background)

    @cached_property
    def normalising(self) -> FloatArray:
        """Background that fixes kappa, with masses: that of the generator if there is one."""
        return self.paired if self.held_out.blind is None else self._paired(self.held_out.generated)

    def _paired(self, rows: FloatArray) -> FloatArray:
        masses = with_masses(rows[:, 1:], self.signal[:, 1:], 1, rng=self._rng(34))
        return np.concatenate([rows[:, :1], masses], axis=1)

    def reference(self) -> FloatArray:
        """Background inside ``model.valid`` that trained nothing: held-out events, or events of the generator."""
        if self.held_out.blind is None:
            return _select(self.held_out.background, self.card.model.valid)
        return self.held_out.generated[: REFERENCE_EVENTS - len(_select(self.signal, self.card.model.valid))]

    def mixed_reference(self, term: NetworkTerm) -> Events:
        r"""Held-out background and signal inside ``model.valid`` whose weights make them stand for background.

        The signal events, with masses from the distribution p, are distributed as :math:`\bar r(x)\, p_b(x)` with
        :math:`\bar r = \sum_j p_j\, r(x; \theta_j)`. The weights

        .. math:: w = \frac{\rho_b(m)}{\rho_b(m) + \rho_s(m)\, \bar r(x)}

        (M. R. Shirts and J. D. Chodera, J. Chem. Phys. 129 (2008) 124105, eq. 9, for two samples) make both together stand for
        the background. A mean of r over background alone is carried by a handful of events at the largest r, if
        there are any, and is mostly too small; signal events with weights of about :math:`1 / \bar r` fill that tail.
        It is only as right as r.
        """
        background, signal = self.reference(), _select(self.signal, self.card.model.valid)
        d = len(self.card.features)
        points, counts = np.unique(signal[:, 1 + d :], axis=0, return_counts=True)
        rows = np.concatenate([background, signal[:, : 1 + d]])
        events = as_paws_events(rows, self.card)
        total = np.full(len(rows), -np.inf)
        for point, count in zip(points, counts, strict=True):
            theta = dict(zip(self.card.masses, point.tolist(), strict=True))
            total = np.logaddexp(total, term.log_ratio(events, **theta) + np.log(count / len(signal)))
        excess = np.log(self._density(signal[:, 0], self.card.signal_range, rows[:, 0]))
        excess -= np.log(self._density(background[:, 0], self.card.model.valid, rows[:, 0]))
        return replace(events, weights=0.5 * (1.0 - np.tanh(0.5 * (excess + total))))

    def generated_reference(self, term: NetworkTerm, generator: PawsGenerator) -> Events:
        """Events of a generator inside ``model.valid``: many drawn, few kept, most of those that look like signal, with weights.

        The chance to be kept is proportional to r at the jets' own masses, never below `SMALLEST_CHANCE`, and the weight is its
        inverse: background, exactly, whatever r; r only says where events are needed.
        """
        rng = self._rng(38)
        kept, weights = [], []
        for _ in range(DRAWS):
            rows = generator.draw(DRAWN, self.card.model.valid, rng=rng)
            chosen, own = thinned(
                self._own_log_ratio(term, rows), REFERENCE_EVENTS // DRAWS, smallest=SMALLEST_CHANCE, rng=rng
            )
            kept.append(rows[chosen])
            weights.append(own)
        total = np.concatenate(weights)
        return replace(as_paws_events(np.concatenate(kept), self.card), weights=total / total.max())

    def _own_log_ratio(self, term: NetworkTerm, rows: FloatArray) -> FloatArray:
        """ln r with the masses of the jets as those of the daughters, on a coarse grid, in either order."""
        card = self.card
        names = card.compare or card.features[:2]
        jets = [rows[:, 1 + card.features.index(name)] for name in names]
        orders = [(0, 1)] if card.symmetric else [(0, 1), (1, 0)]
        found = np.full(len(rows), -np.inf)
        for order in orders:
            theta = np.column_stack([jets[position] for position in order])
            for item, column in zip(card.parameters, theta.T, strict=True):
                step = (item.high - item.low) / COARSE
                np.clip(np.round((column - item.low) / step) * step + item.low, item.low, item.high, out=column)
            found = np.maximum(found, log_ratio_rows(term.without_range_check(), np.column_stack([rows, theta]), card))
        return found

    def _density(self, mass: FloatArray, interval: tuple[float, float], at: FloatArray) -> FloatArray:
        """Local number of events, next to none outside the interval."""
        neighbours = max(1, min(25, mass.size // 4))
        nodes, values = local_density(mass, np.ones(mass.size), interval, neighbours=neighbours)
        inside = (at >= interval[0]) & (at < interval[1])
        return np.where(inside, np.interp(at, nodes, values), np.finfo(float).tiny)

    def parity_rows(self, count: int) -> FloatArray:
        """Held-out events with masses for the comparison of Keras and ONNX: signal up to one half, the rest background."""
        signal = _select(self.signal, self.card.model.valid)[: count // 2]
        background = _select(self.paired, self.card.model.valid)
        return np.concatenate([signal, background[: count - len(signal)]])

    def normalise(self, term: NetworkTerm) -> tuple[KappaStudy, Json]:
        """Study the common ln kappa of a term whose own is 0; the second item is the record for the metadata."""
        masses = slice(1 + len(self.card.features), None)
        values = [
            log_ratio_rows(term.without_range_check(), rows, self.card) for rows in (self.signal, self.normalising)
        ]
        signal, background = (
            (log_odds, np.ones(log_odds.size), rows[:, masses].max(axis=1))
            for log_odds, rows in zip(values, (self.signal, self.normalising), strict=True)
        )
        study = study_log_kappa(signal, background, self._mass_edges(), replicas=REPLICAS, rng=self._rng(35))
        return study, {
            "mean_over_background": vars(study.mean),
            "bridge": vars(study.bridge),
            "bridge_minus_mean": vars(study.difference),
            "agree_within_two_sigma": study.agree,
            "scatter_over_larger_mass": study.scatter,
            "scatter_p_value": study.scatter_p_value,
            "n_signal": int(signal[0].size),
            "n_background": int(background[0].size),
        }

    def grade(self, term: NetworkTerm, reference: Events) -> Json:
        """Checks of a normalised term, as JSON; `reference` are the events that the model will carry."""
        term = term.without_range_check()
        signal, background = (log_ratio_rows(term, rows, self.card) for rows in (self.signal, self.paired))
        ones = [np.ones(values.size) for values in (signal, background)]
        edges = np.linspace(*self.card.train_range, 2 * self.card.model.bins + 1)
        return {
            "held_out": {
                "n_signal": int(signal.size),
                "n_background": int(background.size),
                "auc": area_under_curve(signal, background),
                "calibration": calibration((signal, ones[0]), (background, ones[1]), np.array(CALIBRATION_EDGES)),
            },
            "mean_share_by_mass": [
                row
                for low, high in itertools.pairwise(edges)
                if (row := self._mean_shares(signal, background, (float(low), float(high)))) is not None
            ],
            "nodes": self._nodes(term, reference),
            "masses_never_trained": self._unseen(term, reference),
            "benchmarks": [self._benchmark(term, reference, index) for index in range(len(self.card.benchmarks))],
        }

    def _nodes(self, term: NetworkTerm, reference: Events) -> list[Json]:
        """E_b[r] at nodes over the masses: over background alone, and over the reference events of the model."""
        first, second = (np.linspace(item.low, item.high, NODES) for item in self.card.parameters)
        nodes = combinations_with_replacement(first[::-1], 2) if self.card.symmetric else product(first, second)
        alone = as_paws_events(self.background, self.card)
        weights = np.ones(len(reference)) if reference.weights is None else reference.weights
        rows: list[Json] = []
        for node in nodes:
            theta = {name: float(value) for name, value in zip(self.card.masses, node, strict=True)}
            plain, mixed = term.log_ratio(alone, **theta), term.log_ratio(reference, **theta)
            mean, mean_mixed = np.exp(plain), np.exp(mixed)
            share = weights / np.sum(weights)
            rows.append(
                {
                    **theta,
                    "background": float(np.mean(mean)),
                    "background_sigma": float(np.std(mean) / np.sqrt(mean.size)),
                    "background_effective_size": effective_size(plain, np.ones(plain.size)),
                    "reference": float(share @ mean_mixed),
                    "reference_sigma": float(np.sqrt(share**2 @ (mean_mixed - share @ mean_mixed) ** 2)),
                    "reference_effective_size": effective_size(mixed, weights),
                }
            )
        return rows

    def _unseen(self, term: NetworkTerm, reference: Events) -> list[Json]:
        """Grades at mass points of which no event was trained."""
        rows = _select(self.held_out.unseen, self.card.signal_range)
        d = len(self.card.features)
        points, point_of = np.unique(rows[:, 1 + d :], axis=0, return_inverse=True)
        result: list[Json] = []
        for index, point in enumerate(points):
            own = rows[point_of.ravel() == index]
            if len(own) >= FEWEST_EVENTS:
                result.append(self._at(term, reference, own, point))
        return result

    def _benchmark(self, term: NetworkTerm, reference: Events, index: int) -> Json:
        spec = self.card.benchmarks[index]
        rows = _select(self.held_out.benchmarks[index], self.card.signal_range)
        return {"file": spec.file, **self._at(term, reference, rows, np.array(spec.masses))}

    def _mean_shares(self, signal: FloatArray, background: FloatArray, interval: tuple[float, float]) -> Json | None:
        """Mean of c = r / (1 + r) of each class in a bin of the resonance's mass: flat unless the ratio knows the mass."""
        row: Json = {"low": interval[0], "high": interval[1]}
        samples = (("background", self.paired, background), ("signal", self.signal, signal))
        for name, rows, values in samples:
            c = 0.5 * (1.0 + np.tanh(0.5 * values[(rows[:, 0] >= interval[0]) & (rows[:, 0] < interval[1])]))
            if c.size < 2 and name == "background":
                return None
            if c.size >= 2:
                row[name] = {"n": int(c.size), "mean": float(c.mean()), "sigma": float(c.std() / np.sqrt(c.size))}
        return row

    def _at(self, term: NetworkTerm, reference: Events, signal: FloatArray, point: FloatArray) -> Json:
        theta = dict(zip(self.card.masses, point.tolist(), strict=True))
        values = [term.log_ratio(as_paws_events(rows, self.card), **theta) for rows in (signal, self.background)]
        share = closure(*values, fraction=CLOSURE_FRACTION)
        own = {"background": (values[1], None), "reference": (term.log_ratio(reference, **theta), reference.weights)}
        by_kappa = {}
        for name, (log_ratio, weights) in own.items():
            log_kappa = mean_log_kappa(log_ratio, np.ones(log_ratio.size) if weights is None else weights)
            moved = closure(*(item + log_kappa for item in values), fraction=CLOSURE_FRACTION)
            by_kappa[name] = {"log_kappa": log_kappa, "fitted_over_true": moved.ratio}
        grade = {
            **theta,
            "n_signal": len(signal),
            "n_background": len(self.background),
            "auc": area_under_curve(*values),
            "closure": {"signal_share": share.fraction, "fitted_over_true": share.ratio, "sigma": share.sigma},
            "closure_with_kappa_from": by_kappa,
        }
        found = self._found(term, signal, point)
        if found is not None:
            grade["masses"] = found.to_json()
        if FALSE_POSITIVE_RATE * len(self.background) >= 1:
            grade["significance_improvement"] = significance_improvement(
                *values, false_positive_rate=FALSE_POSITIVE_RATE
            )
        return grade

    def _found(self, term: NetworkTerm, signal: FloatArray, point: FloatArray) -> FoundMasses | None:
        """Where the summed log ratio of signal events is largest."""
        rows = signal[:MOST_EVENTS]
        events = as_paws_events(rows, self.card)
        order = np.argsort(-point) if self.card.symmetric else np.arange(2)
        names = self.card.masses

        def total(masses: FloatArray) -> float:
            return float(term.log_ratio(events, **dict(zip(names, masses.tolist(), strict=True))).sum())

        bounds = [(item.low, item.high) for item in self.card.parameters]
        return find_masses(total, point[order].tolist(), len(rows), bounds)

    def _mass_edges(self) -> FloatArray:
        low = min(item.low for item in self.card.parameters)
        high = max(item.high for item in self.card.parameters)
        return np.linspace(low, high * (1 + 1e-9), self.card.model.bins + 1)

    def _rng(self, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.card.seed, purpose])
