"""What is left of a difference after the weights corrected it: a fresh classifier, and NPLM after the tilt was profiled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gbistat.diagnostics.nplm_profiled import ProfiledNplm
    from gbistat.diagnostics.roc import AreaUnderCurve
    from gbistat.typing import Json

__all__ = ["Residual"]


@dataclass(frozen=True, eq=False)
class Residual:
    """Data against reweighted generated events.

    Parameters
    ----------
    n_data, n_generated : int
        Events; the generated ones were accepted with probability proportional to w.
    area : AreaUnderCurve
        Of a classifier trained anew on these.
    p_value : float
        Of its held-out log-score, by permutations.
    profiled : ProfiledNplm, optional
        NPLM after the tilt was profiled.
    """

    n_data: int
    n_generated: int
    area: AreaUnderCurve
    p_value: float
    profiled: ProfiledNplm | None = None

    def to_dict(self) -> Json:
        """Plain numbers, for JSON."""
        return {
            "n": [self.n_data, self.n_generated],
            "auc": self.area.to_dict(),
            "p_logscore": self.p_value,
            "nplm_after_tilt": None if self.profiled is None else self.profiled.to_dict(),
        }
