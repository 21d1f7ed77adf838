"""Parameters of a signal with free masses, as a model declares them: ranges, starts, and the share of decay modes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gbistat.errors import ModelError, nearest
from gbistat.likelihood.constraints import NormalConstraint
from gbistat.likelihood.parameters import Parameter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gbistat.terms.model_spec import ParameterSpec
    from gbistat.terms.network import NetworkTerm
    from gbistat.terms.signal_spec import MassScaleSpec
    from gbistat.typing import FloatArray

__all__ = ["check_scale", "mass_parameter", "mass_ranges", "share_constraint", "share_parameter"]


def mass_ranges(terms: Sequence[NetworkTerm], declared: Mapping[str, ParameterSpec]) -> dict[str, tuple[float, float]]:
    """Ranges of the parameters: where all ratios are valid, within what the model declares."""
    ranges = {}
    for items in zip(*(term.metadata.parameters for term in terms), strict=True):
        item = items[0]
        low, high = max(one.bounds[0] for one in items), min(one.bounds[1] for one in items)
        learned = f"{low:g} to {high:g}"
        spec = declared.get(item.name)
        if spec is not None and not spec.fixed:
            low = max(low, -math.inf if spec.low is None else spec.low)
            high = min(high, math.inf if spec.high is None else spec.high)
        if not low < high:
            raise ModelError(
                f"the model's range of {item.name} and that of {' and '.join(repr(one.name) for one in terms)} have nothing in common; "
                f"learned from {learned}"
            )
        ranges[item.name] = (low, high)
    return ranges


def mass_parameter(name: str, axis: FloatArray, spec: ParameterSpec | None) -> Parameter:
    """One mass, over its nodes."""
    low, high = float(axis[0]), float(axis[-1])
    start = 0.5 * (low + high) if spec is None else spec.start
    if not low <= start <= high:
        raise ModelError(
            f"{name} = {start:g} is outside {low:g} to {high:g}, where the ratio was learned; choose a value inside"
        )
    return Parameter(name, start, low, high, spec is not None and spec.fixed)


def check_scale(scale: Mapping[str, MassScaleSpec], names: Sequence[str]) -> None:
    """That errors of the mass scale are of masses that the ratio depends on."""
    for name in scale:
        if name not in names:
            raise ModelError(
                f"signal.mass_scale names {name!r}, on which no ratio of the signal depends; {nearest(name, names)}"
            )


def share_parameter(name: str, spec: ParameterSpec | None) -> Parameter:
    """Share of the second decay mode: between 0 and 1."""
    if spec is None:
        return Parameter(name, 0.5, 0.0, 1.0)
    low, high = 0.0 if spec.low is None else spec.low, 1.0 if spec.high is None else spec.high
    if not 0.0 <= low <= spec.start <= high <= 1.0:
        raise ModelError(
            f"{name} = {spec.start:g} in {low:g} to {high:g}: a share of decay modes lies between 0 and 1; correct parameters.{name}"
        )
    return Parameter(name, spec.start, low, high, spec.fixed)


def share_constraint(fraction: str | None, declared: Mapping[str, ParameterSpec]) -> tuple[NormalConstraint, ...]:
    """What the model says was measured of the share of decay modes."""
    spec = None if fraction is None else declared.get(fraction)
    if fraction is None or spec is None or spec.constraint is None:
        return ()
    return (NormalConstraint(fraction, spec.constraint.mean, spec.constraint.sigma),)
