from __future__ import annotations

import json

import numpy as np
import pytest

from gbistat.cli import main
from gbistat.errors import OptionError
from gbistat.inference.coverage import CoverageResult, CoverageRow
from gbistat.plotting.coverage import draw_coverage, save_coverage

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


@pytest.fixture
def card(tmp_path, monkeypatch):
    """Card and events of a peak on a falling background; the working directory is theirs."""
    rng = np.random.default_rng(8)
    background = 100.0 + rng.exponential(40.0, 4000)
    mass = np.r_[background[background < 200.0], rng.normal(140.0, 5.0, 40)]
    np.savez(tmp_path / "events.npz", m=mass)
    (tmp_path / "card.yaml").write_text(CARD)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def gbistat(*arguments):
    """Exit code of a command."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return stop.value.code


def test_coverage_of_a_card(card, capsys):
    arguments = ("coverage", "card.yaml", "--points", "0,60", "--method", "profile", "--method", "ln2", "--cl", "0.9")
    assert gbistat(*arguments, "--toys", "400", "--output", "out", "--json", "all.json") == 0
    printed = capsys.readouterr()
    assert "wrote out/coverage.png" in printed.out
    document = json.loads((card / "all.json").read_text())
    assert document["schema"] == "gbistat.coverage/1"
    assert document == json.loads((card / "out" / "coverage.json").read_text())
    assert [result["truth"] for result in document["results"]] == [0.0, 60.0]
    profile, ln2 = document["results"][1]["rows"]
    assert (profile["method"], profile["cl"], profile["n_toys"], profile["n_failed"]) == ("profile", 0.9, 400, 0)
    # Four binomial errors of 400 toys: false alarm below 1e-4.
    assert abs(profile["coverage"] - 0.9) < 4 * 0.015
    assert abs(ln2["coverage"] - 0.76) < 4 * 0.0215
    # More toys are added to those that are there; the same numbers come from the same toys.
    assert gbistat(*arguments, "--toys", "500", "--output", "out", "--json", "-") == 0
    more = json.loads(capsys.readouterr().out)
    assert more["results"][1]["rows"][0]["n_toys"] == 500
    assert gbistat(*arguments, "--toys", "500", "--json", "-") == 0
    assert json.loads(capsys.readouterr().out) == more


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--method", "wilks"), 1, "method 'wilks' is unknown"),
        (("--cl", "95"), 1, "confidence level 95 must lie between 0 and 1"),
        (("--toys", "0"), 1, "0 toys, and 1000 for each"),
        (("--inner-toys", "5"), 1, "ask for at least 1 and 100"),
        (("--jobs", "0"), 2, "--jobs 0: give at least 1"),
        (("--points", "a"), 2, "'a' is neither LOW:HIGH:COUNT nor A,B,C"),
        (("--json", "no/all.json"), 1, "nothing can be written to no"),
        (("--scheduler", "nowhere"), 1, "'nowhere' is not the address of a Dask scheduler"),
    ],
)
def test_bad_input(card, capsys, arguments, code, message):
    assert gbistat("coverage", "card.yaml", *arguments) == code
    assert message in capsys.readouterr().err


def results():
    rows = [CoverageRow("profile", 0.9, truth, 100, covered) for truth, covered in ((0.0, 88), (5.0, 91))]
    limits = [CoverageRow("cls", 0.9, truth, 100, 100) for truth in (0.0, 5.0)]
    return [CoverageResult(row.truth, (row, limit)) for row, limit in zip(rows, limits, strict=True)]


def test_plot_shows_every_method(tmp_path):
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    artists = draw_coverage(results(), 0.9, ax, label="coverage at 90 %")
    assert artists["nominal"].get_ydata()[0] == 0.9
    assert list(artists["points"]) == ["profile", "cls"]
    assert artists["points"]["profile"].lines[0].get_ydata().tolist() == [0.88, 0.91]
    assert ax.get_ylim()[0] < 0.85
    assert ax.get_ylim()[1] > 1.0
    assert save_coverage(results(), tmp_path / "coverage.png", poi="mu").stat().st_size > 10_000
    with pytest.raises(OptionError, match=r"no coverage at the level 0\.5"):
        draw_coverage(results(), 0.5, ax, label="")
    with pytest.raises(OptionError, match="no coverage to draw"):
        save_coverage([], tmp_path / "none.png", poi="mu")
