"""Everything that was measured about a generator on one set of test events: what `diagnostics.json` holds and figures are drawn from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from gbistat import __version__
from gbistat.diagnostics.calibration import calibrate
from gbistat.diagnostics.closure import reweighting_closure
from gbistat.diagnostics.evidence import log_score, paired_evidence, tail_tests
from gbistat.diagnostics.failure_modes import failure_modes
from gbistat.diagnostics.isotonic import recalibrated
from gbistat.diagnostics.permutations import permutation_test
from gbistat.diagnostics.regions import find_regions
from gbistat.diagnostics.roc import area_under_roc
from gbistat.diagnostics.rules import find_rules
from gbistat.diagnostics.slices import slice_scan
from gbistat.diagnostics.weights import weight_moments
from gbistat.errors import GbistatError
from gbistat.terms.metadata import CertificateRecord

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from gbistat.diagnostics.calibration import Calibration
    from gbistat.diagnostics.closure import Closure
    from gbistat.diagnostics.evidence import PairedEvidence, TailTest
    from gbistat.diagnostics.failure_modes import FailureMode
    from gbistat.diagnostics.impact import Impact, PooledBias
    from gbistat.diagnostics.nplm import NplmResult
    from gbistat.diagnostics.overfitting import EnsembleStability, Overfitting
    from gbistat.diagnostics.permutations import PermutationTest
    from gbistat.diagnostics.pulls import Pulls
    from gbistat.diagnostics.regions import Region
    from gbistat.diagnostics.residual import Residual
    from gbistat.diagnostics.roc import AreaUnderCurve
    from gbistat.diagnostics.rules import Rule
    from gbistat.diagnostics.scorecard import Scorecard
    from gbistat.diagnostics.slices import Slice
    from gbistat.diagnostics.verdict import Verdict
    from gbistat.diagnostics.weights import Estimate, Scores, WeightMoments
    from gbistat.typing import FloatArray, IntArray, Json

__all__ = ["Certificate", "ClassifierReport", "classifier_report"]


@dataclass(frozen=True, eq=False)
class ClassifierReport:
    """What one frozen classifier says about test events.

    Parameters
    ----------
    scores : Scores
        Its outputs.
    area, log_score, evidence, tails, moments, calibration, permutations
        Statistics; see the modules they come from.
    slices, regions, closure
        By observable.
    rules : tuple of Rule
        Leaves of a tree of ln w: regions in several observables.
    modes : tuple of FailureMode
        Compatible failure modes.
    faults : tuple of str
        What is wrong with the classifier itself.
    notes : tuple of str
        What could not be computed, and why.
    """

    scores: Scores
    area: AreaUnderCurve
    log_score: Estimate
    evidence: PairedEvidence
    tails: tuple[TailTest, ...]
    moments: WeightMoments
    calibration: Calibration
    permutations: PermutationTest
    slices: tuple[Slice, ...]
    regions: tuple[Region, ...]
    closure: tuple[Closure, ...]
    modes: tuple[FailureMode, ...]
    faults: tuple[str, ...]
    notes: tuple[str, ...]
    rules: tuple[Rule, ...] = ()

    def to_dict(self) -> Json:
        """Plain data, for JSON."""
        family = {item.name: item.to_dict() for item in self.permutations.statistics}
        area = self.area.to_dict() | {"p_perm": self.permutations["auc"].p_value}
        return {
            "n": [int(self.scores.is_data.sum()), int((~self.scores.is_data).sum())],
            "log_prior": self.scores.log_prior,
            "saturated_fraction": self.scores.saturated,
            "constant": self.scores.constant,
            "auc": area,
            "logscore": {
                "S": self.log_score.to_list(),
                "jsd_bits": self.log_score.value / 0.6931471805599453,
                **self.evidence.to_dict(),
            },
            "tails": [tail.to_dict() for tail in self.tails],
            "moments": self.moments.to_dict(),
            "calibration": self.calibration.to_dict(),
            "multiplicity": {
                "family": family,
                "method": "maxT permutation",
                "n_permutations": self.permutations.n_permutations,
                "p_global": self.permutations.p_global,
                "z_global": self.permutations.z_global,
                "z_ceiling": self.permutations.z_ceiling,
            },
            "slices": [item.to_dict() for item in self.slices],
            "regions": [region.to_dict() for region in self.regions],
            "rules": [rule.to_dict() for rule in self.rules],
            "closure": [item.to_dict() for item in self.closure],
            "modes": [mode.to_dict() for mode in self.modes],
            "classifier_faults": list(self.faults),
            "notes": list(self.notes),
        }


def classifier_report(
    scores: Scores,
    observables: Mapping[str, FloatArray],
    *,
    rng: np.random.Generator,
    permutations: int = 999,
    pair: IntArray | None = None,
    overfitting: Overfitting | None = None,
    stability: EnsembleStability | None = None,
    level: float = 0.01,
) -> ClassifierReport:
    """Compute everything that needs the scores of test events only.

    Parameters
    ----------
    scores : Scores
        Of events that trained nothing, from frozen classifiers.
    observables : mapping of str to array of shape (n,)
        Values in the order of the scores, finite; also ones that no classifier saw.
    rng : numpy.random.Generator
        Permutations, pairs, ties.
    permutations : int, default 999
        Of the labels.
    pair : int array of shape (n,), optional
        Pairs of one data and one generated event, whose labels are exchanged.
    overfitting, stability : optional
        Of the classifier, for its faults.
    level : float, default 0.01
        Global p-value below which failure modes are named.
    """
    test = permutation_test(scores, rng=rng, permutations=permutations, pair=pair)
    area, score = area_under_roc(scores), log_score(scores)
    moments, calibration = weight_moments(scores), calibrate(scores)
    tails = tail_tests(scores, rng=rng)
    slices = slice_scan(observables, scores)
    regions = find_regions(
        observables, scores.is_data, rng=rng, permutations=min(permutations, 199), fold=scores.fold, pair=pair
    )
    notes: list[str] = []
    closure: tuple[Closure, ...] = ()
    try:
        closure = reweighting_closure(observables, scores)
    except GbistatError as error:
        notes.append(f"no reweighting closure: {error}")
    if scores.saturated > 0:
        notes.append(
            f"{100 * scores.saturated:.2g} % of the outputs are saturated probabilities: their weights are not known; give logits"
        )
    if calibration.failed:
        again = calibrate(recalibrated(scores, rng=rng.spawn(1)[0]))
        notes.append(
            f"after isotonic recalibration: slope {again.slope.value:.2f}, chi2/dof {again.chi2:.0f}/{again.n_degrees:.0f}"
        )
    if moments.heavy_tail:
        notes.append("few generated events carry the variance of the weights: its true value may be infinite")
    modes = failure_modes(
        scores,
        moments=moments,
        tails=tails,
        area=area,
        calibration=calibration,
        log_score=score,
        slices=slices,
        rejected=test.p_global < level,
    )
    return ClassifierReport(
        scores,
        area,
        score,
        paired_evidence(scores, rng=rng),
        tails,
        moments,
        calibration,
        test,
        slices,
        regions,
        closure,
        modes,
        tuple(_faults(scores, calibration, modes, overfitting, stability, test.p_global < level)),
        tuple(notes),
        find_rules(observables, scores),
    )


def _faults(
    scores: Scores,
    calibration: Calibration,
    modes: tuple[FailureMode, ...],
    overfitting: Overfitting | None,
    stability: EnsembleStability | None,
    rejected: bool,
) -> list[str]:
    faults = []
    if scores.constant:
        faults.append("the classifier gives every event the same output")
    if calibration.failed:
        faults.append(
            f"not calibrated: slope {calibration.slope.value:.2f}, chi2/dof {calibration.chi2:.0f}/{calibration.n_degrees:.0f}"
        )
    if overfitting is not None and overfitting.overfit:
        faults.append("overfitted: better than a coin on training events, worse on others")
    # Without a difference to learn the members of an ensemble share nothing, and that is right.
    if rejected and stability is not None and not stability.stable:
        faults.append(f"halves of the ensemble differ by {stability.rms_ratio:.2f} of the spread of ln w")
    faults += [mode.description for mode in modes if mode.code in ("OVERFIT-C", "ANTI-C")]
    return faults


@dataclass(frozen=True, eq=False)
class Certificate:
    """All that was found out about a generator.

    Parameters
    ----------
    model, model_sha256, generator, source : str
        Names and hashes of what was compared with what.
    region : {"sidebands", "signal region"}
        Where.
    window : (low, high) or None
        Signal window, blinded unless the region is the signal region; in GeV.
    classifier : ClassifierReport
        Weights.
    null : ClassifierReport or None
        The same procedure on two halves of the data: what it gives when nothing is wrong.
    overfitting, stability
        Of the classifier.
    nplm, card : optional
        Other tests.
    impact, pooled, power : optional
        What it means for mu.
    verdict : Verdict
        The verdict.
    settings : dict
        Options, seeds and hashes of folds.
    pulls : Pulls, optional
        Of the generator's ensemble.
    residual : Residual, optional
        What is left after reweighting, where a difference was found.
    observables, units : mappings
        Values in the order of the scores, and their units, for figures.
    """

    model: str
    model_sha256: str
    generator: str
    source: str
    region: Literal["sidebands", "signal region"]
    window: tuple[float, float] | None
    classifier: ClassifierReport
    null: ClassifierReport | None
    overfitting: Overfitting | None
    stability: EnsembleStability | None
    nplm: NplmResult | None
    card: Scorecard | None
    impact: Impact | None
    pooled: PooledBias | None
    power: float | None
    statement: str | None
    verdict: Verdict
    settings: Json
    pulls: Pulls | None = None
    residual: Residual | None = None
    observables: Mapping[str, FloatArray] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)

    def short(self) -> CertificateRecord:
        """What goes into the metadata of a term; its hashes are filled in when it is attached."""
        bias = None if self.impact is None else (self.impact.bias.value, self.impact.bias.error)
        return CertificateRecord(
            verdict=self.verdict.outcome,
            statement=self.verdict.reasons[0],
            bias=bias,
            tolerance=self.settings["tolerance"],
            region=self.region,
            window=self.window,
            generator=self.generator,
            events=self.source or "samples",
            model_sha256="0" * 64,
            diagnostics_sha256="0" * 64,
        )

    def checks(self) -> list[Json]:
        """One row a check: name, value, p, null and a verdict of its own."""
        rows: list[Json] = []
        report, null = self.classifier, self.null

        def row(name: str, value: float, p: float | None, reference: object, outcome: str) -> None:
            rows.append({"name": name, "value": value, "p": p, "null": reference, "verdict": outcome})

        def seen(p: float) -> str:
            return "difference" if p < 0.01 else "no difference"

        family = report.permutations
        values = {
            "log_score": ("held-out log-score [nats]", report.log_score.value),
            "auc": ("area under the ROC curve", report.area.value),
        }
        for name, (label, value) in values.items():
            item = family[name]
            truth = None if null is None else (null.log_score.value if name == "log_score" else null.area.value)
            reference = {"mean": item.null_mean, "std": item.null_width}
            if name == "auc":
                reference = {"mean": 0.5, "std": report.area.null_width}
            row(label, value, item.p_value, reference | {"truth_vs_truth": truth}, seen(item.p_value))
        row("all classifier statistics (max-T)", family.z_global, family.p_global, None, seen(family.p_global))
        for side, label in (
            ("high", "data among the 1 % largest weights"),
            ("low", "generated among the 1 % smallest"),
        ):
            tail = next(
                t for t in report.tails if t.side == side and abs(t.k / report.scores.logit.size - 0.01) < 0.004
            )
            row(label, tail.observed, tail.p_value, {"mean": tail.expected}, seen(tail.p_value))
        for label, mass in (
            ("missing mass", report.moments.missing_mass),
            ("spurious mass", report.moments.spurious_mass),
        ):
            there = mass.value > 3 * mass.error
            row(label, mass.value, None, {"error": mass.error}, "found" if there else "not found")
        cal = report.calibration
        row("calibration chi2", cal.chi2, cal.p_value, {"ndf": cal.n_degrees}, "FAIL" if cal.failed else "PASS")
        if self.nplm is not None:
            t = self.nplm.best
            reference = {"mean": float(t.null.mean()), "std": float(t.null.std())}
            row("NPLM t", t.t, self.nplm.p_value, reference, seen(self.nplm.p_value))
        if self.card is not None:
            for metric in self.card.metrics:
                reference = {"mean": metric.null_mean, "std": metric.null_width, "truth_vs_truth": metric.truth}
                row(metric.name.replace("_", " "), metric.value, metric.p_value, reference, seen(metric.p_value))
        if self.residual is not None:
            area, p = self.residual.area, self.residual.p_value
            row("AUC after reweighting", area.value, p, {"mean": 0.5, "std": area.null_width}, seen(p))
            if (profiled := self.residual.profiled) is not None:
                t = profiled.test.best
                reference = {"mean": float(t.null.mean()), "std": float(t.null.std())}
                row(
                    f"NPLM t after tilt {profiled.nu:.2f}",
                    t.t,
                    profiled.test.p_value,
                    reference,
                    seen(profiled.test.p_value),
                )
        if self.impact is not None:
            bias = self.impact.bias
            row("bias of mu [sigma]", bias.value, None, {"error": bias.error}, self.verdict.outcome)
        return rows

    def to_dict(self) -> Json:
        """Plain data, for JSON: schema ``gbistat.diagnose/1``."""

        def optional(item: object) -> Json | None:
            return None if item is None else item.to_dict()  # type: ignore[attr-defined]

        return {
            "schema": "gbistat.diagnose/1",
            "version": __version__,
            "model": {"name": self.model, "sha256": self.model_sha256},
            "generator": self.generator,
            "events": {"path": self.source},
            "region": self.region,
            "window": None if self.window is None else list(self.window),
            **self.verdict.to_dict(),
            "checks": self.checks(),
            "classifier": self.classifier.to_dict(),
            "null_run": optional(self.null),
            "overfit": optional(self.overfitting),
            "ensemble": optional(self.stability),
            "nplm": optional(self.nplm),
            "scorecard": optional(self.card),
            "impact": optional(self.impact),
            "pooled_bias": optional(self.pooled),
            "power": self.power,
            "pulls": optional(self.pulls),
            "residual": optional(self.residual),
            "statement": self.statement,
            "settings": self.settings,
        }
