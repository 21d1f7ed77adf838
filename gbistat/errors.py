"""Everything that gbistat raises on purpose.

::

    GbistatError
    |-- EventsError      (ValueError)    a file of events, a column of it, a value in it
    |-- WindowError      (ValueError)    a mass window
    |-- UnitsError       (ValueError)    GeV where TeV was declared, and the like
    |-- TermError        (ValueError)    an exported term: schema, hash, path, features, ranges
    |-- ModelError       (ValueError)    a model: its components, parameters, constraints
    |-- CardError        (ValueError)    a run card
    |-- ParameterError   (ValueError)    the name or the value of a parameter
    |-- OptionError      (ValueError)    an option of a function: confidence level, method, tolerance
    |-- FitFailed        (RuntimeError)  a minimisation that did not end in a valid minimum
    |-- ScanRangeError   (RuntimeError)  a scan that ends before its answer is reached
    |-- CampaignError    (RuntimeError)  a campaign of toys: its workers, its scheduler, what they return
    |-- ToyFileError     (ValueError)    a file of toys: damaged, foreign, or of another campaign
    |-- OutputError      (OSError)       a place where results cannot be written
    `-- MissingExtra     (ImportError)   an optional package that is not installed

A message says the value, the reason and the way out, and for a wrong name the nearest right ones.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "CampaignError",
    "CardError",
    "EventsError",
    "FitFailed",
    "GbistatError",
    "MissingExtra",
    "ModelError",
    "OptionError",
    "OutputError",
    "ParameterError",
    "ScanRangeError",
    "TermError",
    "ToyFileError",
    "UnitsError",
    "WindowError",
    "nearest",
]


class GbistatError(Exception):
    """Root of the tree: what the command line turns into two lines and exit code 1."""


class EventsError(GbistatError, ValueError):
    """A file of events, a column of it or a value in it cannot be used."""


class WindowError(GbistatError, ValueError):
    """A mass window is empty, reversed, or outside what a model is valid for."""


class UnitsError(GbistatError, ValueError):
    """Declared units do not fit together."""


class TermError(GbistatError, ValueError):
    """An exported term is damaged, foreign, or used outside its validity."""


class ModelError(GbistatError, ValueError):
    """A model's components, parameters or constraints do not fit together."""


class CardError(GbistatError, ValueError):
    """A run card cannot be read or contradicts itself."""


class ParameterError(GbistatError, ValueError):
    """A parameter does not exist, or its value is outside its range."""


class OptionError(GbistatError, ValueError):
    """An option of a function has a value it cannot have."""


class FitFailed(GbistatError, RuntimeError):
    """A minimisation did not end in a valid minimum."""


class ScanRangeError(GbistatError, RuntimeError):
    """A scan ends before the answer is reached."""


class CampaignError(GbistatError, RuntimeError):
    """A campaign of toys cannot go on: no workers, no scheduler, or results that do not fit."""


class ToyFileError(GbistatError, ValueError):
    """A file of toys is damaged, foreign, or belongs to another campaign."""


class OutputError(GbistatError, OSError):
    """Results cannot be written where they were asked for."""


class MissingExtra(GbistatError, ImportError):
    """An optional package is needed and not installed."""


def nearest(name: str, candidates: Iterable[str], *, count: int = 3) -> str:
    """Clause that names the candidates closest to a wrong name.

    Parameters
    ----------
    name : str
        What was asked for.
    candidates : iterable of str
        What exists.
    count : int, default 3
        How many to offer at most.

    Returns
    -------
    str
        For example ``"nearest names: m_jj, m_light"``, or all (up to eight) names if none is close.

    Examples
    --------
    >>> nearest("mjj", ["m_jj", "tau21_light"])
    'nearest names: m_jj'
    >>> nearest("q", ["a", "b"])
    'names there: a, b'
    """
    known = list(candidates)
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    if close:
        return "nearest names: " + ", ".join(close)
    if not known:
        return "there are no names at all"
    shown = ", ".join(known[:8])
    return "names there: " + shown + (f", ... ({len(known)} in all)" if len(known) > 8 else "")
