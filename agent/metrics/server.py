"""Answers GET /metrics, and nothing else, for whoever is on this machine or in its network. One unit of the supervisor.

Small on purpose: one request per connection, few at a time, each within a deadline. Made by `agent.service`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat
from collections.abc import Callable
from typing import Final

from agent.metrics.page import CONTENT_TYPE, Facts, page
from agent.metrics.settings import MetricsSettings

MAX_HEAD_BYTES: Final = 8192
MAX_CONNECTIONS: Final = 8
REQUEST_S: Final = 5.0
RETRY_S: Final = 30.0
_SOCKET_MODE: Final = 0o660

log = logging.getLogger(__name__)


class MetricsServer:
    """`facts` is called on the loop for each scrape."""

    def __init__(self, settings: MetricsSettings, facts: Callable[[], Facts]) -> None:
        self._settings = settings
        self._facts = facts
        self._open = 0

    async def run(self) -> None:
        """Until cancelled. A place that cannot be had is tried again."""
        while True:
            try:
                server = await self._start()
            except OSError as error:
                log.warning("metrics are not offered, trying again", extra={"why": str(error)})
                await asyncio.sleep(RETRY_S)
                continue
            async with server:
                await server.serve_forever()

    async def _start(self) -> asyncio.Server:
        if not self._settings.path:
            host, port = self._settings.place
            return await asyncio.start_server(self._serve, host, port, limit=MAX_HEAD_BYTES)
        _make_room(self._settings.path)
        server = await asyncio.start_unix_server(self._serve, self._settings.path, limit=MAX_HEAD_BYTES)
        os.chmod(self._settings.path, _SOCKET_MODE)
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= MAX_CONNECTIONS:
                async with asyncio.timeout(REQUEST_S):
                    writer.write(self._answer(await reader.readuntil(b"\r\n\r\n")))
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return  # whoever it was: too slow, too much, or gone
        finally:
            self._open -= 1
            writer.close()

    def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        target = rest.partition(b" ")[0].partition(b"?")[0]
        if target != b"/metrics":
            return _reply(b"404 Not Found", b"expected /metrics\n")
        if method != b"GET":
            return _reply(b"405 Method Not Allowed", b"expected GET\n", b"Allow: GET\r\n")
        return _reply(b"200 OK", page(self._facts()).encode())


def _make_room(path: str) -> None:
    """Takes away the socket of an agent that is no more; this one holds the lock. Raises OSError for another file."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(f"{path}: expected a socket or nothing, found another file")
        os.unlink(path)


def _reply(status: bytes, body: bytes, more: bytes = b"") -> bytes:
    kind = CONTENT_TYPE.encode()
    head = b"HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n%s\r\n"
    return head % (status, kind, len(body), more) + body
