"""Doors to the heavy packages: each is imported when it is first needed, or its absence is explained.

``import gbistat`` and ``gbistat --help`` go through none of them.
"""

from __future__ import annotations

import importlib
from typing import Any

from gbistat.errors import MissingExtra

__all__ = [
    "awkward",
    "distributed",
    "h5py",
    "hist",
    "jax",
    "jinja2",
    "jsonpatch",
    "keras",
    "mplhep",
    "numba",
    "onnx",
    "onnxruntime",
    "pyarrow",
    "pyhf",
    "pyplot",
    "sklearn_ensemble",
    "sklearn_mixture",
    "tensorflow",
    "threadpoolctl",
    "uproot",
    "vector",
]


def _load(module: str, purpose: str, install: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"{purpose} needs the package {module!r}, which cannot be imported here ({error}); "
            f"install it with: pip install {install!r}"
        ) from error


def onnx() -> Any:
    """onnx (with tf2onnx in the extra ``train``), which reads and writes graphs."""
    return _load("onnx", "writing an ONNX graph", "gbistat[train]")


def onnxruntime() -> Any:
    """onnxruntime, which evaluates exported networks."""
    return _load("onnxruntime", "evaluating an exported network", "gbistat")


def pyhf() -> Any:
    """pyhf, for the binned cross-check."""
    return _load("pyhf", "the binned cross-check", "gbistat")


def jsonpatch() -> Any:
    """jsonpatch, which comes with pyhf and applies signal patches to workspaces."""
    return _load("jsonpatch", "patching a workspace", "gbistat")


def uproot() -> Any:
    """uproot, which reads ROOT files."""
    return _load("uproot", "reading ROOT files", "gbistat")


def awkward() -> Any:
    """awkward, for jagged collections."""
    return _load("awkward", "reading jagged collections", "gbistat")


def vector() -> Any:
    """vector, for four-momenta."""
    return _load("vector", "adding four-momenta", "gbistat")


def h5py() -> Any:
    """h5py, which reads HDF5 files."""
    return _load("h5py", "reading HDF5 files", "gbistat")


def hist() -> Any:
    """hist, for histograms."""
    return _load("hist", "filling histograms", "gbistat")


def pyarrow() -> Any:
    """pyarrow with its Parquet reader (extra ``parquet``)."""
    _load("pyarrow.parquet", "reading Parquet files", "gbistat[parquet]")
    return _load("pyarrow", "reading Parquet files", "gbistat[parquet]")


def pyplot() -> Any:
    """matplotlib.pyplot on a backend that needs no screen."""
    matplotlib = _load("matplotlib", "drawing plots", "gbistat")
    matplotlib.use("Agg", force=False)
    return _load("matplotlib.pyplot", "drawing plots", "gbistat")


def mplhep() -> Any:
    """mplhep, for the style of plots and for histograms with errors."""
    return _load("mplhep", "drawing plots", "gbistat")


def distributed() -> Any:
    """Dask's distributed, which runs toys on a cluster (extra ``cluster``)."""
    return _load("distributed", "running toys on a Dask cluster", "gbistat[cluster]")


def threadpoolctl() -> Any:
    """threadpoolctl, which sets the number of threads of linear algebra."""
    return _load("threadpoolctl", "running toys", "gbistat")


def tensorflow() -> Any:
    """TensorFlow (extra ``train``)."""
    return _load("tensorflow", "training a network", "gbistat[train]")


def jax() -> Any:
    """JAX, the other backend that trains stacks of flows."""
    return _load("jax", "training on the backend jax", "jax")


def jinja2() -> Any:
    """jinja2, which fills the template of the report."""
    return _load("jinja2", "writing a report", "gbistat")


def keras() -> Any:
    """Keras 3 (extra ``train``)."""
    return _load("keras", "training a network", "gbistat[train]")


def sklearn_ensemble() -> Any:
    """Boosted trees of scikit-learn (extra ``train``), for two-sample tests."""
    return _load("sklearn.ensemble", "telling samples from events", "gbistat[train]")


def sklearn_mixture() -> Any:
    """Gaussian mixtures of scikit-learn (extra ``train``), for importance sampling."""
    return _load("sklearn.mixture", "integrating a density", "gbistat[train]")


def numba() -> Any:
    """numba, which compiles loops (extra ``fast``)."""
    return _load("numba", "compiled loops", "gbistat[fast]")
