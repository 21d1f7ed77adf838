"""``--method``: intervals by toys and by CLs on the command line, in a card and from a script."""

from __future__ import annotations

import json

import numpy as np
import pytest

import gbistat as package
from gbistat.cli import main
from gbistat.config import read_card, resolve_options
from gbistat.errors import CardError, ModelError, OptionError
from gbistat.inference.method_options import MethodOptions
from gbistat.inference.methods import intervals_by_method
from gbistat.inference.neyman import neyman_interval
from gbistat.inference.neyman_problem import problem_of_toys
from gbistat.inference.toys import ToyModel
from gbistat.plotting.neyman import draw_neyman

CARD = """
events: {path: events.npz}
windows: [[130, 150]]
model:
  mass: {name: m, unit: GeV}
  signal:
    mass: {shape: gaussian, parameters: {mean: 140.0, sigma: 5.0}}
  background:
    mass: {shape: exponential}
    fit_range: [100, 200]
"""
FEW = ("--max-toys", "30000", "--precision", "0.1")


@pytest.fixture
def card(tmp_path, monkeypatch):
    """Card and events: a falling background with a hole where the signal would be."""
    rng = np.random.default_rng(12)
    mass = 100.0 + rng.exponential(40.0, 1200)
    mass = mass[mass < 200.0]
    hole = (np.abs(mass - 140.0) < 5.0) & (rng.random(mass.size) < 0.25)
    np.savez(tmp_path / "events.npz", m=mass[~hole])
    (tmp_path / "card.yaml").write_text(CARD)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *arguments, code=0):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert stop.value.code == code, captured.err
    return captured


def result_of(capsys, *arguments):
    document = json.loads(run(capsys, *arguments, "--json", "-").out)
    (result,) = document["results"]
    return result


def test_feldman_cousins_stays_at_0_and_above_where_profile_and_neyman_go_below(card, capsys):
    profile = result_of(capsys, "fit", "card.yaml")
    assert profile["method"] == "profile"
    assert "by_method" not in profile
    bounded = result_of(capsys, "fit", "card.yaml", "--method", "feldman-cousins", *FEW)
    assert bounded["method"] == "feldman-cousins"
    mu = bounded["fit"]["mu"]
    assert mu["profile_intervals"] == profile["fit"]["mu"]["intervals"]
    assert mu["value"] < 0
    for level in ("0.6827", "0.95"):
        ((low, high),) = mu["intervals"][level]
        assert low == 0.0
        assert high > 0.0
    record = bounded["by_method"]
    assert record["n_toys"] > 1000
    assert record["seed"] == 1
    assert [interval["cl"] for interval in record["intervals"]] == [0.6827, 0.95]
    assert record["pools"][0]["kind"] == "quadrature"
    unbounded = result_of(capsys, "fit", "card.yaml", "--method", "neyman", *FEW)
    ((low, high),) = unbounded["fit"]["mu"]["intervals"]["0.95"]
    ((low_profile, high_profile),) = profile["fit"]["mu"]["intervals"]["0.95"]
    assert low < 0
    # Hundreds of events: Wilks holds to 10 % of the width, Monte Carlo errors are 5 %.
    width = high_profile - low_profile
    assert (low, high) == (pytest.approx(low_profile, abs=0.15 * width), pytest.approx(high_profile, abs=0.15 * width))


def test_the_number_of_processes_changes_nothing(card, capsys):
    arguments = ("fit", "card.yaml", "--method", "feldman-cousins", *FEW, "--seed", "5")
    one = result_of(capsys, *arguments)
    assert result_of(capsys, *arguments, "--jobs", "2") == one
    assert result_of(capsys, *arguments[:-1], "6")["fit"]["mu"]["intervals"] != one["fit"]["mu"]["intervals"]
    arguments = ("limits", "card.yaml", "--method", "cls-toys", "--min-toys", "500", "--max-toys", "500", "--no-binned")
    one = result_of(capsys, *arguments)
    assert result_of(capsys, *arguments, "--jobs", "2") == one


def test_it_is_the_construction_of_the_package(card, capsys):
    result = result_of(capsys, "fit", "card.yaml", "--method", "feldman-cousins", *FEW, "--seed", "5")
    options = MethodOptions("feldman-cousins", seed=5, precision=0.1, max_toys=30_000)
    analysis = package.prepare(card=read_card(card / "card.yaml"))
    model = ToyModel.from_analysis(analysis)
    rng = np.random.default_rng(5).spawn(2)[0]
    direct = neyman_interval(problem_of_toys(model), cl=0.6827, rng=rng, options=options.neyman_options())
    assert result["by_method"]["intervals"][0]["segments"] == [list(segment) for segment in direct.segments]


def test_cls_is_from_0_to_the_limit(card, capsys):
    result = result_of(capsys, "limits", "card.yaml", "--method", "cls", "--no-binned")
    assert result["fit"]["mu"]["intervals"]["0.95"] == [[0.0, pytest.approx(result["limit"]["observed"], rel=1e-9)]]
    assert result["fit"]["mu"]["intervals"]["0.6827"][0][1] < result["limit"]["observed"]
    fit = result_of(capsys, "fit", "card.yaml", "--method", "cls")
    for level, segments in result["fit"]["mu"]["intervals"].items():
        assert fit["fit"]["mu"]["intervals"][level] == [[0.0, pytest.approx(segments[0][1], rel=1e-9)]]


def test_cls_by_toys_beside_the_asymptotic_limit(card, capsys):
    arguments = ("limits", "card.yaml", "--method", "cls-toys", "--precision", "0.04", "--no-binned")
    result = result_of(capsys, *arguments)
    limit = result["limit"]
    assert limit["method"] == "cls-toys"
    assert result["fit"]["mu"]["intervals"]["0.95"] == [[0.0, limit["observed"]]]
    plain = result_of(capsys, "limits", "card.yaml", "--no-binned")
    assert limit["asymptotic"] == plain["limit"]
    asymptotic = plain["limit"]
    # Hundreds of events: asymptotics are right to a few per cent; false alarm below 1e-4.
    assert limit["observed"] == pytest.approx(asymptotic["observed"], abs=4 * limit["error"] + 0.05 * limit["observed"])
    for k in (1, 2, 3):
        allowed = 4 * limit["expected_errors"][k] + 0.05 * limit["expected"][k]
        assert limit["expected"][k] == pytest.approx(asymptotic["expected"][k], abs=allowed)
    assert limit["expected"] == sorted(limit["expected"])
    assert result["by_method"]["significance"]["p0_local"] == 1.0


def test_tables_and_figures_name_the_method(card, capsys):
    printed = run(capsys, "limits", "card.yaml", "--method", "feldman-cousins", *FEW, "--no-binned", "--output", "out")
    assert "95 % Feldman-Cousins" in printed.out
    assert "compressed toys with seed 1" in printed.out
    assert (card / "out" / "neyman.png").stat().st_size > 10_000
    printed = run(
        capsys, "limits", "card.yaml", "--method", "cls-toys", "--max-toys", "2000", "--no-binned", "--output", "cls"
    )
    assert "by toys, observed" in printed.out
    assert (card / "cls" / "cls.png").is_file()
    assert not (card / "cls" / "neyman.png").exists()


def test_a_card_may_name_the_method_and_the_command_line_overrides_it(card):
    (card / "short.yaml").write_text(CARD + "method: neyman\n")
    assert resolve_options(read_card(card / "short.yaml")).method == MethodOptions("neyman")
    (card / "long.yaml").write_text(CARD + "method: {name: cls-toys, seed: 7, precision: 0.05, min_toys: 500}\n")
    options = read_card(card / "long.yaml")
    assert resolve_options(options).method == MethodOptions("cls-toys", seed=7, precision=0.05, min_toys=500)
    changed = resolve_options(options, method={"name": "feldman-cousins", "seed": None, "jobs": 2}).method
    assert changed == MethodOptions("feldman-cousins", seed=7, precision=0.05, min_toys=500, jobs=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "feldman-cousin"}, "'feldman-cousin' is unknown; nearest names: feldman-cousins"),
        ({"name": "neyman", "seed": -1}, "seed -1 is negative"),
        ({"name": "neyman", "jobs": 0}, "0 processes"),
        ({"name": "neyman", "precision": 0.0}, "precision 0 must be above 0"),
        ({"name": "neyman", "min_toys": 0}, "at least one toy"),
        ({"name": "neyman", "min_toys": 100, "max_toys": 50}, "min_toys 100 and max_toys 50"),
        ({"name": "cls-toys", "min_toys": 10}, "at least 100"),
        ({"name": "neyman", "form": "exakt"}, "form of toys 'exakt' is unknown"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(OptionError, match=message):
        MethodOptions(**options)


def test_bad_requests_on_the_command_line(card, capsys):
    assert "'bayes'" in run(capsys, "fit", "card.yaml", "--method", "bayes", code=2).err
    printed = run(capsys, "fit", "card.yaml", "--method", "neyman", "--max-toys", "0", code=1).err
    assert "max_toys 0" in printed
    assert "Traceback" not in printed
    (card / "bad.yaml").write_text(CARD + "method: {name: neyman, toys: 3}\n")
    with pytest.raises(CardError, match="toys"):
        read_card(card / "bad.yaml")
    analysis = package.prepare(card=read_card(card / "card.yaml"))
    with pytest.raises(OptionError, match="need no toys"):
        intervals_by_method(analysis, [0.9], MethodOptions())


def test_a_model_without_reference_events_has_no_toys(monkeypatch, capsys):
    monkeypatch.setattr("gbistat.workflow.load_reference", lambda model: None)
    analysis = package.prepare(window=(3300, 3700))
    with pytest.raises(ModelError, match="no reference events in the window"):
        intervals_by_method(analysis, [0.9], MethodOptions("feldman-cousins"))
    with pytest.raises(OptionError, match="no reference events in the window"):
        intervals_by_method(analysis, [0.9], MethodOptions("cls"))


def test_the_figure_shows_data_critical_values_and_ends(card, axes_of_a_figure):
    analysis = package.prepare(card=read_card(card / "card.yaml"))
    options = MethodOptions("neyman", precision=0.1, max_toys=30_000)
    intervals = intervals_by_method(analysis, [0.95, 0.6827], options, significance=False).intervals
    artists = draw_neyman(intervals, axes_of_a_figure, label="signal events")
    assert axes_of_a_figure.get_xlabel() == "signal events"
    texts = [text.get_text() for text in artists["legend"].get_texts()]
    assert texts[0] == "data"
    assert [text.split(":")[0] for text in texts[1:]] == ["68.27 %", "95 %"]
    for line, interval in zip(artists["ends"], sorted(intervals, key=lambda i: i.cl), strict=True):
        np.testing.assert_allclose(line.get_xdata(), interval.segments[0])
    with pytest.raises(OptionError, match="intervals of one parameter"):
        draw_neyman([], axes_of_a_figure)


@pytest.fixture
def axes_of_a_figure():
    from matplotlib.figure import Figure

    return Figure().subplots()
