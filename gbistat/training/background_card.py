"""The card of a background generator: the density of the features at given mass, learned from sidebands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from gbistat.errors import CardError
from gbistat.terms.metadata import TermName, Unit  # noqa: TC001  # pydantic reads annotations at run time
from gbistat.terms.validation import Count, Interval, NonNegative, Number, Positive, Record, Text, validate
from gbistat.training.card import CARD_SCHEMA, AtLeastOne, BackgroundSample, Share, check_inside, read_card_of

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "BackgroundCard",
    "BackgroundPart",
    "FeatureInput",
    "FlowOptimiserSpec",
    "FlowSpec",
    "load_background_card",
]


class FeatureInput(Record):
    """The mass, or a feature whose density is learned.

    Parameters
    ----------
    name : str
        As `gbistat.data.features` or the file names it.
    unit : str
        Unit of the raw value.
    low, high : float, optional
        Known ends of a feature's range, such as 0 for a mass. Without them the range of the sidebands is widened by
        ``margin``. The density lives on the open range: events at or beyond an end are counted and left out.
    """

    name: Text
    unit: Unit = "1"
    low: Number | None = None
    high: Number | None = None

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"{self.name!r}: low {self.low:g} is not below high {self.high:g}")
        return self


class FlowSpec(Record):
    """Architecture of a flow; see `gbistat.training.autoregressive`.

    Parameters
    ----------
    transform : {"spline", "affine"}
        What one layer does to a feature: a rational-quadratic spline, or a shift and a scale.
    layers : int
        Autoregressive layers; the order of the features is reversed from one to the next.
    hidden : sequence of int
        Hidden units of each layer's network.
    activation : {"swish", "relu", "tanh"}
        Of the hidden units; only what ONNX expresses in standard operators.
    bins : int
        Bins of a spline.
    bound : float
        A spline bends inside [-bound, bound] of the standardised features and is the identity outside.
    """

    transform: Literal["spline", "affine"] = "spline"
    layers: AtLeastOne = 3
    hidden: Annotated[tuple[AtLeastOne, ...], Field(min_length=1)] = (64, 64)
    activation: Literal["swish", "relu", "tanh"] = "swish"
    bins: Annotated[int, Field(strict=True, ge=2, le=64)] = 8
    bound: Positive = 5.0


class FlowOptimiserSpec(Record):
    """Ensemble and AdamW.

    Parameters
    ----------
    members : int
        Flows, each trained on its own bootstrap resample of the sideband events; their densities are averaged.
    epochs : int
        Most epochs of a member.
    batch_size : int
        Events a step.
    learning_rate : float
        At the start; it falls to 0 along half a cosine over `epochs`.
    weight_decay : float
        Of AdamW.
    clip_norm : float
        Largest norm of a gradient.
    patience : int
        Epochs without a better validation loss after which a member stops.
    average : int
        Best epochs whose weights are averaged, if the average has a smaller validation loss than the best alone.
    select : {"loss", "argos"}
        What makes an epoch a good one: a small validation loss, or a small ARGOS of the validation events against the
        flow's own samples, see `gbistat.training.epoch_choice`. The second looks for a part of phase space where data
        exceed the generator, which is what a search takes for signal. It selects, and is never a p-value. When a member
        stops is decided by the loss.
    """

    members: AtLeastOne = 5
    epochs: AtLeastOne = 32
    batch_size: AtLeastOne = 512
    learning_rate: Positive = 5e-4
    weight_decay: NonNegative = 0.0
    clip_norm: Positive = 10.0
    patience: AtLeastOne = 12
    average: AtLeastOne = 8
    select: Literal["loss", "argos"] = "loss"


class BackgroundPart(Record):
    """What the exported model says besides the density of the features.

    Parameters
    ----------
    valid : (float, float)
        Largest window.
    fit_range : (float, float)
        Range of the fit of the mass to the sidebands.
    background_parameters : int
        Parameters of the dijet function.
    sqrt_s : float
        Energy of the collisions in the unit of the mass, the scale of the dijet function.
    """

    valid: Interval
    fit_range: Interval
    background_parameters: Annotated[int, Field(strict=True, ge=2, le=5)] = 3
    sqrt_s: Positive = 13000.0


class BackgroundCard(Record):
    """Training of a conditional density p_b(x | m) on the sidebands of a window.

    Parameters
    ----------
    kind : {"background"}
        Kind of training.
    name, term : str
        Names of the model and of its term.
    description : str
        One line on what the model is.
    events : str
        Folder of the file of events, relative to the working directory.
    seed : int
        The one seed: split, resamples, initial weights and order of the batches follow from it.
    mass : str
        Name of the mass, the first of `inputs`.
    inputs : sequence of FeatureInput
        The mass, and the features in the order of the flow.
    background : BackgroundSample
        Events; only the part ``train`` of the split is looked at.
    window : (float, float)
        Blinded: no event inside is ever trained on.
    train_range : (float, float)
        Outer ends of the sidebands.
    margin : float
        Share of its length by which the range of a feature is widened where no end is known.
    flow, optimiser, model : FlowSpec, FlowOptimiserSpec, BackgroundPart
        The network, its training, and the exported model.
    """

    schema_name: Literal["gbistat.training/1"] = Field(default=CARD_SCHEMA, alias="schema")
    kind: Literal["background"]
    name: TermName
    term: TermName
    description: str = ""
    events: Text = "."
    seed: Count
    mass: Text = "m_jj"
    inputs: Annotated[tuple[FeatureInput, ...], Field(min_length=2)]
    background: BackgroundSample
    window: Interval
    train_range: Interval
    margin: Share = 0.02
    flow: FlowSpec = Field(default_factory=FlowSpec)
    optimiser: FlowOptimiserSpec = Field(default_factory=FlowOptimiserSpec)
    model: BackgroundPart

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the inputs, the mass first."""
        return tuple(item.name for item in self.inputs)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the d features."""
        return self.names[1:]

    @property
    def unit(self) -> str:
        """Unit of the mass."""
        return self.inputs[0].unit

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = list(self.names)
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"inputs has {twice[0]!r} twice; a duplicated feature has no density, list it once")
        if names[0] != self.mass:
            raise ValueError(f"the mass {self.mass!r} is not the first of the inputs {names}; write it first")
        return self

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        low, high = self.train_range
        if low <= 0:
            raise ValueError(f"train_range {[low, high]} reaches down to 0, and the flow takes the log of the mass")
        if not low < self.window[0] < self.window[1] < high:
            raise ValueError(
                f"window {list(self.window)} leaves no sideband on both sides inside train_range {[low, high]}; "
                "widen train_range or narrow the window"
            )
        part = self.model
        check_inside(
            ("window", self.window, "model.valid", part.valid),
            ("model.valid", part.valid, "train_range", (low, high)),
            ("model.valid", part.valid, "model.fit_range", part.fit_range),
        )
        return self


def load_background_card(path: str | Path) -> BackgroundCard:
    """Read the card of a background training.

    Raises
    ------
    CardError
        If it cannot be read, is not YAML, is the card of another kind of training, or an entry is wrong.
    """
    return validate(BackgroundCard, read_card_of("background", path), error=CardError, where=str(path))
