"""The card of a training: what a network is learned from, how, and which model it becomes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

import yaml
from pydantic import AfterValidator, Field, model_validator

from gbistat.errors import CardError
from gbistat.terms.metadata import TermName, Unit  # noqa: TC001  # pydantic reads annotations at run time
from gbistat.terms.validation import Count, Interval, NonNegative, Number, Positive, Record, Text, validate

if TYPE_CHECKING:
    from gbistat.typing import Json

__all__ = [
    "CARD_SCHEMA",
    "BackgroundSample",
    "BalanceSpec",
    "Fractions",
    "InputSpec",
    "ModelPart",
    "NetworkSpec",
    "OptimiserSpec",
    "RatioCard",
    "SignalSample",
    "check_inside",
    "dump_card",
    "load_card",
    "read_card_of",
    "read_yaml",
]

CARD_SCHEMA: Final = "gbistat.training/1"
COMMANDS: Final = {
    "ratio": "ratio",
    "background": "background",
    "sigma": "background",
    "paws": "paws",
    "ranode": "ranode",
}
"""Verb of ``gbistat train`` for each kind of card."""

AtLeastOne = Annotated[int, Field(strict=True, ge=1)]
Share = Annotated[float, Field(strict=True, gt=0.0, lt=1.0)]


def _plain_name(file: str) -> str:
    if not file or file != Path(file).name or "\\" in file:
        raise ValueError(f"{file!r} is not a plain file name; the folder is given by 'events'")
    return file


FileName = Annotated[Text, AfterValidator(_plain_name)]


class Fractions(Record):
    """Parts into which the events of a file are split, once: each event has one role for ever.

    Parameters
    ----------
    train : float
        Learns the network (and, out of bag, stops its training).
    reference : float
        Fixes the normalisation and grades the network.
    data : float
        Stands for data: demonstrations and studies.
    """

    train: Share
    reference: Share
    data: Share

    @model_validator(mode="after")
    def _check_sum(self) -> Self:
        total = self.train + self.reference + self.data
        if abs(total - 1.0) > 1e-9:
            raise ValueError(f"train, reference and data add up to {total:g}; they must add up to 1")
        return self


class BackgroundSample(Record):
    """A file of background events."""

    file: FileName
    split: Fractions


class SignalSample(Record):
    """A file of signal events of one resonance mass, in the unit of the mass."""

    file: FileName
    resonance: Positive
    split: Fractions


class InputSpec(Record):
    """One input of the network.

    Parameters
    ----------
    name : str
        Mass or feature, as `gbistat.data.features` or the file names it.
    unit : str
        Unit of the raw value.
    low : float, optional
        Smallest valid value; larger than ``-log_offset`` where a logarithm is taken.
    log_offset : float, optional
        The graph takes ln(value + log_offset) before standardising; without it, the value itself is standardised.
    """

    name: Text
    unit: Unit = "1"
    low: Number | None = None
    log_offset: NonNegative | None = None

    @model_validator(mode="after")
    def _check_logarithm(self) -> Self:
        if self.log_offset is not None and (self.low is None or self.low + self.log_offset <= 0):
            raise ValueError(
                f"{self.name!r}: ln(value + {self.log_offset:g}) needs a low above {-self.log_offset:g}; give low"
            )
        return self


class BalanceSpec(Record):
    """How signal and background are brought to one distribution of the mass; see `gbistat.training.balance`.

    Parameters
    ----------
    resonances : (float, float)
        Range of resonance masses to which signal events are moved.
    core : float
        Signal events with abs(m / resonance - 1) below it are used.
    copies : int
        How often each signal event is moved for training.
    neighbours : int
        Events on either side from which the local density of events in the mass is estimated.
    """

    resonances: Interval
    core: Share
    copies: AtLeastOne = 2
    neighbours: AtLeastOne = 25


class NetworkSpec(Record):
    """Hidden layers. Only activations that ONNX can express in standard operators are offered."""

    hidden: Annotated[tuple[AtLeastOne, ...], Field(min_length=1)]
    activation: Literal["swish", "relu", "tanh"] = "swish"
    dropout: Annotated[float, Field(strict=True, ge=0.0, lt=1.0)] = 0.0


class OptimiserSpec(Record):
    """Ensemble and AdamW.

    Parameters
    ----------
    members : int
        Networks, each trained on its own bootstrap resample; their ratios are averaged.
    epochs : int
        Most epochs of a member.
    batch_size : int
        Events a step.
    learning_rate : float
        At the start.
    weight_decay : float
        Of AdamW.
    patience : int
        Epochs without a better validation loss after which a member stops. The best weights are kept.
    reduce_after : int
        Epochs without a better validation loss after which the learning rate is multiplied by `reduce_factor`.
    reduce_factor : float
        See `reduce_after`.
    """

    members: AtLeastOne = 3
    epochs: AtLeastOne = 50
    batch_size: AtLeastOne = 512
    learning_rate: Positive = 2e-3
    weight_decay: NonNegative = 0.01
    patience: AtLeastOne = 12
    reduce_after: AtLeastOne = 4
    reduce_factor: Share = 0.5


class ModelPart(Record):
    """What the exported model says besides the ratio.

    Parameters
    ----------
    window, valid : (float, float)
        Default and largest window; `valid` is also where the ratio is checked and normalised.
    fit_range : (float, float)
        Range of the mass of the background's fit to the sidebands, and of the fit of the signal's mass shape.
    background_parameters : int
        Parameters of the dijet function.
    sqrt_s : float
        Energy of the collisions in the unit of the mass, the scale of the dijet function.
    bins : int
        Mass bins in which E_b[r] is stored.
    spurious_signal : float
        Standard deviation, in events, of a spurious signal: what the background and the ratio may fake, measured on
        events without signal.
    reference : {"mixed", "background"}
        What ``reference.json`` holds: held-out background alone, or with held-out signal, both weighted such that
        together they stand for background (`gbistat.training.grading.Grader.mixed_reference`).
    """

    window: Interval
    valid: Interval
    fit_range: Interval
    background_parameters: Annotated[int, Field(strict=True, ge=2, le=5)] = 3
    sqrt_s: Positive = 13000.0
    bins: AtLeastOne = 10
    spurious_signal: NonNegative = 0.0
    reference: Literal["mixed", "background"] = "mixed"


class RatioCard(Record):
    """Training of a conditional density ratio p_s(x | m) / p_b(x | m).

    Parameters
    ----------
    kind : {"ratio"}
        Kind of training.
    name, term : str
        Names of the model and of its term.
    description : str
        One line on what the model is.
    events : str
        Folder of the files of events, relative to the working directory.
    seed : int
        The one seed: splits, resamples, initial weights and order of the batches follow from it.
    mass : str
        Name of the mass, one of `inputs`.
    inputs : sequence of InputSpec
        Inputs of the network in order.
    background, signals : BackgroundSample, sequence of SignalSample
        Events. The mass shape of the signal is fitted to the first signal and checked on the others.
    train_range : (float, float)
        Range of the mass in training, a little wider than ``model.valid``.
    """

    schema_name: Literal["gbistat.training/1"] = Field(default=CARD_SCHEMA, alias="schema")
    kind: Literal["ratio"] = "ratio"
    name: TermName
    term: TermName
    description: str = ""
    events: Text = "."
    seed: Count
    mass: Text = "m_jj"
    inputs: Annotated[tuple[InputSpec, ...], Field(min_length=2)]
    background: BackgroundSample
    signals: Annotated[tuple[SignalSample, ...], Field(min_length=1)]
    train_range: Interval
    balance: BalanceSpec
    network: NetworkSpec
    optimiser: OptimiserSpec = Field(default_factory=OptimiserSpec)
    model: ModelPart

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return tuple(item.name for item in self.inputs)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the inputs without the mass."""
        return tuple(name for name in self.names if name != self.mass)

    @property
    def mass_column(self) -> int:
        """Position of the mass among the inputs."""
        return self.names.index(self.mass)

    @property
    def unit(self) -> str:
        """Unit of the mass."""
        return self.inputs[self.mass_column].unit

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = [item.name for item in self.inputs]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"inputs has {twice[0]!r} twice; list it once")
        if self.mass not in names:
            raise ValueError(f"the mass {self.mass!r} is not among the inputs {names}; the ratio is conditional on it")
        files = [self.background.file, *(signal.file for signal in self.signals)]
        shared = [file for file in files if files.count(file) > 1]
        if shared:
            raise ValueError(f"the file {shared[0]!r} is used twice; each file has one role")
        return self

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        part = self.model
        check_inside(
            ("model.window", part.window, "model.valid", part.valid),
            ("model.valid", part.valid, "train_range", self.train_range),
            ("model.valid", part.valid, "model.fit_range", part.fit_range),
        )
        masses = [signal.resonance for signal in self.signals]
        if any(low >= high for low, high in itertools.pairwise(masses)):
            raise ValueError(f"the resonance masses {masses} do not increase; list the signals in order of mass")
        low, high = self.balance.resonances
        reach = (low * (1 + self.balance.core), high * (1 - self.balance.core))
        if reach[0] > self.train_range[0] or reach[1] < self.train_range[1]:
            raise ValueError(
                f"balance.resonances {[low, high]} moved by balance.core {self.balance.core:g} give full signal in "
                f"{reach[0]:g}-{reach[1]:g} only, and train_range is {list(self.train_range)}; widen resonances"
            )
        return self


def load_card(path: str | Path) -> RatioCard:
    """Read the card of a training.

    Parameters
    ----------
    path : path
        A YAML file.

    Raises
    ------
    CardError
        If it cannot be read, is not YAML, or an entry is wrong (named, with what is allowed).
    """
    return validate(RatioCard, read_card_of("ratio", path), error=CardError, where=str(path))


def read_card_of(kind: str, path: str | Path) -> Json:
    """Plain data of a card, which has to be of one kind of training.

    Raises
    ------
    CardError
        As :func:`read_yaml`; or if the card is of another kind: with the command that trains it.
    """
    data = read_yaml(path)
    found = data.get("kind", "ratio")
    if found != kind and found in COMMANDS:
        raise CardError(
            f"{path} is the card of a {found} training; train it with: gbistat train {COMMANDS[found]} {path}"
        )
    return data


def check_inside(*chain: tuple[str, Interval, str, Interval]) -> None:
    """Refuse an interval of a card that is not inside another one: each link is (name, interval, name of the outer, outer).

    Raises
    ------
    ValueError
        Naming both; pydantic makes an error of the card of it.
    """
    for name, inner, other, outer in chain:
        if inner[0] < outer[0] or inner[1] > outer[1]:
            raise ValueError(f"{name} {list(inner)} is not inside {other} {list(outer)}; narrow it or widen that")


def read_yaml(path: str | Path) -> Json:
    """Plain data of a card.

    Raises
    ------
    CardError
        If it cannot be read or is not YAML, or does not map names to values.
    """
    where = Path(path)
    try:
        data = yaml.safe_load(where.read_text(encoding="utf-8"))
    except OSError as problem:
        raise CardError(f"{where} cannot be read: {problem.strerror or problem}; give the path of a card") from None
    except UnicodeDecodeError:
        raise CardError(f"{where} is not UTF-8 text; give the path of a card, a YAML file") from None
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        place = "" if mark is None else f" at line {mark.line + 1}, column {mark.column + 1}"
        text = getattr(problem, "problem", None) or "it cannot be parsed"
        raise CardError(f"{where} is not YAML: {text}{place}; repair it") from None
    if not isinstance(data, dict):
        raise CardError(f"{where} holds no mapping of names to values; is it the card of a training?")
    return data


def dump_card(card: Record) -> bytes:
    """YAML of a card, complete with its defaults."""
    return yaml.safe_dump(card.to_json(), sort_keys=False, default_flow_style=None, width=110).encode()
