"""Background of a parametrised classifier drawn from an exported sideband generator: it never runs out, and its window is blind.

A simulated or real background is finite. In its densest corner a signal is a thousand times as dense as background, and the few background
events there decide what a network learns, and what its normalisation is. A generator p_b(x | m), learned from the sidebands, gives many
times more. What it has wrong stays wrong, so that events of the window itself, none of which trained anything, must
grade the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import EventsError, TermError, UnitsError, nearest
from gbistat.terms.density import MassDensity
from gbistat.terms.generator import GeneratorTerm
from gbistat.terms.shapes.registry import make_shape
from gbistat.terms.store import load_model
from gbistat.training.mass_shapes import fit_mass_shape

if TYPE_CHECKING:
    from gbistat.data.events import Events
    from gbistat.terms.store import LoadedModel
    from gbistat.training.paws_card import PawsCard
    from gbistat.training.splits import Sample
    from gbistat.typing import FloatArray, IntArray, Json

__all__ = [
    "PawsGenerator",
    "epoch_background",
    "generated_background",
    "load_paws_generator",
    "paws_generator",
    "thinned",
]

STREAM = 36
DERIVED = {"m_heavy": ("m_light", "dm", 1.0), "dm": ("m_heavy", "m_light", -1.0), "m_light": ("m_heavy", "dm", -1.0)}
"""Features that follow from two others: first + sign * second."""


@dataclass(frozen=True, eq=False)
class PawsGenerator:
    """A generator that makes background events with the features of a card.

    Parameters
    ----------
    model : LoadedModel
        The exported generator.
    generator : GeneratorTerm
        Its density of the features at given mass.
    features : tuple of str
        Features of the card, the d columns that are made.
    density : MassDensity
        Density of the mass, with no free parameter.
    shape : array
        Parameters of its shape.
    """

    model: LoadedModel
    generator: GeneratorTerm
    features: tuple[str, ...]
    density: MassDensity
    shape: FloatArray

    @property
    def window(self) -> tuple[float, float]:
        """Window whose events the generator never saw.

        Raises
        ------
        TermError
            If the model names none.
        """
        if self.model.spec.window is None:
            raise TermError(f"the generator {self.model.spec.name!r} names no window that it left out; export it again")
        low, high = self.model.spec.window
        return float(low), float(high)

    def draw(
        self, n_events: int, interval: tuple[float, float], *, rng: np.random.Generator, member: int | None = None
    ) -> FloatArray:
        """Background events.

        Parameters
        ----------
        n_events : int
            How many.
        interval : (float, float)
            Range of the mass.
        rng : numpy.random.Generator
            Source of randomness.
        member : int, optional
            Member of the generator that draws them, counted on from 0 beyond the last; all in turn by default.

        Returns
        -------
        array of shape (n_events, 1 + d)
            Mass, and the features of the card in its order.

        Raises
        ------
        TermError
            If the interval is outside the range where the generator is valid.
        """
        mass = self.density.on((interval,)).sample(n_events, np.empty(0), rng=rng)
        if member is None:
            made = self.generator.sample(mass, rng=rng)
        else:
            latent = rng.standard_normal((n_events, len(self.generator.features)))
            made = self.generator.transform(latent, mass, member % self.generator.n_members)
        return np.column_stack([mass, _columns(made, self.generator.features, self.features)])

    def record(self) -> Json:
        """What identifies it, as the entry of a split."""
        return {
            "file": self.model.spec.name,
            "sha256": self.model.sha256,
            "n_events": 0,
            "seed": 0,
            "counts": {"generator": 0},
            "mass_shape": [float(f"{value:.6g}") for value in self.shape],
        }


def paws_generator(card: PawsCard, background: Sample) -> PawsGenerator:
    """Generator of a card, with the density of the mass from a fit to the sidebands of its background file.

    Raises
    ------
    EventsError
        If it lacks a feature of the card, or a sideband is empty.
    UnitsError
        If a feature, or the mass, has another unit than the card says.
    ModelError, TermError
        If there is no such generator, it is damaged, cannot be drawn from, or is not valid in the card's train_range.
    FitFailed
        If the fit of the mass does not converge.
    """
    draft = load_paws_generator(card, ())
    low, high = card.model.fit_range
    sides = ((low, draft.window[0]), (draft.window[1], high))
    mass = np.concatenate([_inside(background.events, side) for side in sides if side[0] < side[1]])
    if mass.size < 10 * card.model.background_parameters:
        raise EventsError(
            f"{background.file} has {mass.size} events outside {draft.window[0]:g}-{draft.window[1]:g} {card.unit} in "
            f"{low:g}-{high:g}; the spectrum of the generated background is fitted there, widen model.fit_range"
        )
    shape = make_shape("dijet", n_parameters=card.model.background_parameters, sqrt_s=card.model.sqrt_s)
    start = {parameter.name: parameter.start or 0.1 for parameter in shape.parameters}
    fitted = fit_mass_shape(shape, mass, sides, start)
    return load_paws_generator(card, tuple(fitted.array.tolist()))


def generated_background(
    generator: PawsGenerator, card: PawsCard, member: int, *, validates: bool = False
) -> FloatArray:
    """Features of the background events that a member of the classifier learns from, or is validated with.

    Returns
    -------
    array of shape (n, d)
        The same for the same card and member; ``n_events`` of them to validate, ``pool`` to learn from.
    """
    rng = np.random.default_rng([card.seed, STREAM, member, int(validates)])
    size = card.background.n_events if validates else card.background.pool
    return generator.draw(size, card.train_range, rng=rng, member=member)[:, 1:]


def epoch_background(pool: FloatArray, card: PawsCard, member: int, epoch: int) -> FloatArray:
    """Events of an epoch, at random from those of the member."""
    rng = np.random.default_rng([card.seed, STREAM, member, 2, epoch])
    return pool[rng.permutation(len(pool))[: card.background.n_events]]


def load_paws_generator(card: PawsCard, shape: tuple[float, ...]) -> PawsGenerator:
    """Generator of a card, with known parameters of the density of the mass.

    Raises
    ------
    EventsError, UnitsError, ModelError, TermError
        As `paws_generator`.
    """
    name = card.background.generator
    if name is None:
        raise EventsError("the card names no generator; give background.generator")
    model = load_model(name)
    term = model.terms.get(str(model.spec.background.features))
    if term is None:
        raise TermError(f"the model {name!r} has no generator of features; give one that gbistat train background made")
    generator = GeneratorTerm(term)
    _check(generator, card, name)
    spectrum = make_shape("dijet", n_parameters=card.model.background_parameters, sqrt_s=card.model.sqrt_s)
    theta = np.array(shape) if shape else np.ones(len(spectrum.parameters))
    return PawsGenerator(
        model, generator, card.features, MassDensity.fixed(spectrum, (card.train_range,), theta), theta
    )


def _check(generator: GeneratorTerm, card: PawsCard, name: str) -> None:
    spec = generator.metadata.mass
    if (spec.name, spec.unit) != (card.mass, card.unit):
        raise UnitsError(
            f"the generator {name!r} has the mass {spec.name!r} in {spec.unit}, and the card {card.mass!r} in {card.unit}; "
            "take a generator of the same mass"
        )
    low, high = spec.bounds
    if card.train_range[0] < low or card.train_range[1] > high:
        raise TermError(
            f"train_range {list(card.train_range)} is not inside {low:g}-{high:g} {spec.unit}, where the generator {name!r} is "
            "valid; narrow it"
        )
    units = {item.name: item.unit for item in generator.metadata.features}
    for item in card.inputs:
        sources = _sources(item.name, generator.features)
        if sources is None:
            raise EventsError(
                f"the generator {name!r} makes no {item.name!r}, which the card takes as input; "
                f"{nearest(item.name, generator.features)}; train one with all inputs of the card"
            )
        found = units[sources[0]]
        if found != item.unit:
            raise UnitsError(
                f"the generator {name!r} makes {sources[0]!r} in {found!r}, and the card says {item.unit!r} for "
                f"{item.name!r}; correct the card"
            )


def _sources(name: str, there: tuple[str, ...]) -> tuple[str, ...] | None:
    if name in there:
        return (name,)
    first, second, _ = DERIVED.get(name, ("", "", 0.0))
    return (first, second) if first in there and second in there else None


def _columns(rows: FloatArray, there: tuple[str, ...], wanted: tuple[str, ...]) -> FloatArray:
    """Columns by name, some of them computed from two others."""
    known = dict(zip(there, rows.T, strict=True))
    made = []
    for name in wanted:
        if name in known:
            made.append(known[name])
        else:
            first, second, sign = DERIVED[name]
            made.append(known[first] + sign * known[second])
    return np.column_stack(made)


def _inside(events: Events, interval: tuple[float, float]) -> FloatArray:
    mass = events.mass
    return mass[(mass >= interval[0]) & (mass < interval[1])]


def thinned(
    log_importance: FloatArray, count: int, *, smallest: float, rng: np.random.Generator
) -> tuple[IntArray, FloatArray]:
    """Rows kept from a sample with chances that rise with an importance, and the weights 1 / chance that undo it.

    Parameters
    ----------
    log_importance : array of shape (n,)
        ln of what the chance is proportional to, up to 1.
    count : int
        About how many rows are kept.
    smallest : float
        Smallest chance of any row: 1 / `smallest` is the largest weight.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    rows, weights
        Row numbers, and one weight each: sums of weights estimate numbers of the n events, whatever the importance.
    """
    low, high = -50.0, 50.0
    # The expected number rises with the scale; halving finds it.
    for _ in range(60):
        middle = 0.5 * (low + high)
        chance = np.clip(np.exp(np.minimum(log_importance + middle, 0.0)), smallest, 1.0)
        low, high = (middle, high) if chance.sum() < count else (low, middle)
    rows = np.flatnonzero(rng.random(chance.size) < chance)
    return rows, 1.0 / chance[rows]
