r"""From local to global significance, where a signal was searched for at many masses.

At ``mu = 0`` a mass has no meaning, so that the largest of many q0 is not a chi2 variable. Three ways to its distribution:

- brute force: the largest q0 of toys without signal, no assumption, but p-values below ``1 / n_toys`` are out of reach;
- one mass: the mean number of up-crossings of a low level, measured on a few toys and carried to a high one,

  .. math:: p(u) \approx p_{local}(u) + \langle N(u_0) \rangle e^{-(u - u_0)/2},

  Eqs. (2) and (4) of E. Gross and O. Vitells, arXiv:1005.1891, for one degree of freedom; an upper bound that gets sharp for large u;
- two masses: the mean Euler characteristic of the set where q0 exceeds a level,

  .. math:: p(u) \approx E[\varphi(A_u)] = p_{local}(u) + e^{-u/2} (N_1 + \sqrt{u} N_2),

  Eq. (9) of O. Vitells and E. Gross, arXiv:1105.4355, with N_1 and N_2 from its mean at two levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import EventsError, OptionError
from gbistat.inference.asymptotics import p_from_q0, z_from_p
from gbistat.inference.coverage import clopper_pearson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.typing import BoolArray, FloatArray, IntArray, Json

__all__ = [
    "GlobalSignificance",
    "euler_characteristic",
    "global_from_crossings",
    "global_from_euler",
    "global_from_toys",
    "look_elsewhere",
    "upcrossings",
]

LEVEL = 0.5
LEVELS = (0.5, 2.0)
"""Low levels, where toys cross often."""


@dataclass(frozen=True)
class GlobalSignificance:
    """Significance of the largest excess of a search.

    Parameters
    ----------
    method : str
        "toys", "up-crossings" or "euler-characteristic".
    q_max : float
        Largest q0 of the data.
    p_local, z_local : float
        As if its mass had been the only one looked at (asymptotically).
    p_global : float
        Probability of an excess as large anywhere in the search.
    p_low, p_high : float
        Its 68.27 % Monte Carlo interval.
    z_global : float
        The same as a number of standard deviations, one-sided.
    n_toys : int
        Background-only toys behind it.
    notes : tuple of str
        What a reader must know.
    """

    method: str
    q_max: float
    p_local: float
    z_local: float
    p_global: float
    p_low: float
    p_high: float
    z_global: float
    n_toys: int
    notes: tuple[str, ...] = ()

    @property
    def trials(self) -> float:
        """Trial factor: global over local p-value."""
        return self.p_global / self.p_local if self.p_local > 0 else math.inf

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "method": self.method,
            "q_max": self.q_max,
            "p0_local": self.p_local,
            "z_local": self.z_local,
            "p0_global": self.p_global,
            "p0_global_interval": [self.p_low, self.p_high],
            "z_global": self.z_global,
            "trials": self.trials,
            "n_toys": self.n_toys,
            "notes": list(self.notes),
        }


def upcrossings(q: FloatArray, level: float) -> IntArray:
    """Up-crossings of a level along the last axis, one count a scan.

    Parameters
    ----------
    q : array of shape (..., n)
        Scans on a grid fine enough that none crosses twice between neighbours.
    level : float
        The level.

    Examples
    --------
    >>> int(upcrossings(np.array([0.0, 2.0, 0.5, 3.0, 4.0]), 1.0))
    2
    """
    above = np.asarray(q) > level
    count: IntArray = (above[..., 1:] & ~above[..., :-1]).sum(axis=-1)
    return count


def euler_characteristic(q: FloatArray, level: float) -> IntArray:
    """Euler characteristic of the set of grid points above a level, one number a map.

    Points count 1, pairs of neighbours along an axis -1, squares of four +1: the number of connected pieces minus the
    number of their holes.

    Parameters
    ----------
    q : array of shape (..., n, m)
        Maps; NaN outside of the searched region.
    level : float
        The level.

    Examples
    --------
    >>> ring = np.array([[2.0, 2.0, 2.0], [2.0, 0.0, 2.0], [2.0, 2.0, 2.0]])
    >>> int(euler_characteristic(ring, 1.0))
    0
    """
    with np.errstate(invalid="ignore"):
        v = np.asarray(q) > level
    across, along = v[..., 1:, :] & v[..., :-1, :], v[..., :, 1:] & v[..., :, :-1]
    squares = across[..., :, 1:] & across[..., :, :-1]
    count: IntArray = (
        v.sum(axis=(-2, -1)) - across.sum(axis=(-2, -1)) - along.sum(axis=(-2, -1)) + squares.sum(axis=(-2, -1))
    )
    return count


def global_from_toys(q_max: float, toys: FloatArray) -> GlobalSignificance:
    """Share of background-only toys whose largest q0 is at least that of the data.

    Parameters
    ----------
    q_max : float
        Largest q0 of the data.
    toys : array of shape (n_toys, ...)
        Maps or scans of toys, over all masses or windows that were searched; toys with a NaN where others have numbers are
        left out and counted in a note.

    Raises
    ------
    EventsError
        If there is no usable toy.
    OptionError
        If `q_max` is negative or not finite.
    """
    flat, notes = _usable(toys)
    _check(q_max)
    largest = np.nanmax(flat, axis=1)
    k, n = int((largest >= q_max).sum()), int(largest.size)
    low, high = clopper_pearson(k, n)
    p = k / n
    if k == 0:
        p = high
        notes = (*notes, f"no toy reaches q0 = {q_max:.3g}: the global p-value is below {high:.2g} (68.27 %)")
    return _result("toys", q_max, p, low, high, n, notes)


def global_from_crossings(q_max: float, toys: FloatArray, *, level: float = LEVEL) -> GlobalSignificance:
    """Gross and Vitells: up-crossings of a low level, for one mass.

    Parameters
    ----------
    q_max : float
        Largest q0 of the data.
    toys : array of shape (n_toys, n)
        q0 of background-only toys along a fine grid of masses.
    level : float, default 0.5
        Low level.

    Raises
    ------
    EventsError
        If there is no usable toy.
    OptionError
        If `q_max` is below the level, or `level` not above 0.

    Notes
    -----
    Needs a smooth scan: q0 of windows that share no events jumps from one to the next, and only toys (or, for independent
    windows, ``1 - (1 - p)^n``) are right there.
    """
    _check(q_max, level)
    flat, notes = _usable(toys)
    if np.asarray(toys).ndim != 2:
        raise OptionError(f"up-crossings need scans of shape (toys, masses), not {np.asarray(toys).shape}")
    counts = upcrossings(flat, level)
    n = counts.size
    factor = math.exp(-0.5 * (q_max - level))
    # The counts are small and not quite Poisson; their own spread is the error.
    mean, error = float(counts.mean()), _error(counts.astype(np.float64))
    p_local = p_from_q0(q_max)
    low, high = max(mean - error, 0.0), mean + error
    p, p_low, p_high = (min(p_local + factor * count, 1.0) for count in (mean, low, high))
    return _result("up-crossings", q_max, p, p_low, p_high, n, notes)


def global_from_euler(q_max: float, toys: FloatArray, *, levels: tuple[float, float] = LEVELS) -> GlobalSignificance:
    """Vitells and Gross: the mean Euler characteristic at two low levels, for two masses.

    Parameters
    ----------
    q_max : float
        Largest q0 of the data.
    toys : array of shape (n_toys, n, m)
        q0 of background-only toys on a fine grid of two masses; NaN outside of the searched region.
    levels : tuple of 2 float
        Two different low levels.

    Raises
    ------
    EventsError
        If there is no usable toy.
    OptionError
        If the levels are equal, not above 0, or `q_max` is below them.
    """
    if levels[0] == levels[1]:
        raise OptionError(f"two different levels are needed, not {levels[0]:g} twice")
    for level in levels:
        _check(q_max, level)
    maps = np.asarray(toys, dtype=np.float64)
    if maps.ndim != 3:
        raise OptionError(f"the Euler characteristic needs maps of shape (toys, n, m), not {maps.shape}")
    flat, notes = _usable(maps)
    maps = flat.reshape(-1, *maps.shape[1:])
    n = maps.shape[0]
    phi = np.stack([euler_characteristic(maps, level) for level in levels]).astype(np.float64)
    # E[phi(u)] - p_local(u) = exp(-u/2) (N1 + sqrt(u) N2) at both levels.
    system = np.array([[math.exp(-0.5 * u), math.exp(-0.5 * u) * math.sqrt(u)] for u in levels])
    excess = phi.mean(axis=1) - np.array([p_from_q0(u) for u in levels])
    row = math.exp(-0.5 * q_max) * np.array([1.0, math.sqrt(q_max)]) @ np.linalg.inv(system)
    p_local = p_from_q0(q_max)
    mean, error = float(row @ excess), _error(row @ phi)
    if mean + error <= 0.0:
        notes = (*notes, "the Euler characteristics of the toys give no positive correction; throw more toys")
    p, low, high = (min(max(p_local + x, p_local), 1.0) for x in (mean, mean - error, mean + error))
    return _result("euler-characteristic", q_max, p, low, high, n, notes)


def look_elsewhere(observed: FloatArray, toys: FloatArray) -> tuple[GlobalSignificance, ...]:
    """Global significance of a scan or a map, by brute force and by the estimate for its dimension, side by side.

    Parameters
    ----------
    observed : array of shape (n,) or (n, m)
        q0 of the data; NaN outside of the searched region.
    toys : array of shape (n_toys, n) or (n_toys, n, m)
        q0 of background-only toys on the same grid.

    Returns
    -------
    tuple of GlobalSignificance
        From toys first.

    Raises
    ------
    EventsError
        If there is no usable toy.
    OptionError
        If shapes differ or the largest q0 is below the low levels of the estimates.
    """
    data, many = np.asarray(observed, dtype=np.float64), np.asarray(toys, dtype=np.float64)
    if many.shape[1:] != data.shape or data.ndim not in (1, 2) or np.isnan(data).all():
        raise OptionError(f"a search of shape {data.shape} and toys of shape {many.shape} do not fit together")
    q_max = float(np.nanmax(data))
    brute = global_from_toys(q_max, many)
    if q_max < max(LEVELS):
        return (brute,)
    return brute, global_from_crossings(q_max, many) if data.ndim == 1 else global_from_euler(q_max, many)


def _check(q_max: float, level: float | None = None) -> None:
    if not (math.isfinite(q_max) and q_max >= 0):
        raise OptionError(f"the largest q0 is {q_max:g}: it must be finite and 0 or more")
    if level is not None and not 0.0 < level <= q_max:
        raise OptionError(
            f"level {level:g} must lie between 0 and the largest q0 {q_max:.3g}; where q0 is that small, use toys"
        )


def _usable(toys: FloatArray) -> tuple[FloatArray, tuple[str, ...]]:
    """Toys flattened to (n, points); those with a NaN at a point where another toy has a number are left out."""
    many = np.asarray(toys, dtype=np.float64)
    if many.ndim < 2 or many.shape[0] == 0:
        raise EventsError(f"no toys: an array of shape {many.shape}")
    flat = many.reshape(many.shape[0], -1)
    missing = np.isnan(flat)
    searched = np.logical_not(missing.all(axis=0))
    broken: BoolArray = np.any(missing & searched, axis=1)
    if broken.all():
        raise EventsError(f"all {broken.size} toys have failed fits (NaN); see their status")
    note = f"{int(broken.sum())} of {broken.size} toys with failed fits were left out"
    return flat[~broken], (note,) if broken.any() else ()


def _error(values: FloatArray) -> float:
    return float(values.std(ddof=1)) / math.sqrt(values.size) if values.size > 1 else math.inf


def _result(
    method: str, q_max: float, p: float, low: float, high: float, n_toys: int, notes: Sequence[str]
) -> GlobalSignificance:
    z = z_from_p(p) if p > 0 else math.inf
    return GlobalSignificance(method, q_max, p_from_q0(q_max), math.sqrt(q_max), p, low, high, z, n_toys, tuple(notes))
