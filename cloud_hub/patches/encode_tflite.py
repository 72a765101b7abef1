"""Tensors of a TFLite file, by walking its flatbuffer.

Sources: https://flatbuffers.dev/internals/ for tables and vectors, tensorflow/lite/schema/schema.fbs for the places of
the fields below. A buffer that several tensors share is told once; one that lies behind the flatbuffer (files
over 2 GiB) has its offset and size in the table.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from cloud_hub.patches.encode_types import Buffer, Element, Tensor

_ELEMENTS = {
    0: Element(True, 4), 1: Element(True, 2), 2: Element(False, 4), 3: Element(False, 1), 4: Element(False, 8),
    6: Element(False, 1), 7: Element(False, 2), 9: Element(False, 1), 10: Element(True, 8), 12: Element(False, 8),
    15: Element(False, 4), 16: Element(False, 2), 17: Element(False, 1), 18: Element(True, 2),
}  # fmt: skip
_MAGIC = b"TFL3"
_MODEL_SUBGRAPHS, _MODEL_BUFFERS = 2, 4
_SUBGRAPH_TENSORS = 0
_TENSOR_SHAPE, _TENSOR_TYPE, _TENSOR_BUFFER, _TENSOR_NAME = 0, 1, 2, 3
_BUFFER_DATA, _BUFFER_OFFSET, _BUFFER_SIZE = 0, 1, 2
# A damaged file can name the same table again and again.
_MOST_TENSORS = 1_000_000


def tflite_tensors(data: Buffer) -> Iterator[Tensor]:
    """In the order of the file's tables. Raises ValueError or struct.error for a file that is damaged."""
    if data[4:8] != _MAGIC:
        return
    model = _Table(data, _number(data, 0, "<I"))
    buffers = list(model.tables(_MODEL_BUFFERS))
    subgraphs = model.tables(_MODEL_SUBGRAPHS)
    tables = (table for subgraph in subgraphs for table in subgraph.tables(_SUBGRAPH_TENSORS))
    told = set()
    for count, table in enumerate(tables):
        if count > _MOST_TENSORS:
            raise ValueError("more tensors than any model has")
        number = table.scalar(_TENSOR_BUFFER, "<I")
        element = _ELEMENTS.get(table.scalar(_TENSOR_TYPE, "<b"))
        start, size = _place(buffers[number])
        if number not in told and element is not None and size and size % element.width == 0:
            told.add(number)
            yield Tensor(table.text(_TENSOR_NAME), element, table.numbers(_TENSOR_SHAPE), start, start + size)


class _Table:
    """A flatbuffer table: its fields are found through its vtable."""

    def __init__(self, data: Buffer, at: int) -> None:
        self._data = data
        self._at = at
        self._vtable = at - _number(data, at, "<i")
        self._size = _number(data, self._vtable, "<H")

    def _field(self, number: int) -> int | None:
        """Where the field lies; None if it has its default."""
        entry = 4 + 2 * number
        offset = _number(self._data, self._vtable + entry, "<H") if entry + 2 <= self._size else 0
        return self._at + offset if offset else None

    def scalar(self, number: int, kind: str) -> int:
        at = self._field(number)
        return 0 if at is None else _number(self._data, at, kind)

    def vector(self, number: int) -> tuple[int, int]:
        """Where the first element lies, and how many there are."""
        at = self._field(number)
        if at is None:
            return 0, 0
        start = at + _number(self._data, at, "<I")
        count = _number(self._data, start, "<I")
        if count > len(self._data) - start:
            raise ValueError("a vector longer than its file")
        return start + 4, count

    def tables(self, number: int) -> Iterator[_Table]:
        start, count = self.vector(number)
        for at in range(start, start + 4 * count, 4):
            yield _Table(self._data, at + _number(self._data, at, "<I"))

    def numbers(self, number: int) -> tuple[int, ...]:
        start, count = self.vector(number)
        return struct.unpack_from(f"<{count}i", self._data, start)

    def text(self, number: int) -> str:
        start, count = self.vector(number)
        return bytes(self._data[start : start + count]).decode(errors="replace")


def _place(buffer: _Table) -> tuple[int, int]:
    size = buffer.scalar(_BUFFER_SIZE, "<Q")
    if size > 1:  # 0 and 1 mean that the bytes are in the table itself
        return buffer.scalar(_BUFFER_OFFSET, "<Q"), size
    return buffer.vector(_BUFFER_DATA)


def _number(data: Buffer, at: int, kind: str) -> int:
    if at < 0:
        raise ValueError("an offset before the file")
    value: int = struct.unpack_from(kind, data, at)[0]
    return value
