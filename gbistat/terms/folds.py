"""Which fold an event belongs to: a hash of its own values, so that no file, order or other event decides.

A network that was trained on an event must not be asked about it. Whoever evaluates an exported term has to find the folds of its
training again, from the events alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from gbistat.data.events import ENERGY_UNITS
from gbistat.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeAlias

    from numpy.typing import NDArray

    from gbistat.data.events import Events
    from gbistat.typing import FloatArray, IntArray, Json

    BitsArray: TypeAlias = NDArray[np.uint64]

__all__ = ["FOLD_ALGORITHM", "MANTISSA_BITS", "FoldRule"]

MANTISSA_BITS: Final = 8
"""Binary digits of each value that enter the hash."""
FOLD_ALGORITHM: Final = "splitmix64-8bit/1"
"""Name of what `FoldRule.fold_of` computes; another rounding or hash gets another name."""

_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class FoldRule:
    """Folds by a hash of the event's own values.

    Parameters
    ----------
    n_folds : int
        Number of folds, K, two at least.
    seed : int
        Start of the hash: another seed deals the events anew.
    columns : tuple of str
        Mass and features that enter the hash, in this order.

    Raises
    ------
    OptionError
        If there are fewer than two folds, the seed is negative, or no column or one twice.

    Notes
    -----
    Every value is taken in GeV (energies), rounded to float32, rounded again to `MANTISSA_BITS` binary digits, and its bytes
    are hashed. So the fold does not depend on the unit of the file, on float32 or float64 storage, or on the platform, as
    long as both readings of a value round to the same number. That cannot be guaranteed: a value may lie within the
    round-off of an edge between two rounded numbers. With float32 round-off in another unit this happens to about one event
    in 100,000 per column, and such an event is dealt to a random fold. A difference of two columns loses more digits. Fewer digits would make it rarer still, but would keep events
    that are alike together, and then a fold would no longer be a random sample: with eight digits, 0.4 % of a value, and a
    handful of continuous columns no two of some 10,000 events are usually alike. Two events with the same values always
    share a fold.

    Examples
    --------
    >>> from gbistat.data.events import Events
    >>> rule = FoldRule(5, 1, ("m_jj",))
    >>> events = Events([3400.0, 3500.0, 3600.0, 3400.0])
    >>> folds = rule.fold_of(events)
    >>> bool(folds[0] == folds[3]), folds.tolist() == rule.fold_of(events.to_unit("TeV")).tolist()
    (True, True)
    """

    n_folds: int
    seed: int
    columns: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(self.columns))
        if self.n_folds < 2:
            raise OptionError(f"n_folds is {self.n_folds}; cross-fitting needs two folds at least")
        if self.seed < 0:
            raise OptionError(f"the seed of the folds is {self.seed}; it must be 0 or more")
        if not self.columns or len(set(self.columns)) != len(self.columns):
            raise OptionError(f"columns of a fold rule are {list(self.columns)}; give at least one, each once")

    def fold_of(self, events: Events) -> IntArray:
        """Fold of each event, 0 to K - 1, shape (n,).

        Raises
        ------
        EventsError
            If a column is missing (nearest names offered).
        """
        common = events.to_unit("GeV") if events.unit in ENERGY_UNITS else events
        state = _mix(np.full(len(events), self.seed, dtype=np.uint64))
        for name in self.columns:
            state = _mix(state ^ _rounded_bits(common.feature(name)))
        folds: IntArray = (state % np.uint64(self.n_folds)).astype(np.int64)
        return folds

    def to_dict(self) -> Json:
        """Plain data, for ``term.json``."""
        return {
            "n_folds": self.n_folds,
            "seed": self.seed,
            "columns": list(self.columns),
            "algorithm": FOLD_ALGORITHM,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> FoldRule:
        """Rule that `to_dict` gave.

        Raises
        ------
        OptionError
            If something is missing, or the folds were made by another algorithm.
        """
        found = data.get("algorithm", FOLD_ALGORITHM)
        if found != FOLD_ALGORITHM:
            raise OptionError(
                f"the folds were made by {found!r}, and this gbistat knows {FOLD_ALGORITHM!r}; use the version that "
                "trained the term, or train again"
            )
        n_folds, seed, columns = (data.get(key) for key in ("n_folds", "seed", "columns"))
        if not (isinstance(n_folds, int) and isinstance(seed, int) and isinstance(columns, (list, tuple))):
            raise OptionError(f"{dict(data)} is no fold rule; it needs n_folds, seed and columns")
        return cls(n_folds, seed, tuple(str(name) for name in columns))


def _rounded_bits(values: FloatArray) -> BitsArray:
    """Bits of the values as float32 with few digits, shape (n,)."""
    mantissa, exponent = np.frexp(np.asarray(values, dtype=np.float32))
    few = np.ldexp(np.rint(np.ldexp(mantissa, MANTISSA_BITS)), exponent - MANTISSA_BITS) + np.float32(0.0)
    # + 0 makes -0 a 0.
    bits: BitsArray = few.astype(np.float32).view(np.uint32).astype(np.uint64)
    return bits


def _mix(state: BitsArray) -> BitsArray:
    """splitmix64 (Steele, Lea and Flood 2014), one step: every bit of the input moves half of the output's."""
    z = state + np.uint64(_GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
