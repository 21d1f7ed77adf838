"""CLs against the parameter from toys, and where it crosses ``1 - cl``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtr, ndtri

from gbistat.inference.asymptotics import SIGMAS
from gbistat.inference.toy_limit_results import exceeding

if TYPE_CHECKING:
    from gbistat.typing import BoolArray, FloatArray

__all__ = ["GROUPS", "WIDTH", "CLsCurves", "curves", "expected_values", "five", "solve"]

GROUPS = 10
"""Groups of the jackknife."""
WIDTH = 0.2
"""Distance of values that tell where a curve crosses, relative to the crossing."""


@dataclass(frozen=True, eq=False)
class CLsCurves:
    """Test statistics of data and toys on a grid of the parameter.

    Parameters
    ----------
    values : array of shape (g,)
        Tested values, rising.
    observed : array of shape (g,)
        qmu_tilde of the data.
    signal : list of g arrays
        qmu_tilde of toys thrown at each value; NaN of failed ones.
    background : array of shape (n, g)
        qmu_tilde of the same background-only toys at each value.
    """

    values: FloatArray
    observed: FloatArray
    signal: list[FloatArray]
    background: FloatArray


def curves(toys: CLsCurves, *, rule: str, without: int | None = None) -> FloatArray:
    """Observed and expected CLs (or CLs+b) on the grid, shape (6, g), without one group of toys if asked."""
    rows = []
    background = toys.background[_outside(toys.background.shape[0], without)]
    for g, signal in enumerate(toys.signal):
        q = float(toys.observed[g])
        some = signal[_outside(signal.size, without)]
        above, n = exceeding(some, q)
        above_b, m = exceeding(background[:, g], q)
        ratio = (above + 0.5) / (n + 1.0)
        if rule == "cls":
            ratio /= (above_b + 0.5) / (m + 1.0)
        rows.append((ratio, *expected_values(some, background[:, g], rule=rule)))
    return np.array(rows).T


def expected_values(
    signal: FloatArray, background: FloatArray, *, rule: str
) -> tuple[float, float, float, float, float]:
    """CLs (or CLs+b) of typical background-only data: quantiles over the background-only toys as data."""
    s, b = np.sort(signal[~np.isnan(signal)]), np.sort(background[~np.isnan(background)])
    if not (s.size and b.size):
        return (np.nan,) * 5
    # A large statistic is a strong exclusion: -2 sigma of the band is the upper tail of q.
    data = np.quantile(b, ndtr(-np.array(SIGMAS)))
    slack = 1e-7 * np.maximum(1.0, data)
    above = (s.size - np.searchsorted(s, data - slack) + 0.5) / (s.size + 1.0)
    if rule == "cls":
        above = above / ((b.size - np.searchsorted(b, data - slack) + 0.5) / (b.size + 1.0))
    return five(above)


def five(values: FloatArray) -> tuple[float, float, float, float, float]:
    """Array of five as a tuple."""
    a, b, c, d, e = (float(value) for value in values)
    return a, b, c, d, e


def solve(
    toys: CLsCurves, cl: float, centres: FloatArray | None, *, rule: str, without: int | None = None
) -> FloatArray:
    """Where the observed and the five expected curves cross ``1 - cl``, shape (6,); 0 for a curve below it everywhere.

    Parameters
    ----------
    toys : CLsCurves
        Toys on a grid.
    cl : float
        Confidence level.
    centres : array of shape (6,), optional
        Where the crossings are about: values around them settle the answer. By default the pair of values around each does.
    rule : {"cls", "clsb"}
        Whether curves are CLs or CLs+b.
    without : int, optional
        Group of toys to leave out.
    """
    found = curves(toys, rule=rule, without=without)
    if centres is None:
        return np.array([_bracketed(toys.values, curve, 1.0 - cl) for curve in found])
    return np.array(
        [_crossing(toys.values, curve, 1.0 - cl, float(centre)) for curve, centre in zip(found, centres, strict=True)]
    )


def _outside(n: int, group: int | None) -> BoolArray:
    mask: BoolArray = np.ones(n, dtype=bool) if group is None else np.arange(n) % GROUPS != group
    return mask


def _normal(curve: FloatArray) -> FloatArray:
    """CLs as standard deviations: nearly a straight line of the parameter."""
    return np.asarray(-ndtri(np.clip(curve, 1e-9, 1.0 - 1e-9)), dtype=np.float64)


def _bracketed(values: FloatArray, curve: FloatArray, alpha: float) -> float:
    """Where a falling curve meets a level, from the two values around it."""
    z, target = _normal(curve), float(-ndtri(alpha))
    above = np.flatnonzero(z >= target)
    if above.size == 0:
        return float(values[-1])
    first = int(above[0])
    if first == 0:
        # Excluded everywhere: CLs+b of data with far too few events.
        return 0.0
    pair = slice(first - 1, first + 1)
    # A curve that was at 1, where its normal quantile is -inf, falls late.
    low = max(z[first - 1], target - 3.0)
    return float(np.interp(target, [low, z[first]], values[pair]))


def _crossing(values: FloatArray, curve: FloatArray, alpha: float, centre: float) -> float:
    """Where a noisy falling curve meets a level: a straight line through its normal quantiles close by."""
    if centre == 0.0:
        return 0.0
    z, target = _normal(curve), float(-ndtri(alpha))
    x = (values - centre) / centre
    # Above 0.95 a curve is about to be cut off at 1, and is no straight line.
    near = (np.abs(x) <= WIDTH) & (curve < max(0.95, 1.0 - 0.2 * alpha))
    if np.unique(x[near]).size < 3:
        return _bracketed(values, curve, alpha)
    # Error of a normal quantile: sqrt(p (1 - p)) / density, as for CLs+b.
    p = np.clip(curve[near], 1e-6, 1.0 - 1e-6)
    weight = np.exp(-0.5 * z[near] ** 2) / np.sqrt(p * (1.0 - p))
    slope, offset = np.polyfit(x[near], z[near], 1, w=weight)
    if not slope > 0.0:
        return _bracketed(values, curve, alpha)
    return float(centre * (1.0 + np.clip((target - offset) / slope, -2 * WIDTH, 2 * WIDTH)))
