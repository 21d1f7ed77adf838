"""``gbistat diagnose`` and ``gbistat report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gbistat.cli.options import run_options, source

if TYPE_CHECKING:
    from gbistat.diagnostics.certificate import Certificate

__all__ = ["diagnose_command", "report_command"]


@click.command("diagnose")
@source
@click.option("--generator", metavar="MODEL", help="Exported sideband generator: name or folder.")
@click.option(
    "--generated",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File of generated events.  [default: the model's generator, or its reference events]",
)
@click.option(
    "--trained-on",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Events that trained the generator; none of them may test it.",
)
@click.option("--unblind", is_flag=True, help="Test on the data of the signal window, not of the sidebands.")
@click.option("--classifier", type=click.Choice(["trees", "network"]), default="trees", show_default=True)
@click.option(
    "--members", type=click.IntRange(min=1), default=3, show_default=True, help="Classifiers in the ensemble."
)
@click.option(
    "--folds", type=click.IntRange(min=2), default=4, show_default=True, help="Folds; classifiers see those before."
)
@click.option("--permutations", type=int, default=999, show_default=True, help="Of the labels.")
@click.option(
    "--nplm-permutations", type=click.IntRange(min=0), default=999, show_default=True, help="Of NPLM; 0 leaves it out."
)
@click.option("--tolerance", type=float, default=0.2, show_default=True, help="Acceptable bias of mu, in its errors.")
@click.option("--max-events", type=int, default=20_000, show_default=True, help="Most events of each kind.")
@click.option(
    "--expected", type=float, help="Background events in the window of the measurement.  [default: those in the file]"
)
@click.option("--null-run/--no-null-run", default=True, help="Repeat it on two halves of the data.")
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, help="Seed of all random numbers.")
@click.option("--attach", is_flag=True, help="Put the certificate into the folder of the generator, or of the model.")
@click.option(
    "--export-tilt",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write a copy of the generator, or of the model, whose background has the weights as a nuisance (needs Keras).",
)
@click.option("--output", type=click.Path(path_type=Path), metavar="DIR", help="Write figures and JSON there.")
@click.option("--json", "json_path", metavar="FILE", help="Write JSON to a file, or to standard output (-).")
def diagnose_command(
    generator: str | None,
    generated: Path | None,
    trained_on: Path | None,
    unblind: bool,
    classifier: str,
    members: int,
    folds: int,
    permutations: int,
    nplm_permutations: int,
    tolerance: float,
    max_events: int,
    expected: float | None,
    null_run: bool,
    seed: int,
    attach: bool,
    export_tilt: Path | None,
    output: Path | None,
    json_path: str | None,
    debug: bool,
    **options: Any,
) -> int:
    """Is a learned background good enough? Held-out events against generated ones, and what it means for mu.

    In the sidebands of the window; the data inside stay blinded without --unblind. Exit code 0 whatever the verdict.
    """
    from gbistat.cli.toys import progress_bar
    from gbistat.diagnose_inputs import DiagnoseRequest
    from gbistat.diagnose_outputs import attach_to_model, write_certificate
    from gbistat.diagnose_outputs import export_tilt as write_tilt
    from gbistat.diagnose_workflow import run_diagnose
    from gbistat.diagnostics.verdict import VerdictOptions
    from gbistat.report.document import to_text
    from gbistat.report.files import check_writable, write_text
    from gbistat.training.classifiers import ClassifierOptions

    request = DiagnoseRequest(
        generator=generator,
        generated=generated,
        trained_on=trained_on,
        unblind=unblind,
        classifier=ClassifierOptions("network" if classifier == "network" else "trees", members=members),
        folds=folds,
        permutations=permutations,
        nplm_permutations=nplm_permutations,
        null_run=null_run,
        max_events=max_events,
        expected=expected,
        verdict=VerdictOptions(tolerance=tolerance),
        seed=seed,
    )
    check_writable(output, None if json_path in (None, "-") else Path(str(json_path)))
    run = run_options(**options)
    with progress_bar() as bar:
        certificate = run_diagnose(run, request, steps=bar.steps)
        written = [] if output is None else write_certificate(certificate, output)
        if export_tilt is not None:
            write_tilt(run, request, export_tilt, certificate=certificate, steps=bar.steps)
            written.append(export_tilt)
    if attach:
        written.append(attach_to_model(certificate, run, request))
    if json_path == "-":
        click.echo(to_text(certificate.to_dict()), nl=False)
        return 0
    if json_path is not None:
        written.append(write_text(Path(json_path), to_text(certificate.to_dict())))
    _show(certificate)
    for path in written:
        click.echo(f"wrote {path}")
    return 0


@click.command("report")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="[default: DIRECTORY/report.html]")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def report_command(directory: Path, output: Path | None, debug: bool) -> None:
    """One self-contained HTML page of the results in DIRECTORY: fit, limits, diagnostics, figures, provenance."""
    from gbistat.report.page import write_page

    click.echo(f"wrote {write_page(directory, output)}")


def _show(certificate: Certificate) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    console = Console(highlight=False, width=None if console.is_terminal else 120)
    n_data, n_generated = certificate.to_dict()["classifier"]["n"]
    title = f"{n_data} data in the {certificate.region}, {n_generated} events of {certificate.generator}"
    table = Table("check", "value", "p", "null", "", title=title, title_justify="left")
    for row in certificate.checks():
        null = row["null"] or {}
        known = [f"{null['mean']:.3g}" + (f" +- {null['std']:.2g}" if "std" in null else "")] if "mean" in null else []
        known += [f"+- {null['error']:.2g}"] if "error" in null else []
        known += [f"{null['ndf']:.1f} dof"] if "ndf" in null else []
        p = "" if row["p"] is None else f"{row['p']:.2g}"
        table.add_row(escape(row["name"]), f"{row['value']:.4g}", p, " ".join(known), row["verdict"])
    console.print(table)
    for mode in certificate.classifier.modes:
        console.print(f"[yellow]{mode.code}[/yellow] {mode.description} ({'; '.join(mode.evidence)})", soft_wrap=True)
    for region in [r for r in certificate.classifier.regions if r.p_value < 0.05][:3]:
        console.print(f"region {region}", soft_wrap=True)
    for rule in [r for r in certificate.classifier.rules if r.p_value < 0.01][:2]:
        text = f"rule {rule.text}: {rule.n_data} data, {rule.n_generated} generated (p = {rule.p_value:.2g})"
        console.print(escape(text), soft_wrap=True)
    if certificate.statement:
        console.print(f"note {certificate.statement}", soft_wrap=True)
    colour = {"PASS": "green", "FAIL": "red", "UNDECIDED": "yellow"}[certificate.verdict.outcome]
    console.print(f"verdict [bold {colour}]{certificate.verdict.outcome}[/bold {colour}]")
    for reason in certificate.verdict.reasons:
        console.print(f"  {reason}", soft_wrap=True)
