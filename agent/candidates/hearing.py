"""A worker's end of its tap: what the parent tells about the other version, as it comes. Worker side."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

from agent.candidates.terms import MAX_TERMS_BYTES, Terms, decode_terms

MOST_AT_ONCE = 16


class Hearing:
    """`heard` is called on the loop's thread with the terms, and with the new connection where there is one."""

    def __init__(self, tap: int, heard: Callable[[Terms, socket.socket | None], None]) -> None:
        self._tap = socket.socket(fileno=tap)
        self._heard = heard

    def start(self) -> None:
        self._tap.setblocking(False)
        asyncio.get_running_loop().add_reader(self._tap, self._hear)

    def stop(self) -> None:
        """Idempotent."""
        if self._tap.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._tap)
            self._tap.close()

    def _hear(self) -> None:
        for _ in range(MOST_AT_ONCE):
            if self._tap.fileno() < 0:
                return
            try:
                data, handles, _, _ = socket.recv_fds(self._tap, MAX_TERMS_BYTES, 1)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                data, handles = b"", []
            if not data:  # the parent is gone, and so are we soon
                self.stop()
                return
            terms, pipe = decode_terms(data), _socket(handles)
            if terms is not None:
                self._heard(terms, pipe)
            elif pipe is not None:
                pipe.close()


def _socket(handles: list[int]) -> socket.socket | None:
    for extra in handles[1:]:
        os.close(extra)
    if not handles:
        return None
    pipe = socket.socket(fileno=handles[0])
    pipe.setblocking(False)
    return pipe
