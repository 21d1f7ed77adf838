"""The folder of a background training: what it holds, written so that a run which was killed goes on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat.errors import CardError, EventsError, OutputError
from gbistat.training.background_card import load_background_card
from gbistat.training.card import dump_card
from gbistat.training.environment import library_versions
from gbistat.training.flow import FlowScaling
from gbistat.training.run import RUN_SCHEMA, Epoch, check_same_run, read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.training.background_card import BackgroundCard
    from gbistat.training.sidebands import SidebandPool
    from gbistat.training.splits import Sample
    from gbistat.typing import FloatArray, Json

__all__ = ["BackgroundRun", "Final", "FlowEpoch", "FlowFolder", "load_background_run", "start_background_run"]


@dataclass(frozen=True)
class FlowEpoch(Epoch):
    """An epoch of a flow, with ARGOS of the validation events against its samples where epochs are selected by it."""

    argos: float | None = None

    def rank(self, select: str) -> float:
        """What is small for a good epoch."""
        return self.validation_loss if select == "loss" or self.argos is None else self.argos


@dataclass(frozen=True)
class Final:
    """What became of a member: the epochs whose weights were averaged, and the validation loss of the average."""

    epochs: tuple[int, ...]
    validation_loss: float


@dataclass(frozen=True)
class FlowFolder:
    """Checkpoints of one member: weights of its best epochs, the state after the last one, and the history.

    The history is written last and names the files: whatever a killed run left beside it is not used. Arrays are
    stored without pickles, and belong to no backend.
    """

    path: Path

    def history(self) -> list[FlowEpoch]:
        """Epochs that are done."""
        return [FlowEpoch(**entry) for entry in self._index().get("epochs", [])]

    def final(self) -> Final | None:
        """The outcome, if the member is finished."""
        entry = self._index().get("final")
        return None if entry is None else Final(tuple(entry["epochs"]), entry["validation_loss"])

    def state(self) -> tuple[list[FloatArray], list[FloatArray]]:
        """Weights and variables of the optimiser after the last epoch.

        Raises
        ------
        OutputError
            If there are none, or their file is damaged.
        """
        index = self._index()
        if "last" not in index:
            raise OutputError(f"{self.path} holds no trained network; run the training first")
        arrays = self._read(index["last"])
        return _numbered(arrays, "weight"), _numbered(arrays, "optimiser")

    def weights(self, epoch: int) -> list[FloatArray]:
        """Weights after an epoch that was among the best.

        Raises
        ------
        OutputError
            If their file is missing or damaged.
        """
        return _numbered(self._read(_weights_file(epoch)), "weight")

    def save(
        self,
        weights: Sequence[FloatArray],
        optimiser: Sequence[FloatArray],
        history: Sequence[FlowEpoch],
        *,
        best: Sequence[int],
    ) -> None:
        """Write the checkpoint after an epoch; `best` are the epochs whose weights are to be kept."""
        self.path.mkdir(parents=True, exist_ok=True)
        number = len(history) - 1
        last = f"last_{number:04d}.npz"
        numbered = {f"weight_{i}": array for i, array in enumerate(weights)}
        self._write(last, {**numbered, **{f"optimiser_{i}": array for i, array in enumerate(optimiser)}})
        if number in best:
            self._write(_weights_file(number), numbered)
        write_json(self.path / "history.json", {"last": last, "epochs": [asdict(epoch) for epoch in history]})
        kept = {last, *(_weights_file(epoch) for epoch in best)}
        for stale in self.path.glob("*.npz"):
            if stale.name not in kept:
                stale.unlink()

    def finish(self, final: Final) -> None:
        """Record the outcome."""
        write_json(self.path / "history.json", {**self._index(), "final": asdict(final)})

    def _write(self, file: str, arrays: dict[str, FloatArray]) -> None:
        partial = self.path / "partial.npz"
        np.savez(partial, **arrays)  # type: ignore[arg-type]
        partial.replace(self.path / file)

    def _read(self, file: str) -> dict[str, FloatArray]:
        try:
            with np.load(self.path / file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError, EOFError, KeyError) as problem:
            raise OutputError(
                f"{self.path / file} cannot be read ({str(problem).splitlines()[0][:120]}); remove {self.path} to train "
                "this member again"
            ) from None

    def _index(self) -> Json:
        file = self.path / "history.json"
        return read_json(file) if file.is_file() else {}


def _weights_file(epoch: int) -> str:
    return f"epoch_{epoch:04d}.npz"


def _numbered(arrays: dict[str, FloatArray], prefix: str) -> list[FloatArray]:
    count = sum(name.startswith(f"{prefix}_") for name in arrays)
    return [arrays[f"{prefix}_{i}"] for i in range(count)]


@dataclass(frozen=True, eq=False)
class BackgroundRun:
    """A run on disk.

    Parameters
    ----------
    directory : Path
        Its folder.
    card : BackgroundCard
        What is trained.
    scaling : FlowScaling
        What the networks do to raw values.
    split : dict
        Record of the split of the file.
    counts : dict of str to int
        Events in the sidebands; see `gbistat.training.sidebands.SidebandPool`.
    warnings : tuple of str
        What a person should know.
    versions : dict
        Versions of libraries when the run was started.
    """

    directory: Path
    card: BackgroundCard
    scaling: FlowScaling
    split: Json
    counts: dict[str, int]
    warnings: tuple[str, ...]
    versions: dict[str, str]

    def member(self, index: int) -> FlowFolder:
        """Checkpoints of one member."""
        return FlowFolder(self.directory / f"member_{index}")

    def held_out(self) -> FloatArray:
        """Mass and features of sideband events of the part ``reference``, which trained nothing, shape (n, 1 + d).

        Raises
        ------
        OutputError
            If their file is damaged or missing.
        """
        file = self.directory / "held_out.npz"
        try:
            with np.load(file, allow_pickle=False) as arrays:
                events: FloatArray = arrays["background"]
        except (OSError, ValueError, KeyError, EOFError) as problem:
            raise OutputError(f"{file} cannot be read ({problem}); train again in a new folder") from None
        return events


def start_background_run(
    directory: Path, card: BackgroundCard, sample: Sample, pool: SidebandPool, warnings: Sequence[str]
) -> BackgroundRun:
    """Make the folder of a run, or find it again.

    Raises
    ------
    OutputError
        If the folder cannot be written, or holds a run of another card or of other events.
    """
    split = sample.record()
    if (directory / "run.json").is_file():
        run = load_background_run(directory)
        check_same_run(directory, (run.card, card), (run.split, split))
        return run
    run = BackgroundRun(directory, card, FlowScaling.of(pool), split, pool.counts, tuple(warnings), library_versions())
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "card.yaml").write_bytes(dump_card(card))
        _save_held_out(directory / "held_out.npz", run, sample)
        content: dict[str, Any] = {
            "schema": RUN_SCHEMA,
            "kind": card.kind,
            "scaling": run.scaling.to_dict(),
            "splits": [split],
            "counts": run.counts,
            "warnings": list(run.warnings),
            "versions": run.versions,
        }
        write_json(directory / "run.json", content)
    except OSError as problem:
        raise OutputError(
            f"{directory} cannot be written: {problem.strerror or problem}; choose another place"
        ) from None
    return run


def _save_held_out(path: Path, run: BackgroundRun, sample: Sample) -> None:
    card = run.card
    x = sample.part("reference").matrix(card.names)
    mass = x[:, 0]
    (low, high), (begin, end) = card.train_range, card.window
    sideband = ((mass >= low) & (mass < begin)) | ((mass >= end) & (mass < high))
    inside = run.scaling.transform.inside(x[:, 1:].astype(np.float32).astype(np.float64))
    partial = path.with_name(".held_out.partial.npz")
    np.savez_compressed(partial, background=x[sideband & inside])
    partial.replace(path)


def load_background_run(directory: str | Path) -> BackgroundRun:
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
    if data.get("schema") != RUN_SCHEMA or data.get("kind") != "background":
        raise OutputError(
            f"{folder / 'run.json'} is of schema {data.get('schema')!r} and kind {data.get('kind')!r}; this needs "
            f"{RUN_SCHEMA!r} and 'background'"
        )
    try:
        return BackgroundRun(
            folder,
            load_background_card(folder / "card.yaml"),
            FlowScaling.from_dict(data["scaling"]),
            data["splits"][0],
            data["counts"],
            tuple(data["warnings"]),
            data["versions"],
        )
    except (CardError, EventsError, KeyError, TypeError, IndexError) as problem:
        raise OutputError(f"{folder} is damaged ({problem}); train again in a new folder") from None
