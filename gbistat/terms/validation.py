"""Checked records: pydantic models whose complaints are one or two lines that a person can act on.

Every JSON or YAML structure that gbistat reads is a `Record`; `validate` turns plain data into one and translates
what pydantic finds wrong into the caller's error class.
"""

from __future__ import annotations

import json
import types
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, Strict, Tag, ValidationError

from gbistat.errors import GbistatError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic_core import ErrorDetails

    from gbistat.typing import Json

__all__ = ["Count", "Flag", "Interval", "JsonDict", "NonNegative", "Number", "Positive", "Record", "Text", "validate"]


class Record(BaseModel):
    """Frozen record that refuses unknown keys; what it holds is plain JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)

    def to_json(self) -> Json:
        """Plain JSON data, under the names used on disk."""
        data: Json = self.model_dump(mode="json", by_alias=True)
        return data


def _ordered(interval: tuple[float, float]) -> tuple[float, float]:
    low, high = interval
    if low >= high:
        raise ValueError(f"[{low:g}, {high:g}] is empty; write the lower edge first: [low, high]")
    return interval


# Strict scalars: a number written as text, or 0 where a flag belongs, is a mistake to report and not to repair.
Text = Annotated[str, Strict(), Field(min_length=1)]
Number = Annotated[float, Strict()]
NonNegative = Annotated[float, Strict(), Field(ge=0.0)]
Positive = Annotated[float, Strict(), Field(gt=0.0)]
Count = Annotated[int, Strict(), Field(ge=0)]
Flag = Annotated[bool, Strict()]
Interval = Annotated[tuple[Number, Number], AfterValidator(_ordered)]
JsonDict = dict[str, JsonValue]

RecordType = TypeVar("RecordType", bound=BaseModel)


def validate(kind: type[RecordType], data: object, *, error: type[GbistatError], where: str) -> RecordType:
    """Record made of plain data, or a short message about the first thing that is wrong with it.

    Parameters
    ----------
    kind : type
        The `Record` to make.
    data : object
        What ``json.loads`` or ``yaml.safe_load`` returned.
    error : type
        Class of the error to raise: `TermError` for a term, `CardError` for a run card.
    where : str
        What the data is, first words of the message: usually the file's path.

    Returns
    -------
    Record
        An instance of `kind`.

    Raises
    ------
    GbistatError
        Of class `error`: names the field's path, its value, and what is allowed; for an unknown key the nearest
        known ones. If several fields are wrong, the others are listed by path in a second line.

    Examples
    --------
    >>> from gbistat.errors import CardError
    >>> class Options(Record):
    ...     level: Number = 0.95
    >>> validate(Options, {"level": 0.9}, error=CardError, where="card.yaml").level
    0.9
    >>> validate(Options, {"levle": 0.9}, error=CardError, where="card.yaml")
    Traceback (most recent call last):
    gbistat.errors.CardError: card.yaml: unknown key 'levle'; nearest names: level
    """
    try:
        return kind.model_validate(data)
    except ValidationError as problem:
        raise error(f"{where}: {_message(kind, problem.errors(include_url=False))}") from None


def _message(kind: type[BaseModel], details: list[ErrorDetails]) -> str:
    text = _describe(kind, details[0])
    first = _path(kind, details[0]["loc"])
    others = dict.fromkeys(path for item in details[1:] if (path := _path(kind, item["loc"])) != first)
    if others:
        text += "\nalso wrong: " + ", ".join(list(others)[:6]) + (", ..." if len(others) > 6 else "")
    return text


def _describe(kind: type[BaseModel], item: ErrorDetails) -> str:
    path, problem, value = _path(kind, item["loc"]), item["type"], item["input"]
    context: Mapping[str, Any] = item.get("ctx", {})
    if problem == "extra_forbidden":
        parent = _path(kind, item["loc"][:-1])
        inside = f" in {parent}" if parent else ""
        return f"unknown key {str(item['loc'][-1])!r}{inside}; {nearest(str(item['loc'][-1]), _keys(kind, item['loc'][:-1]))}"
    if problem == "missing":
        return f"{path} is missing; add it"
    if problem == "value_error":
        return f"{path}: {context['error']}" if path else str(context["error"])
    if problem == "literal_error":
        return f"{path} is {_shown(value)}; allowed: {context['expected']}"
    wanted = _WANTED.get(problem, "")
    if problem in _BOUNDS:
        relation, key = _BOUNDS[problem]
        wanted = f"must be {relation} {context[key]:g}"
    if problem == "float_type" and isinstance(value, str) and _is_number(value):
        # YAML 1.1 needs a dot in the mantissa.
        wanted += "; it is text here: write it without quotes, and in YAML 1.0e-3 instead of 1e-3"
    if problem in ("too_short", "too_long"):
        most = problem == "too_long"
        wanted = f"must have at {'most' if most else 'least'} {context['max_length' if most else 'min_length']} item(s)"
    if problem == "string_pattern_mismatch":
        wanted = f"must match the pattern {context['pattern']}"
    shown = f"{path or 'the whole content'} is {_shown(value)}"
    return f"{shown}; it {wanted}" if wanted else f"{shown}: {item['msg']}"


_WANTED = {
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "dict_type": "must be a mapping of names to values",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "mapping_type": "must be a mapping of names to values",
    "model_type": "must be a mapping of names to values",
    "string_too_short": "must not be empty",
    "string_type": "must be text",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
}
_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def _shown(value: object) -> str:
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _path(kind: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """Location as a person writes it, ``features[1].unit``, without pydantic's names of union members."""
    text = ""
    for element, _ in _walk(kind, location):
        if isinstance(element, int):
            text += f"[{element}]"
        else:
            text += f".{element}" if text else element
    return text


def _keys(kind: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Keys that the record at a location knows."""
    steps = _walk(kind, location)
    record = _bare(steps[-1][1]) if steps else kind
    if isinstance(record, type) and issubclass(record, BaseModel):
        return [field.alias or name for name, field in record.model_fields.items()]
    return []


def _walk(kind: type[BaseModel], location: tuple[int | str, ...]) -> list[tuple[int | str, Any]]:
    """Elements of a location that stand in the data, each with the type annotation found there."""
    steps: list[tuple[int | str, Any]] = []
    current: Any = kind
    for element in location:
        tagged = _union_member(current, element)
        if tagged is not None:
            current = tagged
            if steps:
                steps[-1] = (steps[-1][0], current)
            continue
        current = _child(_bare(current), element)
        steps.append((element, current))
    return steps


def _child(current: Any, element: int | str) -> Any:
    if isinstance(current, type) and issubclass(current, BaseModel):
        for name, field in current.model_fields.items():
            if element in (name, field.alias):
                return field.annotation
        return None
    arguments = get_args(current)
    if get_origin(current) is tuple and arguments:
        fixed = arguments[-1] is not Ellipsis and isinstance(element, int) and element < len(arguments)
        return arguments[element] if fixed and isinstance(element, int) else arguments[0]
    return arguments[-1] if arguments else None


def _members(annotation: Any) -> list[Any]:
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for member in get_args(annotation) if member is not type(None)]
    return [annotation]


def _union_member(annotation: Any, tag: int | str) -> Any:
    for member in _members(annotation):
        tags = [mark.tag for mark in get_args(member)[1:] if isinstance(mark, Tag)]
        if tag in tags:
            return get_args(member)[0]
    return None


def _bare(annotation: Any) -> Any:
    """Annotation without ``Annotated`` and ``None``: the first member that can hold something."""
    members = _members(annotation)
    chosen = next((m for m in members if get_args(m) or (isinstance(m, type) and issubclass(m, BaseModel))), members[0])
    return _members(chosen)[0] if get_origin(chosen) is Annotated else chosen
