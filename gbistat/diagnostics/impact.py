r"""What a difference between data and generator does to the measured signal: shifts of mu in units of its error.

With the score of the signal fraction at no signal, :math:`s = r - 1` for the ratio r of signal to background, and N background
events in the window, a background that is not the modelled one shifts the estimate by

.. math::

    \frac{\delta}{\sigma} = \sqrt N \; \frac{\langle s \rangle_\mathrm{data} - \langle s \rangle_\mathrm{gen}}{\mathrm{std}_\mathrm{gen}(s)},

with error :math:`\sqrt{N/n_1 + N/n_0}`; no parameter whatever is shifted by more than :math:`\sqrt{N \, \mathrm{Var}_\mathrm{gen} w}`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import chdtrc

from gbistat.diagnostics.weights import Estimate
from gbistat.errors import EventsError, OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.typing import FloatArray, Json

__all__ = [
    "ONE_SIDED",
    "Impact",
    "PooledBias",
    "injection_power",
    "pool_windows",
    "projected_bias",
    "ratio_normalisation",
    "signal_score",
    "smallest_certifiable",
]

ONE_SIDED = 1.6448536269514722
"""Standard errors of a one-sided bound at 95 %."""


def signal_score(log_ratio: FloatArray, *, n_background: float, size: float = 2.0) -> FloatArray:
    """Bounded score of the signal fraction, ``(r - 1) / (1 + f (r - 1))``, at the fraction f that is `size` errors.

    Parameters
    ----------
    log_ratio : array of shape (n,)
        ln(p_s / p_b) of background events in the window.
    n_background : float
        Background events expected in the window of the measurement.
    size : float, default 2
        Errors of the fraction.

    Returns
    -------
    array of shape (n,)
        Scores: at f = 0 a few events of huge ratio would rule the mean.

    Raises
    ------
    EventsError
        If the ratio does not vary.
    """
    growth = np.expm1(np.minimum(log_ratio, 600.0))
    fraction = 0.0
    for _ in range(50):
        information = float(np.mean(growth**2 / (1.0 + fraction * growth)))
        if not information > 1e-12:
            raise EventsError("signal and background have the same density in all events: no score")
        fraction = min(0.5, size / math.sqrt(max(n_background, 1.0) * information))
    result: FloatArray = growth / (1.0 + fraction * growth)
    return result


@dataclass(frozen=True)
class Impact:
    """Shift of the estimated signal in units of its statistical error.

    Parameters
    ----------
    bias : Estimate
        Projected bias from the means of the score.
    bias_from_weights : float or None
        The same from the covariance of weight and score over generated events: smaller variance where w is good.
    universal_bound : float or None
        ``sqrt(N Var_gen w)``.
    n_background : float
        N.
    n_data, n_generated : int
        Test events.
    """

    bias: Estimate
    bias_from_weights: float | None
    universal_bound: float | None
    n_background: float
    n_data: int
    n_generated: int

    @property
    def upper(self) -> float:
        """Upper 95 % limit of the size of the bias."""
        return _upper(self.bias)

    @property
    def lower(self) -> float:
        """Lower 95 % limit of the size of the bias."""
        return max(0.0, abs(self.bias.value) - ONE_SIDED * self.bias.error)

    @property
    def certifiable(self) -> float:
        """Smallest bound that these events can give, were the generator perfect."""
        return ONE_SIDED * math.sqrt(self.n_background * (1.0 / self.n_data + 1.0 / self.n_generated))

    def statement(self, tolerance: float) -> str:
        """What these events can and cannot certify, in a sentence."""
        needed = smallest_certifiable(self.n_background, tolerance)
        if self.certifiable < tolerance:
            return (
                f"{self.n_data} held-out and {self.n_generated} generated events can bound the bias at "
                f"{self.certifiable:.2g} sigma, below the tolerance of {tolerance:g}"
            )
        return (
            f"{self.n_data} held-out and {self.n_generated} generated events cannot certify {tolerance:g} sigma: were the "
            f"generator perfect they would bound the bias at {self.certifiable:.2g} sigma only; {needed:.2g} of each would be "
            f"needed. Take the bias and its error as the width of a tilt nuisance, pool more windows, or simulate the chain"
        )

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "bias_over_sigma": self.bias.to_list(),
            "bias_from_weights": self.bias_from_weights,
            "upper95": self.upper,
            "lower95": self.lower,
            "bound": self.universal_bound,
            "certifiable": self.certifiable,
            "n_background": self.n_background,
            "n": [self.n_data, self.n_generated],
        }


def projected_bias(
    data: FloatArray,
    generated: FloatArray,
    *,
    n_background: float,
    log_weight: FloatArray | None = None,
) -> Impact:
    """Project the difference of data and generated events onto the score of the signal.

    Parameters
    ----------
    data, generated : array of shape (n_1,), (n_0,)
        Score of held-out data without signal (sidebands, pseudo-windows) and of generated events.
    n_background : float
        Background events in the window of the measurement.
    log_weight : array of shape (n_0,), optional
        ln w of the generated events, for the estimate by weights and the bound.

    Raises
    ------
    EventsError
        If scores are not finite or do not vary, or there are too few.
    OptionError
        If `n_background` is not positive.
    """
    if not (math.isfinite(n_background) and n_background > 0):
        raise OptionError(f"n_background = {n_background} must be a positive number of events")
    if min(data.size, generated.size) < 2 or not (np.all(np.isfinite(data)) and np.all(np.isfinite(generated))):
        raise EventsError(
            f"scores of {data.size} data and {generated.size} generated events must be finite, two or more"
        )
    spread = float(np.std(generated))
    if not spread > 0:
        raise EventsError("the score is the same for all generated events: there is no signal to project on")
    scale = math.sqrt(n_background) / spread
    variance = float(np.var(data)) / data.size + spread**2 / generated.size
    bias = Estimate(scale * (float(np.mean(data)) - float(np.mean(generated))), scale * math.sqrt(variance))
    from_weights = bound = None
    if log_weight is not None:
        w = np.exp(np.minimum(log_weight, 600.0))
        w /= w.mean()
        from_weights = scale * float(np.mean((w - 1.0) * (generated - generated.mean())))
        bound = math.sqrt(n_background * float(np.var(w)))
    return Impact(bias, from_weights, bound, float(n_background), data.size, generated.size)


def smallest_certifiable(n_background: float, tolerance: float) -> float:
    """Events of each kind, held-out and generated, from which a bias of `tolerance` can be excluded at 95 %.

    Examples
    --------
    >>> round(smallest_certifiable(10_000, 0.2))
    1352772
    """
    return 2.0 * n_background * (ONE_SIDED / tolerance) ** 2


def injection_power(
    generated: FloatArray,
    *,
    n_data: int,
    n_background: float,
    tolerance: float,
    rng: np.random.Generator,
    trials: int = 200,
) -> float:
    """Share of trials in which a bias of the size of the tolerance is told from none at 95 %.

    Parameters
    ----------
    generated : array of shape (n_0,)
        Score of generated events.
    n_data : int
        Held-out events.
    n_background : float
        Background events in the window of the measurement.
    tolerance : float
        Bias that is injected, in sigma: data are drawn from the generated events with weights ``1 + c (s - <s>)``.
    rng : numpy.random.Generator
        Draws.
    trials : int, default 200
        Number of trials.

    Raises
    ------
    OptionError
        If the injected tilt would need negative weights over most of the events.
    """
    centred = generated - generated.mean()
    spread = float(np.std(generated))
    strength = tolerance / (math.sqrt(n_background) * spread)
    weights = 1.0 + strength * centred
    if np.mean(weights < 0) > 0.01:
        raise OptionError(f"a bias of {tolerance:g} sigma cannot be injected into these events: it is no small tilt")
    weights = np.maximum(weights, 0.0)
    cumulative = np.cumsum(weights)
    scale = math.sqrt(n_background) / spread
    error = scale * math.sqrt(np.var(generated) * (1.0 / n_data + 1.0 / generated.size))
    found = 0
    for _ in range(trials):
        rows = np.searchsorted(cumulative, cumulative[-1] * rng.random(n_data))
        own = generated[rng.integers(generated.size, size=generated.size)]
        bias = scale * (float(np.mean(generated[np.minimum(rows, generated.size - 1)])) - float(np.mean(own)))
        found += bias > ONE_SIDED * error
    return found / trials


def ratio_normalisation(log_ratios: FloatArray) -> tuple[FloatArray, FloatArray]:
    """What a ratio must be multiplied by to have mean 1 over the background, for each of several parameter values.

    Parameters
    ----------
    log_ratios : array of shape (k, n)
        ln(p_s / p_b) of n background events, generated or held out, at k values of the parameters.

    Returns
    -------
    array of shape (k,), array of shape (k,)
        kappa = 1 / mean r, and its standard error.

    Raises
    ------
    EventsError
        If a ratio is NaN or all are 0.

    Notes
    -----
    The mean of r is carried by few events where signal and background are well separated, and its error is then too
    small: `gbistat.training.kappa` has the estimator that uses signal events too.
    """
    values = np.atleast_2d(np.asarray(log_ratios, dtype=np.float64))
    top = values.max(axis=1, keepdims=True)
    if np.isnan(values).any() or not np.all(np.isfinite(top)):
        raise EventsError("log ratios are NaN, or the ratio is 0 for all events; check these events")
    scaled = np.exp(values - top)
    mean, error = scaled.mean(axis=1), scaled.std(axis=1) / math.sqrt(values.shape[1])
    kappa: FloatArray = np.exp(-top[:, 0]) / mean
    return kappa, kappa * error / mean


@dataclass(frozen=True)
class PooledBias:
    """Bias of several windows as a polynomial in the mass.

    Parameters
    ----------
    bias : Estimate
        At the window of the measurement.
    chi2, n_degrees, p_value : float
        Of the polynomial.
    windows : tuple of (float, Estimate)
        Masses of the windows, and their biases.
    """

    bias: Estimate
    chi2: float
    n_degrees: int
    p_value: float
    windows: tuple[tuple[float, Estimate], ...] = ()

    @property
    def upper(self) -> float:
        """Upper 95 % limit of the size of the bias."""
        return _upper(self.bias)

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "bias_over_sigma": self.bias.to_list(),
            "chi2": self.chi2,
            "ndf": self.n_degrees,
            "p": self.p_value,
            "upper95": self.upper,
            "windows": [[mass, *bias.to_list()] for mass, bias in self.windows],
        }


def pool_windows(centres: Sequence[float], biases: Sequence[Estimate], *, at: float, degree: int = 0) -> PooledBias:
    """Fit the biases of pseudo-windows with a polynomial in the mass and evaluate it where the measurement is.

    Parameters
    ----------
    centres : sequence of float
        Masses of the windows.
    biases : sequence of Estimate
        Their biases, independent.
    at : float
        Mass of the measurement.
    degree : int, default 0
        Of the polynomial: an assumption about how smooth the bias is, which the chi-square checks.

    Raises
    ------
    OptionError
        If there are fewer windows than coefficients, or an error is not positive.
    """
    m = np.asarray(centres, dtype=np.float64)
    y = np.array([item.value for item in biases])
    sigma = np.array([item.error for item in biases])
    if m.size != y.size or m.size < degree + 1 or not np.all(sigma > 0):
        raise OptionError(f"{m.size} windows and {y.size} biases for degree {degree}: give more, with positive errors")
    scale = float(np.ptp(m)) or 1.0
    design = np.vander((m - at) / scale, degree + 1, increasing=True) / sigma[:, None]
    covariance = np.linalg.inv(design.T @ design)
    fitted = covariance @ design.T @ (y / sigma)
    chi2 = float(np.sum((y / sigma - design @ fitted) ** 2))
    degrees = m.size - degree - 1
    p = float(chdtrc(degrees, chi2)) if degrees else 1.0
    found = Estimate(float(fitted[0]), math.sqrt(float(covariance[0, 0])))
    return PooledBias(found, chi2, degrees, p, tuple(zip(map(float, centres), biases, strict=True)))


def _upper(bias: Estimate) -> float:
    """Bound of a one-sided test on either side, each at 5 %: excluded are biases beyond it (two one-sided tests)."""
    return abs(bias.value) + ONE_SIDED * bias.error
