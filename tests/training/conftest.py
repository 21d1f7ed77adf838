"""A toy that is solved exactly: background and signal are Gaussians in two features, at any mass."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from gbistat.errors import CardError
from gbistat.terms.validation import validate
from gbistat.training.background_card import BackgroundCard
from gbistat.training.card import RatioCard

SHIFT = 1.5
"""Distance of signal from background in the feature ``a``: ln r = SHIFT a - SHIFT^2 / 2, whatever ``b`` and the mass."""

SPLIT = {"train": 0.5, "reference": 0.3, "data": 0.2}
CARD: dict[str, Any] = {
    "schema": "gbistat.training/1",
    "name": "toy",
    "term": "toy-ratio",
    "description": "A toy",
    "seed": 11,
    "mass": "m",
    "inputs": [
        {"name": "m", "unit": "GeV", "low": 1.0, "log_offset": 0.0},
        {"name": "a"},
        {"name": "b"},
    ],
    "background": {"file": "background.h5", "split": SPLIT},
    "signals": [
        {"file": "signal_100.h5", "resonance": 100.0, "split": SPLIT},
        {"file": "signal_120.h5", "resonance": 120.0, "split": SPLIT},
    ],
    "train_range": [88.0, 135.0],
    "balance": {"resonances": [80.0, 150.0], "core": 0.08, "copies": 1, "neighbours": 10},
    "network": {"hidden": [12], "activation": "swish", "dropout": 0.1},
    "optimiser": {
        "members": 2,
        "epochs": 5,
        "batch_size": 128,
        "learning_rate": 0.02,
        "patience": 4,
        "reduce_after": 2,
    },
    "model": {
        "window": [94.0, 106.0],
        "valid": [90.0, 130.0],
        "fit_range": [80.0, 160.0],
        "background_parameters": 2,
        "sqrt_s": 1000.0,
        "bins": 4,
    },
}


def make_toy_card(**changes: Any) -> RatioCard:
    """Toy card with some top-level entries changed; a mapping updates the entry it replaces."""
    data = copy.deepcopy(CARD)
    for key, value in changes.items():
        data[key] = {**data[key], **value} if isinstance(value, dict) else value
    return validate(RatioCard, data, error=CardError, where="toy card")


def write_columns(path: Path, **columns: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file[name] = values


def make_toy_events(folder: Path, *, n_background: int = 4000, n_signal: int = 2500) -> Path:
    rng = np.random.default_rng(5)
    falling = 80.0 + 80.0 * rng.beta(1.0, 1.5, size=n_background)
    write_columns(folder / "background.h5", m=falling, a=rng.normal(size=n_background), b=rng.normal(size=n_background))
    for resonance in (100.0, 120.0):
        # Tails on both sides, so that the Crystal Ball function has something to fit.
        mass = resonance * (1.0 + 0.02 * rng.standard_t(3.0, size=n_signal))
        write_columns(
            folder / f"signal_{resonance:g}.h5",
            m=np.clip(mass, 10.0, 300.0),
            a=rng.normal(SHIFT, 1.0, size=n_signal),
            b=rng.normal(size=n_signal),
        )
    return folder


@pytest.fixture(scope="session")
def toy_events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy_events(tmp_path_factory.mktemp("toy_events"))


@pytest.fixture(scope="session")
def toy_card():
    return make_toy_card


@pytest.fixture(scope="session")
def toy_shift() -> float:
    return SHIFT


BACKGROUND_CARD: dict[str, Any] = {
    "schema": "gbistat.training/1",
    "kind": "background",
    "name": "toy-background",
    "term": "toy-density",
    "description": "A toy",
    "seed": 7,
    "mass": "m",
    "inputs": [{"name": "m", "unit": "GeV"}, {"name": "a", "low": 0.0}, {"name": "b"}],
    "background": {"file": "sidebands.h5", "split": {"train": 0.6, "reference": 0.3, "data": 0.1}},
    "window": [100.0, 115.0],
    "train_range": [80.0, 140.0],
    "margin": 0.05,
    "flow": {"transform": "spline", "layers": 1, "hidden": [8], "bins": 4, "bound": 4.0},
    "optimiser": {"members": 2, "epochs": 4, "batch_size": 250, "learning_rate": 0.02, "patience": 3, "average": 2},
    "model": {"valid": [82.0, 138.0], "fit_range": [80.0, 160.0], "background_parameters": 2, "sqrt_s": 1000.0},
}


def make_background_card(**changes: Any) -> BackgroundCard:
    """Toy card of a background with some top-level entries changed; a mapping updates the entry it replaces."""
    data = copy.deepcopy(BACKGROUND_CARD)
    for key, value in changes.items():
        data[key] = {**data[key], **value} if isinstance(value, dict) else value
    return validate(BackgroundCard, data, error=CardError, where="toy card")


def background_columns(n: int = 6000) -> dict[str, np.ndarray]:
    """Features that depend on the mass and on each other."""
    rng = np.random.default_rng(9)
    mass = 80.0 + 80.0 * rng.beta(1.0, 2.0, size=n)
    a = rng.gamma(4.0, 0.02 * mass / 4.0)
    return {"m": mass, "a": a, "b": rng.normal(0.5 * a, 1.0)}


@pytest.fixture(scope="session")
def background_events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("background_events")
    write_columns(folder / "sidebands.h5", **background_columns())
    return folder


@pytest.fixture(scope="session")
def background_card():
    return make_background_card


@pytest.fixture
def changed_events(tmp_path: Path):
    """Function that writes the toy's file with columns changed, and returns its folder."""

    def write(n: int = 6000, **changes: Any) -> Path:
        columns = background_columns(n)
        columns |= {name: make(columns) for name, make in changes.items()}
        write_columns(tmp_path / "sidebands.h5", **columns)
        return tmp_path

    return write
