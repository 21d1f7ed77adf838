"""A statistical model: components, parameters, constraints, and the window it lives in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gbistat.errors import ModelError, ParameterError, nearest
from gbistat.likelihood.components import Component, Yield
from gbistat.likelihood.parameters import Parameter, index_of

if TYPE_CHECKING:
    from gbistat.data.window import MassWindow
    from gbistat.likelihood.constraints import Constraint

__all__ = ["Model"]


@dataclass(frozen=True)
class Model:
    """Everything about a likelihood but the data.

    Parameters
    ----------
    components : tuple of Component
        Signal and backgrounds.
    parameters : tuple of Parameter
        All parameters, in the order in which likelihoods take them.
    constraints : tuple of Constraint
        Auxiliary measurements.
    window : MassWindow or None
        Where events are counted; ``None`` when densities know their own support.
    poi : str, default "mu"
        Parameter of interest.
    signal : str, default "signal"
        Name of the component that is the signal.

    Raises
    ------
    ModelError
        If there is no component, two share a name, or a component or constraint names an unknown parameter.
    """

    components: tuple[Component, ...]
    parameters: tuple[Parameter, ...]
    constraints: tuple[Constraint, ...] = ()
    window: MassWindow | None = None
    poi: str = "mu"
    signal: str = "signal"

    def __post_init__(self) -> None:
        if not self.components:
            raise ModelError("a model needs at least one component")
        labels = [component.name for component in self.components]
        if len(set(labels)) != len(labels):
            raise ModelError(f"two components share a name among {labels}")
        names = [parameter.name for parameter in self.parameters]
        if len(set(names)) != len(names):
            raise ModelError(f"two parameters share a name among {names}")
        wanted = [(f"component {c.name}", n) for c in self.components for n in c.parameters]
        wanted += [("a constraint", n) for c in self.constraints for n in c.names]
        for who, name in wanted:
            if name not in names:
                raise ModelError(f"{who} depends on {name!r}, which the model does not declare; {nearest(name, names)}")
        used = {name for _, name in wanted}
        idle = [name for name in names if name not in used]
        if idle:
            raise ModelError(f"nothing depends on the parameter(s) {', '.join(idle)}; leave them out")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters in order."""
        return tuple(parameter.name for parameter in self.parameters)

    def parameter(self, name: str) -> Parameter:
        """Parameter by name.

        Raises
        ------
        ParameterError
            If there is none of that name.
        """
        return self.parameters[index_of(name, self.parameters)]

    def component(self, name: str) -> Component:
        """Component by name.

        Raises
        ------
        ModelError
            If there is none of that name.
        """
        for component in self.components:
            if component.name == name:
                return component
        raise ModelError(f"there is no component {name!r}; {nearest(name, [c.name for c in self.components])}")

    def with_constraint(self, constraint: Constraint) -> Model:
        """Same model with one more auxiliary measurement."""
        return replace(self, constraints=(*self.constraints, constraint))

    def yield_only(self, name: str) -> bool:
        """Whether a parameter enters through yields alone, so that the nll is convex in it.

        Raises
        ------
        ParameterError
            If there is no such parameter.
        """
        index_of(name, self.parameters)
        shapes = {n for c in self.components for f in c.factors for n in f.parameters}
        scales = {n for c in self.components for n in c.rate.log_scales}
        return name not in shapes | scales

    def as_fraction(self, fraction: str = "f") -> Model:
        """Shape-only form: ``f p_s + (1 - f) p_b``, for a model of one signal and one background.

        Raises
        ------
        ModelError
            If the model does not have exactly two components, or their yields carry more than one parameter each.
        ParameterError
            If the name of the fraction is taken.
        """
        if len(self.components) != 2:
            raise ModelError(
                f"a fraction needs a signal and one background; this model has {len(self.components)} components"
            )
        signal = self.component(self.signal)
        (background,) = (c for c in self.components if c is not signal)
        shape_names = {n for c in self.components for f in c.factors for n in f.parameters}
        if fraction in self.names:
            raise ParameterError(f"the name {fraction!r} of the fraction is taken by a parameter of the model")
        if background.rate.log_scales or signal.rate.log_scales or len(signal.rate.linear) != 1:
            raise ModelError(
                "yield uncertainties and spurious signal have no meaning in the shape-only form; drop them first"
            )
        components = (
            replace(signal, rate=Yield({fraction: 1.0})),
            replace(background, rate=Yield({fraction: -1.0}, constant=1.0)),
        )
        constraints = tuple(c for c in self.constraints if set(c.names) <= shape_names)
        dropped = [c for c in self.constraints if c not in constraints and set(c.names) & shape_names]
        if dropped:
            raise ModelError(
                "a constraint ties the background yield to its shape, which the shape-only form cannot keep; "
                "use a model with a free background yield"
            )
        parameters = (
            Parameter(fraction, 0.01, -1.0, 1.0),
            *(p for p in self.parameters if p.name in shape_names),
        )
        return replace(self, components=components, parameters=parameters, constraints=constraints, poi=fraction)
