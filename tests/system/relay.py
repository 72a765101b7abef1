"""The wire between a device and its broker: bytes pass unread (TLS goes end to end), are counted, and can be held.

Lets a test stop a download at a known byte, and tell afterwards whether anything came twice; and gives the link weather
(a delay, a rate, stalls as a lost packet makes them, on and off) without root. It ends TCP on both sides: what a lossy
link does to TCP itself is seen over benchmarks/wire only.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

BLOCK = 64 * 1024
SEGMENT = 4 * 1024  # what passes at once where there is a rate
UNDER_WAY = 64  # pieces at most, each way: the bound of the link's buffer


@dataclass(frozen=True)
class Weather:
    """Of each direction. `delay_s` one way, `rate` in bytes per second (0: none); of the pieces that pass, the share
    `stalls` holds up all after it for `stall_s`, as TCP does while it repeats a lost packet.
    """

    delay_s: float = 0.0
    rate: float = 0.0
    stalls: float = 0.0
    stall_s: float = 0.2


class Relay:
    """Listens on `port`, connects to `target`. `received` counts bytes to the device, over all connections.

    `weather` may be changed at any time; `seed` decides where it stalls.
    """

    def __init__(self, target: int, weather: Weather = Weather(), seed: int = 1) -> None:
        self.port = 0
        self.received = 0
        self.held = asyncio.Event()  # the limit is reached
        self.weather = weather
        self._chance = random.Random(seed)
        self._target = target
        self._limit: int | None = None
        self._free, self._on = asyncio.Event(), asyncio.Event()
        self._free.set()
        self._on.set()
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

    def off(self) -> None:
        """Nothing passes in either direction until `on`; connections stay, as over a link that is away."""
        self._on.clear()

    def on(self) -> None:
        self._on.set()

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
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(UNDER_WAY)
        taking = asyncio.create_task(self._take(reader, under_way), name="relay-take")
        try:
            with suppress(OSError):
                await self._give(under_way, writer, counted=counted)
        finally:
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)

    async def _take(self, reader: asyncio.StreamReader, under_way: asyncio.Queue[tuple[float, bytes]]) -> None:
        """Puts down what comes with the moment at which it is to arrive; nothing at all stands for the end."""
        now = asyncio.get_running_loop().time
        free_at, data = now(), b"first"
        while data:
            weather = self.weather
            try:
                data = await reader.read(SEGMENT if weather.rate else BLOCK)
            except OSError:
                data = b""
            free_at = max(free_at, now()) + (len(data) / weather.rate if weather.rate else 0.0)
            if self._chance.random() < weather.stalls:
                free_at += weather.stall_s
            await under_way.put((free_at + weather.delay_s, data))

    async def _give(
        self, under_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, *, counted: bool
    ) -> None:
        now = asyncio.get_running_loop().time
        while True:
            due, data = await under_way.get()
            if not data:
                return
            if due > now():
                await asyncio.sleep(due - now())
            await self._on.wait()
            if counted:
                await self._pass()
                self.received += len(data)
            writer.write(data)
            await writer.drain()

    async def _pass(self) -> None:
        if self._limit is not None and self.received >= self._limit:
            self.held.set()
            await self._free.wait()
