"""Cards and events of parametrised classifiers: what is learned from, and what is refused. Keras does not run here."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from gbistat.errors import CardError, EventsError
from gbistat.training.background_card import load_background_card
from gbistat.training.card import dump_card
from gbistat.training.paws import train_paws
from gbistat.training.paws_card import load_paws_card
from gbistat.training.paws_dataset import epoch_set, member_pools, paws_pool, read_signal, with_masses
from gbistat.training.splits import read_sample, split_indices


@pytest.fixture(scope="module")
def pool(paws_card, paws_events):
    card = paws_card()
    return paws_pool(read_sample(paws_events, card.background, card), read_signal(paws_events, card), card)


@pytest.fixture(scope="module")
def signal(paws_card, paws_events):
    return read_signal(paws_events, paws_card())


def points_of(sample, part):
    return {tuple(row) for row in sample.part(part).matrix(("m_X", "m_Y"))}


def test_data_are_whole_mass_points_and_the_rest_is_shared(signal):
    assert sum(rows.size for rows in signal.parts.values()) == len(signal.events)
    assert len(np.unique(np.concatenate(list(signal.parts.values())))) == len(signal.events)
    assert len(points_of(signal, "data")) == 8  # 20 % of 40 points
    assert points_of(signal, "data").isdisjoint(points_of(signal, "train") | points_of(signal, "reference"))
    assert len(signal.part("train")) == 3 * len(signal.part("reference"))


def test_background_has_the_parts_that_every_card_with_the_seed_gives_it(paws_card, paws_events):
    card = paws_card()
    sample = read_sample(paws_events, card.background, card)
    expected = split_indices(6000, card.background.split, seed=13, file="background.h5")
    assert all(np.array_equal(sample.parts[name], rows) for name, rows in expected.items())


def test_both_classes_have_one_distribution_of_the_masses(pool, paws_card):
    card = paws_card(copies=30)
    found = epoch_set(pool, card, 0, 0)
    of_signal, of_background = (found.x[found.y == y][:, 3:] for y in (1.0, 0.0))
    # 25,000 draws from 400 signal events: every moment agrees within 5 standard errors.
    error = 5.0 * of_signal.std(axis=0) / np.sqrt(len(of_background))
    assert np.all(np.abs(of_background.mean(axis=0) - pool.signal[:, 3:].mean(axis=0)) < error)
    assert {tuple(row) for row in of_background} <= {tuple(row) for row in pool.signal[:, 3:]}
    sums = [found.weights[found.y == y].sum() for y in (0.0, 1.0)]
    assert sums[0] == pytest.approx(sums[1], rel=0.03)
    assert len(found.y) % card.optimiser.batch_size == 0


def test_masses_of_background_are_drawn_anew_in_every_epoch_and_repeat(pool, paws_card):
    card = paws_card()
    first, again, second = (epoch_set(pool, card, 0, epoch) for epoch in (0, 0, 1))
    assert np.array_equal(first.x, again.x)
    assert not np.array_equal(np.sort(first.x[first.y == 0][:, 3]), np.sort(second.x[second.y == 0][:, 3]))
    validation = [epoch_set(pool, card, member).x for member in (0, 0, 1)]
    assert np.array_equal(validation[0], validation[1])
    assert not np.array_equal(validation[0], validation[2])


def test_copies_hold_every_background_event_equally_often(pool):
    rows = with_masses(pool.background, pool.signal, 3, rng=np.random.default_rng(1))
    assert np.array_equal(rows[:, :3], np.tile(pool.background, (3, 1)))
    assert not np.array_equal(
        rows[: len(pool.background), 3:], rows[len(pool.background) : 2 * len(pool.background), 3:]
    )


def test_no_event_trains_and_validates(pool, paws_card):
    train, left = member_pools(pool, paws_card(), 0)
    for chosen, rest, every in zip(vars(train).values(), vars(left).values(), vars(pool).values(), strict=True):
        assert {tuple(row) for row in chosen}.isdisjoint({tuple(row) for row in rest})
        assert len(chosen) == len(every)
        assert len(rest) == pytest.approx(len(every) / np.e, rel=0.1)


def test_the_resonance_selects_events_and_is_no_input(pool, signal, paws_card):
    assert pool.background.shape[1] == 3
    mass = signal.part("train").mass
    assert len(pool.signal) == np.sum((mass >= 94.0) & (mass < 106.0))
    with pytest.raises(CardError, match=r"the mass, which selects events, 'm' appears twice"):
        paws_card(inputs=[{"name": "m"}, {"name": "m_u"}, {"name": "m_v"}])


def test_a_signal_without_masses_is_refused(paws_card, changed_paws_events):
    with pytest.raises(EventsError, match=r"(?s)'mY'.*needs the masses of every signal event \('mX', 'mY'\)"):
        read_signal(changed_paws_events({"mY": None}), paws_card())


def test_masses_outside_their_range_are_refused(paws_card, changed_paws_events):
    folder = changed_paws_events({"mX": lambda c: np.where(np.arange(200) < 7, 260.0, c["mX"])})
    with pytest.raises(EventsError, match=r"'mX' is outside 50-250 GeV in 7 of 200 events \(it spans .* to 260\)"):
        read_signal(folder, paws_card())


def test_a_mass_point_without_events_is_refused(paws_card, changed_paws_events):
    def away(c):
        return np.where(c["mX"] == np.unique(c["mX"])[3], 120.0, c["m"])

    card = paws_card(signal={"split": {"train": 0.7, "reference": 0.25, "data": 0.05}})
    with pytest.raises(EventsError, match=r"1 of 10 mass points, .*, have no event to train with in signal_range"):
        read_signal(changed_paws_events({"m": away}), card)


def test_a_background_without_events_in_the_range_is_refused(paws_card, changed_paws_events):
    folder = changed_paws_events(background={"m": lambda c: np.full(400, 150.0)})
    with pytest.raises(
        EventsError, match=r"background.h5 has no event of part 'train' with m in 88-125 GeV; check train"
    ):
        train_paws(paws_card(), folder / "run", events=folder)


def test_a_background_without_events_in_the_window_is_refused(paws_card, changed_paws_events):
    # Inside train_range, and outside the window: it could train, and nothing could grade.
    folder = changed_paws_events(background={"m": lambda c: np.where((c["m"] > 93) & (c["m"] < 107), 115.0, c["m"])})
    card = paws_card(optimiser={"batch_size": 16})
    with pytest.raises(EventsError, match=r"background.h5: part 'reference' of it has no event with m in 94-106 GeV"):
        train_paws(card, folder / "run", events=folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"compare": None, "near": 0.5},
            r"near and rescale need to know which features are masses of jets; give compare",
        ),
        ({"compare": ["m_u", "m_w"]}, r"compare names 'm_w', which is not among the inputs; .*m_v"),
        ({"compare": ["m_u", "b"]}, r"takes the logarithm of 'b', which may be 0; give that input low and log_offset"),
        ({"parameters": [{"name": "m_X", "column": "mX", "low": 50.0, "high": 250.0}]}, r"parameters"),
        ({"train_range": [95.0, 125.0]}, r"model.valid \[92.0, 108.0\] is not inside train_range"),
        ({"signal": {"file": "background.h5"}}, r"'background.h5' is used twice"),
    ],
)
def test_wrong_cards_are_refused(changes, message, paws_card):
    with pytest.raises(CardError, match=message):
        paws_card(**changes)


def test_one_range_for_masses_that_can_be_exchanged(paws_card):
    parameters = [
        {"name": "m_X", "column": "mX", "low": 50.0, "high": 250.0},
        {"name": "m_Y", "column": "mY", "low": 60.0, "high": 250.0},
    ]
    with pytest.raises(CardError, match=r"a symmetric ratio needs one range for both masses, not 50-250 and 60-250"):
        paws_card(parameters=parameters)
    assert paws_card(parameters=parameters, symmetric=False).masses == ("m_X", "m_Y")


def test_a_card_survives_its_file_and_knows_its_kind(paws_card, tmp_path):
    card = paws_card()
    (tmp_path / "card.yaml").write_bytes(dump_card(card))
    assert load_paws_card(tmp_path / "card.yaml") == card
    with pytest.raises(CardError, match=r"is the card of a paws training; train it with: gbistat train paws"):
        load_background_card(tmp_path / "card.yaml")
    (tmp_path / "ratio.yaml").write_text(yaml.safe_dump({"kind": "ratio"}))
    with pytest.raises(CardError, match=r"is the card of a ratio training; train it with: gbistat train ratio"):
        load_paws_card(tmp_path / "ratio.yaml")


def test_a_benchmark_outside_the_range_is_refused(paws_card, paws_events, tmp_path):
    card = paws_card(benchmarks=[{"file": "benchmark.h5", "masses": [300.0, 100.0]}])
    with pytest.raises(
        EventsError, match=r"benchmark.h5: m_X = 300 is outside 50-250 GeV, where the classifier learns"
    ):
        train_paws(card, tmp_path / "run", events=paws_events)
