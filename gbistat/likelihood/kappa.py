r"""Normalisation of a parametrised ratio: kappa at every point of its grid from reference events, smooth, with its error.

.. math:: \kappa(\theta)^{-1} = E_b[e^{\ell(x; \theta)}\, b(m)]

with the network's log ratio l and b the ratio of the mass densities, so that the whole density of the signal is normalised in the
window (the prior-ratio trick of arXiv:2405.08889). A finite number of reference events makes it noisy, and noise of a few per
cent moves mu by as much as its statistical error: an error :math:`\delta` of :math:`\ln\kappa` moves it by
:math:`\delta\,\sigma_\mu^2` events. But kappa comes from the training shares and the calibration of one network, which vary slowly, and
the noise from single events, which is local. So ln kappa is a polynomial in the parameters,

.. math:: \ln\kappa = \sum_{a + b \le n} c_{ab} T_a T_b + e \sum_k (\theta_k / \theta_k^{low})^{-5}
    + d\, e^{-\frac{1}{2} (\ln(\theta_1 / \theta_2) / 0.1)^2},

and of two terms more where they help: at the lower ends, and where two masses that can be exchanged are equal, a ratio has an edge or a crease that a
smooth network rounds off; left out of kappa, both would pull masses there. Degree and terms are chosen by cross-validation over
reference *events* (T. Hastie, R. Tibshirani and J. Friedman, The Elements of Statistical Learning, 2009, section 7.10, with the rule of one
standard error): a fold of the events that the polynomial does not know gives :math:`E_b[r]`, which the polynomial's kappa should make 1. Nodes are no
independent data: the same events stand behind all of them, and criteria that count nodes, such as Akaike's, follow the noise of events.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.polynomial import chebyshev

from gbistat.errors import ModelError
from gbistat.likelihood.surface import RatioSurface, node_values

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gbistat.data.events import Events
    from gbistat.likelihood.surface import ParametrisedRatio
    from gbistat.likelihood.theta_grid import ThetaGrid
    from gbistat.typing import FloatArray

__all__ = ["FEWEST", "Kappa", "KappaBasis", "SmoothKappa", "normalised_surface", "smooth_kappa"]

MAX_DEGREE = 4
FOLDS = 5
EDGE_POWER = 5.0
"""Power with which the term of a lower end falls: by e within a fifth of the parameter."""
CREASE_WIDTH = 0.1
"""Width of the term of equal masses, in the logarithm of their ratio: that of a resolution of 10 %, less is not seen in jets."""
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
    smooth : SmoothKappa or None
        The function behind `log_kappa`; ``None`` where the nodes themselves were taken.
    scores : mapping of str to float
        By candidate: mean over nodes and folds of ``(kappa E_b[r] - 1)^2``, E_b over a fold that the function does not know, in units of its variance.
    """

    log_kappa: FloatArray
    error: FloatArray
    raw: FloatArray
    raw_error: FloatArray
    effective_size: FloatArray
    smooth: SmoothKappa | None
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def form(self) -> str:
        """Form of the smooth function, in words."""
        return "that of each node" if self.smooth is None else self.smooth.basis.name


@dataclass(frozen=True)
class KappaBasis:
    """Functions of which ln kappa is made.

    Parameters
    ----------
    ends : tuple of (float, float)
        Range of each parameter.
    degree : int
        Total degree of the polynomial.
    edge : bool
        Whether there is a term of the lower ends.
    crease : bool
        Whether there is a term of two equal parameters.
    """

    ends: tuple[tuple[float, float], ...]
    degree: int
    edge: bool = False
    crease: bool = False

    @property
    def name(self) -> str:
        """In words."""
        return (
            f"degree {self.degree}" + (", lower ends" if self.edge else "") + (", equal masses" if self.crease else "")
        )

    def __call__(self, theta: FloatArray) -> FloatArray:
        """Values at points of shape (g, d), shape (g, count)."""
        pairs = list(zip(self.ends, theta.T, strict=True))
        tables = [
            chebyshev.chebvander(2.0 * (column - low) / (high - low) - 1.0, self.degree)
            for (low, high), column in pairs
        ]
        powers = [power for power in product(range(self.degree + 1), repeat=len(tables)) if sum(power) <= self.degree]
        columns = [np.prod([t[:, k] for t, k in zip(tables, power, strict=True)], axis=0) for power in powers]
        if self.edge:
            columns.append(np.sum([(column / low) ** -EDGE_POWER for (low, _), column in pairs], axis=0))
        if self.crease:
            columns.append(np.exp(-0.5 * (np.log(theta[:, 0] / theta[:, 1]) / CREASE_WIDTH) ** 2))
        return np.stack(columns, axis=1)


@dataclass(frozen=True, eq=False)
class SmoothKappa:
    """ln kappa as a function of the parameters.

    Parameters
    ----------
    basis : KappaBasis
        Its functions.
    coefficients : array of shape (count,)
        Of these.
    """

    basis: KappaBasis
    coefficients: FloatArray

    def __call__(self, theta: FloatArray) -> float:
        """ln kappa at a point of shape (d,)."""
        return float(self.at(np.asarray(theta, dtype=np.float64)[None])[0])

    def at(self, points: FloatArray) -> FloatArray:
        """ln kappa at points of shape (g, d), shape (g,)."""
        return self.basis(points) @ self.coefficients


def smooth_kappa(
    grid: ThetaGrid,
    ratio: FloatArray,
    share: FloatArray,
    raw: FloatArray,
    *,
    max_degree: int = MAX_DEGREE,
    exchangeable: bool = False,
) -> tuple[SmoothKappa, FloatArray, dict[str, float]]:
    """Smooth function through ln kappa of the nodes: the simplest of those whose prediction for other events is as good as any.

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
    exchangeable : bool, default False
        Whether the ratio is the same with both of two parameters exchanged.

    Returns
    -------
    SmoothKappa, array (g,), dict
        The function, its standard deviation at the nodes from the covariance of the events, and the score of each candidate.

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
    candidates, losses = [], []
    for basis in _candidates(grid, max_degree, exchangeable=exchangeable):
        values = basis(grid.nodes)
        if values.shape[1] > np.count_nonzero(counts):
            continue
        projection = _projection(values, counts)
        loss = []
        for k in range(FOLDS):
            rest = weights.sum() - weights[k]
            others = (weights @ means - weights[k] * means[k]) / rest
            with np.errstate(divide="ignore", invalid="ignore"):
                known = np.where(counts > 0, raw - np.log(others), 0.0)
            kappa = np.exp(values @ (projection @ known) - raw)
            loss.append(float(counts @ (kappa * means[k] - 1.0) ** 2) / (FOLDS * np.count_nonzero(counts)))
        candidates.append((basis, values, projection))
        losses.append(loss)
    table = np.array(losses)
    scores = table.mean(axis=1)
    best = int(scores.argmin())
    spread = (table - table[best]).std(axis=1, ddof=1) / np.sqrt(FOLDS)
    good = [k for k in range(len(candidates)) if scores[k] <= scores[best] + spread[k]]
    basis, values, projection = candidates[min(good, key=lambda k: (candidates[k][1].shape[1], scores[k]))]
    single = projection @ ((ratio - 1.0) * share)
    error: FloatArray = np.sqrt(np.einsum("ij,jk,ik->i", values, single @ single.T, values))
    names = [candidate.name for candidate, _, _ in candidates]
    return SmoothKappa(basis, projection @ raw), error, dict(zip(names, scores.tolist(), strict=True))


def _candidates(grid: ThetaGrid, max_degree: int, *, exchangeable: bool) -> list[KappaBasis]:
    """Polynomials of each degree, alone and with the terms that the parameters allow."""
    ends = tuple((float(axis[0]), float(axis[-1])) for axis in grid.axes)
    positive = all(low > 0 for low, _ in ends)
    return [
        KappaBasis(ends, degree, edge, crease)
        for degree in range(max_degree + 1)
        for edge in ((False, True) if positive else (False,))
        for crease in ((False, True) if positive and exchangeable else (False,))
    ]


def _symmetric(grid: ThetaGrid, values: FloatArray) -> bool:
    """Whether values of shape (g, n) at the nodes are the same with two parameters exchanged."""
    if len(grid.axes) != 2 or not np.array_equal(*grid.axes):
        return False
    table = values.reshape(*grid.shape, -1)
    return all(np.array_equal(table[k], table[:, k]) for k in range(len(table)))


def _projection(basis: FloatArray, counts: FloatArray) -> FloatArray:
    """From values at nodes to coefficients by weighted least squares."""
    root = np.sqrt(counts)
    inverse = np.linalg.pinv(basis * root[:, None], rcond=1e-10)
    return np.asarray(inverse * root, dtype=np.float64)


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
    function: SmoothKappa | None = None
    scores: dict[str, float] = {}
    log_kappa, error = raw, raw_error
    if smooth:
        function, error, scores = smooth_kappa(grid, ratio, share, raw, exchangeable=_symmetric(grid, values))
        log_kappa = function.at(grid.nodes)
    a, b, c, d, e = (array.reshape(grid.shape) for array in (log_kappa, error, raw, raw_error, size))
    surface = RatioSurface(term, grid, a, function)
    surface.remember(events, values.reshape(*grid.shape, -1))
    return surface, Kappa(a, b, c, d, e, function, scores)
