r"""How many parameters the smooth background of the mass needs: nested shapes compared on the sidebands.

Shapes of one family are nested: order n + 1 contains order n. By Wilks' theorem

.. math::

    q_n = 2 \left[ \mathrm{nll}(n) - \mathrm{nll}(n + 1) \right] \sim \chi^2_{k_{n+1} - k_n}

if order n with :math:`k_n` parameters is enough. This is the unbinned form of the F-test with which dijet searches stop adding
powers (CMS, arXiv:1911.03947, ATLAS, arXiv:1703.09127): the chosen order is the first whose successor is no significant
improvement. The information criteria are ``AIC = 2 k + 2 nll`` (Akaike 1974) and ``BIC = k ln n + 2 nll`` (Schwarz 1978);
the order with the smallest value is chosen.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from scipy.special import chdtrc

from gbistat.errors import EventsError, FitFailed, ModelError, OptionError, nearest
from gbistat.fit.sidebands import fit_sidebands
from gbistat.terms.shapes.registry import make_shape

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gbistat.data.events import Events
    from gbistat.data.window import MassWindow
    from gbistat.fit.sidebands import GoodnessOfFit, SidebandFit
    from gbistat.terms.protocols import Shape
    from gbistat.typing import Json

__all__ = ["CRITERIA", "OrderChoice", "OrderTrial", "choose_order", "nested_shapes", "with_order"]

Criterion = Literal["likelihood_ratio", "aic", "bic"]
CRITERIA: tuple[Criterion, ...] = ("likelihood_ratio", "aic", "bic")
ORDERS: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "dijet": ("n_parameters", (2, 3, 4, 5)),
    "bernstein": ("degree", (1, 2, 3, 4, 5, 6)),
    "chebyshev": ("degree", (1, 2, 3, 4, 5, 6)),
}
"""Family to the option that is its order, and the orders that are tried."""


@dataclass(frozen=True, eq=False)
class OrderTrial:
    """One order of a family, fitted to the sidebands.

    Parameters
    ----------
    n_parameters : int
        Parameters of the shape.
    nll : float
        At the minimum; NaN if the fit failed.
    aic, bic : float
        Information criteria.
    statistic, p_value : float or None
        Likelihood ratio against the next order and its p-value; None for the last order.
    goodness : GoodnessOfFit or None
        Binned chi2 of the fit.
    expected, expected_error : float
        Background events predicted in the window: what the choice changes.
    message : str
        Why the fit failed; empty otherwise.
    """

    n_parameters: int
    nll: float = math.nan
    aic: float = math.nan
    bic: float = math.nan
    statistic: float | None = None
    p_value: float | None = None
    goodness: GoodnessOfFit | None = None
    expected: float = math.nan
    expected_error: float = math.nan
    message: str = ""

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        plain = dataclasses.asdict(self)
        del plain["goodness"]
        if self.goodness is not None:
            plain["goodness"] = dataclasses.asdict(self.goodness)
        return plain


@dataclass(frozen=True, eq=False)
class OrderChoice:
    """Orders that were tried, and the one that was taken.

    Parameters
    ----------
    family : str
        Name of the shapes.
    criterion : {"likelihood_ratio", "aic", "bic"}
        What decided.
    alpha : float
        Largest p-value of a likelihood ratio that counts as an improvement.
    trials : tuple of OrderTrial
        By number of parameters.
    fit : SidebandFit
        Fit of the chosen order, with its covariance.
    notes : tuple of str
        What a reader of the results must know.
    """

    family: str
    criterion: Criterion
    alpha: float
    trials: tuple[OrderTrial, ...]
    fit: SidebandFit
    notes: tuple[str, ...]

    @property
    def n_parameters(self) -> int:
        """Parameters of the chosen shape."""
        return int(self.fit.theta.size)

    @property
    def spread(self) -> float:
        """Largest change of the predicted yield among the orders that describe the sidebands (p > 0.01), in events."""
        good = [t.expected for t in self.trials if t.goodness is not None and t.goodness.p_value > 0.01]
        return max((abs(value - self.fit.expected) for value in good), default=0.0)

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "family": self.family,
            "criterion": self.criterion,
            "alpha": self.alpha,
            "n_parameters": self.n_parameters,
            "spread_of_expected": self.spread,
            "trials": [trial.to_dict() for trial in self.trials],
            "notes": list(self.notes),
        }


def nested_shapes(family: str, options: Mapping[str, Any] | None = None) -> tuple[Shape, ...]:
    """Shapes of a nested family, in increasing order.

    Parameters
    ----------
    family : str
        "dijet", "bernstein" or "chebyshev".
    options : mapping, optional
        Options besides the order, such as ``sqrt_s`` or ``support``; an order among them is ignored.

    Raises
    ------
    ModelError
        If the family has no order, or an option is wrong.

    Examples
    --------
    >>> [len(shape.parameters) for shape in nested_shapes("dijet")]
    [2, 3, 4, 5]
    """
    key, orders = _order_option(family)
    rest = {name: value for name, value in (options or {}).items() if name != key}
    return tuple(make_shape(family, **{**rest, key: order}) for order in orders)


def with_order(family: str, options: Mapping[str, Any], order: int) -> dict[str, Any]:
    """Options of a shape with its order set.

    Raises
    ------
    ModelError
        If the shape has no order.

    Examples
    --------
    >>> with_order("dijet", {"sqrt_s": 13600.0}, 4)
    {'sqrt_s': 13600.0, 'n_parameters': 4}
    """
    return {**options, _order_option(family)[0]: order}


def choose_order(
    events: Events,
    window: MassWindow,
    fit_range: MassWindow,
    shapes: Sequence[Shape],
    *,
    criterion: Criterion = "likelihood_ratio",
    alpha: float = 0.05,
) -> OrderChoice:
    """Fit nested shapes to the sidebands of a window and take the simplest that suffices.

    Parameters
    ----------
    events : Events
        Events of the whole spectrum; only those in the sidebands are used.
    window, fit_range : MassWindow
        As in :func:`gbistat.fit.sidebands.fit_sidebands`.
    shapes : sequence of Shape
        Nested, with increasing numbers of parameters (:func:`nested_shapes`).
    criterion : {"likelihood_ratio", "aic", "bic"}, default "likelihood_ratio"
        What decides.
    alpha : float, default 0.05
        The likelihood-ratio test adds parameters as long as its p-value is below.

    Returns
    -------
    OrderChoice
        Table of orders, and the fit of the chosen one.

    Raises
    ------
    OptionError
        If the criterion is unknown, `alpha` is not between 0 and 1, or the shapes do not grow.
    WindowError, EventsError
        If the sidebands are one-sided or empty, or hold fewer events than the simplest shape has parameters.
    FitFailed
        If the simplest shape cannot be fitted.

    Notes
    -----
    The order is chosen with the data that are then fitted with it: mild double use. The errors of the chosen fit do not
    contain the choice; `OrderChoice.spread` says how far other acceptable orders move the prediction. An order whose fit
    fails (too few events, a parameter at its wall) ends the table.
    """
    _check(shapes, criterion, alpha)
    fits: list[SidebandFit] = []
    failure: OrderTrial | None = None
    for shape in shapes:
        try:
            fits.append(fit_sidebands(events, window, fit_range, shape))
        except (EventsError, FitFailed) as problem:
            if not fits:
                raise
            failure = OrderTrial(len(shape.parameters), message=str(problem))
            break
    trials = _trials(fits)
    chosen = _chosen(trials, criterion, alpha)
    notes = [_double_use(trials[chosen], shapes[0].name, criterion)]
    if failure is not None:
        notes.append(f"{shapes[0].name} with {failure.n_parameters} parameters could not be fitted: {failure.message}")
        trials = [*trials, failure]
    elif chosen == len(fits) - 1 and len(fits) > 1:
        notes.append(
            f"the largest order that was tried was chosen ({trials[chosen].n_parameters} parameters): an even larger one, or "
            "another family, might describe the sidebands better"
        )
    if events.weights is not None:
        notes.append(
            "events are weighted: likelihood ratios and information criteria between orders are only indicative"
        )
    return OrderChoice(shapes[0].name, criterion, alpha, tuple(trials), fits[chosen], tuple(notes))


_NAMES = {
    "likelihood_ratio": "a likelihood-ratio test",
    "aic": "Akaike's information criterion",
    "bic": "the Bayesian information criterion",
}


def _double_use(trial: OrderTrial, family: str, criterion: Criterion) -> str:
    return (
        f"the {trial.n_parameters} parameters of the {family} background were chosen by {_NAMES[criterion]} on the "
        "sidebands that it is then fitted to: a mild double use, and the error of the prediction does not contain the choice"
    )


def _order_option(family: str) -> tuple[str, tuple[int, ...]]:
    if family not in ORDERS:
        raise ModelError(
            f"the shape {family!r} has no order to choose; {nearest(family, ORDERS)}: remove background.order, or take one of these"
        )
    return ORDERS[family]


def _check(shapes: Sequence[Shape], criterion: str, alpha: float) -> None:
    if criterion not in CRITERIA:
        raise OptionError(f"criterion {criterion!r} is unknown; {nearest(criterion, CRITERIA)}")
    if not 0.0 < alpha < 1.0:
        raise OptionError(f"alpha = {alpha:g} must lie between 0 and 1, for example 0.05")
    sizes = [len(shape.parameters) for shape in shapes]
    if not sizes or any(a >= b for a, b in itertools.pairwise(sizes)):
        raise OptionError(f"the shapes have {sizes} parameters; give nested ones, each with more than the one before")


def _trials(fits: Sequence[SidebandFit]) -> list[OrderTrial]:
    trials = []
    for index, fitted in enumerate(fits):
        k, nll = int(fitted.theta.size), fitted.fit.nll
        statistic = p_value = None
        if index + 1 < len(fits):
            following = fits[index + 1]
            # Rounding can make the difference of two large numbers a little negative.
            statistic = max(0.0, 2.0 * (nll - following.fit.nll))
            p_value = float(chdtrc(int(following.theta.size) - k, statistic))
        trials.append(
            OrderTrial(
                n_parameters=k,
                nll=nll,
                aic=2.0 * k + 2.0 * nll,
                bic=k * math.log(float(fitted.fit.values[0])) + 2.0 * nll,
                statistic=statistic,
                p_value=p_value,
                goodness=fitted.goodness,
                expected=fitted.expected,
                expected_error=fitted.expected_error,
            )
        )
    return trials


def _chosen(trials: Sequence[OrderTrial], criterion: Criterion, alpha: float) -> int:
    if criterion == "likelihood_ratio":
        return next(i for i, trial in enumerate(trials) if trial.p_value is None or trial.p_value > alpha)
    values = [trial.aic if criterion == "aic" else trial.bic for trial in trials]
    return values.index(min(values))
