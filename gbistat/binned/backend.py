"""pyhf with its global state under control."""

from __future__ import annotations

import inspect
import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat import extras
from gbistat.binned.optimizer import NewtonOptimizer
from gbistat.errors import FitFailed, ModelError, OptionError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gbistat.typing import Json

__all__ = ["OPTIMIZERS", "load_model", "numpy_backend", "toy_calculator_defect", "validate_workspace"]

OPTIMIZERS = ("newton", "minuit")


@contextmanager
def _without_resolver_warning() -> Iterator[None]:
    """Silence one warning: pyhf 0.7 validates with a class that jsonschema has deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "jsonschema.RefResolver is deprecated", DeprecationWarning)
        yield


def validate_workspace(workspace: Json) -> None:
    """Check a workspace against pyhf's copy of the HistFactory schema.

    Raises
    ------
    ModelError
        With the reason that pyhf gives.
    """
    pyhf = extras.pyhf()
    try:
        with _without_resolver_warning():
            pyhf.schema.validate(workspace, "workspace.json")
    except (pyhf.exceptions.InvalidSpecification, pyhf.exceptions.SchemaNotFound) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"this is not a HistFactory workspace of schema 1.0.0: {reason}") from error


@contextmanager
def numpy_backend(optimizer: str = "newton") -> Iterator[Any]:
    """Give out pyhf with its numpy backend; what was set before is set again at the end.

    Parameters
    ----------
    optimizer : {"newton", "minuit"}
        :class:`NewtonOptimizer`, or pyhf's own MINUIT, with a tolerance that test statistics need.

    Raises
    ------
    OptionError
        If there is no such optimiser.
    FitFailed
        If a minimisation inside does not converge.
    """
    if optimizer not in OPTIMIZERS:
        raise OptionError(f"optimizer {optimizer!r} is unknown; {nearest(optimizer, OPTIMIZERS)}")
    pyhf = extras.pyhf()
    before, logger = pyhf.get_backend(), logging.getLogger("pyhf")
    level = logger.level
    chosen = NewtonOptimizer(pyhf) if optimizer == "newton" else pyhf.optimize.minuit_optimizer(tolerance=1e-3)
    try:
        # pyhf logs every failure with a traceback before it raises; what it raises is enough.
        logger.setLevel(logging.CRITICAL)
        pyhf.set_backend("numpy", chosen, precision="64b")
        yield pyhf
    except pyhf.exceptions.FailedMinimization as error:
        raise FitFailed(f"pyhf's fit did not converge: {str(error).splitlines()[0]}") from error
    finally:
        pyhf.set_backend(*before)
        logger.setLevel(level)


def toy_calculator_defect() -> str | None:
    """Why pyhf's toy calculator cannot be used here, or ``None`` if it can.

    Release 0.7.6 of pyhf calls ``numpy.percentile(..., interpolation=...)``, an argument that numpy 2.4 no longer has.
    """
    pyhf = extras.pyhf()
    source = inspect.getsource(pyhf.tensorlib.__class__.percentile)
    if "interpolation=interpolation" in source and "interpolation" not in inspect.signature(np.percentile).parameters:
        return f"the toy calculator of pyhf {pyhf.__version__} fails with numpy {np.__version__}"
    return None


def load_model(pyhf: Any, workspace: Json) -> tuple[Any, Any]:
    """pyhf's model and data of a workspace.

    Raises
    ------
    ModelError
        If the workspace is not valid, has an unknown modifier, or no parameter of interest.
    """
    try:
        with _without_resolver_warning():
            spec = pyhf.Workspace(workspace)
            model = spec.model()
            data = spec.data(model)
    except (
        pyhf.exceptions.InvalidSpecification,
        pyhf.exceptions.InvalidModifier,
        pyhf.exceptions.InvalidModel,
        pyhf.exceptions.InvalidMeasurement,
        pyhf.exceptions.InvalidNameReuse,
        pyhf.exceptions.SchemaNotFound,
    ) as error:
        raise ModelError(f"pyhf does not accept the workspace: {str(error).splitlines()[0]}") from error
    if model.config.poi_index is None:
        raise ModelError("the workspace has no parameter of interest; name one in its measurement (config.poi)")
    return model, data
