"""The folder of a training run: what it holds, written so that a run which was killed goes on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gbistat.errors import CardError, OutputError
from gbistat.training.card import dump_card, load_card
from gbistat.training.environment import keras, library_versions
from gbistat.training.network import Scaling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.training.card import RatioCard
    from gbistat.training.splits import Sample
    from gbistat.typing import FloatArray, Json

__all__ = [
    "RUN_SCHEMA",
    "Epoch",
    "HeldOut",
    "MemberFolder",
    "RatioRun",
    "check_same_run",
    "load_run",
    "read_json",
    "start_run",
    "write_json",
]

RUN_SCHEMA: Final = "gbistat.run/1"


@dataclass(frozen=True)
class Epoch:
    """Losses of one epoch, and the learning rate it was trained with."""

    loss: float
    validation_loss: float
    learning_rate: float


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Events that a run keeps for its export, raw inputs of shape (n, d) inside ``model.fit_range``.

    Parameters
    ----------
    background, signals : array, tuple of arrays
        Reference parts: nothing was trained on them.
    train_masses : tuple of arrays
        Masses of the signal events of the training parts, for the fit of the signal's mass shape.
    """

    background: FloatArray
    signals: tuple[FloatArray, ...]
    train_masses: tuple[FloatArray, ...]


@dataclass(frozen=True)
class MemberFolder:
    """Checkpoints of one member: the network after its last epoch, the best one, and the history.

    The history is written last and names the two files: whatever a killed run left beside it is not used.
    """

    path: Path

    def history(self) -> list[Epoch]:
        """Epochs that are done."""
        return [Epoch(**entry) for entry in self._index().get("epochs", [])]

    def load(self, which: str) -> Any:
        """Network ``last`` or ``best``.

        Raises
        ------
        OutputError
            If there is none, or its file is damaged.
        """
        index = self._index()
        if which not in index:
            raise OutputError(f"{self.path} holds no trained network; run the training first")
        file = self.path / index[which]
        try:
            return keras().models.load_model(file)
        except (OSError, ValueError) as problem:
            raise OutputError(
                f"{file} cannot be loaded ({str(problem).splitlines()[0][:120]}); remove {self.path} to train this "
                "member again"
            ) from None

    def save(self, network: Any, history: Sequence[Epoch], *, best: int) -> None:
        """Write the checkpoint after an epoch; `best` is the epoch with the smallest validation loss."""
        self.path.mkdir(parents=True, exist_ok=True)
        last = f"epoch_{len(history) - 1:04d}.keras"
        partial = self.path / "partial.keras"
        network.save(partial)
        partial.replace(self.path / last)
        index = {
            "last": last,
            "best": f"epoch_{best:04d}.keras",
            "epochs": [vars(epoch) for epoch in history],
        }
        write_json(self.path / "history.json", index)
        kept = {index["last"], index["best"]}
        for stale in self.path.glob("epoch_*.keras"):
            if stale.name not in kept:
                stale.unlink()

    def _index(self) -> Json:
        file = self.path / "history.json"
        return read_json(file) if file.is_file() else {}


@dataclass(frozen=True, eq=False)
class RatioRun:
    """A run on disk.

    Parameters
    ----------
    directory : Path
        Its folder.
    card : RatioCard
        What is trained.
    scaling : Scaling
        Standardisation of the inputs.
    splits : list of dict
        Record of the split of each file, background first.
    versions : dict
        Versions of libraries when the run was started.
    """

    directory: Path
    card: RatioCard
    scaling: Scaling
    splits: list[Json]
    versions: dict[str, str]

    def member(self, index: int) -> MemberFolder:
        """Checkpoints of one member."""
        return MemberFolder(self.directory / f"member_{index}")

    def held_out(self) -> HeldOut:
        """Events kept for the export.

        Raises
        ------
        OutputError
            If their file is damaged or missing.
        """
        file = self.directory / "held_out.npz"
        n = len(self.card.signals)
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return HeldOut(
                    arrays["background"],
                    tuple(arrays[f"signal_{i}"] for i in range(n)),
                    tuple(arrays[f"train_mass_{i}"] for i in range(n)),
                )
        except (OSError, ValueError, KeyError, EOFError) as problem:
            raise OutputError(f"{file} cannot be read ({problem}); train again in a new folder") from None


def start_run(
    directory: Path, card: RatioCard, scaling: Scaling, background: Sample, signals: Sequence[Sample]
) -> RatioRun:
    """Make the folder of a run, or find it again.

    Raises
    ------
    OutputError
        If the folder cannot be written, or holds a run of another card or of other events.
    """
    splits = [sample.record() for sample in (background, *signals)]
    if (directory / "run.json").is_file():
        run = load_run(directory)
        check_same_run(directory, (run.card, card), (run.splits, splits))
        return run
    run = RatioRun(directory, card, scaling, splits, library_versions())
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "card.yaml").write_bytes(dump_card(card))
        _save_held_out(directory / "held_out.npz", card, background, signals)
        write_json(
            directory / "run.json",
            {
                "schema": RUN_SCHEMA,
                "kind": card.kind,
                "scaling": {"mean": scaling.mean, "deviation": scaling.deviation},
                "splits": splits,
                "versions": run.versions,
            },
        )
    except OSError as problem:
        raise OutputError(
            f"{directory} cannot be written: {problem.strerror or problem}; choose another place"
        ) from None
    return run


def check_same_run(directory: Path, card: tuple[object, object], splits: tuple[object, object] = (None, None)) -> None:
    """Refuse to go on with a folder whose card or splits (there, and now) differ.

    Raises
    ------
    OutputError
        With what to do.
    """
    if card[0] != card[1]:
        raise OutputError(f"{directory} holds a run of another card; choose another folder, or use its card.yaml")
    if splits[0] != splits[1]:
        raise OutputError(
            f"{directory} holds a run with other events than those given now (their hashes or splits differ); "
            "choose another folder, or give the same files"
        )


def run_kind(directory: str | Path) -> str:
    """What was trained in the folder of a run: ``ratio``, ``background`` or ``sigma``.

    Raises
    ------
    OutputError
        If it is not the folder of a run.
    """
    folder = Path(directory)
    if not (folder / "run.json").is_file():
        raise OutputError(f"{folder} is not the folder of a training run: it has no run.json; run the training first")
    return str(read_json(folder / "run.json").get("kind", "ratio"))


def load_run(directory: str | Path) -> RatioRun:
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
    if data.get("schema") != RUN_SCHEMA:
        raise OutputError(f"{folder / 'run.json'} has schema {data.get('schema')!r}; this gbistat reads {RUN_SCHEMA!r}")
    try:
        card = load_card(folder / "card.yaml")
        scaling = Scaling(tuple(data["scaling"]["mean"]), tuple(data["scaling"]["deviation"]))
        return RatioRun(folder, card, scaling, data["splits"], data["versions"])
    except (CardError, KeyError, TypeError) as problem:
        raise OutputError(f"{folder} is damaged ({problem}); train again in a new folder") from None


def write_json(path: Path, data: object) -> None:
    """Write JSON whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def read_json(path: Path) -> Json:
    """Mapping that a JSON file of a run holds.

    Raises
    ------
    OutputError
        If it cannot be read or holds something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise OutputError(f"{path} cannot be read ({problem}); train again in a new folder") from None
    if not isinstance(data, dict):
        raise OutputError(f"{path} holds no mapping; train again in a new folder")
    return data


def _save_held_out(path: Path, card: RatioCard, background: Sample, signals: Sequence[Sample]) -> None:
    low, high = card.model.fit_range

    def inside(sample: Sample, part: str) -> FloatArray:
        events = sample.part(part)
        return events.select((events.mass >= low) & (events.mass < high)).matrix(card.names)

    arrays: dict[str, Any] = {"background": inside(background, "reference")}
    for index, sample in enumerate(signals):
        arrays[f"signal_{index}"] = inside(sample, "reference")
        arrays[f"train_mass_{index}"] = inside(sample, "train")[:, card.mass_column]
    partial = path.with_name(".held_out.partial.npz")
    np.savez_compressed(partial, **arrays)
    partial.replace(path)
