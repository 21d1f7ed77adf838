"""What a signal learned from data amounts to, each event judged by networks that never saw it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gbistat.data.events import Events
from gbistat.terms.learned_signal import LearnedSignalTerm
from gbistat.terms.network import log_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.terms.network import NetworkTerm
    from gbistat.training.ranode_run import RanodeRun
    from gbistat.typing import FloatArray, Json

__all__ = ["measure_quality", "run_events"]


def run_events(run: RanodeRun, x: FloatArray) -> Events:
    """Events of rows of mass and features, shape (n, 1 + d), in the units of a run."""
    names = run.transform.names
    return Events(x[:, 0], x[:, 1:], names[1:], run.units, mass_name=names[0])


def measure_quality(run: RanodeRun, fold_record: Sequence[Json], term: NetworkTerm) -> Json:
    """Fractions, gains in the likelihood and signal-like events of each fold, and the integral of the density.

    Parameters
    ----------
    run : RanodeRun
        A finished run.
    fold_record : sequence of dict
        What is known of each fold already, as JSON; the rest is added to it.
    term : NetworkTerm
        Its graphs.
    """
    kept = run.events()
    signal = LearnedSignalTerm(term)
    events = run_events(run, kept["x"])
    log_ratio = signal.log_prob(events) - kept["log_background"]
    finite = np.isfinite(log_ratio)
    folds, record, all_shares = signal.rule.fold_of(events), [], []
    for fold, entry in enumerate(fold_record):
        w = float(np.mean(signal.fractions[fold]))
        values = log_ratio[(folds == fold) & finite]
        gains = np.logaddexp(np.log1p(-w), np.log(w) + values)
        shares = np.exp(np.log(w) + values - gains)
        all_shares.append(shares)
        record.append({
            **entry, "n_events": int(np.sum(folds == fold)), "gain_held_out": float(gains.sum()),
            "signal_like": float(shares.sum()),
        })  # fmt: skip
    together = np.concatenate(all_shares)
    return {
        "folds": record,
        "gain_held_out": float(sum(item["gain_held_out"] for item in record)),
        "signal_like_events": float(together.sum()),
        "effective_signal_like_events": float(together.sum() ** 2 / np.sum(together**2)),
        "integral": _integral(run, signal),
        "events_left_out": run.counts["left_out"],
    }


def _integral(run: RanodeRun, signal: LearnedSignalTerm, n: int = 20_000) -> Json:
    """Integral of the mean density over window and ranges, by importance sampling from its own samples made wider.

    The proposal is a kernel density in the transformed space: samples of p_s, moved by a Gaussian of random width.
    """
    rng = np.random.default_rng([run.card.seed, 25])
    names, transform = run.transform.names, run.transform
    drawn = signal.sample(400, rng=rng).matrix(names)
    centres = transform.forward(drawn[transform.inside(drawn)])
    d = centres.shape[1]
    scale = centres.std(axis=0) * len(centres) ** (-1.0 / (d + 4))
    widths = np.array([1.0, 4.0])
    which = rng.integers(len(centres), size=n)
    wide = rng.integers(2, size=n)
    points = centres[which] + rng.standard_normal((n, d)) * scale * widths[wide][:, None]
    log_q = np.concatenate([_kernels(points[i : i + 1000], centres, scale, widths) for i in range(0, n, 1000)])
    x = transform.inverse(points)
    good = transform.inside(x.astype(np.float32).astype(np.float64))
    weights = np.zeros(n)
    log_p = log_mean(signal.term.member_values(run_events(run, x[good])))
    weights[good] = np.exp(log_p - transform.log_abs_det(x[good]) - log_q[good])
    return {"value": float(weights.mean()), "sigma": float(weights.std() / np.sqrt(n)), "n_points": n}


def _kernels(points: FloatArray, centres: FloatArray, scale: FloatArray, widths: FloatArray) -> FloatArray:
    """ln of the equal mixture of Gaussian kernels of both widths at every centre, shape (n,)."""
    square = np.sum(((points[:, None, :] - centres[None]) / scale) ** 2, axis=2)
    constant = -0.5 * points.shape[1] * np.log(2.0 * np.pi) - np.log(scale).sum() - np.log(2.0 * len(centres))
    terms = [-0.5 * square / width**2 - points.shape[1] * np.log(width) for width in widths]
    total: FloatArray = np.logaddexp.reduce(np.concatenate(terms, axis=1), axis=1) + constant
    return total
