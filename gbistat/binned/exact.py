r"""Binned likelihood in the parameters of the unbinned model, without HistFactory's interpolation.

The probability of bin b under component j is the sum over pool points i in the bin,
:math:`P_{jb}(\theta) \propto \sum_{i \in b} q_i f_j(i; \theta)`, for every value of the parameters. With
:math:`g = \partial \ln f` and shares :math:`a_i` of the points within a bin its derivatives are exact,

.. math::

    \partial \ln P_b = \sum_{i \in b} a_i g_i - \bar g, \qquad
    \partial^2 \ln P_b = \sum_{i \in b} a_i (h_i + g_i g_i^T) - g_b g_b^T - \partial^2 \ln N,

where :math:`\bar g` and :math:`N` belong to the sum over all bins. This is the likelihood that tends to the unbinned one as bins
become narrow. A workspace is the same to first order in each nuisance, and interpolates between templates at one standard deviation
beyond that (:mod:`gbistat.binned.workspace`), which shows where a nuisance changes some bins by a factor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbistat.binned.observables import reference_values, usable_reference
from gbistat.errors import ModelError
from gbistat.likelihood.mixture import Mixture, PreparedComponent
from gbistat.likelihood.nll import NLL
from gbistat.likelihood.parameters import start_vector
from gbistat.likelihood.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.binned.binning import AnyBinning
    from gbistat.likelihood.constraints import Constraint
    from gbistat.likelihood.model import Model
    from gbistat.typing import FloatArray, IntArray

__all__ = ["ExactBins"]


@dataclass(frozen=True, eq=False)
class _BinFactor:
    """``ln P_b`` of one component as a function of the parameters of its factors: a prepared factor on bins."""

    component: PreparedComponent
    positions: IntArray
    log_measure: FloatArray
    index: IntArray
    n_bins: int
    n_parameters: int

    def log_prob(self, values: FloatArray) -> FloatArray:
        log = self.component.log_density(self._full(values)) + self.log_measure
        shift = _highest(log)
        sums = np.bincount(self.index, np.exp(log - shift), minlength=self.n_bins)
        with np.errstate(divide="ignore"):
            result: FloatArray = np.log(sums / sums.sum())
        return result

    def derivatives(self, values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        log, own, gradient, hessian = self.component.derivatives(self._full(values))
        if not np.array_equal(own, self.positions):
            # In another order, or a parameter in two factors, whose derivatives then add up.
            spread = (own == self.positions[:, None]).astype(np.float64)
            gradient = spread @ gradient
            hessian = np.einsum("am,mnp,bn->abp", spread, hessian, spread, optimize=True)
        log = log + self.log_measure
        weight = np.exp(log - _highest(log))
        sums = np.bincount(self.index, weight, minlength=self.n_bins)
        safe = np.where(sums > 0, sums, 1.0)
        k = self.positions.size
        first, second = np.empty((k, self.n_bins)), np.empty((k, k, self.n_bins))
        for a in range(k):
            first[a] = np.bincount(self.index, weight * gradient[a], minlength=self.n_bins)
            for b in range(a + 1):
                both = weight * (gradient[a] * gradient[b] + hessian[a, b])
                second[a, b] = second[b, a] = np.bincount(self.index, both, minlength=self.n_bins)
        total = sums.sum()
        mean, curved = first.sum(axis=1) / total, second.sum(axis=2) / total
        slope, bent = first / safe, second / safe
        with np.errstate(divide="ignore"):
            log_sums = np.log(sums / total)
        return (
            log_sums,
            slope - mean[:, None],
            bent - slope[:, None] * slope[None] - (curved - np.outer(mean, mean))[:, :, None],
        )

    def _full(self, values: FloatArray) -> FloatArray:
        theta = np.zeros(self.n_parameters)
        theta[self.positions] = values
        return theta


def _highest(log: FloatArray) -> float:
    highest = float(log.max(initial=-np.inf))
    return highest if np.isfinite(highest) else 0.0


class ExactBins:
    """A model in bins of an observable, with templates that are exact for the points of a reference.

    Parameters
    ----------
    model : Model
        Components, parameters, constraints.
    reference : Reference
        Quadrature or a pool.
    binning : Binning or ProductBinning, optional
        The nb bins, which cover all points. Without it every point is a bin of its own: the limit of narrow bins, an unbinned
        likelihood whose densities are normalised on the points for every value of the parameters.

    Raises
    ------
    ModelError
        If the reference cannot be used, or no component reaches some bin.
    """

    def __init__(self, model: Model, reference: Reference | None, binning: AnyBinning | None = None) -> None:
        known = usable_reference(model, reference, binning.observable if binning is not None else "points")
        if binning is None:
            index, n_bins = np.arange(known.mixture.size), known.mixture.size
        else:
            index, n_bins = binning.index(reference_values(model, known, binning.observable)), binning.n_bins
        if (index < 0).any():
            raise ModelError(
                f"{int((index < 0).sum())} reference points are outside of all bins; let the bins cover them"
            )
        self.model = model
        self.n_bins = n_bins
        self.index = index
        start = start_vector(model.parameters)
        with np.errstate(divide="ignore"):
            log_measure = np.log(known.measure)
        components = []
        for component in known.mixture.components:
            used = [positions for _, positions in component.factors]
            positions = np.unique(np.concatenate(used)) if used else np.empty(0, dtype=np.int64)
            factor = _BinFactor(component, positions, log_measure, index, n_bins, len(model.names))
            if positions.size:
                components.append(PreparedComponent(component.rate, np.zeros(n_bins), ((factor, positions),)))
            else:
                components.append(PreparedComponent(component.rate, factor.log_prob(np.empty(0)), ()))
        self._mixture = Mixture(components, model.names, start, weights=np.zeros(n_bins))
        self._convex = frozenset(name for name in model.names if model.yield_only(name))

    def probabilities(self, theta: FloatArray) -> FloatArray:
        """Probability of each bin under each component, shape (J, nb)."""
        return np.exp(np.stack([component.log_density(theta) for component in self._mixture.components]))

    def expected(self, theta: FloatArray) -> FloatArray:
        """Expected events of each component in each bin, shape (J, nb)."""
        result: FloatArray = self._mixture.yields(theta)[:, None] * self.probabilities(theta)
        return result

    def nll(self, counts: FloatArray, constraints: Sequence[Constraint] | None = None) -> NLL:
        """Likelihood of observed counts, shape (nb,).

        Parameters
        ----------
        counts : array of shape (nb,)
            Events in each bin.
        constraints : sequence of Constraint, optional
            Auxiliary measurements instead of the model's (toys).
        """
        given = self.model.constraints if constraints is None else constraints
        return NLL(
            self.model.parameters, [self._mixture.reweighted(counts)], given, poi=self.model.poi, convex=self._convex
        )

    @property
    def reference(self) -> Reference:
        """Measure for Asimov sets of these likelihoods: the bins themselves."""
        return Reference(self._mixture, np.ones(self.n_bins), "quadrature", float("inf"), 1.0)
