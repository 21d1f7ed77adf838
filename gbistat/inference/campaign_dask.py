"""Campaigns on a Dask cluster.

The plan and its work go to every worker once, as a plugin, so that a worker that joins later or is started again has them too. A
task on a worker that dies is done again by another one: that is Dask's own doing; the toys are the same wherever they are made.
"""

from __future__ import annotations

import asyncio
import pickle
import re
import threading
import uuid
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gbistat import extras
from gbistat.errors import CampaignError, OptionError
from gbistat.inference.campaign_run import Unit
from gbistat.inference.parallel import one_thread, pickled

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gbistat.inference.campaign import CampaignPlan, Columns, Task, Work

__all__ = ["DaskCluster"]

LOCAL = "local"
_ADDRESS = re.compile(r"((tcp|tls|ws|wss|ucx)://)?[^\s/:]+:\d+")
IN_FLIGHT = 1000
"""Tasks that the scheduler knows of at a time."""


@dataclass(frozen=True)
class DaskCluster:
    """Tasks on a Dask cluster.

    Parameters
    ----------
    address : str
        Address of a scheduler, for example "tcp://10.0.0.1:8786", or "local": a cluster of processes of this machine, for
        the time of the run.
    jobs : int, default 1
        Processes of a local cluster.
    connect_timeout : float, default 5
        Seconds after which a scheduler that does not answer is an error.
    worker_timeout : float, default 60
        Seconds to wait for the first worker.

    Raises
    ------
    OptionError
        If `jobs` is not positive, or the address is not one.
    """

    address: str
    jobs: int = 1
    connect_timeout: float = 5.0
    worker_timeout: float = 60.0

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise OptionError(f"{self.jobs} processes; give at least 1")
        if self.address != LOCAL and not _ADDRESS.fullmatch(self.address):
            raise OptionError(
                f"{self.address!r} is not the address of a Dask scheduler; give one like tcp://10.0.0.1:8786, or 'local'"
            )

    def run(self, plan: CampaignPlan, work: Work, tasks: Sequence[Task]) -> Iterator[tuple[Task, Columns]]:
        """Do each task once.

        Raises
        ------
        CampaignError
            If the scheduler does not answer or goes away, it gets no worker, or workers keep dying on a task.
        MissingExtra
            If Dask's distributed is not installed.
        """
        payload = pickled(Unit(plan, work), f"the work {plan.work!r}")
        name = f"gbistat-{uuid.uuid4().hex}"
        with ExitStack() as stack:
            distributed = extras.distributed()
            client = stack.enter_context(self._client(distributed, stack))
            self._wait_for_worker(client)
            stack.callback(_forget, client, name)
            try:
                client.register_plugin(_delivery(distributed, payload), name=name)
            except (ImportError, AttributeError) as error:
                raise CampaignError(
                    f"a Dask worker at {self.address!r} cannot load the work {plan.work!r} ({error}); it needs the packages "
                    "that are installed here"
                ) from error
            yield from self._finished(distributed, client, plan, name, list(tasks))

    def _client(self, distributed: Any, stack: ExitStack) -> Any:
        """Client of the cluster, connected."""
        address = self.address
        if address == LOCAL:
            cluster = stack.enter_context(
                distributed.LocalCluster(
                    n_workers=self.jobs, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0"
                )
            )
            address = cluster.scheduler_address
        try:
            # A thread of its own: a notebook has an event loop in this one.
            with ThreadPoolExecutor(1) as thread:
                thread.submit(asyncio.run, _call(distributed, address, self.connect_timeout)).result()
            return distributed.Client(address, timeout=self.connect_timeout, set_as_default=False)
        except (OSError, TimeoutError) as error:
            raise CampaignError(
                f"no Dask scheduler answers at {self.address!r} within {self.connect_timeout:g} s; start one with "
                "'dask scheduler', or leave out --scheduler to run here"
            ) from error

    def _wait_for_worker(self, client: Any) -> None:
        try:
            client.wait_for_workers(1, timeout=self.worker_timeout)
        except TimeoutError as error:
            raise CampaignError(
                f"the Dask scheduler at {self.address!r} got no worker within {self.worker_timeout:g} s; start some with "
                f"'dask worker {self.address}'"
            ) from error

    def _finished(
        self, distributed: Any, client: Any, plan: CampaignPlan, name: str, pending: list[Task]
    ) -> Iterator[tuple[Task, Columns]]:
        running: dict[str, Task] = {}

        def submit(task: Task) -> Any:
            future = client.submit(_do_on_worker, name, task, key=f"{name}-{task.point}-{task.chunk}", pure=False)
            running[future.key] = task
            return future

        pending.reverse()
        first = [submit(pending.pop()) for _ in range(min(IN_FLIGHT, len(pending)))]
        completed = distributed.as_completed(first, loop=client.loop)
        del first
        for future in completed:
            task = running.pop(future.key)
            try:
                columns = future.result()
            except CancelledError as error:
                raise CampaignError(
                    f"the Dask scheduler at {self.address!r} went away before point {task.point} "
                    f"({plan.describe(task.point)}), chunk {task.chunk} was done; what is done is kept: run again to go on"
                ) from error
            except distributed.KilledWorker as error:
                raise CampaignError(
                    f"point {task.point} ({plan.describe(task.point)}), chunk {task.chunk} was on several workers that died: "
                    "out of memory? give workers more; what is done is kept"
                ) from error
            future.release()
            yield task, columns
            if pending:
                completed.add(submit(pending.pop()))


async def _call(distributed: Any, address: str, timeout: float) -> None:
    """Connect to a scheduler and hang up; unlike a client's own, this timeout holds when something else listens there."""
    client = distributed.Client(address, timeout=timeout, asynchronous=True, set_as_default=False)
    try:
        await asyncio.wait_for(client.__aenter__(), timeout)
    finally:
        await client.close(1.0)


def _delivery(distributed: Any, payload: bytes) -> Any:
    """Plugin that carries the plan and its work to workers."""

    class Delivery(distributed.WorkerPlugin):  # type: ignore[misc]
        def setup(self, worker: Any) -> None:
            _loads(payload).check_versions(f"the Dask worker {worker.address}")
            one_thread()
            self.copies = threading.local()

        def unit(self) -> Unit:
            # A copy for each thread: work may hold scratch arrays.
            if not hasattr(self.copies, "unit"):
                self.copies.unit = _loads(payload)
            own: Unit = self.copies.unit
            return own

    return Delivery()


def _forget(client: Any, name: str) -> None:
    """Take the work off the workers; a scheduler that went away has none."""
    with suppress(OSError, TimeoutError, RuntimeError):
        client.unregister_worker_plugin(name)


def _loads(payload: bytes) -> Unit:
    unit: Unit = pickle.loads(payload)
    return unit


def _do_on_worker(name: str, task: Task) -> Columns:
    worker = extras.distributed().get_worker()
    if name not in worker.plugins:
        raise CampaignError(f"the Dask worker {worker.address} joined late and could not load the work; see its log")
    unit: Unit = worker.plugins[name].unit()
    return unit.do(task)
