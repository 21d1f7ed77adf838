"""From what a model says (model.json, a run card) and events to a likelihood in one window."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat.data.window import MassWindow
from gbistat.errors import EventsError, GbistatError, ModelError, WindowError
from gbistat.fit.sidebands import fit_sidebands
from gbistat.likelihood.components import Component, Factor, LogRatio, MassFactor, Yield
from gbistat.likelihood.constraints import NormalConstraint
from gbistat.likelihood.ensemble import with_ensemble_directions
from gbistat.likelihood.model import Model
from gbistat.likelihood.nll import ExtendedUnbinnedNLL
from gbistat.likelihood.parameters import Parameter
from gbistat.likelihood.reference import (
    background_nodes,
    needs_pool,
    reference_from_pool,
    reference_from_quadrature,
)
from gbistat.likelihood.tilt import spurious_signal_tilt
from gbistat.terms.density import MassDensity
from gbistat.terms.shapes.registry import SHAPES, make_shape

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gbistat.data.events import Events
    from gbistat.fit.sidebands import SidebandFit
    from gbistat.likelihood.constraints import Constraint
    from gbistat.likelihood.reference import Reference
    from gbistat.terms.model_spec import ModelSpec, ParameterSpec, ShapeSpec
    from gbistat.terms.network import NetworkTerm
    from gbistat.terms.protocols import Shape

__all__ = ["Analysis", "build_analysis"]

BACKGROUND_YIELD = "n_bkg"
SPURIOUS = "spurious_signal"


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
    """

    model: Model
    nll: ExtendedUnbinnedNLL
    events: Events
    spectrum: Events
    sidebands: SidebandFit | None
    reference: Reference | None
    spurious_signal: float = 0.0
    warnings: tuple[str, ...] = ()

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
    sidebands = None
    if spec.background.mass.is_free:
        shape = _shape(spec.background.mass, fit_range)
        sidebands = fit_sidebands(events, window, fit_range, shape)
        if sidebands.goodness.p_value < 0.01:
            g = sidebands.goodness
            warnings.append(
                f"the sideband fit describes the spectrum badly: chi2/ndof = {g.chi2:.1f}/{g.ndof}, p = {g.p_value:.2g}"
            )
    builder = _Builder(spec, window, fit_range, sidebands, terms or {}, inside.sum_of_weights)
    in_window = None
    if pool is not None:
        in_window, problem = _pool_in_window(pool.to_unit(spec.mass.unit), window)
        warnings += [problem] if problem else []
    model = builder.model()
    if spec.signal.ensemble == "profiled":
        model = _with_ensembles(model, builder.ratios, in_window)
    size = 0.0
    if builder.kappa_sigma > 0 or spec.signal.spurious.sigma:
        background = background_nodes(model) if not needs_pool(model) else in_window
        model, size = _with_spurious_signal(
            model, inside if background is None else background, builder.kappa_sigma, spec.signal.spurious.sigma or 0.0
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
    return Analysis(model, nll, inside, events, sidebands, reference, size, tuple(warnings))


def _with_ensembles(model: Model, terms: Sequence[NetworkTerm], pool: Events | None) -> Model:
    """Model with the spread of each ensemble as nuisance parameters."""
    if not terms:
        raise ModelError("signal.ensemble is 'profiled', and the signal has no ratio; set it to 'mean'")
    if pool is None:
        raise ModelError(
            "signal.ensemble is 'profiled', which needs reference events in the window: the density has to stay normalised; give "
            "the model some, or set signal.ensemble to 'mean'"
        )
    for term in terms:
        model = with_ensemble_directions(model, term, pool)
    return model


def _with_spurious_signal(model: Model, events: Events, kappa: float, spurious: float) -> tuple[Model, float]:
    """Model whose background tilts with a standard-normal nuisance, and the spurious signal of one sigma in events."""
    tilt, size = spurious_signal_tilt(model, SPURIOUS, events, kappa=kappa, spurious=spurious)
    parameter = Parameter(SPURIOUS, 0.0, -10.0, 10.0)
    # Kappa leaves the number of events alone; other spurious signal adds events, beside what the tilt makes of background.
    rate = {SPURIOUS: spurious**2 / size} if spurious else {}
    components = tuple(
        c
        if c.name == model.signal
        else dataclasses.replace(c, rate=Yield({**c.rate.linear, **rate}), factors=(*c.factors, tilt))
        for c in model.components
    )
    constraint = NormalConstraint(SPURIOUS, 0.0, 1.0)
    return (
        dataclasses.replace(
            model,
            components=components,
            parameters=(*model.parameters, parameter),
            constraints=(*model.constraints, constraint),
        ),
        size,
    )


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
    """Shape by name; a polynomial lives on the fit range unless the model says otherwise."""
    options: dict[str, Any] = dict(spec.options)
    if spec.shape in SHAPES and "support" not in options:
        fields = {field.name for field in dataclasses.fields(SHAPES[spec.shape])}  # type: ignore[arg-type]
        if "support" in fields:
            options["support"] = fit_range.edges
    return make_shape(spec.shape, **options)


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
        """Ratio terms of the signal."""
        return [self._term(name) for name in self.spec.signal.ratios]

    @property
    def kappa_sigma(self) -> float:
        """Standard deviation of the log normalisation of all ratios together."""
        kappas = [term.metadata.log_kappa for term in self.ratios]
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
        used = {*signal.parameters, *background.parameters}
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
        factors += [LogRatio(self._term(name)) for name in signal.ratios]
        linear = {signal.yield_.poi: signal.yield_.nominal}
        for name in signal.efficiency:
            self.parameters.append(Parameter(name, 0.0, -10.0, 10.0))
            self._constrain(name, 0.0, 1.0)
        return Component("signal", Yield(linear, log_scales=dict(signal.efficiency)), tuple(factors))
