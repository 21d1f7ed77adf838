"""What ``gbistat diagnose`` does: held-out events against a learned background, by everything in `gbistat.diagnostics`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gbistat import __version__
from gbistat.diagnose_inputs import SMALLEST, DiagnoseRequest, named_file, read_pairs, signal_log_ratios
from gbistat.diagnose_residuals import nplm_sizes, residual_checks
from gbistat.diagnostics.certificate import Certificate, classifier_report
from gbistat.diagnostics.folds import assign_folds
from gbistat.diagnostics.impact import injection_power, pool_windows, projected_bias, signal_score
from gbistat.diagnostics.nplm import nplm_test
from gbistat.diagnostics.overfitting import compare_with_training, ensemble_stability
from gbistat.diagnostics.pulls import generator_pulls
from gbistat.diagnostics.scorecard import ScorecardOptions, scorecard
from gbistat.diagnostics.verdict import decide
from gbistat.diagnostics.weights import Scores
from gbistat.errors import EventsError, OptionError
from gbistat.steps import silent
from gbistat.training.classifiers import forward_fit

if TYPE_CHECKING:
    from gbistat.config import RunOptions
    from gbistat.data.events import Events
    from gbistat.diagnostics.certificate import ClassifierReport
    from gbistat.diagnostics.impact import Impact, PooledBias
    from gbistat.diagnostics.overfitting import EnsembleStability, Overfitting
    from gbistat.diagnostics.pulls import Pulls
    from gbistat.steps import Steps
    from gbistat.typing import FloatArray, IntArray

__all__ = ["diagnose_samples", "pseudo_windows", "run_diagnose"]

PSEUDO_WINDOWS, SMALLEST_WINDOW = 4, 50
IN_THE_WINDOW = (
    "these are the data of the signal window: a signal gives large weights too, and the bias of mu is not asked here; "
    "certify the generator in the sidebands"
)


def run_diagnose(options: RunOptions, request: DiagnoseRequest, *, steps: Steps = silent) -> Certificate:
    """Compare the data of a file with a learned background and decide what that means.

    Parameters
    ----------
    options : RunOptions
        Model (for features, the mass and the signal ratio), events, one window.
    request : DiagnoseRequest
        What to measure.
    steps : callable, optional
        Told about each step.

    Raises
    ------
    GbistatError
        If the model, the events or the generator cannot be used, or test events trained the generator.
    """
    rng = np.random.default_rng(request.seed)
    pairs = read_pairs(options, request, rng=rng, steps=steps)
    # With the data of the signal window a signal would be taken for a bias.
    log_ratios = None if request.unblind else signal_log_ratios(options.model, pairs.data, pairs.generated)
    # Windows are in GeV, terms in the unit of their model.
    return diagnose_samples(
        pairs.data.to_unit("GeV"),
        pairs.generated.to_unit("GeV"),
        request,
        rng=rng,
        steps=steps,
        log_ratios=log_ratios,
        n_background=request.expected or max(pairs.n_background, 1),
        window=options.windows[0],
        names=(options.model.name, options.model.sha256, pairs.generator, named_file(options.source.path)),
        fold_hashes=pairs.fold_hashes,
        member_log_prob=pairs.member_log_prob,
    )


def diagnose_samples(
    data: Events,
    generated: Events,
    request: DiagnoseRequest,
    *,
    rng: np.random.Generator,
    steps: Steps = silent,
    log_ratios: tuple[FloatArray, FloatArray] | None = None,
    n_background: float | None = None,
    window: tuple[float, float] | None = None,
    names: tuple[str, str, str, str] = ("", "", "samples", ""),
    fold_hashes: dict[str, str] | None = None,
    member_log_prob: FloatArray | None = None,
) -> Certificate:
    """Certificate of two samples of events with the same features, row i of both a pair of (nearly) equal mass.

    Parameters
    ----------
    data, generated : Events
        Held-out data and generated events, equally many.
    request : DiagnoseRequest
        What to measure.
    rng : numpy.random.Generator
        Folds, classifiers, permutations.
    steps : callable, optional
        Told about each step.
    log_ratios : (array, array), optional
        ln(p_s / p_b) of both samples, for the bias of mu.
    n_background : float, optional
        Background events in the window of the measurement; by default as many as data.
    window : (low, high), optional
        Of the measurement, in the unit of the events' mass.
    names : tuple of str
        Model, its hash, generator, source.
    fold_hashes : dict, optional
        For the record.
    member_log_prob : array of shape (K, n), optional
        ln p of each member of the generator at the generated events, for pulls.

    Raises
    ------
    EventsError
        If the samples are not equally large, or too small.
    """
    if len(data) != len(generated) or len(data) < SMALLEST // 2:
        raise EventsError(
            f"{len(data)} data and {len(generated)} generated events: give at least {SMALLEST // 2} pairs"
        )
    classified = _classify(data, generated, request, rng, steps, "classifiers")
    report = classified.report
    matrices = data.matrix(data.names), generated.matrix(data.names)
    null = None
    if request.null_run:
        half = rng.permutation(len(data))
        order = half[np.argsort(data.mass[half[: len(half) // 2 * 2]], kind="stable")]
        # Neighbours in the mass are pairs, one of each half.
        null = _classify(
            data.select(order[::2][: len(order) // 2]),
            data.select(order[1::2]),
            request,
            rng,
            steps,
            "truth against truth",
        ).report
    # Events that classifiers were asked about, in the order of the scores.
    tested, partners = data.select(classified.pairs), generated.select(classified.pairs)
    nplm = None
    if request.nplm_permutations:
        with steps("NPLM"):
            few, nplm_options = nplm_sizes(len(data), request.nplm_permutations)
            chosen = tested.matrix(data.names)[:few]
            nplm = nplm_test(chosen, matrices[1], rng=rng, options=nplm_options)
    with steps("distances"):
        card = scorecard(*matrices, rng=rng, options=ScorecardOptions(permutations=199))
    impact, pooled, power = None, None, None
    statement = IN_THE_WINDOW if request.unblind else None
    if log_ratios is not None:
        with steps("bias of mu"):
            n = float(n_background or len(data))
            impact, pooled, power = _impact(data.mass, log_ratios, n, classified, window, request, rng)
            statement = impact.statement(request.verdict.tolerance)
    p_values = [report.permutations.p_global, *([] if nplm is None else [nplm.p_value])]
    p_global = min(1.0, len(p_values) * min(p_values))
    verdict = decide(
        p_global,
        classifier_faults=report.faults,
        moments=report.moments,
        impact=impact,
        power=power,
        options=request.verdict,
    )
    residual = None
    # Also where the weights are in doubt: whether they cover the difference is what this asks.
    if verdict.detected and np.all(np.isfinite(report.scores.log_weight)):
        with steps("what is left after reweighting"):
            residual = residual_checks(tested, partners, report.scores.log_weight, request, rng=rng)
    settings = {
        "version": __version__,
        "seed": request.seed,
        "folds": request.folds,
        "classifier": request.classifier.kind,
        "members": request.classifier.members,
        "permutations": request.permutations,
        "tolerance": request.verdict.tolerance,
        "fold_hashes": fold_hashes or {},
        "p_global": {
            "value": p_global,
            "method": "Bonferroni over the classifier's family and NPLM; the distances are for orientation",
        },
    }
    model, sha256, generator, source = names
    return Certificate(
        model=model,
        model_sha256=sha256,
        generator=generator,
        source=source,
        region="signal region" if request.unblind else "sidebands",
        window=window,
        classifier=report,
        null=null,
        overfitting=classified.overfitting,
        stability=classified.stability,
        nplm=nplm,
        card=card,
        impact=impact,
        pooled=pooled,
        power=power,
        statement=statement,
        verdict=verdict,
        settings=settings,
        pulls=None if member_log_prob is None else _pulls(member_log_prob[:, classified.pairs], report),
        residual=residual,
        observables=classified.observables,
        units={name: data.units[name] for name in classified.observables},
    )


@dataclass(frozen=True, eq=False)
class _Classified:
    """What classifiers say about the pairs of events that they were asked about."""

    report: ClassifierReport
    overfitting: Overfitting
    stability: EnsembleStability | None
    pairs: IntArray
    observables: dict[str, FloatArray]


def _classify(
    data: Events,
    generated: Events,
    request: DiagnoseRequest,
    rng: np.random.Generator,
    steps: Steps,
    title: str,
) -> _Classified:
    """Classifiers trained on earlier folds of pairs of events, and all that follows from their scores."""
    names = tuple(data.names)
    n = len(data)
    matrix = np.concatenate([data.matrix(names), generated.matrix(names)])
    mass = np.concatenate([data.mass, generated.mass])
    label = np.arange(2 * n) < n
    pair = np.tile(np.arange(n), 2)
    fold = assign_folds(pair, request.folds, rng=rng)
    with steps(title):
        fitted = forward_fit(np.column_stack([mass, matrix]), label, fold, rng=rng, options=request.classifier)
    asked = fitted.rows
    scores = Scores(fitted.logit, label[asked], fold=fitted.fold)
    train = Scores(fitted.train_logit, label[fitted.train_rows], fold=fitted.train_fold)
    overfitting = compare_with_training(train, scores)
    stability = ensemble_stability(fitted.member_logit) if request.classifier.members > 1 else None
    observables = {data.mass_name: mass[asked]} | dict(zip(names, matrix[asked].T, strict=True))
    with steps(f"{title}: permutations"):
        report = classifier_report(
            scores,
            {name: values for name, values in observables.items() if name != data.mass_name},
            rng=rng,
            permutations=request.permutations,
            pair=pair[asked],
            overfitting=overfitting,
            stability=stability,
            level=request.verdict.level,
        )
    return _Classified(report, overfitting, stability, pair[asked[label[asked]]], observables)


def _impact(
    mass: FloatArray,
    log_ratios: tuple[FloatArray, FloatArray],
    n_background: float,
    classified: _Classified,
    window: tuple[float, float] | None,
    request: DiagnoseRequest,
    rng: np.random.Generator,
) -> tuple[Impact, PooledBias | None, float | None]:
    """Bias of mu from all pairs, from pseudo-windows of the mass together, and the power to see the tolerance."""
    n = mass.size
    score = signal_score(np.concatenate([log_ratios[1], log_ratios[0]]), n_background=n_background)
    generated, data = score[:n], score[n:]
    impact = projected_bias(data, generated, n_background=n_background)
    report, rows = classified.report, classified.pairs
    if not report.faults and np.all(np.isfinite(report.scores.generated)):
        # Weights are known of the events that classifiers were asked about.
        weighted = projected_bias(
            data[rows], generated[rows], n_background=n_background, log_weight=report.scores.generated
        )
        impact = replace(impact, bias_from_weights=weighted.bias_from_weights, universal_bound=weighted.universal_bound)
    pooled = None
    if window is not None and n >= 50 * PSEUDO_WINDOWS:
        order = pseudo_windows(mass, 0.5 * sum(window))
        parts = [projected_bias(data[rows], generated[rows], n_background=n_background) for rows in order]
        centres = [float(np.mean(mass[rows])) for rows in order]
        pooled = pool_windows(centres, [part.bias for part in parts], at=0.5 * sum(window))
    try:
        power = injection_power(
            generated, n_data=n, n_background=n_background, tolerance=request.verdict.tolerance, rng=rng
        )
    except OptionError:
        power = None
    return impact, pooled, power


def pseudo_windows(mass: FloatArray, centre: float) -> list[IntArray]:
    """Rows of about equally many events in intervals of the mass, none on both sides of the window.

    Parameters
    ----------
    mass : array of shape (n,)
        Sideband events.
    centre : float
        Of the window.
    """
    order = np.argsort(mass, kind="stable")
    below = int(np.sum(mass < centre))
    first = min(max(round(PSEUDO_WINDOWS * below / mass.size), 1), PSEUDO_WINDOWS - 1)
    parts = [*np.array_split(order[:below], first), *np.array_split(order[below:], PSEUDO_WINDOWS - first)]
    return [rows for rows in parts if rows.size >= SMALLEST_WINDOW]


def _pulls(member_log_prob: FloatArray, report: ClassifierReport) -> Pulls | None:
    """Pulls of the generator's ensemble, where all weights are finite."""
    log_weight = report.scores.generated
    if not np.all(np.isfinite(log_weight)) or not np.all(np.isfinite(member_log_prob)):
        return None
    return generator_pulls(member_log_prob, log_weight)
