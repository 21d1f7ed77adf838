"""Mass windows: where the signal is looked for, and the sidebands around it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gbistat.errors import WindowError

if TYPE_CHECKING:
    from gbistat.typing import BoolArray, FloatArray

__all__ = ["MassWindow"]


@dataclass(frozen=True, order=True)
class MassWindow:
    """Half-open interval of mass, ``low <= m < high``.

    Parameters
    ----------
    low, high : float
        Edges, in `unit`.
    unit : str, default "GeV"
        Unit of the edges.

    Raises
    ------
    WindowError
        If an edge is not finite, `low` is negative, or `low` is not below `high`.

    Examples
    --------
    >>> window = MassWindow(3300.0, 3700.0)
    >>> window.centre, window.width
    (3500.0, 400.0)
    >>> window.sidebands(MassWindow(2800.0, 7000.0))
    ((2800.0, 3300.0), (3700.0, 7000.0))
    """

    low: float
    high: float
    unit: str = "GeV"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise WindowError(f"window {self.low:g} {self.high:g}: both edges must be finite numbers in {self.unit}")
        if self.low >= self.high:
            raise WindowError(
                f"window {self.low:g} {self.high:g} is empty: the low edge must be below the high edge; "
                f"did you mean {self.high:g} {self.low:g}?"
                if self.low > self.high
                else f"window {self.low:g} {self.high:g} is empty: the edges are equal"
            )
        if self.low < 0:
            raise WindowError(f"window {self.low:g} {self.high:g}: a mass is not negative; start at 0 or above")

    @property
    def centre(self) -> float:
        """Middle of the window."""
        return 0.5 * (self.low + self.high)

    @property
    def width(self) -> float:
        """Length of the window."""
        return self.high - self.low

    @property
    def edges(self) -> tuple[float, float]:
        """``(low, high)``."""
        return (self.low, self.high)

    def contains(self, mass: FloatArray) -> BoolArray:
        """Mask of the masses inside, shape (n,)."""
        mask: BoolArray = (mass >= self.low) & (mass < self.high)
        return mask

    def inside(self, other: MassWindow) -> bool:
        """Whether this window lies within `other`."""
        return other.low <= self.low and self.high <= other.high

    def sidebands(self, fit_range: MassWindow) -> tuple[tuple[float, float], ...]:
        """Pieces of `fit_range` outside this window, in order of mass.

        Raises
        ------
        WindowError
            If nothing is left on one side: a one-sided sideband extrapolates, it does not interpolate.
        """
        if fit_range.low >= self.low or fit_range.high <= self.high:
            raise WindowError(
                f"window {self.low:g} {self.high:g} {self.unit} leaves no sideband on both sides of itself within "
                f"the fit range {fit_range.low:g} {fit_range.high:g}; narrow the window or widen the fit range"
            )
        return ((fit_range.low, self.low), (self.high, fit_range.high))

    def __str__(self) -> str:
        return f"{self.low:g}-{self.high:g} {self.unit}"
