"""Where CLs of toys crosses 1 - cl: a Gaussian measurement of a signal that cannot be negative has a closed form."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from gbistat.inference.toy_cls_curves import CLsCurves, curves, solve


def q_tilde(x, mu):
    """qmu_tilde of a measurement x with error 1, Eq. (16) of arXiv:1007.1727."""
    return np.where(x > mu, 0.0, np.where(x < 0, mu * mu - 2.0 * mu * x, (mu - x) ** 2))


def gaussian_curves(values, x_observed, n, seed):
    rng = np.random.default_rng(seed)
    values = np.asarray(values, dtype=float)
    background = rng.standard_normal(n)
    return CLsCurves(
        values,
        np.array([float(q_tilde(x_observed, v)) for v in values]),
        [q_tilde(rng.normal(v, 1.0, n), v) for v in values],
        np.stack([q_tilde(background, v) for v in values], axis=1),
    )


def exact_limit(x, cl):
    return x - ndtri((1.0 - cl) * ndtr(x))


@pytest.mark.parametrize("cl", [0.9, 0.95])
@pytest.mark.parametrize("x", [0.3, 1.5, 5.0])
def test_limits_of_a_gaussian(x, cl):
    exact = np.array([exact_limit(v, cl) for v in (x, -2.0, -1.0, 0.0, 1.0, 2.0)])
    values = np.unique(np.r_[np.geomspace(0.5, 9.0, 8), np.outer(exact, (0.9, 1.0, 1.1)).ravel()])
    toys = gaussian_curves(values, x, 40_000, seed=3)
    # 40,000 toys give CLs = 0.05 to 0.0011, its quantile to 0.011, a limit to about as much: four errors and 1 % for the straight line.
    # At -2 sigma 1 toy in 900 counts, against a quantile that 1 in 44 settle: twelve times fewer than at the median.
    allowed = np.array([0.045, 0.2, 0.08, 0.045, 0.045, 0.045]) + 0.01 * exact
    assert (np.abs(solve(toys, cl, exact, rule="cls") - exact) <= allowed).all()
    # Pairs of values on the coarse grid find the neighbourhood.
    rough = solve(gaussian_curves(np.geomspace(0.5, 9.0, 10), x, 10_000, seed=4), cl, None, rule="cls")
    np.testing.assert_allclose(rough, exact, rtol=0.12)


def test_a_group_left_out_changes_little_and_something():
    toys = gaussian_curves(np.linspace(1.5, 2.5, 9), 0.5, 5000, seed=5)
    centres = np.array([exact_limit(v, 0.95) for v in (0.5, -2.0, -1.0, 0.0, 1.0, 2.0)])
    every = solve(toys, 0.95, centres, rule="cls")
    parts = np.array([solve(toys, 0.95, centres, rule="cls", without=g) for g in range(10)])
    assert np.ptp(parts[:, 0]) > 0
    assert np.abs(parts[:, 0] - every[0]).max() < 0.05


def test_clsb_of_a_gaussian_and_exclusion_of_everything():
    x = 1.0
    limit = x + ndtri(0.95)
    toys = gaussian_curves(np.linspace(1.8, 3.6, 10), x, 40_000, seed=6)
    found = solve(toys, 0.95, np.full(6, limit), rule="clsb")
    assert found[0] == pytest.approx(limit, abs=0.045)
    low = gaussian_curves(np.linspace(0.3, 2.0, 5), -2.5, 20_000, seed=7)
    assert (curves(low, rule="clsb")[0] < 0.05).all()
    assert solve(low, 0.95, None, rule="clsb")[0] == 0.0
    assert solve(low, 0.95, np.zeros(6), rule="clsb")[0] == 0.0
