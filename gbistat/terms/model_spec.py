"""What a model is: the content of ``model.json``, and the ``model`` part of a run card without a network."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

import numpy as np
from pydantic import Discriminator, Field, Tag, model_validator

from gbistat.errors import ModelError, nearest
from gbistat.terms.metadata import FileRecord, TermName, Unit
from gbistat.terms.validation import Flag, Interval, JsonDict, NonNegative, Number, Positive, Record, Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.typing import FloatArray

__all__ = [
    "MODEL_SCHEMA",
    "AffineMap",
    "BackgroundSpec",
    "ConstraintSpec",
    "Link",
    "ModelMass",
    "ModelSpec",
    "ModesSpec",
    "ParameterSpec",
    "ReferenceFile",
    "ShapeSpec",
    "SignalSpec",
    "SpuriousSpec",
    "TiltSpec",
    "YieldSpec",
]

MODEL_SCHEMA: Final = "gbistat.model/1"


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
