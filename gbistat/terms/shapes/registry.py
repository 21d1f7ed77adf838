"""Shapes by name, as model files and run cards give them."""

from __future__ import annotations

import dataclasses
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from gbistat.errors import ModelError, nearest
from gbistat.terms.shapes.bernstein import Bernstein
from gbistat.terms.shapes.chebyshev import Chebyshev
from gbistat.terms.shapes.dijet import Dijet
from gbistat.terms.shapes.double_crystal_ball import DoubleCrystalBall
from gbistat.terms.shapes.exponential import Exponential
from gbistat.terms.shapes.gaussian import Gaussian
from gbistat.terms.shapes.histogram import Histogram
from gbistat.terms.shapes.power_law import PowerLaw

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gbistat.terms.protocols import Shape

__all__ = ["SHAPES", "make_shape"]

_CLASSES = (Bernstein, Chebyshev, Dijet, DoubleCrystalBall, Exponential, Gaussian, Histogram, PowerLaw)

SHAPES: Mapping[str, Callable[..., Shape]] = MappingProxyType({shape.name: shape for shape in _CLASSES})
"""Name -> class, for every shape."""


def make_shape(name: str, **options: Any) -> Shape:
    """Shape by name.

    Parameters
    ----------
    name : str
        One of `SHAPES`.
    **options
        Options of the shape, such as ``degree`` and ``support`` of a polynomial.

    Returns
    -------
    Shape
        The shape, frozen.

    Raises
    ------
    ModelError
        If the name or an option is unknown, or an option is missing or outside its range.

    Examples
    --------
    >>> make_shape("dijet", n_parameters=2)
    Dijet(n_parameters=2, sqrt_s=13000.0)
    """
    if name not in SHAPES:
        raise ModelError(f"there is no shape {name!r}; {nearest(name, SHAPES)}")
    fields = {field.name: field for field in dataclasses.fields(SHAPES[name])}  # type: ignore[arg-type]
    for option in options:
        if option not in fields:
            known = nearest(option, fields) if fields else "it has no options"
            raise ModelError(f"{name} has no option {option!r}; {known}")
    missing = [key for key, field in fields.items() if field.default is dataclasses.MISSING and key not in options]
    if missing:
        raise ModelError(f"{name} needs the option(s) {', '.join(missing)}; give them under 'options'")
    return SHAPES[name](**options)
