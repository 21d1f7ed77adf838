"""The model card of a signal learned from data: what it is, what it saw, what may be said with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gbistat.terms.metadata import TermMetadata
    from gbistat.training.ranode_run import RanodeRun

__all__ = ["ranode_model_card"]


def ranode_model_card(run: RanodeRun, term: TermMetadata) -> str:
    """Markdown of a model card, with the numbers of this run."""
    card, counts, record = run.card, run.counts, run.record
    quality: dict[str, Any] = term.checks["quality"]  # type: ignore[assignment]  # written by the export
    low, high = run.window
    unit = run.units[run.transform.names[0]]
    folds = "\n".join(
        f"| {row['fold']} | {row['n_events']} | {row['fraction_fitted']:.5f} | {row['gain_held_out']:.2f} | {row['signal_like']:.1f} |"
        for row in quality["folds"]
    )
    integral, parity = quality["integral"], term.parity
    agreement = (
        ""
        if parity is None
        else f", which agree with Keras to {parity.max_abs:.1g} in ln p_s on {parity.n_events} events"
    )
    features = ", ".join(f"`{name}`" for name in run.transform.names)
    return f"""# {card.name}

{card.description}

## What it is

The term `{card.term}` is a density p_s of {features} on {low:g}-{high:g} {unit}, learned from data by R-ANODE (arXiv:2312.11629) with the
background frozen: the generator `{record["generator"]["name"]}` (copied into this folder) times the fit to the sidebands. {card.folds.n_folds} folds of
{card.folds.members} networks; networks of a fold never saw its events, and `gbistat.terms.learned_signal.LearnedSignalTerm` asks only those. An event's fold
is a hash of its values. {2 * len(term.members)} graphs{agreement}.

Data: `{record["file"]}` (sha256 {record["sha256"][:12]}...), {counts["used"]} events used, {counts["left_out"]} outside the range of the generator left out.

## What was found

| fold | events | w fitted out of sample | held-out gain in ln L | signal-like events |
|---|---|---|---|---|
{folds}

Together: gain {quality["gain_held_out"]:.2f}, {quality["signal_like_events"]:.1f} signal-like events (effective number {quality["effective_signal_like_events"]:.0f});
integral of p_s {integral["value"]:.3f} +- {integral["sigma"]:.3f}.

## What may be said with it

The fraction w is identified from below only: a flexible p_s can hold background too. The gains above are of events that the networks did not see, and mean
what they say if the background's density is right; what its error does has to be measured. No upper limit on w follows from this model.

## Again

    gbistat train ranode card.yaml --events {record["file"]} --output RUN
    gbistat export RUN --output FOLDER
"""
