"""HistFactory models for tests."""

from __future__ import annotations

import copy
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gbistat.binned.backend import load_model, numpy_backend
from gbistat.binned.load import LoadedWorkspace

ARCHIVE = Path(__file__).parents[2].parent / "shared" / "data" / "pyhf" / "ins1748602-probability-models.tar.gz"


def make_workspace(channels: list, observed: dict, poi: str = "mu", parameters: list | None = None) -> dict:
    return {
        "channels": channels,
        "observations": [{"name": name, "data": data} for name, data in observed.items()],
        "measurements": [{"name": "fit", "config": {"poi": poi, "parameters": parameters or []}}],
        "version": "1.0.0",
    }


def modifier(name: str, kind: str, data: object = None) -> dict:
    return {"name": name, "type": kind, "data": data}


def make_every_modifier() -> dict:
    """Two regions that share nuisances of all seven kinds."""
    mu = modifier("mu", "normfactor")
    lumi = modifier("lumi", "lumi")
    signal = {
        "name": "signal",
        "data": [4.0, 11.0, 6.0],
        "modifiers": [
            mu,
            lumi,
            modifier("scale", "histosys", {"hi_data": [5.0, 11.5, 5.2], "lo_data": [3.3, 10.0, 7.1]}),
            modifier("scale", "normsys", {"hi": 1.07, "lo": 0.95}),
        ],
    }
    top = {
        "name": "top",
        "data": [60.0, 42.0, 30.0],
        "modifiers": [
            modifier("k top", "normfactor"),
            modifier("scale", "histosys", {"hi_data": [66.0, 44.0, 29.0], "lo_data": [52.0, 41.0, 32.5]}),
            modifier("theory", "normsys", {"hi": 1.2, "lo": 0.9}),
            modifier("mc_SR", "staterror", [3.0, 2.5, 2.0]),
        ],
    }
    other = {
        "name": "other",
        "data": [12.0, 0.0, 8.0],
        "modifiers": [
            lumi,
            modifier("theory", "normsys", {"hi": 0.8, "lo": 1.15}),
            modifier("mc_SR", "staterror", [1.0, 0.0, 1.5]),
            modifier("fakes", "shapesys", [4.0, 0.0, 2.0]),
        ],
    }
    control_top = {
        "name": "top",
        "data": [300.0, 180.0],
        "modifiers": [
            modifier("k top", "normfactor"),
            modifier("theory", "normsys", {"hi": 1.15, "lo": 0.93}),
            modifier("scale", "histosys", {"hi_data": [310.0, 200.0], "lo_data": [285.0, 176.0]}),
        ],
    }
    control_multijet = {
        "name": "multijet",
        "data": [50.0, 50.0],
        "modifiers": [modifier("data driven", "shapefactor")],
    }
    second = {
        "name": "top",
        "data": [20.0, 14.0],
        "modifiers": [modifier("k top", "normfactor")],
    }
    multijet = {
        "name": "multijet",
        "data": [100.0, 100.0],
        "modifiers": [modifier("data driven", "shapefactor")],
    }
    return make_workspace(
        [
            {"name": "SR", "samples": [signal, top, other]},
            {"name": "CR", "samples": [control_top, control_multijet]},
            {"name": "QCD", "samples": [second, multijet]},
        ],
        {"SR": [83.0, 60.0, 41.0], "CR": [362.0, 221.0], "QCD": [132.0, 109.0]},
        parameters=[
            {"name": "lumi", "auxdata": [1.0], "sigmas": [0.02], "bounds": [[0.5, 1.5]], "inits": [1.0]},
            {"name": "theory", "bounds": [[-4.0, 4.0]]},
        ],
    )


def make_many_nuisances(n_bins: int, n_nuisances: int, *, signal: float, seed: int = 5) -> dict:
    """A bump on a falling spectrum with half its nuisances in the shape and half in the yield."""
    rng = np.random.default_rng(seed)
    x = np.linspace(0.0, 1.0, n_bins)
    bump = np.exp(-0.5 * ((x - 0.5) / 0.05) ** 2)
    bump *= 60.0 / bump.sum()
    falling = np.exp(-2.0 * x)
    falling *= 6000.0 / falling.sum()
    on_signal, on_background = [modifier("mu", "normfactor")], []
    for k in range(n_nuisances):
        if k % 2:
            width = 0.03 * rng.random()
            on_background.append(modifier(f"n{k}", "normsys", {"hi": 1.0 + width, "lo": 1.0 - width}))
        else:
            shape = 0.03 * rng.normal(size=n_bins).cumsum() / np.sqrt(n_bins)
            data = {"hi_data": (falling * (1 + shape)).tolist(), "lo_data": (falling * (1 - shape)).tolist()}
            on_background.append(modifier(f"n{k}", "histosys", data))
        if k % 5 == 0:
            on_signal.append(modifier(f"n{k}", "normsys", {"hi": 1.05, "lo": 0.96}))
    samples = [
        {"name": "signal", "data": bump.tolist(), "modifiers": on_signal},
        {"name": "background", "data": falling.tolist(), "modifiers": on_background},
    ]
    observed = rng.poisson(falling + signal * bump).astype(float).tolist()
    return make_workspace([{"name": "SR", "samples": samples}], {"SR": observed})


def make_changed(source: dict, **places: object) -> dict:
    """Copy of a workspace with values replaced: ``channels__0__name="x"``."""
    result = copy.deepcopy(source)
    for place, value in places.items():
        *path, last = [int(key) if key.isdigit() else key for key in place.split("__")]
        item = result
        for key in path:
            item = item[key]
        item[last] = value
    return result


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261122)


@pytest.fixture
def workspace() -> Callable[..., dict]:
    return make_workspace


@pytest.fixture
def every_modifier() -> dict:
    return make_every_modifier()


@pytest.fixture
def many_nuisances() -> Callable[..., dict]:
    return make_many_nuisances


@pytest.fixture
def changed() -> Callable[..., dict]:
    return make_changed


@pytest.fixture
def counting() -> Callable[..., dict]:
    """One bin, no nuisance."""

    def make(signal: float, background: float, observed: float) -> dict:
        samples = [
            {"name": "signal", "data": [signal], "modifiers": [modifier("mu", "normfactor")]},
            {"name": "background", "data": [background], "modifiers": []},
        ]
        return make_workspace([{"name": "SR", "samples": samples}], {"SR": [observed]})

    return make


@pytest.fixture
def published() -> Callable[[str, str], tuple[dict, list]]:
    """A published search: background-only workspace of a region, and a patch of it."""
    if not ARCHIVE.is_file():
        pytest.skip("the published likelihoods are not at hand")

    def read(region: str, patch: str) -> tuple[dict, list]:
        with tarfile.open(ARCHIVE) as archive:
            files = [archive.extractfile(f"{region}/{name}.json") for name in ("BkgOnly", f"patch.{patch}")]
            first, second = (json.load(io.BytesIO(file.read())) for file in files if file is not None)
        return first, second

    return read


class InPyhf:
    """The same workspace in pyhf, whose fits go to the very minimum."""

    def __init__(self, loaded: LoadedWorkspace, optimizer: str = "newton") -> None:
        self.loaded = loaded
        self.optimizer = optimizer
        with numpy_backend(optimizer) as pyhf:
            self.model, self.data = load_model(pyhf, loaded.workspace)

    def theta(self, parameters: np.ndarray) -> np.ndarray:
        """pyhf's parameters in gbistat's order."""
        names = self.loaded.nll.names
        theta = self.loaded.nll.start_vector()
        for label, value in zip(self.model.config.par_names, parameters, strict=True):
            theta[names.index(self.loaded.labels[label])] = value
        return theta

    def run(self, work: Callable[[Any], Any]) -> Any:
        with numpy_backend(self.optimizer) as pyhf:
            return work(pyhf)

    def cls(self, value: float) -> list[float]:
        """Observed CLs and the five expected ones."""

        def work(pyhf: Any) -> list[float]:
            observed, band = pyhf.infer.hypotest(
                value, self.data, self.model, test_stat="qtilde", return_expected_set=True
            )
            return [float(observed), *(float(x) for x in band)]

        return self.run(work)


@pytest.fixture
def in_pyhf() -> Callable[..., InPyhf]:
    return InPyhf
