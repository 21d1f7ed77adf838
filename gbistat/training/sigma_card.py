"""The card of a SIGMA training: one generator of all the data, exported for one window or asked for any."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from gbistat.errors import CardError
from gbistat.terms.metadata import TermName  # noqa: TC001  # pydantic reads annotations at run time
from gbistat.terms.validation import Count, Interval, NonNegative, Positive, Record, Text, validate
from gbistat.training.background_card import BackgroundPart, FeatureInput  # noqa: TC001
from gbistat.training.card import CARD_SCHEMA, AtLeastOne, BackgroundSample, Share, read_card_of
from gbistat.training.sigma_run import SigmaOptions

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["SigmaCard", "SigmaSpec", "load_sigma_card"]


class SigmaSpec(Record):
    """Network and training; see `gbistat.training.sigma_run.SigmaOptions`."""

    width: AtLeastOne = SigmaOptions.width
    blocks: AtLeastOne = SigmaOptions.blocks
    context: AtLeastOne = SigmaOptions.context
    mass_frequencies: Count = SigmaOptions.mass_frequencies
    time_frequencies: Count = SigmaOptions.time_frequencies
    path_width: NonNegative = SigmaOptions.path_width
    epochs: AtLeastOne = SigmaOptions.epochs
    batch_size: AtLeastOne = SigmaOptions.batch_size
    learning_rate: Positive = SigmaOptions.learning_rate
    weight_decay: NonNegative = SigmaOptions.weight_decay
    patience: AtLeastOne = SigmaOptions.patience
    averaged: AtLeastOne = SigmaOptions.averaged
    validation: Share = SigmaOptions.validation

    def options(self, seed: int) -> SigmaOptions:
        """The same with a seed, for the training."""
        return SigmaOptions(**self.model_dump(), seed=seed)


class SigmaCard(Record):
    """Training of p_b(x | m) by conditional flow matching on events of every mass.

    Parameters
    ----------
    kind : {"sigma"}
        Kind of training.
    name, term : str
        Names of the exported model and of its term.
    description : str
        One line on what the model is.
    events : str
        Folder of the file of events, relative to the working directory.
    seed : int
        The one seed.
    mass : str
        Name of the mass, the first of `inputs`.
    inputs : sequence of FeatureInput
        The mass, and 1 to 6 features.
    background : BackgroundSample
        Events, the window among them; only the part ``train`` of the split is looked at.
    window : (float, float)
        For which the model is exported.
    buffer : float
        How far outside the window the context is taken at either side, in the unit of the mass.
    train_range : (float, float)
        Range of the mass of the training.
    steps : int
        Runge-Kutta steps in the exported graphs.
    sigma : SigmaSpec
        Network and training.
    model : BackgroundPart
        What the exported model says besides.
    """

    schema_name: Literal["gbistat.training/1"] = Field(default=CARD_SCHEMA, alias="schema")
    kind: Literal["sigma"]
    name: TermName
    term: TermName
    description: str = ""
    events: Text = "."
    seed: Count
    mass: Text = "m_jj"
    inputs: Annotated[tuple[FeatureInput, ...], Field(min_length=2, max_length=7)]
    background: BackgroundSample
    window: Interval
    buffer: NonNegative = 0.0
    train_range: Interval
    steps: AtLeastOne = 10
    sigma: SigmaSpec = Field(default_factory=SigmaSpec)
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

    @property
    def edges(self) -> tuple[float, float]:
        """Where the interpolation of the context begins and ends."""
        return (self.window[0] - self.buffer, self.window[1] + self.buffer)

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = list(self.names)
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"inputs has {twice[0]!r} twice; a duplicated feature has no density, list it once")
        if names[0] != self.mass:
            raise ValueError(f"the mass {self.mass!r} is not the first of the inputs {names}; write it first")
        low, high = self.train_range
        if low <= 0:
            raise ValueError(f"train_range {[low, high]} reaches down to 0, and the network takes the log of the mass")
        if not low < self.edges[0] < self.edges[1] < high:
            raise ValueError(
                f"window {list(self.window)} with buffer {self.buffer:g} leaves nothing on both sides inside train_range "
                f"{[low, high]}; widen train_range or narrow the window"
            )
        part = self.model
        if part.valid[0] < low or part.valid[1] > high:
            raise ValueError(f"model.valid {list(part.valid)} is not inside train_range {[low, high]}; narrow it")
        return self


def load_sigma_card(path: str | Path) -> SigmaCard:
    """Read the card of a SIGMA training.

    Raises
    ------
    CardError
        If it cannot be read, is not YAML, is the card of another kind of training, or an entry is wrong.
    """
    return validate(SigmaCard, read_card_of("sigma", path), error=CardError, where=str(path))
