"""Figure of where data differ from a reference: the fitted log ratio of NPLM at each event."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from gbistat.plotting.style import Artists
    from gbistat.typing import FloatArray

__all__ = ["draw_nplm_map"]


def draw_nplm_map(x: FloatArray, y: FloatArray, log_ratio: FloatArray, ax: Axes, *, labels: tuple[str, str]) -> Artists:
    """Draw the events of the data in two observables, coloured by f, those of the largest f on top.

    Parameters
    ----------
    x, y : arrays of shape (n,)
        Observables.
    log_ratio : array of shape (n,)
        f of `gbistat.diagnostics.nplm.NplmResult`: in-sample, it shows where to look.
    ax : Axes
        Where to draw.
    labels : (str, str)
        Of the axes.
    """
    order = np.argsort(np.abs(log_ratio), kind="stable")
    reach = float(np.quantile(np.abs(log_ratio), 0.99)) or 1.0
    points = ax.scatter(
        x[order],
        y[order],
        c=log_ratio[order],
        s=6,
        cmap="RdBu_r",
        vmin=-reach,
        vmax=reach,
        linewidth=0,
        rasterized=True,
    )
    for values, limit in ((x, ax.set_xlim), (y, ax.set_ylim)):
        low, high = np.quantile(values, [0.001, 0.999])
        limit(low, high)
    ax.set(xlabel=labels[0], ylabel=labels[1])
    bar = ax.figure.colorbar(points, ax=ax, label="f, the fitted ln(data / reference)")
    return {"points": points, "bar": bar}
