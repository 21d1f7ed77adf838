"""Critical values as a smooth function of the parameters, from one campaign of toys over all of them.

For a confidence set in two or three parameters (the signal strength and its masses) brute force needs thousands of toys at
each point of a grid. Instead one toy is thrown at each of many points of a design, and the quantile of the test statistic is
regressed on the parameters: N. Dalmasso et al., arXiv:2107.03920 (LF2I). The quantile of ``r = sqrt(t)``, which varies
slowly, is a sum of penalised B-splines (:mod:`gbistat.inference.quantile_splines`), after a monotonic map ``r / (1 + r / s)`` that keeps
the few very large and infinite statistics of small samples from bending it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from scipy.special import expit

from gbistat.errors import FitFailed, OptionError
from gbistat.inference.quantile_splines import SplineProblem, fit_logistic, fit_quantile
from gbistat.inference.tensor_splines import TensorSplines

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gbistat.typing import BoolArray, FloatArray

__all__ = [
    "CriticalOptions",
    "CriticalValues",
    "Inclusion",
    "OneToy",
    "fit_critical_values",
    "fit_inclusion",
    "latin_hypercube",
    "throw_design",
]


SATURATED = 0.99
"""Share of the map's range from which on a critical value is infinite: there are more infinite statistics than 1 - cl."""


class OneToy(Protocol):
    """Toys at one point of the design."""

    def __call__(self, point: FloatArray, n_toys: int, *, rng: np.random.Generator) -> FloatArray:
        """Test statistic of the point itself on toys thrown there, shape (n_toys,); NaN for a failed toy."""


@dataclass(frozen=True)
class CriticalOptions:
    """How critical values are smoothed.

    Parameters
    ----------
    pieces : int or tuple of int, default 6
        Polynomial pieces along each axis.
    penalty : float, optional
        Strength of the penalty; chosen by Schwarz's criterion for quantile regression if not given.
    """

    pieces: int | tuple[int, ...] = 6
    penalty: float | None = None

    def __post_init__(self) -> None:
        if self.penalty is not None and not self.penalty >= 0:
            raise OptionError(f"penalty {self.penalty:g} must be 0 or more")

    def along(self, dimension: int) -> tuple[int, ...]:
        """Pieces along each of the axes."""
        return self.pieces if isinstance(self.pieces, tuple) else (self.pieces,) * dimension


@dataclass(frozen=True, eq=False)
class CriticalValues:
    """Critical values of a test statistic over parameters.

    Parameters
    ----------
    cls : tuple of float
        Confidence levels, rising.
    basis : TensorSplines
        On the region of the design.
    scale : float
        s of the map ``sqrt(t) -> sqrt(t) / (1 + sqrt(t) / s)``.
    coefficients : array of shape (levels, size)
        Of the quantiles after that map.
    covariances : array of shape (levels, size, size)
        Their sampling covariances.
    penalties : tuple of float
        Strengths used.
    n_toys, n_failed : int
        Toys behind it, and how many had no statistic.
    """

    cls: tuple[float, ...]
    basis: TensorSplines
    scale: float
    coefficients: FloatArray
    covariances: FloatArray
    penalties: tuple[float, ...]
    n_toys: int
    n_failed: int = 0

    def _level(self, cl: float) -> int:
        for index, known in enumerate(self.cls):
            if abs(known - cl) < 1e-9:
                return index
        raise OptionError(
            f"critical values were not fitted at {cl:g}; there are {', '.join(f'{c:g}' for c in self.cls)}"
        )

    def value(self, points: FloatArray, cl: float) -> FloatArray:
        """Critical value at points (n, d), shape (n,); those of a higher level are never below those of a lower one.

        Raises
        ------
        OptionError
            If the level was not fitted, or a point lies outside of the region.
        """
        level = self._level(cl)
        # Quantiles fitted one by one may cross; sorting them is never further from the truth (V. Chernozhukov,
        # I. Fernandez-Val, A. Galichon, Econometrica 78 (2010) 1093).
        y = np.sort(self.basis.matrix(points) @ self.coefficients.T, axis=1)[:, level]
        return self._roots(y) ** 2

    def _roots(self, y: FloatArray) -> FloatArray:
        """Inverse of the map; infinite where it is at its end."""
        share = np.clip(y / self.scale, 0.0, 1.0)
        with np.errstate(divide="ignore"):
            result: FloatArray = np.where(share < SATURATED, self.scale * share / (1.0 - share), np.inf)
        return result

    def error(self, points: FloatArray, cl: float) -> FloatArray:
        """Monte Carlo error of the critical value at points (n, d), shape (n,); without the bias of the smoothing."""
        level = self._level(cl)
        rows = self.basis.matrix(points)
        variance = np.asarray((rows @ self.covariances[level] * rows.toarray()).sum(axis=1))
        root = np.sqrt(self.value(points, cl))
        result: FloatArray = 2.0 * root * (1.0 + root / self.scale) ** 2 * np.sqrt(np.maximum(variance, 0.0))
        return result

    def accepts(self, points: FloatArray, t_observed: FloatArray, cl: float) -> BoolArray:
        """Whether points (n, d) are in the confidence set, given the observed statistic at each (n,)."""
        mask: BoolArray = np.asarray(t_observed) <= self.value(points, cl)
        return mask


@dataclass(frozen=True, eq=False)
class Inclusion:
    """Probability of being covered as a smooth function of the parameters: a map of the coverage.

    Parameters
    ----------
    basis : TensorSplines
        On the region of the design.
    coefficients : array of shape (size,)
        Of the log odds.
    covariance : array of shape (size, size)
        Their sampling covariance.
    """

    basis: TensorSplines
    coefficients: FloatArray
    covariance: FloatArray

    def value(self, points: FloatArray) -> FloatArray:
        """Coverage at points (n, d), shape (n,)."""
        result: FloatArray = expit(self.basis.matrix(points) @ self.coefficients)
        return result

    def error(self, points: FloatArray) -> FloatArray:
        """Its Monte Carlo error, shape (n,)."""
        rows = self.basis.matrix(points)
        variance = np.asarray((rows @ self.covariance * rows.toarray()).sum(axis=1))
        p = self.value(points)
        result: FloatArray = p * (1.0 - p) * np.sqrt(np.maximum(variance, 0.0))
        return result


def latin_hypercube(
    low: Sequence[float] | FloatArray, high: Sequence[float] | FloatArray, n: int, *, rng: np.random.Generator
) -> FloatArray:
    """Points that fill a box evenly along every axis, shape (n, d).

    Raises
    ------
    OptionError
        If there are no points to make or the box is empty.
    """
    a, b = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    if n < 1 or a.shape != b.shape or not (a < b).all():
        raise OptionError(f"{n} points in a box from {a.tolist()} to {b.tolist()}")
    cells = np.stack([rng.permutation(n) for _ in range(a.size)], axis=1)
    result: FloatArray = a + (b - a) * (cells + rng.random((n, a.size))) / n
    return result


def throw_design(
    toy: OneToy,
    design: FloatArray,
    *,
    rng: np.random.Generator,
    toys_per_point: int = 1,
    mapper: Callable[..., object] = map,
) -> tuple[FloatArray, FloatArray]:
    """Throw toys at every point of a design.

    Parameters
    ----------
    toy : OneToy
        Test statistic of a point on toys thrown there.
    design : array of shape (n, d)
        The points.
    rng : numpy.random.Generator
        Every point has its own child, so that the result does not depend on who does which point.
    toys_per_point : int, default 1
        Toys at each point.
    mapper : callable
        ``map``, or the ``map`` of an executor.

    Returns
    -------
    tuple of array
        Points (n toys_per_point, d), each repeated, and the statistics (n toys_per_point,).

    Raises
    ------
    OptionError
        If there is no toy to throw.
    """
    points = np.atleast_2d(np.asarray(design, dtype=np.float64))
    if toys_per_point < 1 or points.shape[0] < 1:
        raise OptionError(f"{toys_per_point} toys at each of {points.shape[0]} points: nothing to do")
    work = _Throw(toy, toys_per_point)
    results = list(mapper(work, points, rng.spawn(points.shape[0])))  # type: ignore[call-overload]
    return np.repeat(points, toys_per_point, axis=0), np.concatenate(results)


@dataclass(frozen=True)
class _Throw:
    """One point of the design; an instance, so that it can be sent to another process."""

    toy: OneToy
    n_toys: int

    def __call__(self, point: FloatArray, rng: np.random.Generator) -> FloatArray:
        values = np.asarray(self.toy(point, self.n_toys, rng=rng), dtype=np.float64)
        if values.shape != (self.n_toys,):
            raise OptionError(f"{self.n_toys} toys gave statistics of shape {values.shape}")
        return values


def fit_critical_values(
    points: FloatArray,
    statistics: FloatArray,
    *,
    cls: Sequence[float] = (0.6827, 0.90, 0.95),
    low: Sequence[float] | FloatArray | None = None,
    high: Sequence[float] | FloatArray | None = None,
    options: CriticalOptions | None = None,
) -> CriticalValues:
    """Regress quantiles of a test statistic on the parameters.

    Parameters
    ----------
    points : array of shape (n, d)
        True parameters of each toy.
    statistics : array of shape (n,)
        Test statistic of each toy at its own true parameters, 0 or more; NaN for a failed toy, which is left out and counted.
    cls : sequence of float
        Confidence levels.
    low, high : array of shape (d,), optional
        Region; by default the smallest box around the points.
    options : CriticalOptions, optional
        Smoothing.

    Returns
    -------
    CriticalValues
        With Monte Carlo errors.

    Raises
    ------
    OptionError
        If shapes differ, a level is not between 0 and 1, or a statistic is negative.
    FitFailed
        If there are too few toys for a level or the fit does not settle.

    Notes
    -----
    The answer is as good as the smoothing: where the critical value has a kink (a discrete statistic, a few expected events), look
    at ``fit_inclusion`` on an independent set of toys, which maps the coverage that results. An infinite statistic counts as
    larger than all others.
    """
    x, t = np.atleast_2d(np.asarray(points, dtype=np.float64)), np.asarray(statistics, dtype=np.float64)
    if x.shape[0] != t.size or t.ndim != 1:
        raise OptionError(f"points of shape {x.shape} and statistics of shape {t.shape} do not fit together")
    levels = tuple(sorted(float(cl) for cl in cls))
    if not levels or not all(0.0 < cl < 1.0 for cl in levels):
        raise OptionError(f"confidence levels {levels} must lie between 0 and 1")
    good = ~np.isnan(t)
    x, t, failed = x[good], t[good], int((~good).sum())
    if (t < -1e-6).any():
        raise OptionError(f"{int((t < -1e-6).sum())} statistics are negative: a likelihood ratio cannot be")
    chosen = options or CriticalOptions()
    basis = TensorSplines(
        x.min(axis=0) if low is None else np.asarray(low, dtype=np.float64),
        x.max(axis=0) if high is None else np.asarray(high, dtype=np.float64),
        chosen.along(x.shape[1]),
    )
    beyond = t.size * (1.0 - max(levels))
    if beyond < 20:
        raise FitFailed(
            f"{t.size} toys leave {beyond:.1f} beyond the {max(levels):g} quantile; throw at least {20 / (1 - max(levels)):.0f}"
        )
    root = np.sqrt(np.maximum(t, 0.0))
    finite = root[np.isfinite(root)]
    scale = 3.0 * float(np.quantile(finite, max(levels))) if finite.size else 0.0
    if not scale > 0:
        raise FitFailed("the statistics are infinite or all 0: there is no critical value to fit")
    with np.errstate(invalid="ignore"):
        y = np.where(np.isfinite(root), root / (1.0 + root / scale), scale)
    problem = SplineProblem(basis.rows(x), y, basis.roughness())
    fits = [fit_quantile(problem, cl, chosen.penalty) for cl in levels]
    return CriticalValues(
        levels,
        basis,
        scale,
        np.array([fit[0] for fit in fits]),
        np.array([fit[1] for fit in fits]),
        tuple(fit[2] for fit in fits),
        int(t.size),
        failed,
    )


def fit_inclusion(
    points: FloatArray,
    included: BoolArray,
    *,
    low: Sequence[float] | FloatArray | None = None,
    high: Sequence[float] | FloatArray | None = None,
    options: CriticalOptions | None = None,
) -> Inclusion:
    """Map the coverage: logistic regression of "the confidence set holds the truth" on the true parameters.

    The diagnostic branch of LF2I (arXiv:2107.03920): run it on toys that did not make the critical values.

    Parameters
    ----------
    points : array of shape (n, d)
        True parameters of each toy.
    included : array of bool, shape (n,)
        Whether its confidence set holds them.
    low, high : array of shape (d,), optional
        Region; by default the smallest box around the points.
    options : CriticalOptions, optional
        Smoothing; the penalty is chosen by Akaike's criterion if not given.

    Raises
    ------
    OptionError
        If shapes differ.
    FitFailed
        If the fit does not settle.
    """
    x, y = np.atleast_2d(np.asarray(points, dtype=np.float64)), np.asarray(included, dtype=np.float64)
    if x.shape[0] != y.size or y.ndim != 1:
        raise OptionError(f"points of shape {x.shape} and flags of shape {y.shape} do not fit together")
    chosen = options or CriticalOptions()
    basis = TensorSplines(
        x.min(axis=0) if low is None else np.asarray(low, dtype=np.float64),
        x.max(axis=0) if high is None else np.asarray(high, dtype=np.float64),
        chosen.along(x.shape[1]),
    )
    problem = SplineProblem(basis.rows(x), y, basis.roughness())
    c, covariance = fit_logistic(problem, chosen.penalty)
    return Inclusion(basis, c, covariance)
