"""Constraints: what auxiliary measurements say about parameters, as terms of the nll.

Each is a frozen object with its observed auxiliary value inside. ``expected`` moves that value to what given
parameters predict (Asimov sets), ``fluctuate`` draws it again (toys): global observables in the sense of
arXiv:1007.1727, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from scipy.special import xlogy

from gbistat.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.typing import FloatArray

__all__ = ["Constraint", "LogNormalConstraint", "NormalConstraint", "PoissonConstraint"]


class Constraint(Protocol):
    """A term of the nll that depends on parameters alone."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its k parameters."""

    def value(self, theta: FloatArray) -> float:
        """Contribution to the nll, 0 at best."""

    def gradient(self, theta: FloatArray) -> FloatArray:
        """First derivatives, shape (k,)."""

    def hessian(self, theta: FloatArray) -> FloatArray:
        """Second derivatives, shape (k, k)."""

    def expected(self, theta: FloatArray) -> Constraint:
        """Same constraint with the auxiliary value that `theta` predicts."""

    def fluctuate(self, theta: FloatArray, *, rng: np.random.Generator) -> Constraint:
        """Same constraint with an auxiliary value drawn at `theta`."""


@dataclass(frozen=True, eq=False, init=False)
class NormalConstraint:
    """Gaussian measurement of one or several parameters: ``(theta - observed)^T C^-1 (theta - observed) / 2``.

    Parameters
    ----------
    names : str or sequence of str
        The k parameters.
    observed : float or array of shape (k,)
        Measured values.
    sigma : float or array of shape (k,) or (k, k)
        Standard deviations, or a covariance matrix.

    Raises
    ------
    ModelError
        If shapes do not match or the covariance is not positive definite.

    Examples
    --------
    >>> NormalConstraint("mass_scale", 1.0, 0.01).value(np.array([1.02]))
    2.0000000000000036
    """

    names: tuple[str, ...]
    observed: FloatArray
    covariance: FloatArray
    _precision: FloatArray = field(repr=False)

    def __init__(self, names: str | Sequence[str], observed: object, sigma: object) -> None:
        labels = (names,) if isinstance(names, str) else tuple(names)
        values = np.atleast_1d(np.array(observed, dtype=np.float64))
        width = np.atleast_1d(np.array(sigma, dtype=np.float64))
        if width.ndim == 1:
            if not (width > 0).all():
                raise ModelError(f"constraint on {', '.join(labels)}: sigma {width.tolist()} must be above 0")
            width = np.diag(np.broadcast_to(width, values.shape) ** 2)
        if values.shape != (len(labels),) or width.shape != (len(labels), len(labels)):
            raise ModelError(
                f"constraint on {', '.join(labels)}: {values.size} value(s) and a {width.shape} covariance "
                f"for {len(labels)} parameter(s)"
            )
        try:
            np.linalg.cholesky(width)
        except np.linalg.LinAlgError:
            raise ModelError(f"constraint on {', '.join(labels)}: the covariance is not positive definite") from None
        object.__setattr__(self, "names", labels)
        object.__setattr__(self, "observed", values)
        object.__setattr__(self, "covariance", width)
        object.__setattr__(self, "_precision", np.linalg.inv(width))

    def value(self, theta: FloatArray) -> float:
        """Contribution to the nll."""
        pull = theta - self.observed
        return 0.5 * float(pull @ self._precision @ pull)

    def gradient(self, theta: FloatArray) -> FloatArray:
        """First derivatives, shape (k,)."""
        result: FloatArray = self._precision @ (theta - self.observed)
        return result

    def hessian(self, theta: FloatArray) -> FloatArray:
        """Second derivatives, shape (k, k); constant."""
        return self._precision

    def expected(self, theta: FloatArray) -> NormalConstraint:
        """Same constraint with the auxiliary value that `theta` predicts."""
        return NormalConstraint(self.names, theta, self.covariance)

    def fluctuate(self, theta: FloatArray, *, rng: np.random.Generator) -> NormalConstraint:
        """Same constraint with an auxiliary value drawn at `theta`."""
        drawn = rng.multivariate_normal(theta, self.covariance, method="cholesky")
        return NormalConstraint(self.names, drawn, self.covariance)


@dataclass(frozen=True)
class LogNormalConstraint:
    """Log-normal measurement of a positive parameter: ``(ln theta - ln observed)^2 / (2 sigma^2)``.

    Parameters
    ----------
    name : str
        The parameter.
    observed : float
        Measured value, above 0.
    sigma : float
        Standard deviation of its logarithm: the relative uncertainty where it is small.

    Raises
    ------
    ModelError
        If `observed` or `sigma` is not above 0.
    """

    name: str
    observed: float
    sigma: float

    def __post_init__(self) -> None:
        if not (self.observed > 0 and self.sigma > 0):
            raise ModelError(
                f"log-normal constraint on {self.name}: value {self.observed:g} and sigma {self.sigma:g} must be above 0"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The one parameter."""
        return (self.name,)

    def value(self, theta: FloatArray) -> float:
        """Contribution to the nll; infinite where the parameter is not positive."""
        if theta[0] <= 0:
            return float("inf")
        return 0.5 * float(np.log(theta[0] / self.observed) / self.sigma) ** 2

    def gradient(self, theta: FloatArray) -> FloatArray:
        """First derivative, shape (1,); NaN where the parameter is not positive."""
        if theta[0] <= 0:
            return np.full(1, np.nan)
        return np.array([np.log(theta[0] / self.observed) / (self.sigma**2 * theta[0])])

    def hessian(self, theta: FloatArray) -> FloatArray:
        """Second derivative, shape (1, 1); NaN where the parameter is not positive."""
        if theta[0] <= 0:
            return np.full((1, 1), np.nan)
        return np.array([[(1.0 - np.log(theta[0] / self.observed)) / (self.sigma * theta[0]) ** 2]])

    def expected(self, theta: FloatArray) -> LogNormalConstraint:
        """Same constraint with the auxiliary value that `theta` predicts."""
        return replace(self, observed=float(theta[0]))

    def fluctuate(self, theta: FloatArray, *, rng: np.random.Generator) -> LogNormalConstraint:
        """Same constraint with an auxiliary value drawn at `theta`."""
        return replace(self, observed=float(theta[0] * np.exp(self.sigma * rng.standard_normal())))


@dataclass(frozen=True)
class PoissonConstraint:
    """Auxiliary count: ``n ~ Poisson(scale * theta)``, the "on/off" constraint.

    The nll is ``scale theta - n ln(scale theta)`` minus its smallest value.

    Parameters
    ----------
    name : str
        The parameter.
    observed : float
        Auxiliary count, 0 or more (need not be whole in an Asimov set).
    scale : float
        Expected count for a parameter of 1, above 0.

    Raises
    ------
    ModelError
        If `observed` is negative or `scale` not above 0.
    """

    name: str
    observed: float
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not (self.observed >= 0 and self.scale > 0):
            raise ModelError(
                f"Poisson constraint on {self.name}: the count {self.observed:g} must be 0 or more and "
                f"the scale {self.scale:g} above 0"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The one parameter."""
        return (self.name,)

    def value(self, theta: FloatArray) -> float:
        """Contribution to the nll; infinite where the expected count is not positive."""
        mean = self.scale * float(theta[0])
        if mean < 0 or (mean == 0 and self.observed > 0):
            return float("inf")
        n = self.observed
        return float(mean - n - xlogy(n, mean) + xlogy(n, n))

    def gradient(self, theta: FloatArray) -> FloatArray:
        """First derivative, shape (1,); NaN where the value is infinite."""
        if theta[0] < 0 or (theta[0] == 0 and self.observed):
            return np.full(1, np.nan)
        return np.array([self.scale - (self.observed / theta[0] if self.observed else 0.0)])

    def hessian(self, theta: FloatArray) -> FloatArray:
        """Second derivative, shape (1, 1); NaN where the value is infinite."""
        if theta[0] < 0 or (theta[0] == 0 and self.observed):
            return np.full((1, 1), np.nan)
        return np.array([[self.observed / theta[0] ** 2 if self.observed else 0.0]])

    def expected(self, theta: FloatArray) -> PoissonConstraint:
        """Same constraint with the auxiliary count that `theta` predicts."""
        return replace(self, observed=self.scale * float(theta[0]))

    def fluctuate(self, theta: FloatArray, *, rng: np.random.Generator) -> PoissonConstraint:
        """Same constraint with an auxiliary count drawn at `theta`."""
        return replace(self, observed=float(rng.poisson(self.scale * float(theta[0]))))
