"""A Keras network as the bytes of an ONNX graph, and how far the two differ."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat.errors import TermError
from gbistat.terms.metadata import Parity
from gbistat.training.network import evaluate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gbistat.data.events import Events
    from gbistat.terms.network import NetworkTerm
    from gbistat.typing import FloatArray

__all__ = ["LARGEST_DIFFERENCE", "check_parity", "to_onnx"]

LARGEST_DIFFERENCE = 1e-4


def to_onnx(network: Any) -> bytes:
    """ONNX graph of a Keras network whose input is called ``x``.

    Raises
    ------
    TermError
        If the network uses an operation that ONNX does not have.
    """
    # Keras exports the signature of a network that was called; one loaded from a file was not.
    network(np.ones((1, *network.input_shape[1:]), dtype=np.float32))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # Keras probes numpy names that newer numpy releases deprecate.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        path = Path(folder) / "network.onnx"
        try:
            network.export(str(path), format="onnx", verbose=False)
        except (ValueError, NotImplementedError, RuntimeError) as problem:
            raise TermError(
                f"network {network.name!r} cannot be written as ONNX: {str(problem).splitlines()[0][:200]}; "
                "use swish, relu or tanh and standard layers"
            ) from None
        return path.read_bytes()


def check_parity(
    networks: Sequence[Any],
    term: NetworkTerm,
    events: Events,
    *,
    against: str,
    largest: float = LARGEST_DIFFERENCE,
    points: Sequence[Mapping[str, float]] = ({},),
) -> Parity:
    """Compare each member of a term with the network that it was exported from.

    Parameters
    ----------
    networks : sequence of keras.Model
        The members in order.
    term : NetworkTerm
        Their graphs.
    events : Events
        n events.
    against : str
        What the events are, for the record.
    largest : float
        Largest difference of a logit that is accepted.
    points : sequence of mappings of str to float
        Values of the term's parameters; the events are shared out among them.

    Raises
    ------
    TermError
        If a difference is larger: the graph is not the network.
    """
    differences = np.concatenate(
        [
            _differences(networks, term, events.select(np.arange(number, len(events), len(points))), theta)
            for number, theta in enumerate(points)
        ],
        axis=1,
    )
    worst = float(np.max(differences))
    if not worst <= largest:
        member = int(np.argmax(np.max(differences, axis=1)))
        raise TermError(
            f"term {term.name!r}: member {member} differs by {worst:.3g} between Keras and ONNX on {len(events)} events, "
            f"more than the {largest:g} allowed; nothing was written. Check the versions of tf2onnx and onnxruntime"
        )
    return Parity(max_abs=worst, mean_abs=float(np.mean(differences)), n_events=len(events), against=against)


def _differences(networks: Sequence[Any], term: NetworkTerm, events: Events, theta: Mapping[str, float]) -> FloatArray:
    """Absolute differences of the logits, shape (K, n)."""
    parameters = np.array([theta[item.name] for item in term.metadata.parameters])
    x = np.column_stack(
        [events.matrix(term.feature_names), np.broadcast_to(parameters, (len(events), parameters.size))]
    )
    return np.abs(term.member_values(events, **theta) - np.stack([evaluate(network, x) for network in networks]))
