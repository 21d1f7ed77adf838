"""From what a model says (model.json, a run card) and events to a likelihood in one window."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat.data.window import MassWindow
from gbistat.errors import EventsError, GbistatError, ModelError, WindowError
from gbistat.fit.masses import with_free_masses
from gbistat.fit.nuisances import background_tilt, with_background_tilt, with_ensembles, with_spurious_signal
from gbistat.fit.order import choose_order, nested_shapes, with_order
from gbistat.fit.sidebands import fit_sidebands
from gbistat.likelihood.components import Component, Factor, LogRatio, MassFactor, Yield
from gbistat.likelihood.constraints import NormalConstraint
from gbistat.likelihood.held import with_held_ratios
from gbistat.likelihood.model import Model
from gbistat.likelihood.nll import ExtendedUnbinnedNLL
from gbistat.likelihood.parameters import Parameter
from gbistat.likelihood.reference import (
    background_nodes,
    needs_pool,
    reference_from_pool,
    reference_from_quadrature,
)
from gbistat.terms.density import MassDensity
from gbistat.terms.shapes.registry import SHAPES, make_shape

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gbistat.data.events import Events
    from gbistat.fit.generated import GeneratedBackground
    from gbistat.fit.masses import FreeMasses
    from gbistat.fit.order import Criterion, OrderChoice
    from gbistat.fit.sidebands import SidebandFit
    from gbistat.likelihood.constraints import Constraint
    from gbistat.likelihood.reference import Reference
    from gbistat.terms.model_spec import BackgroundSpec, ModelSpec, ParameterSpec
    from gbistat.terms.network import NetworkTerm
    from gbistat.terms.protocols import Shape
    from gbistat.terms.shape_spec import ShapeSpec
    from gbistat.typing import Json

__all__ = ["Analysis", "build_analysis", "fit_background"]

BACKGROUND_YIELD = "n_bkg"
_CRITERIA: Mapping[str, Criterion] = {"auto": "likelihood_ratio", "aic": "aic", "bic": "bic"}


@dataclass(frozen=True, eq=False)
class Analysis:
    """A model made ready for one window of one set of events.

    Parameters
    ----------
    model : Model
        Components, parameters, constraints.
    nll : ExtendedUnbinnedNLL
        Likelihood of the events in the window.
    events : Events
        Events in the window.
    spectrum : Events
        All events, for the sidebands and plots.
    sidebands : SidebandFit or None
        ``None`` where the model fixes the shape of the background.
    reference : Reference or None
        What Asimov sets and binned templates are made of; ``None`` if a network needs reference events and the model has none.
    spurious_signal : float
        Signal events that one standard deviation of the nuisance ``spurious_signal`` makes out of background: the
        model's own statement and the error of the ratio's normalisation, in quadrature.
    warnings : tuple of str
        What a reader of the results must know.
    background : dict
        Which events stand for background in Asimov sets and templates, as JSON: ``source`` (``model``, ``generator`` or
        ``none``), and what belongs to it.
    order : OrderChoice or None
        How the number of parameters of the background was chosen, where the model leaves that to the sidebands.
    masses : FreeMasses or None
        Grid, normalisation and map of the masses, where they are free in the fit.
    """

    model: Model
    nll: ExtendedUnbinnedNLL
    events: Events
    spectrum: Events
    sidebands: SidebandFit | None
    reference: Reference | None
    spurious_signal: float = 0.0
    warnings: tuple[str, ...] = ()
    background: Json = dataclasses.field(default_factory=dict)
    order: OrderChoice | None = None
    masses: FreeMasses | None = None

    @property
    def window(self) -> MassWindow:
        """Where events are counted."""
        if self.model.window is None:
            raise ModelError("the model has no window")
        return self.model.window

    def signal_density(self, values: Mapping[str, float] | None = None) -> MassDensity:
        """Mass density of the signal in the window without free parameters, at given values or the start values."""
        factors = self.model.component(self.model.signal).factors
        density = next(factor.density for factor in factors if isinstance(factor, MassFactor))
        given = values or {}
        theta = [given.get(name, self.model.parameter(name).start) for name in density.parameters]
        return MassDensity.fixed(density.shape, density.domain, density.shape_parameters(np.array(theta)))


def build_analysis(
    spec: ModelSpec,
    events: Events,
    window: MassWindow,
    *,
    terms: Mapping[str, NetworkTerm] | None = None,
    pool: Events | None = None,
    background: GeneratedBackground | None = None,
) -> Analysis:
    """Fit the sidebands, evaluate the networks once, and assemble the likelihood of a window.

    Parameters
    ----------
    spec : ModelSpec
        What the model is.
    events : Events
        The whole spectrum, sidebands included, in the model's unit or in one that can be converted to it.
    window : MassWindow
        Signal window, within what the model is valid for.
    terms : mapping of str to NetworkTerm, optional
        Exported networks by name.
    pool : Events, optional
        Background events that neither trained a network nor are data.
    background : GeneratedBackground, optional
        A generator whose samples take the place of `pool`, and fix the normalisation of the ratio.

    Returns
    -------
    Analysis
        The likelihood and all around it.

    Raises
    ------
    WindowError
        If the window is wider than the model is valid for, or leaves no sidebands.
    EventsError
        If no event is in the window or in a sideband, or features are missing.
    ModelError
        If the model contradicts itself, or no signal falls into the window.
    FitFailed
        If the sideband fit fails.
    """
    window = _checked_window(spec, window)
    events = events.to_unit(spec.mass.unit)
    inside = events.in_window(window)
    warnings: list[str] = []
    if events.weights is not None:
        warnings.append("events are weighted: errors and limits from a likelihood are not right for weighted events")
    fit_range = MassWindow(*spec.background.fit_range, unit=spec.mass.unit)
    sidebands = order = None
    if spec.background.mass.is_free:
        sidebands, order = fit_background(spec.background, events, window, fit_range)
        warnings += [] if order is None else order.notes
        if sidebands.goodness.p_value < 0.01:
            g = sidebands.goodness
            warnings.append(
                f"the sideband fit describes the spectrum badly: chi2/ndof = {g.chi2:.1f}/{g.ndof}, p = {g.p_value:.2g}"
            )
    builder = _Builder(spec, window, fit_range, sidebands, terms or {}, inside.sum_of_weights)
    model = builder.model()
    in_window, kappa_sigma = None, builder.kappa_sigma
    record: Json = {"source": "none"}
    if background is not None:
        made = background.prepare(model, window)
        model, in_window, kappa_sigma, record = made.model, made.pool, made.log_kappa.sigma, made.record
        warnings += made.warnings
    elif pool is not None:
        in_window, problem = _pool_in_window(pool.to_unit(spec.mass.unit), window)
        warnings += [problem] if problem else []
        if in_window is not None:
            record = {"source": "model", "n_reference": len(in_window)}
    masses = None
    if builder.moving:
        steps = spec.signal.grid_step
        model, masses = with_free_masses(
            model,
            builder.moving,
            spec.parameters,
            inside,
            in_window,
            steps=steps,
            other_sigma=kappa_sigma,
            spurious=spec.signal.spurious.sigma or 0.0,
            profiled=builder.ratios if spec.signal.ensemble == "profiled" else (),
            fraction=None if spec.signal.modes is None else spec.signal.modes.fraction,
            scale=spec.signal.mass_scale,
        )
        kappa_sigma = masses.kappa_sigma
    if spec.signal.ensemble == "profiled":
        model = with_ensembles(model, builder.ratios, in_window)
    tilt = background_tilt(spec, builder.terms) if background is None else background.tilt
    if tilt is not None:
        model = with_background_tilt(model, tilt, in_window)
    size = 0.0
    if kappa_sigma > 0 or spec.signal.spurious.sigma:
        events_b = background_nodes(model) if not needs_pool(model) else in_window
        model, size = with_spurious_signal(
            model,
            inside if events_b is None else events_b,
            kappa_sigma,
            spec.signal.spurious.sigma or 0.0,
            like=None if masses is None else with_held_ratios(model, {p.name: p.start for p in model.parameters}),
        )
    nll = ExtendedUnbinnedNLL(model, inside)
    reference = None
    if not needs_pool(model):
        reference = reference_from_quadrature(model)
    elif in_window is not None:
        reference = reference_from_pool(model, in_window)
        if reference.effective_size < 100:
            warnings.append(
                f"the {len(in_window)} reference events in the window are worth only {reference.effective_size:.0f} where the "
                "signal is: expected limits and binned templates are uncertain by "
                f"about {100 / math.sqrt(reference.effective_size):.0f} %"
            )
    return Analysis(model, nll, inside, events, sidebands, reference, size, tuple(warnings), record, order, masses)


def fit_background(
    spec: BackgroundSpec, events: Events, window: MassWindow, fit_range: MassWindow
) -> tuple[SidebandFit, OrderChoice | None]:
    """Fit of the background's mass, with the order that the model says or the sidebands ask for.

    Parameters
    ----------
    spec : BackgroundSpec
        The background; its mass must be free.
    events : Events
        The whole spectrum, in the unit of the window.
    window, fit_range : MassWindow
        Window left out, and the range whose rest is fitted.

    Returns
    -------
    SidebandFit, OrderChoice or None
        The fit, and how its order was chosen.

    Raises
    ------
    WindowError, EventsError, FitFailed
        As `gbistat.fit.sidebands.fit_sidebands`.
    """
    options = _shape_options(spec.mass, fit_range)
    if isinstance(spec.order, str):
        shapes = nested_shapes(spec.mass.shape, options)
        choice = choose_order(events, window, fit_range, shapes, criterion=_CRITERIA[spec.order])
        return choice.fit, choice
    if spec.order is not None:
        options = with_order(spec.mass.shape, options, spec.order)
    return fit_sidebands(events, window, fit_range, make_shape(spec.mass.shape, **options)), None


def _checked_window(spec: ModelSpec, window: MassWindow) -> MassWindow:
    if window.unit != spec.mass.unit:
        raise WindowError(
            f"window {window} is in {window.unit} and the model in {spec.mass.unit}; give it in {spec.mass.unit}"
        )
    if spec.valid is not None and not window.inside(MassWindow(*spec.valid, unit=window.unit)):
        raise WindowError(
            f"window {window} is not inside {spec.valid[0]:g}-{spec.valid[1]:g} {window.unit}, where model {spec.name!r} is "
            "valid: its networks were not trained beyond; choose a window inside"
        )
    return window


def _pool_in_window(pool: Events, window: MassWindow) -> tuple[Events | None, str]:
    """Reference events in the window, and a warning if there are none."""
    try:
        return pool.in_window(window), ""
    except EventsError as error:
        return None, f"no reference events in the window, so Asimov sets are made from the data: {error}"


def _shape(spec: ShapeSpec, fit_range: MassWindow) -> Shape:
    return make_shape(spec.shape, **_shape_options(spec, fit_range))


def _shape_options(spec: ShapeSpec, fit_range: MassWindow) -> dict[str, Any]:
    """Options of a shape; a polynomial lives on the fit range unless the model says otherwise."""
    options: dict[str, Any] = dict(spec.options)
    if spec.shape in SHAPES and "support" not in options:
        fields = {field.name for field in dataclasses.fields(SHAPES[spec.shape])}  # type: ignore[arg-type]
        if "support" in fields:
            options["support"] = fit_range.edges
    return options


def _parameter(name: str, spec: ParameterSpec) -> Parameter:
    return Parameter(
        name,
        spec.start,
        -math.inf if spec.low is None else spec.low,
        math.inf if spec.high is None else spec.high,
        spec.fixed,
    )


class _Builder:
    """Collects components, parameters and constraints of one model in one window."""

    def __init__(
        self,
        spec: ModelSpec,
        window: MassWindow,
        fit_range: MassWindow,
        sidebands: SidebandFit | None,
        terms: Mapping[str, NetworkTerm],
        n_events: float,
    ) -> None:
        self.spec = spec
        self.window = window
        self.fit_range = fit_range
        self.sidebands = sidebands
        self.terms = terms
        self.n_events = n_events
        self.parameters: list[Parameter] = []
        self.constraints: list[Constraint] = []

    @property
    def ratios(self) -> list[NetworkTerm]:
        """Ratio terms of the signal, those of decay modes last."""
        return [self._term(name) for name in self.spec.signal.all_ratios]

    @property
    def moving(self) -> list[NetworkTerm]:
        """Ratio terms that depend on parameters of the signal, and those of decay modes.

        Raises
        ------
        ModelError
            If a decay mode depends on no parameters, or another ratio does so beside two modes.
        """
        moving = [term for term in self.ratios if term.metadata.parameters]
        modes = self.spec.signal.modes
        if modes is not None and [term.name for term in moving] != list(modes.ratios):
            raise ModelError(
                f"of the ratios {', '.join(term.name for term in self.ratios)} exactly those of signal.modes "
                f"({', '.join(modes.ratios)}) have to depend on parameters of the signal"
            )
        return moving

    @property
    def kappa_sigma(self) -> float:
        """Standard deviation of the log normalisation of all ratios together."""
        kappas = [term.metadata.log_kappa for term in self.ratios if not term.metadata.parameters]
        return math.sqrt(sum(kappa.sigma**2 for kappa in kappas if kappa is not None))

    def model(self) -> Model:
        """Assemble; the parameter of interest comes first, the background yield second."""
        poi = self.spec.poi
        declared = self.spec.parameters.get(poi)
        self.parameters.append(Parameter(poi, 0.0) if declared is None else _parameter(poi, declared))
        if declared is not None and declared.constraint is not None:
            self._constrain(poi, declared.constraint.mean, declared.constraint.sigma)
        background = self._background()
        signal = self._signal()
        free = {item.name for term in self.moving for item in term.metadata.parameters}
        used = {*signal.parameters, *background.parameters} - free
        for name, spec in self.spec.parameters.items():
            if name != poi and name in used:
                self.parameters.append(_parameter(name, spec))
                if spec.constraint is not None:
                    self._constrain(name, spec.constraint.mean, spec.constraint.sigma)
        return Model((signal, background), tuple(self.parameters), tuple(self.constraints), self.window, poi)

    def _term(self, name: str) -> NetworkTerm:
        term = self.terms.get(name)
        if term is None:
            raise ModelError(
                f"model {self.spec.name!r} needs the term {name!r}, which was not loaded; load_model does it"
            )
        return term

    def _constrain(self, name: str, mean: float, sigma: float) -> None:
        self.constraints.append(NormalConstraint(name, mean, sigma))

    def _density(self, spec: ShapeSpec, what: str) -> MassDensity:
        shape = _shape(spec, self.fit_range)
        affine = spec.affine([parameter.name for parameter in shape.parameters], self.window.centre)
        density = MassDensity(shape, (self.window.edges,), affine.parameters, affine.offset, affine.matrix)
        try:
            density.check_integral([self.spec.parameters[name].start for name in affine.parameters])
        except GbistatError as error:
            raise ModelError(f"zero {what} acceptance in the window {self.window}: {error}") from error
        return density

    def _background(self) -> Component:
        mode = self.spec.background.yield_
        fitted = self.sidebands
        if fitted is None:
            if mode != "free":
                raise ModelError(
                    f"the background yield is {mode!r}, and the background shape is given, so that no sideband fit predicts it; "
                    "set background.yield to 'free', or leave the parameters of the shape to the sideband fit"
                )
            density = self._density(self.spec.background.mass, "background")
            self.parameters.append(Parameter(BACKGROUND_YIELD, max(self.n_events, 1.0), 0.0))
            return Component("background", Yield({BACKGROUND_YIELD: 1.0}), (MassFactor(density),))
        start = fitted.expected if mode != "free" else max(self.n_events, 1.0)
        self.parameters.append(Parameter(BACKGROUND_YIELD, start, 0.0, fixed=mode == "fixed"))
        self.parameters += [Parameter(name, 0.0, -10.0, 10.0) for name in fitted.nuisances]
        if mode == "sideband":
            self.constraints.append(fitted.constraint(BACKGROUND_YIELD))
        elif (constraint := fitted.shape_constraint()) is not None:
            self.constraints.append(constraint)
        return Component("background", Yield({BACKGROUND_YIELD: 1.0}), (MassFactor(fitted.density()),))

    def _signal(self) -> Component:
        signal = self.spec.signal
        factors: list[Factor] = [MassFactor(self._density(signal.mass, "signal"))]
        factors += [LogRatio(term) for term in self.ratios if not term.metadata.parameters]
        linear = {signal.yield_.poi: signal.yield_.nominal}
        for name in signal.efficiency:
            self.parameters.append(Parameter(name, 0.0, -10.0, 10.0))
            self._constrain(name, 0.0, 1.0)
        return Component("signal", Yield(linear, log_scales=dict(signal.efficiency)), tuple(factors))
