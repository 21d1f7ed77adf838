r"""An ensemble of ratios with its spread as nuisance parameters.

K members, trained alike on resampled events, scatter around what each of them estimates; their mean has 1/K of that variance:

.. math:: \ln r = \ln \bar r + \sum_k u_k \frac{\ln r_k - \ln \bar r}{\sqrt{K (K - 1)}}, \qquad u_k \sim N(0, 1),

so that :math:`\mathrm{Cov}(\ln r) = \frac{1}{K (K - 1)} \sum_k d_k d_k^T` with :math:`d_k = \ln r_k - \ln \bar r`: the covariance of a
mean (the w_i f_i ensembles of arXiv:2506.00113 with weights of that covariance). The density stays normalised, see
:class:`gbistat.likelihood.directions.LogDirections`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from scipy.special import logsumexp

from gbistat.errors import ModelError
from gbistat.likelihood.constraints import NormalConstraint
from gbistat.likelihood.directions import LogDirections, direction_moments
from gbistat.likelihood.parameters import Parameter
from gbistat.likelihood.tilt import log_density_ratio

if TYPE_CHECKING:
    from gbistat.data.events import Events
    from gbistat.likelihood.components import PreparedFactor
    from gbistat.likelihood.model import Model
    from gbistat.typing import FloatArray

__all__ = ["EnsembleDirections", "EnsembleRatio", "with_ensemble_directions"]


class EnsembleRatio(Protocol):
    """A ratio that is the mean of K members, such as an exported network."""

    @property
    def name(self) -> str:
        """For the names of the nuisance parameters."""
        ...

    def member_values(self, events: Events, /) -> FloatArray:
        """Log ratio of each member, shape (K, n)."""
        ...


@dataclass(frozen=True, eq=False)
class EnsembleDirections:
    """Log factor of the deviations of members from their mean, for any events.

    Parameters
    ----------
    term : EnsembleRatio
        The ensemble.
    names : tuple of str
        Names of the K nuisance parameters, standard-normal.
    mean, covariance : arrays of shape (K,) and (K, K)
        Moments of the directions over signal events.
    """

    term: EnsembleRatio
    names: tuple[str, ...]
    mean: FloatArray
    covariance: FloatArray

    @property
    def parameters(self) -> tuple[str, ...]:
        """The K nuisance parameters."""
        return self.names

    def prepare(self, events: Events) -> PreparedFactor:
        """Deviations at these events; the members are evaluated."""
        return LogDirections(self.names, _directions(self.term, events), self.mean, self.covariance).prepare(events)


def with_ensemble_directions(model: Model, term: EnsembleRatio, events: Events) -> Model:
    """Model whose signal follows the spread of an ensemble, with a standard-normal nuisance parameter a member.

    Parameters
    ----------
    model : Model
        One signal, of whose density the mean of the ensemble is a factor already.
    term : EnsembleRatio
        The ensemble.
    events : Events
        Background events in the window, for the moments over signal events: these are background events weighted by r.

    Raises
    ------
    ModelError
        If the ensemble has one member.
    """
    directions = _directions(term, events)
    count = directions.shape[0]
    if count < 2:
        raise ModelError(
            f"term {term.name!r} has one member, whose error nothing tells; train an ensemble, or set signal.ensemble to 'mean'"
        )
    log_ratio = log_density_ratio(model, events)
    own = np.ones(len(events)) if events.weights is None else events.weights
    mean, covariance = direction_moments(directions, own * np.exp(log_ratio - log_ratio.max()))
    label = re.sub(r"\W", "_", term.name)
    names = tuple(f"{label}_member_{k}" if label[0].isalpha() else f"term_{label}_member_{k}" for k in range(count))
    factor = EnsembleDirections(term, names, mean, covariance)
    return dataclasses.replace(
        model,
        components=tuple(
            dataclasses.replace(c, factors=(*c.factors, factor)) if c.name == model.signal else c
            for c in model.components
        ),
        parameters=(*model.parameters, *(Parameter(name, 0.0, -10.0, 10.0) for name in names)),
        constraints=(*model.constraints, *(NormalConstraint(name, 0.0, 1.0) for name in names)),
    )


def _directions(term: EnsembleRatio, events: Events) -> FloatArray:
    """Deviations of members from the log of their mean ratio, scaled to one standard deviation of the mean."""
    members = term.member_values(events)
    count = members.shape[0]
    log_mean = logsumexp(members, axis=0) - math.log(count)
    scaled: FloatArray = (members - log_mean) / math.sqrt(max(count * (count - 1), 1))
    return scaled
