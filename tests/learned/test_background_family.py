"""Composite nulls: their corners are densities, and hold what they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import xlogy

from gbistat.errors import EventsError, OptionError
from gbistat.inference.background_family import BackgroundFamily, FeatureTilts, describe, ensemble_directions
from gbistat.inference.mixture_weights import maximise_mixture

P = np.array([[0.5, 0.3, 0.2], [0.4, 0.3, 0.3], [0.6, 0.3, 0.1]])
MEAN = P.mean(axis=0)


def test_corners_of_an_ensemble_are_its_members_and_their_mixtures_hold_the_mean():
    corners = BackgroundFamily(1.0, 0.0).log_corners(ensemble_directions(np.log(P)), None, None, n=3)
    np.testing.assert_allclose(np.exp(corners) * MEAN, np.vstack([MEAN, P]), rtol=1e-12)


def test_every_corner_is_normalised_unless_it_is_cut_at_zero():
    members, mass = ensemble_directions(np.log(P)), np.log(np.array([[1.1, 1.0, 0.75], [0.9, 1.0, 1.25]]))
    tilts = np.array([[1.0, -1.0, -1.0]])  # mean 0 under the mean density
    corners = BackgroundFamily(0.5, 1.0, 0.1).log_corners(members, mass, tilts, n=3)
    assert corners.shape == (1 + 3 + 2 + 2, 3)
    np.testing.assert_allclose((np.exp(corners) * MEAN).sum(axis=1), 1.0, atol=1e-12)
    cut = BackgroundFamily(5.0, 0.0).log_corners(members, None, None, n=3)
    assert np.all((np.exp(cut) * MEAN).sum(axis=1) >= 1.0 - 1e-12)
    assert np.isneginf(cut).any()


def test_mixtures_of_corners_hold_two_sources_at_once():
    """The best mixture describes counts that have one member's features and a tilt, to all digits."""
    members, tilts = ensemble_directions(np.log(P)), np.array([[1.0, -1.0, -1.0]])
    corners = BackgroundFamily(1.0, 0.0, 0.1).log_corners(members, None, tilts, n=3)
    truth = MEAN * (1.0 + np.expm1(members[1]) + 0.1 * tilts[0])
    counts = np.round(1e5 * truth).astype(int)
    best = maximise_mixture(np.repeat(corners, counts, axis=1), tolerance=1e-6)
    perfect = xlogy(counts, counts / counts.sum() / MEAN).sum()
    assert best.value == pytest.approx(perfect, abs=1e-3)


def test_tilts_have_mean_zero_and_size_at_most_one():
    rng = np.random.default_rng(1)
    tilts = FeatureTilts.of(rng.normal(size=(200_000, 2)) ** 3, 4)
    values = tilts(rng.normal(size=(50_000, 2)) ** 3)
    assert values.shape == (8, 50_000)
    assert np.abs(values).max() <= 1.0
    # Standard error 1/sqrt(3 * 50,000) at most, and that of the reference; five of them.
    assert np.abs(values.mean(axis=1)).max() < 5 * np.sqrt(1 / 150_000 + 1 / 600_000)


def test_words():
    assert describe(BackgroundFamily(0.0, 0.0), (5, 3, 4)) == "the mean of the generator's members alone"
    text = describe(BackgroundFamily(2.0, 3.0, 0.05), (5, 3, 4))
    assert "5 members of the generator, 2 times as far" in text
    assert "up to 5 % (degree 4)" in text


def test_errors():
    with pytest.raises(OptionError, match="nothing may be negative, the tilt must be below 1"):
        BackgroundFamily(tilt=1.0)
    with pytest.raises(EventsError, match="1 of 2 events have density 0 in every member"):
        ensemble_directions(np.array([[0.0, -np.inf], [0.0, -np.inf]]))
    with pytest.raises(EventsError, match="10 reference events; tilts need 1000"):
        FeatureTilts.of(np.zeros((10, 1)), 2)
