"""What a model is: the content of ``model.json``, and the ``model`` part of a run card without a network."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from gbistat.errors import ModelError, nearest
from gbistat.terms.metadata import FileRecord, TermName, Unit
from gbistat.terms.shape_spec import ShapeSpec  # noqa: TC001  # pydantic reads annotations at run time
from gbistat.terms.signal_spec import SignalSpec  # noqa: TC001
from gbistat.terms.validation import Flag, Interval, JsonDict, Number, Positive, Record, Text

__all__ = [
    "MODEL_SCHEMA",
    "BackgroundSpec",
    "ConstraintSpec",
    "ModelMass",
    "ModelSpec",
    "ParameterSpec",
    "ReferenceFile",
    "TiltSpec",
]

MODEL_SCHEMA: Final = "gbistat.model/1"


class ConstraintSpec(Record):
    """Gaussian constraint from an auxiliary measurement."""

    mean: Number
    sigma: Positive


class ParameterSpec(Record):
    """Start value, bounds and constraint of a model parameter; ``null`` leaves a side open."""

    start: Number
    low: Number | None = None
    high: Number | None = None
    constraint: ConstraintSpec | None = None
    fixed: Flag = False

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        below = self.low is not None and self.start < self.low
        above = self.high is not None and self.start > self.high
        if below or above:
            raise ValueError(
                f"start {self.start:g} is outside its range [{_edge(self.low, '-inf')}, {_edge(self.high, 'inf')}]; "
                "move the start or the range"
            )
        return self


def _edge(value: float | None, text: str) -> str:
    return text if value is None else f"{value:g}"


def _order_kind(value: Any) -> str:
    return "name" if isinstance(value, str) else "number"


BackgroundOrder = Annotated[
    Annotated[Literal["auto", "aic", "bic"], Tag("name")]
    | Annotated[int, Field(strict=True, ge=1, le=20), Tag("number")],
    Discriminator(_order_kind),
]


class TiltSpec(Record):
    """Nuisance that moves the background towards what a classifier saw in data: p_b w^nu / Z(nu).

    Parameters
    ----------
    term : str
        A ratio w = p_data / p_gen of data to the generated (or reference) events, for events of the window.
    parameter : str
        Name of nu: 0 is the background as it is, 1 the background corrected by w.
    sigma : float
        Standard deviation of its constraint, around 0.
    """

    term: TermName
    parameter: Text = "background_tilt"
    sigma: Positive = 1.0


class BackgroundSpec(Record):
    """Background: its mass shape, the range of the sideband fit, and how its yield is treated.

    Parameters
    ----------
    mass : ShapeSpec
        p_b(m).
    features : str, optional
        Term with p_b(x | m).
    fit_range : (float, float)
        Range of the mass whose part outside the window is fitted.
    yield : {"sideband", "free", "fixed"}
        Constrained by the sideband fit, free, or held at its prediction.
    order : {"auto", "aic", "bic"} or int, optional
        How many parameters a nested shape (dijet, bernstein, chebyshev) gets: a number, or chosen on the sidebands by a
        likelihood-ratio test ("auto") or an information criterion. Without it, what ``mass.options`` says.
    tilt : TiltSpec, optional
        Nuisance of the features; it needs reference events or a generator, whose events normalise it.
    """

    mass: ShapeSpec
    features: TermName | None = None
    fit_range: Interval
    yield_: Literal["sideband", "free", "fixed"] = Field(default="sideband", alias="yield")
    order: BackgroundOrder | None = None
    tilt: TiltSpec | None = None

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.order is not None and not self.mass.is_free:
            raise ValueError(
                "order is given, and so are the parameters of mass: nothing is left to choose; remove one of the two"
            )
        return self


class ReferenceFile(FileRecord):
    """Held-out background events beside the model."""

    description: str = ""


class ModelMass(Record):
    """Name and unit of the resonance mass."""

    name: Text = "m_jj"
    unit: Unit = "GeV"


class ModelSpec(Record):
    """Content of ``model.json``.

    In a run card for a model without a network, `terms`, `reference` and `window` may be left out.

    Parameters
    ----------
    name : str
        Name of the model.
    description : str
        One line on what it is.
    mass : ModelMass
        Name and unit of the mass; every other mass in the model is in this unit.
    features : sequence of str
        Features that events must have.
    window : (float, float), optional
        Default window.
    valid : (float, float), optional
        Largest window for which the model was checked.
    signal : SignalSpec, optional
        A model without one is a background alone, such as a sideband generator.
    background : BackgroundSpec
        The other component.
    parameters : dict of str to ParameterSpec
        Model parameters that shapes refer to; the parameter of interest may be among them.
    terms : sequence of str
        Terms in ``terms/<name>/``.
    reference : ReferenceFile, optional
        Pool of held-out background events.
    files : sequence of FileRecord
        Other files of the folder whose hashes are checked.
    provenance : dict
        Where the model comes from, as JSON.

    See Also
    --------
    gbistat.terms.validation.validate : makes one from plain data, with readable errors.
    """

    schema_name: Literal["gbistat.model/1"] = Field(default=MODEL_SCHEMA, alias="schema")
    name: TermName = "inline"
    description: str = ""
    mass: ModelMass = Field(default_factory=ModelMass)
    features: tuple[Text, ...] = ()
    window: Interval | None = None
    valid: Interval | None = None
    signal_: SignalSpec | None = Field(default=None, alias="signal")
    background: BackgroundSpec
    parameters: dict[str, ParameterSpec] = Field(default_factory=dict)
    terms: tuple[TermName, ...] = ()
    reference: ReferenceFile | None = None
    files: tuple[FileRecord, ...] = ()
    provenance: JsonDict = Field(default_factory=dict)

    @property
    def has_signal(self) -> bool:
        """Whether the model says what signal is."""
        return self.signal_ is not None

    @property
    def signal(self) -> SignalSpec:
        """The signal.

        Raises
        ------
        ModelError
            If the model is a background alone.
        """
        if self.signal_ is None:
            raise ModelError(
                f"model {self.name!r} is a background without a signal; use it beside a model: --background {self.name}"
            )
        return self.signal_

    @property
    def poi(self) -> str:
        """Name of the parameter of interest."""
        return self.signal.yield_.poi

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        fit_range = self.background.fit_range
        for what, interval in (("window", self.window), ("valid", self.valid)):
            if interval is not None and not (fit_range[0] <= interval[0] and interval[1] <= fit_range[1]):
                raise ValueError(
                    f"{what} {_span(interval)} is not inside background.fit_range {_span(fit_range)} "
                    f"{self.mass.unit}; narrow the one or widen the other"
                )
        window, valid = self.window, self.valid
        if window is not None and valid is not None and not (valid[0] <= window[0] and window[1] <= valid[1]):
            raise ValueError(f"window {_span(window)} is not inside valid {_span(valid)} {self.mass.unit}")
        return self

    @model_validator(mode="after")
    def _check_references(self) -> Self:
        shapes = [] if self.signal_ is None or self.signal_.mass_ is None else [("signal", self.signal_.mass_)]
        for where, shape in (*shapes, ("background", self.background.mass)):
            for name in shape.model_parameters:
                if name not in self.parameters:
                    raise ValueError(
                        f"{where}.mass.parameters refers to {name!r}, which is not in parameters; "
                        f"{nearest(name, self.parameters)}"
                    )
        for name in self.signal.all_ratios if self.has_signal else ():
            if name not in self.terms:
                where = "signal.ratios" if name in self.signal.ratios else "signal.modes.ratios"
                raise ValueError(f"{where} has {name!r}, which is not in terms; {nearest(name, self.terms)}")
        density = None if self.signal_ is None else self.signal_.density
        if density is not None and density not in self.terms:
            raise ValueError(f"signal.density is {density!r}, which is not in terms; {nearest(density, self.terms)}")
        features = self.background.features
        if density is not None and features is None:
            raise ValueError("signal.density needs background.features: the generator that the signal was learned with")
        if features is not None and features not in self.terms:
            raise ValueError(
                f"background.features is {features!r}, which is not in terms; {nearest(features, self.terms)}"
            )
        tilt = self.background.tilt
        if tilt is not None and tilt.term not in self.terms:
            raise ValueError(
                f"background.tilt has {tilt.term!r}, which is not in terms; {nearest(tilt.term, self.terms)}"
            )
        if features is None and not self.has_signal:
            raise ValueError("signal is missing; add it (only a background with background.features stands alone)")
        return self

    @model_validator(mode="after")
    def _check_unique(self) -> Self:
        ratios = self.signal.all_ratios if self.has_signal else ()
        for what, names in (("features", self.features), ("terms", self.terms), ("signal (ratios and modes)", ratios)):
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise ValueError(f"{what} has {twice[0]!r} twice; list it once")
        if self.mass.name in self.features:
            raise ValueError(f"features has the mass {self.mass.name!r}; the mass is always read, list only the others")
        if not self.has_signal:
            return self
        modes = self.signal.modes
        if modes is not None and modes.fraction == self.poi:
            raise ValueError(
                f"signal.modes.fraction is {modes.fraction!r}, the parameter of interest; choose another name"
            )
        taken = {*self.parameters, self.poi, *([] if modes is None else [modes.fraction])}
        for name in self.signal.efficiency:
            if name in taken:
                raise ValueError(f"signal.efficiency names {name!r}, which is already a parameter; choose another name")
        tilt = self.background.tilt
        if tilt is not None and tilt.parameter in {*taken, *self.signal.efficiency}:
            raise ValueError(
                f"background.tilt names {tilt.parameter!r}, which is already a parameter; choose another name"
            )
        return self


def _span(interval: tuple[float, float]) -> str:
    return f"{interval[0]:g}-{interval[1]:g}"
