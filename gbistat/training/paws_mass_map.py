r"""Masses at which a parametrised ratio finds a signal, put right inside the exported graph.

A network of finite size, trained on finite samples, finds a signal of mass m at another mass m' beside it: low masses, which hardly stand out of the jets
of the background, too low, and two masses that are nearly equal too close. More data do not make that smaller, and all fits share it. The shift is
measured on held-out signal, in cells of both masses (:mod:`gbistat.training.paws_errors`), as a function

.. math:: \ln\frac{m'_k}{m_k} = c_0 + c_1 \frac{m_{low}}{m_k} + c_2\, s\Big(\ln\frac{m_k}{m_j}\Big), \qquad
    s(t) = \frac{t}{W} e^{(1 - t^2 / W^2) / 2},

with the other mass :math:`m_j`, and the graph asks its network at m' when it is asked for m. So everything made with the ratio is right at once: its
normalisation, maps, fits, intervals. What the function leaves over is the error of the mass scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat.training.environment import keras

if TYPE_CHECKING:
    from gbistat.typing import FloatArray, Json

__all__ = ["TERMS", "MassMap", "shift_terms"]

CLOSE = 0.2
"""W: distance of two masses, in ln(mass), at which one moves the other most."""
TERMS = 3


def shift_terms(own: Any, other: Any, low: float, library: Any = np) -> tuple[Any, Any, Any]:
    """The functions of two masses that c_0, c_1 and c_2 stand before, in any array library.

    Parameters
    ----------
    own, other : array
        The mass that moves, and the other one.
    low : float
        Lowest mass.
    library : module, default numpy
        With ``log``, ``exp`` and ``square``.
    """
    distance = (library.log(own) - library.log(other)) * (1.0 / CLOSE)
    return 1.0 + 0.0 * own, low / own, distance * library.exp(0.5 - 0.5 * library.square(distance))


@dataclass(frozen=True)
class MassMap:
    """Where the network is asked for given masses.

    Parameters
    ----------
    low : float
        Lowest mass.
    coefficients : two tuples of three floats
        c_0, c_1 and c_2 of each mass; the same for masses that can be exchanged.
    """

    low: float
    coefficients: tuple[tuple[float, ...], tuple[float, ...]]

    def shifts(self, masses: FloatArray) -> FloatArray:
        """ln(m' / m) at masses of shape (n, 2)."""
        columns = []
        for k, own in enumerate(self.coefficients):
            terms = shift_terms(masses[:, k], masses[:, 1 - k], self.low)
            columns.append(sum(c * term for c, term in zip(own, terms, strict=True)))
        return np.stack(columns, axis=1)

    def applied(self, network: Any) -> Any:
        """Network that is asked at the masses of this map.

        Parameters
        ----------
        network : keras.Model
            Input ``x`` of shape (n, d + 2), features and masses.
        """
        library = keras()
        ops = library.ops
        inputs = library.Input(network.input_shape[1:], name="x")
        d = network.input_shape[1] - 2
        masses = [inputs[:, d + k : d + k + 1] for k in range(2)]
        moved = []
        for k, own in enumerate(self.coefficients):
            terms = shift_terms(masses[k], masses[1 - k], self.low, ops)
            moved.append(masses[k] * ops.exp(sum(c * term for c, term in zip(own, terms, strict=True))))
        return library.Model(
            inputs, network(ops.concatenate([inputs[:, :d], *moved], axis=1)), name=f"{network.name}_moved"
        )

    def to_json(self) -> Json:
        """Plain data."""
        return {"low": self.low, "close": CLOSE, "coefficients": [list(own) for own in self.coefficients]}
