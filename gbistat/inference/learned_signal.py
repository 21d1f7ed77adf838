"""From a model whose signal was learned from the data, and those data, to log ratios by fold.

The background is ``p_b(m) p_b(x | m)``: the mass from the sideband fit, the features from the frozen generator. Events that the
generator cannot make are left out and counted; those outside the range of the signal networks stay, with signal density 0, so
that p_b stays normalised on the events that are judged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import logsumexp

from gbistat.data.events import Events
from gbistat.data.window import MassWindow
from gbistat.errors import EventsError, ModelError, WindowError
from gbistat.fit.build import fit_background
from gbistat.inference.background_family import FeatureTilts, ensemble_directions
from gbistat.inference.bounded_evidence import RatioReference
from gbistat.inference.split_likelihood import FoldRatios
from gbistat.terms.generator import GeneratorTerm
from gbistat.terms.learned_signal import LearnedSignalTerm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gbistat.fit.sidebands import SidebandFit
    from gbistat.inference.background_family import BackgroundFamily
    from gbistat.inference.split_likelihood import Scheme
    from gbistat.terms.model_spec import ModelSpec
    from gbistat.terms.network import NetworkTerm
    from gbistat.typing import FloatArray, IntArray

__all__ = ["BackgroundDensities", "LearnedSignalData", "learned_signal_data"]

IMPOSSIBLE = 60.0
"""ln p_s / p_b given to reference events of the signal that the background cannot make."""
TILT_REFERENCE = 200_000
"""Events that the distribution functions of features are taken from."""


@dataclass(frozen=True, eq=False)
class BackgroundDensities:
    """p_b in the window, and the corners of the composite null around it.

    Parameters
    ----------
    generator : GeneratorTerm
        Features at given mass.
    sidebands : SidebandFit
        The mass.
    family : BackgroundFamily
        How far the null reaches.
    tilts : FeatureTilts or None
        Smooth changes of the features, where the family has them.
    """

    generator: GeneratorTerm
    sidebands: SidebandFit
    family: BackgroundFamily
    tilts: FeatureTilts | None

    def select(self, events: Events) -> FloatArray:
        """Features of events in the generator's order, shape (n, d)."""
        return events.matrix(self.generator.features)

    def log_prob(self, events: Events) -> FloatArray:
        """ln p_b(m, x), shape (n,); -inf for events that the generator cannot make."""
        mass: FloatArray = self.sidebands.density().log_prob(events.mass, np.zeros(self.sidebands.theta.size))
        return mass + self.generator.log_prob(self.select(events), events.mass)

    def log_corners(self, events: Events) -> FloatArray:
        """ln of the null's corners over p_b at events that the generator can make, shape (B, n)."""
        x = self.select(events)
        members = mass = tilts = None
        if self.family.ensemble > 0:
            members = ensemble_directions(self.generator.member_log_prob(x, events.mass))
        if self.family.mass_sigma > 0:
            mass = self._mass_directions(events.mass)
        if self.tilts is not None:
            tilts = self.tilts(x)
        return self.family.log_corners(members, mass, tilts, n=len(events))

    def _mass_directions(self, mass: FloatArray) -> FloatArray:
        """ln of mass densities with one nuisance up or down, over the best one; their mixtures hold the ball of `mass_sigma`."""
        density, size = self.sidebands.density(), self.sidebands.theta.size
        best = density.log_prob(mass, np.zeros(size))
        reach = self.family.mass_sigma * np.sqrt(size)
        shifts = [sign * reach * unit for unit in np.eye(size) for sign in (1.0, -1.0)]
        return np.array([density.log_prob(mass, shift) - best for shift in shifts]).reshape(-1, mass.size)

    def sample(self, n: int, *, rng: np.random.Generator) -> Events:
        """Events of p_b."""
        mass = self.sidebands.density().sample(n, np.zeros(self.sidebands.theta.size), rng=rng)
        features, spec = self.generator.sample(mass, rng=rng), self.generator.metadata
        units = {item.name: item.unit for item in spec.features}
        return Events(mass, features, self.generator.features, units, mass_name=spec.mass.name)


@dataclass(frozen=True, eq=False)
class LearnedSignalData:
    """Data of one window, ready for statements about a learned signal.

    Parameters
    ----------
    events : Events
        The n events in the window that the generator can make.
    left_out : int
        Events in the window that it cannot.
    term : LearnedSignalTerm
        The signal.
    background : BackgroundDensities
        The background.
    fold : array of shape (n,)
        Fold of each event.
    log_ratio : array of shape (M, n)
        ln p_s / p_b by the networks that did not see the event.
    folds : tuple of FoldRatios
        The same by fold that gives evidence, with the corners of the null.

    Notes
    -----
    Where the networks of a fold saw earlier folds only, the first fold gives scores and no evidence: its networks saw later ones.
    """

    events: Events
    left_out: int
    term: LearnedSignalTerm
    background: BackgroundDensities
    fold: IntArray
    log_ratio: FloatArray
    folds: tuple[FoldRatios, ...]

    @property
    def scheme(self) -> Scheme:
        """How evidence of folds is put together: a product where the networks of each saw earlier folds only."""
        return "product" if self.term.train_on == "earlier" else "average"

    @property
    def judged(self) -> tuple[int, ...]:
        """Folds that give evidence."""
        return tuple(range(1 if self.scheme == "product" else 0, self.term.n_folds))

    @property
    def score(self) -> FloatArray:
        """ln of the mean of the networks' p_s over p_b, shape (n,): the anomaly score."""
        result: FloatArray = logsumexp(self.log_ratio, axis=0) - np.log(len(self.log_ratio))
        return result

    @property
    def plain_folds(self) -> tuple[FoldRatios, ...]:
        """Folds that give evidence, with p_b alone as the null."""
        return tuple(FoldRatios(fold.log_ratio) for fold in self.folds)

    def references(self, n: int, *, rng: np.random.Generator) -> tuple[RatioReference, ...]:
        """Reference events of both kinds for each fold that gives evidence, for `gbistat.inference.signal_fraction.unrestricted_lower_limit`.

        Parameters
        ----------
        n : int
            Of each kind.
        rng : numpy.random.Generator
            Source of randomness.
        """
        drawn = self.background.sample(n, rng=rng)
        log_b, corners = self.background.log_prob(drawn), self.background.log_corners(drawn)
        result = []
        for k in self.judged:
            signal = self.term.sample(n, fold=k, rng=rng)
            signal_b = self.background.log_prob(signal)
            possible = np.isfinite(signal_b)
            ratio = np.full((self.term.n_members, n), IMPOSSIBLE)
            ratio[:, possible] = self.term.fold_log_prob(signal.select(possible), k) - signal_b[possible]
            other = np.zeros((len(corners), n))
            other[:, possible] = self.background.log_corners(signal.select(possible))
            result.append(RatioReference(self.term.fold_log_prob(drawn, k) - log_b, ratio, corners, other))
        return tuple(result)


def learned_signal_data(
    spec: ModelSpec,
    terms: Mapping[str, NetworkTerm],
    events: Events,
    window: MassWindow,
    *,
    family: BackgroundFamily,
    rng: np.random.Generator,
) -> LearnedSignalData:
    """Fit the sidebands, evaluate the networks, and deal the events to their folds.

    Parameters
    ----------
    spec : ModelSpec
        A model whose signal is a learned density.
    terms : mapping of str to NetworkTerm
        Its terms.
    events : Events
        The whole spectrum, unweighted: the very events that the signal was learned from, or others.
    window : MassWindow
        That of the training.
    family : BackgroundFamily
        Of the null.
    rng : numpy.random.Generator
        Draws the events whose distribution functions tilts are made of.

    Raises
    ------
    ModelError
        If the model's signal is not learned, or its mass shape of the background is fixed.
    WindowError
        If the window is not that of the training.
    EventsError
        If events are weighted, or a fold has none.
    """
    density = spec.signal.density
    features = spec.background.features
    if density is None or features is None:
        raise ModelError(
            f"the signal of model {spec.name!r} was not learned from data; gbistat limits treats it otherwise"
        )
    if not spec.background.mass.is_free:
        raise ModelError(
            f"the background's mass shape of model {spec.name!r} is fixed; a learned signal needs one that is fitted to "
            "the sidebands: leave background.mass.parameters empty"
        )
    if events.weights is not None:
        raise EventsError("events are weighted: the likelihood of weighted events proves nothing; drop the weights")
    term, generator = LearnedSignalTerm(terms[density]), GeneratorTerm(terms[features])
    if not np.allclose(window.edges, term.window, rtol=1e-9):
        low, high = term.window
        raise WindowError(
            f"window {window} is not {low:g}-{high:g} {window.unit}, on which the signal {term.name!r} was learned; give that one"
        )
    events = events.to_unit(spec.mass.unit)
    fit_range = MassWindow(*spec.background.fit_range, unit=spec.mass.unit)
    sidebands, _ = fit_background(spec.background, events, window, fit_range)
    tilts = None
    if family.tilt > 0:
        untilted = BackgroundDensities(generator, sidebands, family, None)
        tilts = FeatureTilts.of(untilted.select(untilted.sample(TILT_REFERENCE, rng=rng)), family.degree)
    background = BackgroundDensities(generator, sidebands, family, tilts)
    inside = events.in_window(window)
    log_b = background.log_prob(inside)
    possible = np.isfinite(log_b)
    chosen, log_b = inside.select(possible), log_b[possible]
    if not len(chosen):
        raise EventsError(f"none of {len(inside)} events in the window can be made by {generator.name!r}; check units")
    fold = term.rule.fold_of(chosen)
    log_ratio = np.full((term.n_members, len(chosen)), -np.inf)
    folds = []
    for k in range(term.n_folds):
        rows = np.flatnonzero(fold == k)
        if not rows.size:
            raise EventsError(
                f"no event of fold {k} of {term.n_folds} in the window: {len(chosen)} events are too few for these folds"
            )
        own = chosen.select(rows)
        log_ratio[:, rows] = term.fold_log_prob(own, k) - log_b[rows]
        if k or term.train_on == "others":
            folds.append(FoldRatios(log_ratio[:, rows], background.log_corners(own)))
    return LearnedSignalData(chosen, len(inside) - len(chosen), term, background, fold, log_ratio, tuple(folds))
