"""Limits and local significance at every pair of masses: held there, one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import GbistatError, ModelError, OptionError
from gbistat.fit.masses import with_held_masses
from gbistat.inference.discovery import discovery
from gbistat.inference.limits import AsymptoticCLs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gbistat.fit.build import Analysis
    from gbistat.typing import FloatArray, Json

__all__ = ["PlaneLimits", "plane_limits"]


@dataclass(frozen=True, eq=False)
class PlaneLimits:
    """Upper limits and local p-values over the masses of a signal.

    Parameters
    ----------
    poi : str
        What is limited.
    cl : float
        Confidence level.
    names : tuple of str
        The masses.
    axes : tuple of arrays
        Values of each.
    observed : array of shape (g1, ..., gd)
        CLs upper limit with the masses held; NaN where `failures` says why.
    expected : array of shape (g1, ..., gd, 5)
        Expected under background only at -2, -1, 0, +1, +2 sigma.
    p0, z : arrays of shape (g1, ..., gd)
        Local p-value of background only, and the same as standard deviations.
    failures : tuple of (tuple of float, str)
        Masses without a result, and why.
    """

    poi: str
    cl: float
    names: tuple[str, ...]
    axes: tuple[FloatArray, ...]
    observed: FloatArray
    expected: FloatArray
    p0: FloatArray
    z: FloatArray
    failures: tuple[tuple[tuple[float, ...], str], ...] = ()

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "poi": self.poi,
            "cl": self.cl,
            "names": list(self.names),
            "axes": [axis.tolist() for axis in self.axes],
            "observed": self.observed.tolist(),
            "expected": self.expected.tolist(),
            "p0_local": self.p0.tolist(),
            "z_local": self.z.tolist(),
            "failures": [{"masses": list(place), "error": message} for place, message in self.failures],
        }


def plane_limits(
    analysis: Analysis,
    axes: Sequence[FloatArray] | None = None,
    *,
    cl: float = 0.95,
    progress: Callable[[int, int], None] | None = None,
) -> PlaneLimits:
    """Asymptotic CLs limit and local significance with the masses held at every node.

    Parameters
    ----------
    analysis : Analysis
        With masses that its signal depends on (:func:`gbistat.fit.build.build_analysis`), and reference events.
    axes : sequence of arrays, optional
        Values of each mass; by default every other node at which the ratio was evaluated.
    cl : float, default 0.95
        Confidence level.
    progress : callable, optional
        Told how many nodes of how many are done.

    Raises
    ------
    ModelError
        If the signal has no masses, or there are no reference events for expected limits.
    OptionError
        If `cl` is not between 0 and 1, or an axis does not fit.

    Notes
    -----
    Local p-values do not know that a whole plane was looked at. A node where a fit fails is counted and named, and the rest goes on.
    """
    if analysis.masses is None:
        raise ModelError("the signal of this model does not depend on masses; gbistat limits gives its one limit")
    if analysis.reference is None:
        raise ModelError("limits over a plane need reference events in the window")
    if not 0.0 < cl < 1.0:
        raise OptionError(f"confidence level {cl:g} must lie between 0 and 1, for example 0.95")
    names = analysis.masses.names
    chosen = tuple(np.asarray(a, dtype=np.float64) for a in (axes or [a[::2] for a in analysis.masses.grid.axes]))
    if len(chosen) != len(names):
        raise OptionError(f"{len(chosen)} axes for the masses {', '.join(names)}; give one each")
    shape = tuple(axis.size for axis in chosen)
    observed, p0, z = (np.full(shape, np.nan) for _ in range(3))
    expected = np.full((*shape, 5), np.nan)
    failures = []
    places = list(product(*(range(axis.size) for axis in chosen)))
    for done, place in enumerate(places):
        masses = {name: float(axis[k]) for name, axis, k in zip(names, chosen, place, strict=True)}
        try:
            held = with_held_masses(analysis, masses)
            if held.reference is None:
                raise ModelError("no reference events")
            cls = AsymptoticCLs(held.nll, (held.reference,))
            limit = cls.limit(cl=cl)
            found = discovery(held.nll, best=cls.data.profile.best)
            observed[place], expected[place] = limit.observed, limit.expected
            p0[place], z[place] = found.p0, found.z
        except GbistatError as error:
            failures.append((tuple(masses.values()), str(error)))
        if progress is not None:
            progress(done + 1, len(places))
    return PlaneLimits(analysis.model.poi, cl, names, chosen, observed, expected, p0, z, tuple(failures))
