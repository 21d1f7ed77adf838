"""A signal whose masses are free in the fit: its ratio on a grid, normalised everywhere, and the global search."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import ModelError
from gbistat.fit.basins import refine_minima
from gbistat.fit.mass_parameters import check_scale, mass_parameter, mass_ranges, share_constraint, share_parameter
from gbistat.fit.nuisances import with_ensembles, with_spurious_signal
from gbistat.fit.plane import fit_from_map, search_plane
from gbistat.likelihood.held import with_held_ratios
from gbistat.likelihood.kappa import normalised_surface
from gbistat.likelihood.lattice import Lattice
from gbistat.likelihood.modes import DecayModes
from gbistat.likelihood.nll import ExtendedUnbinnedNLL
from gbistat.likelihood.reference import reference_from_pool
from gbistat.likelihood.surface import RatioSurface
from gbistat.likelihood.theta_grid import grid_of
from gbistat.likelihood.tilt import log_density_ratio

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gbistat.data.events import Events
    from gbistat.fit.basins import Basin
    from gbistat.fit.build import Analysis
    from gbistat.fit.interpolation import Interpolation
    from gbistat.fit.plane import PlaneSearch
    from gbistat.fit.result import FitResult
    from gbistat.likelihood.constraints import Constraint
    from gbistat.likelihood.kappa import Kappa
    from gbistat.likelihood.model import Model
    from gbistat.likelihood.theta_grid import ThetaGrid
    from gbistat.terms.model_spec import ParameterSpec
    from gbistat.terms.network import NetworkTerm
    from gbistat.terms.signal_spec import MassScaleSpec
    from gbistat.typing import FloatArray

__all__ = ["FreeMasses", "free_masses", "with_free_masses", "with_held_masses", "with_other_events"]


@dataclass(frozen=True, eq=False)
class FreeMasses:
    """What is known of the masses of a signal before they are fitted.

    Parameters
    ----------
    grid : ThetaGrid
        Nodes at which the ratio was evaluated.
    kappa : Kappa
        Normalisation of the ratio there.
    search : PlaneSearch
        How much better than background alone a signal is, over the nodes.
    kappa_sigma : float
        Standard deviation of ln kappa at the masses that fit best.
    model : Model
        Before nuisance parameters whose effect depends on where the masses are.
    pool : Events
        Background events in the window.
    other_sigma : float
        Standard deviation of ln kappa of other ratios.
    spurious : float
        Standard deviation of a spurious signal from other sources, in events.
    profiled : tuple of NetworkTerm
        Ratios whose ensembles are profiled.
    fraction : str, optional
        Name of the share of the second of two decay modes.
    second : Kappa, optional
        Normalisation of that mode's ratio; `kappa` is that of the first.
    basins : tuple of Basin
        Minima, the lowest first, each in a box with finer nodes.
    interpolation : Interpolation or None
        What splines in place of the network do to the lowest; ``None`` where no signal is seen or the masses are held.
    exchangeable : bool
        Whether the ratio is the same with both masses exchanged.
    scale : mapping of str to MassScaleSpec
        Error of the network on each mass.
    """

    grid: ThetaGrid
    kappa: Kappa
    search: PlaneSearch
    kappa_sigma: float
    model: Model
    pool: Events
    other_sigma: float = 0.0
    spurious: float = 0.0
    profiled: tuple[NetworkTerm, ...] = ()
    fraction: str | None = None
    second: Kappa | None = None
    basins: tuple[Basin, ...] = ()
    interpolation: Interpolation | None = None
    exchangeable: bool = False
    scale: Mapping[str, MassScaleSpec] = field(default_factory=dict)

    def sigma(self, values: Mapping[str, float]) -> float:
        """Standard deviation of ln kappa of all ratios together at some masses, and some share of decay modes.

        The errors of two modes come from the same reference events: they are taken as fully correlated, which is the worst case.
        """
        place = tuple(
            int(np.abs(axis - values[name]).argmin())
            for name, axis in zip(self.grid.names, self.grid.axes, strict=True)
        )
        error = float(self.kappa.error[place])
        if self.fraction is not None and self.second is not None:
            share = values[self.fraction]
            error = (1.0 - share) * error + share * float(self.second.error[place])
        return math.hypot(self.other_sigma, error)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the masses."""
        return self.grid.names

    def with_scale(self, result: FitResult) -> FitResult:
        """Same fit with the errors of the mass scale in those of free masses, and in its covariance."""
        covariance = result.covariance.copy()
        for name, item in self.scale.items():
            if name not in result.fixed:
                index = result.names.index(name)
                covariance[index, index] += item.sigma(result.value(name)) ** 2
        errors = np.where(np.isfinite(result.errors), np.sqrt(np.maximum(np.diag(covariance), 0.0)), result.errors)
        return dataclasses.replace(result, covariance=covariance, errors=errors)


def with_free_masses(
    model: Model,
    terms: Sequence[NetworkTerm],
    declared: Mapping[str, ParameterSpec],
    events: Events,
    pool: Events | None,
    *,
    steps: Mapping[str, float] | None = None,
    other_sigma: float = 0.0,
    spurious: float = 0.0,
    profiled: Sequence[NetworkTerm] = (),
    fraction: str | None = None,
    scale: Mapping[str, MassScaleSpec] | None = None,
) -> tuple[Model, FreeMasses]:
    """Model whose signal has a ratio that depends on parameters, starting at the values that fit best.

    Parameters
    ----------
    model : Model
        Signal and background without that ratio.
    terms : sequence of NetworkTerm
        The one ratio term with parameters, or those of two decay modes.
    declared : mapping of str to ParameterSpec
        What the model says of parameters: narrower ranges, or values at which they are held.
    events : Events
        Data in the window.
    pool : Events or None
        Background events in the window that trained nothing, for the normalisation.
    steps : mapping of str to float, optional
        Largest distance of nodes by parameter.
    other_sigma, spurious, profiled
        Kept in the result, for the same model at other masses.
    fraction : str, optional
        Name of the share of the second of two terms, which are decay modes.
    scale : mapping of str to MassScaleSpec, optional
        Error of the network on each mass.

    Returns
    -------
    Model, FreeMasses
        The parameters of the ratio come last. The signal strength is held at 0 or above, unless the model declares it: a negative
        signal would follow dips of the background over the plane.

    Raises
    ------
    ModelError
        If there are several such ratios that are no decay modes, two modes depend on different parameters, there are no
        reference events, or an error of the mass scale names no mass, or is not the same for
        masses that can be exchanged.
    FitFailed
        If the fit without signal is not valid.

    Notes
    -----
    The tilt that stands for an error of kappa is made at the start values, so it comes after this.
    """
    if len(terms) > (1 if fraction is None else 2):
        raise ModelError(
            f"several ratios depend on parameters of the signal ({', '.join(term.name for term in terms)}); their product has "
            "no common normalisation yet: export them as one term, or name two decay modes in signal.modes"
        )
    term = terms[0]
    check_scale(scale or {}, tuple(item.name for item in term.metadata.parameters))
    names = [tuple(item.name for item in one.metadata.parameters) for one in terms]
    if len(set(names)) > 1:
        raise ModelError(
            f"the decay modes {terms[0].name!r} and {terms[1].name!r} depend on different parameters "
            f"({', '.join(names[0]) or 'none'}; {', '.join(names[1]) or 'none'}); both need the same, in the same order"
        )
    if any(one in profiled for one in terms):
        raise ModelError(
            f"the ensemble of ratio {term.name!r}, whose masses are free, cannot be profiled; set signal.ensemble to 'mean'"
        )
    if pool is None:
        raise ModelError(
            f"ratio {term.name!r} depends on {', '.join(item.name for item in term.metadata.parameters)}, so that its "
            "normalisation is needed everywhere: that takes reference events in the window; give the model some, or --background"
        )
    grid = grid_of(mass_ranges(terms, declared), steps)
    base = log_density_ratio(model, pool)
    made = [normalised_surface(one, grid, pool, base) for one in terms]
    (surface, kappa), second = made[0], made[-1][1] if fraction is not None else None
    factor = surface if fraction is None else DecayModes(surface, made[1][0], fraction)
    poi = model.parameter(model.poi)
    bounded = dataclasses.replace(poi, low=max(poi.low, 0.0), start=max(poi.start, 0.0))
    masses = [mass_parameter(name, axis, declared.get(name)) for name, axis in zip(grid.names, grid.axes, strict=True)]
    model = dataclasses.replace(
        model,
        components=tuple(
            dataclasses.replace(c, factors=(*c.factors, factor)) if c.name == model.signal else c
            for c in model.components
        ),
        parameters=(
            *(bounded if p is poi and model.poi not in declared else p for p in model.parameters),
            *masses,
            *([] if fraction is None else [share_parameter(fraction, declared.get(fraction))]),
        ),
        constraints=(*model.constraints, *share_constraint(fraction, declared)),
    )
    found = _search(model, events, grid, factor, fraction)
    model = found.model
    if found.exchangeable and len({(scale or {}).get(name) for name in grid.names}) > 1:
        raise ModelError(
            f"the masses {' and '.join(grid.names)} can be exchanged, so signal.mass_scale must say the same of both"
        )
    # The means over reference events are as right as the weights that these have, and those come from the ratio as it was exported.
    own = [one.metadata.log_kappa.sigma for one in terms if one.metadata.log_kappa is not None]
    other_sigma = math.hypot(other_sigma, max(own, default=0.0)) if pool.weights is not None else other_sigma
    known = FreeMasses(
        grid,
        kappa,
        found.search,
        0.0,
        model,
        pool,
        other_sigma,
        spurious,
        tuple(profiled),
        fraction,
        second,
        found.basins,
        found.interpolation,
        found.exchangeable,
        scale or {},
    )
    return model, dataclasses.replace(known, kappa_sigma=known.sigma(_starts(model)))


@dataclass(frozen=True, eq=False)
class _Found:
    model: Model
    search: PlaneSearch
    basins: tuple[Basin, ...]
    interpolation: Interpolation | None
    exchangeable: bool


def _search(
    model: Model, events: Events, grid: ThetaGrid, factor: RatioSurface | DecayModes, fraction: str | None
) -> _Found:
    """Global search, fine nodes around the minima, and the model that starts in the lowest."""
    surfaces = [factor] if isinstance(factor, RatioSurface) else [factor.first, factor.second]
    base = _mass_ratio(model, factor, events)
    lattices = [Lattice(one, events, base) for one in surfaces if isinstance(one, RatioSurface)]
    nll, mirrored = ExtendedUnbinnedNLL(model, events), all(lattice.mirrored for lattice in lattices)
    search = search_plane(nll, grid.names, grid.axes, fraction=fraction, mirrored=mirrored)
    basins, interpolation = refine_minima(model, events, search, lattices)
    best = basins[0].best if basins else fit_from_map(nll, search)
    # Where the strength is 0 the masses mean nothing: a fit that began there would end anywhere.
    moving = {model.poi, *grid.names, fraction}
    parameters = tuple(
        dataclasses.replace(p, start=best.value(p.name)) if p.name in moving and not p.fixed else p
        for p in model.parameters
    )
    return _Found(dataclasses.replace(model, parameters=parameters), search, basins, interpolation, mirrored)


def _mass_ratio(model: Model, factor: RatioSurface | DecayModes, events: Events) -> FloatArray:
    """Log ratio of the densities at the start values without the ratio whose masses are free, shape (n,)."""
    start = _starts(model)
    total = np.zeros(len(events))
    for component in model.components:
        sign = 1.0 if component.name == model.signal else -1.0
        for item in component.factors:
            if item is not factor:
                values = np.array([start[name] for name in item.parameters])
                total += sign * item.prepare(events).log_prob(values)
    return total


def _starts(model: Model) -> dict[str, float]:
    return {parameter.name: parameter.start for parameter in model.parameters}


def with_other_events(analysis: Analysis, events: Events, constraints: Sequence[Constraint] | None = None) -> Analysis:
    """Same model on other events of the window, searched anew: for toys. The normalisation of the ratio stays.

    Parameters
    ----------
    analysis : Analysis
        With free masses.
    events : Events
        Events in the window.
    constraints : sequence of Constraint, optional
        Auxiliary measurements of these data, in place of those of the model before nuisances that depend on the masses
        (``analysis.masses.model.constraints``).

    Raises
    ------
    ModelError
        If the signal of the analysis depends on no masses.
    FitFailed
        If the fit without signal is not valid.
    """
    known = analysis.masses
    if known is None:
        raise ModelError("the signal of this model does not depend on masses")
    model = known.model
    if constraints is not None:
        model = dataclasses.replace(model, constraints=tuple(constraints))
    moving = [f for f in model.component(model.signal).factors if isinstance(f, (RatioSurface, DecayModes))]
    found = _search(model, events, known.grid, moving[0], known.fraction)
    known = dataclasses.replace(
        known, model=found.model, search=found.search, basins=found.basins, interpolation=found.interpolation
    )
    sigma = known.sigma(_starts(found.model))
    known = dataclasses.replace(known, kappa_sigma=sigma)
    model, size = _with_nuisances(known, found.model, sigma)
    nll = ExtendedUnbinnedNLL(model, events)
    return dataclasses.replace(
        analysis, model=model, nll=nll, events=events, reference=None, spurious_signal=size, masses=known
    )


def _with_nuisances(known: FreeMasses, model: Model, sigma: float) -> tuple[Model, float]:
    """Nuisance parameters whose effect depends on where the masses are, and the spurious signal of one sigma."""
    if known.profiled:
        model = with_ensembles(model, known.profiled, known.pool)
    if sigma > 0 or known.spurious:
        like = with_held_ratios(model, _starts(model))
        return with_spurious_signal(model, known.pool, sigma, known.spurious, like=like)
    return model, 0.0


def free_masses(analysis: Analysis) -> tuple[str, ...]:
    """Masses that a fit of this analysis moves, and the share of decay modes: without signal, none of them means anything."""
    if analysis.masses is None:
        return ()
    fraction = analysis.masses.fraction
    names = (*analysis.masses.names, *([] if fraction is None else [fraction]))
    return tuple(name for name in names if not analysis.model.parameter(name).fixed)


def with_held_masses(analysis: Analysis, values: Mapping[str, float]) -> Analysis:
    """Same analysis with masses held; between the nodes of the grid the network is evaluated there, once.

    Nuisance parameters that depend on where the masses are (the spread of ensembles, the tilt that stands for the error of kappa
    and for a spurious signal) are made anew there.

    Parameters
    ----------
    analysis : Analysis
        With free masses.
    values : mapping of str to float
        All of them, and where to hold them; the share of decay modes may be among them.

    Raises
    ------
    ModelError
        If the signal of the analysis depends on no masses.
    ParameterError
        If a value is outside its range.
    """
    known = analysis.masses
    if known is None:
        raise ModelError("the signal of this model does not depend on masses")
    model = known.model
    for name, value in values.items():
        model.parameter(name).check(value)
    parameters = tuple(
        dataclasses.replace(p, start=float(values[p.name]), fixed=True) if p.name in values else p
        for p in model.parameters
    )
    model = dataclasses.replace(model, parameters=parameters)
    at = _starts(model)
    model = with_held_ratios(model, at)
    model, size = _with_nuisances(known, model, known.sigma(at))
    nll = ExtendedUnbinnedNLL(model, analysis.events)
    reference = reference_from_pool(model, known.pool)
    return dataclasses.replace(analysis, model=model, nll=nll, reference=reference, spurious_signal=size)
