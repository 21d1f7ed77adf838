"""What ``gbistat train`` and ``gbistat export`` do, one function a verb: they make a model of events."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gbistat.config import DEFAULT_MODEL

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gbistat.terms.store import LoadedModel

__all__ = ["check_background", "run_background_training", "run_export", "run_paws_training", "run_training"]


def run_training(
    card: Path, run: Path, *, events: Path | None = None, progress: Callable[[float, str], None] | None = None
) -> None:
    """Train what a training card describes; see :func:`gbistat.training.ratio.train_ratio`.

    Raises
    ------
    GbistatError
        If the card, the events or the folder cannot be used, or the training extra is not installed.
    """
    from gbistat.training.card import load_card
    from gbistat.training.ratio import train_ratio

    train_ratio(load_card(card), run, events=events, progress=progress)


def run_background_training(
    card: Path, run: Path, *, events: Path | None = None, progress: Callable[[float, str], None] | None = None
) -> tuple[str, ...]:
    """Train a generator and draw its losses.

    A card of kind ``background`` is a sideband flow (:func:`gbistat.training.background.train_background`), one of kind
    ``sigma`` a flow-matching model of all the data (:func:`gbistat.training.sigma_model.train_sigma_card`).

    Returns
    -------
    tuple of str
        What a person should know about the sidebands.

    Raises
    ------
    GbistatError
        If the card, the events or the folder cannot be used, or the training extra is not installed.
    """
    from gbistat.plotting.losses import save_losses
    from gbistat.training.background import train_background
    from gbistat.training.background_card import load_background_card
    from gbistat.training.card import read_yaml

    if read_yaml(card).get("kind") == "sigma":
        from gbistat.training.sigma_card import load_sigma_card
        from gbistat.training.sigma_model import train_sigma_card

        trained = train_sigma_card(load_sigma_card(card), run, events=events, progress=progress)
        losses = [(epoch.loss, epoch.validation_loss) for epoch in trained.history()]
        save_losses([losses], run / "losses.png", label="flow-matching loss")
        return ()
    done = train_background(load_background_card(card), run, events=events, progress=progress)
    members = range(done.card.optimiser.members)
    histories = [[(e.loss, e.validation_loss) for e in done.member(member).history()] for member in members]
    finals = [final.validation_loss for member in members if (final := done.member(member).final()) is not None]
    save_losses(histories, run / "losses.png", finals=finals, label="$-$ln p(x | m)")
    return done.warnings


def run_paws_training(
    card: Path, run: Path, *, events: Path | None = None, progress: Callable[[float, str], None] | None = None
) -> None:
    """Train a parametrised classifier and draw its losses; see :func:`gbistat.training.paws.train_paws`.

    Raises
    ------
    GbistatError
        If the card, the events or the folder cannot be used, or the training extra is not installed.
    """
    from gbistat.plotting.losses import save_losses
    from gbistat.training.paws import train_paws
    from gbistat.training.paws_card import load_paws_card

    done = train_paws(load_paws_card(card), run, events=events, progress=progress)
    members = range(done.card.optimiser.members)
    histories = [[(e.loss, e.validation_loss) for e in done.member(member).history()] for member in members]
    save_losses(histories, run / "losses.png", label="binary cross-entropy")


def run_export(
    run: Path, output: Path, *, overwrite: bool = False, checks: bool = True, events: Path | None = None
) -> LoadedModel:
    """Export a finished training as a model.

    See :func:`gbistat.training.export.export_ratio`, :func:`gbistat.training.paws_export.export_paws` and
    :func:`gbistat.training.background_export.export_background`; a generator
    is checked after it was written, see `check_background`.

    Raises
    ------
    GbistatError
        If the run is not finished, ONNX and Keras disagree, or the folder cannot be written.
    """
    from gbistat.training.run import run_kind

    kind = run_kind(run)
    if kind == "sigma":
        from gbistat.training.sigma_model import export_sigma

        model = export_sigma(run, output, overwrite=overwrite)
        return check_background(run, model, events=events) if checks else model
    if kind == "paws":
        from gbistat.training.paws_export import export_paws

        return export_paws(run, output, overwrite=overwrite)
    if kind == "background":
        from gbistat.training.background_export import export_background

        model = export_background(run, output, overwrite=overwrite)
        return check_background(run, model, events=events) if checks else model
    from gbistat.training.export import export_ratio

    return export_ratio(run, output, overwrite=overwrite)


def check_background(run: Path, model: LoadedModel, *, events: Path | None = None, seed: int = 1) -> LoadedModel:
    """Measure an exported generator on events that trained nothing; numbers to ``term.json``, a figure to the run.

    Parameters
    ----------
    run : Path
        Folder of the training; ``checks.png`` is written there.
    model : LoadedModel
        What was exported from it; its folder is written again with the numbers.
    events : Path, optional
        Folder of the file of events, if they are simulated background: the signal region of the part ``reference`` is compared
        too, and the shipped ratio looks for spurious signal in windows without signal.
    seed : int, default 1
        Of samples and classifiers.

    Returns
    -------
    LoadedModel
        The model with its checks under ``quality``; unchanged if fewer than 500 events were held out.

    Raises
    ------
    GbistatError
        If the run is damaged, the events do not fit its card, or the training extra is not installed.
    """
    from gbistat.fit.spurious import spurious_windows
    from gbistat.plotting.generator import save_generator
    from gbistat.terms.generator import GeneratorTerm
    from gbistat.terms.store import load_model, with_checks
    from gbistat.training.background_checks import FEWEST, check_generator, held_out_events

    generator = GeneratorTerm(model.terms[str(model.spec.background.features)])
    held_out, truth, spectrum = held_out_events(run, generator, events)
    if len(held_out) < FEWEST:
        return model
    window = (float(model.spec.window[0]), float(model.spec.window[1])) if model.spec.window else (0.0, 0.0)
    rng = np.random.default_rng(seed)
    quality = check_generator(
        lambda span: (generator, span == window),
        held_out,
        generator.metadata.feature_names,
        window=window,
        unit=generator.metadata.mass.unit,
        bounds=[(item.low, item.high) for item in generator.metadata.features[1:]],
        rng=rng,
        truth=truth,
    )
    if spectrum is not None:
        ratio = load_model(DEFAULT_MODEL)
        spans = [window, *((region.low, region.high) for region in quality.region("pseudo-window"))]
        found = spurious_windows(ratio.spec, spectrum, spans, generator, terms=ratio.terms, blinded=window, rng=rng)
        quality = replace(quality, spurious=found)
    save_generator(quality, run / "checks.png")
    return with_checks(model, generator.name, {"quality": quality.to_dict()})
