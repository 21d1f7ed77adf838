"""HistFactory workspaces as likelihoods of gbistat.

A workspace becomes counts (:class:`BinnedTerm`) and auxiliary measurements in one :class:`gbistat.likelihood.nll.NLL`, which
every interval, limit and significance takes as it is, and which can be added to unbinned likelihoods::

    control = load_workspace("control.json", rename={"mu_SIG": "mu"})
    nll = analysis.nll + control.nll            # parameters of the same name are shared

Nothing of pyhf is used to evaluate it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gbistat.binned.backend import validate_workspace
from gbistat.binned.checks import check_backgrounds, check_workspace, choose_measurement
from gbistat.binned.documents import patched
from gbistat.binned.parameter_sets import parameter_sets
from gbistat.errors import ModelError, nearest
from gbistat.fit.minimize import fit
from gbistat.likelihood.auxiliary import AuxiliaryMeasurements
from gbistat.likelihood.histfactory import BinnedTerm, CountTables, ExpectedCounts
from gbistat.likelihood.nll import NLL
from gbistat.likelihood.parameters import Parameter

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from gbistat.binned.documents import Patch, Source
    from gbistat.binned.parameter_sets import ParameterSet
    from gbistat.likelihood.constraints import Constraint
    from gbistat.typing import FloatArray, IntArray, Json

__all__ = ["LoadedWorkspace", "load_workspace", "parameter_labels"]

SHARE = 0.98
"""Part of the way to the first bin without expected events that a negative signal may go."""


@dataclass(frozen=True, eq=False)
class LoadedWorkspace:
    """A HistFactory workspace as a likelihood.

    Parameters
    ----------
    nll : NLL
        Likelihood of all channels and auxiliary measurements.
    term : BinnedTerm
        The counts.
    auxiliary : AuxiliaryMeasurements or None
        The auxiliary measurements.
    channels : dict of str to slice
        Where the bins of each channel are.
    samples : dict of (channel, sample) to int array
        Cells of each sample.
    labels : dict of str to str
        pyhf's names of the parameters (``"staterror_SR[0]"``) to those of the likelihood.
    workspace : dict
        The workspace, patched.
    """

    nll: NLL
    term: BinnedTerm
    auxiliary: AuxiliaryMeasurements | None
    channels: Mapping[str, slice]
    samples: Mapping[tuple[str, str], IntArray]
    labels: Mapping[str, str]
    workspace: Json

    def expected(self, theta: FloatArray, channel: str) -> FloatArray:
        """Expected counts in the bins of a channel at parameters of the likelihood.

        Raises
        ------
        ModelError
            If there is no such channel.
        """
        if channel not in self.channels:
            raise ModelError(f"the workspace has no channel {channel!r}; {nearest(channel, self.channels)}")
        return self.term.yields(theta)[self.channels[channel]]


def load_workspace(
    source: Source,
    *,
    patch: Patch | None = None,
    patch_name: str | None = None,
    measurement: str | None = None,
    poi: str | None = None,
    signal: bool = True,
    rename: Mapping[str, str] | None = None,
    measured_elsewhere: Collection[str] = (),
) -> LoadedWorkspace:
    """Read a HistFactory workspace (schema 1.0.0) as a likelihood.

    Parameters
    ----------
    source : path or dict
        The workspace.
    patch : path, list or dict, optional
        A JSON patch that adds a signal, or a patch set.
    patch_name : str, optional
        Which patch of a patch set.
    measurement : str, optional
        Which measurement; the first by default.
    poi : str, optional
        Parameter of interest instead of the measurement's. Without signal, the one of the likelihood that this will be added to: by
        default the measurement's, or ``"mu"`` where that has none (``"poi": ""``).
    signal : bool, default True
        Whether there is one; ``False`` for a background-only workspace whose signals come by patches, or a control region. A
        measurement with ``"poi": ""`` says so itself.
    rename : mapping of str to str, optional
        Parameters to call otherwise, so that they are shared with another likelihood.
    measured_elsewhere : collection of str
        Parameters (names of the likelihood) whose auxiliary measurement another likelihood brings along: it must count once.

    Returns
    -------
    LoadedWorkspace
        The parameter of interest may be negative as far as all expected counts stay positive, and has no upper end, whatever bounds
        the workspace has for it: test statistics know about 0 themselves. All other parameters have the workspace's
        ranges.

    Raises
    ------
    ModelError
        If the workspace or the patch cannot be used; the message names channel, sample and bin.

    Notes
    -----
    ``histosys`` is interpolated with code 4p and ``normsys`` with code 4, the defaults of pyhf.
    """
    workspace = patched(source, patch, patch_name)
    check_workspace(workspace, patched=patch is not None)
    validate_workspace(workspace)
    chosen = choose_measurement(workspace, measurement)
    declared = str(chosen["config"]["poi"])
    interest = (poi or declared) if declared and signal else ""
    check_backgrounds(workspace, interest)
    sets = parameter_sets(workspace, chosen)
    if interest and (interest not in sets or sets[interest].size != 1):
        raise ModelError(f"{interest!r} cannot be the parameter of interest: it is not one parameter")
    labels = parameter_labels(sets, rename)
    tables, channels, samples = _tables(workspace, sets, labels)
    observations = {item["name"]: item["data"] for item in workspace["observations"]}
    observed = np.array([x for name in channels for x in observations[name]], dtype=np.float64)
    term = BinnedTerm(ExpectedCounts(tables), observed)
    auxiliary = _auxiliary(sets, labels).without(measured_elsewhere)
    constraints: list[Constraint] = [term]
    if auxiliary.names:
        constraints.append(auxiliary)
    parameters = _parameters(sets, labels, interest)
    affine = frozenset(labels[label] for s in sets.values() if s.kind == "free" or not s.scalar for label in s.labels)
    nll = NLL(parameters, [], constraints, poi=labels[interest] if interest else poi or declared or "mu", convex=affine)
    return LoadedWorkspace(
        nll=_with_wall(nll, term) if interest else nll,
        term=term,
        auxiliary=auxiliary if auxiliary.names else None,
        channels=channels,
        samples=samples,
        labels=labels,
        workspace=workspace,
    )


def parameter_labels(sets: Mapping[str, ParameterSet], rename: Mapping[str, str] | None = None) -> dict[str, str]:
    """Names of parameters that are identifiers, by pyhf's names.

    Parameters
    ----------
    sets : mapping of str to ParameterSet
        All parameters of a workspace.
    rename : mapping of str to str, optional
        Names to give to some of them.

    Raises
    ------
    ModelError
        If a parameter to rename does not exist, or two would have one name.
    """
    rename = rename or {}
    known = [label for s in sets.values() for label in s.labels]
    for name in rename:
        if name not in known:
            raise ModelError(f"there is no parameter {name!r} to rename; {nearest(name, known)}")
    labels: dict[str, str] = {}
    for label in known:
        made = rename.get(label) or re.sub(r"\W", "_", label.replace("[", "_").replace("]", ""))
        made = made if made.isidentifier() else f"p_{made}"
        while made in labels.values():
            if label in rename:
                raise ModelError(f"two parameters would be called {made!r}; choose another name for {label!r}")
            made += "_"
        labels[label] = made
    return labels


def _parameters(sets: Mapping[str, ParameterSet], labels: Mapping[str, str], poi: str) -> list[Parameter]:
    parameters = []
    for item in sets.values():
        for label, start, (low, high), fixed in zip(item.labels, item.inits, item.bounds, item.fixed, strict=True):
            if label == poi:
                parameters.append(Parameter(labels[label], start))
            else:
                parameters.append(Parameter(labels[label], min(max(start, low), high), low, high, fixed))
    return sorted(parameters, key=lambda parameter: parameter.name != labels.get(poi))


def _auxiliary(sets: Mapping[str, ParameterSet], labels: Mapping[str, str]) -> AuxiliaryMeasurements:
    normal: list[tuple[str, float, float]] = []
    poisson: list[tuple[str, float, float]] = []
    for item in sets.values():
        for k, label in enumerate(item.labels):
            if item.kind == "normal" and item.constrained[k]:
                normal.append((labels[label], item.auxdata[k], item.sigmas[k]))
            elif item.kind == "poisson" and item.constrained[k]:
                poisson.append((labels[label], item.auxdata[k], item.factors[k]))
    return AuxiliaryMeasurements(
        tuple(name for name, _, _ in normal),
        np.array([value for _, value, _ in normal]),
        np.array([sigma for _, _, sigma in normal]),
        tuple(name for name, _, _ in poisson),
        np.array([count for _, count, _ in poisson]),
        np.array([scale for _, _, scale in poisson]),
    )


class _Builder:
    """Arrays of all channels, filled sample by sample."""

    def __init__(self, sets: Mapping[str, ParameterSet], names: list[str], labels: Mapping[str, str]) -> None:
        self.sets = sets
        self.index = {label: names.index(name) for label, name in labels.items()}
        self.cell_bin: list[int] = []
        self.cell_group: list[int] = []
        self.nominal: list[float] = []
        self.shapes: dict[int, list[tuple[int, float, float]]] = {}
        self.scales: list[tuple[int, int, float, float]] = []
        self.linear: list[tuple[int, int]] = []
        self.offsets: dict[str, int] = {}
        """Position of a staterror's first parameter in the channel at hand: channels with the same name follow each other."""

    def add(self, sample: Json, group: int, first_bin: int) -> None:
        begin = len(self.nominal)
        self.nominal += sample["data"]
        self.cell_bin += range(first_bin, first_bin + len(sample["data"]))
        self.cell_group += [group] * len(sample["data"])
        for modifier in sample["modifiers"]:
            name, kind, data = modifier["name"], modifier["type"], modifier["data"]
            item = self.sets[name]
            if kind == "histosys":
                rows = self.shapes.setdefault(self.index[name], [])
                triples = zip(sample["data"], data["hi_data"], data["lo_data"], strict=True)
                rows += [(begin + k, high - mid, low - mid) for k, (mid, high, low) in enumerate(triples)]
            elif kind == "normsys":
                self.scales.append((self.index[name], group, data["hi"], data["lo"]))
            elif item.scalar:
                self.linear += [(self.index[name], begin + k) for k in range(len(sample["data"]))]
            else:
                skip = self.offsets.get(name, 0) if kind == "staterror" else 0
                self.linear += [(self.index[item.labels[skip + k]], begin + k) for k in range(len(sample["data"]))]


def _tables(
    workspace: Json, sets: Mapping[str, ParameterSet], labels: Mapping[str, str]
) -> tuple[CountTables, dict[str, slice], dict[tuple[str, str], IntArray]]:
    names = list(labels.values())
    builder = _Builder(sets, names, labels)
    channels: dict[str, slice] = {}
    bins: list[str] = []
    groups: list[tuple[str, str]] = []
    for channel in sorted(workspace["channels"], key=lambda item: str(item["name"])):
        size, begin = len(channel["samples"][0]["data"]), len(bins)
        bins += [f"channel {channel['name']!r}, bin {k}" for k in range(size)]
        channels[channel["name"]] = slice(begin, begin + size)
        used = {m["name"] for s in channel["samples"] for m in s["modifiers"] if m["type"] == "staterror"}
        for sample in channel["samples"]:
            builder.add(sample, len(groups), begin)
            groups.append((channel["name"], sample["name"]))
        for name in used:
            builder.offsets[name] = builder.offsets.get(name, 0) + size
    order = np.argsort(builder.cell_bin, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(order.size)
    shapes = list(builder.shapes.items())
    high, low = np.zeros((len(shapes), order.size)), np.zeros((len(shapes), order.size))
    for k, (_, rows) in enumerate(shapes):
        where = place[[cell for cell, _, _ in rows]]
        high[k, where] = [up for _, up, _ in rows]
        low[k, where] = [down for _, _, down in rows]
    scales = np.array(builder.scales, dtype=np.float64).reshape(-1, 4)
    linear = np.array(builder.linear, dtype=np.int64).reshape(-1, 2)
    group_of = np.array(builder.cell_group, dtype=np.int64)[order]
    tables = CountTables(
        names=tuple(names),
        bins=tuple(bins),
        cell_bin=np.array(builder.cell_bin, dtype=np.int64)[order],
        cell_group=group_of,
        nominal=np.array(builder.nominal, dtype=np.float64)[order],
        shape_parameters=np.array([index for index, _ in shapes], dtype=np.int64),
        shape_high=high,
        shape_low=low,
        scale_parameters=scales[:, 0].astype(np.int64),
        scale_groups=scales[:, 1].astype(np.int64),
        scale_high=scales[:, 2].copy(),
        scale_low=scales[:, 3].copy(),
        linear_parameters=linear[:, 0].copy(),
        linear_cells=place[linear[:, 1]],
    )
    return tables, channels, {key: np.flatnonzero(group_of == k) for k, key in enumerate(groups)}


def _with_wall(nll: NLL, term: BinnedTerm) -> NLL:
    """Let the parameter of interest go no lower than where some bin expects nothing, at the background that fits best."""
    theta = fit(nll, fixed={nll.poi: 0.0}).values
    index = nll.names.index(nll.poi)
    null, one = theta.copy(), theta.copy()
    null[index], one[index] = 0.0, 1.0
    places = np.array([nll.names.index(name) for name in term.names])
    background = term.yields(null[places])
    signal = term.yields(one[places]) - background
    rising = signal > 0
    low = -SHARE * float((background[rising] / signal[rising]).min()) if rising.any() else -math.inf
    parameters = [replace(p, low=min(low, p.start)) if p.name == nll.poi else p for p in nll.parameters]
    return NLL(parameters, nll.mixtures, nll.constraints, poi=nll.poi, convex=nll.convex)
