"""Keras and its backend as training wants them: quiet, and their versions on record."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

from gbistat import extras

__all__ = ["keras", "library_versions"]

RECORDED = ("gbistat", "jax", "keras", "numpy", "onnx", "tensorflow", "tf2onnx", "torch")
COMPILED = ("tensorflow", "jax")
"""Backends whose training steps XLA compiles."""


def keras() -> Any:
    """Keras on the backend that ``KERAS_BACKEND`` names, TensorFlow without it.

    TensorFlow's own log below warnings stays silent unless the user asks for it.

    Raises
    ------
    MissingExtra
        If Keras or the backend is not installed.
    """
    # TensorFlow reads both when it is imported and never again.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if os.environ.setdefault("KERAS_BACKEND", "tensorflow") == "tensorflow":
        extras.tensorflow()
    return extras.keras()


def library_versions() -> dict[str, str]:
    """Versions of Python and of the packages that a trained network depends on; what is not installed is left out."""
    versions = {"python": platform.python_version()}
    for package in RECORDED:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
