"""Reference events and ln kappa from a generator, against closed forms; what results say about it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from gbistat.cli import main
from gbistat.config import read_card, resolve_options
from gbistat.data.window import MassWindow
from gbistat.errors import ModelError
from gbistat.fit.build import build_analysis
from gbistat.fit.generated import GeneratedBackground
from gbistat.fit.minimize import fit
from gbistat.terms.generator import GeneratorTerm
from gbistat.terms.store import save_model

WINDOW = MassWindow(3300.0, 3700.0)


@pytest.fixture
def analyse(toy):
    """Function that analyses the toy's events with a generator."""

    def build(shifts=(0.1, -0.1), *, log_kappa=0.0, n_events=20_000, window=WINDOW, events=None, **options):
        background = None
        if shifts is not None:
            term = GeneratorTerm(toy.generator(shifts))
            background = GeneratedBackground(term, "toy", "0" * 64, n_events=n_events, **options)
        terms = {"ratio": toy.ratio(log_kappa)}
        found = toy.events() if events is None else events
        return build_analysis(toy.spec(), found, window, terms=terms, background=background)

    return build


def test_the_mean_ratio_and_the_error_of_kappa(toy, analyse):
    analysis = analyse(log_kappa=0.1)
    record = analysis.background
    members = toy.a * np.array([0.1, -0.1])
    expected = np.exp(0.1) * np.mean(np.exp(members))
    assert record["mean_ratio"]["value"] == pytest.approx(expected, rel=0.03)
    kappa = record["log_kappa"]
    assert (kappa["value"], kappa["model_value"], kappa["model_sigma"]) == (0.1, 0.1, 0.02)
    # Two logs at +-0.25.
    assert kappa["spread_of_members"] == pytest.approx(np.std(members, ddof=1), rel=0.1)
    assert kappa["sigma"] == pytest.approx(np.hypot(0.02, kappa["spread_of_members"]), rel=1e-6)
    assert record["mean_ratio"]["sigma"] == pytest.approx(expected * np.std(members, ddof=1), rel=0.1)
    assert not any("E_b[R]" in warning for warning in analysis.warnings)


def test_kappa_can_be_taken_from_the_generator(toy, analyse):
    record = analyse(log_kappa=0.7, normalise=True).background
    kappa = record["log_kappa"]
    assert kappa["value"] == pytest.approx(-np.log(np.mean(np.exp(toy.a * np.array([0.1, -0.1])))), abs=0.03)
    assert kappa["sigma"] == pytest.approx(0.25 * np.sqrt(2.0), rel=0.1)
    (one,) = (analyse((0.0,), log_kappa=0.7, normalise=True).background["log_kappa"],)
    assert one["sigma"] == pytest.approx(0.02, abs=0.01)


def test_the_sample_reaches_where_the_ratio_is_large(toy, analyse):
    # E_b[r^2] = exp(a^2) = 518: plain samples of this number would give E_b[R] to 16 %.
    record = analyse((0.0, 0.0)).background
    assert record["mean_ratio"]["value"] == pytest.approx(1.0, abs=0.03)
    assert record["mean_ratio"]["sigma"] < 0.02
    assert record["n_reference"] == 20_000


def test_the_weighted_events_stand_for_background(toy, analyse):
    analysis = analyse((0.0, 0.0), n_events=60_000)
    made = GeneratedBackground(GeneratorTerm(toy.generator((0.0, 0.0))), "toy", n_events=60_000).prepare(
        analysis.model, WINDOW
    )
    pool, w = made.pool, made.pool.weights
    assert np.all((w > 0) & (w <= 2.0 + 1e-9))
    assert np.mean(w) == pytest.approx(1.0, abs=4 * np.std(w) / np.sqrt(len(w)))
    u = pool.feature("t") - toy.slope * (pool.mass - 3500.0)
    error = 4 / np.sqrt(30_000)
    assert np.average(u, weights=w) == pytest.approx(0.0, abs=error)
    assert np.average(u**2, weights=w) == pytest.approx(1.0, abs=2 * error)
    # Masses as the sideband fit says.
    edges = np.linspace(3300.0, 3700.0, 9)
    density = analysis.sidebands.density()
    share = np.histogram(pool.mass, edges, weights=w)[0] / w.sum()
    assert share == pytest.approx(density.probabilities(edges, np.zeros(len(density.parameters))), abs=0.01)


def test_asimov_events_are_the_generators(analyse):
    analysis = analyse((0.1, -0.1), normalise=True)
    assert analysis.reference.kind == "pool"
    # The signal density is normalised on the events that fixed kappa.
    assert analysis.reference.normalisation == pytest.approx(1.0, abs=0.03)
    assert analysis.reference.effective_size > 2000


def test_a_wider_spread_is_a_larger_spurious_signal(analyse):
    sizes = [analyse((shift, -shift)).spurious_signal for shift in (0.01, 0.1, 0.2)]
    assert sizes[0] < sizes[1] < sizes[2]
    assert sizes[2] / sizes[1] == pytest.approx(2.0, rel=0.25)


def test_the_signal_is_found_with_the_true_generator(toy, analyse):
    events = toy.events(n_signal=150)
    with_generator = fit(analyse((0.0, 0.0), events=events).nll)
    own_ratio = fit(analyse(None, events=events).nll)
    assert with_generator.value("mu") == pytest.approx(own_ratio.value("mu"), abs=0.5 * own_ratio.error("mu"))
    assert abs(with_generator.value("mu") - 150 * 0.999) < 4 * with_generator.error("mu")


def test_the_same_arguments_give_the_same_result(analyse):
    first, again, other = (analyse(seed=seed).background["mean_ratio"]["value"] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_what_a_reader_must_know(analyse, toy):
    one = analyse((0.0,), blinded=(3300.0, 3700.0))
    assert any("has one member: its own error is unknown" in warning for warning in one.warnings)
    assert not any("has seen events of the window" in warning for warning in one.warnings)
    assert one.background["log_kappa"]["sigma"] == 0.02
    off = analyse((0.1, 0.1), blinded=(3300.0, 3700.0))
    assert any("the ratio has E_b[R] = 1.2" in warning for warning in off.warnings)
    elsewhere = analyse(blinded=(3300.0, 3700.0), window=MassWindow(3600.0, 4000.0))
    assert any("it has seen events of the window, signal among them" in warning for warning in elsewhere.warnings)


def test_generators_that_do_not_fit(toy, analyse):
    background = GeneratedBackground(GeneratorTerm(toy.generator()), "toy")
    model = analyse().model
    with pytest.raises(
        ModelError, match=r"the window 2000-3000 GeV is not inside 2500-5000 GeV, where the generator 'toy'"
    ):
        background.prepare(model, MassWindow(2000.0, 3000.0))
    with pytest.raises(ModelError, match=r"the generator 'toy' has the mass 'm_jj' in GeV, and the model in TeV"):
        background.prepare(model, MassWindow(3.3, 3.7, "TeV"))
    alone = replace(model, components=tuple(replace(c, factors=c.factors[:1]) for c in model.components))
    with pytest.raises(ModelError, match=r"the model looks at the mass alone.*leave --background out"):
        background.prepare(alone, WINDOW)


@pytest.fixture(scope="module")
def folders(toy, tmp_path_factory):
    """A model and its background on disk, and events in a file."""
    folder = tmp_path_factory.mktemp("exported")
    save_model(folder / "model", toy.spec(), terms=[toy.ratio()])
    save_model(folder / "background", toy.background_spec(), terms=[toy.generator()])
    events = toy.events(n_signal=60)
    np.savez(folder / "events.npz", m_jj=events.mass, t=events.feature("t"))
    return folder


def test_results_say_which_background(folders, capsys):
    command = ["--model", folders / "model", "--events", folders / "events.npz", "--background", folders / "background"]
    with pytest.raises(SystemExit) as stop:
        main(["limits", *map(str, command), "--no-binned", "--json", "-"])
    said = capsys.readouterr()
    assert stop.value.code == 0, said.err
    (result,) = json.loads(said.out)["results"]
    used = result["background"]
    assert (used["source"], used["name"], used["n_reference"]) == ("generator", "gaussian-background", 60_000)
    assert len(used["sha256"]) == 64
    with pytest.raises(SystemExit):
        main(["fit", *map(str, command)])
    text = capsys.readouterr().out
    assert "background in 3300-3700 GeV: 60000 events of the generator gaussian-background" in text
    assert "; E_b[R] = " in text
    assert "; ln kappa = 0.000 +- " in text


def test_a_card_names_the_background(folders):
    (folders / "card.yaml").write_text("model: model\nbackground: background\nevents: {path: events.npz}\n")
    options = resolve_options(read_card(folders / "card.yaml"))
    assert options.background.name == "gaussian-background"
    assert options.background.blinded == (3300.0, 3700.0)


def test_backgrounds_that_do_not_go_with_the_model(folders, toy, tmp_path):
    with pytest.raises(ModelError, match=r"the model 'small' has no generator of background features"):
        resolve_options(model=folders / "model", events=folders / "events.npz", background=folders / "model")
    with pytest.raises(ModelError, match=r"the background 'gaussian-background' does not make the feature 'm_light'"):
        resolve_options(background=folders / "background")
    with pytest.raises(ModelError, match=r"there is no model 'dijet-backgrund'"):
        resolve_options(background="dijet-backgrund")
