"""What a reader of a fit must be warned of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.special import chdtrc, ndtri

from gbistat.diagnostics.saved import certificate_note, model_verdict

if TYPE_CHECKING:
    from gbistat.config import RunOptions
    from gbistat.fit.build import Analysis
    from gbistat.fit.result import FitResult

__all__ = ["certificate_verdicts", "fit_warnings", "null_warnings"]

INTERPOLATION = 0.02
"""Shift by splines, in errors, above which a warning is printed."""
TENSION = 3.0
"""Pull of a constrained parameter above which a warning is printed."""


def certificate_verdicts(options: RunOptions) -> list[str]:
    """What the certificates of the model and of its generator say."""
    found = [(options.model.name, model_verdict(options.model))]
    if (generated := options.background) is not None:
        certificate = generated.generator.metadata.certificate
        found.append((generated.name, certificate_note(certificate, generated.directory, generated.sha256)))
    return [f"diagnostics of the background {name}: {verdict}" for name, verdict in found if verdict is not None]


def _tensions(analysis: Analysis, result: FitResult) -> list[tuple[str, float]]:
    """Constraints that a fit pulls by more than three standard deviations: names, and sigmas of the joint chi2."""
    found = []
    for constraint in analysis.model.constraints:
        index = [result.names.index(name) for name in constraint.names]
        chi2 = 2.0 * constraint.value(result.values[index])
        tail = float(chdtrc(len(index), chi2))
        sigma = float(-ndtri(0.5 * tail)) if tail > 0 else float(np.sqrt(chi2))
        if sigma > TENSION:
            found.append((", ".join(constraint.names), sigma))
    return found


def null_warnings(analysis: Analysis, null: FitResult) -> list[str]:
    """What the fit without signal does to constraints: expected limits are made with its nuisances."""
    return [
        f"without signal the data pull {names} {sigma:.1f} sigma away from the auxiliary measurement; the expected limits "
        "have these values of the nuisances, as is the convention (a signal that is there raises them)"
        for names, sigma in _tensions(analysis, null)
    ]


def fit_warnings(analysis: Analysis, best: FitResult) -> tuple[str, ...]:
    """What was noticed before the fit, and what the fit says about itself."""
    warnings = [*analysis.warnings, *analysis.events.notes]
    warnings += [
        f"the data pull {names} {sigma:.1f} sigma away from the auxiliary measurement"
        for names, sigma in _tensions(analysis, best)
    ]
    masses = analysis.masses
    if masses is not None and masses.interpolation is not None and masses.interpolation.worst > INTERPOLATION:
        name, shift = max(masses.interpolation.shifts.items(), key=lambda item: abs(item[1]))
        warnings.append(
            f"splines in place of the network move {name} by {abs(shift):.1g} of its error, although the nodes around the best fit are "
            f"{max(masses.interpolation.steps.values()):.3g} {analysis.window.unit} apart"
        )
    poi = analysis.model.poi
    if best.value(poi) + 2.0 * best.error(poi) < 0.0:
        warnings.append(
            f"{poi} is negative by more than two standard deviations: fewer events look like signal than the background and "
            "the ratio predict; with a handful of such events expected, asymptotic intervals below 0 mean little"
        )
    if best.at_bound:
        warnings.append(f"{', '.join(best.at_bound)} ended at a wall of the allowed range")
    return tuple(dict.fromkeys(warnings))
