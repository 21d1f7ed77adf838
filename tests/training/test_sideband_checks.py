"""What is wrong with sidebands and features is said before anything is trained. Keras is not needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from gbistat.errors import CardError, EventsError, WindowError
from gbistat.training.background import train_background
from gbistat.training.background_card import load_background_card
from gbistat.training.card import dump_card, load_card
from gbistat.training.sidebands import bootstrap, check_features, sideband_pool
from gbistat.training.splits import read_sample

ROOT = Path(__file__).parents[2]


def pool(card, folder):
    return sideband_pool(read_sample(folder, card.background, card), card)


def test_only_sideband_events_of_the_training_part_are_taken(background_card, background_events):
    card = background_card()
    sample = read_sample(background_events, card.background, card)
    found = sideband_pool(sample, card)
    mass = sample.part("train").mass
    assert np.all(((found.x[:, 0] >= 80) & (found.x[:, 0] < 100)) | ((found.x[:, 0] >= 115) & (found.x[:, 0] < 140)))
    assert found.counts == {"below": np.sum(mass < 100), "above": np.sum((mass >= 115) & (mass < 140)), "left_out": 0}
    assert len(found.x) == found.counts["below"] + found.counts["above"]
    train = set(sample.part("train").feature("a").tolist())
    assert train.issuperset(found.x[:, 1].tolist())


def test_known_ends_are_kept_and_others_widened(background_card, background_events):
    found = pool(background_card(), background_events)
    a, b = found.x[:, 1], found.x[:, 2]
    assert found.transform.low[0] == 0.0
    assert found.transform.high[0] == pytest.approx(a.max() + 0.05 * np.ptp(a))
    assert found.transform.low[1] == pytest.approx(b.min() - 0.05 * np.ptp(b))


def test_events_at_a_known_end_are_left_out_and_counted(background_card, changed_events):
    folder = changed_events(a=lambda c: np.where(np.arange(6000) % 500 == 0, 0.0, c["a"]))
    found = pool(background_card(), folder)
    warning = found.warnings[-1]
    assert 0 < found.counts["left_out"] <= 12
    assert warning.startswith(
        f"{found.counts['left_out']} of {len(found.x) + found.counts['left_out']} sideband events"
    )
    assert np.all(found.x[:, 1] > 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a": lambda c: np.full(6000, 2.5)}, r"feature 'a' is constant \(2.5\) in all \d+ events: leave this feature out"),
        ({"a": lambda c: np.floor(c["a"])}, r"feature 'a' takes whole numbers only \(\d+ distinct values\): .* add noise"),
        ({"b": lambda c: 2.0 * c["a"] ** 3}, r"the features 'a' and 'b' are functions of each other \(their ranks are the same\): .*; leave one out"),
        ({"b": lambda c: np.where(c["b"] < 0, 0.0, c["b"])}, r"feature 'b' is 0 in \d+ of \d+ events: it has no density there"),
        ({"b": lambda c: np.where(np.arange(6000) == 5, np.nan, c["b"])}, r"NaN or infinite values among 6000 rows: 'b' in 1"),
        ({"a": lambda c: np.where(np.arange(6000) == 5, -1.0, c["a"])}, r"'a' is below 0 in 1 events; lower inputs low"),
    ],
)  # fmt: skip
def test_features_without_a_density_are_refused(changes, message, background_card, changed_events):
    with pytest.raises(EventsError, match=message):
        pool(background_card(), changed_events(**changes))


def test_a_linear_function_of_several_features_is_refused():
    x = np.random.default_rng(1).normal(size=(500, 3))
    x[:, 2] = x[:, 0] - 2.0 * x[:, 1]
    with pytest.raises(EventsError, match=r"one of the features a, b, c is a linear function of the others"):
        check_features(x, ("a", "b", "c"))
    with pytest.raises(EventsError, match=r"feature 'b' is NaN or infinite in 1 of 500 events"):
        check_features(np.where(np.arange(1500).reshape(500, 3) == 4, np.inf, x), ("a", "b", "c"))


def test_one_sideband_is_not_enough(background_card, changed_events):
    folder = changed_events(m=lambda c: np.minimum(c["m"], 114.0))
    with pytest.raises(EventsError, match=r"the sideband above the window, 115-140 GeV, is empty: .* extrapolates"):
        pool(background_card(), folder)


def test_few_events_in_a_sideband_are_said(background_card, changed_events):
    found = pool(background_card(), changed_events(n=1500))
    above = found.counts["above"]
    assert (
        f"the sideband above the window, 115-140 GeV, has {above} events only: the interpolation into the window hangs "
        in ("".join(found.warnings))
    )


@pytest.mark.parametrize("shift", [1000.0, -79.0])
def test_a_window_outside_the_data(shift, background_card, changed_events):
    with pytest.raises(WindowError, match=r"the window 100-115 GeV is outside the data of sidebands.h5, which span"):
        pool(background_card(), changed_events(m=lambda c: 0.01 * (c["m"] - 80.0) + 80.0 + shift))


def test_fewer_events_than_parameters(background_card, background_events, tmp_path):
    card = background_card(flow={"hidden": [256, 256]})
    with pytest.raises(EventsError, match=r"\d+ sideband events are fewer than the \d+ parameters of the flow"):
        train_background(card, tmp_path / "run", events=background_events)
    card = background_card(optimiser={"batch_size": 50_000})
    with pytest.raises(EventsError, match=r"do not fill a batch of 50000; lower optimiser.batch_size"):
        train_background(card, tmp_path / "run", events=background_events)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": [70.0, 90.0]}, r"leaves no sideband on both sides inside train_range"),
        ({"train_range": [0.0, 140.0]}, r"reaches down to 0"),
        ({"inputs": [{"name": "m", "unit": "GeV"}, {"name": "a"}, {"name": "a"}]}, r"'a' twice; a duplicated feature"),
        ({"inputs": [{"name": "a"}, {"name": "m", "unit": "GeV"}]}, r"the mass 'm' is not the first of the inputs"),
        ({"inputs": [{"name": "m"}, {"name": "a", "low": 1.0, "high": 0.0}]}, r"low 1 is not below high 0"),
        ({"model": {"valid": [100.0, 110.0]}}, r"window \[100.0, 115.0\] is not inside model.valid"),
        ({"flow": {"transform": "splines"}}, r"flow.transform.*'spline'"),
    ],
)
def test_cards_that_contradict_themselves(changes, message, background_card):
    with pytest.raises(CardError, match=message):
        background_card(**changes)


def test_cards_know_their_kind(background_card, toy_card, tmp_path):
    (tmp_path / "background.yaml").write_bytes(dump_card(background_card()))
    (tmp_path / "ratio.yaml").write_bytes(dump_card(toy_card()))
    assert load_background_card(tmp_path / "background.yaml") == background_card()
    assert load_card(tmp_path / "ratio.yaml") == toy_card()
    with pytest.raises(CardError, match=r"is the card of a ratio training; train it with: gbistat train ratio"):
        load_background_card(tmp_path / "ratio.yaml")
    with pytest.raises(CardError, match=r"kind"):
        load_card(tmp_path / "background.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(CardError, match=r"holds no mapping"):
        load_background_card(tmp_path / "list.yaml")


def test_the_shipped_card_leaves_out_the_window_of_the_shipped_ratio():
    card = load_background_card(ROOT / "models" / "dijet-background" / "card.yaml")
    ratio = load_card(ROOT / "models" / "dijet-qq-3500" / "card.yaml")
    assert card.window == ratio.model.window
    # The same split: what grades the ratio or stands for data trained neither.
    assert (card.seed, card.background) == (ratio.seed, ratio.background)
    assert set(card.features) == set(ratio.features)
    assert yaml.safe_load(dump_card(card))["kind"] == "background"


def test_a_bootstrap_resample_and_what_it_leaves_out():
    chosen, left = bootstrap(5000, entropy=[1, 2])
    assert chosen.size == 5000
    assert set(chosen).isdisjoint(left)
    assert set(chosen) | set(left) == set(range(5000))
    # 5000 / e with a standard deviation of 22.
    assert left.size == pytest.approx(5000 / np.e, abs=100)
    assert np.array_equal(chosen, bootstrap(5000, entropy=[1, 2])[0])
    assert not np.array_equal(chosen, bootstrap(5000, entropy=[1, 3])[0])
