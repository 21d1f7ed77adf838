"""Independent auxiliary measurements of many parameters at once: the constraint terms of a HistFactory model.

One object for all of them, since a model has hundreds and a fit evaluates them often. The first are Gaussian, ``x ~ N(theta, sigma)``, the
others counts, ``n ~ Poisson(scale * theta)``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import xlogy

from gbistat.errors import ModelError, nearest
from gbistat.likelihood.mixture import Evaluation

if TYPE_CHECKING:
    from collections.abc import Collection

    from gbistat.typing import FloatArray, IntArray

__all__ = ["AuxiliaryBatch", "AuxiliaryMeasurements"]


@dataclass(frozen=True, eq=False)
class AuxiliaryMeasurements:
    """Gaussian and Poisson measurements, one a parameter.

    Parameters
    ----------
    normal : tuple of str
        Parameters with Gaussian measurements.
    values, sigmas : array of shape (g,)
        Their measured values and standard deviations.
    poisson : tuple of str
        Parameters with auxiliary counts.
    counts, scales : array of shape (q,)
        The counts, and those expected for a parameter of 1.

    Raises
    ------
    ModelError
        If a standard deviation or scale is not above 0, a count is negative, or a parameter is measured twice.
    """

    normal: tuple[str, ...]
    values: FloatArray
    sigmas: FloatArray
    poisson: tuple[str, ...] = ()
    counts: FloatArray = field(default_factory=lambda: np.empty(0))
    scales: FloatArray = field(default_factory=lambda: np.empty(0))

    def __post_init__(self) -> None:
        for name, sigma in zip(self.normal, self.sigmas, strict=True):
            if not sigma > 0:
                raise ModelError(
                    f"the auxiliary measurement of {name} has standard deviation {sigma:g}; it must be above 0"
                )
        for name, count, scale in zip(self.poisson, self.counts, self.scales, strict=True):
            if not (count >= 0 and scale > 0):
                raise ModelError(
                    f"the auxiliary count {count:g} of {name} must be 0 or more, and its scale {scale:g} above 0"
                )
        twice = [name for name in self.names if self.names.count(name) > 1]
        if twice:
            raise ModelError(f"{twice[0]} has two auxiliary measurements")

    @property
    def names(self) -> tuple[str, ...]:
        """The k = g + q parameters."""
        return (*self.normal, *self.poisson)

    def without(self, names: Collection[str]) -> AuxiliaryMeasurements:
        """Leave out the measurements of some parameters, which another likelihood brings along.

        Raises
        ------
        ModelError
            If one of them has none.
        """
        unknown = [name for name in names if name not in self.names]
        if unknown:
            raise ModelError(f"{unknown[0]!r} has no auxiliary measurement; {nearest(unknown[0], self.names)}")
        normal = np.array([name not in names for name in self.normal], dtype=np.bool_)
        poisson = np.array([name not in names for name in self.poisson], dtype=np.bool_)
        return AuxiliaryMeasurements(
            tuple(name for name in self.normal if name not in names),
            self.values[normal],
            self.sigmas[normal],
            tuple(name for name in self.poisson if name not in names),
            self.counts[poisson],
            self.scales[poisson],
        )

    def with_values(self, values: FloatArray) -> AuxiliaryMeasurements:
        """Same measurements with other values of the Gaussian ones, shape (g,)."""
        return replace(self, values=np.array(values, dtype=np.float64))

    def value(self, theta: FloatArray) -> float:
        """Contribution to the nll, 0 at best; infinite where an expected count is not positive."""
        return float(self._batch().value(theta[None])[0])

    def evaluate(self, theta: FloatArray, *, with_value: bool = True) -> Evaluation:
        """Value, gradient (k,) and Hessian (k, k)."""
        gradient, diagonal = self._batch().slopes(theta[None])
        value = self.value(theta) if with_value else np.nan
        return Evaluation(value, gradient[0], np.diag(diagonal[0]))

    def gradient(self, theta: FloatArray) -> FloatArray:
        """First derivatives, shape (k,)."""
        gradient: FloatArray = self._batch().slopes(theta[None])[0][0]
        return gradient

    def hessian(self, theta: FloatArray) -> FloatArray:
        """Second derivatives, shape (k, k)."""
        return np.diag(self._batch().slopes(theta[None])[1][0])

    def expected(self, theta: FloatArray) -> AuxiliaryMeasurements:
        """Same measurements with the values that `theta` predicts."""
        cut = len(self.normal)
        return replace(self, values=np.array(theta[:cut]), counts=self.scales * theta[cut:])

    def fluctuate(self, theta: FloatArray, *, rng: np.random.Generator) -> AuxiliaryMeasurements:
        """Same measurements with values drawn at `theta`."""
        return self.draw(theta, 1, rng=rng).single(0)

    def draw(self, theta: FloatArray, count: int, *, rng: np.random.Generator) -> AuxiliaryBatch:
        """Measurements of many toys at `theta`, of which more begin with the same ones.

        Raises
        ------
        ModelError
            If an expected count is negative.
        """
        cut = len(self.normal)
        mean = self.scales * theta[cut:]
        if not (mean >= 0).all():
            bad = int(np.argmin(mean))
            raise ModelError(
                f"the auxiliary count of {self.poisson[bad]} is expected to be {mean[bad]:.4g}: toys cannot be drawn"
            )
        gaussian, poissonian = rng.spawn(2)
        values = theta[:cut] + self.sigmas * gaussian.standard_normal((count, cut))
        return AuxiliaryBatch(self, values, poissonian.poisson(mean, (count, mean.size)).astype(np.float64))

    def _batch(self) -> AuxiliaryBatch:
        return AuxiliaryBatch(self, self.values[None], self.counts[None])


@dataclass(frozen=True, eq=False)
class AuxiliaryBatch:
    """The same measurements with the values (n, g) and counts (n, q) of n toys."""

    measurements: AuxiliaryMeasurements
    values: FloatArray
    counts: FloatArray

    @property
    def convex(self) -> bool:
        """Whether the nll is self-concordant."""
        return True

    def single(self, row: int) -> AuxiliaryMeasurements:
        """Measurements of one toy."""
        return replace(self.measurements, values=self.values[row], counts=self.counts[row])

    def take(self, rows: IntArray) -> AuxiliaryBatch:
        """Some of the toys."""
        return replace(self, values=self.values[rows], counts=self.counts[rows])

    def value(self, theta: FloatArray) -> FloatArray:
        """The nll of each toy, shape (n,), at parameters of shape (n, k)."""
        cut = len(self.measurements.normal)
        gaussian = 0.5 * (((theta[:, :cut] - self.values) / self.measurements.sigmas) ** 2).sum(axis=1)
        mean = self.measurements.scales * theta[:, cut:]
        good = (mean > 0) | ((mean == 0) & (self.counts == 0))
        safe = np.where(mean > 0, mean, 1.0)
        terms = mean - self.counts + xlogy(self.counts, self.counts) - xlogy(self.counts, safe)
        return np.asarray(gaussian + np.where(good, terms, np.inf).sum(axis=1))

    def derivatives(self, theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Gradient (n, k) and Hessian (n, k, k)."""
        gradient, diagonal = self.slopes(theta)
        return gradient, diagonal[:, :, None] * np.eye(diagonal.shape[1])

    def slopes(self, theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Gradient, and diagonal of the Hessian, both of shape (n, k); NaN where an expected count is not positive."""
        own = self.measurements
        cut = len(own.normal)
        precision = 1.0 / own.sigmas**2
        x = theta[:, cut:]
        some = self.counts > 0
        safe = np.where(x > 0, x, np.nan)
        zero = np.where(x < 0, np.nan, 0.0)
        first = own.scales - np.where(some, self.counts / safe, zero)
        second = np.where(some, self.counts / safe**2, zero)
        gaussian = (theta[:, :cut] - self.values) * precision
        curvature = np.broadcast_to(precision, gaussian.shape)
        return np.concatenate([gaussian, first], axis=1), np.concatenate([curvature, second], axis=1)
