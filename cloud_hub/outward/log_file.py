"""Events in a file, one JSON object per line, put aside when it is large: FILE, FILE.1, FILE.2 and so on.

A line is whole or not there: what a power cut left of one is taken off before the next is written, and its event
comes again. Other programs may follow the file by its name. Called by `room` through `sinks`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cloud_hub.outward.cloud_events import CloudEvent, encode

_MODE: Final = 0o600
_TAIL: Final = 1024 * 1024  # more than the longest line


class LogFile:
    """Up to `files` files of about `max_bytes` bytes."""

    def __init__(self, path: Path, max_bytes: int, files: int) -> None:
        self._path, self._max_bytes, self._files = path, max_bytes, files

    async def take(self, events: Sequence[CloudEvent]) -> None:
        """On the disk when it returns. Raises OSError."""
        await asyncio.to_thread(self._write, b"".join(encode(event) + b"\n" for event in events))

    def _write(self, lines: bytes) -> None:
        if self._path.is_file() and self._path.stat().st_size + len(lines) > self._max_bytes:
            self._put_aside()
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE)
        with os.fdopen(handle, "r+b") as file:
            file.seek(_whole_lines(file.fileno()))
            file.truncate()
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())

    def _put_aside(self) -> None:
        for number in range(self._files - 1, 0, -1):
            older = self._numbered(number)
            newer = self._numbered(number - 1) if number > 1 else self._path
            if newer.exists():
                os.replace(newer, older)
        if self._files == 1:
            self._path.unlink(missing_ok=True)

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


def _whole_lines(handle: int) -> int:
    """Up to where the file consists of whole lines."""
    size = os.fstat(handle).st_size
    start = max(0, size - _TAIL)
    tail = os.pread(handle, size - start, start)
    return size if tail.endswith(b"\n") else start + tail.rfind(b"\n") + 1
