"""Tensors as bytes: the Open Inference Protocol's datatypes, sizes and the `Tensor` that samples and goldens carry.

No NumPy here: the agent's parent and the hub handle tensors without looking inside. The worker turns them into
arrays. Source: Open Inference Protocol v2 (datatypes; binary tensors are little-endian, row-major, unpadded).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from modules.errors import MALFORMED, TensorError

# Bytes per element; BYTES is a 4-byte little-endian length and the element, so it has no fixed size.
ITEM_SIZE = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "FP32": 4,
    "FP64": 8,
}
# The same as codes that NumPy reads, little-endian.
NUMPY_CODES = {
    "BOOL": "?",
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
# What ONNX Runtime calls them.
ONNX_TYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
DATATYPES = frozenset(ITEM_SIZE) | {"BYTES"}


class TensorSpec(msgspec.Struct, frozen=True):
    """Name, datatype and shape of a model's input or output; -1 is a free dimension.

    `labels` names the classes of an output, or the features of an input's last dimension, in order. An output that is
    `unserved` is profiled and sampled like others and never answered, such as an embedding that tells of drift; agents
    of before version 0.2 would answer it.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    labels: tuple[str, ...] = ()
    unserved: bool | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        if not self.name:
            raise TensorError("tensor spec: expected a name, got an empty one")
        _check_datatype(self.name, self.datatype)
        if any(size < -1 or size == 0 for size in self.shape):
            raise TensorError(f"tensor {self.name}: expected sizes of at least 1 or -1, got {list(self.shape)}")


def served(outputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Those that are answered."""
    return tuple(spec for spec in outputs if not spec.unserved)


class Tensor(msgspec.Struct, frozen=True):
    """One tensor with its bytes, little-endian and row-major."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes

    def __post_init__(self) -> None:
        _check_datatype(self.name, self.datatype)
        if any(size < 0 for size in self.shape):
            raise TensorError(f"tensor {self.name}: expected sizes of at least 0, got {list(self.shape)}")
        if self.datatype in ITEM_SIZE:
            expected = math.prod(self.shape) * ITEM_SIZE[self.datatype]
            if len(self.data) != expected:
                raise TensorError(
                    f"tensor {self.name}: expected {expected} bytes for {self.datatype} {list(self.shape)}, "
                    f"got {len(self.data)}"
                )


class GoldenCase(msgspec.Struct, frozen=True):
    """One known answer: what goes in, and what must come out."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class GoldenSet(msgspec.Struct, frozen=True):
    """The self-test that a module carries in its file `golden.msgpack`."""

    cases: tuple[GoldenCase, ...]


def encode_golden(golden: GoldenSet) -> bytes:
    return msgspec.msgpack.encode(golden)


def decode_golden(data: bytes) -> GoldenSet:
    """Raises TensorError when the bytes are not a golden set."""
    try:
        return msgspec.msgpack.decode(data, type=GoldenSet)
    except MALFORMED as error:
        raise TensorError(f"golden set: {error}") from error


def _check_datatype(name: str, datatype: str) -> None:
    if datatype not in DATATYPES:
        raise TensorError(f"tensor {name}: expected one of {', '.join(sorted(DATATYPES))}, got {datatype!r}")
