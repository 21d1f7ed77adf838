r"""Penalised spline regressions of quantiles and of probabilities.

A quantile tau of numbers y is the function s that minimises ``sum_i rho(y_i - s(x_i)) + strength c^T P c / 2`` with the pinball loss
``rho(u) = u (tau - [u < 0])``. Its corner is rounded over a width h that shrinks to a small part of the spread (convolution
smoothing: M. Fernandes, E. Guerre, E. Horta, J. Bus. Econ. Stat. 39 (2021) 338), so that Newton's method applies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.special import expit, ndtr

from gbistat.errors import FitFailed

if TYPE_CHECKING:
    from gbistat.inference.tensor_splines import SplineRows
    from gbistat.typing import FloatArray

__all__ = ["SplineProblem", "fit_logistic", "fit_quantile"]

STRENGTHS = 10.0 ** np.arange(4.0, -4.1, -1.0)
"""Strengths of the penalty to choose from, times the number of toys per basis function."""


@dataclass(frozen=True, eq=False)
class SplineProblem:
    """Numbers at points, to be described by penalised splines.

    Parameters
    ----------
    rows : SplineRows
        Basis functions at the n points.
    y : array of shape (n,)
        The numbers.
    roughness : array of shape (size, size)
        Matrix of the penalty.
    """

    rows: SplineRows
    y: FloatArray
    roughness: FloatArray

    @property
    def unit(self) -> float:
        """Toys per basis function: what a penalty of 1 is compared with."""
        return float(self.y.size) / float(self.roughness.shape[0])


def fit_quantile(problem: SplineProblem, tau: float, penalty: float | None) -> tuple[FloatArray, FloatArray, float]:
    """Regress one quantile.

    Parameters
    ----------
    problem : SplineProblem
        Points and numbers.
    tau : float
        Probability of the quantile.
    penalty : float or None
        Strength of the penalty; chosen by Schwarz's criterion if not given.

    Returns
    -------
    tuple of array of shape (size,), array of shape (size, size), float
        Coefficients, their sampling covariance, strength of the penalty.

    Raises
    ------
    FitFailed
        If the fit does not settle.
    """
    n, size = problem.y.size, problem.roughness.shape[0]
    spread = float(
        np.quantile(problem.y, min(tau + 0.25 * (1 - tau), 1.0)) - np.quantile(problem.y, 1 - 1.5 * (1 - tau))
    )
    width = max(spread, 1e-3 * float(problem.y.max()), 1e-9)
    strengths = STRENGTHS * problem.unit if penalty is None else np.array([penalty])
    final = width * max(0.02, min(0.25, ((size + np.log(n)) / n) ** 0.4))
    coefficients = np.full(size, float(np.quantile(problem.y, tau)))
    coefficients = _newton(problem, tau, width, float(strengths[0]), coefficients)
    tried: list[tuple[float, FloatArray, float]] = []
    for strength in map(float, strengths):
        coefficients = _newton(problem, tau, final, strength, coefficients)
        residual = problem.y - problem.rows.matrix @ coefficients
        loss = float(np.mean(residual * (tau - (residual < 0))))
        curvature = _curvature(problem, residual, final)
        freedom = float(np.trace(np.linalg.solve(curvature + strength * problem.roughness, curvature)))
        # Schwarz's criterion with the likelihood of the asymmetric Laplace distribution (R. Koenker, P. Ng, S. Portnoy,
        # Biometrika 81 (1994) 673).
        tried.append((np.log(max(loss, 1e-300)) + 0.5 * np.log(n) * freedom / n, coefficients, strength))
        if len(tried) > 2 and tried[-1][0] > tried[-2][0] > tried[-3][0]:
            break
    _, coefficients, strength = min(tried, key=lambda entry: entry[0])
    residual = problem.y - problem.rows.matrix @ coefficients
    # The density at the quantile needs a wider window than the fit itself.
    inverse = np.linalg.inv(_curvature(problem, residual, max(final, 0.25 * width)) + strength * problem.roughness)
    moment = problem.rows.gram(np.full(n, tau * (1.0 - tau)))
    return coefficients, inverse @ moment @ inverse, strength


def _curvature(problem: SplineProblem, residual: FloatArray, h: float) -> FloatArray:
    weight = np.exp(-0.5 * (residual / h) ** 2) / (h * np.sqrt(2.0 * np.pi))
    matrix = problem.rows.gram(weight)
    size = matrix.shape[0]
    matrix[np.diag_indices(size)] += 1e-9 * (float(np.trace(matrix)) / size + 1e-12)
    return matrix


def _smooth_loss(residual: FloatArray, tau: float, h: float) -> float:
    """Pinball loss convolved with a Gaussian of width h, summed."""
    z = residual / h
    density = np.exp(-0.5 * z * z) / np.sqrt(2.0 * np.pi)
    return float(np.sum(residual * (tau - ndtr(-z)) + h * density))


def _descent(hessian: FloatArray, gradient: FloatArray) -> FloatArray:
    """Newton step; where too few points are near the quantile for a Hessian, one that leans to the gradient."""
    shift = 0.0
    while True:
        try:
            step: FloatArray = -cho_solve(cho_factor(hessian + shift * np.eye(gradient.size)), gradient)
        except np.linalg.LinAlgError:
            shift = max(100.0 * shift, 1e-12 * float(np.abs(np.diag(hessian)).max()), 1e-300)
            continue
        return step


def _newton(problem: SplineProblem, tau: float, h: float, strength: float, start: FloatArray) -> FloatArray:
    """Minimum of the smoothed, penalised loss."""
    c = start
    residual = problem.y - problem.rows.matrix @ c
    value = _smooth_loss(residual, tau, h) + 0.5 * strength * float(c @ problem.roughness @ c)
    for _ in range(100):
        gradient = -(problem.rows.matrix.T @ (tau - ndtr(-residual / h))) + strength * (problem.roughness @ c)
        step = _descent(_curvature(problem, residual, h) + strength * problem.roughness, gradient)
        decrement = -float(gradient @ step)
        if decrement < 1e-8 * problem.y.size * h:
            return c
        length = 1.0
        while True:
            trial = c + length * step
            residual = problem.y - problem.rows.matrix @ trial
            reached = _smooth_loss(residual, tau, h) + 0.5 * strength * float(trial @ problem.roughness @ trial)
            if reached <= value - 1e-4 * length * decrement or length < 1e-6:
                break
            length *= 0.5
        if length < 1e-6:
            return c
        gained = value - reached
        c, value = trial, reached
        # A strong penalty leaves a rounding error in the gradient that no step removes.
        if gained < 1e-9 * problem.y.size * h:
            return c
    raise FitFailed("the quantile regression of the critical values did not settle in 100 steps; use fewer pieces")


def fit_logistic(problem: SplineProblem, penalty: float | None) -> tuple[FloatArray, FloatArray]:
    """Regress the log odds of numbers that are 0 or 1.

    Parameters
    ----------
    problem : SplineProblem
        Points and numbers.
    penalty : float or None
        Strength of the penalty; chosen by Akaike's criterion if not given.

    Returns
    -------
    tuple of array of shape (size,), array of shape (size, size)
        Coefficients and their sampling covariance.

    Raises
    ------
    FitFailed
        If the fit does not settle.
    """
    strengths = STRENGTHS * problem.unit if penalty is None else np.array([penalty])
    share = min(max(float(problem.y.mean()), 0.5 / problem.y.size), 1.0 - 0.5 / problem.y.size)
    c = np.full(problem.roughness.shape[0], np.log(share / (1.0 - share)))
    tried: list[tuple[float, FloatArray, FloatArray]] = []
    for strength in strengths:
        c, hessian, deviance = _logistic_step(problem, float(strength), c)
        information = hessian - strength * problem.roughness
        freedom = float(np.trace(np.linalg.solve(hessian, information)))
        inverse = np.linalg.inv(hessian)
        tried.append((deviance + 2.0 * freedom, c, inverse @ information @ inverse))
    _, c, covariance = min(tried, key=lambda entry: entry[0])
    return c, covariance


def _logistic_step(problem: SplineProblem, strength: float, start: FloatArray) -> tuple[FloatArray, FloatArray, float]:
    """Logistic regression for one strength of the penalty: coefficients, Hessian, deviance."""

    def objective(c: FloatArray) -> float:
        odds = problem.rows.matrix @ c
        loss = float(np.sum(np.logaddexp(0.0, odds) - problem.y * odds))
        return loss + 0.5 * strength * float(c @ problem.roughness @ c)

    c, value = start, objective(start)
    for _ in range(100):
        p = expit(problem.rows.matrix @ c)
        weight = np.maximum(p * (1.0 - p), 1e-12)
        gradient = problem.rows.matrix.T @ (p - problem.y) + strength * (problem.roughness @ c)
        information = problem.rows.gram(weight)
        hessian = information + strength * problem.roughness + 1e-9 * np.eye(c.size)
        step = -cho_solve(cho_factor(hessian), gradient)
        decrement = -float(gradient @ step)
        if decrement < 1e-8:
            odds = problem.rows.matrix @ c
            return c, hessian, 2.0 * float(np.sum(np.logaddexp(0.0, odds) - problem.y * odds))
        length = 1.0
        while objective(c + length * step) > value - 1e-4 * length * decrement and length > 1e-8:
            length *= 0.5
        c = c + length * step
        value = objective(c)
    raise FitFailed("the regression of the coverage did not settle in 100 steps; use fewer pieces or a penalty")
