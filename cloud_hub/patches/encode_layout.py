"""Where the tensors lie in a model file: name, type, shape and byte range, by walking only what is needed.

A file that is neither ONNX nor TFLite nor safetensors (its header is JSON), or that is damaged, has no tensors: the
encoder then goes by its bytes alone.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from cloud_hub.patches.encode_onnx import external_tensors, onnx_tensors
from cloud_hub.patches.encode_tflite import tflite_tensors
from cloud_hub.patches.encode_types import Buffer, Element, Tensor

_SAFETENSORS = {
    "F64": Element(True, 8), "F32": Element(True, 4), "F16": Element(True, 2), "BF16": Element(True, 2),
    "I64": Element(False, 8), "I32": Element(False, 4), "I16": Element(False, 2), "I8": Element(False, 1),
    "U64": Element(False, 8), "U32": Element(False, 4), "U16": Element(False, 2), "U8": Element(False, 1),
    "BOOL": Element(False, 1), "F8_E5M2": Element(True, 1), "F8_E4M3": Element(True, 1),
}  # fmt: skip
_MAX_HEADER = 100 << 20


def find_tensors(data: Buffer) -> list[Tensor]:
    """The tensors by their place, none overlapping another; empty if the file is of no kind we know."""
    for reader in (_safetensors, tflite_tensors, onnx_tensors):
        try:
            found = sorted(reader(data), key=lambda tensor: tensor.start)
        except (ValueError, KeyError, IndexError, TypeError, struct.error, msgspec.MsgspecError, RecursionError):
            continue
        if found:
            return _without_overlaps(found, len(data))
    return []


def find_external(model: Buffer, location: str, size: int) -> list[Tensor]:
    """The tensors that an ONNX model keeps in the file that it calls `location`, of `size` bytes."""
    try:
        found = sorted(external_tensors(model, location), key=lambda tensor: tensor.start)
    except (ValueError, IndexError):
        return []
    return _without_overlaps(found, size)


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
