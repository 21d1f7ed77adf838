r"""Reference events and the normalisation of a ratio from a sideband generator p_b(x | m).

With p_b(m) from the sideband fit, p_s(m) and the conditional ratio r(x|m), the signal density p_s(m) r(x|m) p_b(x|m) is normalised
if

.. math::

    E_b[R] = \int p_b(m) \, p_b(x|m) \, R(m, x) \, dm \, dx = 1, \qquad R = \frac{p_s(m)}{p_b(m)} \, r(x|m) ,

which fixes ln kappa. Few draws of p_b reach where R is large, so half the events are drawn there and weighted: a member of the
generator makes features of latent numbers z, standard normal; with q a Gaussian that adapts to :math:`p_s(m) N(z) r`
(population Monte Carlo, Cappe et al. 2004), masses and latent numbers are drawn from

.. math::

    \tfrac12 p_b(m) N(z) + \tfrac12 p_s(m) q(z), \qquad
    w = \frac{p_b(m) N(z)}{\tfrac12 p_b(m) N(z) + \tfrac12 p_s(m) q(z)} \le 2 .

The weighted events stand for background, exactly, and hold enough events where the signal is for Asimov sets and templates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat.data.events import Events, concatenate
from gbistat.errors import ModelError
from gbistat.likelihood.components import LogRatio, MassFactor
from gbistat.likelihood.parameters import start_vector
from gbistat.terms.metadata import LogKappa
from gbistat.terms.network import NetworkTerm

if TYPE_CHECKING:
    from pathlib import Path

    from gbistat.data.window import MassWindow
    from gbistat.likelihood.model import Model
    from gbistat.terms.density import MassDensity
    from gbistat.terms.generator import GeneratorTerm
    from gbistat.typing import FloatArray, Json

__all__ = ["Generated", "GeneratedBackground", "MemberNorm"]

N_EVENTS = 60_000
SEED = 20250607
PILOT_EVENTS = 3_000
ROUNDS = 3
"""Rounds in which q adapts, of `PILOT_EVENTS` each, a member."""
INFLATION = 1.2
"""Of the standard deviations of q: a proposal must not be narrower than what it is for."""


@dataclass(frozen=True)
class MemberNorm:
    """E_b[R] with the ratio's own kappa, for one member of the generator, and its statistical error."""

    value: float
    error: float


@dataclass(frozen=True, eq=False)
class Generated:
    """What a generator gives in one window.

    Parameters
    ----------
    pool : Events
        Weighted events that stand for background.
    model : Model
        The model with its ratio normalised on the generator.
    log_kappa : LogKappa
        Of the (first) ratio, as used.
    members : tuple of MemberNorm
        One a member.
    record : dict
        What a result says about its background, as JSON.
    warnings : tuple of str
        What a reader of the results must know.
    """

    pool: Events
    model: Model
    log_kappa: LogKappa
    members: tuple[MemberNorm, ...]
    record: Json
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class GeneratedBackground:
    """A generator as the background of a model.

    Parameters
    ----------
    generator : GeneratorTerm
        p_b(x | m).
    name, sha256 : str
        The model that it comes from.
    directory : Path, optional
        Its folder.
    blinded : (float, float), optional
        Window whose events it never saw, in the unit of the mass.
    n_events : int
        Reference events to draw in a window.
    seed : int
        Of all draws.
    """

    generator: GeneratorTerm
    name: str
    sha256: str = ""
    directory: Path | None = None
    blinded: tuple[float, float] | None = None
    n_events: int = N_EVENTS
    seed: int = SEED

    def prepare(self, model: Model, window: MassWindow) -> Generated:
        """Draw reference events for a model in a window, and normalise its ratio on them.

        Parameters
        ----------
        model : Model
            With a signal that has a ratio of features, and one background with a density of the mass.
        window : MassWindow
            In the unit of the generator's mass.

        Returns
        -------
        Generated
            The same for the same arguments.

        Raises
        ------
        ModelError
            If the model has no ratio of features, or the generator is of another mass or unit.
        TermError
            If the window is outside the generator's valid range, or a ratio cannot be evaluated on its events.

        Notes
        -----
        sigma of ln kappa is the statistical error of E_b[R] and, in quadrature, the standard deviation of its log over
        the members: each was trained on a bootstrap resample of the sidebands, so that their spread is the error of
        one of them. What all members have in common is not in it.
        """
        self._check(model, window)
        position, ratio = _first_ratio(model)
        sampler = _Sampler(self.generator, model, window)
        parts, norms = [], []
        for member, rng in enumerate(np.random.default_rng(self.seed).spawn(self.generator.n_members)):
            events, ratios = sampler.draw(member, -(-self.n_events // self.generator.n_members), rng=rng)
            parts.append(events)
            values = sampler.weights(events) * ratios
            norms.append(MemberNorm(float(values.mean()), float(values.std() / math.sqrt(values.size))))
        own = ratio.metadata.log_kappa
        log_kappa, spread = _combine(
            norms, 0.0 if own is None else own.value, 0.0 if own is None else own.sigma, self.name
        )
        pool = concatenate(parts)
        record: Json = {
            "source": "generator",
            "name": self.name,
            "sha256": self.sha256,
            "n_reference": len(pool),
            "seed": self.seed,
            "log_kappa": {
                "value": log_kappa.value,
                "sigma": log_kappa.sigma,
                "spread_of_members": spread,
                "model_value": None if own is None else own.value,
                "model_sigma": None if own is None else own.sigma,
            },
        }
        changed = NetworkTerm(
            ratio.metadata.model_copy(update={"log_kappa": log_kappa}), ratio.graphs, ratio.outside, ratio.samplers
        )
        return Generated(
            pool, _with_ratio(model, position, changed), log_kappa, tuple(norms), record, self._warnings(window)
        )

    def _check(self, model: Model, window: MassWindow) -> None:
        mass = self.generator.metadata.mass
        if mass.unit != window.unit:
            raise ModelError(
                f"the generator {self.name!r} has the mass {mass.name!r} in {mass.unit}, and the model in {window.unit}; "
                "they must be the same"
            )
        if not (mass.low <= window.low and window.high <= mass.high):
            raise ModelError(
                f"the window {window} is not inside {mass.low:g}-{mass.high:g} {mass.unit}, where the generator "
                f"{self.name!r} is valid; choose a window inside, or train a generator for it"
            )
        known = self.generator.metadata.feature_names
        needed = [f.term for c in model.components for f in c.factors if isinstance(f, LogRatio)]
        names = [name for term in needed if isinstance(term, NetworkTerm) for name in term.feature_names]
        missing = [name for name in names if name not in known]
        if missing:
            raise ModelError(
                f"the generator {self.name!r} makes {', '.join(known)}, and the model needs {missing[0]!r}; train a "
                "generator of the model's features"
            )

    def _warnings(self, window: MassWindow) -> tuple[str, ...]:
        warnings = []
        if self.blinded is not None and not (self.blinded[0] <= window.low and window.high <= self.blinded[1]):
            warnings.append(
                f"the generator {self.name!r} was trained on events outside {self.blinded[0]:g}-{self.blinded[1]:g} {window.unit} "
                f"only, and the window {window} is not inside that: it has seen events of the window, signal among them"
            )
        if self.generator.n_members == 1:
            warnings.append(
                f"the generator {self.name!r} has one member: its own error is unknown, and ln kappa keeps the model's sigma"
            )
        return tuple(warnings)


@dataclass(frozen=True, eq=False)
class _Sampler:
    """Draws from one member at a time; see the head of this module."""

    generator: GeneratorTerm
    model: Model
    window: MassWindow
    start: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        names = [parameter.name for parameter in self.model.parameters]
        values = start_vector(self.model.parameters).tolist()
        object.__setattr__(self, "start", dict(zip(names, values, strict=True)))

    def draw(self, member: int, n: int, *, rng: np.random.Generator) -> tuple[Events, FloatArray]:
        """Weighted events of a member, and R at them."""
        centre, root = self._adapt(member, rng)
        half = n // 2
        z = rng.standard_normal((n, len(self.generator.features)))
        z[:half] = centre + z[:half] @ root.T
        mass = np.concatenate([self._masses("signal", half, rng), self._masses("background", n - half, rng)])
        near = np.linalg.solve(root, (z - centre).T)
        log_q = -0.5 * np.sum(near**2, axis=0) - np.linalg.slogdet(root)[1]
        log_normal = -0.5 * np.sum(z**2, axis=1)
        gain = self._mass_ratio(mass) + log_q - log_normal
        share = half / n
        weights = 1.0 / ((1.0 - share) + share * np.exp(np.minimum(gain, 600.0)))
        events = replace(self._events(z, mass, member), weights=weights)
        return events, np.exp(self._mass_ratio(mass) + self._log_ratio(events))

    def weights(self, events: Events) -> FloatArray:
        """Weights of events that `draw` gave."""
        return np.ones(len(events)) if events.weights is None else events.weights

    def _adapt(self, member: int, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """Mean and root of the covariance of q, after rounds of importance sampling from the q before."""
        d = len(self.generator.features)
        centre, root = np.zeros(d), np.eye(d)
        for round_ in range(ROUNDS):
            z = centre + rng.standard_normal((PILOT_EVENTS, d)) @ root.T
            events = self._events(z, self._masses("signal", len(z), rng), member)
            near = np.linalg.solve(root, (z - centre).T)
            log_w = self._log_ratio(events) - 0.5 * np.sum(z**2, axis=1) + 0.5 * np.sum(near**2, axis=0)
            # The first rounds are tempered: a handful of events would carry the full weight.
            w = np.exp((log_w - log_w.max()) * (round_ + 1.0) / ROUNDS)
            w /= w.sum()
            centre = w @ z
            covariance = (z - centre).T @ ((z - centre) * w[:, None]) + 0.02 * np.eye(d)
            root = INFLATION * np.linalg.cholesky(covariance)
        return centre, root

    def _events(self, z: FloatArray, mass: FloatArray, member: int) -> Events:
        metadata = self.generator.metadata
        units = {item.name: item.unit for item in metadata.features}
        features = self.generator.transform(z, mass, member)
        return Events(mass, features, self.generator.features, units, mass_name=metadata.mass.name)

    def _density(self, which: str) -> tuple[MassDensity, FloatArray]:
        """Mass density of signal or background in the window, and its parameters at the start values."""
        signal = self.model.component(self.model.signal)
        component = signal if which == "signal" else next(c for c in self.model.components if c is not signal)
        density = next((f.density for f in component.factors if isinstance(f, MassFactor)), None)
        if density is None:
            raise ModelError(f"the {which} has no density of the mass, which reference events need")
        return density, np.array([self.start[name] for name in density.parameters])

    def _masses(self, which: str, n: int, rng: np.random.Generator) -> FloatArray:
        density, values = self._density(which)
        inside = np.nextafter(self.window.high, self.window.low)
        mass: FloatArray = rng.permutation(density.sample(n, values, rng=rng))
        return mass.clip(self.window.low, inside)

    def _mass_ratio(self, mass: FloatArray) -> FloatArray:
        (signal, of_signal), (background, of_background) = self._density("signal"), self._density("background")
        ratio: FloatArray = signal.log_prob(mass, of_signal) - background.log_prob(mass, of_background)
        return ratio

    def _log_ratio(self, events: Events) -> FloatArray:
        total = np.zeros(len(events))
        for factor in self.model.component(self.model.signal).factors:
            if isinstance(factor, LogRatio):
                total += factor.term.log_ratio(events)
        return total


def _first_ratio(model: Model) -> tuple[int, NetworkTerm]:
    for position, factor in enumerate(model.component(model.signal).factors):
        if isinstance(factor, LogRatio) and isinstance(factor.term, NetworkTerm):
            return position, factor.term
    raise ModelError(
        "the model looks at the mass alone, so that a generator of features changes nothing; leave --background out"
    )


def _with_ratio(model: Model, position: int, term: NetworkTerm) -> Model:
    """Model whose signal has another ratio term."""

    def changed(component: Any) -> Any:
        if component.name != model.signal:
            return component
        factors = list(component.factors)
        factors[position] = LogRatio(term)
        return replace(component, factors=tuple(factors))

    return replace(model, components=tuple(changed(component) for component in model.components))


def _combine(norms: list[MemberNorm], own: float, own_sigma: float, name: str) -> tuple[LogKappa, float | None]:
    """ln kappa that makes the members' mean E_b[R] 1, and the spread of its log over the members."""
    values, errors = (np.array([getattr(norm, which) for norm in norms]) for which in ("value", "error"))
    mean, count = float(values.mean()), len(norms)
    statistical = float(np.sqrt(np.sum(errors**2)) / count / mean)
    if count == 1:
        spread, systematic = None, own_sigma
    else:
        spread = systematic = float(np.std(np.log(values), ddof=1))
        # Part of the spread is the statistical error of each member's own sample.
        systematic = math.sqrt(max(systematic**2 - float(np.mean((errors / values) ** 2)), 0.0))
    kappa = LogKappa(
        value=own - math.log(mean),
        sigma=math.hypot(statistical, systematic),
        method=f"samples of the generator {name!r}; sigma: their statistics and the spread of its {count} members",
    )
    return kappa, spread
