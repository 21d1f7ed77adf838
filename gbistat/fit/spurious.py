"""What a background generator does to a search: the signal that is found in windows without one."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gbistat.data.events import Events
from gbistat.data.window import MassWindow
from gbistat.errors import FitFailed, ModelError
from gbistat.fit.build import build_analysis
from gbistat.fit.minimize import fit
from gbistat.likelihood.reference import asimov_nll
from gbistat.terms.generator_quality import SpuriousWindow

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gbistat.terms.model_spec import ModelSpec
    from gbistat.terms.network import NetworkTerm
    from gbistat.terms.protocols import ConditionalDensity
    from gbistat.typing import FloatArray

__all__ = ["generated_events", "spurious_signal", "spurious_windows"]


def generated_events(
    generator: ConditionalDensity,
    mass: FloatArray,
    like: Events,
    *,
    rng: np.random.Generator,
) -> Events:
    """Events of a generator at given masses.

    Parameters
    ----------
    generator : ConditionalDensity
        Features in the order of ``like.names``.
    mass : array of shape (n,)
        Masses, in the unit of `like`.
    like : Events
        Names and units.
    rng : numpy.random.Generator
        Source of randomness.
    """
    features = generator.sample(mass, rng=rng)
    return Events(mass, features, like.names, like.units, mass_name=like.mass_name)


def spurious_signal(
    spec: ModelSpec,
    events: Events,
    window: tuple[float, float],
    generator: ConditionalDensity,
    *,
    terms: Mapping[str, NetworkTerm],
    blinded: bool,
    rng: np.random.Generator,
    n_generated: int = 200_000,
) -> SpuriousWindow:
    """Signal that a likelihood finds in a window without signal, if the generator stands for the background.

    The ratio p_s / p_b of the model is normalised with the generator: its mean over generated events, at masses drawn from the
    sideband fit, is made 1 by a shift of ln kappa, as an analysis without simulated background has to do it. What the
    generator gets wrong where signal would be then shows as signal, or as a lack of it.

    Parameters
    ----------
    spec : ModelSpec
        The model of a signal, such as that of ``dijet-qq-3500``; its peak follows the window.
    events : Events
        Spectrum without signal: the window and its sidebands.
    window : (float, float)
        In the unit of the model, inside its valid range.
    generator : ConditionalDensity
        Features in the order of ``spec.features``.
    terms : mapping of str to NetworkTerm
        Terms of the model.
    blinded : bool
        Whether no event of the window trained the generator.
    rng : numpy.random.Generator
        Generated events.
    n_generated : int, default 200000
        How many.

    Raises
    ------
    ModelError
        If the model has no ratio.
    WindowError, EventsError
        If the window is not inside the valid range of the model, or events are missing.
    FitFailed
        If the sidebands, or the fit without signal, cannot be fitted.

    Notes
    -----
    The statistical error of the window's own events is in the result; the mean over windows is what is spurious. The score of
    a strong ratio hangs on few events and is skewed: single pulls above 3 are more frequent than for a Gaussian.
    """
    if not spec.signal.ratios:
        raise ModelError(f"model {spec.name!r} has no ratio in the features: a generator of features changes nothing")
    chosen = MassWindow(*window, unit=spec.mass.unit)
    events = events.to_unit(spec.mass.unit)
    bare = spec.model_copy(
        update={
            "signal_": spec.signal.model_copy(
                update={"spurious": spec.signal.spurious.model_copy(update={"sigma": None})}
            )
        }
    )
    # The spectrum decides where generated events go; without them the ratio is normalised as it came.
    plain = build_analysis(bare, events, chosen, terms=terms)
    if plain.sidebands is None:
        raise ModelError(f"model {spec.name!r} fixes the shape of the background: no sideband fit tells the masses")
    density = plain.sidebands.density()
    mass = density.sample(n_generated, np.zeros(len(density.parameters)), rng=rng)
    names = Events(
        np.empty(0), np.empty((0, len(spec.features))), spec.features, events.units, mass_name=events.mass_name
    )
    pool = generated_events(generator, mass, names, rng=rng)
    log_ratio = sum(terms[name].log_ratio(pool) for name in spec.signal.ratios)
    ratio = np.exp(log_ratio)
    log_mean = math.log(float(np.mean(ratio)))
    log_mean_error = float(np.std(ratio) / (np.mean(ratio) * math.sqrt(ratio.size)))
    first = spec.signal.ratios[0]
    shifted = {**terms, first: _shifted(terms[first], -log_mean)}
    shifted = {name: _without_sigma(term) for name, term in shifted.items()}
    analysis = build_analysis(bare, events, chosen, terms=shifted, pool=pool)
    poi, nominal = spec.poi, spec.signal.yield_.nominal
    nll = analysis.nll
    null = fit(nll, fixed={poi: 0.0}).raise_if_invalid()
    if analysis.reference is None:
        raise FitFailed(f"no generated event is in the window {chosen}")
    sigma = fit(asimov_nll(nll, (analysis.reference,), null.values), start=null.values).raise_if_invalid().error(poi)
    slope = float(nll.evaluate(null.values).gradient[nll.names.index(poi)])
    free = fit(nll)
    return SpuriousWindow(
        low=chosen.low,
        high=chosen.high,
        blinded=blinded,
        n_events=len(analysis.events),
        log_mean_ratio=log_mean,
        log_mean_ratio_error=log_mean_error,
        value=-slope * sigma**2 * nominal,
        # A shift of ln kappa by delta moves the score by delta times the sum of r / n_bkg, which is about delta.
        error=math.hypot(sigma, sigma**2 * log_mean_error) * nominal,
        fitted=free.value(poi) * nominal if free.valid else None,
    )


def _shifted(term: NetworkTerm, shift: float) -> NetworkTerm:
    kappa = term.metadata.log_kappa
    if kappa is None:
        raise ModelError(f"term {term.name!r} has no ln kappa to shift: it is not a ratio")
    moved = kappa.model_copy(update={"value": kappa.value + shift})
    return replace(term, metadata=term.metadata.model_copy(update={"log_kappa": moved}))


def _without_sigma(term: NetworkTerm) -> NetworkTerm:
    kappa = term.metadata.log_kappa
    if kappa is None:
        return term
    known = kappa.model_copy(update={"sigma": 0.0})
    return replace(term, metadata=term.metadata.model_copy(update={"log_kappa": known}))


def spurious_windows(
    spec: ModelSpec,
    events: Events,
    windows: Sequence[tuple[float, float]],
    generator: ConditionalDensity,
    *,
    terms: Mapping[str, NetworkTerm],
    blinded: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[SpuriousWindow, ...]:
    """Spurious signal in each of several windows; those that the model of the signal is not valid in are left out.

    Parameters
    ----------
    spec, events, generator, terms, rng
        As in `spurious_signal`.
    windows : sequence of (float, float)
        In the unit of the model.
    blinded : (float, float)
        The one window whose events the generator never saw.

    Raises
    ------
    GbistatError
        As `spurious_signal`.
    """
    if any(name not in events.names for name in spec.features) or events.mass_name != spec.mass.name:
        return ()
    low, high = spec.valid or (0.0, math.inf)
    return tuple(
        spurious_signal(spec, events, window, generator, terms=terms, blinded=window == blinded, rng=rng)
        for window in windows
        if low <= window[0] and window[1] <= high
    )
