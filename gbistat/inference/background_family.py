"""Composite nulls: sets of background densities whose mixtures stand for what is not known about the background.

Every density is given by its log ratio to the model's p_b at the events, shape (B, n), the form in which
`gbistat.inference.split_likelihood` takes them. All mixtures of the B densities belong to the null, so a family needs only its
corners. Several sources of doubt are joined with the identity

    1 + h_1 + ... + h_G = (1/G) sum_g (1 + G h_g):

corners are moved away from p_b by the number of sources G, and then their mixtures contain every combination.

A corner is ``p_b max(1 + s h, 0)``. Where ``1 + s h`` would be negative that is more than a density, which only raises the null's
likelihood: a test against it stays valid and loses power.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import eval_legendre, logsumexp

from gbistat.errors import EventsError, OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.typing import FloatArray, Json

__all__ = ["BackgroundFamily", "FeatureTilts", "ensemble_directions"]


@dataclass(frozen=True)
class BackgroundFamily:
    """How far the null reaches in each source of doubt; 0 leaves one out.

    Parameters
    ----------
    ensemble : float
        In units of the distance of the ensemble's members to their mean: 1 is all mixtures of the members.
    mass_sigma : float
        Standard deviations of each nuisance of the sideband fit of the mass.
    tilt : float
        Largest amplitude of smooth changes of a feature's distribution, of any one of degree 1 to `degree` (`FeatureTilts`),
        relative to the density.
    degree : int
        Of the Legendre polynomials.

    Raises
    ------
    OptionError
        If something is negative, or a tilt of 1 or more would leave no density.
    """

    ensemble: float = 1.0
    mass_sigma: float = 3.0
    tilt: float = 0.0
    degree: int = 4

    def __post_init__(self) -> None:
        if min(self.ensemble, self.mass_sigma, self.tilt) < 0 or self.tilt >= 1 or self.degree < 1:
            raise OptionError(
                f"a null of ensemble {self.ensemble:g}, mass_sigma {self.mass_sigma:g}, tilt {self.tilt:g}, degree {self.degree}: "
                "nothing may be negative, the tilt must be below 1 and the degree at least 1"
            )

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "ensemble": self.ensemble,
            "mass_sigma": self.mass_sigma,
            "tilt": self.tilt,
            "degree": self.degree if self.tilt else None,
        }

    def log_corners(
        self, members: FloatArray | None, mass: FloatArray | None, tilts: FloatArray | None, *, n: int
    ) -> FloatArray:
        """ln p / p_b of the corners, p_b itself first.

        Parameters
        ----------
        members : array of shape (J, n), optional
            ln of the members' densities over their mean, at the events.
        mass : array of shape (P, n), optional
            ln of the mass densities over the best one, each at `mass_sigma` times the square root of the number of nuisances,
            up and down.
        tilts : array of shape (H, n), optional
            Functions of mean 0 under p_b and size at most 1 (`FeatureTilts`).
        n : int
            Number of events.

        Returns
        -------
        array of shape (B, n)
            Corners.
        """
        sources: list[FloatArray] = []
        if members is not None and self.ensemble > 0 and len(members) > 1:
            sources.append(self.ensemble * np.expm1(members))
        if mass is not None and self.mass_sigma > 0 and len(mass):
            sources.append(np.expm1(mass))
        if tilts is not None and self.tilt > 0 and len(tilts):
            sources.append(self.tilt * np.vstack([tilts, -tilts]))
        changes = np.vstack([np.zeros((1, n)), *[len(sources) * source for source in sources]])
        with np.errstate(divide="ignore"):
            corners: FloatArray = np.log(np.maximum(1.0 + changes, 0.0))
        return corners


def ensemble_directions(log_densities: FloatArray) -> FloatArray:
    """ln of members' densities over their mean density.

    Parameters
    ----------
    log_densities : array of shape (J, n)
        ln p^(j).

    Returns
    -------
    array of shape (J, n)
        ln p^(j) / p_b with p_b the mean.

    Raises
    ------
    EventsError
        If no member can make some event.
    """
    values = np.atleast_2d(np.asarray(log_densities, dtype=np.float64))
    mean = logsumexp(values, axis=0) - np.log(len(values))
    bad = int(np.sum(~np.isfinite(mean)))
    if bad:
        raise EventsError(f"{bad} of {values.shape[1]} events have density 0 in every member; leave them out")
    result: FloatArray = values - mean
    return result


@dataclass(frozen=True, eq=False)
class FeatureTilts:
    """Smooth changes of single features: Legendre polynomials of a feature's distribution function under p_b.

    Parameters
    ----------
    sorted_reference : sequence of array of shape (N,)
        Values of each feature in events drawn from p_b, sorted.
    degree : int
        Largest degree.

    Notes
    -----
    The distribution function of a feature is uniform under p_b, so that the polynomials have mean 0 there, up to the
    Monte Carlo error of the reference: give many more reference events than data.
    """

    sorted_reference: tuple[FloatArray, ...]
    degree: int

    @classmethod
    def of(cls, reference: FloatArray, degree: int) -> FeatureTilts:
        """From reference features of shape (N, d).

        Raises
        ------
        EventsError
            If there are fewer than 1000 reference events.
        """
        if len(reference) < 1000:
            raise EventsError(f"{len(reference)} reference events; tilts need 1000 at least")
        return cls(tuple(np.sort(column) for column in np.asarray(reference, dtype=np.float64).T), degree)

    def __call__(self, features: FloatArray) -> FloatArray:
        """Tilts at events, shape (d * degree, n), each of size at most 1."""
        rows = []
        for column, ordered in zip(np.asarray(features, dtype=np.float64).T, self.sorted_reference, strict=True):
            below = np.searchsorted(ordered, column, side="left") + np.searchsorted(ordered, column, side="right")
            position = below / ordered.size - 1.0
            rows += [eval_legendre(k, position) for k in range(1, self.degree + 1)]
        return np.array(rows)


def describe(family: BackgroundFamily, counts: Sequence[int]) -> str:
    """One line on what the null contains.

    Parameters
    ----------
    family : BackgroundFamily
        The family.
    counts : sequence of int
        Members of the generator, nuisances of the mass, features.
    """
    members, nuisances, features = counts
    parts = []
    if family.ensemble > 0 and members > 1:
        far = "" if family.ensemble == 1 else f", {family.ensemble:g} times as far from their mean"
        parts.append(f"all mixtures of the {members} members of the generator{far}")
    if family.mass_sigma > 0 and nuisances:
        parts.append(f"mass shapes up to {family.mass_sigma:g} sigma of the sideband fit")
    if family.tilt > 0 and features:
        parts.append(
            f"smooth changes of each of {features} features up to {100 * family.tilt:g} % (degree {family.degree})"
        )
    return "; ".join(parts) if parts else "the mean of the generator's members alone"
