"""Global significance: shapes with a known topology, Gaussian fields with known expectations, brute force.

Statistical tests have a fixed seed; the stated tolerances are four Monte Carlo errors or more.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from gbistat.errors import EventsError, OptionError
from gbistat.inference.asymptotics import p_from_q0
from gbistat.inference.look_elsewhere import (
    euler_characteristic,
    global_from_crossings,
    global_from_euler,
    global_from_toys,
    look_elsewhere,
    upcrossings,
)

LENGTH = 2.0
"""Correlation length in grid steps times this spacing: rho = exp(-d^2 / (2 LENGTH^2))."""


def fields(shape: tuple[int, ...], n: int, correlation: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth Gaussian fields of unit variance on a grid, from white noise and a Gaussian kernel of width correlation/sqrt 2."""
    width = correlation / math.sqrt(2.0)
    pad = int(5 * width)
    noise = rng.standard_normal((n, *(size + 2 * pad for size in shape)))
    x = np.arange(-pad, pad + 1)
    kernel = np.exp(-0.5 * (x / width) ** 2)
    kernel /= math.sqrt(float((kernel**2).sum()))
    for axis in range(1, noise.ndim):
        noise = np.apply_along_axis(lambda row: np.convolve(row, kernel, mode="valid"), axis, noise)
    return noise


def q0(field: np.ndarray) -> np.ndarray:
    return np.where(field > 0, field**2, 0.0)


@pytest.fixture(scope="module")
def scans() -> np.ndarray:
    return q0(fields((161,), 6000, 8.0, np.random.default_rng(7)))


@pytest.fixture(scope="module")
def maps() -> np.ndarray:
    return q0(fields((33, 41), 2500, 6.0, np.random.default_rng(8)))


class TestTopology:
    def test_upcrossings(self) -> None:
        q = np.array([[2.0, 0.0, 2.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 3.0, 3.0, 3.0, 0.0]])
        assert upcrossings(q, 1.0).tolist() == [2, 0, 1]

    @pytest.mark.parametrize(
        ("picture", "expected"),
        [
            (["....", ".##.", ".##.", "...."], 1),
            (["####", "#..#", "#..#", "####"], 0),
            (["##.##", "##.##", ".....", "##.##"], 4),
            (["#######", "#.#.#.#", "#######"], -2),
            (["#.", ".#"], 2),
            (["...", "..."], 0),
        ],
    )
    def test_euler_characteristic(self, picture: list[str], expected: int) -> None:
        q = np.array([[4.0 if c == "#" else 0.0 for c in row] for row in picture])
        assert int(euler_characteristic(q, 1.0)) == expected
        assert int(euler_characteristic(q.T, 1.0)) == expected

    def test_points_outside_of_the_search_count_as_below(self) -> None:
        q = np.full((4, 4), 5.0)
        q[np.triu_indices(4, 1)] = np.nan
        assert int(euler_characteristic(q, 1.0)) == 1


class TestExpectations:
    def test_upcrossings_of_a_gaussian_process(self, scans: np.ndarray) -> None:
        # Rice: a stationary process with rho = exp(-d^2 / 2 l^2) crosses upwards exp(-u / 2) / (2 pi l) times a unit length.
        for level in (0.5, 2.0, 4.0):
            counts = upcrossings(scans, level)
            expected = 160.0 * math.exp(-0.5 * level) / (2.0 * math.pi * 8.0)
            assert counts.mean() == pytest.approx(expected, abs=4.0 * counts.std() / math.sqrt(counts.size) + 0.01)

    def test_euler_characteristic_of_a_gaussian_field(self, maps: np.ndarray) -> None:
        # R. J. Adler: p + exp(-u/2) [(a + b) / (2 pi l) + a b sqrt(u) / ((2 pi)^1.5 l^2)] for a rectangle a x b.
        for level in (0.5, 2.0, 5.0):
            phi = euler_characteristic(maps, level)
            area = 32.0 * 40.0 / ((2.0 * math.pi) ** 1.5 * 36.0)
            expected = p_from_q0(level) + math.exp(-0.5 * level) * (
                72.0 / (2.0 * math.pi * 6.0) + area * math.sqrt(level)
            )
            assert phi.mean() == pytest.approx(expected, abs=4.0 * phi.std() / math.sqrt(phi.size) + 0.03)


class TestGlobal:
    def test_one_mass_against_brute_force(self, scans: np.ndarray) -> None:
        few = scans[:60]
        for q_max in (6.0, 9.0):
            estimate = global_from_crossings(q_max, few)
            brute = global_from_toys(q_max, scans)
            error = math.hypot(estimate.p_high - estimate.p_global, brute.p_high - brute.p_global)
            assert abs(estimate.p_global - brute.p_global) < 4.0 * error
            assert estimate.p_low < estimate.p_global < estimate.p_high
            assert estimate.z_global < estimate.z_local == pytest.approx(math.sqrt(q_max))
            assert estimate.trials > 1.0
        # From 6000 toys both errors are small: the bound is within a tenth of the truth at p = 1 %.
        assert global_from_crossings(10.0, scans).p_global == pytest.approx(
            global_from_toys(10.0, scans).p_global, rel=0.25
        )

    def test_reaches_where_toys_cannot(self, scans: np.ndarray) -> None:
        estimate, brute = global_from_crossings(36.0, scans[:100]), global_from_toys(36.0, scans[:100])
        assert 1e-9 < estimate.p_global < 1e-6
        assert brute.p_low == 0.0
        assert brute.p_global == brute.p_high > 1e-3
        assert "no toy reaches" in brute.notes[0]
        # Rice again, in closed form.
        expected = p_from_q0(36.0) + 160.0 * math.exp(-18.0) / (2.0 * math.pi * 8.0)
        assert global_from_crossings(36.0, scans).p_global == pytest.approx(expected, rel=0.05)

    def test_two_masses_against_brute_force(self, maps: np.ndarray) -> None:
        few = maps[:80]
        for q_max in (9.0, 12.0):
            estimate, brute = global_from_euler(q_max, few), global_from_toys(q_max, maps)
            error = math.hypot(estimate.p_high - estimate.p_global, brute.p_high - brute.p_global)
            assert abs(estimate.p_global - brute.p_global) < 4.0 * error + 0.05 * brute.p_global

    def test_small_plane_where_the_local_term_counts(self, maps: np.ndarray) -> None:
        small = maps[:, :9, :9]
        for q_max in (5.0, 7.0):
            estimate, brute = global_from_euler(q_max, small), global_from_toys(q_max, small)
            error = math.hypot(estimate.p_high - estimate.p_global, brute.p_high - brute.p_global)
            assert abs(estimate.p_global - brute.p_global) < 4.0 * error
            assert estimate.p_global == pytest.approx(brute.p_global, rel=0.25)

    def test_levels_do_not_matter(self, maps: np.ndarray) -> None:
        a = global_from_euler(16.0, maps, levels=(0.5, 2.0))
        b = global_from_euler(16.0, maps, levels=(1.0, 4.0))
        assert abs(a.p_global - b.p_global) < 4.0 * (a.p_high - a.p_low)

    def test_side_by_side(self, scans: np.ndarray, maps: np.ndarray) -> None:
        assert [r.method for r in look_elsewhere(scans[0], scans[1:500])] in (["toys"], ["toys", "up-crossings"])
        observed = maps[0].copy()
        observed[10, 10] = 12.0
        both = look_elsewhere(observed, maps[1:])
        assert [r.method for r in both] == ["toys", "euler-characteristic"]
        assert both[0].q_max == 12.0
        json.dumps([r.to_dict() for r in both])

    def test_search_without_any_excess(self, scans: np.ndarray) -> None:
        (brute,) = look_elsewhere(np.zeros(161), scans[:50])
        assert brute.p_global == 1.0

    def test_row_of_independent_windows(self) -> None:
        # No smooth scan: only toys are right. The largest of n independent chi2 has 1 - (1 - p)^n.
        q = q0(np.random.default_rng(3).standard_normal((4000, 12)))
        result = global_from_toys(6.0, q)
        expected = 1.0 - (1.0 - p_from_q0(6.0)) ** 12
        assert (
            result.p_low - 3 * (result.p_high - result.p_low)
            < expected
            < result.p_high + 3 * (result.p_high - result.p_low)
        )

    def test_failed_toys_are_left_out_and_counted(self, scans: np.ndarray) -> None:
        some = scans[:50].copy()
        some[3, 7] = np.nan
        assert global_from_toys(4.0, some).n_toys == 49
        assert "1 of 50" in global_from_crossings(4.0, some).notes[0]


class TestErrors:
    def test_bad_arguments(self, scans: np.ndarray, maps: np.ndarray) -> None:
        with pytest.raises(OptionError, match="level 7"):
            global_from_crossings(6.0, scans, level=7.0)
        with pytest.raises(OptionError, match="two different levels"):
            global_from_euler(9.0, maps, levels=(1.0, 1.0))
        with pytest.raises(OptionError, match="finite"):
            global_from_toys(math.nan, scans)
        with pytest.raises(OptionError, match="shape"):
            global_from_crossings(9.0, maps)
        with pytest.raises(OptionError, match="shape"):
            global_from_euler(9.0, scans)
        with pytest.raises(OptionError, match="do not fit together"):
            look_elsewhere(scans[0, :50], scans)

    def test_no_toys(self) -> None:
        with pytest.raises(EventsError, match="no toys"):
            global_from_toys(4.0, np.empty((0, 3)))
        with pytest.raises(EventsError, match="all 2 toys"):
            global_from_toys(4.0, np.array([[np.nan, 1.0], [1.0, np.nan]]))
