"""Work on several processes of this machine, with the same result as on one.

Linear algebra is kept to one thread wherever toys are made: sums over many events come out differently with two.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
from collections import deque
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from gbistat import extras
from gbistat.errors import CampaignError, OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Future
    from contextlib import AbstractContextManager
    from multiprocessing.connection import Connection

__all__ = ["Workers", "mapping", "one_thread", "pickled"]

MAX_DEATHS = 3
"""Times in a row that worker processes may die with nothing finished in between."""
KEPT_FUNCTIONS = 4
"""Functions with all that they carry that a worker remembers."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def one_thread() -> AbstractContextManager[object]:
    """Keep linear algebra of this process to one thread, from now on or until the returned context is left."""
    import scipy.linalg  # noqa: F401  loaded now, so that its threads are limited with the others

    limits: AbstractContextManager[object] = extras.threadpoolctl().threadpool_limits(1)
    return limits


def pickled(work: object, name: str) -> bytes:
    """Bytes of an object that is sent to other processes.

    Raises
    ------
    OptionError
        If it cannot be pickled.
    """
    try:
        return pickle.dumps(work, protocol=5)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise OptionError(
            f"{name} cannot be sent to other processes: {error}; use a function of a module, or one process"
        ) from error


class Workers:
    """Processes of this machine; a context manager, at whose end they end, in the middle of their work too.

    Parameters
    ----------
    jobs : int
        Number of processes, at least 1. They are started when the first work comes.

    Raises
    ------
    OptionError
        If `jobs` is not positive.

    Notes
    -----
    Functions are sent once and must not change afterwards. When a process dies (killed, out of memory), what it had in work is done again by new processes. Processes are started afresh
    ("spawn"), so a script must use this below ``if __name__ == "__main__"``. They end with their parent, even a killed one.
    """

    def __init__(self, jobs: int) -> None:
        if jobs < 1:
            raise OptionError(f"{jobs} processes; give at least 1")
        self.jobs = jobs
        self._folder = tempfile.TemporaryDirectory(prefix="gbistat-")
        self._pool: ProcessPoolExecutor | None = None
        self._pipe: tuple[Connection, Connection] | None = None
        self._sent: list[tuple[object, str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._end_pool()
        self._folder.cleanup()

    def map(self, function: Callable[..., Result], *iterables: Iterable[Any]) -> Iterator[Result]:
        """Work as the builtin ``map``, in its order.

        Raises
        ------
        CampaignError
            If processes keep dying.
        OptionError
            If the function cannot be sent to other processes.
        """
        items = list(zip(*iterables, strict=False))
        early: dict[int, Result] = {}
        place = 0
        for index, result in self.unordered(_Spread(function), items):
            early[index] = result
            while place in early:
                yield early.pop(place)
                place += 1

    def unordered(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        name: str = "the work",
        describe: Callable[[Item], str] = str,
    ) -> Iterator[tuple[int, Result]]:
        """Results with the positions of their items, as they come.

        Parameters
        ----------
        function : callable
            Sent to each process once, however many items there are.
        items : sequence
            Sent one by one.
        name, describe : str, callable
            What function and items are called in messages.

        Raises
        ------
        CampaignError
            If processes keep dying.
        OptionError
            If the function cannot be sent to other processes.
        """
        file = self._stored(function, name)
        pending = deque(range(len(items)))
        deaths = 0
        while pending:
            running: dict[Future[Result], int] = {}
            try:
                for index, result in self._finished(file, items, pending, running):
                    deaths = 0
                    yield index, result
            except BrokenProcessPool:
                self._end_pool()
                lost = sorted(running.values())
                pending.extendleft(reversed(lost))
                deaths += 1
                if deaths >= MAX_DEATHS:
                    raise CampaignError(
                        f"worker processes died {deaths} times in a row, at {describe(items[lost[0]])}: out of memory? use "
                        'fewer jobs; in a script, run below if __name__ == "__main__"'
                    ) from None

    def _finished(
        self, file: str, items: Sequence[Item], pending: deque[int], running: dict[Future[Any], int]
    ) -> Iterator[tuple[int, Any]]:
        """Keep every process busy with an item and another one waiting; yield what is done."""
        pool = self._begin_pool()
        while pending or running:
            while pending and len(running) < 2 * self.jobs:
                index = pending.popleft()
                running[pool.submit(_do, file, items[index])] = index
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                result = future.result()
                yield running.pop(future), result

    def _stored(self, function: Callable[..., Any], name: str) -> str:
        """File with a function; one that was sent before is not pickled again."""
        core = function.function if isinstance(function, _Spread) else function
        for known, file in self._sent:
            if known is core:
                return file
        file = self._store(pickled(function, name))
        self._sent = [*self._sent[1 - KEPT_FUNCTIONS :], (core, file)]
        return file

    def _store(self, payload: bytes) -> str:
        """File with a function, from which each process reads it once."""
        path = Path(self._folder.name) / hashlib.sha256(payload).hexdigest()
        if not path.exists():
            path.write_bytes(payload)
        return str(path)

    def _begin_pool(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pipe = context.Pipe(duplex=False)
            self._pool = ProcessPoolExecutor(self.jobs, context, _begin_worker, (self._pipe[0],))
        return self._pool

    def _end_pool(self) -> None:
        if self._pool is None or self._pipe is None:
            return
        ears, mouth = self._pipe
        mouth.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        ears.close()
        self._pool = self._pipe = None


@contextmanager
def mapping(jobs: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Context that yields a ``map`` on several processes, or the builtin one on one, with the same results.

    Parameters
    ----------
    jobs : int
        Number of processes.

    Raises
    ------
    OptionError
        If `jobs` is not positive.

    Examples
    --------
    >>> with mapping(1) as mapper:
    ...     list(mapper(abs, [-1, 2]))
    [1, 2]
    """
    if jobs == 1:
        with one_thread():
            yield map
    else:
        with Workers(jobs) as workers:
            yield workers.map


class _Spread:
    """A function of several arguments as one of a tuple."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, arguments: tuple[Any, ...]) -> Any:
        return self.function(*arguments)


_functions: dict[str, Callable[[Any], Any]] = {}
"""What a worker process was sent; empty everywhere else."""


def _begin_worker(ears: Connection) -> None:
    """Set up a worker process."""
    threading.Thread(target=_end_with_pool, args=(ears,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt reaches the whole group; the parent decides
    one_thread()


def _end_with_pool(ears: Connection) -> None:
    """End this process when the other end of a pipe is closed: by the parent, or by its death."""
    with suppress(EOFError, OSError):
        ears.recv_bytes()
    os._exit(0)


def _do(file: str, item: Any) -> Any:
    if file not in _functions:
        while len(_functions) >= KEPT_FUNCTIONS:
            del _functions[next(iter(_functions))]
        _functions[file] = pickle.loads(Path(file).read_bytes())
        one_thread()
    return _functions[file](item)
