r"""NPLM against a background that may tilt: is the nuisance that a fit profiles enough for what data and generator differ by.

With the weights w of a classifier and the tilt :math:`p_\nu = p_\mathrm{gen} w^\nu / Z(\nu)`, nu is fitted to the data under its constraint,

.. math::

    \Delta = 2 \max_\nu \left[ \sum_D (\nu \ln w - \ln Z(\nu)) - \tfrac{\nu^2}{2 \sigma^2} \right],

and data are tested against reference events reweighted with :math:`w^{\hat\nu}`. That is the test of :math:`t = \tau - \Delta` of
arXiv:2111.13633, with the nuisance of the numerator at its value in the denominator: the kernel of f absorbs the difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import minimize_scalar

from gbistat.diagnostics.matching import accept
from gbistat.diagnostics.nplm import nplm_test
from gbistat.errors import EventsError
from gbistat.likelihood.weight_tilt import tilt_normalisation

if TYPE_CHECKING:
    from gbistat.diagnostics.nplm import NplmResult
    from gbistat.diagnostics.nplm_kernel import NplmOptions
    from gbistat.typing import FloatArray, Json

__all__ = ["ProfiledNplm", "nplm_profiled"]

RANGE = (-5.0, 5.0)


@dataclass(frozen=True, eq=False)
class ProfiledNplm:
    """NPLM test after the tilt was profiled.

    Parameters
    ----------
    nu : float
        Where the data pull the tilt.
    delta : float
        Gain of twice the log-likelihood by it.
    n_reference : int
        Reference events left after accept/reject with w^nu.
    test : NplmResult
        Data against these.
    """

    nu: float
    delta: float
    n_reference: int
    test: NplmResult

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {"nu": self.nu, "delta": self.delta, "n_reference": self.n_reference, **self.test.to_dict()}


def nplm_profiled(
    data: FloatArray,
    reference: FloatArray,
    log_weights: tuple[FloatArray, FloatArray],
    *,
    rng: np.random.Generator,
    sigma: float = 1.0,
    options: NplmOptions | None = None,
) -> ProfiledNplm:
    """Profile the tilt, then test data against the tilted reference.

    Parameters
    ----------
    data, reference : arrays of shape (n, d), (m, d)
        Features.
    log_weights : (array of shape (n,), array of shape (m,))
        ln w at the data and at the reference events, from classifiers that did not see them.
    rng : numpy.random.Generator
        Accept/reject, and `nplm_test`.
    sigma : float, default 1
        Of the constraint of nu.
    options : NplmOptions, optional
        Of `nplm_test`.

    Raises
    ------
    EventsError
        If weights are not finite or do not fit the events, or too few reference events are left.

    Notes
    -----
    Permuted labels are the null of data that follow the tilted reference at the fitted nu. One parameter was fitted to the same
    data, so that p-values are a little too large, never too small.
    """
    at_data, at_reference = log_weights
    if at_data.shape != (len(data),) or at_reference.shape != (len(reference),):
        raise EventsError(
            f"ln w {at_data.shape} and {at_reference.shape} do not fit {len(data)} and {len(reference)} events"
        )
    if not (np.all(np.isfinite(at_data)) and np.all(np.isfinite(at_reference))):
        raise EventsError("some weights are 0 or infinite; no power of them exists")
    total = float(at_data.sum())

    def loss(nu: float) -> float:
        return len(data) * tilt_normalisation(at_reference, nu)[0] - nu * total + 0.5 * nu**2 / sigma**2

    nu = float(minimize_scalar(loss, bounds=RANGE, method="bounded", options={"xatol": 1e-6}).x)
    kept = accept(nu * at_reference, rng=rng)
    if len(kept) < max(50, len(data) // 10):
        raise EventsError(
            f"{len(kept)} of {len(reference)} reference events are left after weighting with w^{nu:.2f}; generate more events"
        )
    test = nplm_test(data, reference[kept], rng=rng, options=options)
    return ProfiledNplm(nu, 2.0 * (loss(0.0) - loss(nu)), len(kept), test)
