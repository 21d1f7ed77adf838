from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gbistat import extras
from gbistat.errors import CampaignError, MissingExtra, OptionError
from gbistat.inference.campaign import CampaignPlan
from gbistat.inference.campaign_dask import DaskCluster
from gbistat.inference.campaign_files import load_campaign
from gbistat.inference.campaign_run import run_campaign

distributed = pytest.importorskip("distributed")

HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    sys.path.append(HERE)

import campaign_toy_work as works  # noqa: E402


def plan(n_toys=30):
    points = np.array([0.0, 2.0, 5.0, 9.0])
    return CampaignPlan("count/1", "a" * 64, ("s",), points, (n_toys,) * 4, seed=11, chunk_size=10)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Bytes of the file that one worker makes."""
    path = tmp_path_factory.mktemp("expected") / "toys.npz"
    run_campaign(plan(), works.count_toys, path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def cluster():
    """Scheduler with two worker processes."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", silence_logs=50
    ) as running:
        yield running


def test_a_cluster_gives_the_same_bytes_though_a_worker_is_killed(cluster, tmp_path, expected):
    notes = tmp_path / "notes"
    notes.mkdir()
    killed = []

    def kill(progress):
        if progress.n_done == 30 and not killed:
            killed.append(int(next(iter(notes.iterdir())).name))
            os.kill(killed[0], signal.SIGKILL)

    path = tmp_path / "toys.npz"
    executor = DaskCluster(cluster.scheduler_address)
    run_campaign(plan(), works.SlowToys(notes, 0.2), path, executor=executor, progress=kill)
    assert killed
    assert path.read_bytes() == expected
    done = {note.name: len(note.read_text().split()) for note in notes.iterdir()}
    assert len(done) >= 2, f"one process did everything: {done}"
    assert sum(done.values()) >= 12


def test_a_worker_that_dies_in_the_middle_of_a_task(cluster, tmp_path, expected):
    path = tmp_path / "toys.npz"
    run_campaign(plan(), works.DeadlyToys(tmp_path, 5.0), path, executor=DaskCluster(cluster.scheduler_address))
    assert (tmp_path / "death0").exists()
    assert path.read_bytes() == expected


def test_a_local_cluster_for_the_time_of_the_run(tmp_path, expected):
    path = tmp_path / "toys.npz"
    run_campaign(plan(), works.count_toys, path, executor=DaskCluster("local", 1))
    assert path.read_bytes() == expected


def test_the_work_is_taken_off_the_workers(cluster, tmp_path):
    run_campaign(plan(10), works.count_toys, executor=DaskCluster(cluster.scheduler_address))
    with distributed.Client(cluster.scheduler_address, set_as_default=False) as client:
        plugins = client.run(lambda dask_worker: [name for name in dask_worker.plugins if name.startswith("gbistat")])
        assert set(map(tuple, plugins.values())) == {()}
        assert all(count == 1 for count in client.run(_blas_threads).values())


def _blas_threads():
    import threadpoolctl

    return max(pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas")


def test_an_error_of_the_work_comes_back(cluster, tmp_path):
    with pytest.raises(
        CampaignError, match=r"'count/1' at point \d \(s = \d\), chunk \d returned 'q' of shape \(11,\)"
    ):
        run_campaign(plan(), works.wrong_toys, executor=DaskCluster(cluster.scheduler_address))


def test_workers_of_another_version_are_refused(cluster, monkeypatch):
    monkeypatch.setitem(sys.modules["gbistat.inference.campaign_run"].VERSIONS, "numpy", "1.26.0")
    with pytest.raises(
        CampaignError, match=r"the Dask worker tcp://\S+ has numpy .*, and the campaign runs with 1\.26\.0"
    ):
        run_campaign(plan(), works.count_toys, executor=DaskCluster(cluster.scheduler_address))


def test_a_scheduler_that_is_not_there(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    begin = time.monotonic()
    with pytest.raises(CampaignError, match=r"no Dask scheduler answers at '.*' within 0\.5 s") as caught:
        run_campaign(
            plan(), works.count_toys, tmp_path / "toys.npz", executor=DaskCluster(address, connect_timeout=0.5)
        )
    assert time.monotonic() - begin < 5.0
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_port_where_something_else_listens():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(CampaignError, match="no Dask scheduler answers"):
            run_campaign(plan(), works.count_toys, executor=DaskCluster(address, connect_timeout=0.5))


def test_a_scheduler_without_workers():
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0") as empty,
        pytest.raises(CampaignError, match=r"got no worker within 0\.3 s; start some with 'dask worker tcp://"),
    ):
        run_campaign(plan(), works.count_toys, executor=DaskCluster(empty.scheduler_address, worker_timeout=0.3))


SCHEDULER = """
import sys, time, distributed
sys.path.extend({path})
if __name__ == "__main__":
    cluster = distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0")
    print(cluster.scheduler_address, flush=True)
    time.sleep(60)
"""


def test_workers_that_cannot_load_the_work(cluster, tmp_path, monkeypatch):
    (tmp_path / "work_that_only_i_have.py").write_text("def toys(point, n_toys, *, rng):\n    return {}\n")
    monkeypatch.syspath_prepend(tmp_path)
    work = importlib.import_module("work_that_only_i_have").toys
    message = r"worker at 'tcp://\S+' cannot load the work 'count/1' \(No module named 'work_that_only_i_have'\)"
    with pytest.raises(CampaignError, match=message):
        run_campaign(plan(), work, executor=DaskCluster(cluster.scheduler_address))


def test_a_scheduler_that_goes_away(tmp_path, expected):
    script = tmp_path / "scheduler.py"
    script.write_text(SCHEDULER.format(path=[HERE]))
    notes = tmp_path / "notes"
    notes.mkdir()
    path = tmp_path / "toys.npz"
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:

        def kill(progress):
            if progress.n_done == 20:
                process.kill()

        address = process.stdout.readline().decode().strip()
        begin = time.monotonic()
        with pytest.raises(CampaignError, match=r"went away .*; what is done is kept: run again to go on"):
            run_campaign(
                plan(),
                works.SlowToys(notes, 0.2),
                path,
                executor=DaskCluster(address, connect_timeout=1),
                progress=kill,
            )
        assert time.monotonic() - begin < 40.0
    assert load_campaign(path).n_done() >= 20
    run_campaign(plan(), works.count_toys, path)
    assert path.read_bytes() == expected


@pytest.mark.parametrize("address", ["", "nonsense", "tcp://host", "http://host:8786/status"])
def test_what_is_no_address(address):
    with pytest.raises(OptionError, match="is not the address of a Dask scheduler; give one like"):
        DaskCluster(address)


def test_without_dask(monkeypatch):
    def absent():
        raise MissingExtra("running toys on a Dask cluster needs the package 'distributed'")

    monkeypatch.setattr(extras, "distributed", absent)
    with pytest.raises(MissingExtra, match="needs the package 'distributed'"):
        run_campaign(plan(), works.count_toys, executor=DaskCluster("tcp://127.0.0.1:8786"))


def test_no_processes():
    with pytest.raises(OptionError, match="0 processes"):
        DaskCluster("local", 0)
