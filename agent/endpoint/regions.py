"""Regions of POSIX shared memory that clients register, to pass tensors by name instead of by value.

Triton's system shared memory extension: a region is a part of a file below /dev/shm, by its key. What is read is
copied at once, since its client may write to it the next moment. Only where this device allows it, see `Given`.
Called by `oip` and `rendering`.
Source: Triton's protocol extension_shared_memory.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from agent.endpoint.exchange import Refused

FOLDER = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lives, not a temporary file
MAX_REGIONS = 64
MAX_REGION_BYTES = 1024 * 1024 * 1024
MAX_NAME = 256
_KEY = re.compile(r"/?[A-Za-z0-9][A-Za-z0-9._-]{0,254}")


class Registration(msgspec.Struct):
    """What a client says of a region."""

    key: str
    byte_size: int
    offset: int = 0


class Region(msgspec.Struct):
    """A part of a file, mapped for writing: `skip` bytes of the map come before it. Reading goes by the descriptor,
    which does not mind a file that becomes shorter; writing by it would be forbidden by the limit on files.
    """

    said: Registration
    handle: int
    view: mmap.mmap
    skip: int

    def close(self) -> None:
        os.close(self.handle)
        self.view.close()


class Span(msgspec.Struct, frozen=True):
    """Where a tensor lies: in the region of that name."""

    name: str
    offset: int
    size: int


class Regions:
    """Those registered now. `allowed`: whether this device lets clients share memory with a module."""

    def __init__(self, *, allowed: bool, folder: Path = FOLDER) -> None:
        self.allowed = allowed
        self._folder = folder
        self._known: dict[str, Region] = {}

    def register(self, name: str, said: Registration) -> None:
        """Raises Refused."""
        self._check_allowed()
        if not name or len(name) > MAX_NAME:
            raise Refused(400, f"region: expected a name of 1 to {MAX_NAME} characters, got {len(name)}")
        if name in self._known:
            raise Refused(400, f"region {name}: expected a new name, got one that is registered")
        if len(self._known) >= MAX_REGIONS:
            raise Refused(400, f"region {name}: expected at most {MAX_REGIONS} regions, got one more")
        if _KEY.fullmatch(said.key) is None:
            raise Refused(400, f"region {name}: expected the key of shared memory, got {said.key[:80]!r}")
        if said.offset < 0 or not 1 <= said.byte_size <= MAX_REGION_BYTES:
            raise Refused(400, f"region {name}: expected an offset of 0 or more and 1 to {MAX_REGION_BYTES} bytes")
        self._known[name] = self._mapped(name, said)

    def unregister(self, name: str) -> None:
        """One, or all by the empty name; one that is not there is no error, as with Triton."""
        for one in [name] if name else list(self._known):
            region = self._known.pop(one, None)
            if region is not None:
                region.close()

    def status(self, name: str = "") -> list[dict[str, object]]:
        """Raises Refused when there is none of that name."""
        self._check_allowed()
        if name and name not in self._known:
            raise Refused(400, f"region {name[:80]!r}: expected one that is registered")
        return [
            {"name": one, **msgspec.structs.asdict(region.said)}
            for one, region in self._known.items()
            if not name or one == name
        ]

    def span(self, where: str, parameters: Mapping[str, Any] | None) -> Span | None:
        """What a tensor's parameters say, if they speak of a region. Raises Refused."""
        if not parameters or "shared_memory_region" not in parameters:
            return None
        if not self.allowed:
            raise Refused(400, f"{where}: expected data in the request, got a shared memory region, {_NOT_ALLOWED}")
        name, offset = parameters["shared_memory_region"], parameters.get("shared_memory_offset", 0)
        size = parameters.get("shared_memory_byte_size")
        region = self._known.get(name) if isinstance(name, str) else None
        if region is None:
            raise Refused(400, f"{where}: expected a region that is registered, got {str(name)[:80]!r}")
        if type(offset) is not int or type(size) is not int or offset < 0 or size < 0:
            raise Refused(400, f"{where}: expected shared_memory_byte_size and shared_memory_offset as numbers")
        if offset + size > region.said.byte_size:
            raise Refused(400, f"{where}: expected at most {region.said.byte_size} bytes, got {offset} + {size}")
        return Span(str(name), offset, size)

    def read(self, span: Span) -> bytes:
        """A copy. Raises Refused."""
        region = self._still(span)
        data = os.pread(region.handle, span.size, region.said.offset + span.offset)
        if len(data) < span.size:
            raise Refused(400, f"region {span.name}: expected {span.size} bytes, got {len(data)}: it was made shorter")
        return data

    def write(self, where: str, span: Span, data: bytes) -> None:
        """Raises Refused when it does not fit."""
        region = self._still(span)
        if len(data) > span.size:
            raise Refused(400, f"{where}: expected a region of {len(data)} bytes at least, got {span.size}")
        start = region.skip + span.offset
        region.view[start : start + len(data)] = data

    def _still(self, span: Span) -> Region:
        """The region, whose file is still as long as it was: writing behind its end would end the worker."""
        region = self._known.get(span.name)
        if region is None:
            raise Refused(400, f"region {span.name}: it was unregistered meanwhile")
        if region.view.size() < region.said.offset + region.said.byte_size:
            self.unregister(span.name)
            raise Refused(400, f"region {span.name}: it was made shorter, and is unregistered now")
        return region

    def _check_allowed(self) -> None:
        if not self.allowed:
            raise Refused(400, f"systemsharedmemory: {_NOT_ALLOWED}")

    def _mapped(self, name: str, said: Registration) -> Region:
        path = self._folder / said.key.lstrip("/")
        try:
            number = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise Refused(400, f"region {name}: cannot open {said.key}: {os.strerror(error.errno or 0)}") from None
        try:
            found = os.fstat(number)
            if not stat.S_ISREG(found.st_mode) or found.st_size < said.offset + said.byte_size:
                text = f"expected {said.offset + said.byte_size} bytes in {said.key}, got {found.st_size}"
                raise Refused(400, f"region {name}: {text}")
            skip = said.offset % mmap.ALLOCATIONGRANULARITY
            view = mmap.mmap(number, skip + said.byte_size, offset=said.offset - skip)
        except OSError as error:
            os.close(number)
            raise Refused(400, f"region {name}: cannot map {said.key}: {error}") from None
        except Refused:
            os.close(number)
            raise
        return Region(said, number, view, skip)


_NOT_ALLOWED = "which this device does not allow (setting serving.shared_memory)"
