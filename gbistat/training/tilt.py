"""Weights of data against generated events as a term: what `gbistat.terms.model_spec.TiltSpec` names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import EventsError
from gbistat.terms.metadata import FeatureSpec, LogKappa, MassSpec, TermMetadata, Training
from gbistat.terms.network import NetworkTerm
from gbistat.terms.store import member_records
from gbistat.training.classifier_network import NetworkOptions, best_networks
from gbistat.training.environment import keras, library_versions
from gbistat.training.graph import check_parity, to_onnx

if TYPE_CHECKING:
    from gbistat.data.events import Events

__all__ = ["TILT_TERM", "TiltOptions", "train_tilt"]

TILT_TERM = "data-to-generated"
PARITY_EVENTS = 2000


@dataclass(frozen=True)
class TiltOptions:
    """Ensemble of classifiers whose weights make a tilt.

    Parameters
    ----------
    members : int
        Networks, whose ratios are averaged.
    network : NetworkOptions
        Smaller than that of the diagnostics: a tilt should be smooth.
    """

    members: int = 3
    network: NetworkOptions = field(
        default_factory=lambda: NetworkOptions(layers=2, nodes=64, epochs=60, learning_rate=5e-4)
    )


def train_tilt(
    data: Events,
    generated: Events,
    *,
    rng: np.random.Generator,
    valid: tuple[float, float],
    name: str = TILT_TERM,
    options: TiltOptions | None = None,
) -> NetworkTerm:
    """Train classifiers of data against generated events and make an exportable ratio of them.

    Parameters
    ----------
    data, generated : Events
        Held-out data without signal and generated events at the same masses, with the same features.
    rng : numpy.random.Generator
        Seeds.
    valid : (low, high)
        Range of the mass in which the term may be used: also inside the window, where w is interpolated.
    name : str
        Of the term.
    options : TiltOptions, optional
        Networks.

    Returns
    -------
    NetworkTerm
        ln w = ln(p_data / p_gen) of mass and features. Its normalisation is that of Z(nu) where it is used.

    Raises
    ------
    EventsError
        If the samples have other features, or fewer than 100 events.
    TermError
        If a graph differs from its network.
    MissingExtra
        If Keras, TensorFlow or tf2onnx is not installed.

    Notes
    -----
    Where data and generated events are alike the networks learn noise, or nothing: the tilt is then a harmless direction of
    no size. It has one standard deviation where the data ask for nu = 1, a background wrong by what was seen.
    """
    options = options or TiltOptions()
    if data.names != generated.names or min(len(data), len(generated)) < 100:
        raise EventsError(
            f"{len(data)} data with {', '.join(data.names)} and {len(generated)} generated events with "
            f"{', '.join(generated.names)}: a tilt needs 100 of each with the same features"
        )
    keras()
    x = np.column_stack(
        [
            np.concatenate([data.mass, generated.mass]),
            np.concatenate([data.matrix(data.names), generated.matrix(data.names)]),
        ]
    )
    label = np.arange(len(x)) < len(data)
    weights = np.where(label, 0.5 * len(x) / len(data), 0.5 * len(x) / len(generated))
    seeds = [int(seed) for seed in rng.integers(2**31 - 1, size=options.members)]
    networks = best_networks(x, label, weights, seeds=seeds, options=options.network)
    graphs = {f"member_{number}.onnx": to_onnx(network) for number, network in enumerate(networks)}
    mass = data.mass_name
    metadata = TermMetadata(
        name=name,
        kind="density_ratio",
        features=(
            FeatureSpec(name=mass, unit=data.units[mass], role="conditional", transform="standardised"),
            *(FeatureSpec(name=item, unit=data.units[item], transform="standardised") for item in data.names),
        ),
        mass=MassSpec(name=mass, unit=data.units[mass], low=valid[0], high=valid[1]),
        combine="mean_ratio" if len(graphs) > 1 else "none",
        members=member_records(graphs),
        log_kappa=LogKappa(value=0.0, sigma=0.0, method="w^nu is normalised by Z(nu) where it is used"),
        training=Training(
            seed=seeds[0],
            library_versions=library_versions(),
            settings={"n_data": len(data), "n_generated": len(generated), "layers": options.network.layers},
        ),
    )
    term = NetworkTerm(metadata, tuple(graphs.values()))
    few = generated.select(np.arange(min(PARITY_EVENTS, len(generated))))
    parity = check_parity(networks, term, few, against="Keras networks on generated events")
    spread = float(np.std(term.log_ratio(generated)))
    measured = metadata.model_copy(update={"parity": parity, "checks": {"std_log_weight": spread}})
    return NetworkTerm(measured, tuple(graphs.values()))
