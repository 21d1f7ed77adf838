"""Training of a parametrised classifier: one network for all masses of the signal, and an ensemble of them."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from gbistat.data.read import read_events
from gbistat.errors import EventsError
from gbistat.training.logit_calibration import calibrate_logits
from gbistat.training.network import evaluate, measure_scaling
from gbistat.training.paws_dataset import PawsPool, epoch_set, member_pools, paws_pool, read_signal
from gbistat.training.paws_generated import epoch_background, generated_background, paws_generator
from gbistat.training.paws_network import build_paws_network
from gbistat.training.paws_run import start_paws_run
from gbistat.training.ratio import train_member
from gbistat.training.splits import Sample, check_inputs, file_sha256, read_sample

if TYPE_CHECKING:
    from collections.abc import Callable

    from gbistat.training.dataset import ClassifierSet
    from gbistat.training.paws_card import Benchmark, PawsCard
    from gbistat.training.paws_generated import PawsGenerator
    from gbistat.training.paws_run import PawsRun
    from gbistat.training.ratio import Progress

__all__ = ["train_paws"]


def train_paws(
    card: PawsCard,
    run_directory: str | Path,
    *,
    events: str | Path | None = None,
    progress: Progress | None = None,
) -> PawsRun:
    r"""Train the ensemble of a card, or go on with it where an earlier call was stopped.

    Parameters
    ----------
    card : PawsCard
        What to train; see `gbistat.training.paws_card.load_paws_card`.
    run_directory : path
        Folder of the run. Every member leaves a checkpoint after each epoch; after a kill the same call goes on at
        the last epoch that is complete, with the same result.
    events : path, optional
        Folder of the files of events; ``card.events`` by default.
    progress : callable, optional
        Told after every epoch.

    Returns
    -------
    PawsRun
        The finished run, ready for `gbistat.training.paws_export.export_paws`.

    Raises
    ------
    EventsError
        If a file of events is missing or does not fit the card: no masses, masses outside their ranges, a mass point
        without events, a class without events.
    OutputError
        If the folder cannot be written, or holds a run of another card or of other events.
    FitFailed
        If a loss is no longer finite.
    MissingExtra
        If Keras or its backend is not installed.

    Notes
    -----
    The classifier is that of P. Baldi, K. Cranmer, T. Faucett, P. Sadowski and D. Whiteson (arXiv:1601.07913), which
    sees the masses :math:`\theta` as inputs. Background has no masses; it gets some from :math:`p(\theta)`, the
    distribution of the signal's, anew in every epoch. With equal weights of the classes the best logit is

    .. math:: \ln\frac{p_s(x \mid \theta)\, p(\theta)}{p_b(x)\, p(\theta)} = \ln r(x; \theta),

    so that kappa is 1 at every :math:`\theta` but for what the network has not learned. Members train on bootstrap
    resamples of the events of both classes; the events left out stop them. With a generator, member k learns from events of
    the generator's member k, other ones in every epoch, so that the spread of the members has the error of finite sidebands in it.
    """
    folder = card.events if events is None else events
    background = read_sample(folder, card.background, card)
    signal = read_signal(folder, card)
    benchmarks = {item.file: _read_benchmark(folder, item, card) for item in card.benchmarks}
    generator = None if card.background.generator is None else paws_generator(card, background)
    pool = paws_pool(background, signal, card)
    if generator is not None:
        pool = PawsPool(generated_background(generator, card, 0, validates=True), pool.signal)
    if len(pool.background) + len(pool.signal) < card.optimiser.batch_size:
        raise EventsError(
            f"{len(pool.background)} background and {len(pool.signal)} signal events do not fill a batch of "
            f"{card.optimiser.batch_size}; lower optimiser.batch_size"
        )
    scaling = measure_scaling(pool.background, card)
    run = start_paws_run(Path(run_directory), card, scaling, (background, signal), benchmarks, generator)
    for member in range(card.optimiser.members):
        _train_member(run, pool, generator, member, progress)
    return run


def _train_member(
    run: PawsRun, pool: PawsPool, generator: PawsGenerator | None, member: int, progress: Progress | None
) -> None:
    card = run.card

    def sets() -> tuple[Callable[[int], ClassifierSet], ClassifierSet]:
        train, left = member_pools(pool, card, member)
        if generator is None:
            return lambda epoch: epoch_set(train, card, member, epoch), epoch_set(left, card, member)

        made = generated_background(generator, card, member)

        def chosen(epoch: int) -> ClassifierSet:
            return epoch_set(PawsPool(epoch_background(made, card, member, epoch), train.signal), card, member, epoch)

        validate = generated_background(generator, card, member, validates=True)
        return chosen, epoch_set(PawsPool(validate, left.signal), card, member)

    train_member(
        card,
        run.member(member),
        member,
        network=lambda: build_paws_network(card, run.scaling, member=member),
        sets=sets,
        progress=progress,
    )
    if run.line(member) is None:
        validate = sets()[1]
        run.save_line(member, calibrate_logits(evaluate(run.member(member).load("best"), validate.x), validate))


def _read_benchmark(folder: str | Path, spec: Benchmark, card: PawsCard) -> Sample:
    path = Path(folder) / spec.file
    if not path.is_file():
        raise EventsError(f"{spec.file} is not in {folder}; give the folder that holds the card's files of events")
    for item, value in zip(card.parameters, spec.masses, strict=True):
        if not item.low <= value <= item.high:
            raise EventsError(
                f"benchmark {spec.file}: {item.name} = {value:g} is outside {item.low:g}-{item.high:g} {item.unit}, where "
                "the classifier learns; leave the file out"
            )
    found = read_events(path, features=card.features, mass=card.mass, unit=card.unit)
    check_inputs(found, card.inputs, path)
    rows = np.arange(len(found))
    return Sample(spec.file, file_sha256(path), found, MappingProxyType({"benchmark": rows}), card.seed)
