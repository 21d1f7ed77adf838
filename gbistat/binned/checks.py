"""What can be wrong with a HistFactory workspace, said with channel, sample and bin."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from gbistat.errors import ModelError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.typing import Json

__all__ = ["MODIFIERS", "VERSION", "check_backgrounds", "check_workspace", "choose_measurement"]

VERSION = "1.0.0"
"""Version of the schema of workspaces."""
MODIFIERS = ("histosys", "lumi", "normfactor", "normsys", "shapefactor", "shapesys", "staterror")
PER_BIN = ("shapesys", "staterror")


def check_workspace(workspace: Json, *, patched: bool = False) -> None:
    """Make sure that a workspace is complete and that its numbers make sense.

    Parameters
    ----------
    workspace : dict
        HistFactory JSON.
    patched : bool, default False
        Whether a patch was applied: it may remove channels whose observations stay.

    Raises
    ------
    ModelError
        If it has another schema version, channels and observations do not match, lengths differ, a template or an error is negative or
        not a number, or a modifier is unknown.
    """
    for key in ("channels", "observations", "measurements", "version"):
        if key not in workspace:
            raise ModelError(f"the workspace has no {key!r}; {nearest(key, workspace)}")
    if workspace["version"] != VERSION:
        raise ModelError(
            f"the workspace has schema version {workspace['version']!r}, and only {VERSION} can be read; "
            "rewrite it with the version of pyhf that made it"
        )
    channels = _named(workspace["channels"], "channel")
    observations = _named(workspace["observations"], "observation")
    for name in channels:
        if name not in observations:
            raise ModelError(f"channel {name!r} has no observation; {nearest(name, observations)}")
    for name, observation in observations.items():
        if name not in channels:
            if patched:
                continue
            raise ModelError(f"the observation {name!r} has no channel; {nearest(name, channels)}")
        length = _check_channel(name, channels[name])
        if len(observation["data"]) != length:
            raise ModelError(f"channel {name!r} has {length} bins and {len(observation['data'])} observed counts")
        _numbers(observation["data"], f"channel {name!r}: the observed count", lowest=0.0)


def choose_measurement(workspace: Json, name: str | None = None) -> Json:
    """Measurement of a workspace by name; the first by default.

    Raises
    ------
    ModelError
        If there is none of that name.
    """
    measurements = _named(workspace["measurements"], "measurement")
    if name is None:
        return next(iter(measurements.values()))
    if name not in measurements:
        raise ModelError(f"the workspace has no measurement {name!r}; {nearest(name, measurements)}")
    return measurements[name]


def check_backgrounds(workspace: Json, poi: str) -> None:
    """Make sure that each bin expects something without signal, and that there is a signal; no `poi` means a control region.

    Raises
    ------
    ModelError
        If not, or if nothing is scaled by the parameter of interest.
    """
    signal_somewhere, scaled = False, False
    factors = set()
    for channel in workspace["channels"]:
        rest = [0.0] * len(channel["samples"][0]["data"])
        for sample in channel["samples"]:
            names = {modifier["name"] for modifier in sample["modifiers"]}
            factors |= {m["name"] for m in sample["modifiers"] if m["type"] == "normfactor"}
            varied = [m["data"]["hi_data"] for m in sample["modifiers"] if m["type"] == "histosys"]
            if poi in names:
                scaled = True
                signal_somewhere |= any(x > 0 for x in sample["data"]) or any(x != 0 for row in varied for x in row)
            else:
                rest = [a + b for a, b in zip(rest, sample["data"], strict=True)]
        for number, value in enumerate(rest):
            if not value > 0:
                raise ModelError(
                    f"channel {channel['name']!r}, bin {number}: no background is expected there; merge it with another bin, or "
                    "drop it"
                )
    if not poi:
        return
    if not scaled:
        raise ModelError(
            f"no sample is scaled by the parameter of interest {poi!r}; {nearest(poi, sorted(factors))}; "
            "without any signal yet, load it with signal=False"
        )
    if not signal_somewhere:
        raise ModelError(f"all samples scaled by {poi!r} are empty: zero signal acceptance")


def _named(items: Any, what: str) -> dict[str, Json]:
    found: dict[str, Json] = {}
    if not isinstance(items, list):
        raise ModelError(f"the workspace has no {what}s")
    for item in items:
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            raise ModelError(f"a {what} of the workspace has no name")
        if item["name"] in found:
            raise ModelError(f"two {what}s are called {item['name']!r}")
        found[item["name"]] = item
    return found


def _check_channel(name: str, channel: Json) -> int:
    """Check all samples of a channel; return its number of bins."""
    samples = _named(channel.get("samples"), f"channel {name!r}: sample")
    length = -1
    for label, sample in samples.items():
        where = f"channel {name!r}, sample {label!r}"
        data = sample.get("data")
        if not isinstance(data, list) or not data:
            raise ModelError(f"{where} has no bins")
        length = len(data) if length < 0 else length
        if len(data) != length:
            raise ModelError(f"{where} has {len(data)} bins where the others have {length}")
        _numbers(data, f"{where}: the expected count", lowest=0.0)
        for modifier in sample.get("modifiers", []):
            _check_modifier(where, modifier, length)
    return length


def _check_modifier(where: str, modifier: Json, length: int) -> None:
    kind, name = modifier.get("type"), modifier.get("name")
    here = f"{where}: {kind} {name!r}"
    if kind not in MODIFIERS:
        raise ModelError(f"{where}: modifier {name!r} is of unknown type {kind!r}; {nearest(str(kind), MODIFIERS)}")
    data: Any = modifier.get("data")
    if kind == "histosys":
        for key in ("hi_data", "lo_data"):
            _length(data[key], length, f"{here}, {key}")
            _numbers(data[key], f"{here}, {key}: the expected count")
    elif kind == "normsys":
        for key in ("hi", "lo"):
            if not (math.isfinite(data[key]) and data[key] > 0):
                raise ModelError(
                    f"{here}: {key} = {data[key]:g} must be above 0; a yield cannot change by 100 % downwards"
                )
    elif kind in PER_BIN:
        _length(data, length, here)
        _numbers(data, f"{here}: the error", lowest=0.0)


def _length(values: Sequence[float], length: int, where: str) -> None:
    if len(values) != length:
        raise ModelError(f"{where} has {len(values)} values for {length} bins")


def _numbers(values: Sequence[Any], what: str, *, lowest: float = -math.inf) -> None:
    for number, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ModelError(f"{what} of bin {number} is {value!r}, which is not a finite number")
        if value < lowest:
            raise ModelError(f"{what} of bin {number} is {value:g}; it must not be negative")
