"""Interpolations between templates against pyhf's slow reference implementations, and their derivatives."""

from __future__ import annotations

import jacobi
import numpy as np
import pytest
from pyhf.interpolators.code4 import _slow_code4
from pyhf.interpolators.code4p import _slow_code4p

from gbistat.likelihood.interpolation import asymmetry, factor, factor_coefficients

ALPHAS = np.array([-3.2, -1.0, -0.999999, -0.4, 0.0, 1e-9, 0.3, 0.999999, 1.0, 1.7, 4.5])


@pytest.mark.parametrize(("low", "high"), [(0.9, 1.2), (1.1, 1.3), (0.2, 0.7), (1.0, 1.0)])
def test_multiplicative_is_code_4(low, high):
    logs = np.log([high]), np.log([low])
    ours = factor(ALPHAS[:, None], *logs, factor_coefficients(np.array([high]), np.array([low])))[0][:, 0]
    reference = [_slow_code4([]).product(low, 1.0, high, alpha) for alpha in ALPHAS]
    np.testing.assert_allclose(ours, reference, rtol=1e-12)


@pytest.mark.parametrize(("low", "high"), [(40.0, 70.0), (55.0, 60.0), (61.0, 64.0), (0.0, 3.0)])
def test_additive_is_code_4p(low, high):
    nominal = 50.0
    symmetric, asymmetric = 0.5 * (high - low), (high + low - 2 * nominal) / 16.0
    ours = ALPHAS * symmetric + asymmetry(ALPHAS)[0] * asymmetric
    reference = [_slow_code4p([]).summand(low, nominal, high, alpha) for alpha in ALPHAS]
    np.testing.assert_allclose(ours, reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("alpha", [-2.0, -0.7, 0.0, 0.2, 3.0])
def test_derivatives(alpha):
    value, first, second = asymmetry(np.array([alpha]))
    slope, _ = jacobi.jacobi(lambda x: asymmetry(np.array([x]))[0][0], alpha)
    bend, _ = jacobi.jacobi(lambda x: asymmetry(np.array([x]))[1][0], alpha)
    assert first[0] == pytest.approx(float(slope), abs=1e-7)
    assert second[0] == pytest.approx(float(bend), abs=1e-7)
    logs = np.log([1.3]), np.log([0.8])
    coefficients = factor_coefficients(np.array([1.3]), np.array([0.8]))

    def f(x):
        return factor(np.array([[x]]), *logs, coefficients)[0][0, 0]

    value, first, second = (x[0, 0] for x in factor(np.array([[alpha]]), *logs, coefficients))
    slope, _ = jacobi.jacobi(f, alpha)
    assert first * value == pytest.approx(float(slope), rel=1e-7)
    step = 1e-4
    assert second * value == pytest.approx(
        (f(alpha + step) - 2 * f(alpha) + f(alpha - step)) / step**2, rel=1e-5, abs=1e-6
    )


def test_two_derivatives_are_continuous_at_one_standard_deviation():
    coefficients = factor_coefficients(np.array([1.4]), np.array([0.7]))
    for side in (-1.0, 1.0):
        below = factor(np.array([[side * (1 - 1e-10)]]), np.log([1.4]), np.log([0.7]), coefficients)
        above = factor(np.array([[side * (1 + 1e-10)]]), np.log([1.4]), np.log([0.7]), coefficients)
        np.testing.assert_allclose(np.ravel(below), np.ravel(above), rtol=1e-7)
