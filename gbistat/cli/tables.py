"""Tables on the terminal: what an analyst puts in a paper."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gbistat.inference.neyman_results import ToyInterval
from gbistat.report.outcomes import LimitsOutcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.binned.convergence import Convergence, Differences
    from gbistat.binned.results import BinnedResult
    from gbistat.inference.results import IntervalResult, LimitResult
    from gbistat.inference.toy_limit_results import ToyLimit
    from gbistat.report.outcomes import FitOutcome, Report

__all__ = ["number", "segments", "show"]


def number(value: float | None, error: float | None = None) -> str:
    """Number with digits that fit its error: two significant digits of the error, or four of the number.

    Examples
    --------
    >>> number(43.2178, 9.87), number(0.00123456), number(12991.3, 83.4)
    ('43.2', '0.001235', '12991')
    """
    if value is None:
        return "open"
    if not math.isfinite(value):
        return str(value)
    if error is not None and math.isfinite(error) and error > 0:
        digits = max(0, 1 - math.floor(math.log10(error)))
        return f"{value:.{digits}f}" if digits <= 8 else f"{value:.3g}"
    return f"{value:.4g}"


def segments(interval: IntervalResult, error: float) -> str:
    """Interval as text for a table; several pieces are joined by ``or``."""
    # Unescaped, rich takes [open, 1.9] for markup and prints nothing.
    return escape(" or ".join(f"[{number(low, error)}, {number(high, error)}]" for low, high in interval.segments))


def toy_segments(interval: IntervalResult) -> str:
    """Interval with the Monte Carlo errors of its ends, if it is by toys."""
    if not isinstance(interval, ToyInterval):
        low = interval.low if interval.low is not None else math.nan
        high = interval.high if interval.high is not None else math.nan
        return segments(interval, 0.1 * abs(high - low))
    pieces = []
    for ends, errors in zip(interval.segments, interval.errors, strict=True):
        texts = [
            number(end, error) + (f" +- {number(error, error)}" if end is not None and error else "")
            for end, error in zip(ends, errors, strict=True)
        ]
        pieces.append(f"[{', '.join(texts)}]")
    return escape(" or ".join(pieces))


def show(report: Report) -> None:
    """Print a report to standard output."""
    console = Console(highlight=False)
    width = 120 if not console.is_terminal else None
    console = Console(highlight=False, width=width)
    console.print(
        f"model {report.model} (sha256 {report.model_sha256[:12]}){', ensemble profiled' if report.ensemble == 'profiled' else ''}, "
        f"{report.n_read} events in the fit range from {report.source}"
    )
    for outcome in report.outcomes:
        _show_background(console, outcome)
        if report.verb == "fit" or not isinstance(outcome, LimitsOutcome):
            _show_fit(console, outcome)
        elif report.verb == "compare":
            _show_comparison(console, outcome)
        else:
            _show_limits(console, outcome)
        for warning in outcome.warnings:
            console.print(f"[yellow]warning[/yellow] {outcome.window}: {warning}", soft_wrap=True)
    if report.verb == "limits" and len(report.outcomes) > 1:
        _show_windows(console, report)


def _show_background(console: Console, outcome: FitOutcome) -> None:
    """One line on a generator, where one is used; the model's own reference events need none."""
    used = outcome.analysis.background
    if used.get("source") != "generator":
        return
    kappa, mean = used["log_kappa"], used["mean_ratio"]
    console.print(
        f"background in {outcome.window}: {used['n_reference']} events of the generator {used['name']} (sha256 "
        f"{used['sha256'][:12]}), seed {used['seed']}; E_b[R] = {mean['value']:.3f} +- {mean['sigma']:.3f}; ln kappa = "
        f"{kappa['value']:.3f} +- {kappa['sigma']:.3f} (the model's: {kappa['model_value']:.3f} +- {kappa['model_sigma']:.3f})",
        soft_wrap=True,
    )


def _title(outcome: FitOutcome) -> str:
    return f"window {outcome.window}, {len(outcome.analysis.events)} events"


def _show_fit(console: Console, outcome: FitOutcome) -> None:
    fit = outcome.fit
    levels = [f"{100 * interval.cl:.4g} % interval" for interval in outcome.intervals[outcome.poi]]
    table = Table("parameter", "value", "error", *levels, title=_title(outcome), title_justify="left")
    for name in fit.names:
        cells = [""] * len(levels)
        for k, interval in enumerate(outcome.intervals.get(name, ())):
            cells[k] = segments(interval, fit.error(name))
        fixed = " (fixed)" if name in fit.fixed else ""
        table.add_row(name + fixed, number(fit.value(name), fit.error(name)), f"{fit.error(name):.2g}", *cells)
        if name == outcome.poi and outcome.by_method is not None:
            table.add_row(f"  by {_method_title(outcome)}", "", "", *[toy_segments(i) for i in outcome.poi_intervals])
    console.print(table)
    _show_toys(console, outcome)
    sidebands = outcome.analysis.sidebands
    if sidebands is not None:
        g = sidebands.goodness
        console.print(
            f"sideband fit ({sidebands.shape.name}, {sidebands.fit_range}): {sidebands.expected:.1f} +- "
            f"{sidebands.expected_error:.1f} background events in the window, chi2/ndof = {g.chi2:.1f}/{g.ndof}, p = {g.p_value:.2g}"
        )


def _show_limits(console: Console, outcome: LimitsOutcome) -> None:
    fit, poi = outcome.fit, outcome.poi
    error = fit.error(poi)
    table = Table(
        "", "unbinned", *[_twin_title(t) for t in outcome.binned], title=_title(outcome), title_justify="left"
    )
    table.add_row(poi, _value(fit.value(poi), error), *[_value(t.value, t.error) for t in outcome.binned])
    for k, interval in enumerate(outcome.intervals[poi]):
        twins = [segments(t.intervals[k], t.error) if k < len(t.intervals) else "" for t in outcome.binned]
        table.add_row(f"  {100 * interval.cl:.4g} % interval", segments(interval, error), *twins)
    if outcome.by_method is not None:
        for interval in outcome.poi_intervals:
            name = f"  {100 * interval.cl:.4g} % {_method_title(outcome)}"
            table.add_row(name, toy_segments(interval), *[""] * len(outcome.binned))
    table.add_row("local significance", f"{outcome.discovery.z:.2f}", *[f"{t.discovery.z:.2f}" for t in outcome.binned])
    table.add_row("  p-value", _p_value(outcome.discovery.p0), *[_p_value(t.discovery.p0) for t in outcome.binned])
    toys = outcome.by_method.p0 if outcome.by_method is not None else None
    if toys is not None:
        bound = f"below {_p_value(toys.p_at_most)}" if toys.p == 0 else f"{_p_value(toys.p)} +- {_p_value(toys.error)}"
        table.add_row("  p-value by toys", bound, *[""] * len(outcome.binned))
    name = f"{100 * outcome.limit.cl:.4g} % CLs limit"
    limits = [outcome.limit, *[t.limit for t in outcome.binned]]
    table.add_row(f"{name}, observed", *[number(limit.observed) for limit in limits])
    table.add_row("  expected", *[number(limit.expected[2]) for limit in limits])
    table.add_row("  expected, 1 sigma", *[_band(limit, 1, 3) for limit in limits])
    table.add_row("  expected, 2 sigma", *[_band(limit, 0, 4) for limit in limits])
    if outcome.toy_limit is not None:
        found, blank = outcome.toy_limit, [""] * len(outcome.binned)
        table.add_row("  by toys, observed", _value(found.observed, found.error), *blank)
        table.add_row("  by toys, expected", _value(found.expected[2], found.expected_errors[2]), *blank)
        table.add_row("  by toys, 1 sigma", _band(found, 1, 3), *blank)
        table.add_row("  by toys, 2 sigma", _band(found, 0, 4), *blank)
    if "n_bkg" in fit.names:
        table.add_row("background events", _value(fit.value("n_bkg"), fit.error("n_bkg")), *[""] * len(outcome.binned))
    sidebands = outcome.analysis.sidebands
    if sidebands is not None:
        predicted = _value(sidebands.expected, sidebands.expected_error)
        table.add_row("  predicted by sidebands", predicted, *[""] * len(outcome.binned))
    console.print(table)
    _show_toys(console, outcome)


def _show_comparison(console: Console, outcome: LimitsOutcome) -> None:
    fit, poi = outcome.fit, outcome.poi
    columns = (
        "",
        poi,
        f"{100 * outcome.intervals[poi][0].cl:.4g} % interval",
        "local Z",
        "limit",
        "expected (/ unbinned)",
        "toys",
        "correlation",
        "pull",
    )
    table = Table(*columns, title=_title(outcome), title_justify="left")
    base = outcome.limit.expected[2]
    first = outcome.intervals[poi][0]
    table.add_row(
        "unbinned",
        _value(fit.value(poi), fit.error(poi)),
        segments(first, fit.error(poi)),
        f"{outcome.discovery.z:.2f}",
        number(outcome.limit.observed),
        number(base),
        "",
        "",
        "",
    )
    found = outcome.comparison
    if found is None:
        return
    for row in found.rows:
        result, toys = row.result, row.toys
        table.add_row(
            row.name,
            _value(result.value, result.error),
            segments(result.intervals[0], result.error) if result.intervals else "",
            f"{result.discovery.z:.2f}",
            number(result.limit.observed),
            f"{number(result.limit.expected[2])} ({result.limit.expected[2] / base:.3f})",
            "" if toys is None else f"{toys.mean:+.3f} +- {toys.spread:.3f}",
            "" if toys is None else f"{toys.correlation:.4f}",
            "" if row.pull is None else f"{row.pull:+.1f}",
        )
    console.print(table)
    if found.toys:
        console.print(
            f"toys: differences to unbinned estimates of the same {found.toys[0].n_toys} toys, in units of the error, and their "
            "correlation; pull: the difference in the data, less the mean and over the spread of that in toys"
        )
    if found.convergence is not None:
        _show_convergence(console, found.convergence, found.toys)


def _show_convergence(console: Console, convergence: Convergence, toys: Sequence[Differences]) -> None:
    columns = ("bins in the log ratio", "expected limit", "over unbinned", "information lost", "data", "toys")
    title = f"what binning costs (expected limit before data, unbinned {number(convergence.expected)})"
    table = Table(*columns, title=title, title_justify="left")
    by_number = {int(item.name.split()[0]): item for item in toys if item.name.split()[0].isdigit()}
    for point in convergence.points:
        item = by_number.get(point.n_bins)
        table.add_row(
            str(point.n_bins),
            number(point.expected),
            f"{100 * (point.ratio - 1):+.2f} %",
            f"{100 * point.information_loss:.2f} %",
            f"{(point.estimate - convergence.estimate) / convergence.error:+.3f}",
            "" if item is None else f"{item.mean:+.3f} +- {item.spread:.3f}",
        )
    console.print(table)


def _show_windows(console: Console, report: Report) -> None:
    table = Table(
        "window",
        "events",
        "mu",
        "local Z",
        "limit",
        "expected",
        "1 sigma",
        title="limits by window",
        title_justify="left",
    )
    for outcome in report.outcomes:
        if isinstance(outcome, LimitsOutcome):
            table.add_row(
                str(outcome.window),
                str(len(outcome.analysis.events)),
                _value(outcome.fit.value(outcome.poi), outcome.fit.error(outcome.poi)),
                f"{outcome.discovery.z:.2f}",
                number(outcome.limit.observed),
                number(outcome.limit.expected[2]),
                _band(outcome.limit, 1, 3),
            )
    console.print(table)


def _value(value: float, error: float) -> str:
    return f"{number(value, error)} +- {number(error, error)}"


def _p_value(p: float) -> str:
    return f"{p:.2g}" if p > 0 else "< 1e-300"


def _method_title(outcome: FitOutcome) -> str:
    names = {"feldman-cousins": "Feldman-Cousins", "neyman": "Neyman", "cls": "CLs", "cls-toys": "toy CLs"}
    return names[outcome.method]


def _show_toys(console: Console, outcome: FitOutcome) -> None:
    """How many toys, what they were drawn from, and what they say about the asymptotic formulas."""
    if outcome.by_method is None:
        return
    for note in outcome.by_method.notes:
        console.print(f"note {outcome.window}: {note}", soft_wrap=True)
    if not outcome.by_method.options.by_toys:
        return
    done, options = outcome.by_method, outcome.by_method.options
    pools = "; ".join(
        f"{pool.n_points} nodes of quadrature"
        if pool.kind == "quadrature"
        else f"{pool.n_points} points of effective size {pool.background_size:.0f} for {pool.expected:.0f} expected events"
        for pool in done.pools
    )
    console.print(f"{done.n_toys} {options.form} toys with seed {options.seed}, drawn from {pools}")


def _band(limit: LimitResult | ToyLimit, low: int, high: int) -> str:
    return f"{number(limit.expected[low])} to {number(limit.expected[high])}"


def _twin_title(twin: BinnedResult) -> str:
    return f"pyhf, {twin.n_bins} bins in {twin.observable}"
