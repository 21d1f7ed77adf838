"""Workspaces: valid for pyhf, with the names and the meaning of the unbinned model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyhf
import pytest

from gbistat.binned.backend import validate_workspace
from gbistat.binned.binning import Binning, mass_binning
from gbistat.binned.nuisances import standardise
from gbistat.binned.observables import log_ratio_binning
from gbistat.binned.templates import Templates
from gbistat.binned.workspace import BinnedTwin, to_pyhf
from gbistat.data.events import Events
from gbistat.data.window import MassWindow
from gbistat.errors import EventsError, ModelError, OptionError, UnitsError
from gbistat.likelihood.components import Component, MassFactor, Yield
from gbistat.likelihood.constraints import LogNormalConstraint, NormalConstraint, PoissonConstraint
from gbistat.likelihood.mixture import Mixture
from gbistat.likelihood.model import Model
from gbistat.likelihood.nll import ExtendedUnbinnedNLL
from gbistat.likelihood.parameters import Parameter
from gbistat.likelihood.reference import reference_from_data, reference_from_pool, reference_from_quadrature
from gbistat.terms.density import MassDensity
from gbistat.terms.shapes.gaussian import Gaussian

Maker = Callable[..., Events]
Changer = Callable[[Model], Model]
Tilter = Callable[[Model, Events, float], Model]
# pyhf 0.7 validates with a class that jsonschema has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:jsonschema.RefResolver is deprecated:DeprecationWarning")
BINS = mass_binning(MassWindow(3300.0, 3700.0))


def load(twin: BinnedTwin) -> tuple[Any, Any]:
    """Model and data that pyhf makes of the workspace after a trip through JSON."""
    workspace = pyhf.Workspace(json.loads(json.dumps(twin.workspace)))
    model = workspace.model()
    return model, workspace.data(model)


def expected(model: Any, **values: float) -> np.ndarray:
    """Expected counts in the first channel's bins, with mu = 0 unless said otherwise."""
    pars = np.array(model.config.suggested_init())
    pars[model.config.poi_index] = 0.0
    for name, value in values.items():
        pars[model.config.par_slice(name)] = value
    return np.asarray(model.expected_actualdata(pars))


def modifiers(twin: BinnedTwin) -> dict[str, list[tuple[str, str]]]:
    channel = twin.workspace["channels"][0]
    return {s["name"]: [(m["name"], m["type"]) for m in s["modifiers"]] for s in channel["samples"]}


def test_construction(full: Model, make_events: Maker) -> None:
    twin = to_pyhf(full, make_events(2000, 50), BINS)
    validate_workspace(twin.workspace)
    assert twin.workspace["version"] == "1.0.0"
    assert [channel["name"] for channel in twin.workspace["channels"]] == ["m_jj"]
    assert modifiers(twin) == {
        "signal": [("mu", "normfactor"), ("efficiency", "normsys"), ("mass_scale", "histosys")],
        "signal_spurious": [("spurious", "histosys"), ("efficiency", "normsys")],
        "background": [("n_bkg", "normsys"), ("slope", "histosys")],
    }
    model, _ = load(twin)
    assert model.config.poi_name == "mu"
    assert sorted(model.config.parameters) == sorted(full.names)
    assert model.config.suggested_bounds()[model.config.poi_index][0] == 0.0


def test_observed_counts_are_a_histogram(full: Model, make_events: Maker) -> None:
    events = make_events(2000, 50)
    twin = to_pyhf(full, events, BINS)
    counts, _ = np.histogram(events.mass, BINS.edges)
    assert twin.observed.tolist() == counts.tolist()
    _, data = load(twin)
    assert list(data)[:20] == counts.tolist()
    assert twin.to_dict()["observed"] == counts.tolist()


def test_mu_means_the_same(full: Model, make_events: Maker) -> None:
    """Three events at mu = 1, before and after."""
    model, _ = load(to_pyhf(full, make_events(2000, 0), BINS))
    assert expected(model, mu=5.0).sum() - expected(model, mu=0.0).sum() == pytest.approx(15.0)
    assert expected(model).sum() == pytest.approx(2000.0)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("name", ["n_bkg", "slope", "spurious", "efficiency", "mass_scale"])
def test_one_standard_deviation_is_exact(full: Model, make_events: Maker, name: str, sign: float) -> None:
    """At +-1 in one direction pyhf expects what the model expects at the parameters that this stands for."""
    model, _ = load(to_pyhf(full, make_events(2000, 0), BINS))
    templates = Templates(full, BINS)
    standard = standardise(full)
    direction = next(d for d in standard.directions if d.name == name)
    theta = (direction.plus if sign > 0 else direction.minus).copy()
    theta[0] = 20.0
    found = expected(model, mu=20.0, **{name: sign})
    np.testing.assert_allclose(found, templates.expected(theta).sum(axis=0), rtol=1e-9)
    changed = np.abs(found - expected(model, mu=20.0)).max()
    assert changed > 1e-3


def test_spurious_signal_is_linear_and_scaled_by_the_efficiency(full: Model, make_events: Maker) -> None:
    """At alpha the spurious yield is 8 alpha events of signal shape, whatever the sign."""
    model, _ = load(to_pyhf(full, make_events(2000, 0), BINS))
    for alpha in (-2.5, -0.3, 0.7, 3.0):
        np.testing.assert_allclose(expected(model, spurious=alpha), expected(model, mu=8.0 * alpha / 3.0), rtol=1e-10)
    np.testing.assert_allclose(
        expected(model, spurious=2.0, efficiency=1.0), expected(model, mu=16.0 / 3.0, efficiency=1.0), rtol=1e-10
    )


@pytest.mark.parametrize("kind", ["free", "fixed", "constant", "poisson", "log-normal"])
def test_background_yields(simple: Model, make_events: Maker, kind: str) -> None:
    slope = NormalConstraint("slope", 0.002, 1e-4)
    constraints: dict[str, tuple[Any, ...]] = {
        "poisson": (slope, PoissonConstraint("n_bkg", 4100.0, 2.0)),
        "log-normal": (slope, LogNormalConstraint("n_bkg", 2000.0, 0.1)),
    }
    model = replace(simple, constraints=constraints.get(kind, (slope,)))
    if kind == "fixed":
        mu, n_bkg, rate = simple.parameters
        model = replace(model, parameters=(mu, replace(n_bkg, fixed=True), rate))
    if kind == "constant":
        background = replace(simple.components[1], rate=Yield(constant=2000.0))
        model = replace(
            model,
            components=(simple.components[0], background),
            parameters=(simple.parameters[0], *simple.parameters[2:]),
        )
    twin = to_pyhf(model, make_events(2000, 0), BINS)
    types = dict(modifiers(twin)["background"])
    wanted = {"free": "normfactor", "poisson": "normfactor", "log-normal": "normsys"}
    assert types.get("n_bkg") == wanted.get(kind)
    loaded, data = load(twin)
    assert expected(loaded)[:20].sum() == pytest.approx(2000.0)
    if kind in ("free", "poisson"):
        assert expected(loaded, n_bkg=1.1)[:20].sum() == pytest.approx(2200.0)
    if kind == "log-normal":
        assert expected(loaded, n_bkg=2.0).sum() == pytest.approx(2000.0 * np.exp(0.2))
    if kind == "poisson":
        # The auxiliary count is a channel of its own: the same likelihood as in the unbinned model.
        assert [channel["name"] for channel in twin.workspace["channels"]] == ["m_jj", "n_bkg_auxiliary"]
        assert expected(loaded, n_bkg=1.1)[20] == pytest.approx(2.0 * 2200.0)
        assert data[20] == 4100.0


def test_statistical_errors(simple: Model, with_ratio: Changer, make_events: Maker) -> None:
    """pyhf's combined error of a bin is that of the pool, common to signal and background."""
    model = replace(simple, components=(replace(simple.components[0], rate=Yield({"mu": 300.0})), simple.components[1]))
    model = with_ratio(model)
    reference = reference_from_pool(model, make_events(4000, 0))
    bins = log_ratio_binning(model, reference, n_bins=10)
    events = make_events(2000, 50)
    twin = to_pyhf(model, events, bins, reference=reference)
    loaded, _ = load(twin)
    errors = loaded.config.param_set("staterror_log_ratio").sigmas
    relative = Templates(model, bins, reference=reference).relative_errors()
    np.testing.assert_allclose(errors, relative, rtol=1e-10)
    plain = to_pyhf(model, events, bins, reference=reference, statistical_errors=False)
    assert "staterror_log_ratio" not in load(plain)[0].config.parameters
    # With the components at the events given, nothing is evaluated again, and nothing changes.
    mixture = Mixture.of(model, events, np.array([p.start for p in model.parameters]))
    again = to_pyhf(model, events, bins, reference=reference, mixture=mixture)
    assert again.workspace == twin.workspace


def test_a_tilt_of_the_background(simple: Model, with_tilt: Tilter, with_ratio: Changer, make_events: Maker) -> None:
    """A spurious signal is a histosys of the background in any observable; in the mass, the data do as points."""
    events, pool = make_events(2000, 0), make_events(20_000, 0)
    model = with_tilt(with_ratio(simple), pool, 20.0)
    reference = reference_from_pool(model, pool)
    twins = [to_pyhf(model, events, BINS, reference=given) for given in (reference, None)]
    twins.append(to_pyhf(model, events, log_ratio_binning(model, reference, n_bins=10), reference=reference))
    for twin in twins:
        assert ("spurious_signal", "histosys") in modifiers(twin)["background"]
    rise = [expected(load(twin)[0], spurious_signal=1.0) - twin.samples["background"] for twin in twins]
    # The total stays, the middle of the window and the top of the log ratio gain what the edges lose.
    for change in rise:
        assert abs(change.sum()) < 1e-6
    assert rise[0][8:12].sum() > 2.0
    assert rise[2][-3:].sum() > 5.0
    assert rise[1][6:14].sum() == pytest.approx(rise[0][6:14].sum(), rel=0.3)
    data = reference_from_data(ExtendedUnbinnedNLL(model, events), np.array([p.start for p in model.parameters]))
    assert to_pyhf(model, events, BINS, reference=data).workspace == twins[1].workspace


def test_notes(simple: Model, with_ratio: Changer, make_events: Maker) -> None:
    model = with_ratio(simple)
    reference = reference_from_pool(model, make_events(300, 0))
    bins = log_ratio_binning(model, reference, n_bins=5)
    events = make_events(2000, 10)
    weighted = replace(events, weights=np.full(len(events), 0.5))
    twin = to_pyhf(model, weighted, bins, reference=reference)
    assert any("effective pool events" in note for note in twin.notes)
    assert any("have weights" in note for note in twin.notes)
    assert twin.observed.sum() == pytest.approx(0.5 * len(events))


def test_free_shapes_must_be_held(simple: Model, make_events: Maker) -> None:
    events = make_events(2000, 0)
    model = replace(simple, constraints=(NormalConstraint("n_bkg", 2000.0, 40.0),))
    with pytest.raises(ModelError, match=r"slope changes a shape .* hold it"):
        to_pyhf(model, events, BINS)
    twin = to_pyhf(model, events, BINS, held={"slope": 0.003})
    assert modifiers(twin)["background"] == [("n_bkg", "normsys")]
    np.testing.assert_allclose(
        twin.samples["background"], Templates(model, BINS).expected(np.array([0.0, 2000.0, 0.003]))[1]
    )


def test_bad_templates_are_refused(simple: Model, make_events: Maker) -> None:
    events = make_events(2000, 0)
    signal, background = simple.components
    slope = NormalConstraint("slope", 0.002, 1e-4)
    narrow = MassFactor(MassDensity.fixed(Gaussian(), ((3300.0, 3700.0),), [3500.0, 3.0]))
    no_signal = replace(simple, components=(replace(signal, factors=(narrow,)), background))
    tiny = mass_binning(MassWindow(3300.0, 3301.0), n_bins=1)
    with pytest.raises(ModelError, match="zero signal acceptance"):
        to_pyhf(no_signal, events, tiny)
    mu, _, rate = simple.parameters
    negative = replace(
        simple, constraints=(slope,), parameters=(mu, Parameter("n_bkg", -5.0, -10.0, 0.0, fixed=True), rate)
    )
    with pytest.raises(
        ModelError, match=r"'background' has -0\.\d+ expected events in bin 0 of m_jj \(3300 to 3320\); a"
    ):
        to_pyhf(negative, events, BINS)
    empty = replace(negative, parameters=(mu, Parameter("n_bkg", 0.0, fixed=True), rate))
    with pytest.raises(ModelError, match=r"no background is expected in bin 0 of m_jj .* and 19 more; merge"):
        to_pyhf(empty, events, BINS)
    hopeless = replace(simple, constraints=(slope, NormalConstraint("n_bkg", 2000.0, 2100.0)))
    with pytest.raises(ModelError, match=r"standard deviation of n_bkg scales its yield by -0\.05"):
        to_pyhf(hopeless, events, BINS)
    one_bin = mass_binning(MassWindow(3300.0, 3700.0), n_bins=1)
    with pytest.raises(ModelError, match=r"mu, n_bkg cannot be told apart in 1 bin"):
        to_pyhf(replace(simple, constraints=(slope,)), events, one_bin)


def test_bad_input_is_refused(simple: Model, make_events: Maker) -> None:
    events = make_events(100, 0)
    with pytest.raises(OptionError, match="no observable 'mjj' to bin in; nearest names: m_jj"):
        to_pyhf(simple, events, Binning("mjj", BINS.edges))
    with pytest.raises(UnitsError, match="the bins of m_jj are in TeV and the events in GeV"):
        to_pyhf(simple, events, Binning("m_jj", BINS.edges, unit="TeV"))
    outside = replace(events, mass=events.mass + 50.0)
    with pytest.raises(EventsError, match=r"\d+ of 100 events are outside the window"):
        to_pyhf(simple, outside, BINS)
    with pytest.raises(ModelError, match="templates in x need a reference measure"):
        to_pyhf(simple, events, Binning("x", np.array([0.0, 1.0]), open_ended=True))
    reference = reference_from_quadrature(simple)
    bins = log_ratio_binning(simple, reference, n_bins=5)
    few = Mixture.of(simple, make_events(7, 0), np.array([0.0, 2000.0, 0.002]))
    with pytest.raises(ModelError, match="has 7 points for 100 events"):
        to_pyhf(simple, events, bins, reference=reference, mixture=few)
    other = Model(
        (Component("signal", Yield({"mu": 1.0}), simple.components[0].factors),),
        (Parameter("mu", 1.0),),
        window=simple.window,
    )
    with pytest.raises(ModelError, match="the log ratio needs a signal and one background; this model has 1"):
        to_pyhf(other, events, bins, reference=reference_from_quadrature(other))
    scaled = replace(
        simple, poi="slope", constraints=(NormalConstraint("n_bkg", 2000.0, 40.0), NormalConstraint("mu", 0.0, 1.0))
    )
    with pytest.raises(ModelError, match="not linear in the parameter of interest 'slope'"):
        to_pyhf(scaled, events, BINS)
    with pytest.raises(ModelError, match=r"not a HistFactory workspace of schema 1\.0\.0"):
        validate_workspace({"channels": []})
