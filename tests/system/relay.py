"""The wire between a device and its broker: bytes pass unread (TLS goes end to end), are counted, and can be held.

Lets a test stop a download at a known byte, and tell afterwards whether anything came twice.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self

BLOCK = 64 * 1024


class Relay:
    """Listens on `port`, connects to `target`. `received` counts bytes to the device, over all connections."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self.received = 0
        self.held = asyncio.Event()  # the limit is reached
        self._target = target
        self._limit: int | None = None
        self._free = asyncio.Event()
        self._free.set()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def hold_after(self, count: int) -> None:
        """Lets `count` more bytes through to the device (and what is left of their block), then none."""
        self._limit = self.received + count
        self.held.clear()
        self._free.clear()

    def cut(self) -> None:
        """Ends every connection, with what is held, and holds the next ones no more."""
        for task in self._connections:
            task.cancel()
        self._limit = None
        self._free.set()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._carry(reader, writer)
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            return  # the broker is away, so the device's connection ends too
        pumps = {
            asyncio.create_task(self._pump(reader, far_writer, counted=False), name="relay-up"),
            asyncio.create_task(self._pump(far_reader, writer, counted=True), name="relay-down"),
        }
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            far_writer.transport.abort()  # before any wait: cancelled once more, this would be left open
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counted: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(BLOCK):
                if counted:
                    await self._pass()
                    self.received += len(data)
                writer.write(data)
                await writer.drain()

    async def _pass(self) -> None:
        if self._limit is not None and self.received >= self._limit:
            self.held.set()
            await self._free.wait()
