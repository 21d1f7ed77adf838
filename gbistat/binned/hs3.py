"""HS3, the HEP Statistics Serialization Standard: workspaces of binned models to it and back.

HS3 says what a likelihood is: distributions, data, domains, parameter points, analyses. Of a HistFactory workspace it takes everything, with
these differences: ``lumi`` becomes a ``normfactor`` with a Gaussian among the likelihood's ``aux_distributions``; one channel has one set of
statistical errors, held as errors of its samples' contents; auxiliary values other than the nominal ones are not said. What cannot be said is
refused, with the reason. Networks have no form in HS3: models with them stay in ``model.json``, whose JSON Schema comes with gbistat
(:mod:`gbistat.terms.schemas`), and their binned twins go to HS3.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from gbistat import __version__
from gbistat.binned.backend import validate_workspace
from gbistat.binned.checks import check_workspace, choose_measurement
from gbistat.binned.load import parameter_labels
from gbistat.binned.parameter_sets import parameter_sets
from gbistat.errors import ModelError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gbistat.binned.binning import Binning
    from gbistat.binned.parameter_sets import ParameterSet
    from gbistat.typing import Json

__all__ = ["HS3_VERSION", "from_hs3", "to_hs3"]

HS3_VERSION = "0.2.0"
PER_BIN = ("shapefactor", "shapesys", "staterror")
LIKELIHOOD, DOMAIN, POINT = "main_likelihood", "default_domain", "default_values"


def to_hs3(workspace: Json, *, measurement: str | None = None, binnings: Mapping[str, Binning] | None = None) -> Json:
    """HistFactory workspace as an HS3 document.

    Parameters
    ----------
    workspace : dict
        HistFactory JSON, schema 1.0.0.
    measurement : str, optional
        Which measurement; the first by default.
    binnings : mapping of str to Binning, optional
        Bins of channels, for their axes; numbers of bins where nothing is said.

    Returns
    -------
    dict
        The document, with one analysis named after the measurement.

    Raises
    ------
    ModelError
        If the workspace cannot be used, or HS3 has no form for a part of it.
    """
    check_workspace(workspace)
    chosen = choose_measurement(workspace, measurement)
    sets = parameter_sets(workspace, chosen)
    _check_auxiliary(sets)
    labels = parameter_labels(sets)
    observations = {item["name"]: item["data"] for item in workspace["observations"]}
    distributions: list[Json] = []
    data: list[Json] = []
    for channel in workspace["channels"]:
        axes = [_axis(channel, (binnings or {}).get(channel["name"]))]
        samples = [_sample(channel["name"], sample, sets, labels) for sample in channel["samples"]]
        distributions.append({"name": channel["name"], "type": "histfactory_dist", "axes": axes, "samples": samples})
        data.append(
            {
                "name": f"observed_{channel['name']}",
                "type": "binned",
                "axes": axes,
                "contents": observations[channel["name"]],
            }
        )
    channels = [item["name"] for item in distributions]
    points = _points(sets, labels)
    auxiliary = []
    for item in sets.values():
        if item.name == "lumi" and item.kind == "normal":
            name = "lumi_constraint"
            auxiliary.append(name)
            distributions.append(
                {"name": name, "type": "gaussian_dist", "x": "lumi_nominal", "mean": "lumi", "sigma": item.sigmas[0]}
            )
            points.append({"name": "lumi_nominal", "value": item.auxdata[0], "const": True})
    poi = chosen["config"]["poi"]
    likelihood: Json = {"name": LIKELIHOOD, "distributions": channels, "data": [item["name"] for item in data]}
    if auxiliary:
        likelihood["aux_distributions"] = auxiliary
    return {
        "metadata": {"hs3_version": HS3_VERSION, "packages": [{"name": "gbistat", "version": __version__}]},
        "distributions": distributions,
        "data": data,
        "likelihoods": [likelihood],
        "domains": [{"name": DOMAIN, "type": "product_domain", "axes": _domain(sets, labels)}],
        "parameter_points": [{"name": POINT, "parameters": points}],
        "analyses": [
            {
                "name": chosen["name"],
                "likelihood": LIKELIHOOD,
                "domains": [DOMAIN],
                "parameters_of_interest": [labels[poi]] if poi else [],
                "init": POINT,
            }
        ],
    }


def _check_auxiliary(sets: Mapping[str, ParameterSet]) -> None:
    """HS3 has auxiliary values at their nominal ones only."""
    for item in sets.values():
        nominal = {"normal": (0.0,) if item.scalar else (1.0,) * item.size, "poisson": item.factors, "free": ()}
        if item.name != "lumi" and item.auxdata != nominal[item.kind]:
            raise ModelError(
                f"{item.name!r} has auxiliary values {list(item.auxdata)[:4]} that are not the nominal ones, which HS3 cannot say"
            )
        if item.kind == "poisson" and not all(item.constrained):
            raise ModelError(
                f"shapesys {item.name!r} has a bin without events or without error, which HS3 cannot say; drop it there"
            )


def _axis(channel: Json, binning: Binning | None) -> Json:
    size = len(channel["samples"][0]["data"])
    name = f"bin_of_{channel['name']}" if binning is None else f"{binning.observable}_{channel['name']}"
    edges = None if binning is None else binning.edges.tolist()
    if edges is None or len(edges) != size + 1:
        return {"name": name, "min": 0.0, "max": float(size), "nbins": size}
    return {"name": name, "edges": edges}


def _sample(channel: str, sample: Json, sets: Mapping[str, ParameterSet], labels: Mapping[str, str]) -> Json:
    data: Json = {"contents": sample["data"]}
    modifiers: list[Json] = []
    for modifier in sample["modifiers"]:
        name, kind, content = modifier["name"], modifier["type"], modifier["data"]
        made: Json = {"name": name, "type": "normfactor" if kind == "lumi" else kind}
        if kind in PER_BIN:
            item = sets[name]
            if item.size != len(sample["data"]) and kind == "staterror":
                raise ModelError(
                    f"channel {channel!r}: staterror {name!r} is shared with another channel, which HS3 cannot say"
                )
            made["parameters"] = [labels[label] for label in item.labels[: len(sample["data"])]]
        else:
            made["parameter"] = labels[name]
        if kind == "histosys":
            made["data"] = {"hi": {"contents": content["hi_data"]}, "lo": {"contents": content["lo_data"]}}
        elif kind == "normsys":
            made["data"] = dict(content)
        elif kind == "shapesys":
            made["data"] = {"vals": content}
        elif kind == "staterror":
            data["errors"] = content
        if kind in ("histosys", "normsys", "staterror"):
            made["constraint"] = "Gauss"
        elif kind == "shapesys":
            made["constraint"] = "Poisson"
        modifiers.append(made)
    return {"name": sample["name"], "data": data, "modifiers": modifiers}


def _points(sets: Mapping[str, ParameterSet], labels: Mapping[str, str]) -> list[Json]:
    return [
        {"name": labels[label], "value": start, "const": fixed}
        for item in sets.values()
        for label, start, fixed in zip(item.labels, item.inits, item.fixed, strict=True)
    ]


def _domain(sets: Mapping[str, ParameterSet], labels: Mapping[str, str]) -> list[Json]:
    return [
        {"name": labels[label], "min": low, "max": high}
        for item in sets.values()
        for label, (low, high) in zip(item.labels, item.bounds, strict=True)
    ]


def from_hs3(document: Mapping[str, Any], *, analysis: str | None = None) -> Json:
    """HistFactory workspace of an HS3 document whose distributions are ``histfactory_dist``.

    Parameters
    ----------
    document : dict
        HS3 JSON.
    analysis : str, optional
        Which analysis; the first by default.

    Returns
    -------
    dict
        Valid for schema 1.0.0, with one measurement. A parameter of bins gets the common part of its parameters' names.

    Raises
    ------
    ModelError
        If a part is missing, or is of a kind that HistFactory does not have.
    """
    chosen = _chosen(document, "analyses", analysis)
    likelihood = _chosen(document, "likelihoods", chosen.get("likelihood"))
    known = {item["name"]: item for item in document.get("distributions", [])}
    values = {item["name"]: item for item in document.get("data", [])}
    constraints = [_found(name, known, "distribution") for name in likelihood.get("aux_distributions", [])]
    lumi = _lumi(constraints, document)
    channels, observations = [], []
    config: dict[str, Json] = {}
    for name, observed in zip(likelihood["distributions"], likelihood["data"], strict=True):
        distribution = _found(name, known, "distribution")
        if distribution.get("type") != "histfactory_dist":
            raise ModelError(
                f"distribution {name!r} is a {distribution.get('type')}; only histfactory_dist can be read in bins"
            )
        data = _found(observed, values, "data")
        if data.get("type") != "binned":
            raise ModelError(f"data {observed!r} are {data.get('type')}, and {name!r} needs binned ones")
        samples = [_histfactory_sample(name, sample, lumi) for sample in distribution["samples"]]
        channels.append({"name": name, "samples": samples})
        observations.append({"name": name, "data": data["contents"]})
    if lumi is not None:
        config["lumi"] = {"name": "lumi", "auxdata": [lumi[0]], "sigmas": [lumi[1]]}
    _configure(config, channels, document, chosen)
    pois = chosen.get("parameters_of_interest") or [""]
    workspace: Json = {
        "channels": channels,
        "observations": observations,
        "measurements": [{"name": chosen["name"], "config": {"poi": pois[0], "parameters": list(config.values())}}],
        "version": "1.0.0",
    }
    check_workspace(workspace)
    validate_workspace(workspace)
    return workspace


def _chosen(document: Mapping[str, Any], part: str, name: str | None) -> Json:
    items = document.get(part)
    if not isinstance(items, list) or not items:
        raise ModelError(f"the HS3 document has no {part}; {nearest(part, document)}")
    known = {str(item["name"]): item for item in items}
    return dict(items[0]) if name is None else _found(name, known, part)


def _found(name: str, known: Mapping[str, Any], what: str) -> Json:
    if name not in known:
        raise ModelError(f"the HS3 document has no {what} {name!r}; {nearest(name, known)}")
    return dict(known[name])


def _lumi(constraints: list[Json], document: Mapping[str, Any]) -> tuple[float, float] | None:
    """Measured value and error of the luminosity."""
    points: dict[str, Any] = {
        p["name"]: p["value"] for s in document.get("parameter_points", []) for p in s["parameters"]
    }
    found = None
    for item in constraints:
        if item.get("type") != "gaussian_dist" or item.get("mean") != "lumi":
            raise ModelError(
                f"auxiliary distribution {item['name']!r}: HistFactory has one for 'lumi' alone, a Gaussian"
            )
        x, sigma = (points.get(item[key], item[key]) for key in ("x", "sigma"))  # numbers, or names of points
        if not (isinstance(x, (int, float)) and isinstance(sigma, (int, float))):
            raise ModelError(
                f"auxiliary distribution {item['name']!r}: no parameter point gives a number for {x!r} or {sigma!r}"
            )
        found = (float(x), float(sigma))
    return found


def _histfactory_sample(channel: str, sample: Json, lumi: tuple[float, float] | None) -> Json:
    contents = sample["data"]["contents"]
    modifiers = []
    for modifier in sample.get("modifiers", []):
        kind = modifier["type"]
        where = f"channel {channel!r}, sample {sample['name']!r}"
        if modifier.get("constraint") not in (None, "Poisson" if kind == "shapesys" else "Gauss"):
            raise ModelError(f"{where}: a {kind} with a {modifier['constraint']} constraint has no form in HistFactory")
        name = modifier.get("parameter") or _common(modifier.get("parameters", []), modifier["name"])
        data: Any = None
        if kind == "histosys":
            content = modifier["data"]
            _check_code(where, content, "code4p")
            data = {"hi_data": content["hi"]["contents"], "lo_data": content["lo"]["contents"]}
        elif kind == "normsys":
            _check_code(where, modifier["data"], "code4")
            data = {key: modifier["data"][key] for key in ("hi", "lo")}
        elif kind == "shapesys":
            data = modifier["data"]["vals"]
        elif kind == "staterror":
            data = sample["data"].get("errors", [0.0] * len(contents))
        elif kind == "normfactor" and name == "lumi" and lumi is not None:
            kind = "lumi"
        modifiers.append({"name": name, "type": kind, "data": data})
    return {"name": sample["name"], "data": contents, "modifiers": modifiers}


def _check_code(where: str, content: Json, code: str) -> None:
    if content.get("interpolation", code) != code:
        raise ModelError(
            f"{where}: interpolation {content['interpolation']!r} is not {code!r}, the one that is used here"
        )


def _common(parameters: list[str], fallback: str) -> str:
    """Common name of the parameters of bins: ``x`` of ``x_0``, ``x_1``."""
    stems = {name.rpartition("_")[0] for name in parameters}
    return stems.pop() if len(stems) == 1 and "" not in stems else fallback


def _configure(config: dict[str, Json], channels: list[Json], document: Mapping[str, Any], analysis: Json) -> None:
    """Start values and ranges of parameters that are one for all bins."""
    names = {m["name"] for c in channels for s in c["samples"] for m in s["modifiers"] if m["type"] not in PER_BIN}
    for part in document.get("domains", []):
        if part["name"] in analysis.get("domains", []):
            for axis in part["axes"]:
                low, high = axis.get("min", -math.inf), axis.get("max", math.inf)
                if axis["name"] in names and math.isfinite(low) and math.isfinite(high):
                    config.setdefault(axis["name"], {"name": axis["name"]})["bounds"] = [[low, high]]
    for part in document.get("parameter_points", []):
        if part["name"] == analysis.get("init"):
            for point in part["parameters"]:
                if point["name"] in names:
                    entry = config.setdefault(point["name"], {"name": point["name"]})
                    entry["inits"] = [point["value"]]
                    if point.get("const"):
                        entry["fixed"] = True
