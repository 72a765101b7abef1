"""Where the tensors lie in a model file: name, type, shape and byte range, by walking only what is needed.

ONNX (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto), safetensors (its header is JSON). A file that is
neither, or that is damaged, has no tensors: the encoder then goes by its bytes alone.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from cloud_hub.patches.encode_tflite import tflite_tensors
from cloud_hub.patches.encode_types import Buffer, Element, Tensor

_SAFETENSORS = {
    "F64": Element(True, 8), "F32": Element(True, 4), "F16": Element(True, 2), "BF16": Element(True, 2),
    "I64": Element(False, 8), "I32": Element(False, 4), "I16": Element(False, 2), "I8": Element(False, 1),
    "U64": Element(False, 8), "U32": Element(False, 4), "U16": Element(False, 2), "U8": Element(False, 1),
    "BOOL": Element(False, 1), "F8_E5M2": Element(True, 1), "F8_E4M3": Element(True, 1),
}  # fmt: skip
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
_MAX_HEADER = 100 << 20
_MAX_DEPTH = 8


def find_tensors(data: Buffer) -> list[Tensor]:
    """The tensors by their place, none overlapping another; empty if the file is of no kind we know."""
    for reader in (_safetensors, tflite_tensors, _onnx):
        try:
            found = sorted(reader(data), key=lambda tensor: tensor.start)
        except (ValueError, KeyError, IndexError, TypeError, struct.error, msgspec.MsgspecError, RecursionError):
            continue
        if found:
            return _without_overlaps(found, len(data))
    return []


def _without_overlaps(tensors: list[Tensor], size: int) -> list[Tensor]:
    kept: list[Tensor] = []
    for tensor in tensors:
        behind = kept[-1].end if kept else 0
        if behind <= tensor.start < tensor.end <= size:
            kept.append(tensor)
    return kept


class _Entry(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def _safetensors(data: Buffer) -> Iterator[Tensor]:
    length = int.from_bytes(data[:8], "little")
    if length > min(_MAX_HEADER, len(data) - 8) or data[8:9] != b"{":
        return
    header = msgspec.json.decode(data[8 : 8 + length], type=dict[str, msgspec.Raw])
    for name, raw in header.items():
        if name == "__metadata__":
            continue
        entry = msgspec.json.decode(raw, type=_Entry)
        if entry.dtype in _SAFETENSORS:
            start, end = (8 + length + offset for offset in entry.data_offsets)
            yield Tensor(name, _SAFETENSORS[entry.dtype], entry.shape, start, end)


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


def _onnx(data: Buffer) -> Iterator[Tensor]:
    for field in _fields(data, 0, len(data)):
        if field.number == _MODEL_GRAPH:
            yield from _graph(data, field, "", _MAX_DEPTH)


def _graph(data: Buffer, graph: _Field, within: str, depth: int) -> Iterator[Tensor]:
    if not depth:
        raise ValueError("graphs within graphs without end")
    for field in _fields(data, graph.start, graph.end):
        if field.number == _GRAPH_INITIALIZER:
            yield from _tensor(data, field, within)
        elif field.number == _GRAPH_NODE:
            yield from _node(data, field, within, depth)


def _node(data: Buffer, node: _Field, within: str, depth: int) -> Iterator[Tensor]:
    """Constants have no name of their own: the node's first output is as good."""
    fields = list(_fields(data, node.start, node.end))
    outputs = [bytes(data[field.start : field.end]).decode() for field in fields if field.number == _NODE_OUTPUT]
    name = f"{within}/{outputs[0] if outputs else ''}"
    for attribute in fields:
        if attribute.number == _NODE_ATTRIBUTE:
            for field in _fields(data, attribute.start, attribute.end):
                if field.number == _ATTRIBUTE_TENSOR:
                    yield from _tensor(data, field, name)
                elif field.number == _ATTRIBUTE_GRAPH:
                    yield from _graph(data, field, name, depth - 1)


def _tensor(data: Buffer, tensor: _Field, within: str) -> Iterator[Tensor]:
    name, kind, shape, place = "", 0, [], None
    for field in _fields(data, tensor.start, tensor.end):
        if field.number == _TENSOR_DIMS:
            shape.append(field.value)
        elif field.number == _TENSOR_TYPE:
            kind = field.value
        elif field.number == _TENSOR_NAME:
            name = bytes(data[field.start : field.end]).decode()
        elif field.number in (_TENSOR_RAW, _TENSOR_FLOATS, _TENSOR_DOUBLES) and field.end > field.start:
            place = field
    element = _ONNX.get(kind)
    if place is not None and element is not None and (place.end - place.start) % element.width == 0:
        yield Tensor(f"{within}/{name}", element, tuple(shape), place.start, place.end)
