"""Upper limits: CLs against the parameter, limit against the window, and limits side by side.

The expected bands are green (68 %) and yellow (95 %) in shades that stay apart for colour-blind readers and in grey.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from gbistat.errors import OptionError
from gbistat.plotting.figure import figure_file
from gbistat.plotting.labels import format_numbers, limit_text, mass_label, parameter_label, percent, upright
from gbistat.plotting.layout import place_legend, scaled_label
from gbistat.plotting.style import ALPHA, GUIDE, INTERVALS, ONE_SIGMA, TWO_SIGMA, Artists

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from matplotlib.axes import Axes

    from gbistat.data.window import MassWindow
    from gbistat.inference.results import CLsScan, LimitResult
    from gbistat.inference.toy_limit_results import ToyLimit
    from gbistat.typing import FloatArray

__all__ = ["draw_cls_scan", "draw_comparison", "draw_limits", "save_cls_scan", "save_comparison", "save_limits"]

TOYS = INTERVALS[0]
LOG_FROM = 20.0
"""Ratio of the largest to the smallest limit from which an axis of limits is logarithmic."""
BEYOND = 1.6
"""How far a CLs scan is shown, relative to the largest limit in it."""
WIDE = 15
"""Number of windows up to which a dashed line fits into each."""
NAME_WIDTH = 30
"""Characters a line in the name of a method."""
BAND_TEXTS = ("observed", "median expected", "expected, 68 %", "expected, 95 %")


def draw_cls_scan(
    scan: CLsScan, limit: LimitResult, ax: Axes, *, label: str | None = None, toys: ToyLimit | None = None
) -> Artists:
    """Draw observed and expected CLs against the parameter, and the limits where they cross alpha.

    Parameters
    ----------
    scan : CLsScan
        The curves.
    limit : LimitResult
        Where they cross ``alpha = 1 - cl``.
    ax : Axes
        Where to draw.
    label : str, optional
        What the parameter is, for the axis; by default from its name.
    toys : ToyLimit, optional
        The same by toys: observed CLs at the tested values above the estimate as points with Monte Carlo errors.

    Returns
    -------
    dict
        ``toys`` (error bars, if given), ``observed``, ``median`` (lines), ``one_sigma``, ``two_sigma`` (filled bands), ``alpha`` (line), ``alpha_label``,
        ``limit``, ``expected_limit`` (markers), ``drops`` (lines from these to the axis), ``legend``.

    Raises
    ------
    OptionError
        If the limit is not of the scan's parameter.
    """
    if limit.poi != scan.poi:
        raise OptionError(f"a limit on {limit.poi} does not belong on a scan of {scan.poi}")
    alpha, median = 1.0 - limit.cl, limit.expected[2]
    x, expected = scan.values, scan.expected
    artists: Artists = {
        "two_sigma": ax.fill_between(x, expected[:, 0], expected[:, 4], color=TWO_SIGMA, linewidth=0, zorder=1),
        "one_sigma": ax.fill_between(x, expected[:, 1], expected[:, 3], color=ONE_SIGMA, linewidth=0, zorder=2),
        "median": ax.plot(x, expected[:, 2], color="black", linestyle="--", zorder=3)[0],
        "observed": ax.plot(x, scan.observed, color="black", zorder=4)[0],
        "alpha": ax.axhline(alpha, color=ALPHA, linewidth=1.2, zorder=3),
    }
    artists["alpha_label"] = ax.text(
        1.01, alpha, f"{alpha:.3g}", color=ALPHA, transform=ax.get_yaxis_transform(), va="center", fontsize="small"
    )
    artists["drops"] = ax.vlines(
        [limit.observed, median], 0.0, alpha, color="black", linestyle=["-", "--"], linewidth=1.0, zorder=5
    )
    marker: dict[str, Any] = {"linestyle": "none", "marker": "o", "color": "black", "zorder": 6, "clip_on": False}
    artists["limit"] = ax.plot([limit.observed], [alpha], **marker)[0]
    artists["expected_limit"] = ax.plot([median], [alpha], markerfacecolor="white", **marker)[0]
    if toys is not None:
        # Where the data exceed the tested value q is 0: P(q >= 0) is 1 for toys, 1/2 by convention in the formulas.
        points = [point for point in toys.points if point.q_observed > 0]
        artists["toys"] = ax.errorbar(
            [point.value for point in points],
            [point.observed for point in points],
            yerr=[point.error for point in points],
            color=TOYS,
            marker="s",
            markersize=4.0,
            linestyle="none",
            zorder=5,
        )
    ax.set_xlim(*_shown(x, limit))
    ax.set_ylim(0.0, 1.02)
    scaled_label(ax, "x", parameter_label(scan.poi, label))
    ax.set_ylabel(r"CL$_\mathrm{s}$")
    observed_text, expected_text = limit_text(limit)
    texts = [*BAND_TEXTS, f"{percent(limit.cl)} CL limit {observed_text}", f"expected {expected_text}"]
    handles = [artists[name] for name in ("observed", "median", "one_sigma", "two_sigma", "limit", "expected_limit")]
    if toys is not None:
        handles.append(artists["toys"])
        texts.append(f"by toys {upright(format_numbers([toys.observed])[0])}")
    grid = np.linspace(*ax.get_xlim(), 200)
    upper = np.interp(grid, x, np.fmax(scan.observed, expected[:, 4]))
    artists["legend"] = place_legend(ax, handles, texts, grid, upper, sides=("right",))
    return artists


def save_cls_scan(
    scan: CLsScan,
    limit: LimitResult,
    path: str | PathLike[str],
    *,
    label: str | None = None,
    toys: ToyLimit | None = None,
) -> Path:
    """Write a CLs scan with its limit; see `draw_cls_scan`.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    with figure_file(path) as (ax,):
        draw_cls_scan(scan, limit, ax, label=label, toys=toys)
    return Path(path)


def draw_limits(
    windows: Sequence[MassWindow],
    limits: Sequence[LimitResult],
    ax: Axes,
    poi_label: str,
    *,
    mass_name: str = "mass",
) -> Artists:
    """Draw the limit of each mass window.

    Parameters
    ----------
    windows : sequence of MassWindow
        In any order; one unit.
    limits : sequence of LimitResult
        One a window; one confidence level.
    ax : Axes
        Where to draw.
    poi_label : str
        What is limited, for the axis; see `gbistat.plotting.labels.parameter_label`.
    mass_name : str, default "mass"
        For the axis.

    Returns
    -------
    dict
        ``observed`` (errorbar: a point a window, as wide as the window), ``median`` (lines), ``one_sigma``, ``two_sigma``
        (bars), ``legend``; all in order of mass.

    Raises
    ------
    OptionError
        If there is not one limit a window, or units or confidence levels differ.

    Notes
    -----
    The bands are as wide as the windows. Where windows overlap, the bands are narrowed around the centres so that none
    hides another, and the bars of the observed points show the windows. Windows with a common centre stand side by side
    under their names instead, without a mass axis.
    """
    _check(windows, limits)
    order = sorted(range(len(windows)), key=lambda k: (windows[k].centre, windows[k].width))
    windows, limits = [windows[k] for k in order], [limits[k] for k in order]
    at = _places(windows)
    expected, observed = _table(limits)
    artists: Artists = {}
    for name, low, high, color in (("two_sigma", 0, 4, TWO_SIGMA), ("one_sigma", 1, 3, ONE_SIGMA)):
        height = expected[:, high] - expected[:, low]
        artists[name] = ax.bar(at.centre, height, 2 * at.band, expected[:, low], color=color, linewidth=0, zorder=1)
    dashes = "--" if len(windows) <= WIDE else "-"
    artists["median"] = ax.hlines(
        expected[:, 2],
        at.centre - at.band,
        at.centre + at.band,
        color="black",
        linestyle=dashes,
        linewidth=1.2,
        zorder=2,
    )
    bars: dict[str, Any] = {"ecolor": "black", "elinewidth": 1.4}
    if bool(np.any(at.band < at.half)):
        bars = {"ecolor": GUIDE, "elinewidth": 0.7}
    size = 5.0 if len(windows) <= WIDE else 3.4
    artists["observed"] = ax.errorbar(
        at.centre,
        observed,
        xerr=at.half,
        color="black",
        marker="o",
        markersize=size,
        linestyle="none",
        zorder=3,
        **bars,
    )
    left, right = at.centre - np.maximum(at.half, at.band), at.centre + np.maximum(at.half, at.band)
    pad = 0.03 * float(right.max() - left.min())
    ax.set_xlim(left.min() - pad, right.max() + pad)
    _set_limit_range(ax, "y", np.r_[expected.ravel(), observed])
    if at.names is None:
        scaled_label(ax, "x", mass_label(mass_name, windows[0].unit))
    else:
        _name_windows(ax, at, windows[0].unit, mass_name)
    scaled_label(ax, "y", f"{percent(limits[0].cl)} CL limit on {poi_label}")
    upper = np.fmax(observed, expected[:, 4])
    outline = np.r_[left, at.centre, right], np.r_[upper, upper, upper]
    artists["legend"] = place_legend(ax, *_band_entries(artists), *outline, sides=("right", "left", "center"), ncols=2)
    return artists


def save_limits(
    windows: Sequence[MassWindow],
    limits: Sequence[LimitResult],
    path: str | PathLike[str],
    *,
    poi_label: str | None = None,
    mass_name: str = "mass",
) -> Path:
    """Write limits against mass windows; see `draw_limits`.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    OptionError
        If windows and limits do not fit together.
    OutputError
        If it cannot be written.
    """
    with figure_file(path) as (ax,):
        text = parameter_label(limits[0].poi, poi_label) if limits else ""
        draw_limits(windows, limits, ax, text, mass_name=mass_name)
    return Path(path)


def draw_comparison(rows: Sequence[tuple[str, LimitResult]], ax: Axes, *, label: str | None = None) -> Artists:
    """Draw limits of several methods on one axis, the first on top, with their numbers beside them.

    Parameters
    ----------
    rows : sequence of (name, LimitResult)
        What is compared; one parameter, one confidence level.
    ax : Axes
        Where to draw; the numbers stand to its right.
    label : str, optional
        What is limited, for the axis; by default from the parameter's name.

    Returns
    -------
    dict
        ``observed``, ``median`` (line collections, one line a row), ``one_sigma``, ``two_sigma`` (bars), ``points``
        (line of markers), ``numbers`` (texts), ``legend``.

    Raises
    ------
    OptionError
        If there is no row, or confidence levels or parameters differ.
    """
    limits = [limit for _, limit in rows]
    _check_limits(limits)
    expected, observed = _table(limits)
    y = -np.arange(len(rows), dtype=np.float64)
    artists: Artists = {}
    for name, low, high, color in (("two_sigma", 0, 4, TWO_SIGMA), ("one_sigma", 1, 3, ONE_SIGMA)):
        width = expected[:, high] - expected[:, low]
        artists[name] = ax.barh(y, width, 0.56, expected[:, low], color=color, linewidth=0, zorder=1)
    artists["median"] = ax.vlines(expected[:, 2], y - 0.28, y + 0.28, color="black", linestyle="--", zorder=2)
    artists["observed"] = ax.vlines(observed, y - 0.28, y + 0.28, color="black", zorder=3)
    (artists["points"],) = ax.plot(observed, y, marker="o", color="black", linestyle="none", zorder=4)
    _set_limit_range(ax, "x", np.r_[expected.ravel(), observed])
    ax.set_ylim(y[-1] - 0.6, 0.6)
    ax.set_yticks(y, [fill(name, NAME_WIDTH) for name, _ in rows])
    ax.tick_params(axis="y", which="both", length=0)
    scaled_label(ax, "x", f"{percent(limits[0].cl)} CL limit on {parameter_label(limits[0].poi, label)}")
    artists["numbers"] = [_numbers(ax, 0.5, "observed (expected)", va="bottom")]
    artists["numbers"] += [
        _numbers(ax, position, "{} ({})".format(*limit_text(limit)), va="center")
        for position, limit in zip(y, limits, strict=True)
    ]
    handles, texts = _band_entries(artists | {"observed": (artists["observed"], artists["points"])})
    artists["legend"] = ax.legend(handles, texts, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return artists


def save_comparison(
    rows: Sequence[tuple[str, LimitResult]], path: str | PathLike[str], *, label: str | None = None
) -> Path:
    """Write limits side by side; see `draw_comparison`.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    OptionError
        If the limits do not fit together.
    OutputError
        If it cannot be written.
    """
    with figure_file(path, size=(9.0, 1.9 + 0.55 * len(rows))) as (ax,):
        draw_comparison(rows, ax, label=label)
    return Path(path)


class _Places(NamedTuple):
    """Where windows are drawn: centres, half widths of the windows and of the bands, names if there is no mass axis."""

    centre: FloatArray
    half: FloatArray
    band: FloatArray
    names: list[str] | None


def _places(windows: Sequence[MassWindow]) -> _Places:
    low, high = (np.array(ends) for ends in zip(*(window.edges for window in windows), strict=True))
    centre, half = 0.5 * (low + high), 0.5 * (high - low)
    spacing = np.diff(centre)
    if spacing.size and spacing.min() < 0.005 * (high.max() - low.min()):
        place, width = np.arange(len(windows), dtype=np.float64), np.full(len(windows), 0.4)
        return _Places(place, width, width, [f"{window.low:g}–{window.high:g}" for window in windows])
    overlap = bool(np.any(low[1:] < high[:-1]))
    share = 0.45 if len(windows) <= WIDE else 0.5
    return _Places(centre, half, np.minimum(half, share * spacing.min()) if overlap else half, None)


def _name_windows(ax: Axes, at: _Places, unit: str, mass_name: str) -> None:
    many = at.centre.size > 4
    ax.set_xticks(
        at.centre, at.names, rotation=40 if many else 0, ha="right" if many else "center", rotation_mode="anchor"
    )
    ax.tick_params(axis="x", which="minor", length=0)
    ax.set_xlabel(f"window in {mass_label(mass_name, unit)}")


def _set_limit_range(ax: Axes, axis: Literal["x", "y"], values: FloatArray) -> None:
    """Linear from zero, or logarithmic where the limits span more than `LOG_FROM`."""
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    log = low > 0 and high > LOG_FROM * low
    scale, limits = ("log", (low / 1.6, high * 1.6)) if log else ("linear", (min(0.0, 1.1 * low), 1.1 * high or 1.0))
    ax.set(**{f"{axis}scale": scale, f"{axis}lim": limits})


def _shown(values: FloatArray, limit: LimitResult) -> tuple[float, float]:
    """Range of a CLs scan: all of it, less what lies far beyond every limit, and at least the limits."""
    finite = [value for value in (limit.observed, *limit.expected) if np.isfinite(value)]
    marked = [value for value in (limit.observed, limit.expected[2]) if np.isfinite(value)]
    low, high = float(values.min()), float(values.max())
    if finite:
        high = min(high, BEYOND * max(finite))
    return min([low, *marked]), max([high, *marked])


def _band_entries(artists: Artists) -> tuple[list[Any], list[str]]:
    return [artists[name] for name in ("observed", "median", "one_sigma", "two_sigma")], list(BAND_TEXTS)


def _numbers(ax: Axes, y: float, text: str, *, va: str) -> Any:
    return ax.text(1.02, y, text, transform=ax.get_yaxis_transform(), va=va, ha="left", fontsize="small")


def _table(limits: Sequence[LimitResult]) -> tuple[FloatArray, FloatArray]:
    """Expected limits, shape (n, 5), and observed ones, shape (n,)."""
    return np.array([limit.expected for limit in limits]), np.array([limit.observed for limit in limits])


def _check(windows: Sequence[MassWindow], limits: Sequence[LimitResult]) -> None:
    if len(windows) != len(limits):
        raise OptionError(f"{len(windows)} windows and {len(limits)} limits; give one limit a window")
    _check_limits(limits)
    units = sorted({window.unit for window in windows})
    if len(units) > 1:
        raise OptionError(f"windows in {' and '.join(units)} do not fit on one axis; convert them to one unit")


def _check_limits(limits: Sequence[LimitResult]) -> None:
    if not limits:
        raise OptionError("there is no limit to draw; give at least one")
    levels = sorted({limit.cl for limit in limits})
    if len(levels) > 1:
        raise OptionError(f"limits at {' and '.join(map(percent, levels))} do not compare; use one confidence level")
    names = sorted({limit.poi for limit in limits})
    if len(names) > 1:
        raise OptionError(f"limits on {' and '.join(names)} do not compare; use one parameter")
