"""One name for each way to an interval on the parameter of interest: what ``--method`` chooses.

==================  ===================================================================================================
profile             ends where twice the log profile likelihood ratio has risen to the quantile of chi2 (Wilks)
feldman-cousins     Neyman construction by toys, ordered by the likelihood ratio, with the signal at 0 or above
neyman              the same with the unbounded likelihood ratio: the interval may reach below 0
cls                 from 0 to the CLs limit of the asymptotic formulas
cls-toys            from 0 to the CLs limit by toys
==================  ===================================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from gbistat.errors import OptionError, nearest
from gbistat.inference.neyman_results import NeymanOptions
from gbistat.inference.toy_limit_results import ToyBudget

__all__ = ["METHODS", "Method", "MethodOptions"]

Method = Literal["profile", "feldman-cousins", "neyman", "cls", "cls-toys"]
METHODS: tuple[Method, ...] = get_args(Method)
FORMS = ("compressed", "exact")
BY_TOYS = ("feldman-cousins", "neyman", "cls-toys")


@dataclass(frozen=True)
class MethodOptions:
    """How intervals on the parameter of interest are made.

    Parameters
    ----------
    name : {"profile", "feldman-cousins", "neyman", "cls", "cls-toys"}
        The method.
    seed : int, default 1
        Of all toys.
    precision : float, default 0.02
        Monte Carlo error at which toys stop: of an end as a share of its distance to the estimate, of a limit as a share of it.
    min_toys, max_toys : int, optional
        Least and most toys; by default those of :class:`gbistat.inference.neyman_results.NeymanOptions` (at a tested value, and
        for an interval) or :class:`gbistat.inference.toy_limit_results.ToyBudget` (both at a tested value).
    form : {"compressed", "exact"}
        Of the toys; see :class:`gbistat.inference.toys.ToyOptions`.
    jobs : int, default 1
        Processes. The result does not depend on it.

    Raises
    ------
    OptionError
        If a name is unknown or a number makes no sense.
    """

    name: Method = "profile"
    seed: int = 1
    precision: float = 0.02
    min_toys: int | None = None
    max_toys: int | None = None
    form: Literal["compressed", "exact"] = "compressed"
    jobs: int = 1

    def __post_init__(self) -> None:
        if self.name not in METHODS:
            raise OptionError(f"method {self.name!r} is unknown; {nearest(self.name, METHODS)}")
        if self.seed < 0:
            raise OptionError(f"seed {self.seed} is negative; give an integer of 0 or more")
        if self.jobs < 1:
            raise OptionError(f"{self.jobs} processes; give at least 1")
        if self.form not in FORMS:
            raise OptionError(f"form of toys {self.form!r} is unknown; {nearest(self.form, FORMS)}")
        if self.name == "cls-toys":
            self.budget()
        elif self.by_toys:
            self.neyman_options()

    @property
    def by_toys(self) -> bool:
        """Whether toys are thrown."""
        return self.name in BY_TOYS

    def neyman_options(self) -> NeymanOptions:
        """How the Neyman construction spends toys.

        Raises
        ------
        OptionError
            If a number makes no sense.
        """
        default = NeymanOptions(precision=self.precision)
        least = self.min_toys if self.min_toys is not None else default.min_toys
        most = self.max_toys if self.max_toys is not None else max(default.max_toys, least)
        return replace(default, min_toys=least, max_toys=most)

    def budget(self) -> ToyBudget:
        """How toy CLs spends toys.

        Raises
        ------
        OptionError
            If a number makes no sense.
        """
        default = ToyBudget(precision=self.precision)
        least = self.min_toys if self.min_toys is not None else default.min_toys
        most = self.max_toys if self.max_toys is not None else max(default.max_toys, least)
        return replace(default, min_toys=least, max_toys=most)
