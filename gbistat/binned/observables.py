"""Values of an observable for events and for reference points, and bins that suit it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gbistat.binned.binning import (
    LOG_RATIO,
    Binning,
    ProductBinning,
    automatic_edges,
    check_method,
    mass_binning,
)
from gbistat.data.events import Events
from gbistat.errors import ModelError, OptionError, nearest
from gbistat.likelihood.mixture import Mixture
from gbistat.likelihood.parameters import start_vector

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gbistat.likelihood.model import Model
    from gbistat.likelihood.reference import Reference
    from gbistat.typing import FloatArray

__all__ = ["event_values", "feature_binning", "log_ratio", "log_ratio_binning", "product_binning", "reference_values"]

MIN_POOL_POINTS = 10
"""Pool events a bin has at least: 30 % statistical error of a template at worst."""

CELLS = 100_000
"""Cells of a mass window in which densities of the mass alone are summed."""


def log_ratio(model: Model, mixture: Mixture, held: Mapping[str, float] | None = None) -> FloatArray:
    """``ln p_s - ln p_b`` of points at nominal parameters, shape (n,).

    Parameters
    ----------
    model : Model
        One signal and one background.
    mixture : Mixture
        Its components at the points.
    held : mapping of str to float, optional
        Parameters whose nominal value is not their start value.

    Raises
    ------
    ModelError
        If the model does not have exactly two components, or the mixture is of another model.
    """
    signal, background = _pair(model)
    if mixture.names != model.names or len(mixture.components) != 2:
        raise ModelError("the mixture that was given is not of this model")
    theta = start_vector(model.parameters, held)
    densities = [component.log_density(theta) for component in mixture.components]
    logs: FloatArray = densities[signal] - densities[background]
    bad = np.isnan(logs)
    if bad.any():
        raise ModelError(f"the log ratio is not a number at {int(bad.sum())} of {bad.size} points")
    return logs


def event_values(
    model: Model,
    events: Events,
    observable: str,
    *,
    mixture: Mixture | None = None,
    held: Mapping[str, float] | None = None,
) -> FloatArray:
    """Observable of each event, shape (n,); (n, 2) for two observables (``"m_jj:log_ratio"``).

    Parameters
    ----------
    model : Model
        Its components make the log ratio.
    events : Events
        The events, inside the model's window.
    observable : str
        Name of the mass, of a feature, ``"log_ratio"``, or two of these with a colon between.
    mixture : Mixture, optional
        The model's components at these events, if at hand: saves the evaluation of a network.
    held : mapping of str to float, optional
        See :func:`log_ratio`.

    Raises
    ------
    OptionError
        If there is no such observable; the message offers the nearest names.
    ModelError
        If the log ratio is not defined.
    """
    check_observable(observable, events)
    if ":" in observable:
        pair = [event_values(model, events, o, mixture=mixture, held=held) for o in observable.split(":")]
        return np.stack(pair, axis=1)
    if observable != LOG_RATIO:
        return np.asarray(events.feature(observable), dtype=np.float64)
    if mixture is not None and mixture.size != len(events):
        raise ModelError(f"the mixture that was given has {mixture.size} points for {len(events)} events")
    return log_ratio(model, mixture or Mixture.of(model, events, start_vector(model.parameters)), held)


def reference_values(
    model: Model, reference: Reference, observable: str, held: Mapping[str, float] | None = None
) -> FloatArray:
    """Observable of each reference point, shape (n,); (n, 2) for two observables.

    The signal density of a reference is normalised on its points; the log ratio is that of the events, without
    this normalisation.

    Raises
    ------
    OptionError
        If the reference events have no such feature.
    ModelError
        If the reference has no events, or the log ratio is not defined.
    """
    if ":" in observable:
        return np.stack([reference_values(model, reference, o, held) for o in observable.split(":")], axis=1)
    if observable == LOG_RATIO:
        shift = float(np.log(reference.normalisation))
        return log_ratio(model, reference.mixture, held) + shift
    if reference.events is None:
        raise ModelError(f"templates in {observable} need reference events, and this reference has none; give a pool")
    check_observable(observable, reference.events)
    return np.asarray(reference.events.feature(observable), dtype=np.float64)


def check_observable(observable: str, events: Events) -> None:
    """Make sure that events have an observable.

    Raises
    ------
    OptionError
        If not.
    """
    known = (events.mass_name, *events.names, LOG_RATIO)
    parts = observable.split(":")
    if len(parts) > 2 or (len(parts) == 2 and parts[0] == parts[1]):
        raise OptionError(f"observable {observable!r}: give one name, or two different ones with a colon between")
    for part in parts:
        if part in known:
            continue
        raise OptionError(f"there is no observable {part!r} to bin in; {nearest(part, known)}")


def usable_reference(
    model: Model, reference: Reference | None, observable: str, *, data_allowed: bool = False
) -> Reference:
    """Return a reference for templates; one from quadrature is made fine enough for narrow bins of any shape.

    Raises
    ------
    ModelError
        If there is none, it is of another model, or it consists of the data and these are not allowed.
    """
    if reference is None:
        raise ModelError(
            f"templates in {observable} need a reference measure; give a pool of background events (reference_from_pool) "
            "or, for densities of the mass alone, reference_from_quadrature"
        )
    if reference.kind == "data" and not data_allowed:
        raise ModelError(
            f"templates in {observable} cannot be made of the data that they are to be compared with; "
            "give a pool of background events (reference_from_pool)"
        )
    if reference.mixture.names != model.names or len(reference.mixture.components) != len(model.components):
        raise ModelError("the reference that was given is not of this model")
    if reference.kind == "quadrature" and model.window is not None:
        # Gauss nodes integrate smooth functions, not the edges of bins: many equal cells do.
        edges = np.linspace(model.window.low, model.window.high, CELLS + 1)
        events = Events(mass=0.5 * (edges[1:] + edges[:-1]))
        mixture = Mixture.of(model, events, start_vector(model.parameters))
        return replace(reference, mixture=mixture, measure=np.diff(edges), events=events)
    return reference


def log_ratio_binning(
    model: Model,
    reference: Reference | None,
    *,
    n_bins: int = 30,
    min_background: float = 5.0,
    min_points: int = MIN_POOL_POINTS,
    method: str = "information",
    held: Mapping[str, float] | None = None,
) -> Binning:
    """Bins of the log ratio, the first and the last of them open.

    Parameters
    ----------
    model : Model
        One signal and one background.
    reference : Reference
        Quadrature or a pool.
    n_bins : int, default 30
        Number of bins to begin with; fewer remain where the minimum merges some.
    min_background : float, default 5
        Expected background events of a bin. The asymptotic formulae and the template need them, and the merged top bins cost
        sensitivity, which an unbinned likelihood does not lose.
    min_points : int, default 10
        Pool events of a bin: 30 % statistical error of a template at worst.
    method : {"information", "quantile"}
        Least loss of information on the signal yield (see :func:`gbistat.binned.binning.automatic_edges`), or equal
        numbers of background events.
    held : mapping of str to float, optional
        See :func:`log_ratio`.

    Raises
    ------
    OptionError
        If an option is out of its range.
    ModelError
        If there is no reference, or the log ratio is the same everywhere.
    """
    check_method(method)
    known = usable_reference(model, reference, LOG_RATIO)
    values = reference_values(model, known, LOG_RATIO, held)
    background = _background_weights(model, known, held)
    score = _score(values, background) if method == "information" else None
    edges = automatic_edges(
        values,
        background,
        n_bins=n_bins,
        score=score,
        min_background=min_background,
        min_points=min_points if known.kind == "pool" else 1,
    )
    return Binning(LOG_RATIO, edges, open_ended=True)


def feature_binning(
    model: Model, reference: Reference | None, feature: str, *, n_bins: int = 20, min_background: float = 5.0
) -> Binning:
    """Bins of a feature with equal numbers of background events, the first and the last of them open.

    Raises
    ------
    OptionError
        If there is no such feature.
    ModelError
        If there is no reference.
    """
    known = usable_reference(model, reference, feature)
    values = reference_values(model, known, feature)
    edges = automatic_edges(
        values,
        _background_weights(model, known, None),
        n_bins=n_bins,
        min_background=min_background,
        min_points=MIN_POOL_POINTS if known.kind == "pool" else 1,
    )
    unit = "1" if known.events is None else known.events.units[feature]
    return Binning(feature, edges, open_ended=True, unit=unit)


def product_binning(
    model: Model,
    reference: Reference | None,
    observable: str,
    *,
    mass_name: str = "m_jj",
    n_bins: tuple[int, int] = (5, 20),
    min_background: float = 5.0,
) -> ProductBinning:
    """Bins of two observables: the first as by itself, the second in each of its bins.

    Parameters
    ----------
    model : Model
        One signal and one background.
    reference : Reference
        Quadrature or a pool.
    observable : str
        Two names with a colon between.
    mass_name : str, default "m_jj"
        Which observable is the mass: it gets bins of equal width.
    n_bins : (int, int)
        Number of bins of the first, and of the second in each of them, to begin with.
    min_background : float, default 5
        Expected background events of a bin.

    Raises
    ------
    OptionError
        If there is no such observable.
    ModelError
        If there is no reference, or an observable is the same everywhere.
    """
    known = usable_reference(model, reference, observable)
    one, other = observable.split(":")
    pairs = reference_values(model, known, observable)
    background = _background_weights(model, known, None)
    points = MIN_POOL_POINTS if known.kind == "pool" else 1
    if one == mass_name and model.window is not None:
        first = mass_binning(model.window, n_bins=n_bins[0], observable=one)
    else:
        edges = _edges(pairs[:, 0], background, one, n_bins[0], min_background, points)
        first = Binning(one, edges, open_ended=True, unit=_unit(known, one))
    seconds = []
    for number in range(first.n_bins):
        rows = first.index(pairs[:, 0]) == number
        if other == mass_name and model.window is not None:
            seconds.append(mass_binning(model.window, n_bins=n_bins[1], observable=other))
        else:
            edges = _edges(pairs[rows, 1], background[rows], other, n_bins[1], min_background, points)
            seconds.append(Binning(other, edges, open_ended=True, unit=_unit(known, other)))
    return ProductBinning(first, tuple(seconds))


def _edges(
    values: FloatArray, background: FloatArray, observable: str, n_bins: int, min_background: float, min_points: int
) -> FloatArray:
    score = _score(values, background) if observable == LOG_RATIO else None
    return automatic_edges(
        values, background, n_bins=n_bins, score=score, min_background=min_background, min_points=min_points
    )


def _unit(reference: Reference, observable: str) -> str:
    if observable == LOG_RATIO or reference.events is None:
        return "1"
    return reference.events.units.get(observable, "1")


def _pair(model: Model) -> tuple[int, int]:
    if len(model.components) != 2:
        raise ModelError(
            f"the log ratio needs a signal and one background; this model has {len(model.components)} components"
        )
    signal = [component.name for component in model.components].index(model.component(model.signal).name)
    return signal, 1 - signal


def _background_weights(model: Model, reference: Reference, held: Mapping[str, float] | None) -> FloatArray:
    """Expected background events that each point stands for, shape (n,)."""
    theta = start_vector(model.parameters, held)
    yields = reference.mixture.yields(theta)
    total = np.zeros(reference.mixture.size)
    for component, prepared, size in zip(model.components, reference.mixture.components, yields, strict=True):
        if component.name != model.signal:
            total += max(float(size), 0.0) * reference.measure * np.exp(prepared.log_density(theta))
    return total


def _score(values: FloatArray, background: FloatArray) -> FloatArray:
    """Derivative of ``ln(n_b p_b + n_s p_s)`` in n_s, times n_b, where n_s is a signal at the edge of being seen."""
    ratio = np.exp(np.clip(values, None, 100.0))
    total = float(background.sum())
    information = float(background @ (ratio / total) ** 2)
    n_signal = 2.0 / np.sqrt(information) if information > 0 else 0.0
    score: FloatArray = ratio / (1.0 + ratio * n_signal / total)
    return score
