"""Samples of a HistFactory channel: nominal counts and modifiers, from templates and nuisances.

Each term of a component's yield becomes a sample:

===================================  ==========================================================================
in the model                         in HistFactory
===================================  ==========================================================================
``mu``                               ``normfactor``; the sample holds the counts at ``mu = 1``
a yield without constraint           ``normfactor`` relative to its start value
a yield with a Poisson constraint    the same, and one more channel of one bin that holds the auxiliary count
a direction that changes the yield   ``normsys`` at +1 and -1 standard deviation
a direction that changes the shape   ``histosys`` at +1 and -1 standard deviation, with its effect on the yield
a linear yield with mean 0           a sample of zeros with a ``histosys``: ``normfactor`` has no constraint in
(spurious signal)                    HistFactory, ``lumi`` must be positive, and ``normsys`` cannot scale a zero
a finite pool                        ``staterror``, common to signal and background in a bin
===================================  ==========================================================================
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import ModelError

if TYPE_CHECKING:
    from gbistat.binned.nuisances import Direction, Standardised
    from gbistat.binned.templates import Templates
    from gbistat.likelihood.components import Component
    from gbistat.likelihood.model import Model
    from gbistat.typing import FloatArray, Json

__all__ = ["Sample", "free_scale", "make_samples"]

NEGLIGIBLE = 1e-10
"""Relative change of a template below which a direction does not change it."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample of a channel.

    Parameters
    ----------
    name : str
        The component, and the term of its yield if that has several.
    counts : array of shape (nb,)
        Nominal expected events.
    scaled_by : str or None
        Parameter whose ``normfactor`` multiplies it.
    variations : dict of str to (array, array)
        Counts at +1 and -1 standard deviation of the directions that change the sample.
    modifiers : list of dict
        Modifiers in HistFactory's JSON form.
    """

    name: str
    counts: FloatArray
    scaled_by: str | None
    variations: dict[str, tuple[FloatArray, FloatArray]] = field(default_factory=dict)
    modifiers: list[Json] = field(default_factory=list)

    def to_json(self) -> Json:
        """As HistFactory has it."""
        return {"name": self.name, "data": self.counts.tolist(), "modifiers": self.modifiers}


@dataclass(frozen=True, eq=False)
class _Term:
    """One term of a component's yield: ``coefficient * parameter * exp(...)``, or a constant for ``None``."""

    component: int
    name: str
    parameter: str | None
    coefficient: float


def free_scale(model: Model, name: str) -> float:
    """Value of a free parameter at which its ``normfactor`` is 1."""
    start = model.parameter(name).start
    return 1.0 if name == model.poi or start == 0 else start


def make_samples(templates: Templates, standard: Standardised) -> list[Sample]:
    """Samples of the channel of one observable, without statistical errors.

    Parameters
    ----------
    templates : Templates
        Probabilities of the bins.
    standard : Standardised
        What the parameters of the model become.

    Raises
    ------
    ModelError
        If HistFactory cannot express the model in bins: a free parameter changes a shape, a standard deviation leads to
        negative counts, or the signal does not depend on the parameter of interest.
    """
    model = templates.model
    _check_free(model, standard)
    nominal = [templates.probabilities(j, standard.nominal) for j in range(len(model.components))]
    samples = []
    for term in _terms(model, standard):
        builder = _Builder(templates, standard, term, nominal[term.component])
        samples.append(builder.sample())
    return samples


def _check_free(model: Model, standard: Standardised) -> None:
    if model.poi not in model.component(model.signal).rate.linear:
        raise ModelError(
            f"the yield of {model.signal!r} is not linear in the parameter of interest {model.poi!r}: HistFactory cannot scale it"
        )
    scales = {name for c in model.components for name in c.rate.log_scales}
    shapes = {name for c in model.components for factor in c.factors for name in factor.parameters}
    lost = [name for name in standard.free if name in scales | shapes]
    if lost:
        raise ModelError(
            f"{lost[0]} changes a shape or scales a yield exponentially, and has no constraint in standard deviations: "
            f"HistFactory cannot express that; hold it (held={{{lost[0]!r}: value}}) or constrain it"
        )


def _terms(model: Model, standard: Standardised) -> list[_Term]:
    """Terms of all yields, the parameter of interest first in its component."""
    terms = []
    for j, component in enumerate(model.components):
        names = sorted(component.rate.linear, key=lambda name: name != model.poi)
        parts: list[tuple[str | None, float]] = [(name, component.rate.linear[name]) for name in names]
        if component.rate.constant != 0:
            parts.append((None, component.rate.constant))
        for position, (parameter, coefficient) in enumerate(parts):
            label = component.name if position == 0 else f"{component.name}_{parameter or 'constant'}"
            terms.append(_Term(j, label, parameter, coefficient))
    return terms


class _Builder:
    """Counts and modifiers of one term."""

    def __init__(self, templates: Templates, standard: Standardised, term: _Term, probabilities: FloatArray) -> None:
        self.templates = templates
        self.model = templates.model
        self.standard = standard
        self.term = term
        self.probabilities = probabilities
        self.component: Component = self.model.components[term.component]
        self.scaled_by = term.parameter if term.parameter in standard.free else None

    def sample(self) -> Sample:
        """Put the sample together."""
        size = self._amplitude(self.standard.nominal) * self._scale(self.standard.nominal)
        counts = size * self.probabilities
        self._check(counts, "", lowest=0.0)
        sample = Sample(self.term.name, counts, self.scaled_by)
        if self.scaled_by is not None:
            sample.modifiers.append({"name": self.scaled_by, "type": "normfactor", "data": None})
        for direction in self.standard.directions:
            if counts.any():
                self._vary(sample, direction)
            else:
                self._vary_zero(sample, direction)
        return sample

    def _vary(self, sample: Sample, direction: Direction) -> None:
        """Add a direction to a sample with events."""
        sizes = [self._amplitude(theta) * self._scale(theta) for theta in (direction.plus, direction.minus)]
        size = self._amplitude(self.standard.nominal) * self._scale(self.standard.nominal)
        shapes = [self._shape(theta) for theta in (direction.plus, direction.minus)]
        moved = any(np.abs(p - self.probabilities).max() > NEGLIGIBLE * self.probabilities.max() for p in shapes)
        if not moved and all(abs(s / size - 1.0) < NEGLIGIBLE for s in sizes):
            return
        high, low = sizes[0] * shapes[0], sizes[1] * shapes[1]
        if moved:
            data = {"hi_data": high.tolist(), "lo_data": low.tolist()}
            sample.modifiers.append({"name": direction.name, "type": "histosys", "data": data})
            self._check(high, direction.name, lowest=0.0)
            self._check(low, direction.name, lowest=0.0)
        else:
            factors = {"hi": float(sizes[0] / size), "lo": float(sizes[1] / size)}
            if not min(factors.values()) > 0:
                raise ModelError(
                    f"sample {sample.name!r}: one standard deviation of {direction.name} scales its yield by "
                    f"{min(factors.values()):.3g}; a Gaussian error of 100 % has no meaning for a yield, use a log-normal or "
                    "Poisson constraint"
                )
            sample.modifiers.append({"name": direction.name, "type": "normsys", "data": factors})
        sample.variations[direction.name] = (high, low)

    def _vary_zero(self, sample: Sample, direction: Direction) -> None:
        """Add a direction to a sample whose nominal yield is 0: the term itself moves, or an efficiency scales it."""
        scale = self._scale(self.standard.nominal)
        high, low = (self._amplitude(theta) * scale for theta in (direction.plus, direction.minus))
        if high != 0 or low != 0:
            up, down = high * self.probabilities, low * self.probabilities
            data = {"hi_data": up.tolist(), "lo_data": down.tolist()}
            sample.modifiers.append({"name": direction.name, "type": "histosys", "data": data})
            sample.variations[direction.name] = (up, down)
            return
        factors = [self._scale(theta) / scale for theta in (direction.plus, direction.minus)]
        if any(abs(factor - 1.0) > NEGLIGIBLE for factor in factors):
            data_scale = {"hi": float(factors[0]), "lo": float(factors[1])}
            sample.modifiers.append({"name": direction.name, "type": "normsys", "data": data_scale})

    def _amplitude(self, theta: FloatArray) -> float:
        if self.term.parameter is None:
            return self.term.coefficient
        if self.scaled_by is not None:
            return self.term.coefficient * free_scale(self.model, self.scaled_by)
        return self.term.coefficient * float(theta[self.model.names.index(self.term.parameter)])

    def _scale(self, theta: FloatArray) -> float:
        powers = self.component.rate.log_scales
        return float(np.exp(sum(s * theta[self.model.names.index(name)] for name, s in powers.items())))

    def _shape(self, theta: FloatArray) -> FloatArray:
        positions = self.templates.shape_parameters(self.term.component)
        if np.array_equal(theta[positions], self.standard.nominal[positions]):
            return self.probabilities
        return self.templates.probabilities(self.term.component, theta)

    def _check(self, counts: FloatArray, direction: str, *, lowest: float) -> None:
        bad = np.flatnonzero(~(counts >= lowest))
        if bad.size:
            where = self.templates.binning.describe(int(bad[0]))
            when = f" at one standard deviation of {direction}" if direction else ""
            raise ModelError(
                f"sample {self.term.name!r} has {counts[bad[0]]:.4g} expected events in {where}{when}; "
                "a template must not be negative: check the yields and their errors"
            )
