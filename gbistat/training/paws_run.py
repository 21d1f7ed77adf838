"""The folder of a training of a parametrised classifier, written so that a run which was killed goes on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import CardError, EventsError, OutputError
from gbistat.training.card import dump_card
from gbistat.training.environment import library_versions
from gbistat.training.logit_calibration import LogitLine
from gbistat.training.network import Scaling
from gbistat.training.paws_card import load_paws_card
from gbistat.training.run import RUN_SCHEMA, MemberFolder, check_same_run, read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gbistat.training.paws_card import PawsCard
    from gbistat.training.paws_generated import PawsGenerator
    from gbistat.training.splits import Sample
    from gbistat.typing import FloatArray, Json

__all__ = ["PawsHeldOut", "PawsRun", "load_paws_run", "start_paws_run"]

CALIBRATION = "calibration.json"
GENERATED = 60_000
"""Events of a generator that fix kappa."""


@dataclass(frozen=True, eq=False)
class PawsHeldOut:
    """Events that a run keeps for its export, inside ``model.fit_range``: masses first, then features.

    Parameters
    ----------
    background : array of shape (n, 1 + d)
        Background that grades: the reference part, which trained nothing; with a generator all events of the file, of which
        those in the generator's window trained nothing.
    generated : array of shape (n, 1 + d)
        Events of the generator in ``model.valid``, which trained nothing; none without one.
    blind : (float, float) or None
        Window that the generator never saw.
    signal, unseen : array of shape (n, 1 + d + 2)
        Parts reference and data of the signal, with its masses; the masses of the second were never trained.
    benchmarks : tuple of arrays of shape (n, 1 + d)
        Events to grade with.
    train_masses : array of shape (n,)
        Resonance masses of the signal's training part, for the fit of their shape.
    """

    background: FloatArray
    signal: FloatArray
    unseen: FloatArray
    benchmarks: tuple[FloatArray, ...]
    train_masses: FloatArray
    generated: FloatArray
    blind: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class PawsRun:
    """A run on disk; see `gbistat.training.run.RatioRun` for its parts."""

    directory: Path
    card: PawsCard
    scaling: Scaling
    splits: list[Json]
    versions: dict[str, str]

    def member(self, index: int) -> MemberFolder:
        """Checkpoints of one member."""
        return MemberFolder(self.directory / f"member_{index}")

    def line(self, index: int) -> LogitLine | None:
        """Calibration of the logits of a member, if it is finished.

        Raises
        ------
        OutputError
            If its file is damaged.
        """
        file = self.member(index).path / CALIBRATION
        if not file.is_file():
            return None
        try:
            return LogitLine(**read_json(file))
        except TypeError as problem:
            raise OutputError(f"{file} is damaged ({problem}); remove it and train again, which goes on") from None

    def save_line(self, index: int, line: LogitLine) -> None:
        """Write the calibration of a member.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        file = self.member(index).path / CALIBRATION
        try:
            write_json(file, asdict(line))
        except OSError as problem:
            raise OutputError(f"{file} cannot be written: {problem.strerror or problem}; free some space") from None

    def held_out(self) -> PawsHeldOut:
        """Events kept for the export.

        Raises
        ------
        OutputError
            If their file is damaged or missing.
        """
        file = self.directory / "held_out.npz"
        try:
            with np.load(file, allow_pickle=False) as arrays:
                blind = arrays["blind"].tolist()
                return PawsHeldOut(
                    arrays["background"],
                    arrays["signal"],
                    arrays["unseen"],
                    tuple(arrays[f"benchmark_{i}"] for i in range(len(self.card.benchmarks))),
                    arrays["train_masses"],
                    arrays["generated"],
                    (blind[0], blind[1]) if blind else None,
                )
        except (OSError, ValueError, KeyError, EOFError) as problem:
            raise OutputError(f"{file} cannot be read ({problem}); train again in a new folder") from None


def start_paws_run(
    directory: Path,
    card: PawsCard,
    scaling: Scaling,
    samples: tuple[Sample, Sample],
    benchmarks: Mapping[str, Sample],
    generator: PawsGenerator | None = None,
) -> PawsRun:
    """Make the folder of a run, or find it again.

    Parameters
    ----------
    directory : path
        Its folder.
    card : PawsCard
        What is trained.
    scaling : Scaling
        Standardisation of the features.
    samples : (Sample, Sample)
        Background and signal.
    benchmarks : mapping of str to Sample
        The card's benchmarks by file.
    generator : PawsGenerator, optional
        What draws the background.

    Raises
    ------
    OutputError
        If the folder cannot be written, or holds a run of another card or of other events.
    """
    splits = [sample.record() for sample in (*samples, *benchmarks.values())]
    if generator is not None:
        splits.append(generator.record())
    if (directory / "run.json").is_file():
        run = load_paws_run(directory)
        check_same_run(directory, (run.card, card), (run.splits, splits))
        return run
    run = PawsRun(directory, card, scaling, splits, library_versions())
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "card.yaml").write_bytes(dump_card(card))
        _save_held_out(directory / "held_out.npz", card, samples, benchmarks, generator)
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


def load_paws_run(directory: str | Path) -> PawsRun:
    """Read the folder of a run.

    Raises
    ------
    OutputError
        If it is not the folder of such a run, or is damaged.
    """
    folder = Path(directory)
    if not (folder / "run.json").is_file():
        raise OutputError(f"{folder} is not the folder of a training run: it has no run.json; run the training first")
    data = read_json(folder / "run.json")
    if data.get("schema") != RUN_SCHEMA or data.get("kind") != "paws":
        raise OutputError(
            f"{folder / 'run.json'} has schema {data.get('schema')!r} and kind {data.get('kind')!r}; "
            f"this is not a run of 'gbistat train paws' in {RUN_SCHEMA!r}"
        )
    try:
        scaling = Scaling(tuple(data["scaling"]["mean"]), tuple(data["scaling"]["deviation"]))
        return PawsRun(folder, load_paws_card(folder / "card.yaml"), scaling, data["splits"], data["versions"])
    except (CardError, KeyError, TypeError) as problem:
        raise OutputError(f"{folder} is damaged ({problem}); train again in a new folder") from None


def _save_held_out(
    path: Path,
    card: PawsCard,
    samples: tuple[Sample, Sample],
    benchmarks: Mapping[str, Sample],
    generator: PawsGenerator | None,
) -> None:
    low, high = card.model.fit_range
    background, signal = samples
    masses = (*card.features, *card.masses)

    def inside(sample: Sample, part: str | None, names: tuple[str, ...]) -> FloatArray:
        events = sample.events if part is None else sample.part(part)
        events = events.select((events.mass >= low) & (events.mass < high))
        return events.matrix((card.mass, *names))

    arrays = {
        "background": inside(background, "reference" if generator is None else None, card.features),
        "generated": np.empty((0, 1 + len(card.features)))
        if generator is None
        else generator.draw(GENERATED, card.model.valid, rng=np.random.default_rng([card.seed, 37])),
        "blind": np.array([] if generator is None else generator.window),
        "signal": inside(signal, "reference", masses),
        "unseen": inside(signal, "data", masses),
        "train_masses": inside(signal, "train", ())[:, 0],
    }
    first, last = card.model.window if generator is None else generator.window
    mass = arrays["background"][:, 0]
    if not np.any((mass >= first) & (mass < last)):
        part = "part 'reference' of it has" if generator is None else "it has"
        raise EventsError(
            f"{background.file}: {part} no event with {card.mass} in {first:g}-{last:g} {card.unit}, where the ratio is graded; give a "
            "background with events in the window"
        )
    for index, (file, sample) in enumerate(benchmarks.items()):
        arrays[f"benchmark_{index}"] = inside(sample, None, card.features)
        if not len(arrays[f"benchmark_{index}"]):
            raise EventsError(f"{file} has no event with {card.mass} in {low:g}-{high:g} {card.unit}; leave it out")
    partial = path.with_name(".held_out.partial.npz")
    np.savez_compressed(partial, **arrays)  # type: ignore[arg-type]
    partial.replace(path)
