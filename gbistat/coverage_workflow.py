"""What ``gbistat coverage`` does: coverage and bias of methods on toys of the user's own model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gbistat import __version__
from gbistat.errors import OptionError
from gbistat.inference.campaign_run import run_campaign
from gbistat.inference.coverage_campaign import coverage_results, plan_coverage
from gbistat.inference.toys import ToyModel, ToyOptions
from gbistat.report.files import check_writable, write_text
from gbistat.steps import silent
from gbistat.toy_workflow import analyse, choose_executor, data_settings, default_points

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gbistat.config import RunOptions
    from gbistat.fit.build import Analysis
    from gbistat.inference.campaign_run import Progress
    from gbistat.inference.coverage import CoverageResult
    from gbistat.steps import Steps
    from gbistat.typing import Json

__all__ = ["CoverageReport", "CoverageRequest", "run_coverage", "write_coverage"]

DEFAULT_POINTS = 6


@dataclass(frozen=True)
class CoverageRequest:
    """What to measure.

    Parameters
    ----------
    points : tuple of float, optional
        True values of the parameter of interest. By default 6 from 0 to four errors above the estimate.
    n_toys : int, default 500
        At each.
    methods : tuple of str
        Names in :data:`gbistat.inference.coverage_campaign.METHODS`.
    cls : tuple of float
        Confidence levels.
    seed : int, default 1
        Of all random numbers.
    inner_toys : int, default 1000
        Toys that a method by toys throws for each toy.
    """

    points: tuple[float, ...] = ()
    n_toys: int = 500
    methods: tuple[str, ...] = ("profile", "cls")
    cls: tuple[float, ...] = (0.6827, 0.90, 0.95)
    seed: int = 1
    inner_toys: int = 1000


@dataclass(frozen=True, eq=False)
class CoverageReport:
    """Coverage at each true value.

    Parameters
    ----------
    model, model_sha256 : str
        Name and hash of the model.
    window : (low, high)
        In GeV.
    poi, label : str
        Parameter of interest, and what it is.
    results : tuple of CoverageResult
        One a true value.
    warnings : tuple of str
        What a reader of the results must know.
    """

    model: str
    model_sha256: str
    window: tuple[float, float]
    poi: str
    label: str
    results: tuple[CoverageResult, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "schema": "gbistat.coverage/1",
            "version": __version__,
            "model": {"name": self.model, "sha256": self.model_sha256},
            "window": list(self.window),
            "poi": self.poi,
            "results": [result.to_dict() for result in self.results],
            "warnings": list(self.warnings),
        }


def run_coverage(
    options: RunOptions,
    request: CoverageRequest,
    *,
    output: Path | None = None,
    jobs: int = 1,
    scheduler: str | None = None,
    steps: Steps = silent,
    progress: Callable[[Progress], None] | None = None,
) -> CoverageReport:
    """Throw toys at each true value and ask each method whether it holds it.

    Parameters
    ----------
    options : RunOptions
        Model, events, one window.
    request : CoverageRequest
        What to measure.
    output : Path, optional
        Folder for ``coverage.npz``, with which a stopped run goes on, and which more toys can be added to.
    jobs : int, default 1
        Processes.
    scheduler : str, optional
        Address of a Dask scheduler, or "local".
    steps, progress : callable, optional
        Told about each step, and about toys done.

    Raises
    ------
    GbistatError
        If model, events, window or request do not make sense, or workers or files fail.
    """
    if request.n_toys < 1 or request.inner_toys < 100:
        raise OptionError(
            f"{request.n_toys} toys, and {request.inner_toys} for each in methods by toys; ask for at least 1 and 100"
        )
    executor = choose_executor(jobs, scheduler)
    check_writable(output)
    with steps(f"reading {options.source.path.name}"):
        analysis = analyse(options, "coverage")
        model = ToyModel.from_analysis(analysis, options=ToyOptions())
    with steps("planning"):
        plan, work = plan_coverage(
            model,
            request.points or default_points(model, DEFAULT_POINTS),
            request.n_toys,
            request.methods,
            request.cls,
            seed=request.seed,
            model_sha256=options.model.sha256,
            inner_toys=request.inner_toys,
            settings=data_settings(options, analysis),
        )
    path = None if output is None else output / "coverage.npz"
    campaign = run_campaign(plan, work, path, executor=executor, progress=progress)
    return CoverageReport(
        options.model.name,
        options.model.sha256,
        options.windows[0],
        model.poi,
        _label(analysis),
        coverage_results(campaign),
        analysis.warnings,
    )


def _label(analysis: Analysis) -> str:
    """Axis label of the parameter of interest: events in the window where the nominal yield is 1."""
    rate = analysis.model.component(analysis.model.signal).rate
    counts = rate.linear.get(analysis.model.poi) == 1.0
    return "signal events in the window" if counts else f"signal strength {analysis.model.poi}"


def write_coverage(report: CoverageReport, directory: Path) -> list[Path]:
    """Write JSON and the plot.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    from gbistat.plotting.coverage import save_coverage

    text = json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n"
    written = [write_text(directory / "coverage.json", text), directory / "coverage.png"]
    save_coverage(report.results, written[-1], poi=report.poi, label=report.label)
    return written
