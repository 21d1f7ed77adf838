r"""Normalisation of a parametrised ratio: kappa at every point of its grid from reference events, smooth, with its error.

.. math:: \kappa(\theta)^{-1} = E_b[e^{\ell(x; \theta)}\, b(m)]

with the network's log ratio l and b the ratio of the mass densities, so that the whole density of the signal is normalised in the
window (the prior-ratio trick of arXiv:2405.08889). A finite number of reference events makes it noisy, and noise of a few per
cent moves mu by as much as its statistical error: an error :math:`\delta` of :math:`\ln\kappa` moves it by
:math:`\delta\,\sigma_\mu^2` events. But kappa comes from the training shares and the calibration of one network, which vary slowly, and
the noise from single events, which is local. So polynomials in the parameters are fitted to the nodes with their full covariance, and
averaged over their degrees with Akaike weights, so that the error holds what the degree leaves open (K. P. Burnham and
D. R. Anderson, Model Selection and Multimodel Inference, 2002, section 4.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.polynomial import chebyshev
from scipy.linalg import solve_triangular

from gbistat.errors import ModelError
from gbistat.likelihood.surface import RatioSurface, node_values

if TYPE_CHECKING:
    from gbistat.data.events import Events
    from gbistat.likelihood.surface import ParametrisedRatio, ThetaGrid
    from gbistat.typing import FloatArray

__all__ = ["Kappa", "normalised_surface", "smooth_kappa"]

MAX_DEGREE = 8
RIDGE = 1e-4
"""Share of the largest variance added to the diagonal of the covariance of nodes: neighbours are all but equal."""


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
        Total degree of the polynomial of the largest weight; -1 where the nodes themselves were taken.
    chi2 : float
        Of its fit.
    ndof : int
        Degrees of freedom.
    """

    log_kappa: FloatArray
    error: FloatArray
    raw: FloatArray
    raw_error: FloatArray
    effective_size: FloatArray
    degree: int
    chi2: float
    ndof: int


def smooth_kappa(
    grid: ThetaGrid, raw: FloatArray, covariance: FloatArray, *, max_degree: int = MAX_DEGREE
) -> tuple[FloatArray, FloatArray, int, float, int]:
    """Average of polynomials through the nodes by least squares with their covariance, with Akaike weights.

    Parameters
    ----------
    grid : ThetaGrid
        The g nodes.
    raw : array of shape (g,)
        ln kappa at each.
    covariance : array of shape (g, g)
        Of these.
    max_degree : int, default 8
        Largest total degree.

    Returns
    -------
    array (g,), array (g,), int, float, int
        Smooth values, their standard deviations, and degree, chi2 and degrees of freedom of the polynomial of largest weight.
    """
    # Whitened by the Cholesky factor, the problem is one of least squares with unit errors.
    factor = np.linalg.cholesky(covariance + RIDGE * covariance.diagonal().max() * np.eye(raw.size))
    target = solve_triangular(factor, raw, lower=True)
    values, variances, chi2s, counts = [], [], [], []
    for degree in range(max_degree + 1):
        basis = _polynomials(grid, degree)
        if basis.shape[1] >= raw.size:
            break
        left, sizes, right = np.linalg.svd(solve_triangular(factor, basis, lower=True), full_matrices=False)
        kept = sizes > 1e-10 * sizes[0]
        rows = basis @ (right[kept].T / sizes[kept])
        shares = left[:, kept].T @ target
        values.append(rows @ shares)
        variances.append(np.einsum("ij,ij->i", rows, rows))
        chi2s.append(float(target @ target - shares @ shares))
        counts.append(int(kept.sum()))
    criterion = np.array(chi2s) + 2.0 * np.array(counts)
    weights = np.exp(-0.5 * (criterion - criterion.min()))
    weights /= weights.sum()
    mean = weights @ np.array(values)
    variance = weights @ (np.array(variances) + (np.array(values) - mean) ** 2)
    best = int(weights.argmax())
    return mean, np.sqrt(variance), best, chi2s[best], raw.size - counts[best]


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
    # Relative deviations, from here on.
    ratio /= mean[:, None]
    ratio -= 1.0
    ratio *= share
    covariance = ratio @ ratio.T
    raw_error = np.sqrt(covariance.diagonal())
    if smooth:
        log_kappa, error, degree, chi2, ndof = smooth_kappa(grid, raw, covariance)
    else:
        log_kappa, error, degree, chi2, ndof = raw, raw_error, -1, 0.0, 0
    a, b, c, d, e = (array.reshape(grid.shape) for array in (log_kappa, error, raw, raw_error, size))
    surface = RatioSurface(term, grid, a)
    surface.remember(events, values.reshape(*grid.shape, -1))
    return surface, Kappa(a, b, c, d, e, degree, chi2, ndof)
