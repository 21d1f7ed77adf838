r"""Constraints of a model as independent standard-normal directions, which is what HistFactory knows.

Correlated Gaussian measurements of parameters become :math:`\theta = \hat\theta + L z` with :math:`L L^T = C` the Cholesky
factor of their covariance and z standard-normal. Shape parameters come first and yields last, so that for the
background of a sideband fit

.. math::

    n_\mathrm{bkg} = n_0 + \sum_k c_k z_k + \sigma_\mathrm{res} \eta :

direction k moves the shape and, through the correlation, the yield; :math:`\eta`, named as the yield, is what is left of
the yield's error. This is the same likelihood in other coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import ModelError
from gbistat.likelihood.constraints import LogNormalConstraint, NormalConstraint, PoissonConstraint
from gbistat.likelihood.parameters import start_vector

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gbistat.likelihood.model import Model
    from gbistat.typing import FloatArray

__all__ = ["Direction", "Standardised", "standardise"]


@dataclass(frozen=True, eq=False)
class Direction:
    """One standard-normal nuisance.

    Parameters
    ----------
    name : str
        Name of the parameter of the model that it stands for.
    plus, minus : array of shape (p,)
        Parameters of the model at +1 and -1, all other directions at 0.
    """

    name: str
    plus: FloatArray
    minus: FloatArray


@dataclass(frozen=True, eq=False)
class Standardised:
    """Parameters of a model, sorted by what they become in HistFactory.

    Parameters
    ----------
    nominal : array of shape (p,)
        Constrained parameters at their best value, the others at their start values (or where they are held).
    directions : tuple of Direction
        Constrained ones.
    counters : tuple of PoissonConstraint
        Auxiliary counts.
    free : tuple of str
        Parameters without constraint, and those of auxiliary counts; among them the parameter of interest.
    """

    nominal: FloatArray
    directions: tuple[Direction, ...]
    counters: tuple[PoissonConstraint, ...]
    free: tuple[str, ...]


def standardise(model: Model, held: Mapping[str, float] | None = None) -> Standardised:
    """Sort the parameters of a model, and make the constrained ones independent.

    Parameters
    ----------
    model : Model
        p parameters and their constraints.
    held : mapping of str to float, optional
        Parameters to hold at a value; those declared fixed are held at their start values.

    Raises
    ------
    ModelError
        If a constraint is of a kind that HistFactory does not have, two constraints of different kinds are on one parameter, or
        one is on the parameter of interest.
    ParameterError
        If a held parameter is unknown or outside its range.
    """
    nominal = start_vector(model.parameters, held)
    fixed = {parameter.name for parameter in model.parameters if parameter.fixed} | set(held or {})
    normals, logs, counters = _by_kind(model)
    _check_overlap(model, normals, logs, counters)
    groups = [_group_moments(group) for group in _connected(normals)]
    best = [_conditional(names, mean, matrix, nominal, model, fixed) for names, mean, matrix in groups]
    for index, mean, _ in best:
        nominal[index] = mean
    moving = [c for c in logs if c.name not in fixed]
    for constraint in moving:
        nominal[model.names.index(constraint.name)] = constraint.observed
    directions: list[Direction] = []
    for index, _, factor in best:
        for column, position in enumerate(index):
            plus, minus = nominal.copy(), nominal.copy()
            plus[index] += factor[:, column]
            minus[index] -= factor[:, column]
            directions.append(Direction(model.names[position], plus, minus))
    for constraint in moving:
        position = model.names.index(constraint.name)
        plus, minus = nominal.copy(), nominal.copy()
        plus[position] *= np.exp(constraint.sigma)
        minus[position] *= np.exp(-constraint.sigma)
        directions.append(Direction(constraint.name, plus, minus))
    taken = fixed | {direction.name for direction in directions}
    return Standardised(
        nominal,
        tuple(sorted(directions, key=lambda d: model.names.index(d.name))),
        tuple(c for c in counters if c.name not in fixed),
        tuple(name for name in model.names if name not in taken),
    )


def _by_kind(model: Model) -> tuple[list[NormalConstraint], list[LogNormalConstraint], list[PoissonConstraint]]:
    normals: list[NormalConstraint] = []
    logs: list[LogNormalConstraint] = []
    counters: list[PoissonConstraint] = []
    for constraint in model.constraints:
        if isinstance(constraint, NormalConstraint):
            normals.append(constraint)
        elif isinstance(constraint, LogNormalConstraint):
            logs.append(constraint)
        elif isinstance(constraint, PoissonConstraint):
            counters.append(constraint)
        else:
            raise ModelError(
                f"HistFactory has no counterpart of the {type(constraint).__name__} on {', '.join(constraint.names)}; "
                "use a normal, log-normal or Poisson constraint"
            )
    return normals, logs, counters


def _check_overlap(
    model: Model,
    normals: Sequence[NormalConstraint],
    logs: Sequence[LogNormalConstraint],
    counters: Sequence[PoissonConstraint],
) -> None:
    single = [c.name for c in logs] + [c.name for c in counters]
    several = {name for constraint in normals for name in constraint.names}
    twice = [name for name in single if name in several or single.count(name) > 1]
    if twice:
        raise ModelError(
            f"{twice[0]} has constraints of several kinds, which HistFactory cannot combine; keep one of them"
        )
    if model.poi in several or model.poi in single:
        raise ModelError(
            f"the parameter of interest {model.poi} has a constraint, which HistFactory does not allow; drop it or "
            "constrain the efficiency of the signal instead"
        )


def _connected(constraints: Sequence[NormalConstraint]) -> list[list[NormalConstraint]]:
    """Groups of constraints that share parameters, directly or through others."""
    groups: list[list[NormalConstraint]] = []
    for constraint in constraints:
        touching = [group for group in groups if any(set(c.names) & set(constraint.names) for c in group)]
        joined = [c for group in touching for c in group] + [constraint]
        groups = [group for group in groups if group not in touching] + [joined]
    return groups


def _group_moments(group: Sequence[NormalConstraint]) -> tuple[tuple[str, ...], FloatArray, FloatArray]:
    """Names, mean and precision matrix of the product of Gaussians."""
    names = tuple(dict.fromkeys(name for constraint in group for name in constraint.names))
    precision, pull = np.zeros((len(names), len(names))), np.zeros(len(names))
    for constraint in group:
        index = np.array([names.index(name) for name in constraint.names])
        own = np.linalg.inv(constraint.covariance)
        precision[np.ix_(index, index)] += own
        pull[index] += own @ constraint.observed
    return names, np.asarray(np.linalg.solve(precision, pull), dtype=np.float64), precision


def _conditional(
    names: tuple[str, ...],
    mean: FloatArray,
    precision: FloatArray,
    nominal: FloatArray,
    model: Model,
    fixed: set[str],
) -> tuple[list[int], FloatArray, FloatArray]:
    """Positions, mean and Cholesky factor of what moves in a group, for given values of what is held."""
    shapes = {name for c in model.components for factor in c.factors for name in factor.parameters}
    yields = {name for c in model.components for name in c.rate.linear}
    moving = sorted(
        (name for name in names if name not in fixed),
        key=lambda name: (name not in shapes, name in yields, model.names.index(name)),
    )
    rows = [names.index(name) for name in moving]
    others = [names.index(name) for name in names if name in fixed]
    if not rows:
        return [], np.empty(0), np.empty((0, 0))
    block = precision[np.ix_(rows, rows)]
    held = np.array([nominal[model.names.index(names[row])] for row in others])
    shift = np.linalg.solve(block, precision[np.ix_(rows, others)] @ (held - mean[others])) if others else 0.0
    factor = np.linalg.cholesky(np.linalg.inv(block))
    return [model.names.index(name) for name in moving], mean[rows] - shift, factor
