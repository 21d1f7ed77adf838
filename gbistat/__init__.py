"""Unbinned likelihoods, intervals and limits from networks learned from data.

::

    import gbistat
    from iminuit import Minuit

    analysis = gbistat.prepare(window=(3300, 3700))          # shipped model and events; or model=..., events=...
    nll = analysis.nll                                       # -ln L: callable, .grad, errordef = 0.5
    minuit = Minuit(nll, **nll.start)
    interval = gbistat.profile_interval(nll, "mu", cl=0.95)
    limit = gbistat.upper_limit(nll, analysis.reference)     # CLs, observed and expected

Names are imported when they are first used, so that ``import gbistat`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Analysis": "gbistat.fit.build",
    "Events": "gbistat.data.events",
    "ExtendedUnbinnedNLL": "gbistat.likelihood.nll",
    "FeatureTransform": "gbistat.data.transforms",
    "FitOptions": "gbistat.fit.result",
    "GbistatError": "gbistat.errors",
    "LogNormalConstraint": "gbistat.likelihood.constraints",
    "MassDensity": "gbistat.terms.density",
    "MassWindow": "gbistat.data.window",
    "MethodOptions": "gbistat.inference.method_options",
    "Model": "gbistat.likelihood.model",
    "NormalConstraint": "gbistat.likelihood.constraints",
    "PoissonConstraint": "gbistat.likelihood.constraints",
    "UnbinnedNLL": "gbistat.likelihood.nll",
    "build_analysis": "gbistat.fit.build",
    "discovery": "gbistat.inference.discovery",
    "fit_sidebands": "gbistat.fit.sidebands",
    "intervals_by_method": "gbistat.inference.methods",
    "iter_events": "gbistat.data.read",
    "load_model": "gbistat.terms.store",
    "load_workspace": "gbistat.binned.load",
    "make_shape": "gbistat.terms.shapes.registry",
    "prepare": "gbistat.workflow",
    "profile_interval": "gbistat.inference.profile",
    "profile_scan": "gbistat.inference.profile",
    "q0": "gbistat.inference.qstats",
    "qmu": "gbistat.inference.qstats",
    "qmu_tilde": "gbistat.inference.qstats",
    "read_card": "gbistat.config",
    "read_events": "gbistat.data.read",
    "tmu": "gbistat.inference.qstats",
    "upper_limit": "gbistat.inference.limits",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'gbistat' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
