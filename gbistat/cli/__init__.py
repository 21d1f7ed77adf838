"""Command line: ``gbistat VERB``. Each verb parses, calls one function of the workflow, and shows or writes the result."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

import click

from gbistat import __version__
from gbistat.errors import GbistatError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

VERBS = {
    "fit": ("gbistat.cli.results", "Fit mu and the background in a window; profile intervals."),
    "limits": ("gbistat.cli.results", "Intervals, CLs upper limit with expected band, significance, pyhf beside it."),
    "compare": ("gbistat.cli.results", "Unbinned result beside binned ones; the cost of binning."),
    "export-workspace": ("gbistat.cli.workspaces", "Write the binned twin as a HistFactory workspace for pyhf."),
    "toys": ("gbistat.cli.toys", "Throw toys: on one core, many, or a cluster; merge their files."),
    "coverage": (
        "gbistat.cli.coverage",
        "Measure on toys how often intervals and limits of your model hold the truth.",
    ),
    "model": ("gbistat.cli.inspect", "Look at exported models."),
    "events": ("gbistat.cli.inspect", "Look at files of events."),
    "train": ("gbistat.cli.training", "Train a network (needs the extra 'train')."),
    "export": ("gbistat.cli.training", "Export a trained network as a model: ONNX and JSON."),
}


class _Lazy(click.Group):
    """Imports the module of a verb only when the verb is used, so that ``--help`` stays fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = getattr(importlib.import_module(VERBS[cmd_name][0]), f"{cmd_name.replace('-', '_')}_command")
        return command if isinstance(command, click.Command) else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in VERBS:
            from gbistat.errors import nearest

            raise click.UsageError(f"there is no command {args[0]!r}; {nearest(args[0], VERBS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(verb, text) for verb, (_, text) in VERBS.items()])


_HELP = """Confidence intervals and limits from networks learned from data.

\b
gbistat limits --window 3300 3700                 the shipped model on the shipped events
gbistat limits CARD.yaml --output results         your model and events, with plots and JSON
gbistat limits --events FILE --model DIR --window LOW HIGH --json -
"""


@click.group(cls=_Lazy, help=_HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="gbistat")
def cli() -> None:
    """Group of all verbs."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: errors of gbistat become one or two lines and exit code 1, wrong usage exit code 2.

    ``--debug`` anywhere among the arguments shows the traceback instead.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        result: Any = cli.main(args=given, prog_name="gbistat", standalone_mode=False)
    except GbistatError as error:
        if debug:
            raise
        click.echo(f"gbistat: error: {error}", err=True)
        sys.exit(1)
    except click.Abort:
        click.echo("gbistat: interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    sys.exit(result if isinstance(result, int) else 0)
