"""Figures of a certificate beside those of the weights: closure, null distributions, NPLM, pulls; all of them into a folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gbistat.diagnostics.permutations import FAMILY
from gbistat.plotting.figure import figure_file
from gbistat.plotting.impact import draw_impact
from gbistat.plotting.labels import mass_symbol, p_value_text
from gbistat.plotting.nplm_map import draw_nplm_map
from gbistat.plotting.style import BACKGROUND, BARS, GUIDE, ONE_SIGMA, SIGNAL, TWO_SIGMA, Artists
from gbistat.plotting.weights import density_histogram, draw_histogram, save_weight_figures

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from gbistat.diagnostics.certificate import Certificate
    from gbistat.diagnostics.closure import Closure
    from gbistat.diagnostics.nplm import NplmResult
    from gbistat.diagnostics.permutations import PermutationTest
    from gbistat.diagnostics.pulls import Pulls

__all__ = [
    "draw_closure",
    "draw_generator_errors",
    "draw_nplm",
    "draw_null",
    "draw_pulls",
    "save_certificate",
]

DATA, GENERATED = SIGNAL, BACKGROUND
STATISTICS = {
    "log_score": "log-score",
    "auc": "|AUC $-$ 0.5|",
    "high_tail": "data at large w",
    "low_tail": "generated at small w",
    "weight_bins": "bins of w",
}


def draw_closure(closure: Closure, low: float, high: float, axes: tuple[Axes, Axes], *, label: str) -> Artists:
    """Draw data, generated and reweighted events, and their ratio to data.

    Parameters
    ----------
    closure : Closure
        Counts.
    low, high : float
        Outer ends of the first and last bin, which are open.
    axes : (Axes, Axes)
        Main panel and ratio.
    label : str
        Of the x axis.
    """
    top, bottom = axes
    edges = np.concatenate([[low], closure.edges, [high]])
    width = np.diff(edges)
    scaled = closure.generated * closure.data.sum() / closure.generated.sum()
    artists: Artists = {}
    for name, counts, colour in (
        ("generated", scaled, GENERATED),
        ("generated, weighted", closure.reweighted, ONE_SIGMA),
        ("data", closure.data, DATA),
    ):
        artists[name] = draw_histogram(top, counts / width, edges, color=colour, label=name)
        if name != "data":
            ratio = counts / np.maximum(closure.data, 1.0)
            artists[f"{name} ratio"] = draw_histogram(bottom, ratio, edges, color=colour, label=name)
    error = 1.0 / np.sqrt(np.maximum(closure.data, 1.0))
    artists["error"] = bottom.fill_between(
        np.repeat(edges, 2)[1:-1], np.repeat(1 - error, 2), np.repeat(1 + error, 2), color=BARS, alpha=0.25, linewidth=0
    )
    for guide in (0.8, 1.2):
        bottom.axhline(guide, color=GUIDE, linestyle=":", linewidth=0.8)
    top.set(ylabel="events per unit", ylim=(0, 1.75 * float(np.max(closure.data / width))))
    artists["legend"] = top.legend(
        loc="upper right",
        title=f"$\\chi^2$ before {closure.chi2_before:.0f}, after {closure.chi2_after:.0f} / {closure.n_degrees}",
    )
    bottom.set(xlim=(low, high), ylim=(0.71, 1.29), xlabel=label, ylabel="ratio to data")
    return artists


def draw_null(test: PermutationTest, ax: Axes) -> Artists:
    """Draw every statistic in units of its null width, with the null's central ranges.

    Parameters
    ----------
    test : PermutationTest
        Statistics and permutations.
    ax : Axes
        Where to draw.
    """
    artists: Artists = {}
    rows = np.arange(len(FAMILY))[::-1]
    for row, statistic, null in zip(rows, test.statistics, test.null.T, strict=True):
        scale = statistic.null_width or 1.0
        pulls = (null - statistic.null_mean) / scale
        for share, colour in ((0.9545, TWO_SIGMA), (0.6827, ONE_SIGMA)):
            ends = np.quantile(pulls, [0.5 - share / 2, 0.5 + share / 2])
            ax.barh(row, ends[1] - ends[0], left=ends[0], height=0.55, color=colour, alpha=0.7)
        artists[statistic.name] = ax.plot(statistic.z_null, row, "o", color="black", markersize=7)[0]
        ax.annotate(
            p_value_text(statistic.p_value),
            (0.955, row),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="center",
            fontsize="small",
        )
    reach = 1.5 * max(3.0, max(abs(s.z_null) for s in test.statistics))
    ax.set(xlim=(-4.0, reach), ylim=(-0.6, len(FAMILY) - 0.2), xlabel="distance to the null mean in null widths")
    ax.set_yticks(rows, [STATISTICS[name] for name in FAMILY])
    ax.minorticks_off()
    ax.set_title(f"all together: {p_value_text(test.p_global)} ({test.n_permutations} permutations)", fontsize="small")
    return artists


def draw_nplm(result: NplmResult, ax: Axes) -> Artists:
    """Draw the null distribution of t, the gamma and chi-square distributions fitted to it, and the observed t.

    Parameters
    ----------
    result : NplmResult
        The best width is drawn.
    ax : Axes
        Where to draw.
    """
    from scipy.stats import chi2, gamma

    best = result.best
    high = max(float(best.null.max()), best.t) * 1.1
    edges = np.linspace(0.0, high, 41)
    height, error, _ = density_histogram(best.null, edges)
    artists: Artists = {
        "null": draw_histogram(ax, height, edges, error, color=BARS, label=f"{best.null.size} permutations")
    }
    x = np.linspace(0.0, high, 400)
    mean, variance = float(best.null.mean()), float(best.null.var())
    if variance > 0:
        curve = gamma(mean**2 / variance, scale=variance / mean).pdf(x)
        artists["gamma"] = ax.plot(x, curve, color=ONE_SIGMA, label="gamma, fitted")[0]
        artists["chi2"] = ax.plot(x, chi2(mean).pdf(x), color=TWO_SIGMA, label=f"$\\chi^2$, {mean:.1f} dof")[0]
    artists["observed"] = ax.axvline(best.t, color=DATA, label=f"observed, {p_value_text(best.p_value)}")
    ax.set(xlim=(0, high), ylim=(0, 1.6 * float(height.max())), xlabel="t", ylabel="probability density")
    artists["legend"] = ax.legend(loc="upper left", fontsize="x-small", ncols=2)
    return artists


def draw_pulls(pulls: Pulls, ax: Axes) -> Artists:
    """Draw the pulls of an ensemble beside a standard normal.

    Parameters
    ----------
    pulls : Pulls
        Results.
    ax : Axes
        Where to draw.
    """
    edges = np.linspace(-5.0, 5.0, 51)
    height, error, _ = density_histogram(pulls.pulls, edges)
    label = f"median {pulls.mean:.2f}, width {pulls.width:.2f}"
    artists: Artists = {"pulls": draw_histogram(ax, height, edges, error, color=GENERATED, label=label)}
    x = np.linspace(-5, 5, 201)
    artists["normal"] = ax.plot(x, np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi), color=GUIDE, label="standard normal")[0]
    ax.set(xlim=(-5, 5), xlabel=r"pull $\mu (1 - w) / \sigma$", ylabel="probability density")
    ax.set_ylim(0, 1.35 * max(0.4, float(height.max())))
    artists["legend"] = ax.legend(loc="upper left", fontsize="x-small")
    return artists


def draw_generator_errors(pulls: Pulls, ax: Axes) -> Artists:
    """Draw the relative error that an ensemble gives its density against the classifier's weight.

    Parameters
    ----------
    pulls : Pulls
        Results.
    ax : Axes
        Where to draw.
    """
    weight, low, middle, high = pulls.by_weight.T
    label = f"Spearman {pulls.correlation:.2f} with |ln w|"
    ax.set(
        xlabel="ln w of generated events", ylabel=r"$\sigma / \mu$ of the density", ylim=(0, 1.3 * float(high.max()))
    )
    artists: Artists = {
        "errors": ax.errorbar(weight, middle, yerr=[middle - low, high - middle], fmt="o", color="black", label=label)
    }
    artists["legend"] = ax.legend(loc="upper left")
    return artists


def save_certificate(certificate: Certificate, directory: Path) -> list[Path]:
    """Write all figures of a certificate into a folder.

    Parameters
    ----------
    certificate : Certificate
        Results.
    directory : Path
        Existing folder.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    report = certificate.classifier
    labels = {
        name: f"{mass_symbol(name)}"
        + (f" [{unit}]" if (unit := certificate.units.get(name, "")) not in ("", "1") else "")
        for name in certificate.observables
    }
    ranked = list(dict.fromkeys(item.observable for item in report.slices))
    shown = {name: certificate.observables[name] for name in ranked[:2]}
    area = report.area
    text = f"AUC {area.value:.4f}, {area.pull:+.1f} null widths"
    written = save_weight_figures(report.scores, report.calibration, shown, labels, directory, text=text)
    for closure in report.closure:
        if closure.observable not in shown:
            continue
        written.append(directory / f"closure_{closure.observable}.png")
        low, high = np.quantile(certificate.observables[closure.observable], [0.001, 0.999])
        with figure_file(written[-1], rows=(2.2, 1.0), size=(7.0, 6.4)) as (top, bottom):
            draw_closure(closure, float(low), float(high), (top, bottom), label=labels[closure.observable])
    written.append(directory / "null_distributions.png")
    with figure_file(written[-1]) as (ax,):
        draw_null(report.permutations, ax)
    if certificate.nplm is not None:
        written.append(directory / "nplm.png")
        with figure_file(written[-1]) as (ax,):
            draw_nplm(certificate.nplm, ax)
        f = certificate.nplm.log_ratio
        if len(shown) == 2:
            written.append(directory / "nplm_map.png")
            # The first data events are those that were tested.
            first, second = (values[: f.size] for values in shown.values())
            with figure_file(written[-1]) as (ax,):
                draw_nplm_map(first, second, f, ax, labels=(labels[ranked[0]], labels[ranked[1]]))
    if certificate.impact is not None:
        written.append(directory / "impact.png")
        with figure_file(written[-1]) as (ax,):
            tolerance = float(certificate.settings["tolerance"])
            draw_impact(certificate.impact, certificate.pooled, ax, tolerance=tolerance, window=certificate.window)
    if certificate.pulls is not None:
        # Two files and not two panels: panels of a figure share the x axis.
        for name in ("pulls", "generator_errors"):
            written.append(directory / f"{name}.png")
            with figure_file(written[-1]) as (ax,):
                (draw_pulls if name == "pulls" else draw_generator_errors)(certificate.pulls, ax)
    return written
