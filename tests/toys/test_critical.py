"""Smooth critical values: splines, known quantiles, brute force, and the coverage that results.

Statistical tests have a fixed seed; tolerances are four Monte Carlo errors.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy.special import ndtri

from gbistat.errors import FitFailed, OptionError
from gbistat.inference.belts import gaussian_tmu_cdf
from gbistat.inference.critical import (
    CriticalOptions,
    CriticalValues,
    fit_critical_values,
    fit_inclusion,
    latin_hypercube,
    throw_design,
)
from gbistat.inference.neyman_problem import bounded_threshold
from gbistat.inference.profile import threshold
from gbistat.inference.tensor_splines import TensorSplines

LEVELS = (0.6827, 0.90, 0.95)


def width(mass: np.ndarray) -> np.ndarray:
    """A statistic that also depends on a mass."""
    return 1.0 + 0.5 * np.sin(mass / 100.0)


def bounded(point: np.ndarray, n_toys: int, *, rng: np.random.Generator) -> np.ndarray:
    """Gaussian measurement of ``mu >= 0``, its statistic stretched by a factor that depends on the mass."""
    mu, mass = point
    x = rng.normal(mu, 1.0, n_toys)
    t = np.where(x >= 0, (x - mu) ** 2, mu**2 - 2.0 * x * mu)
    return np.asarray(t * width(mass))


@pytest.fixture(scope="module")
def surface() -> CriticalValues:
    rng = np.random.default_rng(21)
    design = latin_hypercube([0.0, 100.0], [5.0, 600.0], 12_000, rng=rng)
    points, t = throw_design(bounded, design, rng=rng)
    return fit_critical_values(points, t, cls=LEVELS, low=[0.0, 100.0], high=[5.0, 600.0])


class TestSplines:
    @pytest.fixture
    def basis(self) -> TensorSplines:
        return TensorSplines(np.array([0.0, -1.0]), np.array([2.0, 5.0]), (4, 3))

    def test_partition_of_unity(self, basis: TensorSplines) -> None:
        points = np.random.default_rng(1).uniform([0.0, -1.0], [2.0, 5.0], (200, 2))
        rows = basis.matrix(np.concatenate([points, [[0.0, -1.0], [2.0, 5.0]]]))
        assert rows.shape == (202, basis.size)
        assert np.asarray(rows.sum(axis=1)).ravel() == pytest.approx(1.0, abs=1e-12)

    def test_linear_functions_are_reproduced_and_smooth(self, basis: TensorSplines) -> None:
        points = np.random.default_rng(2).uniform([0.0, -1.0], [2.0, 5.0], (400, 2))
        target = 3.0 - points[:, 0] + 2.0 * points[:, 1]
        rows = basis.matrix(points).toarray()
        coefficients = np.linalg.lstsq(rows, target, rcond=None)[0]
        assert rows @ coefficients == pytest.approx(target, abs=1e-8)
        assert coefficients @ basis.roughness() @ coefficients == pytest.approx(0.0, abs=1e-12)
        bent = np.linalg.lstsq(rows, points[:, 0] ** 2, rcond=None)[0]
        assert bent @ basis.roughness() @ bent > 1e-3

    def test_gram_matrix(self, basis: TensorSplines) -> None:
        rng = np.random.default_rng(3)
        points, weights = rng.uniform([0.0, -1.0], [2.0, 5.0], (300, 2)), rng.random(300)
        rows = basis.rows(points)
        dense = basis.matrix(points).toarray()
        assert rows.gram(weights) == pytest.approx(dense.T @ (dense * weights[:, None]), abs=1e-12)

    def test_errors(self, basis: TensorSplines) -> None:
        with pytest.raises(OptionError, match="1 of 2 points lie outside"):
            basis.matrix(np.array([[1.0, 1.0], [3.0, 1.0]]))
        with pytest.raises(OptionError, match="in 2 dimensions"):
            basis.matrix(np.ones((4, 3)))
        with pytest.raises(OptionError, match="empty box"):
            TensorSplines(np.array([1.0]), np.array([1.0]), (3,))
        with pytest.raises(OptionError, match="at least one"):
            TensorSplines(np.array([0.0]), np.array([1.0]), (0,))


class TestDesign:
    def test_latin_hypercube_fills_every_axis(self) -> None:
        points = latin_hypercube([0.0, 10.0, -1.0], [1.0, 20.0, 1.0], 50, rng=np.random.default_rng(4))
        for column, low, high in zip(points.T, (0.0, 10.0, -1.0), (1.0, 20.0, 1.0), strict=True):
            cells = np.floor((column - low) / (high - low) * 50).astype(int)
            assert sorted(cells) == list(range(50))

    def test_workers_change_nothing(self) -> None:
        design = latin_hypercube([0.0, 100.0], [5.0, 600.0], 40, rng=np.random.default_rng(4))
        serial = throw_design(bounded, design, rng=np.random.default_rng(5), toys_per_point=3)
        with ThreadPoolExecutor(2) as pool:
            parallel = throw_design(bounded, design, rng=np.random.default_rng(5), toys_per_point=3, mapper=pool.map)
        assert serial[0].shape == (120, 2)
        assert np.array_equal(serial[1], parallel[1])

    def test_errors(self) -> None:
        with pytest.raises(OptionError, match="0 points"):
            latin_hypercube([0.0], [1.0], 0, rng=np.random.default_rng(1))
        with pytest.raises(OptionError, match="nothing to do"):
            throw_design(bounded, np.ones((2, 2)), rng=np.random.default_rng(1), toys_per_point=0)
        with pytest.raises(OptionError, match="gave statistics of shape"):
            throw_design(lambda point, n, *, rng: np.zeros(n + 1), np.ones((2, 2)), rng=np.random.default_rng(1))


class TestQuantiles:
    def test_constant_quantile_is_the_sample_quantile(self) -> None:
        rng = np.random.default_rng(6)
        x, z = rng.random((8000, 1)), rng.standard_normal(8000)
        fitted = fit_critical_values(x, z**2, cls=LEVELS, options=CriticalOptions(penalty=1e12))
        grid = np.linspace(x.min(), x.max(), 7)[:, None]
        for cl in LEVELS:
            sample = float(np.quantile(z**2, cl))
            value, error = fitted.value(grid, cl), fitted.error(grid, cl)
            assert value == pytest.approx(sample, abs=2.0 * float(error.max()))
            assert np.abs(value - threshold(cl)).max() < 4.0 * error.max()
            # Error of a quantile: sqrt(cl (1 - cl) / n) over the density; here a straight line takes part too.
            root = -float(ndtri(0.5 * (1.0 - cl)))
            density = 2.0 * np.exp(-0.5 * root**2) / np.sqrt(2.0 * np.pi)
            exact = 2.0 * root * np.sqrt(cl * (1.0 - cl) / 8000) / density
            assert float(fitted.error(np.array([[0.5]]), cl)[0]) == pytest.approx(exact, rel=0.15)

    def test_boundary_problem(self) -> None:
        rng = np.random.default_rng(7)
        mu = latin_hypercube([0.0], [6.0], 20_000, rng=rng)
        x = rng.normal(mu[:, 0], 1.0)
        t = np.where(x >= 0, (x - mu[:, 0]) ** 2, mu[:, 0] ** 2 - 2.0 * x * mu[:, 0])
        fitted = fit_critical_values(mu, t, cls=LEVELS, low=[0.0], high=[6.0])
        grid = np.linspace(0.0, 6.0, 25)
        for cl in LEVELS:
            value = fitted.value(grid[:, None], cl)
            reached = np.array([gaussian_tmu_cdf(c, m) for c, m in zip(value, grid, strict=True)])
            # Probability content instead of distance: the size that a confidence set would have.
            assert np.abs(reached - cl).max() < 0.06
            assert np.abs(reached - cl).mean() < 0.015

    def test_levels_never_cross(self, surface: CriticalValues) -> None:
        points = np.random.default_rng(8).uniform([0.0, 100.0], [5.0, 600.0], (500, 2))
        values = np.stack([surface.value(points, cl) for cl in LEVELS])
        assert (np.diff(values, axis=0) >= 0).all()

    def test_two_parameters_against_brute_force(self, surface: CriticalValues) -> None:
        rng = np.random.default_rng(9)
        points = np.array([[0.3, 180.0], [1.5, 300.0], [3.0, 520.0], [4.5, 250.0]])
        for cl in LEVELS:
            for point in points:
                toys = bounded(point, 20_000, rng=rng)
                brute = float(np.quantile(toys, cl))
                assert brute == pytest.approx(bounded_threshold(point[0], cl) * width(point[1]), rel=0.06)
                value = float(surface.value(point[None], cl)[0])
                # What counts is the probability that the smooth value leaves.
                assert float((toys <= value).mean()) == pytest.approx(cl, abs=0.03)

    def test_coverage_that_results(self, surface: CriticalValues) -> None:
        rng = np.random.default_rng(10)
        design = latin_hypercube([0.0, 100.0], [5.0, 600.0], 8000, rng=rng)
        points, t = throw_design(bounded, design, rng=rng)
        for cl in LEVELS:
            inside = surface.accepts(points, t, cl)
            assert abs(inside.mean() - cl) < 4.0 * np.sqrt(cl * (1 - cl) / 8000)
            where = np.array([[0.5, 200.0], [2.5, 350.0], [4.5, 550.0]])
            found = fit_inclusion(points, inside, low=[0.0, 100.0], high=[5.0, 600.0])
            assert np.abs(found.value(where) - cl).max() < 0.03 + 3.0 * float(found.error(where).max())

    def test_inclusion_finds_a_hole(self) -> None:
        rng = np.random.default_rng(12)
        x = latin_hypercube([0.0], [1.0], 8000, rng=rng)
        truth = 0.95 - 0.35 * np.exp(-0.5 * ((x[:, 0] - 0.3) / 0.1) ** 2)
        found = fit_inclusion(x, rng.random(8000) < truth, low=[0.0], high=[1.0], options=CriticalOptions(pieces=12))
        assert found.value(np.array([[0.3], [0.8]])) == pytest.approx([0.60, 0.95], abs=0.05)
        assert float(found.error(np.array([[0.3]]))[0]) < 0.03

    def test_failed_and_infinite_toys(self) -> None:
        rng = np.random.default_rng(13)
        x, t = rng.random((4000, 1)), rng.standard_normal(4000) ** 2
        t[::100] = np.nan
        t[1::50] = np.inf
        fitted = fit_critical_values(x, t, cls=(0.9,), options=CriticalOptions(penalty=1e12))
        assert (fitted.n_toys, fitted.n_failed) == (3960, 40)
        good = t[~np.isnan(t)]
        expected = float(np.quantile(good, 0.9, method="lower"))
        assert float(fitted.value(np.array([[0.5]]), 0.9)[0]) == pytest.approx(expected, rel=0.05)


class TestErrors:
    def test_too_few_toys(self) -> None:
        with pytest.raises(FitFailed, match="throw at least 400"):
            fit_critical_values(np.random.default_rng(1).random((100, 1)), np.ones(100), cls=(0.95,))

    def test_bad_arguments(self) -> None:
        x = np.random.default_rng(1).random((1000, 1))
        with pytest.raises(OptionError, match="do not fit together"):
            fit_critical_values(x, np.ones(999))
        with pytest.raises(OptionError, match="between 0 and 1"):
            fit_critical_values(x, np.ones(1000), cls=(95.0,))
        with pytest.raises(OptionError, match="negative"):
            fit_critical_values(x, -np.ones(1000))
        with pytest.raises(OptionError, match="penalty"):
            CriticalOptions(penalty=-1.0)
        with pytest.raises(OptionError, match="do not fit together"):
            fit_inclusion(x, np.ones(3, dtype=bool))

    def test_unknown_level_or_place(self, surface: CriticalValues) -> None:
        with pytest.raises(OptionError, match=r"not fitted at 0\.8"):
            surface.value(np.array([[1.0, 300.0]]), 0.8)
        with pytest.raises(OptionError, match="throw toys there first"):
            surface.value(np.array([[7.0, 300.0]]), 0.9)
