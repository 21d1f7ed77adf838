"""Histogram as a density."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from gbistat.errors import ModelError

if TYPE_CHECKING:
    from gbistat.terms.protocols import ShapeParameter
    from gbistat.typing import FloatArray

__all__ = ["Histogram"]


@dataclass(frozen=True)
class Histogram:
    """Density that is constant in each bin; it has no parameters.

    Parameters
    ----------
    edges : sequence of float
        The nb + 1 edges of the bins, in the unit of the mass.
    contents : sequence of float
        What the nb bins hold (events or sums of weights, not densities). A bin may be empty: the log density is
        -inf there, and an event in it has no probability at all.

    Raises
    ------
    ModelError
        If the edges do not increase, sizes do not match, or a content is negative or not finite.

    Examples
    --------
    >>> shape = Histogram(edges=(0.0, 1.0, 3.0), contents=(1.0, 4.0))
    >>> np.exp(shape.log_shape(np.array([0.5, 2.0, 5.0]), np.empty(0))).tolist()
    [1.0, 2.0, 0.0]
    """

    edges: tuple[float, ...]
    contents: tuple[float, ...]
    name: ClassVar[str] = "histogram"

    def __post_init__(self) -> None:
        edges, contents = _numbers("edges", self.edges), _numbers("contents", self.contents)
        if len(edges) < 2 or len(contents) != len(edges) - 1:
            raise ModelError(
                f"histogram with {len(edges)} edges and {len(contents)} contents: nb bins have nb + 1 edges; "
                "give one edge more than contents"
            )
        if not np.all(np.diff(edges) > 0):
            raise ModelError("histogram with edges that do not increase: sort them, and drop empty bins of no width")
        if min(contents) < 0 or max(contents) <= 0:
            raise ModelError(
                f"histogram with contents between {min(contents):g} and {max(contents):g}: none may be negative and "
                "one must be positive; merge bins whose sum of weights is negative"
            )
        object.__setattr__(self, "edges", edges)
        object.__setattr__(self, "contents", contents)

    @property
    def parameters(self) -> tuple[ShapeParameter, ...]:
        """None."""
        return ()

    @property
    def support(self) -> tuple[float, float]:
        """From the first edge to the last."""
        return (self.edges[0], self.edges[-1])

    def log_shape(self, mass: FloatArray, theta: FloatArray) -> FloatArray:
        """ln(content / width) of the bin, shape (n,); -inf outside of all bins."""
        content = np.array([0.0, *self.contents, 0.0])
        width = np.array([1.0, *np.diff(self.edges), 1.0])
        with np.errstate(divide="ignore"):
            height = np.log(content / width)
        u: FloatArray = height[np.searchsorted(self.edges, mass, side="right")]
        return u

    def derivatives(self, mass: FloatArray, theta: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """u (n,) and derivatives in no parameter, shapes (0, n) and (0, 0, 1)."""
        return self.log_shape(mass, theta), np.zeros((0, np.size(mass))), np.zeros((0, 0, 1))

    def breakpoints(self, theta: FloatArray) -> tuple[float, ...]:
        """The edges."""
        return self.edges


def _numbers(what: str, values: object) -> tuple[float, ...]:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ModelError(f"histogram with {what} that are not numbers: give a list of numbers") from None
    if array.ndim != 1 or not np.isfinite(array).all():
        raise ModelError(f"histogram with {what} of shape {array.shape}: give a one-dimensional list of finite numbers")
    return tuple(array.tolist())
