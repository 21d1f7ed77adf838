"""Masses at which a parametrised ratio finds signal events of known masses: what its network has wrong about the masses themselves."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gbistat.typing import FloatArray, Json

__all__ = ["FoundMasses", "find_masses", "mass_shift_table"]

NODES = 5
STEP = 0.06
"""Half width of the first local grids, in ln(mass); the last is half as wide."""
ROUNDS = 4
EDGES = (50.0, 120.0, 250.0, 400.0, 600.0)


@dataclass(frozen=True)
class FoundMasses:
    """Maximum of the summed log ratio of signal events.

    Parameters
    ----------
    shift : (float, float)
        ln(found / true) of each mass.
    sigma : (float, float)
        Standard deviation of one event's ln(mass), from the curvature of the mean; of n events, divided by sqrt(n).
    n_events : int
        Events.
    """

    shift: tuple[float, float]
    sigma: tuple[float, float]
    n_events: int

    def to_json(self) -> Json:
        """Plain data."""
        return {"shift": list(self.shift), "sigma_of_one_event": list(self.sigma), "n_events": self.n_events}


def find_masses(
    total: Callable[[FloatArray], float],
    truth: Sequence[float],
    n_events: int,
    bounds: Sequence[tuple[float, float]],
) -> FoundMasses | None:
    """Maximise a sum of log ratios over two masses, by quadratic functions through local grids.

    Parameters
    ----------
    total : callable
        Sum over the events as a function of the masses, shape (2,).
    truth : sequence of two floats
        Where the search begins.
    n_events : int
        Events in the sum.
    bounds : sequence of two pairs
        Ranges of the masses.

    Returns
    -------
    FoundMasses or None
        None where there is no maximum inside the ranges.
    """
    start = np.log(np.asarray(truth, dtype=np.float64))
    low, high = np.log(np.asarray(bounds, dtype=np.float64)).T
    # The exponential of a logarithm may be just outside.
    ends = np.asarray(bounds, dtype=np.float64).T
    axis = np.linspace(-1.0, 1.0, NODES)
    offsets = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    u, v = offsets.T
    basis = np.column_stack([np.ones_like(u), u, v, u * u, v * v, u * v])
    centre, step, hessian = start, np.full(2, STEP), np.eye(2)
    for number in range(ROUNDS):
        step = np.full(2, STEP if number < ROUNDS - 1 else 0.5 * STEP)
        centre = np.clip(centre, low + step, high - step)
        values = np.array([total(np.clip(np.exp(centre + step * offset), *ends)) for offset in offsets])
        c = np.linalg.lstsq(basis, values, rcond=None)[0]
        hessian = np.array([[2.0 * c[3], c[5]], [c[5], 2.0 * c[4]]])
        if np.linalg.eigvalsh(hessian)[-1] < 0:
            move = -np.linalg.solve(hessian, c[1:3])
        elif number == ROUNDS - 1:
            return None
        else:
            move = np.sign(c[1:3])
        centre = centre + step * np.clip(move, -1.5, 1.5)
    if np.any(centre < low) or np.any(centre > high):
        return None
    variances = np.diag(np.linalg.inv(-hessian)) * step**2
    sigma = np.sqrt(variances * n_events)
    shift = centre - start
    return FoundMasses((float(shift[0]), float(shift[1])), (float(sigma[0]), float(sigma[1])), n_events)


def mass_shift_table(rows: Sequence[tuple[Sequence[float], FoundMasses]], edges: Sequence[float] = EDGES) -> list[Json]:
    """Mean shifts in ranges of the true mass.

    Parameters
    ----------
    rows : sequence of (masses, FoundMasses)
        True masses, and what was found.
    edges : sequence of float
        Ends of the ranges.

    Returns
    -------
    list of dict
        ``which`` mass (0 or 1), range, number of points, mean of the shifts (weights 1 / variance), its error, mean and standard
        deviation of the pulls.
    """
    table: list[Json] = []
    for which in (0, 1):
        for low, high in itertools.pairwise(edges):
            chosen = [
                found for masses, found in rows if low <= masses[which] < high or masses[which] == high == edges[-1]
            ]
            if not chosen:
                continue
            shift = np.array([found.shift[which] for found in chosen])
            error = np.array([found.sigma[which] / np.sqrt(found.n_events) for found in chosen])
            table.append(
                {
                    "which": which,
                    "low": low,
                    "high": high,
                    "points": len(chosen),
                    "shift": float(np.average(shift, weights=error**-2)),
                    "error": float(1.0 / np.sqrt(np.sum(error**-2))),
                    "pull_mean": float(np.mean(shift / error)),
                    "pull_deviation": float(np.std(shift / error)),
                }
            )
    return table
