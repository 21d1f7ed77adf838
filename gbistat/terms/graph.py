"""Check that an ONNX graph is whole and self-contained, without onnx or onnxruntime.

A tensor of an ONNX file may keep its values in another file. Older onnxruntimes follow such a reference to any path,
even for a graph given as bytes, and newer ones take some locations as memory addresses. Exported terms never need
this, so a graph with a reference is refused before any runtime sees it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gbistat.errors import TermError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["check_graph"]

# Messages and fields of onnx.proto3 that lead to tensors: message -> field number -> message inside.
_INSIDE: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_EXTERNAL_DATA, _DATA_LOCATION, _GRAPH = 13, 14, 7
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DEEPEST = 64


def check_graph(content: bytes, where: str) -> None:
    """Check that bytes are an ONNX model that holds all its values itself.

    Parameters
    ----------
    content : bytes
        The file.
    where : str
        The file's name, for the message.

    Raises
    ------
    TermError
        If the bytes are not an ONNX model, are cut off, or a tensor keeps its values elsewhere.

    Notes
    -----
    Reads the protocol-buffer wire format along the fields that can hold a tensor. Operators, types and shapes are
    left to onnxruntime.
    """
    view = memoryview(content)
    try:
        has_graph = any(number == _GRAPH for number, _, _ in _fields(view))
        external = _has_external(view, "model", 0)
    except _Malformed as problem:
        raise TermError(
            f"{where} is not a readable ONNX graph ({problem}; {len(content)} bytes); "
            "copy the file again or export the term again (gbistat export)"
        ) from None
    if not has_graph:
        raise TermError(
            f"{where} is not an ONNX graph: its {len(content)} bytes hold no graph; export the term again (gbistat export)"
        )
    if external:
        raise TermError(
            f"{where} keeps tensor values in another file, which is refused: a term is self-contained; "
            "export the graph with its weights inside (onnx.save without external data)"
        )


class _Malformed(Exception):
    """The bytes do not follow the wire format."""


def _has_external(message: memoryview, kind: str, depth: int) -> bool:
    if depth > _DEEPEST:
        raise _Malformed(f"messages nested more than {_DEEPEST} deep")
    inside = _INSIDE[kind]
    for number, wire_type, value in _fields(message):
        if kind == "tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)):
            return True
        child = inside.get(number)
        if child is None:
            continue
        if wire_type != _BYTES or not isinstance(value, memoryview):
            raise _Malformed(f"field {number} of a {kind} is not a message")
        if _has_external(value, child, depth + 1):
            return True
    return False


def _fields(message: memoryview) -> Iterator[tuple[int, int, memoryview | int]]:
    """Field number, wire type and value of each field of one message."""
    position, end = 0, len(message)
    while position < end:
        key, position = _varint(message, position)
        # Parsers keep 32 bits of a key: a longer one would be another field to them than to this check.
        number, wire_type = key >> 3, key & 7
        if number == 0 or key >= 1 << 32:
            raise _Malformed(f"no field at byte {position}")
        if wire_type == _VARINT:
            value, position = _varint(message, position)
            yield number, wire_type, value
            continue
        if wire_type == _BYTES:
            size, position = _varint(message, position)
        elif wire_type in (_FIXED64, _FIXED32):
            size = 8 if wire_type == _FIXED64 else 4
        else:
            raise _Malformed(f"unknown wire type {wire_type} at byte {position}")
        if position + size > end:
            raise _Malformed(f"cut off: {size} bytes announced, {end - position} left")
        yield number, wire_type, message[position : position + size]
        position += size


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(message) and shift < 70:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise _Malformed(f"a number is cut off at byte {position}")
