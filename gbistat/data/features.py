"""Derived dijet features, computed in float64 from the columns of the LHC Olympics feature files.

Canonical columns: ``pxj1 pyj1 pzj1 mj1 tau1j1 tau2j1 tau3j1`` and the same with ``j2``, where jet 1 has the larger
transverse momentum (arXiv:2101.08320). Features with ``light`` and ``heavy`` order the two jets by mass instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from gbistat.errors import EventsError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from gbistat.typing import BoolArray, FloatArray

__all__ = ["FEATURES", "TAU_OFFSET", "Feature", "column_unit", "derivable"]

TAU_OFFSET: Final = 1e-5
"""Added to the denominator of ratios of N-subjettiness, as in CATHODE (arXiv:2109.00546): a jet may have tau1 = 0."""

Columns: TypeAlias = "Mapping[str, FloatArray]"
Compute: TypeAlias = "Callable[[Columns], FloatArray]"

_ENERGY_COLUMN = re.compile(r"(p[xyzt]|m|e|mass|energy)j[12]|m[XY]", re.IGNORECASE)
_PURE_COLUMN = re.compile(r"(tau\d+|eta|phi)j[12]|label", re.IGNORECASE)


@dataclass(frozen=True)
class Feature:
    """One derived feature.

    Parameters
    ----------
    name : str
        Name under which it is asked for.
    is_energy : bool
        Whether it scales with the energy unit of the file; if not, it is dimensionless.
    columns : tuple of str
        Canonical columns it is computed from.
    compute : callable
        Function of a mapping from canonical columns to float64 arrays of shape (n,).
    meaning : str
        What it is, in a few words.
    """

    name: str
    is_energy: bool
    columns: tuple[str, ...]
    compute: Compute
    meaning: str

    def unit(self, energy_unit: str) -> str:
        """Unit of the feature where energies are in `energy_unit`; ``"1"`` if it is dimensionless."""
        return energy_unit if self.is_energy else "1"

    def values(self, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Feature of each event, shape (n,); the columns become float64 before any arithmetic.

        Raises
        ------
        EventsError
            If a needed column is absent.
        """
        missing = [name for name in self.columns if name not in columns]
        if missing:
            raise EventsError(
                f"feature {self.name!r} needs the column(s) {', '.join(missing)}; {nearest(missing[0], columns)}"
            )
        # Values that are not finite are counted, with their rows, by whoever reads the events.
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            return self.compute({name: np.asarray(columns[name], dtype=np.float64) for name in self.columns})


def column_unit(name: str, energy_unit: str) -> str | None:
    """Unit of a canonical column or of a registered feature; ``None`` if the name says nothing.

    Examples
    --------
    >>> column_unit("pxj1", "TeV"), column_unit("tau21_light", "TeV"), column_unit("BDT", "TeV")
    ('TeV', '1', None)
    """
    if name in FEATURES:
        return FEATURES[name].unit(energy_unit)
    if _ENERGY_COLUMN.fullmatch(name):
        return energy_unit
    return "1" if _PURE_COLUMN.fullmatch(name) else None


def derivable(columns: Iterable[str]) -> tuple[str, ...]:
    """Names of the features that can be computed from these columns."""
    there = set(columns)
    return tuple(name for name, feature in FEATURES.items() if there.issuperset(feature.columns))


def _pt(c: Columns, jet: str) -> FloatArray:
    return np.hypot(c[f"px{jet}"], c[f"py{jet}"])


def _eta(c: Columns, jet: str) -> FloatArray:
    return np.arcsinh(c[f"pz{jet}"] / _pt(c, jet))


def _mass(c: Columns, jet: str) -> FloatArray:
    return c[f"m{jet}"]


def _tau21(c: Columns, jet: str) -> FloatArray:
    return c[f"tau2{jet}"] / (TAU_OFFSET + c[f"tau1{jet}"])


def _tau32(c: Columns, jet: str) -> FloatArray:
    return c[f"tau3{jet}"] / (TAU_OFFSET + c[f"tau2{jet}"])


def _dijet_mass(c: Columns) -> FloatArray:
    # m^2 = m1^2 + m2^2 + 2 (E1 E2 - p1.p2): the squares of the large energies never meet, so a light pair keeps its digits.
    p1, p2 = ([c[f"p{axis}{jet}"] for axis in "xyz"] for jet in ("j1", "j2"))
    e1, e2 = (np.sqrt(px**2 + py**2 + pz**2 + m**2) for (px, py, pz), m in ((p1, c["mj1"]), (p2, c["mj2"])))
    product = e1 * e2 - sum(a * b for a, b in zip(p1, p2, strict=True))
    return np.sqrt(c["mj1"] ** 2 + c["mj2"] ** 2 + 2.0 * np.maximum(product, 0.0))


def _delta_eta(c: Columns) -> FloatArray:
    return np.abs(_eta(c, "j1") - _eta(c, "j2"))


def _delta_phi(c: Columns) -> FloatArray:
    # Angle between the transverse vectors from their cross and scalar products: no wrapping, and exact near 0 and pi.
    cross = c["pxj1"] * c["pyj2"] - c["pyj1"] * c["pxj2"]
    scalar = c["pxj1"] * c["pxj2"] + c["pyj1"] * c["pyj2"]
    return np.abs(np.arctan2(cross, scalar))


def _delta_r(c: Columns) -> FloatArray:
    return np.hypot(_delta_eta(c), _delta_phi(c))


def _mass_difference(c: Columns) -> FloatArray:
    return np.abs(c["mj1"] - c["mj2"])


def _first_is_heavy(c: Columns) -> BoolArray:
    # Equal masses: the jet with the larger transverse momentum counts as the heavier.
    heavier: BoolArray = c["mj1"] >= c["mj2"]
    return heavier


def _of_jet(function: Callable[[Columns, str], FloatArray], which: str) -> Compute:
    if which in ("j1", "j2"):
        return lambda c: function(c, which)

    def by_mass(c: Columns) -> FloatArray:
        first = _first_is_heavy(c) if which == "heavy" else ~_first_is_heavy(c)
        return np.where(first, function(c, "j1"), function(c, "j2"))

    return by_mass


def _columns(*stems: str) -> tuple[str, ...]:
    return tuple(f"{stem}{jet}" for jet in ("j1", "j2") for stem in stems)


_PER_JET = (
    ("m", True, ("m",), _mass, "mass"),
    ("pt", True, ("px", "py"), _pt, "transverse momentum"),
    ("eta", False, ("px", "py", "pz"), _eta, "pseudorapidity"),
    ("tau21", False, ("tau1", "tau2"), _tau21, "tau2 / (1e-5 + tau1)"),
    ("tau32", False, ("tau2", "tau3"), _tau32, "tau3 / (1e-5 + tau2)"),
)
_JETS = {"light": "the lighter jet", "heavy": "the heavier jet", "j1": "jet 1", "j2": "jet 2"}


def _registry() -> dict[str, Feature]:
    momenta = _columns("px", "py", "pz")
    pairs = [
        Feature("m_jj", True, _columns("px", "py", "pz", "m"), _dijet_mass, "mass of the two-jet sum, E^2 = p^2 + m^2"),
        Feature("dm", True, ("mj1", "mj2"), _mass_difference, "mass of the heavier jet minus that of the lighter"),
        Feature("deta_jj", False, momenta, _delta_eta, "|difference in pseudorapidity|"),
        Feature("dphi_jj", False, _columns("px", "py"), _delta_phi, "angle between the jets in the transverse plane"),
        Feature("dR_jj", False, momenta, _delta_r, "sqrt(deta^2 + dphi^2)"),
    ]
    singles = [
        Feature(
            f"{stem}_{which}",
            is_energy,
            # Ordering by mass needs both masses; a fixed jet needs only its own columns.
            tuple(dict.fromkeys((*_columns(*stems), "mj1", "mj2")))
            if which in ("light", "heavy")
            else tuple(f"{s}{which}" for s in stems),
            _of_jet(function, which),
            f"{meaning} of {jet}",
        )
        for stem, is_energy, stems, function, meaning in _PER_JET
        for which, jet in _JETS.items()
    ]
    return {feature.name: feature for feature in (*pairs, *singles)}


FEATURES: Final[Mapping[str, Feature]] = MappingProxyType(_registry())
"""Every derived feature by name."""
