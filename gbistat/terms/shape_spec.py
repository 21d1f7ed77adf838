"""A shape of the mass in a model: its name, its options, and where its parameters come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
from pydantic import Discriminator, Field, Tag, model_validator

from gbistat.errors import ModelError, nearest
from gbistat.terms.validation import JsonDict, Number, Record, Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.typing import FloatArray

__all__ = ["AffineMap", "Link", "ShapeSpec"]


class Link(Record):
    """A shape parameter tied to a model parameter, to the window's centre, or to both.

    ``{"times_center": x}`` is x * centre, ``{"parameter": p, "times": x}`` is x * p and
    ``{"parameter": p, "times_center": x}`` is x * centre * p.
    """

    parameter: Text | None = None
    times: Number | None = None
    times_center: Number | None = None

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        if self.times is not None and self.times_center is not None:
            raise ValueError("times and times_center exclude each other; keep one")
        if self.parameter is None and self.times_center is None:
            raise ValueError("a link needs parameter or times_center; for a fixed value write the number itself")
        return self


def _which(value: Any) -> str:
    if isinstance(value, str):
        return "name"
    return "link" if isinstance(value, (dict, Link)) else "number"


ShapeValue = Annotated[
    Annotated[Number, Tag("number")] | Annotated[Text, Tag("name")] | Annotated[Link, Tag("link")],
    Discriminator(_which),
]


@dataclass(frozen=True, eq=False)
class AffineMap:
    """Parameters of a shape as a function of the model's: ``theta = offset + matrix @ values``.

    Parameters
    ----------
    parameters : tuple of str
        Names of the k model parameters.
    offset : array of shape (p,)
        Fixed part.
    matrix : array of shape (p, k)
        Linear part.
    """

    parameters: tuple[str, ...]
    offset: FloatArray
    matrix: FloatArray


class ShapeSpec(Record):
    """A shape by name, its options, and where its parameters come from.

    Parameters
    ----------
    shape : str
        Name in the registry of shapes.
    options : dict
        Options of the shape (degree, support, sqrt_s, ...).
    parameters : dict
        Shape parameter to a number (fixed), the name of a model parameter, or a `Link`. Empty means that all are
        free in the fit to the sidebands.
    """

    shape: Text
    options: JsonDict = Field(default_factory=dict)
    parameters: dict[str, ShapeValue] = Field(default_factory=dict)

    @property
    def is_free(self) -> bool:
        """Whether nothing is said about the parameters: all are free."""
        return not self.parameters

    @property
    def model_parameters(self) -> tuple[str, ...]:
        """Model parameters that the shape depends on, each once, in order of appearance."""
        links = (_as_link(value) for value in self.parameters.values())
        return tuple(dict.fromkeys(link.parameter for link in links if link is not None and link.parameter is not None))

    def affine(self, shape_parameters: Sequence[str], centre: float) -> AffineMap:
        """Map from model parameters to shape parameters for a window.

        Parameters
        ----------
        shape_parameters : sequence of str
            Names of the p parameters of the shape, in its order.
        centre : float
            Middle of the window, in the model's mass unit.

        Returns
        -------
        AffineMap
            ``theta = offset + matrix @ values``.

        Raises
        ------
        ModelError
            If the specification names a parameter that the shape does not have, or leaves one out.

        Examples
        --------
        >>> spec = ShapeSpec(shape="gaussian", parameters={"mean": {"parameter": "scale", "times_center": 1.0}, "sigma": 80.0})
        >>> affine = spec.affine(["mean", "sigma"], centre=3500.0)
        >>> affine.parameters, affine.offset.tolist(), affine.matrix.tolist()
        (('scale',), [0.0, 80.0], [[3500.0], [0.0]])
        """
        names = list(shape_parameters)
        for name in self.parameters:
            if name not in names:
                raise ModelError(f"shape {self.shape!r} has no parameter {name!r}; {nearest(name, names)}")
        left_out = [name for name in names if name not in self.parameters]
        if left_out:
            raise ModelError(
                f"shape {self.shape!r} has no value for its parameter(s) {', '.join(left_out)}; give each a number, "
                'the name of a model parameter, or {"times_center": x}'
            )
        used = self.model_parameters
        offset, matrix = np.zeros(len(names)), np.zeros((len(names), len(used)))
        for row, name in enumerate(names):
            value = self.parameters[name]
            link = _as_link(value)
            if link is None:
                offset[row] = float(value)  # type: ignore[arg-type]  # neither a name nor a link: a number
                continue
            factor = centre * link.times_center if link.times_center is not None else _or_one(link.times)
            if link.parameter is None:
                offset[row] = factor
            else:
                matrix[row, used.index(link.parameter)] = factor
        return AffineMap(used, offset, matrix)


def _as_link(value: float | str | Link) -> Link | None:
    if isinstance(value, str):
        return Link(parameter=value)
    return value if isinstance(value, Link) else None


def _or_one(value: float | None) -> float:
    return 1.0 if value is None else value
