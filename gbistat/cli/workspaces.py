"""``gbistat export-workspace``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gbistat.cli.options import common, run_options
from gbistat.cli.results import progress

if TYPE_CHECKING:
    from gbistat.typing import Json

__all__ = ["export_workspace_command"]


@click.command("export-workspace")
@common
@click.option(
    "--observable",
    help="What to bin: the mass (default), a feature, log_ratio, or two of these as in m_jj:log_ratio.",
)
@click.option(
    "--bins",
    type=int,
    help="Bins; of two observables, those of the second.  [default: as in limits: 30 of log_ratio, 20 otherwise]",
)
@click.option(
    "--min-background",
    type=float,
    default=5.0,
    show_default=True,
    help="Expected background events of a bin, but for bins of the mass alone.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["pyhf", "hs3"]),
    default="pyhf",
    show_default=True,
    help="HistFactory JSON, or the HEP Statistics Serialization Standard.",
)
@click.option("--no-staterror", is_flag=True, help="Leave out the statistical errors of templates.")
def export_workspace_command(
    observable: str | None, bins: int | None, min_background: float, form: str, no_staterror: bool, **options: Any
) -> int:
    """Write the model in bins as a HistFactory workspace (JSON, schema 1.0.0) or in HS3, to standard output or --json FILE.

    pyhf and cabinetry read it. Several --window become channels, each with a measurement of its own.
    """
    from gbistat.report.document import to_text
    from gbistat.report.files import check_writable, write_text
    from gbistat.workflow import run_export_workspace

    output: Path | None = options.pop("output")
    target: str | None = options.pop("json_path")
    options.pop("debug")
    if output is not None:
        check_writable(output)
    with progress() as steps:
        workspace, notes = run_export_workspace(
            run_options(**options),
            observable,
            n_bins=bins,
            min_background=min_background,
            statistical_errors=not no_staterror,
            steps=steps,
        )
    document = workspace
    if form == "hs3":
        from gbistat.binned.hs3 import to_hs3

        document = to_hs3(workspace)
    text = to_text(document)
    paths = [output / "workspace.json"] if output is not None else []
    paths += [Path(target)] if target not in (None, "-") else []
    for path in paths:
        click.echo(f"wrote {write_text(path, text)} ({_summary(workspace)})", err=True)
    if not paths or target == "-":
        click.echo(text, nl=False)
    for note in notes:
        click.echo(f"gbistat: note: {note}", err=True)
    return 0


def _summary(workspace: Json) -> str:
    sizes = [f"{item['name']}: {len(item['data'])} bins" for item in workspace["observations"]]
    return "; ".join(sizes)
