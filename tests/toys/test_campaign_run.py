from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import threadpoolctl

from gbistat.errors import CampaignError, GbistatError, OptionError, OutputError, ToyFileError
from gbistat.inference.campaign import CampaignPlan
from gbistat.inference.campaign_files import load_campaign, merge_files, read_campaign
from gbistat.inference.campaign_journal import journal_path
from gbistat.inference.campaign_run import VERSIONS, Processes, Progress, Serial, Unit, run_campaign

HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    sys.path.append(HERE)

import campaign_toy_work as works  # noqa: E402


def plan(n_toys=30, **changes):
    points = np.array([0.0, 2.0, 5.0, 9.0])
    options = {"seed": 11, "chunk_size": 10} | changes
    return CampaignPlan("count/1", "a" * 64, ("s",), points, (n_toys,) * 4, **options)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Bytes of the file that one worker makes."""
    path = tmp_path_factory.mktemp("expected") / "toys.npz"
    run_campaign(plan(), works.count_toys, path)
    return path.read_bytes()


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A process that ended and was not waited for yet counts as dead.
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_toys_are_those_of_the_plan(tmp_path):
    campaign = run_campaign(plan(), works.count_toys, tmp_path / "toys.npz")
    assert campaign.complete
    chunk = works.count_toys(np.array([5.0]), 10, rng=plan().rng(2, 1))
    for name in ("n", "q"):
        assert np.array_equal(campaign.chunks[2, 1][name], chunk[name])
    assert read_campaign(tmp_path / "toys.npz").complete
    assert not journal_path(tmp_path / "toys.npz").exists()


def test_without_a_file(expected):
    campaign = run_campaign(plan(), works.count_toys)
    assert campaign.complete


def test_progress(tmp_path):
    seen = []
    path = tmp_path / "toys.npz"
    run_campaign(plan(), works.count_toys, path, part=(1, 2), progress=seen.append)
    assert seen == [Progress(n, 60) for n in range(0, 70, 10)]
    seen.clear()
    run_campaign(plan(), works.count_toys, path, progress=seen.append)
    assert seen[0] == Progress(60, 120, 60)
    assert seen[-1] == Progress(120, 120, 60)


def test_two_processes_give_the_same_bytes(tmp_path, expected):
    path = tmp_path / "toys.npz"
    run_campaign(plan(), works.count_toys, path, executor=Processes(2))
    assert path.read_bytes() == expected


def test_parts_of_independent_jobs_give_the_same_bytes(tmp_path, expected):
    parts = [tmp_path / f"{i}.npz" for i in (3, 1, 2)]
    for path in parts:
        run_campaign(plan(), works.count_toys, path, part=(int(path.stem), 3))
    merge_files(parts, tmp_path / "toys.npz")
    assert (tmp_path / "toys.npz").read_bytes() == expected


def test_more_toys_later_give_the_same_bytes(tmp_path, expected):
    path = tmp_path / "toys.npz"
    run_campaign(plan(14), works.count_toys, path)
    run_campaign(plan(), works.count_toys, path)
    assert path.read_bytes() == expected
    # Fewer toys than there are: nothing to do, and nothing is thrown away.
    run_campaign(plan(14), works.count_toys, path)
    assert path.read_bytes() == expected


def forbidden(point, n_toys, *, rng):
    raise AssertionError("this was done before")


def test_what_is_done_is_not_done_again(tmp_path, expected, monkeypatch):
    monkeypatch.setitem(VERSIONS, "gbistat", "99.0")  # which stands in a file only where it made toys
    path = tmp_path / "toys.npz"
    path.write_bytes(expected)
    assert run_campaign(plan(), forbidden, path).complete
    assert path.read_bytes() == expected


class Fragile:
    """Fails at the sixth task; an interrupt or an error."""

    def __init__(self, error):
        self.error, self.calls = error, 0

    def __call__(self, point, n_toys, *, rng):
        self.calls += 1
        if self.calls == 6:
            raise self.error
        return works.count_toys(point, n_toys, rng=rng)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ZeroDivisionError(), OptionError("no such toy")], ids=repr)
def test_an_error_keeps_what_is_done(tmp_path, expected, error):
    path = tmp_path / "toys.npz"
    with pytest.raises(type(error)):
        run_campaign(plan(), Fragile(error), path)
    assert not path.exists()
    assert load_campaign(path).n_done() == 50
    seen = []
    run_campaign(plan(), works.count_toys, path, progress=seen.append)
    assert seen[0].n_restored == 50
    assert path.read_bytes() == expected
    assert [entry.name for entry in tmp_path.iterdir()] == ["toys.npz"]


def test_a_worker_that_dies_is_replaced(tmp_path, expected):
    path = tmp_path / "toys.npz"
    run_campaign(plan(), works.DeadlyToys(tmp_path, 5.0), path, executor=Processes(2))
    assert (tmp_path / "death0").exists()
    assert path.read_bytes() == expected


def test_workers_that_keep_dying_are_an_error(tmp_path):
    path = tmp_path / "toys.npz"
    with pytest.raises(CampaignError, match="worker processes died 3 times in a row, at s = 9: out of memory"):
        run_campaign(plan(10), works.DeadlyToys(tmp_path, 9.0, 99), path, executor=Processes(1))
    assert load_campaign(path).n_done() == 30


def test_an_error_of_the_work_comes_back_from_a_worker(tmp_path):
    with pytest.raises(
        CampaignError, match=r"'count/1' at point \d \(s = \d\), chunk \d returned 'q' of shape \(11,\)"
    ):
        run_campaign(plan(), works.wrong_toys, tmp_path / "toys.npz", executor=Processes(1))
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_ends_the_workers_in_the_middle_of_a_task(tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()

    def interrupt(progress):
        if progress.n_done:
            raise KeyboardInterrupt

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_campaign(
            plan(), works.SlowToys(notes, 30.0), tmp_path / "toys.npz", executor=Processes(2), progress=interrupt
        )
    assert time.monotonic() - begin < 15.0
    assert not any(alive(int(note.name)) for note in notes.iterdir())
    assert load_campaign(tmp_path / "toys.npz").n_done() == 10


KILLED = """
import sys
from pathlib import Path
sys.path.append({here!r})
import numpy as np
import campaign_toy_work as works
from gbistat.inference.campaign import CampaignPlan
from gbistat.inference.campaign_run import Processes, run_campaign
if __name__ == "__main__":
    points = np.array([0.0, 2.0, 5.0, 9.0])
    plan = CampaignPlan("count/1", "a" * 64, ("s",), points, (30,) * 4, seed=11, chunk_size=10)
    folder = Path({folder!r})
    run_campaign(plan, works.SlowToys(folder / "notes", 0.3), folder / "toys.npz", executor=Processes(2))
"""


def test_a_killed_run_is_gone_on_with(tmp_path, expected):
    """kill -9 loses only what was in work; no process stays behind; a second run at the same time is refused."""
    notes = tmp_path / "notes"
    notes.mkdir()
    path = tmp_path / "toys.npz"
    script = tmp_path / "run.py"
    script.write_text(KILLED.format(here=HERE, folder=str(tmp_path)))
    with subprocess.Popen([sys.executable, str(script)]) as process:

        def chunks():
            with contextlib.suppress(ToyFileError):
                return len(load_campaign(path).chunks)
            return 0

        wait_until(lambda: chunks() >= 3)
        with pytest.raises(OutputError, match="another run is writing"):
            run_campaign(plan(), works.count_toys, path)
        process.send_signal(signal.SIGKILL)
    kept = chunks()
    assert 3 <= kept < 12
    wait_until(lambda: not any(alive(int(note.name)) for note in notes.iterdir()), 5.0)
    tasks = []

    def counted(point, n_toys, *, rng):
        tasks.append(point[0])
        return works.count_toys(point, n_toys, rng=rng)

    run_campaign(plan(), counted, path)
    assert len(tasks) == 12 - kept
    assert path.read_bytes() == expected


def test_bad_files_and_places_are_known_before_any_work(tmp_path):
    path = tmp_path / "toys.npz"
    run_campaign(plan(), works.count_toys, path)
    before = path.read_bytes()
    with pytest.raises(ToyFileError, match=r"the campaign asked for and .*different campaigns: seed is 12 and 11"):
        run_campaign(plan(seed=12), forbidden, path)
    path.write_bytes(before[:-30])
    with pytest.raises(ToyFileError, match="is damaged"):
        run_campaign(plan(), forbidden, path)
    assert path.read_bytes() == before[:-30]
    with pytest.raises(OutputError, match="cannot be written: No such file or directory"):
        run_campaign(plan(), forbidden, tmp_path / "no" / "toys.npz")
    assert [entry.name for entry in tmp_path.iterdir()] == ["toys.npz"]


def test_options_that_cannot_be():
    with pytest.raises(OptionError, match="0 processes; give at least 1"):
        Processes(0)
    with pytest.raises(OptionError, match="'count/1' cannot be sent to other processes"):
        run_campaign(plan(), lambda point, n_toys, *, rng: {}, executor=Processes(1))
    with pytest.raises(OptionError, match="part 5/4 does not exist; the parts are 1/4 to 4/4"):
        run_campaign(plan(), works.count_toys, part=(5, 4))


def test_linear_algebra_has_one_thread():
    """Two threads add 40,000 products in another order; then two workers would not give what one gives."""
    import scipy.linalg  # noqa: F401

    def blas():
        return {pool["filepath"]: pool["num_threads"] for pool in threadpoolctl.threadpool_info()}

    with threadpoolctl.threadpool_limits(1):
        single = works.count_toys(np.array([0.0]), 10, rng=plan().rng(0, 0))
    with threadpoolctl.threadpool_limits(2):
        before = blas()
        campaign = run_campaign(plan(10), works.count_toys, executor=Serial())
        assert blas() == before
    assert campaign.chunks[0, 0]["dots"].tobytes() == single["dots"].tobytes()


def test_work_of_another_version_is_refused():
    unit = Unit(plan(), works.count_toys, {**VERSIONS, "numpy": "1.0"})
    with pytest.raises(GbistatError, match=r"worker 3 has numpy .*, and the campaign runs with 1\.0"):
        unit.check_versions("worker 3")
