"""Normalisation and checks of a freshly exported ratio, on held-out events only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gbistat.data.events import Events
from gbistat.terms.density import MassDensity
from gbistat.terms.shapes.registry import make_shape
from gbistat.training.balance import local_density
from gbistat.training.checks import (
    area_under_curve,
    calibration,
    closure,
    mean_ratio_in_bins,
    significance_improvement,
)
from gbistat.training.dataset import balanced_set, core_events
from gbistat.training.kappa import bridge_log_kappa, study_log_kappa
from gbistat.training.mass_shapes import MassFit, compare_shape, crystal_ball_start, fit_mass_shape

if TYPE_CHECKING:
    from gbistat.terms.network import NetworkTerm
    from gbistat.training.card import RatioCard
    from gbistat.training.dataset import ClassifierSet
    from gbistat.training.kappa import KappaStudy
    from gbistat.training.run import HeldOut
    from gbistat.typing import FloatArray, Json

__all__ = ["Grader", "MassShapes", "as_events", "fit_mass_shapes", "rounded"]

REPLICAS = 200
FALSE_POSITIVE_RATE = 1e-3
CLOSURE_FRACTION = 0.005
CALIBRATION_EDGES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)
SHUFFLES = 5
SHARES = (0.01, 0.1, 0.5)


def as_events(x: FloatArray, card: RatioCard) -> Events:
    """Events from raw inputs of shape (n, d) in the order of the card."""
    keep = [column for column in range(x.shape[1]) if column != card.mass_column]
    return Events(
        mass=x[:, card.mass_column],
        features=x[:, keep],
        names=card.features,
        units={item.name: item.unit for item in card.inputs},
        mass_name=card.mass,
    )


@dataclass(frozen=True, eq=False)
class MassShapes:
    """Mass shapes of a model and how well they describe the events.

    Parameters
    ----------
    signal : MassFit
        Double-sided Crystal Ball function, in units of the resonance mass.
    background : MassFit
        Dijet function, in the unit of the mass.
    checks : dict
        Chi-squares, as JSON.
    """

    signal: MassFit
    background: MassFit
    checks: Json


def fit_mass_shapes(card: RatioCard, held_out: HeldOut) -> MassShapes:
    """Fit the signal shape to the first signal's training events, the background's to the held-out background.

    Raises
    ------
    FitFailed
        If a fit does not converge.
    """
    low, high = card.model.fit_range
    crystal_ball = make_shape("double_crystal_ball")
    start, bounds = crystal_ball_start()
    checks: Json = {}
    first = card.signals[0]
    domain = (low / first.resonance, high / first.resonance)
    signal = fit_mass_shape(crystal_ball, held_out.train_masses[0] / first.resonance, domain, start, bounds=bounds)
    for index, spec in enumerate(card.signals):
        scaled = (low / spec.resonance, high / spec.resonance)
        # The sample that was fitted is compared with its held-out part; the others were not seen at all.
        mass = held_out.signals[index][:, card.mass_column] / spec.resonance
        checks[spec.file] = compare_shape(signal, mass, scaled, fitted=0)
    dijet = make_shape("dijet", n_parameters=card.model.background_parameters, sqrt_s=card.model.sqrt_s)
    background_mass = held_out.background[:, card.mass_column]
    starts = {parameter.name: parameter.start or 0.1 for parameter in dijet.parameters}
    background = fit_mass_shape(dijet, background_mass, (low, high), starts)
    checks[card.background.file] = compare_shape(
        background, background_mass, (low, high), fitted=card.model.background_parameters
    )
    return MassShapes(signal, background, checks)


@dataclass(frozen=True, eq=False)
class Grader:
    """Held-out events of a run, ready to grade a term.

    Parameters
    ----------
    card : RatioCard
        Card of the run.
    held_out : HeldOut
        Its held-out events.
    shapes : MassShapes
        Mass shapes of the model.
    """

    card: RatioCard
    held_out: HeldOut
    shapes: MassShapes

    def reference(self) -> FloatArray:
        """Held-out background inside ``model.valid``, raw inputs (n, d)."""
        low, high = self.card.model.valid
        mass = self.held_out.background[:, self.card.mass_column]
        return self.held_out.background[(mass >= low) & (mass < high)]

    def mixed_reference(self, term: NetworkTerm) -> Events:
        r"""Held-out background and signal inside ``model.valid`` whose weights make them stand for background.

        Of n_b background and n_s signal events with local densities :math:`\rho_b(m)` and :math:`\rho_s(m)`, each gets

        .. math::

            w = \frac{\rho_b}{\rho_b + \rho_s r}, \qquad
            \Big\langle \sum w \, \delta(x) \Big\rangle
            = \frac{\rho_b}{\rho_b + \rho_s r} (\rho_b \, p_b + \rho_s \, p_s) = \rho_b \, p_b,

        the weights of the bridge estimator (M. R. Shirts and J. D. Chodera, J. Chem. Phys. 129 (2008) 124105, eq. 9). A
        finite background sample has next to no events at the largest r, where a good part of the signal lies, so that
        signal templates and Asimov sets made of it are poor; signal events, of which there are many, stand in for them
        there with a weight of about :math:`1 / r`. It is only as right as r.

        Returns
        -------
        Events
            With weights between 0 and 1.
        """
        events = self.balanced()
        mass = events.x[:, self.card.mass_column]
        classes = [mass[events.y > 0.5], mass[events.y < 0.5]]
        densities = [
            np.interp(
                mass,
                *local_density(own, np.ones(own.size), self.card.model.valid, neighbours=self.card.balance.neighbours),
            )
            for own in classes
        ]
        unweighted = as_events(events.x, self.card)
        excess = np.log(densities[0] / densities[1]) + term.log_ratio(unweighted)
        return replace(unweighted, weights=0.5 * (1.0 - np.tanh(0.5 * excess)))

    def parity_events(self, count: int) -> Events:
        """Held-out events for the comparison of Keras and ONNX: signal up to one half, the rest background."""
        low, high = self.card.model.valid
        signal = np.concatenate(self.held_out.signals)
        mass = signal[:, self.card.mass_column]
        signal = signal[(mass >= low) & (mass < high)][: count // 2]
        return as_events(np.concatenate([signal, self.reference()[: count - len(signal)]]), self.card)

    def balanced(self) -> ClassifierSet:
        """Held-out signal, moved, and background, balanced in the mass over ``model.valid``."""
        cores = [
            core_events(rows, spec.resonance, self.card)
            for rows, spec in zip(self.held_out.signals, self.card.signals, strict=True)
        ]
        return balanced_set(self.reference(), cores, self.card, self.card.model.valid, copies=1, rng=self._rng(4))

    def normalise(self, term: NetworkTerm) -> tuple[KappaStudy, Json]:
        """Study ln kappa of a term whose own ln kappa is 0; the second item is the record for the metadata."""
        events = self.balanced()
        log_odds = term.log_ratio(as_events(events.x, self.card))
        mass = events.x[:, self.card.mass_column]
        signal, background = (
            (log_odds[mask], events.weights[mask], mass[mask]) for mask in (events.y > 0.5, events.y < 0.5)
        )
        edges = np.linspace(*self.card.model.valid, self.card.model.bins + 1)
        study = study_log_kappa(signal, background, edges, replicas=REPLICAS, rng=self._rng(5))
        record: Json = {
            "mean_over_background": vars(study.mean),
            "bridge": vars(study.bridge),
            "bridge_minus_mean": vars(study.difference),
            "agree_within_two_sigma": study.agree,
            "scatter_over_mass_bins": study.scatter,
            "scatter_p_value": study.scatter_p_value,
            "bridge_at_signal_share": {
                str(share): bridge_log_kappa(signal[:2], background[:2], fraction=share) for share in SHARES
            },
            "n_signal": int(signal[0].size),
            "n_background": int(background[0].size),
        }
        return study, record

    def grade(self, term: NetworkTerm) -> Json:
        """Checks of a normalised term, as JSON."""
        events = self.balanced()
        log_ratio = term.log_ratio(as_events(events.x, self.card))
        mass = events.x[:, self.card.mass_column]
        s, b = events.y > 0.5, events.y < 0.5
        edges = np.linspace(*self.card.model.valid, self.card.model.bins + 1)
        return {
            "balanced": {
                "auc": area_under_curve(log_ratio[s], log_ratio[b]),
                "signal_share_above_log_ratio_7": float(np.average(log_ratio[s] > 7.0, weights=events.weights[s])),
                "significance_improvement": significance_improvement(
                    log_ratio[s], log_ratio[b], false_positive_rate=FALSE_POSITIVE_RATE
                ),
                "calibration": calibration(
                    (log_ratio[s], events.weights[s]), (log_ratio[b], events.weights[b]), np.array(CALIBRATION_EDGES)
                ),
            },
            "mean_ratio_by_mass": mean_ratio_in_bins((log_ratio[s], mass[s]), (log_ratio[b], mass[b]), edges),
            "windows": [self._grade_window(term, index) for index in range(len(self.card.signals))],
            "mass_shapes": self.shapes.checks,
        }

    def _grade_window(self, term: NetworkTerm, index: int) -> Json:
        """Signal as simulated, not moved, in the window around its resonance mass."""
        card, resonance = self.card, self.card.signals[index].resonance
        centre = 0.5 * sum(card.model.window)
        low, high = (
            max(card.model.valid[0], card.model.window[0] * resonance / centre),
            min(card.model.valid[1], card.model.window[1] * resonance / centre),
        )
        signal, background = (
            rows[(rows[:, card.mass_column] >= low) & (rows[:, card.mass_column] < high)]
            for rows in (self.held_out.signals[index], self.reference())
        )
        masses = [rows[:, card.mass_column] for rows in (signal, background)]
        features = [term.log_ratio(as_events(rows, card)) for rows in (signal, background)]
        mass_ratio = self._log_mass_ratio((low, high), resonance)
        full = [values + mass_ratio(mass) for values, mass in zip(features, masses, strict=True)]
        found = closure(full[0], full[1], fraction=CLOSURE_FRACTION)
        shuffled = self._shuffled(signal)
        unmixed = term.log_ratio(as_events(shuffled, card)) + mass_ratio(shuffled[:, card.mass_column])
        without = closure(unmixed, full[1], fraction=CLOSURE_FRACTION)
        signal_full, background_full = ((values, np.ones(values.size)) for values in full)
        edges = np.array([low, high])
        return {
            "resonance": resonance,
            "low": low,
            "high": high,
            "n_signal": len(signal),
            "n_background": len(background),
            "auc": area_under_curve(*features),
            "significance_improvement": significance_improvement(*features, false_positive_rate=FALSE_POSITIVE_RATE),
            "mean_ratio_with_mass": mean_ratio_in_bins((full[0], masses[0]), (full[1], masses[1]), edges)[0],
            "log_kappa_shift": {
                str(share): bridge_log_kappa(signal_full, background_full, fraction=share) for share in SHARES
            },
            "closure": {
                "signal_share": found.fraction,
                "fitted_over_true": found.ratio,
                "sigma": found.sigma,
                "fitted_over_true_without_correlation": without.ratio,
            },
        }

    def _log_mass_ratio(self, window: tuple[float, float], resonance: float) -> _LogMassRatio:
        signal = self.shapes.signal
        theta = signal.array.copy()
        theta[:2] *= resonance  # mean and sigma are in units of the resonance mass
        return _LogMassRatio(
            MassDensity.fixed(signal.density.shape, (window,), theta),
            MassDensity.fixed(self.shapes.background.density.shape, (window,), self.shapes.background.array),
        )

    def _shuffled(self, signal: FloatArray) -> FloatArray:
        """Signal without the correlation of features and mass."""
        rng = self._rng(6)
        rows = np.tile(signal, (SHUFFLES, 1))
        column = self.card.mass_column
        rows[:, column] = np.concatenate([rng.permutation(signal[:, column]) for _ in range(SHUFFLES)])
        return rows

    def _rng(self, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.card.seed, purpose])


@dataclass(frozen=True, eq=False)
class _LogMassRatio:
    """ln p_s(m) / p_b(m) in a window."""

    signal: MassDensity
    background: MassDensity

    def __call__(self, mass: FloatArray) -> FloatArray:
        return self.signal.log_prob(mass, ()) - self.background.log_prob(mass, ())


def rounded(data: object, digits: int = 6) -> object:
    """JSON data with floats of so many significant digits."""
    if isinstance(data, dict):
        return {key: rounded(value, digits) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [rounded(value, digits) for value in data]
    return float(f"{data:.{digits}g}") if isinstance(data, float) else data
