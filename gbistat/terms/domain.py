"""Unions of mass intervals: a window, or the sidebands on both sides of one."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from gbistat.errors import WindowError

if TYPE_CHECKING:
    from gbistat.terms.protocols import Shape
    from gbistat.typing import BoolArray, FloatArray, IntArray

__all__ = ["Domain", "checked_domain", "cut_domain", "describe_domain", "inside_domain"]

Domain: TypeAlias = tuple[tuple[float, float], ...]


def checked_domain(shape: Shape, domain: Domain) -> Domain:
    """The domain as a tuple of pairs of numbers.

    Raises
    ------
    WindowError
        If an interval is empty or not finite, or intervals overlap, or one leaves the support of the shape.
    """
    try:
        pieces = tuple((float(low), float(high)) for low, high in domain)
    except (TypeError, ValueError):
        raise WindowError(f"domain {domain!r}: give a sequence of intervals, such as ((3300.0, 3700.0),)") from None
    if not pieces:
        raise WindowError("a density of the mass needs at least one interval (low, high); none is given")
    for low, high in pieces:
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise WindowError(f"interval {low:g} {high:g} is empty or not finite: low must be below high")
    for (low, high), (start, stop) in itertools.pairwise(pieces):
        if start < high:
            raise WindowError(f"intervals {low:g}-{high:g} and {start:g}-{stop:g} overlap or are not in order of mass")
    if pieces[0][0] < shape.support[0] or pieces[-1][1] > shape.support[1]:
        raise WindowError(
            f"{describe_domain(pieces)} leaves the range {shape.support[0]:g} to {shape.support[1]:g} on which "
            f"{shape.name} is defined; narrow the interval, or give the shape a wider range"
        )
    return pieces


def describe_domain(domain: Domain) -> str:
    """The intervals in words, such as ``"2800-3300 and 3700-7000"``."""
    return " and ".join(f"{low:g}-{high:g}" for low, high in domain)


def inside_domain(mass: FloatArray, domain: Domain) -> BoolArray:
    """Mask of the masses in one of the half-open intervals, shape (n,)."""
    inside = np.zeros(mass.shape, dtype=np.bool_)
    for low, high in domain:
        inside |= (mass >= low) & (mass < high)
    return inside


def cut_domain(edges: FloatArray, domain: Domain) -> tuple[Domain, IntArray]:
    """The domain cut at the edges of nb bins.

    Returns
    -------
    pieces : tuple of (low, high)
        In order of mass; together they are the domain.
    owner : array of shape (number of pieces,)
        Bin of each piece: -1 below all bins, nb above all of them.
    """
    cuts = np.unique(np.concatenate([edges, np.ravel(domain)]))
    middle = 0.5 * (cuts[:-1] + cuts[1:])
    inside = inside_domain(middle, domain)
    pieces = tuple(zip(cuts[:-1][inside].tolist(), cuts[1:][inside].tolist(), strict=True))
    owner = np.searchsorted(edges, middle[inside], side="right") - 1
    return pieces, owner.astype(np.int64)
