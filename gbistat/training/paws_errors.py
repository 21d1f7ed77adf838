"""What a parametrised ratio has wrong about masses and strength of a signal, beside statistical errors: measured on held-out events."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import minimize, minimize_scalar

from gbistat.errors import FitFailed
from gbistat.terms.signal_spec import MassScaleSpec
from gbistat.training.paws_grading import as_paws_events
from gbistat.training.paws_masses import find_masses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.terms.network import NetworkTerm
    from gbistat.training.paws_card import PawsCard
    from gbistat.training.paws_masses import FoundMasses
    from gbistat.typing import FloatArray, IntArray, Json

__all__ = ["mass_scale", "scale_study", "strength_error"]

CELLS, FEWEST = 4, 60
"""Ranges of either mass, equal in ln(mass), and the signal events that a cell takes."""
FURTHEST = 0.4
"""Largest shift that is looked for, in ln(mass)."""
STARTS = ((0.002, 0.005), (0.01, 0.0005), (0.0005, 0.01))
"""Absolute error, as a share of the mean mass, and relative one, from which the fit of the error starts."""
LARGEST = 0.2


def scale_study(term: NetworkTerm, signal: FloatArray, card: PawsCard) -> Json:
    """Shifts of held-out signal in cells of both masses, and the error of the mass scale that they ask for.

    Parameters
    ----------
    term : NetworkTerm
        The ratio, without a check of the ranges of its features.
    signal : array of shape (n, 1 + d + 2)
        Mass, features and masses of the daughters of signal events that trained nothing.
    card : PawsCard
        Card of the run.

    Returns
    -------
    dict
        ``cells``, and ``error`` by mass where there are two cells or more.

    Raises
    ------
    FitFailed
        If the fit of the error does not converge.
    """
    d = len(card.features)
    theta = signal[:, 1 + d :]
    if card.symmetric:
        theta = -np.sort(-theta, axis=1)
    edges = [np.geomspace(item.low, item.high * (1.0 + 1e-9), CELLS + 1) for item in card.parameters]
    cell = [np.searchsorted(own, column, side="right") - 1 for own, column in zip(edges, theta.T, strict=True)]
    masses, cells = [], []
    for place in product(range(CELLS), repeat=2):
        chosen = np.flatnonzero((cell[0] == place[0]) & (cell[1] == place[1]))
        found = _common_shift(term, signal, chosen, theta, card) if chosen.size >= FEWEST else None
        if found is not None:
            masses.append(theta[chosen].mean(axis=0))
            cells.append(found)
    result: dict[str, Any] = {
        "cells": [{"mean_masses": mean.tolist(), **found.to_json()} for mean, found in zip(masses, cells, strict=True)]
    }
    if len(cells) > 1:
        mean = np.array(masses)
        shift = np.array([found.shift for found in cells])
        error = np.array([np.array(found.sigma) / np.sqrt(found.n_events) for found in cells])
        columns = [slice(None)] * 2 if card.symmetric else [slice(0, 1), slice(1, 2)]
        result["error"] = {
            name: mass_scale(mean[:, own].ravel(), shift[:, own].ravel(), error[:, own].ravel()).to_json()
            for name, own in zip(card.masses, columns, strict=True)
        }
    return result


def _common_shift(
    term: NetworkTerm, signal: FloatArray, rows: IntArray, theta: FloatArray, card: PawsCard
) -> FoundMasses | None:
    """Factors on the true masses of some signal events at which their summed log ratio is largest."""
    points, point_of = np.unique(theta[rows], axis=0, return_inverse=True)
    groups = [as_paws_events(signal[rows[point_of.ravel() == k]], card) for k in range(len(points))]
    low, high = (np.array([getattr(item, end) for item in card.parameters]) for end in ("low", "high"))

    def total(factors: FloatArray) -> float:
        moved = np.clip(points * factors, low, high)
        return sum(
            float(term.log_ratio(events, **dict(zip(card.masses, masses.tolist(), strict=True))).sum())
            for events, masses in zip(groups, moved, strict=True)
        )

    ends = (float(np.exp(-FURTHEST)), float(np.exp(FURTHEST)))
    return find_masses(total, (1.0, 1.0), rows.size, [ends, ends])


def mass_scale(masses: FloatArray, shifts: FloatArray, errors: FloatArray) -> MassScaleSpec:
    r"""Error of the mass scale that shifts ask for beside their statistical errors.

    Maximum likelihood of shifts :math:`d_i \sim N(0, (a / m_i)^2 + b^2 + e_i^2)`: the random-effects model of meta-analysis (R. DerSimonian
    and N. Laird, Control. Clin. Trials 7 (1986) 177), with a variance that depends on the mass.

    Parameters
    ----------
    masses : array of shape (n,)
        True masses.
    shifts, errors : arrays of shape (n,)
        ln(found / true) and its statistical error.

    Returns
    -------
    MassScaleSpec
        a in the unit of the masses, and b.

    Raises
    ------
    FitFailed
        If the fit does not converge.

    Notes
    -----
    Shifts of one sign count as an error too: masses are not corrected.
    """
    middle = float(np.mean(masses))
    x = masses / middle

    def nll(theta: FloatArray) -> float:
        variance = (theta[0] / x) ** 2 + theta[1] ** 2 + errors**2
        return float(0.5 * np.sum(np.log(variance) + shifts**2 / variance))

    found = [minimize(nll, start, method="L-BFGS-B", bounds=[(0.0, LARGEST)] * 2) for start in STARTS]
    best = min((item for item in found if item.success), key=lambda item: float(item.fun), default=None)
    if best is None:
        raise FitFailed(f"the error of the mass scale cannot be fitted: {found[0].message}")
    absolute, relative = (float(f"{value:.3g}") for value in (best.x[0] * middle, best.x[1]))
    return MassScaleSpec(absolute=absolute, relative=relative)


def strength_error(grades: Sequence[Json]) -> float:
    r"""Relative error of a fitted strength that closure asks for beside its statistical errors.

    Maximum likelihood of fitted over true shares :math:`x_i \sim N(1, \tau^2 + e_i^2)`, as in `mass_scale`: a common shift
    counts as an error too.

    Parameters
    ----------
    grades : sequence of dict
        Checks of a term at mass points of which no event was trained (``masses_never_trained``): closure with kappa from the
        reference events, as in a fit, and its error.

    Returns
    -------
    float
        tau; 0 for fewer than two points.
    """
    if len(grades) < 2:
        return 0.0
    x = np.array([row["closure_with_kappa_from"]["reference"]["fitted_over_true"] for row in grades])
    e = np.array([row["closure"]["sigma"] for row in grades])

    def nll(tau: float) -> float:
        variance = tau**2 + e**2
        return float(0.5 * np.sum(np.log(variance) + (x - 1.0) ** 2 / variance))

    found = minimize_scalar(nll, bounds=(0.0, 2.0), method="bounded", options={"xatol": 1e-5})
    return float(f"{found.x:.2g}") if nll(float(found.x)) < nll(0.0) else 0.0
