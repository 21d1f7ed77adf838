"""Unbinned models from HS3: extended mixtures of Gaussian and exponential densities of one observable.

Numbers, parameters, and ``generic_function`` expressions that are affine in parameters are understood, and yields that are affine, or affine
times an exponential of something affine. Everything else is refused, with the reason.
"""

from __future__ import annotations

import ast
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat.data.events import Events
from gbistat.data.window import MassWindow
from gbistat.errors import ModelError, nearest
from gbistat.likelihood.components import Component, MassFactor, Yield
from gbistat.likelihood.constraints import NormalConstraint
from gbistat.likelihood.model import Model
from gbistat.likelihood.parameters import Parameter
from gbistat.terms.density import MassDensity
from gbistat.terms.shapes.exponential import Exponential
from gbistat.terms.shapes.gaussian import Gaussian

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gbistat.terms.protocols import Shape
    from gbistat.typing import Json

    Affine = tuple[float, dict[str, float]]

__all__ = ["unbinned_from_hs3"]

DENSITIES: dict[str, tuple[Shape, tuple[str, ...]]] = {
    "gaussian_dist": (Gaussian(), ("mean", "sigma")),
    "exponential_dist": (Exponential(), ("c",)),
}


def unbinned_from_hs3(document: Mapping[str, Any], *, analysis: str | None = None) -> tuple[Model, Events]:
    """Model and events of an HS3 document.

    Parameters
    ----------
    document : dict
        HS3 JSON whose likelihood is one extended ``mixture_dist`` with unbinned data of one observable.
    analysis : str, optional
        Which analysis; the first by default.

    Returns
    -------
    Model, Events
        Ready for ``ExtendedUnbinnedNLL(model, events)``. The window is the range of the data's axis.

    Raises
    ------
    ModelError
        If a part is missing or of a kind that is not understood; the message names it.
    """
    chosen = _item(document, "analyses", analysis)
    likelihood = _item(document, "likelihoods", chosen.get("likelihood"))
    if len(likelihood["distributions"]) != 1:
        raise ModelError(
            f"the likelihood has {len(likelihood['distributions'])} distributions; one mixture can be read"
        )
    mixture = _item(document, "distributions", likelihood["distributions"][0])
    if mixture.get("type") != "mixture_dist" or not mixture.get("extended"):
        raise ModelError(
            f"{mixture['name']!r} is a {mixture.get('type')} and not an extended mixture_dist, which can be read"
        )
    data = _item(document, "data", likelihood["data"][0])
    if data.get("type") != "unbinned" or len(data["axes"]) != 1:
        raise ModelError(f"data {data['name']!r}: only unbinned data of one observable can be read")
    (axis,) = data["axes"]
    window = MassWindow(float(axis["min"]), float(axis["max"]))
    names = _Names(document)
    components = tuple(
        Component(label, names.rate(coefficient), (MassFactor(_density(document, label, axis["name"], window, names)),))
        for label, coefficient in zip(mixture["summands"], mixture["coefficients"], strict=True)
    )
    constraints = tuple(
        _constraint(_item(document, "distributions", label), names) for label in likelihood.get("aux_distributions", [])
    )
    poi = (chosen.get("parameters_of_interest") or [""])[0]
    signals = [component.name for component in components if poi in component.rate.linear]
    if not signals:
        raise ModelError(f"no yield is proportional to the parameter of interest {poi!r}; name another")
    model = Model(components, names.parameters(chosen), constraints, window, poi, signals[0])
    entries = np.array([entry[0] for entry in data["entries"]], dtype=np.float64)
    weights = np.array(data["weights"], dtype=np.float64) if "weights" in data else None
    return model, Events(mass=entries, weights=weights, mass_name=axis["name"])


def _item(document: Mapping[str, Any], part: str, name: str | None) -> Json:
    items = {str(item["name"]): item for item in document.get(part, [])}
    if not items:
        raise ModelError(f"the HS3 document has no {part}; {nearest(part, document)}")
    key = next(iter(items)) if name is None else name
    if key not in items:
        raise ModelError(f"the HS3 document has nothing called {key!r} among its {part}; {nearest(key, items)}")
    return dict(items[key])


def _density(
    document: Mapping[str, Any], label: str, observable: str, window: MassWindow, names: _Names
) -> MassDensity:
    item = _item(document, "distributions", label)
    if item.get("type") not in DENSITIES:
        raise ModelError(f"density {label!r} is a {item.get('type')}; {nearest(str(item.get('type')), DENSITIES)}")
    shape, keys = DENSITIES[item["type"]]
    if item.get("x") != observable:
        raise ModelError(f"density {label!r} is one of {item.get('x')!r}, and the data are {observable!r}")
    rows = [names.affine(item[key]) for key in keys]
    used = tuple(dict.fromkeys(name for _, terms in rows for name in terms))
    matrix = np.array([[terms.get(name, 0.0) for name in used] for _, terms in rows]).reshape(len(rows), len(used))
    return MassDensity(shape, (window.edges,), used, np.array([constant for constant, _ in rows]), matrix)


def _constraint(item: Json, names: _Names) -> NormalConstraint:
    if item.get("type") != "gaussian_dist":
        raise ModelError(
            f"auxiliary distribution {item['name']!r} is a {item.get('type')}; a gaussian_dist can be read"
        )
    constant, terms = names.affine(item["mean"])
    if constant != 0 or list(terms.values()) != [1.0]:
        raise ModelError(f"auxiliary distribution {item['name']!r}: its mean {item['mean']!r} is not a parameter")
    return NormalConstraint(next(iter(terms)), names.number(item["x"]), names.number(item["sigma"]))


class _Names:
    """What names in a document stand for."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document
        self.functions = {item["name"]: item for item in document.get("functions", [])}
        self.points = {p["name"]: p for s in document.get("parameter_points", []) for p in s["parameters"]}
        self.used: dict[str, None] = {}

    def number(self, value: float | str) -> float:
        """Number, or the value of a constant."""
        if isinstance(value, str):
            if value not in self.points:
                raise ModelError(f"no parameter point gives a value for {value!r}; {nearest(value, self.points)}")
            return float(self.points[value]["value"])
        return float(value)

    def affine(self, value: float | str) -> Affine:
        """Constant and coefficients of parameters."""
        if not isinstance(value, str):
            return float(value), {}
        if value in self.functions:
            return self._expression(value, self._tree(value))
        if value not in self.points:
            raise ModelError(
                f"{value!r} is neither a function nor a parameter; {nearest(value, [*self.functions, *self.points])}"
            )
        self.used.setdefault(value)
        return 0.0, {value: 1.0}

    def rate(self, coefficient: str) -> Yield:
        """Yield from a coefficient of the mixture."""
        if coefficient in self.functions:
            tree: Any = self._tree(coefficient)
            if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Mult) and _is_exp(tree.right):
                exponent: Any = tree.right
                constant, linear = self._expression(coefficient, tree.left)
                shift, scales = self._expression(coefficient, exponent.args[0])
                size = math.exp(shift)
                return Yield({name: size * x for name, x in linear.items()}, size * constant, scales)
        constant, linear = self.affine(coefficient)
        return Yield(linear, constant)

    def parameters(self, analysis: Json) -> tuple[Parameter, ...]:
        """Parameters that were met, in the order of the document."""
        domains = [d for d in self.document.get("domains", []) if d["name"] in analysis.get("domains", [])]
        ranges = {axis["name"]: axis for domain in domains for axis in domain["axes"]}
        found = []
        for name in (name for name in self.points if name in self.used):
            point, axis = self.points[name], ranges.get(name, {})
            low, high = axis.get("min", -math.inf), axis.get("max", math.inf)
            found.append(Parameter(name, float(point["value"]), low, high, bool(point.get("const", False))))
        return tuple(found)

    def _tree(self, name: str) -> Any:
        item = self.functions[name]
        if item.get("type") != "generic_function":
            raise ModelError(f"function {name!r} is a {item.get('type')}; a generic_function can be read")
        try:
            return ast.parse(str(item["expression"]), mode="eval").body
        except SyntaxError as error:
            raise ModelError(f"function {name!r}: {item['expression']!r} cannot be read") from error

    def _expression(self, where: str, tree: Any) -> Affine:
        """Value of a tree of sums, products with numbers, and names."""
        if isinstance(tree, ast.Constant) and isinstance(tree.value, (int, float)):
            return float(tree.value), {}
        if isinstance(tree, ast.Name):
            return self.affine(tree.id)
        if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
            return _scaled(self._expression(where, tree.operand), -1.0)
        if isinstance(tree, ast.BinOp):
            left, right = self._expression(where, tree.left), self._expression(where, tree.right)
            if isinstance(tree.op, (ast.Add, ast.Sub)):
                return _added(left, right if isinstance(tree.op, ast.Add) else _scaled(right, -1.0))
            if isinstance(tree.op, ast.Mult) and not (left[1] and right[1]):
                return _scaled(left, right[0]) if left[1] else _scaled(right, left[0])
            if isinstance(tree.op, ast.Div) and not right[1] and right[0] != 0:
                return _scaled(left, 1.0 / right[0])
        raise ModelError(
            f"function {where!r} is not affine in parameters at {ast.unparse(tree)!r}, which cannot be read"
        )


def _is_exp(tree: Any) -> bool:
    return (
        isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id == "exp" and len(tree.args) == 1
    )


def _scaled(value: Affine, factor: float) -> Affine:
    return factor * value[0], {name: factor * x for name, x in value[1].items()}


def _added(left: Affine, right: Affine) -> Affine:
    terms = dict(left[1])
    for name, x in right[1].items():
        terms[name] = terms.get(name, 0.0) + x
    return left[0] + right[0], terms
