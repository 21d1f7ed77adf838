"""Unbinned models of the mass in HS3: extended mixtures of densities, with the events.

Correlated measurements of parameters become pulls, independent standard-normal nuisances (:mod:`gbistat.binned.nuisances`), and the
parameters functions of these. Networks and tilts have no form in HS3; what has one is the mass alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gbistat import __version__
from gbistat.binned.hs3 import HS3_VERSION
from gbistat.binned.nuisances import standardise
from gbistat.errors import EventsError, ModelError, nearest
from gbistat.likelihood.components import MassFactor
from gbistat.likelihood.constraints import NormalConstraint
from gbistat.terms.shapes.dijet import Dijet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.binned.nuisances import Standardised
    from gbistat.data.events import Events
    from gbistat.likelihood.components import Component, Yield
    from gbistat.likelihood.model import Model
    from gbistat.terms.density import MassDensity
    from gbistat.typing import FloatArray, Json

__all__ = ["unbinned_to_hs3"]

SHAPES = ("dijet", "exponential", "gaussian", "power_law")
LIKELIHOOD, DOMAIN, POINT, DATA, MIXTURE = "main_likelihood", "default_domain", "default_values", "observed", "model"


def unbinned_to_hs3(model: Model, events: Events) -> Json:
    """Model of the mass and its events as an HS3 document.

    Parameters
    ----------
    model : Model
        Components with one mass density each, of the shapes dijet, exponential, gaussian or power_law; Gaussian constraints.
    events : Events
        Events in the model's window.

    Returns
    -------
    dict
        The document: a ``mixture_dist``, unbinned data, functions, and one analysis.

    Raises
    ------
    ModelError
        If HS3, or this function, has no form for a part of the model.
    EventsError
        If events are outside the window.
    """
    if model.window is None:
        raise ModelError("HS3 needs the range of the mass, and this model has no window")
    outside = int((~model.window.contains(events.mass)).sum())
    if outside:
        raise EventsError(f"{outside} of {len(events)} events are outside the window {model.window}")
    other = [type(c).__name__ for c in model.constraints if not isinstance(c, NormalConstraint)]
    if other:
        raise ModelError(f"a {other[0]} is not written to HS3 here; use a NormalConstraint")
    standard = standardise(model)
    functions = _parameters(model, standard)
    distributions: list[Json] = []
    mass = events.mass_name
    for component in model.components:
        distributions.append(_density(component, mass, functions))
        functions.append(
            {"name": f"n_{component.name}_events", "type": "generic_function", "expression": _yield(component.rate)}
        )
    labels = [component.name for component in model.components]
    distributions.append(
        {
            "name": MIXTURE,
            "type": "mixture_dist",
            "summands": labels,
            "coefficients": [f"n_{label}_events" for label in labels],
            "extended": True,
        }
    )
    pulls = [f"pull_{direction.name}" for direction in standard.directions]
    for pull in pulls:
        name = f"{pull}_constraint"
        distributions.append(
            {"name": name, "type": "gaussian_dist", "x": f"{pull}_measured", "mean": pull, "sigma": 1.0}
        )
    points: list[Json] = [{"name": pull, "value": 0.0} for pull in pulls]
    points += [{"name": f"{pull}_measured", "value": 0.0, "const": True} for pull in pulls]
    held = {parameter.name for parameter in model.parameters if parameter.fixed}
    moved = {direction.name for direction in standard.directions}
    for parameter, value in zip(model.parameters, standard.nominal, strict=True):
        if parameter.name not in moved:
            points.append({"name": parameter.name, "value": float(value), "const": parameter.name in held})
    data: Json = {
        "name": DATA,
        "type": "unbinned",
        "entries": [[float(m)] for m in events.mass],
        "axes": [{"name": mass, "min": model.window.low, "max": model.window.high}],
    }
    if events.weights is not None:
        data["weights"] = events.weights.tolist()
    axes = [_axis(p.name, p.low, p.high) for p in model.parameters if p.name not in moved]
    return {
        "metadata": {"hs3_version": HS3_VERSION, "packages": [{"name": "gbistat", "version": __version__}]},
        "distributions": distributions,
        "functions": functions,
        "data": [data],
        "likelihoods": [
            {
                "name": LIKELIHOOD,
                "distributions": [MIXTURE],
                "data": [DATA],
                "aux_distributions": [f"{pull}_constraint" for pull in pulls],
            }
        ],
        "domains": [
            {"name": DOMAIN, "type": "product_domain", "axes": axes + [_axis(pull, -5.0, 5.0) for pull in pulls]}
        ],
        "parameter_points": [{"name": POINT, "parameters": points}],
        "analyses": [
            {
                "name": "gbistat",
                "likelihood": LIKELIHOOD,
                "domains": [DOMAIN],
                "parameters_of_interest": [model.poi],
                "init": POINT,
            }
        ],
    }


def _axis(name: str, low: float, high: float) -> Json:
    axis: Json = {"name": name}
    if np.isfinite(low):
        axis["min"] = low
    if np.isfinite(high):
        axis["max"] = high
    return axis


def _number(value: float) -> str:
    """Number that stays whole in any expression."""
    return f"({float(value)!r})"


def _sum(constant: float, terms: Sequence[tuple[float, str]]) -> str:
    return " + ".join([_number(constant), *(f"{_number(factor)}*{name}" for factor, name in terms if factor != 0)])


def _parameters(model: Model, standard: Standardised) -> list[Json]:
    """Constrained parameters as functions of pulls."""
    functions = []
    moved = [direction.name for direction in standard.directions]
    for position, name in enumerate(model.names):
        if name in moved:
            steps = [float((d.plus - standard.nominal)[position]) for d in standard.directions]
            terms = [(step, f"pull_{d.name}") for step, d in zip(steps, standard.directions, strict=True)]
            expression = _sum(float(standard.nominal[position]), terms)
            functions.append({"name": name, "type": "generic_function", "expression": expression})
    return functions


def _yield(rate: Yield) -> str:
    linear = _sum(rate.constant, [(factor, name) for name, factor in rate.linear.items()])
    if not rate.log_scales:
        return linear
    return f"({linear})*exp({_sum(0.0, [(size, name) for name, size in rate.log_scales.items()])})"


def _density(component: Component, mass: str, functions: list[Json]) -> Json:
    factors = component.factors
    if len(factors) != 1 or not isinstance(factors[0], MassFactor):
        raise ModelError(
            f"component {component.name!r} looks at more than the mass, which HS3 cannot say; export its binned twin, "
            "and publish model.json for the rest"
        )
    density = factors[0].density
    names = _shape_parameters(component.name, density, functions)
    shape = density.shape
    if shape.name == "gaussian":
        return {"name": component.name, "type": "gaussian_dist", "x": mass, "mean": names[0], "sigma": names[1]}
    if shape.name == "exponential":
        return {"name": component.name, "type": "exponential_dist", "x": mass, "c": names[0]}
    if shape.name == "power_law":
        expression = f"exp(-{names[0]}*log({mass}))"
    elif isinstance(shape, Dijet):
        z = f"({mass}/{_number(shape.sqrt_s)})"
        powers = [f"({name})*log({z})**{k + 1}" for k, name in enumerate(names[1:])]
        expression = f"exp({names[0]}*log(1-{z}) - ({' + '.join(powers)}))"
    else:
        raise ModelError(f"shape {shape.name!r} is not written to HS3 here; {nearest(shape.name, SHAPES)}")
    return {"name": component.name, "type": "generic_dist", "expression": expression}


def _shape_parameters(label: str, density: MassDensity, functions: list[Json]) -> list[str]:
    """Functions for the parameters of a shape, affine in those of the model."""
    names = []
    offset: FloatArray = density.offset
    for position, parameter in enumerate(density.shape.parameters):
        name = f"{label}_{parameter.name}"
        terms = [(float(density.matrix[position, k]), p) for k, p in enumerate(density.parameters)]
        functions.append({"name": name, "type": "generic_function", "expression": _sum(float(offset[position]), terms)})
        names.append(name)
    return names
