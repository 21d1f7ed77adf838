"""Nuisance parameters that a model gets before it is fitted: spread of ensembles, spurious signal."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from gbistat.errors import ModelError
from gbistat.likelihood.components import Yield
from gbistat.likelihood.constraints import NormalConstraint
from gbistat.likelihood.ensemble import with_ensemble_directions
from gbistat.likelihood.parameters import Parameter
from gbistat.likelihood.tilt import spurious_signal_tilt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.data.events import Events
    from gbistat.likelihood.model import Model
    from gbistat.terms.network import NetworkTerm

__all__ = ["SPURIOUS", "with_ensembles", "with_spurious_signal"]

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
