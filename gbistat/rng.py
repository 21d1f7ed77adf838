"""Random numbers: one generator passed by hand, never a global one."""

from __future__ import annotations

import numpy as np

from gbistat.errors import OptionError

__all__ = ["as_generator", "spawn"]


def as_generator(seed: int | np.random.SeedSequence | np.random.Generator) -> np.random.Generator:
    """Generator for a seed given at the command line or in a run card.

    Parameters
    ----------
    seed : int, SeedSequence or Generator
        A non-negative integer, or what is already a source of randomness.

    Returns
    -------
    numpy.random.Generator
        The generator itself if one was given.

    Raises
    ------
    OptionError
        If an integer seed is negative.

    Examples
    --------
    >>> int(as_generator(1).integers(100))
    47
    """
    if isinstance(seed, np.random.Generator):
        return seed
    if isinstance(seed, int) and seed < 0:
        raise OptionError(f"seed {seed} is negative; give an integer of 0 or more")
    return np.random.default_rng(seed)


def spawn(rng: np.random.Generator, count: int) -> list[np.random.Generator]:
    """Independent child generators, one a task: the result does not depend on who runs which task."""
    return list(rng.spawn(count))
