r"""Reference events, and the error of a ratio's normalisation, from a sideband generator p_b(x | m).

With p_b(m) from the sideband fit, p_s(m) and the conditional ratio r(x|m), the signal density p_s(m) r(x|m) p_b(x|m) is normalised
if

.. math::

    E_b[R] = \int p_b(m) \, p_b(x|m) \, R(m, x) \, dm \, dx = 1, \qquad R = \frac{p_s(m)}{p_b(m)} \, r(x|m) .

Few draws of p_b reach where R is large, so half the events are drawn there and weighted: a member of the generator makes features
of latent numbers z, standard normal; with q a Gaussian that adapts to :math:`p_s(m) N(z) r` (population Monte Carlo, Cappe et al.
2004), masses and latent numbers are drawn from

.. math::

    \tfrac12 p_b(m) N(z) + \tfrac12 p_s(m) q(z), \qquad
    w = \frac{p_b(m) N(z)}{\tfrac12 p_b(m) N(z) + \tfrac12 p_s(m) q(z)} \le 2 .

The weighted events stand for background, exactly, and hold enough events where the signal is for Asimov sets and templates.

The ratio keeps its own ln kappa, unless asked otherwise, and the error of the generator is added to that of kappa. A learned ratio
that saturates where signal is a thousand times denser than background has E_b[R] < 1 with any kappa that is right where both
classes have events; scaling all of it up until E_b[R] = 1 puts the deficit of a region where the data have no event into a region where
they have many, and shifts mu by several times its error. What the generator finds is part of the result, with a warning if it is far from 1.
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
    from gbistat.fit.nuisances import BackgroundTilt
    from gbistat.likelihood.model import Model
    from gbistat.terms.density import MassDensity
    from gbistat.terms.generator import GeneratorTerm
    from gbistat.typing import FloatArray, Json

__all__ = ["Generated", "GeneratedBackground", "MemberNorm"]

N_EVENTS = 60_000
SEED = 20250607
PILOT_EVENTS = 3_000
LARGE_PULL = 3.0
"""Deviation of E_b[R] from 1, in its errors, that is worth a warning."""
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
        Of the (first) ratio, as used: its sigma holds the error of the generator.
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
    normalise : bool
        Whether ln kappa is chosen such that E_b[R] = 1 on the generator; otherwise the ratio keeps its own.
    tilt : BackgroundTilt, optional
        Nuisance that the generator's model names; it takes the place of the model's own.
    """

    generator: GeneratorTerm
    name: str
    sha256: str = ""
    directory: Path | None = None
    blinded: tuple[float, float] | None = None
    n_events: int = N_EVENTS
    seed: int = SEED
    normalise: bool = False
    tilt: BackgroundTilt | None = None

    def prepare(self, model: Model, window: MassWindow) -> Generated:
        """Draw reference events for a model in a window, and measure the normalisation of its ratio on them.

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
        The error of the generator is the standard deviation of ln E_b[R] over the members: each was trained on a
        bootstrap resample of the sidebands, so that their spread is the error of one of them. What all members have in
        common is not in it.
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
        own = ratio.metadata.log_kappa or LogKappa(value=0.0, sigma=0.0, method="none")
        found = _Norm.of(norms)
        log_kappa = self._log_kappa(own, found)
        pool = concatenate(parts)
        record: Json = {
            "source": "generator",
            "name": self.name,
            "sha256": self.sha256,
            "n_reference": len(pool),
            "seed": self.seed,
            "mean_ratio": {
                "value": found.mean,
                "sigma": found.mean * math.hypot(found.statistical, found.spread or 0.0),
            },
            "log_kappa": {
                "value": log_kappa.value,
                "sigma": log_kappa.sigma,
                "spread_of_members": found.spread,
                "model_value": own.value,
                "model_sigma": own.sigma,
            },
        }
        changed = NetworkTerm(
            ratio.metadata.model_copy(update={"log_kappa": log_kappa}), ratio.graphs, ratio.outside, ratio.samplers
        )
        warnings = self._warnings(window, found, own)
        return Generated(pool, _with_ratio(model, position, changed), log_kappa, tuple(norms), record, warnings)

    def _log_kappa(self, own: LogKappa, found: _Norm) -> LogKappa:
        """ln kappa with the error of the generator in its sigma."""
        spread = found.spread or 0.0
        if not self.normalise:
            sigma = math.hypot(own.sigma, spread)
            method = f"{own.method}; sigma with the spread of the {found.count} members of the generator {self.name!r}"
            return LogKappa(value=own.value, sigma=sigma, method=method)
        method = (
            f"E_b[R] = 1 on samples of the generator {self.name!r}; sigma: statistics and the spread of its members"
        )
        sigma = math.hypot(found.statistical, own.sigma if found.spread is None else spread)
        return LogKappa(value=own.value - math.log(found.mean), sigma=sigma, method=method)

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

    def _warnings(self, window: MassWindow, found: _Norm, own: LogKappa) -> tuple[str, ...]:
        warnings = []
        error = math.hypot(found.statistical, found.spread or 0.0, own.sigma)
        pull = math.log(found.mean) / error if error > 0 else 0.0
        if abs(pull) > LARGE_PULL and not self.normalise:
            warnings.append(
                f"on the generator {self.name!r} the ratio has E_b[R] = {found.mean:.3f} +- {found.mean * error:.3f}, not 1: where signal "
                "is densest the ratio or the generator is off; mu and the limit keep the model's own kappa"
            )
        if self.blinded is not None and not (self.blinded[0] <= window.low and window.high <= self.blinded[1]):
            warnings.append(
                f"the generator {self.name!r} was trained on events outside {self.blinded[0]:g}-{self.blinded[1]:g} {window.unit} "
                f"only, and the window {window} is not inside that: it has seen events of the window, signal among them"
            )
        if self.generator.n_members == 1:
            warnings.append(f"the generator {self.name!r} has one member: its own error is unknown and left out")
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


@dataclass(frozen=True)
class _Norm:
    """E_b[R] of an ensemble: mean over members, relative statistical error, and spread of the log over members.

    The spread is None for one member.
    """

    mean: float
    statistical: float
    spread: float | None
    count: int

    @classmethod
    def of(cls, norms: list[MemberNorm]) -> _Norm:
        values, errors = (np.array([getattr(norm, which) for norm in norms]) for which in ("value", "error"))
        mean, count = float(values.mean()), len(norms)
        statistical = float(np.sqrt(np.sum(errors**2)) / count / mean)
        if count == 1:
            return cls(mean, statistical, None, count)
        # Part of the scatter is the statistical error of each member's own sample.
        variance = float(np.var(np.log(values), ddof=1) - np.mean((errors / values) ** 2))
        return cls(mean, statistical, math.sqrt(max(variance, 0.0)), count)
