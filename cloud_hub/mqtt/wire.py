"""Bytes of one TLS connection as MQTT 5 packets, and packets as bytes. Used by `client`.

What is written in one turn of the loop leaves in one piece: at thousands of packets a second a TLS record for each
would cost more than the packets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import mqtt5

MAX_PACKET_BYTES: Final = 1_048_576 + 4096  # what the shipped broker sends at most, with its header
HIGH_WATER_BYTES: Final = 1024 * 1024


class Wire(asyncio.Protocol):
    """`on_packet` gets each packet in order and must not raise; `on_end` is called once, with why it ended."""

    def __init__(self, on_packet: Callable[[mqtt5.Packet], None], on_end: Callable[[str], None]) -> None:
        self._on_packet = on_packet
        self._on_end = on_end
        self._transport: asyncio.Transport | None = None
        self._unread = b""
        self._unsent: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Event()
        self._room.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):  # what create_connection makes
            transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
            self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._unread:
            data = self._unread + data
        view, place = memoryview(data), 0
        try:
            while place < len(data):
                packet, size = mqtt5.read(view[place:])
                place += size
                self._on_packet(packet)
        except IndexError:  # not whole yet
            pass
        except ValueError as error:
            self.abort(f"the broker sent no MQTT 5: {error}")
            return
        self._unread = data[place:]
        if len(self._unread) > MAX_PACKET_BYTES:
            self.abort(f"the broker sent a packet of more than {MAX_PACKET_BYTES} bytes")

    def connection_lost(self, error: Exception | None) -> None:
        self._end(str(error) if error is not None else "closed by the broker")

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def send(self, data: bytes) -> None:
        """Leaves with all else that is sent in this turn of the loop. Nothing after the end."""
        if self._transport is None:
            return
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(data)

    async def room(self) -> None:
        """Returns when the broker takes what was written. The caller sets the deadline."""
        await self._room.wait()

    def close(self) -> None:
        """What was sent still leaves."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self, why: str) -> None:
        """At once."""
        if self._transport is not None:
            self._transport.abort()
        self._end(why)

    def _flush(self) -> None:
        data, self._unsent = self._unsent, []
        if data and self._transport is not None:
            self._transport.write(b"".join(data) if len(data) > 1 else data[0])

    def _end(self, why: str) -> None:
        if self._transport is not None:
            self._transport = None
            self._unsent = []
            self._room.set()
            self._on_end(why)
