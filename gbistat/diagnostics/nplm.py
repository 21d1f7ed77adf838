r"""New Physics Learning Machine: a fitted likelihood ratio of data against a reference, with kernel features.

With data D, and N_R reference events that stand for N(R) expected ones (weight :math:`a = N(R)/N_R`), the model
:math:`n(x|R) e^{f(x)}` is fitted by weighted logistic regression on Nystroem features of a Gaussian kernel, and judged by

.. math::

    t = 2 \left[ a \sum_R (1 - e^{f(x)}) + \sum_D f(x) \right]

(arXiv:2204.02317, Eqs. 8 and 16). It is fitted and evaluated on the same events, so only a null distribution made the same way gives
it a meaning: here labels are permuted. The centres of the kernel come from the pooled sample, so that permutations reuse the
features; they are whitened with the label-averaged Hessian, and many permutations are fitted at once by L-BFGS steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtri

from gbistat.diagnostics.batched import minimize_columns
from gbistat.diagnostics.nplm_kernel import NplmOptions, kernel_features, kernel_width
from gbistat.diagnostics.significance import null_significance
from gbistat.errors import EventsError, FitFailed, OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.diagnostics.nplm_kernel import KernelFeatures
    from gbistat.diagnostics.significance import NullSignificance
    from gbistat.typing import BoolArray, FloatArray, Json

__all__ = ["NplmResult", "NplmWidth", "nplm_fit", "nplm_test"]

BATCH = 32
EXPONENT = 500.0


def nplm_fit(features: KernelFeatures, labels: BoolArray, weight: float) -> tuple[FloatArray, FloatArray]:
    """Fit f for several labellings at once.

    Parameters
    ----------
    features : KernelFeatures
        Of n events.
    labels : bool array of shape (k, n)
        Which events are data.
    weight : float
        a, of a reference event.

    Returns
    -------
    array of shape (k,), array of shape (k, n)
        t, and f at every event.
    """
    phi = features.values
    n = len(phi)
    y = labels.T.astype(np.float64)
    own = np.where(labels.T, 1.0, weight) / n

    def loss(beta: FloatArray) -> tuple[FloatArray, FloatArray]:
        f = phi @ beta
        signed = np.where(labels.T, -f, f)
        value = np.einsum("nk,nk->k", own, np.logaddexp(0.0, signed))
        slope = own * (0.5 * (1.0 + np.tanh(0.5 * f)) - y)
        pull = features.penalty @ beta
        value += 0.5 * np.einsum("rk,rk->k", beta, pull)
        return value, phi.T @ slope + pull

    beta = minimize_columns(loss, np.zeros((phi.shape[1], len(labels))), tolerance=1e-9)
    f = (phi @ beta).T
    growth = np.expm1(np.minimum(f, EXPONENT))
    t = 2.0 * np.where(labels, f, -weight * growth).sum(axis=1)
    return t, f


@dataclass(frozen=True, eq=False)
class NplmWidth:
    """Test with one kernel width.

    Parameters
    ----------
    width : float
        Of the kernel, in standardised features.
    rank : int
        Number of features.
    penalty : float
        lambda that was used.
    t : float
        On the data.
    null : array of shape (permutations,)
        t of permuted labels.
    p_value : float
        (1 + #) / (B + 1).
    """

    width: float
    rank: int
    penalty: float
    t: float
    null: FloatArray
    p_value: float


@dataclass(frozen=True, eq=False)
class NplmResult:
    """NPLM test, over one or several kernel widths.

    Parameters
    ----------
    n_data, n_reference : int
        Events.
    weight : float
        a, of a reference event.
    widths : tuple of NplmWidth
        One a kernel width.
    p_value : float
        Of the smallest p-value over the widths, calibrated with the same permutations.
    significance : NullSignificance
        Of the width with the smallest p-value, alone.
    log_ratio : array of shape (n_data,)
        f at the data for that width: where the data differ. In-sample, no calibrated weight.
    """

    n_data: int
    n_reference: int
    weight: float
    widths: tuple[NplmWidth, ...]
    p_value: float
    significance: NullSignificance
    log_ratio: FloatArray

    @property
    def best(self) -> NplmWidth:
        """Width with the smallest p-value; of equal ones, that farthest out in its null."""
        return min(self.widths, key=_order)

    @property
    def z(self) -> float:
        """Significance of `p_value`, at most the ceiling of the permutations."""
        return float(-ndtri(self.p_value)) if self.p_value < 1 else -math.inf

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "n": [self.n_data, self.n_reference],
            "weight": self.weight,
            "p": self.p_value,
            "z": self.z,
            "widths": [
                {
                    "width": item.width,
                    "rank": item.rank,
                    "penalty": item.penalty,
                    "t": item.t,
                    "p": item.p_value,
                    "null": {"mean": float(item.null.mean()), "std": float(item.null.std()), "n": item.null.size},
                }
                for item in self.widths
            ],
            "best": self.significance.to_dict(),
        }


def nplm_test(
    data: FloatArray,
    reference: FloatArray,
    *,
    rng: np.random.Generator,
    expected: float | None = None,
    options: NplmOptions | None = None,
) -> NplmResult:
    """Test data against a reference sample.

    Parameters
    ----------
    data, reference : array of shape (n, d)
        Features. The reference should be at least as large as the data; five times is good.
    rng : numpy.random.Generator
        Centres, pairs, permutations.
    expected : float, optional
        N(R), the number of data expected; by default the number of data: the shape alone is tested.
    options : NplmOptions, optional
        Kernel, penalty, null.

    Returns
    -------
    NplmResult
        With the p-value over all widths.

    Raises
    ------
    EventsError
        If shapes do not fit, a value is not finite, or a feature is constant.
    FitFailed
        If no penalty gives a finite t of 0 or more.

    Notes
    -----
    Permuted labels are an exact null for the shape of exchangeable events, conditional on the pooled sample. With
    `expected` different from the number of data the null holds for the shape only.
    """
    options = options or NplmOptions()
    pool, labels = _pool(data, reference)
    weight = (len(data) if expected is None else expected) / len(reference)
    if not (math.isfinite(weight) and weight > 0):
        raise OptionError(f"expected = {expected} must be a positive number of events")
    null_labels = np.stack([rng.permutation(labels) for _ in range(options.permutations)])
    tests: list[tuple[NplmWidth, FloatArray]] = []
    for percentile in options.width_percentiles:
        width = kernel_width(pool[~labels], percentile, rng=rng)
        tests.append(_one_width(pool, labels, null_labels, width, weight, options, rng))
    widths = tuple(item for item, _ in tests)
    best, log_ratio = min(tests, key=lambda item: _order(item[0]))
    return NplmResult(
        len(data),
        len(reference),
        weight,
        widths,
        _smallest_p(widths),
        null_significance(best.t, best.null, rng=rng),
        log_ratio[labels],
    )


def _order(item: NplmWidth) -> tuple[float, float]:
    spread = float(item.null.std())
    return item.p_value, -(item.t - float(item.null.mean())) / (spread or 1.0)


def _pool(data: FloatArray, reference: FloatArray) -> tuple[FloatArray, BoolArray]:
    x, r = np.asarray(data, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if x.ndim != 2 or r.ndim != 2 or x.shape[1] != r.shape[1] or min(len(x), len(r)) < 10:
        raise EventsError(
            f"data {x.shape} and reference {r.shape} do not fit; give (n, d) twice, at least 10 events each"
        )
    for name, values in (("data", x), ("reference", r)):
        bad = int(np.sum(~np.isfinite(values).all(axis=1)))
        if bad:
            raise EventsError(f"{bad} of {len(values)} {name} events are NaN or infinite; remove these events")
    spread = r.std(axis=0)
    if not np.all(spread > 0):
        raise EventsError(f"feature {int(np.argmin(spread))} is constant in the reference; leave it out")
    pool = (np.concatenate([x, r]) - r.mean(axis=0)) / spread
    return pool, np.arange(len(pool)) < len(x)


def _one_width(
    pool: FloatArray,
    labels: BoolArray,
    null_labels: BoolArray,
    width: float,
    weight: float,
    options: NplmOptions,
    rng: np.random.Generator,
) -> tuple[NplmWidth, FloatArray]:
    penalty = options.penalty
    share = float(labels.mean())
    centres_seed = int(rng.integers(2**63 - 1))
    while penalty < 1.0:
        chosen = replace(options, penalty=penalty)
        features = kernel_features(pool, width, share, weight, chosen, rng=np.random.default_rng(centres_seed))
        (t,), (f,) = nplm_fit(features, labels[None], weight)
        null = np.concatenate(
            [nplm_fit(features, null_labels[i : i + BATCH], weight)[0] for i in range(0, len(null_labels), BATCH)]
        )
        # The logistic fit does not maximise t: where the penalty is too small t can come out negative.
        if np.isfinite(t) and np.all(np.isfinite(null)) and t >= 0 and np.all(null >= 0):
            p = float((1 + np.sum(null >= t)) / (1 + null.size))
            return NplmWidth(width, features.rank, penalty, float(t), null, p), f
        penalty *= 10.0
    raise FitFailed(f"no penalty up to 1 gives a finite t of 0 or more at kernel width {width:.3g}; take more events")


def _smallest_p(widths: Sequence[NplmWidth]) -> float:
    """p-value of the smallest p-value: the same ranks are given to the data and to every permutation."""
    t = np.array([[item.t, *item.null] for item in widths])
    total = t.shape[1]
    # Rank of each labelling among all labellings, itself included: exchangeable, so the comparison is exact.
    p = np.stack([(total - np.searchsorted(np.sort(row), row, side="left")) / total for row in t])
    smallest = p.min(axis=0)
    return float(np.mean(smallest <= smallest[0] + 1e-12))
