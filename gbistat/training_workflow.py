"""What ``gbistat train`` and ``gbistat export`` do, one function a verb: they make a model of events."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gbistat.config import DEFAULT_MODEL

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gbistat.data.events import Events
    from gbistat.data.window import MassWindow
    from gbistat.terms.network import NetworkTerm
    from gbistat.terms.store import LoadedModel
    from gbistat.training.ranode_card import RanodeCard
    from gbistat.training.ranode_data import RanodeData
    from gbistat.typing import FloatArray, Json

__all__ = [
    "check_background",
    "fitted_log_kappa",
    "prepare_ranode",
    "ranode_data",
    "run_background_training",
    "run_export",
    "run_paws_training",
    "run_ranode_training",
    "run_training",
]

TRANSFORM_EVENTS = 5000
"""Generated events to which the transform of a signal flow is fitted."""


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


def run_ranode_training(
    card: Path, run: Path, *, events: Path | None = None, progress: Callable[[float, str], None] | None = None
) -> tuple[str, ...]:
    """Train a signal density on data and draw its losses; see :func:`gbistat.training.ranode.train_ranode`.

    Returns
    -------
    tuple of str
        What a person should know about data, sidebands and generator.

    Raises
    ------
    GbistatError
        If the card, the generator, the events or the folder cannot be used, or the training extra is not installed.
    """
    from gbistat.plotting.losses import save_losses
    from gbistat.training.ranode import train_ranode
    from gbistat.training.ranode_card import load_ranode_card

    loaded = load_ranode_card(card)
    data = prepare_ranode(loaded, events)
    done = train_ranode(loaded, run, data, progress=progress)
    histories = []
    for index in range(len(loaded.fraction.starts)):
        history = done.stack(index).history()
        # One curve a fold, per 1000 events: single networks see a few signal events each.
        losses = np.array([[epoch.losses, epoch.validation_losses] for epoch in history])
        folds = losses.reshape(len(history), 2, loaded.folds.n_folds, -1)
        left_out = np.array(done.counts["folds"])
        outside = left_out.sum() - left_out
        share = loaded.folds.members / loaded.folds.parts
        for k in range(loaded.folds.n_folds):
            trained, validated = folds[:, 0, k].mean(axis=1), folds[:, 1, k].sum(axis=1) / (outside[k] * share)
            histories.append([(1e3 * a, 1e3 * b) for a, b in zip(trained.tolist(), validated.tolist(), strict=True)])
    save_losses(histories, run / "losses.png", label="$-$ln likelihood ratio to background, per 1000 events")
    return tuple(data.record["warnings"])


def prepare_ranode(card: RanodeCard, events: Path | None = None) -> RanodeData:
    """Read the data of a card, fit the background of the mass to their sidebands, and evaluate the generator once.

    Parameters
    ----------
    card : RanodeCard
        What is to be trained.
    events : Path, optional
        The file of data, or the folder that holds the card's; ``card.events`` by default.

    Raises
    ------
    CardError
        If the card's generator is none, or no window is given.
    EventsError, WindowError, UnitsError
        If features are missing, no event is in the window or in a sideband, or the window leaves no sidebands.
    ModelError, FitFailed
        If the generator's model cannot be used, or the sideband fit fails.
    """
    from pathlib import Path

    from gbistat.data.read import read_events
    from gbistat.data.window import MassWindow
    from gbistat.errors import CardError, EventsError
    from gbistat.terms.generator import GeneratorTerm
    from gbistat.terms.store import load_model
    from gbistat.training.splits import file_sha256

    model = load_model(card.generator)
    spec = model.spec
    if spec.background.features is None or not spec.background.mass.is_free:
        raise CardError(
            f"the model {spec.name!r} has no generator of features with a free mass shape (background.features); name one that "
            "gbistat train background made"
        )
    generator = GeneratorTerm(model.terms[spec.background.features])
    edges = card.window or spec.window
    if edges is None:
        raise CardError(f"neither the card nor the model {spec.name!r} says which window; add window: [low, high]")
    window = MassWindow(*edges, unit=spec.mass.unit)
    folder = Path(card.events) if events is None else events
    path = folder if folder.is_file() else folder / card.data.file
    if not path.is_file():
        raise EventsError(f"{card.data.file} is not in {folder}; give the file of data or its folder (--events)")
    spectrum = read_events(
        path, features=generator.features, mass=spec.mass.name, unit=card.data.unit, mapping=card.data.mapping
    ).to_unit(spec.mass.unit)
    record = {"file": path.name, "sha256": file_sha256(path)}
    return ranode_data(card, spectrum, model, window, record=record)


def ranode_data(
    card: RanodeCard,
    spectrum: Events,
    model: LoadedModel,
    window: MassWindow,
    *,
    record: Json,
    log_features: FloatArray | None = None,
) -> RanodeData:
    """Data of a window from the whole spectrum: the part of `prepare_ranode` that needs no files.

    Parameters
    ----------
    card : RanodeCard
        Its seed draws the events that the transform is fitted to.
    spectrum : Events
        Events in window and sidebands, in the unit of the generator.
    model : LoadedModel
        Model of the generator.
    window : MassWindow
        Where signal is looked for.
    record : dict
        ``file`` and ``sha256`` of the data.
    log_features : array of shape (n,), optional
        ln p_b(x|m) of the n events in the window, if it is known already.

    Raises
    ------
    EventsError, WindowError, FitFailed
        As `prepare_ranode`.
    """
    from gbistat.data.transforms import FeatureTransform
    from gbistat.data.window import MassWindow
    from gbistat.fit.sidebands import fit_sidebands
    from gbistat.terms.generator import GeneratorTerm
    from gbistat.terms.shapes.registry import make_shape
    from gbistat.training.ranode_data import RanodeData

    spec = model.spec
    generator = GeneratorTerm(model.terms[str(spec.background.features)])
    inside = spectrum.in_window(window)
    shape = make_shape(spec.background.mass.shape, **spec.background.mass.options)
    fit_range = MassWindow(*spec.background.fit_range, unit=spec.mass.unit)
    sidebands = fit_sidebands(spectrum, window, fit_range, shape)
    density, values = sidebands.density(), np.zeros(sidebands.theta.size)
    given = generator.log_prob(inside.features, inside.mass) if log_features is None else log_features
    log_background = density.log_prob(inside.mass, values) + given
    rng = np.random.default_rng([card.seed, 20])
    mass = density.sample(TRANSFORM_EVENTS, values, rng=rng).clip(window.low, np.nextafter(window.high, window.low))
    made = np.column_stack([mass, generator.sample(mass, rng=rng)])
    bounds = [window.edges, *(item.bounds for item in generator.metadata.features[1:])]
    names = (spec.mass.name, *generator.features)
    transform = FeatureTransform.fit(made, names, bounds=bounds)
    warnings = []
    if spec.window is None or window.low < spec.window[0] or window.high > spec.window[1]:
        warnings.append(
            f"the window {window} is not inside {spec.window}, to which the generator {spec.name!r} was blind"
        )
    if sidebands.goodness.p_value < 0.01:
        warnings.append(f"the sideband fit describes the spectrum badly: p = {sidebands.goodness.p_value:.2g}")
    lost = int(np.sum(~np.isfinite(log_background)))
    if lost:
        warnings.append(
            f"{lost} of {len(inside)} events in the window are outside the range of the generator and are left out"
        )
    complete = {
        **record,
        "n_events": len(spectrum),
        "n_window": len(inside),
        "generator": {"name": spec.name, "sha256": model.sha256, "term": generator.name},
        "sidebands": sidebands.to_dict(),
        "warnings": warnings,
    }
    return RanodeData(inside, log_background, transform, complete)


def run_export(
    run: Path, output: Path, *, overwrite: bool = False, checks: bool = True, events: Path | None = None
) -> LoadedModel:
    """Export a finished training as a model.

    See :func:`gbistat.training.export.export_ratio`, :func:`gbistat.training.paws_export.export_paws`,
    :func:`gbistat.training.ranode_export.export_ranode` and
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
    if kind == "ranode":
        from gbistat.training.ranode_export import export_ranode

        return export_ranode(run, output, overwrite=overwrite)
    if kind == "paws":
        from gbistat.training.paws_export import export_paws

        return export_paws(run, output, normaliser=fitted_log_kappa, overwrite=overwrite)
    if kind == "background":
        from gbistat.training.background_export import export_background

        model = export_background(run, output, overwrite=overwrite)
        return check_background(run, model, events=events) if checks else model
    from gbistat.training.export import export_ratio

    return export_ratio(run, output, overwrite=overwrite)


def fitted_log_kappa(
    term: NetworkTerm, reference: Events, log_base: FloatArray
) -> Callable[[FloatArray], FloatArray] | None:
    """ln kappa of a parametrised ratio as a fit has it, see :func:`gbistat.likelihood.kappa.normalised_surface`.

    Parameters
    ----------
    term : NetworkTerm
        With parameters of finite ranges.
    reference : Events
        n background events in the window.
    log_base : array of shape (n,)
        ln of the ratio of the mass densities at them, up to a constant.

    Returns
    -------
    callable or None
        From points of shape (g, d) to shape (g,).
    """
    from gbistat.likelihood.kappa import normalised_surface
    from gbistat.likelihood.theta_grid import grid_of

    grid = grid_of({item.name: item.bounds for item in term.metadata.parameters})
    _, kappa = normalised_surface(term, grid, reference, log_base)
    return None if kappa.smooth is None else kappa.smooth.at


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
