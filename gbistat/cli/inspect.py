"""``gbistat model show`` and ``gbistat events show``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from gbistat.terms.model_spec import ModelSpec
    from gbistat.terms.store import LoadedModel

__all__ = ["events_command", "model_command"]


@click.group("model")
def model_command() -> None:
    """Look at exported models."""


@model_command.command("list")
def model_list() -> None:
    """Names of the models that come with gbistat."""
    from gbistat.terms.store import shipped_models

    for name, folder in shipped_models().items():
        click.echo(f"{name}\t{folder}")


@model_command.command("show")
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print model.json and term.json instead.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def model_show(model: str | None, as_json: bool, debug: bool) -> None:
    """Show what MODEL is: components, networks, kappa, parity, validity. By default the shipped one."""
    from gbistat.config import DEFAULT_MODEL
    from gbistat.terms.store import load_model

    loaded = load_model(model or DEFAULT_MODEL)
    if as_json:
        import json

        terms = {name: term.metadata.to_json() for name, term in loaded.terms.items()}
        click.echo(json.dumps({"model": loaded.spec.to_json(), "terms": terms}, indent=2))
        return
    lines = _model_lines(loaded)
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        click.echo(f"{name:<{width}}  {text}")


@model_command.command("schema")
@click.argument("kind", default="model", metavar="[model|term]")
def model_schema(kind: str) -> None:
    """Print the JSON Schema of model.json or term.json."""
    import json

    from gbistat.terms.schemas import published_schema

    click.echo(json.dumps(published_schema(kind), indent=2))


def _model_lines(model: LoadedModel) -> list[tuple[str, str]]:
    spec = model.spec
    unit = spec.mass.unit
    low, high = spec.background.fit_range
    lines = [
        ("name", spec.name),
        ("description", spec.description),
        ("folder", str(model.directory)),
        ("sha256", model.sha256),
        ("mass", f"{spec.mass.name} [{unit}]"),
        ("features", ", ".join(spec.features) or "none"),
        ("window", "none" if spec.window is None else f"{spec.window[0]:g}-{spec.window[1]:g} {unit}"),
        ("valid in", "anywhere" if spec.valid is None else f"{spec.valid[0]:g}-{spec.valid[1]:g} {unit}"),
        ("signal mass", _signal_mass(spec)),
        ("background", f"{spec.background.mass.shape}, {low:g}-{high:g} {unit}, yield {spec.background.yield_}"),
    ]
    for name, item in (spec.signal.mass_scale if spec.has_signal else {}).items():
        lines.append((f"error of {name}", f"{item.absolute:g} {unit} and {100 * item.relative:.2g} %, in quadrature"))
    for name, term in model.terms.items():
        data = term.metadata
        lines.append(
            (
                f"term {name}",
                f"{data.kind} of {', '.join(data.feature_names)}; {len(data.members)} member(s)"
                + (", can be drawn from" if data.samplers else ""),
            )
        )
        if data.log_kappa is not None:
            kappa = data.log_kappa
            lines.append(("  ln kappa", f"{kappa.value:.4f} +- {kappa.sigma:.4f} ({kappa.method})"))
        if data.parity is not None:
            parity = data.parity
            lines.append(("  parity", f"max {parity.max_abs:.1e}, mean {parity.mean_abs:.1e} against {parity.against}"))
        if data.certificate is not None:
            lines.append(("  certificate", f"{data.certificate.verdict}: {data.certificate.statement}"))
    return lines


def _signal_mass(spec: ModelSpec) -> str:
    if not spec.has_signal:
        return "none: a background alone"
    density = spec.signal.density
    return spec.signal.mass.shape if density is None else f"learned from the data, with the features: term {density}"


@click.group("events")
def events_command() -> None:
    """Look at files of events."""


@events_command.command("show")
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option("--feature", "features", multiple=True, help="Feature to summarise; repeat it for several.")
@click.option(
    "--window", type=(float, float), metavar="LOW HIGH", help="Count events in this mass window, in the file's unit."
)
@click.option("--map", "mapping", multiple=True, metavar="NAME=COLUMN", help="Name in the file: m_jj=M, jets=FatJet.")
@click.option("--mass", help="Name of the mass.  [default: m_jj, if the file gives it]")
@click.option("--unit", default="GeV", show_default=True, help="Energy unit of the file.")
@click.option("--tree", help="TTree or RNTuple of a ROOT file, key of an HDF5 file.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def events_show(
    path: Path | None,
    features: tuple[str, ...],
    window: tuple[float, float] | None,
    mapping: tuple[str, ...],
    mass: str | None,
    unit: str,
    tree: str | None,
    debug: bool,
) -> None:
    """Show what a file of events holds: format, columns, ranges, counts. By default the shipped events."""
    from gbistat.config import demo_events
    from gbistat.data.summary import summarise_events
    from gbistat.data.window import MassWindow

    pairs = {}
    for item in mapping:
        name, equals, column = item.partition("=")
        if not (name and equals and column):
            raise click.UsageError(f"--map {item!r} is not NAME=COLUMN, for example m_jj=M")
        pairs[(mass or "m_jj") if name == "mass" else name] = column
    summary = summarise_events(
        path or demo_events(),
        features=features,
        mass="m_jj" if mass is None and "m_jj" in pairs else mass,
        mapping=pairs,
        unit=unit,
        window=None if window is None else MassWindow(*window, unit=unit),
        tree=tree,
    )
    rows = [
        ("file", f"{summary.path} ({summary.format})"),
        ("events", f"{summary.n_events} in {summary.n_rows} rows"),
        ("columns", ", ".join(summary.columns)),
        ("derivable", ", ".join(summary.derivable) or "nothing"),
    ]
    rows += [(f"not usable: {column}", reason) for column, reason in summary.unusable.items()]
    for name, span in summary.ranges.items():
        bad = f"; {span.n_bad} NaN or infinite (rows {', '.join(map(str, span.bad_rows))})" if span.n_bad else ""
        rows.append((f"range of {name}", f"{span.low:.6g} to {span.high:.6g} {span.unit}{bad}"))
    if summary.n_selected is not None and window is not None:
        rows.append(("in the window", f"{summary.n_selected} events in {window[0]:g}-{window[1]:g} {unit}"))
    rows += [("note", note) for note in summary.notes]
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        click.echo(f"{name:<{width}}  {text}")
