"""Text in figures: names of quantities with their units, and numbers."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.inference.results import IntervalResult, LimitResult, Segment

__all__ = [
    "format_numbers",
    "interval_text",
    "limit_text",
    "mass_label",
    "mass_symbol",
    "p_value_text",
    "parameter_label",
    "percent",
    "upright",
]

PARAMETERS = {"mu": r"signal strength $\mu$", "n_sig": "signal events", "n_bkg": "background events"}
SUBSCRIPTS = {"jj": "jj", "ll": r"\ell\ell", "mumu": r"\mu\mu", "tautau": r"\tau\tau", "gammagamma": r"\gamma\gamma"}
SIGNIFICANT = 3
SMALLEST_P = 1e-99


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


def mass_symbol(name: str) -> str:
    r"""Symbol of a mass; a name that is not of the form ``m_x`` stays as it is.

    Examples
    --------
    >>> mass_symbol("m_jj"), mass_symbol("m_X")
    ('$m_{jj}$', '$m_{\\mathrm{X}}$')
    """
    match = re.fullmatch(r"m_([A-Za-z0-9]+)", name)
    if match is None:
        return _literal(name)
    subscript = SUBSCRIPTS.get(match[1], rf"\mathrm{{{match[1]}}}")
    return f"$m_{{{subscript}}}$"


def mass_label(name: str, unit: str) -> str:
    r"""Text for the axis of a mass, with its unit.

    Examples
    --------
    >>> mass_label("m_mumu", "GeV")
    '$m_{\\mu\\mu}$ [GeV]'
    """
    return f"{mass_symbol(name)} [{unit}]"


def percent(level: float) -> str:
    """Confidence level as text.

    Examples
    --------
    >>> percent(0.6827), percent(0.95)
    ('68.27 %', '95 %')
    """
    return f"{100 * level:.6g} %"


def p_value_text(p: float) -> str:
    r"""A p-value with its symbol, two digits, never rounded to 0.

    Examples
    --------
    >>> p_value_text(0.5523), p_value_text(3.2e-12)
    ('$p$ = 0.55', '$p$ = $\\mathrm{3.2\\times 10^{-12}}$')
    """
    if p < SMALLEST_P:
        return f"$p$ < {upright('10^{-99}')}"
    if p >= 1e-3:
        return f"$p$ = {upright(f'{p:.2f}' if p >= 0.095 else f'{p:.2g}')}"
    return f"$p$ = {upright(_scientific(p, _exponent(p), 1))}"


def format_numbers(values: Sequence[float]) -> list[str]:
    r"""Write numbers that are read together to the same precision: three digits of what tells them apart.

    Parameters
    ----------
    values : sequence of float
        For example an estimate and the ends of its interval.

    Returns
    -------
    list of str
        Source of text (for `upright`), with one common power of ten where plain decimals would be long.

    Examples
    --------
    >>> format_numbers([103.24, 94.11, 113.4])
    ['103.2', '94.1', '113.4']
    >>> format_numbers([1.5e-6, 2.25e-6])
    ['1.500\\times 10^{-6}', '2.250\\times 10^{-6}']
    """
    finite = [value for value in values if math.isfinite(value)]
    largest = max((abs(value) for value in finite), default=0.0)
    if largest == 0.0:
        return [_plain(value, 0) for value in values]
    magnitude = _exponent(largest)
    step = min(_exponent((max(finite) - min(finite)) or largest), magnitude)
    if -3 <= magnitude < 5 and step >= -4:
        return [_plain(value, max(0, SIGNIFICANT - 1 - step)) for value in values]
    digits = min(SIGNIFICANT - 1 + magnitude - step, 8)
    return [_scientific(value, magnitude, digits) for value in values]


def interval_text(interval: IntervalResult, numbers: Sequence[float]) -> str:
    r"""Segments of an interval, written to a precision that also suits other numbers.

    Examples
    --------
    >>> from gbistat.inference.results import IntervalResult
    >>> interval_text(IntervalResult("mu", 0.95, ((None, 20.5),), 3.0, 3.84), [3.0])
    '$\\leq$ 20.5'
    """
    return r" $\cup$ ".join(_segment_text(segment, numbers) for segment in interval.segments)


def limit_text(limit: LimitResult) -> tuple[str, str]:
    """Observed limit, and the median expected one with the distances to the ends of its 68 % band."""
    _, low, median, high, _ = limit.expected
    observed, middle, up, down = format_numbers([limit.observed, median, high - median, median - low])
    if "times" in middle:
        middle, power = middle.split(r"\times")
        up, down = (text.split(r"\times")[0] for text in (up, down))
        return upright(observed), upright(rf"{middle}^{{+{up}}}_{{-{down}}}\times{power}")
    return upright(observed), upright(f"{middle}^{{+{up}}}_{{-{down}}}")


def upright(text: str) -> str:
    r"""Number as text for a figure: plain where it can be, since math text takes milliseconds a piece to lay out.

    Examples
    --------
    >>> upright("-1.5"), upright(r"1.5\times 10^{-6}")
    ('−1.5', '$\\mathrm{1.5\\times 10^{-6}}$')
    """
    if re.fullmatch(r"-?[0-9.?]+", text):
        return text.replace("-", "\N{MINUS SIGN}")
    return rf"$\mathrm{{{text}}}$"


def _segment_text(segment: Segment, numbers: Sequence[float]) -> str:
    low, high = segment
    texts = iter(map(upright, format_numbers([*(end for end in segment if end is not None), *numbers])))
    if low is None and high is None:
        return "open on both sides"
    if low is None:
        return rf"$\leq$ {next(texts)}"
    if high is None:
        return rf"$\geq$ {next(texts)}"
    return f"[{next(texts)}, {next(texts)}]"


def _exponent(value: float) -> int:
    return math.floor(math.log10(abs(value)))


def _plain(value: float, decimals: int) -> str:
    if not math.isfinite(value):
        return "?"
    text = f"{value:.{decimals}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def _scientific(value: float, exponent: int, digits: int) -> str:
    if not math.isfinite(value):
        return "?"
    return rf"{value / 10.0**exponent:.{digits}f}\times 10^{{{exponent}}}"


def _literal(text: str) -> str:
    """Text in which matplotlib finds no mathematics."""
    return text.replace("$", r"\$")
