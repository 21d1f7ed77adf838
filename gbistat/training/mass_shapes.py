"""Fits of the mass shapes that a model needs: the signal's in units of the resonance mass, the background's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import minimize
from scipy.stats import chi2

from gbistat.errors import FitFailed
from gbistat.terms.density import MassDensity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gbistat.terms.protocols import Shape
    from gbistat.typing import FloatArray, Json

__all__ = ["MassFit", "compare_shape", "crystal_ball_start", "fit_mass_shape"]

BINS = 40


@dataclass(frozen=True, eq=False)
class MassFit:
    """A fitted mass shape.

    Parameters
    ----------
    density : MassDensity
        With the shape's parameters as its own.
    values, errors : dict of str to float
        Parameters and standard deviations (from the inverse Hessian).
    n_events : int
        Events in the fit.
    """

    density: MassDensity
    values: Mapping[str, float]
    errors: Mapping[str, float]
    n_events: int

    @property
    def array(self) -> FloatArray:
        """Values in the order of the shape's parameters."""
        return np.array([self.values[name] for name in self.density.parameters])


def fit_mass_shape(
    shape: Shape,
    mass: FloatArray,
    domain: tuple[float, float] | tuple[tuple[float, float], ...],
    start: Mapping[str, float],
    *,
    bounds: Mapping[str, tuple[float, float]] | None = None,
) -> MassFit:
    """Unbinned maximum-likelihood fit of a shape.

    Parameters
    ----------
    shape : Shape
        With p parameters.
    mass : array of shape (n,)
        Masses inside `domain`.
    domain : (float, float), or several of them
        Range of the mass, in any unit, or the sidebands of a window.
    start : mapping of str to float
        Start value of every parameter, not 0: it is also the scale of the minimiser's steps.
    bounds : mapping of str to (float, float), optional
        Bounds of parameters.

    Raises
    ------
    FitFailed
        If the minimiser stops without a minimum, or at a bound.
    """
    pieces: Any = domain if isinstance(domain[0], tuple) else (domain,)
    density = MassDensity.free(shape, pieces)
    prepared = density.prepare(mass)
    names = density.parameters
    scale = np.array([abs(start[name]) for name in names])
    limits = [(bounds or {}).get(name, (-np.inf, np.inf)) for name in names]

    def cost(scaled: FloatArray) -> tuple[float, FloatArray]:
        log_prob, gradient, _ = prepared.derivatives(scaled * scale)
        return -float(np.mean(log_prob)), -np.mean(gradient, axis=1) * scale

    # Per event, so that the minimiser's tolerances mean the same for any number of them.
    outcome = minimize(
        cost,
        np.array([start[name] for name in names]) / scale,
        jac=True,
        method="L-BFGS-B",
        bounds=[(low / s, high / s) for (low, high), s in zip(limits, scale, strict=True)],
        options={"maxiter": 500, "ftol": 1e-14, "gtol": 1e-7},
    )
    values = outcome.x * scale
    at_bound = [name for name, value, (low, high) in zip(names, values, limits, strict=True) if not low < value < high]
    if at_bound:
        raise FitFailed(f"the fit of the {shape.name} shape ended with {at_bound[0]} at its bound; check the range")
    if not np.isfinite(outcome.fun) or np.max(np.abs(outcome.jac)) > 1e-3:
        raise FitFailed(
            f"the fit of the {shape.name} shape to {mass.size} masses did not converge "
            f"({outcome.message}); check the range of the fit"
        )
    hessian = -np.sum(np.broadcast_to(prepared.derivatives(values)[2], (len(names), len(names), mass.size)), axis=2)
    errors = np.sqrt(np.diag(np.linalg.inv(hessian)))
    return MassFit(
        density,
        dict(zip(names, values.tolist(), strict=True)),
        dict(zip(names, errors.tolist(), strict=True)),
        int(mass.size),
    )


def crystal_ball_start() -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Start values and bounds of a double-sided Crystal Ball function, in units of the resonance mass."""
    start = {"mean": 1.0, "sigma": 0.02, "alpha_low": 1.0, "n_low": 3.0, "alpha_high": 1.0, "n_high": 3.0}
    bounds = {
        "mean": (0.8, 1.2),
        "sigma": (1e-3, 0.2),
        "alpha_low": (0.05, 6.0),
        "n_low": (0.1, 200.0),
        "alpha_high": (0.05, 6.0),
        "n_high": (0.1, 200.0),
    }
    return start, bounds


def compare_shape(fit: MassFit, mass: FloatArray, domain: tuple[float, float], *, fitted: int) -> Json:
    """Chi-square of masses against a fit in bins that the fit fills equally.

    Parameters
    ----------
    fit : MassFit
        The fit, in the same unit as `mass`.
    mass : array of shape (n,)
        Masses inside `domain`.
    domain : (float, float)
        Range, where the shape is normalised anew.
    fitted : int
        Parameters that were fitted to these masses: 0 if they come from another sample.
    """
    density = fit.density.on((domain,))
    fine = np.linspace(*domain, 4001)
    cumulative = np.concatenate([[0.0], np.cumsum(density.probabilities(fine, fit.array))])
    inner = np.interp(np.arange(1, BINS) / BINS, cumulative / cumulative[-1], fine)
    edges = np.array([domain[0], *inner, domain[1]])
    expected = density.probabilities(edges, fit.array) * mass.size
    counts = np.histogram(mass, edges)[0]
    value = float(np.sum((counts - expected) ** 2 / expected))
    degrees = BINS - 1 - fitted
    return {
        "n_events": int(mass.size),
        "chi2": value,
        "degrees_of_freedom": degrees,
        "p_value": float(chi2.sf(value, degrees)),
    }
