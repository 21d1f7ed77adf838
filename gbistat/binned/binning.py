"""Bins of an observable: the mass, a feature, or the log ratio of signal and background."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from gbistat.errors import ModelError, OptionError, nearest

if TYPE_CHECKING:
    from gbistat.data.window import MassWindow
    from gbistat.typing import BoolArray, FloatArray, IntArray, Json

__all__ = ["LOG_RATIO", "AnyBinning", "Binning", "ProductBinning", "automatic_edges", "mass_binning"]

LOG_RATIO = "log_ratio"
"""Name of the observable ``ln p_s - ln p_b`` at nominal parameters."""

METHODS = ("information", "quantile")


@dataclass(frozen=True, eq=False)
class Binning:
    """Bins of one observable.

    Parameters
    ----------
    observable : str
        The name of the mass or of a feature, or ``"log_ratio"``.
    edges : array of shape (nb + 1,)
        Edges that increase; a bin is ``edge <= x < next edge``.
    open_ended : bool, default False
        Whether the first and the last bin also take what lies below and above all edges.
    unit : str, optional
        Unit of the edges; that of the events where nothing is said.

    Raises
    ------
    OptionError
        If the edges are not at least two finite numbers that increase.

    Examples
    --------
    >>> Binning("m_jj", [0.0, 1.0, 2.0]).counts([0.5, 1.0, 1.5, 7.0]).tolist()
    [1.0, 2.0]
    """

    observable: str
    edges: FloatArray
    open_ended: bool = False
    unit: str | None = None

    def __post_init__(self) -> None:
        edges = np.array(self.edges, dtype=np.float64)
        if edges.ndim != 1 or edges.size < 2 or not np.isfinite(edges).all() or not (np.diff(edges) > 0).all():
            raise OptionError(
                f"bins of {self.observable}: the edges must be at least two finite numbers that increase, "
                f"not {edges.tolist() if edges.size < 6 else f'these {edges.size} numbers'}"
            )
        edges.setflags(write=False)
        object.__setattr__(self, "edges", edges)

    @property
    def n_bins(self) -> int:
        """Number of bins nb."""
        return int(self.edges.size) - 1

    def index(self, values: FloatArray) -> IntArray:
        """Bin of each value, shape (n,); -1 outside of all bins."""
        found = np.searchsorted(self.edges, np.asarray(values, dtype=np.float64), side="right") - 1
        if self.open_ended:
            return np.clip(found, 0, self.n_bins - 1).astype(np.int64)
        return np.where(found < self.n_bins, found, -1).astype(np.int64)

    def counts(self, values: FloatArray, weights: FloatArray | None = None) -> FloatArray:
        """Number (or sum of weights) of the values in each bin, shape (nb,)."""
        index = self.index(values)
        inside = index >= 0
        chosen = None if weights is None else weights[inside]
        return np.bincount(index[inside], chosen, minlength=self.n_bins).astype(np.float64)

    def describe(self, number: int) -> str:
        """Name a bin in a message: its number and its edges."""
        low, high = self.edges[number], self.edges[number + 1]
        return f"bin {number} of {self.observable} ({low:.6g} to {high:.6g})"

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "observable": self.observable,
            "edges": self.edges.tolist(),
            "open_ended": self.open_ended,
            "unit": self.unit,
        }


@dataclass(frozen=True, eq=False)
class ProductBinning:
    """Bins of two observables: in each bin of the first, own bins of the second.

    Parameters
    ----------
    first : Binning
        Bins of the first observable.
    seconds : tuple of Binning
        Bins of the second, for each bin of the first in order.

    Raises
    ------
    OptionError
        If there is not one binning of a second observable for each bin of the first.

    Examples
    --------
    >>> second = Binning("x", [0.0, 1.0, 2.0])
    >>> product = ProductBinning(Binning("m_jj", [0.0, 10.0, 20.0]), (second, second))
    >>> product.index(np.array([[5.0, 1.5], [15.0, 0.5], [25.0, 0.5]])).tolist()
    [1, 2, -1]
    """

    first: Binning
    seconds: tuple[Binning, ...]
    unit: None = None

    def __post_init__(self) -> None:
        names = {second.observable for second in self.seconds}
        if len(self.seconds) != self.first.n_bins or len(names) != 1 or self.first.observable in names:
            raise OptionError(
                f"{len(self.seconds)} binnings of {', '.join(sorted(names)) or 'nothing'} for {self.first.n_bins} bins of "
                f"{self.first.observable}; give one binning of one other observable for each"
            )

    @property
    def observable(self) -> str:
        """Both names, with a colon between."""
        return f"{self.first.observable}:{self.seconds[0].observable}"

    @property
    def n_bins(self) -> int:
        """Number of bins nb."""
        return sum(second.n_bins for second in self.seconds)

    def index(self, values: FloatArray) -> IntArray:
        """Bin of each pair of values (n, 2), shape (n,); -1 outside of all bins."""
        outer = self.first.index(values[:, 0])
        result = np.full(outer.size, -1, dtype=np.int64)
        begin = 0
        for number, second in enumerate(self.seconds):
            rows = np.flatnonzero(outer == number)
            inner = second.index(values[rows, 1])
            result[rows] = np.where(inner < 0, -1, begin + inner)
            begin += second.n_bins
        return result

    def counts(self, values: FloatArray, weights: FloatArray | None = None) -> FloatArray:
        """Number (or sum of weights) of the pairs in each bin, shape (nb,)."""
        index = self.index(values)
        inside = index >= 0
        chosen = None if weights is None else weights[inside]
        return np.bincount(index[inside], chosen, minlength=self.n_bins).astype(np.float64)

    def describe(self, number: int) -> str:
        """Name a bin in a message."""
        for outer, second in enumerate(self.seconds):
            if number < second.n_bins:
                return f"{self.first.describe(outer)}, {second.describe(number)}"
            number -= second.n_bins
        return f"bin {number} beyond the last"

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "observable": self.observable,
            "first": self.first.to_dict(),
            "seconds": [second.to_dict() for second in self.seconds],
        }


AnyBinning: TypeAlias = Binning | ProductBinning


def mass_binning(window: MassWindow, *, n_bins: int = 20, observable: str = "m_jj") -> Binning:
    """Bins of equal width over a mass window.

    Parameters
    ----------
    window : MassWindow
        What they cover.
    n_bins : int, default 20
        How many.
    observable : str, default "m_jj"
        Name of the mass.

    Raises
    ------
    OptionError
        If `n_bins` is less than 1.
    """
    _check_number(n_bins, observable)
    return Binning(observable, np.linspace(window.low, window.high, n_bins + 1), unit=window.unit)


def automatic_edges(
    values: FloatArray,
    background: FloatArray,
    *,
    n_bins: int,
    score: FloatArray | None = None,
    min_background: float = 5.0,
    min_points: int = 1,
) -> FloatArray:
    r"""Edges of at most `n_bins` bins for weighted points.

    Without a score the bins hold equal numbers of background events. With one, they keep as much of the information on the
    signal yield as so few bins can: what a bin loses is the variance of the score of the events inside it, and for
    narrow bins the sum of these variances is smallest when all bins have the same share of

    .. math::

        \int b(g)^{1/3} dg

    with b the density of background events in the score g (P. F. Panter and W. Dite, Proc. IRE 39 (1951) 44). Bins with
    too little in them are then merged with their neighbours, from the top.

    Parameters
    ----------
    values : array of shape (n,)
        The observable at the points.
    background : array of shape (n,)
        Expected background events that each point stands for.
    n_bins : int
        Number of bins to begin with.
    score : array of shape (n,), optional
        A function of the observable that rises with it: how much an event says about the signal.
    min_background : float, default 5
        Expected background events that a bin has at least.
    min_points : int, default 1
        Points that a bin has at least: a pool of few events cannot fill many bins.

    Returns
    -------
    array of shape (nb + 1,)
        From the smallest to the largest finite value.

    Raises
    ------
    OptionError
        If a number is out of its range.
    ModelError
        If the observable has one value only.
    """
    _check_number(n_bins, "the observable")
    if not (min_background >= 0 and min_points >= 1):
        raise OptionError(f"min_background {min_background:g} must be 0 or more, min_points {min_points} 1 or more")
    finite: BoolArray = np.isfinite(values)
    order = np.argsort(values[finite], kind="stable")
    x, b = values[finite][order], background[finite][order]
    if x.size < 2 or x[0] == x[-1]:
        raise ModelError("the observable has the same value at all reference points: there is nothing to bin in it")
    share = b if score is None else np.cbrt(b * _spacing(score[finite][order]) ** 2)
    cumulative = np.cumsum(share)
    cuts = np.searchsorted(cumulative, cumulative[-1] * np.arange(1, n_bins) / n_bins) + 1
    kept = _kept_cuts(np.unique(cuts[cuts < x.size]), x, b, min_background, min_points)
    inner = [0.5 * (x[cut - 1] + x[cut]) for cut in kept]
    return np.array([x[0], *inner, x[-1]])


def check_method(method: str) -> None:
    """Make sure that a way of placing bins exists.

    Raises
    ------
    OptionError
        If it does not.
    """
    if method not in METHODS:
        raise OptionError(f"binning method {method!r} is unknown; {nearest(method, METHODS)}")


def _check_number(n_bins: int, observable: str) -> None:
    if n_bins < 1:
        raise OptionError(f"{n_bins} bins of {observable}: at least one is needed")


def _spacing(score: FloatArray) -> FloatArray:
    padded = np.concatenate([score[:1], score, score[-1:]])
    spacing: FloatArray = 0.5 * np.abs(padded[2:] - padded[:-2])
    return spacing


def _kept_cuts(
    cuts: IntArray, x: FloatArray, background: FloatArray, min_background: float, min_points: int
) -> list[int]:
    """Positions (a bin begins at each) that leave enough in every bin, decided from the top."""
    total = np.concatenate([[0.0], np.cumsum(background)])
    kept: list[int] = []
    end = x.size

    def enough(begin: int, stop: int) -> bool:
        return total[stop] - total[begin] >= min_background and stop - begin >= min_points

    for cut in reversed(cuts.tolist()):
        # Between equal values there is no edge; move down to where the value changes.
        begin = int(np.searchsorted(x, x[cut], side="left")) if x[cut] == x[cut - 1] else cut
        if 0 < begin < end and x[begin] > x[begin - 1] and enough(begin, end):
            kept.append(begin)
            end = begin
    if kept and not enough(0, kept[-1]):
        kept.pop()
    return kept[::-1]
