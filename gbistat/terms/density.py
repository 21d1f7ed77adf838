"""A shape of the mass, normalised where events are counted, with its parameters tied to those of a model."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import EventsError, ModelError, OptionError, ParameterError
from gbistat.terms.domain import checked_domain, cut_domain, describe_domain, inside_domain
from gbistat.terms.quadrature import Moments, Quadrature, gauss_legendre
from gbistat.terms.sampling import draw
from gbistat.terms.tables import tabulate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.terms.domain import Domain
    from gbistat.terms.protocols import Shape
    from gbistat.typing import BoolArray, FloatArray

__all__ = ["MassDensity", "PreparedDensity"]

KEPT_INTERVALS = 32  # whose quadrature nodes are kept
SMALLEST_FRACTION = 1e-9  # of a shape that a domain must hold: below, there is nothing to fit


@dataclass(frozen=True, eq=False)
class MassDensity:
    r"""Density of the mass on a union of intervals.

    .. math::

        \ln p(m; v) = u(m; \theta) - \ln \int_D e^{u(m'; \theta)} dm', \qquad \theta = \mathrm{offset} + A v

    Parameters
    ----------
    shape : Shape
        The logarithm u of the density without its normalisation, with p parameters.
    domain : sequence of (low, high)
        The half-open intervals ``low <= m < high`` of which D consists: a window, or two sidebands.
    parameters : sequence of str
        Names of the k parameters of the model that it depends on.
    offset : array of shape (p,)
        Parameters of the shape where all values are 0.
    matrix : array of shape (p, k)
        The matrix A.

    Raises
    ------
    WindowError
        If the intervals are empty, overlap or leave the support of the shape.
    ModelError
        If the sizes do not match, or the shape has no parameters and vanishes on the domain.
    ParameterError
        If a parameter of the model is named twice.

    Notes
    -----
    Where the parameters give no density (a negative width, a polynomial that is not positive on all of the domain),
    ``log_prob`` is -inf for all masses and the derivatives are NaN, so that a fit can turn back; what has no such value
    (integrals, bins, samples) raises ``ParameterError``. At a mass outside the domain the log density is -inf and its
    derivatives are 0.

    Examples
    --------
    >>> from gbistat.terms.shapes.exponential import Exponential
    >>> density = MassDensity.free(Exponential(), ((3300.0, 3700.0),))
    >>> density.parameters
    ('rate',)
    >>> density.log_prob([3300.0, 4000.0], [0.0]).round(4).tolist()
    [-5.9915, -inf]
    """

    shape: Shape
    domain: Domain
    parameters: tuple[str, ...] = ()
    offset: FloatArray = field(default_factory=lambda: np.empty(0))
    matrix: FloatArray = field(default_factory=lambda: np.empty((0, 0)))
    _quadratures: dict[Domain, Quadrature] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        p, k = len(self.shape.parameters), len(self.parameters)
        offset, matrix = np.array(self.offset, dtype=np.float64), np.array(self.matrix, dtype=np.float64)
        matrix = matrix.reshape(p, k) if matrix.size == 0 and k * p == 0 else matrix
        if offset.shape != (p,) or matrix.shape != (p, k):
            raise ModelError(
                f"{self.shape.name} has {p} parameter(s) and the model names {k}: offset must have shape ({p},), not "
                f"{offset.shape}, and matrix ({p}, {k}), not {matrix.shape}"
            )
        if len(set(self.parameters)) != k:
            raise ParameterError(f"a parameter is named twice in {list(self.parameters)}; give each its own name")
        if not (np.isfinite(offset).all() and np.isfinite(matrix).all()):
            raise ParameterError(
                f"{self._describe(offset)} has a parameter that is not a finite number; give it a value"
            )
        offset.setflags(write=False)
        matrix.setflags(write=False)
        object.__setattr__(self, "offset", offset)
        object.__setattr__(self, "matrix", matrix)
        object.__setattr__(self, "parameters", tuple(self.parameters))
        object.__setattr__(self, "domain", checked_domain(self.shape, self.domain))
        if p == 0 and not math.isfinite(self._quadrature(self.domain).log_integral(np.empty(0))):
            raise ModelError(
                f"{self.shape.name} is zero everywhere on {describe_domain(self.domain)}; choose another window"
            )

    @classmethod
    def free(cls, shape: Shape, domain: Domain, *, names: Sequence[str] | None = None) -> MassDensity:
        """Density with one parameter of the model for each of the shape, called `names` (default: as the shape does)."""
        chosen = tuple(parameter.name for parameter in shape.parameters) if names is None else tuple(names)
        p = len(shape.parameters)
        if len(chosen) != p:
            raise ModelError(f"{shape.name} has {p} parameter(s), but {len(chosen)} names are given: {list(chosen)}")
        return cls(shape, domain, chosen, np.zeros(p), np.eye(p))

    @classmethod
    def fixed(cls, shape: Shape, domain: Domain, theta: Sequence[float] | FloatArray) -> MassDensity:
        """Density without parameters, the shape's own having the values `theta` of shape (p,)."""
        density = cls(shape, domain, (), np.asarray(theta, dtype=np.float64), np.empty((len(shape.parameters), 0)))
        density.check_integral(())
        return density

    def on(self, domain: Domain) -> MassDensity:
        """The same shape, normalised on another domain."""
        return replace(self, domain=domain)

    def shape_parameters(self, values: Sequence[float] | FloatArray) -> FloatArray:
        """Parameters of the shape, shape (p,), at values of shape (k,)."""
        theta: FloatArray = self.offset + self.matrix @ self._values(values)
        return theta

    def prepare(self, mass: Sequence[float] | FloatArray) -> PreparedDensity:
        """The density at fixed masses of shape (n,), with everything cached that does not depend on parameters."""
        return PreparedDensity(self, mass)

    def log_prob(self, mass: Sequence[float] | FloatArray, values: Sequence[float] | FloatArray) -> FloatArray:
        """Natural log of the density, shape (n,), per unit of mass; -inf outside the domain."""
        return self.prepare(mass).log_prob(values)

    def derivatives(
        self, mass: Sequence[float] | FloatArray, values: Sequence[float] | FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Log density (n,), gradient (k, n) and Hessian, (k, k, n) or (k, k, 1), in the values."""
        return self.prepare(mass).derivatives(values)

    def normalisation(self, values: Sequence[float] | FloatArray) -> Moments:
        """``(ln Z, gradient (k,), Hessian (k, k))`` of the integral Z of exp(u) over the domain.

        Unlike `log_integral`, it does not raise where the parameters give no density: it is -inf with NaN there.
        """
        return self._quadrature(self.domain).moments(self._values(values))

    def log_integral(self, interval: tuple[float, float], values: Sequence[float] | FloatArray) -> float:
        """ln of the integral of exp(u) over an interval, which need not lie in the domain.

        Raises
        ------
        WindowError
            If the interval is empty or leaves the support of the shape.
        ParameterError
            If the parameters give no density there.
        """
        checked = self._values(values)
        quadrature = self._quadrature(checked_domain(self.shape, (interval,)))
        result = quadrature.log_integral(checked)
        if result == -math.inf:
            raise self._no_density(checked, (interval,))
        return result

    def mean_score(self, interval: tuple[float, float], values: Sequence[float] | FloatArray) -> FloatArray:
        """Gradient (k,) of `log_integral`: the mean over the interval of the gradient of u.

        Raises
        ------
        WindowError
            If the interval is empty or leaves the support of the shape.
        ParameterError
            If the parameters give no density there.
        """
        checked = self._values(values)
        moments = self._quadrature(checked_domain(self.shape, (interval,))).moments(checked)
        if moments.log_integral == -math.inf:
            raise self._no_density(checked, (interval,))
        return moments.gradient

    def probabilities(self, edges: Sequence[float] | FloatArray, values: Sequence[float] | FloatArray) -> FloatArray:
        """Probability of each bin, shape (number of edges - 1,); what lies outside the domain counts as nothing.

        Raises
        ------
        OptionError
            If the edges do not increase.
        ParameterError
            If the parameters give no density on the domain.
        """
        bins = np.asarray(edges, dtype=np.float64)
        if bins.ndim != 1 or bins.size < 2 or not np.all(np.diff(bins) > 0):
            raise OptionError("edges of bins must be at least two finite numbers that increase")
        checked = self._values(values)
        pieces, owner = cut_domain(bins, self.domain)
        quadrature = Quadrature(self.shape, self.offset, self.matrix, pieces, panels=1)
        integrals = quadrature.integrals(checked)
        if integrals is None:
            raise self._no_density(checked, self.domain)
        inside = integrals[1] / np.sum(integrals[1])
        everywhere = np.zeros(bins.size + 1)  # with what lies below and above all bins
        np.add.at(everywhere, owner + 1, inside)
        return everywhere[1:-1]

    def nodes(self, count_per_piece: int) -> tuple[FloatArray, FloatArray]:
        """Gauss-Legendre nodes and weights over the domain, two arrays of shape (n,) in the unit of the mass.

        Raises
        ------
        OptionError
            If `count_per_piece`, the number for each interval, is not positive.
        """
        if count_per_piece < 1:
            raise OptionError(f"{count_per_piece} nodes an interval: at least one is needed")
        low, high = np.array(self.domain).T
        nodes, weights = gauss_legendre(low, high, count_per_piece)
        return nodes.ravel(), weights.ravel()

    def sample(self, n: int, values: Sequence[float] | FloatArray, *, rng: np.random.Generator) -> FloatArray:
        """Draw n masses.

        The cumulative distribution is inverted: exact probabilities of fine cells, and inside a cell the exponential
        that follows the slope of the density. No draw is rejected.

        Parameters
        ----------
        n : int
            How many.
        values : array of shape (k,)
            Parameters of the model.
        rng : numpy.random.Generator
            Source of randomness.

        Returns
        -------
        array of shape (n,)
            In no order.

        Raises
        ------
        OptionError
            If n is negative.
        ParameterError
            If the parameters give no density.
        """
        if n < 0:
            raise OptionError(f"cannot draw {n} masses; give a number of 0 or more")
        checked = self._values(values)
        resolved = self._quadrature(self.domain).resolve(checked)
        if resolved is None:
            raise self._no_density(checked, self.domain)
        theta = self.offset + self.matrix @ checked
        return draw(self.shape, theta, resolved[0].low, resolved[0].high, n, rng=rng)

    def check_integral(self, values: Sequence[float] | FloatArray) -> None:
        """Make sure that the domain holds a part of the shape.

        Raises
        ------
        ModelError
            If less than 1e-9 of the shape lies in the domain: a peak outside the window.
        ParameterError
            If the parameters give no density.
        """
        checked = self._values(values)
        inside = self._quadrature(self.domain).log_integral(checked)
        if inside == -math.inf:
            raise self._no_density(checked, self.domain)
        theta = self.offset + self.matrix @ checked
        points = (*self.shape.breakpoints(theta), *np.ravel(self.domain))
        hull = (max(min(points), self.shape.support[0]), min(max(points), self.shape.support[1]))
        fraction = inside - Quadrature(self.shape, self.offset, self.matrix, (hull,)).log_integral(checked)
        if fraction < math.log(SMALLEST_FRACTION):
            share = f"10^{fraction / math.log(10):.3g} of it"
            raise ModelError(
                f"{self._describe(theta)} has no part in {describe_domain(self.domain)} ({share}); "
                "move the window or the parameters"
            )

    def _quadrature(self, domain: Domain) -> Quadrature:
        if domain not in self._quadratures:
            if len(self._quadratures) >= KEPT_INTERVALS:
                self._quadratures.clear()
            self._quadratures[domain] = Quadrature(self.shape, self.offset, self.matrix, domain)
        return self._quadratures[domain]

    def _values(self, values: Sequence[float] | FloatArray) -> FloatArray:
        array = np.asarray(values, dtype=np.float64)
        if array.shape != (len(self.parameters),):
            raise ParameterError(
                f"values have shape {array.shape}; {self.shape.name} needs ({len(self.parameters)},): "
                f"{', '.join(self.parameters) or 'nothing'}"
            )
        if not np.isfinite(array).all():
            bad = [
                f"{name} = {value:g}"
                for name, value in zip(self.parameters, array, strict=True)
                if not np.isfinite(value)
            ]
            raise ParameterError(f"{', '.join(bad)}: parameters of {self.shape.name} must be finite numbers")
        return array

    def _describe(self, theta: FloatArray) -> str:
        pairs = zip(self.shape.parameters, theta, strict=True)
        return f"{self.shape.name}({', '.join(f'{parameter.name}={value:.6g}' for parameter, value in pairs)})"

    def _no_density(self, values: FloatArray, domain: Domain) -> ParameterError:
        theta = self.offset + self.matrix @ values
        outside = [
            f"{parameter.name} must be within {parameter.low:g} and {parameter.high:g}"
            for parameter, value in zip(self.shape.parameters, theta, strict=True)
            if not parameter.low <= value <= parameter.high or (value == 0 == parameter.low)
        ]
        why = ", ".join(outside) or "it is zero, negative or not integrable somewhere there"
        return ParameterError(f"{self._describe(theta)} is not a density on {describe_domain(domain)}: {why}")


class PreparedDensity:
    """A mass density at fixed masses.

    Parameters
    ----------
    density : MassDensity
        With k parameters.
    mass : array of shape (n,)
        Masses.

    Raises
    ------
    EventsError
        If the masses are not a one-dimensional array of numbers.
    """

    def __init__(self, density: MassDensity, mass: Sequence[float] | FloatArray) -> None:
        array = np.asarray(mass, dtype=np.float64)
        if array.ndim != 1:
            raise EventsError(f"masses have shape {array.shape}; give a one-dimensional array")
        if np.isnan(array).any():
            raise EventsError(f"{int(np.isnan(array).sum())} of {array.size} masses are NaN; remove these events")
        inside = inside_domain(array, density.domain)
        # Outside, the shape may not even be defined: evaluate it anywhere inside and overwrite the result.
        safe = array if inside.all() else np.where(inside, array, sum(density.domain[0]) / 2)
        self.density = density
        self._outside: BoolArray | None = None if inside.all() else ~inside
        self._table = tabulate(density.shape, safe, density.offset, density.matrix)
        self._size = array.size
        self._constant: FloatArray | None = None

    def __len__(self) -> int:
        return self._size

    def log_prob(self, values: Sequence[float] | FloatArray) -> FloatArray:
        """Natural log of the density, shape (n,); read-only where the density has no parameters."""
        if self._constant is not None:
            return self._constant
        checked = self.density._values(values)
        log_z = self.density._quadrature(self.density.domain).log_integral(checked)
        log_p = self._finish(self._table.log_shape(checked), log_z)
        if checked.size == 0:
            log_p.setflags(write=False)
            self._constant = log_p
        return log_p

    def derivatives(self, values: Sequence[float] | FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Log density (n,), gradient (k, n) and Hessian, (k, k, n) or (k, k, 1) if the same at all masses."""
        checked = self.density._values(values)
        if checked.size == 0:
            return self.log_prob(checked), np.zeros((0, self._size)), np.zeros((0, 0, 1))
        log_z, mean, curvature = self.density._quadrature(self.density.domain).moments(checked)
        if log_z == -math.inf:
            k = checked.size
            return np.full(self._size, -np.inf), np.full((k, self._size), np.nan), np.full((k, k, 1), np.nan)
        u, gradient, hessian = self._table.derivatives(checked)
        fresh = self._table.fresh
        gradient = np.subtract(gradient, mean[:, np.newaxis], out=gradient if fresh else None)
        hessian = np.subtract(hessian, curvature[:, :, np.newaxis], out=hessian if fresh else None)
        if self._outside is not None:
            gradient[:, self._outside] = 0.0
            hessian = np.where(self._outside, 0.0, hessian)
        return self._finish(u, log_z), gradient, hessian

    def _finish(self, u: FloatArray, log_z: float) -> FloatArray:
        log_p = np.full(self._size, -np.inf) if log_z == -math.inf else u - log_z
        if self._outside is not None:
            log_p[self._outside] = -np.inf
        return log_p
