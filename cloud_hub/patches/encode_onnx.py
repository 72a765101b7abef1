"""Tensors of an ONNX file, by walking its protobuf without loading it.

Source of the fields: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto. Tensors whose bytes lie in another file
("external data") are told for that file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from cloud_hub.patches.encode_types import Buffer, Element, Tensor

_ONNX = {
    1: Element(True, 4), 2: Element(False, 1), 3: Element(False, 1), 4: Element(False, 2), 5: Element(False, 2),
    6: Element(False, 4), 7: Element(False, 8), 9: Element(False, 1), 10: Element(True, 2), 11: Element(True, 8),
    12: Element(False, 4), 13: Element(False, 8), 16: Element(True, 2), 17: Element(True, 1), 18: Element(True, 1),
    19: Element(True, 1), 20: Element(True, 1), 21: Element(False, 1), 22: Element(False, 1),
}  # fmt: skip
# Fields of ModelProto, GraphProto, NodeProto, AttributeProto and TensorProto.
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_OUTPUT, _NODE_ATTRIBUTE = 2, 5
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH = 5, 6
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_FLOATS, _TENSOR_NAME, _TENSOR_RAW, _TENSOR_DOUBLES = 1, 2, 4, 8, 9, 10
_TENSOR_EXTERNAL, _ENTRY_KEY, _ENTRY_VALUE = 13, 1, 2
_MAX_DEPTH = 8
# Of the model itself; a file that is something else could look like millions.
_MOST_FIELDS = 10_000


class _Field(NamedTuple):
    number: int
    value: int  # of a varint
    start: int  # of anything else
    end: int


def _varint(data: Buffer, at: int) -> tuple[int, int]:
    value = 0
    for place in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << place
        if byte < 0x80:
            return value, at
    raise ValueError("a varint without an end")


def _fields(data: Buffer, at: int, end: int) -> Iterator[_Field]:
    """The fields of one protobuf message (https://protobuf.dev/programming-guides/encoding/), unopened."""
    while at < end:
        tag, at = _varint(data, at)
        value, start = 0, at
        if tag & 7 == 0:
            value, at = _varint(data, at)
        elif tag & 7 == 2:
            length, start = _varint(data, at)
            at = start + length
        elif tag & 7 in (1, 5):
            at += 8 if tag & 7 == 1 else 4
        else:
            raise ValueError("a field of a kind that protobuf does not have")
        if at > end:
            raise ValueError("a field behind the end of its message")
        yield _Field(tag >> 3, value, start, at)


def onnx_tensors(data: Buffer) -> Iterator[Tensor]:
    """Those whose bytes are in this file. Raises ValueError or IndexError if it is damaged or not ONNX."""
    for name, tensor in _tensors(data):
        kind, shape, place, _ = _described(data, tensor)
        if place is not None:
            yield from _checked(name, kind, shape, place.start, place.end)


def external_tensors(data: Buffer, location: str) -> Iterator[Tensor]:
    """Those whose bytes are in the file at `location`."""
    for name, tensor in _tensors(data):
        kind, shape, _, entries = _described(data, tensor)
        if entries.get("location") == location and "length" in entries:
            start = int(entries.get("offset", "0"))
            yield from _checked(name, kind, shape, start, start + int(entries["length"]))


def _checked(name: str, kind: int, shape: tuple[int, ...], start: int, end: int) -> Iterator[Tensor]:
    element = _ONNX.get(kind)
    if element is not None and (end - start) % element.width == 0:
        yield Tensor(name, element, shape, start, end)


def _tensors(data: Buffer) -> Iterator[tuple[str, _Field]]:
    for number, field in enumerate(_fields(data, 0, len(data))):
        if number > _MOST_FIELDS or not field.number:
            raise ValueError("this is no ONNX model")
        if field.number == _MODEL_GRAPH:
            yield from _graph(data, field, "", _MAX_DEPTH)


def _graph(data: Buffer, graph: _Field, within: str, depth: int) -> Iterator[tuple[str, _Field]]:
    if not depth:
        raise ValueError("graphs within graphs without end")
    for field in _fields(data, graph.start, graph.end):
        if field.number == _GRAPH_INITIALIZER:
            yield f"{within}/{_text(data, field, _TENSOR_NAME)}", field
        elif field.number == _GRAPH_NODE:
            yield from _node(data, field, within, depth)


def _node(data: Buffer, node: _Field, within: str, depth: int) -> Iterator[tuple[str, _Field]]:
    """Constants have no name of their own: the node's first output is as good."""
    name = f"{within}/{_text(data, node, _NODE_OUTPUT)}"
    for attribute in _fields(data, node.start, node.end):
        if attribute.number == _NODE_ATTRIBUTE:
            for field in _fields(data, attribute.start, attribute.end):
                if field.number == _ATTRIBUTE_TENSOR:
                    yield name, field
                elif field.number == _ATTRIBUTE_GRAPH:
                    yield from _graph(data, field, name, depth - 1)


def _described(data: Buffer, tensor: _Field) -> tuple[int, tuple[int, ...], _Field | None, dict[str, str]]:
    """Type, shape, where the bytes are in this file, and what is said of another file."""
    kind, shape, place, entries = 0, [], None, {}
    for field in _fields(data, tensor.start, tensor.end):
        if field.number == _TENSOR_DIMS:
            shape.append(field.value)
        elif field.number == _TENSOR_TYPE:
            kind = field.value
        elif field.number == _TENSOR_EXTERNAL:
            entries[_text(data, field, _ENTRY_KEY)] = _text(data, field, _ENTRY_VALUE)
        elif field.number in (_TENSOR_RAW, _TENSOR_FLOATS, _TENSOR_DOUBLES) and field.end > field.start:
            place = field
    return kind, tuple(shape), place, entries


def _text(data: Buffer, message: _Field, number: int) -> str:
    """The message's first text of that number."""
    for field in _fields(data, message.start, message.end):
        if field.number == number:
            return bytes(data[field.start : field.end]).decode()
    return ""
