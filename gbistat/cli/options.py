"""Options that several verbs share."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from gbistat.config import RunOptions

__all__ = ["common", "method", "run_options", "source"]

_SOURCE = (
    click.argument("card", required=False, type=click.Path(path_type=Path)),
    click.option(
        "--card",
        "card_option",
        type=click.Path(path_type=Path),
        help="Run card (YAML); may also stand alone as an argument.",
    ),
    click.option(
        "--window",
        "windows",
        type=(float, float),
        multiple=True,
        metavar="LOW HIGH",
        help="Mass window in GeV; repeat it for one row a window.",
    ),
    click.option("--events", type=click.Path(path_type=Path), help="File of events: .h5, .root, .parquet or .npz."),
    click.option("--model", help="Name of a shipped model, or folder of an exported one."),
    click.option(
        "--background",
        help="Name of a shipped sideband generator, or folder of an exported one: reference events are drawn from it, and its "
        "error is added to that of the ratio's normalisation.  [default: the model's own reference events]",
    ),
    click.option("--mass", "masses", multiple=True, metavar="NAME=VALUE", help="Hold a mass of the signal: m_X=500."),
    click.option(
        "--ensemble",
        type=click.Choice(["mean", "profiled"]),
        help="Mean of an ensemble of ratios, or its spread profiled too.  [default: the model's, else mean]",
    ),
    click.option("--unit", help="Energy unit of the file of events, for example TeV.  [default: GeV]"),
    click.option(
        "--map", "mapping", multiple=True, metavar="NAME=COLUMN", help="Name of a mass or feature in the file: mass=M."
    ),
    click.option("--weights", help="Column of event weights."),
    click.option("--tree", help="TTree or RNTuple of a ROOT file, key of an HDF5 file, where there are several."),
    click.option(
        "--background-order",
        metavar="auto|aic|bic|N",
        help="Parameters of the background's mass shape: a number, or chosen on the sidebands.",
    ),
)
_RESULTS = (
    click.option("--cl", type=float, help="Confidence level of limits and of the wider interval.  [default: 0.95]"),
    click.option("--output", type=click.Path(path_type=Path), metavar="DIR", help="Write plots and JSON there."),
    click.option("--json", "json_path", metavar="FILE", help="Write JSON to a file, or to standard output (-)."),
)
_METHOD = (
    click.option(
        "--method",
        type=click.Choice(["profile", "feldman-cousins", "neyman", "cls", "cls-toys"]),
        help="Of intervals on the parameter of interest; feldman-cousins, neyman and cls-toys throw toys.  [default: profile]",
    ),
    click.option("--seed", type=click.IntRange(min=0), help="Seed of toys.  [default: 1]"),
    click.option("--precision", type=float, help="Relative Monte Carlo error at which toys stop.  [default: 0.02]"),
    click.option("--min-toys", type=int, help="Least toys at a tested value."),
    click.option("--max-toys", type=int, help="Most toys: for an interval, or at a tested value of cls-toys."),
    click.option(
        "--form", type=click.Choice(["compressed", "exact"]), help="Of toys: cells or events.  [default: compressed]"
    ),
    click.option("--jobs", type=int, help="Processes that throw toys; the result does not depend on it.  [default: 1]"),
)
_DEBUG = click.option("--debug", is_flag=True, help="Show the traceback of an error.")


def common(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the shared options to a verb: where model and events come from, and where results go."""
    return _add((*_SOURCE, *_RESULTS, _DEBUG), function)


def method(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how intervals on the parameter of interest are made."""
    return _add(_METHOD, function)


def source(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say where model and events come from."""
    return _add((*_SOURCE, _DEBUG), function)


def _add(options: tuple[Callable[..., Any], ...], function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    decorated: Callable[..., Any] = wrapper
    for option in reversed(options):
        decorated = option(decorated)
    return decorated


def run_options(
    card: Path | None,
    card_option: Path | None,
    windows: tuple[tuple[float, float], ...],
    events: Path | None,
    model: str | None,
    background: str | None,
    unit: str | None,
    mapping: tuple[str, ...],
    weights: str | None,
    tree: str | None,
    cl: float | None = None,
    background_order: str | None = None,
    ensemble: Literal["mean", "profiled"] | None = None,
    masses: tuple[str, ...] = (),
    method: str | None = None,
    default_model: str | None = None,
    **toys: int | float | str | None,
) -> RunOptions:
    """Card and options of the command line as one frozen object.

    Raises
    ------
    click.UsageError
        If the card is given twice, or a mapping is not NAME=COLUMN.
    GbistatError
        If the card or the model cannot be used.
    """
    from gbistat.config import DEFAULT_MODEL, read_card, resolve_options

    if card is not None and card_option is not None:
        raise click.UsageError(f"two run cards: {card} and --card {card_option}; give one")
    chosen = card or card_option
    pairs = {}
    for item in mapping:
        name, equals, column = item.partition("=")
        if not (name and equals and column):
            raise click.UsageError(f"--map {item!r} is not NAME=COLUMN, for example mass=M")
        pairs[name] = column
    return resolve_options(
        read_card(chosen) if chosen is not None else None,
        model=model,
        events=events,
        unit=unit,
        mapping=pairs,
        weights=weights,
        tree=tree,
        windows=windows,
        cl=cl,
        background_order=background_order,
        background=background,
        ensemble=ensemble,
        masses=_numbers(masses),
        method={"name": method, **toys},
        default_model=default_model or DEFAULT_MODEL,
    )


def _numbers(items: tuple[str, ...]) -> dict[str, float]:
    """``NAME=VALUE`` by name.

    Raises
    ------
    click.UsageError
        If an item is something else.
    """
    values = {}
    for item in items:
        name, _, text = item.partition("=")
        try:
            values[name] = float(text)
        except ValueError:
            raise click.UsageError(f"--mass {item!r} is not NAME=VALUE, for example m_X=500") from None
        if not name or not math.isfinite(values[name]):
            raise click.UsageError(f"--mass {item!r} is not NAME=VALUE, for example m_X=500")
    return values
