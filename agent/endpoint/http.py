"""HTTP/1.1 on the inherited listening sockets: accepting, the sweep over deadlines, and the drain.

Called by the worker. What happens on one connection is `connection`'s. Accepts by itself: asyncio's Server loses a
connection that was accepted in the moment it is closed, which is the moment of every hand-over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

from agent.endpoint.connection import Connection, Shared
from agent.endpoint.exchange import Guard, Handler, Limits

log = logging.getLogger(__name__)

ACCEPT_BATCH = 16  # connections taken before those that are open get their turn
ACCEPT_PAUSE_S = 1.0  # when the process has no descriptor left


class Endpoint:
    """Serves `handler`. start(), then drain(); both once. `tls` gives the context of each new connection."""

    def __init__(
        self,
        handler: Handler,
        limits: Limits,
        tls: Callable[[], ssl.SSLContext] | None = None,
        guard: Guard | None = None,
    ) -> None:
        self._shared = Shared(handler, limits, guard)
        self._tls = tls
        self._listening: list[socket.socket] = []
        self._accepting: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self, sockets: list[socket.socket]) -> None:
        """Another process may accept on the same sockets; whoever is first serves."""
        for sock in sockets:
            sock.setblocking(False)
            self._listening.append(sock)
            self._resume(sock)
        self._sweeper = asyncio.create_task(self._sweep(), name="endpoint-sweeper")

    async def drain(self, deadline_s: float) -> int:
        """Accepts no more; answers what is under way and what still comes on open connections, each with its last
        reply; closes idle ones at the deadline. Returns how many were cut with a request under way.
        """
        self._shared.draining = True
        for sock in self._listening:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()
        self._listening.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                await asyncio.gather(*self._accepting)
                await self._shared.wait_empty()
        left = list(self._shared.open)
        cut = sum(connection.under_way for connection in left)
        for connection in left:
            connection.leave()
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait([self._sweeper], timeout=1.0)
        return cut

    def _resume(self, sock: socket.socket) -> None:
        if sock in self._listening:  # not drained meanwhile
            asyncio.get_running_loop().add_reader(sock, self._accept, sock)

    def _accept(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(ACCEPT_BATCH):
            try:
                client, _address = sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.error("accepting pauses for %s s: %s", ACCEPT_PAUSE_S, error)
                loop.remove_reader(sock)
                loop.call_later(ACCEPT_PAUSE_S, self._resume, sock)
                return
            task = loop.create_task(self._open(client), name="endpoint-accept")
            self._accepting.add(task)
            task.add_done_callback(self._accepting.discard)

    async def _open(self, client: socket.socket) -> None:
        client.setblocking(False)
        limits = self._shared.limits
        try:
            if self._tls is None:
                secure: dict[str, Any] = {}
            elif len(self._accepting) + len(self._shared.open) > 2 * limits.connections:
                raise ConnectionAbortedError("too many connections")  # handshakes cost, and count as well
            else:
                secure = {"ssl": self._tls(), "ssl_handshake_timeout": limits.head_s, "ssl_shutdown_timeout": 1.0}
            loop = asyncio.get_running_loop()
            await loop.connect_accepted_socket(lambda: Connection(self._shared), client, **secure)
        except OSError:
            client.close()

    async def _sweep(self) -> None:
        """One timer for all deadlines: a timer per connection would cost more than the requests."""
        while True:
            await asyncio.sleep(self._shared.limits.sweep_s)
            now = time.monotonic()
            for connection in list(self._shared.open):
                connection.check_deadline(now)
