"""One connection of one device: TCP, TLS 1.3 and MQTT 5 packets, without a task, a transport or a buffer of its own.

Packets are read by the codec `mqtt5`. Whoever listens hears that TLS stands, each packet, and once how it ended.
Called by `device` only.
"""

from __future__ import annotations

import errno
import select
import socket
import ssl
from typing import Protocol

import mqtt5

from cloud_hub.simulator.identity import Identity, Tls
from cloud_hub.simulator.poller import Poller

READ_BYTES = 65_536
READS_AT_ONCE = 32
MAX_UNSENT_BYTES = 1024 * 1024
MAX_PACKET_BYTES = 1024 * 1024 + 4096  # what the shipped broker sends at most
_READ, _WRITE = select.EPOLLIN, select.EPOLLOUT


class Listener(Protocol):
    """Must not raise. After `ended` nothing more comes."""

    def opened(self) -> None: ...
    def heard(self, packet: mqtt5.Packet) -> None: ...
    def ended(self, why: str) -> None: ...


class Wire:
    """`open` once, then `send`; `close` says nothing to the listener, a loss does."""

    __slots__ = (
        "_host",
        "_identity",
        "_listener",
        "_plain",
        "_poller",
        "_socket",
        "_tls",
        "_unread",
        "_unsent",
        "_waits",
        "up",
    )

    def __init__(self, poller: Poller, tls: Tls, identity: Identity, listener: Listener) -> None:
        self._poller, self._tls, self._identity, self._listener = poller, tls, identity, listener
        self._host = ""
        self._plain: socket.socket | None = None
        self._socket: ssl.SSLSocket | None = None
        self._unread, self._unsent = b"", b""
        self._waits = False  # for room to write
        self.up = False

    def open(self, host: str, address: tuple[str, int], family: int = socket.AF_INET) -> None:
        """`address` is resolved already; `host` is the name that the server's certificate must bear."""
        self._host = host
        try:
            plain = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            self._lose(str(error))
            return
        self._plain = plain
        try:
            plain.setblocking(False)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            said = plain.connect_ex(address)
            if said not in (0, errno.EINPROGRESS):
                self._lose(errno.errorcode.get(said, str(said)))
                return
            self._poller.add(plain.fileno(), self, _WRITE)
        except OSError as error:
            self._lose(str(error))

    def send(self, data: bytes) -> None:
        """Now, or as soon as the socket takes it. More than a megabyte that is not taken ends the connection."""
        if self._socket is None or not self.up:
            return
        self._unsent += data
        if len(self._unsent) > MAX_UNSENT_BYTES:
            self._lose("the broker takes nothing")
        elif len(self._unsent) == len(data):
            self._flush()

    def close(self) -> None:
        held = self._socket or self._plain
        self.up = False
        if held is None:
            return
        self._socket = self._plain = None
        self._unread = self._unsent = b""
        if held.fileno() >= 0:
            self._poller.remove(held.fileno())
        held.close()

    def ready(self, events: int) -> None:
        """Called by the poller."""
        try:
            if self._socket is None:
                self._wrap()
            if self._socket is not None and not self.up:
                self._shake_hands(self._socket)
            elif self._socket is not None:
                if events & _WRITE:
                    self._flush()
                if events & ~_WRITE:
                    self._read()
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            self._lose(f"{type(error).__name__}: {error}")

    def _wrap(self) -> None:
        plain = self._plain
        if plain is None:
            return
        failed = plain.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failed:
            self._lose(errno.errorcode.get(failed, str(failed)))
            return
        self._socket = self._tls.wrap(plain, self._identity, self._host)
        self._plain = None

    def _shake_hands(self, tls: ssl.SSLSocket) -> None:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            self._poller.change(tls.fileno(), _READ)
        except ssl.SSLWantWriteError:
            self._poller.change(tls.fileno(), _WRITE)
        else:
            self.up = True
            self._poller.change(tls.fileno(), _READ)
            self._listener.opened()
            self._read()

    def _flush(self) -> None:
        tls = self._socket
        if tls is None:
            return
        try:
            while self._unsent:
                self._unsent = self._unsent[tls.send(self._unsent) :]
            if self._waits:
                self._waits = False
                self._poller.change(tls.fileno(), _READ)
        except ssl.SSLWantWriteError:
            self._waits = True
            self._poller.change(tls.fileno(), _READ | _WRITE)
        except ssl.SSLWantReadError:
            pass
        except OSError as error:
            self._lose(f"{type(error).__name__}: {error}")

    def _read(self) -> None:
        for _ in range(READS_AT_ONCE):
            tls = self._socket
            if tls is None:
                return
            try:
                data = tls.recv(READ_BYTES)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            if not data:
                self._lose("closed by the broker")
                return
            self._parse(data)
        if self._socket is not None and self._socket.pending():
            self._poller.again(self, _READ)

    def _parse(self, data: bytes) -> None:
        if self._unread:
            data = self._unread + data
        view, place = memoryview(data), 0
        while place < len(data):
            try:
                packet, size = mqtt5.read(view[place:])
            except IndexError:  # not whole yet
                break
            place += size
            self._listener.heard(packet)
            if self._socket is None:
                return
        self._unread = data[place:]
        if len(self._unread) > MAX_PACKET_BYTES:
            raise ValueError(f"expected packets of at most {MAX_PACKET_BYTES} bytes")

    def _lose(self, why: str) -> None:
        self.close()
        self._listener.ended(why)
