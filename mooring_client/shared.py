"""One connection to a worker over shared memory, for plain applications. Made by `client`."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any

from mooring_client.desk import Desk
from mooring_client.errors import ClientError, Gone, Timeout
from mooring_client.near import Near
from mooring_client.prediction import Prediction
from mooring_client.wire import GROW, MAX_MESSAGE, TAKEN, MoreRoom, Welcome, head, read_welcome, refusal

_TIME = struct.Struct("ll")


class SharedLink:
    """Raises in every method: Gone when the worker ended, Timeout, Refused, ClientError."""

    transport = "shared-memory"

    def __init__(self, path: str, timeout_s: float, size: int, copy: bool, near: bool) -> None:
        """`size` is what the area has at least (0: as the module's shapes suggest)."""
        self._sock = connect(path)
        self._timeout_s = 0.0
        self._near: Near | None = None
        try:
            self._limit(timeout_s)
            self.welcome: Welcome = read_welcome(self._receive())
            self._desk = Desk(self.welcome, min(size, self.welcome.area_bytes), copy)
            self._show_area()
        except BaseException:
            self._sock.close()
            raise
        if near and self.welcome.cpus:
            with contextlib.suppress(OSError, AttributeError):
                self._near = Near(self.welcome.cpus)
        self._heads: dict[int, bytes] = {}

    @property
    def size(self) -> int:
        return self._desk.size

    def ask(self, inputs: Mapping[str, Any], outputs: Sequence[str], id_: bytes, timeout_s: float) -> Prediction:
        if timeout_s != self._timeout_s:
            self._limit(timeout_s)
        while True:
            try:
                body, arrays = self._desk.prepare(inputs, outputs)
                return self._desk.answer(self._round(id_, body), arrays)
            except MoreRoom as error:
                self._grow(error.size)

    def room(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        while True:
            try:
                return self._desk.room(shapes)
            except MoreRoom as error:
                self._grow(error.size)

    def close(self) -> None:
        if self._near is not None:
            self._near.restore()
        self._sock.close()
        self._desk.close()

    def _round(self, id_: bytes, body: bytes) -> bytes:
        near = self._near
        if near is None:
            self._send(head(-1, id_) + body)
            return self._receive()
        started = time.perf_counter()
        self._send(self._head(near.enter(started), id_) + body)
        message = self._receive()
        near.leave((time.perf_counter() - started) * 1e6)
        return message

    def _head(self, cpu: int, id_: bytes) -> bytes:
        if id_:
            return head(cpu, id_)
        if cpu not in self._heads:
            self._heads[cpu] = head(cpu, b"")
        return self._heads[cpu]

    def _grow(self, size: int) -> None:
        if size <= self._desk.size:
            raise ClientError(f"the worker asks for room of {size} bytes, and has {self._desk.size}")
        self._desk.make(size)
        self._send(GROW)
        self._show_area()

    def _show_area(self) -> None:
        try:
            socket.send_fds(self._sock, [self._desk.announcement], [self._desk.handle])
        except OSError as error:
            raise gone(error) from error
        if (said := self._receive()) != TAKEN:
            raise refusal(said)

    def _send(self, message: bytes) -> None:
        try:
            self._sock.send(message)
        except OSError as error:
            raise gone(error) from error

    def _receive(self) -> bytes:
        try:
            message = self._sock.recv(MAX_MESSAGE)
        except BlockingIOError:
            raise Timeout(f"expected an answer within {self._timeout_s:g} s, got none") from None
        except OSError as error:
            raise gone(error) from error
        if not message:
            raise Gone("the worker ended")
        return message

    def _limit(self, timeout_s: float) -> None:
        """By the kernel: a time limit of Python's would be one more system call for each message."""
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            whole = int(timeout_s)
            self._sock.setsockopt(socket.SOL_SOCKET, option, _TIME.pack(whole, max(1, int((timeout_s - whole) * 1e6))))
        self._timeout_s = timeout_s


def connect(path: str) -> socket.socket:
    """Blocking, without a deadline yet: the kernel answers at once. Raises Gone."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.connect(path)
    except OSError as error:
        sock.close()
        raise Gone(f"{path}: nobody serves here ({error.strerror or error})") from error
    return sock


def gone(error: OSError) -> Gone:
    return Gone(f"the worker ended ({error.strerror or error})")
