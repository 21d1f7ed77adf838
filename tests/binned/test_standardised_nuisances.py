"""Constraints as independent standard-normal directions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from gbistat.binned.nuisances import standardise
from gbistat.errors import ModelError, ParameterError
from gbistat.likelihood.constraints import LogNormalConstraint, NormalConstraint, PoissonConstraint
from gbistat.likelihood.model import Model


def test_directions_reproduce_the_covariance(simple: Model) -> None:
    standard = standardise(simple)
    assert [d.name for d in standard.directions] == ["n_bkg", "slope"]
    assert standard.free == ("mu",)
    assert standard.nominal.tolist() == [0.0, 2000.0, 0.002]
    steps = np.array([direction.plus - standard.nominal for direction in standard.directions])
    constraint = simple.constraints[0]
    assert isinstance(constraint, NormalConstraint)
    np.testing.assert_allclose((steps.T @ steps)[1:, 1:], constraint.covariance, rtol=1e-10)
    # The shape moves first and takes the correlated part of the yield along; what is left moves the yield alone.
    np.testing.assert_allclose(steps[0], [0.0, 40.0 * np.sqrt(1 - 0.4**2), 0.0], rtol=1e-10)
    np.testing.assert_allclose(steps[1], [0.0, 40.0 * 0.4, 1e-4], rtol=1e-10)
    for direction in standard.directions:
        np.testing.assert_allclose(direction.plus + direction.minus, 2.0 * standard.nominal, rtol=1e-12)


def test_several_constraints_on_one_parameter_multiply(simple: Model) -> None:
    model = simple.with_constraint(NormalConstraint("n_bkg", 2100.0, 40.0))
    standard = standardise(model)
    constraint = model.constraints[0]
    assert isinstance(constraint, NormalConstraint)
    precision = np.linalg.inv(constraint.covariance)
    precision[0, 0] += 1.0 / 40.0**2
    pull = np.linalg.inv(constraint.covariance) @ constraint.observed + [2100.0 / 40.0**2, 0.0]
    np.testing.assert_allclose(standard.nominal[1:], np.linalg.solve(precision, pull), rtol=1e-10)
    steps = np.array([direction.plus - standard.nominal for direction in standard.directions])[:, 1:]
    np.testing.assert_allclose(steps.T @ steps, np.linalg.inv(precision), rtol=1e-9)


def test_a_held_parameter_conditions_the_others(simple: Model) -> None:
    """Given the slope one standard deviation up, the yield is 0.4 of its own up, and known better."""
    standard = standardise(simple, {"slope": 0.0021})
    assert [d.name for d in standard.directions] == ["n_bkg"]
    np.testing.assert_allclose(standard.nominal, [0.0, 2000.0 + 0.4 * 40.0, 0.0021], rtol=1e-10)
    step = standard.directions[0].plus - standard.nominal
    np.testing.assert_allclose(step, [0.0, 40.0 * np.sqrt(1 - 0.4**2), 0.0], rtol=1e-10)
    declared = replace(simple, parameters=(*simple.parameters[:2], replace(simple.parameters[2], fixed=True)))
    assert standardise(declared).nominal.tolist() == pytest.approx([0.0, 2000.0, 0.002])


def test_log_normal_and_poisson(simple: Model) -> None:
    log_normal = replace(simple, constraints=(LogNormalConstraint("n_bkg", 2000.0, 0.1), *_slope()))
    direction = standardise(log_normal).directions[0]
    assert direction.plus[1] == pytest.approx(2000.0 * np.exp(0.1))
    assert direction.minus[1] == pytest.approx(2000.0 * np.exp(-0.1))
    on_off = replace(simple, constraints=(PoissonConstraint("n_bkg", 4000.0, 2.0), *_slope()))
    standard = standardise(on_off)
    assert standard.free == ("mu", "n_bkg")
    assert [counter.name for counter in standard.counters] == ["n_bkg"]


def test_what_has_no_counterpart(simple: Model) -> None:
    @dataclass(frozen=True)
    class Flat:
        names: tuple[str, ...] = ("slope",)

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(name)

    with pytest.raises(ModelError, match="no counterpart of the Flat on slope"):
        standardise(replace(simple, constraints=(Flat(),)))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="n_bkg has constraints of several kinds"):
        standardise(simple.with_constraint(LogNormalConstraint("n_bkg", 2000.0, 0.1)))
    with pytest.raises(ModelError, match="the parameter of interest mu has a constraint"):
        standardise(simple.with_constraint(NormalConstraint("mu", 0.0, 1.0)))
    with pytest.raises(ParameterError, match="no parameter 'slop'; nearest names: slope"):
        standardise(simple, {"slop": 0.0})


def _slope() -> tuple[NormalConstraint]:
    return (NormalConstraint("slope", 0.002, 1e-4),)
