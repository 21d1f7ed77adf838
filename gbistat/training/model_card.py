"""The model card: what an exported ratio is, what it was made of, how well it does, where it must not be used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.terms.metadata import TermMetadata
    from gbistat.training.card import RatioCard
    from gbistat.training.grading import MassShapes
    from gbistat.training.run import RatioRun
    from gbistat.typing import Json

__all__ = ["model_card"]


def model_card(run: RatioRun, term: TermMetadata, shapes: MassShapes) -> str:
    """Markdown of a model card, with the numbers of this run.

    Parameters
    ----------
    run : RatioRun
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
        _data(card, run.splits),
        _training(card, term),
        _normalisation(card, term),
        _checks(card, term),
        _mass_shapes(card, shapes),
        _limits(card, term),
        _again(card),
    ]
    return "\n\n".join(sections) + "\n"


def _what(card: RatioCard) -> str:
    low, high = card.model.valid
    others = ", ".join(f"`{name}`" for name in card.features)
    return f"""## What it is

The term `{card.term}` is the density ratio r(x | m) = p_s(x | m) / p_b(x | m) of the features x = ({others}) at
given `{card.mass}`. It is conditional: it says nothing about the distribution of the mass itself, which the model adds as
a double-sided Crystal Ball function over a dijet function. Its graphs take raw features in the units of `term.json`
(logarithms and standardisation are inside) and return logits; their ratios are averaged and multiplied by kappa.
It is valid for {low:g} <= {card.mass} < {high:g} {card.unit}; the default window is {_range(card.model.window)} {card.unit}. The parameter
of interest `mu` counts signal events in the window."""


def _data(card: RatioCard, splits: Sequence[Json]) -> str:
    roles = ["background", *(f"signal, resonance at {s.resonance:g} {card.unit}" for s in card.signals)]
    rows = "\n".join(
        f"| `{split['file']}` | {role} | {split['counts']['train']} | {split['counts']['reference']} | {split['counts']['data']} |"
        for split, role in zip(splits, roles, strict=True)
    )
    return f"""## Data and splits

Simulated dijets (Pythia 8, parametrised detector, anti-kT jets with R = 1.0) with the selection and the layout of the
LHC Olympics R&D data. Every file was split once, with seed {card.seed}; hashes of the files and of the row numbers are in
`model.json` under `provenance`.

| file | what | train | reference | data |
|---|---|---|---|---|
{rows}

*train* learned the networks and stopped their training; *reference* fixed kappa, gave every number below and is in
`reference.json`; *data* was not touched here and stands for data in demonstrations and studies.

{_reference(card)}"""


def _reference(card: RatioCard) -> str:
    if card.model.reference == "background":
        return "`reference.json` holds the reference background in the valid range, each event once."
    return """`reference.json` holds the reference background in the valid range and, moved over it, the reference signal, with
weights rho_b / (rho_b + rho_s r) that make both together stand for background: next to no background event is where a
good part of the signal lies, and signal events of small weight fill that tail (Shirts and Chodera 2008). Without them
Asimov sets and binned templates of the log-ratio would rest on a few tens of events."""


def _training(card: RatioCard, term: TermMetadata) -> str:
    optimiser, balance = card.optimiser, card.balance
    training = _present(term.training)
    layers = "-".join(str(width) for width in card.network.hidden)
    return f"""## Training

{optimiser.members} networks ({layers} hidden units, {card.network.activation}, dropout {card.network.dropout:g}) were trained with AdamW, each on its own
bootstrap resample; the events that a resample left out stopped its training ({training.epochs} epochs in all, mean
validation loss {training.validation_loss:.4f}). Event weights give signal and background the same distribution of the mass,

    w_i = v_i h(m_i) / rho_c(m_i),    h(m) = sqrt(rho_s(m) rho_b(m)),

with rho_c the local density of class c, from {balance.neighbours} neighbours in the mass on either side; so the mass drops out of the
logit, which is the conditional ratio. Signal events within {100 * balance.core:g} % of their resonance mass R are moved to resonances R' uniform
in {_range(balance.resonances)} {card.unit} (m' = m R' / R, same features; samples interpolated linearly in R', which gives the weights v), so that there is signal at
every mass and the network learns a resonance at an unknown position near m."""


def _normalisation(card: RatioCard, term: TermMetadata) -> str:
    kappa, record = _present(term.log_kappa), _mapping(term.checks["log_kappa"])
    mean, bridge = record["mean_over_background"], record["bridge"]
    difference = record["bridge_minus_mean"]
    pull = abs(difference["value"]) / difference["sigma"]
    verdict = "They agree." if record["agree_within_two_sigma"] else "That is too much, and sigma is enlarged."
    scatter = record["scatter_over_mass_bins"]
    bins = f"a scatter of {scatter:.4f}" if scatter > 0 else "no significant scatter"
    return f"""## Normalisation

ln kappa = {kappa.value:.4f} +- {kappa.sigma:.4f}. Two estimates, both on {record["n_background"]} background and {record["n_signal"]} signal events that trained nothing:

- bridge estimator (Bennett 1976; signal and background, equal weights): {bridge["value"]:.4f} +- {bridge["sigma"]:.4f};
- minus the log of the mean odds over the background: {mean["value"]:.4f} +- {mean["sigma"]:.4f}. An effective {kappa.effective_size:.0f} events carry this mean,
  and {100 * _top_share(term):.0f} % of the signal lies where there is hardly a background event, so its error is taken from
  E_b[r^2] = E_s[r] and not from the background's own spread, which is too small.

Their difference is {difference["value"]:.4f} +- {difference["sigma"]:.4f} ({pull:.1f} sigma). {verdict} The bridge value is used. There is {bins} between
bins of the mass beyond statistics (p = {record["scatter_p_value"]:.2f}). An error d of ln kappa moves a small measured signal fraction f by
d / I, with I = E_b[(r - 1)^2 / (1 + f (r - 1))]; let the fit profile it."""


def _top_share(term: TermMetadata) -> float:
    return float(_mapping(term.checks["balanced"])["signal_share_above_log_ratio_7"])


def _checks(card: RatioCard, term: TermMetadata) -> str:
    windows = "\n".join(_window_row(card, _mapping(row)) for row in _sequence(term.checks["windows"]))
    means = "\n".join(
        f"| {row['low']:g}-{row['high']:g} | {row['n_events']} | {row['mean']:.3f} +- {row['sigma']:.3f} | {row['effective_size']:.0f} |"
        for row in map(_mapping, _sequence(term.checks["mean_ratio_by_mass"]))
    )
    balanced = _mapping(term.checks["balanced"])
    shares = "\n".join(
        f"| {row['low']:g}-{row['high']:g} | {row['predicted']:.3f} | {row['observed']:.3f} +- {row['sigma']:.3f} |"
        for row in map(_mapping, balanced["calibration"])
    )
    parity = _present(term.parity)
    return f"""## Checks on held-out events

Keras and ONNX differ by at most {parity.max_abs:.1e} in the logit on {parity.n_events} events.

Signal as simulated (not moved), in the window around its resonance mass. SIC is the significance improvement at a
false positive rate of 1e-3. The closure column is the fitted over the true signal share, for a share of 0.5 %, of a
mixture of held-out events fitted with this model (mass shapes included):

| window ({card.unit}) | signal | background | AUC | SIC | closure |
|---|---|---|---|---|---|
{windows}

E_b[r] in bins of the mass, which should be 1, with the error that the signal in the bin lets expect. The few events at
large r make the mean skewed: most samples are below 1, a few far above:

| mass ({card.unit}) | events | E_b[r] | effective events |
|---|---|---|---|
{means}

Calibration: share of signal among events with predicted share c = r / (1 + r), classes and masses balanced:

| c | predicted | observed |
|---|---|---|
{shares}"""


def _window_row(card: RatioCard, row: dict[str, Any]) -> str:
    improvement, found = row["significance_improvement"], row["closure"]
    return (
        f"| {row['low']:.0f}-{row['high']:.0f} | {row['n_signal']} at {row['resonance']:g} | {row['n_background']} | {row['auc']:.4f} | "
        f"{improvement['value']:.1f} +- {improvement['sigma']:.1f} | {found['fitted_over_true']:.2f} +- {found['sigma']:.2f} |"
    )


def _mass_shapes(card: RatioCard, shapes: MassShapes) -> str:
    values = ", ".join(
        f"{name} {value:.5g} +- {shapes.signal.errors[name]:.2g}" for name, value in shapes.signal.values.items()
    )
    rows = "\n".join(
        f"| `{file}` | {check['n_events']} | {check['chi2']:.1f} / {check['degrees_of_freedom']} | {check['p_value']:.2g} |"
        for file, check in shapes.checks.items()
    )
    first = card.signals[0]
    return f"""## Mass shapes

The double-sided Crystal Ball function was fitted to the training part of `{first.file}` in
{_range(card.model.fit_range)} {card.unit}, in units of the resonance mass: {values}. Mean and sigma follow the centre of the window. The background's
dijet function ({card.model.background_parameters} parameters) is fitted to the sidebands at each use; its fit below is to the whole held-out background.
Chi-square of held-out events in bins of equal expectation:

| file | events | chi2 / dof | p |
|---|---|---|---|
{rows}"""


def _limits(card: RatioCard, term: TermMetadata) -> str:
    rows = [_mapping(row) for row in _sequence(term.checks["windows"])]
    correlation = "; ".join(
        f"{row['closure']['fitted_over_true']:.2f} as simulated and "
        f"{row['closure']['fitted_over_true_without_correlation']:.2f} without the correlation at {row['resonance']:g} {card.unit}"
        for row in rows
    )
    masses = " and ".join(f"{spec.resonance:g}" for spec in card.signals)
    return f"""## Limits of use

- The signal is this one signal: other masses of the daughters, or other decays, need another term.
- There were samples at {masses} {card.unit} only; elsewhere the features are interpolated linearly between them.
- Inside the peak the features depend on m / R (events in the tails have lost a part of a jet); the ratio averages over
  this. Effect on the closure: {correlation}.
- The background is simulation; in data it must be checked in the sidebands. {_spurious(card)}
- Windows much wider or narrower than {100 * (card.model.window[1] - card.model.window[0]) / sum(card.model.window):.0f} % of their centre on either side see another part of the peak than was learned.
- kappa holds for the whole valid range. The reference events are one finite sample, and what is made of them
  (kappa, expected limits, templates) shares its fluctuations."""


def _spurious(card: RatioCard) -> str:
    size = card.model.spurious_signal
    if size == 0.0:
        return "A spurious-signal uncertainty belongs into the model; none is set here."
    return (
        f"The model carries a spurious signal of {size:g} events (one standard deviation), beside what the error of kappa makes;\n"
        "  it was measured in windows without signal, on events that trained nothing, and belongs to samples of that size."
    )


def _again(card: RatioCard) -> str:
    return f"""## Making it again

`card.yaml` is complete: train it with `gbistat train` and write the model with `gbistat export`. The same versions of the
libraries (`training.library_versions` in `term.json`) on the same kind of processor give the same weights to the last
bit, also when the training was interrupted (the ONNX files may still differ in the names of their constants); others
give a network that agrees within the spread of the members. Seed: {card.seed}."""


def _range(interval: tuple[float, float]) -> str:
    return f"{interval[0]:g}-{interval[1]:g}"


def _present(item: Any) -> Any:
    return item


def _mapping(item: Any) -> dict[str, Any]:
    return dict(item)


def _sequence(item: Any) -> list[Any]:
    return list(item)
