"""Parameters of a likelihood: name, start, range."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import ParameterError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gbistat.typing import FloatArray

__all__ = ["Parameter", "index_of", "merge_parameters", "start_vector"]


@dataclass(frozen=True)
class Parameter:
    """One parameter.

    Parameters
    ----------
    name : str
        A Python identifier, since it becomes a keyword of the likelihood.
    start : float
        Where minimisations begin.
    low, high : float
        Ends of the range, infinite by default.
    fixed : bool, default False
        Whether fits hold it at `start` unless told otherwise.

    Raises
    ------
    ParameterError
        If the name is no identifier, the range is empty, or the start is outside it.
    """

    name: str
    start: float
    low: float = -math.inf
    high: float = math.inf
    fixed: bool = False

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ParameterError(f"parameter name {self.name!r} is not an identifier; use letters, digits and _")
        if not self.low < self.high:
            raise ParameterError(f"parameter {self.name}: the range {self.low:g} to {self.high:g} is empty")
        if not self.low <= self.start <= self.high:
            raise ParameterError(
                f"parameter {self.name}: {self.start:g} is outside its range {self.low:g} to {self.high:g}; "
                "start inside or widen the range"
            )

    @property
    def limits(self) -> tuple[float, float] | None:
        """Range as iminuit wants it: ``None`` where there is none."""
        return None if math.isinf(self.low) and math.isinf(self.high) else (self.low, self.high)

    def check(self, value: float) -> float:
        """Return the value, or raise if it is outside the range.

        Raises
        ------
        ParameterError
            With the range.
        """
        if not self.low <= value <= self.high:
            raise ParameterError(
                f"{self.name} = {value:g} is outside its range {self.low:g} to {self.high:g}; "
                "choose a value inside or widen the range"
            )
        return value


def index_of(name: str, parameters: Sequence[Parameter]) -> int:
    """Position of a parameter.

    Raises
    ------
    ParameterError
        If there is none of that name; the message offers the nearest.
    """
    names = [parameter.name for parameter in parameters]
    try:
        return names.index(name)
    except ValueError:
        raise ParameterError(f"there is no parameter {name!r}; {nearest(name, names)}") from None


def merge_parameters(groups: Sequence[Sequence[Parameter]]) -> tuple[Parameter, ...]:
    """Union in order of first appearance: parameters of the same name are shared.

    Raises
    ------
    ParameterError
        If two parameters of one name have ranges that do not overlap.
    """
    merged: dict[str, Parameter] = {}
    for parameter in (parameter for group in groups for parameter in group):
        old = merged.setdefault(parameter.name, parameter)
        if old != parameter:
            low, high = max(old.low, parameter.low), min(old.high, parameter.high)
            start = min(max(old.start, low), high) if low < high else old.start
            merged[parameter.name] = Parameter(old.name, start, low, high, old.fixed and parameter.fixed)
    return tuple(merged.values())


def start_vector(parameters: Sequence[Parameter], values: Mapping[str, float] | None = None) -> FloatArray:
    """Start values, shape (p,), with some of them replaced.

    Raises
    ------
    ParameterError
        If a name is unknown or a value is outside its range.
    """
    theta = np.array([parameter.start for parameter in parameters], dtype=np.float64)
    for name, value in (values or {}).items():
        index = index_of(name, parameters)
        theta[index] = parameters[index].check(float(value))
    return theta
