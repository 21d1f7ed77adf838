"""How good a background generator is: numbers measured on events that trained nothing, as they stand in ``term.json``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from gbistat.errors import TermError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gbistat.typing import Json

__all__ = ["GeneratorQuality", "LikelihoodBin", "Normalisation", "RegionTest", "SpuriousWindow", "TwoSampleTest"]

RegionKind = Literal["sidebands", "pseudo-window", "signal region"]


@dataclass(frozen=True)
class Normalisation:
    """Integral of p(x|m) over x at one mass.

    Parameters
    ----------
    mass : float
        m.
    integral, error : float
        Importance-sampled integral, and its standard deviation.
    """

    mass: float
    integral: float
    error: float


@dataclass(frozen=True)
class LikelihoodBin:
    """Mean of ln p(x|m) over held-out events in a bin of the mass.

    Parameters
    ----------
    low, high : float
        Edges of the bin.
    n_events : int
        Events with a density above 0.
    n_outside : int
        Events with density 0, which are not in the mean: outside the generator's range.
    mean, error : float
        Mean and its standard deviation.
    """

    low: float
    high: float
    n_events: int
    n_outside: int
    mean: float
    error: float


@dataclass(frozen=True)
class TwoSampleTest:
    """A classifier's verdict on events against samples, on folds after those it was trained on.

    Parameters
    ----------
    n_pairs : int
        Tested events, and as many samples at the same masses.
    auc, auc_error : float
        Area under the ROC curve, mean over folds, and its standard deviation if there is no difference.
    log_score : float
        Mean of ``ln 2 + y ln C + (1 - y) ln(1 - C)``: 0 for a coin, the Jensen-Shannon divergence in nats for the optimum.
    null_mean, null_error : float
        Mean and standard deviation of the log-score if labels are permuted within pairs.
    p_value : float
        Share of permutations with at least the observed log-score, the observed one among them.
    """

    n_pairs: int
    auc: float
    auc_error: float
    log_score: float
    null_mean: float
    null_error: float
    p_value: float

    @property
    def z(self) -> float:
        """Observed log-score minus the mean of the null, in its standard deviations."""
        return (self.log_score - self.null_mean) / self.null_error if self.null_error > 0 else 0.0


@dataclass(frozen=True)
class RegionTest:
    """Two-sample test in one region of the mass.

    Parameters
    ----------
    kind : {"sidebands", "pseudo-window", "signal region"}
        Held-out sidebands, a window inside them, or the true background in the signal region (simulation only).
    low, high : float
        Range of the mass.
    blinded : bool
        Whether the generator saw no event of the region in training.
    test : TwoSampleTest
        The result.
    """

    kind: RegionKind
    low: float
    high: float
    blinded: bool
    test: TwoSampleTest


@dataclass(frozen=True)
class SpuriousWindow:
    """Signal that a likelihood with this generator finds in a window without signal.

    Parameters
    ----------
    low, high : float
        The window.
    blinded : bool
        Whether the generator saw no event of the window in training.
    n_events : int
        Events in the window.
    log_mean_ratio, log_mean_ratio_error : float
        ln of the mean of the signal-to-background ratio over generated events; 0 where generator and ratio agree.
    value, error : float
        Signal events that a likelihood normalised with the generator sees: the score estimate at 0, with the statistical
        error that is expected there and that of the normalisation.
    fitted : float or None
        Fitted number of signal events; None where the fit failed.
    """

    low: float
    high: float
    blinded: bool
    n_events: int
    log_mean_ratio: float
    log_mean_ratio_error: float
    value: float
    error: float
    fitted: float | None

    @property
    def pull(self) -> float:
        """Value over error."""
        return self.value / self.error


@dataclass(frozen=True)
class GeneratorQuality:
    """Everything that is measured about a generator.

    Parameters
    ----------
    mass_name, unit : str
        The mass, for axes.
    window : (float, float)
        The signal region.
    normalisation, likelihood, regions, spurious : tuple
        One entry a mass, a bin, a region, a window.
    """

    mass_name: str
    unit: str
    window: tuple[float, float]
    normalisation: tuple[Normalisation, ...] = ()
    likelihood: tuple[LikelihoodBin, ...] = ()
    regions: tuple[RegionTest, ...] = ()
    spurious: tuple[SpuriousWindow, ...] = ()

    def region(self, kind: RegionKind) -> tuple[RegionTest, ...]:
        """Tests of one kind."""
        return tuple(region for region in self.regions if region.kind == kind)

    def to_dict(self) -> Json:
        """Plain numbers, for ``checks`` of a term."""
        plain: Json = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GeneratorQuality:
        """What `to_dict` gave.

        Raises
        ------
        TermError
            If a key is absent or unknown.
        """
        try:
            regions = [RegionTest(**{**entry, "test": TwoSampleTest(**entry["test"])}) for entry in data["regions"]]
            low, high = data["window"]
            return cls(
                mass_name=data["mass_name"],
                unit=data["unit"],
                window=(low, high),
                normalisation=tuple(Normalisation(**entry) for entry in data["normalisation"]),
                likelihood=tuple(LikelihoodBin(**entry) for entry in data["likelihood"]),
                regions=tuple(regions),
                spurious=tuple(SpuriousWindow(**entry) for entry in data["spurious"]),
            )
        except (KeyError, TypeError, ValueError) as problem:
            raise TermError(f"these are not the checks of a generator ({problem}); export the term again") from None
