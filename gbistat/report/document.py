"""Results as JSON: the stable keys that programs read.

Schemas ``gbistat.fit/1``, ``gbistat.limits/1`` and ``gbistat.compare/1``. Intervals are lists of segments and an open end is
``null``; the expected band is in pyhf's order, from -2 to +2 sigma. ``mu`` counts signal events in the window where the model
gives no nominal yield.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from gbistat import __version__
from gbistat.data.events import ENERGY_UNITS
from gbistat.report.outcomes import LimitsOutcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.inference.results import IntervalResult
    from gbistat.report.outcomes import FitOutcome, Report
    from gbistat.typing import Json

__all__ = ["document", "to_text"]


def document(report: Report) -> Json:
    """Report as plain data.

    Parameters
    ----------
    report : Report
        Results over windows.

    Returns
    -------
    dict
        With the keys ``schema``, ``version``, ``model``, ``results``, and ``failures`` where windows failed.
    """
    entries = {"fit": _fit_entry, "limits": _limits_entry, "compare": _compare_entry}
    entry = entries[report.verb]
    result: Json = {
        "schema": f"gbistat.{report.verb}/1",
        "version": __version__,
        "model": {"name": report.model, "sha256": report.model_sha256, "ensemble": report.ensemble},
        "events": {"path": report.source, "n_read": report.n_read},
        "results": [entry(outcome) for outcome in report.outcomes],
    }
    if report.failures:
        result["failures"] = [{"window": list(f.window), "error": f.message} for f in report.failures]
    return result


def to_text(data: Json) -> str:
    """JSON text; numbers that are not finite become ``null``, since JSON has none."""
    return json.dumps(_finite(data), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _intervals(results: Sequence[IntervalResult]) -> Json:
    return {f"{r.cl:.6g}": [list(segment) for segment in r.segments] for r in results}


def _parameters(outcome: FitOutcome) -> Json:
    fit = outcome.fit
    entries: Json = {}
    for name in fit.names:
        entry: Json = {"value": fit.value(name), "error": fit.error(name)}
        if name == outcome.poi:
            entry["intervals"] = _intervals(outcome.poi_intervals)
            if outcome.by_method is not None:
                entry["profile_intervals"] = _intervals(outcome.intervals[name])
        elif name in outcome.intervals:
            entry["intervals"] = _intervals(outcome.intervals[name])
        if name in fit.fixed:
            entry["fixed"] = True
        entries[name] = entry
    return entries


def _common(outcome: FitOutcome) -> Json:
    scale = ENERGY_UNITS[outcome.window.unit] / ENERGY_UNITS["GeV"]
    return {
        "window": [edge * scale for edge in outcome.window.edges],
        "unit": "GeV",
        "n_events": len(outcome.analysis.events),
        "poi": outcome.poi,
        "background": outcome.analysis.background,
        "method": outcome.method,
        **({} if outcome.by_method is None else {"by_method": outcome.by_method.to_dict()}),
    }


def _fit_entry(outcome: FitOutcome) -> Json:
    sidebands = outcome.analysis.sidebands
    return {
        **_common(outcome),
        "fit": _parameters(outcome),
        "plane": _plane(outcome),
        "nll": outcome.fit.nll,
        "valid": outcome.fit.valid,
        "parameters": list(outcome.fit.names),
        "covariance": outcome.fit.covariance.tolist(),
        "sidebands": None if sidebands is None else sidebands.to_dict(),
        **_order(outcome),
        "warnings": list(outcome.warnings),
    }


def _order(outcome: FitOutcome) -> Json:
    order = outcome.analysis.order
    return {} if order is None else {"background_order": order.to_dict()}


def _limits_entry(outcome: FitOutcome) -> Json:
    limits = _as_limits(outcome)
    twins = [twin.to_dict() for twin in limits.binned]
    sidebands = outcome.analysis.sidebands
    return {
        **_common(outcome),
        "fit": _parameters(outcome),
        "limit": _limit(limits),
        "significance": limits.discovery.to_dict(),
        "plane": _plane(outcome),
        "binned": twins[0] if twins else None,
        "binned_all": twins,
        "sidebands": None if sidebands is None else sidebands.to_dict(),
        **_order(outcome),
        "scan": limits.scan.to_dict(),
        "cls_scan": limits.cls_scan.to_dict(),
        "warnings": list(outcome.warnings),
    }


def _compare_entry(outcome: FitOutcome) -> Json:
    limits = _as_limits(outcome)
    rows = [
        {
            "name": "unbinned",
            "fit": {outcome.poi: _parameters(outcome)[outcome.poi]},
            "limit": _limit(limits),
            "significance": limits.discovery.to_dict(),
        }
    ]
    found = limits.comparison
    if found is None:
        rows += [{"name": f"binned in {twin.observable}", **twin.to_dict()} for twin in limits.binned]
        return {**_common(outcome), "rows": rows, "warnings": list(outcome.warnings)}
    rows += [row.to_dict() for row in found.rows]
    return {**_common(outcome), "rows": rows, **found.to_dict(), "warnings": list(outcome.warnings)}


def _plane(outcome: FitOutcome) -> Json | None:
    """Map of the search over masses, if there was one."""
    masses = outcome.analysis.masses
    if masses is None:
        return None
    return {
        "names": list(masses.names),
        "axes": [axis.tolist() for axis in masses.grid.axes],
        "q0": masses.search.q0.tolist(),
        "strength": masses.search.strength.tolist(),
        **({} if masses.search.shares is None else {str(masses.search.fraction): masses.search.shares.tolist()}),
        "log_kappa": masses.kappa.log_kappa.tolist(),
        "log_kappa_error": masses.kappa.error.tolist(),
        "log_kappa_form": masses.kappa.form,
        "effective_size": masses.kappa.effective_size.tolist(),
        "interpolation": None if masses.interpolation is None else masses.interpolation.to_dict(),
        "mass_scale": {name: item.to_json() for name, item in masses.scale.items()},
    }


def _limit(outcome: LimitsOutcome) -> Json:
    """The CLs limit: by toys where these were asked for, with the asymptotic one beside it."""
    asymptotic = outcome.limit.to_dict()
    if outcome.profiled_limit is not None:
        asymptotic = {**asymptotic, "masses_profiled": outcome.profiled_limit}
    if outcome.toy_limit is None:
        return asymptotic
    return {**outcome.toy_limit.to_dict(), "asymptotic": asymptotic}


def _as_limits(outcome: FitOutcome) -> LimitsOutcome:
    if not isinstance(outcome, LimitsOutcome):
        raise TypeError(f"limits were not computed for the window {outcome.window}")
    return outcome
