"""Whom long work tells about its steps: a progress bar, or nobody."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = ["Steps", "silent"]


class Steps(Protocol):
    """Told about each step of long work: a progress bar, or nothing."""

    def __call__(self, description: str) -> AbstractContextManager[object]:
        """Context of one step."""


def silent(description: str) -> AbstractContextManager[object]:
    """Nobody."""
    return nullcontext()
