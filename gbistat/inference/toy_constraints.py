"""Auxiliary measurements of many toys at once: drawn at true parameters, and their part of each toy's nll."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from gbistat.likelihood.auxiliary import AuxiliaryMeasurements
from gbistat.likelihood.constraints import LogNormalConstraint, NormalConstraint, PoissonConstraint
from gbistat.likelihood.histfactory import BinnedTerm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.likelihood.constraints import Constraint
    from gbistat.typing import FloatArray, IntArray

__all__ = ["BatchConstraint", "draw_constraint"]


class BatchConstraint(Protocol):
    """One constraint with an auxiliary value for each of n toys."""

    @property
    def convex(self) -> bool:
        """Whether its nll is self-concordant."""

    def single(self, row: int) -> Constraint:
        """Constraint of one toy."""

    def take(self, rows: IntArray) -> BatchConstraint:
        """Constraint of some toys."""

    def value(self, theta: FloatArray) -> FloatArray:
        """Contribution to the nll, shape (n,), at parameters of shape (n, k)."""

    def derivatives(self, theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Gradient (n, k) and Hessian (n, k, k) or (1, k, k)."""


@dataclass(frozen=True, eq=False)
class _Normal:
    constraint: NormalConstraint
    observed: FloatArray

    @property
    def convex(self) -> bool:
        return True

    def single(self, row: int) -> Constraint:
        return NormalConstraint(self.constraint.names, self.observed[row], self.constraint.covariance)

    def take(self, rows: IntArray) -> BatchConstraint:
        return replace(self, observed=self.observed[rows])

    def value(self, theta: FloatArray) -> FloatArray:
        pull = theta - self.observed
        result: FloatArray = 0.5 * ((pull @ self._precision) * pull).sum(axis=1)
        return result

    def derivatives(self, theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        return (theta - self.observed) @ self._precision, self._precision[None]

    @property
    def _precision(self) -> FloatArray:
        return self.constraint.hessian(self.constraint.observed)


@dataclass(frozen=True, eq=False)
class _LogNormal:
    constraint: LogNormalConstraint
    observed: FloatArray

    @property
    def convex(self) -> bool:
        return False

    def single(self, row: int) -> Constraint:
        return replace(self.constraint, observed=float(self.observed[row]))

    def take(self, rows: IntArray) -> BatchConstraint:
        return replace(self, observed=self.observed[rows])

    def value(self, theta: FloatArray) -> FloatArray:
        x = theta[:, 0]
        good = x > 0
        log = np.log(np.where(good, x, 1.0) / self.observed) / self.constraint.sigma
        return np.where(good, 0.5 * log**2, np.inf)

    def derivatives(self, theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        x = np.where(theta[:, 0] > 0, theta[:, 0], np.nan)
        log, width = np.log(x / self.observed), self.constraint.sigma
        gradient = log / (width**2 * x)
        hessian = (1.0 - log) / (width * x) ** 2
        return gradient[:, None], hessian[:, None, None]


@dataclass(frozen=True, eq=False)
class _Poisson:
    constraint: PoissonConstraint
    observed: FloatArray

    @property
    def convex(self) -> bool:
        return True

    def single(self, row: int) -> Constraint:
        return replace(self.constraint, observed=float(self.observed[row]))

    def take(self, rows: IntArray) -> BatchConstraint:
        return replace(self, observed=self.observed[rows])

    def value(self, theta: FloatArray) -> FloatArray:
        n = self.observed
        mean = self.constraint.scale * theta[:, 0]
        good = (mean > 0) | ((mean == 0) & (n == 0))
        safe = np.where(mean > 0, mean, 1.0)
        log_ratio = np.log(safe / np.where(n > 0, n, 1.0))
        return np.where(good, mean - n - np.where(n > 0, n * log_ratio, 0.0), np.inf)

    def derivatives(self, theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        x = theta[:, 0]
        some = self.observed > 0
        safe = np.where(x > 0, x, np.nan)
        zero = np.where(x < 0, np.nan, 0.0)
        gradient = self.constraint.scale - np.where(some, self.observed / safe, zero)
        hessian = np.where(some, self.observed / safe**2, zero)
        return gradient[:, None], hessian[:, None, None]


@dataclass(frozen=True, eq=False)
class _Any:
    """A constraint of a kind that this module does not know: one object a toy."""

    constraints: tuple[Constraint, ...]

    @property
    def convex(self) -> bool:
        return False

    def single(self, row: int) -> Constraint:
        return self.constraints[row]

    def take(self, rows: IntArray) -> BatchConstraint:
        return _Any(tuple(self.constraints[row] for row in rows))

    def value(self, theta: FloatArray) -> FloatArray:
        return np.array([c.value(x) for c, x in zip(self.constraints, theta, strict=True)])

    def derivatives(self, theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        pairs: Sequence[tuple[Constraint, FloatArray]] = list(zip(self.constraints, theta, strict=True))
        return np.array([c.gradient(x) for c, x in pairs]), np.array([c.hessian(x) for c, x in pairs])


def draw_constraint(
    constraint: Constraint, theta: FloatArray, count: int, *, rng: np.random.Generator
) -> BatchConstraint:
    """Draw the auxiliary value of `count` toys at true parameters.

    Parameters
    ----------
    constraint : Constraint
        Whose auxiliary measurement.
    theta : array of shape (k,)
        True values of its parameters.
    count : int
        Number of toys.
    rng : numpy.random.Generator
        Source of randomness; toys are drawn one after the other, so that more toys begin with the same ones.

    Returns
    -------
    BatchConstraint
        The same distribution as ``constraint.fluctuate``, toy by toy.

    Raises
    ------
    ModelError
        If the true values cannot be measured (a negative expected count).
    """
    constraint.expected(theta)
    if isinstance(constraint, (BinnedTerm, AuxiliaryMeasurements)):
        return constraint.draw(theta, count, rng=rng)
    if type(constraint) is NormalConstraint:
        root = np.linalg.cholesky(constraint.covariance)
        drawn = theta + rng.standard_normal((count, theta.size)) @ root.T
        return _Normal(constraint, drawn)
    if type(constraint) is LogNormalConstraint:
        return _LogNormal(constraint, float(theta[0]) * np.exp(constraint.sigma * rng.standard_normal(count)))
    if type(constraint) is PoissonConstraint:
        counts = rng.poisson(constraint.scale * float(theta[0]), count)
        return _Poisson(constraint, counts.astype(np.float64))
    return _Any(tuple(constraint.fluctuate(theta, rng=rng) for _ in range(count)))
