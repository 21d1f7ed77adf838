"""What a parametrised ratio has wrong about masses and strength of a signal, beside statistical errors: measured on held-out events."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import minimize, minimize_scalar, nnls

from gbistat.errors import FitFailed
from gbistat.terms.signal_spec import MassScaleSpec
from gbistat.training.paws_grading import as_paws_events
from gbistat.training.paws_mass_map import TERMS, MassMap, shift_terms
from gbistat.training.paws_masses import find_masses

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gbistat.terms.network import NetworkTerm
    from gbistat.training.paws_card import PawsCard
    from gbistat.training.paws_masses import FoundMasses
    from gbistat.typing import FloatArray, IntArray, Json

__all__ = ["ScaleStudy", "ShiftFit", "fit_shifts", "scale_study", "strength_error"]

CELLS, FEWEST = 6, 60
"""Ranges of either mass, equal in ln(mass), and the signal events that a cell takes."""
FURTHEST = 0.4
"""Largest shift that is looked for, in ln(mass)."""
STARTS = ((0.002, 0.005), (0.01, 0.0005), (0.0005, 0.01))
"""Absolute error, as a share of the mean mass, and relative one, from which the fit of the error starts."""
LARGEST = 0.2
ENOUGH = 3
"""Shifts for each coefficient of a map that may be fitted to them."""


@dataclass(frozen=True, eq=False)
class ScaleStudy:
    """Where a ratio finds held-out signal.

    Parameters
    ----------
    masses : array of shape (cells, 2)
        Mean true masses of the cells.
    cells : tuple of FoundMasses
        What was found in each.
    map : MassMap or None
        The shifts as a function of the masses; ``None`` where there are too few to fit one.
    error : mapping of str to MassScaleSpec
        What is left over, by mass: without a map, the shifts themselves.
    """

    masses: FloatArray
    cells: tuple[FoundMasses, ...]
    map: MassMap | None
    error: Mapping[str, MassScaleSpec]

    def to_json(self) -> Json:
        """Plain data; ``left`` are the shifts that the map leaves."""
        left = np.array([found.shift for found in self.cells]).reshape(-1, 2)
        if self.map is not None:
            left = left - self.map.shifts(self.masses)
        rows = zip(self.masses, self.cells, left, strict=True)
        return {
            "cells": [{"mean_masses": m.tolist(), **found.to_json(), "left": rest.tolist()} for m, found, rest in rows],
            "map": None if self.map is None else self.map.to_json(),
            "error": {name: item.to_json() for name, item in self.error.items()},
        }


def scale_study(
    term: NetworkTerm, signal: FloatArray, card: PawsCard, log_kappa: Callable[[FloatArray], FloatArray] | None = None
) -> ScaleStudy:
    """Shifts of held-out signal in cells of both masses, the map that undoes them, and the error of the mass scale that is left.

    Parameters
    ----------
    term : NetworkTerm
        The ratio, without a check of the ranges of its features, and with room for a shift beside the ranges of its masses.
    signal : array of shape (n, 1 + d + 2)
        Mass, features and masses of the daughters of signal events that trained nothing.
    card : PawsCard
        Card of the run.
    log_kappa : callable, optional
        Normalisation as fits have it, from points of shape (g, 2) to shape (g,): a slope of it moves masses too.

    Returns
    -------
    ScaleStudy
        Without a map where there are fewer than three shifts for each of its coefficients, without errors where there are fewer than two.

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
        found = _common_shift(term, signal, chosen, theta, card, log_kappa) if chosen.size >= FEWEST else None
        if found is not None:
            masses.append(theta[chosen].mean(axis=0))
            cells.append(found)
    mean = np.array(masses).reshape(-1, 2)
    if len(cells) < 2:
        return ScaleStudy(mean, tuple(cells), None, {})
    shift = np.array([found.shift for found in cells])
    error = np.array([np.array(found.sigma) / np.sqrt(found.n_events) for found in cells])
    low = min(item.low for item in card.parameters)
    terms = np.stack([np.stack(shift_terms(mean[:, k], mean[:, 1 - k], low), axis=1) for k in range(2)], axis=1)
    groups = [[0, 1]] if card.symmetric else [[0], [1]]
    if min(mean[:, own].size for own in groups) < ENOUGH * TERMS:
        terms = terms[..., :0]
    fits = [
        fit_shifts(
            mean[:, own].ravel(),
            shift[:, own].ravel(),
            error[:, own].ravel(),
            terms[:, own].reshape(mean[:, own].size, terms.shape[-1]),
        )
        for own in groups
    ]
    both = fits if len(fits) > 1 else fits * 2
    made = None
    if terms.shape[-1]:
        made = MassMap(float(low), (both[0].coefficients, both[1].coefficients))
    return ScaleStudy(mean, tuple(cells), made, {name: fit.error for name, fit in zip(card.masses, both, strict=True)})


def _common_shift(
    term: NetworkTerm,
    signal: FloatArray,
    rows: IntArray,
    theta: FloatArray,
    card: PawsCard,
    log_kappa: Callable[[FloatArray], FloatArray] | None,
) -> FoundMasses | None:
    """Factors on the true masses of some signal events at which their summed log ratio is largest."""
    points, point_of, counts = np.unique(theta[rows], axis=0, return_inverse=True, return_counts=True)
    groups = [as_paws_events(signal[rows[point_of.ravel() == k]], card) for k in range(len(points))]

    def total(factors: FloatArray) -> float:
        moved = points * factors
        ratio = sum(
            float(term.log_ratio(events, **dict(zip(card.masses, masses.tolist(), strict=True))).sum())
            for events, masses in zip(groups, moved, strict=True)
        )
        return ratio + (0.0 if log_kappa is None else float(counts @ log_kappa(moved)))

    ends = (float(np.exp(-FURTHEST)), float(np.exp(FURTHEST)))
    return find_masses(total, (1.0, 1.0), rows.size, [ends, ends])


@dataclass(frozen=True)
class ShiftFit:
    """A map of one mass, and what it leaves over.

    Parameters
    ----------
    coefficients : tuple of float
        Of the terms.
    error : MassScaleSpec
        Scatter beside statistical errors, and the error of the coefficients.
    """

    coefficients: tuple[float, ...]
    error: MassScaleSpec


def fit_shifts(masses: FloatArray, shifts: FloatArray, errors: FloatArray, terms: FloatArray) -> ShiftFit:
    r"""Coefficients of a map, and the error of the mass scale that shifts ask for beside it and their statistical errors.

    Shifts :math:`d_i \sim N(\sum_k c_k f_{ik}, V_i)` with :math:`V_i = (a / m_i)^2 + b^2 + e_i^2`: a meta-regression (S. G. Thompson and S. J. Sharp,
    Stat. Med. 18 (1999) 2693) with a variance that depends on the mass, by restricted maximum likelihood,

    .. math:: -2 \ln L = \sum_i \ln V_i + \ln\det(f^T V^{-1} f) + (d - f \hat c)^T V^{-1} (d - f \hat c).

    The error of the coefficients is added to that of the mass scale, whose form it takes by non-negative least squares.

    Parameters
    ----------
    masses : array of shape (n,)
        True masses.
    shifts, errors : arrays of shape (n,)
        ln(found / true) and its statistical error.
    terms : array of shape (n, p)
        Functions of the masses; p = 0 for an error of the mass scale alone, of which shifts of one sign are a part.

    Raises
    ------
    FitFailed
        If the fit does not converge.
    """
    middle = float(np.mean(masses))
    x = masses / middle

    def solved(theta: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        variance = (theta[0] / x) ** 2 + theta[1] ** 2 + errors**2
        information = (terms.T / variance) @ terms
        return variance, information, np.linalg.solve(information, (terms.T / variance) @ shifts)

    def nll(theta: FloatArray) -> float:
        variance, information, c = solved(theta)
        left = shifts - terms @ c
        return float(0.5 * (np.sum(np.log(variance) + left**2 / variance) + np.linalg.slogdet(information)[1]))

    found = [minimize(nll, start, method="L-BFGS-B", bounds=[(0.0, LARGEST)] * 2) for start in STARTS]
    best = min((item for item in found if item.success), key=lambda item: float(item.fun), default=None)
    if best is None:
        raise FitFailed(f"the error of the mass scale cannot be fitted: {found[0].message}")
    _, information, c = solved(best.x)
    extra = np.einsum("ij,jk,ik->i", terms, np.linalg.inv(information), terms)
    squares = best.x**2 + nnls(np.column_stack([x**-2.0, np.ones(x.size)]), extra)[0]
    absolute, relative = (float(f"{value:.3g}") for value in np.sqrt(squares) * (middle, 1.0))
    return ShiftFit(tuple(float(f"{value:.4g}") for value in c), MassScaleSpec(absolute=absolute, relative=relative))


def strength_error(grades: Sequence[Json]) -> float:
    r"""Relative error of a fitted strength that closure asks for beside its statistical errors.

    Maximum likelihood of fitted over true shares :math:`x_i \sim N(1, \tau^2 + e_i^2)`, as in `fit_shifts` without a map: a common shift
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
