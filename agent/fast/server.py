"""Accepts the clients of the shared-memory path on the inherited socket, gives each a thread, and drains them.

Runs on the worker's event loop; what happens on one connection is `seat`'s. Made by `agent.sandbox.session`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import threading

from agent.endpoint.exchange import Guard
from agent.endpoint.guard import barred
from agent.fast import wire
from agent.fast.seat import Seat, Service

log = logging.getLogger(__name__)

MAX_CLIENTS = 32
ACCEPT_BATCH = 16
ACCEPT_PAUSE_S = 1.0  # when the process has no descriptor left
# How long a thread may keep the interpreter's lock while another waits. By default 5 ms, for which a client would wait
# whenever the loop counts what was predicted; a switch that nobody waits for is none and costs nothing.
SWITCH_S = 0.0002
STACK_BYTES = 2 * 1024 * 1024  # of a client's thread: what a process may map is limited


class FastEndpoint:
    """start(), then drain(); both once. At most `most` clients at once."""

    def __init__(self, service: Service, guard: Guard, sock: socket.socket, most: int = MAX_CLIENTS) -> None:
        self._service = service
        self._sock = sock
        self._guard = guard
        self._most = most
        self._listening: socket.socket | None = None
        self._seats: set[Seat] = set()
        self._empty = asyncio.Event()

    def start(self) -> None:
        """Another process may accept on the same socket; whoever is first serves."""
        sys.setswitchinterval(SWITCH_S)
        self._sock.setblocking(False)
        self._listening = self._sock
        asyncio.get_running_loop().add_reader(self._sock, self._accept)

    async def drain(self, deadline_s: float) -> int:
        """Accepts no more and answers what was sent; clients then go to the next worker. Returns how many were cut."""
        sock, self._listening = self._listening, None
        if sock is None:
            return 0
        asyncio.get_running_loop().remove_reader(sock)
        sock.close()
        self._empty.clear()
        for seat in self._seats:
            seat.finish()
        if self._seats:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(deadline_s):
                    await self._empty.wait()
        left = list(self._seats)
        for seat in left:
            seat.cut()
        return sum(seat.busy for seat in left)

    def _accept(self) -> None:
        for _ in range(ACCEPT_BATCH):
            sock = self._listening
            if sock is None:
                return
            try:
                client, _ = sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.error("accepting on shared memory pauses for %s s: %s", ACCEPT_PAUSE_S, error)
                self._pause(sock)
                return
            self._admit(client)

    def _pause(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(sock)
        loop.call_later(ACCEPT_PAUSE_S, lambda: self._listening and loop.add_reader(sock, self._accept))

    def _admit(self, client: socket.socket) -> None:
        stranger = barred(self._guard, client)
        if stranger is not None:
            self._turn_away(client, stranger.status, str(stranger))
        elif len(self._seats) >= self._most:
            text = f"expected at most {self._most} clients of shared memory at once, got more: close one, or use HTTP"
            self._turn_away(client, 503, text)
        else:
            self._seat(client)

    def _seat(self, client: socket.socket) -> None:
        client.setblocking(True)
        loop = asyncio.get_running_loop()
        seat = Seat(client, self._service, loop)

        def serve() -> None:
            try:
                seat.serve()
            finally:
                with contextlib.suppress(RuntimeError):  # the loop has ended, and the process does
                    loop.call_soon_threadsafe(self._left, seat)

        before = threading.stack_size(STACK_BYTES)
        try:
            threading.Thread(target=serve, name="fast-client", daemon=True).start()
        except RuntimeError as error:
            self._turn_away(client, 503, f"no room for another client: {error}")
            return
        finally:
            threading.stack_size(before)
        self._seats.add(seat)

    def _left(self, seat: Seat) -> None:
        self._seats.discard(seat)
        if not self._seats:
            self._empty.set()

    def _turn_away(self, client: socket.socket, status: int, text: str) -> None:
        self._service.refused(status)
        with client, contextlib.suppress(OSError):
            client.setblocking(False)
            client.send(wire.refused(status, text))
