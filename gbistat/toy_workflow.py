"""What ``gbistat toys`` does, one function a verb; the same functions serve scripts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from gbistat.config import EventsCard, RunCard
from gbistat.errors import EventsError, OptionError
from gbistat.fit.minimize import fit
from gbistat.inference.campaign import CHUNK_SIZE
from gbistat.inference.campaign_dask import DaskCluster
from gbistat.inference.campaign_files import load_campaign, merge_files
from gbistat.inference.campaign_run import Processes, Serial, run_campaign
from gbistat.inference.toy_campaign import WORK, campaign_toys, plan_toys
from gbistat.inference.toys import ToyModel, ToyOptions
from gbistat.report.files import check_writable
from gbistat.steps import silent
from gbistat.workflow import prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from gbistat.config import RunOptions
    from gbistat.fit.build import Analysis
    from gbistat.inference.campaign import Campaign, CampaignPlan
    from gbistat.inference.campaign_run import Executor, Progress
    from gbistat.inference.pools import PoolReport
    from gbistat.inference.toy_campaign import ToyWork
    from gbistat.steps import Steps
    from gbistat.typing import Json

__all__ = [
    "PointStatus",
    "PreparedToys",
    "ToysRequest",
    "ToysStatus",
    "analyse",
    "choose_executor",
    "data_settings",
    "default_points",
    "merge_toys",
    "prepare_toys",
    "run_toys",
    "toys_status",
]

DEFAULT_POINTS = 21
EXACT_CHUNK_SIZE = 100


@dataclass(frozen=True)
class ToysRequest:
    """Which toys.

    Parameters
    ----------
    points : tuple of float, optional
        True values of the parameter of interest. By default 21 from 0 to four errors above the estimate.
    n_toys : int, default 1000
        At each.
    seed : int, default 1
        Of all random numbers.
    form : {"compressed", "exact"}
        Of the toys; see :class:`gbistat.inference.toys.ToyOptions`.
    chunk_size : int, optional
        Toys in a task; by default 1000 compressed ones or 100 exact ones: seconds of work, which is what a kill can lose.
    """

    points: tuple[float, ...] = ()
    n_toys: int = 1000
    seed: int = 1
    form: Literal["compressed", "exact"] = "compressed"
    chunk_size: int | None = None


@dataclass(frozen=True, eq=False)
class PreparedToys:
    """A plan, ready to run.

    Parameters
    ----------
    plan : CampaignPlan
        Points, numbers of toys, seed.
    work : ToyWork
        Model and tests.
    reports : tuple of PoolReport
        What the pools are worth, one a data term.
    warnings : tuple of str
        What a reader of the results must know.
    """

    plan: CampaignPlan
    work: ToyWork
    reports: tuple[PoolReport, ...]
    warnings: tuple[str, ...]

    @property
    def values(self) -> tuple[float, ...]:
        """True values of the parameter of interest."""
        column = self.plan.parameters.index(self.work.model.poi)
        return tuple(float(value) for value in self.plan.points[:, column])


@dataclass(frozen=True)
class PointStatus:
    """Toys at one point.

    Parameters
    ----------
    value : float
        True value of the parameter of interest.
    n_asked, n_done : int
        Toys in the plan, and in the file.
    counts : tuple of (str, int)
        How many toys ended how.
    estimate, spread : float or None
        Mean and standard deviation of the estimates.
    """

    value: float
    n_asked: int
    n_done: int
    counts: tuple[tuple[str, int], ...] = ()
    estimate: float | None = None
    spread: float | None = None


@dataclass(frozen=True, eq=False)
class ToysStatus:
    """What is in a file of toys and the journal beside it.

    Parameters
    ----------
    plan : CampaignPlan
        What was asked for.
    poi : str
        Parameter of interest.
    versions : mapping of str to tuple of str
        Packages that made the toys.
    points : tuple of PointStatus
        One a point.
    n_missing : int
        Tasks still to do.
    """

    plan: CampaignPlan
    poi: str
    versions: dict[str, tuple[str, ...]]
    points: tuple[PointStatus, ...]
    n_missing: int

    @property
    def n_done(self) -> int:
        """Toys done."""
        return sum(point.n_done for point in self.points)

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "schema": "gbistat.toys-status/1",
            "model_sha256": self.plan.model_sha256,
            "plan_sha256": self.plan.sha256,
            "seed": self.plan.seed,
            "poi": self.poi,
            "versions": {name: list(found) for name, found in self.versions.items()},
            "n_asked": self.plan.total,
            "n_done": self.n_done,
            "complete": self.n_missing == 0,
            "points": [
                {
                    "value": point.value,
                    "n_asked": point.n_asked,
                    "n_done": point.n_done,
                    "outcomes": dict(point.counts),
                    "estimate": point.estimate,
                    "spread": point.spread,
                }
                for point in self.points
            ],
        }


def analyse(options: RunOptions, verb: str) -> Analysis:
    """Likelihood of the one window of a command.

    Raises
    ------
    OptionError
        If several windows are given.
    GbistatError
        Whatever is wrong with the model, the events or the window.
    """
    if len(options.windows) != 1:
        raise OptionError(f"{verb} takes one window, not {len(options.windows)}; run it once for each")
    source, model = options.source, options.model
    events = EventsCard(
        path=str(source.path),
        unit=source.unit,
        mapping=dict(source.mapping),
        weights=source.weights,
        tree=source.tree,
        units=dict(source.units),
    )
    named = model.spec if model.directory is None else str(model.directory)
    treatment = model.spec.signal.ensemble
    held = {name: p.start for name, p in model.spec.parameters.items() if p.fixed}
    card = RunCard(
        model=named,
        events=events,
        windows=options.windows,
        ensemble=treatment,
        masses=held,
        background_order=model.spec.background.order,
    )
    return prepare(card=card, background=None if options.background is None else options.background.directory)


def prepare_toys(options: RunOptions, request: ToysRequest, *, steps: Steps = silent) -> PreparedToys:
    """Read events and model, and plan toys; nothing is thrown yet.

    Parameters
    ----------
    options : RunOptions
        Model, events, one window.
    request : ToysRequest
        Which toys.
    steps : callable, optional
        Told about each step.

    Raises
    ------
    GbistatError
        If model, events, window or request do not make sense, the pool is too small, or a fit to the data fails.
    """
    if request.n_toys < 1:
        raise OptionError(f"{request.n_toys} toys; ask for at least 1")
    with steps(f"reading {options.source.path.name}"):
        analysis = analyse(options, "toys run")
        model = ToyModel.from_analysis(analysis, options=ToyOptions(form=request.form))
    with steps("planning"):
        plan, work = plan_toys(
            model,
            request.points or default_points(model),
            request.n_toys,
            seed=request.seed,
            model_sha256=options.model.sha256,
            chunk_size=request.chunk_size or (CHUNK_SIZE if request.form == "compressed" else EXACT_CHUNK_SIZE),
            settings=data_settings(options, analysis),
        )
    return PreparedToys(plan, work, model.pool_reports(plan.points[-1]), analysis.warnings)


def default_points(model: ToyModel, count: int = DEFAULT_POINTS) -> tuple[float, ...]:
    """Values from 0 to four errors above the estimate, the last rounded up to two digits: where intervals and limits end."""
    best = fit(model.nll).raise_if_invalid()
    top = max(best.value(model.poi), 0.0) + 4.0 * best.error(model.poi)
    step = 10.0 ** (np.floor(np.log10(top)) - 1.0)
    top = min(float(np.ceil(top / step) * step), model.nll.parameters[model.poi_index].high)
    return tuple(float(f"{value:.12g}") for value in np.linspace(0.0, top, count))


def data_settings(options: RunOptions, analysis: Analysis) -> Json:
    """What toys depend on beside the model: true nuisances and auxiliary measurements come from the data.

    Raises
    ------
    EventsError
        If the file cannot be read.
    """
    return {
        "window": list(options.windows[0]),
        "events_sha256": file_sha256(options.source.path),
        "n_events": len(analysis.events),
        "ensemble": options.model.spec.signal.ensemble,
        "background_order": options.model.spec.background.order,
        "held": {name: p.start for name, p in options.model.spec.parameters.items() if p.fixed},
        **({} if options.background is None else {"background_sha256": options.background.sha256}),
    }


def file_sha256(path: Path) -> str:
    """Hash of a file, read piece by piece.

    Raises
    ------
    EventsError
        If it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise EventsError(f"{path} cannot be read: {error.strerror or error}") from error


def choose_executor(jobs: int, scheduler: str | None) -> Executor:
    """Executor for a number of processes, or a Dask cluster.

    Parameters
    ----------
    jobs : int
        Processes of this machine; with `scheduler` "local" those of the cluster.
    scheduler : str or None
        Address of a Dask scheduler, or "local".

    Raises
    ------
    OptionError
        If `jobs` is not positive, or the address is not one.
    """
    if scheduler is not None:
        return DaskCluster(scheduler, jobs)
    return Serial() if jobs == 1 else Processes(jobs)


def run_toys(
    prepared: PreparedToys,
    output: Path,
    *,
    jobs: int = 1,
    scheduler: str | None = None,
    part: tuple[int, int] = (1, 1),
    progress: Callable[[Progress], None] | None = None,
) -> Campaign:
    """Throw the toys of a plan that are not in the file yet; see :func:`gbistat.inference.campaign_run.run_campaign`.

    Raises
    ------
    CampaignError, ToyFileError, OutputError, OptionError
        As :func:`gbistat.inference.campaign_run.run_campaign`.
    """
    check_writable(None, output)
    executor = choose_executor(jobs, scheduler)
    return run_campaign(prepared.plan, prepared.work, output, executor=executor, part=part, progress=progress)


def merge_toys(paths: Sequence[Path], output: Path) -> ToysStatus:
    """Merge files of toys; see :func:`gbistat.inference.campaign_files.merge_files`.

    Raises
    ------
    ToyFileError
        If a file is missing or damaged, or two belong to different campaigns.
    OutputError
        If the output cannot be written.
    """
    check_writable(None, output)
    return _status(merge_files(paths, output))


def toys_status(path: Path) -> ToysStatus:
    """What is in a file of toys, and in the journal beside it if a job is at work or was killed.

    Raises
    ------
    ToyFileError
        If there is no file, or it is damaged.
    """
    return _status(load_campaign(path))


def _status(campaign: Campaign) -> ToysStatus:
    plan = campaign.plan
    poi = str(plan.settings.get("poi", plan.parameters[0]))
    column = plan.parameters.index(poi) if poi in plan.parameters else 0
    points = []
    for index, value in enumerate(plan.points[:, column]):
        point = PointStatus(float(value), plan.n_toys[index], campaign.n_done(index))
        if plan.work == WORK and point.n_done:
            toys = campaign_toys(campaign, index)
            finite = toys.estimate[np.isfinite(toys.estimate)]
            point = replace(
                point,
                counts=tuple(toys.counts_by_status().items()),
                estimate=float(finite.mean()) if finite.size else None,
                spread=float(finite.std()) if finite.size else None,
            )
        points.append(point)
    return ToysStatus(plan, poi, dict(campaign.versions), tuple(points), len(campaign.missing()))
