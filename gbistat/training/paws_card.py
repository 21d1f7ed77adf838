"""The card of a parametrised classifier: a density ratio that depends on the masses of the signal's daughters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from gbistat.errors import CardError, nearest
from gbistat.terms.metadata import TermName, Unit  # noqa: TC001  # pydantic reads annotations at run time
from gbistat.terms.validation import Count, Interval, Positive, Record, Text, validate
from gbistat.training.card import (
    CARD_SCHEMA,
    AtLeastOne,
    BackgroundSample,
    FileName,
    InputSpec,
    ModelPart,
    NetworkSpec,
    OptimiserSpec,
    SignalSample,
    check_inside,
    read_card_of,
)

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Benchmark", "MassParameter", "PawsBackground", "PawsCard", "load_paws_card"]


class MassParameter(Record):
    """A mass of the signal, as a parameter of the ratio.

    Parameters
    ----------
    name : str
        Name of the parameter of the model.
    column : str
        Column of the signal file that holds the mass which each event was simulated with.
    unit : str
        Its unit.
    low, high : float
        Range; no event of the signal may be outside.
    """

    name: Text
    column: Text
    unit: Unit = "GeV"
    low: Positive
    high: Positive

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"{self.name!r}: low {self.low:g} is not below high {self.high:g}")
        return self


class Benchmark(Record):
    """Signal events of known masses that train nothing, to grade the ratio with.

    Parameters
    ----------
    file : str
        File of events.
    masses : sequence of float
        Masses of its signal, in the order of the card's parameters.
    """

    file: FileName
    masses: tuple[Positive, Positive]


class PawsBackground(BackgroundSample):
    """Background events, and what draws more of them.

    Parameters
    ----------
    file, split : str, Fractions
        Events. With a generator they fix the spectrum of the mass, outside its window, and grade the ratio, inside it; none
        trains.
    generator : str, optional
        Name or folder of an exported generator (``gbistat train background``) that has the card's inputs among its features, or
        two masses that they follow from.
    n_events : int
        Events of an epoch.
    pool : int
        Events drawn for each member of the classifier, of which every epoch takes `n_events` at random.
    """

    generator: Text | None = None
    n_events: AtLeastOne = 60_000
    pool: AtLeastOne = 240_000

    @model_validator(mode="after")
    def _check_pool(self) -> Self:
        if self.generator is not None and self.pool < self.n_events:
            raise ValueError(f"pool {self.pool} is smaller than n_events {self.n_events}; draw more")
        return self


class PawsCard(Record):
    """Training of a ratio p_s(x; m_X, m_Y) / p_b(x) by one classifier for all masses.

    Parameters
    ----------
    kind : {"paws"}
        Kind of training.
    name, term : str
        Names of the model and of its term.
    description : str
        One line on what the model is.
    events : str
        Folder of the files of events, relative to the working directory.
    seed : int
        The one seed: splits, resamples, drawn masses, initial weights and order of the batches follow from it.
    mass : str
        Name of the resonance's mass; it selects events and is no input.
    unit : str
        Its unit.
    inputs : sequence of InputSpec
        Features in the order of the graph.
    parameters : sequence of two MassParameter
        The masses.
    symmetric : bool
        Whether the ratio is the same when the masses are exchanged.
    smoothing : float
        The graph orders the masses a and b as (a + b) / 2 +- sqrt((a - b)^2 / 4 + smoothing^2), which is smooth at a = b.
    relative_smoothing : float, optional
        With it the graph orders the logarithms of the masses in that way, and `smoothing` is not used: the same shift of
        both at any mass.
    compare : (str, str), optional
        Features to compare with the larger and the smaller mass: the graph takes ln(feature / mass) as a further input.
    resolution : float
        What that logarithm is divided by: about the relative resolution of a jet's mass.
    peak : float, optional
        With it the graph also takes ln(1 + (ln(feature / mass) / peak)^2) of both features and both masses: the peaks of the
        ratio, which a network of few smooth units otherwise makes too wide. About the width of the peak of a jet's mass.
    near : float
        Share of background events that get masses which are likely for a signal event of their own jet masses, with weights
        that undo it. Masses drawn for all alike are seldom where the classes are hard to tell apart.
    rescale : float
        Largest change of ln(mass) by which the masses of a signal event and those of its jets (`compare`) are multiplied
        together, anew in every epoch: between the simulated points the network then sees signal too.
    background : PawsBackground
        Background events, or a generator of them.
    signal : SignalSample
        Signal events. ``data`` is a share of mass points, kept whole so that these masses are never trained;
        ``train`` and ``reference`` share the events of the others.
    benchmarks : sequence of Benchmark
        Files to grade with.
    train_range : (float, float)
        Range of the mass of background that trains.
    signal_range : (float, float)
        Range of the mass of signal that trains: features in the tails of the peak differ from those in it.
    copies : int
        How often a background event is used in an epoch, each time with other masses.
    compiled : bool
        Whether XLA compiles the training step, where the backend has it: worth it beyond some ten epochs.
    network, optimiser, model : NetworkSpec, OptimiserSpec, ModelPart
        The network, its training, and the exported model.
    """

    schema_name: Literal["gbistat.training/1"] = Field(default=CARD_SCHEMA, alias="schema")
    kind: Literal["paws"]
    name: TermName
    term: TermName
    description: str = ""
    events: Text = "."
    seed: Count
    mass: Text = "m_jj"
    unit: Unit = "GeV"
    inputs: Annotated[tuple[InputSpec, ...], Field(min_length=1)]
    parameters: tuple[MassParameter, MassParameter]
    symmetric: bool = True
    smoothing: Positive = 20.0
    relative_smoothing: Positive | None = None
    compare: tuple[Text, Text] | None = None
    resolution: Positive = 0.25
    peak: Positive | None = None
    near: Annotated[float, Field(strict=True, ge=0.0, lt=1.0)] = 0.0
    rescale: Annotated[float, Field(strict=True, ge=0.0, le=0.5)] = 0.0
    background: PawsBackground
    signal: SignalSample
    benchmarks: tuple[Benchmark, ...] = ()
    train_range: Interval
    signal_range: Interval
    copies: AtLeastOne = 2
    compiled: bool = True
    network: NetworkSpec
    optimiser: OptimiserSpec = Field(default_factory=OptimiserSpec)
    model: ModelPart

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the d features."""
        return tuple(item.name for item in self.inputs)

    @property
    def masses(self) -> tuple[str, str]:
        """Names of the two parameters."""
        first, second = self.parameters
        return first.name, second.name

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = [*self.features, *self.masses, self.mass]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            where = "the mass, which selects events, " if twice[0] == self.mass else ""
            raise ValueError(f"{where}{twice[0]!r} appears twice among inputs, parameters and mass; list it once")
        known = {item.name: item for item in self.inputs}
        for name in self.compare or ():
            if name not in known:
                raise ValueError(f"compare names {name!r}, which is not among the inputs; {nearest(name, known)}")
            if known[name].log_offset is None:
                raise ValueError(
                    f"compare takes the logarithm of {name!r}, which may be 0; give that input low and log_offset"
                )
        if self.compare is None and (self.near or self.rescale):
            raise ValueError("near and rescale need to know which features are masses of jets; give compare")
        files = [self.background.file, self.signal.file, *(item.file for item in self.benchmarks)]
        shared = [file for file in files if files.count(file) > 1]
        if shared:
            raise ValueError(f"the file {shared[0]!r} is used twice; each file has one role")
        return self

    @model_validator(mode="after")
    def _check_masses(self) -> Self:
        first, second = self.parameters
        if first.unit != second.unit:
            raise ValueError(f"{first.name!r} is in {first.unit} and {second.name!r} in {second.unit}; use one unit")
        if self.symmetric and (first.low, first.high) != (second.low, second.high):
            raise ValueError(
                f"a symmetric ratio needs one range for both masses, not {first.low:g}-{first.high:g} and "
                f"{second.low:g}-{second.high:g}"
            )
        return self

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        part = self.model
        check_inside(
            ("model.window", part.window, "model.valid", part.valid),
            ("model.valid", part.valid, "train_range", self.train_range),
            ("signal_range", self.signal_range, "train_range", self.train_range),
            ("train_range", self.train_range, "model.fit_range", part.fit_range),
        )
        return self


def load_paws_card(path: str | Path) -> PawsCard:
    """Read the card of a parametrised classifier.

    Raises
    ------
    CardError
        If it cannot be read, is not YAML, is the card of another kind of training, or an entry is wrong.
    """
    return validate(PawsCard, read_card_of("paws", path), error=CardError, where=str(path))
