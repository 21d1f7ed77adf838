"""What an exported term is: the content of ``term.json``."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, Strict, model_validator

from gbistat.data.events import ENERGY_UNITS
from gbistat.errors import nearest
from gbistat.terms.cross_fit import CrossFit  # noqa: TC001  # pydantic reads annotations at run time
from gbistat.terms.validation import Count, JsonDict, NonNegative, Number, Record, Text

if TYPE_CHECKING:
    from gbistat.typing import Json

__all__ = [
    "TERM_SCHEMA",
    "CertificateRecord",
    "DataRecord",
    "FeatureSpec",
    "FileRecord",
    "LogKappa",
    "MassSpec",
    "Parity",
    "Quantity",
    "TermMetadata",
    "Training",
    "Unit",
    "json_schema",
]

TERM_SCHEMA: Final = "gbistat.term/1"
_HEX = r"^[0-9a-f]{64}$"


def _known_unit(unit: str) -> str:
    for known in ENERGY_UNITS:
        if unit != known and unit.lower() == known.lower():
            raise ValueError(f"unit {unit!r} is not known; write {known!r}")
    return unit


Unit = Annotated[Text, AfterValidator(_known_unit)]


def _folder_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(f"the name {name!r} cannot be a folder's name; use letters, digits, '.', '_' and '-' only")
    return name


TermName = Annotated[str, Strict(), AfterValidator(_folder_name)]


class FileRecord(Record):
    """A file and the hash of its bytes.

    Parameters
    ----------
    file : str
        Path relative to the folder of the JSON file that names it, with ``/`` between folders.
    sha256 : str
        64 hexadecimal digits.
    """

    file: Text
    sha256: Annotated[str, Field(pattern=_HEX)]


class Quantity(Record):
    """A number with a unit and the range in which the term is valid; ``null`` leaves a side open."""

    name: Text
    unit: Unit = "1"
    low: Number | None = None
    high: Number | None = None

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"{self.name!r}: low {self.low:g} is not below high {self.high:g}")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """``(low, high)``, infinite where a side is open."""
        return (-math.inf if self.low is None else self.low, math.inf if self.high is None else self.high)


class FeatureSpec(Quantity):
    """One input of the graph.

    Parameters
    ----------
    role : {"feature", "conditional"}
        ``conditional`` for an input that a density is conditioned on, p(x | m); the mass may be one.
    transform : str, optional
        What the graph does with the raw value, in words: pre-processing is inside the graph.
    """

    role: Literal["feature", "conditional"] = "feature"
    transform: str | None = None


class MassSpec(Record):
    """The resonance mass and the range in which the term was learned and checked."""

    name: Text
    unit: Unit = "GeV"
    low: Number
    high: Number

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """``(low, high)``."""
        return (self.low, self.high)


class LogKappa(Record):
    """Natural log of the normalisation kappa of a ratio, fixed by E_b[r] = 1.

    A classifier with logit l gives r = kappa exp(l) with kappa = 1 / E_b[exp(l)].

    Parameters
    ----------
    value : float
        ln kappa, added to the graph's output.
    sigma : float
        Its standard deviation: what a likelihood profiles.
    method : str
        How it was found, for example ``"mean of exp(logit) over held-out background"``.
    n_reference : int, optional
        Number of reference events.
    effective_size : float, optional
        (sum o)^2 / sum o^2 of the weights o = exp(l): few events dominate a heavy-tailed mean.
    """

    value: Number
    sigma: NonNegative
    method: Text
    n_reference: Count | None = None
    effective_size: NonNegative | None = None


class Parity(Record):
    """Largest and mean absolute difference between the trained network and the exported graphs, natural logs."""

    max_abs: NonNegative
    mean_abs: NonNegative
    n_events: Annotated[Count, Field(gt=0)]
    against: Text


class DataRecord(FileRecord):
    """A file of events that entered training, and as what (``role``: background, signal, validation, ...)."""

    n_events: Count
    role: Text


class Training(Record):
    """Where a network comes from.

    Parameters
    ----------
    seed : int
        Seed of the training.
    library_versions : dict of str to str
        Package name to version.
    epochs : int, optional
        Epochs run.
    loss, validation_loss : float, optional
        Losses of the kept weights.
    data : sequence of DataRecord
        Files of events.
    settings : dict
        Anything else worth keeping, as JSON: layers, learning rate, batch size.
    """

    seed: Count
    library_versions: dict[str, str] = Field(default_factory=dict)
    epochs: Count | None = None
    loss: Number | None = None
    validation_loss: Number | None = None
    data: tuple[DataRecord, ...] = ()
    settings: JsonDict = Field(default_factory=dict)


class CertificateRecord(Record):
    """Short form of the certificate that ``gbistat diagnose --attach`` gave a background.

    Parameters
    ----------
    verdict : {"PASS", "FAIL", "UNDECIDED"}
        The verdict.
    statement : str
        The reason that decided.
    bias : (float, float), optional
        Projected bias of mu and its error, in standard errors of mu.
    tolerance : float
        Largest acceptable bias.
    region : str
        Which data it was tested on.
    window : (float, float), optional
        Signal window, in GeV.
    generator, events : str
        What was compared with what.
    model_sha256 : str
        Hash of the model that was tested, certificates left out; see `gbistat.terms.store.LoadedModel`.
    diagnostics_sha256 : str
        Hash of the long form, ``diagnostics.json`` in the folder of the model.
    """

    verdict: Literal["PASS", "FAIL", "UNDECIDED"]
    statement: Text
    bias: tuple[Number, NonNegative] | None = None
    tolerance: NonNegative
    region: Text
    window: tuple[Number, Number] | None = None
    generator: Text
    events: Text
    model_sha256: Annotated[str, Field(pattern=_HEX)]
    diagnostics_sha256: Annotated[str, Field(pattern=_HEX)]


class TermMetadata(Record):
    """Content of ``term.json``.

    The graphs take one input ``x`` of shape (n, d), float32 or float64, whose columns are the raw `features` in
    their units followed by `parameters`, and give one output of shape (n,) or (n, 1): the natural log of a density
    or of a density ratio.

    Parameters
    ----------
    name : str
        Name of the term, which is also its folder's name.
    kind : {"density", "density_ratio", "mass_density", "signal_density"}
        What the graph's output is the log of. A ``signal_density`` is the joint density of the mass, its first feature, and the
        other features inside the window, learned from the data themselves fold by fold.
    features : sequence of FeatureSpec
        Inputs in order.
    mass : MassSpec
        The mass and the range of validity.
    parameters : sequence of Quantity
        Inputs theta after the features.
    combine : {"mean_ratio", "mean_density", "none"}
        How the K members combine: logsumexp_k(l_k) - ln K, the mean of ratios or of densities; ``none`` for one.
    members : sequence of FileRecord
        The graphs.
    samplers : sequence of FileRecord
        Graphs that draw from a density of features at given mass, one a member or none: input ``x`` of shape (n, 1 + d),
        the mass and d independent standard-normal numbers, output the d raw features, shape (n, d). For a signal density all
        1 + d inputs are standard-normal numbers, and the output is mass and features, shape (n, 1 + d).
    log_kappa : LogKappa, optional
        Normalisation; needed by a ratio, refused by a density.
    cross_fit : CrossFit, optional
        Folds and fractions; needed by a signal density, refused by others.
    parity : Parity, optional
        Agreement of the graphs with the network they were exported from.
    training : Training, optional
        Provenance.
    checks : dict
        Measured properties (AUC, E_b[r], ...), as JSON.
    certificate : CertificateRecord, optional
        Verdict on the background; not written where there is none.

    See Also
    --------
    gbistat.terms.validation.validate : makes one from plain data, with readable errors.
    """

    schema_name: Literal["gbistat.term/1"] = Field(default=TERM_SCHEMA, alias="schema")
    name: TermName
    kind: Literal["density", "density_ratio", "mass_density", "signal_density"]
    features: Annotated[tuple[FeatureSpec, ...], Field(min_length=1)]
    mass: MassSpec
    parameters: tuple[Quantity, ...] = ()
    combine: Literal["mean_ratio", "mean_density", "none"] = "none"
    members: Annotated[tuple[FileRecord, ...], Field(min_length=1)]
    samplers: tuple[FileRecord, ...] = ()
    log_kappa: LogKappa | None = None
    cross_fit: CrossFit | None = None
    parity: Parity | None = None
    training: Training | None = None
    checks: JsonDict = Field(default_factory=dict)
    certificate: CertificateRecord | None = None

    def to_json(self) -> Json:
        """Plain data as it stands in ``term.json``."""
        data = super().to_json()
        # A term without a certificate has the bytes, and the hash, that it had before there were any.
        return data if self.certificate is not None else {k: v for k, v in data.items() if k != "certificate"}

    @property
    def is_ratio(self) -> bool:
        """Whether the graphs give log ratios."""
        return self.kind == "density_ratio"

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the inputs, the mass among them if it is one."""
        return tuple(feature.name for feature in self.features)

    @property
    def n_inputs(self) -> int:
        """Columns of the graph's input."""
        return len(self.features) + len(self.parameters)

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        counts = Counter([*self.feature_names, *(parameter.name for parameter in self.parameters)])
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise ValueError(f"the name {twice[0]!r} appears twice among the features and parameters; names are unique")
        files = Counter(member.file for member in (*self.members, *self.samplers))
        if max(files.values()) > 1:
            raise ValueError(f"the file {files.most_common(1)[0][0]!r} appears twice among the members; list it once")
        return self

    @model_validator(mode="after")
    def _check_mass(self) -> Self:
        for feature in self.features:
            if feature.name == self.mass.name and feature.unit != self.mass.unit:
                raise ValueError(
                    f"the mass {self.mass.name!r} is in {self.mass.unit} and, as a feature, in {feature.unit}; "
                    "give it one unit"
                )
        return self

    @model_validator(mode="after")
    def _check_samplers(self) -> Self:
        if not self.samplers:
            return self
        if self.kind not in {"density", "signal_density"}:
            raise ValueError(f"samplers belong to a density, and this term is a {self.kind}; remove them")
        if len(self.samplers) != len(self.members):
            raise ValueError(f"{len(self.samplers)} samplers for {len(self.members)} members; give one each, or none")
        if self.kind == "signal_density":
            return self
        conditions = [feature.name for feature in self.features if feature.role == "conditional"]
        if conditions != [self.mass.name] or self.feature_names[0] != self.mass.name or self.parameters:
            raise ValueError(
                f"samplers draw features at given mass: the first feature must be {self.mass.name!r} with role "
                "'conditional', the only one, without parameters"
            )
        return self

    @model_validator(mode="after")
    def _check_cross_fit(self) -> Self:
        if (self.kind == "signal_density") != (self.cross_fit is not None):
            raise ValueError(
                f"a signal_density has cross_fit, and only it: this term is a {self.kind} "
                + ("without it; export the training again" if self.cross_fit is None else "with it; remove it")
            )
        if self.cross_fit is None:
            return self
        if self.feature_names[0] != self.mass.name or self.parameters:
            raise ValueError(
                f"the first feature of a signal_density is the mass {self.mass.name!r}, and it has no parameters"
            )
        if any(None in (item.low, item.high) for item in self.features):
            raise ValueError("every feature of a signal_density needs low and high: it is normalised on that range")
        if len(self.cross_fit.members) != len(self.members):
            raise ValueError(
                f"cross_fit describes {len(self.cross_fit.members)} of {len(self.members)} members; describe each"
            )
        for name in self.cross_fit.rule.columns:
            if name not in self.feature_names:
                raise ValueError(
                    f"the folds hash {name!r}, which is not among the features; {nearest(name, self.feature_names)}"
                )
        return self

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        wrong = "mean_density" if self.is_ratio else "mean_ratio"
        if self.combine == wrong:
            raise ValueError(f"combine {self.combine!r} does not fit kind {self.kind!r}; use {_allowed(self.kind)}")
        if self.combine == "none" and len(self.members) > 1:
            raise ValueError(
                f"{len(self.members)} members need a way to combine, and combine is 'none'; use {_allowed(self.kind)}"
            )
        if self.is_ratio and self.log_kappa is None:
            raise ValueError(
                "log_kappa is missing: a ratio needs its normalisation E_b[r] = 1; "
                "for a ratio that is normalised by construction give value 0 and sigma 0"
            )
        if not self.is_ratio and self.log_kappa is not None:
            raise ValueError(f"log_kappa belongs to a density_ratio, and this term is a {self.kind}; remove it")
        return self


def _allowed(kind: str) -> str:
    return "'mean_ratio', or 'none' for one member" if kind == "density_ratio" else "'mean_density', or 'none' for one"


def json_schema(kind: type[Record] = TermMetadata) -> Json:
    """JSON Schema of a record, for editors and for other programs that write terms.

    Parameters
    ----------
    kind : type, default TermMetadata
        Any `Record`: `TermMetadata`, `gbistat.terms.model_spec.ModelSpec`.

    Examples
    --------
    >>> json_schema()["properties"]["kind"]["enum"]
    ['density', 'density_ratio', 'mass_density', 'signal_density']
    """
    return kind.model_json_schema(by_alias=True)
