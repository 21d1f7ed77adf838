r"""Templates: expected events of each component in each bin, at any parameters.

Bins of the mass are integrated exactly where a component has one mass density: its ratios are in the features *at given
mass*, with a mean over the background of 1, so that they do not change how the mass is distributed. Where a factor with
a nuisance does (a tilt that makes signal of background), the integral of each bin is multiplied by the mean of that
factor over reference points in the bin. Everything else is a sum over reference points i in the bin,

.. math::

    P_{jb}(\theta) = \sum_{i \in b} q_i f_j(i; \theta) \Big/ \sum_i q_i f_j(i; \theta),

where for a signal given by a ratio the sum is a background pool weighted by r. The ratio of signal to background in a bin
is therefore that of its contents, never the ratio at its centre: a likelihood of the bin number with these probabilities
is consistent however wide the bins are, whereas the centre biases mu by a multiple of its error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gbistat.binned.binning import Binning
from gbistat.binned.observables import reference_values, usable_reference
from gbistat.errors import ModelError
from gbistat.likelihood.components import LogOffset, MassFactor
from gbistat.likelihood.parameters import start_vector

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gbistat.binned.binning import AnyBinning
    from gbistat.likelihood.components import Component, Factor
    from gbistat.likelihood.model import Model
    from gbistat.likelihood.reference import Reference
    from gbistat.terms.density import MassDensity
    from gbistat.typing import FloatArray, IntArray

__all__ = ["Templates", "tilted"]


class Templates:
    """Probabilities of the bins under each component of a model, as functions of its parameters.

    Parameters
    ----------
    model : Model
        J components, p parameters.
    binning : Binning
        nb bins.
    mass_name : str, default "m_jj"
        Which observable is the mass.
    reference : Reference, optional
        Quadrature or a pool; not needed for bins of the mass if each component has one mass density.
    held : mapping of str to float, optional
        Parameters whose nominal value is not their start value.
    tilting : Reference, optional
        Points for factors with nuisances in bins of the mass, `reference` by default. The data will do here, since
        only ratios of sums over them are used.

    Raises
    ------
    ModelError
        If a reference is needed and missing, made of the data, or of another model.
    OptionError
        If the reference events do not have the observable.

    Notes
    -----
    Probabilities from a reference are normalised to 1 over all its points at any parameters. A factor that does not depend on
    the event, the offset ln kappa of a ratio, therefore does not change a template.
    """

    def __init__(
        self,
        model: Model,
        binning: AnyBinning,
        *,
        mass_name: str = "m_jj",
        reference: Reference | None = None,
        held: Mapping[str, float] | None = None,
        tilting: Reference | None = None,
    ) -> None:
        self.model = model
        self.binning = binning
        self.nominal: FloatArray = start_vector(model.parameters, held)
        self._is_mass = binning.observable == mass_name
        self._densities = [_mass_density(c) if self._is_mass else None for c in model.components]
        self._positions = [_positions(model, c, d) for c, d in zip(model.components, self._densities, strict=True)]
        self._reference: Reference | None = None
        if not all(self._densities):
            self._reference = usable_reference(model, reference, binning.observable)
            self._index = self._bins_of(self._reference, held)
        self._tilting: Reference | None = None
        if self._is_mass and tilted(model):
            self._tilting = usable_reference(model, tilting or reference, binning.observable, data_allowed=True)
            self._tilting_index = self._bins_of(self._tilting, held)

    def _bins_of(self, reference: Reference, held: Mapping[str, float] | None) -> IntArray:
        """Bin of each reference point; those outside all bins, which count in normalisations, in one more bin."""
        if self._is_mass and reference.events is not None:
            index = self.binning.index(reference.events.mass)
        else:
            index = self.binning.index(reference_values(self.model, reference, self.binning.observable, held))
        return np.where(index < 0, self.binning.n_bins, index)

    @property
    def is_sampled(self) -> bool:
        """Whether the templates come from a finite pool, and so have statistical errors."""
        return self._reference is not None and self._reference.kind == "pool"

    @property
    def effective_size(self) -> float:
        """Effective number of pool events under the signal; infinite for exact templates."""
        return float("inf") if self._reference is None else self._reference.effective_size

    def shape_parameters(self, component: int) -> IntArray:
        """Positions of the parameters that change the probabilities of a component."""
        return self._positions[component]

    def probabilities(self, component: int, theta: FloatArray) -> FloatArray:
        """Probability of each bin under one component, shape (nb,).

        Parameters
        ----------
        component : int
            Its position in the model.
        theta : array of shape (p,)
            Parameters of the model.

        Raises
        ------
        ModelError
            If the component vanishes on all reference points.
        ParameterError
            If the parameters give no density.
        """
        density = self._densities[component]
        if density is not None and isinstance(self.binning, Binning):
            names = self.model.names
            values = theta[np.array([names.index(name) for name in density.parameters], dtype=np.int64)]
            return self._tilted(component, theta, density.probabilities(self.binning.edges, values))
        weights = self._weights(component, theta)
        total = float(weights.sum())
        if not total > 0:
            raise ModelError(
                f"component {self.model.components[component].name!r} vanishes on all {weights.size} reference points"
            )
        return np.bincount(self._index, weights, minlength=self.binning.n_bins + 1)[:-1] / total

    def expected(self, theta: FloatArray | None = None) -> FloatArray:
        """Expected events of each component in each bin, shape (J, nb), nominal ones by default."""
        point = self.nominal if theta is None else theta
        names = self.model.names
        values = dict(zip(names, point.tolist(), strict=True))
        rows = []
        for j, component in enumerate(self.model.components):
            rate = component.rate
            size = rate.constant + sum(c * values[name] for name, c in rate.linear.items())
            scale = np.exp(sum(s * values[name] for name, s in rate.log_scales.items()))
            rows.append(size * scale * self.probabilities(j, point))
        return np.stack(rows)

    def relative_errors(self) -> FloatArray:
        """Relative statistical error of the background template from the finite pool, shape (nb,); 0 where it is exact.

        With weights a_i of the pool events in a bin, ``sqrt(sum a^2) / sum a`` (R. Barlow and C. Beeston, Comput. Phys.
        Commun. 77 (1993) 219). A signal made of the same, reweighted events shares it.
        """
        n_bins = self.binning.n_bins
        if not self.is_sampled:
            return np.zeros(n_bins)
        backgrounds = [j for j, c in enumerate(self.model.components) if c.name != self.model.signal]
        weights = sum((self._weights(j, self.nominal) for j in backgrounds), np.zeros(self._index.size))
        single = np.bincount(self._index, weights, minlength=n_bins + 1)[:-1]
        double = np.bincount(self._index, weights**2, minlength=n_bins + 1)[:-1]
        return np.sqrt(double) / np.where(single > 0, single, 1.0)

    def _tilted(self, component: int, theta: FloatArray, exact: FloatArray) -> FloatArray:
        """Probabilities of mass bins, times the mean in each bin of the factors that change them."""
        tilts = _tilts(self.model.components[component])
        if self._tilting is None or not tilts:
            return exact
        prepared = self._tilting.mixture.components[component]
        moving = [factor for factor in self.model.components[component].factors if factor.parameters]
        log_tilt = np.zeros(self._tilting.mixture.size)
        for factor, (at_points, index) in zip(moving, prepared.factors, strict=True):
            if any(factor is tilt for tilt in tilts):
                log_tilt += at_points.log_prob(theta[index])
        if not log_tilt.any():
            return exact
        size = self.binning.n_bins + 1
        plain = self._tilting.measure * np.exp(prepared.log_density(theta) - log_tilt)
        before = np.bincount(self._tilting_index, plain, minlength=size)
        after = np.bincount(self._tilting_index, plain * np.exp(log_tilt), minlength=size)
        mean = np.where(before > 0, after, 1.0) / np.where(before > 0, before, 1.0)
        everywhere = np.append(exact, max(0.0, 1.0 - float(exact.sum()))) * mean
        return everywhere[:-1] / float(everywhere.sum())

    def _weights(self, component: int, theta: FloatArray) -> FloatArray:
        """``q_i f_i``, up to a factor common to all points."""
        if self._reference is None:
            raise ModelError("these templates are integrals of mass densities: they have no reference points")
        log_density = self._reference.mixture.components[component].log_density(theta)
        highest = float(log_density.max())
        shift = highest if np.isfinite(highest) else 0.0
        weights: FloatArray = self._reference.measure * np.exp(log_density - shift)
        return weights


def _mass_density(component: Component) -> MassDensity | None:
    """The one mass density of a component, or ``None``."""
    found = [factor.density for factor in component.factors if isinstance(factor, MassFactor)]
    return found[0] if len(found) == 1 else None


def tilted(model: Model) -> bool:
    """Whether some factor besides the mass densities changes how masses are distributed."""
    return any(_tilts(component) for component in model.components)


def _tilts(component: Component) -> list[Factor]:
    """Factors with parameters that are neither the mass density nor an offset common to all events."""
    return [f for f in component.factors if f.parameters and not isinstance(f, (MassFactor, LogOffset))]


def _positions(model: Model, component: Component, density: MassDensity | None) -> IntArray:
    factors = component.factors
    names = [n for f in factors for n in f.parameters]
    if density is not None:
        names = [n for f in factors if not isinstance(f, LogOffset) for n in f.parameters]
    return np.array([model.names.index(name) for name in dict.fromkeys(names)], dtype=np.int64)
