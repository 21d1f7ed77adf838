"""After a difference was found: do the weights, or a tilt by them, cover it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gbistat.diagnostics.folds import assign_folds
from gbistat.diagnostics.matching import accept, match_masses
from gbistat.diagnostics.nplm_kernel import NplmOptions
from gbistat.diagnostics.nplm_profiled import nplm_profiled
from gbistat.diagnostics.permutations import permutation_test
from gbistat.diagnostics.residual import Residual
from gbistat.diagnostics.roc import area_under_roc
from gbistat.diagnostics.weights import Scores
from gbistat.errors import EventsError
from gbistat.training.classifiers import forward_fit

if TYPE_CHECKING:
    from gbistat.data.events import Events
    from gbistat.diagnose_inputs import DiagnoseRequest
    from gbistat.typing import FloatArray

__all__ = ["nplm_sizes", "residual_checks"]


def nplm_sizes(n_data: int, permutations: int) -> tuple[int, NplmOptions]:
    """Data that NPLM takes of `n_data`, a fifth of the reference, and its options."""
    options = NplmOptions(centres=300, width_percentiles=(25.0, 90.0), permutations=permutations)
    return max(n_data // 5, 50), options


def residual_checks(
    data: Events, generated: Events, log_weight: FloatArray, request: DiagnoseRequest, *, rng: np.random.Generator
) -> Residual | None:
    """A second classifier of data against reweighted events, and NPLM after the tilt was profiled.

    Parameters
    ----------
    data, generated : Events
        Pairs.
    log_weight : array of shape (2 n,)
        ln w of data and of generated events, from classifiers that did not see them; finite.
    request : DiagnoseRequest
        Classifier, folds, permutations.
    rng : numpy.random.Generator
        Accept/reject, folds, seeds.

    Returns
    -------
    Residual or None
        None where accept/reject leaves too few events.
    """
    n = len(data)
    own = log_weight[n:]
    kept = accept(own, rng=rng)
    try:
        rows, partners = match_masses(data.mass, generated.mass[kept], rng=rng)
    except EventsError:
        return None
    if rows.size < 200:
        return None
    first, second = data.select(rows), generated.select(kept[partners])
    inputs = np.concatenate([np.column_stack([e.mass, e.matrix(e.names)]) for e in (first, second)])
    label, pair = np.arange(2 * rows.size) < rows.size, np.tile(np.arange(rows.size), 2)
    fold = assign_folds(pair, request.folds, rng=rng)
    fitted = forward_fit(inputs, label, fold, rng=rng, options=request.classifier)
    scores = Scores(fitted.logit, label[fitted.rows], fold=fitted.fold)
    test = permutation_test(scores, rng=rng, permutations=request.permutations, pair=pair[fitted.rows])
    profiled = None
    if request.nplm_permutations:
        few, options = nplm_sizes(n, request.nplm_permutations)
        samples = data.matrix(data.names)[:few], generated.matrix(data.names)
        try:
            profiled = nplm_profiled(*samples, (log_weight[:few], own), rng=rng, options=options)
        except EventsError:
            profiled = None
    return Residual(rows.size, rows.size, area_under_roc(scores), test["log_score"].p_value, profiled)
