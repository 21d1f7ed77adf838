"""What knowing the masses is worth: expected limits of the parametrised ratio, of a dedicated classifier, and of a bump hunt.

    python validation/paws/limits.py --events DIR [--quick]

Expected 95 % CLs limits on S/B for masses of 500 and 100 GeV in 3300-3700 GeV, from `dijet-paws` with its masses held there, from the classifier
that was trained for these masses alone (`dijet-qq-3500`), and from the binned search for a bump in m_jj (pyhf, 20 bins). Background is fitted to
the sidebands of the same held-out events (part `data`), and Asimov sets of all are made of the same reference events: the reference file of
`dijet-paws`, held-out background and weighted signal that together stand for background. The same with each model's own file beside it; errors
of normalisations and the spurious signal are in as the models have them, and left out. An expected limit trusts the ratio: by how much mu
moves for one more event of signal that trained neither model is beside it (between S/B of 1 and 2 % on one sample of background), and the
ratio of limits divided by it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from common import columns_like, held_at, judged, model_and_card, with_nodes

from gbistat.binned.fit import binned_inference
from gbistat.binned.twin import binned_twin
from gbistat.data.events import Events, concatenate
from gbistat.data.read import read_events
from gbistat.data.window import MassWindow
from gbistat.fit.build import build_analysis
from gbistat.fit.minimize import fit
from gbistat.fit.nuisances import SPURIOUS
from gbistat.inference.limits import upper_limit
from gbistat.likelihood.nll import ExtendedUnbinnedNLL
from gbistat.likelihood.reference import reference_from_pool
from gbistat.terms.store import load_model, load_reference
from gbistat.training.card import load_card
from gbistat.training.splits import read_sample

if TYPE_CHECKING:
    from gbistat.fit.build import Analysis
    from gbistat.terms.store import LoadedModel

HERE = Path(__file__).parent
PAWS, DEDICATED = "dijet-paws", "dijet-qq-3500"
MASSES = {"m_X": 500.0, "m_Y": 100.0}


def held_out(folder: Path) -> tuple[Events, Events]:
    """Part `data` of the background, and of the signal in the window, with the features of both models."""
    paws, card = model_and_card(PAWS)
    dedicated = load_model(DEDICATED)
    sample = read_sample(folder, card.background, card)
    names = tuple(dict.fromkeys((*paws.spec.features, *dedicated.spec.features)))
    events = read_events(folder / card.background.file, features=names, mass=card.mass)
    if dedicated.directory is None:
        raise SystemExit(f"{DEDICATED} is not on disk")
    own = load_card(dedicated.directory / "card.yaml")
    parts = read_sample(folder, own.signals[0], own).parts
    signal = read_events(folder / own.signals[0].file, features=names, mass=card.mass).select(parts["data"])
    return events.select(sample.parts["data"]), signal.in_window(MassWindow(3300.0, 3700.0))


def shared_reference() -> Events:
    """Reference events of `dijet-paws` with the features of the other model too."""
    events = load_reference(load_model(PAWS))
    if events is None:
        raise SystemExit(f"{PAWS} has no reference events")
    dm = events.feature("m_heavy") - events.feature("m_light")
    return dataclasses.replace(
        events,
        features=np.c_[events.features, dm],
        names=(*events.names, "dm"),
        units={**events.units, "dm": events.units["m_heavy"]},
    )


def analysis_of(model: LoadedModel, data: Events, pool: Events | None, *, step: float | None) -> Analysis:
    """One model in the window, its masses held if it has any."""
    spec = model.spec
    if model.name == PAWS:
        spec = with_nodes(held_at(spec, MASSES), tuple(MASSES), step)
    return build_analysis(spec, data, MassWindow(3300.0, 3700.0), terms=model.terms, pool=pool)


def without_tilt(analysis: Analysis) -> Analysis:
    """Same analysis with the spurious signal held at 0."""
    if SPURIOUS not in analysis.model.names or analysis.reference is None or analysis.reference.events is None:
        return analysis
    parameters = tuple(
        dataclasses.replace(p, fixed=True) if p.name == SPURIOUS else p for p in analysis.model.parameters
    )
    model = dataclasses.replace(analysis.model, parameters=parameters)
    return dataclasses.replace(
        analysis,
        model=model,
        nll=ExtendedUnbinnedNLL(model, analysis.events),
        reference=reference_from_pool(model, analysis.reference.events),
    )


def expected(analysis: Analysis) -> tuple[float, float]:
    """Median expected limit in events, and effective size of the reference events."""
    if analysis.reference is None:
        raise SystemExit("no reference events in the window")
    limit = upper_limit(analysis.nll, analysis.reference)
    return float(limit.expected[2]), analysis.reference.effective_size


def response(analysis: Analysis, signal: Events, share: float = 0.01) -> float:
    """Change of mu for one more event of held-out signal on the held-out background, between twice the share and the share."""
    background = analysis.events
    both = concatenate([background, columns_like(signal, background)])
    nll = ExtendedUnbinnedNLL(analysis.model, both)
    injected = share * len(background)
    found = []
    for n_signal in (injected, 2.0 * injected):
        weights = np.r_[np.ones(len(background)), np.full(len(signal), n_signal / len(signal))]
        toy = nll.replaced([nll.mixture.reweighted(weights)], nll.constraints)
        found.append(fit(toy, start=toy.start_vector(**{toy.poi: n_signal})).value(toy.poi))
    return (found[1] - found[0]) / injected


def main() -> int:
    """Print the table; exit code 1 if a number leaves its band."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=Path, required=True, metavar="DIR", help="folder of the simulated dijet files")
    parser.add_argument("--quick", action="store_true", help="nodes 50 GeV apart")
    arguments = parser.parse_args()
    data, signal = held_out(arguments.events)
    reference = shared_reference()
    step = 50.0 if arguments.quick else None
    result: dict[str, float] = {}
    made: dict[str, Analysis] = {}
    answers: dict[str, float] = {}
    print("expected 95 % CLs limit on S/B, %; masses 500 and 100 GeV, 3300-3700 GeV\n")
    print(
        f"{'reference events':<34}{'nuisances':<12}{PAWS:>12}{DEDICATED:>16}{'ratio':>8}{'m_jj, 20 bins':>16}{'gain':>8}"
    )
    for label, own in (("the file of dijet-paws", False), ("each model's own file", True)):
        for name in (PAWS, DEDICATED):
            # The first one's own file is the shared one.
            if name in made and name == PAWS:
                continue
            model = load_model(name)
            pool = load_reference(model) if own else reference
            made[name] = analysis_of(model, data, pool, step=step)
        n_bkg = made[DEDICATED].sidebands.expected if made[DEDICATED].sidebands is not None else float("nan")
        for kept in (True, False):
            found = {name: expected(one if kept else without_tilt(one)) for name, one in made.items()}
            one = made[DEDICATED] if kept else without_tilt(made[DEDICATED])
            twin = binned_twin(one.model, one.nll, one.events, one.events.mass_name, reference=one.reference)
            bump = float(binned_inference(twin).limit.expected[2])
            paws, dedicated = found[PAWS][0], found[DEDICATED][0]
            print(
                f"{label:<34}{'all' if kept else 'no spurious':<12}{100 * paws / n_bkg:12.3f}{100 * dedicated / n_bkg:16.3f}"
                f"{paws / dedicated:8.2f}{100 * bump / n_bkg:16.3f}{bump / paws:8.1f}"
            )
            key = f"{'own' if own else 'same'} reference, {'all nuisances' if kept else 'no spurious signal'}"
            result[f"{key}: to the dedicated classifier"] = paws / dedicated
            result[f"{key}: gain on the bump hunt"] = bump / paws
        answers = {
            name: answers[name] if name == PAWS and answers else response(one, signal) for name, one in made.items()
        }
        print(
            "  change of mu for one more signal event: "
            + ", ".join(f"{name} {value:.2f}" for name, value in answers.items())
        )
        key = f"{'own' if own else 'same'} reference, all nuisances, over the change of mu: to the dedicated classifier"
        ratio = result[f"{'own' if own else 'same'} reference, all nuisances: to the dedicated classifier"]
        result[key] = ratio * answers[DEDICATED] / answers[PAWS]
        sizes = ", ".join(f"{name} {found[name][1]:.0f}" for name in made)
        print(f"  {n_bkg:.0f} background events expected; reference events are worth {sizes} where the signal is")
    print()
    return int(judged(result, json.loads((HERE / "expected.json").read_text())["limits"], digits=".2f"))


if __name__ == "__main__":
    sys.exit(main())
