"""What an ONNX file says it is, and which files it names beside itself, read from its bytes without `onnx`.

A walk over the protobuf wire format that descends only where a TensorProto can be. Called by the ONNX backend before
the runtime opens the model, because a location such as ../../key is not to be followed, and because the runtime
follows hard links and guesses formats.
Source: onnx.proto (field numbers), protobuf encoding (wire types); CVE-2026-34445 (keys that are attributes).
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

MAX_DEPTH = 64
MAX_NUMBER = 2**63 - 1
_FORMAT_MARK = b"ORTM"  # at byte 4 of the runtime's own format, which is not protobuf
_IR_VERSION, _GRAPH = 1, 7
# Message -> field number -> message inside. Everything else is stepped over.
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_KEY, _VALUE = 1, 2
_NUMBERS = ("offset", "length")
_KEYS = frozenset({"location", "checksum", *_NUMBERS})


class External(msgspec.Struct, frozen=True):
    """Where one tensor's values lie. A `length` of 0 is up to the end."""

    location: str
    offset: int = 0
    length: int = 0


def external_files(path: Path) -> set[External]:
    """The external data that the model names. Raises ValueError when it is no ONNX model, or describes external data
    in words that ONNX does not have; OSError.
    """
    with path.open("rb") as file:
        if file.seek(0, 2) == 0:
            raise ValueError("expected an ONNX model, got an empty file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[4:8] == _FORMAT_MARK:
                raise ValueError("expected an ONNX model, got ONNX Runtime's own format")
            top = {number for number, _, _ in _fields(data, 0, len(data), numbers=True)}
            if not {_IR_VERSION, _GRAPH} <= top:
                raise ValueError("expected an ONNX model, got something without a version or a graph")
            return set(_walk(data, 0, len(data), "model", 0))


def check_contained(named: External, path: Path) -> None:
    """That what the model names lies within the file `path`, a plain file. Raises ValueError; OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        size = os.fstat(handle).st_size
    finally:
        os.close(handle)
    if named.offset + named.length > size:
        end = named.offset + named.length
        raise ValueError(f"external data in {named.location!r}: expected to end at {size} or before, got {end}")


def _walk(data: mmap.mmap, start: int, end: int, message: str, depth: int) -> Iterator[External]:
    if depth > MAX_DEPTH:
        raise ValueError(f"expected an ONNX model nested at most {MAX_DEPTH} deep")
    inside = _INSIDE[message]
    entries: dict[str, str] = {}
    for number, low, high in _fields(data, start, end):
        kind = inside.get(number)
        if kind == "entry":
            entry = {field: data[a:b] for field, a, b in _fields(data, low, high)}
            key = entry.get(_KEY, b"").decode(errors="replace")
            if key in entries:
                raise ValueError(f"external data: expected {key} once, got it twice")
            entries[key] = entry.get(_VALUE, b"").decode(errors="replace")
        elif kind is not None:
            yield from _walk(data, low, high, kind, depth + 1)
    if entries:
        yield _external(entries)


def _external(entries: dict[str, str]) -> External:
    strange = sorted(set(entries) - _KEYS)
    if strange:
        raise ValueError(f"external data: expected {', '.join(sorted(_KEYS))}, got {strange[0][:80]!r}")
    numbers = {name: _number(name, entries[name]) for name in _NUMBERS if name in entries}
    return External(entries.get("location", ""), **numbers)


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= MAX_NUMBER):
        raise ValueError(f"external data: expected {name} as a whole number from 0, got {text[:40]!r}")
    return int(text)


def _fields(data: mmap.mmap, start: int, end: int, numbers: bool = False) -> Iterator[tuple[int, int, int]]:
    """Field number and byte range of every length-delimited field; with `numbers` those of numbers too."""
    at = start
    while at < end:
        tag, at = _varint(data, at, end)
        wire = tag & 7
        if wire == 0:
            low = at
            _, at = _varint(data, at, end)
            if numbers:
                yield tag >> 3, low, at
        elif wire == 2:
            size, at = _varint(data, at, end)
            if at + size > end:
                raise ValueError(f"expected an ONNX model, got a field that ends {at + size - end} bytes too late")
            yield tag >> 3, at, at + size
            at += size
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise ValueError(f"expected an ONNX model, got wire type {wire} at byte {at}")


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError(f"expected an ONNX model, got a broken number at byte {at}")
