from __future__ import annotations

import functools
import json
import shlex
import socket

import numpy as np
import pytest

from gbistat.cli import main
from gbistat.inference.campaign_dask import DaskCluster

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


TOYS = ("--points", "0,20,60", "--toys", "80")


def test_run_and_status(card, capsys):
    assert gbistat("toys", "run", "card.yaml", *TOYS, "--output", "toys.npz") == 0
    printed = capsys.readouterr()
    assert printed.out == "wrote toys.npz: 240 of 240 toys\n"
    assert "3 points, 240 toys, seed 1" in printed.err
    assert gbistat("toys", "status", "toys.npz") == 0
    assert "240 of 240 toys; complete" in capsys.readouterr().out
    assert gbistat("toys", "status", "toys.npz", "--json") == 0
    status = json.loads(capsys.readouterr().out)
    assert status["complete"]
    assert [point["value"] for point in status["points"]] == [0.0, 20.0, 60.0]
    for point in status["points"]:
        assert point["outcomes"] == {"ok": 80}
        # Five errors of the mean of 80 toys.
        assert abs(point["estimate"] - point["value"]) < 5 * point["spread"] / 80**0.5


def test_more_toys_and_another_number_of_jobs(card, capsys):
    assert gbistat("toys", "run", "card.yaml", *TOYS, "--output", "one.npz") == 0
    assert gbistat("toys", "run", "card.yaml", "--points", "0,20,60", "--toys", "30", "--output", "two.npz") == 0
    assert gbistat("toys", "run", "card.yaml", *TOYS, "--jobs", "2", "--output", "two.npz") == 0
    assert (card / "one.npz").read_bytes() == (card / "two.npz").read_bytes()


def test_a_job_array_gives_the_same_file(card, capsys):
    common = ("toys", "run", "card.yaml", "--toys", "20", "--window", "130", "150.5", "--seed", "4")
    assert gbistat(*common, "--points", "0:40:3", "--output", "whole.npz") == 0
    capsys.readouterr()
    assert gbistat(*common, "--points", "0:40:3", "--jobs", "2", "--output", "toys.npz", "--dry-run") == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines == [
        f"gbistat toys run card.yaml --window 130 150.5 --toys 20 --seed 4 --points 0,20,40 --part {i}/2 "
        f"--output toys.part-{i}-of-2.npz"
        for i in (1, 2)
    ]
    assert sorted(entry.name for entry in card.iterdir()) == ["card.yaml", "events.npz", "whole.npz"]
    for line in lines:
        assert gbistat(*shlex.split(line)[1:]) == 0
    assert gbistat("toys", "status", "toys.part-1-of-2.npz") == 1
    merge = printed.err.split("at the end: ")[1]
    assert gbistat(*shlex.split(merge)[1:]) == 0
    assert (card / "toys.npz").read_bytes() == (card / "whole.npz").read_bytes()
    assert gbistat("toys", "merge", "toys.part-2-of-2.npz", "--output", "half.npz") == 0
    assert "task(s) are missing" in capsys.readouterr().err


def test_default_points_reach_where_limits_end(card, capsys):
    assert gbistat("toys", "run", "card.yaml", "--output", "toys.npz", "--dry-run") == 0
    words = shlex.split(capsys.readouterr().out)
    points = [float(value) for value in words[words.index("--points") + 1].split(",")]
    assert len(points) == 21
    assert points[0] == 0.0
    assert 80.0 < points[-1] < 250.0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--points", "0:10"), 2, "'0:10' is neither LOW:HIGH:COUNT nor A,B,C"),
        (("--points", "5:1:3"), 2, "'5:1:3' is neither"),
        (("--points", "0,x"), 2, "'0,x' is neither"),
        (("--points", "0,nan"), 2, "not finite"),
        (("--points", "1,1"), 1, "give each once"),
        (("--points", "0", "--toys", "0"), 1, "0 toys; ask for at least 1"),
        (("--points", "0", "--seed", "-1"), 2, "-1 is not in the range"),
        (("--points", "0", "--part", "3"), 2, "'3' is not I/N"),
        (("--points", "0", "--part", "3/2"), 1, "part 3/2 does not exist; the parts are 1/2 to 2/2"),
        (("--points", "0", "--jobs", "0"), 2, "--jobs 0: give at least 1"),
        (("--points", "0", "--scheduler", "nowhere"), 1, "'nowhere' is not the address of a Dask scheduler"),
        (("--points", "0", "--window", "110", "120", "--window", "120", "130"), 1, "takes one window, not 2"),
        (("--points", "-1e6"), 1, "the density is negative at"),
    ],
)
def test_bad_input(card, capsys, arguments, code, message):
    assert gbistat("toys", "run", "card.yaml", *arguments, "--output", "toys.npz") == code
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert sorted(entry.name for entry in card.iterdir()) == ["card.yaml", "events.npz"]


def test_places_and_files_that_cannot_be(card, capsys):
    few = ("toys", "run", "card.yaml", "--points", "0,20", "--toys", "10")
    assert gbistat(*few, "--output", "no/toys.npz") == 1
    assert "nothing can be written to no" in capsys.readouterr().err
    assert gbistat(*few, "--output", "events.npz") == 1
    assert "events.npz is not a file of toys" in capsys.readouterr().err
    assert gbistat(*few, "--output", "toys.npz") == 0
    assert gbistat(*few, "--seed", "2", "--output", "toys.npz") == 1
    assert "different campaigns: seed is 2 and 1" in capsys.readouterr().err
    assert gbistat(*few, "--window", "120", "160", "--output", "toys.npz") == 1
    assert "different campaigns" in capsys.readouterr().err
    assert gbistat("toys", "merge", "toys.npz", "events.npz", "--output", "all.npz") == 1
    assert gbistat("toys", "merge", "toys.npz", "none.npz", "--output", "all.npz") == 1
    assert gbistat("toys", "status", "none.npz") == 1
    assert "there is no file of toys none.npz" in capsys.readouterr().err


def test_other_events_are_another_campaign(card, capsys):
    few = ("toys", "run", "card.yaml", "--points", "0,20", "--toys", "10", "--output", "toys.npz")
    assert gbistat(*few) == 0
    with np.load("events.npz") as data:
        np.savez(card / "events.npz", m=data["m"], other=data["m"])
    assert gbistat(*few) == 1
    assert "different campaigns: events_sha256 is" in capsys.readouterr().err


def test_models_are_not_mixed(card, capsys):
    few = ("--points", "0,20", "--toys", "10")
    assert gbistat("toys", "run", "card.yaml", *few, "--output", "a.npz") == 0
    (card / "other.yaml").write_text(CARD.replace("sigma: 5.0", "sigma: 6.0"))
    assert gbistat("toys", "run", "other.yaml", *few, "--output", "b.npz") == 0
    capsys.readouterr()
    assert gbistat("toys", "merge", "a.npz", "b.npz", "--output", "c.npz") == 1
    assert "a.npz and b.npz hold toys of different models (sha256" in capsys.readouterr().err
    assert not (card / "c.npz").exists()


def test_a_scheduler_that_is_not_there(card, capsys, monkeypatch):
    pytest.importorskip("distributed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr("gbistat.toy_workflow.DaskCluster", functools.partial(DaskCluster, connect_timeout=0.3))
    arguments = ("toys", "run", "card.yaml", "--points", "0", "--toys", "10", "--output", "toys.npz")
    assert gbistat(*arguments, "--scheduler", address) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(f"gbistat: error: no Dask scheduler answers at '{address}' within 0.3 s; start one with")
