"""The card of a signal learned from the data: a joint density p_s(m, x) in a window, with the background frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from gbistat.errors import CardError
from gbistat.terms.metadata import TermName, Unit  # noqa: TC001  # pydantic reads annotations at run time
from gbistat.terms.validation import Count, Interval, NonNegative, Positive, Record, Text, validate
from gbistat.training.background_card import FlowSpec
from gbistat.training.card import CARD_SCHEMA, AtLeastOne, FileName, Share, read_card_of

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["DataSpec", "FoldPart", "FractionSpec", "RanodeCard", "RanodeOptimiserSpec", "load_ranode_card"]

FEWEST_PARTS = 4


class DataSpec(Record):
    """The file of data.

    Parameters
    ----------
    file : str
        Name of the file in the folder `events` of the card.
    unit : str
        Energy unit of the file.
    mapping : dict of str to str
        Names of columns of the file for the mass and the features.
    """

    file: FileName
    unit: Unit = "GeV"
    mapping: dict[str, Text] = Field(default_factory=dict)


class FoldPart(Record):
    """Cross-fitting: networks of a fold are trained on events of other folds only.

    Parameters
    ----------
    n_folds : int
        K.
    members : int
        M, networks a fold; each leaves out another part of its training events, on which it is validated.
    train_on : {"others", "earlier"}
        Folds that the networks of fold k see: all others, or those before it. With the latter the evidence of the folds multiplies,
        and the first fold, whose networks see all others, gives none (`gbistat.inference.split_likelihood`).
    """

    n_folds: Annotated[int, Field(strict=True, ge=2, le=20)] = 5
    members: Annotated[int, Field(strict=True, ge=1, le=50)] = 4
    train_on: Literal["others", "earlier"] = "others"

    @property
    def parts(self) -> int:
        """Parts of the training events of a fold; a network is trained on all but one."""
        return max(self.members, FEWEST_PARTS)


class FractionSpec(Record):
    """The fraction w of signal in the window, in the loss of the networks.

    Parameters
    ----------
    mode : {"learnable", "fixed", "scan"}
        Learned beside the weights; held at `start`; or held at each of `values`, the best of which is kept in each fold.
    start : float
        Value at the start of the training.
    values : sequence of float
        For a scan: two at least.
    rate : float
        Learning rate of the logit of a learnable w, relative to that of the weights.
    """

    mode: Literal["learnable", "fixed", "scan"] = "learnable"
    start: Share = 0.01
    values: tuple[Share, ...] = ()
    rate: Positive = 1.0

    @model_validator(mode="after")
    def _check_values(self) -> Self:
        if self.mode == "scan" and (len(self.values) < 2 or len(set(self.values)) < len(self.values)):
            raise ValueError(f"a scan needs two values of w at least, each once; values is {list(self.values)}")
        if self.mode != "scan" and self.values:
            raise ValueError(f"values belong to a scan, and mode is {self.mode!r}; remove them")
        return self

    @property
    def starts(self) -> tuple[float, ...]:
        """Start values, one a stack of networks."""
        return self.values if self.mode == "scan" else (self.start,)


class RanodeOptimiserSpec(Record):
    """AdamW on stacks of networks.

    Parameters
    ----------
    epochs : int
        Most epochs. At the start of each, every event is evaluated, and batches are drawn such that probable signal events are in
        them often, with weights that undo the preference.
    steps : int
        Steps an epoch.
    batch_size : int
        Events a step of each network.
    learning_rate : float
        At the start; it falls to 0 along half a cosine over `epochs`.
    weight_decay : float
        Of AdamW.
    clip_norm : float
        Largest norm of the gradient of one network.
    jitter : float
        Standard deviation of Gaussian noise added to the transformed features of every training batch, in units of the
        spread of the data; 0 for none.
    patience : int
        Epochs without a better validation loss of its fold after which a network is left as it is.
    average : int
        Epochs whose weights are averaged.
    keep : {"best", "last"}
        Whether these are the epochs with the smallest validation losses of the fold, or the last ones.
    """

    epochs: AtLeastOne = 12
    steps: AtLeastOne = 16
    batch_size: AtLeastOne = 512
    learning_rate: Positive = 2e-3
    weight_decay: NonNegative = 0.0
    clip_norm: Positive = 1.0
    jitter: NonNegative = 0.0
    patience: AtLeastOne = 12
    average: AtLeastOne = 3
    keep: Literal["best", "last"] = "last"


class RanodeCard(Record):
    """Training of a signal density on data (R-ANODE, arXiv:2312.11629), cross-fitted.

    Parameters
    ----------
    kind : {"ranode"}
        Kind of training.
    name, term : str
        Names of the model and of its term.
    description : str
        One line on what the model is.
    events : str
        Folder of the file of data, relative to the working directory.
    data : DataSpec
        The file.
    seed : int
        The one seed: folds, initial weights, order of the batches and noise follow from it.
    generator : str
        Name or folder of the model whose background generator is frozen in the likelihood.
    window : (float, float), optional
        Window of the mass, in the unit of the generator; its own by default.
    folds, fraction, flow, optimiser : FoldPart, FractionSpec, FlowSpec, RanodeOptimiserSpec
        Cross-fitting, the fraction of signal, the networks, their training.
    """

    schema_name: Literal["gbistat.training/1"] = Field(default=CARD_SCHEMA, alias="schema")
    kind: Literal["ranode"]
    name: TermName
    term: TermName = "learned-signal"
    description: str = ""
    events: Text = "."
    data: DataSpec
    seed: Count
    generator: Text = "dijet-background"
    window: Interval | None = None
    folds: FoldPart = Field(default_factory=FoldPart)
    fraction: FractionSpec = Field(default_factory=FractionSpec)
    flow: FlowSpec = Field(default_factory=lambda: FlowSpec(layers=3, hidden=(32, 32), bins=8, bound=8.0))
    optimiser: RanodeOptimiserSpec = Field(default_factory=RanodeOptimiserSpec)

    @model_validator(mode="after")
    def _check_flow(self) -> Self:
        if self.flow.transform != "spline":
            raise ValueError(f"flow.transform is {self.flow.transform!r}; a stack of signal flows is made of splines")
        return self


def load_ranode_card(path: str | Path) -> RanodeCard:
    """Read the card of a signal learned from data.

    Raises
    ------
    CardError
        If it cannot be read, is not YAML, is the card of another kind of training, or an entry is wrong.
    """
    return validate(RanodeCard, read_card_of("ranode", path), error=CardError, where=str(path))
