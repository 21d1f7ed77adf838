"""Parameters of a HistFactory workspace: what each modifier asks for, and what the measurement says about it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gbistat.errors import ModelError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.typing import Json

__all__ = ["ParameterSet", "parameter_sets"]

SCALAR = ("histosys", "lumi", "normfactor", "normsys")


@dataclass(frozen=True)
class ParameterSet:
    """All parameters of one modifier name: one, or one a bin.

    Parameters
    ----------
    name : str
        Name of the modifier.
    kind : {"free", "normal", "poisson"}
        Without constraint, with Gaussian measurements, or with auxiliary counts.
    scalar : bool
        Whether it is one parameter for all bins.
    inits : tuple of float
        Start values.
    bounds : tuple of (low, high)
        Ranges.
    fixed : tuple of bool
        Which are held at their start values.
    auxdata, sigmas, factors : tuple of float
        Auxiliary values; widths of Gaussian ones, and expected counts for a parameter of 1.
    constrained : tuple of bool
        Whether the measurement says anything: no error, no measurement.
    """

    name: str
    kind: str
    scalar: bool
    inits: tuple[float, ...]
    bounds: tuple[tuple[float, float], ...]
    fixed: tuple[bool, ...]
    auxdata: tuple[float, ...] = ()
    sigmas: tuple[float, ...] = ()
    factors: tuple[float, ...] = ()
    constrained: tuple[bool, ...] = ()

    @property
    def size(self) -> int:
        """Number of parameters."""
        return len(self.inits)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names as pyhf has them: with the number in brackets where there is one a bin."""
        return (self.name,) if self.scalar else tuple(f"{self.name}[{k}]" for k in range(self.size))


def parameter_sets(workspace: Json, measurement: Json) -> dict[str, ParameterSet]:
    """Parameters of a checked workspace, by name of the modifier, sorted by name.

    Raises
    ------
    ModelError
        If modifiers of one name do not fit together, or the measurement configures a parameter wrongly.
    """
    found: dict[str, ParameterSet] = {}
    errors = _statistical_errors(workspace)
    for channel in sorted(workspace["channels"], key=lambda item: str(item["name"])):
        for sample in channel["samples"]:
            for modifier in sample["modifiers"]:
                where = (
                    f"channel {channel['name']!r}, sample {sample['name']!r}: {modifier['type']} {modifier['name']!r}"
                )
                made = _required(modifier, sample["data"], errors)
                old = found.setdefault(modifier["name"], made)
                if modifier["type"] == "shapesys" and old is not made:
                    raise ModelError(
                        f"{where}: another modifier has this name, and a shapesys cannot be shared; rename it"
                    )
                if modifier["type"] == "shapefactor" and old.kind == made.kind and old.scalar == made.scalar:
                    # Channels share the parameters of their first bins; the longest has them all.
                    found[modifier["name"]] = max(old, made, key=lambda parameter: parameter.size)
                elif old != made:
                    raise ModelError(f"{where} does not fit the other modifiers of this name; rename it")
    configured = {config["name"]: config for config in measurement["config"]["parameters"]}
    for name, config in configured.items():
        # A patch may take away what a measurement still configures; pyhf passes over that, too.
        if name in found:
            found[name] = _configured(found[name], config)
    missing = [n for n, p in found.items() if p.kind == "normal" and not (p.auxdata and p.sigmas)]
    if missing:
        raise ModelError(
            f"the measurement must give auxdata and sigmas for {missing[0]!r}; {nearest(missing[0], configured)}"
        )
    return {name: found[name] for name in sorted(found)}


def _required(modifier: Json, nominal: Sequence[float], errors: dict[str, list[float]]) -> ParameterSet:
    name, kind, n = modifier["name"], modifier["type"], len(nominal)
    if kind in ("histosys", "normsys"):
        return ParameterSet(name, "normal", True, (0.0,), ((-5.0, 5.0),), (False,), (0.0,), (1.0,), constrained=(True,))
    if kind == "normfactor":
        return ParameterSet(name, "free", True, (1.0,), ((0.0, 10.0),), (False,))
    if kind == "shapefactor":
        return ParameterSet(name, "free", False, (1.0,) * n, ((0.0, 10.0),) * n, (False,) * n)
    if kind == "lumi":
        return ParameterSet(name, "normal", True, (1.0,), ((0.0, 10.0),), (False,), constrained=(True,))
    if kind == "staterror":
        sigmas = errors[name]
        none = tuple(sigma == 0 for sigma in sigmas)
        n = len(sigmas)
        return ParameterSet(
            name,
            "normal",
            False,
            (1.0,) * n,
            ((1e-10, 10.0),) * n,
            none,
            (1.0,) * n,
            tuple(sigma or 1.0 for sigma in sigmas),
            constrained=tuple(not x for x in none),
        )
    valid = tuple(a > 0 and b > 0 for a, b in zip(nominal, modifier["data"], strict=True))
    factors = tuple((a / b) ** 2 if v else 1.0 for a, b, v in zip(nominal, modifier["data"], valid, strict=True))
    fixed = tuple(not v for v in valid)
    return ParameterSet(
        name, "poisson", False, (1.0,) * n, ((1e-10, 10.0),) * n, fixed, factors, (), factors, constrained=valid
    )


def _statistical_errors(workspace: Json) -> dict[str, list[float]]:
    """Relative errors of each ``staterror``, in its bins: those of its samples in quadrature, over their sum.

    A name that several channels share has their bins one after the other, in the order of the channels' names.
    """
    errors: dict[str, list[float]] = {}
    for channel in sorted(workspace["channels"], key=lambda item: str(item["name"])):
        names = dict.fromkeys(
            m["name"] for sample in channel["samples"] for m in sample["modifiers"] if m["type"] == "staterror"
        )
        for name in names:
            total = [0.0] * len(channel["samples"][0]["data"])
            squares = list(total)
            for sample in channel["samples"]:
                for modifier in sample["modifiers"]:
                    if modifier["type"] == "staterror" and modifier["name"] == name:
                        total = [a + b for a, b in zip(total, sample["data"], strict=True)]
                        squares = [a + b * b for a, b in zip(squares, modifier["data"], strict=True)]
            errors.setdefault(name, []).extend(
                math.sqrt(q) / t if t > 0 else 0.0 for t, q in zip(total, squares, strict=True)
            )
    return errors


def _configured(base: ParameterSet, config: Json) -> ParameterSet:
    """Put what the measurement says in place of the defaults."""
    unknown = [key for key in ("sigmas", "factors", "auxdata") if key in config and not _takes(base, key)]
    if unknown:
        raise ModelError(f"the measurement gives {unknown[0]} for {base.name!r}, which has none")
    changes: dict[str, object] = {}
    for key in ("inits", "bounds", "auxdata", "sigmas", "factors"):
        if key in config:
            values = config[key]
            if len(values) != base.size:
                raise ModelError(f"the measurement gives {len(values)} {key} for {base.name!r}, which has {base.size}")
            changes[key] = tuple(tuple(v) for v in values) if key == "bounds" else tuple(float(v) for v in values)
    if "fixed" in config:
        changes["fixed"] = (bool(config["fixed"]),) * base.size
    return replace(base, **changes)  # type: ignore[arg-type]  # keys are those of the class


def _takes(base: ParameterSet, key: str) -> bool:
    if key == "auxdata":
        return base.kind != "free"
    if key == "factors":
        return base.kind == "poisson"
    # The width of histosys and normsys is one standard deviation by definition.
    return base.kind == "normal" and (base.sigmas == () or not base.scalar)
