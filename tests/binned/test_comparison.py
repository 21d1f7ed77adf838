"""The unbinned result beside binned ones: rows, toys, notes, fitted distributions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gbistat.binned.binning import LOG_RATIO
from gbistat.binned.comparison import ComparisonOptions, compare_binned
from gbistat.binned.fit import binned_inference
from gbistat.binned.inference import gbistat_result
from gbistat.binned.load import load_workspace
from gbistat.binned.postfit import post_fit
from gbistat.binned.threshold import best_threshold
from gbistat.binned.twin import binned_results, binned_twin
from gbistat.data.events import Events
from gbistat.errors import ModelError, OptionError
from gbistat.fit.minimize import fit
from gbistat.likelihood.model import Model
from gbistat.likelihood.nll import ExtendedUnbinnedNLL
from gbistat.likelihood.reference import reference_from_pool, reference_from_quadrature

Maker = Callable[..., Events]


def test_rows(simple: Model, with_ratio: Callable[[Model], Model], make_events: Maker) -> None:
    model = with_ratio(simple)
    events = make_events(2000, 60)
    nll = ExtendedUnbinnedNLL(model, events)
    reference = reference_from_pool(model, make_events(5000, 0))
    twins, _ = binned_results(model, nll, events, reference)
    options = ComparisonOptions(bins=(2, 20), main_bins=200, toys=6)
    found = compare_binned(model, nll, events, reference, twins, options)
    names = [row.name for row in found.rows]
    assert names[0] == "pyhf, bump hunt, 20 bins in m_jj"
    assert names[1].endswith("bins in log_ratio")
    assert any(name.startswith("pyhf, cut and count, log_ratio > ") for name in names)
    main = next(row for row in found.rows if row.name == "200 bins in log_ratio" or row.result.n_bins > 150)
    summary = found.convergence
    assert main.result.value == pytest.approx(summary.estimate, abs=0.05 * summary.error)
    # What is left is the normalisation of the signal, and a note tells.
    ratio = fit(nll).value("mu") / summary.estimate
    assert ratio == pytest.approx(reference.normalisation, abs=0.1)
    assert any("integrates to" in note for note in found.notes)
    assert main.toys is not None
    assert main.toys.n_toys == 6
    assert abs(main.pull) < 5
    # The cut keeps most of what the ratio knows; the mass alone does not know it.
    cut = next(row for row in found.rows if "cut and count" in row.name)
    limits = [row.result.limit.expected[2] for row in (main, cut, found.rows[0])]
    assert limits == sorted(limits)
    assert [point.n_asked for point in found.convergence.points] == [2, 20, 200]
    assert {post.channel for post in found.post_fits} == {"m_jj", LOG_RATIO}
    document = found.rows[-1].to_dict()
    assert set(document) >= {"name", "fit", "limit", "significance", "toys", "pull"}
    assert found.to_dict()["toys"][0]["n_toys"] == 6


def test_without_features_only_the_mass_is_compared(simple: Model, make_events: Maker) -> None:
    events = make_events(2000, 30)
    nll = ExtendedUnbinnedNLL(simple, events)
    reference = reference_from_quadrature(simple)
    twins, _ = binned_results(simple, nll, events, reference)
    found = compare_binned(simple, nll, events, reference, twins, ComparisonOptions(toys=5))
    assert [row.name for row in found.rows] == ["pyhf, bump hunt, 20 bins in m_jj"]
    assert found.convergence is None
    assert found.toys == ()


def test_gbistat_and_pyhf_agree_on_a_twin(full: Model, make_events: Maker) -> None:
    twin = binned_twin(full, ExtendedUnbinnedNLL(full, events := make_events(2000, 40)), events, "m_jj")
    theirs = binned_inference(twin)
    ours = gbistat_result(load_workspace(twin.workspace).nll, observable="m_jj", n_bins=20)
    sigma = ours.error
    assert ours.value == pytest.approx(theirs.value, abs=1e-3 * sigma)
    assert ours.error == pytest.approx(theirs.error, rel=1e-3)
    np.testing.assert_allclose(ours.intervals[0].segments, theirs.intervals[0].segments, atol=1e-3 * sigma)
    np.testing.assert_allclose(
        [ours.limit.observed, *ours.limit.expected], [theirs.limit.observed, *theirs.limit.expected], rtol=1e-3
    )
    assert ours.discovery.z == pytest.approx(theirs.discovery.z, abs=1e-3)


def test_post_fit(simple: Model, make_events: Maker) -> None:
    events = make_events(2000, 40)
    twin = binned_twin(simple, ExtendedUnbinnedNLL(simple, events), events, "m_jj")
    loaded = load_workspace(twin.workspace)
    best = fit(loaded.nll)
    post = post_fit(loaded, "m_jj", twin.binning)
    theta = best.values[[loaded.nll.names.index(name) for name in loaded.term.names]]
    np.testing.assert_allclose(post.total, loaded.term.yields(theta), rtol=1e-12)
    np.testing.assert_allclose(post.samples["signal"], best.value("mu") * twin.samples["signal"], rtol=1e-9)
    np.testing.assert_allclose(post.pulls, (post.observed - post.total) / np.sqrt(post.total))
    # The total is known a little worse than by its own count, and not much: two parameters are almost free.
    assert 0.2 < np.sqrt((post.error**2).sum() / post.total.sum()) < 1.0
    with pytest.raises(ModelError, match="no channel 'mjj'; nearest names: m_jj"):
        post_fit(loaded, "mjj")


def test_threshold_of_a_step() -> None:
    """All signal above 1, background everywhere: the cut is where the signal begins."""
    rng = np.random.default_rng(5)
    values = rng.uniform(0.0, 2.0, 4000)
    background, signal = np.full(4000, 0.05), np.where(values > 1.0, 1.0, 0.0)
    cut = best_threshold(values, background, signal / signal.sum(), relative_error=0.0)
    assert cut == pytest.approx(1.0, abs=2e-3)
    # A background that is not known moves nothing here, but makes a ratio that rises with the value cut harder.
    rising = np.exp(4.0 * values)
    loose, hard = (
        best_threshold(values, background, rising / rising.sum(), relative_error=error) for error in (0.0, 1.0)
    )
    assert hard > loose
    with pytest.raises(ModelError, match="5 reference events are too few"):
        best_threshold(np.arange(5.0), np.ones(5), np.ones(5), relative_error=0.0)


@pytest.mark.parametrize("wrong", [{"toys": -1}, {"bins": ()}, {"bins": (1, 2)}, {"main_bins": 1}])
def test_options(wrong: dict) -> None:
    with pytest.raises(OptionError, match=r"toys|numbers of bins"):
        ComparisonOptions(**wrong)
