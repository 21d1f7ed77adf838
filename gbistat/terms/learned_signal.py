"""A density of the signal that was learned from the data, evaluated for each event by networks that never saw it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat.data.events import Events
from gbistat.errors import OptionError, TermError
from gbistat.terms.folds import FoldRule
from gbistat.terms.network import log_mean
from gbistat.terms.session import BATCH_SIZE, make_session, run_graph

if TYPE_CHECKING:
    from gbistat.terms.cross_fit import CrossFit
    from gbistat.terms.metadata import TermMetadata
    from gbistat.terms.network import NetworkTerm
    from gbistat.typing import BoolArray, FloatArray

__all__ = ["LearnedSignalTerm"]


@dataclass(frozen=True, eq=False)
class LearnedSignalTerm:
    """Cross-fitted ensemble of joint densities p_s(m, x) on a window: M networks for each of K folds.

    Parameters
    ----------
    term : NetworkTerm
        A ``signal_density``.

    Raises
    ------
    TermError
        If it is another kind of term.

    Notes
    -----
    Every network is normalised on the open window and the open ranges of the features; outside its log is -inf (`inside`
    says which events these are). The networks of fold k were trained on the events of the other folds: only for events of
    fold k is their likelihood an honest one. Events that had no part in the training may take any fold; `log_prob` gives them
    the fold that their values say.
    """

    term: NetworkTerm

    def __post_init__(self) -> None:
        if self.metadata.cross_fit is None:
            raise TermError(
                f"term {self.name!r} is a {self.metadata.kind}, not a density learned from data with folds; export a run of "
                "gbistat train ranode"
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
    def cross_fit(self) -> CrossFit:
        """Folds and fractions as ``term.json`` has them."""
        cross_fit = self.metadata.cross_fit
        if cross_fit is None:
            raise TermError(f"term {self.name!r} has no folds")
        return cross_fit

    @cached_property
    def rule(self) -> FoldRule:
        """Which fold an event belongs to."""
        return FoldRule.from_dict(self.cross_fit.rule.to_json())

    @property
    def n_folds(self) -> int:
        """K."""
        return self.cross_fit.rule.n_folds

    @property
    def n_members(self) -> int:
        """M, networks a fold."""
        return len(self.metadata.members) // self.n_folds

    @property
    def mode(self) -> str:
        """``learnable``, ``fixed`` or ``scan``: what w was in the training."""
        return self.cross_fit.mode

    @property
    def train_on(self) -> str:
        """``others`` or ``earlier``: folds that the networks of a fold saw."""
        return self.cross_fit.train_on

    @property
    def fractions(self) -> FloatArray:
        """Fraction w to use with each network, shape (K, M): fitted out of sample, and the same in a fold."""
        values = np.array([member.fraction for member in self.cross_fit.members])
        return values.reshape(self.n_folds, self.n_members)

    @property
    def trained_on(self) -> tuple[str, ...]:
        """Hashes (sha256) of the files of data that the networks were trained on."""
        training = self.metadata.training
        return () if training is None else tuple(item.sha256 for item in training.data if item.role == "data")

    def other_data(self, file_sha256: str) -> str | None:
        """What to tell a person who evaluates other data than those of the training; None if they are the same file.

        Notes
        -----
        Nothing is wrong with other data: folds come from the values of the events, so that an event of the training is never judged
        by a network that saw it, in whatever file it is. But the signal was looked for in the first file, and statements about
        its events are not made by this one.
        """
        if file_sha256 in self.trained_on:
            return None
        known = ", ".join(digest[:12] for digest in self.trained_on) or "unknown"
        return (
            f"term {self.name!r} was learned from a file with sha256 {known}, and these events are of one with "
            f"{file_sha256[:12]}: the folds still hold, but this is not the data set in which the signal was learned"
        )

    @property
    def window(self) -> tuple[float, float]:
        """Interval of the mass on which the density is normalised."""
        return self.metadata.mass.bounds

    @property
    def columns(self) -> tuple[str, ...]:
        """Mass and features, in the order of the graphs."""
        return self.metadata.feature_names

    def inside(self, events: Events) -> BoolArray:
        """Events within the open range of mass and every feature, shape (n,), compared in float32 as the graphs work.

        Raises
        ------
        EventsError
            If a feature is missing.
        """
        mask = np.ones(len(events), dtype=np.bool_)
        for item in self.metadata.features:
            low, high = item.bounds
            column = events.feature(item.name).astype(np.float32)
            mask &= (column > np.float32(low)) & (column < np.float32(high))
        return mask

    def fold_log_prob(self, events: Events, fold: int) -> FloatArray:
        """ln p_s(m, x) by each of the networks that never saw a fold.

        Parameters
        ----------
        events : Events
            n events with the term's features in the term's units.
        fold : int
            0 to K - 1.

        Returns
        -------
        array of shape (M, n)
            Natural logs; -inf outside the ranges.

        Raises
        ------
        OptionError
            If there is no such fold.
        EventsError, UnitsError
            If features are missing or in other units.
        TermError
            If a graph cannot be evaluated.
        """
        if not 0 <= fold < self.n_folds:
            raise OptionError(f"fold {fold} does not exist; term {self.name!r} has the folds 0 to {self.n_folds - 1}")
        inside = self.inside(events)
        result = np.full((self.n_members, len(events)), -np.inf)
        if inside.any():
            members = range(fold * self.n_members, (fold + 1) * self.n_members)
            result[:, inside] = self.term.values_of(members, events.select(inside))
        return result

    def cross_log_prob(self, events: Events) -> FloatArray:
        """ln p_s by each of the M networks of the event's own fold, shape (M, n); see `fold_log_prob`."""
        folds = self.rule.fold_of(events)
        result = np.full((self.n_members, len(events)), -np.inf)
        for fold in range(self.n_folds):
            rows = np.flatnonzero(folds == fold)
            if rows.size:
                result[:, rows] = self.fold_log_prob(events.select(rows), fold)
        return result

    def log_prob(self, events: Events) -> FloatArray:
        """ln of the mean density of the networks that never saw an event, shape (n,); see `fold_log_prob`."""
        values = self.cross_log_prob(events)
        inside = np.isfinite(values[0])
        result = np.full(len(events), -np.inf)
        result[inside] = log_mean(values[:, inside])
        return result

    def sample(self, n: int, *, fold: int | None = None, rng: np.random.Generator) -> Events:
        """Draw events from the density.

        Parameters
        ----------
        n : int
            How many.
        fold : int, optional
            Draw from the networks of one fold; by default from all, with equal numbers up to one.
        rng : numpy.random.Generator
            Source of randomness.

        Returns
        -------
        Events
            Mass and features, in the term's units.

        Raises
        ------
        OptionError
            If there is no such fold.
        TermError
            If the term has no samplers, or one gives NaN.
        """
        if fold is not None and not 0 <= fold < self.n_folds:
            raise OptionError(f"fold {fold} does not exist; term {self.name!r} has the folds 0 to {self.n_folds - 1}")
        total = len(self.metadata.members)
        first, count = (0, total) if fold is None else (fold * self.n_members, self.n_members)
        latent = rng.standard_normal((n, len(self.columns)))
        chosen = first + rng.permutation(np.arange(n) % count)
        result = np.empty_like(latent)
        for index in np.unique(chosen).tolist():
            rows = chosen == index
            result[rows] = self.transform(latent[rows], index)
        bad = int(np.sum(~np.isfinite(result).all(axis=1)))
        if bad:
            raise TermError(f"term {self.name!r} draws NaN or infinity in {bad} of {n} events; export it again")
        return self._as_events(result)

    def transform(self, latent: FloatArray, member: int) -> FloatArray:
        """Mass and features, shape (n, 1 + d), that one of the K M networks makes of standard-normal numbers of that shape.

        Raises
        ------
        TermError
            If the term has no samplers, or the graph cannot be evaluated.
        """
        if not self.metadata.samplers:
            raise TermError(f"term {self.name!r} has no samplers; export the training again")
        where = f"term {self.name!r}: {self.metadata.samplers[member].file}"
        return run_graph(self._session(member), latent, latent.shape[1], where, batch_size=BATCH_SIZE // 4)

    def _as_events(self, x: FloatArray) -> Events:
        """Events of rows, each moved strictly inside its range if float32 rounded it onto an end."""
        for column, item in zip(x.T, self.metadata.features, strict=True):
            low, high = (np.float32(end) for end in item.bounds)
            np.clip(column, np.nextafter(low, high), np.nextafter(high, low), out=column)
        units = {item.name: item.unit for item in self.metadata.features}
        return Events(x[:, 0], x[:, 1:], self.columns[1:], units, mass_name=self.metadata.mass.name)

    def _session(self, index: int) -> Any:
        if index not in self._sessions:
            where = f"term {self.name!r}: {self.metadata.samplers[index].file}"
            self._sessions[index] = make_session(self.term.samplers[index], where)
        return self._sessions[index]

    @cached_property
    def _sessions(self) -> dict[int, Any]:
        return {}

    def __getstate__(self) -> dict[str, Any]:
        # Sessions cannot be sent to another process; it makes its own.
        return {"term": self.term}
