r"""Test statistics over a grid of signal hypotheses (masses), on data and on toys.

For one hypothesis m the discovery statistic is ``q0(m)``, Eq. (12) of arXiv:1007.1727. Since masses mean nothing at ``mu = 0``,
the same ``nll(0)`` stands in all of them, and the likelihood ratio in mu and the masses together follows from them:

.. math:: t(\mu, m) = \tilde t_\mu(m) + \max_{m'} q_0(m') - q_0(m),

twice the difference of ``nll(mu, m)`` to its minimum over ``mu' >= 0`` and all hypotheses of the grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import OptionError
from gbistat.inference.toy_results import TestSpec
from gbistat.inference.toys import data_statistics, toy_statistics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.inference.toys import ToyModel
    from gbistat.typing import FloatArray

__all__ = ["JointStatistic", "MassGrid"]


@dataclass(frozen=True, eq=False)
class MassGrid:
    """Signal hypotheses.

    Parameters
    ----------
    names : tuple of str
        The k parameters that make a hypothesis.
    points : array of shape (..., k)
        Their values; a scan has one leading axis, a plane two. A point with a NaN is not searched.

    Raises
    ------
    OptionError
        If shapes do not fit or there is no point.
    """

    names: tuple[str, ...]
    points: FloatArray

    def __post_init__(self) -> None:
        points = np.asarray(self.points, dtype=np.float64)
        if points.ndim < 2 or points.shape[-1] != len(self.names) or np.isnan(points).any(axis=-1).all():
            raise OptionError(f"hypotheses of shape {points.shape} for {len(self.names)} parameter(s) {self.names}")
        object.__setattr__(self, "points", points)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the scan or plane."""
        return self.points.shape[:-1]

    def hypothesis(self, point: FloatArray) -> tuple[tuple[str, float], ...]:
        """One point as parameters to hold."""
        return tuple((name, float(value)) for name, value in zip(self.names, point, strict=True))

    def tests(self) -> list[TestSpec]:
        """Discovery test of each searched point."""
        flat = self.points.reshape(-1, len(self.names))
        return [TestSpec("q0", 0.0, self.hypothesis(point)) for point in flat[~np.isnan(flat).any(axis=1)]]

    def spread(self, values: FloatArray) -> FloatArray:
        """Numbers (n, searched points) as maps (n, *shape), NaN where nothing was searched."""
        searched = ~np.isnan(self.points).any(axis=-1)
        maps = np.full((values.shape[0], *self.shape), np.nan)
        maps[:, searched] = values
        return maps

    def data_scan(self, model: ToyModel) -> FloatArray:
        """q0 of the observed data at every point, of the grid's shape.

        Raises
        ------
        FitFailed
            If a fit fails.
        """
        result: FloatArray = self.spread(data_statistics(model, self.tests())[None])[0]
        return result

    def toy_scans(
        self, model: ToyModel, theta_true: FloatArray, n_toys: int, *, rng: np.random.Generator
    ) -> FloatArray:
        """q0 of toys at every point, shape (n_toys, *shape): all points look at the same toys.

        Parameters
        ----------
        model : ToyModel
            What is drawn and fitted.
        theta_true : array of shape (p,)
            True parameters: without signal, for the look-elsewhere effect.
        n_toys : int
            How many.
        rng : numpy.random.Generator
            Source of randomness.
        """
        return self.spread(toy_statistics(model, theta_true, self.tests(), n_toys, rng=rng).statistics)


@dataclass(frozen=True, eq=False)
class JointStatistic:
    """Likelihood ratio in the signal strength and its masses together; a source of toys for critical values.

    Parameters
    ----------
    model : ToyModel
        What is drawn and fitted.
    grid : MassGrid
        Hypotheses that the best fit is sought among: as fine as the resolution, or the statistic is too small.
    nuisances : array of shape (p,)
        True values of the other parameters.
    """

    model: ToyModel
    grid: MassGrid
    nuisances: FloatArray

    def __call__(self, point: FloatArray, n_toys: int, *, rng: np.random.Generator) -> FloatArray:
        """Statistic of ``(mu, masses)`` on toys thrown there, shape (n_toys,); NaN where a fit failed."""
        theta = np.array(self.nuisances, dtype=np.float64)
        for name, value in zip((self.model.poi, *self.grid.names), point, strict=True):
            theta[self.model.names.index(name)] = value
        return self.combine(toy_statistics(self.model, theta, self._tests(point), n_toys, rng=rng).statistics)

    def observed(self, points: Sequence[FloatArray] | FloatArray) -> FloatArray:
        """Statistic of the observed data at points (n, 1 + k), shape (n,).

        Raises
        ------
        FitFailed
            If a fit fails.
        """
        values = [self.combine(data_statistics(self.model, self._tests(point))[None])[0] for point in points]
        return np.array(values)

    def _tests(self, point: FloatArray) -> list[TestSpec]:
        own = self.grid.hypothesis(np.asarray(point)[1:])
        others = [test for test in self.grid.tests() if test.fixed != TestSpec("q0", 0.0, own).fixed]
        return [TestSpec("tmu_tilde", float(point[0]), own), TestSpec("q0", 0.0, own), *others]

    @staticmethod
    def combine(statistics: FloatArray) -> FloatArray:
        """From ``tmu_tilde`` and ``q0`` of the point itself and ``q0`` of all others, shape (n, 2 + others), to (n,)."""
        result: FloatArray = statistics[:, 0] + statistics[:, 1:].max(axis=1) - statistics[:, 1]
        return result
