"""The model card of a parametrised ratio: what it is, what it was made of, how well it does, where not to use it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat.training.paws_errors import strength_error
from gbistat.training.paws_grading import DRAWN, DRAWS
from gbistat.training.paws_masses import FoundMasses, mass_shift_table

if TYPE_CHECKING:
    from gbistat.terms.metadata import TermMetadata
    from gbistat.training.grading import MassShapes
    from gbistat.training.paws_card import PawsCard
    from gbistat.training.paws_run import PawsRun

__all__ = ["paws_model_card"]

SHOWN = 8
SEED_ROWS, SEED_WEIGHTS = 57_760_000, 43_521
"""Rows of an epoch and weights of the network in the notebooks of arXiv:2405.08889."""


def paws_model_card(run: PawsRun, term: TermMetadata, shapes: MassShapes) -> str:
    """Markdown of a model card, with the numbers of this run.

    Parameters
    ----------
    run : PawsRun
        The run that was exported.
    term : TermMetadata
        Its term, with parity, ln kappa and checks.
    shapes : MassShapes
        Mass shapes of the model.
    """
    card = run.card
    sections = [
        f"# {card.name}\n\n{card.description}",
        _what(card),
        _data(run),
        _training(card, term),
        _normalisation(card, term),
        _checks(card, term),
        _mass_shapes(card, shapes),
        _limits(card),
        _again(run),
    ]
    return "\n\n".join(sections) + "\n"


def _what(card: PawsCard) -> str:
    others = ", ".join(f"`{name}`" for name in card.features)
    a, b = card.parameters
    ranges = f"`{a.name}` {a.low:g}-{a.high:g} {a.unit}, `{b.name}` {b.low:g}-{b.high:g} {b.unit}"
    order = (
        "It is exactly symmetric: the graph orders the masses, smoothly."
        if card.symmetric
        else "The masses are not alike."
    )
    return f"""## What it is

The term `{card.term}` is the density ratio r(x; theta) = p_s(x; theta) / p_b(x) of the features x = ({others}), with the
masses theta as parameters: {ranges}. {order} The graphs take the raw features and the masses in the units of
`term.json` (logarithms and standardisation are inside) and return logits; the members' ratios are averaged. `{card.mass}` selects
events and is no input: the model adds its distribution as a double-sided Crystal Ball function over a dijet function. In a fit
the masses are free, kappa(theta) comes from the reference events, and `mu` counts signal events in the window. Valid for
{_range(card.model.valid)} {card.unit}; the default window is {_range(card.model.window)} {card.unit}."""


def _data(run: PawsRun) -> str:
    card = run.card
    rows = []
    for split in run.splits:
        counts = split["counts"]
        if "benchmark" in counts:
            rows.append(f"| `{split['file']}` | benchmark, {counts['benchmark']} events | | | |")
            continue
        if "generator" in counts:
            rows.append(f"| `{split['file']}` | generator of background | | | |")
            continue
        what = "background" if split["file"] == card.background.file else "signal"
        rows.append(f"| `{split['file']}` | {what} | {counts['train']} | {counts['reference']} | {counts['data']} |")
    table = "\n".join(rows)
    used = (
        "*train* learned the networks and stopped their training; *reference* fixed kappa and gave the numbers below; *data* stands for\n"
        "data"
    )
    if card.background.generator is not None:
        used = (
            f"The background that trained, calibrated and normalised came from the generator `{card.background.generator}`; of the background file "
            "only the masses outside its window were\nused, for the spectrum. All events of the file inside the window grade: none of them "
            "trained anything. Of the signal *train* learned the networks\nand stopped their training, *reference* fixed kappa, and *data* stands for data"
        )
    return f"""## Data and splits

Simulated dijets (Pythia 8, parametrised detector, anti-kT jets with R = 1.0) in the layout of the LHC Olympics R&D data. Files
were split once, with seed {card.seed}; hashes of the files and of the row numbers are in `model.json` under `provenance`. The
background has the same parts as in every card with this seed.

| file | what | train | reference | data |
|---|---|---|---|---|
{table}

{used}: of the signal it holds whole mass points, {100 * card.signal.split.data:.0f} % of them, so that these masses were never trained.

{_reference(card)}"""


def _reference(card: PawsCard) -> str:
    generated = card.background.generator is not None
    if card.model.reference == "mixed":
        which = "events of the generator" if generated else "the reference background"
        return (
            f"`reference.json` holds {which} in the valid range and the reference signal of all masses, with weights\n"
            "rho_b / (rho_b + rho_s r) that make both together stand for background (Shirts and Chodera 2008), r averaged over the\n"
            "masses of these signal events."
        )
    if generated:
        return (
            f"`reference.json` holds events of the generator in the valid range that trained nothing. Of {DRAWN * DRAWS} drawn, those that look "
            "like signal were kept\nmore often, with weights that undo it: exact whatever r is, and with many events where r is large."
        )
    return "`reference.json` holds the reference background in the valid range."


def _training(card: PawsCard, term: TermMetadata) -> str:
    optimiser, training = card.optimiser, _any(term.training)
    layers = "-".join(str(width) for width in card.network.hidden)
    slopes = ", ".join(f"{line['slope']:.3f}" for line in training.settings["logit_lines"])
    generated = card.background.generator is not None
    source = (
        f"{card.background.n_events} an epoch of {card.background.pool} events of the generator in {_range(card.train_range)} {card.unit} (member k of it for network k)"
        if generated
        else f"bootstrap resamples of\nbackground in {_range(card.train_range)} {card.unit}"
    )
    return f"""## Training

{optimiser.members} networks ({layers} hidden units, {card.network.activation}, dropout {card.network.dropout:g}) were trained with AdamW on {source} and on
bootstrap resamples of signal in {_range(card.signal_range)} {card.unit}; the events that a resample left out stopped its training
({training.epochs} epochs in all, mean validation loss {training.validation_loss:.4f}). Both classes count equally. In every epoch each background event
is used {card.copies} times, with masses drawn anew from those of the signal events: both classes have one distribution of the masses, and the
logit is ln r(x; theta) (Baldi et al., arXiv:1601.07913). The events left out also calibrated each member's logits by a straight
line, which is in the graphs (slopes {slopes}: below 1 the network was too sure). {_masses_text(card)}"""


def _masses_text(card: PawsCard) -> str:
    if card.relative_smoothing is None:
        text = f"The masses a, b enter as (a + b) / 2 +- sqrt((a - b)^2 / 4 + ({card.smoothing:g} {card.unit})^2)"
    else:
        text = (
            "The masses enter as u +- sqrt(v^2 + "
            f"{card.relative_smoothing:g}^2), with u and v half the sum and half the difference of their logarithms"
        )
    if card.compare is not None:
        text += f",\nwith ln({card.compare[0]} / larger) and ln({card.compare[1]} / smaller) as further inputs"
    if card.peak is not None:
        text += f", and ln(1 + (ln(jet / mass) / {card.peak:g})^2) of both jets and both masses"
    text += "."
    if card.near:
        text += (
            f"\n{100 * card.near:g} % of the background events get masses that are likely for a signal event of their own jet masses, with weights "
            "that undo it."
        )
    if card.rescale:
        text += (
            f" In every epoch the\nmasses of each signal event and of its jets are multiplied by one factor, within {100 * card.rescale:g} %, so that there "
            "is signal between the simulated points."
        )
    return text


def _normalisation(card: PawsCard, term: TermMetadata) -> str:
    kappa, record = _any(term.log_kappa), _dict(term.checks["log_kappa"])
    mean, bridge, difference = record["mean_over_background"], record["bridge"], record["bridge_minus_mean"]
    scatter = (
        f"scatter {record['scatter_over_larger_mass']:.4f}"
        if record["scatter_over_larger_mass"] > 0
        else "no significant scatter"
    )
    rows = "\n".join(
        f"| {row[card.masses[0]]:g}, {row[card.masses[1]]:g} | {row['background']:.3f} +- {row['background_sigma']:.3f} | "
        f"{row['background_effective_size']:.0f} | {row['reference']:.3f} +- {row['reference_sigma']:.3f} | "
        f"{row['reference_effective_size']:.0f} |"
        for row in map(_dict, term.checks["nodes"])  # type: ignore[arg-type]
    )
    return f"""## Normalisation

ln kappa over all masses = {kappa.value:.4f} +- {kappa.sigma:.4f} (bridge estimator, Bennett 1976, on {record["n_signal"]} signal and
{record["n_background"]} background events that trained nothing: {bridge["value"]:.4f} +- {bridge["sigma"]:.4f}; from the mean over background: {mean["value"]:.4f} +- {mean["sigma"]:.4f};
difference {difference["value"]:.4f} +- {difference["sigma"]:.4f}; {scatter} between bins of the larger mass, p = {record["scatter_p_value"]:.2f}).

E_b[r], which should be 1, at nodes over the masses: over the held-out background alone (most samples of so skewed a variable
have a mean below 1, and its own spread is no honest error), and over the reference events of the model, with effective sizes:

| masses (GeV) | background | events | reference | events |
|---|---|---|---|---|
{rows}"""


def _checks(card: PawsCard, term: TermMetadata) -> str:
    held_out, parity = _dict(term.checks["held_out"]), _any(term.parity)
    unseen = [_dict(row) for row in _list(term.checks["masses_never_trained"])]
    graded = "\n".join(
        _benchmark_row(card, row) for row in (*map(_dict, _list(term.checks["benchmarks"])), *_shown(card, unseen))
    )
    shares = "\n".join(
        f"| {row['low']:g}-{row['high']:g} | {row['n_signal']} + {row['n_background']} | {row['predicted']:.5f} | "
        f"{row['observed']:.5f} +- {row['sigma']:.5f} |"
        for row in map(_dict, held_out["calibration"])
    )
    means = "\n".join(
        f"| {row['low']:g}-{row['high']:g} | {_mean(row.get('background'))} | {_mean(row.get('signal'))} |"
        for row in map(_dict, _list(term.checks["mean_share_by_mass"]))
    )
    return f"""## Checks on held-out events

Keras and ONNX differ by at most {parity.max_abs:.1e} in the logit on {parity.n_events} events. All masses together: AUC {held_out["auc"]:.4f}.
{_unseen_text(unseen)}

| masses (GeV) | signal | AUC | SIC at a false positive rate of 1e-3 | closure | masses found (GeV) |
|---|---|---|---|---|---|
{graded}

(SIC: share of signal kept over the root of the false positive rate; classifiers with all labels in the notebooks of arXiv:2405.08889 have
18.8 at (300, 300) and 13.5 at (500, 100), on other events. closure: fitted over true share, for a share of 1 %, of a mixture of held-out events, features only. masses found: where the summed ln r of the signal
events is largest, with its statistical error.)

{_smoothing_text(_dict(term.checks["smoothing"]))}

{_shifts_text(card, unseen, _dict(term.checks["mass_scale"]))}

Calibration: share of signal among events with predicted share c = r / (1 + r), classes balanced:

| c | signal + background | predicted | observed |
|---|---|---|---|
{shares}

Mean of c in bins of the resonance's mass, masses of the daughters drawn from the signal's. It is flat for a background whose features
do not change with the mass; signal events in the tails of the peak have lost part of a jet:

| mass ({card.unit}) | background | signal |
|---|---|---|
{means}"""


def _mean(item: dict[str, Any] | None) -> str:
    return "" if item is None else f"{item['mean']:.3f} +- {item['sigma']:.3f} ({item['n']})"


def _unseen_text(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "No mass point was kept whole with events enough to be graded."
    auc = np.array([row["auc"] for row in rows])
    ratio = np.array([row["closure"]["fitted_over_true"] for row in rows])
    sigma = np.array([row["closure"]["sigma"] for row in rows])
    pulls = (ratio - 1.0) / sigma
    return (
        f"At {len(rows)} mass points that were never trained: AUC {auc.min():.3f} to {auc.max():.3f} (median {np.median(auc):.3f}); closure "
        f"{np.mean(ratio):.3f} on average,\nscatter {np.std(ratio):.3f} where {np.sqrt(np.mean(sigma**2)):.3f} is expected, mean pull {np.mean(pulls):.2f} "
        "(the points share the background).\n"
        f"With kappa at each of these masses: from the reference events {_with_kappa(rows, 'reference')}; from the background alone "
        f"{_with_kappa(rows, 'background')}.\n"
        f"What the former has beside its statistical errors, {100 * strength_error(rows):.2g} %, is the error of the strength in `signal.efficiency`."
    )


def _with_kappa(rows: list[dict[str, Any]], source: str) -> str:
    ratio = np.array([row["closure_with_kappa_from"][source]["fitted_over_true"] for row in rows])
    return f"{np.mean(ratio):.3f}, scatter {np.std(ratio):.3f}"


def _benchmark_row(card: PawsCard, row: dict[str, Any]) -> str:
    masses = ", ".join(f"{row[name]:.4g}" for name in card.masses)
    improvement, share = row.get("significance_improvement"), row["closure"]
    text = "" if improvement is None else f"{improvement['value']:.1f} +- {improvement['sigma']:.1f}"
    found = _found_text(card, row)
    return (
        f"| {masses} | {row['n_signal']} | {row['auc']:.4f} | {text} | "
        f"{share['fitted_over_true']:.2f} +- {share['sigma']:.2f} | {found} |"
    )


def _truth(card: PawsCard, row: dict[str, Any]) -> list[float]:
    masses = [float(row[name]) for name in card.masses]
    return sorted(masses, reverse=True) if card.symmetric else masses


def _found_text(card: PawsCard, row: dict[str, Any]) -> str:
    if "masses" not in row:
        return ""
    found, parts = row["masses"], []
    for truth, shift, sigma in zip(_truth(card, row), found["shift"], found["sigma_of_one_event"], strict=True):
        value = truth * np.exp(shift)
        parts.append(f"{value:.1f} +- {value * sigma / np.sqrt(found['n_events']):.1f}")
    return ", ".join(parts)


def _shown(card: PawsCard, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Some of the mass points that were never trained: spread evenly in the second mass."""
    ordered = sorted(rows, key=lambda row: _truth(card, row)[1])
    if len(ordered) <= SHOWN:
        return ordered
    return [ordered[round(k)] for k in np.linspace(0, len(ordered) - 1, SHOWN)]


def _smoothing_text(found: dict[str, Any]) -> str:
    tried = "; ".join(f"{row['smoothing']:.3g}: {row['log_likelihood']:+.1f}" for row in found["tried"])
    return f"""How sharply the graphs see two equal masses (`relative_smoothing` or `smoothing` of the card, {found["trained"]:g} in the training) is chosen on held-out signal:
{found["chosen"]:.3g}. ln of its likelihood, at its true masses and normalised as in a fit, beside that of the training: {tried}."""


def _shifts_text(card: PawsCard, rows: list[dict[str, Any]], scale: dict[str, Any]) -> str:
    found = [
        (
            _truth(card, row),
            FoundMasses(
                tuple(row["masses"]["shift"]), tuple(row["masses"]["sigma_of_one_event"]), row["masses"]["n_events"]
            ),
        )
        for row in rows
        if "masses" in row
    ]
    if not found:
        return "No masses were found at points never trained."
    names = ("larger", "smaller") if card.symmetric else card.masses
    lines = "\n".join(
        f"| {names[row['which']]} | {row['low']:g}-{row['high']:g} | {row['points']} | {100 * row['shift']:+.2f} +- {100 * row['error']:.2f} | "
        f"{row['pull_mean']:+.2f} | {row['pull_deviation']:.2f} |"
        for row in map(_dict, mass_shift_table(found))
    )
    return f"""Found over true mass - 1 at the points never trained, in per cent, averaged in ranges of the true mass:

| mass | range ({card.unit}) | points | shift (%) | mean pull | its spread |
|---|---|---|---|---|---|
{lines}

{_scale_text(card, scale)}"""


def _scale_text(card: PawsCard, scale: dict[str, Any]) -> str:
    cells = scale["cells"]
    if not scale["error"]:
        return "There was too little held-out signal to look at the mass scale."
    lines = "\n".join(
        f"| {row['mean_masses'][0]:.0f}, {row['mean_masses'][1]:.0f} | {row['n_events']} | "
        + " | ".join(
            f"{100 * shift:+.2f} +- {100 * sigma / np.sqrt(row['n_events']):.2f} | {100 * left:+.2f}"
            for shift, sigma, left in zip(row["shift"], row["sigma_of_one_event"], row["left"], strict=True)
        )
        + " |"
        for row in cells
    )
    names = ("larger", "smaller") if card.symmetric else card.masses
    errors = "; ".join(
        f"{name}: {item['absolute']:.3g} {card.unit} and {100 * item['relative']:.2g} %, added in quadrature"
        for name, item in scale["error"].items()
    )
    return f"""Where the networks as they were trained find held-out signal of masses that were trained, in cells of both masses, with the
normalisation of a fit:

| mean masses ({card.unit}) | events | {names[0]}: shift (%) | left | {names[1]}: shift (%) | left |
|---|---|---|---|---|---|
{lines}

{_map_text(card, scale["map"])} What is left beside statistical errors is the error of the mass scale in `signal.mass_scale`, a constrained nuisance
parameter of each mass ({errors})."""


def _map_text(card: PawsCard, found: dict[str, Any] | None) -> str:
    if found is None:
        return "These are too few cells to correct for it: all of a shift is left."
    rows = found["coefficients"][:1] if card.symmetric else found["coefficients"]
    values = "; ".join(", ".join(f"{value:+.4f}" for value in row) for row in rows)
    return f"""The graphs ask their network at masses m' = m exp(c0 + c1 {found["low"]:g} {card.unit} / m + c2 s(t)), with t = ln(m / other mass) and
s = (t / {found["close"]:g}) exp((1 - (t / {found["close"]:g})^2) / 2), so that these shifts are undone: c0, c1, c2 = {values}."""


def _mass_shapes(card: PawsCard, shapes: MassShapes) -> str:
    values = ", ".join(
        f"{name} {value:.5g} +- {shapes.signal.errors[name]:.2g}" for name, value in shapes.signal.values.items()
    )
    rows = "\n".join(
        f"| `{file}` | {check['n_events']} | {check['chi2']:.1f} / {check['degrees_of_freedom']} | {check['p_value']:.2g} |"
        for file, check in shapes.checks.items()
    )
    return f"""## Mass shapes

The double-sided Crystal Ball function was fitted to the signal's training part of all masses, in units of the resonance mass:
{values}. One shape stands for all masses of the daughters. The background's dijet function is fitted to the
sidebands at each use; below, to the held-out background. Chi-square in bins of equal expectation:

| file | events | chi2 / dof | p |
|---|---|---|---|
{rows}"""


def _limits(card: PawsCard) -> str:
    spurious = (
        f"The model carries a spurious signal of {card.model.spurious_signal:g} events."
        if card.model.spurious_signal
        else "The model carries no spurious signal."
    )
    return f"""## Limits of use

- Resonances of {card.signal.resonance:g} {card.unit} only, with daughters that decay as in `{card.signal.file}`.
- The background is simulation; in data it must be checked in the sidebands. {spurious}
- The signal's features are those in {_range(card.signal_range)} {card.unit}; in other windows they are slightly different.
- Features and resonance mass of the signal are taken as independent inside the window.
- The reference events are one finite sample; kappa, Asimov sets and templates made of them share its fluctuations. Their weights
  are as right as the ratio."""


def _again(run: PawsRun) -> str:
    card = run.card
    train = {split["file"]: split["counts"].get("train", 0) for split in run.splits}
    background = train[card.background.file] if card.background.generator is None else card.background.n_events
    rows = card.copies * background + train[card.signal.file]
    times = SEED_ROWS * SEED_WEIGHTS / (rows * _weights(card))
    return f"""## Making it again

    gbistat train paws card.yaml --events FOLDER --output RUN
    gbistat export RUN --output MODEL

The same versions of the libraries (`training.library_versions` in `term.json`) on the same kind of processor give the same
weights, also when the training was interrupted. Seed: {card.seed}.

An epoch has at most {rows:,} rows and the network {_weights(card):,} weights. With the background repeated at each of 144 mass points (57.8 million rows,
43,521 weights, up to 200 epochs: the published procedure) an epoch is {times:,.0f} times as many multiplications, and its fit is 10 trainings of up to 220
epochs more. This is a count and not a measurement."""


def _weights(card: PawsCard) -> int:
    inputs = len(card.inputs) + 2 + (0 if card.symmetric else 1)
    if card.compare is not None:
        inputs += 2 + (0 if card.peak is None else 4)
    widths = [inputs, *card.network.hidden, 1]
    return sum((a + 1) * b for a, b in itertools.pairwise(widths))


def _range(interval: tuple[float, float]) -> str:
    return f"{interval[0]:g}-{interval[1]:g}"


def _any(item: Any) -> Any:
    return item


def _dict(item: Any) -> dict[str, Any]:
    return dict(item)


def _list(item: Any) -> list[Any]:
    return list(item)
