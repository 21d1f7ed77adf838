"""Toys of a binned likelihood: counts and auxiliary measurements drawn together, fitted many at a time.

pyhf's own toy calculator fits one toy after the other, and its release 0.7.6 fails with numpy 2.4 when it forms expected p-values
(:func:`gbistat.binned.backend.toy_calculator_defect`). Nothing here depends on it. :mod:`gbistat.inference.toys` draws toys of workspaces,
too, alone or joined to unbinned data (limits, Neyman constructions, coverage); this module is for many nuisances, whose likelihood is not convex.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from gbistat.binned.backend import toy_calculator_defect
from gbistat.binned.batch_fit import BatchFit, BatchNLL, fit_batch
from gbistat.errors import OptionError, nearest
from gbistat.fit.minimize import fit
from gbistat.inference.qstats import TestStatistics
from gbistat.likelihood.parameters import index_of

if TYPE_CHECKING:
    from gbistat.likelihood.nll import NLL
    from gbistat.typing import FloatArray, Json

__all__ = ["BinnedToys", "Statistic", "ToyCLs", "binned_toys", "toy_cls"]

Statistic = Literal["tmu", "qmu", "qmu_tilde", "q0"]
BATCH = 128


@dataclass(frozen=True, eq=False)
class BinnedToys:
    """Toys at one truth, tested at one value.

    Parameters
    ----------
    poi : str
        Parameter of interest.
    tested : float
        Tested value.
    statistic : str
        Test statistic.
    truth : array of shape (p,)
        True parameters.
    values : array of shape (n,)
        Test statistics; NaN where a fit failed.
    estimates : array of shape (n,)
        Estimates of the parameter of interest, not bounded at 0.
    n_failed : int
        Toys whose fit failed.
    """

    poi: str
    tested: float
    statistic: str
    truth: FloatArray
    values: FloatArray
    estimates: FloatArray
    n_failed: int

    def p_value(self, observed: float) -> tuple[float, float]:
        """Share of toys whose statistic is at least the observed one, and its binomial error."""
        known = self.values[np.isfinite(self.values)]
        p = float(np.mean(known >= observed - 1e-9))
        return p, math.sqrt(max(p * (1.0 - p), 1.0 / known.size) / known.size)


@dataclass(frozen=True)
class ToyCLs:
    """CLs of one value from toys.

    Parameters
    ----------
    poi : str
        Parameter of interest.
    tested : float
        Tested value.
    p_signal, p_background, observed : float
        CLs+b, CLb, CLs.
    error : float
        Monte Carlo error of CLs.
    expected : tuple of 5 float
        CLs under background only at -2, -1, 0, +1, +2 sigma, in pyhf's order.
    n_toys : int
        Toys for each hypothesis.
    notes : tuple of str
        What a reader must know.
    """

    poi: str
    tested: float
    p_signal: float
    p_background: float
    observed: float
    error: float
    expected: tuple[float, float, float, float, float]
    n_toys: int
    notes: tuple[str, ...] = ()

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "poi": self.poi,
            "tested": self.tested,
            "CLs_obs": self.observed,
            "CLs_error": self.error,
            "CLs_exp": list(self.expected),
            "n_toys": self.n_toys,
            "notes": list(self.notes),
        }


def binned_toys(
    nll: NLL,
    truth: FloatArray,
    tested: float,
    n_toys: int,
    *,
    rng: np.random.Generator,
    statistic: Statistic = "qmu_tilde",
) -> BinnedToys:
    """Draw toys of a binned likelihood and evaluate a test statistic on each.

    Parameters
    ----------
    nll : NLL
        Likelihood of binned data and auxiliary measurements (:func:`gbistat.binned.load.load_workspace`).
    truth : array of shape (p,)
        True parameters.
    tested : float
        Tested value of the parameter of interest.
    n_toys : int
        How many.
    rng : numpy.random.Generator
        Source of randomness.
    statistic : {"tmu", "qmu", "qmu_tilde", "q0"}
        Eqs. 8, 14, 16 and 12 of arXiv:1007.1727; q0 tests 0 whatever is asked for.

    Returns
    -------
    BinnedToys
        One value a toy.

    Raises
    ------
    OptionError
        If there is no such statistic, or no toys are asked for.
    ModelError
        If the likelihood has unbinned data, or an expected count is negative.
    """
    if statistic not in get_args(Statistic):
        raise OptionError(f"test statistic {statistic!r} is unknown; {nearest(statistic, get_args(Statistic))}")
    if n_toys < 1:
        raise OptionError(f"{n_toys} toys; ask for at least one")
    value = 0.0 if statistic == "q0" else tested
    drawn = [
        _statistics(BatchNLL.draw(nll, truth, min(BATCH, n_toys - begin), rng=rng), truth, value, statistic)
        for begin in range(0, n_toys, BATCH)
    ]
    values, estimates = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
    return BinnedToys(nll.poi, value, statistic, truth, values, estimates, int(np.isnan(values).sum()))


def _statistics(batch: BatchNLL, truth: FloatArray, tested: float, statistic: str) -> tuple[FloatArray, FloatArray]:
    """Test statistics and estimates of a batch."""
    index = index_of(batch.nll.poi, batch.nll.parameters)
    free = np.array([not parameter.fixed for parameter in batch.nll.parameters])
    held = free.copy()
    held[index] = False
    start = np.tile(truth, (batch.size, 1))
    best = fit_batch(batch, start, free)
    estimate = best.theta[:, index]
    at = best.theta.copy()
    at[:, index] = tested
    conditional = fit_batch(batch, at, held)
    if batch.nll.unfolded(truth) is not None:
        begin = start.copy()
        begin[:, index] = tested
        conditional = _lower(conditional, fit_batch(batch, begin, held))
    lowest, valid = best.value.copy(), best.valid & conditional.valid
    negative = np.flatnonzero(estimate < 0) if statistic == "qmu_tilde" else np.empty(0, dtype=np.int64)
    if negative.size:
        at = conditional.theta[negative].copy()
        at[:, index] = 0.0
        null = fit_batch(batch.take(negative), at, held)
        lowest[negative], valid[negative] = null.value, valid[negative] & null.valid
    q = np.maximum(2.0 * (conditional.value - lowest), 0.0)
    if statistic in ("qmu", "qmu_tilde"):
        q = np.where(estimate > tested, 0.0, q)
    elif statistic == "q0":
        q = np.where(estimate < 0.0, 0.0, q)
    return np.where(valid, q, np.nan), estimate


def _lower(first: BatchFit, second: BatchFit) -> BatchFit:
    """The lower minimum of each toy."""
    better = second.valid & ~(first.valid & (first.value <= second.value))
    return BatchFit(
        np.where(better[:, None], second.theta, first.theta),
        np.where(better, second.value, first.value),
        first.valid | second.valid,
        first.single + second.single,
    )


def toy_cls(nll: NLL, tested: float, n_toys: int, *, rng: np.random.Generator) -> ToyCLs:
    """CLs of one value from toys of both hypotheses, with nuisances that fit the data best under each.

    Parameters
    ----------
    nll : NLL
        Likelihood of binned data.
    tested : float
        Tested value, 0 or more.
    n_toys : int
        Toys for each hypothesis.
    rng : numpy.random.Generator
        Source of randomness.

    Raises
    ------
    OptionError
        If the tested value is negative.
    FitFailed
        If a fit to the data is not valid.
    """
    if tested < 0:
        raise OptionError(f"qmu_tilde tests values of 0 and above, not {tested:g}")
    statistics = TestStatistics(nll, nll.poi)
    observed = statistics.qmu_tilde(tested)
    truths = [fit(nll, fixed={nll.poi: value}).raise_if_invalid().values for value in (tested, 0.0)]
    signal, background = (binned_toys(nll, truth, tested, n_toys, rng=rng) for truth in truths)
    p_signal, error_signal = signal.p_value(observed)
    p_background, error_background = background.p_value(observed)
    cls = p_signal / p_background if p_background > 0 else 0.0
    relative = math.hypot(error_signal / max(p_signal, 1e-300), error_background / max(p_background, 1e-300))
    error = cls * relative if p_signal > 0 else error_signal / max(p_background, 1.0 / n_toys)
    known = background.values[np.isfinite(background.values)]
    # A downward fluctuation of the background has a large statistic: the quantile from above.
    expected = []
    for level in (0.97724987, 0.84134475, 0.5, 0.15865525, 0.02275013):
        q = float(np.quantile(known, level))
        bottom = background.p_value(q)[0]
        expected.append(signal.p_value(q)[0] / bottom if bottom > 0 else 0.0)
    notes = []
    failed = signal.n_failed + background.n_failed
    if failed:
        notes.append(f"{failed} of {2 * n_toys} toys could not be fitted and are left out")
    defect = toy_calculator_defect()
    if defect:
        notes.append(f"{defect}; these toys are gbistat's own")
    return ToyCLs(
        nll.poi,
        tested,
        p_signal,
        p_background,
        cls,
        error,
        (expected[0], expected[1], expected[2], expected[3], expected[4]),
        n_toys,
        tuple(notes),
    )
