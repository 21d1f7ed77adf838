"""Text in figures: names of quantities with their units, and numbers."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.inference.results import IntervalResult, LimitResult, Segment

__all__ = ["format_numbers", "interval_text", "limit_text", "mass_label", "parameter_label", "percent"]

PARAMETERS = {"mu": r"signal strength $\mu$", "n_sig": "signal events", "n_bkg": "background events"}
SUBSCRIPTS = {"ll": r"\ell\ell", "mumu": r"\mu\mu", "tautau": r"\tau\tau", "gammagamma": r"\gamma\gamma"}
SIGNIFICANT = 3


def parameter_label(name: str, label: str | None = None) -> str:
    r"""Text for the axis of a parameter.

    Parameters
    ----------
    name : str
        Parameter of the likelihood.
    label : str, optional
        Used as it is, where what the parameter counts depends on the model, for example
        ``"signal events in the window"``.

    Examples
    --------
    >>> parameter_label("mu")
    'signal strength $\\mu$'
    >>> parameter_label("mu", "signal events in the window")
    'signal events in the window'
    """
    return label if label is not None else PARAMETERS.get(name, _literal(name))


def mass_label(name: str, unit: str) -> str:
    r"""Text for the axis of a mass.

    Examples
    --------
    >>> mass_label("m_jj", "GeV")
    '$\\mathit{m}_\\mathit{jj}$ [GeV]'
    >>> mass_label("mass", "TeV")
    'mass [TeV]'
    """
    return f"{mass_symbol(name)} [{unit}]"


def mass_symbol(name: str) -> str:
    """Symbol of a mass, without its unit."""
    match = re.fullmatch(r"m_([A-Za-z0-9]+)", name)
    if match is None:
        return _literal(name)
    return rf"$\mathit{{m}}_\mathit{{{SUBSCRIPTS.get(match[1], match[1])}}}$"


def percent(level: float) -> str:
    """Confidence level as text.

    Examples
    --------
    >>> percent(0.6827), percent(0.95)
    ('68.27 %', '95 %')
    """
    return f"{100 * level:.6g} %"


def format_numbers(values: Sequence[float]) -> list[str]:
    r"""Write numbers that are read together to the same precision: three digits of what tells them apart.

    Parameters
    ----------
    values : sequence of float
        For example an estimate and the ends of its interval.

    Returns
    -------
    list of str
        Math text, with one common power of ten where plain decimals would be long.

    Examples
    --------
    >>> format_numbers([103.24, 74.11, 133.4])
    ['$103.2$', '$74.1$', '$133.4$']
    >>> format_numbers([1.5e-6, 2.25e-6])
    ['$1.500\\times 10^{-6}$', '$2.250\\times 10^{-6}$']
    """
    finite = [value for value in values if math.isfinite(value)]
    largest = max((abs(value) for value in finite), default=0.0)
    if largest == 0.0:
        return [_plain(value, 0) for value in values]
    spread = (max(finite) - min(finite)) or largest
    magnitude, step = _exponent(largest), min(_exponent(spread), _exponent(largest))
    if -3 <= magnitude < 5 and step >= -4:
        return [_plain(value, max(0, SIGNIFICANT - 1 - step)) for value in values]
    digits = min(SIGNIFICANT - 1 + magnitude - step, 8)
    return [_scientific(value, magnitude, digits) for value in values]


def interval_text(interval: IntervalResult, values: Sequence[float]) -> str:
    r"""Segments of an interval, written to a precision that also suits `values`.

    Examples
    --------
    >>> from gbistat.inference.results import IntervalResult
    >>> interval_text(IntervalResult("mu", 0.95, ((None, 20.5),), 3.0, 3.84), [3.0])
    '$\\leq 20.5$'
    """
    return r" $\cup$ ".join(_segment_text(segment, values) for segment in interval.segments)


def limit_text(limit: LimitResult) -> tuple[str, str]:
    """Observed limit, and the median expected one with the distances to its 68 % band, as math text."""
    _, low, median, high, _ = limit.expected
    observed, middle, up, down = format_numbers([limit.observed, median, high - median, median - low])
    if "times" in observed:
        return observed, middle
    return observed, f"${middle[1:-1]}^{{+{up[1:-1]}}}_{{-{down[1:-1]}}}$"


def _segment_text(segment: Segment, values: Sequence[float]) -> str:
    low, high = segment
    ends = [end for end in segment if end is not None]
    texts = iter(format_numbers([*ends, *values]))
    if low is None and high is None:
        return "open on both sides"
    if low is None:
        return rf"$\leq {next(texts)[1:-1]}$"
    if high is None:
        return rf"$\geq {next(texts)[1:-1]}$"
    return f"[{next(texts)}, {next(texts)}]"


def _exponent(value: float) -> int:
    return math.floor(math.log10(abs(value)))


def _plain(value: float, decimals: int) -> str:
    if not math.isfinite(value):
        return "--"
    text = f"{value:.{decimals}f}"
    return f"${text[1:] if float(text) == 0 and text.startswith('-') else text}$"


def _scientific(value: float, exponent: int, digits: int) -> str:
    if not math.isfinite(value):
        return "--"
    return rf"${value / 10.0**exponent:.{digits}f}\times 10^{{{exponent}}}$"


def _literal(text: str) -> str:
    """Text in which matplotlib finds no mathematics."""
    return text.replace("$", r"\$")
