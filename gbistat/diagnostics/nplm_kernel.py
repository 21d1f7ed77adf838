"""Kernel of NPLM: its width, and Nystroem features of a pooled sample, the same for every labelling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import eigh, solve_triangular

from gbistat.errors import OptionError

if TYPE_CHECKING:
    from gbistat.typing import FloatArray

__all__ = ["KernelFeatures", "NplmOptions", "kernel_features", "kernel_width"]

PAIRS = 4000


@dataclass(frozen=True)
class NplmOptions:
    """Kernel, penalty and null distribution.

    Parameters
    ----------
    centres : int
        Nystroem centres M; at least the square root of the number of events.
    width_percentiles : tuple of float
        Kernel widths as percentiles of the distances between standardised reference events; several are combined.
    penalty : float
        lambda; raised tenfold while a fit does not end in a finite t of 0 or more.
    cut : float
        Smallest eigenvalue of the kernel kept, relative to the largest.
    permutations : int
        Of the labels.
    """

    centres: int = 500
    width_percentiles: tuple[float, ...] = (90.0,)
    penalty: float = 1e-6
    cut: float = 1e-10
    permutations: int = 300

    def __post_init__(self) -> None:
        if self.centres < 2 or self.permutations < 19:
            raise OptionError(f"centres = {self.centres}, permutations = {self.permutations}: give at least 2 and 19")
        if not self.width_percentiles or not all(0 < p <= 100 for p in self.width_percentiles):
            raise OptionError(f"width percentiles {self.width_percentiles} must be in (0, 100]")
        if not self.penalty > 0:
            raise OptionError(f"penalty {self.penalty:g} must be positive")


def kernel_width(reference: FloatArray, percentile: float, *, rng: np.random.Generator) -> float:
    """Percentile of the Euclidean distances between random pairs of standardised reference events.

    Parameters
    ----------
    reference : array of shape (n, d)
        Standardised reference events.
    percentile : float
        In (0, 100].
    rng : numpy.random.Generator
        Chooses the pairs.
    """
    first, second = rng.integers(len(reference), size=(2, PAIRS))
    distances = np.sqrt(np.sum((reference[first] - reference[second]) ** 2, axis=1))
    return float(np.percentile(distances[first != second], percentile))


@dataclass(frozen=True, eq=False)
class KernelFeatures:
    """Nystroem features of a pooled sample, whitened.

    Parameters
    ----------
    values : array of shape (n, r)
        Features.
    penalty : array of shape (r, r)
        Matrix of the penalty in the whitened space; r is the number of eigenvalues kept.
    """

    values: FloatArray
    penalty: FloatArray

    @property
    def rank(self) -> int:
        """Number of features."""
        return int(self.values.shape[1])


def kernel_features(
    pool: FloatArray, width: float, share: float, weight: float, options: NplmOptions, *, rng: np.random.Generator
) -> KernelFeatures:
    """Features of all events: the same for every labelling.

    Parameters
    ----------
    pool : array of shape (n, d)
        Standardised data and reference events.
    width : float
        Of the Gaussian kernel.
    share : float
        Share of data among the events.
    weight : float
        a, of a reference event.
    options : NplmOptions
        Centres, penalty and cut.
    rng : numpy.random.Generator
        Draws the centres from the pool.
    """
    centres = pool[rng.choice(len(pool), size=min(options.centres, len(pool)), replace=False)]
    values, vectors = eigh(_kernel(centres, centres, width))
    kept = values > options.cut * values[-1]
    phi = _kernel(pool, centres, width) @ (vectors[:, kept] / np.sqrt(values[kept]))
    # Hessian at f = 0, averaged over labellings: the coordinates in which a step of length 1 is right.
    scale = 0.25 * (weight * (1.0 - share) + share) / len(pool)
    hessian = scale * (phi.T @ phi) + options.penalty * np.eye(phi.shape[1])
    factor = np.linalg.cholesky(hessian)
    inverse = solve_triangular(factor, np.eye(len(factor)), lower=True)
    return KernelFeatures(phi @ inverse.T, options.penalty * (inverse @ inverse.T))


def _kernel(x: FloatArray, y: FloatArray, width: float) -> FloatArray:
    square = np.sum(x**2, axis=1)[:, None] + np.sum(y**2, axis=1) - 2.0 * (x @ y.T)
    result: FloatArray = np.exp(-0.5 * np.maximum(square, 0.0) / width**2)
    return result
