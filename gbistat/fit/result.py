"""What a fit takes and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from gbistat.errors import FitFailed, OptionError, ParameterError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gbistat.typing import FloatArray, Json

__all__ = ["FitOptions", "FitResult"]


@dataclass(frozen=True)
class FitOptions:
    """Settings of a minimisation.

    Parameters
    ----------
    minimizer : {"newton", "migrad"}, default "newton"
        Newton steps on the exact gradient and Hessian, or iminuit's MIGRAD with the exact gradient, started where
        Newton's steps ended.
    edm : float, default 1e-9
        Estimated vertical distance to the minimum, in units of the nll, at which the steps stop. (MIGRAD's own goal is
        about 1e-4 to 1e-3; differences of test statistics need better.)
    max_iterations : int, default 100
        Newton steps before giving up and handing over to MIGRAD.
    strategy : {0, 1, 2}, default 0
        Strategy of MIGRAD. 0 is enough, since gradient and covariance are exact here.
    """

    minimizer: Literal["newton", "migrad"] = "newton"
    edm: float = 1e-9
    max_iterations: int = 100
    strategy: Literal[0, 1, 2] = 0

    def __post_init__(self) -> None:
        if self.minimizer not in ("newton", "migrad"):
            raise OptionError(
                f"minimizer {self.minimizer!r} is unknown; {nearest(self.minimizer, ('newton', 'migrad'))}"
            )
        if not self.edm > 0:
            raise OptionError(f"edm {self.edm:g} must be above 0")
        if self.max_iterations < 1:
            raise OptionError(f"max_iterations {self.max_iterations} must be at least 1")


@dataclass(frozen=True, eq=False)
class FitResult:
    """Minimum of a negative log-likelihood.

    Parameters
    ----------
    names : tuple of str
        The p parameters in the order of the likelihood.
    values : array of shape (p,)
        Where the minimum is.
    errors : array of shape (p,)
        Square root of the diagonal of the covariance; 0 for a parameter that was held fixed or ended at a
        wall, infinite for one that such a wall leaves without meaning (a mass at a strength of 0).
    covariance : array of shape (p, p)
        Inverse of the exact Hessian of the nll over the free parameters; zero rows for the others.
    nll : float
        Value at the minimum.
    valid : bool
        Whether this is a minimum with a positive-definite Hessian.
    message : str
        Why it is not valid; empty otherwise.
    fixed : tuple of str
        Parameters held fixed in this fit.
    at_bound : tuple of str
        Parameters that ended at an end of their range; their errors mean little.
    n_calls : int
        Evaluations of the likelihood.
    edm : float
        Estimated vertical distance to the minimum.
    """

    names: tuple[str, ...]
    values: FloatArray
    errors: FloatArray
    covariance: FloatArray
    nll: float
    valid: bool
    message: str = ""
    fixed: tuple[str, ...] = ()
    at_bound: tuple[str, ...] = ()
    n_calls: int = 0
    edm: float = float("nan")

    def _index(self, name: str) -> int:
        try:
            return self.names.index(name)
        except ValueError:
            raise ParameterError(f"the fit has no parameter {name!r}; {nearest(name, self.names)}") from None

    def value(self, name: str) -> float:
        """Fitted value of one parameter."""
        return float(self.values[self._index(name)])

    def error(self, name: str) -> float:
        """Error of one parameter from the Hessian; 0 if it was fixed."""
        return float(self.errors[self._index(name)])

    def correlation(self, first: str, second: str) -> float:
        """Correlation coefficient of two parameters; 0 if one was fixed."""
        i, j = self._index(first), self._index(second)
        scale = float(self.errors[i] * self.errors[j])
        return float(self.covariance[i, j]) / scale if scale > 0 else 0.0

    def as_dict(self) -> Mapping[str, float]:
        """Values by name."""
        return dict(zip(self.names, map(float, self.values), strict=True))

    def raise_if_invalid(self) -> FitResult:
        """Return the result itself, or raise if it is not a minimum.

        Raises
        ------
        FitFailed
            With the reason.
        """
        if not self.valid:
            raise FitFailed(f"the fit is not valid: {self.message}")
        return self

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "parameters": {
                name: {"value": float(v), "error": float(e), "fixed": name in self.fixed}
                for name, v, e in zip(self.names, self.values, self.errors, strict=True)
            },
            "nll": float(self.nll),
            "valid": self.valid,
            "message": self.message,
            "at_bound": list(self.at_bound),
            "edm": float(self.edm) if np.isfinite(self.edm) else None,
            "covariance": self.covariance.tolist(),
        }
