r"""The part of phase space that differs: a search over intervals of every observable, with the search in the p-value.

For an interval that holds k of the N events, d of them data, the signed likelihood ratio of the binomial share s = n_1/N is

.. math::

    z = \pm \sqrt{2 [ d \ln \tfrac{d}{sk} + (k - d) \ln \tfrac{k - d}{(1 - s) k} ]},

and its largest value over all intervals, observables and both signs is compared with that of permuted labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.special import xlogy

from gbistat.diagnostics.permutations import permutation_labels
from gbistat.errors import EventsError, OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gbistat.typing import BoolArray, FloatArray, IntArray, Json

__all__ = ["Region", "find_regions"]

TAILS = (0.001, 0.002, 0.003, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03)
QUANTILES = (*TAILS, *(0.05 * k for k in range(1, 20)), *(1.0 - q for q in reversed(TAILS)))
SMALLEST = 10


@dataclass(frozen=True)
class Region:
    """An interval of an observable in which one class is over-represented.

    Parameters
    ----------
    observable : str
        Name.
    low, high : float
        Ends; infinite where the interval has none.
    excess : {"data", "generated"}
        The class of which there is too much.
    n_data, n_generated : int
        Events inside.
    z : float
        Local signed root of the likelihood ratio, without any correction.
    p_value : float
        Corrected for the search over intervals, observables and signs.
    """

    observable: str
    low: float
    high: float
    excess: Literal["data", "generated"]
    n_data: int
    n_generated: int
    z: float
    p_value: float

    def __str__(self) -> str:
        if np.isinf(self.low):
            where = f"{self.observable} < {self.high:.4g}"
        elif np.isinf(self.high):
            where = f"{self.observable} > {self.low:.4g}"
        else:
            where = f"{self.low:.4g} < {self.observable} < {self.high:.4g}"
        return f"{where}: {self.n_data} data, {self.n_generated} generated (p = {self.p_value:.2g})"

    def to_dict(self) -> Json:
        """Plain numbers, for JSON; an open end is null."""
        return {
            "obs": self.observable,
            "low": None if np.isinf(self.low) else self.low,
            "high": None if np.isinf(self.high) else self.high,
            "excess": self.excess,
            "n_data": self.n_data,
            "n_gen": self.n_generated,
            "z_local": self.z,
            "p": self.p_value,
        }


def find_regions(
    observables: Mapping[str, FloatArray],
    is_data: BoolArray,
    *,
    rng: np.random.Generator,
    permutations: int = 199,
    fold: IntArray | None = None,
    pair: IntArray | None = None,
) -> tuple[Region, ...]:
    """Most significant interval of every observable for an excess of data, and for one of generated events.

    Parameters
    ----------
    observables : mapping of str to array of shape (n,)
        Values, finite.
    is_data : bool array of shape (n,)
        Labels.
    rng : numpy.random.Generator
        Permutes.
    permutations : int, default 199
        Of the labels.
    fold, pair : int arrays of shape (n,), optional
        See `permutation_labels`.

    Returns
    -------
    tuple of Region
        The most significant first.

    Raises
    ------
    EventsError
        If an observable is not finite or has another number of events.
    OptionError
        If there are no observables.
    """
    if not observables:
        raise OptionError("no observables to search: give at least one")
    folds = np.zeros(is_data.size, dtype=np.int64) if fold is None else fold
    grids, codes = [], []
    for name, values in observables.items():
        if np.shape(values) != is_data.shape:
            raise EventsError(f"observable {name!r} has shape {np.shape(values)}, the labels {is_data.shape}")
        bad = int(np.sum(~np.isfinite(values)))
        if bad:
            raise EventsError(f"{bad} of {is_data.size} values of {name!r} are NaN or infinite; remove these events")
        edges = np.unique(np.quantile(values, QUANTILES))
        grids.append(edges)
        codes.append(np.searchsorted(edges, values, side="right"))
    sizes = [edges.size + 1 for edges in grids]
    totals = [np.bincount(code, minlength=size) for code, size in zip(codes, sizes, strict=True)]
    share = float(is_data.mean())

    def scan(label: BoolArray) -> list[FloatArray]:
        return [
            _roots(np.bincount(code[label], minlength=size), total, share)
            for code, size, total in zip(codes, sizes, totals, strict=True)
        ]

    null = np.array(
        [
            max(float(np.abs(z).max()) for z in scan(label))
            for label in permutation_labels(is_data, folds, permutations, rng=rng, pair=pair)
        ]
    )
    regions = []
    for name, edges, code, z in zip(observables, grids, codes, scan(is_data), strict=True):
        ends = np.concatenate([[-np.inf], edges, [np.inf]])
        for sign in (1.0, -1.0):
            first, last = np.unravel_index(int(np.argmax(sign * z)), z.shape)
            local = float(sign * z[first, last])
            if local <= 0.0:
                continue
            inside = (code >= first) & (code <= last)
            p = float((1 + np.sum(null >= local - 1e-9)) / (1 + null.size))
            excess: Literal["data", "generated"] = "data" if sign > 0 else "generated"
            n_data = int(np.sum(inside & is_data))
            low, high = float(ends[first]), float(ends[last + 1])
            regions.append(Region(name, low, high, excess, n_data, int(inside.sum()) - n_data, local, p))
    return tuple(sorted(regions, key=lambda region: -region.z))


def _roots(data: IntArray, total: IntArray, share: float) -> FloatArray:
    """Signed root of the likelihood ratio of the cells first..last, shape (cells, cells); 0 for first > last."""
    d = np.concatenate([[0], np.cumsum(data)])
    k = np.concatenate([[0], np.cumsum(total)])
    inside = (d[None, 1:] - d[:-1, None]).astype(np.float64)
    count = (k[None, 1:] - k[:-1, None]).astype(np.float64)
    valid = (count >= SMALLEST) & (count < k[-1])
    inside, count = np.where(valid, inside, 0.0), np.where(valid, count, 0.0)
    expected = share * count
    other, other_expected = count - inside, count - expected
    safe = np.where(valid, expected, 1.0), np.where(valid, other_expected, 1.0)
    ratio = xlogy(inside, np.where(inside > 0, inside, 1.0) / safe[0])
    ratio += xlogy(other, np.where(other > 0, other, 1.0) / safe[1])
    # Sampling is without replacement: an interval that holds nearly everything cannot fluctuate.
    finite = 1.0 - count / k[-1]
    z = np.sign(inside - expected) * np.sqrt(np.maximum(2.0 * ratio, 0.0) / np.where(valid, finite, 1.0))
    result: FloatArray = np.where(valid, z, 0.0)
    return result
