r"""Reference measures: weighted points that stand for an integral over events.

An Asimov data set (section 3.2 of arXiv:1007.1727) is the set of events that makes every estimate equal its true value.
For an unbinned likelihood it is a set of points with weights: where

    sum_i q_i g_i  ~  integral g(m, x) dm dx

(in the reference measure of the densities), the weights ``a_i = q_i lambda_i(theta)`` make it for parameters theta.
Three measures are offered, from the best to the most makeshift:

- quadrature nodes, exact, where densities depend on the mass alone;
- held-out background events (simulated, or sampled from a generator), stratified in mass, where networks look at features;
- the data themselves, ``q_i = w_i / lambda_i(theta^)``: always possible, but it inherits the data's fluctuations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gbistat.data.events import Events
from gbistat.errors import ModelError
from gbistat.likelihood.components import LogRatio, MassFactor
from gbistat.likelihood.held import HeldRatio
from gbistat.likelihood.mixture import Mixture
from gbistat.likelihood.modes import DecayModes
from gbistat.likelihood.parameters import start_vector
from gbistat.likelihood.surface import RatioSurface
from gbistat.likelihood.tilt import Tilt
from gbistat.likelihood.weight_tilt import WeightTilt
from gbistat.terms.quadrature import gauss_legendre

if TYPE_CHECKING:
    from gbistat.likelihood.model import Model
    from gbistat.likelihood.nll import NLL
    from gbistat.typing import FloatArray

__all__ = [
    "Reference",
    "asimov_nll",
    "background_nodes",
    "reference_from_data",
    "reference_from_pool",
    "reference_from_quadrature",
]

STRATA = 20
"""Slices of mass in which pool events share their weight."""
PANEL = 16
"""Nodes of one panel of the quadrature."""


@dataclass(frozen=True, eq=False)
class Reference:
    """Weighted points for one data term.

    Parameters
    ----------
    mixture : Mixture
        The model's components at the points.
    measure : array of shape (n,)
        ``q_i``.
    kind : str
        "quadrature", "pool" or "data".
    effective_size : float
        ``(sum a)^2 / sum a^2`` of the signal's weights; infinite for quadrature. Small means that few points carry the
        signal's share, so that Asimov numbers are uncertain by about ``1 / sqrt(effective_size)``.
    normalisation : float
        Integral of the signal density over the points before it was set to 1.
    events : Events or None
        Where the points are, for plots and binned templates.
    """

    mixture: Mixture
    measure: FloatArray
    kind: str
    effective_size: float
    normalisation: float
    events: Events | None = None

    def weights(self, theta: FloatArray) -> FloatArray:
        """Weights ``q_i lambda_i(theta)`` of the Asimov set, shape (n,)."""
        return self.measure * self.mixture.intensity(theta)


def reference_from_quadrature(model: Model, *, nodes_per_piece: int = 400) -> Reference:
    """Exact measure for a model whose densities depend on the mass alone.

    Parameters
    ----------
    model : Model
        Every factor a mass density, all on the same domain.
    nodes_per_piece : int, default 400
        Gauss-Legendre nodes on each interval of the domain, 16 a panel; kinks and narrow peaks of the shapes at the start
        values get panels of their own on top.

    Raises
    ------
    ModelError
        If some factor looks at more than the mass: a pool of events is needed then.
    """
    # A tilt is a function of densities that are looked at themselves.
    factors = [f for component in model.components for f in component.factors if not isinstance(f, Tilt)]
    masses = [factor for factor in factors if isinstance(factor, MassFactor)]
    if len(masses) != len(factors) or not masses:
        raise ModelError("quadrature needs densities of the mass alone; give reference events (reference_from_pool)")
    start = start_vector(model.parameters)
    signal = next(f for f in model.component(model.signal).factors if isinstance(f, MassFactor))
    breaks: list[float] = []
    for density in (factor.density for factor in masses):
        values = np.array([model.parameter(name).start for name in density.parameters])
        breaks += density.shape.breakpoints(density.shape_parameters(values))
    panels = max(1, math.ceil(nodes_per_piece / PANEL))
    low, high = [], []
    for begin, end in signal.density.domain:
        inner = [point for point in breaks if begin < point < end]
        cuts = np.unique(np.concatenate([np.linspace(begin, end, panels + 1), inner]))
        low.append(cuts[:-1])
        high.append(cuts[1:])
    mass, measure = gauss_legendre(np.concatenate(low), np.concatenate(high), PANEL)
    events = Events(mass=mass.ravel())
    mixture = Mixture.of(model, events, start)
    return Reference(mixture, measure.ravel(), "quadrature", float("inf"), 1.0, events)


def background_nodes(model: Model, *, nodes_per_piece: int = 400) -> Events:
    """Quadrature nodes of the mass, weighted with the background density at the start values: the weights sum to 1.

    Parameters
    ----------
    model : Model
        One signal and one background whose densities depend on the mass alone.
    nodes_per_piece : int, default 400
        Gauss-Legendre nodes.

    Raises
    ------
    ModelError
        If some factor looks at more than the mass.
    """
    reference = reference_from_quadrature(model, nodes_per_piece=nodes_per_piece)
    if reference.events is None:
        raise ModelError("the quadrature of this model has no nodes")
    (index,) = (i for i, component in enumerate(model.components) if component.name != model.signal)
    density = np.exp(reference.mixture.components[index].log_density(start_vector(model.parameters)))
    return replace(reference.events, weights=reference.measure * density)


def reference_from_pool(model: Model, pool: Events) -> Reference:
    """Measure from background events that neither trained a network nor serve as data.

    Within each of a number of slices of mass the events share the probability that the background density at the start values
    gives the slice; their features within it are taken as they are. The signal density is then normalised on the
    points: without that, a pool whose mean ratio is off by 0.2 % shifts mu by a few per cent of its error and more.

    Parameters
    ----------
    model : Model
        One background with a mass density.
    pool : Events
        Background events with the features that the networks need; those outside the window are left out.

    Raises
    ------
    ModelError
        If the model has several backgrounds, or none with a mass density.
    EventsError
        If no event is in the window.
    """
    backgrounds = [c for c in model.components if c.name != model.signal]
    if len(backgrounds) != 1:
        raise ModelError(f"a pool of background events needs one background; this model has {len(backgrounds)}")
    density = next((f.density for f in backgrounds[0].factors if isinstance(f, MassFactor)), None)
    events = pool if model.window is None else pool.in_window(model.window)
    start = start_vector(model.parameters)
    mixture = Mixture.of(model, events, start)
    own = np.ones(len(events)) if events.weights is None else events.weights
    if density is None or model.window is None:
        share = own / own.sum()
    else:
        share = np.zeros(len(events))
        edges = np.unique(np.quantile(events.mass, np.linspace(0.0, 1.0, max(1, min(STRATA, len(events) // 50)) + 1)))
        edges[0], edges[-1] = model.window.low, model.window.high
        values = np.array([model.parameter(name).start for name in density.parameters])
        for low, high, probability in zip(edges[:-1], edges[1:], density.probabilities(edges, values), strict=True):
            inside = (events.mass >= low) & (events.mass < high)
            share[inside] = probability * own[inside] / own[inside].sum()
    index = [c.name for c in model.components].index(backgrounds[0].name)
    log_background = mixture.components[index].log_density(start)
    measure = share * np.exp(-log_background)
    return _normalised(model, mixture, measure, start, "pool", events)


def reference_from_data(nll: NLL, theta: FloatArray, *, which: int = 0) -> Reference:
    """Measure from the data of a likelihood: ``q_i = w_i / lambda_i(theta^)`` at the fitted parameters.

    Parameters
    ----------
    nll : NLL
        Likelihood of the data.
    theta : array of shape (p,)
        Its minimum.
    which : int, default 0
        Position of the data term.

    Notes
    -----
    Without constraints the Asimov set at ``theta^`` is the data. With them, or at a wall of a parameter, the densities are
    not normalised on the data at ``theta^``, so each is given a constant factor that makes it so: a fit then returns the
    yields of the Asimov set exactly. Expected limits carry the fluctuations of the observed events, so they are not
    independent of the observed limit.
    """
    mixture = nll.mixtures[which]
    position = {name: i for i, name in enumerate(nll.names)}
    theta = theta[np.array([position[name] for name in mixture.names], dtype=np.int64)]
    own = np.ones(mixture.size) if mixture.weights is None else mixture.weights
    measure = own / mixture.intensity(theta)
    shares = np.stack([measure * np.exp(component.log_density(theta)) for component in mixture.components])
    totals = shares.sum(axis=1)
    scales = -np.log(np.where(totals > 0, totals, 1.0))
    signal = [j for j, c in enumerate(mixture.components) if nll.poi in c.rate.linear and totals[j] > 0]
    points = shares[signal[0]] if signal else own
    size = float(points.sum() ** 2 / (points**2).sum())
    return Reference(mixture.reweighted(own, log_scales=scales), measure, "data", size, 1.0)


def _normalised(
    model: Model, mixture: Mixture, measure: FloatArray, start: FloatArray, kind: str, events: Events
) -> Reference:
    index = [c.name for c in model.components].index(model.signal)
    signal = measure * np.exp(mixture.components[index].log_density(start))
    total = float(signal.sum())
    if not total > 0:
        raise ModelError(
            f"the signal density vanishes on all {len(events)} reference events in the window: zero signal acceptance"
        )
    scales = np.zeros(len(model.components))
    scales[index] = -np.log(total)
    size = float(total**2 / (signal**2).sum())
    return Reference(mixture.reweighted(np.ones(len(events)), log_scales=scales), measure, kind, size, total, events)


def asimov_nll(nll: NLL, references: tuple[Reference, ...], theta: FloatArray) -> NLL:
    """Likelihood of the Asimov set for given parameters, auxiliary measurements included.

    Parameters
    ----------
    nll : NLL
        Whose parameters and constraints.
    references : tuple of Reference
        One for each data term.
    theta : array of shape (p,)
        True parameters of the Asimov set.

    Raises
    ------
    ModelError
        If the number of references is not that of the data terms.
    """
    if len(references) != len(nll.mixtures):
        raise ModelError(f"{len(references)} reference(s) for {len(nll.mixtures)} data term(s)")
    position = {name: i for i, name in enumerate(nll.names)}
    mixtures = []
    for reference in references:
        index = np.array([position[name] for name in reference.mixture.names], dtype=np.int64)
        mixtures.append(reference.mixture.reweighted(reference.weights(theta[index])))
    constraints = [
        constraint.expected(theta[np.array([position[name] for name in constraint.names], dtype=np.int64)])
        for constraint in nll.constraints
    ]
    return nll.replaced(mixtures, constraints)


def needs_pool(model: Model) -> bool:
    """Whether some density looks at more than the mass."""
    looking = (LogRatio, RatioSurface, HeldRatio, DecayModes, WeightTilt)
    return any(isinstance(factor, looking) for component in model.components for factor in component.factors)
