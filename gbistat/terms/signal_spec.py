"""What the signal of a model is: the ``signal`` part of ``model.json``."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from gbistat.errors import ModelError
from gbistat.terms.metadata import TermName  # noqa: TC001  # pydantic reads annotations at run time
from gbistat.terms.shape_spec import ShapeSpec  # noqa: TC001
from gbistat.terms.validation import NonNegative, Positive, Record, Text

__all__ = ["MassScaleSpec", "ModesSpec", "SignalSpec", "SpuriousSpec", "YieldSpec"]


class YieldSpec(Record):
    """Signal yield: n_sig = poi * nominal; with nominal 1 the parameter of interest counts events in the window."""

    poi: Text = "mu"
    nominal: Positive = 1.0


class SpuriousSpec(Record):
    """Spurious signal: standard deviation, in events, of a signal-like background excess; ``null`` for none."""

    sigma: NonNegative | None = None


class ModesSpec(Record):
    """Two decay modes of one signal: ``(1 - alpha) r_1 + alpha r_2``, with the same masses in both.

    Parameters
    ----------
    ratios : (str, str)
        Names of two ratio terms that depend on the same parameters.
    fraction : str
        Name of alpha, the share of the second among the selected signal events; `ModelSpec.parameters` may give it a start, a narrower
        range than 0 to 1 or a constraint, or hold it.
    """

    ratios: tuple[TermName, TermName]
    fraction: Text = "alpha"


class MassScaleSpec(Record):
    """Error of a mass of the signal that more data do not make smaller: the network finds a signal of mass m somewhat off m.

    Parameters
    ----------
    absolute : float
        In the unit of the mass.
    relative : float
        As a share of the mass; both add in quadrature.
    """

    absolute: NonNegative = 0.0
    relative: NonNegative = 0.0

    def sigma(self, mass: float) -> float:
        """Standard deviation at a mass, in its unit."""
        return math.hypot(self.absolute, self.relative * mass)


class SignalSpec(Record):
    """Signal: its mass shape, ratio terms in the features, yield and uncertainties; or its density, learned from the data.

    Parameters
    ----------
    mass : ShapeSpec, optional
        p_s(m); missing only beside `density`.
    ratios : sequence of str
        Names of terms whose log ratios add to the log ratio of the mass densities.
    modes : ModesSpec, optional
        Two ratio terms of which the signal is a mixture.
    density : str, optional
        Name of a term with the joint density p_s(m, x), in place of `mass` and `ratios`.
    yield : YieldSpec
        Parameter of interest and nominal yield.
    spurious : SpuriousSpec
        Spurious signal.
    efficiency : dict of str to float
        Nuisance parameter to the relative standard deviation of the signal efficiency that it causes.
    grid_step : dict of str to float
        For ratios that depend on parameters of the signal: largest distance of the nodes at which they are evaluated, by
        parameter; by default 1/22 of its range.
    mass_scale : dict of str to MassScaleSpec
        For such ratios: standard deviation by which their parameters may be off; constrained nuisance parameters of the fit.
    ensemble : {"mean", "profiled"}
        Whether the spread of the members of each ratio is profiled: a nuisance parameter a member. It needs reference events.
    """

    mass_: ShapeSpec | None = Field(default=None, alias="mass")
    ratios: tuple[TermName, ...] = ()
    modes: ModesSpec | None = None
    density: TermName | None = None
    yield_: YieldSpec = Field(default_factory=YieldSpec, alias="yield")
    spurious: SpuriousSpec = Field(default_factory=SpuriousSpec)
    efficiency: dict[str, Positive] = Field(default_factory=dict)
    grid_step: dict[str, Positive] = Field(default_factory=dict)
    mass_scale: dict[str, MassScaleSpec] = Field(default_factory=dict)
    ensemble: Literal["mean", "profiled"] = "mean"

    @property
    def all_ratios(self) -> tuple[str, ...]:
        """Names of all ratio terms, those of decay modes last."""
        return (*self.ratios, *(self.modes.ratios if self.modes is not None else ()))

    @property
    def mass(self) -> ShapeSpec:
        """The mass shape.

        Raises
        ------
        ModelError
            If the signal is a density learned from data, which has none of its own.
        """
        if self.mass_ is None:
            raise ModelError(
                f"the signal is the learned density {self.density!r} and has no mass shape of its own: its fraction of the data has "
                "a lower limit only, by gbistat limits"
            )
        return self.mass_

    @model_validator(mode="after")
    def _check_density(self) -> Self:
        if self.density is None and self.mass_ is None:
            raise ValueError("mass is missing; add it")
        if self.density is not None and (self.mass_ is not None or self.all_ratios):
            raise ValueError(f"density {self.density!r} already says what the signal is; remove mass, ratios and modes")
        return self
