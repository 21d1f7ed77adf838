r"""Normalisation of a parametrised ratio: kappa at every point of its grid from reference events, smooth, with its error.

.. math:: \kappa(\theta)^{-1} = E_b[e^{\ell(x; \theta)}\, b(m)]

with the network's log ratio l and b the ratio of the mass densities, so that the whole density of the signal is normalised in the
window (the prior-ratio trick of arXiv:2405.08889). A finite number of reference events makes it noisy, and noise of a few per
cent moves mu by as much as its statistical error: an error :math:`\delta` of :math:`\ln\kappa` moves it by
:math:`\delta\,\sigma_\mu^2` events. But kappa comes from the training shares and the calibration of one network, which vary slowly, and
the noise from single events, which is local. So ln kappa is a polynomial in the parameters, and its degree is chosen by cross-validation over
reference *events* (T. Hastie, R. Tibshirani and J. Friedman, The Elements of Statistical Learning, 2009, section 7.10, with the rule of one
standard error): a fold of the events that the polynomial does not know gives :math:`E_b[r]`, which the polynomial's kappa should make 1. Nodes are no
independent data: the same events stand behind all of them, and criteria that count nodes, such as Akaike's, follow the noise of events.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.polynomial import chebyshev

from gbistat.errors import ModelError
from gbistat.likelihood.surface import RatioSurface, node_values

if TYPE_CHECKING:
    from gbistat.data.events import Events
    from gbistat.likelihood.surface import ParametrisedRatio
    from gbistat.likelihood.theta_grid import ThetaGrid
    from gbistat.typing import FloatArray

__all__ = ["FEWEST", "Kappa", "normalised_surface", "smooth_kappa"]

MAX_DEGREE = 4
FOLDS = 5
FEWEST = 30.0
"""Effective number of events from which a node counts: a mean of so skewed a variable over fewer is mostly too small, and says so nowhere."""


@dataclass(frozen=True, eq=False)
class Kappa:
    """Normalisation of a ratio at the nodes of its grid.

    Parameters
    ----------
    log_kappa : array of the grid's shape
        What is added to the log ratio: the smooth function.
    error : array of the grid's shape
        Its standard deviation.
    raw, raw_error : arrays of the grid's shape
        Node by node, without smoothing.
    effective_size : array of the grid's shape
        ``(sum r)^2 / sum r^2``: reference events that matter at each node.
    degree : int
        Total degree of the polynomial; -1 where the nodes themselves were taken.
    scores : tuple of float
        By degree: mean over nodes and folds of ``(kappa E_b[r] - 1)^2``, E_b over a fold that the polynomial does not know, in units of its variance.
    """

    log_kappa: FloatArray
    error: FloatArray
    raw: FloatArray
    raw_error: FloatArray
    effective_size: FloatArray
    degree: int
    scores: tuple[float, ...] = ()


def smooth_kappa(
    grid: ThetaGrid, ratio: FloatArray, share: FloatArray, raw: FloatArray, *, max_degree: int = MAX_DEGREE
) -> tuple[FloatArray, FloatArray, int, tuple[float, ...]]:
    """Polynomial through ln kappa of the nodes whose degree is that of the best prediction for other events.

    Parameters
    ----------
    grid : ThetaGrid
        The g nodes.
    ratio : array of shape (g, n)
        Ratio of each reference event at each node, in units of the mean over events.
    share : array of shape (n,)
        Weights of the events, which sum to 1.
    raw : array of shape (g,)
        ln kappa of each node.
    max_degree : int, default 4
        Largest total degree.

    Returns
    -------
    array (g,), array (g,), int, tuple of float
        Polynomial at the nodes, its standard deviation from the covariance of the events, its degree, and the score of each degree.

    Notes
    -----
    Each node counts with its effective number of events.
    """
    size = 1.0 / (ratio**2 @ share**2)
    counts = np.where(size >= FEWEST, size, 0.0)
    if not counts.any():
        counts = size
    folds = np.arange(share.size) % FOLDS
    means = np.array([(ratio[:, folds == k] @ share[folds == k]) / share[folds == k].sum() for k in range(FOLDS)])
    weights = np.array([share[folds == k].sum() for k in range(FOLDS)])
    projections, losses = [], []
    for degree in range(max_degree + 1):
        basis = _polynomials(grid, degree)
        if basis.shape[1] > np.count_nonzero(counts):
            break
        projections.append(_projection(basis, counts))
        loss = []
        for k in range(FOLDS):
            rest = weights.sum() - weights[k]
            others = (weights @ means - weights[k] * means[k]) / rest
            with np.errstate(divide="ignore", invalid="ignore"):
                known = np.where(counts > 0, raw - np.log(others), 0.0)
            kappa = np.exp(basis @ (projections[-1] @ known) - raw)
            loss.append(float(counts @ (kappa * means[k] - 1.0) ** 2) / (FOLDS * np.count_nonzero(counts)))
        losses.append(loss)
    table = np.array(losses)
    scores = table.mean(axis=1)
    best = int(scores.argmin())
    spread = (table - table[best]).std(axis=1, ddof=1) / np.sqrt(FOLDS)
    degree = next(d for d in range(best + 1) if scores[d] <= scores[best] + spread[d])
    basis = _polynomials(grid, degree)
    single = projections[degree] @ ((ratio - 1.0) * share)
    error: FloatArray = np.sqrt(np.einsum("ij,jk,ik->i", basis, single @ single.T, basis))
    return basis @ (projections[degree] @ raw), error, degree, tuple(float(x) for x in scores)


def _projection(basis: FloatArray, counts: FloatArray) -> FloatArray:
    """From values at nodes to coefficients by weighted least squares."""
    root = np.sqrt(counts)
    inverse = np.linalg.pinv(basis * root[:, None], rcond=1e-10)
    return np.asarray(inverse * root, dtype=np.float64)


def _polynomials(grid: ThetaGrid, degree: int) -> FloatArray:
    """Products of Chebyshev polynomials up to a total degree at the nodes, shape (g, count)."""
    scaled = [
        2.0 * (column - axis[0]) / (axis[-1] - axis[0]) - 1.0
        for axis, column in zip(grid.axes, grid.nodes.T, strict=True)
    ]
    tables = [chebyshev.chebvander(x, degree) for x in scaled]
    powers = [power for power in product(range(degree + 1), repeat=len(tables)) if sum(power) <= degree]
    columns = [np.prod([t[:, k] for t, k in zip(tables, power, strict=True)], axis=0) for power in powers]
    return np.stack(columns, axis=1)


def normalised_surface(
    term: ParametrisedRatio,
    grid: ThetaGrid,
    events: Events,
    log_base: FloatArray | None = None,
    *,
    smooth: bool = True,
) -> tuple[RatioSurface, Kappa]:
    """Surface whose mean over background is 1 at every point of the grid.

    Parameters
    ----------
    term : ParametrisedRatio
        The ratio.
    grid : ThetaGrid
        The nodes.
    events : Events
        Background events that trained nothing; their weights count.
    log_base : array of shape (n,), optional
        ln b of these events; 0 by default.
    smooth : bool, default True
        Whether kappa is a smooth function through the nodes, or that of each node.

    Returns
    -------
    RatioSurface, Kappa
        The factor, and how well its normalisation is known.

    Raises
    ------
    ModelError
        If the ratio vanishes over all events at some node.

    Notes
    -----
    The same reference events stand behind all nodes, so that errors of neighbouring nodes move together.
    """
    values = node_values(term, grid, events).reshape(-1, len(events))
    own = np.ones(len(events)) if events.weights is None else events.weights
    share = own / own.sum()
    log = values if log_base is None else values + log_base
    top = log.max(axis=1)
    if not np.isfinite(top).all():
        raise ModelError("the ratio is 0 or infinite for all reference events at some node of the grid")
    ratio = np.exp(log - top[:, None])
    mean = ratio @ share
    size = mean**2 / (ratio**2 @ share**2)
    raw = -(np.log(mean) + top)
    ratio /= mean[:, None]
    raw_error = np.sqrt((ratio - 1.0) ** 2 @ share**2)
    if smooth:
        log_kappa, error, degree, scores = smooth_kappa(grid, ratio, share, raw)
    else:
        log_kappa, error, degree, scores = raw, raw_error, -1, ()
    a, b, c, d, e = (array.reshape(grid.shape) for array in (log_kappa, error, raw, raw_error, size))
    surface = RatioSurface(term, grid, a)
    surface.remember(events, values.reshape(*grid.shape, -1))
    return surface, Kappa(a, b, c, d, e, degree, scores)
