"""Work that the tests of campaigns send to other processes: a module of its own, so that they can import it."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BACKGROUND = 10.0


def count_toys(point, n_toys, *, rng):
    """Poisson counts with known background; q of the true mean in closed form; a long dot product a toy."""
    mean = point[0] + BACKGROUND
    n = rng.poisson(mean, n_toys)
    q = 2.0 * (mean - n + np.where(n > 0, n * np.log(np.maximum(n, 1) / mean), 0.0))
    # OpenBLAS sums 40,000 products in another order with two threads than with one.
    noise = rng.standard_normal(40_000)
    return {"n": n, "q": q, "dots": np.full(n_toys, noise @ noise)}


@dataclass(frozen=True)
class SlowToys:
    """`count_toys` that takes its time except at 0, and leaves a note of every task in a file named by the process."""

    notes: Path
    seconds: float = 0.05

    def __call__(self, point, n_toys, *, rng):
        with (self.notes / f"{os.getpid()}").open("a") as note:
            note.write(f"{point[0]:g}\n")
        time.sleep(self.seconds if point[0] > 0 else 0.0)
        return count_toys(point, n_toys, rng=rng)


@dataclass(frozen=True)
class DeadlyToys:
    """`count_toys` that kills its own process, the first `times` times that a certain point is done."""

    notes: Path
    point: float
    times: int = 1

    def __call__(self, point, n_toys, *, rng):
        deaths = len(list(self.notes.glob("death*")))
        if point[0] == self.point and deaths < self.times:
            (self.notes / f"death{deaths}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return count_toys(point, n_toys, rng=rng)


def wrong_toys(point, n_toys, *, rng):
    """One row too many."""
    return {"q": np.zeros(n_toys + 1)}


class CountsCopies:
    """Adds; leaves a note whenever it is unpickled. Kills its process once if told to."""

    def __init__(self, notes, deadly=False):
        self.notes, self.deadly = notes, deadly

    def __setstate__(self, state):
        self.__dict__.update(state)
        (self.notes / f"copy-{os.getpid()}-{time.monotonic_ns()}").touch()

    def __call__(self, a, b):
        if self.deadly and a == 3 and not (self.notes / "death").exists():
            (self.notes / "death").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02 * (a % 3))
        return a + b


def blas_threads(_):
    """Threads of linear algebra in this process."""
    import threadpoolctl

    return max(pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas")
