"""pyhf's numbers for binned twins, against closed forms, pyhf on its own, and the unbinned likelihood."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyhf
import pytest
from click.testing import CliRunner
from pyhf.cli.cli import pyhf as pyhf_cli
from scipy.optimize import brentq
from scipy.stats import norm

from gbistat.binned.binning import mass_binning
from gbistat.binned.fit import binned_inference
from gbistat.binned.observables import log_ratio_binning
from gbistat.binned.results import BinnedResult
from gbistat.binned.twin import binned_results, binned_twin
from gbistat.binned.workspace import to_pyhf
from gbistat.data.events import Events
from gbistat.data.window import MassWindow
from gbistat.errors import FitFailed, ModelError, OptionError
from gbistat.fit.minimize import fit
from gbistat.inference.asymptotics import cls_expected, cls_observed
from gbistat.inference.discovery import discovery
from gbistat.inference.limits import upper_limit
from gbistat.inference.profile import profile_interval
from gbistat.likelihood.components import Component, MassFactor, Yield
from gbistat.likelihood.constraints import NormalConstraint, PoissonConstraint
from gbistat.likelihood.mixture import Mixture
from gbistat.likelihood.model import Model
from gbistat.likelihood.nll import ExtendedUnbinnedNLL
from gbistat.likelihood.parameters import Parameter
from gbistat.likelihood.reference import Reference, reference_from_data, reference_from_pool, reference_from_quadrature
from gbistat.terms.density import MassDensity
from gbistat.terms.shapes.gaussian import Gaussian

Maker = Callable[..., Events]
Changer = Callable[[Model], Model]
Tilter = Callable[[Model, Events, float], Model]

# pyhf 0.7 validates with a class that jsonschema has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:jsonschema.RefResolver is deprecated:DeprecationWarning")
WINDOW = MassWindow(3300.0, 3700.0)
BINS = mass_binning(WINDOW)


def agree(result: BinnedResult, nll: ExtendedUnbinnedNLL, reference: Reference, *, rel: float, sigmas: float) -> None:
    """Limits agree to a relative, estimates and interval ends to a part of the error."""
    best = fit(nll)
    error = best.error("mu")
    limit = upper_limit(nll, reference, best=best)
    assert abs(result.value - best.value("mu")) < sigmas * error
    assert result.error == pytest.approx(error, rel=rel)
    assert result.limit.observed == pytest.approx(limit.observed, rel=rel)
    assert result.limit.expected == pytest.approx(limit.expected, rel=rel)
    for interval in result.intervals:
        ends = profile_interval(nll, "mu", cl=interval.cl, best=best)
        assert (interval.low, interval.high) == pytest.approx((ends.low, ends.high), abs=sigmas * error)
    assert result.discovery.z == pytest.approx(discovery(nll, best=best).z, abs=sigmas)


def test_counting_experiment(falling: MassDensity, peak: MassDensity, make_events: Maker) -> None:
    """One bin, known background b, n observed: every number has a closed form."""
    b, n = 100.0, 110
    background = MassDensity.fixed(falling.shape, falling.domain, [0.002])
    model = Model(
        (
            Component("signal", Yield({"mu": 1.0}), (MassFactor(peak),)),
            Component("background", Yield(constant=b), (MassFactor(background),)),
        ),
        (Parameter("mu", 0.0),),
        window=WINDOW,
    )
    result = binned_inference(to_pyhf(model, make_events(n, 0), mass_binning(WINDOW, n_bins=1)))
    assert result.value == pytest.approx(10.0, abs=1e-3)
    assert result.error == pytest.approx(math.sqrt(n), rel=1e-5)
    assert result.discovery.q0 == pytest.approx(2.0 * (n * math.log(n / b) - (n - b)), rel=1e-5)
    assert result.discovery.p0 == pytest.approx(norm.sf(result.discovery.z))

    def q(mu: float, count: float) -> float:
        best = max(count - b, 0.0)
        return 0.0 if best > mu else 2.0 * (mu - best - count * math.log((mu + b) / (best + b)))

    def excess(mu: float, k: int) -> float:
        expected = cls_expected(q(mu, b))
        return (cls_observed(q(mu, n), q(mu, b))[2] if k == 0 else expected[k - 1]) - 0.05

    limits = [brentq(excess, 11.0 if k == 0 else 1.0, 100.0, args=(k,)) for k in range(6)]
    assert result.limit.observed == pytest.approx(limits[0], rel=2e-5)
    assert result.limit.expected == pytest.approx(limits[1:], rel=2e-5)
    low, high = (
        brentq(lambda mu: 2.0 * (mu - 10.0 - n * math.log((mu + b) / n)) - 3.841459, *ends)
        for ends in ((-50.0, 10.0), (10.0, 100.0))
    )
    assert (result.intervals[1].low, result.intervals[1].high) == pytest.approx((low, high), abs=1e-3)


@pytest.mark.parametrize("yield_", ["sideband", "free", "poisson"])
def test_fine_mass_bins_converge_to_the_unbinned_result(simple: Model, make_events: Maker, yield_: str) -> None:
    slope = NormalConstraint("slope", 0.002, 1e-4)
    constraints = {
        "sideband": simple.constraints,
        "free": (slope,),
        "poisson": (slope, PoissonConstraint("n_bkg", 4030.0, 2.0)),
    }
    model = replace(simple, constraints=constraints[yield_])
    events = make_events(1980, 60)
    nll = ExtendedUnbinnedNLL(model, events)
    result = binned_inference(to_pyhf(model, events, mass_binning(WINDOW, n_bins=400)))
    agree(result, nll, reference_from_quadrature(model), rel=2e-3, sigmas=0.02)


def test_all_nuisances_converge(full: Model, make_events: Maker) -> None:
    """Non-linear effects of several nuisances combine differently in HistFactory: a little less precise."""
    events = make_events(1980, 100)
    nll = ExtendedUnbinnedNLL(full, events)
    result = binned_inference(to_pyhf(full, events, mass_binning(WINDOW, n_bins=200)))
    agree(result, nll, reference_from_quadrature(full), rel=8e-3, sigmas=0.02)


def test_a_tilt_weakens_both_alike(simple: Model, falling: MassDensity, with_tilt: Tilter, make_events: Maker) -> None:
    """A spurious signal of one statistical error, as a tilt: the same loss, binned and unbinned."""
    events = make_events(1980, 60)
    mass = 3300.0 + 400.0 * (np.arange(20_000) + 0.5) / 20_000
    grid = Events(mass=mass)
    model = with_tilt(simple, replace(grid, weights=np.exp(falling.log_prob(mass, [0.002]))), 37.0)
    nll = ExtendedUnbinnedNLL(model, events)
    # Midpoints integrate exactly enough: a pool would have statistical errors of its own.
    points = Mixture.of(model, grid, nll.start_vector())
    reference = Reference(points, np.full(20_000, 0.02), "quadrature", math.inf, 1.0, grid)
    result = binned_inference(to_pyhf(model, events, mass_binning(WINDOW, n_bins=200), reference=reference))
    agree(result, nll, reference, rel=0.01, sigmas=0.05)
    without = binned_inference(to_pyhf(simple, events, BINS))
    assert result.limit.expected[2] > 1.1 * without.limit.expected[2]


def test_twenty_mass_bins_lose_little(simple: Model, make_events: Maker) -> None:
    """A width of 60 GeV in bins of 20 GeV: below 1 % of the median expected limit, and never better than unbinned."""
    events = make_events(1980, 60)
    nll = ExtendedUnbinnedNLL(simple, events)
    unbinned = upper_limit(nll, reference_from_quadrature(simple))
    binned = binned_inference(to_pyhf(simple, events, BINS))
    assert 1.0 <= binned.limit.expected[2] / unbinned.expected[2] < 1.01


def test_log_ratio_converges_to_the_unbinned_result(simple: Model, make_events: Maker) -> None:
    """With a known background shape the log ratio is sufficient: nothing is lost but the width of the bins."""
    model = replace(
        simple,
        parameters=(*simple.parameters[:2], replace(simple.parameters[2], fixed=True)),
        constraints=(NormalConstraint("n_bkg", 2000.0, 40.0),),
    )
    events = make_events(1980, 60)
    nll = ExtendedUnbinnedNLL(model, events)
    reference = reference_from_quadrature(model)
    bins = log_ratio_binning(model, reference, n_bins=200, min_background=1.0)
    result = binned_inference(to_pyhf(model, events, bins, reference=reference, mixture=nll.mixture))
    agree(result, nll, reference, rel=5e-3, sigmas=0.05)


def test_log_ratio_of_a_network(simple: Model, with_ratio: Changer, make_events: Maker) -> None:
    """A large pool, 25 bins with their statistical errors: the expected limit is 2 % above the unbinned one at most."""
    model = with_ratio(simple)
    events = make_events(1990, 30)
    nll = ExtendedUnbinnedNLL(model, events)
    reference = reference_from_pool(model, make_events(200_000, 0))
    bins = log_ratio_binning(model, reference, n_bins=25)
    result = binned_inference(to_pyhf(model, events, bins, reference=reference, mixture=nll.mixture))
    best = fit(nll)
    unbinned = upper_limit(nll, reference, best=best)
    assert 0.995 < result.limit.expected[2] / unbinned.expected[2] < 1.02
    # Bins with 5 expected background events are wide where the signal is: 0.3 sigma is twice the spread over seeds.
    assert abs(result.value - best.value("mu")) < 0.3 * best.error("mu")
    in_mass = binned_inference(to_pyhf(model, events, BINS))
    assert in_mass.limit.expected[2] > 2.0 * result.limit.expected[2]


def test_pyhf_on_its_own_finds_the_same(full: Model, make_events: Maker, tmp_path: Path) -> None:
    """CLs is 0.05 at the limits for pyhf's own optimiser, in Python and at the command line."""
    events = make_events(1980, 60)
    twin = to_pyhf(full, events, BINS)
    result = binned_inference(twin)
    workspace = pyhf.Workspace(json.loads(json.dumps(twin.workspace)))
    model = workspace.model()
    data = workspace.data(model)
    before = pyhf.get_backend()
    pyhf.set_backend("numpy", "minuit")
    try:
        for k, mu in enumerate((result.limit.observed, *result.limit.expected)):
            observed, expected = pyhf.infer.hypotest(mu, data, model, test_stat="qtilde", return_expected_set=True)
            assert float((observed, *expected)[k]) == pytest.approx(0.05, abs=2e-4)
        bounds = model.config.suggested_bounds()
        bounds[model.config.poi_index] = (-100.0, bounds[model.config.poi_index][1])
        table = pyhf.infer.mle.fit(data, model, par_bounds=bounds, return_uncertainties=True)
        value, error = np.asarray(table)[model.config.poi_index]
        assert result.value == pytest.approx(value, abs=0.005 * error)
        assert result.error == pytest.approx(error, rel=0.01)
    finally:
        pyhf.set_backend(*before)
    path = tmp_path / "workspace.json"
    path.write_text(json.dumps(twin.workspace))
    arguments = ["cls", str(path), "--test-poi", str(result.limit.observed), "--optimizer", "minuit"]
    try:
        answer = CliRunner().invoke(pyhf_cli, arguments)
    finally:
        pyhf.set_backend(*before)
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout)["CLs_obs"] == pytest.approx(0.05, abs=2e-4)


def test_optimizers_agree(simple: Model, make_events: Maker) -> None:
    twin = to_pyhf(simple, make_events(1980, 60), mass_binning(WINDOW, n_bins=8))
    newton, minuit = (binned_inference(twin, optimizer=name) for name in ("newton", "minuit"))
    assert newton.value == pytest.approx(minuit.value, abs=0.005 * minuit.error)
    assert newton.error == pytest.approx(minuit.error, rel=5e-3)
    assert newton.limit.observed == pytest.approx(minuit.limit.observed, rel=5e-4)
    assert newton.limit.expected == pytest.approx(minuit.limit.expected, rel=5e-4)


def test_any_workspace_is_welcome() -> None:
    model = pyhf.simplemodels.uncorrelated_background(signal=[12.0, 11.0], bkg=[50.0, 52.0], bkg_uncertainty=[3.0, 7.0])
    workspace = dict(pyhf.Workspace.build(model, [51.0, 48.0, *model.config.auxdata]))
    result = binned_inference(workspace)
    assert (result.observable, result.n_bins, result.poi) == ("singlechannel", 2, "mu")
    cls = float(pyhf.infer.hypotest(result.limit.observed, [51.0, 48.0, *model.config.auxdata], model))
    assert cls == pytest.approx(0.05, abs=2e-4)
    with pytest.raises(ModelError, match="pyhf does not accept the workspace"):
        binned_inference({"channels": []})


def test_a_deficit_has_a_negative_estimate(simple: Model, make_events: Maker) -> None:
    """The fit goes below 0 as the unbinned one does; the limit is that of qmu_tilde."""
    events = make_events(2000, 0)
    far = events.select((np.abs(events.mass - 3500.0) > 50.0) | (np.arange(len(events)) % 5 > 0))
    nll = ExtendedUnbinnedNLL(simple, far)
    result = binned_inference(to_pyhf(simple, far, mass_binning(WINDOW, n_bins=400)))
    assert result.value < -2.0 * result.error
    assert result.discovery.z == 0.0
    assert result.discovery.p0 == 0.5
    agree(result, nll, reference_from_quadrature(simple), rel=4e-3, sigmas=0.02)


def test_no_events_at_all(simple: Model, make_events: Maker) -> None:
    """Known background of 3 events and none seen: the estimate stops at the wall, the limit is that of a count of 0."""
    mu, n_bkg, slope = simple.parameters
    model = replace(
        simple, parameters=(mu, replace(n_bkg, start=3.0, fixed=True), replace(slope, fixed=True)), constraints=()
    )
    none = make_events(5, 0).select(np.zeros(5, dtype=bool))
    result = binned_inference(to_pyhf(model, none, BINS))
    assert result.value < 0.0
    assert any("stopped at" in note for note in result.notes)
    assert any("no lower end" in note for note in result.notes)
    assert result.intervals[0].low is None

    # With n = 0 all shapes drop out of the data's q = 2 mu.
    def q_asimov(mu: float) -> float:
        weights = np.array(binned.samples["signal"]), np.array(binned.samples["background"])
        return float(2.0 * (mu - (weights[1] * np.log1p(mu * weights[0] / weights[1])).sum()))

    binned = to_pyhf(model, none, BINS)
    root = brentq(lambda mu: cls_observed(2.0 * mu, q_asimov(mu))[2] - 0.05, 0.5, 20.0)
    assert result.limit.observed == pytest.approx(root, rel=1e-4)


def test_a_huge_signal_is_not_at_an_edge(simple: Model, make_events: Maker) -> None:
    """Ten times more signal than background, and a range that was made for little."""
    events = make_events(2000, 20_000)
    twin = to_pyhf(simple, events, BINS)
    config = twin.workspace["measurements"][0]["config"]
    config["parameters"][0].update(bounds=[[0.0, 10.0]], inits=[1.0])
    result = binned_inference(twin)
    best = fit(ExtendedUnbinnedNLL(simple, events))
    assert result.value == pytest.approx(best.value("mu"), rel=0.01)
    assert result.limit.observed > result.value
    assert result.discovery.z > 50.0
    assert 0.0 <= result.discovery.p0 < 1e-100


def test_a_narrow_range_is_widened(simple: Model, make_events: Maker) -> None:
    """The same limits and intervals from a range that ends where the fit is just content."""
    twin = to_pyhf(simple, make_events(2000, 20), BINS)
    wide = binned_inference(twin)
    config = twin.workspace["measurements"][0]["config"]
    config["parameters"][0].update(bounds=[[0.0, 2.01 * (wide.value + wide.error)]])
    narrow = binned_inference(twin)
    assert narrow.limit.expected == pytest.approx(wide.limit.expected, rel=1e-4)
    assert narrow.limit.observed == pytest.approx(wide.limit.observed, rel=1e-4)
    assert narrow.intervals[1].high == pytest.approx(wide.intervals[1].high, rel=1e-4)


def test_results_beside_an_unbinned_one(simple: Model, with_ratio: Changer, make_events: Maker) -> None:
    """Mass and log ratio; plain JSON; pyhf's state as it was."""
    model = with_ratio(simple)
    events = make_events(4950, 50)
    nll = ExtendedUnbinnedNLL(model, events)
    reference = reference_from_pool(model, make_events(15_000, 0))
    before = pyhf.get_backend()
    results, notes = binned_results(model, nll, events, reference)
    assert [result.observable for result in results] == ["m_jj", "log_ratio"]
    assert results[0].n_bins == 20
    assert 15 < results[1].n_bins <= 30
    assert notes == []
    assert pyhf.get_backend() == before
    content = json.loads(json.dumps(results[1].to_dict()))
    assert content["observable"] == "log_ratio"
    assert set(content["fit"]["mu"]["intervals"]) == {"0.6827", "0.95"}
    assert len(content["limit"]["expected"]) == 5
    assert content["limit"]["cl"] == 0.95
    assert set(content["significance"]) == {"p0_local", "z_local"}


def test_what_cannot_be_made_is_a_note(simple: Model, with_ratio: Changer, make_events: Maker) -> None:
    model = with_ratio(simple)
    events = make_events(1000, 20)
    nll = ExtendedUnbinnedNLL(model, events)
    for reference in (None, reference_from_data(nll, nll.start_vector())):
        results, notes = binned_results(model, nll, events, reference)
        assert [result.observable for result in results] == ["m_jj"]
        assert len(notes) == 1
        assert notes[0].startswith("no binned result in log_ratio: templates in log_ratio")
    with pytest.raises(ModelError, match="bins of the mass need a window"):
        binned_twin(replace(simple, window=None), ExtendedUnbinnedNLL(simple, events), events, "m_jj")


def test_a_free_mass_is_held_where_it_fits(simple: Model, make_events: Maker) -> None:
    moving = MassDensity(Gaussian(), (WINDOW.edges,), ("m_X",), np.array([0.0, 60.0]), np.array([[1.0], [0.0]]))
    model = replace(
        simple,
        components=(replace(simple.components[0], factors=(MassFactor(moving),)), simple.components[1]),
        parameters=(*simple.parameters, Parameter("m_X", 3520.0, 3400.0, 3600.0)),
    )
    events = make_events(1980, 300)
    nll = ExtendedUnbinnedNLL(model, events)
    results, notes = binned_results(model, nll, events, cl=0.9)
    best = fit(nll)
    assert notes == [
        f"binned results hold m_X = {best.value('m_X'):.6g}: HistFactory has no shape parameter without a constraint"
    ]
    assert results[0].value == pytest.approx(best.value("mu"), rel=0.03)
    assert results[0].limit.cl == 0.9


def test_options(simple: Model, make_events: Maker) -> None:
    twin = to_pyhf(simple, make_events(500, 0), BINS)
    with pytest.raises(OptionError, match="confidence level 95 must lie between 0 and 1"):
        binned_inference(twin, cl=95.0)
    with pytest.raises(OptionError, match="confidence level 68 must lie"):
        binned_inference(twin, intervals=(68.0,))
    with pytest.raises(OptionError, match="'migrad' is unknown"):
        binned_inference(twin, optimizer="migrad")


def test_fit_failures_are_explained(simple: Model, make_events: Maker) -> None:
    """Counts that are no counts: no minimiser gets anywhere, and pyhf's traceback is not shown."""
    twin = to_pyhf(simple, make_events(500, 0), BINS)
    twin.workspace["observations"][0]["data"][3] = float("nan")
    with pytest.raises(FitFailed, match="pyhf's fit did not converge"):
        binned_inference(twin)
