from __future__ import annotations

import pytest

from gbistat.errors import CardError
from gbistat.training.card import Fractions, dump_card, load_card


def test_a_card_survives_yaml(toy_card, tmp_path):
    card = toy_card()
    (tmp_path / "card.yaml").write_bytes(dump_card(card))
    assert load_card(tmp_path / "card.yaml") == card
    assert card.features == ("a", "b")
    assert card.mass_column == 0
    assert card.unit == "GeV"


SPLIT = {"train": 0.5, "reference": 0.3, "data": 0.2}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"optimiser": {"epochs": 0}}, r"optimiser.epochs is 0; it must be at least 1"),
        ({"optimiser": {"epohcs": 3}}, r"unknown key 'epohcs' in optimiser; nearest names: epochs"),
        ({"network": {"activation": "gelu"}}, r"network.activation is \"gelu\"; allowed: 'swish', 'relu' or 'tanh'"),
        ({"mass": "m_jj"}, r"the mass 'm_jj' is not among the inputs \['m', 'a', 'b'\]"),
        ({"inputs": [{"name": "m", "log_offset": 0.0}, {"name": "a"}]}, r"'m': ln\(value \+ 0\) needs a low above -0"),
        ({"inputs": [{"name": "m"}, {"name": "a"}, {"name": "a"}]}, r"inputs has 'a' twice"),
        ({"background": {"file": "../events.h5"}}, r"'../events.h5' is not a plain file name"),
        ({"background": {"file": "signal_100.h5"}}, r"the file 'signal_100.h5' is used twice"),
        ({"background": {"split": {**SPLIT, "data": 0.4}}}, r"train, reference and data add up to 1.2"),
        ({"train_range": [91.0, 135.0]}, r"model.valid \[90.0, 130.0\] is not inside train_range \[91.0, 135.0\]"),
        ({"model": {"window": [85.0, 106.0]}}, r"model.window .* is not inside model.valid"),
        ({"balance": {"resonances": [85.0, 150.0]}}, r"give full signal in 91.8-138 only, and train_range is"),
    ],
)
def test_what_is_wrong_in_a_card_is_said(toy_card, changes, match):
    with pytest.raises(CardError, match=match):
        toy_card(**changes)


def test_signals_stand_in_order_of_mass(toy_card):
    signals = [{"file": f"{mass}.h5", "resonance": mass, "split": SPLIT} for mass in (120.0, 100.0)]
    with pytest.raises(CardError, match=r"the resonance masses \[120.0, 100.0\] do not increase"):
        toy_card(signals=signals)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"a: [1, 2", r"is not YAML: .* at line 1"),
        (b"- 1\n", r"holds no mapping"),
        (b"\xff\xfe", r"is not UTF-8 text"),
        (b"name: x\n", r"term is missing; add it"),
    ],
)
def test_a_file_that_is_no_card(tmp_path, content, match):
    path = tmp_path / "card.yaml"
    path.write_bytes(content)
    with pytest.raises(CardError, match=match):
        load_card(path)
    with pytest.raises(CardError, match=r"missing.yaml cannot be read: No such file"):
        load_card(tmp_path / "missing.yaml")


def test_fractions_may_be_decimal():
    assert Fractions(train=0.1, reference=0.2, data=0.7).data == 0.7
