"""The last predictions of a module, kept on the device in a file of fixed size, so that the hub can ask for some later.

The agent makes the file and gives the worker its descriptor; the worker writes through a mapping, so the confinement
needs no place to write, and what was written outlives a worker that crashes. Records stand one behind the other and
wrap around; the oldest go when bytes, rows or age run out, and are blanked. A record that a power cut has torn is found
by its checksum, and ends what is read. Values are as the model saw them: redaction happens when a row leaves.

    0     two headers of 64 bytes, written in turn: sequence, tail, head, number of the next row, checksum
    128   records: length, checksum, MessagePack of Record; a length of 0 means: go on at 128

Used by `agent.sampling.taking`; the file is `agent.rings`'.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from modules.errors import MALFORMED
from modules.tensors import Tensor

START = 128
_HEADER = struct.Struct("<QQQQI")
_RECORD = struct.Struct("<II")
_BLANK = bytes(64 * 1024)


class Record(msgspec.Struct, frozen=True, array_like=True):
    """Rows of one run: an id for each, and tensors in which they lie one below the other."""

    at: float
    ids: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class Entry:
    """Where a record lies; `first` is the number of its first row."""

    offset: int
    size: int
    first: int
    at: float
    ids: tuple[str, ...]

    @property
    def rows(self) -> int:
        return len(self.ids)


class Ring:
    """`rows`, `age_s` bound what is kept beside the file's size; both may be changed."""

    def __init__(self, handle: int, rows: int, age_s: float) -> None:
        """Goes on with what an earlier worker has left. Raises OSError, ValueError where the file is too small."""
        self.size = os.fstat(handle).st_size
        self._map = mmap.mmap(handle, self.size)
        self.rows, self.age_s = rows, age_s
        self._entries: deque[Entry] = deque()
        self._kept = 0  # rows
        self._sequence, self._tail, self._head, self._next = 0, START, START, 1
        self._recover()

    @property
    def next_row(self) -> int:
        """The number that the next row gets; numbers only grow."""
        return self._next

    @property
    def kept(self) -> int:
        """How many rows it holds."""
        return self._kept

    def append(self, record: Record) -> int:
        """The number of the record's first row; 0 where it is too large to be kept."""
        body = msgspec.msgpack.encode(record)
        size, count = _RECORD.size + len(body), len(record.ids)
        if size > (self.size - START) // 2 or count > self.rows:
            return 0
        self._forget(record.at, count)
        offset = self._room(size)
        self._write_header()  # what made room is gone before it is written over
        self._map[offset + _RECORD.size : offset + size] = body
        _RECORD.pack_into(self._map, offset, len(body), zlib.crc32(body))
        first = self._next
        self._entries.append(Entry(offset, size, first, record.at, record.ids))
        self._kept += count
        self._head, self._next = offset + size, first + count
        self._write_header()
        return first

    def expire(self, now: float) -> None:
        """Blanks what is too old."""
        if self._forget(now, 0):
            self._write_header()

    def newest(self) -> Iterator[Entry]:
        """The newest first; what is appended meanwhile is not among them."""
        return iter(list(reversed(self._entries)))

    def read(self, entry: Entry) -> Record | None:
        """None where it has gone meanwhile, or is not what was written."""
        if not self._entries or entry.first < self._entries[0].first:
            return None
        return self._read_at(entry.offset)

    def clear(self) -> None:
        """Blanks everything."""
        while self._entries:
            self._drop()
        self._tail = self._head = START
        self._write_header()

    def close(self) -> None:
        self._map.close()

    def _forget(self, now: float, coming: int) -> bool:
        before = len(self._entries)
        while self._entries and (self._kept + coming > self.rows or self._entries[0].at < now - self.age_s):
            self._drop()
        return len(self._entries) < before

    def _room(self, size: int) -> int:
        """Where `size` bytes can go; what is in the way goes first."""
        offset = self._head
        if offset + size > self.size:
            while self._entries and self._entries[0].offset >= offset:
                self._drop()  # they lie behind the head, where the rest of the file will be skipped
            if offset + _RECORD.size <= self.size:
                _RECORD.pack_into(self._map, offset, 0, 0)
            offset = START
        while self._entries and _overlap(self._entries[0], offset, size):
            self._drop()
        if not self._entries:
            self._tail = offset
        return offset

    def _drop(self) -> None:
        entry = self._entries.popleft()
        self._kept -= entry.rows
        for start in range(entry.offset, entry.offset + entry.size, len(_BLANK)):
            stop = min(start + len(_BLANK), entry.offset + entry.size)
            self._map[start:stop] = _BLANK[: stop - start]
        self._tail = self._entries[0].offset if self._entries else self._head

    def _write_header(self) -> None:
        self._sequence += 1
        body = struct.pack("<QQQQ", self._sequence, self._tail, self._head, self._next)
        _HEADER.pack_into(
            self._map, 64 * (self._sequence % 2), self._sequence, self._tail, self._head, self._next, zlib.crc32(body)
        )

    def _recover(self) -> None:
        """Raises ValueError."""
        if self.size < 4 * START:
            raise ValueError(f"ring: expected a file of at least {4 * START} bytes, got {self.size}")
        headers = [header for at in (0, 64) if (header := self._header(at)) is not None]
        if not headers:
            self._write_header()
            return
        self._sequence, self._tail, self._head, self._next = max(headers)
        found = self._follow()
        first = self._next - sum(len(record.ids) for _, record in found)
        for offset, record in found:
            size = _RECORD.size + _RECORD.unpack_from(self._map, offset)[0]
            self._entries.append(Entry(offset, size, first, record.at, record.ids))
            first += len(record.ids)
            self._kept += len(record.ids)

    def _header(self, at: int) -> tuple[int, int, int, int] | None:
        sequence, tail, head, next_, checksum = _HEADER.unpack_from(self._map, at)
        sound = zlib.crc32(struct.pack("<QQQQ", sequence, tail, head, next_)) == checksum and sequence > 0
        fits = START <= tail <= self.size and START <= head <= self.size and next_ > 0
        return (sequence, tail, head, next_) if sound and fits else None

    def _follow(self) -> list[tuple[int, Record]]:
        """Every record from the tail to the head; one that is torn makes all before it of no use, too."""
        found: list[tuple[int, Record]] = []
        offset, read = self._tail, 0
        while offset != self._head and read < self.size:
            skip = offset + _RECORD.size > self.size or _RECORD.unpack_from(self._map, offset)[0] == 0
            if skip and offset <= self._head:
                break  # there is nothing to wrap around for
            if skip:
                offset = START
                continue
            record = self._read_at(offset)
            if record is None:
                break
            found.append((offset, record))
            size = _RECORD.size + _RECORD.unpack_from(self._map, offset)[0]
            offset, read = offset + size, read + size
        if offset != self._head:
            self._map[START:] = bytes(self.size - START)
            self._tail = self._head = START
            return []
        return found

    def _read_at(self, offset: int) -> Record | None:
        length, checksum = _RECORD.unpack_from(self._map, offset)
        body = self._map[offset + _RECORD.size : offset + _RECORD.size + length]
        if not length or len(body) != length or zlib.crc32(body) != checksum:
            return None
        try:
            return msgspec.msgpack.decode(body, type=Record)
        except MALFORMED:
            return None


def _overlap(entry: Entry, offset: int, size: int) -> bool:
    return entry.offset < offset + size and offset < entry.offset + entry.size
