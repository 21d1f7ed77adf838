"""gbistat limits of a model whose signal was learned: table, files, schema, refusals."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from gbistat.cli import cli
from gbistat.config import resolve_options
from gbistat.data.window import MassWindow
from gbistat.errors import EventsError, GbistatError, ModelError, OptionError, WindowError
from gbistat.inference.background_family import BackgroundFamily
from gbistat.inference.learned_signal import learned_signal_data
from gbistat.learned_signal_workflow import LearnedSignalOptions, run_learned_signal
from gbistat.terms.certificates import attach_certificate
from gbistat.terms.metadata import CertificateRecord
from gbistat.terms.store import load_model

WINDOW = MassWindow(3300.0, 3700.0, "GeV")


@pytest.fixture(scope="module")
def files(learned, tmp_path_factory):
    folder = tmp_path_factory.mktemp("learned")
    learned.save(folder)
    learned.save_events(folder / "signal.npz", learned.events(n_signal=120), 120)
    learned.save_events(folder / "null.npz", learned.events())
    return folder


@pytest.fixture(scope="module")
def written(files):
    arguments = ["limits", "--model", str(files / "model"), "--events", str(files / "signal.npz"), "--labels", "label"]
    result = CliRunner().invoke(cli, [*arguments, "--output", str(files / "out")], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output, files / "out"


def data(learned, events, **family):
    spec = learned.spec()
    terms = {"found": learned.signal(), "uniform": learned.generator()}
    rng = np.random.default_rng(1)
    return learned_signal_data(spec, terms, events, WINDOW, family=BackgroundFamily(**family), rng=rng)


def test_log_ratios_are_those_of_the_closed_form(learned):
    found = data(learned, learned.events(n=4000))
    t, mass = found.events.feature("t"), found.events.mass
    log_s = np.log([a * t ** (a - 1.0) for a in (40.0, 30.0)]) - np.log(400.0)
    log_x = np.log(0.5 * (1.02 * t**0.02 + 0.98 * t**-0.02))
    log_m = found.background.sidebands.density().log_prob(mass, np.zeros(1))
    np.testing.assert_allclose(found.log_ratio, log_s - log_x - log_m, rtol=2e-4, atol=2e-4)
    assert sum(fold.n_events for fold in found.folds) == len(found.events)
    # p_b, two members, and the mass up and down.
    assert found.folds[0].log_background.shape[0] == 5
    np.testing.assert_array_equal(found.folds[0].log_background[0], 0.0)


def test_reference_events_have_ratio_one_on_average(learned):
    found = data(learned, learned.events(n=4000))
    for reference in found.references(20_000, rng=np.random.default_rng(2)):
        # E_b[p_s / p_b] = 1 with variance 20 or so; five standard errors. E_s[p_b / p_s] = 1 in the same way.
        assert np.exp(reference.background).mean() == pytest.approx(1.0, abs=5 * np.sqrt(20 / 20_000))
        np.testing.assert_array_equal(reference.background_nulls[0], 0.0)


def test_output_says_what_holds_and_why_there_is_no_upper_end(written):
    text, _ = written
    assert "ln e against background only" in text
    assert "95 % lower limit" in text
    assert "no upper limit: a signal of unknown density may look like background" in text
    assert "all mixtures of the 2 members of the generator" in text
    assert "for the learned signal density only: fraction" in text
    assert "SIC" in text
    assert "the background has no certificate" in text


def test_the_certificate_of_the_generator_is_heard(files, tmp_path):
    # It came with the term of the generator; diagnostics.json stayed beside the model that was certified.
    shutil.copytree(files / "model", tmp_path / "model")
    short = CertificateRecord(
        verdict="FAIL",
        statement="a tail is missing",
        tolerance=0.2,
        region="sidebands",
        generator="uniform",
        events="qcd.h5",
        model_sha256="0" * 64,
        diagnostics_sha256="0" * 64,
    )
    attach_certificate(load_model(tmp_path / "model"), short, b"{}")
    (tmp_path / "model" / "diagnostics.json").unlink()
    options = resolve_options(model=tmp_path / "model", events=files / "null.npz")
    warnings = run_learned_signal(options, LearnedSignalOptions("mean", n_reference=1000)).warnings
    assert any("is not PASS" in text and "a tail is missing" in text for text in warnings)
    assert not any("no certificate" in text for text in warnings)


def test_json_has_the_schema_and_an_open_end(written):
    content = json.loads((written[1] / "learned_signal.json").read_text())
    assert content["schema"] == "gbistat.learned-signal/1"
    assert content["fraction"]["high"] is None
    assert content["fraction"]["valid_for"] == "any signal"
    assert 0 < content["fraction"]["low"] < 120 / content["n_events"]
    assert content["discovery"]["log_e"] > np.log(20)
    assert content["signal_events"]["low"] == pytest.approx(content["fraction"]["low"] * content["n_events"])
    assert content["mixture_interval"]["valid_for"].startswith("signals that are mixtures")
    assert content["null"]["name"] == "ensemble"


def test_events_are_written_by_falling_score(written):
    with (written[1] / "anomalies.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    scores = np.array([float(row["log_ratio"]) for row in rows])
    assert len(rows) == 1000
    assert np.all(np.diff(scores) <= 0)
    assert float(rows[0]["t"]) > 0.99
    with np.load(written[1] / "anomalies.npz") as arrays:
        assert arrays["log_ratio_members"].shape == (2, arrays["m_jj"].size)
        assert np.all(np.diff(arrays["log_ratio"]) <= 0)
    for name in ("signal_score", "signal_m_jj", "signal_t"):
        assert (written[1] / f"{name}.png").stat().st_size > 10_000


def test_report_shows_the_section(written):
    result = CliRunner().invoke(cli, ["report", str(written[1])], catch_exceptions=False)
    page = (written[1] / "report.html").read_text()
    assert result.exit_code == 0
    assert "A signal learned from the data, 3300.0-3700.0 GeV" in page
    assert "Purest events" in page
    assert "&lt;h2&gt;" not in page


def test_without_signal_nothing_is_claimed_and_a_wider_null_claims_less(files):
    found = {}
    for events in ("null", "signal"):
        for null in ("mean", "ensemble", "wide"):
            options = resolve_options(model=files / "model", events=files / f"{events}.npz")
            report = run_learned_signal(options, LearnedSignalOptions(null, n_reference=1000))
            found[events, null] = report.evidence.log_e
            if events == "null":
                assert report.evidence.log_e < np.log(20)
                assert report.limit.low == 0.0
    assert found["signal", "mean"] > found["signal", "ensemble"] > found["signal", "wide"]


def test_evidence_of_folds_multiplies_where_networks_saw_earlier_folds_only(learned, files, tmp_path):
    learned.save(tmp_path, "earlier")
    chosen = LearnedSignalOptions("mean", n_reference=1000)
    reports = [
        run_learned_signal(resolve_options(model=folder / "model", events=files / "signal.npz"), chosen)
        for folder in (tmp_path, files)
    ]
    later, others = (report.evidence for report in reports)
    assert (later.scheme, others.scheme) == ("product", "average")
    # The networks are the same here, so that folds 2 and 3 have the same evidence in both; the first gives none.
    assert later.log_e_folds == pytest.approx(others.log_e_folds[1:])
    assert later.n_events == np.sum(reports[0].found.fold > 0)
    # One fraction for all folds, averaged over eleven: at most ln 11 below the best fraction of each fold.
    assert abs(later.log_e - sum(later.log_e_folds)) < 2 * np.log(11)
    assert reports[0].n_events == reports[1].n_events
    assert reports[0].signal_events == reports[0].limit.low * reports[0].n_events


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "neyman"], "--method neyman needs a signal of known density"),
        (["--jobs", "2"], "--jobs is for toys"),
        (["--ensemble", "profiled"], "--ensemble profiled does not apply"),
        (["--window", "3400", "3600"], "is not 3300-3700 GeV, on which the signal 'found' was learned"),
        (["--window", "3300", "3700", "--window", "3400", "3600"], "2 windows for model 'learned'"),
    ],
)
def test_options_that_do_not_apply_are_refused(files, arguments, message):
    start = ["limits", "--model", str(files / "model"), "--events", str(files / "null.npz")]
    with pytest.raises(GbistatError, match=message):
        CliRunner().invoke(cli, [*start, *arguments], catch_exceptions=False, standalone_mode=False)


def test_other_verbs_say_that_the_signal_is_learned(files):
    start = ["--model", str(files / "model"), "--events", str(files / "null.npz")]
    with pytest.raises(ModelError, match="was learned from the data and has no binned twin; use gbistat limits"):
        CliRunner().invoke(cli, ["compare", *start], catch_exceptions=False, standalone_mode=False)
    with pytest.raises(OptionError, match="--null is for a signal learned from data"):
        CliRunner().invoke(cli, ["limits", "--null", "wide"], catch_exceptions=False, standalone_mode=False)


def test_errors(learned):
    with pytest.raises(OptionError, match="there is no null 'wild'; nearest names: wide"):
        LearnedSignalOptions("wild")
    with pytest.raises(WindowError, match="was learned; give that one"):
        learned_signal_data(
            learned.spec(),
            {"found": learned.signal(), "uniform": learned.generator()},
            learned.events(n=500),
            MassWindow(3300.0, 3600.0, "GeV"),
            family=BackgroundFamily(),
            rng=np.random.default_rng(1),
        )
    few = learned.events(n=300)
    inside = np.flatnonzero((few.mass >= 3300) & (few.mass < 3700))
    outside = np.flatnonzero((few.mass < 3300) | (few.mass >= 3700))
    with pytest.raises(EventsError, match=r"no event of fold \d of 3 in the window: 1 events are too few"):
        data(learned, few.select(np.r_[outside, inside[:1]]))
