"""Error of the network on the masses themselves: q is the smallest of q' at the ratio's mass and the Gaussian between both."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gbistat.data.window import MassWindow
from gbistat.errors import ModelError
from gbistat.fit.build import build_analysis
from gbistat.fit.minimize import fit
from gbistat.fit.plane import PlaneSearch
from gbistat.inference.mass_profile import MirroredProfile, SearchedProfile
from gbistat.inference.profile import profile_interval
from gbistat.terms.signal_spec import MassScaleSpec

TRUTH = (440.0, 180.0)
SCALE = MassScaleSpec(absolute=6.0, relative=0.01)


class Symmetric:
    """A term whose masses may be exchanged."""

    def __init__(self, term):
        self.term, self.metadata, self.name = term, term.metadata, term.name

    def log_ratio(self, events, *, m_X, m_Y):
        one, two = (self.term.log_ratio(events, m_X=a, m_Y=b) for a, b in ((m_X, m_Y), (m_Y, m_X)))
        return np.logaddexp(one, two) - math.log(2.0)


def built(blob, term, scale, rng, n=(2000, 150, 4000)):
    events, pool = blob.spectrum(n[0], n[1], TRUTH, rng), blob.spectrum(n[2], 0, TRUTH, rng)
    spec = blob.spec()
    spec = spec.model_copy(update={"signal_": spec.signal.model_copy(update={"mass_scale": scale})})
    return build_analysis(spec, events, MassWindow(130.0, 150.0), terms={"blob": term}, pool=pool)


@pytest.fixture(scope="module")
def found(blob):
    """Analysis with errors of the mass scale, its best fit, and q' of the heavier mass on a fine grid inside its box."""
    analysis = built(blob, blob.term(), {"m_X": SCALE, "m_Y": SCALE}, np.random.default_rng(51))
    best, known = fit(analysis.nll), analysis.masses
    profile = SearchedProfile(analysis.nll, "m_X", known.search, best, known.basins)
    box = next(one for one in known.basins if one.covers(0, best.value("m_X")))
    grid = np.linspace(box.low[0], box.high[0], 81)
    return analysis, best, grid, np.array([profile.q(value) for value in grid])


def scaled(analysis, best, name="m_X"):
    known = analysis.masses
    return SearchedProfile(analysis.nll, name, known.search, best, known.basins, known.scale[name])


@pytest.mark.parametrize("errors", [-4.0, -1.7, -0.4, 0.0, 0.9, 2.2, 4.0])
def test_q_is_the_convolution_with_the_error_of_the_scale(found, errors):
    """Also where the tested mass lies outside the box with fine nodes, and the ratio's mass inside."""
    analysis, best, grid, q = found
    total = math.hypot(best.error("m_X"), SCALE.sigma(best.value("m_X")))
    value = best.value("m_X") + errors * total
    expected = (q + ((grid - value) / SCALE.sigma(value)) ** 2).min()
    assert scaled(analysis, best).q(value) == pytest.approx(expected, rel=0.01, abs=2e-3)


def test_conditional_fit_holds_the_mass_itself(found):
    analysis, best, *_ = found
    value = best.value("m_X") + 10.0
    result = scaled(analysis, best).conditional(value)
    assert result.value("m_X") == value
    assert "m_X" in result.fixed


def test_intervals_and_errors_add_both_in_quadrature(found):
    analysis, best, *_ = found
    sigma = SCALE.sigma(best.value("m_X"))
    error = best.error("m_X")
    total = math.hypot(error, sigma)
    with_both = analysis.masses.with_scale(best)
    assert with_both.error("m_X") == pytest.approx(total)
    assert with_both.error("mu") == pytest.approx(best.error("mu"))
    np.testing.assert_array_equal(with_both.values, best.values)
    for cl, width in ((0.6827, 1.0), (0.95, 1.96)):
        interval = profile_interval(analysis.nll, "m_X", cl=cl, profile=scaled(analysis, best))
        (low, high), *others = interval.segments
        assert not others
        assert high - low == pytest.approx(2 * width * total, rel=0.1)
    # The strength does not know of it.
    plain = SearchedProfile(analysis.nll, "mu", analysis.masses.search, best, analysis.masses.basins)
    interval = profile_interval(analysis.nll, "mu", cl=0.6827, profile=plain)
    assert interval.high - interval.low == pytest.approx(2 * best.error("mu"), rel=0.1)


def test_exchanged_masses_have_the_same_profile(blob):
    scale = {"m_X": SCALE, "m_Y": SCALE}
    analysis = built(blob, Symmetric(blob.term()), scale, np.random.default_rng(53), (1000, 100, 2000))
    assert analysis.masses.exchangeable
    best = fit(analysis.nll)
    first = scaled(analysis, best)
    second, direct = MirroredProfile(first, "m_Y"), scaled(analysis, best, "m_Y")
    value = best.value("m_Y") + 1.3 * best.error("m_Y")
    assert second.q(value) == pytest.approx(direct.q(value), abs=1e-3)
    assert second.conditional(value).value("m_Y") == value


def test_a_map_of_parabolas_gets_wider_in_quadrature():
    axes = tuple(np.linspace(middle - 20.0, middle + 20.0, 161) for middle in (300.0, 100.0))
    mesh = np.meshgrid(*axes, indexing="ij")
    q0 = 100.0 - ((mesh[0] - 300.0) / 4.0) ** 2 - ((mesh[1] - 100.0) / 2.0) ** 2
    search = PlaneSearch(("m_X", "m_Y"), axes, q0, np.broadcast_to(mesh[0], q0.shape), None)
    found = search.with_scale({"m_X": MassScaleSpec(absolute=3.0), "m_Y": MassScaleSpec(relative=0.02)})
    x, y = (axis[:, None] if k == 0 else axis for k, axis in enumerate(found.axes))
    expected = 100.0 - (x - 300.0) ** 2 / 25.0 - (y - 100.0) ** 2 / (4.0 + (0.02 * y) ** 2)
    inside = expected > 85.0
    np.testing.assert_allclose(found.q0[inside], expected[inside], atol=0.02)
    assert found.axes[0][-1] >= 329.0
    # The strength is that of the node which wins: from 300 to 306, 16/25 of the way.
    row = int(np.abs(found.axes[0] - 306.0).argmin())
    assert found.strength[row, found.axes[1].size // 2] == pytest.approx(300.0 + 6.0 * 16.0 / 25.0, abs=0.5)
    unmoved = search.with_scale({})
    assert unmoved.axes[0] is axes[0]
    np.testing.assert_array_equal(unmoved.q0, q0)


def test_a_scale_of_no_mass_is_refused(blob):
    message = r"signal\.mass_scale names 'm_x', on which no ratio of the signal depends; nearest names: m_"
    with pytest.raises(ModelError, match=message):
        built(blob, blob.term(), {"m_x": SCALE}, np.random.default_rng(52), (500, 30, 1000))


def test_masses_that_can_be_exchanged_have_the_same_scale(blob):
    with pytest.raises(ModelError, match="can be exchanged, so signal"):
        built(blob, Symmetric(blob.term()), {"m_X": SCALE}, np.random.default_rng(52), (500, 30, 1000))
