"""Local and global significance of the largest excess over a plane of masses.

The map of the data (:mod:`gbistat.fit.plane`) is compared with maps of toys without signal, whose events are drawn from the reference
events (:mod:`gbistat.inference.plane_toys`). Toys answer down to p-values of about one over their number; beyond, the mean Euler
characteristic of the toys' maps is carried to the level of the data (:mod:`gbistat.inference.look_elsewhere`).

Where two masses can be exchanged, half of the plane is the mirror image of the other and would count every excess twice: only
the half with the first mass not below the second is looked at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import ModelError, OptionError
from gbistat.fit.build import BACKGROUND_YIELD
from gbistat.fit.plane import search_plane
from gbistat.inference.asymptotics import z_from_p
from gbistat.inference.look_elsewhere import look_elsewhere
from gbistat.inference.plane_toys import NullYield, null_maps
from gbistat.likelihood.constraints import NormalConstraint
from gbistat.likelihood.kappa import FEWEST
from gbistat.likelihood.nll import ExtendedUnbinnedNLL
from gbistat.likelihood.parameters import start_vector
from gbistat.likelihood.reference import reference_from_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gbistat.fit.build import Analysis
    from gbistat.fit.masses import FreeMasses
    from gbistat.inference.look_elsewhere import GlobalSignificance
    from gbistat.typing import BoolArray, FloatArray, Json

__all__ = ["PlaneSignificance", "plane_significance"]

ENOUGH = 10
"""Toys above the data from which their share is the better answer."""


@dataclass(frozen=True, eq=False)
class PlaneSignificance:
    """Significance of the largest excess of a search over masses.

    Parameters
    ----------
    names : tuple of str
        The masses.
    axes : tuple of arrays
        Nodes of each.
    masses : dict of str to float
        Node of the largest excess.
    strength : float
        Signal strength that fits best there.
    results : tuple of GlobalSignificance
        From toys first, then from the estimate for the dimension where it applies.
    symmetric : bool
        Whether the masses can be exchanged, so that half of the plane was looked at.
    searched : int
        Nodes that were looked at.
    seed : int or None
        Of the toys.
    notes : tuple of str
        What a reader must know.
    """

    names: tuple[str, ...]
    axes: tuple[FloatArray, ...]
    masses: dict[str, float]
    strength: float
    results: tuple[GlobalSignificance, ...]
    symmetric: bool
    searched: int
    seed: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> GlobalSignificance:
        """Toys where enough of them reach the data, else the estimate that goes beyond them."""
        toys = self.results[0]
        return toys if toys.p_global * toys.n_toys >= ENOUGH or len(self.results) == 1 else self.results[-1]

    @property
    def z_interval(self) -> tuple[float, float]:
        """68.27 % Monte Carlo interval of the global significance."""
        low, high = self.best.p_low, self.best.p_high
        return (z_from_p(high) if high < 1.0 else -math.inf), (z_from_p(low) if low > 0.0 else math.inf)

    def to_dict(self) -> Json:
        """Plain numbers, for JSON; infinite ends are null."""
        ends = [end if math.isfinite(end) else None for end in self.z_interval]
        return {
            "masses": self.masses,
            "strength": self.strength,
            "method": self.best.method,
            "p0_local": self.best.p_local,
            "z_local": self.best.z_local,
            "p0_global": self.best.p_global,
            "p0_global_interval": [self.best.p_low, self.best.p_high],
            "z_global": self.best.z_global if math.isfinite(self.best.z_global) else None,
            "z_global_interval": ends,
            "n_toys": self.best.n_toys,
            "seed": self.seed,
            "searched": self.searched,
            "symmetric": self.symmetric,
            "notes": list(self.notes),
            "methods": [{k: _finite(v) for k, v in result.to_dict().items()} for result in self.results],
        }


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plane_significance(
    analysis: Analysis,
    n_toys: int,
    *,
    axes: Sequence[FloatArray] | None = None,
    rng: np.random.Generator,
    seed: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PlaneSignificance:
    """Global significance of the largest excess, from background-only toys.

    Parameters
    ----------
    analysis : Analysis
        With masses that are free, and reference events.
    n_toys : int
        Toys without signal.
    axes : sequence of arrays, optional
        Nodes of each mass; by default those of the search.
    rng : numpy.random.Generator
        Source of randomness.
    seed : int, optional
        Kept in the result.
    progress : callable, optional
        Told how many toys of how many are done.

    Raises
    ------
    ModelError
        If the signal has no masses, they are held, or a share of decay modes is free.
    OptionError
        If `n_toys` is below 1, or an axis does not fit.
    FitFailed
        If the fit without signal is not valid.

    Notes
    -----
    Data and toys have the same statistic: q0 at the nodes, with the shape of the background and its yield as in the fit without signal, and
    without the nuisance for a spurious signal. An error of the background model is in neither: it raises the local significance
    and the global one alike. Local p-values are asymptotic.
    """
    known = _checked(analysis)
    if n_toys < 1:
        raise OptionError(f"{n_toys} toys: at least one is needed")
    search = known.search
    if axes is not None:
        if len(axes) != len(known.names):
            raise OptionError(f"{len(axes)} axes for the masses {', '.join(known.names)}; give one each")
        search = search_plane(ExtendedUnbinnedNLL(known.model, analysis.events), known.names, axes)
    shape = search.q0.shape
    symmetric = known.exchangeable and np.array_equal(search.axes[0], search.axes[1])
    used: BoolArray = np.ones(shape, dtype=bool)
    if symmetric:
        used = np.tril(used)
    places = np.argwhere(used)
    share, ratio = _pool_ratios(known, search.axes, places)
    size = (ratio @ share) ** 2 / (ratio**2 @ share**2)
    thin = int((size < FEWEST).sum())
    few = (
        f"at {thin} of {len(places)} nodes fewer than {FEWEST:g} reference events make the ratio's mean: toys there repeat them, and q0 is "
        "more discrete than with fresh events"
    )
    maps = np.full((n_toys, *shape), np.nan)
    background = _null_yield(known, search.null.value(BACKGROUND_YIELD))
    maps[:, used] = null_maps(ratio, share, background, n_toys, rng=rng, progress=progress)
    observed = np.where(used, search.q0, np.nan)
    top = np.unravel_index(int(np.nanargmax(observed)), shape)
    return PlaneSignificance(
        search.names,
        search.axes,
        search.node([int(k) for k in top]),
        float(search.strength[top]),
        look_elsewhere(observed, maps),
        symmetric,
        len(places),
        seed,
        (few,) if thin else (),
    )


def _checked(analysis: Analysis) -> FreeMasses:
    known = analysis.masses
    if known is None:
        raise ModelError(
            "the signal of this model depends on no masses: its local significance is the global one of a window"
        )
    held = [name for name in known.names if known.model.parameter(name).fixed]
    if held:
        raise ModelError(f"{', '.join(held)} held: there is no look elsewhere; leave --mass out")
    if known.fraction is not None and not known.model.parameter(known.fraction).fixed:
        raise ModelError(
            f"the global significance needs a fixed share of decay modes; hold it (--mass {known.fraction}=0.5)"
        )
    if len(known.names) > 2:
        raise ModelError(f"global significance over {len(known.names)} masses is not offered: one or two")
    return known


def _null_yield(known: FreeMasses, expected: float) -> NullYield:
    """How well the background yield is known beside the data."""
    parameter = known.model.parameter(BACKGROUND_YIELD)
    if parameter.fixed:
        return NullYield(expected, 0.0)
    precision = 0.0
    for constraint in known.model.constraints:
        if isinstance(constraint, NormalConstraint) and BACKGROUND_YIELD in constraint.names:
            k = constraint.names.index(BACKGROUND_YIELD)
            precision += 1.0 / float(constraint.covariance[k, k])
    return NullYield(expected, 1.0 / math.sqrt(precision) if precision > 0 else math.inf)


def _pool_ratios(known: FreeMasses, axes: Sequence[FloatArray], places: np.ndarray) -> tuple[FloatArray, FloatArray]:
    """Background probability of reference events (n,), and their ratio of signal to background at nodes (g, n)."""
    model = known.model
    reference = reference_from_pool(model, known.pool)
    signal = [c.name for c in model.components].index(model.signal)
    theta = start_vector(model.parameters)
    indices = [model.names.index(name) for name in known.names]
    components = reference.mixture.components
    (background,) = (c for k, c in enumerate(components) if k != signal)
    base = background.log_density(theta)
    ratio = np.empty((len(places), base.size))
    for row, place in zip(ratio, places, strict=True):
        theta[indices] = [axis[k] for axis, k in zip(axes, place, strict=True)]
        log = components[signal].log_density(theta) - base
        row[:] = np.exp(log - log.max())
    return reference.measure * np.exp(base), ratio
