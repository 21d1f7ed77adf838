"""PASS, FAIL or UNDECIDED, with reasons: a test that does not reject certifies nothing.

PASS needs an equivalence bound (the bias of mu excluded above the tolerance at 95 %) and shown power (an injected bias of that size is
found in 80 % of trials). FAIL needs a bias shown to be above the tolerance at 99 %, or a visible difference that nothing bounds.
Everything else is UNDECIDED; so is everything a classifier says that learned noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from scipy.special import ndtri

if TYPE_CHECKING:
    from gbistat.diagnostics.impact import Impact, PooledBias
    from gbistat.diagnostics.weights import WeightMoments
    from gbistat.typing import Json

__all__ = ["Outcome", "Verdict", "VerdictOptions", "decide"]

Outcome = Literal["PASS", "FAIL", "UNDECIDED"]


@dataclass(frozen=True)
class VerdictOptions:
    """What is asked of a generator.

    Parameters
    ----------
    tolerance : float
        Largest acceptable bias of mu, in standard errors of mu.
    level : float
        Chance of a false alarm that is accepted: of the global p-value, and of a bias shown to be above the tolerance.
    power : float
        Smallest share of injections found that lets a bound count.
    """

    tolerance: float = 0.2
    level: float = 0.01
    power: float = 0.8


@dataclass(frozen=True)
class Verdict:
    """The verdict on a generator.

    Parameters
    ----------
    outcome : {"PASS", "FAIL", "UNDECIDED"}
        The verdict.
    reasons : tuple of str
        Why; first what decided.
    detected : bool
        Whether data and generated events were told apart.
    void : bool
        Whether the classifier is to blame: its p-values count, its weights do not.
    """

    outcome: Outcome
    reasons: tuple[str, ...]
    detected: bool
    void: bool

    def to_dict(self) -> Json:
        """Plain data, for JSON."""
        return {
            "verdict": self.outcome,
            "reasons": list(self.reasons),
            "detected": self.detected,
            "void": self.void,
        }


def decide(
    p_global: float,
    *,
    classifier_faults: tuple[str, ...] = (),
    moments: WeightMoments | None = None,
    impact: Impact | PooledBias | None = None,
    power: float | None = None,
    options: VerdictOptions | None = None,
) -> Verdict:
    """Decide from the global p-value, the state of the classifier, and the bias of mu.

    Parameters
    ----------
    p_global : float
        That the difference is chance, corrected for everything that was looked at.
    classifier_faults : tuple of str
        What is wrong with the classifier; empty if nothing.
    moments : WeightMoments, optional
        For missing and spurious mass.
    impact : Impact or PooledBias, optional
        Bias of mu; without a signal there is none.
    power : float, optional
        Share of injected biases of the size of the tolerance that are found.
    options : VerdictOptions, optional
        What is asked.
    """
    options = options or VerdictOptions()
    detected = p_global < options.level
    void = bool(classifier_faults)
    seen = (
        f"data and generated events are told apart (p = {p_global:.2g})"
        if detected
        else (f"no difference is seen (p = {p_global:.2g}), which alone certifies nothing")
    )
    reasons = [seen, *(f"weights not usable: {fault}" for fault in classifier_faults)]
    masses = [] if moments is None or void else _masses(moments)
    if impact is not None:
        lower = abs(impact.bias.value) - float(ndtri(1.0 - 0.5 * options.level)) * impact.bias.error
        text = f"bias of mu {impact.bias.value:.2g} +- {impact.bias.error:.2g} sigma"
        if lower > options.tolerance:
            return Verdict(
                "FAIL",
                (f"{text}: above {options.tolerance:g} at {100 * (1 - options.level):g} %", *reasons, *masses),
                detected,
                void,
            )
        bounded = impact.upper < options.tolerance
        if bounded and power is not None and power >= options.power:
            harmless = ", detectable and harmless: attach the tilt nuisance" if detected else ""
            first = f"{text}: below {options.tolerance:g} at 95 %, power {power:.2f}{harmless}"
            return Verdict("PASS", (first, *reasons), detected, void)
        why = f"below {impact.upper:.2g} at 95 %, tolerance {options.tolerance:g}"
        if bounded:
            why += f"; power {'not shown' if power is None else f'{power:.2f}'}, {options.power:g} is asked"
        reasons = [f"{text}: {why}", *reasons]
    if detected and not void and (impact is None or masses):
        return Verdict("FAIL", (*masses, *reasons) if masses else tuple(reasons), detected, void)
    return Verdict("UNDECIDED", (*reasons, *masses), detected, void)


def _masses(moments: WeightMoments) -> list[str]:
    """Missing and spurious mass, where they are more than three errors from 0."""
    found = []
    for name, mass in (("missing", moments.missing_mass), ("spurious", moments.spurious_mass)):
        if mass.value > max(3.0 * mass.error, 1e-3):
            found.append(f"{name} mass {100 * mass.value:.2g} +- {100 * mass.error:.1g} %")
    return found
