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
from gbistat.errors import CardError, ModelError, OptionError, nearest
from gbistat.fit.generated import GeneratedBackground
from gbistat.fit.nuisances import background_tilt
from gbistat.inference.method_options import MethodOptions
from gbistat.terms.generator import GeneratorTerm
from gbistat.terms.model_spec import BackgroundOrder, BackgroundSpec, ModelSpec, ParameterSpec
from gbistat.terms.store import LoadedModel, inline_model, load_model
from gbistat.terms.validation import Count, Interval, Number, Positive, Record, Text, validate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "DEFAULT_FIT_MODEL",
    "DEFAULT_MODEL",
    "EventsSource",
    "RunCard",
    "RunOptions",
    "demo_events",
    "read_card",
    "resolve_options",
]

DEFAULT_MODEL = "dijet-qq-3500"
DEFAULT_FIT_MODEL = "dijet-paws"
"""What ``gbistat fit`` and ``gbistat scan`` take: they look for masses too, where limits are of one signal."""
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
    background: Text | None = None
    windows: Annotated[tuple[Interval, ...], Field(min_length=1)] | None = None
    cl: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    background_order: BackgroundOrder | None = None
    method: Annotated[MethodCard, BeforeValidator(_named)] | None = None
    ensemble: Literal["mean", "profiled"] | None = None
    masses: dict[str, Number] = Field(default_factory=dict)


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
    background : GeneratedBackground, optional
        A sideband generator, in place of the model's own reference events.
    """

    model: LoadedModel
    source: EventsSource
    windows: tuple[tuple[float, float], ...]
    cl: float = 0.95
    method: MethodOptions = field(default_factory=MethodOptions)
    background: GeneratedBackground | None = None


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
    if card.background is not None and (file.parent / card.background / "model.json").is_file():
        updates["background"] = str(file.parent / card.background)
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
    background_order: str | int | None = None,
    background: str | Path | None = None,
    method: Mapping[str, object] | None = None,
    ensemble: Literal["mean", "profiled"] | None = None,
    masses: Mapping[str, float] | None = None,
    default_model: str = DEFAULT_MODEL,
) -> RunOptions:
    """Put a card and explicit choices together; explicit ones win, and the shipped model and events fill the rest.

    Raises
    ------
    CardError
        If there are no events and the model is not the shipped one, or no window anywhere.
    OptionError
        If the confidence level is not between 0 and 1, an option of the method makes no sense, or the order of the background
        is none.
    ModelError, TermError
        If the model or the background cannot be loaded, they do not go together, or there is no order to choose.
    """
    card = card or RunCard()
    chosen = model if model is not None else card.model
    loaded = inline_model(chosen) if isinstance(chosen, ModelSpec) else load_model(chosen or default_model)
    loaded = _with_order(loaded, background_order if background_order is not None else card.background_order)
    if (treatment := ensemble or card.ensemble) is not None:
        signal = loaded.spec.signal.model_copy(update={"ensemble": treatment})
        loaded = replace(loaded, spec=loaded.spec.model_copy(update={"signal_": signal}))
    if held := {**card.masses, **(masses or {})}:
        loaded = _with_masses(loaded, held)
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
    chosen_background = background if background is not None else card.background
    generated = None if chosen_background is None else _background(chosen_background, loaded)
    ends = tuple((float(a), float(b)) for a, b in chosen_windows)
    return RunOptions(loaded, source, ends, level, _method(card.method, method or {}), generated)


def _with_masses(model: LoadedModel, held: Mapping[str, float]) -> LoadedModel:
    """Model with parameters of its signal held at values."""
    known = {
        name
        for term in model.terms.values()
        if term.metadata.is_ratio
        for name in (item.name for item in term.metadata.parameters)
    } | set(model.spec.parameters)
    if model.spec.has_signal and model.spec.signal.modes is not None:
        known.add(model.spec.signal.modes.fraction)
    parameters = dict(model.spec.parameters)
    for name, value in held.items():
        if name not in known:
            raise OptionError(f"the model {model.name!r} has no mass {name!r} to hold; {nearest(name, known)}")
        parameters[name] = ParameterSpec(start=float(value), fixed=True)
    return replace(model, spec=model.spec.model_copy(update={"parameters": parameters}))


def _background(name_or_path: str | Path, model: LoadedModel) -> GeneratedBackground:
    """Generator of an exported background, for a model."""
    loaded = load_model(name_or_path)
    term = loaded.spec.background.features
    if term is None:
        raise ModelError(
            f"the model {loaded.name!r} has no generator of background features (background.features); give a model that "
            "'gbistat train background' and 'gbistat export' made"
        )
    own, other = model.spec, loaded.spec
    moving = [name for name in own.signal.all_ratios if model.terms[name].metadata.parameters] if own.has_signal else []
    if moving:
        raise ModelError(
            f"--background does not serve the model {own.name!r}: its ratio {moving[0]!r} depends on masses, and reference events "
            "would have to be drawn for all of them; leave it out, and the model's own reference events are used"
        )
    if (own.mass.name, own.mass.unit) != (other.mass.name, other.mass.unit):
        raise ModelError(
            f"the background {other.name!r} has the mass {other.mass.name!r} in {other.mass.unit}, and the model {own.name!r} "
            f"{own.mass.name!r} in {own.mass.unit}; they must be the same"
        )
    missing = [name for name in own.features if name not in other.features]
    if missing:
        raise ModelError(
            f"the background {other.name!r} does not make the feature {missing[0]!r} of the model {own.name!r}; "
            f"{nearest(missing[0], other.features)}"
        )
    generator = GeneratorTerm(loaded.terms[term])
    tilt = background_tilt(other, loaded.terms)
    return GeneratedBackground(generator, other.name, loaded.sha256, loaded.directory, other.window, tilt=tilt)


def _method(card: MethodCard | None, explicit: Mapping[str, object]) -> MethodOptions:
    """Options of the method: those given explicitly, then those of the card."""
    chosen: dict[str, Any] = {} if card is None else {k: v for k, v in card.model_dump().items() if v is not None}
    chosen |= {name: value for name, value in explicit.items() if value is not None}
    return MethodOptions(**chosen)


def _with_order(model: LoadedModel, order: str | int | None) -> LoadedModel:
    """Model whose background has the order that a card or the command line asks for."""
    if order is None:
        return model
    asked = int(order) if isinstance(order, str) and order.isdecimal() else order
    background = validate(
        BackgroundSpec, {**model.spec.background.to_json(), "order": asked}, error=OptionError, where="background order"
    )
    return replace(model, spec=model.spec.model_copy(update={"background": background}))


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
    if model.name in (DEFAULT_MODEL, DEFAULT_FIT_MODEL):
        return EventsSource(demo_events())
    raise CardError(
        f"no events: model {model.name!r} comes without any; give --events FILE, or 'events: {{path: ...}}' in the run card"
    )


def _mapping(mapping: Mapping[str, str], mass_name: str) -> dict[str, str]:
    """Let ``mass`` stand for the model's name of the mass."""
    return {mass_name if name == "mass" else name: column for name, column in mapping.items()}
