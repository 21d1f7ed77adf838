"""Plane of two masses: where a signal is better than background alone, and what the fit says of both masses together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D

from gbistat.errors import OptionError
from gbistat.inference.profile import threshold
from gbistat.plotting.figure import figure_file
from gbistat.plotting.labels import parameter_label, percent
from gbistat.plotting.style import SIGNAL, Artists

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from matplotlib.axes import Axes

    from gbistat.fit.plane import PlaneSearch
    from gbistat.inference.plane_limits import PlaneLimits

__all__ = ["draw_plane", "draw_plane_limits", "save_plane", "save_plane_limits"]

LEVELS = (0.6827, 0.95)
STYLES = ("-", "--")
ROOM = 160
"""Cells up to which their numbers can be read."""


def draw_plane(
    search: PlaneSearch,
    ax: Axes,
    *,
    close: PlaneSearch | None = None,
    best: Sequence[float] | None = None,
    unit: str = "GeV",
    levels: Sequence[float] = LEVELS,
    exchangeable: bool = False,
) -> Artists:
    """Draw the local significance over the masses, and contours of the likelihood around its maximum.

    Parameters
    ----------
    search : PlaneSearch
        Over two masses.
    ax : Axes
        Where to draw.
    close : PlaneSearch, optional
        Finer map around the maximum, for the contours; by default `search`.
    best : (float, float), optional
        Masses that fit best.
    unit : str, default "GeV"
        Of the masses.
    levels : sequence of float
        Joint confidence levels of the contours, where ``2 Delta ln L`` is the quantile of chi2 with two degrees of freedom.
    exchangeable : bool
        Whether the likelihood does not change if the masses are exchanged: contours are drawn on both sides then.

    Returns
    -------
    dict
        ``map`` (mesh), ``bar`` (colour bar), ``contours`` (one a level, or two), ``best`` (marker), ``legend``.

    Raises
    ------
    OptionError
        If the search is not over two masses.

    Notes
    -----
    Local means: at masses fixed beforehand. The highest of a plane full of fluctuations is larger than that. Without a clear
    signal the masses are not identified, and contours around the highest fluctuation mean little.
    """
    if len(search.names) != 2:
        raise OptionError(f"a plane has two masses, not {len(search.names)} ({', '.join(search.names)})")
    x, y = search.axes
    z = np.sqrt(search.q0.T)
    artists: Artists = {
        "map": ax.pcolormesh(x, y, z, cmap="viridis", shading="gouraud", vmin=0.0, rasterized=True),
        "contours": [],
    }
    handles: list[Line2D] = []
    fine = search if close is None else close
    top = float(fine.q0.max())
    for level, style in zip(levels, STYLES, strict=False):
        cut = top - threshold(level, dof=2)
        if cut > 0:
            sides = [(*fine.axes, fine.q0.T)]
            if exchangeable and close is not None:
                sides.append((fine.axes[1], fine.axes[0], fine.q0))
            for side in sides:
                artists["contours"].append(ax.contour(*side, levels=[cut], colors="white", linestyles=style))
            handles.append(Line2D([], [], color="white", ls=style, label=percent(level)))
    if best is not None:
        (artists["best"],) = ax.plot(
            [best[0]], [best[1]], marker="*", markersize=13, color=SIGNAL, markeredgecolor="white", linestyle="none", label="best fit"
        )  # fmt: skip
        handles.insert(0, artists["best"])
    figure = ax.figure
    artists["bar"] = figure.colorbar(artists["map"], ax=ax, pad=0.02)
    artists["bar"].set_label("local significance [standard deviations]")
    for axis, name in zip(("x", "y"), search.names, strict=True):
        getattr(ax, f"set_{axis}label")(f"{_symbol(name)} [{unit}]")
    if handles:
        artists["legend"] = ax.legend(handles=handles, loc=_corner(search), labelcolor="white")
    return artists


def save_plane(
    search: PlaneSearch,
    path: str | PathLike[str],
    *,
    close: PlaneSearch | None = None,
    best: Sequence[float] | None = None,
    unit: str = "GeV",
    exchangeable: bool = False,
) -> Path:
    """Write a plane of masses; see `draw_plane`.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    OptionError
        If the search is not over two masses.
    OutputError
        If it cannot be written.
    """
    with figure_file(path, size=(8.0, 6.4)) as (ax,):
        draw_plane(search, ax, close=close, best=best, unit=unit, exchangeable=exchangeable)
    return Path(path)


def draw_plane_limits(limits: PlaneLimits, ax: Axes, *, which: str = "observed", unit: str = "GeV") -> Artists:
    """Draw one number of a scan over two masses, with its value written into each cell where there is room.

    Parameters
    ----------
    limits : PlaneLimits
        Over two masses.
    ax : Axes
        Where to draw.
    which : {"observed", "expected", "z"}
        Observed limit, median expected limit, or local significance.
    unit : str, default "GeV"
        Of the masses.

    Returns
    -------
    dict
        ``map`` (mesh), ``bar`` (colour bar), ``numbers`` (texts).

    Raises
    ------
    OptionError
        If the scan is not over two masses, or there is no such number.
    """
    titles = {
        "observed": f"observed {percent(limits.cl)} CLs limit",
        "expected": f"expected {percent(limits.cl)} CLs limit",
        "z": "local significance [standard deviations]",
    }
    if len(limits.names) != 2 or which not in titles:
        raise OptionError(
            f"cannot draw {which!r} over {', '.join(limits.names)}; two masses, and one of {', '.join(titles)}"
        )
    values = {"observed": limits.observed, "expected": limits.expected[..., 2], "z": limits.z}[which]
    x, y = (axis.tolist() for axis in limits.axes)
    artists: Artists = {"map": ax.pcolormesh(x, y, values.T, cmap="viridis", shading="nearest", rasterized=True)}
    artists["numbers"] = []
    if values.size <= ROOM:
        middle = 0.5 * (float(np.nanmin(values)) + float(np.nanmax(values)))
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                color = "black" if value > middle else "white"
                text = f"{value:.3g}" if which != "z" else f"{value:.1f}"
                artists["numbers"].append(
                    ax.text(x[i], y[j], text, ha="center", va="center", color=color, fontsize=7.5)
                )
    artists["bar"] = ax.figure.colorbar(artists["map"], ax=ax, pad=0.02)
    artists["bar"].set_label(titles[which])
    for axis, name in zip(("x", "y"), limits.names, strict=True):
        getattr(ax, f"set_{axis}label")(f"{_symbol(name)} [{unit}]")
    return artists


def save_plane_limits(limits: PlaneLimits, path: str | PathLike[str], *, unit: str = "GeV") -> Path:
    """Write observed limit, median expected limit and local significance over two masses; see `draw_plane_limits`.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    OptionError
        If the scan is not over two masses.
    OutputError
        If it cannot be written.
    """
    with figure_file(path, size=(8.0, 18.0), rows=(1.0, 1.0, 1.0)) as axes:
        for ax, which in zip(axes, ("observed", "expected", "z"), strict=True):
            draw_plane_limits(limits, ax, which=which, unit=unit)
    return Path(path)


def _symbol(name: str) -> str:
    """``m_X`` as a formula with a subscript."""
    head, _, tail = name.partition("_")
    return rf"${head}_\mathrm{{{tail}}}$" if head.isalpha() and tail.isalnum() else parameter_label(name)


def _corner(search: PlaneSearch) -> Any:
    """Corner of the plane where the map is lowest: a legend hides nothing there."""
    q = search.q0
    a, b = max(q.shape[0] // 3, 1), max(q.shape[1] // 3, 1)
    corners = {
        "lower left": q[:a, :b],
        "lower right": q[-a:, :b],
        "upper left": q[:a, -b:],
        "upper right": q[-a:, -b:],
    }
    return min(corners, key=lambda name: float(corners[name].max()))
