"""Figure of what a difference between data and generator does to mu: projected biases with errors, and the tolerance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gbistat.diagnostics.impact import ONE_SIDED
from gbistat.plotting.style import BACKGROUND, BARS, GUIDE, SIGNAL, Artists

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from gbistat.diagnostics.impact import Impact, PooledBias

__all__ = ["draw_impact"]


def draw_impact(
    impact: Impact,
    pooled: PooledBias | None,
    ax: Axes,
    *,
    tolerance: float,
    window: tuple[float, float] | None = None,
    unit: str = "GeV",
) -> Artists:
    """Draw the bias of mu in standard errors, from all events and from pseudo-windows, with the tolerance as a band.

    Parameters
    ----------
    impact : Impact
        Bias from all pairs of events; thin bars are its 95 % bound.
    pooled : PooledBias or None
        Biases of pseudo-windows; without them there is one point.
    ax : Axes
        Where to draw.
    tolerance : float
        Largest acceptable bias.
    window : (low, high), optional
        Of the measurement, where the combined bias is drawn.
    unit : str
        Of the mass.
    """
    windows = () if pooled is None else pooled.windows
    masses = [mass for mass, _ in windows]
    centre = 0.5 * sum(window) if window is not None else (masses[0] if masses else 0.0)
    low, high = min([*masses, *(window or ()), centre]), max([*masses, *(window or ()), centre])
    margin = 0.08 * (high - low) or 1.0
    artists: Artists = {
        "tolerance": ax.axhspan(-tolerance, tolerance, color=BARS, alpha=0.35, linewidth=0, label="tolerance"),
        "zero": ax.axhline(0.0, color=GUIDE, linewidth=0.8),
    }
    if window is not None:
        artists["window"] = ax.axvspan(
            *window, color=BACKGROUND, alpha=0.12, linewidth=0, label="window of the measurement"
        )
    if windows:
        values, errors = [bias.value for _, bias in windows], [bias.error for _, bias in windows]
        artists["windows"] = ax.errorbar(masses, values, yerr=errors, fmt="o", color="black", label="pseudo-windows")
    bias = impact.bias
    artists["bound"] = ax.errorbar(
        [centre], [bias.value], yerr=[ONE_SIDED * bias.error], fmt="none", color=SIGNAL, linewidth=1.0, capsize=4
    )
    label = f"all events: {bias.value:.2f} $\\pm$ {bias.error:.2f}"
    artists["all"] = ax.errorbar(
        [centre], [bias.value], yerr=[bias.error], fmt="s", color=SIGNAL, linewidth=2.5, label=label
    )
    if impact.bias_from_weights is not None:
        (artists["weights"],) = ax.plot(
            [centre],
            [impact.bias_from_weights],
            "D",
            color=SIGNAL,
            markerfacecolor="white",
            label="the same from weights",
        )
    reach = max([tolerance, abs(bias.value) + ONE_SIDED * bias.error, *(abs(b.value) + b.error for _, b in windows)])
    ax.set(
        xlim=(low - margin, high + margin),
        ylim=(-1.15 * reach, 1.9 * reach),
        xlabel=f"mass [{unit}]",
        ylabel="bias of $\\mu$ in its errors",
    )
    artists["legend"] = ax.legend(
        loc="upper left",
        fontsize="x-small",
        title_fontsize="x-small",
        ncols=2,
        title=f"below {impact.upper:.2g} at 95 %, tolerance {tolerance:g}",
    )
    return artists
