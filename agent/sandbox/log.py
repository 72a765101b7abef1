"""What a worker prints, kept in one bounded file: STATE/logs/<module>.log and one older `.log.1`.

The worker writes into a pipe; the agent's loop moves the bytes to the file. A worker that floods its output is read
no faster than a budget, so it can fill neither the disk nor the agent's time: it waits, nobody else does.
Made by `agent.sandbox.host`.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import BinaryIO

MAX_LOG_BYTES = 1024 * 1024
MAX_BYTES_PER_S = 256 * 1024
TAIL_BYTES = 4096


class RotatingLog:
    """Appends to `path`; beyond `limit_bytes` the file becomes `<path>.1` and a new one begins."""

    def __init__(self, path: Path, limit_bytes: int = MAX_LOG_BYTES) -> None:
        self._path = path
        self._limit = limit_bytes
        self._file: BinaryIO | None = None

    def write(self, data: bytes) -> None:
        """A full or broken disk drops the words: a log never stops a module."""
        try:
            file = self._open()
            file.write(data)
            if file.tell() > self._limit:
                self.close()
                os.replace(self._path, self._path.with_name(self._path.name + ".1"))
        except OSError:
            self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> BinaryIO:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)
        return self._file


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
