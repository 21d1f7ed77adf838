"""What the plot of a training shows."""

from __future__ import annotations

import numpy as np
import pytest

from gbistat.errors import OptionError, OutputError
from gbistat.plotting.losses import draw_losses, save_losses

HISTORIES = [[(12.0, 9.0), (2.0, 2.2), (1.5, 1.8), (1.2, 1.9)], [(12.5, 9.5), (2.1, 2.4), (1.6, 1.7)]]


def test_lines_are_the_losses(axes):
    (ax,) = axes()
    artists = draw_losses(HISTORIES, ax, finals=[1.75, 1.65], label="cost")
    for member, history in enumerate(HISTORIES):
        values = np.array(history)
        training, validation, final = (artists[name][member] for name in ("training", "validation", "finals"))
        assert training.get_xdata().tolist() == list(range(1, len(history) + 1))
        assert training.get_ydata().tolist() == values[:, 0].tolist()
        assert validation.get_ydata().tolist() == values[:, 1].tolist()
        assert training.get_color() == validation.get_color() == final.get_color()
        assert (final.get_xdata().tolist(), final.get_ydata().tolist()) == ([len(history)], [[1.75, 1.65][member]])
    assert artists["validation"][0].get_color() != artists["validation"][1].get_color()
    assert [text.get_text() for text in artists["legend"].get_texts()] == [
        "training events",
        "events left out",
        "average of the best epochs",
    ]
    assert ax.get_ylabel() == "cost"


def test_the_first_epochs_do_not_squeeze_the_rest(axes):
    (ax,) = axes()
    draw_losses(HISTORIES, ax)
    low, high = ax.get_ylim()
    assert low < 1.2
    assert 1.9 < high < 4.0


def test_one_epoch_and_none(axes, tmp_path):
    (ax,) = axes()
    draw_losses([[(1.0, 1.0)]], ax)
    with pytest.raises(OptionError, match="there is no epoch to draw"):
        draw_losses([[], []], ax)
    assert save_losses(HISTORIES, tmp_path / "losses.png").stat().st_size > 10_000
    with pytest.raises(OutputError, match=r"losses\.txt: no figure format"):
        save_losses(HISTORIES, tmp_path / "losses.txt")
