"""What a worker prints, kept in one bounded file: STATE/logs/<module>.log and one older `.log.1`.

Each line begins with the time at which it came (UTC), because a module's own words need not say when.

The worker writes into a pipe; the agent's loop moves the bytes to the file. A worker that floods its output is read
no faster than a budget, so it can fill neither the disk nor the agent's time: it waits, nobody else does.
Made by `agent.sandbox.host`; read by `agent.asked.lines`.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ")
MAX_LOG_BYTES = 1024 * 1024
MAX_BYTES_PER_S = 256 * 1024
TAIL_BYTES = 4096


class RotatingLog:
    """Appends to `path`; beyond `limit_bytes` the file becomes `<path>.1` and a new one begins.

    `stamped`: whether each line gets the time at which it begins.
    """

    def __init__(
        self,
        path: Path,
        limit_bytes: int = MAX_LOG_BYTES,
        stamped: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._limit = limit_bytes
        self._stamped = stamped
        self._clock = clock
        self._within = False  # a line that is not ended
        self._file: BinaryIO | None = None

    def write(self, data: bytes) -> None:
        """A full or broken disk drops the words: a log never stops a module."""
        try:
            file = self._open()
            file.write(self._with_times(data) if self._stamped else data)
            if file.tell() > self._limit:
                self.close()
                os.replace(self._path, self._path.with_name(self._path.name + ".1"))
        except OSError:
            self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _with_times(self, data: bytes) -> bytes:
        stamp = stamp_of(self._clock())
        whole, newline, rest = data.rpartition(b"\n")
        first = b"" if self._within else stamp
        self._within = bool(rest) if newline else bool(data)
        if not newline:
            return first + data if data else b""
        lines = first + whole.replace(b"\n", b"\n" + stamp) + newline
        return lines + stamp + rest if rest else lines

    def _open(self) -> BinaryIO:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)
        return self._file


def stamp_of(at: float) -> bytes:
    """What a line begins with that came then (seconds since the epoch)."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ ", time.gmtime(at)).encode()


def unstamped(line: str) -> str:
    """The line as it was printed."""
    return STAMP.sub("", line, count=1) if STAMP.match(line) else line


class LogPipe(asyncio.Protocol):
    """Reads a worker's output pipe into a RotatingLog, at most MAX_BYTES_PER_S."""

    def __init__(self, log: RotatingLog) -> None:
        self._log = log
        self._transport: asyncio.ReadTransport | None = None
        self._budget = MAX_BYTES_PER_S
        self._refill: asyncio.TimerHandle | None = None
        self.ended = asyncio.Event()  # nothing more will come
        self.tail = b""  # of what was printed; the file may have another worker's words, too

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.ReadTransport)  # noqa: S101 - what connect_read_pipe gives
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._log.write(data)
        self.tail = (self.tail + data[-TAIL_BYTES:])[-TAIL_BYTES:]
        self._budget -= len(data)
        if self._refill is None:
            self._refill = asyncio.get_running_loop().call_later(1.0, self._resume)
        if self._budget <= 0 and self._transport is not None:
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._refill is not None:
            self._refill.cancel()
        self._log.close()
        self.ended.set()

    def finish(self) -> None:
        """The worker is gone: what it has said last is in the pipe, and worth reading now."""
        if self._refill is not None:
            self._refill.cancel()
        self._resume()

    def _resume(self) -> None:
        self._refill = None
        self._budget = MAX_BYTES_PER_S
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
