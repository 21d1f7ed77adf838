r"""What is measured about a generator before anyone relies on it, on events that trained nothing.

Only :class:`gbistat.terms.protocols.ConditionalDensity` is needed, so an exported flow, a SIGMA model and a closed form are
asked the same questions: is p(x|m) normalised, how probable are held-out events, can a classifier tell samples from events.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np

from gbistat import extras
from gbistat.errors import EventsError, OptionError
from gbistat.terms.generator_quality import LikelihoodBin, Normalisation, RegionTest
from gbistat.training.two_sample import two_sample_test

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.data.transforms import FeatureTransform
    from gbistat.terms.generator_quality import RegionKind
    from gbistat.terms.protocols import ConditionalDensity
    from gbistat.training.two_sample import TwoSampleOptions
    from gbistat.typing import FloatArray

__all__ = ["held_out_likelihood", "likelihood_bins", "normalisation", "region_test"]

SCRAMBLES = 8
COMPONENTS = 12
WIDE = 0.15
"""Share of the proposal that is three times as wide: no tail of the density may lie outside the bulk of the proposal."""


def normalisation(
    density: ConditionalDensity,
    mass: float,
    *,
    rng: np.random.Generator,
    transform: FeatureTransform | None = None,
    n_points: int = 32_768,
    n_samples: int = 4000,
) -> Normalisation:
    r"""Integral of p(x|m) over x at one mass, by importance sampling.

    .. math::

        \int p(x|m) \, dx = E_q[ p(x|m) / q(x) ]

    The proposal q is a mixture of Gaussians fitted to samples of the generator, with a wide part; it is drawn along scrambled
    Sobol' points, and the error is the scatter of eight independent scrambles.

    Parameters
    ----------
    density : ConditionalDensity
        The generator.
    mass : float
        m.
    rng : numpy.random.Generator
        Samples, fit and scrambles.
    transform : FeatureTransform, optional
        Space of the proposal; its range must hold that of the generator. Without it the features themselves.
    n_points : int, default 32768
        Points in all; rounded so that each scramble has a power of two.
    n_samples : int, default 4000
        Samples to which the proposal is fitted.

    Raises
    ------
    OptionError
        If there are too few points or samples.
    MissingExtra
        If scikit-learn is not installed.

    Notes
    -----
    Mass of the density that no sample shows (a spike far away) is not found by any importance sampling.
    """
    from scipy.special import ndtri
    from scipy.stats import qmc

    if n_points < 64 * SCRAMBLES or n_samples < 200:
        raise OptionError(f"n_points = {n_points} and n_samples = {n_samples}: give at least {64 * SCRAMBLES} and 200")
    x = density.sample(np.full(n_samples, mass), rng=rng)
    y = x if transform is None else transform.forward(x[transform.inside(x)])
    d = y.shape[1]
    mixture = extras.sklearn_mixture().GaussianMixture(
        min(COMPONENTS, n_samples // 50),
        reg_covar=1e-6,
        random_state=int(rng.integers(2**31 - 1)),
        max_iter=60,
        tol=1e-2,
    )
    mixture.fit(y)
    shares = np.concatenate([(1.0 - WIDE) * mixture.weights_, WIDE * mixture.weights_])
    means = np.concatenate([mixture.means_] * 2)
    roots = np.linalg.cholesky(np.concatenate([mixture.covariances_, 9.0 * mixture.covariances_]))
    per_scramble = 2 ** round(math.log2(n_points / SCRAMBLES))
    estimates = []
    for child in rng.spawn(SCRAMBLES):
        u = qmc.Sobol(d + 1, rng=child).random(per_scramble)
        component = np.searchsorted(np.cumsum(shares)[:-1], u[:, 0])
        # A Sobol' point may be 0, whose normal quantile is infinite.
        normal = ndtri(np.clip(u[:, 1:], 1e-12, 1.0 - 1e-12))
        points = means[component] + np.einsum("nij,nj->ni", roots[component], normal)
        weights = np.exp(_log_density(density, points, mass, transform) - _log_mixture(points, shares, means, roots))
        estimates.append(float(np.mean(weights)))
    return Normalisation(mass, float(np.mean(estimates)), float(np.std(estimates, ddof=1) / math.sqrt(SCRAMBLES)))


def held_out_likelihood(
    density: ConditionalDensity, features: FloatArray, mass: FloatArray, edges: Sequence[float]
) -> tuple[LikelihoodBin, ...]:
    """Mean of ln p(x|m) in bins of the mass; a bin without events is left out.

    Parameters
    ----------
    density : ConditionalDensity
        The generator.
    features, mass : array of shape (n, d), (n,)
        Held-out events.
    edges : sequence of float
        Edges of the bins, increasing.

    Raises
    ------
    OptionError
        If the edges do not increase.
    """
    inside = (mass >= edges[0]) & (mass < edges[-1])
    return likelihood_bins(density.log_prob(features[inside], mass[inside]), mass[inside], edges)


def likelihood_bins(log_prob: FloatArray, mass: FloatArray, edges: Sequence[float]) -> tuple[LikelihoodBin, ...]:
    """As `held_out_likelihood`, from ln p(x|m) of each event.

    Raises
    ------
    OptionError
        If the edges do not increase.
    """
    grid = np.asarray(edges, dtype=np.float64)
    if grid.size < 2 or np.any(np.diff(grid) <= 0):
        raise OptionError(f"edges {list(edges)} must be two or more increasing masses")
    rows = []
    for low, high in itertools.pairwise(grid.tolist()):
        values = log_prob[(mass >= low) & (mass < high)]
        if values.size == 0:
            continue
        good = values[np.isfinite(values)]
        mean = float(np.mean(good)) if good.size else math.nan
        error = float(np.std(good, ddof=1) / math.sqrt(good.size)) if good.size > 1 else math.nan
        rows.append(LikelihoodBin(low, high, int(good.size), int(values.size - good.size), mean, error))
    return tuple(rows)


def region_test(
    density: ConditionalDensity,
    features: FloatArray,
    mass: FloatArray,
    *,
    kind: RegionKind,
    edges: tuple[float, float],
    blinded: bool,
    rng: np.random.Generator,
    options: TwoSampleOptions | None = None,
) -> RegionTest:
    """Classifier two-sample test of events in a region against samples at their masses.

    Parameters
    ----------
    density : ConditionalDensity
        The generator.
    features, mass : array of shape (n, d), (n,)
        Events, none of which trained the generator; those outside `edges` are not used.
    kind : {"sidebands", "pseudo-window", "signal region"}
        What the region is; the signal region only where the events are simulated background.
    edges : (float, float)
        Range of the mass.
    blinded : bool
        Whether no event of the region trained the generator.
    rng : numpy.random.Generator
        Samples, folds, permutations.
    options : TwoSampleOptions, optional
        Classifier.

    Raises
    ------
    EventsError
        If there are too few events.
    """
    inside = (mass >= edges[0]) & (mass < edges[1])
    if not inside.any():
        raise EventsError(f"no event in {edges[0]:g}-{edges[1]:g}; give held-out events of that region")
    x, m = features[inside], mass[inside]
    test = two_sample_test(x, density.sample(m, rng=rng), m, rng=rng, options=options)
    return RegionTest(kind, float(edges[0]), float(edges[1]), blinded, test)


def _log_density(
    density: ConditionalDensity, points: FloatArray, mass: float, transform: FeatureTransform | None
) -> FloatArray:
    """ln of the density per unit of the proposal's space."""
    if transform is None:
        return density.log_prob(points, np.full(len(points), mass))
    x = transform.inverse(points)
    inside = transform.inside(x)
    result = np.full(len(points), -np.inf)
    result[inside] = density.log_prob(x[inside], np.full(int(inside.sum()), mass)) - transform.log_abs_det(x[inside])
    return result


def _log_mixture(points: FloatArray, shares: FloatArray, means: FloatArray, roots: FloatArray) -> FloatArray:
    d = points.shape[1]
    terms = []
    for share, mean, root in zip(shares, means, roots, strict=True):
        normal = np.linalg.solve(root, (points - mean).T)
        terms.append(
            math.log(share)
            - 0.5 * np.sum(normal**2, axis=0)
            - np.sum(np.log(np.diag(root)))
            - 0.5 * d * math.log(2.0 * math.pi)
        )
    total: FloatArray = np.logaddexp.reduce(terms, axis=0)
    return total
