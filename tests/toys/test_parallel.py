from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import threadpoolctl

from gbistat.errors import OptionError
from gbistat.inference.parallel import Workers, mapping, one_thread

HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    sys.path.append(HERE)

import campaign_toy_work as works  # noqa: E402


def test_the_order_is_that_of_map_and_functions_are_sent_once(tmp_path):
    with mapping(2) as mapper:
        first = works.CountsCopies(tmp_path)
        assert list(mapper(first, range(12), range(100, 112))) == list(range(100, 124, 2))
        # The same function again, as an object of its own: no process reads it twice.
        again = works.CountsCopies(tmp_path)
        assert list(mapper(again, range(6), [1] * 6)) == list(range(1, 7))
        assert list(mapper(pow, [2, 3], [5, 2])) == [32, 9]
        assert list(mapper(again, [], [])) == []
    copies = [path.name.split("-")[1] for path in tmp_path.glob("copy-*")]
    assert 1 <= len(copies) == len(set(copies)) <= 2


def test_a_process_that_dies_is_replaced(tmp_path):
    with Workers(2) as workers:
        result = list(workers.map(works.CountsCopies(tmp_path, deadly=True), range(8), [10] * 8))
    assert (tmp_path / "death").exists()
    assert result == list(range(10, 18))


def test_an_error_comes_back_and_the_processes_go_on():
    with Workers(1) as workers:
        with pytest.raises(ZeroDivisionError):
            list(workers.map(divmod, [1], [0]))
        assert list(workers.map(divmod, [7], [2])) == [(3, 1)]


def test_what_cannot_be():
    with pytest.raises(OptionError, match="0 processes; give at least 1"), mapping(0):
        pass
    with Workers(1) as workers, pytest.raises(OptionError, match="the work cannot be sent to other processes"):
        list(workers.map(lambda a: a, [1]))


def test_one_thread_is_kept_until_the_context_is_left():
    def threads():
        return max(pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas")

    with threadpoolctl.threadpool_limits(2):
        with one_thread():
            assert threads() == 1
        assert threads() == 2
        with mapping(1) as mapper:
            assert mapper is map
            assert threads() == 1
        with mapping(2) as mapper:
            workers = set(mapper(works.blas_threads, range(4)))
        assert workers == {1}


def test_a_neyman_construction_does_not_depend_on_the_number_of_processes():
    from test_toy_campaign import make_toy_model

    from gbistat.inference.neyman import NeymanScan
    from gbistat.inference.neyman_problem import problem_of_toys
    from gbistat.inference.neyman_results import NeymanOptions

    model = make_toy_model()
    ends = []
    for jobs in (1, 2):
        with mapping(jobs) as mapper:
            options = NeymanOptions(min_toys=300, max_toys=20_000, precision=0.2)
            rng = np.random.default_rng(4)
            scan = NeymanScan(problem_of_toys(model), rng=rng, options=options, mapper=mapper)
            interval = scan.interval(cl=0.9)
        ends.append((interval.segments, interval.errors, interval.n_toys))
    assert ends[0] == ends[1]
