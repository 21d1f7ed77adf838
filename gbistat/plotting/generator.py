"""One figure on a background generator: normalisation, likelihood, two-sample tests and spurious signal against the mass."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gbistat.plotting.figure import figure_file
from gbistat.plotting.labels import mass_label, p_value_text
from gbistat.plotting.style import BACKGROUND, GUIDE, INTERVALS, SIGNAL, WINDOW, Artists

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from matplotlib.axes import Axes

    from gbistat.terms.generator_quality import GeneratorQuality, RegionTest

__all__ = ["draw_generator", "save_generator"]

TOLERANCE = 0.005
"""Half width of the band around 1 in which the integral of a density is to lie."""
KINDS: dict[str, tuple[str, str, str]] = {
    "sidebands": ("held-out sidebands", BACKGROUND, "o"),
    "pseudo-window": ("pseudo-windows", INTERVALS[2], "s"),
    "signal region": ("signal region (simulation)", SIGNAL, "D"),
}


def draw_generator(quality: GeneratorQuality, axes: Sequence[Axes]) -> Artists:
    """Draw what is known about a generator into four panels that share the mass.

    Parameters
    ----------
    quality : GeneratorQuality
        What to draw; a panel without results stays empty but for its axes.
    axes : sequence of Axes
        Four, from the top: normalisation, likelihood, two-sample tests, spurious signal.

    Returns
    -------
    dict
        ``normalisation``, ``likelihood``, ``spurious`` (errorbars or None), ``tests`` (list of errorbars), ``p_values`` (list of
        texts), ``window`` (one span a panel), ``legend`` (or None).
    """
    top, middle, tests, bottom = axes
    artists: Artists = {
        "window": [
            ax.axvspan(*quality.window, facecolor=WINDOW, alpha=0.22, edgecolor="none", linewidth=0, zorder=0)
            for ax in axes
        ]
    }
    artists["normalisation"] = _draw_normalisation(quality, top)
    artists["likelihood"] = _draw_likelihood(quality, middle)
    artists |= _draw_tests(quality, tests)
    artists["spurious"] = _draw_spurious(quality, bottom)
    for ax in axes[:-1]:
        ax.tick_params(axis="x", which="both", labelbottom=False)
    bottom.set_xlabel(mass_label(quality.mass_name, quality.unit))
    texts = ("integral of $p(x|m)$", r"mean $\ln\,p(x|m)$", "AUC", "spurious signal\n[events]")
    for ax, text in zip(axes, texts, strict=True):
        ax.set_ylabel(text)
    return artists


def save_generator(quality: GeneratorQuality, path: str | PathLike[str]) -> Path:
    """Write the figure; see `draw_generator`.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    with figure_file(path, size=(7.4, 9.6), rows=(1.0, 1.0, 1.4, 1.0)) as panels:
        draw_generator(quality, panels)
    return Path(path)


def _draw_normalisation(quality: GeneratorQuality, ax: Axes) -> Any:
    rows = quality.normalisation
    ax.axhspan(1.0 - TOLERANCE, 1.0 + TOLERANCE, facecolor=BACKGROUND, alpha=0.15, linewidth=0, zorder=0)
    ax.axhline(1.0, color=GUIDE, linewidth=1.0, linestyle="--")
    reach = max([2.0 * TOLERANCE, *(1.2 * (abs(row.integral - 1.0) + row.error) for row in rows)])
    ax.set_ylim(1.0 - reach, 1.0 + reach)
    if not rows:
        return None
    return ax.errorbar(
        [row.mass for row in rows],
        [row.integral for row in rows],
        yerr=[row.error for row in rows],
        fmt="o",
        color="black",
        capsize=0,
    )


def _draw_likelihood(quality: GeneratorQuality, ax: Axes) -> Any:
    rows = [row for row in quality.likelihood if row.n_events > 1]
    if not rows:
        return None
    return ax.errorbar(
        [0.5 * (row.low + row.high) for row in rows],
        [row.mean for row in rows],
        xerr=[0.5 * (row.high - row.low) for row in rows],
        yerr=[row.error for row in rows],
        fmt="o",
        color="black",
        capsize=0,
    )


def _draw_tests(quality: GeneratorQuality, ax: Axes) -> Artists:
    ax.axhline(0.5, color=GUIDE, linewidth=1.0, linestyle="--")
    drawn, texts, handles, labels = [], [], [], []
    for kind, (label, colour, marker) in KINDS.items():
        entries = [region for region in quality.regions if region.kind == kind]
        for number, region in enumerate(entries):
            bars = _draw_region(region, ax, colour, marker)
            drawn.append(bars)
            texts.append(
                ax.annotate(
                    p_value_text(region.test.p_value),
                    (0.5 * (region.low + region.high), region.test.auc + region.test.auc_error),
                    xytext=(0, 3),
                    textcoords="offset points",
                    ha="center",
                    va="bottom",
                    fontsize="x-small",
                    color=colour,
                )
            )
            if number == 0:
                handles.append(bars)
                labels.append(label)
    reach = max([0.012, *(1.15 * (abs(r.test.auc - 0.5) + r.test.auc_error) for r in quality.regions)])
    ax.set_ylim(0.5 - reach, 0.5 + 2.1 * reach)
    legend = ax.legend(handles, labels, loc="upper right", ncols=1) if handles else None
    return {"tests": drawn, "p_values": texts, "legend": legend}


def _draw_region(region: RegionTest, ax: Axes, colour: str, marker: str) -> Any:
    return ax.errorbar(
        [0.5 * (region.low + region.high)],
        [region.test.auc],
        xerr=[0.5 * (region.high - region.low)],
        yerr=[region.test.auc_error],
        fmt=marker,
        color=colour,
        markerfacecolor=colour if region.blinded else "white",
        capsize=0,
    )


def _draw_spurious(quality: GeneratorQuality, ax: Axes) -> Any:
    rows = quality.spurious
    ax.axhline(0.0, color=GUIDE, linewidth=1.0, linestyle="--")
    if not rows:
        return None
    return ax.errorbar(
        [0.5 * (row.low + row.high) for row in rows],
        [row.value for row in rows],
        xerr=[0.5 * (row.high - row.low) for row in rows],
        yerr=[row.error for row in rows],
        fmt="o",
        color="black",
        capsize=0,
    )
