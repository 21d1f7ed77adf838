"""What toys can tell about the parameters: hypotheses, Fisher information, the cells that keep it, the worth of pools."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import ModelError
from gbistat.inference.cells import make_cells
from gbistat.inference.pools import pool_report

if TYPE_CHECKING:
    from gbistat.inference.cells import Cells
    from gbistat.inference.pools import PoolReport
    from gbistat.inference.toy_basis import Basis
    from gbistat.inference.toys import ToyModel
    from gbistat.typing import BoolArray, FloatArray

__all__ = ["Fixed", "Hypothesis", "hypothesis", "pool_reports", "toy_cells", "toy_covariance"]

Fixed = tuple[tuple[str, float], ...]
"""Parameters held in fits, and at which values."""

SIGNALS = (0.0, 3.0)
"""Sizes of the signal, in errors of its estimate, at which cells must keep the information."""

SHAPE_SHARE = 0.3
"""Weight of the scores of shape parameters in the placing of cells, relative to that of the parameter of interest."""


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """One signal hypothesis that toys are fitted under.

    Parameters
    ----------
    theta : array of shape (p,)
        Where fits begin and densities are expanded: the truth, with held parameters at their values.
    free : array of bool, shape (p,)
        Parameters of the free fit.
    bases : tuple of Basis
        Densities of each data term in its cells; empty for exact toys.
    """

    theta: FloatArray
    free: BoolArray
    bases: tuple[Basis, ...] = ()


def hypothesis(model: ToyModel, fixed: Fixed, truth: FloatArray) -> Hypothesis:
    """Start and free parameters of fits at a truth; parameters declared fixed are at their start values."""
    theta, free = truth.copy(), np.ones(len(model.names), dtype=bool)
    for i, parameter in enumerate(model.nll.parameters):
        if parameter.fixed:
            theta[i], free[i] = parameter.start, False
    for name, value in fixed:
        theta[model.names.index(name)], free[model.names.index(name)] = value, False
    return Hypothesis(theta, free)


def toy_covariance(
    model: ToyModel, theta: FloatArray, free: BoolArray
) -> tuple[FloatArray, list[tuple[FloatArray, FloatArray]]]:
    """Inverse Fisher information of a toy, and the counts and scores of each data term that it is made of.

    Parameters
    ----------
    model : ToyModel
        Pools and constraints.
    theta : array of shape (p,)
        True parameters.
    free : array of bool, shape (p,)
        Parameters to invert over; the others, and those without any effect, get zero rows.

    Raises
    ------
    ModelError
        If toys cannot determine the parameter of interest.
    """
    information = np.zeros((theta.size, theta.size))
    terms = []
    for pool in model.pools:
        counts, scores = pool.scores(theta)
        information += (scores * counts) @ scores.T
        terms.append((counts, scores))
    for constraint in model.nll.constraints:
        index = np.array([model.names.index(name) for name in constraint.names])
        information[index[:, None], index] += constraint.expected(theta[index]).hessian(theta[index])
    used = free & (np.diag(information) > 0)
    block = information[np.ix_(used, used)]
    scale = 1.0 / np.sqrt(np.diag(block))
    block = block * np.outer(scale, scale)
    if not used[model.poi_index] or np.linalg.eigvalsh(block)[0] < 1e-13:
        raise ModelError(
            f"toys cannot determine {model.poi}: some combination of parameters does not change the likelihood; "
            "constrain a parameter or hold it"
        )
    covariance = np.zeros_like(information)
    covariance[np.ix_(used, used)] = np.linalg.inv(block) * np.outer(scale, scale)
    return covariance, terms


def pool_reports(model: ToyModel, at: Hypothesis) -> tuple[PoolReport, ...]:
    """What each pool is worth for toys at a truth."""
    covariance, terms = toy_covariance(model, at.theta, at.free)
    return tuple(
        pool_report(pool, at.theta, counts, scores, covariance, model.poi_index)
        for pool, (counts, scores) in zip(model.pools, terms, strict=True)
    )


def toy_cells(model: ToyModel, hypotheses: tuple[Fixed, ...]) -> tuple[Cells, ...]:
    """Cells of each pool that keep the information on the parameter of interest under every hypothesis.

    They are placed at the start values of all parameters, so that toys at any truth have the same cells.

    Raises
    ------
    ModelError
        If a free parameter moves a density and nothing constrains it: an expansion around the truth cannot follow it.
    """
    poi = model.poi_index
    parameter = model.nll.parameters[poi]
    scores_of: list[list[FloatArray]] = [[] for _ in model.pools]
    tolerances: list[list[float]] = [[] for _ in model.pools]
    weights = [np.zeros(pool.size) for pool in model.pools]
    for fixed in hypotheses:
        case = hypothesis(model, fixed, model.theta())
        _check_shapes(model, case.free)
        theta = case.theta
        theta[poi] = min(max(0.0, parameter.low), parameter.high)
        error = float(np.sqrt(toy_covariance(model, theta, case.free)[0][poi, poi]))
        for size in SIGNALS:
            theta[poi] = min(max(size * error, parameter.low), parameter.high)
            covariance, terms = toy_covariance(model, theta, case.free)
            for number, (counts, scores) in enumerate(terms):
                scores_of[number].append(covariance[poi] @ scores / np.sqrt(covariance[poi, poi]))
                tolerances[number].append(model.options.information_loss / len(terms))
                weights[number] += counts / (len(SIGNALS) * len(hypotheses))
                for i in _free_shapes(model, number, case.free):
                    scores_of[number].append(SHAPE_SHARE * np.sqrt(covariance[i, i]) * scores[i])
                    tolerances[number].append(np.inf)
    return tuple(
        make_cells(np.array(rows), weight, tolerance=np.array(tolerance), max_cells=model.options.max_cells)
        for rows, weight, tolerance in zip(scores_of, weights, tolerances, strict=True)
    )


def _free_shapes(model: ToyModel, number: int, free: BoolArray) -> list[int]:
    return sorted({int(i) for positions in model.pools[number].moving.values() for i in positions if free[i]})


def _check_shapes(model: ToyModel, free: BoolArray) -> None:
    constrained = {name for constraint in model.nll.constraints for name in constraint.names}
    for number in range(len(model.pools)):
        for i in _free_shapes(model, number, free):
            name = model.names[i]
            if name not in constrained:
                raise ModelError(
                    f"{name} moves a density and nothing constrains it, which compressed toys cannot follow; hold it in the "
                    f"tests (TestSpec(..., fixed=(({name!r}, value),))), or use exact toys (slow)"
                )
