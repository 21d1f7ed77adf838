"""Campaigns: many toys cut into tasks that any worker can do, in any order, with the same result.

A plan fixes everything that a toy depends on: the points (true parameter values) where toys are thrown, the seed, the size of
a chunk, the settings of the work. A task is one chunk of toys at one point; its random numbers come from the seed of the plan
and the task's own place alone,

    SeedSequence(seed).spawn(n_points)[point].spawn(n_chunks)[chunk],

so neither the number of workers nor their order nor the number of toys asked for changes any toy. A campaign is a plan and
the chunks done so far; campaigns of one plan can be merged.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gbistat.errors import CampaignError, OptionError, ToyFileError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gbistat.typing import FloatArray, IntArray, Json

__all__ = ["CHUNK_SIZE", "Campaign", "CampaignPlan", "Columns", "Task", "Work", "checked_columns", "rows"]

CHUNK_SIZE = 1000
"""Toys in a task, unless the plan says otherwise."""

Columns: TypeAlias = dict[str, NDArray[Any]]
"""What a task returns: arrays of numbers by name, one row a toy. A point may have columns that others do not have."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")


class Work(Protocol):
    """What is done with a task. It must be picklable (a function of a module, or an instance of a class of one)."""

    def __call__(self, point: FloatArray, n_toys: int, *, rng: np.random.Generator) -> Mapping[str, NDArray[Any]]:
        """Throw and evaluate `n_toys` toys at `point`, shape (p,): arrays of shape (n_toys, ...) by name."""


@dataclass(frozen=True, order=True)
class Task:
    """One chunk of toys at one point.

    Parameters
    ----------
    point, chunk : int
        Position of the point in the plan, and of the chunk at that point.
    n_toys : int
        Toys in the chunk.
    """

    point: int
    chunk: int
    n_toys: int

    @property
    def place(self) -> tuple[int, int]:
        """Point and chunk."""
        return self.point, self.chunk


@dataclass(frozen=True, eq=False)
class CampaignPlan:
    """Everything that the toys of a campaign depend on.

    Parameters
    ----------
    work : str
        Name of the work and its version, for example "toy-statistics/1".
    model_sha256 : str
        Hash of the model; campaigns of different models are never mixed.
    parameters : tuple of str
        Names of the p parameters of a point.
    points : array of shape (n, p)
        Where toys are thrown; a one-dimensional array is one parameter.
    n_toys : tuple of int
        Toys at each point. More can be added later without changing those done.
    seed : int
        Non-negative.
    chunk_size : int, default 1000
        Toys in a task; a point's last chunk may be smaller.
    settings : mapping, optional
        Whatever else changes the result of a toy, as plain JSON.

    Raises
    ------
    OptionError
        If there is no point, a value is not finite, a number of toys is not positive, or the settings are not JSON.
    """

    work: str
    model_sha256: str
    parameters: tuple[str, ...]
    points: FloatArray
    n_toys: tuple[int, ...]
    seed: int
    chunk_size: int = CHUNK_SIZE
    settings: Json = field(default_factory=dict)

    def __post_init__(self) -> None:
        points = np.array(self.points, dtype=np.float64) + 0.0
        if points.ndim == 1:
            points = points[:, None]
        points.flags.writeable = False
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "n_toys", tuple(int(n) for n in self.n_toys))
        if points.ndim != 2 or points.shape[0] == 0 or points.shape[1] != len(self.parameters):
            raise OptionError(
                f"points of shape {points.shape} for the parameters {list(self.parameters)}; give one row a point, at least one"
            )
        if not np.isfinite(points).all():
            row = int(np.flatnonzero(~np.isfinite(points).all(axis=1))[0])
            raise OptionError(f"point {row} is {points[row].tolist()}; every value must be finite")
        if len(self.n_toys) != len(points):
            raise OptionError(f"{len(self.n_toys)} numbers of toys for {len(points)} points; give one a point")
        if min(self.n_toys) < 1:
            raise OptionError(f"{min(self.n_toys)} toys at a point; a campaign needs at least 1 at each")
        if self.chunk_size < 1:
            raise OptionError(f"a chunk of {self.chunk_size} toys; it needs at least 1")
        if self.seed < 0:
            raise OptionError(f"seed {self.seed} is negative; give an integer of 0 or more")
        try:
            settings = json.loads(json.dumps(self.settings, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise OptionError(f"the settings of a campaign must be plain JSON: {error}") from None
        object.__setattr__(self, "settings", settings)

    @property
    def n_points(self) -> int:
        """Number of points."""
        return len(self.n_toys)

    @property
    def total(self) -> int:
        """Toys at all points together."""
        return sum(self.n_toys)

    @cached_property
    def sha256(self) -> str:
        """Hash of all that a toy depends on: everything but how many toys there are."""
        data = self.to_json()
        del data["n_toys"]
        text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> Json:
        """Plain JSON."""
        return {
            "work": self.work,
            "model_sha256": self.model_sha256,
            "parameters": list(self.parameters),
            "points": self.points.tolist(),
            "n_toys": list(self.n_toys),
            "seed": self.seed,
            "chunk_size": self.chunk_size,
            "settings": self.settings,
        }

    def size_of(self, point: int, chunk: int) -> int:
        """Toys of a chunk; 0 if it is not in the plan."""
        return int(np.clip(self.n_toys[point] - chunk * self.chunk_size, 0, self.chunk_size))

    def tasks(self, part: tuple[int, int] = (1, 1)) -> list[Task]:
        """Tasks, the first chunk of every point before the second of any.

        Parameters
        ----------
        part : (i, n), default (1, 1)
            Only the i-th of n shares, i from 1 to n: for jobs that know nothing of each other.

        Raises
        ------
        OptionError
            If i is not between 1 and n.
        """
        i, n = part
        if not 1 <= i <= n:
            raise OptionError(
                f"part {i}/{n} does not exist; the parts are 1/{n} to {n}/{n}" if n > 0 else f"part {i}/{n}"
            )
        chunks = -(-max(self.n_toys) // self.chunk_size)
        places = ((point, chunk) for chunk in range(chunks) for point in range(self.n_points))
        every = [Task(*place, size) for place in places if (size := self.size_of(*place))]
        return every[i - 1 :: n]

    def rng(self, point: int, chunk: int) -> np.random.Generator:
        """Random numbers of a chunk: those of the child ``chunk`` of the child ``point`` of the seed."""
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(point, chunk)))

    def describe(self, point: int) -> str:
        """Parameter values of a point, for messages."""
        pairs = zip(self.parameters, self.points[point], strict=True)
        return ", ".join(f"{name} = {value:g}" for name, value in pairs)

    def check_same(self, other: CampaignPlan, mine: str, others: str) -> None:
        """Check that toys of two plans may stand in one campaign.

        Parameters
        ----------
        other : CampaignPlan
            The other plan.
        mine, others : str
            What the two plans are called in the message.

        Raises
        ------
        ToyFileError
            If they differ in more than the number of toys: names the first difference.
        """
        if self.sha256 == other.sha256:
            return
        if self.model_sha256 != other.model_sha256:
            raise ToyFileError(
                f"{mine} and {others} hold toys of different models (sha256 {self.model_sha256[:12]} and "
                f"{other.model_sha256[:12]}); toys of different models are never mixed"
            )
        here, there = self.to_json(), other.to_json()
        key = next(key for key in here if key != "n_toys" and here[key] != there[key])
        if key == "settings":
            a, b = here[key], there[key]
            key = next(k for k in sorted({*a, *b}) if a.get(k) != b.get(k))
            here, there = a, b
        values = " and ".join(_short(data.get(key)) for data in (here, there))
        raise ToyFileError(
            f"{mine} and {others} belong to different campaigns: {key} is {values}; merge only parts of one campaign, "
            "or write to another file"
        )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


@dataclass(frozen=True, eq=False)
class Campaign:
    """A plan and the chunks done so far.

    Parameters
    ----------
    plan : CampaignPlan
        What was asked for.
    chunks : mapping of (point, chunk) to Columns
        What has been done: arrays with one row a toy.
    versions : mapping of str to tuple of str
        Versions of the packages that made the toys.
    """

    plan: CampaignPlan
    chunks: Mapping[tuple[int, int], Columns] = field(default_factory=dict)
    versions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns at any of the points, in alphabetical order; none before the first chunk is done."""
        return tuple(sorted({name for chunk in self.chunks.values() for name in chunk}))

    @property
    def places(self) -> list[tuple[int, int]]:
        """Chunks done, in the order of points and chunks."""
        return sorted(self.chunks)

    def n_done(self, point: int | None = None) -> int:
        """Toys done, at one point or at all."""
        return sum(rows(chunk) for (where, _), chunk in self.chunks.items() if point is None or where == point)

    def has(self, task: Task) -> bool:
        """Whether all toys of a task are done."""
        return task.place in self.chunks and rows(self.chunks[task.place]) >= task.n_toys

    def missing(self, part: tuple[int, int] = (1, 1)) -> list[Task]:
        """Tasks of the plan, or of a part of it, that are not done."""
        return [task for task in self.plan.tasks(part) if not self.has(task)]

    @property
    def complete(self) -> bool:
        """Whether every toy of the plan is done."""
        return not self.missing()

    def column(self, name: str, point: int | None = None) -> NDArray[Any]:
        """Values of one column in the order of points and chunks, at one point or at all that have it; shape (toys, ...).

        Raises
        ------
        CampaignError
            If there is no such column there, or no toy yet.
        """
        chunks = [self.chunks[place] for place in self.places if point is None or place[0] == point]
        where = "" if point is None else f" at {self.plan.describe(point)}"
        if not chunks:
            raise CampaignError(f"no toys are done{where} yet; run the campaign first")
        parts = [chunk[name] for chunk in chunks if name in chunk]
        if not parts:
            raise CampaignError(f"the toys{where} have no column {name!r}; {nearest(name, sorted(chunks[0]))}")
        return np.concatenate(parts)

    def point_of_toy(self, name: str | None = None) -> IntArray:
        """Position of each toy's point in the plan, in the order of :meth:`column`, shape (toys,).

        Parameters
        ----------
        name : str, optional
            A column, to leave out points that do not have it.
        """
        places = [place for place in self.places if name is None or name in self.chunks[place]]
        sizes = [rows(self.chunks[place]) for place in places]
        return np.repeat(np.array([place[0] for place in places], dtype=np.int64), sizes)


def rows(chunk: Columns) -> int:
    """Toys in a chunk."""
    return len(next(iter(chunk.values())))


def checked_columns(plan: CampaignPlan, task: Task, result: Mapping[str, NDArray[Any]]) -> Columns:
    """Columns that a task returned, in alphabetical order and little-endian.

    Raises
    ------
    CampaignError
        If there is none, a name cannot be stored, or an array is not numbers with one row a toy.
    """
    where = f"the work {plan.work!r} at point {task.point} ({plan.describe(task.point)}), chunk {task.chunk}"
    if not result:
        raise CampaignError(f"{where} returned no columns; it must return at least one array")
    columns: Columns = {}
    for name in sorted(result):
        array = np.asarray(result[name])
        if not _NAME.fullmatch(name) or name.startswith("task_"):
            raise CampaignError(
                f"{where} returned a column {name!r}; a name is letters, digits, '_' and '.', not 'task_...'"
            )
        if array.dtype.kind not in "biuf" or array.ndim == 0 or len(array) != task.n_toys:
            raise CampaignError(
                f"{where} returned {name!r} of shape {array.shape} and type {array.dtype}; it must be numbers, "
                f"{task.n_toys} rows"
            )
        columns[name] = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return columns
