"""The folder of a training on data: what it holds, written so that a run which was killed goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat.data.transforms import FeatureTransform
from gbistat.errors import CardError, EventsError, OutputError
from gbistat.training.card import dump_card
from gbistat.training.environment import library_versions
from gbistat.training.ranode_card import load_ranode_card
from gbistat.training.run import RUN_SCHEMA, check_same_run, read_json, write_json
from gbistat.training.stacked_training import StackState

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gbistat.training.ranode_card import RanodeCard
    from gbistat.training.ranode_data import RanodeData, TransformedData
    from gbistat.typing import FloatArray, Json

__all__ = ["RanodeRun", "StackEpoch", "StackFolder", "load_ranode_run", "start_ranode_run"]


@dataclass(frozen=True)
class StackEpoch:
    """One epoch of a stack of T networks: losses summed over events, and fractions.

    Parameters
    ----------
    losses, validation_losses, fractions : sequence of float
        One a network; losses are means per event, validation losses sums over the events left out.
    """

    losses: tuple[float, ...]
    validation_losses: tuple[float, ...]
    fractions: tuple[float, ...]

    def to_dict(self) -> Json:
        """Plain data, for JSON."""
        return {name: list(getattr(self, name)) for name in ("losses", "validation_losses", "fractions")}

    @classmethod
    def from_dict(cls, data: Json) -> StackEpoch:
        """What `to_dict` gave."""
        return cls(tuple(data["losses"]), tuple(data["validation_losses"]), tuple(data["fractions"]))


@dataclass(frozen=True)
class StackFolder:
    """Checkpoints of one stack: its state after the last epoch, weights of epochs that may be averaged, the history.

    The history is written last and names the files: whatever a killed run left beside it is not used.
    """

    path: Path

    def history(self) -> list[StackEpoch]:
        """Epochs that are done."""
        return [StackEpoch.from_dict(entry) for entry in self._index().get("epochs", [])]

    def state(self) -> StackState:
        """State after the last epoch.

        Raises
        ------
        OutputError
            If there is none, or its file is damaged.
        """
        index = self._index()
        if "last" not in index:
            raise OutputError(f"{self.path} holds no trained networks; run the training first")
        return StackState.of(self._read(index["last"]), index["steps"])

    def weights(self, epoch: int) -> list[FloatArray]:
        """Weights after an epoch that is kept.

        Raises
        ------
        OutputError
            If their file is missing or damaged.
        """
        arrays = self._read(_file(epoch))
        return [arrays[f"weights_{i}"] for i in range(len(arrays))]

    def save(self, state: StackState, history: Sequence[StackEpoch], *, kept: Iterable[int]) -> None:
        """Write the checkpoint after an epoch; of the epochs `kept` the weights stay.

        Raises
        ------
        OutputError
            If the folder cannot be written.
        """
        number = len(history) - 1
        last = f"last_{number:04d}.npz"
        wanted = set(kept)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            arrays = state.arrays()
            self._write(last, arrays)
            if number in wanted:
                self._write(_file(number), {k: v for k, v in arrays.items() if k.startswith("weights_")})
            write_json(
                self.path / "history.json",
                {"last": last, "steps": state.steps, "epochs": [epoch.to_dict() for epoch in history]},
            )
            names = {last, *(_file(epoch) for epoch in wanted)}
            for stale in self.path.glob("*.npz"):
                if stale.name not in names:
                    stale.unlink()
        except OSError as problem:
            raise OutputError(
                f"{self.path} cannot be written: {problem.strerror or problem}; free some space and start again: "
                "the run goes on at its last complete epoch"
            ) from None

    def outcome(self) -> Json | None:
        """What became of the stack, if it is finished."""
        outcome: Json | None = self._index().get("outcome")
        return outcome

    def finish(self, outcome: Json, weights: Sequence[FloatArray]) -> None:
        """Record the outcome and the final weights."""
        self._write("final.npz", {f"weights_{i}": array for i, array in enumerate(weights)})
        write_json(self.path / "history.json", {**self._index(), "outcome": outcome})

    def final_weights(self) -> list[FloatArray]:
        """Averaged weights of a finished stack, masked kernels and biases, without the fractions."""
        arrays = self._read("final.npz")
        return [arrays[f"weights_{i}"] for i in range(len(arrays))]

    def _write(self, file: str, arrays: dict[str, Any]) -> None:
        partial = self.path / "partial.npz"
        np.savez(partial, **arrays)
        partial.replace(self.path / file)

    def _read(self, file: str) -> dict[str, FloatArray]:
        try:
            with np.load(self.path / file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError, EOFError, KeyError) as problem:
            raise OutputError(
                f"{self.path / file} cannot be read ({str(problem).splitlines()[0][:120]}); remove {self.path} to train "
                "these networks again"
            ) from None

    def _index(self) -> Json:
        file = self.path / "history.json"
        return read_json(file) if file.is_file() else {}


def _file(epoch: int) -> str:
    return f"epoch_{epoch:04d}.npz"


@dataclass(frozen=True, eq=False)
class RanodeRun:
    """A run on disk.

    Parameters
    ----------
    directory : Path
        Its folder.
    card : RanodeCard
        What is trained.
    transform : FeatureTransform
        Of mass and features.
    units : dict of str to str
        Of mass and features.
    record : dict
        Provenance: file and hash of the data, generator, sidebands, warnings.
    counts : dict of str to int
        Events used and left out, and in each fold.
    versions : dict
        Versions of libraries when the run was started.
    """

    directory: Path
    card: RanodeCard
    transform: FeatureTransform
    units: dict[str, str]
    record: Json
    counts: Json
    versions: dict[str, str]

    def stack(self, index: int) -> StackFolder:
        """Checkpoints of the stack of one start value of w."""
        return StackFolder(self.directory / f"stack_{index}")

    @property
    def window(self) -> tuple[float, float]:
        """Of the mass."""
        return float(self.transform.low[0]), float(self.transform.high[0])

    def events(self) -> dict[str, FloatArray]:
        """Events that were used: ``x`` (n, 1 + d), ``log_background`` (n,) and ``fold`` (n,).

        Raises
        ------
        OutputError
            If their file is damaged or missing.
        """
        file = self.directory / "events.npz"
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in ("x", "log_background", "fold")}
        except (OSError, ValueError, KeyError, EOFError) as problem:
            raise OutputError(f"{file} cannot be read ({problem}); train again in a new folder") from None


def start_ranode_run(directory: Path, card: RanodeCard, data: RanodeData, ready: TransformedData) -> RanodeRun:
    """Make the folder of a run, or find it again.

    Raises
    ------
    OutputError
        If the folder cannot be written, or holds a run of another card, generator or other events.
    """
    if (directory / "run.json").is_file():
        run = load_ranode_run(directory)
        same = tuple({key: record[key] for key in ("sha256", "generator")} for record in (run.record, data.record))
        check_same_run(directory, (run.card, card), (same[0], same[1]))
        return run
    folds = np.bincount(ready.fold, minlength=card.folds.n_folds).tolist()
    counts = {"used": len(ready.x), "left_out": ready.left_out, "folds": folds}
    units = {name: data.events.units[name] for name in ready.transform.names}
    run = RanodeRun(directory, card, ready.transform, units, data.record, counts, library_versions())
    content = {
        "schema": RUN_SCHEMA,
        "kind": card.kind,
        "transform": run.transform.to_dict(),
        "units": run.units,
        "record": run.record,
        "counts": run.counts,
        "versions": run.versions,
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "card.yaml").write_bytes(dump_card(card))
        partial = directory / ".events.partial.npz"
        np.savez(partial, x=ready.x, log_background=ready.log_background, fold=ready.fold)
        partial.replace(directory / "events.npz")
        write_json(directory / "run.json", content)
    except OSError as problem:
        raise OutputError(
            f"{directory} cannot be written: {problem.strerror or problem}; choose another place"
        ) from None
    return run


def load_ranode_run(directory: str | Path) -> RanodeRun:
    """Read the folder of a run.

    Raises
    ------
    OutputError
        If it is not the folder of a run, or is damaged.
    """
    folder = Path(directory)
    if not (folder / "run.json").is_file():
        raise OutputError(f"{folder} is not the folder of a training run: it has no run.json; run the training first")
    data = read_json(folder / "run.json")
    if data.get("schema") != RUN_SCHEMA or data.get("kind") != "ranode":
        raise OutputError(
            f"{folder / 'run.json'} is of schema {data.get('schema')!r} and kind {data.get('kind')!r}; this needs "
            f"{RUN_SCHEMA!r} and 'ranode'"
        )
    try:
        return RanodeRun(
            folder,
            load_ranode_card(folder / "card.yaml"),
            FeatureTransform.from_dict(data["transform"]),
            data["units"],
            data["record"],
            data["counts"],
            data["versions"],
        )
    except (CardError, EventsError, KeyError, TypeError) as problem:
        raise OutputError(f"{folder} is damaged ({problem}); train again in a new folder") from None
