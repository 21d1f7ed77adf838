"""Cells of a pool: closed forms of what they lose, and how they are placed."""

from __future__ import annotations

import numpy as np
import pytest

from gbistat.inference.cells import make_cells


def brute_force_loss(scores, weights, labels):
    lost = np.zeros(scores.shape[0])
    for label in np.unique(labels):
        inside = labels == label
        mean = scores[:, inside] @ weights[inside] / weights[inside].sum()
        lost += ((scores[:, inside] - mean[:, None]) ** 2) @ weights[inside]
    return lost


@pytest.mark.parametrize("count", [1, 2, 8, 32])
def test_uniform_scores_lose_one_over_twelve_k_squared(count):
    n = 2**14
    scores = ((np.arange(n) + 0.5) / n)[None]
    cells = make_cells(scores, np.full(n, 1.0 / n), tolerance=np.zeros(1), max_cells=count)
    assert cells.count == count
    assert cells.loss[0] == pytest.approx((1 - 1 / (n / count) ** 2) / (12 * count**2), rel=1e-9)
    assert np.bincount(cells.labels).tolist() == [n // count] * count


def test_loss_is_that_of_the_labels_in_several_dimensions():
    rng = np.random.default_rng(1)
    scores, weights = rng.normal(size=(3, 4000)), rng.exponential(size=4000)
    cells = make_cells(scores, weights, tolerance=np.array([100.0, np.inf, 100.0]), max_cells=5000)
    assert cells.loss == pytest.approx(brute_force_loss(scores, weights, cells.labels))
    assert cells.loss[0] <= 100.0
    assert cells.loss[2] <= 100.0


def test_gaussian_scores_are_near_the_best_quantiser():
    # The best 16 levels for a Gaussian lose 0.009497 of its variance (J. Max, IRE Trans. Inf. Theory 6 (1960) 7).
    from scipy.special import ndtri

    n = 40_001
    scores = ndtri((np.arange(n) + 0.5) / n)[None]
    cells = make_cells(scores, np.full(n, 1.0 / n), tolerance=np.zeros(1), max_cells=16)
    assert 0.0094 < cells.loss[0] < 1.35 * 0.009497


def test_stops_at_the_tolerance_and_orders_cells():
    scores = np.random.default_rng(2).exponential(size=(1, 5000))
    weights = np.full(5000, 1 / 5000)
    cells = make_cells(scores, weights, tolerance=np.array([1e-3]), max_cells=1000)
    fewer = make_cells(scores, weights, tolerance=np.zeros(1), max_cells=cells.count - 1)
    assert cells.loss[0] <= 1e-3 < fewer.loss[0]
    means = np.bincount(cells.labels, scores[0]) / np.bincount(cells.labels)
    assert (np.diff(means) > 0).all()


def test_equal_points_are_one_cell():
    cells = make_cells(np.ones((2, 50)), np.ones(50), tolerance=np.zeros(2), max_cells=10)
    assert cells.count == 1
    assert cells.loss.tolist() == [0.0, 0.0]


def test_points_without_weight_do_no_harm():
    scores = np.array([[0.0, 1.0, 5.0, 7.0]])
    cells = make_cells(scores, np.array([1.0, 1.0, 0.0, 0.0]), tolerance=np.zeros(1), max_cells=10)
    assert cells.loss[0] == pytest.approx(0.0)
    assert cells.labels[0] != cells.labels[1]
