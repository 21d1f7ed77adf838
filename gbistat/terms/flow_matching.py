r"""Continuous flows without Keras: a velocity given by ONNX graphs, integrated in numpy.

.. math::

    \frac{dy}{dt} = v(y, t; m), \qquad
    \ln p(y_1|m) = \ln N(y_0; 0, 1) - \int_0^1 \nabla \cdot v(y_t, t; m) \, dt

(Chen et al., arXiv:1806.07366), by Runge-Kutta steps of fourth order and equal length. Between the edges m1 < m2 of a window
the context of the mass is the one of SIGMA (arXiv:2410.20537), ``a c(m1) + (1 - a) c(m2)`` with ``a = (m2 - m) / (m2 - m1)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gbistat.errors import OptionError, TermError, WindowError
from gbistat.terms.graph import check_graph
from gbistat.terms.session import make_session, run_graph

if TYPE_CHECKING:
    from collections.abc import Callable

    from gbistat.data.transforms import FeatureTransform
    from gbistat.typing import FloatArray

__all__ = ["FlowMatchingDensity", "GraphVelocity", "Velocity"]

AT_ONCE = 16_384
"""Events integrated together: bounds the memory of the Jacobian."""
DEFAULT_STEPS = 12
GRAPH_FILES = ("context.onnx", "velocity.onnx", "flow.onnx")


class Velocity(Protocol):
    """Velocity of a flow whose dependence on the mass goes through a context of width c."""

    def context(self, mass: FloatArray, /) -> FloatArray:
        """Context of n scaled masses, shape (n, c)."""
        ...

    def velocity(self, x: FloatArray, /) -> FloatArray:
        """Velocity at ``[y, t, context]``, shape (n, d)."""
        ...

    def flow(self, x: FloatArray, /) -> FloatArray:
        """Velocity and, in the last column, its divergence at ``[y, t, context]``, shape (n, d + 1)."""
        ...


@dataclass(frozen=True, eq=False)
class GraphVelocity:
    """Velocity given by three ONNX graphs with one input and one output each.

    Parameters
    ----------
    graphs : tuple of bytes
        Context, velocity, and velocity with divergence.

    Raises
    ------
    TermError
        If a graph is damaged or refers to another file.
    """

    graphs: tuple[bytes, bytes, bytes]

    def __post_init__(self) -> None:
        for file, graph in zip(GRAPH_FILES, self.graphs, strict=True):
            check_graph(graph, file)

    def __getstate__(self) -> dict[str, Any]:
        # Sessions cannot be sent to another process; it makes its own.
        return {"graphs": self.graphs}

    def context(self, mass: FloatArray, /) -> FloatArray:
        """Context of n scaled masses, shape (n, c)."""
        return self._run(0, mass[:, None])

    def velocity(self, x: FloatArray, /) -> FloatArray:
        """Velocity at ``[y, t, context]``, shape (n, d)."""
        return self._run(1, x)

    def flow(self, x: FloatArray, /) -> FloatArray:
        """Velocity and divergence at ``[y, t, context]``, shape (n, d + 1)."""
        return self._run(2, x)

    @cached_property
    def _sessions(self) -> tuple[Any, ...]:
        return tuple(make_session(graph, file) for graph, file in zip(self.graphs, GRAPH_FILES, strict=True))

    def _run(self, index: int, x: FloatArray) -> FloatArray:
        session = self._sessions[index]
        columns = session.get_outputs()[0].shape[1]
        return run_graph(session, x, columns, GRAPH_FILES[index])


@dataclass(frozen=True, eq=False)
class FlowMatchingDensity:
    """Density of d features at given mass, p(x|m), of a continuous flow.

    Parameters
    ----------
    network : Velocity
        The velocity.
    transform : FeatureTransform
        From features to where the flow lives.
    mass_range : (float, float)
        Range of the mass in training; ln m over it is scaled to [-1, 1].
    interpolated : (float, float), optional
        Edges m1 < m2 between which the context is interpolated; None for the model as it was trained.
    steps : int
        Runge-Kutta steps.

    Raises
    ------
    WindowError
        If the edges are empty or not inside the range of the mass.
    OptionError
        If `steps` is not positive.

    Notes
    -----
    Features outside the range of the transform have density 0, so ``log_prob`` is -inf there.
    """

    network: Velocity
    transform: FeatureTransform
    mass_range: tuple[float, float]
    interpolated: tuple[float, float] | None = None
    steps: int = DEFAULT_STEPS

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise OptionError(f"steps = {self.steps} must be at least 1; {DEFAULT_STEPS} is the default")
        if self.interpolated is None:
            return
        low, high = self.interpolated
        if not self.mass_range[0] <= low < high <= self.mass_range[1]:
            raise WindowError(
                f"context cannot be interpolated between {low:g} and {high:g}: the edges must increase and lie inside "
                f"{self.mass_range[0]:g}-{self.mass_range[1]:g}, where the model was trained"
            )

    def blinded(self, window: tuple[float, float], *, buffer: float = 0.0) -> FlowMatchingDensity:
        """Same model for another window: nothing is trained again.

        Parameters
        ----------
        window : (float, float)
            Whose inside is not to be used.
        buffer : float, default 0
            How far the edges of the interpolation stand outside the window; SIGMA takes a quarter of its width.

        Raises
        ------
        WindowError
            If the edges are not inside the range of the mass.
        """
        return replace(self, interpolated=(window[0] - buffer, window[1] + buffer))

    def log_prob(self, features: FloatArray, mass: FloatArray, /) -> FloatArray:
        """Natural log of p(features | mass), shape (n,), for features of shape (n, d) and masses of shape (n,).

        Raises
        ------
        TermError
            If a mass is outside the range of the training.
        """
        x, m = np.asarray(features, dtype=np.float64), np.asarray(mass, dtype=np.float64)
        context = self._context(m)
        inside = self.transform.inside(x)
        result = np.full(len(x), -np.inf)
        rows = np.flatnonzero(inside)
        for start in range(0, rows.size, AT_ONCE):
            part = rows[start : start + AT_ONCE]
            origin, change = self._to_origin(self.transform.forward(x[part]), context[part])
            d = x.shape[1]
            log_normal = -0.5 * np.sum(origin**2, axis=1) - 0.5 * d * math.log(2.0 * math.pi)
            result[part] = log_normal + change + self.transform.log_abs_det(x[part])
        return result

    def sample(self, mass: FloatArray, /, *, rng: np.random.Generator) -> FloatArray:
        """Draw features at each of n masses, shape (n, d).

        Raises
        ------
        TermError
            If a mass is outside the range of the training.
        """
        m = np.asarray(mass, dtype=np.float64)
        context = self._context(m)
        origin = rng.standard_normal((m.size, len(self.transform)))
        result = np.empty_like(origin)
        for start in range(0, m.size, AT_ONCE):
            part = slice(start, start + AT_ONCE)
            result[part] = self.transform.inverse(self._from_origin(origin[part], context[part]))
        return result

    def _context(self, mass: FloatArray) -> FloatArray:
        low, high = self.mass_range
        outside = (mass < low) | (mass > high)
        if outside.any():
            raise TermError(
                f"{int(outside.sum())} of {mass.size} masses are outside {low:g}-{high:g}, where the model was trained "
                f"({mass.min():.6g} to {mass.max():.6g}); select events inside, or check the unit"
            )
        context = self.network.context(self._scaled(mass))
        if self.interpolated is None:
            return context
        edges = np.array(self.interpolated)
        inside = (mass > edges[0]) & (mass < edges[1])
        ends = self.network.context(self._scaled(edges))
        a = ((edges[1] - mass[inside]) / (edges[1] - edges[0]))[:, None]
        context[inside] = a * ends[0] + (1.0 - a) * ends[1]
        return context

    def _scaled(self, mass: FloatArray) -> FloatArray:
        low, high = np.log(self.mass_range)
        scaled: FloatArray = 2.0 * (np.log(mass) - low) / (high - low) - 1.0
        return scaled

    def _from_origin(self, y: FloatArray, context: FloatArray) -> FloatArray:
        def slope(y: FloatArray, t: float) -> FloatArray:
            return self.network.velocity(_inputs(y, t, context))

        step = 1.0 / self.steps
        for k in range(self.steps):
            y = y + _runge_kutta(slope, y, k * step, step)
        return y

    def _to_origin(self, y: FloatArray, context: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Where the paths began, and minus the integral of the divergence along them."""
        d = y.shape[1]

        def slope(state: FloatArray, t: float) -> FloatArray:
            return self.network.flow(_inputs(state[:, :d], t, context))

        state = np.concatenate([y, np.zeros((len(y), 1))], axis=1)
        step = 1.0 / self.steps
        for k in range(self.steps):
            state = state + _runge_kutta(slope, state, 1.0 - k * step, -step)
        # The last column went from t = 1 to 0: it holds minus the integral from 0 to 1.
        return state[:, :d], state[:, d]


def _inputs(y: FloatArray, t: float, context: FloatArray) -> FloatArray:
    return np.concatenate([y, np.full((len(y), 1), t), context], axis=1)


def _runge_kutta(slope: Callable[[FloatArray, float], FloatArray], y: FloatArray, t: float, step: float) -> FloatArray:
    """Change over one step of the classical method of fourth order."""
    k1 = slope(y, t)
    k2 = slope(y + 0.5 * step * k1, t + 0.5 * step)
    k3 = slope(y + 0.5 * step * k2, t + 0.5 * step)
    k4 = slope(y + step * k3, t + step)
    return (step / 6.0) * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
