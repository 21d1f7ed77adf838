r"""Global search over parameters of the signal that the likelihood is not convex in: masses above all.

At fixed masses the nll is convex in mu. With the background held at its fit without signal,

.. math:: t(\mu, m) = 2 [nll(0) - nll(\mu, m)] = -2 \mu S + 2 \sum_i \ln\left(1 + \mu S\, \frac{r_i(m)}{b_i}\right), \qquad b_i = n_b,

a few Newton steps on arrays give its largest value over mu at every node of a grid. The highest maxima of that map are where full
fits begin; the lowest of these is the global one. No label and no true mass is needed anywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.interpolate import RectBivariateSpline

from gbistat.errors import FitFailed, ModelError
from gbistat.fit.minimize import fit
from gbistat.fit.mode_search import best_strengths
from gbistat.fit.result import FitOptions
from gbistat.likelihood.parameters import index_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gbistat.fit.result import FitResult
    from gbistat.likelihood.nll import NLL
    from gbistat.terms.signal_spec import MassScaleSpec
    from gbistat.typing import FloatArray, IntArray

__all__ = ["Gain", "PlaneSearch", "Strength", "fit_from_map", "global_fit", "search_close", "search_plane"]

STARTS = 6
"""Full fits that a global fit begins at most."""
WORTH = 9.0
"""How far below the highest a maximum of the map may be and still be the start of a full fit."""
BEYOND = 3.0
"""Errors of the mass scale beyond its ends up to which a map knows of them."""


@dataclass(frozen=True, eq=False)
class PlaneSearch:
    """Map of how much better than background alone a signal is, over a grid of its masses.

    Parameters
    ----------
    names : tuple of str
        The d parameters.
    axes : tuple of d arrays
        Nodes of each.
    q0 : array of shape (g1, ..., gd)
        ``2 [nll(0) - min_{mu >= 0} nll(mu, m)]``, background as in the fit without signal.
    strength : array of the same shape
        The mu that fits best.
    null : FitResult
        The fit without signal.
    fraction : str, optional
        Name of a fraction of decay modes that is free at each node.
    shares : array of the same shape, optional
        Its best value.
    """

    names: tuple[str, ...]
    axes: tuple[FloatArray, ...]
    q0: FloatArray
    strength: FloatArray
    null: FitResult
    fraction: str | None = None
    shares: FloatArray | None = None

    def node(self, index: Sequence[int]) -> dict[str, float]:
        """Masses of a node."""
        return {name: float(axis[k]) for name, axis, k in zip(self.names, self.axes, index, strict=True)}

    def put(self, theta: FloatArray, index: Sequence[int], nll: NLL) -> None:
        """Put masses, strength and fraction of a node into a vector, but for parameters that are held."""
        values = {**self.node(index), nll.poi: float(self.strength[tuple(index)])}
        if self.fraction is not None and self.shares is not None:
            values[self.fraction] = float(self.shares[tuple(index)])
        for name, value in values.items():
            number = index_of(name, nll.parameters)
            if not nll.parameters[number].fixed:
                theta[number] = value

    def finer(self, factor: int = 4) -> PlaneSearch:
        """Same map on axes `factor` times as fine, by cubic splines, for figures; two masses."""
        if len(self.axes) != 2:
            raise ModelError(f"a map over {len(self.axes)} parameter(s) is not drawn as a plane")
        x, y = (np.linspace(axis[0], axis[-1], factor * (axis.size - 1) + 1) for axis in self.axes)
        q0, strength = (
            np.maximum(RectBivariateSpline(*self.axes, values)(x, y), 0.0) for values in (self.q0, self.strength)
        )
        return PlaneSearch(self.names, (x, y), q0, strength, self.null)

    def with_scale(self, scale: Mapping[str, MassScaleSpec]) -> PlaneSearch:
        """Same map where the masses that the ratio knows are off by errors of their scale, a little beyond its ends too.

        ``q0(m) = max_{m'} [q0'(m') - sum_k (m'_k - m_k)^2 / sigma_k^2(m)]`` over the nodes m', as profiles of one mass do with fits.
        """
        axes, q0, strength = list(self.axes), self.q0, self.strength
        for number, name in enumerate(self.names):
            if name not in scale:
                continue
            old = axes[number]
            sigma = np.array([scale[name].sigma(float(end)) for end in old[[0, -1]]])
            steps = np.diff(old)[[0, -1]]
            below, above = (np.arange(1, 1 + np.ceil(BEYOND * sigma[k] / steps[k])) * steps[k] for k in (0, 1))
            new = np.concatenate([old[0] - below[::-1], old, old[-1] + above])
            new = new[new > 0.0]
            width = np.array([scale[name].sigma(float(value)) for value in new])
            away = ((old - new[:, None]) / width[:, None]) ** 2
            moved = np.moveaxis(q0, number, 0)
            flat = moved.reshape(old.size, -1)[None] - away[:, :, None]
            best = flat.argmax(axis=1)
            columns = np.arange(flat.shape[2])
            shape = (new.size, *moved.shape[1:])
            kept = np.moveaxis(strength, number, 0).reshape(old.size, -1)[best, columns]
            q0 = np.moveaxis(np.maximum(flat.max(axis=1), 0.0).reshape(shape), 0, number)
            strength = np.moveaxis(kept.reshape(shape), 0, number)
            axes[number] = new
        return PlaneSearch(self.names, tuple(axes), q0, strength, self.null)

    def maxima(self) -> list[tuple[int, ...]]:
        """Nodes that are not below any neighbour, the highest first; those without signal are left out."""
        found = []
        for index in zip(*np.nonzero(self.strength > 0), strict=True):
            place = tuple(int(k) for k in index)
            around = tuple(slice(max(k - 1, 0), k + 2) for k in place)
            if self.q0[place] >= self.q0[around].max():
                found.append(place)
        return sorted(found, key=lambda place: -self.q0[place])

    def starts(self, within: float = WORTH, most: int = STARTS) -> list[tuple[int, ...]]:
        """The maxima that are worth a full fit."""
        maxima = self.maxima()
        return [place for place in maxima[:most] if self.q0[place] >= self.q0[maxima[0]] - within]


def search_plane(
    nll: NLL,
    names: Sequence[str],
    axes: Sequence[FloatArray],
    *,
    fraction: str | None = None,
    mirrored: bool = False,
) -> PlaneSearch:
    """Map over a grid of masses; see the module.

    Parameters
    ----------
    nll : NLL
        Extended likelihood of one data term with a signal whose density depends on `names`.
    names : sequence of str
        The masses.
    axes : sequence of arrays
        Nodes of each.
    fraction : str, optional
        A fraction of two decay modes, free at each node unless the likelihood holds it.
    mirrored : bool, default False
        Whether two masses with the same nodes can be exchanged: half of the map is enough then.

    Raises
    ------
    ModelError
        If the likelihood has several data terms, or none of these parameters moves the signal.
    FitFailed
        If the fit without signal is not valid.
    """
    if len(nll.mixtures) != 1 or not nll.mixtures[0].extended:
        raise ModelError("the search over masses needs an extended likelihood of one data term")
    null = fit(nll, fixed={nll.poi: 0.0, **_held(nll, names)}).raise_if_invalid()
    if fraction is not None and nll.parameters[index_of(fraction, nll.parameters)].fixed:
        fraction = None
    strength = Strength(nll, null.values, fraction)
    indices = [index_of(name, nll.parameters) for name in names]
    q0 = np.zeros(tuple(axis.size for axis in axes))
    best, shares = np.zeros_like(q0), np.zeros_like(q0)
    for place in product(*(range(axis.size) for axis in axes)):
        if mirrored and place[0] < place[1]:
            continue
        theta = null.values.copy()
        theta[indices] = [axis[k] for axis, k in zip(axes, place, strict=True)]
        best[place], shares[place], q0[place] = strength(theta)
    if mirrored:
        for values in (q0, best, shares):
            values += np.tril(values, -1).T
    return PlaneSearch(tuple(names), tuple(axes), q0, best, null, fraction, None if fraction is None else shares)


def search_close(
    nll: NLL,
    search: PlaneSearch,
    best: FitResult,
    *,
    sigmas: float = 5.0,
    count: int = 25,
    box: tuple[FloatArray, FloatArray] | None = None,
) -> PlaneSearch:
    """Map of the same likelihood around a fit: `count` nodes over `sigmas` errors of each mass to either side, and within a box.

    Raises
    ------
    FitFailed
        If the fit without signal is not valid.
    """
    axes = []
    ends = box or tuple(np.array([axis[k] for axis in search.axes]) for k in (0, -1))
    for name, axis, begin, end in zip(search.names, search.axes, *ends, strict=True):
        reach = min(sigmas * best.error(name), 0.5 * float(axis[-1] - axis[0])) or float(np.diff(axis).max())
        low, high = max(best.value(name) - reach, float(begin)), min(best.value(name) + reach, float(end))
        axes.append(np.linspace(low, high, count))
    return search_plane(nll, search.names, axes, fraction=search.fraction)


def _held(nll: NLL, names: Sequence[str]) -> dict[str, float]:
    """Masses at their starts: without signal they mean nothing."""
    return {name: nll.parameters[index_of(name, nll.parameters)].start for name in names}


class Gain(NamedTuple):
    """Best mu >= 0, share of decay modes (NaN if it is not free) and ``2 [nll(0) - nll]``."""

    strength: float
    share: float
    gain: float


class Strength:
    """Best mu >= 0 at given masses, and share of decay modes if one is free, with everything else held."""

    def __init__(self, nll: NLL, null: FloatArray, fraction: str | None = None) -> None:
        self.fraction = None if fraction is None else index_of(fraction, nll.parameters)
        self.parameters = nll.parameters
        self.mixture = nll.mixtures[0]
        self.poi = index_of(nll.poi, nll.parameters)
        theta = null.copy()
        rates = []
        for value in (0.0, 1.0):
            theta[self.poi] = value
            rates.append(self.mixture.yields(theta))
        change = rates[1] - rates[0]
        (self.signal,) = np.flatnonzero(change)
        self.slope = float(change[self.signal])
        self.others = np.delete(np.arange(change.size), self.signal)
        self.background = self._density(self.others, null, rates[0])
        weights = self.mixture.weights
        self.weights: FloatArray = np.ones(self.mixture.size) if weights is None else weights

    def _density(self, which: IntArray, theta: FloatArray, yields: FloatArray) -> FloatArray:
        logs = [self.mixture.components[k].log_density(theta) for k in which]
        density: FloatArray = sum(
            (yields[k] * np.exp(log - self.mixture.shift) for k, log in zip(which, logs, strict=True)),
            start=np.zeros(self.mixture.size),
        )
        return density

    def _ratio(self, theta: FloatArray) -> FloatArray:
        """Signal of unit strength over background at each event."""
        log = self.mixture.components[self.signal].log_density(theta)
        ratio: FloatArray = np.exp(np.minimum(log - self.mixture.shift, 600.0)) / self.background
        ratio *= self.slope
        return ratio

    def _with_share(self, theta: FloatArray, index: int) -> Gain:
        fraction = self.parameters[index]
        ends, limits = [], np.array([fraction.low, fraction.high])
        for end in limits:
            theta[index] = end
            ends.append(self._ratio(theta))
        strengths, gain = best_strengths(np.stack(ends), self.weights, self.slope)
        total = float(strengths.sum())
        share = fraction.start if total == 0.0 else float(strengths @ limits) / total
        return Gain(total, share, gain)

    def __call__(self, theta: FloatArray) -> Gain:
        """At the masses of a parameter vector."""
        return self._alone(theta) if self.fraction is None else self._with_share(theta, self.fraction)

    def _alone(self, theta: FloatArray) -> Gain:
        ratio = self._ratio(theta)
        mu = 0.0
        for _ in range(60):
            share = ratio / (1.0 + mu * ratio)
            gradient = float(np.einsum("i,i", self.weights, share)) - self.slope
            if mu == 0.0 and gradient <= 0.0:
                return Gain(0.0, math.nan, 0.0)
            bend = float(np.einsum("i,i,i", self.weights, share, share))
            # The slope is convex and falling in mu: Newton from below never passes the root.
            step = gradient / bend
            mu += step
            if abs(step) <= 1e-6 * mu:
                break
        gain = float(np.einsum("i,i", self.weights, np.log1p(mu * ratio))) - mu * self.slope
        return Gain(mu, math.nan, 2.0 * gain)


def global_fit(
    nll: NLL,
    names: Sequence[str],
    axes: Sequence[FloatArray],
    *,
    fraction: str | None = None,
    minimizer: Callable[..., FitResult] = fit,
    options: FitOptions | None = None,
) -> tuple[FitResult, PlaneSearch]:
    """Fit whose masses are searched over the whole grid first.

    Parameters
    ----------
    nll : NLL
        As for :func:`search_plane`.
    names, axes : sequences
        The masses and their nodes.
    fraction : str, optional
        A fraction of two decay modes.
    minimizer : callable
        What fits: :func:`gbistat.fit.minimize.fit`.
    options : FitOptions, optional
        Of the last fit, which starts from the lowest minimum.

    Returns
    -------
    FitResult, PlaneSearch
        The lowest minimum found, and the map.

    Raises
    ------
    FitFailed
        If no fit is valid.
    """
    search = search_plane(nll, names, axes, fraction=fraction)
    return fit_from_map(nll, search, minimizer=minimizer, options=options), search


def fit_from_map(
    nll: NLL,
    search: PlaneSearch,
    *,
    minimizer: Callable[..., FitResult] = fit,
    options: FitOptions | None = None,
) -> FitResult:
    """Lowest of the fits from the maxima of a map that is known; see :func:`global_fit`.

    Raises
    ------
    FitFailed
        If no fit is valid.
    """
    found = []
    for place in search.starts():
        theta = search.null.values.copy()
        search.put(theta, place, nll)
        try:
            result = minimizer(nll, start=theta)
        except FitFailed:
            continue
        if result.valid:
            found.append(result)
    lowest = min(found, key=lambda result: result.nll, default=None)
    start = search.null.values if lowest is None or lowest.nll > search.null.nll else lowest.values
    return minimizer(nll, start=start, options=options or FitOptions()).raise_if_invalid()
