r"""Signal and background brought to one distribution of the mass, so that a classifier learns the conditional ratio.

A classifier trained with event weights :math:`w` gives, at its optimum, the logit

.. math::

    \ln \frac{\sum_s w \, \delta(x, m)}{\sum_b w \, \delta(x, m)}
    \to \ln \frac{h_s(m) \, p_s(x|m)}{h_b(m) \, p_b(x|m)},

where :math:`h_s` and :math:`h_b` are the weighted distributions of the mass. If these are the same function h, the mass
drops out and the logit is :math:`\ln p_s(x|m) / p_b(x|m)`, whatever h is; h only decides where the network is precise.
Here

.. math::

    w_i = v_i \frac{h(m_i)}{\rho_c(m_i)}, \qquad h(m) = \sqrt{\rho_s(m) \, \rho_b(m)}, \qquad
    \rho_c(m_i) = \frac{\sum_{|j - i| \le k} v_j - (v_{i-k} + v_{i+k}) / 2}{m_{(i+k)} - m_{(i-k)}},

with :math:`\rho_c` the local density of events of class c from its k neighbours in the mass on either side (events
are reflected at the ends of the range) and :math:`v` the weights that the events bring along. The geometric mean keeps
the weights of both classes moderate where either is rare.

Signal exists at a few resonance masses only. Between them an event of a resonance of mass R is moved to a resonance of
mass R' with :math:`m' = m R' / R` and the same features, R' uniform, and the sample is chosen by linear interpolation
between the two neighbouring masses. The network then learns the features of a resonance at an unknown position near m:
p_s(x|m) averaged over where in the peak the event lies, the same in every window. What this leaves out, the correlation
of x with m / R inside the peak, is measured when the term is exported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import EventsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.typing import FloatArray

__all__ = ["balance_weights", "interpolation_shares", "local_density", "move_resonances"]

NODES = 4001


def local_density(
    mass: FloatArray, weights: FloatArray, interval: tuple[float, float], *, neighbours: int
) -> tuple[FloatArray, FloatArray]:
    """Weighted number of events per unit of mass, from neighbours in the mass.

    Parameters
    ----------
    mass, weights : array of shape (n,)
        Events inside `interval`.
    interval : (float, float)
        Range of the mass.
    neighbours : int
        Events on either side, k of the formula.

    Returns
    -------
    (array of shape (n,), array of shape (n,))
        Sorted masses and the density at them.

    Raises
    ------
    EventsError
        If there are not more than `neighbours` events, or more than 2 `neighbours` of them have the same mass.
    """
    if mass.size <= neighbours:
        raise EventsError(
            f"{mass.size} events in the mass range {interval[0]:g}-{interval[1]:g} are too few to balance with "
            f"{neighbours} neighbours; widen the range or lower balance.neighbours"
        )
    order = np.argsort(mass, kind="stable")
    k, m, v = neighbours, mass[order], weights[order]
    m_all = np.concatenate([2 * interval[0] - m[:k][::-1], m, 2 * interval[1] - m[-k:][::-1]])
    v_all = np.concatenate([v[:k][::-1], v, v[-k:][::-1]])
    total = np.concatenate([[0.0], np.cumsum(v_all)])
    # Half of either outermost neighbour: 2k gaps between events hold 2k events.
    inside = total[2 * k + 1 :] - total[: -2 * k - 1] - 0.5 * (v_all[: -2 * k] + v_all[2 * k :])
    width = m_all[2 * k :] - m_all[: -2 * k]
    if not np.all(width > 0):
        raise EventsError(f"more than {2 * k} events have the same mass; raise balance.neighbours")
    return m, inside / width


def balance_weights(
    signal: tuple[FloatArray, FloatArray],
    background: tuple[FloatArray, FloatArray],
    interval: tuple[float, float],
    *,
    neighbours: int,
) -> tuple[FloatArray, FloatArray]:
    """Weights that give both classes the same distribution of the mass.

    Parameters
    ----------
    signal, background : (array, array)
        Masses inside `interval` and the weights that the events bring along, each of shape (n,).
    interval : (float, float)
        Range of the mass.
    neighbours : int
        See `local_density`.

    Returns
    -------
    (array, array)
        Weights of signal and background, each with sum 1.

    Raises
    ------
    EventsError
        As `local_density`.
    """
    tables = [local_density(mass, weights, interval, neighbours=neighbours) for mass, weights in (signal, background)]
    balanced: list[FloatArray] = []
    for mass, weights in (signal, background):
        densities = [np.interp(mass, *table) for table in tables]
        own = densities[len(balanced)]
        result = weights * np.sqrt(densities[0] * densities[1]) / own
        balanced.append(result / np.sum(result))
    return balanced[0], balanced[1]


def interpolation_shares(masses: FloatArray, resonances: Sequence[float]) -> FloatArray:
    """Share of each sample at a resonance mass, shape (number of samples, n); linear in between, constant outside.

    Examples
    --------
    >>> import numpy as np
    >>> interpolation_shares(np.array([3000.0, 3750.0, 4500.0]), [3500.0, 4500.0]).tolist()
    [[1.0, 0.75, 0.0], [0.0, 0.25, 1.0]]
    """
    return np.stack([np.interp(masses, resonances, unit) for unit in np.eye(len(resonances))])


def move_resonances(
    mass: Sequence[FloatArray],
    resonances: Sequence[float],
    target: tuple[float, float],
    *,
    rng: np.random.Generator,
) -> tuple[list[FloatArray], list[FloatArray]]:
    """Move signal events to resonance masses that are uniform in a range.

    Every event of sample j is moved once, to R' with density a_j(R') / c_j, where a_j is its interpolation share
    and c_j the integral of a_j over the range; its weight c_j / n_j makes the sum over samples uniform in R'.

    Parameters
    ----------
    mass : sequence of arrays
        Masses of each sample.
    resonances : sequence of float
        Resonance mass of each sample, increasing.
    target : (float, float)
        Range of R'.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    (list of arrays, list of arrays)
        Moved masses and weights of each sample; the weights add up to the length of the range. A sample without a
        share in the range gets weights of 0.
    """
    nodes = np.linspace(*target, NODES)
    shares = interpolation_shares(nodes, resonances)
    moved, weights = [], []
    for own, resonance, share in zip(mass, resonances, shares, strict=True):
        area = np.concatenate([[0.0], np.cumsum(0.5 * (share[1:] + share[:-1]) * np.diff(nodes))])
        # Where the share is 0 the cumulative sum is flat, and interpolation over flat pieces is not defined.
        rising = np.concatenate([[True], np.diff(area) > 0])
        chosen = np.interp(rng.random(own.size) * area[-1], area[rising], nodes[rising])
        moved.append(own * chosen / resonance)
        weights.append(np.full(own.size, area[-1] / max(own.size, 1)))
    return moved, weights
