"""Running campaigns: on one core, on local processes, on a Dask cluster; stopped and gone on with at any time.

Every executor yields finished tasks in whatever order they come; what they hold depends on the plan alone.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from gbistat import __version__
from gbistat.errors import CampaignError, OptionError
from gbistat.inference.campaign import Campaign, checked_columns
from gbistat.inference.campaign_files import read_campaign, write_campaign
from gbistat.inference.campaign_journal import Journal, journal_path
from gbistat.inference.campaign_merge import merge_campaigns
from gbistat.inference.parallel import Workers, one_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from gbistat.inference.campaign import CampaignPlan, Columns, Task, Work

__all__ = ["Executor", "Processes", "Progress", "Serial", "run_campaign"]

VERSIONS = {"gbistat": __version__, "numpy": np.__version__}
"""Packages that toys depend on; they stand in the file, and workers must have the same."""


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Parameters
    ----------
    n_done, n_toys : int
        Toys done and asked for, in this run's part of the plan.
    n_restored : int
        Those of the done that were there before the run.
    """

    n_done: int
    n_toys: int
    n_restored: int = 0


class Executor(Protocol):
    """Does tasks."""

    def run(self, plan: CampaignPlan, work: Work, tasks: Sequence[Task]) -> Iterator[tuple[Task, Columns]]:
        """Do each task once, and yield it with its columns as soon as it is done."""


@dataclass(frozen=True)
class Unit:
    """A plan and its work, as they are sent to workers."""

    plan: CampaignPlan
    work: Work
    versions: Mapping[str, str] = field(default_factory=lambda: dict(VERSIONS))

    def check_versions(self, where: str) -> None:
        """Check that toys made in this process are those that the sender would have made.

        Raises
        ------
        CampaignError
            If a package has another version here.
        """
        for name, version in VERSIONS.items():
            if self.versions.get(name) != version:
                raise CampaignError(
                    f"{where} has {name} {version}, and the campaign runs with {self.versions.get(name)}: its toys would not "
                    "be the same; use one environment for both"
                )

    def do(self, task: Task) -> Columns:
        """Throw and evaluate the toys of one task."""
        result = self.work(self.plan.points[task.point], task.n_toys, rng=self.plan.rng(*task.place))
        return checked_columns(self.plan, task, result)


@dataclass(frozen=True)
class Serial:
    """One task after the other, in this process."""

    def run(self, plan: CampaignPlan, work: Work, tasks: Sequence[Task]) -> Iterator[tuple[Task, Columns]]:
        """Do each task once."""
        unit = Unit(plan, work)
        for task in tasks:
            with one_thread():
                columns = unit.do(task)
            yield task, columns


@dataclass(frozen=True)
class Processes:
    """Tasks on processes of this machine; see :class:`gbistat.inference.parallel.Workers`.

    Parameters
    ----------
    jobs : int
        Number of processes, at least 1.

    Raises
    ------
    OptionError
        If `jobs` is not positive.
    """

    jobs: int

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise OptionError(f"{self.jobs} processes; give at least 1")

    def run(self, plan: CampaignPlan, work: Work, tasks: Sequence[Task]) -> Iterator[tuple[Task, Columns]]:
        """Do each task once.

        Raises
        ------
        CampaignError
            If processes keep dying.
        OptionError
            If the work cannot be pickled.
        """

        def describe(task: Task) -> str:
            return plan.describe(task.point)

        with Workers(min(self.jobs, len(tasks))) as workers:
            results = workers.unordered(Unit(plan, work).do, tasks, name=f"the work {plan.work!r}", describe=describe)
            for index, columns in results:
                yield tasks[index], columns


def run_campaign(
    plan: CampaignPlan,
    work: Work,
    path: Path | None = None,
    *,
    executor: Executor | None = None,
    part: tuple[int, int] = (1, 1),
    progress: Callable[[Progress], None] | None = None,
) -> Campaign:
    """Do the tasks of a plan that are not done yet.

    Parameters
    ----------
    plan : CampaignPlan
        What to do.
    work : Work
        What is done with a task.
    path : Path, optional
        File of toys. What it and its journal hold is not done again; every finished chunk goes to the journal at once,
        so that a killed run can be gone on with. Without a file the toys are only returned.
    executor : Executor, optional
        :class:`Serial` by default; :class:`Processes`; :class:`gbistat.inference.campaign_dask.DaskCluster`.
    part : (i, n), default (1, 1)
        Only the i-th of n shares of the tasks. Each job needs a file of its own; merge them at the end.
    progress : callable, optional
        Told at the beginning and after every task.

    Returns
    -------
    Campaign
        All toys in the file, also those that were there before. It does not depend on the executor.

    Raises
    ------
    CampaignError
        If workers keep dying, a scheduler is not there, or the work returns what it must not.
    ToyFileError
        If the file that is there is damaged or belongs to another campaign.
    OutputError
        If the file cannot be written, or another run is writing it.
    """
    versions = {name: (version,) for name, version in VERSIONS.items()}
    with ExitStack() as stack:
        journal = None
        known = Campaign(plan)
        if path is not None:
            journal = stack.enter_context(Journal(journal_path(path), plan, versions))
            known = journal.found
            if path.exists():
                known = merge_campaigns([known, read_campaign(path)], ["the campaign asked for", str(path)])
        tasks = plan.tasks(part)
        todo = [task for task in tasks if not known.has(task)]
        total = sum(task.n_toys for task in tasks)
        restored = done = total - sum(task.n_toys for task in todo)
        tell = progress or (lambda _: None)
        tell(Progress(done, total, restored))
        chunks: dict[tuple[int, int], Columns] = {}
        for task, columns in (executor or Serial()).run(plan, work, todo) if todo else ():
            chunks[task.place] = columns
            if journal is not None:
                journal.append(task.place, columns)
            done += task.n_toys
            tell(Progress(done, total, restored))
        result = merge_campaigns([known, Campaign(plan, chunks, versions if chunks else {})], [str(path), "this run"])
        if path is not None and journal is not None:
            write_campaign(path, result)
            journal.drop()
    return result
