"""Run cards: a YAML file that says which events, which model and which windows, checked before anything runs.

A card for a model with networks names it; a card without any network writes the model down (see
:class:`gbistat.terms.model_spec.ModelSpec`)::

    events: {path: dimuons.root, mapping: {mass: M}}
    windows: [[85, 97]]
    model:
      mass: {name: m_mumu, unit: GeV}
      signal:
        mass: {shape: gaussian, parameters: {mean: {times_center: 1.0}, sigma: 2.5}}
      background:
        mass: {shape: exponential}
        fit_range: [70, 110]
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Discriminator, Field, Tag

from gbistat.data.events import ENERGY_UNITS
from gbistat.errors import CardError, OptionError
from gbistat.inference.method_options import MethodOptions
from gbistat.terms.model_spec import ModelSpec
from gbistat.terms.store import LoadedModel, inline_model, load_model
from gbistat.terms.validation import Count, Interval, Positive, Record, Text, validate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["DEFAULT_MODEL", "EventsSource", "RunCard", "RunOptions", "demo_events", "read_card", "resolve_options"]

DEFAULT_MODEL = "dijet-qq-3500"
CARD_SCHEMA: Literal["gbistat.card/1"] = "gbistat.card/1"


class EventsCard(Record):
    """Where the events are and how to read them; see :func:`gbistat.data.read.read_events`.

    Parameters
    ----------
    path : str
        File, relative to the card.
    unit : str
        Energy unit of the file.
    mapping : dict
        Names in gbistat to names in the file; ``mass`` stands for the model's mass.
    weights, tree : str, optional
        Column of weights; tree or key where the file holds several.
    units : dict
        Units of columns that gbistat does not know.
    """

    path: Text
    unit: Text = "GeV"
    mapping: dict[str, Text] = Field(default_factory=dict)
    weights: Text | None = None
    tree: Text | None = None
    units: dict[str, Text] = Field(default_factory=dict)


def _which(value: Any) -> str:
    return "name" if isinstance(value, str) else "inline"


ModelEntry = Annotated[Annotated[Text, Tag("name")] | Annotated[ModelSpec, Tag("inline")], Discriminator(_which)]


class MethodCard(Record):
    """How intervals on the parameter of interest are made; see :class:`gbistat.inference.methods.MethodOptions`.

    Parameters
    ----------
    name : str
        "profile", "feldman-cousins", "neyman", "cls" or "cls-toys"; a card may give this name alone.
    seed, precision, min_toys, max_toys, form
        Of methods by toys.
    """

    name: Text = "profile"
    seed: Annotated[int, Field(strict=True, ge=0)] | None = None
    precision: Positive | None = None
    min_toys: Count | None = None
    max_toys: Count | None = None
    form: Literal["compressed", "exact"] | None = None


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class RunCard(Record):
    """Content of a run card; everything may be left out, and the command line overrides it."""

    schema_name: Literal["gbistat.card/1"] = Field(default=CARD_SCHEMA, alias="schema")
    model: ModelEntry | None = None
    events: EventsCard | None = None
    windows: Annotated[tuple[Interval, ...], Field(min_length=1)] | None = None
    cl: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    method: Annotated[MethodCard, BeforeValidator(_named)] | None = None
    ensemble: Literal["mean", "profiled"] | None = None


@dataclass(frozen=True)
class EventsSource:
    """A file of events and how to read it.

    Parameters
    ----------
    path : Path
        The file.
    unit : str
        Its energy unit.
    mapping : mapping
        Names in gbistat to names in the file.
    weights, tree : str, optional
        Column of weights; tree or key.
    units : mapping
        Units of unknown columns.
    """

    path: Path
    unit: str = "GeV"
    mapping: Mapping[str, str] = field(default_factory=dict)
    weights: str | None = None
    tree: str | None = None
    units: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class RunOptions:
    """What a command runs on, after card and command line have been put together.

    Parameters
    ----------
    model : LoadedModel
        The model.
    source : EventsSource
        The events.
    windows : tuple of (low, high)
        In GeV; at least one.
    cl : float
        Confidence level of limits and of the wider interval.
    method : MethodOptions
        How intervals on the parameter of interest are made.
    """

    model: LoadedModel
    source: EventsSource
    windows: tuple[tuple[float, float], ...]
    cl: float = 0.95
    method: MethodOptions = field(default_factory=MethodOptions)


def demo_events() -> Path:
    """Path of the simulated dijet events that come with gbistat; how they were made stands beside them."""
    return Path(__file__).resolve().parent / "data" / "demo" / "dijets.h5"


def read_card(path: str | Path) -> RunCard:
    """Read and check a run card.

    Parameters
    ----------
    path : path-like
        YAML file.

    Returns
    -------
    RunCard
        With paths made relative to the working directory instead of the card.

    Raises
    ------
    CardError
        If the file is missing, is not YAML, or has a wrong key or value (nearest names offered).
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CardError(f"there is no run card {file}; check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CardError(f"the run card {file} cannot be read: {error}") from error
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise CardError(f"the run card {file} is not YAML: {' '.join(str(error).split())}") from error
    if data is None:
        raise CardError(f"the run card {file} is empty; write at least 'model:' or 'events:' in it")
    updates: dict[str, object] = {}
    if isinstance(data, dict) and isinstance(data.get("model"), dict):
        updates["model"] = validate(ModelSpec, data.pop("model"), error=CardError, where=f"{file}: model")
    card = validate(RunCard, data, error=CardError, where=str(file))
    if card.events is not None:
        updates["events"] = card.events.model_copy(update={"path": str(file.parent / card.events.path)})
    if isinstance(card.model, str) and (file.parent / card.model / "model.json").is_file():
        updates["model"] = str(file.parent / card.model)
    return card.model_copy(update=updates)


def resolve_options(
    card: RunCard | None = None,
    *,
    model: str | Path | None = None,
    events: str | Path | None = None,
    unit: str | None = None,
    mapping: Mapping[str, str] | None = None,
    weights: str | None = None,
    tree: str | None = None,
    windows: Sequence[tuple[float, float]] = (),
    cl: float | None = None,
    method: Mapping[str, object] | None = None,
    ensemble: Literal["mean", "profiled"] | None = None,
) -> RunOptions:
    """Put a card and explicit choices together; explicit ones win, and the shipped model and events fill the rest.

    Raises
    ------
    CardError
        If there are no events and the model is not the shipped one, or no window anywhere.
    OptionError
        If the confidence level is not between 0 and 1, or an option of the method makes no sense.
    ModelError, TermError
        If the model cannot be loaded.
    """
    card = card or RunCard()
    chosen = model if model is not None else card.model
    loaded = inline_model(chosen) if isinstance(chosen, ModelSpec) else load_model(chosen or DEFAULT_MODEL)
    if (treatment := ensemble or card.ensemble) is not None:
        signal = loaded.spec.signal.model_copy(update={"ensemble": treatment})
        loaded = replace(loaded, spec=loaded.spec.model_copy(update={"signal": signal}))
    source = _source(card.events, events, loaded)
    source = replace(
        source,
        unit=unit or source.unit,
        weights=weights or source.weights,
        tree=tree or source.tree,
        mapping=_mapping({**source.mapping, **(mapping or {})}, loaded.spec.mass.name),
    )
    chosen_windows = tuple(windows) or card.windows or _own_window(loaded)
    if not chosen_windows:
        raise CardError("no window: give --window LOW HIGH, or 'windows' in the run card")
    level = cl if cl is not None else (card.cl if card.cl is not None else 0.95)
    if not 0.0 < level < 1.0:
        raise OptionError(f"confidence level {level:g} must lie between 0 and 1, for example 0.95")
    ends = tuple((float(a), float(b)) for a, b in chosen_windows)
    return RunOptions(loaded, source, ends, level, _method(card.method, method or {}))


def _method(card: MethodCard | None, explicit: Mapping[str, object]) -> MethodOptions:
    """Options of the method: those given explicitly, then those of the card."""
    chosen: dict[str, Any] = {} if card is None else {k: v for k, v in card.model_dump().items() if v is not None}
    chosen |= {name: value for name, value in explicit.items() if value is not None}
    return MethodOptions(**chosen)


def _own_window(model: LoadedModel) -> tuple[tuple[float, float], ...]:
    """Window of the model, which is in the model's unit, in GeV."""
    if model.spec.window is None:
        return ()
    scale = ENERGY_UNITS[model.spec.mass.unit] / ENERGY_UNITS["GeV"]
    return ((model.spec.window[0] * scale, model.spec.window[1] * scale),)


def _source(card: EventsCard | None, events: str | Path | None, model: LoadedModel) -> EventsSource:
    if card is not None:
        return EventsSource(
            Path(events or card.path), card.unit, dict(card.mapping), card.weights, card.tree, dict(card.units)
        )
    if events is not None:
        return EventsSource(Path(events))
    if model.name == DEFAULT_MODEL:
        return EventsSource(demo_events())
    raise CardError(
        f"no events: model {model.name!r} comes without any; give --events FILE, or 'events: {{path: ...}}' in the run card"
    )


def _mapping(mapping: Mapping[str, str], mass_name: str) -> dict[str, str]:
    """Let ``mass`` stand for the model's name of the mass."""
    return {mass_name if name == "mass" else name: column for name, column in mapping.items()}
