"""What ``gbistat scan`` does: limits and local significance over the masses of a signal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbistat import __version__
from gbistat.errors import ModelError, OptionError
from gbistat.inference.plane_limits import plane_limits
from gbistat.inference.plane_significance import plane_significance
from gbistat.report.document import to_text
from gbistat.report.files import check_writable, write_text
from gbistat.rng import as_generator
from gbistat.steps import silent
from gbistat.toy_workflow import analyse

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gbistat.config import RunOptions
    from gbistat.fit.masses import FreeMasses
    from gbistat.inference.plane_limits import PlaneLimits
    from gbistat.inference.plane_significance import PlaneSignificance
    from gbistat.steps import Steps
    from gbistat.typing import FloatArray, Json

__all__ = ["ScanReport", "run_scan", "write_scan"]


@dataclass(frozen=True, eq=False)
class ScanReport:
    """Limits over the masses of one window.

    Parameters
    ----------
    model, model_sha256 : str
        Name and hash of the model.
    window : (low, high)
        In GeV.
    unit : str
        Of the masses.
    limits : PlaneLimits
        The maps.
    masses : FreeMasses
        Search and normalisation.
    warnings : tuple of str
        What a reader must know.
    significance : PlaneSignificance, optional
        Local and global significance of the largest excess, where toys were asked for.
    """

    model: str
    model_sha256: str
    window: tuple[float, float]
    unit: str
    limits: PlaneLimits
    masses: FreeMasses
    warnings: tuple[str, ...]
    significance: PlaneSignificance | None = None

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "schema": "gbistat.scan/1",
            "version": __version__,
            "model": {"name": self.model, "sha256": self.model_sha256},
            "window": list(self.window),
            "unit": self.unit,
            **self.limits.to_dict(),
            "global": None if self.significance is None else self.significance.to_dict(),
            "warnings": list(self.warnings),
        }


def run_scan(
    options: RunOptions,
    *,
    step: float | None = None,
    toys: int = 0,
    seed: int = 1,
    steps: Steps = silent,
    progress: Callable[[int, int], None] | None = None,
) -> ScanReport:
    """Limits with the masses held at each node of a grid.

    Parameters
    ----------
    options : RunOptions
        Model, events, one window.
    step : float, optional
        Largest distance of nodes, in the unit of the masses; by default twice that of the ratio's own grid.
    toys : int, default 0
        Background-only toys for the global significance, over the ratio's own grid.
    seed : int, default 1
        Seed of the toys.
    steps, progress : callable, optional
        Told about each step, and about nodes done.

    Raises
    ------
    GbistatError
        If model, events or window do not make sense, or the signal depends on no masses.
    """
    if step is not None and not (math.isfinite(step) and step > 0):
        raise OptionError(f"step {step:g} must be above 0")
    if toys < 0:
        raise OptionError(f"{toys} toys: give a number of 0 or more")
    with steps(f"reading {options.source.path.name}, networks"):
        analysis = analyse(options, "scan")
    if analysis.masses is None:
        raise ModelError(
            f"the signal of model {options.model.name!r} does not depend on masses; gbistat limits gives its one limit"
        )
    axes: list[FloatArray] | None = None
    if step is not None:
        grid = analysis.masses.grid
        axes = [np.linspace(a[0], a[-1], max(2, math.ceil((a[-1] - a[0]) / step - 1e-9) + 1)) for a in grid.axes]
    with steps("limits"):
        limits = plane_limits(analysis, axes, cl=options.cl, progress=progress)
    significance = None
    if toys:
        with steps("toys without signal"):
            significance = plane_significance(analysis, toys, rng=as_generator(seed), seed=seed, progress=progress)
    warnings = list(analysis.warnings)
    if limits.failures:
        place, message = limits.failures[0]
        warnings.append(
            f"{len(limits.failures)} of {limits.observed.size} nodes have no limit; the first, at "
            f"{', '.join(f'{x:g}' for x in place)}: {message}"
        )
    return ScanReport(
        options.model.name,
        options.model.sha256,
        options.windows[0],
        analysis.window.unit,
        limits,
        analysis.masses,
        tuple(warnings),
        significance,
    )


def write_scan(report: ScanReport, directory: Path) -> list[Path]:
    """Write JSON and the maps of two masses.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    from gbistat.plotting.plane import save_plane_limits

    check_writable(directory)
    written = [write_text(directory / "scan.json", to_text(report.to_dict()))]
    if len(report.limits.names) == 2:
        written.append(directory / "limits_plane.png")
        save_plane_limits(report.limits, written[-1], unit=report.unit)
    return written
