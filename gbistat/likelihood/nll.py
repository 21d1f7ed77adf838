"""Negative log-likelihoods: callable, differentiable, and at home in iminuit.

``ExtendedUnbinnedNLL`` counts events (``mu`` and yields), ``UnbinnedNLL`` is the shape-only form with the fraction ``f``
of signal; ``NLLSum`` joins likelihoods that share parameters. Each is -ln L (errordef 0.5), can be handed to
``iminuit.Minuit`` as it is, and can be added to iminuit's own cost functions::

    nll = ExtendedUnbinnedNLL(model, events)
    m = Minuit(nll + iminuit.cost.NormalConstraint("n_bkg", 5000.0, 100.0), **nll.start)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat.data.events import Events
from gbistat.errors import EventsError, ModelError, OptionError
from gbistat.likelihood.auxiliary import AuxiliaryMeasurements
from gbistat.likelihood.components import Component, LogArray, Yield
from gbistat.likelihood.histfactory import BinnedTerm
from gbistat.likelihood.mixture import Evaluation, Mixture
from gbistat.likelihood.model import Model
from gbistat.likelihood.parameters import Parameter, index_of, merge_parameters, start_vector

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.likelihood.constraints import Constraint
    from gbistat.typing import BoolArray, FloatArray, IntArray

__all__ = ["NLL", "ExtendedUnbinnedNLL", "NLLSum", "UnbinnedNLL"]

Terms = tuple[tuple["Mixture | Constraint", "IntArray"], ...]


class NLL:
    """Sum of mixtures and constraints over one vector of parameters.

    Users make :class:`ExtendedUnbinnedNLL` or :class:`UnbinnedNLL`, or add likelihoods; this class is what all of them are.

    Parameters
    ----------
    parameters : sequence of Parameter
        The p parameters in order.
    mixtures : sequence of Mixture
        Data terms; their names are a subset of the parameters.
    constraints : sequence of Constraint
        Auxiliary measurements, and the counts of binned models.
    poi : str
        Parameter of interest.
    convex : set of str
        Parameters in which the nll is convex for fixed others: they enter through yields alone.
    """

    errordef = 0.5
    verbose = 0
    has_grad = True
    # iminuit would take the Hessian at the start for a covariance, and it is none at mu = 0 with a free mass.
    has_hessian = False

    def __init__(
        self,
        parameters: Sequence[Parameter],
        mixtures: Sequence[Mixture],
        constraints: Sequence[Constraint],
        *,
        poi: str,
        convex: frozenset[str] = frozenset(),
    ) -> None:
        self.parameters = tuple(parameters)
        self.names = tuple(parameter.name for parameter in self.parameters)
        self.mixtures = tuple(mixtures)
        self.constraints = tuple(constraints)
        self.poi = poi
        self.convex = convex
        position = {name: i for i, name in enumerate(self.names)}
        terms: list[tuple[Mixture | Constraint, IntArray]] = []
        sources: list[Mixture | Constraint] = [*self.mixtures, *self.constraints]
        for term in sources:
            unknown = [name for name in term.names if name not in position]
            if unknown:
                raise ModelError(f"a term depends on {', '.join(unknown)}, which the likelihood does not have")
            terms.append((term, np.array([position[name] for name in term.names], dtype=np.int64)))
        self._terms: Terms = tuple(terms)

    # What iminuit asks of a cost function.

    @property
    def _parameters(self) -> dict[str, tuple[float, float] | None]:
        return {parameter.name: parameter.limits for parameter in self.parameters}

    @property
    def npar(self) -> int:
        """Number of parameters."""
        return len(self.parameters)

    @property
    def ndata(self) -> float:
        """Infinite, as iminuit has it for unbinned data: no reduced chi2 is formed."""
        return float("inf")

    def __call__(self, *args: float) -> float:
        """Value of -ln L at parameters in the order of :attr:`names`."""
        return self.value(np.array(args, dtype=np.float64))

    def grad(self, *args: float) -> FloatArray:
        """Gradient of -ln L, shape (p,)."""
        return self.evaluate(np.array(args, dtype=np.float64), with_value=False).gradient

    def _value(self, args: Sequence[float]) -> float:
        return self(*args)

    def _grad(self, args: Sequence[float]) -> FloatArray:
        return self.grad(*args)

    # What gbistat asks.

    @property
    def start(self) -> dict[str, float]:
        """Start values by name, for ``Minuit(nll, **nll.start)``."""
        return {parameter.name: parameter.start for parameter in self.parameters}

    def start_vector(self, **values: float) -> FloatArray:
        """Start values in order, shape (p,), with some replaced.

        Raises
        ------
        ParameterError
            If a name is unknown or a value outside its range.
        """
        return start_vector(self.parameters, values)

    def value(self, theta: FloatArray) -> float:
        """-ln L at a parameter vector; infinite where a density is not positive or a parameter not finite."""
        if not np.isfinite(theta).all():
            return float("inf")
        return float(sum(term.value(theta[index]) for term, index in self._terms))

    def evaluate(self, theta: FloatArray, *, with_value: bool = True, free: BoolArray | None = None) -> Evaluation:
        """Value, gradient (p,) and Hessian (p, p) at a parameter vector; see :meth:`Mixture.evaluate`."""
        gradient, hessian = np.zeros(self.npar), np.zeros((self.npar, self.npar))
        if not np.isfinite(theta).all():
            return Evaluation(float("inf"), gradient + np.nan, hessian + np.nan)
        value = 0.0
        for term, index in self._terms:
            part = theta[index]
            if isinstance(term, Mixture):
                result = term.evaluate(part, with_value=with_value, free=None if free is None else free[index])
            elif isinstance(term, (BinnedTerm, AuxiliaryMeasurements)):
                result = term.evaluate(part, with_value=with_value)
            else:
                result = Evaluation(term.value(part), term.gradient(part), term.hessian(part))
            value += result.value
            gradient[index] += result.gradient
            hessian[index[:, None], index] += result.hessian
        return Evaluation(value, gradient, hessian)

    def hessian(self, *args: float) -> FloatArray:
        """Second derivatives of -ln L, shape (p, p)."""
        return self.evaluate(np.array(args, dtype=np.float64), with_value=False).hessian

    def event_size(self, name: str, theta: FloatArray) -> float:
        """Change of a parameter that adds one expected event, near a parameter vector; 0 if it adds none.

        Raises
        ------
        ParameterError
            If there is no such parameter.
        """
        moved = theta.copy()
        moved[index_of(name, self.parameters)] += 1.0
        gain = self.expected_events(moved) - self.expected_events(theta)
        return 1.0 / gain if gain > 0 else 0.0

    def expected_events(self, theta: FloatArray) -> float:
        """Expected number of events in all data, unbinned and binned, at a parameter vector."""
        counted = [(term, index) for term, index in self._terms if isinstance(term, (Mixture, BinnedTerm))]
        return float(sum(float(term.yields(theta[index]).sum()) for term, index in counted))

    def unfolded(self, theta: FloatArray) -> FloatArray | None:
        """Another point to begin a fit at: nuisances that may have a minimum on either side at their start; ``None`` without such."""
        names = [name for t in self.constraints if isinstance(t, BinnedTerm) for name in t.expectation.folded]
        if not names:
            return None
        moved, start = theta.copy(), self.start_vector()
        index = [self.names.index(name) for name in names]
        moved[index] = start[index]
        return moved

    def replaced(self, mixtures: Sequence[Mixture], constraints: Sequence[Constraint]) -> NLL:
        """Same parameters on other data and other auxiliary measurements (Asimov sets, toys)."""
        return NLL(self.parameters, mixtures, constraints, poi=self.poi, convex=self.convex)

    def with_constraint(self, constraint: Constraint) -> NLL:
        """Same likelihood with one more auxiliary measurement."""
        return NLL(self.parameters, self.mixtures, (*self.constraints, constraint), poi=self.poi, convex=self.convex)

    def __add__(self, other: Any) -> NLL:
        """Join two likelihoods of gbistat, or add one of its constraints.

        iminuit's own cost functions are left to iminuit, whose sum scales each term by its errordef.
        """
        if isinstance(other, NLL):
            return NLLSum(self, other)
        if hasattr(other, "fluctuate"):
            return self.with_constraint(other)
        return NotImplemented

    def __radd__(self, other: Any) -> NLL:
        """Let ``sum([nll1, nll2])`` work, and a constraint stand on the left."""
        if isinstance(other, int) and other == 0:
            return self
        if hasattr(other, "fluctuate"):
            return self.with_constraint(other)
        return NotImplemented

    def __repr__(self) -> str:
        points = sum(mixture.size for mixture in self.mixtures)
        return f"{type(self).__name__}({', '.join(self.names)}; {points} events, {len(self.constraints)} constraints)"


def _convex_names(model: Model) -> frozenset[str]:
    return frozenset(name for name in model.names if model.yield_only(name))


def _prepare(model: Model, events: Events, extended: bool) -> Mixture:
    if len(events) == 0 and not extended:
        raise EventsError("no events: a shape-only likelihood needs at least one")
    if model.window is not None:
        outside = ~model.window.contains(events.mass)
        if outside.any():
            raise EventsError(
                f"{int(outside.sum())} of {len(events)} events are outside the window {model.window}; "
                "select them with Events.in_window"
            )
    start = start_vector(model.parameters)
    return Mixture.of(model, events, start, weights=events.weights, extended=extended)


class ExtendedUnbinnedNLL(NLL):
    """Extended unbinned likelihood of a model for events.

    ``-ln L = sum_j n_j - sum_i ln sum_j n_j f_j(i) + constraints`` (see :mod:`gbistat.likelihood.mixture`).

    Parameters
    ----------
    model : Model
        Components, parameters, constraints.
    events : Events
        Events inside the model's window.

    Raises
    ------
    EventsError
        If events are outside the window.
    ModelError
        If some event has density 0 under every component.

    Notes
    -----
    With weighted events the minimum is still consistent, but errors and intervals from this function are not those of a
    likelihood: their size follows the sum of weights, not the sum of squared weights.

    Examples
    --------
    >>> nll = ExtendedUnbinnedNLL.from_log_ratio(np.log([0.5, 0.1, 40.0, 0.3]))
    >>> nll.names
    ('mu', 'n_bkg')
    >>> round(nll(0.0, 4.0), 6)  # 4 - 4 ln 4
    -1.545177
    """

    def __init__(self, model: Model, events: Events) -> None:
        mixture = _prepare(model, events, extended=True)
        super().__init__(model.parameters, [mixture], model.constraints, poi=model.poi, convex=_convex_names(model))
        self.model = model

    @property
    def mixture(self) -> Mixture:
        """The one data term."""
        return self.mixtures[0]

    @classmethod
    def from_log_ratio(
        cls,
        log_ratio: FloatArray,
        *,
        nominal: float = 1.0,
        weights: FloatArray | None = None,
        constraints: Sequence[Constraint] = (),
    ) -> ExtendedUnbinnedNLL:
        """Likelihood in ``(mu, n_bkg)`` from ``ln(p_s / p_b)`` of each event, shape (n,).

        Parameters
        ----------
        log_ratio : array of shape (n,)
            Natural logarithm of the ratio.
        nominal : float, default 1
            Signal events at ``mu = 1``.
        weights : array of shape (n,), optional
            Event weights.
        constraints : sequence of Constraint
            On ``mu`` or ``n_bkg``.

        Raises
        ------
        EventsError
            If a log ratio is NaN or infinite.
        OptionError
            If `nominal` is not above 0.
        """
        values = np.asarray(log_ratio, dtype=np.float64)
        bad = ~np.isfinite(values)
        if values.ndim != 1 or bad.any():
            raise EventsError(
                f"the log ratio must be one finite number an event: {int(bad.sum())} of {values.size} are NaN or infinite, "
                f"shape {values.shape}"
            )
        if not nominal > 0:
            raise OptionError(f"nominal signal yield {nominal:g} must be above 0: mu would have no meaning")
        size = max(float(values.size if weights is None else np.sum(weights)), 1.0)
        model = Model(
            components=(
                Component("signal", Yield({"mu": nominal}), (LogArray(values),)),
                Component("background", Yield({"n_bkg": 1.0}), (LogArray(np.zeros_like(values)),)),
            ),
            parameters=(Parameter("mu", 0.0), Parameter("n_bkg", size, 0.0)),
            constraints=tuple(constraints),
        )
        return cls(model, Events(mass=np.zeros(values.size), weights=weights))


class UnbinnedNLL(NLL):
    """Shape-only likelihood: ``-sum_i ln[ f p_s(i) + (1 - f) p_b(i) ]``, the form of the seed papers.

    ``f = n_sig / (n_sig + n_bkg)`` is a fraction, never to be confused with mu: it does not use the number of events.

    Parameters
    ----------
    model : Model
        A model of one signal and one background; its yields are replaced by ``f`` and ``1 - f``.
    events : Events
        Events inside the model's window.

    Raises
    ------
    EventsError
        If there are no events, or some are outside the window.
    ModelError
        If the model cannot be put into this form.
    """

    def __init__(self, model: Model, events: Events) -> None:
        form = model.as_fraction()
        mixture = _prepare(form, events, extended=False)
        super().__init__(form.parameters, [mixture], form.constraints, poi=form.poi, convex=_convex_names(form))
        self.model = form

    @property
    def mixture(self) -> Mixture:
        """The one data term."""
        return self.mixtures[0]


class NLLSum(NLL):
    """Likelihoods of independent data that share the parameters of the same name.

    A constraint that appears in several of them (the same object) counts once.

    Parameters
    ----------
    *parts : NLL
        Two or more likelihoods with the same parameter of interest.

    Raises
    ------
    ModelError
        If the parts have different parameters of interest.
    """

    def __init__(self, *parts: NLL) -> None:
        pois = {part.poi for part in parts}
        if len(pois) != 1:
            raise ModelError(f"cannot add likelihoods with different parameters of interest: {', '.join(sorted(pois))}")
        constraints = {id(c): c for part in parts for c in part.constraints}
        parameters = merge_parameters([part.parameters for part in parts])
        uses = {name: [part for part in parts if name in part.names] for name in (p.name for p in parameters)}
        convex = frozenset(name for name, users in uses.items() if all(name in part.convex for part in users))
        super().__init__(
            parameters,
            [mixture for part in parts for mixture in part.mixtures],
            tuple(constraints.values()),
            poi=pois.pop(),
            convex=convex,
        )
