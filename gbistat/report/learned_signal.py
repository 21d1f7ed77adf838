"""What is said about a signal that was learned from the data: as JSON, as tables of events, as figures.

Schema ``gbistat.learned-signal/1``. The limit on the fraction has a lower end alone; ``why_no_upper_end`` says why.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy.special import expit

from gbistat import __version__
from gbistat.data.events import ENERGY_UNITS
from gbistat.report.document import to_text
from gbistat.report.files import check_writable, write_bytes, write_text

if TYPE_CHECKING:
    from pathlib import Path

    from gbistat.data.events import Events
    from gbistat.data.window import MassWindow
    from gbistat.fit.sidebands import SidebandFit
    from gbistat.inference.signal_fraction import ClassInterval, CrossFitEstimate, LowerLimit
    from gbistat.inference.split_likelihood import DiscoveryEvidence
    from gbistat.typing import FloatArray, IntArray, Json

__all__ = ["SCHEMA", "WHY_NO_UPPER_END", "FoundSignal", "LearnedSignalReport", "write_learned_signal"]

SCHEMA: Final = "gbistat.learned-signal/1"
WHY_NO_UPPER_END: Final = (
    "a signal of unknown density may look like background: if a fraction w describes the data, so does any larger one whose signal has "
    "taken up background. An upper end exists only for a signal whose density is given"
)
TABLE_ROWS = 1000
"""Events in the table of the purest; the binary file holds all."""


@dataclass(frozen=True, eq=False)
class FoundSignal:
    """Events and networks as they see the signal.

    Parameters
    ----------
    events : Events
        The n events that were judged.
    fold : array of shape (n,)
        Their folds.
    log_ratio : array of shape (M, n)
        ln p_s / p_b by the networks that did not see them.
    score : array of shape (n,)
        ln of the mean p_s over p_b.
    fraction : float
        Fraction at which purities are computed.
    samples : tuple of Events
        Events drawn from p_s, one set for the networks of each fold.
    background : Events
        Events drawn from p_b.
    """

    events: Events
    fold: IntArray
    log_ratio: FloatArray
    score: FloatArray
    fraction: float
    samples: tuple[Events, ...]
    background: Events

    @property
    def purity(self) -> FloatArray:
        """Probability of each event to be signal, if p_s and the fraction are right, shape (n,)."""
        return self._purity(self.score)

    @property
    def member_purity(self) -> FloatArray:
        """The same by each network alone, shape (M, n)."""
        return self._purity(self.log_ratio)

    @property
    def spread(self) -> FloatArray:
        """Standard deviation of the networks' ln p_s / p_b, shape (n,); infinite where only some say 0."""
        low = np.isneginf(self.log_ratio)
        finite = np.where(low, 0.0, self.log_ratio)
        result: FloatArray = finite.std(axis=0, ddof=1 if len(finite) > 1 else 0)
        return np.where(low.any(axis=0), np.where(low.all(axis=0), 0.0, np.inf), result)

    def _purity(self, log_ratio: FloatArray) -> FloatArray:
        if self.fraction <= 0.0:
            return np.zeros_like(log_ratio)
        result: FloatArray = expit(np.log(self.fraction) - np.log1p(-self.fraction) + log_ratio)
        return result


@dataclass(frozen=True, eq=False)
class LearnedSignalReport:
    """Statements about one window.

    Parameters
    ----------
    model, model_sha256 : str
        Name and hash.
    source : str
        File of events.
    n_read : int
        Events read from it.
    window : MassWindow
        The window.
    left_out : int
        Events in it that the generator cannot make.
    evidence : DiscoveryEvidence
        Against the composite null.
    plain_evidence : DiscoveryEvidence
        Against the mean of the generator's members alone.
    null, null_settings : str, dict
        What the composite null is, in words and numbers.
    limit, plain_limit : LowerLimit
        Lower limit on the fraction, against the composite null and the mean alone.
    interval : ClassInterval
        If the signal is a mixture of the networks' densities.
    estimate : CrossFitEstimate
        For the learned density.
    fractions : array of shape (K, M)
        Fractions that the networks were trained with.
    mode : str
        Where these come from.
    sidebands : SidebandFit
        The mass of the background.
    found : FoundSignal
        Events and samples.
    warnings : tuple of str
        What a reader must know.
    grading : dict
        Significance improvement where labels were given, by false-positive rate; empty otherwise.
    """

    model: str
    model_sha256: str
    source: str
    n_read: int
    window: MassWindow
    left_out: int
    evidence: DiscoveryEvidence
    plain_evidence: DiscoveryEvidence
    null: str
    null_settings: Json
    limit: LowerLimit
    plain_limit: LowerLimit
    interval: ClassInterval
    estimate: CrossFitEstimate
    fractions: FloatArray
    mode: str
    sidebands: SidebandFit
    found: FoundSignal
    warnings: tuple[str, ...]
    grading: Json

    @property
    def n_events(self) -> int:
        """Events of the window that the generator can make."""
        return len(self.found.events)

    @property
    def signal_events(self) -> float:
        """Lower limit on the expected number of signal events among them."""
        return self.limit.low * self.n_events

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        scale = ENERGY_UNITS[self.window.unit] / ENERGY_UNITS["GeV"]
        return {
            "schema": SCHEMA,
            "version": __version__,
            "model": {"name": self.model, "sha256": self.model_sha256},
            "events": {"path": self.source, "n_read": self.n_read},
            "window": [edge * scale for edge in self.window.edges],
            "unit": "GeV",
            "n_events": self.n_events,
            "left_out": self.left_out,
            "null": {"description": self.null, **self.null_settings},
            "discovery": self.evidence.to_dict(),
            "fraction": {**self.limit.to_dict(), "valid_for": "any signal", "why_no_upper_end": WHY_NO_UPPER_END},
            "signal_events": {"low": self.signal_events, "high": None, "cl": self.limit.cl},
            "plain_null": {"discovery": self.plain_evidence.to_dict(), "fraction": self.plain_limit.to_dict()},
            "mixture_interval": self.interval.to_dict(),
            "estimate": self.estimate.to_dict(),
            "training": {"mode": self.mode, "fractions": self.fractions.tolist()},
            "sidebands": self.sidebands.to_dict(),
            **({"grading": self.grading} if self.grading else {}),
            "warnings": list(self.warnings),
        }


def write_learned_signal(report: LearnedSignalReport, directory: Path) -> list[Path]:
    """Write JSON, tables of events and figures.

    Parameters
    ----------
    report : LearnedSignalReport
        What was found.
    directory : Path
        Folder, made if it does not exist.

    Returns
    -------
    list of Path
        ``learned_signal.json``, ``anomalies.csv`` (the purest events), ``anomalies.npz`` (all), and figures.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    from gbistat.plotting.learned_signal import save_found_signal, save_score

    check_writable(directory)
    found = report.found
    written = [write_text(directory / "learned_signal.json", to_text(report.to_dict()))]
    written.append(write_text(directory / "anomalies.csv", _table(found)))
    written.append(write_bytes(directory / "anomalies.npz", _arrays(found)))
    written.append(directory / "signal_score.png")
    first = 1 if report.evidence.scheme == "product" else 0
    save_score(found.score, found.fold, report.evidence.log_e_folds, written[-1], first=first)
    for name, unit, columns in spectra(found):
        written.append(directory / f"signal_{name}.png")
        data, samples, background = columns
        save_found_signal(name, unit, data, found.member_purity, samples, background, written[-1])
    return written


def spectra(found: FoundSignal) -> list[tuple[str, str, tuple[FloatArray, list[FloatArray], FloatArray]]]:
    """Mass and features with their units: values of the data, of the samples of each fold's networks, and of the background.

    Where there are ``m_light`` and ``dm`` the mass of the heavier jet comes too.
    """
    events = found.events
    names = [events.mass_name, *found.samples[0].names]
    rows = [(name, events.units[name], (events, found.samples, found.background)) for name in names]
    result = [
        (name, unit, (data.feature(name), [one.feature(name) for one in drawn], other.feature(name)))
        for name, unit, (data, drawn, other) in rows
    ]
    if {"m_light", "dm"} <= set(names):
        heavy = [a.feature("m_light") + a.feature("dm") for a in (events, *found.samples, found.background)]
        result.append(("m_heavy", events.units["m_light"], (heavy[0], heavy[1:-1], heavy[-1])))
    return result


def _order(found: FoundSignal) -> IntArray:
    return np.argsort(-found.score, kind="stable")


def _table(found: FoundSignal) -> str:
    """The purest events, best first, as CSV."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    names = (found.events.mass_name, *found.events.names)
    writer.writerow(["rank", "log_ratio", "spread", "purity", "fold", *names])
    values, purity, spread = found.events.matrix(names), found.purity, found.spread
    for rank, row in enumerate(_order(found)[:TABLE_ROWS], 1):
        numbers = (found.score[row], spread[row], purity[row])
        writer.writerow(
            [rank, *(f"{x:.6g}" for x in numbers), int(found.fold[row]), *(f"{x:.9g}" for x in values[row])]
        )
    return stream.getvalue()


def _arrays(found: FoundSignal) -> bytes:
    """All events, best first."""
    order, stream = _order(found), io.BytesIO()
    columns = {name: found.events.feature(name)[order] for name in (found.events.mass_name, *found.events.names)}
    np.savez_compressed(
        stream,
        allow_pickle=False,
        log_ratio=found.score[order],
        log_ratio_members=found.log_ratio[:, order],
        purity=found.purity[order],
        fold=found.fold[order],
        **columns,
    )
    return stream.getvalue()
