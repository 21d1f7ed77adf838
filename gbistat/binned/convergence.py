r"""What binning costs: expected limit and information in bins of the log ratio, and how far estimates of the same toys are apart.

Both sides are compared on the same footing. The densities of the unbinned likelihood are normalised on the reference events, as
templates are; expected limits are those of the background-only Asimov set with every auxiliary measurement at its nominal value; toys are
Poisson counts of the reference events and one set of auxiliary measurements, and each method fits the same toy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import brentq

from gbistat.binned.binning import LOG_RATIO
from gbistat.binned.exact import ExactBins
from gbistat.binned.nuisances import standardise
from gbistat.binned.observables import log_ratio_binning
from gbistat.errors import FitFailed, ModelError, ScanRangeError
from gbistat.fit.minimize import fit
from gbistat.inference.asymptotics import expected_limit_threshold
from gbistat.inference.qstats import TestStatistics
from gbistat.likelihood.constraints import LogNormalConstraint, NormalConstraint
from gbistat.likelihood.reference import asimov_nll

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gbistat.binned.binning import Binning
    from gbistat.binned.load import LoadedWorkspace
    from gbistat.likelihood.constraints import Constraint
    from gbistat.likelihood.model import Model
    from gbistat.likelihood.nll import NLL
    from gbistat.likelihood.reference import Reference
    from gbistat.typing import FloatArray, IntArray, Json

__all__ = ["BIN_NUMBERS", "BinsPoint", "Convergence", "Differences", "ToyComparison", "convergence", "normalised"]

BIN_NUMBERS = (2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
"""Numbers of bins of the log ratio for which the cost of binning is told."""


@dataclass(frozen=True)
class BinsPoint:
    """One number of bins.

    Parameters
    ----------
    n_asked, n_bins : int
        Bins asked for, and those that the reference events can fill.
    expected : float
        Median expected limit.
    ratio : float
        The same, relative to the unbinned one.
    information_loss : float
        ``1 - sigma_unbinned^2 / sigma^2`` of the parameter of interest on the Asimov set.
    estimate, error : float
        Fit of the data.
    """

    n_asked: int
    n_bins: int
    expected: float
    ratio: float
    information_loss: float
    estimate: float
    error: float

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return dict(vars(self))


@dataclass(frozen=True, eq=False)
class Convergence:
    """Cost of binning in the log ratio.

    Parameters
    ----------
    poi : str
        Parameter of interest.
    expected : float
        Median expected limit of the unbinned likelihood with all densities normalised on the reference events, for every value of
        the nuisances.
    expected_plain : float
        The same with the signal alone normalised, at the start values: nuisances of the mass then see how the reference events happen
        to be spread, and the difference is the smaller the more of them there are.
    estimate, error : float
        Unbinned fit of the data, with the signal density normalised on the reference events.
    normalisation : float
        Integral of the signal density over the reference events: what separates that fit from the one of the paper.
    points : tuple of BinsPoint
        In order of the number of bins.
    """

    poi: str
    expected: float
    expected_plain: float
    estimate: float
    error: float
    normalisation: float
    points: tuple[BinsPoint, ...]

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "observable": LOG_RATIO,
            "expected_unbinned": self.expected,
            "expected_unbinned_plain": self.expected_plain,
            "fit_unbinned": {"value": self.estimate, "error": self.error},
            "normalisation_on_reference": self.normalisation,
            "points": [point.to_dict() for point in self.points],
        }


@dataclass(frozen=True)
class Differences:
    """Estimates of one method beside unbinned ones of the same toys.

    Parameters
    ----------
    name : str
        The method.
    n_toys : int
        Toys that both could fit.
    mean, spread : float
        Mean and standard deviation of the difference of estimates, in units of the unbinned error. The mean belongs to the finite
        pool: templates that are integrals (bins of the mass) do not know its fluctuations.
    correlation : float
        Of the two estimates.
    """

    name: str
    n_toys: int
    mean: float
    spread: float
    correlation: float

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return dict(vars(self))


def normalised(nll: NLL, model: Model, reference: Reference) -> NLL:
    """Likelihood of the same events with the signal density normalised on the reference events."""
    (mixture,) = nll.mixtures
    scales = np.array([-math.log(reference.normalisation) if c.name == model.signal else 0.0 for c in model.components])
    weights = np.ones(mixture.size) if mixture.weights is None else mixture.weights
    return nll.replaced([mixture.reweighted(weights, log_scales=scales)], nll.constraints)


def convergence(
    model: Model,
    nll: NLL,
    reference: Reference,
    values: FloatArray,
    *,
    bins: Sequence[int] = BIN_NUMBERS,
    cl: float = 0.95,
    weights: FloatArray | None = None,
) -> tuple[Convergence, dict[int, tuple[Binning, ExactBins]]]:
    """Expected limits and information for numbers of bins of the log ratio, without a minimum of background in a bin.

    Parameters
    ----------
    model : Model
        One signal and one background.
    nll : NLL
        Unbinned likelihood of the data.
    reference : Reference
        Quadrature or a pool.
    values : array of shape (n,)
        Log ratio of the events.
    bins : sequence of int
        Numbers of bins.
    cl : float, default 0.95
        Confidence level of the limits.
    weights : array of shape (n,), optional
        Weights of the events.

    Returns
    -------
    Convergence, dict of int to (Binning, ExactBins)
        The numbers, and the bins and their likelihoods by number of bins asked for.

    Raises
    ------
    ModelError
        If the log ratio cannot be binned.
    FitFailed
        If a fit is not valid.
    """
    own = normalised(nll, model, reference)
    truth = _nominal(model)
    plain, _ = _expected(own, reference, truth, cl)
    every_point = ExactBins(model, reference)
    limit, sigma = _expected(every_point.nll(np.zeros(every_point.n_bins)), every_point.reference, truth, cl)
    best = fit(own).raise_if_invalid()
    points, found = [], {}
    for number in bins:
        binning = log_ratio_binning(model, reference, n_bins=number, min_background=0.0, min_points=1)
        exact = ExactBins(model, reference, binning)
        binned = exact.nll(binning.counts(values, weights))
        expected, error = _expected(binned, exact.reference, truth, cl)
        result = fit(binned).raise_if_invalid()
        points.append(
            BinsPoint(
                number,
                binning.n_bins,
                expected,
                expected / limit,
                1.0 - (sigma / error) ** 2,
                result.value(model.poi),
                result.error(model.poi),
            )
        )
        found[number] = (binning, exact)
    summary = Convergence(
        model.poi, limit, plain, best.value(model.poi), best.error(model.poi), reference.normalisation, tuple(points)
    )
    return summary, found


def _nominal(model: Model) -> FloatArray:
    """No signal, and every auxiliary measurement at its best value."""
    theta = standardise(model).nominal.copy()
    theta[model.names.index(model.poi)] = 0.0
    return theta


def _expected(nll: NLL, reference: Reference, truth: FloatArray, cl: float) -> tuple[float, float]:
    """Median expected limit before any data are seen, and the error of the parameter of interest."""
    asimov = asimov_nll(nll, (reference,), truth)
    best = fit(asimov, start=truth).raise_if_invalid()
    statistics, target, sigma = (
        TestStatistics(asimov, nll.poi, best),
        expected_limit_threshold(cl, 0.0),
        best.error(nll.poi),
    )

    def excess(value: float) -> float:
        return math.sqrt(statistics.qmu_tilde(value)) - target

    high = target * sigma
    for _ in range(60):
        if excess(high) > 0:
            return float(brentq(excess, 0.0, high, xtol=1e-6 * high)), sigma
        high *= 1.5
    raise ScanRangeError(f"the expected limit on {nll.poi} was not reached at {high:g}")


class ToyComparison:
    """Toys of a pool of reference events that several methods fit.

    Parameters
    ----------
    model : Model
        The unbinned model.
    nll : NLL
        Its likelihood of the data.
    reference : Reference
        A pool.
    mu : float
        True parameter of interest; nuisances have their nominal values.

    Raises
    ------
    ModelError
        If the reference is not a pool of events.
    """

    def __init__(self, model: Model, nll: NLL, reference: Reference, mu: float) -> None:
        if reference.kind != "pool":
            raise ModelError("toys that several methods share need a pool of reference events")
        self.model = model
        self.nll = nll
        self.reference = reference
        self.standard = standardise(model)
        self.truth = self.standard.nominal.copy()
        self.truth[model.names.index(model.poi)] = mu
        self.mean = np.maximum(reference.weights(self.truth), 0.0)
        self.methods: dict[str, Callable[[FloatArray, FloatArray, list[Constraint]], NLL]] = {}

    def add_exact(self, name: str, bins: ExactBins) -> None:
        """Add a method: exact bins of an observable."""

        def make(counts: FloatArray, _: FloatArray, constraints: list[Constraint]) -> NLL:
            filled = np.bincount(bins.index, counts, minlength=bins.n_bins)
            return bins.nll(filled.astype(np.float64), constraints)

        self.methods[name] = make

    def add_workspace(self, name: str, loaded: LoadedWorkspace, index: IntArray) -> None:
        """Add a method: the workspace of a twin, with the bin of each reference event (-1 outside)."""
        labels = [loaded.labels.get(direction.name) for direction in self.standard.directions]
        inside = index >= 0

        def make(counts: FloatArray, pulls: FloatArray, _: list[Constraint]) -> NLL:
            term, auxiliary = loaded.term, loaded.auxiliary
            observed = term.observed.copy()
            size = int(index.max()) + 1
            observed[:size] = np.bincount(index[inside], counts[inside], minlength=size)
            constraints: list[Constraint] = [type(term)(term.expectation, observed)]
            if auxiliary is not None:
                position = {name: k for k, name in enumerate(auxiliary.normal)}
                values = auxiliary.values.copy()
                for label, pull in zip(labels, pulls, strict=True):
                    if label in position:
                        values[position[label]] = pull
                constraints.append(auxiliary.with_values(values))
            return loaded.nll.replaced([], constraints)

        self.methods[name] = make

    def run(self, n_toys: int, *, rng: np.random.Generator) -> tuple[Differences, ...]:
        """Fit toys by all methods.

        Parameters
        ----------
        n_toys : int
            How many.
        rng : numpy.random.Generator
            Source of randomness.

        Returns
        -------
        tuple of Differences
            One a method; toys that a method cannot fit do not count.
        """
        data, auxiliary = rng.spawn(2)
        names = list(self.methods)
        estimates = np.full((n_toys, 1 + len(names)), np.nan)
        errors = np.full(n_toys, np.nan)
        for row in range(n_toys):
            counts = data.poisson(self.mean).astype(np.float64)
            pulls = auxiliary.standard_normal(len(self.standard.directions))
            constraints = self._measured(pulls)
            seen = counts > 0
            mixture = self.reference.mixture.reweighted(np.where(seen, counts, 0.0))
            estimates[row, 0], errors[row] = _estimate(self.nll.replaced([mixture], constraints))
            for column, name in enumerate(names, start=1):
                estimates[row, column], _ = _estimate(self.methods[name](counts, pulls, constraints))
        return tuple(
            _differences(name, estimates[:, 0], estimates[:, column], errors)
            for column, name in enumerate(names, start=1)
        )

    def _measured(self, pulls: FloatArray) -> list[Constraint]:
        """The model's constraints with auxiliary values that are so many standard deviations off."""
        theta = self.standard.nominal.copy()
        for direction, pull in zip(self.standard.directions, pulls, strict=True):
            moved = direction.plus - self.standard.nominal
            logs = {c.name: c.sigma for c in self.model.constraints if isinstance(c, LogNormalConstraint)}
            if direction.name in logs:
                theta[self.model.names.index(direction.name)] *= math.exp(logs[direction.name] * pull)
            else:
                theta += pull * moved
        position = {name: k for k, name in enumerate(self.model.names)}
        return [
            c.expected(theta[[position[name] for name in c.names]])
            if isinstance(c, (NormalConstraint, LogNormalConstraint))
            else c
            for c in self.model.constraints
        ]


def _estimate(nll: NLL) -> tuple[float, float]:
    """Estimate and error; NaN where the fit fails."""
    try:
        result = fit(nll)
    except (FitFailed, ScanRangeError, ModelError):
        return math.nan, math.nan
    return (result.value(nll.poi), result.error(nll.poi)) if result.valid else (math.nan, math.nan)


def _differences(name: str, unbinned: FloatArray, other: FloatArray, errors: FloatArray) -> Differences:
    good = np.isfinite(unbinned) & np.isfinite(other) & (errors > 0)
    n = int(good.sum())
    if n < 3:
        return Differences(name, n, math.nan, math.nan, math.nan)
    difference = (other[good] - unbinned[good]) / float(np.median(errors[good]))
    correlation = float(np.corrcoef(unbinned[good], other[good])[0, 1])
    return Differences(name, n, float(difference.mean()), float(difference.std(ddof=1)), correlation)
