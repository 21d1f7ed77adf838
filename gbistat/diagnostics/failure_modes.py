"""Names for what is wrong with a generator, read off the weights: compatible failure modes, ranked, never one cause.

A classifier tracks the ratio of densities and not the mechanism: the same smearing looks one way where the smeared feature
dominates the rate and another where it does not (arXiv:2305.16774, section 2). So the modes are a list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.diagnostics.calibration import Calibration
    from gbistat.diagnostics.evidence import TailTest
    from gbistat.diagnostics.roc import AreaUnderCurve
    from gbistat.diagnostics.slices import Slice
    from gbistat.diagnostics.weights import Estimate, Scores, WeightMoments
    from gbistat.typing import Json

__all__ = ["DESCRIPTIONS", "Code", "FailureMode", "WeightShape", "failure_modes", "weight_shape"]

Code = Literal["TAIL", "EDGE", "SMEAR-DOM", "SMEAR-NARROW", "SHIFT", "GLOBAL", "NORM", "OVERFIT-C", "ANTI-C"]
DESCRIPTIONS: dict[Code, str] = {
    "TAIL": "a tail or a feature is missing: data where the generator gives little or nothing",
    "EDGE": "wrong boundary of phase space: generated events where there are next to no data",
    "SMEAR-DOM": "the dominating peak is smeared: too few events in the peak, too many at both ends",
    "SMEAR-NARROW": "a narrow peak on broad structure is smeared: peak too low, its shoulders too high",
    "SHIFT": "a distribution is shifted: large and small weights at opposite ends",
    "GLOBAL": "many defects at once: weights far from 1 nearly everywhere",
    "NORM": "priors or the spectrum of the mass do not match: weights off by a factor",
    "OVERFIT-C": "the classifier memorised noise: nothing it says about the generator counts",
    "ANTI-C": "the classifier is inverted on test events: its training failed",
}
SIGNIFICANT, ABSENT = 1e-3, 0.01


@dataclass(frozen=True)
class FailureMode:
    """A failure mode that the weights are compatible with.

    Parameters
    ----------
    code : str
        One of `DESCRIPTIONS`.
    score : float
        Share of its signs that are there, from 0 to 1.
    evidence : tuple of str
        These signs.
    """

    code: Code
    score: float
    evidence: tuple[str, ...]

    @property
    def description(self) -> str:
        """What the mode is."""
        return DESCRIPTIONS[self.code]

    def to_dict(self) -> Json:
        """Plain data, for JSON."""
        return {
            "code": self.code,
            "description": self.description,
            "score": self.score,
            "evidence": list(self.evidence),
        }


@dataclass(frozen=True)
class WeightShape:
    """Shape of the distribution of ln w.

    Parameters
    ----------
    mode : float
        Most frequent w of generated events.
    below : float
        Distance from that mode down to the 0.5 % quantile of ln w of all events.
    above : float
        Distance from that mode up to the 99.5 % quantile.
    small : float
        Share of generated events with w < 0.1.
    """

    mode: float
    below: float
    above: float
    small: float


def weight_shape(scores: Scores) -> WeightShape:
    """Mode and reach of the distribution of ln w.

    Parameters
    ----------
    scores : Scores
        Of test events.

    Notes
    -----
    The mode is the middle of the shortest interval that holds a tenth of the generated events (half-sample mode, one
    step): no bins to choose, and a spike counts for what it holds.
    """
    generated = np.sort(scores.generated)
    k = max(2, generated.size // 10)
    widths = generated[k - 1 :] - generated[: generated.size - k + 1]
    widths = np.where(np.isfinite(widths), widths, np.inf)
    start = int(np.argmin(widths))
    mode = float(np.median(generated[start : start + k]))
    low, high = np.quantile(scores.log_weight, [0.005, 0.995], method="lower")
    small = float(np.mean(scores.generated < np.log(0.1)))
    return WeightShape(float(np.exp(mode)), mode - float(low), float(high) - mode, small)


def failure_modes(
    scores: Scores,
    *,
    moments: WeightMoments,
    tails: Sequence[TailTest],
    area: AreaUnderCurve,
    calibration: Calibration,
    log_score: Estimate,
    slices: Sequence[Slice] = (),
    rejected: bool = True,
) -> tuple[FailureMode, ...]:
    """Failure modes that the weights are compatible with, the one with most of its signs first.

    Parameters
    ----------
    scores : Scores
        Of test events.
    moments, tails, area, calibration, log_score, slices
        What the functions of the other modules say about the same scores.
    rejected : bool, default True
        Whether the global test rejects: otherwise the generator has no failure to name, only the classifier can.
    """
    modes = [
        _mode(
            "OVERFIT-C",
            [
                (log_score.value < -2 * log_score.error, f"held-out log-score {log_score.value:.2g} is negative"),
                (
                    calibration.failed and calibration.slope.value < 0.5,
                    f"slope {calibration.slope.value:.2g} is near 0",
                ),
                (
                    moments.spread > 0.1 and area.pull < 3,
                    f"ln w varies by {moments.spread:.2g} at AUC {area.value:.3f}",
                ),
            ],
            needed=2,
        ),
        _mode("ANTI-C", [(area.pull < -3, f"AUC {area.value:.4f} is {area.pull:.1f} null widths below 1/2")], needed=1),
    ]
    if any(modes):
        return tuple(mode for mode in modes if mode)
    if not rejected:
        return ()
    shape = weight_shape(scores)
    hi, lo = (min((t.p_value for t in tails if t.side == side), default=1.0) for side in ("high", "low"))
    places = _places(slices)
    symmetric = shape.below < 4 * shape.above < 16 * shape.below
    missing, spurious = moments.missing_mass, moments.spurious_mass
    modes = [
        _mode(
            "TAIL",
            [
                (hi < SIGNIFICANT, f"data gather at the largest weights (p = {hi:.1g})"),
                (lo > ABSENT, f"generated events do not gather at the smallest (p = {lo:.1g})"),
                (shape.above > 1.5 * shape.below or moments.skewness > 1, "long tail of large weights"),
                (missing.value > 3 * missing.error, f"missing mass {missing.value:.3g} +- {missing.error:.2g}"),
            ],
            needed=2,
        ),
        _mode(
            "EDGE",
            [
                (lo < SIGNIFICANT, f"generated events gather at the smallest weights (p = {lo:.1g})"),
                (hi > ABSENT, f"data do not gather at the largest (p = {hi:.1g})"),
                (shape.small > 0.002, f"{100 * shape.small:.2g} % of generated events have w < 0.1"),
                (spurious.value > 3 * spurious.error, f"spurious mass {spurious.value:.3g} +- {spurious.error:.2g}"),
            ],
            needed=3,
        ),
        _mode(
            "SMEAR-DOM",
            [
                (shape.mode > 1.02, f"most frequent weight {shape.mode:.3g} is above 1"),
                (shape.below > 4 * shape.above, "sharp upper edge, long tail of small weights"),
                (lo < SIGNIFICANT and shape.small < 0.03, f"generated events gather at small weights (p = {lo:.1g})"),
                (("small", "both ends") in places, "small weights lie at both ends of an observable"),
            ],
            needed=2,
        ),
        _mode(
            "SMEAR-NARROW",
            [
                (shape.mode < 0.98, f"most frequent weight {shape.mode:.3g} is below 1"),
                (hi < SIGNIFICANT and lo < SIGNIFICANT, "data gather at large and generated events at small weights"),
                (("large", "middle") in places, "large weights lie in the middle of an observable"),
            ],
            needed=2,
        ),
        _mode(
            "SHIFT",
            [
                (hi < SIGNIFICANT and lo < SIGNIFICANT, "data gather at large and generated events at small weights"),
                (symmetric, "both tails of ln w reach equally far"),
                (_opposite(slices), "large and small weights lie at opposite ends of an observable"),
            ],
            needed=2,
        ),
        _mode("GLOBAL", [(moments.spread > 0.5, f"ln w varies by {moments.spread:.2g}")], needed=1),
        _mode("NORM", [(_off_by_a_factor(calibration), f"intercept {calibration.intercept.value:.2g}")], needed=1),
    ]
    return tuple(sorted((mode for mode in modes if mode), key=lambda mode: (-mode.score, -len(mode.evidence))))


def _mode(code: Code, signs: list[tuple[bool, str]], *, needed: int) -> FailureMode | None:
    found = tuple(text for there, text in signs if there)
    return FailureMode(code, len(found) / len(signs), found) if len(found) >= needed else None


def _significant(slices: Sequence[Slice]) -> list[Slice]:
    return [item for item in slices if item.q_value < 0.01 and item.effect > 0.3]


def _places(slices: Sequence[Slice]) -> set[tuple[str, str]]:
    return {(item.side, item.position) for item in _significant(slices)}


def _opposite(slices: Sequence[Slice]) -> bool:
    found = {(item.observable, item.side, item.position) for item in _significant(slices)}
    return any(
        (name, "large", "high" if place == "low" else "low") in found
        for name, side, place in found
        if side == "small" and place in ("low", "high")
    )


def _off_by_a_factor(calibration: Calibration) -> bool:
    """Whether the intercept alone is off: calibration parallel to the diagonal."""
    a, b = calibration.intercept, calibration.slope
    return calibration.estimable and abs(a.value) > max(3 * a.error, 0.02) and abs(b.value - 1) < 3 * b.error
