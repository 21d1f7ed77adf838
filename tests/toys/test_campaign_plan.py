from __future__ import annotations

import numpy as np
import pytest

from gbistat.errors import CampaignError, OptionError, ToyFileError
from gbistat.inference.campaign import Campaign, CampaignPlan, Task, checked_columns
from gbistat.inference.campaign_merge import merge_campaigns


def plan(**changes):
    options = {
        "work": "count/1",
        "model_sha256": "a" * 64,
        "parameters": ("mu",),
        "points": np.array([0.0, 1.0, 2.0]),
        "n_toys": (25, 10, 20),
        "seed": 7,
        "chunk_size": 10,
        "settings": {"test": "q"},
    }
    return CampaignPlan(**(options | changes))


def test_tasks_cover_every_toy_once_and_points_evenly():
    tasks = plan().tasks()
    assert tasks[:3] == [Task(0, 0, 10), Task(1, 0, 10), Task(2, 0, 10)]
    assert tasks[3:] == [Task(0, 1, 10), Task(2, 1, 10), Task(0, 2, 5)]


@pytest.mark.parametrize("n", [1, 2, 4, 9])
def test_parts_share_the_tasks(n):
    shares = [plan().tasks((i, n)) for i in range(1, n + 1)]
    assert sorted(task for share in shares for task in share) == sorted(plan().tasks())
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("part", [(0, 3), (4, 3), (1, 0)])
def test_a_part_that_does_not_exist(part):
    with pytest.raises(OptionError, match=f"part {part[0]}/{part[1]}"):
        plan().tasks(part)


def test_seeds_are_those_of_spawned_children():
    child = np.random.SeedSequence(7).spawn(3)[2].spawn(2)[1]
    expected = np.random.default_rng(child).random(5)
    assert np.array_equal(plan().rng(2, 1).random(5), expected)


def test_random_numbers_depend_on_nothing_but_seed_and_place():
    first = plan().rng(1, 0).random(5)
    assert np.array_equal(plan(n_toys=(90, 90, 90)).rng(1, 0).random(5), first)
    assert not np.array_equal(plan().rng(0, 1).random(5), first)
    assert not np.array_equal(plan(seed=8).rng(1, 0).random(5), first)


def test_hash_covers_all_but_the_number_of_toys():
    base = plan().sha256
    assert plan(n_toys=(1, 2, 3)).sha256 == base
    changes = (
        {"work": "count/2"},
        {"model_sha256": "b" * 64},
        {"parameters": ("nu",)},
        {"points": np.array([0.0, 1.0, np.nextafter(2.0, 3.0)])},
        {"seed": 8},
        {"chunk_size": 11},
        {"settings": {"test": "t"}},
    )
    assert len({base, *(plan(**change).sha256 for change in changes)}) == len(changes) + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": np.zeros((0, 1)), "n_toys": ()}, r"points of shape \(0, 1\)"),
        ({"points": np.array([0.0, np.nan, 1.0])}, r"point 1 is \[nan\]; every value must be finite"),
        ({"n_toys": (1, 2)}, "2 numbers of toys for 3 points"),
        ({"n_toys": (5, 0, 5)}, "0 toys at a point; a campaign needs at least 1"),
        ({"chunk_size": 0}, "a chunk of 0 toys"),
        ({"seed": -1}, "seed -1 is negative"),
        ({"settings": {"x": float("nan")}}, "must be plain JSON"),
        ({"settings": {"x": np.zeros(2)}}, "must be plain JSON"),
    ],
)
def test_plans_that_cannot_be(change, message):
    with pytest.raises(OptionError, match=message):
        plan(**change)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({}, "returned no columns"),
        ({"q": np.zeros(9)}, r"'q' of shape \(9,\)"),
        ({"q": np.array(["a"] * 10)}, "it must be numbers, 10 rows"),
        ({"q": np.zeros(10, dtype=object)}, "it must be numbers, 10 rows"),
        ({"q/r": np.zeros(10)}, "a column 'q/r'"),
        ({"task_point": np.zeros(10)}, "a column 'task_point'"),
    ],
)
def test_results_that_cannot_be_stored(result, message):
    with pytest.raises(CampaignError, match=message):
        checked_columns(plan(), Task(1, 0, 10), result)


def done(a_plan, places, shift=0.0):
    chunks = {}
    for place in places:
        size = a_plan.size_of(*place)
        chunks[place] = {"q": a_plan.rng(*place).random(size) + shift}
    return Campaign(a_plan, chunks, {"gbistat": ("1",)})


def same(one, other):
    assert one.places == other.places
    assert one.plan.to_json() == other.plan.to_json()
    assert one.versions == other.versions
    assert all(np.array_equal(one.column(name), other.column(name)) for name in one.names)


def test_campaign_knows_what_is_done():
    campaign = done(plan(), [(0, 2), (2, 0), (0, 0)])
    assert campaign.places == [(0, 0), (0, 2), (2, 0)]
    assert (campaign.n_done(), campaign.n_done(0), campaign.n_done(1)) == (25, 15, 0)
    assert campaign.missing() == [Task(1, 0, 10), Task(0, 1, 10), Task(2, 1, 10)]
    assert campaign.missing((2, 3)) == [Task(1, 0, 10), Task(2, 1, 10)]
    assert not campaign.complete
    assert campaign.point_of_toy().tolist() == [0] * 15 + [2] * 10
    assert np.array_equal(campaign.column("q", 0), np.r_[plan().rng(0, 0).random(10), plan().rng(0, 2).random(5)])
    with pytest.raises(CampaignError, match="have no column 'qq'; nearest names: q"):
        campaign.column("qq")
    with pytest.raises(CampaignError, match="no toys are done at mu = 1 yet"):
        campaign.column("q", 1)


def test_merge_does_not_depend_on_the_order():
    parts = [done(plan(), [(0, 0), (2, 1)]), done(plan(), [(1, 0), (0, 0)]), done(plan(), [(0, 2), (0, 1), (2, 0)])]
    merged = merge_campaigns(parts)
    assert merged.complete
    for order in ([2, 1, 0], [1, 2, 0], [0, 2, 1]):
        same(merge_campaigns([parts[i] for i in order]), merged)
    same(merge_campaigns([merge_campaigns(parts[1:]), parts[0]]), merged)


def test_more_toys_keep_those_that_are_there():
    short, long = plan(), plan(n_toys=(40, 10, 20))
    few = done(short, [(0, 0), (0, 1), (0, 2)])
    more = done(long, [(0, 2), (0, 3)])
    for pair in ([few, more], [more, few]):
        merged = merge_campaigns(pair)
        assert merged.plan.n_toys == (40, 10, 20)
        # The last chunk of the shorter campaign had 5 toys; the one of 10 takes its place.
        assert merged.n_done(0) == 40
        assert np.array_equal(merged.column("q", 0)[:20], few.column("q", 0)[:20])


def test_a_short_chunk_counts_as_missing_in_a_longer_plan():
    merged = merge_campaigns([done(plan(), [(0, 2)]), Campaign(plan(n_toys=(30, 10, 20)))])
    assert Task(0, 2, 10) in merged.missing()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_sha256": "b" * 64}, r"x and y hold toys of different models \(sha256 a{12} and b{12}\)"),
        ({"seed": 8}, "x and y belong to different campaigns: seed is 7 and 8"),
        ({"settings": {"test": "t"}}, 'different campaigns: test is "q" and "t"'),
        ({"chunk_size": 5}, "chunk_size is 10 and 5"),
    ],
)
def test_campaigns_that_must_not_be_mixed(change, message):
    with pytest.raises(ToyFileError, match=message):
        merge_campaigns([done(plan(), [(0, 0)]), done(plan(**change), [(1, 0)])], ["x", "y"])


def test_a_chunk_that_differs_is_an_error():
    with pytest.raises(ToyFileError, match="x and y both hold chunk 0 at mu = 1, and its column 'q' differs"):
        merge_campaigns([done(plan(), [(1, 0)]), done(plan(), [(1, 0)], shift=1e-15)], ["x", "y"])


@pytest.mark.parametrize(
    ("place", "chunk", "odd"),
    [
        ((0, 1), {"q": np.zeros(10), "r": np.zeros(10)}, "r"),
        ((0, 1), {"r": np.zeros(10)}, "q, r"),
        ((1, 0), {"q": np.zeros((10, 2))}, "q"),
        ((1, 0), {"q": np.zeros(10, dtype=np.int64)}, "q"),
    ],
)
def test_other_columns_are_an_error(place, chunk, odd):
    campaigns = [done(plan(), [(0, 0)]), Campaign(plan(), {place: chunk})]
    with pytest.raises(ToyFileError, match=rf"x and y do not have the same columns: {odd} differ"):
        merge_campaigns(campaigns, ["x", "y"])
    merge_campaigns([done(plan(), [(0, 0)]), Campaign(plan(), {(1, 0): {"r": np.zeros(10)}})])


def test_nothing_to_merge():
    with pytest.raises(ToyFileError, match="no files of toys to merge"):
        merge_campaigns([])
