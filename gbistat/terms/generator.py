"""A density of the features at given mass that can be evaluated and drawn from: an exported sideband generator."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat.data.events import Events
from gbistat.errors import EventsError, TermError
from gbistat.terms.network import log_mean
from gbistat.terms.session import BATCH_SIZE, make_session, run_graph

if TYPE_CHECKING:
    from gbistat.terms.metadata import TermMetadata
    from gbistat.terms.network import NetworkTerm
    from gbistat.typing import BoolArray, FloatArray, IntArray

__all__ = ["GeneratorTerm"]


@dataclass(frozen=True, eq=False)
class GeneratorTerm:
    """Ensemble of conditional densities p(x | m) with samplers; a `gbistat.terms.protocols.ConditionalDensity`.

    Parameters
    ----------
    term : NetworkTerm
        A density with samplers.

    Raises
    ------
    TermError
        If the term is no density, or has no samplers.

    Notes
    -----
    The density is the mean of the K members' densities, and a sample is split evenly among them. It lives on the open
    ranges of ``metadata.features``: outside them it is 0 and its log -inf (`inside` says which events these are). The
    mass must be in its valid range, since a network says something at any mass.
    """

    term: NetworkTerm

    def __post_init__(self) -> None:
        if not self.metadata.samplers:
            raise TermError(
                f"term {self.name!r} is a {self.metadata.kind} without samplers: it cannot be drawn from; export a "
                "background training (gbistat train background, gbistat export)"
            )

    @property
    def metadata(self) -> TermMetadata:
        """What the term is."""
        return self.term.metadata

    @property
    def name(self) -> str:
        """Name of the term."""
        return self.metadata.name

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the d features."""
        return self.metadata.feature_names[1:]

    @property
    def n_members(self) -> int:
        """Members of the ensemble, K."""
        return len(self.metadata.members)

    def inside(self, features: FloatArray) -> BoolArray:
        """Events that are within the open range of every feature, shape (n,).

        Values are compared after rounding to float32, in which the graphs work.
        """
        rounded = features.astype(np.float32)
        mask: BoolArray = np.all(np.isfinite(rounded), axis=1)
        for column, item in zip(rounded.T, self.metadata.features[1:], strict=True):
            low, high = item.bounds
            mask = mask & (column > np.float32(low)) & (column < np.float32(high))
        return mask

    def member_log_prob(self, features: FloatArray, mass: FloatArray) -> FloatArray:
        """ln p(x | m) of each member.

        Parameters
        ----------
        features : array of shape (n, d)
            Raw features in the units of the term.
        mass : array of shape (n,)
            Masses in the unit of the term.

        Returns
        -------
        array of shape (K, n)
            Natural logs; -inf outside the range of a feature.

        Raises
        ------
        EventsError
            If shapes do not fit, or a feature is NaN.
        TermError
            If a mass is outside the valid range, or a graph cannot be evaluated.
        """
        x, m = self._checked(features, mass)
        inside = self.inside(x)
        result = np.full((self.n_members, len(m)), -np.inf)
        if inside.any():
            spec = self.metadata.mass
            units = {item.name: item.unit for item in self.metadata.features}
            events = Events(m[inside], x[inside], self.features, units, mass_name=spec.name)
            result[:, inside] = self.term.member_values(events)
        return result

    def log_prob(self, features: FloatArray, mass: FloatArray, /) -> FloatArray:
        """ln of the mean density of the members, shape (n,); see `member_log_prob`."""
        values = self.member_log_prob(features, mass)
        result = np.full(values.shape[1], -np.inf)
        inside = np.isfinite(values[0])
        result[inside] = log_mean(values[:, inside])
        return result

    def sample(self, mass: FloatArray, /, *, rng: np.random.Generator) -> FloatArray:
        """Draw features at given masses.

        Parameters
        ----------
        mass : array of shape (n,)
            Masses in the unit of the term.
        rng : numpy.random.Generator
            Source of randomness.

        Returns
        -------
        array of shape (n, d)
            Raw features. Which member drew an event is decided at random, with equal numbers up to one.

        Raises
        ------
        TermError
            If a mass is outside the valid range, or a graph cannot be evaluated.
        """
        latent = rng.standard_normal((len(mass), len(self.features)))
        return self.transform(latent, mass, rng.permutation(np.arange(len(mass)) % self.n_members))

    def transform(self, latent: FloatArray, mass: FloatArray, member: IntArray | int) -> FloatArray:
        """Features that members make of latent numbers: standard-normal ones become a sample of the density.

        Parameters
        ----------
        latent : array of shape (n, d)
            Latent numbers.
        mass : array of shape (n,)
            Masses.
        member : array of shape (n,), or int
            Which member to take, from 0.

        Returns
        -------
        array of shape (n, d)
            Raw features.

        Raises
        ------
        EventsError, TermError
            As `member_log_prob`.
        """
        z, m = self._checked(latent, mass)
        low, high = self.metadata.mass.bounds
        outside = int(np.sum((m < low) | (m > high)))
        if outside:
            raise TermError(
                f"{outside} of {len(m)} masses are outside [{low:g}, {high:g}] {self.metadata.mass.unit}, where the generator "
                f"{self.name!r} is valid; they span {m.min():.6g} to {m.max():.6g}"
            )
        chosen = np.broadcast_to(np.asarray(member), m.shape)
        inputs = np.column_stack([m, z])
        result = np.empty_like(z)
        for index in np.unique(chosen).tolist():
            rows = chosen == index
            where = f"term {self.name!r}: {self.metadata.samplers[index].file}"
            result[rows] = run_graph(self._sessions[index], inputs[rows], z.shape[1], where, batch_size=BATCH_SIZE // 4)
        bad = int(np.sum(~np.isfinite(result).all(axis=1)))
        if bad:
            raise TermError(
                f"the generator {self.name!r} gives NaN or infinity in {bad} of {len(m)} events; export it again"
            )
        return self._strictly_inside(result)

    def _strictly_inside(self, features: FloatArray) -> FloatArray:
        """Features that float32 rounded onto an end of their range, moved to the next number inside."""
        for column, item in zip(features.T, self.metadata.features[1:], strict=True):
            low, high = (np.float32(end) for end in item.bounds)
            if math.isfinite(low) and math.isfinite(high):
                np.clip(column, np.nextafter(low, high), np.nextafter(high, low), out=column)
        return features

    def _checked(self, features: FloatArray, mass: FloatArray) -> tuple[FloatArray, FloatArray]:
        x, m = np.asarray(features, dtype=np.float64), np.asarray(mass, dtype=np.float64)
        d = len(self.features)
        if m.ndim != 1 or x.shape != (m.size, d):
            raise EventsError(
                f"features have shape {x.shape} and masses {m.shape}; the generator {self.name!r} takes (n, {d}) "
                f"({', '.join(self.features)}) and (n,)"
            )
        bad = int(np.sum(np.isnan(x).any(axis=1) | ~np.isfinite(m)))
        if bad:
            raise EventsError(f"{bad} of {m.size} events have a NaN among mass and features; remove these events")
        return x, m

    def __getstate__(self) -> dict[str, Any]:
        # Sessions cannot be sent to another process; it makes its own.
        return {"term": self.term}

    @cached_property
    def _sessions(self) -> tuple[Any, ...]:
        return tuple(
            make_session(graph, f"term {self.name!r}: {record.file}")
            for record, graph in zip(self.metadata.samplers, self.term.samplers, strict=True)
        )
