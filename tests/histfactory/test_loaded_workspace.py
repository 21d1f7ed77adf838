"""A HistFactory workspace in gbistat: counts, likelihood, derivatives, and inference as pyhf has them."""

from __future__ import annotations

import jacobi
import numpy as np
import pytest

from gbistat.binned.load import load_workspace
from gbistat.errors import ModelError, ParameterError
from gbistat.fit.minimize import fit
from gbistat.inference.discovery import discovery
from gbistat.inference.limits import AsymptoticCLs, upper_limit
from gbistat.inference.profile import Profile, profile_interval
from gbistat.inference.qstats import TestStatistics
from gbistat.likelihood.constraints import PoissonConstraint
from gbistat.likelihood.nll import ExtendedUnbinnedNLL
from gbistat.likelihood.reference import reference_from_data

CLOSE = 1e-3


def hello_world(observed: tuple[float, float] = (51.0, 48.0)) -> dict:
    """The model of pyhf's README."""
    samples = [
        {"name": "signal", "data": [12.0, 11.0], "modifiers": [{"name": "mu", "type": "normfactor", "data": None}]},
        {
            "name": "background",
            "data": [50.0, 52.0],
            "modifiers": [{"name": "uncorr_bkguncrt", "type": "shapesys", "data": [3.0, 7.0]}],
        },
    ]
    return {
        "channels": [{"name": "singlechannel", "samples": samples}],
        "observations": [{"name": "singlechannel", "data": list(observed)}],
        "measurements": [{"name": "Measurement", "config": {"poi": "mu", "parameters": []}}],
        "version": "1.0.0",
    }


def test_counts_are_those_of_pyhf(every_modifier, in_pyhf, rng):
    loaded = load_workspace(every_modifier)
    twin = in_pyhf(loaded)
    low, high = np.array(twin.model.config.suggested_bounds()).T
    place = [loaded.nll.names.index(name) for name in loaded.term.names]
    for _ in range(20):
        parameters = np.array(twin.model.config.suggested_init()) + rng.normal(scale=0.8, size=twin.model.config.npars)
        parameters = np.clip(parameters, np.maximum(low, -3.0), np.minimum(high, 3.0))
        theta = twin.theta(parameters)
        np.testing.assert_allclose(
            loaded.term.yields(theta[place]), twin.model.expected_actualdata(parameters), rtol=1e-12
        )


def test_likelihood_is_that_of_pyhf(every_modifier, in_pyhf, rng):
    loaded = load_workspace(every_modifier)
    twin = in_pyhf(loaded)
    start = np.array(twin.model.config.suggested_init())
    offset = loaded.nll.value(twin.theta(start)) + float(twin.model.logpdf(start, twin.data)[0])
    for _ in range(10):
        moved = np.clip(start + rng.normal(scale=0.2, size=start.size), 0.6, 1.45)
        # pyhf measures parameters that have no error with an error of 1, and holds them.
        parameters = np.where(twin.model.config.suggested_fixed(), start, moved)
        ours = loaded.nll.value(twin.theta(parameters)) - offset
        assert ours == pytest.approx(-float(twin.model.logpdf(parameters, twin.data)[0]), abs=1e-9)


@pytest.mark.parametrize("mu", [0.0, 1.3])
def test_derivatives(every_modifier, rng, mu):
    nll = load_workspace(every_modifier).nll
    theta = nll.start_vector() + rng.normal(scale=0.1, size=nll.npar)
    theta[nll.names.index("mu")] = mu
    result = nll.evaluate(theta)
    gradient, _ = jacobi.jacobi(lambda x: nll.value(x), theta)
    hessian, _ = jacobi.jacobi(lambda x: nll.evaluate(x).gradient, theta)
    np.testing.assert_allclose(result.gradient, gradient, rtol=1e-6, atol=1e-6 * np.abs(gradient).max())
    np.testing.assert_allclose(result.hessian, hessian, rtol=1e-6, atol=1e-7 * np.abs(hessian).max())


def test_second_derivative_where_two_factors_are_zero(workspace):
    modifiers = [{"name": n, "type": "normfactor", "data": None} for n in ("mu", "kappa")]
    samples = [
        {"name": "signal", "data": [7.0], "modifiers": modifiers},
        {"name": "background", "data": [5.0], "modifiers": []},
    ]
    nll = load_workspace(workspace([{"name": "SR", "samples": samples}], {"SR": [8.0]})).nll
    # 7 mu kappa + 5 - 8 ln(7 mu kappa + 5): the mixed derivative at 0 is 7 (1 - 8 / 5).
    hessian = nll.evaluate(np.zeros(2)).hessian
    np.testing.assert_allclose(hessian, [[0.0, -4.2], [-4.2, 0.0]], atol=1e-12)


def test_the_numbers_in_the_documentation_of_pyhf():
    loaded = load_workspace(hello_world())
    point = AsymptoticCLs(loaded.nll, ()).point(1.0)
    # pyhf's README (bounded fits by SLSQP, to about 1e-4)
    assert point.observed == pytest.approx(0.05251497423736956, abs=1e-4)
    expected = [0.00260626, 0.01382005, 0.06445320, 0.23525644, 0.57303620]
    np.testing.assert_allclose(point.expected, expected, atol=1e-4)


@pytest.mark.parametrize("which", ["every", "hello", "many"])
def test_inference_is_that_of_pyhf(which, every_modifier, many_nuisances, in_pyhf):
    source = {"every": every_modifier, "hello": hello_world((60.0, 66.0)), "many": many_nuisances(30, 12, signal=0.7)}[
        which
    ]
    loaded = load_workspace(source)
    nll, twin = loaded.nll, in_pyhf(loaded)
    best = fit(nll).raise_if_invalid()
    statistics = TestStatistics(nll, nll.poi, best)

    def fits(pyhf):
        values = pyhf.infer.mle.fit(twin.data, twin.model, return_uncertainties=True)
        return np.asarray(values), {
            name: float(getattr(pyhf.infer.test_statistics, name)(mu, twin.data, twin.model, *settings))
            for name, mu in (("qmu_tilde", 2.0), ("q0", 0.0), ("tmu_tilde", 1.0))
        }

    config = twin.model.config
    settings = (config.suggested_init(), config.suggested_bounds(), config.suggested_fixed())
    table, q = twin.run(fits)
    theirs = twin.theta(table[:, 0])
    assert best.value(nll.poi) > 0  # where pyhf's bound at 0 does not matter
    pull = np.abs(best.values - theirs) / np.where(best.errors > 0, best.errors, 1.0)
    assert pull.max() < CLOSE
    index = nll.names.index(nll.poi)
    assert best.errors[index] == pytest.approx(table[config.poi_index, 1], rel=CLOSE)
    assert statistics.qmu_tilde(2.0) == pytest.approx(q["qmu_tilde"], abs=CLOSE)
    assert statistics.q0() == pytest.approx(q["q0"], abs=CLOSE)
    point = AsymptoticCLs(nll, (), best=best).point(2.0)
    np.testing.assert_allclose([point.observed, *point.expected], twin.cls(2.0), atol=CLOSE, rtol=CLOSE)


def test_a_limit_has_cls_of_5_percent_in_pyhf(every_modifier, in_pyhf):
    loaded = load_workspace(every_modifier)
    limit = upper_limit(loaded.nll)
    twin = in_pyhf(loaded)
    assert twin.cls(limit.observed)[0] == pytest.approx(0.05, abs=1e-4)
    assert twin.cls(limit.expected[2])[3] == pytest.approx(0.05, abs=1e-4)


@pytest.mark.parametrize(
    ("region", "patch", "mu"),
    [
        ("RegionA", "sbottom_1300_850_60", 1.0),
        ("RegionB", "sbottom_1000_330_200", 2.0),
    ],
)
def test_a_published_search(published, in_pyhf, region, patch, mu):
    source, operations = published(region, patch)
    loaded = load_workspace(source, patch=operations)
    point = AsymptoticCLs(loaded.nll, ()).point(mu)
    np.testing.assert_allclose([point.observed, *point.expected], in_pyhf(loaded).cls(mu), atol=1e-4)


def test_a_background_only_workspace(published):
    """It has a parameter of interest that no sample knows yet."""
    source, _ = published("RegionB", "sbottom_1000_330_200")
    with pytest.raises(ModelError, match="without any signal yet, load it with signal=False"):
        load_workspace(source)
    loaded = load_workspace(source, signal=False)
    assert loaded.nll.poi == "mu_SIG"
    assert "mu_SIG" not in loaded.nll.names
    assert fit(loaded.nll).valid


def test_intervals_and_discovery_of_one_bin(counting):
    """Closed forms of a counting experiment: 30 events on 20, signal 10 at mu = 1."""
    nll = load_workspace(counting(10.0, 20.0, 30.0)).nll
    q0 = 2 * (30 * np.log(30 / 20) - 10)
    assert discovery(nll).q0 == pytest.approx(q0, rel=1e-9)
    interval = profile_interval(nll, "mu", cl=0.6827)

    def q(mu):
        rate = 20 + 10 * mu
        return 2 * (rate - 30 - 30 * np.log(rate / 30))

    assert q(interval.low) == pytest.approx(1.0, abs=1e-4)
    assert q(interval.high) == pytest.approx(1.0, abs=1e-4)


def test_a_negative_signal_stops_before_a_bin_expects_nothing(counting):
    best = fit(load_workspace(counting(10.0, 20.0, 0.0)).nll)
    assert best.valid
    assert best.value("mu") == pytest.approx(-0.98 * 2.0)
    assert best.at_bound == ("mu",)
    free = fit(load_workspace(counting(10.0, 20.0, 13.0)).nll)
    assert free.value("mu") == pytest.approx(-0.7, abs=1e-6)


def test_a_control_region_joins_an_unbinned_signal_region(workspace):
    """One bin that counts n_bkg / 4 is the same as a Poisson constraint."""
    sample = {"name": "b", "data": [0.25], "modifiers": [{"name": "n_bkg", "type": "normfactor", "data": None}]}
    parameters = [{"name": "n_bkg", "inits": [50.0], "bounds": [[0.0, 1e4]]}]
    control = load_workspace(
        workspace([{"name": "CR", "samples": [sample]}], {"CR": [14.0]}, poi="", parameters=parameters)
    )
    signal_region = ExtendedUnbinnedNLL.from_log_ratio(np.log([0.1, 0.4, 30.0, 0.2, 12.0, *[0.3] * 50]))
    joined = signal_region + control.nll
    reference = signal_region.with_constraint(PoissonConstraint("n_bkg", 14.0, 0.25))
    assert joined.names == ("mu", "n_bkg")
    ours, theirs = fit(joined), fit(reference)
    np.testing.assert_allclose(ours.values, theirs.values, rtol=1e-7)
    np.testing.assert_allclose(ours.covariance, theirs.covariance, rtol=1e-6)
    first, second = (profile_interval(nll, "mu", cl=0.95).segments for nll in (joined, reference))
    np.testing.assert_allclose(first, second, rtol=1e-5)


def test_minima_on_both_sides_of_a_nuisance(workspace):
    """A template that moves up for either sign of its nuisance: the conditional fit finds the lower minimum, wherever it begins."""
    one_sided = {"hi_data": [130.0, 104.0], "lo_data": [130.0, 99.0]}
    samples = [
        {"name": "signal", "data": [1.0, 20.0], "modifiers": [{"name": "mu", "type": "normfactor", "data": None}]},
        {
            "name": "background",
            "data": [100.0, 100.0],
            "modifiers": [{"name": "a", "type": "histosys", "data": one_sided}],
        },
    ]
    nll = load_workspace(workspace([{"name": "SR", "samples": samples}], {"SR": [128.0, 108.0]})).nll
    assert nll.unfolded(nll.start_vector(a=2.0)).tolist() == nll.start_vector().tolist()
    sides = [fit(nll, fixed={"mu": 0.1}, start=nll.start_vector(a=a, mu=0.1)) for a in (-1.0, 1.0)]
    assert sides[0].value("a") < 0 < sides[1].value("a")
    assert sides[1].nll < sides[0].nll - 0.05
    wrong = fit(nll, start=nll.start_vector(a=-1.0))
    assert wrong.value("a") < 0
    assert Profile(nll, "mu", wrong).conditional(0.1).nll == pytest.approx(sides[1].nll, abs=1e-8)


def test_every_method_runs_on_joined_data(workspace):
    """Limits and significance of an unbinned signal region with a binned control region: the region narrows the background."""
    sample = {"name": "b", "data": [4.0], "modifiers": [{"name": "n_bkg", "type": "normfactor", "data": None}]}
    parameters = [{"name": "n_bkg", "inits": [60.0], "bounds": [[0.0, 1e4]]}]
    control = load_workspace(
        workspace([{"name": "CR", "samples": [sample]}], {"CR": [200.0]}, poi="", parameters=parameters)
    )
    rng = np.random.default_rng(3)
    signal_region = ExtendedUnbinnedNLL.from_log_ratio(np.r_[rng.normal(-1.0, 1.0, 50), [2.5, 3.0, 2.8]])
    joined = signal_region + control.nll
    alone, both = (upper_limit(nll, reference_from_data(nll, fit(nll).values)) for nll in (signal_region, joined))
    assert both.expected[2] < alone.expected[2]
    assert discovery(joined).z > 0


def test_a_shared_nuisance_is_measured_once(every_modifier):
    alone = load_workspace(every_modifier)
    bare = load_workspace(every_modifier, measured_elsewhere=["theory"], rename={"k top": "k_ttbar"})
    assert "k_ttbar" in bare.nll.names
    theta = alone.nll.start_vector(theory=1.5)
    assert alone.nll.value(theta) - bare.nll.value(theta) == pytest.approx(0.5 * 1.5**2)
    with pytest.raises(ModelError, match="'theory_x' has no auxiliary measurement; nearest names: theory"):
        load_workspace(every_modifier, measured_elsewhere=["theory_x"])


def test_names_become_identifiers(every_modifier):
    labels = load_workspace(every_modifier).labels
    assert labels["data driven[1]"] == "data_driven_1"
    assert labels["k top"] == "k_top"


def test_another_parameter_of_interest(every_modifier):
    loaded = load_workspace(every_modifier, poi="k top")
    assert loaded.nll.poi == "k_top"
    assert profile_interval(loaded.nll, "k_top").low > 0
    with pytest.raises(ParameterError, match="there is no parameter 'nu'"):
        profile_interval(loaded.nll, "nu")


def test_expected_counts_by_channel(every_modifier):
    loaded = load_workspace(every_modifier)
    place = [loaded.nll.names.index(name) for name in loaded.term.names]
    counts = loaded.expected(loaded.nll.start_vector()[place], "QCD")
    np.testing.assert_allclose(counts, [120.0, 114.0])
    with pytest.raises(ModelError, match="no channel 'QDC'; nearest names: QCD"):
        loaded.expected(loaded.nll.start_vector(), "QDC")
