"""What files of toys say about themselves, as checked records."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from gbistat.errors import OptionError, ToyFileError
from gbistat.inference.campaign import CampaignPlan
from gbistat.terms.validation import Count, JsonDict, Number, Record, Text

__all__ = ["ColumnRecord", "Header", "JournalHeader", "PlanRecord"]


class PlanRecord(Record):
    """Plan; see :class:`gbistat.inference.campaign.CampaignPlan`."""

    work: Text
    model_sha256: Text
    parameters: tuple[Text, ...]
    points: tuple[tuple[Number, ...], ...]
    n_toys: tuple[Count, ...]
    seed: Count
    chunk_size: Count
    settings: JsonDict

    def plan(self, where: str) -> CampaignPlan:
        """Plan itself.

        Raises
        ------
        ToyFileError
            If its parts contradict each other.
        """
        try:
            points = np.array(self.points, dtype=np.float64)
            return CampaignPlan(
                self.work,
                self.model_sha256,
                self.parameters,
                points,
                self.n_toys,
                self.seed,
                self.chunk_size,
                dict(self.settings),
            )
        except (OptionError, ValueError) as error:
            raise ToyFileError(f"{where} is damaged: such a plan cannot be: {error}") from None


class ColumnRecord(Record):
    """Type and shape of one row of a column, and the points whose toys have it."""

    dtype: Annotated[str, Field(pattern=r"^[<|][biuf][0-9]+$")]
    shape: tuple[Count, ...]
    points: tuple[Count, ...]


class Header(Record):
    """Header of a file of toys."""

    schema_name: Literal["gbistat.toys/1"] = Field(alias="schema")
    plan: PlanRecord
    plan_sha256: Text
    versions: dict[str, tuple[Text, ...]]
    columns: dict[str, ColumnRecord]
    n_toys: Count


class JournalHeader(Record):
    """Plan record of a journal."""

    schema_name: Literal["gbistat.toys-journal/1"] = Field(alias="schema")
    plan: PlanRecord
    versions: dict[str, tuple[Text, ...]]
