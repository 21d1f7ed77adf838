"""What the studies of this folder share: a shipped model with its card, events with the columns of others, and bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gbistat.data.events import Events
from gbistat.terms.model_spec import ParameterSpec
from gbistat.terms.store import load_model
from gbistat.training.paws_card import load_paws_card

if TYPE_CHECKING:
    from gbistat.terms.model_spec import ModelSpec
    from gbistat.terms.store import LoadedModel
    from gbistat.training.paws_card import PawsCard


def model_and_card(name: str) -> tuple[LoadedModel, PawsCard]:
    """A model on disk, and the card that it was trained by."""
    model = load_model(name)
    if model.directory is None:
        raise SystemExit(f"{name} is not on disk")
    return model, load_paws_card(model.directory / "card.yaml")


def held_at(spec: ModelSpec, masses: Mapping[str, float]) -> ModelSpec:
    """Same model with its masses held: nothing is searched for."""
    held = {name: ParameterSpec(start=value, fixed=True) for name, value in masses.items()}
    return spec.model_copy(update={"parameters": {**spec.parameters, **held}})


def with_nodes(spec: ModelSpec, names: Sequence[str], step: float | None) -> ModelSpec:
    """Same model with nodes this far apart; unchanged without a step."""
    if step is None:
        return spec
    signal = spec.signal.model_copy(update={"grid_step": dict.fromkeys(names, step)})
    return spec.model_copy(update={"signal_": signal})


def columns_like(events: Events, like: Events) -> Events:
    """Masses and features of others only, without weights."""
    return Events(events.mass, events.matrix(like.names), like.names, like.units, mass_name=events.mass_name)


def judged(
    found: Mapping[str, float | Sequence[float]], bands: Mapping[str, Sequence[float | None]], *, digits: str = ".3g"
) -> bool:
    """Print each number (of several: the smallest and the largest) with its band; whether any is outside."""
    failed = False
    for name, value in found.items():
        values = list(value) if isinstance(value, Sequence) else [value]
        low, high = bands.get(name, (None, None))
        wrong = any((low is not None and v < low) or (high is not None and v > high) for v in values)
        failed |= wrong
        text = " to ".join(format(v, digits) for v in dict.fromkeys((min(values), max(values))))
        band = "" if low is None and high is None else str([low, high])
        print(f"  {name:<62} {text:>20}  {'OUTSIDE ' if wrong else ''}{band}")
    return failed
