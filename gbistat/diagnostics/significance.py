"""p and Z of a statistic from values of its null distribution: counted as far as they go, extrapolated beyond and said so."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import chdtrc, gammaincc, ndtri
from scipy.stats import chi2 as chi2_distribution
from scipy.stats import gamma as gamma_distribution
from scipy.stats import kstest

from gbistat.errors import OptionError

if TYPE_CHECKING:
    from gbistat.typing import FloatArray, Json

__all__ = ["NullSignificance", "null_significance"]


@dataclass(frozen=True, eq=False)
class NullSignificance:
    """What a null distribution says about an observed t.

    Parameters
    ----------
    p_value, z : float
        By counting; z is at most `z_ceiling`.
    z_ceiling : float
        Largest z that so many null values can show.
    z_gamma, z_gamma_error : float
        From a gamma distribution fitted to the null values, with a bootstrap error: an extrapolation.
    z_chi2, degrees : float
        From a chi-square distribution, a cross-check; its degrees of freedom.
    p_chi2_fit : float
        Kolmogorov-Smirnov p-value of that fit.
    """

    p_value: float
    z: float
    z_ceiling: float
    z_gamma: float
    z_gamma_error: float
    z_chi2: float
    degrees: float
    p_chi2_fit: float

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "p": self.p_value,
            "z": self.z,
            "z_ceiling": self.z_ceiling,
            "at_ceiling": self.z >= self.z_ceiling - 1e-9,
            "extrapolated": {"z_gamma": self.z_gamma, "error": self.z_gamma_error, "z_chi2": self.z_chi2},
            "chi2_fit": {"degrees": self.degrees, "p": self.p_chi2_fit},
        }


def null_significance(
    t: float, null: FloatArray, *, rng: np.random.Generator, bootstraps: int = 100
) -> NullSignificance:
    """p and Z of an observed statistic: counted, up to what the null values can show, and extrapolated.

    Parameters
    ----------
    t : float
        Observed.
    null : array of shape (B,)
        Null values.
    rng : numpy.random.Generator
        Bootstrap.
    bootstraps : int, default 100
        For the error of the extrapolation.

    Raises
    ------
    OptionError
        If there are fewer than 19 null values.

    Notes
    -----
    A chi-square fit tends to overstate Z beyond the ceiling: its width follows from its mean, while regularised fits
    are wider. The gamma distribution has both free; still it is an extrapolation.
    """
    if null.size < 19:
        raise OptionError(f"{null.size} null values cannot give a p-value of 0.05; make 19 or more")
    p = float((1 + np.sum(null >= t)) / (1 + null.size))
    ceiling = float(ndtri(null.size / (null.size + 1.0)))
    draws = [_gamma_z(t, rng.choice(null, null.size)) for _ in range(bootstraps)]
    degrees = max(float(np.mean(null)), 1e-3)
    tail = float(chdtrc(degrees, max(t, 0.0)))
    return NullSignificance(
        p,
        float(-ndtri(p)) if p < 1 else -math.inf,
        ceiling,
        _gamma_z(t, null),
        float(np.std(draws)),
        _z(tail, max(t, 0.0), 0.5),
        degrees,
        float(kstest(null, chi2_distribution(degrees).cdf).pvalue),
    )


def _gamma_z(t: float, null: FloatArray) -> float:
    """Z in a gamma distribution with the mean and variance of the null values."""
    mean, variance = float(np.mean(null)), float(np.var(null, ddof=1))
    if mean <= 0 or variance <= 0:
        return math.nan
    shape, scale = mean**2 / variance, variance / mean
    return _z(float(gammaincc(shape, max(t, 0.0) / scale)), max(t, 0.0) / scale, 1.0, shape)


def _z(tail: float, x: float, rate: float, shape: float | None = None) -> float:
    """Z of a tail probability; where that underflows, of its leading exponential."""
    if tail > 0:
        return float(-ndtri(tail))
    log_tail = float(gamma_distribution.logsf(x, shape)) if shape is not None else -rate * x
    if not math.isfinite(log_tail):
        log_tail = -rate * x
    return math.sqrt(max(-2.0 * log_tail - math.log(max(-4.0 * math.pi * log_tail, 1.0)), 0.0))
