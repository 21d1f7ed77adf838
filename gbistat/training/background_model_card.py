"""The model card of a sideband generator: what it is, what it was made of, how well it does, where not to use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gbistat.terms.metadata import TermMetadata
    from gbistat.training.background_card import BackgroundCard
    from gbistat.training.background_run import BackgroundRun

__all__ = ["background_model_card"]


def background_model_card(run: BackgroundRun, term: TermMetadata) -> str:
    """Markdown of a model card, with the numbers of this run.

    Parameters
    ----------
    run : BackgroundRun
        The run that was exported.
    term : TermMetadata
        Its term, with parity and checks.
    """
    card = run.card
    sections = [
        f"# {card.name}\n\n{card.description}",
        _what(card),
        _data(run),
        _training(run, term),
        _checks(term),
        _limits(card),
        _again(card),
    ]
    return "\n\n".join(sections) + "\n"


def _what(card: BackgroundCard) -> str:
    others = ", ".join(f"`{name}`" for name in card.features)
    low, high = card.train_range
    return f"""## What it is

The term `{card.term}` is the density p_b(x | m) of the features x = ({others}) of background at given `{card.mass}`, learned
from events outside {_range(card.window)} {card.unit} only and interpolated into that window by the networks' dependence on the mass. It
can be evaluated (`member_*.onnx`: mass and raw features to ln p, in the units of `term.json`) and drawn from (`sampler_*.onnx`: mass
and standard-normal numbers to raw features); the transform and its Jacobian are inside the graphs. The members' densities are
averaged. The density of the mass itself is a fit to the sidebands of the events at hand, made anew at each use. The networks are
defined for {low:g} <= `{card.mass}` <= {high:g} {card.unit}; windows may lie in {_range(card.model.valid)} {card.unit}.

    gbistat limits --background {card.name}

draws reference events (Asimov data, expected limits, binned templates) from it, and adds the spread of its members to the error of
the normalisation of the signal's density ratio."""


def _data(run: BackgroundRun) -> str:
    card, split, counts = run.card, run.split, run.counts
    parts = split["counts"]
    return f"""## Data and splits

`{split["file"]}` was split once, with seed {card.seed}, into {parts["train"]} events to train, {parts["reference"]} for reference and {parts["data"]} that
stand for data; hashes of the file and of the row numbers are in `model.json` under `provenance`. The networks saw {counts["below"]} sideband
events below the window and {counts["above"]} above it, all of the part *train*, in {_range(card.train_range)} {card.unit}. No event inside the window was
looked at. {_left_out(counts["left_out"])}"""


def _left_out(count: int) -> str:
    where = "at or beyond the end of a feature's range, where the density is 0"
    return f"No sideband event was {where}." if count == 0 else f"{count} sideband event(s) were left out: {where}."


def _training(run: BackgroundRun, term: TermMetadata) -> str:
    flow, options = run.card.flow, run.card.optimiser
    kind = (
        f"rational-quadratic splines of {flow.bins} bins in [-{flow.bound:g}, {flow.bound:g}]"
        if flow.transform == "spline"
        else "affine maps"
    )
    settings: Any = {} if term.training is None else term.training.settings
    epochs = ", ".join(
        f"{done} ({len(kept)})"
        for done, kept in zip(settings["epochs_of_members"], settings["epochs_averaged"], strict=True)
    )
    losses = ", ".join(f"{loss:.4f}" for loss in settings["validation_losses_of_members"])
    units = "-".join(map(str, flow.hidden))
    return f"""## Training

{options.members} masked autoregressive flows, each of {flow.layers} layers of {kind}, conditioned by networks of {units} hidden units
({flow.activation}); AdamW, learning rate {options.learning_rate:g} falling along a cosine, batches of {options.batch_size}. Every member was trained on its own bootstrap
resample of the sideband events; the events that the resample left out decided which epochs are best, and the weights of the best epochs
were averaged. Epochs of the members (of these averaged): {epochs}. Validation losses -ln p of the members: {losses}."""


def _checks(term: TermMetadata) -> str:
    checks: Any = term.checks
    held_out, parity = checks["held_out"], term.parity
    rows = "\n".join(
        f"| {row['low']:.0f}-{row['high']:.0f} | {row['n_events']} | {row['log_prob']:.4f} +- {row['sigma']:.4f} | {_spread(row)} |"
        for row in held_out["slices"]
    )
    members = ", ".join(f"{value:.4f}" for value in held_out["log_prob_of_members"])
    agreement = (
        ""
        if parity is None
        else f"ln p of Keras and ONNX differs by at most {parity.max_abs:.1e} and by {parity.mean_abs:.1e} on average (worst member), on "
        f"{parity.n_events} events; sampled features by at most {checks['sampler_parity']['max_shift']:.1e} of their standard deviation."
    )
    return f"""## Checks on events that trained nothing

{agreement}

Mean ln p(x | m) per held-out sideband event (part *reference*): {held_out["log_prob"]:.4f} +- {held_out["sigma"]:.4f} for the mean density, and {members} for
the members. The spread is the mean standard deviation of the members' ln p of one event.

| mass | events | mean ln p | spread |
|---|---|---|---|
{rows}"""


def _spread(row: Any) -> str:
    return "" if row["spread_of_members"] is None else f"{row['spread_of_members']:.4f}"


def _limits(card: BackgroundCard) -> str:
    return f"""## Limits of use

- Made for the window {_range(card.window)} {card.unit}. In another window the generator has seen the events it should predict, signal included.
- The members share the interpolation across the window; their spread is the statistical error of finite sidebands only.
- Signal in the sidebands of real data would be learned as background.
- Events at or beyond the end of a feature's range (see `term.json`) have density 0."""


def _again(card: BackgroundCard) -> str:
    return f"""## Making it again

    gbistat train background models/{card.name}/card.yaml --events FOLDER --output runs/background
    gbistat export runs/background --output my-background

with FOLDER the place of `{card.background.file}`. The same versions of the libraries (`training.library_versions` in `term.json`) on the same
kind of processor give the same weights, also when the training was interrupted (the ONNX files may still differ in the names of their
constants); others give networks that agree within the spread of the members. Seed: {card.seed}."""


def _range(interval: tuple[float, float]) -> str:
    return f"{interval[0]:g}-{interval[1]:g}"
