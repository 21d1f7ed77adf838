"""JSON Schemas of ``model.json`` and ``term.json``, for programs that read or write models without gbistat.

The files beside this module are made from the records that gbistat itself checks files with; after a change of these, write them again::

    python -c "from gbistat.terms.schemas import write_schemas; write_schemas()"
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gbistat.errors import OptionError, nearest
from gbistat.terms.metadata import TERM_SCHEMA, TermMetadata, json_schema
from gbistat.terms.model_spec import MODEL_SCHEMA, ModelSpec

if TYPE_CHECKING:
    from gbistat.terms.validation import Record
    from gbistat.typing import Json

__all__ = ["KINDS", "current_schema", "published_schema", "write_schemas"]

KINDS: Final[dict[str, tuple[str, type[Record]]]] = {
    "model": (MODEL_SCHEMA, ModelSpec),
    "term": (TERM_SCHEMA, TermMetadata),
}
"""What has a schema: its name inside files, and its record."""
DIALECT = "https://json-schema.org/draft/2020-12/schema"
FOLDER = Path(__file__).resolve().parent


def current_schema(kind: str) -> Json:
    """JSON Schema of the record itself.

    Parameters
    ----------
    kind : {"model", "term"}
        ``model.json`` or ``term.json``.

    Raises
    ------
    OptionError
        If there is no such kind.
    """
    if kind not in KINDS:
        raise OptionError(f"there is no JSON Schema of {kind!r}; {nearest(kind, KINDS)}")
    name, record = KINDS[kind]
    return {"$schema": DIALECT, "$id": f"urn:{name.replace('/', ':')}", **json_schema(record)}


def published_schema(kind: str) -> Json:
    """JSON Schema as it comes with gbistat.

    Examples
    --------
    >>> published_schema("model")["$id"]
    'urn:gbistat.model:1'

    Raises
    ------
    OptionError
        If there is no such kind.
    """
    if kind not in KINDS:
        raise OptionError(f"there is no JSON Schema of {kind!r}; {nearest(kind, KINDS)}")
    result: Json = json.loads((FOLDER / f"{kind}.schema.json").read_text(encoding="utf-8"))
    return result


def write_schemas(folder: Path = FOLDER) -> None:
    """Write all JSON Schemas anew."""
    for kind in KINDS:
        text = json.dumps(current_schema(kind), indent=2, sort_keys=True) + "\n"
        (folder / f"{kind}.schema.json").write_text(text, encoding="utf-8")
