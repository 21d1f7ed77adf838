"""Several distances between data and generated events side by side, each with its permutation null, under a row of truth against truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbistat.diagnostics.distances import (
    SlicedWasserstein,
    frechet_distance,
    kernel_statistics,
    polynomial_gram,
    radial_gram,
    random_directions,
    separation,
    standardise,
)
from gbistat.errors import EventsError, OptionError

if TYPE_CHECKING:
    from gbistat.typing import BoolArray, FloatArray, Json

__all__ = ["METRICS", "Metric", "Scorecard", "ScorecardOptions", "scorecard"]

METRICS = {
    "sliced_wasserstein": "mean Wasserstein distance along random directions",
    "frechet": "Frechet distance of first and second moments (FPD)",
    "kernel": "unbiased squared MMD, kernel (x.y/d + 1)^4 (KPD)",
    "mmd": "unbiased squared MMD, Gaussian kernel of median width",
    "separation": "largest one-dimensional separation",
}


@dataclass(frozen=True)
class ScorecardOptions:
    """Sizes.

    Parameters
    ----------
    permutations : int
        Of the labels, for every metric.
    directions : int
        Of the sliced Wasserstein distance.
    kernel_events : int
        Events of each sample in the kernel metrics, whose cost is quadratic.
    largest : int
        Events of each sample in the others.
    """

    permutations: int = 199
    directions: int = 50
    kernel_events: int = 1000
    largest: int = 10_000

    def __post_init__(self) -> None:
        if self.permutations < 19 or min(self.directions, self.kernel_events, self.largest) < 1:
            raise OptionError(f"{self}: give at least 19 permutations and positive sizes")


@dataclass(frozen=True)
class Metric:
    """One distance.

    Parameters
    ----------
    name : str
        One of `METRICS`.
    value : float
        Of data against generated events, truth-normalised.
    null_mean, null_width : float
        Over permutations.
    p_value : float
        By permutations.
    truth : float
        Of one half of the data against the other half, brought to the same sizes.
    """

    name: str
    value: float
    null_mean: float
    null_width: float
    p_value: float
    truth: float

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "value": self.value,
            "null": {"mean": self.null_mean, "std": self.null_width},
            "p": self.p_value,
            "truth_vs_truth": self.truth,
        }


@dataclass(frozen=True)
class Scorecard:
    """All distances.

    Parameters
    ----------
    metrics : tuple of Metric
        In the order of `METRICS`.
    """

    metrics: tuple[Metric, ...]

    def __getitem__(self, name: str) -> Metric:
        for metric in self.metrics:
            if metric.name == name:
                return metric
        raise KeyError(name)

    @property
    def p_value(self) -> float:
        """Smallest p-value times the number of metrics (Bonferroni)."""
        return min(1.0, len(self.metrics) * min(metric.p_value for metric in self.metrics))

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {metric.name: metric.to_dict() for metric in self.metrics}


def scorecard(
    data: FloatArray, generated: FloatArray, *, rng: np.random.Generator, options: ScorecardOptions | None = None
) -> Scorecard:
    """Compare data with generated events by every metric.

    Parameters
    ----------
    data, generated : array of shape (n, d), (m, d)
        Features.
    rng : numpy.random.Generator
        Subsamples, directions, permutations.
    options : ScorecardOptions, optional
        Sizes.

    Raises
    ------
    EventsError
        If there are fewer than 40 events of a kind, or as for `gbistat.diagnostics.distances.standardise`.

    Notes
    -----
    The row of truth against truth compares halves of the data, of half the size of the main comparison: its values
    scatter more. It shows what the metric gives when nothing is wrong, in the same data.
    """
    options = options or ScorecardOptions()
    if min(len(data), len(generated)) < 40:
        raise EventsError(f"{len(data)} data and {len(generated)} generated events: a scorecard needs 40 of each")
    x, y = standardise(data, generated)
    x, y = (sample[rng.permutation(len(sample))[: options.largest]] for sample in (x, y))
    values, null = _measure(x, y, options, rng, options.permutations)
    half = len(x) // 2
    truth, _ = _measure(x[:half], x[half : 2 * half], options, rng, 0)
    return Scorecard(
        tuple(
            Metric(
                name,
                float(values[j]),
                float(null[:, j].mean()),
                float(null[:, j].std()),
                float((1 + np.sum(null[:, j] >= values[j])) / (1 + len(null))),
                float(truth[j]),
            )
            for j, name in enumerate(METRICS)
        )
    )


def _measure(
    x: FloatArray, y: FloatArray, options: ScorecardOptions, rng: np.random.Generator, permutations: int
) -> tuple[FloatArray, FloatArray]:
    """All metrics on two samples, shape (5,), and on permuted labels, shape (permutations, 5)."""
    pool = np.concatenate([x, y])
    labels = np.arange(len(pool)) < len(x)
    sliced = SlicedWasserstein(pool, random_directions(pool.shape[1], options.directions, rng=rng))
    n1, n0 = min(options.kernel_events, len(x)), min(options.kernel_events, len(y))
    few = np.concatenate([x[:n1], y[:n0]])
    few_labels = np.arange(n1 + n0) < n1
    distances = np.sqrt(np.sum((few[rng.permutation(len(few))] - few) ** 2, axis=1))
    grams = polynomial_gram(few), radial_gram(few, float(np.median(distances[distances > 0])))

    def simple(label: BoolArray) -> list[float]:
        a, b = pool[label], pool[~label]
        return [sliced(label), frechet_distance(a, b), float(separation(a, b).max())]

    shuffled = [rng.permutation(labels) for _ in range(permutations)]
    rows = np.array([simple(label) for label in [labels, *shuffled]])
    few_rows = np.stack([few_labels, *(rng.permutation(few_labels) for _ in range(permutations))])
    kernels = [kernel_statistics(gram, few_rows) for gram in grams]
    everything = np.column_stack([rows[:, 0], rows[:, 1], *kernels, rows[:, 2]])
    return everything[0], everything[1:]
