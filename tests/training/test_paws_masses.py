"""Masses found by a summed log ratio: known maxima."""

from __future__ import annotations

import numpy as np
import pytest

from gbistat.training.paws_masses import find_masses, mass_shift_table

BOUNDS = [(50.0, 600.0), (50.0, 600.0)]


def gaussian(centre, width):
    """Sum of 100 events whose ln r is a Gaussian in the logarithms of the masses."""
    return lambda masses: float(-50.0 * np.sum(((np.log(masses) - np.log(centre)) / width) ** 2))


def test_maximum_and_width_of_a_gaussian():
    found = find_masses(gaussian([330.0, 95.0], np.array([0.08, 0.2])), (300.0, 100.0), 100, BOUNDS)
    assert found.shift == pytest.approx((np.log(1.1), np.log(0.95)), abs=1e-6)
    assert found.sigma == pytest.approx((0.08, 0.2), rel=1e-6)


def test_correlated_masses():
    covariance = np.array([[0.01, 0.006], [0.006, 0.02]])
    inverse = np.linalg.inv(covariance)

    def total(masses):
        u = np.log(masses) - np.log([260.0, 170.0])
        return float(-0.5 * 400 * u @ inverse @ u)

    found = find_masses(total, (250.0, 180.0), 400, BOUNDS)
    assert np.exp(found.shift) * [250.0, 180.0] == pytest.approx([260.0, 170.0], rel=1e-6)
    assert found.sigma == pytest.approx((0.1, np.sqrt(0.02)), rel=1e-6)


def test_masses_at_the_end_of_a_range_are_not_outside_it():
    asked = []

    def total(masses):
        asked.append(masses)
        return gaussian([300.0, 54.0], 0.1)(masses)

    found = find_masses(total, (300.0, 50.0), 100, BOUNDS)
    assert found.shift[1] == pytest.approx(np.log(54 / 50), abs=1e-6)
    assert np.min(asked) == 50.0


def test_no_maximum_inside_the_ranges():
    assert find_masses(lambda masses: float(-masses[0]), (100.0, 100.0), 10, BOUNDS) is None
    assert find_masses(lambda masses: float(np.log(masses).sum() ** 2), (100.0, 100.0), 10, BOUNDS) is None


def test_table_weighs_by_the_errors():
    rows = [
        ((300.0, 100.0), find_masses(gaussian([306.0, 99.0], 0.1), (300.0, 100.0), 100, BOUNDS)),
        ((350.0, 100.0), find_masses(gaussian([350.0, 99.0], 0.2), (350.0, 100.0), 100, BOUNDS)),
    ]
    larger, smaller = mass_shift_table(rows)
    assert (larger["which"], larger["low"], larger["points"]) == (0, 250.0, 2)
    assert larger["shift"] == pytest.approx(0.8 * np.log(306 / 300), abs=1e-6)
    assert larger["error"] == pytest.approx(0.01 / np.sqrt(1.25), rel=1e-6)
    assert (smaller["which"], smaller["low"]) == (1, 50.0)
    assert smaller["shift"] == pytest.approx(np.log(0.99), abs=1e-6)
