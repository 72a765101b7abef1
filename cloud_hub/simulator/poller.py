"""One epoll set below the event loop: a socket of a simulated device costs an entry in it and in a dictionary.

asyncio keeps a handle, a key and a transport for each socket, and 256 KiB for each TLS connection: ten thousand of
them would take three gigabytes. Called by `wire`; `fleet` opens and closes it.
"""

from __future__ import annotations

import asyncio
import logging
import select
from typing import Protocol

AT_ONCE = 64  # sockets looked after before the loop gets its turn: at most 64 TLS handshakes

log = logging.getLogger(__name__)


class Ready(Protocol):
    """Whoever owns a socket. Must not raise."""

    def ready(self, events: int) -> None: ...


class Poller:
    """`open` before the first socket, `close` after the last."""

    def __init__(self) -> None:
        self._epoll: select.epoll | None = None
        self._owners: dict[int, Ready] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self) -> None:
        self._loop, self._epoll = asyncio.get_running_loop(), select.epoll()
        self._loop.add_reader(self._epoll.fileno(), self._look)

    def close(self) -> None:
        if self._epoll is not None and self._loop is not None:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def add(self, socket: int, owner: Ready, events: int) -> None:
        self._owners[socket] = owner
        self._set.register(socket, events)

    def change(self, socket: int, events: int) -> None:
        self._set.modify(socket, events)

    def remove(self, socket: int) -> None:
        if self._owners.pop(socket, None) is not None:
            self._set.unregister(socket)

    def again(self, owner: Ready, events: int) -> None:
        """As if the socket were ready, in the loop's next round: TLS holds bytes that epoll knows nothing of."""
        asyncio.get_running_loop().call_soon(owner.ready, events)

    @property
    def _set(self) -> select.epoll:
        if self._epoll is None:
            raise RuntimeError("the poller is not open")
        return self._epoll

    def _look(self) -> None:
        for socket, events in self._set.poll(0, AT_ONCE):
            owner = self._owners.get(socket)
            if owner is not None:
                owner.ready(events)
