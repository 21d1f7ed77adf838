"""Merging campaigns of one plan: any number of jobs, in any order."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gbistat.errors import ToyFileError
from gbistat.inference.campaign import Campaign, rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbistat.inference.campaign import CampaignPlan, Columns

__all__ = ["merge_campaigns"]


def merge_campaigns(campaigns: Sequence[Campaign], names: Sequence[str] | None = None) -> Campaign:
    """Put campaigns of one plan together; the result does not depend on their order.

    Parameters
    ----------
    campaigns : sequence of Campaign
        At least one. Where one holds a longer version of a chunk (it was asked for more toys), that one is taken.
    names : sequence of str, optional
        What they are called in messages, usually their files.

    Returns
    -------
    Campaign
        All chunks; at each point the largest number of toys that one of the plans asks for.

    Raises
    ------
    ToyFileError
        If the plans differ in more than the number of toys (another model, seed, points, settings), or one chunk differs
        between two of them.
    """
    if not campaigns:
        raise ToyFileError("no files of toys to merge; give at least one")
    called = list(names) if names is not None else [f"campaign {i}" for i in range(len(campaigns))]
    first = campaigns[0]
    chunks: dict[tuple[int, int], Columns] = {}
    owner: dict[tuple[int, int], str] = {}
    versions: dict[str, set[str]] = {}
    n_toys = np.array(first.plan.n_toys)
    kinds = _Kinds()
    for campaign, name in zip(campaigns, called, strict=True):
        first.plan.check_same(campaign.plan, called[0], name)
        n_toys = np.maximum(n_toys, campaign.plan.n_toys)
        for package, found in campaign.versions.items():
            versions.setdefault(package, set()).update(found)
        for place, chunk in campaign.chunks.items():
            kinds.check(place[0], chunk, name)
            held = chunks.get(place)
            if held is not None and rows(held) == rows(chunk):
                _check_equal(first.plan, place, held, chunk, owner[place], name)
            if held is None or rows(chunk) > rows(held):
                chunks[place], owner[place] = chunk, name
    plan = replace(first.plan, n_toys=tuple(int(n) for n in n_toys))
    merged = {package: tuple(sorted(versions[package])) for package in sorted(versions)}
    return Campaign(plan, chunks, merged)


class _Kinds:
    """Columns seen so far: every chunk at a point has the same, and a column is of one kind everywhere."""

    def __init__(self) -> None:
        self._by_point: dict[int, tuple[tuple[str, ...], str]] = {}
        self._by_name: dict[str, tuple[tuple[str, tuple[int, ...]], str]] = {}

    def check(self, point: int, chunk: Columns, owner: str) -> None:
        """Check one more chunk."""
        names, first = self._by_point.setdefault(point, (tuple(chunk), owner))
        odd = set(names) ^ set(chunk)
        for name, array in chunk.items():
            kind = (array.dtype.str, array.shape[1:])
            known, other = self._by_name.setdefault(name, (kind, owner))
            if known != kind:
                odd.add(name)
                first = other
        if odd:
            raise ToyFileError(
                f"{first} and {owner} do not have the same columns: {', '.join(sorted(odd))} differ(s); they were made by "
                "different versions of the work"
            )


def _check_equal(
    plan: CampaignPlan, place: tuple[int, int], one: Columns, other: Columns, mine: str, others: str
) -> None:
    for name in one:
        if one[name].tobytes() != other[name].tobytes():
            raise ToyFileError(
                f"{mine} and {others} both hold chunk {place[1]} at {plan.describe(place[0])}, and its column {name!r} "
                "differs: they come from different versions or processors; drop one of the files"
            )
