"""Exported workspaces: what other programs make of them, channels of several windows, observables."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from gbistat.binned.export import combine_twins
from gbistat.binned.fit import binned_inference
from gbistat.binned.hs3_import import unbinned_from_hs3
from gbistat.binned.hs3_unbinned import unbinned_to_hs3
from gbistat.binned.load import load_workspace
from gbistat.binned.nuisances import standardise
from gbistat.binned.twin import binned_twin
from gbistat.binned.workspace import BinnedTwin
from gbistat.cli import main
from gbistat.data.events import Events
from gbistat.errors import ModelError
from gbistat.fit.minimize import fit
from gbistat.inference.limits import AsymptoticCLs, upper_limit
from gbistat.likelihood.components import MassFactor, Yield
from gbistat.likelihood.constraints import NormalConstraint
from gbistat.likelihood.model import Model
from gbistat.likelihood.nll import ExtendedUnbinnedNLL
from gbistat.likelihood.parameters import Parameter
from gbistat.likelihood.reference import reference_from_pool
from gbistat.terms.density import MassDensity
from gbistat.terms.shapes.dijet import Dijet

Maker = Callable[..., Events]


@pytest.fixture
def twin(full: Model, make_events: Maker) -> Callable[[], BinnedTwin]:
    def make() -> BinnedTwin:
        events = make_events(2000, 30)
        return binned_twin(full, ExtendedUnbinnedNLL(full, events), events, "m_jj", n_bins=8)

    return make


def pyhf_cls(path: Path, *arguments: str) -> dict:
    code = "from pyhf.cli import cli; cli()"  # what the command pyhf runs, wherever it is installed
    command = [sys.executable, "-W", "ignore", "-c", code, "cls", str(path), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_pyhf_reproduces_the_binned_row(twin: Callable[[], BinnedTwin], tmp_path: Path) -> None:
    """``pyhf cls`` at the limit that the comparison prints gives 5 %, and the band that gbistat has."""
    made = twin()
    path = tmp_path / "workspace.json"
    path.write_text(json.dumps(combine_twins({"window": made})))
    limit = binned_inference(made).limit
    found = pyhf_cls(path, "--test-poi", f"{limit.observed:.10g}")
    assert found["CLs_obs"] == pytest.approx(0.05, abs=1e-3)
    point = AsymptoticCLs(load_workspace(path).nll, ()).point(limit.observed)
    np.testing.assert_allclose(found["CLs_exp"], point.expected, atol=1e-3)


@pytest.mark.filterwarnings("ignore:jsonschema.RefResolver is deprecated:DeprecationWarning")
def test_cabinetry_fits_it(twin: Callable[[], BinnedTwin]) -> None:
    cabinetry = pytest.importorskip("cabinetry")
    made = twin()
    model, data = cabinetry.model_utils.model_and_data(combine_twins({"window": made}))
    result = cabinetry.fit.fit(model, data)
    best = fit(load_workspace(made.workspace).nll)
    index = result.labels.index("mu")
    assert result.bestfit[index] == pytest.approx(max(best.value("mu"), 0.0), abs=0.01 * best.error("mu"))


def test_windows_become_channels(twin: Callable[[], BinnedTwin]) -> None:
    first, second = twin(), twin()
    workspace = combine_twins({"low": first, "high": second})
    assert [channel["name"] for channel in workspace["channels"]] == ["low_m_jj", "high_m_jj"]
    assert [m["name"] for m in workspace["measurements"]] == ["low", "high"]
    assert [m["config"]["poi"] for m in workspace["measurements"]] == ["low_mu", "high_mu"]
    for label, single in (("low", first), ("high", second)):
        together = upper_limit(load_workspace(workspace, measurement=label).nll)
        alone = upper_limit(load_workspace(single.workspace).nll)
        assert together.observed == pytest.approx(alone.observed, rel=1e-4)


def test_decay_modes_share_the_signal(twin: Callable[[], BinnedTwin]) -> None:
    first, second = twin(), twin()
    workspace = combine_twins({"qq": first, "qqq": second}, shared=["mu", "efficiency"])
    nll = load_workspace(workspace).nll
    assert [m["config"]["poi"] for m in workspace["measurements"]] == ["mu"]
    assert {"mu", "efficiency", "qq_slope", "qqq_slope"} <= set(nll.names)
    joint, (one, other) = fit(nll), (fit(load_workspace(t.workspace).nll) for t in (first, second))
    weights = np.array([one.error("mu"), other.error("mu")]) ** -2.0
    mean = weights @ [one.value("mu"), other.value("mu")] / weights.sum()
    assert joint.value("mu") == pytest.approx(mean, abs=0.3 * joint.error("mu"))
    assert joint.error("mu") == pytest.approx(weights.sum() ** -0.5, rel=0.1)
    with pytest.raises(ModelError, match="no twin has a parameter 'nu' to share"):
        combine_twins({"qq": first}, shared=["nu"])
    with pytest.raises(ModelError, match="no binned twin to combine"):
        combine_twins({})


@pytest.mark.parametrize("observable", ["x", "log_ratio", "m_jj:x", "x:m_jj", "m_jj:log_ratio"])
def test_observables(simple: Model, with_ratio: Callable[[Model], Model], make_events: Maker, observable: str) -> None:
    """All bins of the model together hold what the unbinned model expects, and mu means the same."""
    model, events = with_ratio(simple), make_events(2000, 80)
    reference = reference_from_pool(model, make_events(8000, 0))
    nll = ExtendedUnbinnedNLL(model, events)
    made = binned_twin(model, nll, events, observable, reference=reference, n_bins=6)
    assert made.samples["background"].sum() == pytest.approx(2000.0, rel=1e-9)
    assert made.samples["signal"].sum() == pytest.approx(1.0, rel=1e-9)
    assert made.observed.sum() == len(events)
    best = fit(load_workspace(made.workspace).nll)
    unbinned = fit(nll)
    assert abs(best.value("mu") - unbinned.value("mu")) < 3.5 * best.error("mu")
    assert best.error("mu") > 0.9 * unbinned.error("mu")


@pytest.fixture
def card(tmp_path: Path) -> Path:
    rng = np.random.default_rng(6)
    mass = np.r_[60.0 + 60.0 * rng.random(4000), rng.normal(91.0, 2.5, 300)]
    np.savez(tmp_path / "events.npz", M=mass[(mass > 60) & (mass < 120)])
    card = tmp_path / "card.yaml"
    card.write_text("""
events: {path: events.npz, mapping: {mass: M}}
windows: [[85, 97]]
model:
  name: zmumu
  mass: {name: m_mumu, unit: GeV}
  signal:
    mass: {shape: gaussian, parameters: {mean: {times_center: 1.0}, sigma: 2.5}}
  background:
    mass: {shape: bernstein, options: {degree: 2}}
    fit_range: [60, 120]
    yield: sideband
""")
    return card


def test_command(card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "ws.json"
    with pytest.raises(SystemExit) as stop:
        main(["export-workspace", str(card), "--bins", "6", "--json", str(target)])
    assert stop.value.code == 0
    assert "wrote" in capsys.readouterr().err
    loaded = load_workspace(target)
    assert dict(loaded.channels) == {"m_mumu": slice(0, 6)}
    with pytest.raises(SystemExit):
        main(["limits", str(card), "--json", "-"])
    row = json.loads(capsys.readouterr().out)["results"][0]["binned"]
    with pytest.raises(SystemExit):
        main(["export-workspace", str(card)])
    again = json.loads(capsys.readouterr().out)
    found = upper_limit(load_workspace(again).nll)
    assert found.observed == pytest.approx(row["limit"]["observed"], rel=1e-3)
    np.testing.assert_allclose(found.expected, row["limit"]["expected"], rtol=1e-3)


def test_command_refuses(card: Path, capsys: pytest.CaptureFixture[str]) -> None:
    windows = ["--window", "85", "97", "--window", "95", "105"]
    for arguments, message in (
        (windows, "85-97 and 95-105 GeV share events"),
        (["--observable", "m_mum"], "no observable 'm_mum' to bin in; nearest names: m_mumu"),
        (["--bins", "0"], "at least one is needed"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["export-workspace", str(card), *arguments])
        assert stop.value.code == 1
        assert message in capsys.readouterr().err


def test_compare_command(card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["compare", str(card), "--toys", "3", "--output", str(tmp_path / "out")])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "unbinned" in out
    assert "bump hunt" in out
    document = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert document["results"][0]["rows"][0]["name"] == "unbinned"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"compare.json", "comparison.png", "post_fit_m_mumu.png"}


@pytest.fixture
def dijets(simple: Model) -> Model:
    """The same with the function that dijet searches use, and an efficiency."""
    window = simple.window
    density = MassDensity(
        Dijet(), (window.edges,), ("slope",), np.array([9.0, 4.0, 0.1]), np.array([[500.0], [0.0], [20.0]])
    )
    signal, background = simple.components
    rate = Yield({"mu": 2.0}, log_scales={"efficiency": 0.1})
    return replace(
        simple,
        components=(replace(signal, rate=rate), replace(background, factors=(MassFactor(density),))),
        parameters=(*simple.parameters, Parameter("efficiency", 0.0)),
        constraints=(*simple.constraints, NormalConstraint("efficiency", 0.0, 1.0)),
    )


@pytest.mark.parametrize("which", ["simple", "dijets"])
def test_pyhs3_reads_the_unbinned_model(simple: Model, dijets: Model, make_events: Maker, which: str) -> None:
    pyhs3 = pytest.importorskip("pyhs3")
    pytensor = pytest.importorskip("pytensor")
    from pytensor.graph.traversal import explicit_graph_inputs

    model, events = {"simple": simple, "dijets": dijets}[which], make_events(300, 20)
    nll = ExtendedUnbinnedNLL(model, events)
    document = unbinned_to_hs3(model, events)
    reader = pyhs3.Workspace(**json.loads(json.dumps(document)))
    other = reader.model(reader.analyses["gbistat"])
    inputs = list(explicit_graph_inputs([other.log_prob]))
    function = pytensor.function(inputs, other.log_prob, on_unused_input="ignore", mode="FAST_COMPILE")
    standard = standardise(model)

    def both(mu: float, pulls: np.ndarray) -> tuple[float, float]:
        theta = standard.nominal + sum(
            pull * (d.plus - standard.nominal) for pull, d in zip(pulls, standard.directions, strict=True)
        )
        theta[0] = mu
        named = {f"pull_{d.name}": pull for d, pull in zip(standard.directions, pulls, strict=True)}
        values = {**other.data, **other.free_params, "mu": mu, **named}
        arguments = [np.asarray(values[x.name], dtype=x.dtype) for x in inputs]
        shaped = [a.reshape([1] * x.ndim) if a.ndim < x.ndim else a for a, x in zip(arguments, inputs, strict=True)]
        return nll.value(theta), -float(np.squeeze(function(*shaped)))

    size = len(standard.directions)
    start = both(1.0, np.zeros(size))
    for mu, pulls in ((12.0, np.zeros(size)), (5.0, np.full(size, 0.7)), (30.0, np.linspace(-1.0, 1.0, size))):
        ours, theirs = both(mu, pulls)
        assert ours - start[0] == pytest.approx(theirs - start[1], abs=1e-6)


def test_unbinned_documents(simple: Model, with_ratio: Callable[[Model], Model], make_events: Maker) -> None:
    events = make_events(50, 5)
    document = unbinned_to_hs3(simple, events)
    assert [item["type"] for item in document["distributions"][:3]] == [
        "gaussian_dist",
        "exponential_dist",
        "mixture_dist",
    ]
    assert len(document["data"][0]["entries"]) == 55
    with pytest.raises(ModelError, match="'signal' looks at more than the mass, which HS3 cannot say"):
        unbinned_to_hs3(with_ratio(simple), events)
    with pytest.raises(ModelError, match="no window"):
        unbinned_to_hs3(replace(simple, window=None), events)


def test_unbinned_there_and_back(simple: Model, make_events: Maker) -> None:
    events = make_events(2000, 60)
    rate = Yield({"mu": 2.0}, log_scales={"efficiency": 0.1})
    model = replace(
        simple,
        components=(replace(simple.components[0], rate=rate), simple.components[1]),
        parameters=(*simple.parameters, Parameter("efficiency", 0.0)),
        constraints=(*simple.constraints, NormalConstraint("efficiency", 0.0, 1.0)),
    )
    again, read = unbinned_from_hs3(json.loads(json.dumps(unbinned_to_hs3(model, events))))
    assert read.mass.tolist() == events.mass.tolist()
    assert again.names == ("pull_n_bkg", "pull_slope", "pull_efficiency", "mu")
    first, second = fit(ExtendedUnbinnedNLL(model, events)), fit(ExtendedUnbinnedNLL(again, read))
    assert second.value("mu") == pytest.approx(first.value("mu"), abs=1e-4 * first.error("mu"))
    assert second.error("mu") == pytest.approx(first.error("mu"), rel=1e-4)
    assert second.nll == pytest.approx(first.nll, abs=1e-6)


def hand_written() -> dict:
    return {
        "distributions": [
            {"name": "peak", "type": "gaussian_dist", "x": "m", "mean": "m_X", "sigma": 2.0},
            {"name": "falling", "type": "exponential_dist", "x": "m", "c": "slope"},
            {"name": "sum", "type": "mixture_dist", "summands": ["peak", "falling"], "coefficients": ["n_sig", "n_bkg"], "extended": True},
            {"name": "scale", "type": "gaussian_dist", "x": 91.0, "mean": "m_X", "sigma": 0.5},
        ],
        "data": [{"name": "d", "type": "unbinned", "entries": [[88.0], [91.5], [90.2]], "axes": [{"name": "m", "min": 80, "max": 100}]}],
        "likelihoods": [{"name": "l", "distributions": ["sum"], "data": ["d"], "aux_distributions": ["scale"]}],
        "domains": [{"name": "box", "type": "product_domain", "axes": [{"name": "m_X", "min": 85.0, "max": 97.0}]}],
        "parameter_points": [{"name": "p", "parameters": [
            {"name": "m_X", "value": 91.0}, {"name": "slope", "value": 0.05, "const": True}, {"name": "n_sig", "value": 1.0}, {"name": "n_bkg", "value": 3.0}]}],
        "analyses": [{"name": "a", "likelihood": "l", "domains": ["box"], "parameters_of_interest": ["n_sig"], "init": "p"}],
    }  # fmt: skip


def test_a_document_from_elsewhere() -> None:
    model, events = unbinned_from_hs3(hand_written())
    assert (model.poi, model.signal, model.window.edges) == ("n_sig", "peak", (80.0, 100.0))
    assert model.parameter("m_X").limits == (85.0, 97.0)
    assert model.parameter("slope").fixed
    value = ExtendedUnbinnedNLL(model, events).value(np.array([91.0, 0.05, 1.0, 3.0]))
    gauss = norm(91.0, 2.0)
    falling = 0.05 * np.exp(-0.05 * events.mass) / (np.exp(-4.0) - np.exp(-5.0))
    density = gauss.pdf(events.mass) / (gauss.cdf(100.0) - gauss.cdf(80.0)) + 3.0 * falling
    assert value == pytest.approx(4.0 - np.log(density).sum(), rel=1e-9)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("distributions", 0, "type"), "landau_dist", "'peak' is a landau_dist; nearest names: gaussian_dist"),
        (("distributions", 0, "mean"), "m_Y", "'m_Y' is neither a function nor a parameter; nearest names: m_X"),
        (("distributions", 0, "x"), "pt", "'peak' is one of 'pt', and the data are 'm'"),
        (("distributions", 2, "extended"), False, "not an extended mixture_dist"),
        (("distributions", 3, "type"), "poisson_dist", "auxiliary distribution 'scale' is a poisson_dist"),
        (("data", 0, "type"), "binned", "only unbinned data of one observable"),
        (
            ("analyses", 0, "parameters_of_interest"),
            ["m_X"],
            "no yield is proportional to the parameter of interest 'm_X'",
        ),
        (
            ("likelihoods", 0, "distributions"),
            ["summ"],
            "nothing called 'summ' among its distributions; nearest names: sum",
        ),
    ],
)
def test_documents_that_cannot_be_read(place: tuple, value: object, message: str) -> None:
    document = hand_written()
    item: object = document
    for key in place[:-1]:
        item = item[key]
    item[place[-1]] = value
    with pytest.raises(ModelError, match=message):
        unbinned_from_hs3(document)


@pytest.mark.parametrize("expression", ["m_X*slope", "sin(m_X)", "m_X**2", "m_X +"])
def test_functions_that_cannot_be_read(expression: str) -> None:
    document = hand_written()
    document["functions"] = [{"name": "f", "type": "generic_function", "expression": expression}]
    document["distributions"][0]["mean"] = "f"
    with pytest.raises(ModelError, match=r"function 'f'.*cannot be read"):
        unbinned_from_hs3(document)
