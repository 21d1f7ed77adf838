"""Which network of a density learned from data saw which events: the ``cross_fit`` part of ``term.json``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from gbistat.terms.validation import Count, Number, Record, Text

__all__ = ["CrossFit", "CrossFitMember", "FoldSpec"]


class FoldSpec(Record):
    """How events are dealt to folds; `gbistat.terms.folds.FoldRule` computes it.

    Parameters
    ----------
    n_folds : int
        Number of folds, two at least.
    seed : int
        Start of the hash.
    columns : sequence of str
        Mass and features that are hashed, in this order.
    algorithm : str
        Name of rounding and hash.
    """

    n_folds: Annotated[Count, Field(ge=2)]
    seed: Count
    columns: Annotated[tuple[Text, ...], Field(min_length=1)]
    algorithm: Text


class CrossFitMember(Record):
    """One network of a cross-fitted density.

    Parameters
    ----------
    fold : int
        The fold whose events it never saw.
    fraction : float
        Fraction w of signal to use with it: fitted to events outside the fold which the networks did not see.
    trained_with : float, optional
        w in the loss of its training: fixed, learned, or the best of a scan.
    """

    fold: Count
    fraction: Annotated[Number, Field(gt=0.0, lt=1.0)]
    trained_with: Annotated[Number, Field(gt=0.0, lt=1.0)] | None = None


class CrossFit(Record):
    """Which network of a density learned from data saw which events.

    Parameters
    ----------
    rule : FoldSpec
        Fold of an event.
    mode : {"learnable", "fixed", "scan"}
        Whether w was learned in the training, held fixed, or chosen from fixed ones.
    members : sequence of CrossFitMember
        In the order of the term's members; fold by fold, the same number in each.
    train_on : {"others", "earlier"}
        Folds that the networks of a fold saw: all others, or those before it (the first fold's: all others).
    """

    rule: FoldSpec
    mode: Literal["learnable", "fixed", "scan"]
    train_on: Literal["others", "earlier"] = "others"
    members: Annotated[tuple[CrossFitMember, ...], Field(min_length=2)]

    @model_validator(mode="after")
    def _check_folds(self) -> Self:
        k = self.rule.n_folds
        each, left = divmod(len(self.members), k)
        if left or [member.fold for member in self.members] != [fold for fold in range(k) for _ in range(each)]:
            raise ValueError(
                f"{len(self.members)} members of the folds {[member.fold for member in self.members]} are not ordered fold by "
                f"fold with the same number in each of {k} folds"
            )
        return self
