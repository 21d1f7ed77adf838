"""Nuisance parameters that a model gets before it is fitted: spread of ensembles, tilt of the background, spurious signal."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gbistat.errors import ModelError
from gbistat.likelihood.components import Yield
from gbistat.likelihood.constraints import NormalConstraint
from gbistat.likelihood.ensemble import with_ensemble_directions
from gbistat.likelihood.parameters import Parameter
from gbistat.likelihood.tilt import spurious_signal_tilt
from gbistat.likelihood.weight_tilt import WeightTilt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gbistat.data.events import Events
    from gbistat.likelihood.model import Model
    from gbistat.terms.model_spec import ModelSpec
    from gbistat.terms.network import NetworkTerm

__all__ = [
    "SPURIOUS",
    "BackgroundTilt",
    "background_tilt",
    "with_background_tilt",
    "with_ensembles",
    "with_spurious_signal",
]

SPURIOUS = "spurious_signal"


def with_ensembles(model: Model, terms: Sequence[NetworkTerm], pool: Events | None) -> Model:
    """Model with the spread of each ensemble as nuisance parameters."""
    if not terms:
        raise ModelError("signal.ensemble is 'profiled', and the signal has no ratio; set it to 'mean'")
    if pool is None:
        raise ModelError(
            "signal.ensemble is 'profiled', which needs reference events in the window: the density has to stay normalised; give "
            "the model some, or set signal.ensemble to 'mean'"
        )
    for term in terms:
        model = with_ensemble_directions(model, term, pool)
    return model


@dataclass(frozen=True, eq=False)
class BackgroundTilt:
    """Nuisance of the background's features; see `gbistat.likelihood.weight_tilt`.

    Parameters
    ----------
    term : NetworkTerm
        ln w of data against generated events.
    parameter : str
        Name of nu.
    sigma : float
        Of its constraint.
    """

    term: NetworkTerm
    parameter: str
    sigma: float = 1.0


def background_tilt(spec: ModelSpec, terms: Mapping[str, NetworkTerm]) -> BackgroundTilt | None:
    """Tilt that a model asks for; None if it asks for none."""
    tilt = spec.background.tilt
    return None if tilt is None else BackgroundTilt(terms[tilt.term], tilt.parameter, tilt.sigma)


def with_background_tilt(model: Model, tilt: BackgroundTilt, pool: Events | None) -> Model:
    """Model whose background may move along the weights of a classifier, normalised on background events of the window.

    Raises
    ------
    ModelError
        If there are no such events.
    """
    if pool is None:
        raise ModelError(
            f"background.tilt {tilt.parameter!r} needs background events in the window, reference events or a generator: the "
            "density has to stay normalised"
        )
    factor = WeightTilt(tilt.parameter, tilt.term.log_ratio, tilt.term.log_ratio(pool), pool.weights)
    components = tuple(
        c if c.name == model.signal else dataclasses.replace(c, factors=(*c.factors, factor)) for c in model.components
    )
    return dataclasses.replace(
        model,
        components=components,
        parameters=(*model.parameters, Parameter(tilt.parameter, 0.0, -10.0, 10.0)),
        constraints=(*model.constraints, NormalConstraint(tilt.parameter, 0.0, tilt.sigma)),
    )


def with_spurious_signal(
    model: Model, events: Events, kappa: float, spurious: float, *, like: Model | None = None
) -> tuple[Model, float]:
    """Model whose background tilts with a standard-normal nuisance, and the spurious signal of one sigma in events.

    The tilt is that of `like` where it is given: the same model with the masses of the signal held, whose ratio needs no splines.
    """
    tilt, size = spurious_signal_tilt(like or model, SPURIOUS, events, kappa=kappa, spurious=spurious)
    parameter = Parameter(SPURIOUS, 0.0, -10.0, 10.0)
    # Kappa leaves the number of events alone; other spurious signal adds events, beside what the tilt makes of background.
    rate = {SPURIOUS: spurious**2 / size} if spurious else {}
    components = tuple(
        c
        if c.name == model.signal
        else dataclasses.replace(c, rate=Yield({**c.rate.linear, **rate}), factors=(*c.factors, tilt))
        for c in model.components
    )
    constraint = NormalConstraint(SPURIOUS, 0.0, 1.0)
    return (
        dataclasses.replace(
            model,
            components=components,
            parameters=(*model.parameters, parameter),
            constraints=(*model.constraints, constraint),
        ),
        size,
    )
