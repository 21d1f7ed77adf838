"""What a set of toys is asked and what it answers: plain arrays, one row a toy."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from gbistat.errors import OptionError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gbistat.typing import BoolArray, FloatArray, IntArray

__all__ = [
    "FAILED_CONDITIONAL",
    "FAILED_FREE",
    "OK",
    "RUNAWAY",
    "STATUS_NAMES",
    "Statistic",
    "TestSpec",
    "ToyResults",
    "concatenate_toys",
]

Statistic = Literal["tmu", "tmu_tilde", "qmu", "qmu_tilde", "q0"]

OK, RUNAWAY, FAILED_FREE, FAILED_CONDITIONAL = 0, 1, 2, 3
STATUS_NAMES: tuple[str, ...] = (
    "ok",
    "estimate without lower bound",
    "free fit failed",
    "conditional fit failed",
)
"""What the status codes 0, 1, 2, ... mean.

``estimate without lower bound``: no event of the toy looks like signal, so that -ln L falls without end towards negative
values of the parameter of interest. The estimate is -inf; qmu_tilde, tmu_tilde and q0 are what they should be, tmu and qmu
are infinite. This is an outcome, not a failure.
"""


@dataclass(frozen=True)
class TestSpec:
    """One test statistic, evaluated on every toy.

    Parameters
    ----------
    statistic : {"tmu", "tmu_tilde", "qmu", "qmu_tilde", "q0"}
        Eqs. (8), (11), (14), (16) and (12) of arXiv:1007.1727. ``tmu_tilde`` orders the Feldman-Cousins construction where
        the parameter of interest must not be negative.
    value : float, default 0
        Tested value of the parameter of interest; must be 0 for q0.
    fixed : tuple of (name, value), default ()
        Parameters held at these values in the free and in the conditional fit: a signal hypothesis (its mass).

    Raises
    ------
    OptionError
        If the statistic is unknown, a value is not finite, or q0 is asked for at another value than 0.
    """

    __test__ = False  # not a test, whatever pytest makes of its name

    statistic: Statistic
    value: float = 0.0
    fixed: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        known = get_args(Statistic)
        if self.statistic not in known:
            raise OptionError(f"test statistic {self.statistic!r} is unknown; {nearest(self.statistic, known)}")
        numbers = (self.value, *(number for _, number in self.fixed))
        if not all(map(math.isfinite, numbers)):
            raise OptionError(f"a test needs finite values, not {numbers}")
        if self.statistic == "q0" and self.value != 0.0:
            raise OptionError(f"q0 tests the value 0, not {self.value:g}; use tmu for other values")
        object.__setattr__(self, "value", float(self.value))
        object.__setattr__(self, "fixed", tuple(sorted((name, float(number)) for name, number in self.fixed)))


@dataclass(frozen=True, eq=False)
class ToyResults:
    """Answers of a set of toys, all drawn at the same true parameters.

    Parameters
    ----------
    names : tuple of str
        The p parameters in order.
    poi : str
        Parameter of interest.
    theta_true : array of shape (p,)
        Parameters that the toys were drawn at.
    tests : tuple of TestSpec
        The t tests.
    n_events : int array of shape (n, d)
        Events in each of d data terms.
    statistics : array of shape (n, t)
        Test statistics; NaN where the fits that they need failed.
    estimates, errors : arrays of shape (n, h)
        Unbounded estimate of the parameter of interest and its error from the Hessian, for each of the h different
        ``fixed`` among the tests in order of appearance (one, with nothing held, where there is no test).
    values : array of shape (n, p)
        All parameters at the free fit of the first of these hypotheses.
    status : int array of shape (n,)
        0 for a toy without any trouble; see ``STATUS_NAMES``. The worst of a toy's fits.
    form : str
        "compressed" or "exact".
    """

    names: tuple[str, ...]
    poi: str
    theta_true: FloatArray
    tests: tuple[TestSpec, ...]
    n_events: IntArray
    statistics: FloatArray
    estimates: FloatArray
    errors: FloatArray
    values: FloatArray
    status: IntArray
    form: str = "compressed"

    def __len__(self) -> int:
        return int(self.status.size)

    @property
    def true_value(self) -> float:
        """True value of the parameter of interest."""
        return float(self.theta_true[self.names.index(self.poi)])

    @property
    def estimate(self) -> FloatArray:
        """Estimates for the first hypothesis, shape (n,)."""
        return self.estimates[:, 0]

    @property
    def error(self) -> FloatArray:
        """Errors for the first hypothesis, shape (n,)."""
        return self.errors[:, 0]

    @property
    def failed(self) -> BoolArray:
        """Toys with a failed fit, shape (n,)."""
        mask: BoolArray = self.status >= FAILED_FREE
        return mask

    @property
    def n_failed(self) -> int:
        """How many toys have a failed fit."""
        return int(self.failed.sum())

    def counts_by_status(self) -> Mapping[str, int]:
        """Number of toys of each status that occurs, by name."""
        return {
            name: int((self.status == code).sum())
            for code, name in enumerate(STATUS_NAMES)
            if (self.status == code).any()
        }

    def statistic(self, test: TestSpec) -> FloatArray:
        """One test statistic, shape (n,); NaN for failed toys.

        Raises
        ------
        OptionError
            If that test was not asked for.
        """
        if test not in self.tests:
            raise OptionError(f"these toys were not asked for {test}; they know {', '.join(map(str, self.tests))}")
        return self.statistics[:, self.tests.index(test)]

    def select(self, choice: BoolArray | IntArray | slice) -> ToyResults:
        """Toys at a mask, indices or a slice."""
        rows = {name: getattr(self, name)[choice] for name in _ROWS}
        return replace(self, **rows)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Plain arrays for ``numpy.savez``; :meth:`from_arrays` reads them back."""
        return {
            "names": np.array(self.names),
            "poi": np.array(self.poi),
            "form": np.array(self.form),
            "theta_true": self.theta_true,
            "test_statistics": np.array([test.statistic for test in self.tests], dtype="U16"),
            "test_values": np.array([test.value for test in self.tests], dtype=np.float64),
            "test_fixed_names": np.array([",".join(n for n, _ in test.fixed) for test in self.tests], dtype=str),
            "test_fixed_values": np.array([len(test.fixed) for test in self.tests], dtype=np.int64),
            "test_fixed_numbers": np.array([v for test in self.tests for _, v in test.fixed], dtype=np.float64),
            **{name: getattr(self, name) for name in _ROWS},
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> ToyResults:
        """Inverse of :meth:`to_arrays`.

        Raises
        ------
        OptionError
            If an array is missing or their shapes do not fit together.
        """
        wanted = (
            *("names", "poi", "form", "theta_true", "test_statistics", "test_values"),
            *("test_fixed_names", "test_fixed_values", "test_fixed_numbers", *_ROWS),
        )
        missing = [name for name in wanted if name not in arrays]
        if missing:
            raise OptionError(f"not a set of toys: {', '.join(missing)} missing")
        numbers = iter(np.asarray(arrays["test_fixed_numbers"], dtype=np.float64).tolist())
        tests = []
        for statistic, value, held, count in zip(
            *(arrays[f"test_{key}"].tolist() for key in ("statistics", "values", "fixed_names", "fixed_values")),
            strict=True,
        ):
            fixed = tuple((name, next(numbers)) for name in held.split(",")[:count] if name)
            tests.append(TestSpec(statistic, value, fixed))
        rows: dict[str, Any] = {name: np.asarray(arrays[name], dtype=kind) for name, kind in _ROWS.items()}
        results = cls(
            names=tuple(arrays["names"].tolist()),
            poi=str(arrays["poi"]),
            theta_true=np.asarray(arrays["theta_true"], dtype=np.float64),
            tests=tuple(tests),
            form=str(arrays["form"]),
            **rows,
        )
        n, p = len(results), len(results.names)
        if results.statistics.shape != (n, len(tests)) or results.values.shape != (n, p):
            raise OptionError(
                f"damaged set of toys: {n} toys, {len(tests)} tests and {p} parameters, but statistics of shape "
                f"{results.statistics.shape} and values of shape {results.values.shape}"
            )
        return results


_ROWS: dict[str, type] = {
    "n_events": np.int64,
    "statistics": np.float64,
    "estimates": np.float64,
    "errors": np.float64,
    "values": np.float64,
    "status": np.int64,
}


def concatenate_toys(parts: Sequence[ToyResults]) -> ToyResults:
    """One set of toys from several that asked the same of the same truth, in the order given.

    Raises
    ------
    OptionError
        If there is nothing to join, or parameters, truth, tests or form differ.
    """
    if not parts:
        raise OptionError("no toys to join: the list of parts is empty")
    first = parts[0]
    for part in parts[1:]:
        same = (part.names, part.poi, part.tests, part.form) == (first.names, first.poi, first.tests, first.form)
        if not same or not np.array_equal(part.theta_true, first.theta_true):
            raise OptionError("cannot join toys with different parameters, true values, tests or form")
    rows: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ROWS}
    return replace(first, **rows)
