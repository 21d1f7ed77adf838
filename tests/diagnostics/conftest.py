"""Samples whose weights are known in closed form, or by quadrature."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtri

from gbistat.diagnostics.weights import Scores


def levels(n):
    """Middles of n cells of equal probability: a sample without fluctuations."""
    return (np.arange(n) + 0.5) / n


class Toy:
    """Data, generated events and the exact ln w as a function."""

    def __init__(self, data, generated, log_weight):
        self.data, self.generated, self.log_weight = data, generated, log_weight
        self.values = np.concatenate([data, generated])
        self.is_data = np.arange(self.values.size) < data.size

    @property
    def scores(self):
        return Scores(self.log_weight(self.values), self.is_data)


def gaussian_shift(d, n, rng=None):
    u, v = (levels(n), levels(n)) if rng is None else (rng.random(n), rng.random(n))
    return Toy(ndtri(u), d + ndtri(v), lambda x: -d * x + 0.5 * d * d)


def gaussian_smear(s, n):
    return Toy(ndtri(levels(n)), s * ndtri(levels(n)), lambda x: math.log(s) - 0.5 * x**2 * (1 - 1 / s**2))


GAMMA = stats.gamma(9, scale=0.01)


class _Jets:
    """Jet-mass-like truth and its three distortions: smear, shift, tail cut."""

    grid = np.linspace(1e-4, 0.6, 4000)
    nodes = GAMMA.ppf(levels(2000))

    def log_ratio(self, mean, sigma):
        density = np.mean(stats.norm.pdf(self.grid[:, None] / self.nodes, mean, sigma) / self.nodes, axis=1)
        values = GAMMA.logpdf(self.grid) - np.log(density)
        return lambda m: np.interp(m, self.grid, values)

    def toy(self, kind, n, rng):
        data = GAMMA.ppf(rng.random(n))
        if kind == "tail cut":
            share = GAMMA.cdf(0.17)
            return Toy(data, GAMMA.ppf(share * rng.random(n)), lambda m: np.where(m < 0.17, math.log(share), np.inf))
        mean, sigma = {"smear": (1.0, 0.25), "shift": (1.1, 0.05)}[kind]
        generated = GAMMA.ppf(rng.random(n)) * rng.normal(mean, sigma, n)
        return Toy(data, np.abs(generated), self.log_ratio(mean, sigma))


@pytest.fixture(scope="session")
def jets():
    return _Jets()


def cauchy_voigt(sigma, n, rng):
    """A resonance of half width 1.25 on [-25, 25], generated with a Gaussian resolution."""
    from scipy.special import voigt_profile

    def cut(draw):
        values = draw(2 * n)
        return values[np.abs(values) < 25][:n]

    data = cut(lambda k: 1.25 * rng.standard_cauchy(k))
    generated = cut(lambda k: 1.25 * rng.standard_cauchy(k) + rng.normal(0, sigma, k))
    x = np.linspace(-25, 25, 20001)
    p, q = stats.cauchy.pdf(x, scale=1.25), voigt_profile(x, sigma, 1.25)
    norm = np.log(np.trapezoid(q, x)) - np.log(np.trapezoid(p, x))

    def log_weight(m):
        return stats.cauchy.logpdf(m, scale=1.25) - np.log(voigt_profile(m, sigma, 1.25)) + norm

    return Toy(data, generated, log_weight)


def boundary(n):
    def log_weight(x):
        return np.where(x >= 0, math.log(1.05), -np.inf)

    return Toy(levels(n), -0.05 + 1.05 * levels(n), log_weight)


@pytest.fixture
def toys():
    """Makers of samples, by name."""
    return {
        "shift": gaussian_shift,
        "smear": gaussian_smear,
        "resonance": cauchy_voigt,
        "boundary": boundary,
    }
