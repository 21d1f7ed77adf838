"""Transform of features to a space where networks learn well, with its Jacobian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit

from gbistat.errors import EventsError, OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gbistat.typing import BoolArray, FloatArray, Json

__all__ = ["FeatureTransform"]

_ARRAYS = ("low", "high", "mean", "std")


@dataclass(frozen=True, eq=False)
class FeatureTransform:
    r"""Scale to the unit interval, logit, standardise; each feature on its own.

    .. math::

        u = \frac{x - \mathrm{low}}{\mathrm{high} - \mathrm{low}}, \qquad
        y = \frac{\operatorname{logit}(u) - \mathrm{mean}}{\mathrm{std}}

    This is the pre-processing of ANODE and CATHODE (arXiv:2001.04990, arXiv:2109.00546), fitted on the sidebands.

    Parameters
    ----------
    names : sequence of str
        Names of the d features.
    low, high : array of shape (d,)
        Ends of the range of each feature, in its unit.
    mean, std : array of shape (d,)
        Mean and standard deviation of logit(u).

    Raises
    ------
    EventsError
        If shapes do not match, a range is empty, or a standard deviation is not positive.

    Notes
    -----
    Only ``low < x < high`` maps to a finite value. Events outside (the two that define the range among them) have no
    density in the transformed space: leave them out with `inside` and carry their number as an acceptance, or the
    density is normalised over less than the data. Densities learned under different transforms are comparable only
    after adding `log_abs_det`.
    """

    names: tuple[str, ...]
    low: FloatArray
    high: FloatArray
    mean: FloatArray
    std: FloatArray

    def __post_init__(self) -> None:
        names = tuple(self.names)
        object.__setattr__(self, "names", names)
        for field in _ARRAYS:
            array = np.array(getattr(self, field), dtype=np.float64)
            if array.shape != (len(names),) or not np.isfinite(array).all():
                raise EventsError(
                    f"{field!r} of a transform of {len(names)} features must hold {len(names)} finite numbers; got {array}"
                )
            array.setflags(write=False)
            object.__setattr__(self, field, array)
        if not names or len(set(names)) != len(names):
            raise EventsError(f"a transform needs one name a feature, each once; got {list(names)}")
        for bad, what in ((self.low >= self.high, "an empty range"), (self.std <= 0, "no spread")):
            if bad.any():
                raise EventsError(f"feature {names[int(np.argmax(bad))]!r} has {what}: leave this feature out")

    @classmethod
    def fit(
        cls,
        features: FloatArray,
        names: Sequence[str],
        *,
        margin: float = 0.0,
        bounds: Sequence[tuple[float | None, float | None]] | None = None,
    ) -> FeatureTransform:
        """Transform fitted on sideband events.

        Parameters
        ----------
        features : array of shape (n, d)
            Features of the sideband events.
        names : sequence of str
            Names of the d features.
        margin : float, default 0
            Fraction of its length by which each range is widened at both ends. With 0 the range ends at the extreme
            events, as in the original papers; a margin keeps signal-region events just beyond them.
        bounds : sequence of (float or None, float or None), optional
            Known ends of each range, such as 0 for a mass; they are kept as they are, where given. A density that is
            finite at such an end is learned best with the end where it is.

        Raises
        ------
        EventsError
            If a feature is constant or takes too few values, or is NaN or infinite somewhere (counted).
        OptionError
            If `margin` is negative or not finite.

        Examples
        --------
        >>> x = np.linspace(0.0, 1.0, 101)[:, None]
        >>> transform = FeatureTransform.fit(x, ["tau21_light"])
        >>> bool(abs(transform.forward(np.array([[0.5]]))[0, 0]) < 1e-12)
        True
        """
        if not (np.isfinite(margin) and margin >= 0):
            raise OptionError(f"margin {margin} is not a fraction of 0 or more")
        x = np.asarray(features, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != len(names):
            raise EventsError(f"features have shape {x.shape}; {len(names)} names need (n, {len(names)})")
        if len(x) < 3:
            raise EventsError(f"{len(x)} events are too few to fit a transform; give the sideband events")
        _check_columns(x, names)
        low, high = x.min(axis=0), x.max(axis=0)
        reach = margin * (high - low)
        low, high = low - reach, high + reach
        for column, (known_low, known_high) in enumerate(bounds or ()):
            low[column] = low[column] if known_low is None else known_low
            high[column] = high[column] if known_high is None else known_high
        z = _logit(x[_inside(x, low, high)], low, high)
        mean = z.mean(axis=0) if len(z) else np.zeros(len(names))
        std = z.std(axis=0) if len(z) else np.zeros(len(names))
        # A feature with three values or fewer keeps a single one between its ends, so nothing is left to standardise.
        flat = std <= 1e-12 * np.maximum(np.abs(mean), 1.0)
        if flat.any():
            column = int(np.argmax(flat))
            raise EventsError(
                f"feature {names[column]!r} takes {np.unique(x[:, column]).size} distinct value(s), too few for this "
                "transform: leave this feature out"
            )
        return cls(tuple(names), low, high, mean, std)

    def __len__(self) -> int:
        return len(self.names)

    def inside(self, features: FloatArray) -> BoolArray:
        """Mask of the events with every feature strictly inside its range, shape (n,)."""
        return _inside(self._checked(features), self.low, self.high)

    def forward(self, features: FloatArray) -> FloatArray:
        """Transformed features, shape (n, d).

        Raises
        ------
        EventsError
            If an event is outside the range; the message counts them and names the feature.
        """
        x = self._checked(features)
        self._require_inside(x)
        return (_logit(x, self.low, self.high) - self.mean) / self.std

    def inverse(self, transformed: FloatArray) -> FloatArray:
        """Features from transformed features, shape (n, d)."""
        z = self._checked(transformed) * self.std + self.mean
        width = self.high - self.low
        # Measured from the nearer end, so that values next to either end keep their digits.
        return np.where(z < 0, self.low + width * expit(z), self.high - width * expit(-z))

    def log_abs_det(self, features: FloatArray) -> FloatArray:
        """Log-Jacobian of `forward`, shape (n,): the sum over features of ln |d forward / dx|.

        A density p_y learned in the transformed space is ``ln p_x = ln p_y(forward(x)) + log_abs_det(x)`` in the units
        of the features. With z = logit(u), each term is ``ln[2 (1 + cosh z) / (std (high - low))]``.

        Raises
        ------
        EventsError
            If an event is outside the range.
        """
        x = self._checked(features)
        self._require_inside(x)
        width = self.high - self.low
        terms = np.log(width / self.std) - np.log(x - self.low) - np.log(self.high - x)
        total: FloatArray = terms.sum(axis=1)
        return total

    def to_dict(self) -> Json:
        """Plain numbers and lists, for JSON; floats survive the round trip exactly."""
        return {"names": list(self.names), **{field: getattr(self, field).tolist() for field in _ARRAYS}}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> FeatureTransform:
        """Transform from what `to_dict` gave.

        Raises
        ------
        EventsError
            If a key is absent or unknown, or a value cannot be used.
        """
        expected = {"names", *_ARRAYS}
        if set(document) != expected:
            raise EventsError(
                f"a transform has the keys {sorted(expected)}; absent: {sorted(expected - set(document))}, "
                f"unknown: {sorted(set(document) - expected)}"
            )
        try:
            arrays = {field: np.asarray(document[field], dtype=np.float64) for field in _ARRAYS}
        except (TypeError, ValueError) as error:
            raise EventsError(f"a transform holds a value that is not a number: {error}") from error
        return cls(tuple(str(name) for name in document["names"]), **arrays)

    def _checked(self, features: FloatArray) -> FloatArray:
        x = np.asarray(features, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != len(self.names):
            raise EventsError(
                f"features have shape {x.shape}; this transform takes (n, {len(self.names)}): {', '.join(self.names)}"
            )
        return x

    def _require_inside(self, x: FloatArray) -> None:
        good = (x > self.low) & (x < self.high)
        outside = ~good.all(axis=1)
        if outside.any():
            column = int(np.argmin(good.sum(axis=0)))
            raise EventsError(
                f"{int(outside.sum())} of {len(x)} events are outside the transform's range, most of them in "
                f"{self.names[column]!r} ({self.low[column]:.6g} to {self.high[column]:.6g}); select with `inside` and "
                "carry the loss as an acceptance"
            )


def _inside(x: FloatArray, low: FloatArray, high: FloatArray) -> BoolArray:
    mask: BoolArray = np.all((x > low) & (x < high), axis=1)
    return mask


def _logit(x: FloatArray, low: FloatArray, high: FloatArray) -> FloatArray:
    # ln(x - low) - ln(high - x), not logit(u): 1 - u would lose the digits of events next to the upper end.
    return np.log(x - low) - np.log(high - x)


def _check_columns(x: FloatArray, names: Sequence[str]) -> None:
    for column, name in enumerate(names):
        bad = int(np.sum(~np.isfinite(x[:, column])))
        if bad:
            raise EventsError(f"feature {name!r} is NaN or infinite in {bad} of {len(x)} events; remove these events")
        if np.ptp(x[:, column]) == 0:
            raise EventsError(
                f"feature {name!r} is constant ({x[0, column]:.6g}) in all {len(x)} events: leave this feature out"
            )
