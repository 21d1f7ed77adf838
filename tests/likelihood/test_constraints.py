"""Auxiliary measurements: values, errors, Asimov values, fluctuations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import kstest, multivariate_normal, poisson

from gbistat.errors import ModelError
from gbistat.likelihood.constraints import Constraint, LogNormalConstraint, NormalConstraint, PoissonConstraint


def test_values_are_negative_log_densities_up_to_a_constant() -> None:
    covariance = np.array([[0.5, -0.3], [-0.3, 0.9]])
    normal = NormalConstraint(("a", "b"), (2.0, -1.0), covariance)
    reference = multivariate_normal([2.0, -1.0], covariance)
    first, second = np.array([1.7, 3.0]), np.array([2.2, -2.0])
    expected = reference.logpdf(second) - reference.logpdf(first)
    assert normal.value(first) - normal.value(second) == pytest.approx(expected)

    counting = PoissonConstraint("a", 7.0, 2.5)
    expected = poisson(2.5 * 3.0).logpmf(7) - poisson(2.5 * 1.7).logpmf(7)
    assert counting.value(np.array([1.7])) - counting.value(np.array([3.0])) == pytest.approx(expected)

    assert LogNormalConstraint("a", 2.0, 0.3).value(np.array([2.0 * math.exp(0.6)])) == pytest.approx(2.0)


def test_forms_of_a_normal_constraint() -> None:
    theta = np.array([1.7, 3.0])
    from_sigmas = NormalConstraint(("a", "b"), (2.0, -1.0), (0.3, 2.0))
    from_matrix = NormalConstraint(("a", "b"), (2.0, -1.0), np.diag([0.09, 4.0]))
    assert from_sigmas.value(theta) == pytest.approx(0.5 + 2.0)
    assert from_matrix.value(theta) == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("constraint", "theta"),
    [
        (NormalConstraint(("a", "b"), (2.0, -1.0), np.array([[0.5, -0.3], [-0.3, 0.9]])), [0.7, 3.0]),
        (LogNormalConstraint("a", 2.0, 0.3), [5.0]),
        (PoissonConstraint("a", 7.0, 2.5), [1.3]),
        (PoissonConstraint("a", 0.0, 2.5), [1.3]),
    ],
)
def test_the_expected_value_has_its_minimum_at_the_parameters(constraint: Constraint, theta: list[float]) -> None:
    expected = constraint.expected(np.array(theta))
    assert expected.names == constraint.names
    assert expected.value(np.array(theta)) == pytest.approx(0.0, abs=1e-14)
    np.testing.assert_allclose(expected.gradient(np.array(theta)), 0.0, atol=1e-12)
    assert (np.linalg.eigvalsh(expected.hessian(np.array(theta))) > 0).all()


def test_fluctuations_follow_the_density(rng: np.random.Generator) -> None:
    """Three tests of 1000 draws, each with a false-alarm chance of about 1e-3."""
    covariance = np.array([[0.5, -0.3], [-0.3, 0.9]])
    normal = NormalConstraint(("a", "b"), (2.0, -1.0), covariance)
    truth = np.array([0.7, 3.0])
    draws = np.array([normal.fluctuate(truth, rng=rng).observed for _ in range(1000)])
    distance = np.einsum("ni,ij,nj->n", draws - truth, np.linalg.inv(covariance), draws - truth)
    assert kstest(distance, "chi2", args=(2,)).pvalue > 1e-3

    log_normal = LogNormalConstraint("a", 2.0, 0.3)
    draws = np.array([log_normal.fluctuate(np.array([5.0]), rng=rng).observed for _ in range(1000)])
    assert kstest(np.log(draws / 5.0) / 0.3, "norm").pvalue > 1e-3

    counting = PoissonConstraint("a", 7.0, 2.5)
    draws = np.array([counting.fluctuate(np.array([4.0]), rng=rng).observed for _ in range(1000)])
    assert (draws == np.round(draws)).all()
    assert abs(draws.mean() - 10.0) < 3.3 * math.sqrt(10.0 / 1000)


def test_outside_of_the_support() -> None:
    """An infinite value with derivatives that are no numbers, so that no minimiser takes the point for a good one."""
    for constraint, theta in (
        (LogNormalConstraint("a", 2.0, 0.3), 0.0),
        (LogNormalConstraint("a", 2.0, 0.3), -1.0),
        (PoissonConstraint("a", 7.0), 0.0),
        (PoissonConstraint("a", 7.0), -1.0),
        (PoissonConstraint("a", 0.0), -1.0),
    ):
        where = np.array([theta])
        assert constraint.value(where) == math.inf
        assert np.isnan(constraint.gradient(where)).all()
        assert np.isnan(constraint.hessian(where)).all()
    empty = PoissonConstraint("a", 0.0, 2.0)
    assert empty.value(np.array([0.0])) == 0.0
    assert empty.gradient(np.array([0.0])) == 2.0


def test_constraints_that_make_no_sense() -> None:
    with pytest.raises(ModelError, match=r"constraint on a: sigma \[0.0\] must be above 0"):
        NormalConstraint("a", 1.0, 0.0)
    with pytest.raises(ModelError, match=r"constraint on a, b: the covariance is not positive definite"):
        NormalConstraint(("a", "b"), (1.0, 1.0), np.array([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(ModelError, match=r"3 value\(s\) and a \(3, 3\) covariance for 2 parameter\(s\)"):
        NormalConstraint(("a", "b"), (1.0, 1.0, 1.0), 0.1)
    with pytest.raises(ModelError, match=r"log-normal constraint on a: value -1 and sigma 0.1 must be above 0"):
        LogNormalConstraint("a", -1.0, 0.1)
    with pytest.raises(ModelError, match=r"Poisson constraint on a: the count -1 must be 0 or more"):
        PoissonConstraint("a", -1.0)
    with pytest.raises(ModelError, match=r"the scale 0 above 0"):
        PoissonConstraint("a", 1.0, 0.0)
