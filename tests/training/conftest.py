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
from gbistat.training.paws_card import PawsCard

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


PAWS_CARD: dict[str, Any] = {
    "schema": "gbistat.training/1",
    "kind": "paws",
    "name": "toy-paws",
    "term": "toy-masses",
    "description": "A toy",
    "seed": 13,
    "mass": "m",
    "inputs": [
        {"name": "m_u", "low": 0.0, "log_offset": 1.0},
        {"name": "b"},
        {"name": "m_v", "low": 0.0, "log_offset": 1.0},
    ],
    "parameters": [
        {"name": "m_X", "column": "mX", "low": 50.0, "high": 250.0},
        {"name": "m_Y", "column": "mY", "low": 50.0, "high": 250.0},
    ],
    "compare": ["m_u", "m_v"],
    "background": {"file": "background.h5", "split": SPLIT},
    "signal": {"file": "signal.h5", "resonance": 100.0, "split": {"train": 0.6, "reference": 0.2, "data": 0.2}},
    "benchmarks": [{"file": "benchmark.h5", "masses": [200.0, 100.0]}],
    "train_range": [88.0, 125.0],
    "signal_range": [94.0, 106.0],
    "copies": 2,
    "compiled": False,
    "network": {"hidden": [24], "activation": "swish", "dropout": 0.1},
    "optimiser": {
        "members": 2,
        "epochs": 8,
        "batch_size": 256,
        "learning_rate": 0.02,
        "patience": 5,
        "reduce_after": 2,
    },
    "model": {
        "window": [94.0, 106.0],
        "valid": [92.0, 108.0],
        "fit_range": [80.0, 160.0],
        "background_parameters": 2,
        "sqrt_s": 1000.0,
        "bins": 2,
    },
}


def make_paws_card(**changes: Any) -> PawsCard:
    """Toy card of a parametrised classifier with some top-level entries changed; a mapping updates the entry."""
    data = copy.deepcopy(PAWS_CARD)
    for key, value in changes.items():
        data[key] = {**data[key], **value} if isinstance(value, dict) else value
    return validate(PawsCard, data, error=CardError, where="toy card")


def paws_log_ratio(u: np.ndarray, v: np.ndarray, a: float, b: float) -> np.ndarray:
    """True ln r: background is abs(N(150, 80)) in both features, signal abs(N(larger mass, 40)) and abs(N(smaller, 40))."""

    def log_density(x: np.ndarray, mean: float, sigma: float) -> np.ndarray:
        return np.logaddexp(-0.5 * ((x - mean) / sigma) ** 2, -0.5 * ((x + mean) / sigma) ** 2) - np.log(sigma)

    pairs = ((u, max(a, b)), (v, min(a, b)))
    return sum(log_density(x, mass, 40.0) - log_density(x, 150.0, 80.0) for x, mass in pairs)


def paws_background(n: int = 6000) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(21)
    return {
        "m": 80.0 + 80.0 * rng.beta(1.0, 1.5, size=n),
        "m_u": np.abs(rng.normal(150.0, 80.0, size=n)),
        "m_v": np.abs(rng.normal(150.0, 80.0, size=n)),
        "b": rng.normal(size=n),
    }


def paws_signal(masses: np.ndarray, *, seed: int = 22) -> dict[str, np.ndarray]:
    """One event of each row of masses, which comes in either order."""
    rng = np.random.default_rng(seed)
    n = len(masses)
    return {
        "m": np.clip(100.0 * (1.0 + 0.02 * rng.standard_t(3.0, size=n)), 10.0, 300.0),
        "m_u": np.abs(rng.normal(masses.max(axis=1), 40.0)),
        "m_v": np.abs(rng.normal(masses.min(axis=1), 40.0)),
        "b": rng.normal(size=n),
        "mX": masses[:, 0],
        "mY": masses[:, 1],
    }


@pytest.fixture(scope="session")
def paws_card():
    return make_paws_card


@pytest.fixture(scope="session")
def true_log_ratio():
    return paws_log_ratio


def write_paws_events(folder: Path, background: dict[str, np.ndarray], signal: dict[str, np.ndarray]) -> Path:
    write_columns(folder / "background.h5", **background)
    write_columns(folder / "signal.h5", **signal)
    benchmark = paws_signal(np.tile([200.0, 100.0], (600, 1)), seed=23)
    write_columns(folder / "benchmark.h5", **{name: benchmark[name] for name in ("m", "m_u", "m_v", "b")})
    return folder


def paws_masses(points: int = 40, events: int = 120) -> np.ndarray:
    return np.repeat(np.random.default_rng(24).uniform(50.0, 250.0, size=(points, 2)), events, axis=0)


@pytest.fixture(scope="session")
def paws_events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_paws_events(tmp_path_factory.mktemp("paws_events"), paws_background(), paws_signal(paws_masses()))


@pytest.fixture
def changed_paws_events(tmp_path: Path):
    """Function that writes a small version of the toy's files with columns changed or removed, and returns the folder."""

    def write(signal: dict[str, Any] | None = None, background: dict[str, Any] | None = None) -> Path:
        files = (paws_background(400), paws_signal(paws_masses(10, 20)))
        for columns, changes in zip(files, (background, signal), strict=True):
            for name, make in (changes or {}).items():
                if make is None:
                    del columns[name]
                else:
                    columns[name] = make(columns)
        return write_paws_events(tmp_path, *files)

    return write
