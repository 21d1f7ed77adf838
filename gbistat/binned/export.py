"""Workspaces to publish: several windows or decay modes as channels of one, with what pyhf needs beside it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from gbistat.binned.backend import validate_workspace
from gbistat.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from gbistat.binned.workspace import BinnedTwin
    from gbistat.typing import Json

__all__ = ["combine_twins"]


def combine_twins(twins: Mapping[str, BinnedTwin], *, shared: Collection[str] = ()) -> Json:
    """One workspace of several twins of different events.

    Parameters
    ----------
    twins : mapping of str to BinnedTwin
        Twins by label (a window, a decay mode).
    shared : collection of str
        Parameters that mean the same everywhere and keep their names (``"mu"`` of one signal in several decay modes, a mass
        scale); all others get the label in front of theirs.

    Returns
    -------
    dict
        Valid for schema 1.0.0. Where the parameter of interest is not shared there is one measurement for each label, named after it.

    Raises
    ------
    ModelError
        If there is no twin, two bin different observables of the same channel name, or nothing is shared by that name.

    Notes
    -----
    Channels are independent measurements in HistFactory. Two observables of the same events, or windows that overlap, must therefore
    never be combined; sidebands that several windows use are a correlation that is left out.
    """
    if not twins:
        raise ModelError("there is no binned twin to combine; give at least one")
    for name in shared:
        if not any(name in _parameters(twin.workspace) for twin in twins.values()):
            raise ModelError(f"no twin has a parameter {name!r} to share")
    channels: list[Json] = []
    observations: list[Json] = []
    measurements: list[Json] = []
    configured: dict[str, Json] = {}
    for label, twin in twins.items():
        single = len(twins) == 1
        part = twin.workspace if single else _renamed(twin.workspace, label, shared)
        channels += part["channels"]
        observations += part["observations"]
        (measurement,) = part["measurements"]
        for parameter in measurement["config"]["parameters"]:
            old = configured.setdefault(parameter["name"], parameter)
            if old is not parameter and "bounds" in parameter:
                # A shared parameter must be able to go as far as each channel wants it to.
                high = max(old["bounds"][0][1], parameter["bounds"][0][1])
                configured[parameter["name"]] = {**old, "bounds": [[old["bounds"][0][0], high]]}
        poi = measurement["config"]["poi"]
        if all(poi != known["config"]["poi"] for known in measurements):
            measurements.append({"name": "gbistat" if single or poi in shared else label, "config": {"poi": poi}})
    for measurement in measurements:
        measurement["config"]["parameters"] = list(configured.values())
    workspace: Json = {
        "channels": channels,
        "observations": observations,
        "measurements": measurements,
        "version": "1.0.0",
    }
    validate_workspace(workspace)
    return workspace


def _parameters(workspace: Json) -> set[str]:
    samples = [sample for channel in workspace["channels"] for sample in channel["samples"]]
    return {modifier["name"] for sample in samples for modifier in sample["modifiers"]}


def _renamed(workspace: Json, label: str, shared: Collection[str]) -> Json:
    """Workspace with the label in front of all names but those of samples and shared parameters."""
    result: Any = copy.deepcopy(workspace)

    def rename(name: str) -> str:
        return name if name in shared else f"{label}_{name}"

    for channel in result["channels"]:
        channel["name"] = f"{label}_{channel['name']}"
        for sample in channel["samples"]:
            for modifier in sample["modifiers"]:
                modifier["name"] = rename(modifier["name"])
    for observation in result["observations"]:
        observation["name"] = f"{label}_{observation['name']}"
    for measurement in result["measurements"]:
        measurement["config"]["poi"] = rename(measurement["config"]["poi"])
        for parameter in measurement["config"]["parameters"]:
            parameter["name"] = rename(parameter["name"])
    return dict(result)
